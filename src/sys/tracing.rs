//! The calls of a tracer besides ptrace itself.
#![expect(unsafe_code, reason = "a few calls have no safe wrapper")]

use super::Errno;
use std::cmp::Ordering;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// `kcmp(KCMP_VM)`: have two processes the same memory, not just equal ones?
///
/// # Errors
/// The errors are those of [`memory_order`].
pub fn same_memory(one: i32, other: i32) -> Result<bool, Errno> {
    memory_order(one, other).map(Ordering::is_eq)
}

/// `kcmp(KCMP_VM)`: equal for one memory; else the order in which the kernel sorts two, the same each time until one is gone.
///
/// # Errors
/// `ENOSYS`: a kernel without it; `EPERM`: not ours to trace; `ESRCH`: gone.
pub fn memory_order(one: i32, other: i32) -> Result<Ordering, Errno> {
    // <linux/kcmp.h>: enum kcmp_type.
    const KCMP_VM: i32 = 1;
    // SAFETY: the call takes numbers only.
    match unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_VM, 0, 0) } {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        order if order < 0 => Err(super::map::last_errno()),
        _ => Ok(Ordering::Greater),
    }
}

/// Allows this process as many descriptors as it may allow itself: `RLIMIT_NOFILE`, soft up to hard. *Async-signal-safe.*
pub fn raise_descriptors_max() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    let _as_before = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit);
}

/// `get_robust_list(tid)`: the address of a thread's `struct robust_list_head` in its own memory; `None` if it has none,
/// is gone or is not ours to trace. *Async-signal-safe.*
pub fn robust_list(tid: i32) -> Option<u64> {
    let (mut head, mut size) = (0u64, 0usize);
    // SAFETY: the kernel writes one pointer to `head` and one size to `size`, which live until the call returns.
    let done = unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut size) };
    (done == 0 && head != 0).then_some(head)
}

/// Does the kernel heed set-user-ID bits and file capabilities of this file: is it on no `nosuid` mount? *Async-signal-safe.*
pub fn may_give_privilege(path: &str) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|mount| !mount.f_flag.contains(rustix::fs::StatVfsMountFlags::NOSUID))
}

/// Tells whether a program file has capabilities (`security.capability`). *Async-signal-safe.*
pub fn has_file_capabilities(path: &str) -> bool {
    // Larger than any `struct vfs_ns_cap_data`.
    let mut data = [0u8; 64];
    rustix::fs::getxattr(path, "security.capability", &mut data).is_ok()
}

/// Lets every process of the same user trace this one, as far as that is a question of Yama's, and gives up all capabilities,
/// which whoever traces would need as well.
///
/// # Errors
/// `EPERM`: capabilities cannot be given up.
pub fn open_to_tracers() -> Result<(), Errno> {
    // If there is no Yama, nothing is to be allowed.
    // SAFETY: the call takes numbers only.
    let _no_yama = unsafe { libc::prctl(libc::PR_SET_PTRACER, u64::MAX, 0, 0, 0) };
    let none = rustix::thread::CapabilitySet::empty();
    let sets = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets)
}

/// Writes a number into a pipe, for [`take_number`]. *Async-signal-safe.*
pub fn give_number(pipe: impl AsFd, number: i32) {
    let _unread = rustix::io::write(pipe, &number.to_ne_bytes());
}

/// Reads what [`give_number`] wrote; `None` at the pipe's end.
pub fn take_number(pipe: impl AsFd) -> Option<i32> {
    let mut bytes = [0u8; 4];
    let got = rustix::io::retry_on_intr(|| rustix::io::read(pipe.as_fd(), &mut bytes));
    (got == Ok(4)).then(|| i32::from_ne_bytes(bytes))
}

/// A second descriptor for `number`, which the process that started this one has passed on; `number` itself is closed on
/// exec from now on.
///
/// # Safety
/// Nothing in this process owns `number`: it came with the exec, and whoever passed it on means it for the caller.
///
/// # Errors
/// `EBADF`: there is none.
///
/// ```compile_fail,E0133
/// let _anybodys = cowbell::sys::tracing::inherited(3);
/// ```
pub unsafe fn inherited(number: i32) -> Result<OwnedFd, Errno> {
    if number < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: the caller answers for the number; one that is not open makes both calls fail.
    let passed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(passed, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::fcntl_dupfd_cloexec(passed, 3)
}
