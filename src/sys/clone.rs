//! Making processes: `clone3(2)` as a fork, and `clone(2)` for a process that shares our memory.
//!
//! # Safety
//! A forked child has one thread and a copy of every lock. Until it knows that no other thread
//! was alive it may only do what a signal handler may (signal-safety(7)).
#![expect(unsafe_code, reason = "a fork duplicates the process, a shared-memory clone runs beside it")]

use super::Errno;
use super::map::{Range, last_errno};
use crate::error::{Error, Result};
use linux_raw_sys::general as raw;
use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::AtomicU64;

/// The options of a fork.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForkArgs<'a> {
    /// The signal the parent gets at the child's end; 0 for none. Such a child is found only by
    /// waiting with `__WALL`, so that foreign `wait()` loops do not reap it.
    pub exit_signal: i32,
    /// `CLONE_CLEAR_SIGHAND` (5.5): handlers back to their defaults in the child.
    pub reset_handlers: bool,
    /// `CLONE_INTO_CGROUP` (5.7): a directory of a version 2 control group to start the child in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// The side of a fork that this is.
#[derive(Debug)]
pub enum Forked {
    /// The new process.
    Child,
    /// The old one.
    Parent {
        /// The child's process id.
        pid: i32,
        /// A descriptor that means the child and nobody else, ever.
        pidfd: OwnedFd,
    },
}

/// The side of a [`fork_plainly`] that this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForkedPlainly {
    /// The new process.
    Child,
    /// The old one, and the child's process id.
    ParentOf(i32),
}

/// `fork(3)`, with the handlers of `pthread_atfork`: libc's own locks, and those of whoever asked, are free in the child.
///
/// # Safety
/// As of [`fork`].
///
/// # Errors
/// EAGAIN (process limit), ENOMEM.
pub unsafe fn fork_plainly() -> Result<ForkedPlainly, Errno> {
    // SAFETY: passed on to the caller.
    match unsafe { libc::fork() } {
        -1 => Err(last_errno()),
        0 => Ok(ForkedPlainly::Child),
        pid => Ok(ForkedPlainly::ParentOf(pid)),
    }
}

const _: () = assert!(size_of::<raw::clone_args>() == 88, "clone_args as of Linux 5.7 (CLONE_ARGS_SIZE_VER2)");

/// `clone3(CLONE_PIDFD | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID)`: a fork that keeps glibc's
/// idea of the thread id true. Since Linux 5.3.
///
/// glibc caches the thread id and `fork()` refreshes it; a bare clone3 does not, and the child's
/// mutexes would record the wrong owner. The kernel knows the cell's address
/// (`PR_GET_TID_ADDRESS`, needs `CONFIG_CHECKPOINT_RESTORE`) and stores the new id there. The
/// kernel also forgets the robust-futex list, so the child sets it again.
///
/// # Safety
/// In the child only what a signal handler may do is allowed, unless the caller knows that this
/// process had one thread. The child must not return into frames that the parent continues in
/// ways that share resources (files, locks held in shared memory) twice.
///
/// # Errors
/// EAGAIN (process limit), ENOMEM, EINVAL for a flag this kernel lacks, ENOSYS before 5.3,
/// EACCES/EBUSY/EOPNOTSUPP from the control group. Unsupported without the thread id's address.
pub unsafe fn fork(args: &ForkArgs<'_>) -> Result<Forked> {
    let tid_cell = match rustix::thread::get_clear_child_tid_address() {
        Ok(Some(cell)) => cell.as_ptr().expose_provenance() as u64,
        Ok(None) | Err(_) => {
            return Err(Error::unsupported(
                "fork by clone3",
                "5.3",
                "the kernel was built without CONFIG_CHECKPOINT_RESTORE, so the cell of glibc's cached thread id is unknown",
            ));
        }
    };
    let robust = robust_list().map_err(|e| Error::os("get_robust_list", e))?;
    let mut flags = u64::from(raw::CLONE_PIDFD | raw::CLONE_CHILD_SETTID | raw::CLONE_CHILD_CLEARTID);
    if args.reset_handlers {
        flags |= raw::CLONE_CLEAR_SIGHAND;
    }
    if args.cgroup.is_some() {
        flags |= raw::CLONE_INTO_CGROUP;
    }
    let mut pidfd: c_int = -1;
    let mut clone_args = raw::clone_args {
        flags,
        pidfd: (&raw mut pidfd).expose_provenance() as u64,
        child_tid: tid_cell,
        parent_tid: 0,
        exit_signal: args.exit_signal as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: args.cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let size = size_of::<raw::clone_args>();
    // SAFETY: the arguments are valid for the call; without CLONE_VM the child gets its own copy
    // of this stack; the rest is the caller's promise.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut clone_args, size) };
    match pid {
        -1 => Err(refused(last_errno(), args)),
        0 => {
            set_robust_list(robust);
            Ok(Forked::Child)
        }
        pid => {
            // SAFETY: clone3 succeeded with CLONE_PIDFD, so the kernel stored a descriptor here
            // and nobody else knows it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Forked::Parent { pid: pid as i32, pidfd })
        }
    }
}

/// Why clone3 said no.
fn refused(errno: Errno, args: &ForkArgs<'_>) -> Error {
    match errno {
        Errno::NOSYS => Error::unsupported("clone3", "5.3", "the kernel is older, or a sandbox forbids the call"),
        Errno::INVAL if args.cgroup.is_some() => {
            Error::unsupported("CLONE_INTO_CGROUP", "5.7", "the kernel does not know the flag")
        }
        Errno::INVAL if args.reset_handlers => {
            Error::unsupported("CLONE_CLEAR_SIGHAND", "5.5", "the kernel does not know the flag")
        }
        Errno::BADF if args.cgroup.is_some() => {
            Error::os("clone3", errno).with_hint("the descriptor is no directory of a version 2 control group")
        }
        _ => Error::os("clone3", errno),
    }
}

#[derive(Clone, Copy)]
struct RobustList {
    head: usize,
    len: usize,
}

fn robust_list() -> Result<RobustList, Errno> {
    let mut list = RobustList { head: 0, len: 0 };
    // SAFETY: the two out-parameters are valid for a word each; 0 means this thread.
    let got = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut list.head, &raw mut list.len) };
    if got == 0 { Ok(list) } else { Err(last_errno()) }
}

fn set_robust_list(list: RobustList) {
    if list.head != 0 {
        let head = std::ptr::with_exposed_provenance_mut::<usize>(list.head);
        // Its first word is the first mutex held, or the head itself. Left as it is, the child's first lock
        // would write into that mutex, which may lie in memory that the two share.
        // SAFETY: the head is the C library's own for this thread; no mutex is being locked now.
        unsafe { head.write(list.head) };
        // SAFETY: the head is glibc's own for this thread; the child has the same thread image.
        unsafe { libc::syscall(libc::SYS_set_robust_list, list.head, list.len) };
    }
}

/// The function that a process made by [`share_memory`] runs: it gets the argument and returns the exit code.
pub type EntryPoint = extern "C" fn(*mut c_void) -> c_int;

/// `clone(CLONE_VM | CLONE_PARENT | CLONE_PARENT_SETTID)`: a process of its own (signals,
/// descriptors, exit) that lives in this process's memory, a child of *our* parent. *Async-signal-safe.*
///
/// The memory lives until the last of the processes in it is gone: even a SIGKILL of this one
/// leaves it readable to the other. The kernel stores the new id in the low half of `tid` before
/// the process runs.
///
/// # Safety
/// `entry` runs on `stack` with the **caller's thread-local storage**: it must not touch it, so no
/// allocation, no std I/O, no panic. It must not use anything the caller may free while it runs.
///
/// # Errors
/// EAGAIN (process limit), ENOMEM.
pub unsafe fn share_memory(
    entry: EntryPoint,
    argument: *mut c_void,
    stack: Range,
    tid: &AtomicU64,
) -> Result<i32, Errno> {
    let top = stack.end() & !15;
    let flags = libc::CLONE_VM | libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID;
    let cell = tid.as_ptr().cast::<libc::pid_t>();
    let top = std::ptr::with_exposed_provenance_mut(top);
    // SAFETY: the stack is ours and unused, the cell is valid; the rest is the caller's promise.
    let pid = unsafe { libc::clone(entry, top, flags, argument, cell) };
    if pid < 0 { Err(last_errno()) } else { Ok(pid) }
}
