//! Another process' memory: reading it, and watching it through a userfaultfd that was made there.
#![expect(unsafe_code, reason = "arming acts on addresses")]

use super::Errno;
use super::map::Range;
use super::uffd::{self, Features, Uffd, UffdMessage};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Another process' memory, for reading: `/proc/PID/mem`. It means the address space that the process had when this was
/// opened.
///
/// Not `process_vm_readv(2)`: that pins the pages it reads, for which the kernel first gives the process a copy of its own
/// of each anonymous page that it shares.
#[derive(Debug)]
pub struct RemoteMemory(OwnedFd);

impl RemoteMemory {
    /// Opens the memory of the process that the thread `tid` belongs to.
    ///
    /// # Errors
    /// `ENOENT`: gone; `EACCES`/`EPERM`: not ours to trace.
    pub fn open(tid: i32) -> Result<Self, Errno> {
        use rustix::fs::{Mode, OFlags};
        let path = super::procfs::signal_safe::path(tid, "mem");
        rustix::fs::open(&*path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map(Self)
    }

    /// Reads; returns how many bytes there were before the first hole.
    ///
    /// # Errors
    /// `EIO`: nothing is there; `ESRCH`: the address space is gone; `EINVAL`: an address of the kernel's half.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pread(&self.0, rest, address.saturating_add(done as u64)) {
                Ok(0) => return if done == 0 { Err(Errno::SRCH) } else { Ok(done) },
                Ok(got) => done += got,
                Err(Errno::INTR) => {}
                Err(e) => return if done == 0 { Err(e) } else { Ok(done) },
            }
        }
        Ok(done)
    }
}

/// Reads once from another process' memory, see [`RemoteMemory`].
///
/// # Errors
/// Those of [`RemoteMemory::open`] and [`RemoteMemory::read`].
pub fn read_memory(tid: i32, address: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
    RemoteMemory::open(tid)?.read(address, buffer)
}

/// Gives back what reading other processes' memory holds on to.
///
/// A page that was read waits in a list of this processor's until the kernel moves it between its lists of used pages, and
/// that wait counts as a user of the page: its owner, alone with it, is then given a copy instead of the page. Locking memory
/// empties the list.
#[derive(Debug)]
pub struct Drain(Range);

impl Drain {
    /// With a page of its own to lock.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new() -> Result<Self, Errno> {
        super::map::anonymous(super::page_size().bytes()).map(Self)
    }

    /// Empties this processor's list. Where memory may not be locked, nothing happens.
    pub fn run(&self) {
        if super::map::lock(self.0).is_ok() {
            let _mapped = super::map::unlock(self.0);
        }
    }
}

/// A userfaultfd of another process: what it protects is never this process' memory, so arming is safe here.
#[derive(Debug)]
pub struct RemoteUffd(Uffd);

impl RemoteUffd {
    /// Takes over the userfaultfd that the process `pid` has as descriptor `number`, and agrees with the kernel on
    /// `features`. The number stays open there.
    ///
    /// # Errors
    /// `EINVAL`: no such feature, no userfaultfd, or one of this process' own memory, which others may have too; `EPERM`: not ours to
    /// trace; `ENOSYS`: before Linux 5.6.
    pub fn adopt(pid: i32, number: i32, features: Features) -> Result<Self, Errno> {
        let process = rustix::process::pidfd_open(Pid::from_raw(pid).ok_or(Errno::INVAL)?, PidfdFlags::empty())?;
        let fd = rustix::process::pidfd_getfd(process, number, PidfdGetfdFlags::empty())?;
        let link = rustix::fs::readlink(format!("/proc/self/fd/{}", super::descriptor::number(&fd)), Vec::new())?;
        if link.to_bytes() != b"anon_inode:[userfaultfd]" {
            return Err(Errno::INVAL);
        }
        let uffd = Uffd::agree(fd, features)?;
        if is_own(&uffd)? { Err(Errno::INVAL) } else { Ok(Self(uffd)) }
    }

    /// Makes the range the userfaultfd's. Its first writes are not seen before it is armed as well.
    ///
    /// # Errors
    /// `EINVAL`: a mapping that the features do not cover, or none; `EBUSY`: another userfaultfd has it;
    /// `EPERM`: a shared mapping of a sealed file; `ENOMEM`: the address space is gone.
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

    /// Tells whether there is anything to read.
    pub fn has_events(&self) -> bool {
        let mut poll = [rustix::event::PollFd::new(&self.0, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut poll, Some(&now)) == Ok(1)
    }

    /// See [`Uffd::read`].
    ///
    /// # Errors
    /// As there.
    pub fn read(&self, seen: impl FnMut(UffdMessage)) -> Result<bool, Errno> {
        self.0.read(seen)
    }

    /// See [`Uffd::read_one`].
    ///
    /// # Errors
    /// The errors are those of [`Uffd::read_one`].
    pub fn read_one(&self, seen: impl FnMut(UffdMessage)) -> Result<bool, Errno> {
        self.0.read_one(seen)
    }

    /// Reads as [`Self::read`] does, from one with [`Features::EVENT_FORK`]: `forked` is given what watches a child, instead of [`UffdMessage::Fork`].
    ///
    /// # Errors
    /// The errors are those of [`Uffd::read`].
    pub fn read_with_children(
        &self,
        mut seen: impl FnMut(UffdMessage),
        mut forked: impl FnMut(Self),
    ) -> Result<bool, Errno> {
        self.0.read(|event| match event {
            // SAFETY: the descriptor is a userfaultfd: the kernel opens one for each such message (userfaultfd(2)). It is about the memory
            // of the process that was being forked, which is not this process: it was not there yet, and this one reads.
            UffdMessage::Fork(child) => forked(Self(unsafe { Uffd::from_fd(child) })),
            event => seen(event),
        })
    }
}

/// Tells whether a userfaultfd is about this process' memory, whoever has it: who was forked from this process has what this one opened, and who
/// shares the memory may have opened one of it.
fn is_own(uffd: &Uffd) -> Result<bool, Errno> {
    // A place where no process has anything, unless by the rarest chance.
    let random = RandomState::new().build_hasher().finish() as usize;
    let size = super::page_size();
    let page = Range { start: size.round_down(RARE.0 + random % (RARE.1 - RARE.0)), len: size.bytes() };
    super::map::fence(page)?;
    let found = uffd::has_mapping(uffd.as_fd(), page);
    // SAFETY: it was mapped just now, and nobody knows of it.
    unsafe { super::map::unmap(page) }?;
    found
}

/// Addresses between those that [`super::map::reserve_apart`] hints at and those that the kernel chooses.
const RARE: (usize, usize) = (48 << 40, 64 << 40);

impl AsFd for RemoteUffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
