//! Freezing: everything allocated so far becomes sealed images at the same addresses.
//!
//! ```text
//!  plan     which chunks, in runs of neighbours; a memfd for each run. May allocate
//!  sweep    free blocks become zero, free units go to the kernel, no slab is allocated from any more
//!  pour     pages are written to the memfd, and it is mapped in their place, a piece at a time
//!  settle   the memfd is sealed, headers say that their blocks are frozen, and are poured themselves
//! ```
//! From the sweep on nothing is allocated. A pour that fails leaves the heap usable: pieces that were mapped show the same bytes as before, privately; free
//! blocks of before are used again once their slab has no block in use.
//!
//! Chunks do not follow each other in the file (a page lies between), so their mappings never merge, and fork copies the page tables of a chunk that this
//! process wrote to afterwards and of no other.
//!
//! # Safety
//! There is one thread, signals are blocked, and the lock is held: nobody writes while memory is moved. References stay valid, because what is mapped
//! shows the same bytes.
#![expect(unsafe_code, reason = "mappings are replaced under living references")]

use super::central;
use super::claim;
use super::class::{Class, UNIT};
use super::links::{collect, read_link};
use super::lock::{self, HeapGuard};
use super::metadata::{self, CHUNK, ChunkState, FROZEN, MARKS_END, NO_CLASS, SPAN, Unit};
use super::plan::{ChunkRun, FailedCall, stride};
use super::trailer;
use crate::error::{Error, Result};
use crate::sys::map::{self, Access, Range};
use crate::sys::pagemap::{Entry, Pagemap};
use crate::sys::{Errno, memfd, page_size};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;

/// Bytes that are in memory twice while they are poured.
const PIECE: usize = 16 << 20;

/// Sweeps, pours and settles. *Async-signal-safe.*
///
/// # Safety
/// The calling thread is the only one, its signals are blocked, and the runs are [valid](is_valid).
///
/// # Errors
/// The heap goes on as before, without the free blocks that it had.
pub(super) unsafe fn pour(runs: &[ChunkRun], kind: u8, pagemap: &Pagemap) -> Result<(), FailedCall> {
    let held = lock::take();
    claim::settled(&held, |local| {
        if local.kind.load(Ordering::Relaxed) == kind {
            local.give_up_unused(&held);
            local.forget_heads();
        } else {
            local.open_mail(Some(&held));
        }
    });
    runs.iter().flat_map(|run| run.first..run.first + run.count).for_each(|number| sweep(number, &held));
    for run in runs {
        pour_run(run, pagemap, &held)?;
    }
    for run in runs {
        trailer::write_units(run).map_err(|e| ("pwrite(what an image holds)", e))?;
        seal(run.file.as_fd())?;
    }
    for run in runs {
        (run.first..run.first + run.count).for_each(|number| settle(number, &held));
        pour_headers(run);
    }
    Ok(())
}

/// Everything of a chunk that nobody has becomes zero.
fn sweep(number: u32, held: &HeapGuard) {
    let chunk = metadata::chunk(number);
    if chunk.state() != ChunkState::Open {
        return;
    }
    let filed = chunk.filed.load(Ordering::Relaxed) != 0;
    central::heads(number, |unit| {
        let slab = unit.slab();
        let owner = slab.owner.load(Ordering::Relaxed);
        if owner == SPAN {
            let len = slab.blocks.load(Ordering::Relaxed) as usize * UNIT;
            let rest = slab.fresh.load(Ordering::Relaxed) as usize;
            clear(Range { start: unit.start() + len - rest, len: rest }, filed);
        } else if claim::is_settled(owner) {
            sweep_slab(unit, filed);
        }
    });
    central::purge(number, held);
    if filed {
        central::clean(number, held, |range| clear(range, filed));
    }
}

/// Makes a slab's free blocks zero and forgets them.
fn sweep_slab(unit: Unit, filed: bool) {
    let slab = unit.slab();
    let class = Class::numbered(slab.class.load(Ordering::Relaxed).into());
    collect(slab);
    let mut block = slab.free.swap(0, Ordering::Relaxed);
    while block != 0 {
        // SAFETY: the slab is of this thread or of nobody, so its list is whole, and it was taken.
        let next = unsafe { read_link(block) };
        clear(Range { start: block, len: class.size() }, filed);
        block = next;
    }
    let begun = slab.fresh.load(Ordering::Relaxed) as usize * class.size();
    if slab.dirty.load(Ordering::Relaxed) != 0 {
        clear(Range { start: unit.start() + begun, len: (1 << class.slab_shift()) - begun }, filed);
    }
    slab.fresh.store(slab.blocks.load(Ordering::Relaxed), Ordering::Relaxed);
    slab.next.store(0, Ordering::Relaxed);
    slab.prev.store(0, Ordering::Relaxed);
    // Should the freeze fail, the first block that is freed puts the slab into a queue again.
    slab.notice.store(class.slab_blocks() as i32 - 1, Ordering::Relaxed);
}

/// Makes memory zero that nobody has; whole pages go to the kernel, unless a file is behind them.
fn clear(range: Range, filed: bool) {
    let page = page_size();
    let first = page.round_up(range.start).unwrap_or(range.end()).min(range.end());
    let last = page.round_down(range.end()).max(first);
    let whole = Range { start: first, len: last - first };
    // SAFETY: nobody has the memory, which is a free block or lies behind one, and there is one thread.
    let gone = whole.len > 0 && !filed && unsafe { map::drop_private_pages(whole) }.is_ok();
    let parts = if gone {
        [Range { start: range.start, len: first - range.start }, Range { start: last, len: range.end() - last }]
    } else {
        [range, Range { start: last, len: 0 }]
    };
    for part in parts {
        let at = std::ptr::with_exposed_provenance_mut::<u8>(part.start);
        // SAFETY: as above; the memory is mapped.
        unsafe { at.write_bytes(0, part.len) };
    }
}

fn pour_run(run: &ChunkRun, pagemap: &Pagemap, held: &HeapGuard) -> Result<(), FailedCall> {
    for at in 0..run.count {
        let start = metadata::addresses(run.first + at).start;
        let chunk = metadata::chunk(run.first + at);
        let end = (start + CHUNK).min(run.range.end());
        // Pages that nobody wrote stay out of the file in each piece of a chunk that no file was behind before.
        let all = chunk.filed.load(Ordering::Relaxed) != 0;
        for from in (start..end).step_by(PIECE) {
            let piece = Range { start: from, len: PIECE.min(end - from) };
            let offset = (at as usize * stride() + (from - start)) as u64;
            write_pages(run.file.as_fd(), piece, offset, all, pagemap)?;
            // From now on pages that are given up show the file, should the rest fail.
            central::note_filed(chunk, held);
            // SAFETY: the file has the same bytes as the range, which is the heap's; nobody writes meanwhile.
            unsafe { map::map_private_at(piece, Access::ReadWrite, run.file.as_fd(), offset) }
                .map_err(|e| ("mmap(heap image)", e))?;
        }
    }
    Ok(())
}

/// Writes a piece's pages to the file, those that there are; where a file is behind the piece already, all of them.
fn write_pages(
    file: BorrowedFd<'_>,
    piece: Range,
    offset: u64,
    all: bool,
    pagemap: &Pagemap,
) -> Result<(), FailedCall> {
    let write = |range: Range| {
        // SAFETY: the range is the heap's, mapped and readable.
        unsafe { memfd::write_from(file, range, offset + (range.start - piece.start) as u64) }
    };
    let failed = |e| ("pwrite(heap image)", e);
    if all {
        return write(piece).map_err(failed);
    }
    let page = page_size().bytes();
    let mut run = Range { start: piece.start, len: 0 };
    let mut written = Ok(());
    let read = pagemap.read(piece, |address, entry| {
        if !entry.intersects(Entry::PRESENT | Entry::SWAPPED) {
            return;
        }
        if run.end() != address {
            if run.len > 0 && written.is_ok() {
                written = write(run);
            }
            run = Range { start: address, len: 0 };
        }
        run.len += page;
    });
    read.map_err(|e| ("read(/proc/self/pagemap)", e))?;
    written.map_err(failed)?;
    if run.len > 0 { write(run).map_err(failed) } else { Ok(()) }
}

/// The number of times that sealing is tried: pages may be held for a moment by compaction or reclaim.
const SEAL_TRIES: u32 = 5;

fn seal(file: BorrowedFd<'_>) -> Result<(), FailedCall> {
    let mut sealed = memfd::seal_raw(file);
    for _ in 1..SEAL_TRIES {
        if sealed != Err(Errno::BUSY) {
            break;
        }
        sealed = memfd::seal_raw(file);
    }
    sealed.map_err(|e| ("fcntl(F_ADD_SEALS)", e))
}

/// Nothing is taken from a chunk any more, and what is freed there is counted.
fn settle(number: u32, held: &HeapGuard) {
    let chunk = metadata::chunk(number);
    let mut live = 0;
    if chunk.state() == ChunkState::Open {
        central::heads(number, |unit| {
            let slab = unit.slab();
            let owner = slab.owner.swap(FROZEN, Ordering::Relaxed);
            live += if owner >= MARKS_END { slab.used.load(Ordering::Relaxed) as usize } else { 1 };
        });
        central::forget(central::used_of(chunk) as usize, held);
    } else if chunk.state() == ChunkState::Huge {
        metadata::unit(number, 0).slab().owner.store(FROZEN, Ordering::Relaxed);
        live = 1;
        central::forget(chunk.bytes.load(Ordering::Relaxed).div_ceil(UNIT), held);
    }
    chunk.live.store(live, Ordering::Relaxed);
    chunk.dead_bytes.store(0, Ordering::Relaxed);
    chunk.set_state(ChunkState::Frozen, held);
}

/// Makes the headers of frozen chunks memory that fork copies no page tables of. Nobody writes to them any more. Where it cannot be, forks cost a little
/// more.
fn pour_headers(run: &ChunkRun) {
    let range = metadata::headers_of(run.first, run.count);
    // SAFETY: the headers are mapped and atomics, and there is one thread.
    if unsafe { memfd::write_from(run.headers.as_fd(), range, 0) }.is_ok() {
        // SAFETY: the file has the same bytes; nobody writes meanwhile.
        let _mapped = unsafe { map::map_private_at(range, Access::ReadWrite, run.headers.as_fd(), 0) };
    }
}

/// The block or span that holds an address of a frozen chunk; those that were free when it froze, too, and those of an image that is gone, for who knows
/// it still.
pub(super) fn block_at(address: usize) -> Option<Range> {
    if !metadata::holds(address) {
        return None;
    }
    let number = metadata::chunk_of(address);
    if !matches!(metadata::chunk(number).state(), ChunkState::Frozen | ChunkState::Gone) {
        return None;
    }
    let place = ((address - metadata::addresses(number).start) / UNIT) as u32;
    let first = (0..=place)
        .rev()
        .map(|at| metadata::unit(number, at))
        .find(|unit| unit.slab().owner.load(Ordering::Relaxed) == FROZEN);
    let Some(first) = first else { return huge_at(number) };
    let slab = first.slab();
    let class = slab.class.load(Ordering::Relaxed);
    if class != NO_CLASS {
        let class = Class::numbered(class.into());
        let block =
            Range { start: first.start() + (address - first.start()) / class.size() * class.size(), len: class.size() };
        let end = first.start() + class.slab_blocks() as usize * class.size();
        return (block.end() <= end).then_some(block);
    }
    let len = slab.blocks.load(Ordering::Relaxed) as usize * UNIT;
    let span = Range { start: first.start(), len: len - (slab.fresh.load(Ordering::Relaxed) as usize).min(len) };
    if len == 0 { huge_at(number) } else { span.contains(address).then_some(span) }
}

/// The huge allocation that a frozen chunk is part of.
fn huge_at(number: u32) -> Option<Range> {
    let span = |at: u32| metadata::chunk(at).span.load(Ordering::Relaxed);
    let head = (0..=number).rev().find(|&at| span(at) > 0).filter(|&head| head + span(head) > number)?;
    let len = metadata::chunk(head).bytes.load(Ordering::Relaxed);
    Some(Range { start: metadata::addresses(head).start, len })
}

/// The failure as an error.
pub(super) fn error((operation, errno): FailedCall) -> Error {
    Error::os(operation, errno).with_hint(match errno {
        Errno::BUSY => "pages of the heap are pinned for I/O; the heap works on, unfrozen",
        _ => "the heap works on, unfrozen",
    })
}
