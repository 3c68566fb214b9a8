//! The place where a thread waits: `/proc/PID/task/TID/syscall`.

use super::signal_safe::thread_path;
use crate::sys::Errno;
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, OwnedFd};

/// Opens `/proc/PID/task/TID/syscall`, for [`blocked_at`]. *Async-signal-safe.*
///
/// # Errors
/// ENOENT when there is no such thread; EACCES without ptrace access.
pub fn open(pid: i32, tid: i32) -> Result<OwnedFd, Errno> {
    rustix::fs::open(&*thread_path(pid, tid, "syscall"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Stack pointer and program counter of a thread that waits, from its [`open`]: in a page fault of its
/// own (`-1 SP PC`) or of a system call it made (`NR ARGS… SP PC`). `None` when it runs. *Async-signal-safe.*
pub fn blocked_at(syscall: impl AsFd) -> Option<(u64, u64)> {
    blocked_in(syscall).map(|blocked| (blocked.sp, blocked.pc))
}

/// The number of `exit`.
pub const EXIT_CALL: i32 = libc::SYS_exit as i32;

/// The place where a thread waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockedThread {
    /// In this system call; `None` in a page fault of its own.
    pub syscall: Option<i32>,
    /// The thread's stack pointer.
    pub sp: u64,
    /// The thread's next instruction: the faulting one, or the one after the system call.
    pub pc: u64,
}

/// The place where a thread waits, which [`blocked_at`] tells a part of. *Async-signal-safe.*
pub fn blocked_in(syscall: impl AsFd) -> Option<BlockedThread> {
    let mut buffer = [0; 256];
    let got = rustix::io::pread(syscall, &mut buffer, 0).ok()?;
    parse_blocked(buffer.get(..got)?)
}

fn parse_blocked(text: &[u8]) -> Option<BlockedThread> {
    let text = std::str::from_utf8(text).ok()?.trim_end();
    let number = text.split(' ').next()?.parse::<i32>().ok()?;
    let mut fields = text.rsplitn(3, ' ');
    let mut hex = || u64::from_str_radix(fields.next()?.strip_prefix("0x")?, 16).ok();
    let (pc, sp) = (hex()?, hex()?);
    Some(BlockedThread { syscall: (number >= 0).then_some(number), sp, pc })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_blocked_thread_shows_sp_and_pc() {
        let at = |syscall, sp, pc| Some(super::BlockedThread { syscall, sp, pc });
        assert_eq!(super::parse_blocked(b"-1 0x7ffd10 0x55aa\n"), at(None, 0x7f_fd10, 0x55aa));
        assert_eq!(super::parse_blocked(b"running\n"), None);
        assert_eq!(super::parse_blocked(b"0 0x1 0x2 0x3 0x4 0x5 0x6 0x7ffe 0x7fff\n"), at(Some(0), 0x7ffe, 0x7fff));
    }
}
