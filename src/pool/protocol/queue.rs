//! The queue: slots wait in a ring, and a worker takes one by a single compare-and-swap that says who it is.
//!
//! ```text
//!  ring   .. | 7 | 3 | 9 | 4 |        entries are numbers of slots; only the parent adds at the tail
//!              ^head       ^tail      the head is a hint that anybody moves over a slot that is not queued
//!  slot 3      FREE -> QUEUED -> TAKEN(index) -> DONE -> FREE
//!                                  \_ HELD(index): for a moment, or until the worker dies
//! ```
//! **A worker may die at any instruction.** What counts is a slot's state alone, and each change of it is one store:
//! a slot is queued, or that of the worker whose index stands in it. So the zygote finds what a dead worker held by looking at the
//! slots. An entry of the ring is no right to anything: one that is read too late finds its slot taken, or queued again,
//! and then taking it is right as well, because some entry at or behind the head names every queued slot.
//!
//! **The ring may fill up** with entries of slots that were taken back, behind one that is still queued because all
//! workers are busy. Then the parent goes through it once and keeps what is queued ([`Queue::push`]).
//!
//! **A wake may be lost** with the worker that it was for (killed, stopped). [`Queue::nudge`] wakes everybody where
//! something is queued; who waits for a result calls it now and then. The zygote calls [`Queue::bury`] after a death.
//!
//! The words are behind traits, so that loom checks this very code (tests/queue.rs).

use std::time::Duration;

/// A 32-bit atomic word that may be slept on.
pub trait FutexWord {
    /// Loads with Acquire.
    fn load(&self) -> u32;
    /// Stores with Release.
    fn store(&self, value: u32);
    /// Compares and swaps with AcqRel; tells whether it did.
    fn replace(&self, old: u32, new: u32) -> bool;
    /// Adds one with AcqRel.
    fn increment(&self);
    /// Sleeps while the word is `expected`, at most so long.
    fn wait(&self, expected: u32, timeout: Option<Duration>);
    /// Wakes all who sleep on the word.
    fn wake(&self);
    /// A sequentially consistent fence.
    fn fence();
}

/// A 64-bit atomic word.
pub trait Word64 {
    /// Loads with Acquire.
    fn load(&self) -> u64;
    /// Stores with Release.
    fn store(&self, value: u64);
    /// Compares and swaps with AcqRel; tells whether it did.
    fn replace(&self, old: u64, new: u64) -> bool;
    /// Sets bits with AcqRel.
    fn set(&self, bits: u64);
    /// Clears bits with AcqRel; what was there before.
    fn clear(&self, bits: u64) -> u64;
}

/// A slot without an owner, which the parent fills.
pub const FREE: u32 = 0;
/// The batch waits; the first worker that comes takes it.
pub const QUEUED: u32 = 1;
/// The parent reads its results.
pub const DONE: u32 = 2;
/// A worker's; its index stands in the upper bits.
const TAKEN: u32 = 3;
/// A worker's that may not give it back; its index stands in the upper bits.
const HELD: u32 = 4;
const WORKER_SHIFT: u32 = 8;

/// The state of a slot that the worker of `index` holds.
pub fn taken_by(index: usize) -> u32 {
    TAKEN | (index as u32) << WORKER_SHIFT
}

/// The index of the worker that holds a slot in this state.
pub fn holder(state: u32) -> Option<usize> {
    matches!(state & 0xff, TAKEN | HELD).then_some((state >> WORKER_SHIFT) as usize)
}

/// The worker in `index` is done with a slot. False while somebody decides whether the worker is to end with it.
pub fn give_back<W: FutexWord>(state: &W, index: usize) -> bool {
    state.replace(taken_by(index), DONE)
}

/// Keeps a slot in the hands of the worker of `index`; false if it is not there, or kept already.
pub fn hold<W: FutexWord>(state: &W, index: usize) -> bool {
    state.replace(taken_by(index), held_by(index))
}

/// The worker in `index` may give the slot back after all.
pub fn let_go<W: FutexWord>(state: &W, index: usize) {
    state.replace(held_by(index), taken_by(index));
}

fn held_by(index: usize) -> u32 {
    HELD | (index as u32) << WORKER_SHIFT
}

/// A view of the words, which lie in shared memory.
pub struct Queue<'a, W, L, S> {
    /// The number of entries that were passed.
    pub head: &'a L,
    /// The number of entries that were added.
    pub tail: &'a L,
    /// Numbers of slots; a power of two of them, and no fewer than slots.
    pub ring: &'a [W],
    /// The position of each slot's own entry, its lower 32 bits; other entries of the slot are stale. The parent's.
    pub places: &'a [W],
    /// A slot's state.
    pub state: S,
    /// The word that each worker sleeps on, by index: it counts the worker's wakes.
    pub wakes: &'a [W],
    /// The workers that sleep, a bit an index.
    pub idle: &'a [L],
}

impl<'a, W: FutexWord + 'a, L: Word64 + 'a, S: Fn(usize) -> &'a W> Queue<'a, W, L, S> {
    /// Queues a free slot. One at a time: the caller holds the parent's lock. False when the ring is full of slots that
    /// are queued, so never with as many entries as slots.
    pub fn push(&self, slot: usize) -> bool {
        if self.is_full() {
            self.sweep();
            if self.is_full() {
                return false;
            }
        }
        (self.state)(slot).store(QUEUED);
        self.append(slot);
        true
    }

    /// Wakes one worker for what was pushed, if any sleeps.
    pub fn announce(&self) {
        W::fence();
        for (at, idle) in self.idle.iter().enumerate() {
            let mut sleeping = idle.load();
            while sleeping != 0 {
                let bit = sleeping & sleeping.wrapping_neg();
                if idle.clear(bit) & bit != 0 {
                    self.wake(at * 64 + bit.trailing_zeros() as usize);
                    return;
                }
                sleeping &= !bit;
            }
        }
    }

    /// Takes the first queued slot for the worker of `index`.
    pub fn claim(&self, index: usize) -> Option<usize> {
        loop {
            let head = self.head.load();
            if head == self.tail.load() {
                return None;
            }
            let slot = self.entry(head).load() as usize;
            let mine = (self.state)(slot).replace(QUEUED, taken_by(index));
            // Fails if somebody else moved it, and that is as well.
            self.head.replace(head, head + 1);
            if mine {
                return Some(slot);
            }
        }
    }

    /// Sleeps until there may be something to take, or `leave` holds, or the time is over.
    pub fn sleep(&self, index: usize, timeout: Option<Duration>, leave: impl Fn() -> bool) {
        let wakes = &self.wakes[index];
        let seen = wakes.load();
        let (idle, bit) = (&self.idle[index / 64], 1u64 << (index % 64));
        idle.set(bit);
        W::fence();
        // A pusher that comes after this look sees the bit.
        if self.is_empty() && !leave() {
            wakes.wait(seen, timeout);
        }
        idle.clear(bit);
    }

    /// Nothing to take? (Entries that are stale count as something.)
    pub fn is_empty(&self) -> bool {
        self.head.load() == self.tail.load()
    }

    /// Wakes everybody if something is queued.
    pub fn nudge(&self) {
        if !self.is_empty() {
            self.wake_all();
        }
    }

    /// The worker in `index` is dead: from now on wakes are for others, and what one was for is told to everybody.
    ///
    /// The order counts. Who announces clears the bit before, and then what was pushed is seen here; or finds it cleared.
    pub fn bury(&self, index: usize) {
        self.idle[index / 64].clear(1 << (index % 64));
        self.nudge();
    }

    /// Wakes everybody.
    pub fn wake_all(&self) {
        for index in 0..self.wakes.len() {
            self.wake(index);
        }
    }

    fn wake(&self, index: usize) {
        let wakes = &self.wakes[index];
        wakes.increment();
        wakes.wake();
    }

    /// Keeps the queued slots' own entries, in their order, and drops the others.
    fn sweep(&self) {
        let end = self.tail.load();
        loop {
            let head = self.head.load();
            if head >= end {
                return;
            }
            let slot = self.entry(head).load() as usize;
            let own = self.places.get(slot).is_some_and(|place| place.load() == head as u32);
            if own && (self.state)(slot).load() == QUEUED {
                // The slot stands at both ends for a moment: nobody may see it at neither. The cell at the tail is behind the
                // head, or, if the ring is full, the very one at the head.
                self.append(slot);
            }
            // Fails if a worker took the slot meanwhile, and that is as well.
            self.head.replace(head, head + 1);
        }
    }

    fn append(&self, slot: usize) {
        let tail = self.tail.load();
        self.entry(tail).store(slot as u32);
        if let Some(place) = self.places.get(slot) {
            place.store(tail as u32);
        }
        self.tail.store(tail + 1);
    }

    fn is_full(&self) -> bool {
        self.tail.load() - self.head.load() >= self.ring.len() as u64
    }

    fn entry(&self, position: u64) -> &'a W {
        &self.ring[position as usize & (self.ring.len() - 1)]
    }
}
