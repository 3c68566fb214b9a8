//! userfaultfd as the claims use it: doors, arming, and a monitor that lets writers go on.
//!
//! # Safety
//! Only memory of the case is armed. Whoever writes there is the test, which expects to wait or to
//! get a signal.
#![expect(unsafe_code, reason = "arming changes what stores do")]

use crate::memory::Memory;
#[cfg(feature = "userfaultfd")]
use crate::theirs;
use cowbell::sys::Errno;
use cowbell::sys::eventfd;
use cowbell::sys::map::Range;
use cowbell::sys::uffd::{Door, Features, Uffd, UffdMessage, WaitingWrite};
use linux_raw_sys::{general as raw, ioctl as number};
use rustix::event::{PollFd, PollFlags};
use rustix::ioctl::{Opcode, Updater};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Writes wait for a monitor.
pub const SYNC: Features = Features::PAGEFAULT_FLAG_WP.union(Features::WP_HUGETLBFS_SHMEM);
/// Writes are a SIGBUS.
pub const SIGBUS: Features = SYNC.union(Features::SIGBUS);
/// The kernel lifts the protection and remembers it.
pub const ASYNC: Features = SYNC.union(Features::WP_ASYNC).union(Features::WP_UNPOPULATED);

/// Opens a userfaultfd that handles the kernel's own faults, too.
pub fn full(features: Features) -> Result<Uffd, Errno> {
    #[cfg(feature = "userfaultfd")]
    if theirs::chosen() {
        return theirs::open(features, false);
    }
    Uffd::open(Door::Device, features).or_else(|_| Uffd::open(Door::SystemCall, features))
}

/// Opens the userfaultfd that everyone may open.
pub fn user_mode(features: Features) -> Uffd {
    #[cfg(feature = "userfaultfd")]
    if theirs::chosen() {
        return theirs::open(features, true).expect("user mode only, through the crate");
    }
    Uffd::open(Door::UserModeOnly, features).expect("userfaultfd(UFFD_USER_MODE_ONLY)")
}

/// Opens a userfaultfd by the best door there is.
pub fn any(features: Features) -> Result<Uffd, Errno> {
    #[cfg(feature = "userfaultfd")]
    if theirs::chosen() {
        return full(features).or_else(|_| theirs::open(features, true));
    }
    full(features).or_else(|_| Uffd::open(Door::UserModeOnly, features))
}

/// Puts a range under a userfaultfd.
pub fn register(uffd: &Uffd, range: Range) -> Result<(), Errno> {
    #[cfg(feature = "userfaultfd")]
    if theirs::chosen() {
        return theirs::register(uffd, range);
    }
    // SAFETY: see the module's Safety section.
    unsafe { uffd.register(range) }
}

/// Write-protects a registered range, or lifts the protection and wakes the writers there.
pub fn protect(uffd: &Uffd, range: Range, armed: bool) -> Result<(), Errno> {
    #[cfg(feature = "userfaultfd")]
    if theirs::chosen() {
        return theirs::protect(uffd, range, armed);
    }
    // SAFETY: see the module's Safety section.
    unsafe { uffd.write_protect(range, armed) }
}

/// Registers and write-protects all of a memory.
pub fn arm(uffd: &Uffd, memory: &Memory) {
    register(uffd, memory.range).expect("UFFDIO_REGISTER");
    protect(uffd, memory.range, true).expect("UFFDIO_WRITEPROTECT");
}

/// Opens an asynchronous userfaultfd and arms a memory with it.
pub fn arm_async(memory: &Memory) -> Uffd {
    let uffd = any(ASYNC).expect("WP_ASYNC was there a moment ago");
    arm(&uffd, memory);
    uffd
}

/// Reads what events there are, without waiting.
fn read(uffd: &Uffd, seen: impl FnMut(UffdMessage)) -> Result<(), Errno> {
    #[cfg(feature = "userfaultfd")]
    if theirs::chosen() {
        return theirs::read(uffd, seen);
    }
    uffd.read(seen).map(drop)
}

/// Waits for the next event.
pub fn next_event(uffd: &Uffd) -> UffdMessage {
    loop {
        cowbell::sys::pidfd::readable(uffd.as_fd(), None).expect("poll");
        let mut seen = None;
        read(uffd, |event| assert!(seen.replace(event).is_none(), "one event at a time")).expect("read");
        if let Some(event) = seen {
            return event;
        }
    }
}

/// Waits for the next fault.
pub fn next_fault(uffd: &Uffd) -> WaitingWrite {
    match next_event(uffd) {
        UffdMessage::Fault(fault) => fault,
        other => panic!("a fault was expected: {other:?}"),
    }
}

/// A thread that reads faults, remembers them, and lifts the protection of the page.
pub struct Monitor {
    stop: Arc<OwnedFd>,
    thread: JoinHandle<Vec<WaitingWrite>>,
    uffd: Arc<Uffd>,
}

impl Monitor {
    pub fn start(uffd: Uffd) -> Self {
        let stop = Arc::new(eventfd::new().expect("eventfd"));
        let uffd = Arc::new(uffd);
        let (theirs, seen_by) = (Arc::clone(&stop), Arc::clone(&uffd));
        let thread = std::thread::spawn(move || watch(&seen_by, &theirs));
        Self { stop, thread, uffd }
    }

    /// The addresses of the pages that were written to, in order.
    pub fn stop(self) -> Vec<usize> {
        eventfd::notify(&*self.stop);
        let faults = self.thread.join().expect("the monitor's thread");
        drop(self.uffd);
        let page = cowbell::sys::page_size();
        faults.into_iter().map(|fault| page.round_down(fault.address)).collect()
    }
}

fn watch(uffd: &Uffd, stop: &OwnedFd) -> Vec<WaitingWrite> {
    let page = cowbell::sys::page_size();
    let mut faults = Vec::new();
    loop {
        let mut polled = [PollFd::from_borrowed_fd(uffd.as_fd(), PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match rustix::event::poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => panic!("poll: {e}"),
        }
        let [_, stopped] = &polled;
        let stopped = !stopped.revents().is_empty();
        let mut new = Vec::new();
        read(uffd, |event| match event {
            UffdMessage::Fault(fault) => new.push(fault),
            other => panic!("a fault was expected: {other:?}"),
        })
        .expect("read of the userfaultfd");
        for fault in &new {
            let at = Range { start: page.round_down(fault.address), len: page.bytes() };
            protect(uffd, at, false).expect("UFFDIO_WRITEPROTECT");
        }
        faults.extend(new);
        if stopped {
            return faults;
        }
    }
}

/// A bare userfaultfd whose features are not settled yet.
pub fn open_bare() -> Result<OwnedFd, Errno> {
    let flags = rustix::mm::UserfaultfdFlags::from_bits_retain(raw::UFFD_USER_MODE_ONLY);
    // SAFETY: opening one changes nothing.
    unsafe { rustix::mm::userfaultfd(flags) }
}

/// `UFFDIO_API` on a bare descriptor.
pub fn settle(fd: &OwnedFd, features: u64) -> Result<(), Errno> {
    let mut api = raw::uffdio_api { api: 0xAA, features, ioctls: 0 };
    // SAFETY: the number is UFFDIO_API's, which reads and writes a uffdio_api.
    let call = unsafe { Updater::<{ number::UFFDIO_API as Opcode }, _>::new(&mut api) };
    // SAFETY: the kernel writes within `api` only.
    unsafe { rustix::ioctl::ioctl(fd, call) }
}
