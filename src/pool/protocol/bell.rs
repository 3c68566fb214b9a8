//! A bell: a thread of the parent sleeps on it until a batch ends.
//!
//! ```text
//!  waits:  listen, look whether it is there, sleep          tells:  let it be there, ring
//! ```
//! A ring after the look ends the sleep, because the sleep compares the count of rings with what [`Bell::listen`] or
//! [`Bell::rings`] said before the look. Count and mark of the sleepers are one word: a late ring cannot take away the mark
//! of somebody who counted it already and sleeps until the next.
//!
//! The word is behind a trait, so that loom checks this very code (tests/queue.rs).

use super::queue::Word;
use std::time::Duration;

/// Somebody listens, or sleeps. The bits above count the rings.
const HEARD: u32 = 1;

/// Threads may share one.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Bell<W>(pub W);

impl<W: Word> Bell<W> {
    /// The number of times it has rung, for one who waits for [`Self::ring`].
    pub fn rings(&self) -> u32 {
        self.0.load() & !HEARD
    }

    /// The number of times it has rung, for one who waits for [`Self::ring_if_heard`].
    pub fn listen(&self) -> u32 {
        loop {
            let word = self.0.load();
            if self.0.replace(word, word | HEARD) {
                // A writer that saw no mark rings nobody; the fence makes what it stored before visible to the look that follows.
                W::fence();
                return word & !HEARD;
            }
        }
    }

    /// Tells whoever waits.
    pub fn ring(&self) {
        loop {
            let word = self.0.load();
            // One more, and nobody is marked.
            if self.0.replace(word, (word | HEARD).wrapping_add(1)) {
                if word & HEARD != 0 {
                    self.0.wake();
                }
                return;
            }
        }
    }

    /// Tells whoever listens; cheap when nobody does. What there is to tell was stored before.
    pub fn ring_if_heard(&self) {
        W::fence();
        if self.0.load() & HEARD != 0 {
            self.ring();
        }
    }

    /// Sleeps until the bell has rung since `heard`, at most so long; may wake without a reason.
    pub fn sleep(&self, heard: u32, timeout: Option<Duration>) {
        loop {
            let word = self.0.load();
            if word & !HEARD != heard {
                return;
            }
            if word & HEARD != 0 || self.0.replace(word, word | HEARD) {
                return self.0.wait(heard | HEARD, timeout);
            }
        }
    }
}
