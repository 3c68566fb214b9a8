//! A page that tells the process that made it from those that are forked from it: `MADV_WIPEONFORK` (Linux 4.14).
//!
//! The kernel wipes it as it forks, so that a child knows from its first instruction on, whoever forked it, and no handler has to run before.
#![expect(unsafe_code, reason = "mapping calls change what addresses mean")]

use super::map::{self, Range};
use super::{Errno, page_size};
use std::sync::atomic::{AtomicU64, Ordering};

/// A page that begins with a word that is not 0, and with 0 in a forked child.
#[derive(Debug)]
pub struct OwnPage {
    page: Range,
}

impl OwnPage {
    /// `mmap(MAP_PRIVATE | MAP_ANONYMOUS)` and `madvise(MADV_WIPEONFORK)`. *Async-signal-safe.*
    ///
    /// # Errors
    /// ENOMEM; EINVAL before Linux 4.14.
    pub fn new() -> Result<Self, Errno> {
        let own = Self { page: map::anonymous(page_size().bytes())? };
        // SAFETY: the page is fresh; the advice changes what a forked child finds in it, which is an atomic word.
        let done = unsafe {
            libc::madvise(std::ptr::with_exposed_provenance_mut(own.page.start), own.page.len, libc::MADV_WIPEONFORK)
        };
        if done != 0 {
            return Err(map::last_errno());
        }
        own.word().store(1, Ordering::Relaxed);
        Ok(own)
    }

    /// Tells whether this process made it, or shares the memory of the one that did. *Async-signal-safe.*
    pub fn is_own(&self) -> bool {
        self.word().load(Ordering::Relaxed) != 0
    }

    /// The number that the process has here: 1 at first, 0 in a forked child until it [gives itself one](Self::give_number). *Async-signal-safe.*
    #[inline]
    pub fn number(&self) -> u64 {
        self.word().load(Ordering::Relaxed)
    }

    /// Gives the process a number if it has none, and returns the one that it has then. *Async-signal-safe.*
    pub fn give_number(&self, number: u64) -> u64 {
        let given = self.word().compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed);
        given.map_or_else(|theirs| theirs, |_| number)
    }

    #[inline]
    fn word(&self) -> &AtomicU64 {
        let at = std::ptr::with_exposed_provenance::<AtomicU64>(self.page.start);
        // SAFETY: the page is mapped read-write until `self` is dropped, and only this word of it is used.
        unsafe { &*at }
    }
}

impl Drop for OwnPage {
    fn drop(&mut self) {
        // SAFETY: the page is ours, and `word` lends no longer than `self` lives.
        let unmapped = unsafe { map::unmap(self.page) };
        debug_assert!(unmapped.is_ok());
    }
}
