//! The heap: every allocation of a program in memory that can be frozen, whatever its type.
//!
//! ```
//! use cowbell::heap::Heap;
//!
//! #[global_allocator]
//! static HEAP: Heap = Heap;
//!
//! let names = vec![String::from("any"), String::from("type")];
//! assert_eq!(names.concat(), "anytype");
//! ```
//!
//! # Rooms
//! ```text
//! class     which block an allocation gets
//! state     what a chunk is
//! ground    addresses; what is known of chunks, units and slabs, all of it out of the data's pages
//! central   units of 64 KiB: who has which; under the lock
//! span      what is larger than a block
//! local     a thread's slabs of blocks; blocks that another thread frees
//! links     a slab's lists of free blocks
//! claim     which thread has which slabs
//! freeze    pages are poured into sealed memfds and mapped back
//! note      what an image's file says of itself, for other programs
//! reclaim   images go when the last of their blocks is freed
//! hot       what is never frozen
//! side      pointers whose counts are hot
//! counts    these counts, and how children count without writing to them
//! scope     arenas: what a closure allocates, in an image of its own
//! sites     which calls made an allocation, for who asks
//! lock      the one lock, which a fork takes
//! ```
//!
//! # What is defined
//! - **Out of memory** is a null pointer, which collections report by their `try_` methods and abort on otherwise: where addresses run out (`ulimit -v`), or the kernel
//!   promises no more (`vm.overcommit_memory` 2). A memory cgroup refuses no allocation: it counts pages, and whoever touches more than it allows is killed.
//! - **At any time**: before `main`, in destructors of thread-local storage, beside `fork` and `exec` of others (`std::process::Command`).
//!   Not in signal handlers, as with any allocator.
//! - **A forked child** has all memory of its parent and goes on allocating. What other threads of the parent had for themselves is not used
//!   again there.
//! - **Alignment** may be any power of two. **Memory that is freed** is used again by whoever asks, and given to the kernel when much of it is free.
#![expect(unsafe_code, reason = "a global allocator hands out raw memory")]

mod central;
mod claim;
mod class;
mod counts;
mod freeze;
mod generation;
mod ground;
mod hot;
mod links;
mod local;
mod lock;
mod note;
mod reclaim;
mod scope;
mod side;
mod sites;
mod span;
mod state;

pub use generation::Generation;
pub use hot::hot;
pub use scope::{Frozen, Scope, arena};
pub use side::SideArc;

use class::Class;
use hot::Kind;
use std::alloc::{GlobalAlloc, Layout};
use std::ptr::null_mut;

/// The allocator: `#[global_allocator] static HEAP: Heap = Heap;`
#[derive(Clone, Copy, Debug, Default)]
pub struct Heap;

/// The kind of ordinary allocations.
const ORDINARY: u8 = 0;
/// The kind of what is never frozen.
const HOT: u8 = 1;
/// The first of those of arenas, one for each that is being built.
const FIRST_SCOPE: u8 = 2;

// SAFETY: memory is handed out once until it is freed: blocks by `local`, units by `central`. It is as large and as aligned as asked: see `class`
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
            Some(class) => (local::alloc(class), false),
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
                new_size <= layout.size() || !unsafe { local::is_frozen(address, old) }
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
        let _kind = (hot::is_hot(address) && claim::kind() != HOT).then(Kind::hot);
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
        Some(class) => local::alloc(class),
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
    match Class::of(layout.size(), layout.align()) {
        // SAFETY: the caller says that the block was given for this layout, and so for this class.
        Some(class) => unsafe { local::free(address, class) },
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
