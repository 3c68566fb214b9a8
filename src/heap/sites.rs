//! The calls that made an allocation, kept apart from the heap for whoever asks.
//!
//! The record lies in shared memory, of which fork copies no page table. A child has the same memory, and would change what its parent reads there, under a lock
//! that is another one in each of them. So it is the process's alone that records: all others that come from it neither record nor read anything here, from
//! their first instruction on ([`OwnPage`]). What a freeze takes along is the image's from then on.
//!
//! # Safety
//! Memory of a [`Mapped`] is mapped for its collection, and unmapped when that gives it up. The page of [`OWN`] is never given up.
#![expect(unsafe_code, reason = "an allocator for the record, which must not allocate from what it records")]

use super::claim;
use super::handle::{Heap, not_in_use};
use super::hot::{HOT, hot};
use crate::arena::AllocationTable;
use crate::error::{Error, Result};
use crate::sys::map::{self, Range};
use crate::sys::wipe_on_fork::OwnPage;
use crate::sys::{Errno, page_size, unwind};
use allocator_api2::alloc::{AllocError, Allocator, Layout};
use allocator_api2::collections::TryReserveError;
use hashbrown::{DefaultHashBuilder, HashMap};
use std::hash::BuildHasher;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

type List<T> = allocator_api2::vec::Vec<T, Mapped>;
type Map<K, V> = HashMap<K, V, DefaultHashBuilder, Mapped>;

/// Calls that are kept of each allocation; the first few are the allocator's own.
const CALLS_MAX: usize = 32;

/// One in so many allocations is recorded; 0 while none is.
static EVERY: AtomicU32 = AtomicU32::new(0);
/// Allocations since.
static SEEN: AtomicUsize = AtomicUsize::new(0);
/// A page of the process that records; null before it does.
static OWN: AtomicPtr<OwnPage> = AtomicPtr::new(null_mut());
/// Nothing is allocated from the heap, nor given back to it, while this is locked.
static RECORD: Mutex<Option<Record>> = Mutex::new(None);

/// Tells whether any allocation is to be recorded.
#[inline]
pub(super) fn are_recorded() -> bool {
    EVERY.load(Ordering::Relaxed) != 0
}

/// One in so many allocations is recorded; 0 while none is.
pub(super) fn every() -> u32 {
    EVERY.load(Ordering::Relaxed)
}

impl Heap {
    /// Records the calls that lead to one in `every` allocations from now on (1: to each), for good, in this process and not in its children, which cannot
    /// record at all. Reports of children then name for an object on a copied page where it was allocated: see [`Report::explain`](crate::report::Report::explain).
    ///
    /// Each allocation that is recorded costs a walk of its stack, by the tables that compilers write for panics, and memory for as long as it lives; each that is
    /// not, and each free, a look.
    ///
    /// # Errors
    /// Invalid when `Heap` is not the global allocator, for 0, and in a process that was forked from one that records. ENOMEM.
    pub fn record_sites(every: u32) -> Result<()> {
        if !Self::is_in_use() {
            return Err(not_in_use());
        }
        if every == 0 {
            return Err(Error::invalid("one in 0 allocations cannot be recorded"));
        }
        // Before the lock, which a thread that this process does not have may hold for ever.
        if !own()?.is_own() {
            let forked = "allocations are recorded in the process that this one was forked from";
            return Err(Error::invalid(forked).with_hint("record in one of the two only"));
        }
        // The unwinder does here what it does only once, and not within an allocation.
        unwind::callers(&mut [0; 1]);
        with(|record| {
            record.get_or_insert_with(Record::new);
        });
        EVERY.store(every, Ordering::Release);
        Ok(())
    }
}

fn with<R>(work: impl FnOnce(&mut Option<Record>) -> R) -> R {
    work(&mut RECORD.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The page of the process that records, which is this one where there is none yet.
///
/// # Errors
/// ENOMEM.
fn own() -> Result<&'static OwnPage> {
    loop {
        if let Some(own) = known_own() {
            return Ok(own);
        }
        let made = OwnPage::new().map_err(|e| Error::os("madvise(MADV_WIPEONFORK)", e))?;
        let made = Box::into_raw(hot(|| Box::new(made)));
        // No lock: a child that was forked meanwhile might wait for it for ever.
        if OWN.compare_exchange(null_mut(), made, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: it was made above, and nobody else has seen it.
            drop(unsafe { Box::from_raw(made) });
        }
    }
}

fn known_own() -> Option<&'static OwnPage> {
    // SAFETY: null, or a box that is never given up.
    unsafe { OWN.load(Ordering::Acquire).as_ref() }
}

/// Tells whether this process records. In a child the lock may be held for ever, by a thread that it does not have.
fn is_this_process() -> bool {
    known_own().is_some_and(OwnPage::is_own)
}

/// An allocation was made.
#[cold]
#[inline(never)]
pub(super) fn note(address: usize, len: usize) {
    let every = EVERY.load(Ordering::Relaxed) as usize;
    if address == 0 || claim::kind() == HOT || !is_this_process() {
        return;
    }
    if SEEN.fetch_add(1, Ordering::Relaxed).checked_rem(every) != Some(0) {
        return;
    }
    let mut calls = [0; CALLS_MAX];
    let count = unwind::callers(&mut calls);
    with(|record| record.as_mut()?.add(address, len, calls.get(..count)?));
}

/// An allocation has another length where it was.
#[cold]
#[inline(never)]
pub(super) fn note_len(address: usize, len: usize) {
    if is_this_process() {
        with(|record| record.as_mut()?.live.get_mut(&address).map(|entry| entry.0 = len));
    }
}

/// An allocation is about to be given up.
#[cold]
#[inline(never)]
pub(super) fn forget(address: usize) {
    if is_this_process() {
        with(|record| record.as_mut()?.live.remove(&address));
    }
}

/// [`forget`] of an allocation that may stay after all: then what is returned is [put back](put_back).
pub(super) fn take(address: usize) -> Option<Known> {
    if is_this_process() { with(|record| record.as_mut()?.live.remove(&address)) } else { None }
}

/// An allocation that was taken stays where it is.
pub(super) fn put_back(address: usize, known: Known) {
    with(|record| {
        let live = &mut record.as_mut()?.live;
        // Without memory nothing is known of it.
        live.try_reserve(1).ok()?;
        live.insert(address, known)
    });
}

/// The allocations that are recorded in a range which is about to be frozen.
///
/// # Errors
/// ENOMEM.
pub(super) fn table(range: Range) -> Result<AllocationTable> {
    if !are_recorded() || !is_this_process() {
        return Ok(AllocationTable::default());
    }
    let mut found: List<(usize, usize, u32)> = List::new_in(Mapped);
    let mut calls: List<u64> = List::new_in(Mapped);
    let mut ends: List<usize> = List::new_in(Mapped);
    with(|record| {
        let Some(record) = record else { return Ok(()) };
        let inside = || record.live.iter().filter(|(address, _)| range.contains(**address));
        found.try_reserve_exact(inside().count())?;
        calls.try_reserve_exact(record.calls.len())?;
        ends.try_reserve_exact(record.ends.len())?;
        found.extend(inside().map(|(address, &(len, stack))| (address - range.start, len, stack)));
        calls.extend_from_slice(&record.calls);
        ends.extend_from_slice(&record.ends);
        Ok(())
    })
    .map_err(|_: TryReserveError| no_memory())?;
    found.sort_unstable();
    // Stacks of allocations that are gone, or lie elsewhere, are left out.
    let mut numbers: List<Option<u32>> = List::new_in(Mapped);
    numbers.try_reserve_exact(ends.len()).map_err(|_| no_memory())?;
    numbers.resize(ends.len(), None);
    let mut stacks = Vec::new();
    for (_, _, stack) in &mut found {
        let at = *stack as usize;
        let Some(number) = numbers.get_mut(at) else { continue };
        *stack = *number.get_or_insert_with(|| {
            stacks.push(stack_of(&calls, &ends, at).unwrap_or_default().to_vec());
            stacks.len() as u32 - 1
        });
    }
    AllocationTable::of_stacks(&found, stacks)
}

fn no_memory() -> Error {
    Error::os("mmap(what is recorded of the heap)", Errno::NOMEM)
}

/// The calls of a stack among those of all.
fn stack_of<'a>(calls: &'a [u64], ends: &[usize], number: usize) -> Option<&'a [u64]> {
    let begin = number.checked_sub(1).map_or(Some(0), |before| ends.get(before).copied())?;
    calls.get(begin..*ends.get(number)?)
}

/// A range was frozen: what was recorded of it is the image's now.
pub(super) fn forget_all(range: Range) {
    if are_recorded() && is_this_process() {
        with(|record| record.as_mut().map(|record| record.live.retain(|address, _| !range.contains(*address))));
    }
}

/// An allocation's length, and the number of the stack that made it.
type Known = (usize, u32);

/// All that is recorded.
struct Record {
    /// By address.
    live: Map<usize, Known>,
    /// Numbers of stacks by their hashes.
    numbers: Map<u64, u32>,
    /// The calls of all stacks, one stack after the other, and where each ends.
    calls: List<u64>,
    ends: List<usize>,
}

impl Record {
    fn new() -> Self {
        Self { live: Map::default(), numbers: Map::default(), calls: List::new_in(Mapped), ends: List::new_in(Mapped) }
    }

    /// `None` where there is no memory: then nothing is known of the allocation.
    fn add(&mut self, address: usize, len: usize, calls: &[u64]) -> Option<()> {
        self.live.try_reserve(1).ok()?;
        let stack = self.number(calls)?;
        self.live.insert(address, (len, stack));
        Some(())
    }

    fn number(&mut self, calls: &[u64]) -> Option<u32> {
        let hash = self.numbers.hasher().hash_one(calls);
        if let Some(&number) = self.numbers.get(&hash)
            && self.stack(number) == Some(calls)
        {
            return Some(number);
        }
        self.calls.try_reserve(calls.len()).ok()?;
        self.ends.try_reserve(1).ok()?;
        self.numbers.try_reserve(1).ok()?;
        let number = u32::try_from(self.ends.len()).ok()?;
        self.calls.extend_from_slice(calls);
        self.ends.push(self.calls.len());
        // Of two stacks with one hash the later one is found; the other may get a second number.
        self.numbers.insert(hash, number);
        Some(number)
    }

    fn stack(&self, number: u32) -> Option<&[u64]> {
        stack_of(&self.calls, &self.ends, number as usize)
    }
}

/// Memory from the kernel, shared over fork.
#[derive(Clone, Copy, Default)]
struct Mapped;

// SAFETY: each block is a mapping of its own, at least as large as asked for, and page-aligned, which is checked to suffice. Copies are the same.
unsafe impl Allocator for Mapped {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.align() > page_size().bytes() {
            return Err(AllocError);
        }
        // An error of this crate's is an allocation, which waits for the record that is locked here.
        let len = page_size().round_up(layout.size().max(8)).ok_or(AllocError)?;
        let Range { start, .. } = map::shared(len).map_err(|_| AllocError)?;
        map::pointer_at(start).map(|at| NonNull::slice_from_raw_parts(at, layout.size())).ok_or(AllocError)
    }

    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        let len = page_size().round_up(layout.size().max(8)).unwrap_or(0);
        // SAFETY: `allocate` mapped so much there, and the collection gives it up.
        let _unmapped = unsafe { map::unmap(Range { start: block.as_ptr().expose_provenance(), len }) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_stacks_have_one_number_and_an_allocation_that_is_gone_has_none() {
        let mut record = Record::new();
        for n in 0..10_000 {
            assert!(record.add(16 * n, n, if n % 2 == 0 { &[1, 2, 3] } else { &[4] }).is_some());
        }
        assert_eq!((record.ends.as_slice(), record.calls.as_slice()), (&[3, 4][..], &[1, 2, 3, 4][..]));
        assert_eq!(record.live.get(&48), Some(&(3, 1)));
        record.live.remove(&48);
        assert_eq!((record.live.get(&48), record.stack(0)), (None, Some(&[1, 2, 3][..])));
    }
}
