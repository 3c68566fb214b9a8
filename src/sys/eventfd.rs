//! Event descriptors: `eventfd(2)`.

use crate::error::{Error, Result};
use std::os::fd::{AsFd, OwnedFd};

/// `eventfd(0, EFD_CLOEXEC)`.
///
/// # Errors
/// EMFILE, ENFILE.
pub fn new() -> Result<OwnedFd> {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).map_err(|e| Error::os("eventfd", e))
}

/// Adds one to an eventfd, waking who polls it. *Async-signal-safe.*
pub fn notify(event: impl AsFd) {
    // The counter never comes near its limit, so this neither blocks nor fails.
    let _written = rustix::io::write(event, &1u64.to_ne_bytes());
}

/// Takes an eventfd's count, waiting for it to be above 0. *Async-signal-safe.*
pub fn take_notice(event: impl AsFd) {
    let _read = rustix::io::read(event, &mut [0u8; 8]);
}
