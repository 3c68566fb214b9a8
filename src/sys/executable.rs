//! The addresses of this program's executable: `getauxval(3)` and its program headers, elf(5).
#![expect(unsafe_code, reason = "the kernel says where the headers lie")]

/// `Elf64_Phdr` of elf(5).
#[repr(C)]
struct ProgramHeader {
    kind: u32,
    flags: u32,
    _offset: u64,
    address: u64,
    _physical: u64,
    _file_size: u64,
    memory_size: u64,
    _align: u64,
}

const _: () = assert!(size_of::<ProgramHeader>() == 56);

/// The program headers of this program's executable, and where they lie.
fn program_headers() -> (usize, &'static [ProgramHeader]) {
    // SAFETY: getauxval has no precondition.
    let table = unsafe { libc::getauxval(libc::AT_PHDR) } as usize;
    // SAFETY: getauxval has no precondition.
    let count = unsafe { libc::getauxval(libc::AT_PHNUM) } as usize;
    if table == 0 {
        return (0, &[]);
    }
    let headers = std::ptr::with_exposed_provenance::<ProgramHeader>(table);
    // SAFETY: the kernel mapped the table for the loader; it stays for the life of the program.
    (table, unsafe { std::slice::from_raw_parts(headers, count) })
}

/// The addresses this program's executable was loaded to: an address minus their start is what
/// `addr2line` takes.
pub fn executable() -> super::map::Range {
    let (table, headers) = program_headers();
    if table == 0 {
        return super::map::Range { start: 0, len: 0 };
    }
    // The program headers lie in the first page of the file, just behind the ELF header.
    let start = super::page_size().round_down(table);
    let loaded = headers.iter().filter(|header| header.kind == libc::PT_LOAD);
    let bounds = loaded.map(|header| (header.address, header.address + header.memory_size));
    let (low, high) = bounds.fold((u64::MAX, 0), |(low, high), (from, to)| (low.min(from), high.max(to)));
    super::map::Range { start, len: high.saturating_sub(low) as usize }
}

/// The parts of this program's executable that nobody can write once it is loaded: its segments without `PF_W`, and what the
/// loader makes read-only after it has put addresses in (`PT_GNU_RELRO`). None where the table does not say where it
/// lies itself.
pub fn constants() -> Vec<super::map::Range> {
    let (table, headers) = program_headers();
    let Some(own) = headers.iter().find(|header| header.kind == libc::PT_PHDR) else { return Vec::new() };
    let bias = table.wrapping_sub(own.address as usize);
    let fixed = headers.iter().filter(|header| {
        header.kind == libc::PT_GNU_RELRO || (header.kind == libc::PT_LOAD && header.flags & libc::PF_W == 0)
    });
    fixed
        .map(|header| super::map::Range {
            start: bias.wrapping_add(header.address as usize),
            len: header.memory_size as usize,
        })
        .collect()
}
