//! Pages of ordinary files behind mappings, read without the process: reading them through it would map them there.

use super::maps::{Backing, Map};
use cowbell::sys::procfs;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

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
    pub fn page(&mut self, map: &Map, page: u64, into: &mut [u8]) -> bool {
        let mapping = &map.mapping;
        if map.backing != Backing::File || map.gone {
            return false;
        }
        let pid = self.pid;
        let open = || {
            let file = File::open(format!("/proc/{}/root{}", procfs::living(pid), mapping.name)).ok()?;
            file.metadata().is_ok_and(|metadata| metadata.ino() == map.file.1).then_some(file)
        };
        let file = self.opened.entry((map.file.1, mapping.name.clone())).or_insert_with(open).as_ref();
        let Some(file) = file else { return false };
        let Some(inside) = page.checked_sub(mapping.start) else { return false };
        read(file, mapping.offset + inside, into)
    }
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
