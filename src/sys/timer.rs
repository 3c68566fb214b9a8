//! Descriptors that can be read once a time has come.

use crate::error::{Error, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// `timerfd_create(CLOCK_MONOTONIC)`: a read of it waits until the timer has gone off.
///
/// # Errors
/// EMFILE, ENFILE.
pub fn create() -> Result<OwnedFd> {
    use rustix::time::{TimerfdClockId, TimerfdFlags};
    rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)
        .map_err(|e| Error::os("timerfd_create", e))
}

/// Waits until a timer has gone off.
pub fn wait(timer: impl AsFd) {
    let _read = rustix::io::read(timer, &mut [0u8; 8]);
}

/// Has a timer go off once, so long from now; never for `None`.
pub fn set(timer: impl AsFd, after: Option<Duration>) {
    use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec};
    let never = Timespec { tv_sec: 0, tv_nsec: 0 };
    // A time of 0 would be never.
    let it_value = after.map_or(never, |after| after.max(Duration::from_nanos(1)).try_into().unwrap_or(never));
    let times = Itimerspec { it_interval: never, it_value };
    // The kernel refuses only times that are none.
    let _set = rustix::time::timerfd_settime(timer, TimerfdTimerFlags::empty(), &times);
}
