//! Pages of files behind mappings, read without the process: reading them through it would map them there.
//!
//! An ordinary file is opened by its path, and a memfd by what leads to it in the process. Of memfds only such that are sealed against writing
//! hold what a page showed before it was copied.

use super::maps::{BackedMapping, Backing};
use cowbell::sys::{memfd, procfs};
use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

/// The files that a process maps, opened when they are first asked for.
pub struct Files {
    pid: i32,
    /// By inode and path: `None` where the path leads to another file by now, or cannot be opened.
    opened: HashMap<(u64, String), Option<File>>,
}

impl Files {
    /// The files of process `pid`.
    pub fn new(pid: i32) -> Self {
        Self { pid, opened: HashMap::new() }
    }

    /// Reads what the file behind a mapping holds for the page at address `page`; false where it cannot be read.
    pub fn page(&mut self, map: &BackedMapping, page: u64, into: &mut [u8]) -> bool {
        let mapping = &map.mapping;
        let is_memfd = map.backing == Backing::Memory && mapping.name.starts_with("/memfd:");
        if map.gone || !(is_memfd || map.backing == Backing::File) {
            return false;
        }
        let pid = self.pid;
        let open = || {
            if is_memfd {
                return open_memfd(pid, map).filter(is_sealed);
            }
            let file = File::open(format!("/proc/{}/root{}", procfs::living(pid), mapping.name)).ok()?;
            is_behind(&file, map).then_some(file)
        };
        let file = self.opened.entry((map.file.1, mapping.name.clone())).or_insert_with(open).as_ref();
        let Some(file) = file else { return false };
        let Some(inside) = page.checked_sub(mapping.start) else { return false };
        read(file, mapping.offset + inside, into)
    }
}

fn is_behind(file: &File, map: &BackedMapping) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.ino() == map.file.1)
}

fn is_sealed(file: &File) -> bool {
    memfd::seals(file.as_fd()).contains(memfd::SEALS_FINAL)
}

/// Opens the very memfd that is mapped: by its mapping, which takes privileges, or by a descriptor of the process.
pub fn open_memfd(pid: i32, map: &BackedMapping) -> Option<File> {
    let living = procfs::living(pid);
    let exact = format!("/proc/{living}/map_files/{:x}-{:x}", map.mapping.start, map.mapping.end);
    if let Some(file) = File::open(exact).ok().filter(|file| is_behind(file, map)) {
        return Some(file);
    }
    let descriptors = fs::read_dir(format!("/proc/{living}/fd")).ok()?;
    let is_named = |path: &PathBuf| fs::read_link(path).is_ok_and(|name| name.as_os_str() == map.mapping.name.as_str());
    let paths = descriptors.filter_map(|entry| Some(entry.ok()?.path())).filter(is_named);
    paths.filter_map(|path| File::open(path).ok()).find(|file| is_behind(file, map))
}

/// Reads from a file; behind its end there are zeroes, as in a page that shows it.
fn read(file: &File, at: u64, into: &mut [u8]) -> bool {
    let mut filled = 0;
    while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + filled as u64) {
            Ok(0) => {
                rest.fill(0);
                break;
            }
            Ok(got) => filled += got,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}
