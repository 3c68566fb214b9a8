//! Descriptors that one process takes from another.
//!
//! # Safety
//! Children change their own credentials and exit.
#![expect(unsafe_code, reason = "claims about credentials")]

use crate::child::{self, Child, Gate};
use crate::claim::{Claim, Verdict, claim};
use cowbell::sys::{Errno, limits, tracing};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use std::os::fd::{AsRawFd, OwnedFd};

pub const CLAIMS: &[Claim] = &[claim!(
    descriptor_can_be_taken_from_a_process_of_ones_user_without_capabilities,
    "A process without capabilities takes a descriptor by `pidfd_getfd` from another of its user that has none either, is dumpable, and allows any tracer (`PR_SET_PTRACER_ANY`): it is the same open file. From one with capabilities, or of another user, it is EPERM."
)];

/// The answer that a taker gets that took nothing: the errno, above all descriptors' contents.
const REFUSED: u64 = 1 << 32;

/// The user that the children are: root's take another user, whoever else stays.
fn user() -> u32 {
    let own = limits::user().uid;
    if own == 0 { 65534 } else { own }
}

/// Gives up root's rights, as a program of another user is started without them.
fn become_user(user: u32) {
    if limits::user().uid == user {
        return;
    }
    // SAFETY: this child's own credentials are changed, and it has one thread.
    let group_changed = unsafe { libc::setresgid(user, user, user) };
    assert_eq!(group_changed, 0, "setresgid: {}", std::io::Error::last_os_error());
    // SAFETY: as above.
    let user_changed = unsafe { libc::setresuid(user, user, user) };
    assert_eq!(user_changed, 0, "setresuid: {}", std::io::Error::last_os_error());
    // An exec would make it dumpable again.
    // SAFETY: the call takes numbers only.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) }, 0, "PR_SET_DUMPABLE");
}

/// A process that holds a file until it may go.
fn lender(go: &Gate, prepare: impl FnOnce()) -> Child {
    let ready = Gate::new();
    let child = child::spawn(|| {
        prepare();
        ready.open();
        go.pass();
    });
    ready.pass();
    child
}

/// Takes the descriptor in a process of this user, and writes 7 there.
fn take(user: u32, from: i32, number: i32) -> u64 {
    child::compute(|| {
        become_user(user);
        assert_eq!(tracing::open_to_tracers(), Ok(()), "no capabilities");
        let taken = || -> Result<OwnedFd, Errno> {
            let process = rustix::process::pidfd_open(Pid::from_raw(from).ok_or(Errno::INVAL)?, PidfdFlags::empty())?;
            rustix::process::pidfd_getfd(process, number, PidfdGetfdFlags::empty())
        };
        match taken() {
            Ok(fd) => rustix::io::write(fd, &7u64.to_ne_bytes()).map_or(0, |wrote| wrote as u64),
            Err(e) => REFUSED + e.raw_os_error() as u64,
        }
    })
}

fn descriptor_can_be_taken_from_a_process_of_ones_user_without_capabilities() -> Verdict {
    let (user, go) = (user(), Gate::new());
    // An event's count shows that it is the same open file.
    let event = cowbell::sys::eventfd::new().expect("eventfd");
    let number = event.as_raw_fd();
    let open = lender(&go, || {
        become_user(user);
        assert_eq!(tracing::open_to_tracers(), Ok(()), "no capabilities");
    });
    assert_eq!(take(user, open.pid, number), 8, "eight bytes were written");
    let mut count = [0; 8];
    assert_eq!(rustix::io::read(&event, &mut count), Ok(8));
    assert_eq!(u64::from_ne_bytes(count), 7, "into the lender's own file");
    go.open();
    open.finish();
    if limits::user().uid == 0 {
        let go = Gate::new();
        let of_root = lender(&go, || {});
        let refused = REFUSED + Errno::PERM.raw_os_error() as u64;
        assert_eq!(take(user, of_root.pid, number), refused, "of root, with capabilities");
        go.open();
        of_root.finish();
    }
    Ok(())
}
