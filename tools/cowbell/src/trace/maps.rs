//! The mappings of a process: /proc/PID/maps.

use crate::record::{Mapping, Watched};
use cowbell::sys::Errno;
use cowbell::sys::procfs::{self, maps};
use std::cell::RefCell;
use std::collections::HashMap;

/// The memory behind a mapping.
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
pub struct BackedMapping {
    /// The mapping as the capture has it.
    pub mapping: Mapping,
    /// The memory behind it.
    pub backing: Backing,
    /// The file's device and inode; 0 where there is no file.
    pub file: (String, u64),
    /// True if its removal is told: some userfaultfd has it.
    pub told: bool,
    /// True if it was gone when it was heard of: its memory shows something else, or nothing.
    pub gone: bool,
}

impl BackedMapping {
    /// Tells whether code can be run in it.
    pub fn is_code(&self) -> bool {
        self.mapping.permissions.contains('x')
    }

    /// Tells whether the other shows the same bytes at the same addresses, where both are.
    pub fn is_same_as(&self, other: &Self) -> bool {
        let bias = |map: &Self| map.mapping.start.wrapping_sub(map.mapping.offset);
        let (ours, theirs) = (&self.mapping, &other.mapping);
        (&self.file, self.is_code(), &ours.name) == (&other.file, other.is_code(), &theirs.name)
            && (self.file.1 == 0 || bias(self) == bias(other))
    }

    /// The part of it that lies between two addresses; `None` where they do not lie so.
    pub fn part(&self, start: u64, end: u64) -> Option<Self> {
        let mut part = self.clone();
        part.mapping.offset += start.checked_sub(self.mapping.start)?;
        (part.mapping.start, part.mapping.end) = (start, end);
        (start < end && end <= self.mapping.end).then_some(part)
    }

    /// Tells whether this address is inside.
    pub fn contains(&self, address: u64) -> bool {
        (self.mapping.start..self.mapping.end).contains(&address)
    }
}

/// The address space of a process, ascending.
///
/// # Errors
/// The process is gone, or not ours to read.
pub fn read(pid: i32) -> Result<Vec<BackedMapping>, Errno> {
    of(procfs::living(pid))
}

/// The same by a thread that has not ended.
///
/// # Errors
/// As [`read`].
pub fn of(living: i32) -> Result<Vec<BackedMapping>, Errno> {
    let mut maps: Vec<BackedMapping> = maps::read(living)?.into_iter().map(BackedMapping::from).collect();
    for map in maps.iter_mut().filter(|map| map.backing == Backing::File && is_hugetlbfs(living, &map.file.0)) {
        map.backing = Backing::HugePages;
    }
    Ok(maps)
}

thread_local! {
    /// The devices that were asked for: true for file systems of huge pages.
    static DEVICES: RefCell<HashMap<String, bool>> = RefCell::default();
}

/// Tells whether a device, as maps name it, is a file system of huge pages that a process sees mounted.
fn is_hugetlbfs(living: i32, device: &str) -> bool {
    DEVICES.with_borrow_mut(|known| {
        *known.entry(device.to_owned()).or_insert_with(|| {
            let mounts = procfs::read(living, "mountinfo").unwrap_or_default();
            String::from_utf8_lossy(&mounts).lines().any(|mount| is_mount_of_huge_pages(mount, device))
        })
    })
}

/// `36 35 0:43 / /mnt/huge rw,relatime shared:1 - hugetlbfs none rw,pagesize=2M`; maps has the device in other digits.
fn is_mount_of_huge_pages(mount: &str, device: &str) -> bool {
    let Some((front, back)) = mount.split_once(" - ") else { return false };
    let number = |number: &str| number.parse::<u32>().ok();
    let of = || {
        let (major, minor) = front.split(' ').nth(2)?.split_once(':')?;
        Some(self::device(number(major)?, number(minor)?))
    };
    back.starts_with("hugetlbfs ") && of().is_some_and(|of| of == device)
}

/// A device as a map has it.
fn device(major: u32, minor: u32) -> String {
    format!("{major:02x}:{minor:02x}")
}

/// The mapping that an address lies in.
pub fn find(maps: &[BackedMapping], address: u64) -> Option<&BackedMapping> {
    let behind = maps.partition_point(|map| map.mapping.end <= address);
    maps.get(behind).filter(|map| map.contains(address))
}

impl From<maps::Mapping> for BackedMapping {
    fn from(found: maps::Mapping) -> Self {
        let backing = backing(&found);
        let (start, end) = (found.range.start as u64, found.range.end() as u64);
        let maps::Mapping { permissions, offset, name, device, inode, .. } = found;
        let file = (self::device(device.0, device.1), inode);
        let mapping = Mapping { start, end, permissions, offset, name, watched: Watched::No };
        Self { mapping, backing, file, told: false, gone: false }
    }
}

fn backing(found: &maps::Mapping) -> Backing {
    const KERNELS: [&str; 5] = ["[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]", "[uprobes]"];
    let name = found.name.as_str();
    if !found.is_private() || KERNELS.contains(&name) {
        Backing::Shared
    } else if name.starts_with("/anon_hugepage") || name.starts_with("/memfd:hugetlb") {
        Backing::HugePages
    } else if found.inode == 0 {
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
        let parse = |line| maps::parse(line).map(BackedMapping::from).expect("a mapping");
        let map = parse("7f00-8f00 rw-p 00001000 00:01 1033   /memfd:a b (deleted)");
        assert_eq!((map.mapping.start, map.mapping.end, map.mapping.offset), (0x7f00, 0x8f00, 0x1000));
        assert_eq!((map.mapping.name.as_str(), map.backing), ("/memfd:a b (deleted)", Backing::Memory));
        let backing = |line| parse(line).backing;
        assert_eq!(backing("1000-2000 rw-p 00000000 00:00 0 "), Backing::Anonymous);
        assert_eq!(backing("1000-2000 rw-p 00000000 00:00 0 [heap]"), Backing::Anonymous);
        assert_eq!(backing("1000-2000 rw-s 00000000 00:01 5 /dev/zero (deleted)"), Backing::Shared);
        assert_eq!(backing("1000-2000 r-xp 00000000 00:00 0 [vdso]"), Backing::Shared);
        assert_eq!(backing("1000-2000 rw-p 00000000 08:01 77 /usr/lib/libc.so.6"), Backing::File);
    }

    #[test]
    fn file_systems_of_huge_pages_are_known_by_their_mounts() {
        let mount = "36 35 0:43 / /mnt/a - b rw,relatime shared:1 - hugetlbfs none rw,pagesize=2M";
        assert!(!is_mount_of_huge_pages(mount, "00:2b"), "a blank in a folder's name is told as \\040");
        let mount = mount.replace("/mnt/a - b", "/mnt/a\\040-\\040b");
        assert!(is_mount_of_huge_pages(&mount, "00:2b") && !is_mount_of_huge_pages(&mount, "00:2c"));
        assert!(!is_mount_of_huge_pages(&mount.replace("hugetlbfs", "tmpfs"), "00:2b"));
    }

    #[test]
    fn an_address_is_found_in_its_mapping_only() {
        let maps: Vec<_> = ["1000-2000 rw-p 0 00:00 0", "3000-4000 rw-p 0 00:00 0"]
            .into_iter()
            .filter_map(maps::parse)
            .map(BackedMapping::from)
            .collect();
        let start = |address| find(&maps, address).map(|map| map.mapping.start);
        assert_eq!(
            [0xfff, 0x1000, 0x1fff, 0x2000, 0x3fff, 0x4000].map(start),
            [None, Some(0x1000), Some(0x1000), None, Some(0x3000), None]
        );
    }
}
