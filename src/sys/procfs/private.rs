//! The private mappings of an address space, from `/proc/PID/maps`, without allocation.

use super::SELF;
use crate::sys::map::Range;
use crate::sys::pagemap::{Categories, Entry, Pagemap, Query};
use crate::sys::{self, Errno, descriptor, procfs};
use rustix::fs::{Mode, OFlags};
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

/// The purpose of a private mapping, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A file's content: variables of the program and its libraries, and what they only read.
    Data,
    /// `[heap]` and anonymous memory: what an allocator gives, zeroed variables, stacks of threads.
    Heap,
    /// The main thread's stack.
    Stack,
}

/// Calls `found` for each private mapping of a process, or of this one ([`SELF`]), ascending, but for the kernel's own (`[vdso]`).
/// *Async-signal-safe*, if `found` is.
///
/// # Errors
/// ENOENT when there is no such process or no `/proc`; the errno of the read.
pub fn each(pid: i32, mut found: impl FnMut(Range, Purpose)) -> Result<(), Errno> {
    let open = |path: &CStr| rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let maps = if pid == SELF { open(c"/proc/self/maps") } else { open(&procfs::signal_safe::path(pid, "maps")) }?;
    let read = each_line(&maps, |line| {
        if let Some((range, purpose)) = parse(line) {
            found(range, purpose);
        }
    });
    descriptor::close(maps);
    read
}

/// Memory that is there, or swapped out, whosever it is: the kernel need not look at the pages themselves, which is what takes the time.
pub const THERE: Query = Query {
    all: Categories::empty(),
    none: Categories::PFN_ZERO,
    any: Categories::PRESENT.union(Categories::SWAPPED),
    rearm: false,
};

/// A mapping of so many pages is read at once; in a larger one it is asked first where there is memory.
const SMALL_PAGES_MAX: usize = 512;

/// Calls `read` with the parts of a mapping in which there may be memory. *Async-signal-safe*, if `read` is.
///
/// # Errors
/// The errno of reading the page tables; that of `read`, which is not called again then.
pub fn parts(pagemap: &Pagemap, range: Range, mut read: impl FnMut(Range) -> Result<(), Errno>) -> Result<(), Errno> {
    if range.len / sys::page_size().bytes() <= SMALL_PAGES_MAX {
        return read(range);
    }
    let mut all = Ok(());
    let scanned = pagemap.scan(range, &THERE, |run| {
        if all.is_ok() {
            all = read(run);
        }
    });
    match scanned {
        // Linux before 6.7 has no PAGEMAP_SCAN.
        Err(Errno::NOTTY) => read(range),
        scanned => scanned.and(all),
    }
}

/// Counts the pages of no file, in the private mappings of a process or of this one ([`SELF`]), that no other process maps: memory of its own, which is
/// free when it ends. Pages that are swapped out are not counted. *Async-signal-safe*.
///
/// # Errors
/// ENOENT and ESRCH when the process is gone; EACCES and EPERM without ptrace read access to it.
pub fn own_pages(pid: i32) -> Result<u64, Errno> {
    let pagemap = if pid == SELF { Pagemap::open_self() } else { Pagemap::open(pid) }?;
    let (mut own, mut read) = (0, Ok(()));
    each(pid, |range, _| {
        if read.is_ok() {
            read = parts(&pagemap, range, |part| {
                pagemap.read(part, |_, entry| {
                    let is_own = entry.contains(Entry::PRESENT | Entry::EXCLUSIVE) && !entry.contains(Entry::FILE);
                    own += u64::from(is_own);
                })
            });
        }
    })?;
    read.map(|()| own)
}

/// Calls `seen` with each line; of one that is longer than the buffer with its beginning.
fn each_line(file: &OwnedFd, mut seen: impl FnMut(&[u8])) -> Result<(), Errno> {
    let mut buffer = [0u8; 4096];
    let (mut held, mut cut) = (0, false);
    loop {
        let room = buffer.get_mut(held..).unwrap_or_default();
        let got = rustix::io::retry_on_intr(|| rustix::io::read(file.as_fd(), &mut *room))?;
        if got == 0 {
            return Ok(());
        }
        let filled = held + got;
        let mut start = 0;
        while let Some(rest) = buffer.get(start..filled)
            && let Some(len) = rest.iter().position(|&byte| byte == b'\n')
        {
            if !std::mem::take(&mut cut) {
                seen(rest.get(..len).unwrap_or_default());
            }
            start += len + 1;
        }
        held = filled - start;
        if held == buffer.len() {
            if !std::mem::replace(&mut cut, true) {
                seen(&buffer);
            }
            held = 0;
        } else {
            buffer.copy_within(start..filled, 0);
        }
    }
}

/// `START-END PERMISSIONS OFFSET DEVICE INODE [NAME]`, addresses in hexadecimal.
fn parse(line: &[u8]) -> Option<(Range, Purpose)> {
    let mut fields = line.split(|&byte| byte == b' ').filter(|field| !field.is_empty());
    let mut ends = fields.next()?.splitn(2, |&byte| byte == b'-');
    let (start, end) = (number(ends.next()?)?, number(ends.next()?)?);
    if fields.next()?.get(3) != Some(&b'p') {
        return None;
    }
    let purpose = match fields.nth(3) {
        None | Some(b"[heap]") => Purpose::Heap,
        Some(b"[stack]") => Purpose::Stack,
        Some(name) if name.starts_with(b"[anon") => Purpose::Heap,
        Some(name) if name.starts_with(b"[") => return None,
        Some(_) => Purpose::Data,
    };
    Some((Range { start, len: end.checked_sub(start)? }, purpose))
}

/// A number in hexadecimal.
fn number(digits: &[u8]) -> Option<usize> {
    digits.iter().try_fold(0usize, |value, &digit| {
        let digit = char::from(digit).to_digit(16)?;
        Some(value.checked_mul(16)? + digit as usize)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_where_and_what_for() {
        let parsed = |line: &str| parse(line.as_bytes()).map(|(range, purpose)| (range.start, range.len, purpose));
        assert_eq!(parsed("1000-3000 rw-p 00000000 00:00 0 "), Some((0x1000, 0x2000, Purpose::Heap)));
        assert_eq!(
            parsed("1000-3000 rw-p 00000000 00:00 0                          [heap]"),
            Some((0x1000, 0x2000, Purpose::Heap))
        );
        assert_eq!(parsed("1000-3000 rw-p 00000000 00:00 0 [anon: a name]"), Some((0x1000, 0x2000, Purpose::Heap)));
        assert_eq!(parsed("1000-3000 rw-p 00000000 00:00 0 [stack]"), Some((0x1000, 0x2000, Purpose::Stack)));
        assert_eq!(parsed("1000-3000 r--p 00001000 08:01 77 /a b/c"), Some((0x1000, 0x2000, Purpose::Data)));
        assert_eq!(parsed("1000-3000 rw-s 00000000 00:01 5 /memfd:x (deleted)"), None);
        assert_eq!(parsed("1000-3000 r-xp 00000000 00:00 0 [vdso]"), None);
        assert_eq!((parsed("rubbish"), parsed("3000-1000 rw-p 0 0:0 0 "), parsed("")), (None, None, None));
    }

    #[test]
    fn the_mappings_are_those_that_the_parser_of_whole_files_finds() {
        // Longer names than the buffer are cut, and their mappings seen all the same.
        let all = crate::sys::procfs::maps::read(SELF).expect("/proc");
        let private: Vec<_> = all.iter().filter(|mapping| mapping.is_private()).map(|mapping| mapping.range).collect();
        let mut seen = Vec::new();
        each(SELF, |range, purpose| seen.push((range, purpose))).expect("/proc");
        // Other tests map and unmap meanwhile; those of the program itself stay.
        let code = the_mappings_are_those_that_the_parser_of_whole_files_finds as fn() as usize;
        assert!(seen.iter().any(|(range, purpose)| range.contains(code) && *purpose == Purpose::Data));
        assert!(seen.iter().any(|(_, purpose)| *purpose == Purpose::Stack));
        assert!(seen.iter().filter(|(range, _)| private.contains(range)).count() > 5);
        assert!(seen.is_sorted_by_key(|(range, _)| range.start));
    }
}
