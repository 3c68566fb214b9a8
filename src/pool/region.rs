//! The memory that parent, zygote and workers share: one memfd, mapped before the zygote is forked, so that it lies at
//! the same addresses in all of them.
//!
//! ```text
//! board | ring and places | slots | seats | payloads (the parent allocates and frees) | a heap for each seat (heap.rs)
//! ```
//! The file is sparse: what nobody touches takes no memory.
//!
//! # Safety
//! Board, slots and seats are atomics only, valid for whatever bytes lie there; a new memfd holds zeroes. Bytes of payloads and
//! heaps are lent out by offset, after a check of the bounds; who may read or write which bytes is settled by the
//! slot's state (queue.rs) and the block's (heap.rs).
#![expect(unsafe_code, reason = "shared memory is looked at by address")]

use super::queue::{Long, Queue, Word};
use crate::arena::registry;
use crate::error::{Error, Result};
use crate::sys::map::{self, Access, Range};
use crate::sys::{self, futex, memfd};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

/// The number of batches that there can be at once: queued, at work, or done and not read.
pub(super) const SLOTS: usize = 1 << 12;
/// Less memory than this is not worth a system call.
pub(super) const TRIM_MIN: usize = 256 << 10;
/// Entries of the ring. A slot may have stale entries besides its own; with more entries than slots they are seldom in
/// the way.
const RING: usize = 4 * SLOTS;
/// Words for waiting threads of the parent; threads may share one.
pub(super) const BELLS: usize = 64;
/// The most workers a pool can have.
pub(super) const SEATS_MAX: usize = 1024;

impl Word for AtomicU32 {
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

impl Long for AtomicU64 {
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
pub(super) struct Line<T>(pub(super) T);

/// The bell that a thread of the parent sleeps on.
pub(super) type Bell = super::bell::Bell<AtomicU32>;

/// The words that the whole pool shares.
#[repr(C)]
pub(super) struct Board {
    head: Line<AtomicU64>,
    tail: Line<AtomicU64>,
    /// The data set that new batches are for; workers of an older one leave.
    pub(super) generation: Line<AtomicU64>,
    /// 1: workers leave when nothing is queued; 2: at once.
    pub(super) closing: AtomicU32,
    /// Slots from here on were never used.
    pub(super) slots_used: AtomicU32,
    /// Not 0: the zygote looks at time limits; who queues the first batch with one notifies it.
    pub(super) limits_watched: AtomicU32,
    /// Not 0: jobs wait, and the pool has no worker and cannot start one.
    pub(super) broken: AtomicU32,
    /// Counts since the pool began.
    pub(super) deaths: AtomicU64,
    pub(super) retired: AtomicU64,
    pub(super) started: AtomicU64,
    pub(super) over_budget: AtomicU64,
    pub(super) reshared: AtomicU64,
    pub(super) jobs: AtomicU64,
    idle: [AtomicU64; SEATS_MAX / 64],
    /// The bell on which workers sleep.
    signals: [AtomicU32; SEATS_MAX],
    /// The bells on which threads of the parent sleep; the first is for those who need a slot.
    pub(super) bells: [Bell; BELLS],
}

/// A batch of jobs.
#[repr(C, align(128))]
pub(super) struct Slot {
    /// See queue.rs.
    pub(super) state: AtomicU32,
    /// The bell of the thread that waits for it.
    pub(super) bell: AtomicU32,
    /// The number of jobs.
    pub(super) jobs: AtomicU32,
    /// Not 0: why the job that `progress` names failed (failure.rs).
    pub(super) failure: AtomicU32,
    pub(super) failure_detail: AtomicU32,
    pub(super) padding: AtomicU32,
    /// Number of the current job, and its phase (progress.rs).
    pub(super) progress: AtomicU64,
    /// When the current job began, in ns; kept only under a time limit.
    pub(super) since: AtomicU64,
    /// The time limit of each job in ns; 0 for none.
    pub(super) limit: AtomicU64,
    /// The place of the jobs, and their bytes.
    pub(super) input: AtomicU64,
    pub(super) input_bytes: AtomicU64,
    /// The place where they began before some were done; the memory that is freed.
    pub(super) input_first: AtomicU64,
    /// The first block of results; 0 for none.
    pub(super) output: AtomicU64,
    /// The time the batch ran, in ns.
    pub(super) ran: AtomicU64,
    /// The generation that must run it, or a newer one.
    pub(super) generation: AtomicU64,
}

/// A worker's place.
#[repr(C, align(64))]
pub(super) struct Seat {
    pub(super) pid: AtomicU32,
    /// Why the worker left of its own accord (worker.rs).
    pub(super) left: AtomicU32,
    pub(super) generation: AtomicU64,
    pub(super) jobs: AtomicU64,
    /// Copied pages at the last census.
    pub(super) copied: AtomicU64,
    /// Raised when a block of the seat's heap is freed and somebody waits for that.
    pub(super) freed: AtomicU32,
    pub(super) wants_room: AtomicU32,
    /// Not 0: waits for room, so the time limit stands still.
    pub(super) waits: AtomicU32,
    /// Not 0: the worker is known: its id stands above, and it was counted.
    known: AtomicU32,
}

impl Seat {
    /// A worker is about to begin.
    pub(super) fn clear(&self, generation: u64) {
        self.generation.store(generation, Ordering::Release);
        for word in [&self.left, &self.wants_room, &self.waits, &self.known] {
            word.store(0, Ordering::Release);
        }
        self.copied.store(0, Ordering::Release);
    }

    /// Makes the worker known, once. Both it and the zygote say so: nobody shall see its first result before, nor a pool
    /// without it.
    pub(super) fn welcome(&self, board: &Board, pid: i32) {
        self.pid.store(pid as u32, Ordering::Release);
        if self.known.swap(1, Ordering::AcqRel) == 0 {
            board.started.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// The mapping.
#[derive(Debug)]
pub(super) struct Region {
    range: Range,
    seats: usize,
    ring_at: usize,
    slots_at: usize,
    seats_at: usize,
    payloads: Range,
    heaps_at: usize,
    heap_bytes: usize,
}

impl Region {
    /// Room for `seats` workers, `payload_bytes` of jobs and `heap_bytes` of results for each worker.
    pub(super) fn new(name: &str, seats: usize, payload_bytes: usize, heap_bytes: usize) -> Result<Self> {
        let page = sys::page_size();
        let too_large = || Error::invalid("the pool's capacities are too large");
        let up = |bytes: usize| page.round_up(bytes).ok_or_else(too_large);
        let ring_at = up(size_of::<Board>())?;
        let slots_at = ring_at + up((RING + SLOTS) * size_of::<AtomicU32>())?;
        let seats_at = slots_at + up(SLOTS * size_of::<Slot>())?;
        let payloads_at = seats_at + up(seats * size_of::<Seat>())?;
        let payload_bytes = up(payload_bytes)?;
        let heaps_at = payloads_at.checked_add(payload_bytes).ok_or_else(too_large)?;
        let heap_bytes = up(heap_bytes)?;
        let len = heap_bytes.checked_mul(seats).and_then(|heaps| heaps.checked_add(heaps_at)).ok_or_else(too_large)?;
        let len = isize::try_from(len).map_err(|_| too_large())? as usize;
        let file = memfd::create(&format!("cowbell-pool:{name}"))?;
        memfd::set_len(file.as_fd(), len as u64)?;
        let hint = "lower PoolBuilder::result_capacity, or the number of workers";
        let range = map::reserve(len, page.bytes()).map_err(|e| e.with_hint(hint))?;
        // SAFETY: the range was just reserved and nobody was given an address in it.
        let mapped = unsafe { map::map_shared_at(range, Access::ReadWrite, file.as_fd(), 0) };
        let payloads = Range { start: payloads_at, len: payload_bytes };
        let region = Self { range, seats, ring_at, slots_at, seats_at, payloads, heaps_at, heap_bytes };
        mapped.map_err(|e| Error::os("mmap(pool)", e).with_hint(hint))?;
        Ok(region)
    }

    /// From now on processes that this one forks do not have it: what is lent here as `&[u8]` or `&mut [T]` must not be
    /// written there.
    pub(super) fn keep_from_children(&self) -> Result<()> {
        // SAFETY: the mapping is ours until it is dropped, and that calls `unkeep`.
        unsafe { registry::keep_from_children(self.range) }
    }

    /// The offsets that the parent allocates jobs from.
    pub(super) fn payloads(&self) -> Range {
        self.payloads
    }

    /// The offsets of a seat's heap.
    pub(super) fn heap(&self, seat: usize) -> Range {
        assert!(seat < self.seats, "a seat of this pool");
        Range { start: self.heaps_at + seat * self.heap_bytes, len: self.heap_bytes }
    }

    /// The seat in whose heap an offset lies.
    pub(super) fn heap_owner(&self, offset: usize) -> Option<usize> {
        let seat = offset.checked_sub(self.heaps_at)? / self.heap_bytes;
        (seat < self.seats).then_some(seat)
    }

    fn at<T>(&self, offset: usize) -> *const T {
        std::ptr::with_exposed_provenance(self.range.start + offset)
    }

    /// The words that the whole pool shares.
    pub(super) fn board(&self) -> &Board {
        // SAFETY: the mapping begins with a board, aligned to a page, and lives as long as `self`; atomics are valid
        // for any bytes.
        unsafe { &*self.at::<Board>(0) }
    }

    /// All batches.
    pub(super) fn slots(&self) -> &[Slot] {
        // SAFETY: `new` left room for so many, aligned to a page; atomics are valid for any bytes.
        unsafe { std::slice::from_raw_parts(self.at(self.slots_at), SLOTS) }
    }

    /// All seats.
    pub(super) fn seats(&self) -> &[Seat] {
        // SAFETY: `new` left room for so many, aligned to a page; atomics are valid for any bytes.
        unsafe { std::slice::from_raw_parts(self.at(self.seats_at), self.seats) }
    }

    /// The entries of the ring, and behind them the slots' places in it.
    fn ring_and_places(&self) -> (&[AtomicU32], &[AtomicU32]) {
        // SAFETY: `new` left room for so many, aligned to a page; atomics are valid for any bytes.
        let words = unsafe { std::slice::from_raw_parts(self.at(self.ring_at), RING + SLOTS) };
        words.split_at(RING)
    }

    /// The queue over these words.
    pub(super) fn queue<'r>(&'r self) -> Queue<'r, AtomicU32, AtomicU64, impl Fn(usize) -> &'r AtomicU32> {
        let board = self.board();
        let slots = self.slots();
        let (ring, places) = self.ring_and_places();
        Queue {
            head: &board.head.0,
            tail: &board.tail.0,
            ring,
            places,
            // The mask keeps a number that a stray write spoiled inside.
            state: move |slot: usize| &slots[slot & (SLOTS - 1)].state,
            bells: &board.signals[..self.seats],
            idle: &board.idle[..self.seats.div_ceil(64)],
        }
    }

    /// A 64-bit word of the payloads or a heap.
    pub(super) fn word(&self, offset: usize) -> Option<&AtomicU64> {
        let fits =
            offset.is_multiple_of(8) && offset >= self.payloads.start && offset.checked_add(8)? <= self.range.len;
        // SAFETY: inside the mapping and aligned; words at these offsets are accessed as atomics only.
        fits.then(|| unsafe { &*self.at::<AtomicU64>(offset) })
    }

    /// The first of `len` bytes of the payloads or a heap.
    pub(super) fn bytes_at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        let fits = offset >= self.payloads.start && offset.checked_add(len)? <= self.range.len;
        fits.then(|| self.at::<u8>(offset).cast_mut())
    }

    /// Bytes that nobody writes while they are lent.
    ///
    /// # Safety
    /// The state of the slot or block that the bytes belong to says that they are final, and stays so for `'a`.
    pub(super) unsafe fn read<'a>(&self, offset: usize, len: usize) -> Option<&'a [u8]> {
        let start = self.bytes_at(offset, len)?;
        // SAFETY: inside the mapping, which the caller keeps; initialised (a memfd holds zeroes); final says the caller.
        Some(unsafe { std::slice::from_raw_parts(start, len) })
    }

    /// Gives the memory of whole pages there back to the system, if they are many: they read as zeroes then.
    ///
    /// # Safety
    /// The bytes are the caller's alone.
    pub(super) unsafe fn trim(&self, offset: usize, len: usize) {
        let page = sys::page_size();
        let first = page.round_up(offset).unwrap_or(usize::MAX);
        let end = page.round_down(offset.saturating_add(len).min(self.range.len));
        if end.saturating_sub(first) < TRIM_MIN {
            return;
        }
        let range = Range { start: self.range.start + first, len: end - first };
        // SAFETY: it is inside the mapping of a file that is only ours, and the caller's alone.
        let _stays = unsafe { map::punch(range) };
    }

    /// Copies bytes in; false when they do not fit there.
    ///
    /// # Safety
    /// The bytes at the place are the caller's alone.
    pub(super) unsafe fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        let Some(start) = self.bytes_at(offset, bytes.len()) else { return false };
        // SAFETY: inside the mapping and the caller's alone, so they do not overlap with what a reference lends.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len()) };
        true
    }

    /// Tells the thread that waits for a slot, and those who wait for any.
    pub(super) fn tell(&self, slot: &Slot) {
        let bells = &self.board().bells;
        // The state was stored before; who sets another bell looks at the state after.
        fence(Ordering::SeqCst);
        bells[slot.bell.load(Ordering::Acquire) as usize % BELLS].ring();
        bells[0].ring_if_heard();
    }

    /// Tells everybody.
    pub(super) fn tell_all(&self) {
        self.board().bells.iter().for_each(Bell::ring);
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        registry::unkeep(self.range);
        // SAFETY: the range is ours; what is lent from it holds the region.
        let unmapped = unsafe { map::unmap(self.range) };
        debug_assert!(unmapped.is_ok());
    }
}
