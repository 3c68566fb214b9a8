//! Allocations of more than a block: spans of units, and huge ones that have chunks of their own.
//!
//! # Safety
//! A span is one allocation's alone until it is released. A huge one is mapped for itself, so it can grow in place, and its pages can move.
#![expect(unsafe_code, reason = "memory of allocations is unmapped and moved")]

use super::central::{
    count_huge, first_absent, make_absent, make_rest_absent, next, occupy, put, release, release_clean, take,
    unmap_unused,
};
use super::class::UNIT;
use super::lock::{self, HeapGuard};
use super::metadata::{self, CHUNK, ChunkState, FROZEN, NO_CLASS, NOBODY, SPAN, UNITS, Unit};
use super::reclaim;
use crate::sys::map::{self, Harmless, Range};
use crate::sys::page_size;
use std::sync::atomic::Ordering;

/// Allocations of this many units and more have chunks of their own.
const HUGE_UNITS: usize = UNITS as usize / 2;

/// Memory for one allocation of more than a block: its address, and whether it is zero.
pub(super) fn take_span(size: usize, align: usize, kind: u8) -> Option<(usize, bool)> {
    let count = size.div_ceil(UNIT);
    let held = lock::take();
    if count >= HUGE_UNITS || align > CHUNK / 4 {
        return take_huge(size, align, kind, &held).map(|address| (address, true));
    }
    let taken = take(count as u32, align.div_ceil(UNIT) as u32, kind, &held)?;
    note_span(taken.first, count as u32, size);
    Some((taken.first.start(), !taken.dirty))
}

/// Writes down what a span is.
fn note_span(first: Unit, count: u32, size: usize) {
    let slab = first.slab();
    slab.blocks.store(count, Ordering::Relaxed);
    slab.fresh.store((count as usize * UNIT - size) as u32, Ordering::Relaxed);
    slab.remote.store(0, Ordering::Relaxed);
    slab.class.store(NO_CLASS, Ordering::Relaxed);
    slab.owner.store(SPAN, Ordering::Release);
}

/// The first address of `bytes` in chunks of their own.
fn take_huge(size: usize, align: usize, kind: u8, held: &HeapGuard) -> Option<usize> {
    let again = || unmap_unused(held).then(|| take_huge_once(size, align, kind, held))?;
    take_huge_once(size, align, kind, held).or_else(again)
}

fn take_huge_once(size: usize, align: usize, kind: u8, held: &HeapGuard) -> Option<usize> {
    if !metadata::settle(held) {
        return None;
    }
    let bytes = page_size().round_up(size)?;
    let count = u32::try_from(bytes.div_ceil(CHUNK)).ok()?;
    let mut first = first_absent(held);
    loop {
        first = first_row(first, count, align)?;
        if metadata::open_huge(first, count, bytes, kind, held) {
            break;
        }
        // A unit that is somebody else's is passed over.
        let end = first.checked_add(count)?.min(metadata::chunks());
        if !(first..end).any(|number| metadata::chunk(number).state() == ChunkState::Foreign) {
            return None;
        }
    }
    let unit = metadata::unit(first, 0);
    unit.slab().blocks.store(0, Ordering::Relaxed);
    unit.slab().class.store(NO_CLASS, Ordering::Relaxed);
    unit.slab().owner.store(SPAN, Ordering::Release);
    count_huge(bytes.div_ceil(UNIT), 0, held);
    Some(unit.start())
}

/// The first of so many absent chunks in a row that begin at a multiple of `align`, at or behind `from`.
fn first_row(from: u32, count: u32, align: usize) -> Option<u32> {
    let mut first = from;
    loop {
        let start = metadata::addresses(first).start;
        let aligned = start.checked_next_multiple_of(align)?;
        first = first.checked_add(u32::try_from((aligned - start).div_ceil(CHUNK)).ok()?)?;
        let end = first.checked_add(count)?;
        let taken =
            (first..end.min(metadata::chunks())).rev().find(|&at| metadata::chunk(at).state() != ChunkState::Absent);
        match taken {
            Some(taken) => first = taken + 1,
            None => return Some(first),
        }
    }
}

/// Gives back what [`take_span`] gave, or counts it where it is frozen.
///
/// # Safety
/// The address is such a one, and nobody uses the memory any more.
pub(super) unsafe fn release_span(address: usize, size: usize) {
    // SAFETY: passed on to the caller.
    let first = unsafe { Unit::of(address) };
    if first.slab().owner.load(Ordering::Acquire) == FROZEN {
        return reclaim::note_dead(first, size);
    }
    let held = lock::take();
    let (number, _) = first.place();
    let chunk = metadata::chunk(number);
    if chunk.state() != ChunkState::Huge {
        return release(first, first.slab().blocks.load(Ordering::Relaxed), &held);
    }
    let bytes = chunk.bytes.load(Ordering::Relaxed);
    // SAFETY: the memory is this allocation's alone, and the caller gives it up.
    if unsafe { map::unmap(Range { start: address, len: bytes }) }.is_err() {
        // Splitting a mapping takes one more, and there may be no more. The addresses stay taken, the pages go.
        // SAFETY: as above.
        let _gone = unsafe { map::drop_private_pages(Range { start: address, len: bytes }) };
        return;
    }
    make_absent(number, chunk.span.load(Ordering::Relaxed), bytes, &held);
}

/// Makes a span longer or shorter where it lies; false where that cannot be.
///
/// # Safety
/// The address is of a span of `old` bytes, and nobody uses what lies behind `new`.
pub(super) unsafe fn resize_span(address: usize, old: usize, new: usize) -> bool {
    // SAFETY: passed on to the caller.
    let first = unsafe { Unit::of(address) };
    if first.slab().owner.load(Ordering::Acquire) == FROZEN {
        return new <= old;
    }
    let held = lock::take();
    let (number, place) = first.place();
    if metadata::chunk(number).state() == ChunkState::Huge {
        // SAFETY: passed on to the caller.
        return unsafe { resize_huge(number, new, &held) };
    }
    // Memory that a file is behind is told by its chunk, and stays there.
    let is_filed = metadata::chunk(number).filed.load(Ordering::Relaxed) != 0;
    if is_moved(old, new) && !is_filed {
        return false;
    }
    let (now, count) = (first.slab().blocks.load(Ordering::Relaxed), new.div_ceil(UNIT));
    let fits = |&count: &u32| place.checked_add(count).is_some_and(|end| end <= UNITS);
    let Some(count) = u32::try_from(count).ok().filter(fits) else { return false };
    if count < now {
        let rest = metadata::unit(number, place + count);
        release(rest, now - count, &held);
    } else if count > now {
        let chunk = metadata::chunk(number);
        if next(&chunk.used, true, place + now) < place + count || !metadata::map_units(number, place + count, &held) {
            return false;
        }
        occupy(chunk, number, place + now, count - now, &held);
    }
    note_span(first, count, new);
    true
}

/// # Safety
/// The chunk begins a huge allocation, of which nobody uses what lies behind `new`.
unsafe fn resize_huge(number: u32, new: usize, held: &HeapGuard) -> bool {
    let chunk = metadata::chunk(number);
    let now = chunk.bytes.load(Ordering::Relaxed);
    let room = chunk.span.load(Ordering::Relaxed) as usize * CHUNK;
    let Some(bytes) = page_size().round_up(new).filter(|&bytes| bytes <= room) else { return false };
    let start = metadata::addresses(number).start;
    // Less than half is better copied to where it fits.
    if bytes < now / 2 {
        return false;
    }
    if bytes > now && map::anonymous_at(Range { start: start + now, len: bytes - now }).is_err() {
        return false;
    }
    if bytes < now {
        // SAFETY: passed on to the caller.
        if unsafe { map::unmap(Range { start: start + bytes, len: now - bytes }) }.is_err() {
            return true;
        }
        // Whole chunks behind the end are free.
        let (span, count) = (chunk.span.load(Ordering::Relaxed), bytes.div_ceil(CHUNK) as u32);
        if count < span {
            make_rest_absent(number, count, span, held);
        }
    }
    if bytes > now {
        let _hint = map::advise(Range { start: start + now, len: bytes - now }, Harmless::HugePage);
    }
    chunk.bytes.store(bytes, Ordering::Relaxed);
    count_huge(bytes.div_ceil(UNIT), now.div_ceil(UNIT), held);
    true
}

/// Spans from this many bytes on are moved and not copied.
const MOVED_MIN: usize = 1 << 20;

/// Spans that grow to this many bytes get chunks of their own. Whoever grows something large fills it, so huge pages waste next to nothing there, and take a
/// fraction of the page faults. In other allocations they could: large ones may hardly be used.
const GROWN_MIN: usize = 16 << 20;

/// Does a span move to chunks of its own where it grows like this?
fn is_moved(old: usize, new: usize) -> bool {
    old >= MOVED_MIN && new > old && new >= GROWN_MIN
}

/// A large allocation moved to where it has room for `new` bytes, in chunks of its own: its pages move, nothing is copied. `None` where it must
/// be copied.
///
/// # Safety
/// The address is of a span of `old` bytes, and nobody uses the old address afterwards.
pub(super) unsafe fn move_to_huge(address: usize, old: usize, new: usize, align: usize) -> Option<usize> {
    // SAFETY: passed on to the caller.
    let first = unsafe { Unit::of(address) };
    let (number, place) = first.place();
    let is_large = is_moved(old, new);
    // Memory that a file is behind is told by its chunk, and stays there.
    let is_filed = metadata::chunk(number).filed.load(Ordering::Relaxed) != 0;
    if !is_large || is_filed || first.slab().owner.load(Ordering::Acquire) != SPAN {
        return None;
    }
    let held = lock::take();
    let chunk = metadata::chunk(number);
    let is_huge = chunk.state() == ChunkState::Huge;
    let units = first.slab().blocks.load(Ordering::Relaxed);
    let now = if is_huge { chunk.bytes.load(Ordering::Relaxed) } else { units as usize * UNIT };
    let to = take_huge(new.max(now), align, chunk.kind.load(Ordering::Relaxed), &held)?;
    let range = Range { start: address, len: now };
    // SAFETY: the old pages are this allocation's, the new ones were just mapped for it.
    if unsafe { map::move_pages(range, to) }.is_err() {
        // SAFETY: both ranges are as they were above, but for what the kernel moved.
        unsafe { move_back(range, to) };
        let chunk = metadata::chunk(metadata::chunk_of(to));
        let bytes = chunk.bytes.load(Ordering::Relaxed);
        // SAFETY: the new mapping was handed to nobody.
        let _gone = unsafe { map::unmap(Range { start: to, len: bytes }) };
        make_absent(metadata::chunk_of(to), chunk.span.load(Ordering::Relaxed), bytes, &held);
        return None;
    }
    let bytes = metadata::chunk(metadata::chunk_of(to)).bytes.load(Ordering::Relaxed);
    let _hint = map::advise(Range { start: to + now, len: bytes - now }, Harmless::HugePage);
    // Nothing is mapped where it was.
    if is_huge {
        make_absent(number, chunk.span.load(Ordering::Relaxed), now, &held);
    } else if map::anonymous_at(range).is_ok() {
        release_clean(first, units, &held);
    } else {
        // Somebody else was quicker, or there are no mappings left. Nobody gets these units again.
        put(&chunk.used, true, place, units);
        first.slab().owner.store(NOBODY, Ordering::Release);
    }
    Some(to)
}

/// After a move that has failed: brings back what was moved nevertheless, which are the first of several mappings. Aborts where that cannot be: what lies in
/// two places is no allocation.
///
/// # Safety
/// The range was to be moved to this address; nobody uses either.
unsafe fn move_back(range: Range, to: usize) {
    let page = page_size().bytes();
    let (mut moved, mut end) = (0, range.len / page);
    while moved < end {
        let middle = moved.midpoint(end);
        if map::is_mapped(range.start + middle * page) { end = middle } else { moved = middle + 1 }
    }
    let back = Range { start: to, len: moved * page };
    let from = Range { start: range.start, len: back.len };
    // Somebody else may have mapped something there meanwhile.
    if moved > 0 && map::anonymous_at(from).is_err() {
        std::process::abort();
    }
    // SAFETY: the fresh mapping is what is replaced, and the pages are the allocation's.
    if moved > 0 && unsafe { map::move_pages(back, from.start) }.is_err() {
        std::process::abort();
    }
}

/// Maps the rest of a chunk's addresses, if they are free.
pub(super) fn map_rest(number: u32, held: &HeapGuard) {
    let chunk = metadata::chunk(number);
    if chunk.state() == ChunkState::Open {
        metadata::map_units(number, UNITS, held);
        return;
    }
    let head = (0..=number).rev().find(|&at| metadata::chunk(at).state() == ChunkState::Huge).unwrap_or(number);
    let head = metadata::chunk(head);
    let (bytes, room) = (head.bytes.load(Ordering::Relaxed), head.span.load(Ordering::Relaxed) as usize * CHUNK);
    let end = metadata::addresses(number).end();
    let rest = Range { start: end - (room - bytes), len: room - bytes };
    if rest.len < CHUNK && map::anonymous_at(rest).is_ok() {
        head.bytes.store(room, Ordering::Relaxed);
        count_huge(room.div_ceil(UNIT), bytes.div_ceil(UNIT), held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::map::Access;

    /// Fills pages, each with its number from 1 on.
    fn fill(range: Range, page: usize) {
        for (nth, at) in (range.start..range.end()).step_by(page).enumerate() {
            // SAFETY: the range is mapped, writable and this test's alone.
            unsafe { std::ptr::with_exposed_provenance_mut::<usize>(at).write(nth + 1) };
        }
    }

    fn filled(range: Range, page: usize) -> Vec<usize> {
        // SAFETY: the range is mapped and this test's alone.
        let at = |at: usize| unsafe { std::ptr::with_exposed_provenance::<usize>(at).read() };
        (range.start..range.end()).step_by(page).map(at).collect()
    }

    #[test]
    fn what_was_moved_before_a_move_failed_is_brought_back() {
        let page = page_size().bytes();
        for moved in [0, 1, 3, 8] {
            let [range, to] = [(); 2].map(|()| map::anonymous(8 * page).expect("memory"));
            fill(range, page);
            // SAFETY: nobody refers into it.
            unsafe { map::protect(Range { start: range.start + 3 * page, len: 5 * page }, Access::Read) }
                .expect("mprotect");
            let first = Range { start: range.start, len: moved * page };
            // SAFETY: both ranges are this test's.
            let done = if moved > 0 { unsafe { map::move_pages(first, to.start) } } else { Ok(()) };
            if moved > 3 && done.is_err() {
                continue; // Before Linux 6.17 several mappings are not moved at all.
            }
            done.expect("mremap");
            // SAFETY: as `move_to_huge` calls it when a move has failed after so many pages.
            unsafe { move_back(range, to.start) };
            assert_eq!(filled(range, page), (1..=8).collect::<Vec<_>>(), "{moved} pages were moved");
        }
    }
}
