//! Another process' memory: reading it, and watching it through a userfaultfd that was made there.
#![expect(unsafe_code, reason = "process_vm_readv takes pointers; arming acts on addresses")]

use super::Errno;
use super::map::Range;
use super::uffd::{self, Event, Features, Uffd};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use std::os::fd::{AsFd, BorrowedFd};

/// Reads from another process' memory; returns how many bytes there were before the first hole.
///
/// # Errors
/// `EFAULT`: nothing is there; `EPERM`: not ours to read; `ESRCH`: gone.
pub fn read_memory(pid: i32, address: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let there = std::ptr::without_provenance_mut(address as usize);
    let remote = libc::iovec { iov_base: there, iov_len: buffer.len() };
    // SAFETY: the kernel writes to `buffer` alone, which is borrowed until the call returns; the other vector is not
    // followed here but in the other process.
    let got = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(got).map_err(|_| super::map::last_errno())
}

/// A userfaultfd of another process: what it protects is never this process' memory, so arming is safe here.
#[derive(Debug)]
pub struct RemoteUffd(Uffd);

impl RemoteUffd {
    /// Takes over the userfaultfd that the process `pid` has as descriptor `number`, and agrees with the kernel on
    /// `features`. The number stays open there.
    ///
    /// # Errors
    /// `EINVAL`: no such feature, no userfaultfd, or `pid` is this very process; `EPERM`: not ours to trace;
    /// `ENOSYS`: before Linux 5.6.
    pub fn adopt(pid: i32, number: i32, features: Features) -> Result<Self, Errno> {
        if pid == super::process::pid() {
            return Err(Errno::INVAL);
        }
        let process = rustix::process::pidfd_open(Pid::from_raw(pid).ok_or(Errno::INVAL)?, PidfdFlags::empty())?;
        let fd = rustix::process::pidfd_getfd(process, number, PidfdGetfdFlags::empty())?;
        let link = rustix::fs::readlink(format!("/proc/self/fd/{}", super::process::number(&fd)), Vec::new())?;
        if link.to_bytes() != b"anon_inode:[userfaultfd]" {
            return Err(Errno::INVAL);
        }
        Uffd::agree(fd, features).map(Self)
    }

    /// Makes the range the userfaultfd's. Its first writes are not seen before it is armed as well.
    ///
    /// # Errors
    /// `EINVAL`: a mapping that the features do not cover, or none; `EBUSY`: another userfaultfd has it;
    /// `EPERM`: a shared mapping of a sealed file; `ENOMEM`/`ESRCH`: the process ends.
    pub fn register(&self, range: Range) -> Result<(), Errno> {
        // SAFETY: the range is the other process', see `adopt`: no memory of this process is concerned.
        unsafe { self.0.register(range) }
    }

    /// Arms the range, or lifts the protection and wakes who waits for it.
    ///
    /// # Errors
    /// `EAGAIN`: an event must be read first; `ENOENT`: not registered (any more): [`Self::wake`] who waits;
    /// `ESRCH`: the process ends.
    pub fn write_protect(&self, range: Range, armed: bool) -> Result<(), Errno> {
        // SAFETY: the range is the other process', and `adopt` refuses this one.
        unsafe { uffd::write_protect_once(self.0.as_fd(), range, armed) }
    }

    /// Wakes who waits in the range, though it is not protected or not registered any more.
    ///
    /// # Errors
    /// `EINVAL`: a range off a page.
    pub fn wake(&self, range: Range) -> Result<(), Errno> {
        uffd::wake(self.0.as_fd(), range)
    }

    /// See [`Uffd::read`].
    ///
    /// # Errors
    /// As there.
    pub fn read(&self, seen: impl FnMut(Event)) -> Result<bool, Errno> {
        self.0.read(seen)
    }
}

impl AsFd for RemoteUffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
