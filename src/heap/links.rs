//! A slab's lists of free blocks, which are linked through the blocks' first words.
//!
//! Links lie in memory which no image has: a freeze makes free blocks zero.
//!
//! # Safety
//! A block is in use or in exactly one list. Links are read and written of free blocks only, by whoever has the list.
#![expect(unsafe_code, reason = "free blocks are linked through their memory")]

use super::class::Class;
use super::metadata::{NEVER, NOBODY, Slab, Unit};
use crate::sys::page_size;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicUsize, Ordering};

/// The slab that has no free block, and stands where there is none.
pub(super) static EMPTY: Slab = Slab {
    owner: AtomicUsize::new(NOBODY),
    free: AtomicUsize::new(0),
    remote: AtomicUsize::new(0),
    next: AtomicU32::new(0),
    prev: AtomicU32::new(0),
    mail_next: AtomicU32::new(0),
    used: AtomicI32::new(0),
    notice: AtomicI32::new(NEVER),
    blocks: AtomicU32::new(0),
    fresh: AtomicU32::new(0),
    class: AtomicU8::new(0),
    dirty: AtomicU8::new(0),
    mailed: AtomicU8::new(0),
};

fn link_of(block: usize) -> *mut usize {
    std::ptr::with_exposed_provenance_mut(block)
}

/// # Safety
/// The block is free, and the caller has the list that it is in.
#[inline]
pub(super) unsafe fn read_link(block: usize) -> usize {
    // SAFETY: a block has room for a word and is aligned to one; it is free.
    unsafe { link_of(block).read() }
}

/// # Safety
/// The block is free, and the caller is putting it into a list.
#[inline]
pub(super) unsafe fn write_link(block: usize, next: usize) {
    // SAFETY: a block has room for a word and is aligned to one; it is free.
    unsafe { link_of(block).write(next) }
}

/// Moves the blocks that others freed to the slab's own list. The slab is the caller's.
pub(super) fn collect(slab: &'static Slab) {
    if slab.remote.load(Ordering::Relaxed) == 0 {
        return;
    }
    let first = slab.remote.swap(0, Ordering::AcqRel);
    let (mut last, mut count) = (first, 1);
    // SAFETY: the list was taken whole.
    while let Some(next) = Some(unsafe { read_link(last) }).filter(|&next| next != 0) {
        (last, count) = (next, count + 1);
    }
    // SAFETY: as above.
    unsafe { write_link(last, slab.free.load(Ordering::Relaxed)) };
    slab.free.store(first, Ordering::Relaxed);
    slab.used.store(slab.used.load(Ordering::Relaxed) - count, Ordering::Relaxed);
}

/// Makes some more of a slab's blocks free, about a page; false when there are no more. The slab is the caller's.
pub(super) fn extend(slab: &'static Slab, class: Class) -> bool {
    let fresh = slab.fresh.load(Ordering::Relaxed);
    let left = slab.blocks.load(Ordering::Relaxed).saturating_sub(fresh);
    let count = left.min((page_size().bytes() / class.size()).max(1) as u32);
    if count == 0 {
        return false;
    }
    let first = Unit::of_slab(slab).start() + fresh as usize * class.size();
    let mut next = slab.free.load(Ordering::Relaxed);
    for at in (0..count as usize).rev() {
        let block = first + at * class.size();
        // SAFETY: the block was in no list and in no use yet.
        unsafe { write_link(block, next) };
        next = block;
    }
    slab.free.store(next, Ordering::Relaxed);
    slab.fresh.store(fresh + count, Ordering::Relaxed);
    true
}
