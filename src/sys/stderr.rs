//! Standard error for who may neither allocate nor take a lock: `write(2)` behind a small buffer on the stack.
#![expect(unsafe_code, reason = "descriptor 2 is known by its number")]

use super::Errno;
use std::fmt;
use std::os::fd::BorrowedFd;

/// The bytes that are written at once: an alternate signal stack has little room.
const BUFFER_BYTES: usize = 128;

/// Text on its way to standard error. It is written when the buffer is full, by [`Self::flush`], and when it is dropped.
#[derive(Debug)]
pub struct Stderr {
    bytes: [u8; BUFFER_BYTES],
    len: usize,
}

impl Stderr {
    /// Nothing is to be written yet. *Async-signal-safe.*
    #[expect(clippy::new_without_default, reason = "a default of standard error says nothing")]
    pub fn new() -> Self {
        Self { bytes: [0; BUFFER_BYTES], len: 0 }
    }

    /// Writes what is there. *Async-signal-safe.*
    pub fn flush(&mut self) {
        write_all(self.bytes.get(..self.len).unwrap_or_default());
        self.len = 0;
    }
}

impl fmt::Write for Stderr {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        for byte in part.bytes() {
            if self.len == self.bytes.len() {
                self.flush();
            }
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
        }
        Ok(())
    }
}

impl Drop for Stderr {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Writes all of `bytes` to standard error. *Async-signal-safe.*
pub fn write_all(mut bytes: &[u8]) {
    // SAFETY: descriptor 2 may be closed; then the write fails and nothing else happens.
    let stderr = unsafe { BorrowedFd::borrow_raw(2) };
    while !bytes.is_empty() {
        match rustix::io::write(stderr, bytes) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}
