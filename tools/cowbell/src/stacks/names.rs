//! Instructions as functions and lines.
//!
//! Names come from the files on disk, so the process may be gone; and from debug information that distributions package
//! apart, where it is installed. A name is claimed only for an instruction that its function is known to cover: nearly
//! all of a stripped interpreter lies *behind* some exported function, and is none of it.

use super::elf::{self, ElfFile, LoadLayout};
use super::instruction;
use super::perf_map::PerfMap;
use super::types::DebugTypes;
use crate::record::{Code, Mapping, Module, Nameless, NativeFrame, Place, Uninitialised};
use blazesym::symbolize::source::Elf;
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolizer};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The directory in which distributions put debug information.
const DEBUG_DIRECTORY: &str = "/usr/lib/debug";

/// Finds names, and remembers them by module.
pub struct Names {
    symbolizer: Symbolizer,
    debug_directory: PathBuf,
    /// By number; why not, for what cannot be read.
    modules: HashMap<u32, Result<Known, Nameless>>,
    /// The addresses at which files are loaded, by path; `None` for what is no ELF file.
    layouts: HashMap<String, Option<LoadLayout>>,
}

/// A module that was read, or the kernel's own code.
struct Known {
    layout: LoadLayout,
    source: Source,
    /// By address as the file counts them.
    frames: HashMap<u64, Vec<NativeFrame>>,
    /// The file's types, once they were asked for.
    types: Option<Option<DebugTypes>>,
    /// When its file was written, where that is known to stand under its path.
    built: Option<SystemTime>,
}

/// The place of names.
enum Source {
    /// In a file, or in what it links to.
    File {
        path: PathBuf,
        /// Debug information of the same build.
        debug: Option<PathBuf>,
        /// The very file, which its path need not lead to any more.
        open: Option<File>,
    },
    /// In the kernel's own image.
    Vdso(Vec<u8>),
}

impl Names {
    /// Knows nothing yet.
    pub fn new() -> Self {
        Self::with_debug_directory(Path::new(DEBUG_DIRECTORY))
    }

    fn with_debug_directory(directory: &Path) -> Self {
        let symbolizer = Symbolizer::builder().set_debug_dirs(Some([directory])).build();
        Self { symbolizer, debug_directory: directory.to_owned(), modules: HashMap::new(), layouts: HashMap::new() }
    }

    /// Adds a module. `file`: the very file that was mapped, where somebody opened it in time; else what is under its path
    /// now, if that is the same build.
    pub fn add(&mut self, module: &Module, file: Option<File>) {
        let known = Known::read(module, file, &self.debug_directory);
        self.modules.insert(module.module, known);
    }

    /// Adds a file as it is now, unless it was added.
    pub fn add_file(&mut self, module: u32, path: &Path) {
        if self.modules.contains_key(&module) {
            return;
        }
        let file = elf::open(path);
        let build_id = file.as_ref().and_then(|file| elf::with_file(file, |image| image.build_id()));
        let (path, device) = (path.display().to_string(), String::new());
        let as_is = Module { module, path, device, inode: 0, build_id: build_id.as_deref().map(hex) };
        self.add(&as_is, file);
    }

    /// Names places whose modules were added, in the order given.
    ///
    /// Code of no file may have names that the process' just-in-time compiler wrote.
    pub fn resolve(&mut self, places: &[Place]) -> Vec<Code> {
        let mut perf_maps: HashMap<i32, PerfMap> = HashMap::new();
        let named = places.iter().map(|place| {
            let Place { code, module, offset, pid } = *place;
            let Some(module) = module else {
                let map = perf_maps.entry(pid).or_insert_with(|| PerfMap::of(pid));
                let function = map.function(offset).map(str::to_owned);
                let frames = function.map(|function| NativeFrame { function, file: None, line: None });
                return code_of(code, frames.into_iter().collect(), offset, Nameless::GeneratedCode, false);
            };
            let known = match self.modules.get_mut(&module) {
                Some(Ok(known)) => known,
                Some(Err(why)) => return code_of(code, Vec::new(), offset, *why, false),
                None => return code_of(code, Vec::new(), offset, Nameless::NoSymbols, false),
            };
            let atomic = known.is_atomic(offset);
            let named = known.layout.address(offset).map(|address| (known.frames(address, &self.symbolizer), address));
            let (frames, address) = named.unwrap_or_else(|| (Vec::new(), offset));
            code_of(code, frames, address, Nameless::NoSymbols, atomic)
        });
        named.collect()
    }

    /// The types that a module's debug information tells, and where its code is loaded.
    pub fn types(&mut self, module: u32) -> Option<(&LoadLayout, &mut DebugTypes)> {
        let Known { layout, source, types, .. } = self.modules.get_mut(&module)?.as_mut().ok()?;
        let types = types.get_or_insert_with(|| source.types()).as_mut()?;
        Some((layout, types))
    }

    /// When the file of a module was written, if it stands under its path, so that paths in it mean the same here.
    pub fn built(&self, module: u32) -> Option<SystemTime> {
        self.modules.get(&module)?.as_ref().ok()?.built
    }

    /// The parts of anonymous memory among these mappings of process `pid`, ascending, that are uninitialised data of a file whose
    /// code is mapped there, by that file's headers.
    pub fn uninitialised(&mut self, pid: i32, mappings: &[Mapping]) -> Vec<Uninitialised> {
        let mut found = Vec::new();
        // Files that hold code and data in one place are mapped more than once; code is where it is.
        let code = |mapping: &&Mapping| mapping.name.starts_with('/') && mapping.permissions.contains('x');
        let mut known = None;
        for mapping in mappings.iter().filter(code) {
            let read = || elf::with_file(&open_mapped(pid, mapping)?, |image| Some(image.layout()));
            let layout = self.layouts.entry(mapping.name.clone()).or_insert_with(read);
            let part = mapping.offset..mapping.offset.saturating_add(mapping.end - mapping.start);
            let Some((layout, bias)) =
                layout.as_ref().and_then(|layout| Some((layout, layout.bias(mapping.start, part)?)))
            else {
                continue;
            };
            if known.replace((&mapping.name, bias)) == Some((&mapping.name, bias)) {
                continue;
            }
            for data in layout.uninitialised(bias) {
                let first = mappings.partition_point(|other| other.end <= data.start);
                let within = mappings.iter().skip(first).take_while(|other| other.start < data.end);
                let anonymous = within.filter(|other| other.name.is_empty() || other.name.starts_with('['));
                let part = |other: &Mapping| data.start.max(other.start)..data.end.min(other.end);
                let of_file = |part: Range<u64>| {
                    let Range { start, end } = part;
                    Uninitialised { start, end, name: mapping.name.clone() }
                };
                found.extend(anonymous.map(part).map(of_file));
            }
        }
        found.sort_by_key(|data| data.start);
        found
    }
}

fn code_of(code: u32, frames: Vec<NativeFrame>, address: u64, why: Nameless, atomic: bool) -> Code {
    let nameless = frames.is_empty().then_some(why);
    Code { code, frames, address, nameless, atomic }
}

/// Beginnings of paths that are memory and no file: code in it was generated while the program ran.
const MEMORY: [&str; 3] = ["/memfd:", "/dev/zero", "/SYSV"];

impl Known {
    fn read(module: &Module, file: Option<File>, debug_directory: &Path) -> Result<Self, Nameless> {
        let frames = HashMap::new();
        if module.path == "[vdso]" {
            let image = elf::vdso().ok_or(Nameless::FileUnreadable)?;
            let layout = ElfFile::parse(image.as_slice()).ok_or(Nameless::NoSymbols)?.layout();
            return Ok(Self { layout, source: Source::Vdso(image), frames, types: None, built: None });
        }
        let opened = file.is_some();
        let named = PathBuf::from(&module.path);
        let open = file.or_else(|| elf::open(&named)).ok_or_else(|| match fs::metadata(&named) {
            Ok(_) => Nameless::FileUnreadable,
            Err(_) => Nameless::FileGone,
        });
        let is_memory = MEMORY.iter().any(|memory| module.path.starts_with(memory));
        let open = if is_memory { open.map_err(|_| Nameless::GeneratedCode) } else { open }?;
        let image = elf::with_file(&open, |image| Some((image.layout(), image.build_id())));
        let (layout, build_id) = image.ok_or(if is_memory { Nameless::GeneratedCode } else { Nameless::NoSymbols })?;
        // The inode must do for a file that does not say which build it is.
        let is_it = opened || build_id.is_some() || open.metadata().is_ok_and(|it| it.ino() == module.inode);
        if build_id.as_deref().map(hex) != module.build_id || !is_it {
            return Err(Nameless::FileReplaced);
        }
        let debug = build_id.and_then(|id| debug_file(debug_directory, &id));
        let metadata = open.metadata().ok().filter(|_| path_of(&named, Some(&open)) == named);
        let built = metadata.and_then(|metadata| metadata.modified().ok());
        let source = Source::File { path: named, debug, open: opened.then_some(open) };
        Ok(Self { layout, source, frames, types: None, built })
    }

    /// See [`Code::atomic`].
    fn is_atomic(&self, offset: u64) -> bool {
        let Source::File { path, open, .. } = &self.source else { return false };
        let mut bytes = [0; instruction::BYTES_MAX];
        let read = match open {
            Some(open) => open.read_at(&mut bytes, offset),
            None => File::open(path).and_then(|file| file.read_at(&mut bytes, offset)),
        };
        instruction::is_atomic(bytes.get(..read.unwrap_or(0)).unwrap_or_default())
    }

    fn frames(&mut self, address: u64, symbolizer: &Symbolizer) -> Vec<NativeFrame> {
        let source = &self.source;
        self.frames.entry(address).or_insert_with(|| source.frames(address, symbolizer)).clone()
    }
}

impl Source {
    fn types(&self) -> Option<DebugTypes> {
        let Self::File { path, debug, open } = self else { return None };
        let own = path_of(path, open.as_ref());
        debug.iter().chain([&own]).find_map(|path| DebugTypes::read(&elf::open(path)?))
    }

    fn frames(&self, address: u64, symbolizer: &Symbolizer) -> Vec<NativeFrame> {
        match self {
            Self::Vdso(image) => {
                let function = ElfFile::parse(image.as_slice()).and_then(|image| image.exported_function(address));
                function.map(|function| NativeFrame { function, file: None, line: None }).into_iter().collect()
            }
            Self::File { path, debug, open } => {
                let path = &path_of(path, open.as_ref());
                let mut bare = Elf::new(path);
                bare.debug_syms = false;
                // A debug link that leads to another build makes the whole file an error: then without it.
                let mut sources = debug.iter().map(Elf::new).chain([Elf::new(path), bare]);
                let named = sources.find_map(|source| {
                    let symbol = symbolizer.symbolize_single(&source.into(), Input::VirtOffset(address)).ok()?;
                    symbol.into_sym().and_then(frames)
                });
                named.unwrap_or_default()
            }
        }
    }
}

/// Opens the file of a mapping: as the process has it, while that lives and we may; else as we do.
fn open_mapped(pid: i32, mapping: &Mapping) -> Option<File> {
    let Mapping { start, end, name, .. } = mapping;
    let paths = [format!("/proc/{pid}/map_files/{start:x}-{end:x}"), format!("/proc/{pid}/root{name}"), name.clone()];
    paths.iter().find_map(|path| elf::open(Path::new(path)))
}

/// A path that leads to an open file now: its own where it still does, since debug information may lie beside it.
fn path_of(path: &Path, open: Option<&File>) -> PathBuf {
    let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
    let there = fs::metadata(path).map(identity).ok();
    match open {
        Some(open) if there.is_none() || there != open.metadata().map(identity).ok() => {
            format!("/proc/self/fd/{}", open.as_raw_fd()).into()
        }
        _ => path.to_owned(),
    }
}

/// The functions that a symbol stands for, the innermost inlined one first.
fn frames(symbol: Sym<'_>) -> Option<Vec<NativeFrame>> {
    // A symbol without a size is merely the nearest one. Of a function in several parts (a compiler puts what hardly ever runs
    // elsewhere) debug information is read without size and address.
    let is_in_parts = symbol.addr == 0 && symbol.code_info.is_some();
    if symbol.name.is_empty() || (symbol.size.is_none() && symbol.offset > 0 && !is_in_parts) {
        return None;
    }
    let frame = |name: Cow<'_, str>, code: Option<&CodeInfo<'_>>| NativeFrame {
        function: name.into_owned(),
        file: code.map(|code| code.to_path().display().to_string()),
        line: code.and_then(|code| code.line),
    };
    let inlined = symbol.inlined.iter().rev().map(|inlined| frame(inlined.name.clone(), inlined.code_info.as_ref()));
    let mut frames: Vec<_> = inlined.collect();
    frames.push(frame(symbol.name, symbol.code_info.as_deref()));
    Some(frames)
}

/// The debug information of a build, if a package has brought it.
fn debug_file(directory: &Path, build_id: &[u8]) -> Option<PathBuf> {
    let (first, rest) = build_id.split_first()?;
    let path = directory.join(format!(".build-id/{first:02x}/{}.debug", hex(rest)));
    let same_build = elf::with_file(&elf::open(&path)?, |image| image.build_id()).as_deref() == Some(build_id);
    same_build.then_some(path)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Directory, Program, code_at, mappings, run};
    use super::*;
    use crate::record::Mapping;
    use std::process::Command;

    /// Says where its code is, then waits for its input.
    const FUNCTIONS: &str = r#"
#include <stdio.h>
#include <unistd.h>
#if defined(__x86_64__)
#define HERE(pc) __asm__ volatile("lea 0(%%rip), %0; nop" : "=r"(pc))
#else
#define HERE(pc) __asm__ volatile("adr %0, ." : "=r"(pc))
#endif
static inline __attribute__((always_inline)) void *inlined(void) { void *pc; HERE(pc); return pc; }
__attribute__((noinline)) void *host(void) {
    return inlined();
}
__attribute__((noinline)) void rust(void) __asm__("_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE");
__attribute__((noinline)) void rust(void) { __asm__ volatile(""); }
__attribute__((noinline)) void plus(void) __asm__("_ZN5space4nameEi");
__attribute__((noinline)) void plus(void) { __asm__ volatile(""); }
__attribute__((noinline)) static void hidden(void) { __asm__ volatile(""); }
int main(void) {
    hidden(); rust(); plus();
    printf("%p %p %p %p\n", host(), (void *)rust, (void *)plus, (void *)hidden);
    fflush(stdout);
    char c;
    return read(0, &c, 1) > 5;
}
"#;

    /// The program's instructions: inlined, mangled by Rust, mangled by C++, and of a function that is not exported.
    struct Running {
        pid: i32,
        mappings: Vec<Mapping>,
        pcs: Vec<u64>,
    }

    /// Runs it until it has said where its code is. It is gone when its names are asked for.
    fn run_once(program: &Path) -> Running {
        let mut program = Program::start(&mut Command::new(program));
        let pcs = program.line().split(' ').map(|pc| u64::from_str_radix(&pc[2..], 16).unwrap()).collect();
        Running { pid: program.pid(), mappings: mappings(program.pid()), pcs }
    }

    /// Names instructions of a process that maps, or mapped, this.
    fn resolve_in(names: &mut Names, pid: i32, mappings: &[Mapping], pcs: &[u64]) -> Vec<Code> {
        let place = |(&pc, code): (&u64, u32)| {
            let at = mappings.iter().position(|mapping| (mapping.start..mapping.end).contains(&pc));
            match at.filter(|&at| !mappings[at].name.is_empty()) {
                Some(at) => {
                    // Each mapping is a module here: its number is all that matters.
                    names.add_file(at as u32, Path::new(&mappings[at].name));
                    let offset = pc - mappings[at].start + mappings[at].offset;
                    Place { code, module: Some(at as u32), offset, pid: 0 }
                }
                None => Place { code, module: None, offset: pc, pid },
            }
        };
        let places: Vec<_> = pcs.iter().zip(1..).map(place).collect();
        names.resolve(&places)
    }

    fn resolve(names: &mut Names, running: &Running) -> Vec<Code> {
        let codes = resolve_in(names, running.pid, &running.mappings, &running.pcs);
        assert_eq!(codes.iter().map(|code| code.code).collect::<Vec<_>>(), [1, 2, 3, 4]);
        codes
    }

    fn functions(code: &Code) -> Vec<&str> {
        code.frames.iter().map(|frame| frame.function.as_str()).collect()
    }

    fn assert_all_named(codes: &[Code]) {
        assert_eq!(functions(&codes[0]), ["inlined", "host"]);
        assert!(functions(&codes[1])[0].starts_with("core::fmt::Write::write_fmt"), "{codes:?}");
        assert_eq!(functions(&codes[2]), ["space::name(int)"]);
        assert_eq!(functions(&codes[3]), ["hidden"]);
        let lines: Vec<_> = codes[0].frames.iter().map(|frame| frame.line).collect();
        assert_eq!(lines, [Some(9), Some(11)]);
        assert!(codes[0].frames[0].file.as_ref().unwrap().ends_with("/program.c"));
    }

    #[test]
    fn functions_inlined_ones_and_lines_are_named_wherever_the_program_is_loaded() {
        for flags in [&["-pie"][..], &["-no-pie"], &["-static"]] {
            let directory = Directory::new();
            let program = directory.compile(FUNCTIONS, &[&["-O2", "-g"], flags].concat());
            assert_all_named(&resolve(&mut Names::new(), &run_once(&program)));
        }
    }

    #[test]
    fn a_function_in_several_parts_has_its_lines_and_what_is_inlined_into_it() {
        let parted = "
__attribute__((cold, noinline)) void rare(void) { __asm__ volatile(\"\"); }
__attribute__((noinline)) void *parted(int n) {
    if (__builtin_expect(n > 7, 0)) { rare(); rare(); }
    return inlined();
}
int main(int count, char **words) {
    printf(\"%p\\n\", parted(count)); fflush(stdout);
    char c;
    return read(0, &c, 1) > 5;
}
";
        let source = FUNCTIONS.replace("int main(void)", "int unused(void)") + parted;
        let directory = Directory::new();
        let running = run_once(&directory.compile(&source, &["-O2", "-g"]));
        let found = resolve_in(&mut Names::new(), running.pid, &running.mappings, &running.pcs);
        assert_eq!(functions(&found[0]), ["inlined", "parted"]);
        assert!(found[0].frames.iter().all(|frame| frame.line.is_some()), "{found:?}");
    }

    #[test]
    fn a_function_that_was_stripped_of_its_name_does_not_get_its_neighbours() {
        let directory = Directory::new();
        let running = run_once(&directory.compile(FUNCTIONS, &["-O2", "-rdynamic", "-s"]));
        let codes = resolve(&mut Names::new(), &running);
        assert_eq!(functions(&codes[0]), ["host"], "exported, so still known");
        assert_eq!(functions(&codes[3]), [""; 0]);
        assert!(codes[3].address < codes[3].address.max(running.pcs[3]), "as the file counts: {codes:?}");
        let mut all = Names::new();
        let code = running.mappings.iter().find(|m| m.start <= running.pcs[0] && running.pcs[0] < m.end).unwrap();
        let named = resolve_in(&mut all, running.pid, &running.mappings, &(code.start..code.end).collect::<Vec<_>>());
        let host = named.iter().filter(|code| functions(code) == ["host"]).count();
        assert!((1..64).contains(&host), "{host} bytes");
    }

    #[test]
    fn without_any_symbol_there_is_the_module_and_the_address_in_it() {
        let directory = Directory::new();
        let program = directory.compile(FUNCTIONS, &["-O2", "-static", "-no-pie", "-s"]);
        let running = run_once(&program);
        for (code, pc) in resolve(&mut Names::new(), &running).iter().zip(running.pcs) {
            assert_eq!((code.frames.len(), code.address), (0, pc), "loaded as linked");
        }
    }

    /// Moves a program's debug information to a file of its own, compressed as Debian does.
    fn split(program: &Path, debug: &Path) {
        std::fs::create_dir_all(debug.parent().unwrap()).unwrap();
        let objcopy = || Command::new("objcopy");
        run(objcopy().args(["--only-keep-debug", "--compress-debug-sections=zlib"]).args([program, debug]));
        run(Command::new("strip").arg(program));
    }

    #[test]
    fn debug_information_of_a_package_is_found_by_build() {
        let directory = Directory::new();
        let program = directory.compile(FUNCTIONS, &["-O2", "-g", "-Wl,--build-id=0x0123456789abcdef"]);
        split(&program, &directory.path(".build-id/01/23456789abcdef.debug"));
        let mut names = Names::with_debug_directory(&directory.path(""));
        assert_all_named(&resolve(&mut names, &run_once(&program)));
        let mut without = Names::with_debug_directory(Path::new("/nonexistent"));
        assert_eq!(functions(&resolve(&mut without, &run_once(&program))[3]), [""; 0]);
    }

    #[test]
    fn debug_information_is_found_by_link_and_that_of_another_build_is_not_used() {
        let directory = Directory::new();
        let program = directory.compile(FUNCTIONS, &["-O2", "-g", "-rdynamic", "-Wl,--build-id=none"]);
        let debug = directory.path("program.debug");
        split(&program, &debug);
        run(Command::new("objcopy").arg(format!("--add-gnu-debuglink={}", debug.display())).arg(&program));
        let running = run_once(&program);
        assert_all_named(&resolve(&mut Names::new(), &running));
        std::fs::write(&debug, "of another build").unwrap();
        let codes = resolve(&mut Names::new(), &running);
        assert_eq!(functions(&codes[0]), ["host"], "what the program itself exports");
        assert_eq!(functions(&codes[3]), [""; 0]);
    }

    #[test]
    fn what_is_gone_or_in_no_mapping_has_no_name() {
        let directory = Directory::new();
        let program = directory.compile(FUNCTIONS, &["-O2"]);
        let mut running = run_once(&program);
        running.mappings.iter_mut().filter(|m| m.name.starts_with('/')).for_each(|m| m.name += " (deleted)");
        let [.., hidden] = &resolve(&mut Names::new(), &running)[..] else { panic!() };
        assert_eq!(functions(hidden), [""; 0]);
        let codes = resolve_in(&mut Names::new(), running.pid, &[], &[0, 16, u64::MAX]);
        assert_eq!(codes.iter().map(|code| code.address).collect::<Vec<_>>(), [0, 16, u64::MAX]);
    }

    #[test]
    fn a_file_that_was_opened_in_time_is_named_after_it_is_gone_and_another_build_is_not_taken_for_it() {
        let directory = Directory::new();
        let program = directory.compile(FUNCTIONS, &["-O2", "-g"]);
        let running = run_once(&program);
        let at = running.mappings.iter().position(|m| m.start <= running.pcs[3] && running.pcs[3] < m.end).unwrap();
        let mapping = &running.mappings[at];
        let place = |pc: &u64| Place { code: 1, module: Some(7), offset: pc - mapping.start + mapping.offset, pid: 0 };
        let places: Vec<_> = running.pcs.iter().map(place).collect();
        let file = elf::open(&program).unwrap();
        let id = elf::with_file(&file, |image| image.build_id()).as_deref().map(hex);
        let module = |build_id| Module {
            module: 7,
            path: program.display().to_string(),
            device: "00:00".into(),
            inode: 1,
            build_id,
        };
        let mut names = Names::new();
        names.add(&module(id.clone()), Some(file));
        std::fs::remove_file(&program).unwrap();
        assert_all_named(&names.resolve(&places));
        // Another program takes the path.
        directory.compile("int main(void) { return 0; }", &["-O2", "-g"]);
        let mut names = Names::new();
        names.add(&module(id), None);
        assert!(names.resolve(&places).iter().all(|code| code.frames.is_empty()));
    }

    #[test]
    fn a_file_of_nonsense_has_no_names() {
        let directory = Directory::new();
        let program = directory.compile(FUNCTIONS, &["-O2", "-g"]);
        let whole = std::fs::read(&program).unwrap();
        for length in [0, 1, 64, 100, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&program, &whole[..length]).unwrap();
            let pcs: Vec<_> = (0..0x4000).step_by(64).collect();
            let codes = resolve_in(&mut Names::new(), 1, &[code_at(0, 0, 0x4000, &program)], &pcs);
            assert_eq!(codes.len(), pcs.len(), "{length}");
        }
    }

    #[test]
    fn code_made_just_in_time_has_the_name_its_compiler_gave_it() {
        let program = Program::start(&mut Command::new("cat"));
        let pid = program.pid();
        let map = PathBuf::from(format!("/tmp/perf-{pid}.map"));
        std::fs::write(&map, "1000 100 py::work:job.py\n").unwrap();
        let mut made = code_at(0x1000, 0, 0x1000, Path::new(""));
        made.name = String::new();
        let mut names = Names::new();
        let codes = resolve_in(&mut names, pid, &[made], &[0x1010, 0x1100]);
        std::fs::remove_file(&map).unwrap();
        drop(program);
        assert_eq!((functions(&codes[0]), functions(&codes[1])), (vec!["py::work:job.py"], vec![]));
        assert_eq!(codes[1].address, 0x1100);
    }

    #[test]
    fn code_of_the_kernel_in_every_process_is_named() {
        let pid = std::process::id() as i32;
        let mappings = mappings(pid);
        let vdso = mappings.iter().find(|mapping| mapping.name == "[vdso]").unwrap();
        let vdso = std::slice::from_ref(vdso);
        let pcs: Vec<_> = (vdso[0].start..vdso[0].end).step_by(16).collect();
        let codes = resolve_in(&mut Names::new(), pid, vdso, &pcs);
        let names: Vec<_> = codes.iter().flat_map(functions).collect();
        assert!(names.iter().any(|name| name.contains("gettime")), "{names:?}");
        assert!(codes[0].frames.is_empty(), "its header is no code");
    }

    #[test]
    #[ignore = "measures, claims nothing"]
    fn costs() {
        let python = std::env::var("COWBELL_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
        let mut program = Program::start(Command::new(python).args(["-c", "print(flush=True); input()"]));
        program.line();
        let mappings = mappings(program.pid());
        let mut names = Names::new();
        for mapping in mappings.iter().filter(|mapping| mapping.permissions.contains('x')) {
            let pcs: Vec<_> = (mapping.start..mapping.end).step_by(256).collect();
            let start = std::time::Instant::now();
            resolve_in(&mut names, program.pid(), &mappings, &pcs[..1]);
            let first = start.elapsed();
            let codes = resolve_in(&mut names, program.pid(), &mappings, &pcs);
            let (all, named) = (start.elapsed(), codes.iter().filter(|code| !code.frames.is_empty()).count());
            eprintln!("{}: first {first:?}, {} in {all:?}, {named} named", mapping.name, pcs.len());
        }
    }
}
