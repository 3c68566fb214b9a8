//! The memory that parent, zygote and workers share: one memfd, mapped before the zygote is forked, so that it lies at
//! the same addresses in all of them.
//!
//! ```text
//! board | ring and places | slots | worker records | payloads (the parent allocates and frees) | a heap for each worker (heap.rs)
//! ```
//! The file is sparse: what nobody touches takes no memory.
//!
//! # Safety
//! Board, slots and worker records are atomics only (protocol/board.rs), valid for whatever bytes lie there. Bytes of payloads and
//! heaps are lent out by offset, after a check of the bounds; who may read or write which bytes is settled by the
//! slot's state (protocol/queue.rs) and the block's (heap.rs).
#![expect(unsafe_code, reason = "shared memory is looked at by address")]

use crate::arena::registry;
use crate::error::{Error, Result};
use crate::pool::protocol::board::{BatchSlot, Board, EVENT_COUNTS, EventCount, RING, SLOTS, WorkerRecord};
use crate::pool::protocol::queue::Queue;
use crate::sys::map::{self, Access, Range};
use crate::sys::{self, memfd};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Less memory than this is not worth a system call.
pub(crate) const TRIM_MIN: usize = 256 << 10;

/// The mapping.
#[derive(Debug)]
pub(crate) struct Region {
    range: Range,
    workers: usize,
    ring_at: usize,
    slots_at: usize,
    workers_at: usize,
    payloads: Range,
    heaps_at: usize,
    heap_bytes: usize,
}

impl Region {
    /// Room for `workers` workers, `payload_bytes` of jobs and `heap_bytes` of results for each worker.
    pub(crate) fn new(name: &str, workers: usize, payload_bytes: usize, heap_bytes: usize) -> Result<Self> {
        let page = sys::page_size();
        let too_large = || Error::invalid("the pool's capacities are too large");
        let up = |bytes: usize| page.round_up(bytes).ok_or_else(too_large);
        let ring_at = up(size_of::<Board>())?;
        let slots_at = ring_at + up((RING + SLOTS) * size_of::<AtomicU32>())?;
        let workers_at = slots_at + up(SLOTS * size_of::<BatchSlot>())?;
        let payloads_at = workers_at + up(workers * size_of::<WorkerRecord>())?;
        let payload_bytes = up(payload_bytes)?;
        let heaps_at = payloads_at.checked_add(payload_bytes).ok_or_else(too_large)?;
        let heap_bytes = up(heap_bytes)?;
        let len =
            heap_bytes.checked_mul(workers).and_then(|heaps| heaps.checked_add(heaps_at)).ok_or_else(too_large)?;
        let len = isize::try_from(len).map_err(|_| too_large())? as usize;
        let file = memfd::create(&format!("cowbell-pool:{name}"))?;
        memfd::set_len(file.as_fd(), len as u64)?;
        let hint = "lower PoolBuilder::result_capacity, or the number of workers";
        let range = map::reserve(len, page.bytes()).map_err(|e| e.with_hint(hint))?;
        // SAFETY: the range was just reserved and nobody was given an address in it.
        let mapped = unsafe { map::map_shared_at(range, Access::ReadWrite, file.as_fd(), 0) };
        let payloads = Range { start: payloads_at, len: payload_bytes };
        let region = Self { range, workers, ring_at, slots_at, workers_at, payloads, heaps_at, heap_bytes };
        mapped.map_err(|e| Error::os("mmap(pool)", e).with_hint(hint))?;
        Ok(region)
    }

    /// From now on processes that this one forks do not have it: what is lent here as `&[u8]` or `&mut [T]` must not be
    /// written there.
    pub(crate) fn keep_from_children(&self) -> Result<()> {
        // SAFETY: the mapping is ours until it is dropped, and that calls `unkeep`.
        unsafe { registry::keep_from_children(self.range) }
    }

    /// The offsets that the parent allocates jobs from.
    pub(crate) fn payloads(&self) -> Range {
        self.payloads
    }

    /// The offsets of a worker's heap.
    pub(crate) fn heap(&self, index: usize) -> Range {
        assert!(index < self.workers, "a worker of this pool");
        Range { start: self.heaps_at + index * self.heap_bytes, len: self.heap_bytes }
    }

    /// The index of the worker in whose heap an offset lies.
    pub(crate) fn heap_owner(&self, offset: usize) -> Option<usize> {
        let index = offset.checked_sub(self.heaps_at)? / self.heap_bytes;
        (index < self.workers).then_some(index)
    }

    fn at<T>(&self, offset: usize) -> *const T {
        std::ptr::with_exposed_provenance(self.range.start + offset)
    }

    /// The words that the whole pool shares.
    pub(crate) fn board(&self) -> &Board {
        // SAFETY: the mapping begins with a board, aligned to a page, and lives as long as `self`; atomics are valid
        // for any bytes.
        unsafe { &*self.at::<Board>(0) }
    }

    /// All batches.
    pub(crate) fn slots(&self) -> &[BatchSlot] {
        // SAFETY: `new` left room for so many, aligned to a page; atomics are valid for any bytes.
        unsafe { std::slice::from_raw_parts(self.at(self.slots_at), SLOTS) }
    }

    /// The records of all workers, by index.
    pub(crate) fn workers(&self) -> &[WorkerRecord] {
        // SAFETY: `new` left room for so many, aligned to a page; atomics are valid for any bytes.
        unsafe { std::slice::from_raw_parts(self.at(self.workers_at), self.workers) }
    }

    /// The entries of the ring, and behind them the slots' places in it.
    fn ring_and_places(&self) -> (&[AtomicU32], &[AtomicU32]) {
        // SAFETY: `new` left room for so many, aligned to a page; atomics are valid for any bytes.
        let words = unsafe { std::slice::from_raw_parts(self.at(self.ring_at), RING + SLOTS) };
        words.split_at(RING)
    }

    /// The queue over these words.
    pub(crate) fn queue<'r>(&'r self) -> Queue<'r, AtomicU32, AtomicU64, impl Fn(usize) -> &'r AtomicU32> {
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
            wakes: &board.worker_wakes[..self.workers],
            idle: &board.idle[..self.workers.div_ceil(64)],
        }
    }

    /// A 64-bit word of the payloads or a heap.
    pub(crate) fn word(&self, offset: usize) -> Option<&AtomicU64> {
        let fits =
            offset.is_multiple_of(8) && offset >= self.payloads.start && offset.checked_add(8)? <= self.range.len;
        // SAFETY: inside the mapping and aligned; words at these offsets are accessed as atomics only.
        fits.then(|| unsafe { &*self.at::<AtomicU64>(offset) })
    }

    /// The first of `len` bytes of the payloads or a heap.
    pub(crate) fn bytes_at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        let fits = offset >= self.payloads.start && offset.checked_add(len)? <= self.range.len;
        fits.then(|| self.at::<u8>(offset).cast_mut())
    }

    /// Bytes that nobody writes while they are lent.
    ///
    /// # Safety
    /// The state of the slot or block that the bytes belong to says that they are final, and stays so for `'a`.
    pub(crate) unsafe fn read<'a>(&self, offset: usize, len: usize) -> Option<&'a [u8]> {
        let start = self.bytes_at(offset, len)?;
        // SAFETY: inside the mapping, which the caller keeps; initialised (a memfd holds zeroes); final says the caller.
        Some(unsafe { std::slice::from_raw_parts(start, len) })
    }

    /// Gives the memory of whole pages there back to the system, if they are many: they read as zeroes then.
    ///
    /// # Safety
    /// The bytes are the caller's alone.
    pub(crate) unsafe fn trim(&self, offset: usize, len: usize) {
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
    pub(crate) unsafe fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        let Some(start) = self.bytes_at(offset, bytes.len()) else { return false };
        // SAFETY: inside the mapping and the caller's alone, so they do not overlap with what a reference lends.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len()) };
        true
    }

    /// Tells the thread that waits for a slot, and those who wait for any.
    pub(crate) fn tell(&self, slot: &BatchSlot) {
        let event_counts = &self.board().event_counts;
        // The state was stored before; who sets another waiter looks at the state after.
        fence(Ordering::SeqCst);
        event_counts[slot.waiter.load(Ordering::Acquire) as usize % EVENT_COUNTS].notify();
        event_counts[0].notify_if_awaited();
    }

    /// Tells everybody.
    pub(crate) fn tell_all(&self) {
        self.board().event_counts.iter().for_each(EventCount::notify);
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
