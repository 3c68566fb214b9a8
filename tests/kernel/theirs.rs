//! The userfaultfd crate in place of our own wrapper: the same claims, made through its calls.
//!
//! A feature that it has no name for (`WP_ASYNC`, for one) goes through it as bits.
//!
//! # Safety
//! As for `watcher`. A descriptor is lent to the crate's type, which is never dropped.
#![expect(unsafe_code, reason = "a descriptor is lent to the crate's type")]

use crate::claim::{Claim, Need};
use cowbell::sys::Errno;
use cowbell::sys::map::Range;
use cowbell::sys::uffd::{Features, Uffd, UffdMessage, WaitingWrite};
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use userfaultfd::{Error, FaultKind, FeatureFlags, RegisterMode, UffdBuilder};

/// Set in the harness before it forks the case.
static CHOSEN: AtomicBool = AtomicBool::new(false);

/// Topics whose descriptors are made in another process, by our own calls.
const ELSEWHERE: &[&str] = &["tracees", "tracer"];

/// Claims that ask for what the crate does not tell: which features the kernel has.
const OURS: &[&str] = &["unknown_feature_is_einval_and_spoils_the_descriptor"];

/// Tells whether this case is to go through the crate.
pub fn chosen() -> bool {
    CHOSEN.load(Ordering::Relaxed)
}

/// Runs something with the crate chosen, in this process and those it forks meanwhile.
pub fn choose<R>(run: impl FnOnce() -> R) -> R {
    CHOSEN.store(true, Ordering::Relaxed);
    let result = run();
    CHOSEN.store(false, Ordering::Relaxed);
    result
}

/// Can both make this claim?
pub fn can_make(topic: &str, claim: &Claim) -> bool {
    let arms = claim.needs.iter().any(|need| matches!(need, Need::Uffd | Need::FullUffd | Need::WpAsync));
    arms && !ELSEWHERE.contains(&topic) && !OURS.contains(&claim.name)
}

/// Why this user cannot open a userfaultfd through the crate, which takes the device, where there is one, and nothing else.
pub fn cannot_open() -> Option<String> {
    UffdBuilder::new().user_mode_only(true).create().err().map(|e| format!("the userfaultfd crate: {e}"))
}

fn errno(e: &Error) -> Errno {
    match e {
        Error::SystemError(errno) => Errno::from_raw_os_error(*errno as i32),
        Error::OpenDevUserfaultfd(e) => e.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error),
        other => panic!("the userfaultfd crate: {other}"),
    }
}

fn lent(uffd: &Uffd) -> ManuallyDrop<userfaultfd::Uffd> {
    // SAFETY: the descriptor is open as long as `uffd`, which outlives each use, and is closed by it alone.
    ManuallyDrop::new(unsafe { userfaultfd::Uffd::from_raw_fd(uffd.as_fd().as_raw_fd()) })
}

fn address(range: Range) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(range.start)
}

pub fn open(features: Features, user_mode_only: bool) -> Result<Uffd, Errno> {
    let mut builder = UffdBuilder::new();
    builder.close_on_exec(true).non_blocking(true).user_mode_only(user_mode_only);
    builder.require_features(FeatureFlags::from_bits_retain(features.bits()));
    let theirs = builder.create().map_err(|e| errno(&e))?;
    Ok(Uffd::try_from(theirs).expect("a descriptor"))
}

pub fn register(uffd: &Uffd, range: Range) -> Result<(), Errno> {
    let done = lent(uffd).register_with_mode(address(range), range.len, RegisterMode::WRITE_PROTECT);
    done.map(drop).map_err(|e| errno(&e))
}

pub fn protect(uffd: &Uffd, range: Range, armed: bool) -> Result<(), Errno> {
    loop {
        let lent = lent(uffd);
        let done = match armed {
            true => lent.write_protect(address(range), range.len),
            false => lent.remove_write_protection(address(range), range.len, true),
        };
        match done.map_err(|e| errno(&e)) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            done => return done,
        }
    }
}

/// Reads what events there are.
pub fn read(uffd: &Uffd, mut seen: impl FnMut(UffdMessage)) -> Result<(), Errno> {
    let span = |start: *mut c_void, end: *mut c_void| Range { start: start.addr(), len: end.addr() - start.addr() };
    loop {
        let event = match lent(uffd).read_event().map_err(|e| errno(&e)) {
            Ok(Some(event)) => event,
            Ok(None) => return Ok(()),
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e),
        };
        seen(match event {
            userfaultfd::Event::Pagefault { kind, addr, thread_id, .. } => UffdMessage::Fault(WaitingWrite {
                address: addr.addr(),
                tid: thread_id.as_raw(),
                write_protect: kind == FaultKind::WriteProtected,
            }),
            userfaultfd::Event::Fork { uffd } => {
                UffdMessage::Fork(rustix::io::fcntl_dupfd_cloexec(uffd.as_fd(), 0).expect("a descriptor"))
            }
            userfaultfd::Event::Remap { from, to, len } => UffdMessage::Remap { from: from.addr(), to: to.addr(), len },
            userfaultfd::Event::Remove { start, end } => UffdMessage::Remove(span(start, end)),
            userfaultfd::Event::Unmap { start, end } => UffdMessage::Unmap(span(start, end)),
        });
    }
}
