//! Pipes: `pipe2(2)`, and single bytes through them.

use super::Errno;
use std::os::fd::{AsFd, OwnedFd};

/// `pipe2(O_CLOEXEC)`: the end to read from, the end to write to. *Async-signal-safe.*
///
/// # Errors
/// EMFILE, ENFILE.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
}

/// Writes one byte to a pipe. *Async-signal-safe.*
pub fn give_byte(pipe: impl AsFd) {
    // A reader that is gone does not want it.
    let _unread = rustix::io::write(pipe, &[1]);
}

/// Waits for one byte from a pipe; false when its writers are gone. *Async-signal-safe.*
pub fn take_byte(pipe: impl AsFd) -> bool {
    rustix::io::retry_on_intr(|| rustix::io::read(pipe.as_fd(), &mut [0u8; 1])) == Ok(1)
}
