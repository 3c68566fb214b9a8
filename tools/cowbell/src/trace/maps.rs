//! The mappings of a process: /proc/PID/maps.

use crate::record::{Mapping, Watched};
use std::{fs, io};

/// What stands behind a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Nothing.
    Anonymous,
    /// Shared memory, mapped privately: a memfd or a file of a tmpfs.
    Memory,
    /// An ordinary file, mapped privately.
    File,
    /// Mapped shared, or the kernel's own: a write copies nothing.
    Shared,
    /// Pages of another size.
    HugePages,
}

/// One mapping and what stands behind it.
#[derive(Clone, Debug)]
pub struct Map {
    /// As the capture has it.
    pub mapping: Mapping,
    /// What stands behind it.
    pub backing: Backing,
}

impl Map {
    /// Is this address inside?
    pub fn contains(&self, address: u64) -> bool {
        (self.mapping.start..self.mapping.end).contains(&address)
    }
}

/// The address space of a process, ascending.
///
/// # Errors
/// The process is gone, or not ours to read.
pub fn read(pid: i32) -> io::Result<Vec<Map>> {
    let text = fs::read(format!("/proc/{}/maps", living(pid)))?;
    Ok(String::from_utf8_lossy(&text).lines().filter_map(parse).collect())
}

/// A thread by whose number the memory of a process can be read: the first one, unless it has ended before the others.
pub fn living(pid: i32) -> i32 {
    let has_memory = |tid: &i32| {
        fs::read(format!("/proc/{tid}/stat")).is_ok_and(|stat| {
            let state = stat.iter().rposition(|&byte| byte == b')').and_then(|at| stat.get(at + 2));
            !matches!(state, Some(b'Z' | b'X'))
        })
    };
    if has_memory(&pid) {
        return pid;
    }
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).find(has_memory).unwrap_or(pid)
}

/// The mapping that an address lies in.
pub fn find(maps: &[Map], address: u64) -> Option<&Map> {
    let behind = maps.partition_point(|map| map.mapping.end <= address);
    maps.get(behind).filter(|map| map.contains(address))
}

fn parse(line: &str) -> Option<Map> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?.to_owned();
    let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let _device = fields.next()?;
    let inode: u64 = fields.next()?.parse().ok()?;
    let name = fields.next().map_or("", str::trim).to_owned();
    let backing = backing(&permissions, inode, &name);
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    Some(Map { mapping: Mapping { start, end, permissions, offset, name, watched: Watched::No }, backing })
}

fn backing(permissions: &str, inode: u64, name: &str) -> Backing {
    const KERNELS: [&str; 5] = ["[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]", "[uprobes]"];
    if permissions.ends_with('s') || KERNELS.contains(&name) {
        Backing::Shared
    } else if name.starts_with("/anon_hugepage") || name.starts_with("/memfd:hugetlb") {
        Backing::HugePages
    } else if inode == 0 {
        Backing::Anonymous
    } else if ["/memfd:", "/dev/shm/", "/dev/zero", "/SYSV"].iter().any(|memory| name.starts_with(memory)) {
        Backing::Memory
    } else {
        Backing::File
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_is_read_with_what_stands_behind_it() {
        let line = "7f00-8f00 rw-p 00001000 00:01 1033   /memfd:a b (deleted)";
        let map = parse(line).expect("a mapping");
        assert_eq!((map.mapping.start, map.mapping.end, map.mapping.offset), (0x7f00, 0x8f00, 0x1000));
        assert_eq!((map.mapping.name.as_str(), map.backing), ("/memfd:a b (deleted)", Backing::Memory));
        let backing = |line| parse(line).expect("a mapping").backing;
        assert_eq!(backing("1000-2000 rw-p 00000000 00:00 0 "), Backing::Anonymous);
        assert_eq!(backing("1000-2000 rw-p 00000000 00:00 0 [heap]"), Backing::Anonymous);
        assert_eq!(backing("1000-2000 rw-s 00000000 00:01 5 /dev/zero (deleted)"), Backing::Shared);
        assert_eq!(backing("1000-2000 r-xp 00000000 00:00 0 [vdso]"), Backing::Shared);
        assert_eq!(backing("1000-2000 rw-p 00000000 08:01 77 /usr/lib/libc.so.6"), Backing::File);
        assert!(parse("nonsense").is_none());
    }

    #[test]
    fn an_address_is_found_in_its_mapping_only() {
        let maps: Vec<_> =
            ["1000-2000 rw-p 0 00:00 0", "3000-4000 rw-p 0 00:00 0"].into_iter().filter_map(parse).collect();
        let start = |address| find(&maps, address).map(|map| map.mapping.start);
        assert_eq!(
            [0xfff, 0x1000, 0x1fff, 0x2000, 0x3fff, 0x4000].map(start),
            [None, Some(0x1000), Some(0x1000), None, Some(0x3000), None]
        );
    }
}
