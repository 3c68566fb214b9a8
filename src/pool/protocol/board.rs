//! The words that parent, zygote and workers share, and what they mean. The mapping that they lie in is `memory::region`'s.
//!
//! Board, slots and worker records are atomics only, valid for whatever bytes lie there; a new memfd holds zeroes.

use super::event_count;
use super::queue::{FutexWord, Word64};
use crate::sys::futex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

/// The number of batches that there can be at once: queued, at work, or done and not read.
pub(crate) const SLOTS: usize = 1 << 12;
/// Entries of the ring. A slot may have stale entries besides its own; with more entries than slots they are seldom in
/// the way.
pub(crate) const RING: usize = 4 * SLOTS;
/// Event counts for waiting threads of the parent; threads may share one.
pub(crate) const EVENT_COUNTS: usize = 64;
/// The most workers a pool can have.
pub(crate) const WORKERS_MAX: usize = 1024;

impl FutexWord for AtomicU32 {
    fn load(&self) -> u32 {
        self.load(Ordering::Acquire)
    }
    fn store(&self, value: u32) {
        self.store(value, Ordering::Release);
    }
    fn replace(&self, old: u32, new: u32) -> bool {
        self.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
    fn increment(&self) {
        self.fetch_add(1, Ordering::AcqRel);
    }
    fn wait(&self, expected: u32, timeout: Option<Duration>) {
        let _looked_at_again = futex::wait(self, expected, timeout);
    }
    fn wake(&self) {
        let _how_many = futex::wake(self, i32::MAX as u32);
    }
    fn fence() {
        fence(Ordering::SeqCst);
    }
}

impl Word64 for AtomicU64 {
    fn load(&self) -> u64 {
        self.load(Ordering::Acquire)
    }
    fn store(&self, value: u64) {
        self.store(value, Ordering::Release);
    }
    fn replace(&self, old: u64, new: u64) -> bool {
        self.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
    fn set(&self, bits: u64) {
        self.fetch_or(bits, Ordering::AcqRel);
    }
    fn clear(&self, bits: u64) -> u64 {
        self.fetch_and(!bits, Ordering::AcqRel)
    }
}

/// A word in a cache line of its own.
#[repr(C, align(64))]
pub(crate) struct CacheLine<T>(pub(crate) T);

/// An event count that threads of the parent sleep on.
pub(crate) type EventCount = event_count::EventCount<AtomicU32>;

/// The words that the whole pool shares.
#[repr(C)]
pub(crate) struct Board {
    pub(crate) head: CacheLine<AtomicU64>,
    pub(crate) tail: CacheLine<AtomicU64>,
    /// The data set that new batches are for; workers of an older one leave.
    pub(crate) generation: CacheLine<AtomicU64>,
    /// 1: workers leave when nothing is queued; 2: at once.
    pub(crate) closing: AtomicU32,
    /// Not 0: the program wants no further jobs; one without end is to come to its end.
    pub(crate) draining: AtomicU32,
    /// Slots from here on were never used.
    pub(crate) slots_used: AtomicU32,
    /// Not 0: the zygote looks at time limits; who queues the first batch with one notifies it.
    pub(crate) limits_watched: AtomicU32,
    /// Not 0: jobs wait, and the pool has no worker and cannot start one.
    pub(crate) broken: AtomicU32,
    /// Counts since the pool began.
    pub(crate) deaths: AtomicU64,
    pub(crate) retired: AtomicU64,
    pub(crate) started: AtomicU64,
    pub(crate) over_budget: AtomicU64,
    pub(crate) reshared: AtomicU64,
    pub(crate) jobs: AtomicU64,
    /// Which new data the zygote is asked to take over, and how far that is (adoption.rs).
    pub(crate) adoption: AtomicU64,
    pub(crate) idle: [AtomicU64; WORKERS_MAX / 64],
    /// The word that each worker sleeps on: it counts the worker's wakes.
    pub(crate) worker_wakes: [AtomicU32; WORKERS_MAX],
    /// Threads of the parent sleep on these; the first is for those who need a slot.
    pub(crate) event_counts: [EventCount; EVENT_COUNTS],
}

/// A batch of jobs.
#[repr(C, align(128))]
pub(crate) struct BatchSlot {
    /// The batch's state: see queue.rs.
    pub(crate) state: AtomicU32,
    /// The number of the event count that the thread which waits for it sleeps on.
    pub(crate) waiter: AtomicU32,
    /// The number of jobs.
    pub(crate) jobs: AtomicU32,
    /// Not 0: why the job that `progress` names failed (failure.rs).
    pub(crate) failure: AtomicU32,
    pub(crate) failure_detail: AtomicU32,
    pub(crate) padding: AtomicU32,
    /// Number of the current job, and its phase (progress.rs).
    pub(crate) progress: AtomicU64,
    /// When the current job began, in ns; kept only under a time limit.
    pub(crate) since: AtomicU64,
    /// The time limit of each job in ns; 0 for none.
    pub(crate) limit: AtomicU64,
    /// The place of the jobs, and their bytes.
    pub(crate) input: AtomicU64,
    pub(crate) input_bytes: AtomicU64,
    /// The place where they began before some were done; the memory that is freed.
    pub(crate) input_first: AtomicU64,
    /// The first block of results; 0 for none.
    pub(crate) output: AtomicU64,
    /// The time the batch ran, in ns.
    pub(crate) ran: AtomicU64,
    /// The generation that must run it, or a newer one.
    pub(crate) generation: AtomicU64,
}

/// What is known of the worker with one index, and of those that had the index before.
#[repr(C, align(64))]
pub(crate) struct WorkerRecord {
    pub(crate) pid: AtomicU32,
    /// Why the worker left of its own accord (worker/mod.rs).
    pub(crate) left: AtomicU32,
    pub(crate) generation: AtomicU64,
    pub(crate) jobs: AtomicU64,
    /// Copied pages at the last census.
    pub(crate) copied: AtomicU64,
    /// Raised when a block of the worker's heap is freed and somebody waits for that.
    pub(crate) freed: AtomicU32,
    pub(crate) wants_room: AtomicU32,
    /// Not 0: waits for room, so the time limit stands still.
    pub(crate) waits: AtomicU32,
    /// Not 0: the worker is known: its id stands above, and it was counted.
    known: AtomicU32,
    /// When the worker was begun, in ns of the monotonic clock: with its id this names it for good.
    pub(crate) started: AtomicU64,
    /// The jobs that earlier workers of the index had done.
    pub(crate) jobs_before: AtomicU64,
}

// One cache line, as it says: what a worker counts is in the way of no other.
const _: () = assert!(size_of::<WorkerRecord>() == 64);

impl WorkerRecord {
    /// A worker is about to begin. The record has no id now: whoever reads it twice with one id and one start has read one worker.
    pub(crate) fn clear(&self, generation: u64, now_ns: u64) {
        self.generation.store(generation, Ordering::Release);
        self.started.store(now_ns, Ordering::Release);
        self.jobs_before.store(self.jobs.load(Ordering::Acquire), Ordering::Release);
        for word in [&self.left, &self.wants_room, &self.waits, &self.known] {
            word.store(0, Ordering::Release);
        }
        self.copied.store(0, Ordering::Release);
    }

    /// Makes the worker known, once. Both it and the zygote say so: nobody shall see its first result before, nor a pool
    /// without it.
    pub(crate) fn welcome(&self, board: &Board, pid: i32) {
        self.pid.store(pid as u32, Ordering::Release);
        if self.known.swap(1, Ordering::AcqRel) == 0 {
            board.started.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Was its worker made known since [`Self::clear`]?
    pub(crate) fn is_welcomed(&self) -> bool {
        self.known.load(Ordering::Acquire) != 0
    }
}
