//! Words that processes wait on: `futex(2)` over shared memory, that is without `FUTEX_PRIVATE_FLAG`.

use super::Errno;
use rustix::thread::futex::{self, Flags, Timespec};
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// `FUTEX_WAIT`: sleeps while the word has this value, until a [`wake`], a signal or the timeout.
///
/// The call may return for no reason: the caller looks again at what it waits for. False when the time is over.
/// *Async-signal-safe.*
///
/// # Errors
/// EFAULT and EINVAL for a word that is none: not with a reference.
pub fn wait(word: &AtomicU32, value: u32, timeout: Option<Duration>) -> Result<bool, Errno> {
    // A time beyond the clock is for ever.
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match futex::wait(word, Flags::empty(), value, timeout.as_ref()) {
        Ok(()) | Err(Errno::AGAIN | Errno::INTR) => Ok(true),
        Err(Errno::TIMEDOUT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// `FUTEX_WAKE`: wakes at most so many of those that wait on the word, in whichever process. *Async-signal-safe.*
///
/// # Errors
/// Those of [`wait`].
pub fn wake(word: &AtomicU32, waiters: u32) -> Result<usize, Errno> {
    futex::wake(word, Flags::empty(), waiters)
}
