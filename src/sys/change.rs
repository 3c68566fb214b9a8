//! The change that a waiting thread is about to make to its address space: `/proc/PID/task/TID/syscall`.

use super::map::Range;
use std::os::fd::AsFd;

/// A system call, that a thread waits in, by which its address space changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryCall {
    /// `madvise` of this range: the pages go, but for [`Self::Frees`].
    Drops(Range),
    /// `madvise(MADV_FREE)` of this range: what other processes share stays, and so does what is written again in time.
    Frees(Range),
    /// Mappings come, go or move.
    Maps,
}

/// The purpose for which a thread waits, as far as its address space is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// The thread runs, or is ready to: where it is cannot be told, and it may be about to wait.
    NotYet,
    /// The thread waits to make this change.
    ToChange(MemoryCall),
    /// The thread waits for something else, or is gone.
    Otherwise,
}

/// The purpose for which a thread waits, from its [`open_syscall`](super::procfs::syscall::open). *Async-signal-safe.*
pub fn waits(syscall: impl AsFd) -> Waits {
    let mut buffer = [0; 256];
    let got = rustix::io::pread(syscall, &mut buffer, 0).unwrap_or(0);
    let text = std::str::from_utf8(buffer.get(..got).unwrap_or_default()).unwrap_or_default().trim_end();
    parse(text)
}

fn parse(text: &str) -> Waits {
    match parse_change(text) {
        Some(change) => Waits::ToChange(change),
        None if text == "running" => Waits::NotYet,
        None => Waits::Otherwise,
    }
}

fn parse_change(text: &str) -> Option<MemoryCall> {
    let mut fields = text.split(' ');
    let number = fields.next()?.parse::<i64>().ok()?;
    let mut argument = || u64::from_str_radix(fields.next()?.strip_prefix("0x")?, 16).ok();
    match number {
        libc::SYS_madvise => {
            let (start, len, advice) = (argument()? as usize, argument()? as usize, argument()?);
            // The kernel takes whole pages.
            let page = super::page_size().bytes();
            let range = Range { start, len: len.checked_next_multiple_of(page)? };
            let frees = advice as i32 == libc::MADV_FREE;
            Some(if frees { MemoryCall::Frees(range) } else { MemoryCall::Drops(range) })
        }
        libc::SYS_munmap | libc::SYS_mremap | libc::SYS_mmap | libc::SYS_brk | libc::SYS_shmat | libc::SYS_shmdt => {
            Some(MemoryCall::Maps)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_told_from_other_changes_and_from_other_calls() {
        let call =
            |number: i64, advice: i32| parse(&format!("{number} 0x10000 0x1 {advice:#x} 0x0 0x0 0x0 0x7ffe 0x7fff"));
        let range = Range { start: 0x10000, len: crate::sys::page_size().bytes() };
        assert_eq!(call(libc::SYS_madvise, libc::MADV_FREE), Waits::ToChange(MemoryCall::Frees(range)));
        assert_eq!(call(libc::SYS_madvise, libc::MADV_DONTNEED), Waits::ToChange(MemoryCall::Drops(range)));
        assert_eq!(call(libc::SYS_munmap, 0), Waits::ToChange(MemoryCall::Maps));
        assert_eq!(call(libc::SYS_read, 0), Waits::Otherwise);
        assert_eq!((parse("-1 0x7ffd10 0x55aa"), parse("running")), (Waits::Otherwise, Waits::NotYet));
    }
}
