//! Facts that an ELF file tells about its code: where it is loaded, how to unwind it, which build it is.
//!
//! Only headers and the sections asked for are read. A file that is not a little-endian 64-bit ELF, or that contradicts
//! itself, is no answer rather than an error: its code stays without names and is unwound by frame pointers.

use cowbell::sys::procfs;
use framehop::ExplicitModuleSectionInfo;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, SectionTable, Sym};
use object::{Endianness, ReadCache, ReadRef, elf};
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

type Header = elf::FileHeader64<Endianness>;

/// The sections by which code is unwound, shared by every process that maps the file.
pub type UnwindSections = ExplicitModuleSectionInfo<Arc<[u8]>>;

/// The addresses at which a file's code and data are loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadLayout {
    /// Executable segments first: where two share a page of the file, the code is in the executable one.
    segments: Vec<Segment>,
}

/// A loaded segment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    file: Range<u64>,
    address: u64,
    /// The bytes that it takes in memory: those that the file lacks are zero.
    memory: u64,
}

impl LoadLayout {
    /// The address, as the file counts them, of a place in the file.
    pub fn address(&self, offset: u64) -> Option<u64> {
        let segment = self.segments.iter().find(|segment| segment.file.contains(&offset))?;
        Some(segment.address.wrapping_add(offset - segment.file.start))
    }

    /// The bias: what is to be added to the file's addresses where this part of it is mapped at `start`.
    pub fn bias(&self, start: u64, part: Range<u64>) -> Option<u64> {
        let overlaps = |segment: &&Segment| segment.file.start < part.end && part.start < segment.file.end;
        let segment = self.segments.iter().find(overlaps)?;
        let mapped_at = start.wrapping_sub(part.start).wrapping_add(segment.file.start);
        Some(mapped_at.wrapping_sub(segment.address))
    }
}

impl LoadLayout {
    /// The ranges of its uninitialised data in memory, by the bias of the file's addresses: from where each segment
    /// has no more bytes of the file on, up to its end. A segment may have none of the file at all.
    pub fn uninitialised(&self, bias: u64) -> impl Iterator<Item = Range<u64>> {
        self.segments.iter().filter_map(move |segment| {
            let start = bias.wrapping_add(segment.address);
            let from = start.checked_add(segment.file.end.checked_sub(segment.file.start)?)?;
            let to = start.checked_add(segment.memory)?;
            (from < to).then_some(from..to)
        })
    }
}

/// An ELF file whose headers make sense.
pub struct ElfFile<'data, R: ReadRef<'data>> {
    data: R,
    endian: Endianness,
    segments: &'data [elf::ProgramHeader64<Endianness>],
    sections: SectionTable<'data, Header, R>,
}

/// Opens a file, if it is one: opening something else that was mapped, a device say, may have effects.
pub fn open(path: &Path) -> Option<File> {
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    File::open(path).ok()
}

/// Looks at an open file.
pub fn with_file<T>(
    file: &File,
    look: impl for<'data> FnOnce(ElfFile<'data, &'data ReadCache<&File>>) -> Option<T>,
) -> Option<T> {
    let cache = ReadCache::new(file);
    look(ElfFile::parse(&cache)?)
}

/// The id of the build that is mapped, if it says so. `read` reads from an offset of the file on, of what lies in its first
/// mapping, and returns how much there was.
pub fn build_id_of(read: &mut dyn FnMut(u64, &mut [u8]) -> Option<usize>) -> Option<Vec<u8>> {
    // The headers of all programs and libraries are shorter than this.
    let mut headers = vec![0; 2048];
    let got = read(0, &mut headers)?;
    headers.truncate(got);
    let header = Header::parse(headers.as_slice()).ok()?;
    let endian = header.endian().ok().filter(|&endian| endian == Endianness::Little)?;
    let segments = header.program_headers(endian, headers.as_slice()).ok()?;
    let notes = segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_NOTE);
    notes.map(|segment| segment.file_range(endian)).find_map(|(offset, size)| {
        // Notes are a few dozen bytes.
        let mut bytes = vec![0; usize::try_from(size.min(4 << 10)).ok()?];
        let got = read(offset, &mut bytes)?;
        build_id_in(bytes.get(..got)?)
    })
}

/// The build id among notes: each is three words, the name and the description, these padded to words.
fn build_id_in(mut notes: &[u8]) -> Option<Vec<u8>> {
    loop {
        let word = |nth: usize| notes.get(nth * 4..nth * 4 + 4)?.try_into().ok().map(u32::from_le_bytes);
        let (name, description, kind) = (word(0)? as usize, word(1)? as usize, word(2)?);
        let padded = |length: usize| length.next_multiple_of(4);
        let from = 12usize.checked_add(padded(name))?;
        let found = notes.get(from..from.checked_add(description)?)?;
        if kind == elf::NT_GNU_BUILD_ID.0 && notes.get(12..12 + name) == Some(b"GNU\0") {
            return Some(found.to_vec());
        }
        notes = notes.get(from.checked_add(padded(description))?..)?;
    }
}

/// The code that the kernel maps into every process of this architecture: the same in ours as in any other.
pub fn vdso() -> Option<Vec<u8>> {
    let place = procfs::maps::vdso(procfs::SELF)?;
    let mut bytes = vec![0; place.len];
    File::open("/proc/self/mem").ok()?.read_exact_at(&mut bytes, place.start as u64).ok()?;
    Some(bytes)
}

impl<'data, R: ReadRef<'data>> ElfFile<'data, R> {
    /// Reads the headers.
    pub fn parse(data: R) -> Option<Self> {
        let header = Header::parse(data).ok()?;
        let endian = header.endian().ok().filter(|&endian| endian == Endianness::Little)?;
        let segments = header.program_headers(endian, data).ok()?;
        let sections = header.sections(endian, data).ok()?;
        Some(Self { data, endian, segments, sections })
    }

    /// The addresses at which it is loaded.
    pub fn layout(&self) -> LoadLayout {
        let endian = self.endian;
        let loaded = self.segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD);
        let is_code = |segment: &&elf::ProgramHeader64<_>| segment.p_flags(endian).contains(elf::PF_X);
        let (code, other): (Vec<_>, Vec<_>) = loaded.partition(is_code);
        let segments = code.into_iter().chain(other).map(|segment: &elf::ProgramHeader64<_>| {
            let (start, size) = segment.file_range(endian);
            let (address, memory) = (segment.p_vaddr(endian), segment.p_memsz(endian));
            Segment { file: start..start.saturating_add(size), address, memory }
        });
        LoadLayout { segments: segments.collect() }
    }

    /// The sections that are needed to unwind its code.
    pub fn unwinding(&self) -> UnwindSections {
        UnwindSections {
            text_svma: self.range(b".text"),
            got_svma: self.range(b".got"),
            eh_frame_svma: self.range(b".eh_frame"),
            eh_frame: self.bytes(b".eh_frame").map(Arc::from),
            eh_frame_hdr_svma: self.range(b".eh_frame_hdr"),
            eh_frame_hdr: self.bytes(b".eh_frame_hdr").map(Arc::from),
            debug_frame: self.bytes(b".debug_frame").map(Arc::from),
            ..UnwindSections::default()
        }
    }

    /// The id of its build, if it says so.
    pub fn build_id(&self) -> Option<Vec<u8>> {
        let mut notes = self.section(b".note.gnu.build-id")?.notes(self.endian, self.data).ok()??;
        while let Some(note) = notes.next().ok()? {
            if note.name() == elf::ELF_NOTE_GNU && note.n_type(self.endian) == elf::NT_GNU_BUILD_ID {
                return Some(note.desc().to_vec());
            }
        }
        None
    }

    /// The exported function that an address, as the file counts them, lies in.
    pub fn exported_function(&self, address: u64) -> Option<String> {
        let symbols = self.sections.symbols(self.endian, self.data, elf::SHT_DYNSYM).ok()?;
        let covers = |symbol: &&elf::Sym64<_>| {
            let start = symbol.st_value(self.endian);
            address.wrapping_sub(start) < symbol.st_size(self.endian)
        };
        let symbol = symbols.iter().find(covers)?;
        let name = symbols.symbol_name(self.endian, symbol).ok()?;
        Some(String::from_utf8_lossy(name).into_owned())
    }

    /// Tells the functions that the file's tables of symbols have: their addresses as the file counts them, and names.
    pub fn functions(&self, tell: &mut dyn FnMut(Range<u64>, &str)) {
        for table in [elf::SHT_SYMTAB, elf::SHT_DYNSYM] {
            let Ok(symbols) = self.sections.symbols(self.endian, self.data, table) else { continue };
            for symbol in symbols.iter().filter(|symbol| symbol.st_type() == elf::STT_FUNC) {
                let start = symbol.st_value(self.endian);
                let name = symbols.symbol_name(self.endian, symbol).unwrap_or_default();
                let (range, name) = (start..start.saturating_add(symbol.st_size(self.endian)), str::from_utf8(name));
                if let (false, Ok(name)) = (range.is_empty(), name) {
                    tell(range, name);
                }
            }
        }
    }

    /// The addresses of exported functions and variables, as the file counts them; `None` for those that it does not export.
    pub fn exported(&self, names: &[&str]) -> Vec<Option<u64>> {
        let mut found = vec![None; names.len()];
        let Ok(symbols) = self.sections.symbols(self.endian, self.data, elf::SHT_DYNSYM) else { return found };
        for symbol in symbols.iter().filter(|symbol| symbol.st_shndx(self.endian) != elf::SHN_UNDEF) {
            let name = symbols.symbol_name(self.endian, symbol).unwrap_or_default();
            if let Some(at) = names.iter().position(|wanted| wanted.as_bytes() == name)
                && let Some(place) = found.get_mut(at)
            {
                *place = Some(symbol.st_value(self.endian));
            }
        }
        found
    }

    fn section(&self, name: &[u8]) -> Option<&'data elf::SectionHeader64<Endianness>> {
        self.sections.section_by_name(self.endian, name).map(|(_, section)| section)
    }

    fn range(&self, name: &[u8]) -> Option<Range<u64>> {
        let section = self.section(name)?;
        let start = section.sh_addr(self.endian);
        Some(start..start.checked_add(section.sh_size(self.endian))?)
    }

    /// A section's contents, unless it is empty or compressed.
    pub fn bytes(&self, name: &[u8]) -> Option<&'data [u8]> {
        let section = self.section(name)?;
        let is_compressed = section.sh_flags(self.endian).contains(elf::SHF_COMPRESSED);
        section.data(self.endian, self.data).ok().filter(|bytes| !is_compressed && !bytes.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> LoadLayout {
        // Data and code share the page of the file that begins at 0x1000.
        let code = Segment { file: 0x1800..0x3000, address: 0x40_2800, memory: 0x1800 };
        let data = Segment { file: 0x0..0x1800, address: 0x40_0000, memory: 0x1900 };
        LoadLayout { segments: vec![code, data] }
    }

    #[test]
    fn a_place_in_the_file_has_the_address_of_its_segment() {
        assert_eq!(layout().address(0x1900), Some(0x40_2900));
        assert_eq!(layout().address(0x17ff), Some(0x40_17ff));
        assert_eq!(layout().address(0x3000), None);
    }

    #[test]
    fn the_bias_of_a_mapping_is_that_of_the_code_in_it() {
        assert_eq!(layout().bias(0x40_2000, 0x1000..0x3000), Some(0), "mapped from the page's beginning on");
        assert_eq!(layout().bias(0x7f00_0040_2000, 0x1000..0x3000), Some(0x7f00_0000_0000));
        assert_eq!(layout().bias(0x40_3000, 0x2000..0x3000), Some(0), "the rest of a mapping that was split");
        assert_eq!(layout().bias(0x40_3000, 0x3000..0x4000), None);
    }

    #[test]
    fn uninitialised_data_lies_where_the_headers_say() {
        let code = Segment { file: 0..0x1000, address: 0, memory: 0x1000 };
        let data = Segment { file: 0xdf0..0x1010, address: 0x3df0, memory: 0x5000 };
        // Data that must be aligned to more than a page has a segment of its own, of which the file has nothing.
        let aligned = Segment { file: 0..0, address: 0x1_0000, memory: 0x1_f000 };
        let layout = LoadLayout { segments: vec![code, data, aligned] };
        let found: Vec<_> = layout.uninitialised(0x7f00_0000_0000).collect();
        let at = |start: u64, end: u64| 0x7f00_0000_0000 + start..0x7f00_0000_0000 + end;
        assert_eq!(found, [at(0x4010, 0x8df0), at(0x1_0000, 0x2_f000)]);
        let absurd = LoadLayout { segments: vec![Segment { file: 0..1, address: u64::MAX, memory: u64::MAX }] };
        assert_eq!(absurd.uninitialised(3).count(), 0);
    }

    #[test]
    fn our_own_file_has_a_layout_and_unwind_sections() {
        let (layout, unwinding) =
            with_file(&open(Path::new("/proc/self/exe")).unwrap(), |i| Some((i.layout(), i.unwinding()))).unwrap();
        assert!(!layout.segments.is_empty());
        assert!(unwinding.eh_frame.is_some() && unwinding.eh_frame_hdr.is_some() && unwinding.text_svma.is_some());
    }

    #[test]
    fn the_build_that_is_mapped_is_the_files() {
        let bytes = fs::read("/proc/self/exe").unwrap();
        let mut read = |offset: u64, buffer: &mut [u8]| {
            let rest = bytes.get(usize::try_from(offset).ok()?..)?;
            let length = rest.len().min(buffer.len());
            buffer[..length].copy_from_slice(&rest[..length]);
            Some(length)
        };
        let in_memory = build_id_of(&mut read);
        let in_file = with_file(&open(Path::new("/proc/self/exe")).unwrap(), |image| image.build_id());
        assert_eq!(in_memory, in_file);
        assert!(in_memory.is_some(), "the linker stamps each program");
        assert_eq!(build_id_of(&mut |_, _| Some(0)), None);
        assert_eq!(build_id_in(&[255; 64]), None);
    }

    #[test]
    fn the_vdso_tells_its_functions() {
        let vdso = vdso().expect("this kernel maps one");
        let image = ElfFile::parse(vdso.as_slice()).unwrap();
        let symbols = image.sections.symbols(image.endian, image.data, elf::SHT_DYNSYM).unwrap();
        let any = symbols.iter().find(|s| s.st_size(image.endian) > 1).unwrap();
        let name = |s| String::from_utf8_lossy(symbols.symbol_name(image.endian, s).unwrap()).into_owned();
        // Several names may be of one address.
        let alike = symbols.iter().filter(|s| s.st_value(image.endian) == any.st_value(image.endian)).map(name);
        let found = image.exported_function(any.st_value(image.endian) + 1).unwrap();
        assert!(alike.into_iter().any(|name| name == found), "{found}");
        assert_eq!(image.exported_function(u64::MAX), None);
    }

    #[test]
    fn what_is_no_elf_file_is_no_answer() {
        let is_answer = |path: &str| {
            open(Path::new(path)).is_some_and(|file| with_file(&file, |image| Some(image.layout())).is_some())
        };
        for path in ["/proc/self/maps", "/etc/passwd", "/dev/zero", "/nonexistent"] {
            assert!(!is_answer(path), "{path}");
        }
        let ours = fs::read("/proc/self/exe").unwrap();
        for length in 0..512 {
            let bytes = &ours[..length];
            if let Some(image) = ElfFile::parse(bytes) {
                drop((image.layout(), image.unwinding(), image.build_id(), image.exported_function(0)));
            }
        }
    }
}
