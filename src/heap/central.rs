//! Units: who has which. Everything here is done under the lock.
//!
//! Memory that is given back stays mapped and *dirty* for a while, because it is likely to be wanted again; see [`decay`] for when the kernel gets the pages.
//!
//! # Safety
//! A unit is given to one taker until it is released. Pages are given up only of units that nobody has.
#![expect(unsafe_code, reason = "pages of free units are given up")]

use super::class::UNIT;
use super::decay;
use super::lock::HeapGuard;
use super::metadata::{self, Bits, Chunk, ChunkState, NOBODY, UNITS, Unit};
use super::state::KINDS;
use crate::sys::map::{self, Range};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// For each kind, no chunk below this number has a free unit.
static FIRST_FREE: [AtomicU32; KINDS] = [const { AtomicU32::new(0) }; KINDS];
/// No chunk below this number is absent.
static FIRST_ABSENT: AtomicU32 = AtomicU32::new(0);
/// Units in use.
static USED: AtomicUsize = AtomicUsize::new(0);

/// The first place from `at` on whose bit is `value`, or [`UNITS`].
pub(super) fn next(bits: &Bits, value: bool, at: u32) -> u32 {
    let mut word = at as usize / 64;
    let mut mask = u64::MAX << (at % 64);
    while word < bits.len() {
        let now = bits[word].load(Ordering::Relaxed);
        let found = (if value { now } else { !now }) & mask;
        if found != 0 {
            return word as u32 * 64 + found.trailing_zeros();
        }
        (word, mask) = (word + 1, u64::MAX);
    }
    UNITS
}

/// Sets or clears bits `at..at + count`, and counts those that changed.
pub(super) fn put(bits: &Bits, value: bool, at: u32, count: u32) -> u32 {
    let mut changed = 0;
    for place in at..at + count {
        let (word, bit) = (&bits[place as usize / 64], 1u64 << (place % 64));
        let now = word.load(Ordering::Relaxed);
        changed += u32::from((now & bit != 0) != value);
        word.store(if value { now | bit } else { now & !bit }, Ordering::Relaxed);
    }
    changed
}

/// Units that were taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct TakenUnits {
    pub(super) first: Unit,
    /// The units may hold something.
    pub(super) dirty: bool,
}

/// Takes neighbouring units, the first at a multiple of `align` units. `None` where there is no memory.
pub(super) fn take(count: u32, align: u32, kind: u8, held: &HeapGuard) -> Option<TakenUnits> {
    purge_unwanted(held);
    // Under a limit on addresses, those that hold nothing may be what is missing.
    take_once(count, align, kind, held).or_else(|| unmap_unused(held).then(|| take_once(count, align, kind, held))?)
}

fn take_once(count: u32, align: u32, kind: u8, held: &HeapGuard) -> Option<TakenUnits> {
    if !metadata::settle(held) {
        return None;
    }
    let hint = FIRST_FREE.get(usize::from(kind))?;
    let mut full_so_far = true;
    for number in hint.load(Ordering::Relaxed)..metadata::chunks() {
        let chunk = metadata::chunk(number);
        if chunk.state() != ChunkState::Open || chunk.kind.load(Ordering::Relaxed) != kind {
            continue;
        }
        let free = chunk.free.load(Ordering::Relaxed);
        if free > 0 && full_so_far {
            full_so_far = false;
            hint.store(number, Ordering::Relaxed);
        }
        if free < count || chunk.run_max.load(Ordering::Relaxed) < count {
            continue;
        }
        if let Some(taken) = take_from(number, count, align, held) {
            return Some(taken);
        }
    }
    let number = open_one(kind, held)?;
    if full_so_far {
        hint.store(number, Ordering::Relaxed);
    } else {
        hint.fetch_min(number, Ordering::Relaxed);
    }
    take_from(number, count, align, held)
}

fn open_one(kind: u8, held: &HeapGuard) -> Option<u32> {
    // A chunk that is somebody else's is passed over.
    loop {
        let number = first_absent(held);
        if metadata::open(number, kind, held) {
            return Some(number);
        }
        if number >= metadata::chunks() || metadata::chunk(number).state() != ChunkState::Foreign {
            return None;
        }
    }
}

/// The lowest chunk that is absent, which may be the one behind the last.
pub(super) fn first_absent(_held: &HeapGuard) -> u32 {
    let from = FIRST_ABSENT.load(Ordering::Relaxed);
    let found = (from..metadata::chunks()).find(|&number| metadata::chunk(number).state() == ChunkState::Absent);
    let found = found.unwrap_or_else(|| metadata::chunks().max(from));
    FIRST_ABSENT.store(found, Ordering::Relaxed);
    found
}

fn take_from(number: u32, count: u32, align: u32, held: &HeapGuard) -> Option<TakenUnits> {
    let chunk = metadata::chunk(number);
    let Some(place) = find(chunk, count, align) else {
        if align == 1 {
            chunk.run_max.store(count - 1, Ordering::Relaxed);
        }
        return None;
    };
    if !metadata::map_units(number, place + count, held) {
        return None;
    }
    Some(occupy(chunk, number, place, count, held))
}

/// Free units of a chunk that are in a row.
fn find(chunk: &Chunk, count: u32, align: u32) -> Option<u32> {
    if count == 1 && align == 1 {
        // One that has pages already, if there is one below the first that has none.
        let words = chunk.used.iter().zip(&chunk.dirty).enumerate();
        return words.into_iter().find_map(|(at, (used, dirty))| {
            let free = !used.load(Ordering::Relaxed);
            let best =
                if free & dirty.load(Ordering::Relaxed) != 0 { free & dirty.load(Ordering::Relaxed) } else { free };
            (free != 0).then(|| at as u32 * 64 + best.trailing_zeros())
        });
    }
    let mut at = 0;
    loop {
        let free = next(&chunk.used, false, at);
        let start = free.checked_next_multiple_of(align).filter(|start| start + count <= UNITS)?;
        let end = next(&chunk.used, true, start);
        if end >= start + count {
            return Some(start);
        }
        at = end.max(start + 1);
    }
}

/// Marks free units as taken.
pub(super) fn occupy(chunk: &Chunk, number: u32, place: u32, count: u32, held: &HeapGuard) -> TakenUnits {
    put(&chunk.used, true, place, count);
    let dirty = put_dirty(chunk, false, place, count, held);
    chunk.free.fetch_sub(count, Ordering::Relaxed);
    USED.fetch_add(count as usize, Ordering::Relaxed);
    let dirty = dirty > 0 || chunk.filed.load(Ordering::Relaxed) != 0;
    TakenUnits { first: metadata::unit(number, place), dirty }
}

/// Sets or clears bits of dirty units, and counts those that changed. Those of a file are in no count, as the kernel cannot have them.
fn put_dirty(chunk: &Chunk, value: bool, at: u32, count: u32, held: &HeapGuard) -> u32 {
    let changed = put(&chunk.dirty, value, at, count);
    if chunk.filed.load(Ordering::Relaxed) == 0 {
        let note = if value { decay::add } else { decay::remove };
        note(chunk.kind.load(Ordering::Relaxed), changed, held);
    }
    changed
}

/// A file is about to be behind a chunk.
pub(super) fn note_filed(chunk: &Chunk, held: &HeapGuard) {
    if chunk.filed.load(Ordering::Relaxed) == 0 {
        let dirty = chunk.dirty.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum();
        decay::remove(chunk.kind.load(Ordering::Relaxed), dirty, held);
        chunk.filed.store(1, Ordering::Relaxed);
    }
}

/// Gives units back that nobody has a block of any more.
pub(super) fn release(first: Unit, count: u32, held: &HeapGuard) {
    let (number, place) = first.place();
    release_clean(first, count, held);
    put_dirty(metadata::chunk(number), true, place, count, held);
    purge_unwanted(held);
}

/// Gives units back that hold nothing.
pub(super) fn release_clean(first: Unit, count: u32, _held: &HeapGuard) {
    first.slab().owner.store(NOBODY, Ordering::Release);
    let (number, place) = first.place();
    let chunk = metadata::chunk(number);
    put(&chunk.used, false, place, count);
    chunk.free.fetch_add(count, Ordering::Relaxed);
    chunk.run_max.store(UNITS, Ordering::Relaxed);
    if let Some(hint) = FIRST_FREE.get(usize::from(chunk.kind.load(Ordering::Relaxed))) {
        hint.fetch_min(number, Ordering::Relaxed);
    }
    USED.fetch_sub(count as usize, Ordering::Relaxed);
}

/// Tells whether free memory is to be given back, or it is time to look. Needs no lock.
pub(super) fn purge_is_due() -> bool {
    decay::is_due(USED.load(Ordering::Relaxed))
}

/// Gives some of the memory to the kernel that nobody wanted for a while.
pub(super) fn purge_unwanted(held: &HeapGuard) {
    if !purge_is_due() {
        return;
    }
    let Some((kind, units)) = decay::unwanted(USED.load(Ordering::Relaxed), held) else { return };
    // From the end, as units are taken from the beginning.
    let of_kind = |number: &u32| {
        let chunk = metadata::chunk(*number);
        chunk.state() == ChunkState::Open && chunk.kind.load(Ordering::Relaxed) == kind
    };
    let chunks = (0..metadata::chunks()).rev().filter(of_kind);
    let given = chunks.map(|number| purge_some(number, units, held)).find(|&given| given > 0);
    decay::note_given(kind, given.unwrap_or(0), held);
}

/// Gives all dirty units to the kernel.
pub(super) fn purge_all(held: &HeapGuard) {
    for number in 0..metadata::chunks() {
        if metadata::chunk(number).state() == ChunkState::Open {
            purge(number, held);
        }
    }
}

/// Gives the pages of a chunk's dirty units to the kernel.
pub(super) fn purge(number: u32, held: &HeapGuard) {
    purge_some(number, UNITS, held);
}

/// The same of at most so many of them, and how many there were.
fn purge_some(number: u32, most: u32, held: &HeapGuard) -> u32 {
    let chunk = metadata::chunk(number);
    if chunk.filed.load(Ordering::Relaxed) != 0 {
        return 0;
    }
    let (mut at, mut given) = (next(&chunk.dirty, true, 0), 0);
    while at < UNITS && given < most {
        let end = next(&chunk.dirty, false, at).min(at + most - given);
        let range = Range { start: metadata::unit(number, at).start(), len: (end - at) as usize * UNIT };
        // SAFETY: a dirty unit is a free one, and the lock is held.
        if unsafe { map::drop_private_pages(range) }.is_ok() {
            given += put_dirty(chunk, false, at, end - at, held);
        }
        at = next(&chunk.dirty, true, end);
    }
    given
}

/// Calls `each` for runs of a chunk's dirty units, which are dirty no more.
pub(super) fn clean(number: u32, held: &HeapGuard, mut each: impl FnMut(Range)) {
    let chunk = metadata::chunk(number);
    let mut at = next(&chunk.dirty, true, 0);
    while at < UNITS {
        let end = next(&chunk.dirty, false, at);
        each(Range { start: metadata::unit(number, at).start(), len: (end - at) as usize * UNIT });
        put_dirty(chunk, false, at, end - at, held);
        at = next(&chunk.dirty, true, end);
    }
}

/// Unmaps what lies behind the last unit in use of each chunk; false where there is nothing.
pub(super) fn unmap_unused(held: &HeapGuard) -> bool {
    let mut any = false;
    for number in 0..metadata::chunks() {
        let chunk = metadata::chunk(number);
        let words = chunk.used.iter().enumerate().rev();
        let last = words.map(|(at, word)| (at as u32 + 1) * 64 - word.load(Ordering::Relaxed).leading_zeros());
        let end = last.zip(chunk.used.iter().rev()).find(|(_, word)| word.load(Ordering::Relaxed) != 0);
        let (end, mapped) = (end.map_or(0, |(end, _)| end), chunk.mapped.load(Ordering::Relaxed));
        if chunk.state() != ChunkState::Open || end >= mapped {
            continue;
        }
        let range = Range { start: metadata::unit(number, end).start(), len: (mapped - end) as usize * UNIT };
        // SAFETY: nobody has a unit behind the last one in use, and the lock is held.
        if unsafe { map::unmap(range) }.is_ok() {
            any = true;
            put_dirty(chunk, false, end, mapped - end, held);
            chunk.mapped.store(end, Ordering::Relaxed);
            if end == 0 {
                chunk.set_state(ChunkState::Absent, held);
                FIRST_ABSENT.fetch_min(number, Ordering::Relaxed);
            }
        }
    }
    any
}

/// Units of an open chunk that are in use: those behind what is mapped may be marked because they are somebody else's.
pub(super) fn used_of(chunk: &Chunk) -> u32 {
    let mapped = chunk.mapped.load(Ordering::Relaxed);
    let words = chunk.used.iter().zip((0..UNITS).step_by(64));
    words.map(|(word, at)| (word.load(Ordering::Relaxed) & below(mapped.saturating_sub(at))).count_ones()).sum()
}

/// The first so many bits of a word.
fn below(count: u32) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// A chunk is frozen, of which so many units were in use.
pub(super) fn forget(used: usize, _held: &HeapGuard) {
    USED.fetch_sub(used, Ordering::Relaxed);
}

/// Chunks of an image that is gone and that nobody knows any more are absent: units and spans may be made there again.
pub(super) fn make_gone_absent(numbers: std::ops::Range<u32>, held: &HeapGuard) {
    FIRST_ABSENT.fetch_min(numbers.start, Ordering::Relaxed);
    for number in numbers {
        // Units that are not made anew belong to nobody.
        (0..UNITS).for_each(|place| metadata::unit(number, place).slab().owner.store(NOBODY, Ordering::Relaxed));
        metadata::chunk(number).span.store(0, Ordering::Relaxed);
        metadata::chunk(number).set_state(ChunkState::Absent, held);
    }
}

/// Chunks of huge allocations have so many units more in use, or fewer.
pub(super) fn count_huge(taken: usize, given_back: usize, _held: &HeapGuard) {
    USED.fetch_add(taken, Ordering::Relaxed);
    USED.fetch_sub(given_back, Ordering::Relaxed);
}

/// Chunks of a huge allocation of so many bytes, of which nothing is mapped any more, are absent.
pub(super) fn make_absent(first: u32, count: u32, bytes: usize, held: &HeapGuard) {
    metadata::unit(first, 0).slab().owner.store(NOBODY, Ordering::Release);
    (first..first + count).for_each(|number| metadata::chunk(number).set_state(ChunkState::Absent, held));
    FIRST_ABSENT.fetch_min(first, Ordering::Relaxed);
    count_huge(0, bytes.div_ceil(UNIT), held);
}

/// Marks those of a huge allocation's chunks absent that come after its first `count`.
pub(super) fn make_rest_absent(first: u32, count: u32, span: u32, held: &HeapGuard) {
    (first + count..first + span).for_each(|number| metadata::chunk(number).set_state(ChunkState::Absent, held));
    FIRST_ABSENT.fetch_min(first + count, Ordering::Relaxed);
    metadata::chunk(first).span.store(count, Ordering::Relaxed);
}

/// Calls `each` for the first unit of each slab and span of a chunk.
pub(super) fn heads(number: u32, mut each: impl FnMut(Unit)) {
    let chunk = metadata::chunk(number);
    for place in 0..UNITS {
        let is_used = chunk.used[place as usize / 64].load(Ordering::Relaxed) >> (place % 64) & 1 == 1;
        let unit = metadata::unit(number, place);
        // Units inside a span or slab have nobody in their header.
        if is_used && unit.slab().owner.load(Ordering::Relaxed) != NOBODY {
            each(unit);
        }
    }
}
