//! Words that processes share over a fork: counts, and what one tells the others.
#![expect(unsafe_code, reason = "a mapping is looked at as words, and unmapped")]

use super::map::{self, Range};
use crate::error::{Error, Result};
use std::sync::atomic::AtomicU64;

/// Zeroed memory that stays shared over fork, as atomic words. Unmapped when dropped.
#[derive(Debug)]
pub struct SharedWords {
    range: Range,
}

impl SharedWords {
    /// [`map::shared`] memory of `count` words of 8 bytes.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new(count: usize) -> Result<Self> {
        let len = count
            .checked_mul(8)
            .and_then(|len| super::page_size().round_up(len.max(8)))
            .ok_or_else(|| Error::invalid("shared region too large"))?;
        map::shared(len).map(|range| Self { range }).map_err(|e| Error::os("mmap(shared region)", e))
    }

    /// The words, the same in every process that forked while they were mapped. *Async-signal-safe.*
    pub fn words(&self) -> &[AtomicU64] {
        let data = std::ptr::with_exposed_provenance::<AtomicU64>(self.range.start);
        // SAFETY: the range is mapped read-write until `self` is dropped, aligned to a page, and
        // every access by any process goes through atomics.
        unsafe { std::slice::from_raw_parts(data, self.range.len / 8) }
    }

    /// The addresses.
    pub fn range(&self) -> Range {
        self.range
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: the range is ours, and `words` lends no longer than `self` lives.
        let unmapped = unsafe { map::unmap(self.range) };
        debug_assert!(unmapped.is_ok());
    }
}
