//! Waiting for many descriptors: epoll(7).

use super::Errno;
use rustix::event::Timespec;
use rustix::event::epoll;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// A set of descriptors to wait for, each with a number of the caller's.
#[derive(Debug)]
pub struct Poller(OwnedFd);

impl Poller {
    /// An empty set.
    ///
    /// # Errors
    /// `EMFILE`, `ENOMEM`.
    pub fn new() -> Result<Self, Errno> {
        epoll::create(epoll::CreateFlags::CLOEXEC).map(Self)
    }

    /// Reports `token` while `fd` is readable or its other side is gone.
    ///
    /// # Errors
    /// `EEXIST`: it is in already; `ENOSPC`, `ENOMEM`.
    pub fn add(&self, fd: impl AsFd, token: u64) -> Result<(), Errno> {
        epoll::add(&self.0, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN)
    }

    /// Reports `fd` once for each time that it becomes readable (`EPOLLET`): the set is readable until [`Self::take_news`]. *Async-signal-safe.*
    ///
    /// # Errors
    /// The same as those of [`Self::add`].
    pub fn add_for_news(&self, fd: impl AsFd) -> Result<(), Errno> {
        epoll::add(&self.0, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN | epoll::EventFlags::ET)
    }

    /// Takes note of what [`Self::add_for_news`] reports, of up to 64 descriptors. *Async-signal-safe.*
    pub fn take_news(&self) {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); 64];
        let _none = epoll::wait(&self.0, &mut events, Some(&Timespec::default()));
    }

    /// As [`Self::add`], or changes it: reports while `fd` is writable as well.
    ///
    /// # Errors
    /// `ENOENT`: it is not in.
    pub fn also_writable(&self, fd: impl AsFd, token: u64, writable: bool) -> Result<(), Errno> {
        let also = if writable { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
        epoll::modify(&self.0, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN | also)
    }

    /// Takes a descriptor out. One that is closed leaves by itself.
    ///
    /// # Errors
    /// `ENOENT`: it is not in.
    pub fn remove(&self, fd: impl AsFd) -> Result<(), Errno> {
        epoll::delete(&self.0, fd)
    }

    /// Waits and gives the tokens of up to 64 descriptors; none after `timeout`, or when a signal came.
    ///
    /// # Errors
    /// None that a valid set meets.
    pub fn wait(&self, timeout: Option<Duration>, found: &mut Vec<u64>) -> Result<(), Errno> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        found.clear();
        let mut events = Vec::with_capacity(64);
        match epoll::wait(&self.0, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(()),
            Err(e) => return Err(e),
        }
        found.extend(events.iter().map(|event: &epoll::Event| event.data.u64()));
        Ok(())
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
