//! The allocator as programs name it, and what the language asks of it.
#![expect(unsafe_code, reason = "a global allocator hands out raw memory")]

use super::class::{Class, slab_mask};
use super::handle::Heap;
use super::hot::{HOT, KindGuard};
use super::{blocks, claim, hot, sites, span};
use std::alloc::{GlobalAlloc, Layout};
use std::ptr::null_mut;

// SAFETY: memory is handed out once until it is freed: blocks by `blocks` and `local`, units by `central`. It is as large and as aligned as asked: see `class`
// for blocks, and `central::take` for spans. Nothing here unwinds: there is no assertion, no allocation and no indexing that could fail.
unsafe impl GlobalAlloc for Heap {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if sites::are_recorded() { place_recorded(layout) } else { place(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if sites::are_recorded() {
            // SAFETY: passed on to the caller.
            unsafe { give_back_recorded(block, layout) }
        } else {
            // SAFETY: passed on to the caller.
            unsafe { give_back(block, layout) }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let (block, zero) = match Class::of(layout.size(), layout.align()) {
            Some(class) => (blocks::alloc(class), false),
            None => large(layout),
        };
        if !block.is_null() && !zero {
            // SAFETY: the memory was just given, and is as large as the layout says.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        if sites::are_recorded() {
            sites::note(block.expose_provenance(), layout.size());
        }
        block
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let Ok(wanted) = Layout::from_size_align(new_size, layout.align()) else { return null_mut() };
        let address = block.expose_provenance();
        let (old, new) = (Class::of(layout.size(), layout.align()), Class::of(new_size, layout.align()));
        let stays = match (old, new) {
            (Some(old), Some(new)) if old == new => {
                // SAFETY: the caller says that the block was given for this layout.
                new_size <= layout.size() || !unsafe { blocks::is_frozen(address, usize::MAX << old.slab_shift()) }
            }
            // SAFETY: as above, and that nobody uses what lies behind the new size.
            (None, None) => unsafe { span::resize_span(address, layout.size(), new_size) },
            _ => false,
        };
        if stays {
            if sites::are_recorded() {
                sites::note_len(address, new_size);
            }
            return block;
        }
        if old.is_none() && new.is_none() {
            // Before anybody else can have the address.
            let known = if sites::are_recorded() { sites::take(address) } else { None };
            // SAFETY: the caller gives the old address up.
            if let Some(moved) = unsafe { span::move_to_huge(address, layout.size(), new_size, layout.align()) } {
                if sites::are_recorded() {
                    sites::note(moved, new_size);
                }
                return std::ptr::with_exposed_provenance_mut(moved);
            }
            if let Some(known) = known {
                sites::put_back(address, known);
            }
        }
        // Hot memory stays hot where it grows, whoever grows it.
        let _kind = (hot::is_hot(address) && claim::kind() != HOT).then(KindGuard::hot);
        // SAFETY: the size is not 0, as the caller's is not.
        let to = unsafe { self.alloc(wanted) };
        if !to.is_null() {
            // SAFETY: both are as large as the smaller of the two, and do not overlap.
            unsafe { to.copy_from_nonoverlapping(block, layout.size().min(new_size)) };
            // SAFETY: the caller gives the old block up.
            unsafe { self.dealloc(block, layout) };
        }
        to
    }
}

/// Memory for a layout.
#[inline]
fn place(layout: Layout) -> *mut u8 {
    match Class::of(layout.size(), layout.align()) {
        Some(class) => blocks::alloc(class),
        None => large(layout).0,
    }
}

/// The same, where sites are recorded. A function of its own, so that the other needs no room on the stack.
#[cold]
#[inline(never)]
fn place_recorded(layout: Layout) -> *mut u8 {
    let block = place(layout);
    sites::note(block.expose_provenance(), layout.size());
    block
}

/// Takes memory back.
///
/// # Safety
/// It was placed for this layout, and nobody uses it any more.
#[inline]
unsafe fn give_back(block: *mut u8, layout: Layout) {
    let address = block.expose_provenance();
    match slab_mask(layout.size(), layout.align()) {
        // SAFETY: the caller says that the block was given for this layout, which has this mask.
        Some(mask) => unsafe { blocks::free(address, mask) },
        // SAFETY: as above.
        None => unsafe { span::release_span(address, layout.size()) },
    }
}

/// The same, where sites are recorded.
///
/// # Safety
/// The caller promises what it promises [`give_back`].
#[cold]
#[inline(never)]
unsafe fn give_back_recorded(block: *mut u8, layout: Layout) {
    // Before anybody else can have the address.
    sites::forget(block.expose_provenance());
    // SAFETY: passed on to the caller.
    unsafe { give_back(block, layout) }
}

/// Memory for a layout that no block holds, and whether it is zero.
#[cold]
#[inline(never)]
fn large(layout: Layout) -> (*mut u8, bool) {
    match span::take_span(layout.size().max(1), layout.align(), claim::kind()) {
        Some((address, zero)) => (std::ptr::with_exposed_provenance_mut(address), zero),
        None => (null_mut(), false),
    }
}
