//! Descriptors of the calling process, whatever they are of.
#![expect(unsafe_code, reason = "a descriptor is known by its number")]

use super::Errno;
#[cfg(feature = "pool")]
use std::os::fd::BorrowedFd;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};

/// The same descriptor where a call wants it owned; it is not closed by this value.
#[cfg(feature = "pool")]
pub(super) fn alias(fd: BorrowedFd<'_>) -> std::mem::ManuallyDrop<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: the number is open, and its owner stays its owner, because this value is not dropped.
    std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(fd.as_raw_fd()) })
}

/// A descriptor's number, for the calls and the handlers that take one.
pub fn number(fd: &impl AsFd) -> i32 {
    fd.as_fd().as_raw_fd()
}

/// `close(fd)` without libc, whose `close` is a cancellation point and so touches thread-local storage. *Async-signal-safe.*
pub fn close(fd: OwnedFd) {
    // SAFETY: the descriptor was owned and is given up here.
    unsafe { rustix::io::close(fd.into_raw_fd()) };
}

/// `close_range(2)` around the given descriptors: closes all others of this process. Since Linux 5.9. *Async-signal-safe.*
///
/// # Safety
/// Nobody in this process may use any other descriptor afterwards.
///
/// # Errors
/// ENOSYS before 5.9.
pub unsafe fn close_all_but(keep: &[&[i32]]) -> Result<(), Errno> {
    let kept_from = |first: i32| keep.iter().flat_map(|list| list.iter()).copied().filter(|&fd| fd >= first).min();
    let mut first = 0;
    loop {
        let kept = kept_from(first);
        let last = kept.map_or(u32::MAX, |kept| (kept as u32).wrapping_sub(1));
        if kept != Some(first) {
            // SAFETY: passed on to the caller.
            let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            if done != 0 {
                return Err(super::map::last_errno());
            }
        }
        match kept {
            Some(kept) => first = kept + 1,
            None => return Ok(()),
        }
    }
}

/// Lets a descriptor pass through exec: [`super::pipe`] and the standard library make them close-on-exec.
///
/// # Errors
/// None that an open descriptor meets.
pub fn keep_on_exec(fd: impl AsFd) -> Result<(), Errno> {
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())
}
