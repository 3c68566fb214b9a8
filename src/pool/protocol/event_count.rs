//! An event count: threads of the parent sleep on it until a batch ends.
//!
//! ```text
//!  waits:  prepare_wait or count, look whether it is there, sleep          tells:  let it be there, notify
//! ```
//! A notification after the look ends the sleep, because the sleep compares the count with what [`EventCount::prepare_wait`] or
//! [`EventCount::count`] said before the look. Count and mark of the sleepers are one word: a late notification cannot take away the
//! mark of somebody who counted it already and sleeps until the next.
//!
//! The word is behind a trait, so that loom checks this very code (tests/queue.rs).

use super::queue::FutexWord;
use std::time::Duration;

/// Somebody prepares to wait, or sleeps. The bits above count the notifications.
const AWAITED: u32 = 1;

/// Threads may share one.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct EventCount<W>(pub W);

impl<W: FutexWord> EventCount<W> {
    /// The number of notifications, for one who waits for [`Self::notify`].
    pub fn count(&self) -> u32 {
        self.0.load() & !AWAITED
    }

    /// The number of notifications, for one who waits for [`Self::notify_if_awaited`].
    pub fn prepare_wait(&self) -> u32 {
        loop {
            let word = self.0.load();
            if self.0.replace(word, word | AWAITED) {
                // A writer that saw no mark notifies nobody; the fence makes what it stored before visible to the look that follows.
                W::fence();
                return word & !AWAITED;
            }
        }
    }

    /// Tells whoever waits.
    pub fn notify(&self) {
        loop {
            let word = self.0.load();
            // One more, and nobody is marked.
            if self.0.replace(word, (word | AWAITED).wrapping_add(1)) {
                if word & AWAITED != 0 {
                    self.0.wake();
                }
                return;
            }
        }
    }

    /// Tells whoever waits; cheap when nobody does. What there is to tell was stored before.
    pub fn notify_if_awaited(&self) {
        W::fence();
        if self.0.load() & AWAITED != 0 {
            self.notify();
        }
    }

    /// Sleeps until there was a notification since `seen`, at most so long; may wake without a reason.
    pub fn sleep(&self, seen: u32, timeout: Option<Duration>) {
        loop {
            let word = self.0.load();
            if word & !AWAITED != seen {
                return;
            }
            if word & AWAITED != 0 || self.0.replace(word, word | AWAITED) {
                return self.0.wait(seen | AWAITED, timeout);
            }
        }
    }
}
