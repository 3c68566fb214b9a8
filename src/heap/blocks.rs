//! Blocks for the calling thread: taken from the slabs that it claimed, and freed, whosever they are.
//!
//! # Safety
//! A block is freed once, for the class that it was given for.
#![expect(unsafe_code, reason = "blocks are known by their addresses")]

use super::claim::{announced, current, has_ended, with_claimed};
use super::class::Class;
use super::links::write_link;
use super::local::{mail, owner_at};
use super::metadata::{FROZEN, Slab, Unit};
use super::reclaim;
use std::sync::atomic::Ordering;

/// A block of a class; null where there is no memory.
#[inline]
pub(super) fn alloc(class: Class) -> *mut u8 {
    let local = current();
    // SAFETY: a pointer that is not null is of a Local this thread claimed; they are never unmapped.
    match unsafe { local.as_ref() } {
        Some(local) => std::ptr::with_exposed_provenance_mut(local.take(class)),
        None => alloc_unclaimed(class),
    }
}

#[cold]
#[inline(never)]
fn alloc_unclaimed(class: Class) -> *mut u8 {
    let block = with_claimed(|local| local.take(class)).unwrap_or(0);
    std::ptr::with_exposed_provenance_mut(block)
}

/// Frees a block of a slab; the mask is [`slab_mask`](super::class::slab_mask) of its layout.
///
/// # Safety
/// The block was given by [`alloc`] for a layout of this mask, and nobody uses it any more.
#[inline]
pub(super) unsafe fn free(block: usize, mask: usize) {
    // SAFETY: the block lies in a chunk, and a slab begins at a multiple of its length.
    let slab = unsafe { Slab::of(block & mask) };
    let local = current();
    // A slab of a live block has an owner, so a thread with nothing of its own is never it.
    if slab.owner.load(Ordering::Relaxed) == local.addr() {
        // SAFETY: not null, as it is an owner; claimed by this thread and never unmapped.
        let local = unsafe { &*local };
        // SAFETY: passed on to the caller; the slab is this Local's.
        return unsafe { local.put(slab, block) };
    }
    // SAFETY: passed on to the caller.
    unsafe { free_of_other(slab, block) }
}

/// # Safety
/// As [`free`]; the slab is the block's.
#[cold]
#[inline(never)]
unsafe fn free_of_other(slab: &'static Slab, block: usize) {
    let owner = slab.owner.load(Ordering::Acquire);
    if owner == FROZEN {
        let class = Class::numbered(slab.class.load(Ordering::Relaxed).into());
        return reclaim::note_dead(Unit::of_slab(slab), class.size());
    }
    if let Some(local) = owner_at(owner)
        && local.vacant.load(Ordering::Relaxed) != 0
        && !has_ended()
        && with_claimed(|mine| mine.take_over(slab, local)) == Some(true)
    {
        // The slab has an owner now that is this thread's, unless this thread's end could not be noticed: then it is vacant again.
        // SAFETY: a pointer that is not null is of a Local this thread claimed; they are never unmapped.
        let mine = unsafe { current().as_ref() };
        if let Some(local) = mine.filter(|mine| mine.address() == slab.owner.load(Ordering::Relaxed)) {
            // SAFETY: passed on to the caller; the slab is now this thread's.
            unsafe { local.put(slab, block) };
            return;
        }
    }
    // SAFETY: passed on to the caller.
    announced(|| unsafe { send_back(slab, block) });
}

/// Puts a block to those that others freed.
///
/// # Safety
/// The block is one of the slab that nobody uses any more.
unsafe fn send_back(slab: &'static Slab, block: usize) {
    let mut head = slab.remote.load(Ordering::Relaxed);
    loop {
        // SAFETY: the caller gives the block up.
        unsafe { write_link(block, head) };
        match slab.remote.compare_exchange_weak(head, block, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => break,
            Err(now) => head = now,
        }
    }
    if head == 0 {
        mail(slab);
    }
}

/// Tells whether a block is part of an image.
///
/// # Safety
/// The block was given by [`alloc`] for a layout of this mask, and is in use.
pub(super) unsafe fn is_frozen(block: usize, mask: usize) -> bool {
    // SAFETY: as in `free`.
    let slab = unsafe { Slab::of(block & mask) };
    slab.owner.load(Ordering::Relaxed) == FROZEN
}
