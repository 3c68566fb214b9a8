//! Process descriptors: waiting for a child's end, reaping it, signalling it.

use crate::error::{Error, Result};
pub use crate::facts::Ended;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// `pidfd_open(pid)`. Since Linux 5.3. *Async-signal-safe.*
///
/// # Errors
/// ESRCH when there is no such process; EINVAL for an id that is none.
pub fn open(pid: i32) -> Result<OwnedFd, Errno> {
    let pid = Pid::from_raw(pid).ok_or(Errno::INVAL)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
}

/// Waits until the process has ended, at most `timeout`; true if it has. Reaps nothing.
///
/// # Errors
/// EINVAL or ENOMEM from `ppoll(2)`.
pub fn wait_end(pidfd: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<bool> {
    readable(pidfd, timeout).map_err(|e| Error::os("ppoll(pidfd)", e))
}

/// Waits until a descriptor is readable or hung up, at most `timeout`; true if it is.
///
/// # Errors
/// EINVAL or ENOMEM from `ppoll(2)`.
pub fn readable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<bool, Errno> {
    wait_for(fd, PollFlags::IN, timeout)
}

fn wait_for(fd: BorrowedFd<'_>, events: PollFlags, timeout: Option<Duration>) -> Result<bool, Errno> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        let rest = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let rest = rest.and_then(|rest| Timespec::try_from(rest).ok());
        match rustix::event::poll(&mut [PollFd::from_borrowed_fd(fd, events)], rest.as_ref()) {
            Ok(n) => return Ok(n > 0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Waits until the other end of a channel is closed by all who had it, at most `timeout`; true if it is. What can be read does not count.
///
/// # Errors
/// EINVAL or ENOMEM from `ppoll(2)`.
pub fn wait_hang_up(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<bool, Errno> {
    wait_for(fd, PollFlags::empty(), timeout)
}

/// Waits until at least one descriptor is readable or hung up; says which. None when a signal came. *Async-signal-safe.*
///
/// # Errors
/// EINVAL or ENOMEM from `ppoll(2)`.
pub fn wait_any<const N: usize>(fds: [BorrowedFd<'_>; N]) -> Result<[bool; N], Errno> {
    wait_any_within(fds, None)
}

/// [`wait_any`], at most so long. *Async-signal-safe.*
///
/// # Errors
/// Those of [`wait_any`].
pub fn wait_any_within<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    timeout: Option<Duration>,
) -> Result<[bool; N], Errno> {
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    match rustix::event::poll(&mut polled, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(polled.map(|fd| !fd.revents().is_empty())),
        Err(e) => Err(e),
    }
}

/// `waitid(P_PIDFD, WEXITED | WNOHANG | __WALL)`: takes an ended child's status and lets the kernel
/// forget it; `None` while it lives, and while its tracer has not seen the status. Since Linux 5.4.
///
/// # Errors
/// EINVAL on a descriptor that is no child's.
pub fn reap(pidfd: BorrowedFd<'_>) -> Result<Option<Ended>> {
    // __WALL finds children that send no SIGCHLD, too.
    let wall = WaitIdOptions::from_bits_retain(libc::__WALL as u32);
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | wall;
    match rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(pidfd), options)) {
        Ok(None) => Ok(None),
        Ok(Some(status)) => Ok(Some(how(&status))),
        Err(Errno::CHILD) => Ok(Some(Ended::Unknown)),
        Err(e) => Err(Error::os("waitid(P_PIDFD)", e)),
    }
}

fn how(status: &WaitIdStatus) -> Ended {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Ended::Exited(code),
        (None, Some(signal)) => Ended::Signaled(signal),
        (None, None) => Ended::Unknown,
    }
}

/// Waits until the process has ended, at most `timeout`, and takes its status as [`reap`] does; `None` if time is over.
///
/// The end is not all there is to wait for: who traces the child (strace, a debugger) gets the status first, and until
/// then there is none for its parent.
///
/// # Errors
/// Those of [`wait_end`] and [`reap`].
pub fn wait_and_reap(pidfd: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<Option<Ended>> {
    const STEP: Duration = Duration::from_micros(50);
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let left = || deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    loop {
        if !wait_end(pidfd, left())? {
            return Ok(None);
        }
        if let Some(ended) = reap(pidfd)? {
            return Ok(Some(ended));
        }
        if left() == Some(Duration::ZERO) {
            return Ok(None);
        }
        // The tracer was told just now. Nothing tells when it is done.
        std::thread::sleep(STEP);
    }
}

/// Tells whether a child is stopped by a signal now: `waitid(P_PIDFD, WSTOPPED | WNOHANG | WNOWAIT | __WALL)`. *Async-signal-safe.*
pub fn is_stopped(pidfd: BorrowedFd<'_>) -> bool {
    let wall = WaitIdOptions::from_bits_retain(libc::__WALL as u32);
    let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT | wall;
    matches!(rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(pidfd), options)), Ok(Some(_)))
}

/// `pidfd_send_signal(pidfd, signal)`. Since Linux 5.1. A process that has ended already is no error.
///
/// # Errors
/// EPERM when the process is another user's; EINVAL for a number that is no signal.
pub fn signal(pidfd: impl AsFd, signal: i32) -> Result<()> {
    let signal = Signal::from_named_raw(signal).ok_or_else(|| Error::invalid(format!("{signal} is no signal")))?;
    match rustix::process::pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(e) => Err(Error::os("pidfd_send_signal", e)),
    }
}

/// `waitid(P_PID, WEXITED | __WALL)`: waits for the end of a child that has no descriptor, tells how it was, and forgets the child.
pub fn reap_by_id(pid: i32) -> Ended {
    let Some(pid) = Pid::from_raw(pid) else { return Ended::Unknown };
    let wall = WaitIdOptions::from_bits_retain(libc::__WALL as u32);
    // ECHILD when it was none, or is gone already.
    let ended = rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | wall));
    ended.ok().flatten().map_or(Ended::Unknown, |status| how(&status))
}
