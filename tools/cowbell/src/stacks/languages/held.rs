//! A process as readers of interpreters read it: exported names of its files, and words and texts in its memory.

use crate::stacks::elf;
use cowbell::sys::procfs::maps::{self, Mapping};
use cowbell::sys::remote::RemoteMemory;
use std::collections::HashMap;
use std::path::Path;

/// Bytes read at once. What a structure points to lies close to it more often than not, and each read is a system call.
const BLOCK: u64 = 4096;
/// No name of a file or function in use is longer.
const TEXT_MAX: usize = 4096;

/// The memory of a process while a thread of it stands still. Each block is read once.
pub struct StoppedMemory {
    memory: RemoteMemory,
    blocks: HashMap<u64, Option<Box<[u8]>>>,
}

impl StoppedMemory {
    /// The memory of a process; `None` if it may not be read.
    pub fn open(pid: i32) -> Option<Self> {
        Some(Self { memory: RemoteMemory::open(pid).ok()?, blocks: HashMap::new() })
    }

    /// Reads bytes that lie in one block.
    fn within(&mut self, address: u64, length: u64) -> Option<&[u8]> {
        let start = address / BLOCK * BLOCK;
        let memory = &self.memory;
        let read = || {
            let mut held = vec![0; BLOCK as usize];
            (memory.read(start, &mut held) == Ok(held.len())).then(|| held.into())
        };
        let block = self.blocks.entry(start).or_insert_with(read).as_ref()?;
        let from = (address - start) as usize;
        block.get(from..from + length as usize)
    }

    /// The word at an address, which is a multiple of eight.
    pub fn word(&mut self, address: u64) -> Option<u64> {
        let bytes = address.is_multiple_of(8).then(|| self.within(address, 8))??;
        bytes.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
    }

    /// The half word at an address, which is a multiple of four.
    pub fn half(&mut self, address: u64) -> Option<u32> {
        let bytes = address.is_multiple_of(4).then(|| self.within(address, 4))??;
        bytes.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// The text of so many bytes at an address, if it is one that people could have written: no control characters, and not empty.
    pub fn text(&mut self, address: u64, length: usize) -> Option<String> {
        let mut bytes = Vec::new();
        while bytes.len() < length.min(TEXT_MAX) {
            let at = address.checked_add(bytes.len() as u64)?;
            let rest = (length - bytes.len()).min((BLOCK - at % BLOCK) as usize);
            bytes.extend_from_slice(self.within(at, rest as u64)?);
        }
        readable(bytes)
    }

    /// The text at an address up to its first zero byte, as [`StoppedMemory::text`].
    pub fn text_to_zero(&mut self, address: u64) -> Option<String> {
        let mut bytes = Vec::new();
        while bytes.len() < TEXT_MAX {
            let at = address.checked_add(bytes.len() as u64)?;
            let rest = self.within(at, BLOCK - at % BLOCK)?;
            match rest.iter().position(|byte| *byte == 0) {
                Some(end) => {
                    bytes.extend_from_slice(rest.get(..end)?);
                    return readable(bytes);
                }
                None => bytes.extend_from_slice(rest),
            }
        }
        None
    }
}

fn readable(bytes: Vec<u8>) -> Option<String> {
    String::from_utf8(bytes).ok().filter(|text| !text.is_empty() && !text.contains(char::is_control))
}

/// The addresses of these exported names in a process that runs code of a file that `is_wanted`; `None` where no such file exports the
/// first of them.
pub fn exported(
    pid: i32,
    is_wanted: impl Fn(&str) -> bool,
    names: &[&str],
) -> Result<Option<Vec<Option<u64>>>, String> {
    let maps = maps::read(pid).map_err(|e| format!("cannot read the mappings of process {pid}: {e}"))?;
    let is_code = |map: &&Mapping| map.permissions.contains('x') && map.name.starts_with('/') && is_wanted(&map.name);
    Ok(maps.iter().filter(is_code).find_map(|map| in_file(pid, map, names)))
}

/// The addresses of exported names of the file that a mapping shows.
fn in_file(pid: i32, map: &Mapping, names: &[&str]) -> Option<Vec<Option<u64>>> {
    let (start, end, offset) = (map.range.start as u64, map.range.end() as u64, map.offset);
    // The file as the process has it, else as this program finds it: that may be another build, whose names lie elsewhere.
    let paths = [format!("/proc/{pid}/map_files/{start:x}-{end:x}"), format!("/proc/{pid}/root{}", map.name)];
    let file = paths.iter().find_map(|path| elf::open(Path::new(path)))?;
    elf::with_file(&file, |image| {
        let bias = image.layout().bias(start, offset..offset.checked_add(end - start)?)?;
        let found = image.exported(names).into_iter().map(|address| Some(address?.wrapping_add(bias)));
        let found: Vec<Option<u64>> = found.collect();
        found.first()?.is_some().then_some(found)
    })
}
