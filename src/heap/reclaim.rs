//! Images go when the last of their blocks is freed.
//!
//! Only the process that froze an image gives it up: what a child copied of it must be there for its last census. The addresses are used again once
//! nobody has the image any more ([`super::Generation`], a child's report): whoever names a block by its address names none of another image.
//!
//! # Safety
//! The number in the record of an image's first chunk is a leaked [`Weak`]. It is read and taken out under the lock. An image of which no block is in use
//! has nobody who refers into it.
#![expect(unsafe_code, reason = "memory is unmapped, and a pointer is kept as a number")]

use super::central;
use super::lock::{self, HeapGuard};
use super::metadata::{self, ChunkState, Unit};
use crate::arena::signal_safe::table;
use crate::arena::{self, Image};
use crate::sys::map;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::ptr::with_exposed_provenance;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// A frozen block was freed: nothing is written to its page. The last one of all takes the image along.
pub(super) fn note_dead(unit: Unit, bytes: usize) {
    let (number, _) = unit.place();
    let chunk = metadata::chunk(number);
    chunk.dead_bytes.fetch_add(bytes, Ordering::Relaxed);
    // The thread that takes a chunk's number to 0 has seen what others did with their blocks of it before they freed them.
    if chunk.live.fetch_sub(1, Ordering::AcqRel) == 1 {
        give_up_dead(number);
    }
}

/// An image was frozen, whose first chunk this is. There is one thread.
pub(super) fn remember(first: u32, image: &Arc<Image>) {
    let chunk = metadata::chunk(first);
    chunk.process.store(table::process_number() as u32, Ordering::Relaxed);
    chunk.image.store(Weak::into_raw(Arc::downgrade(image)).expose_provenance(), Ordering::Relaxed);
    if chunks_of(first).all(|number| metadata::chunk(number).live.load(Ordering::Relaxed) == 0) {
        // Nothing in it was in use.
        give_up_dead(first);
    }
}

/// The chunks from an image's first one on.
fn chunks_of(first: u32) -> Range<u32> {
    let state = metadata::chunk(first).state();
    let is_of_it = |&number: &u32| {
        let chunk = metadata::chunk(number);
        chunk.state() == state && chunk.image.load(Ordering::Relaxed) == 0
    };
    let rest = (first + 1..metadata::chunks()).take_while(is_of_it).count() as u32;
    first..first + 1 + rest
}

/// Gives the memory of a chunk's image back if none of its blocks is in use.
#[cold]
#[inline(never)]
fn give_up_dead(number: u32) {
    let Some(image) = take_dead(number, &lock::take()) else { return };
    // The table's own reference goes; who else has one keeps the file.
    arena::leave_poured(&image);
    // SAFETY: none of its blocks is in use, and the chunks are nobody's to take from.
    // Should it fail, the addresses stay taken, and the heap finds them so.
    let _unmapped = unsafe { map::unmap(image.range()) };
}

/// A chunk's image if none of its blocks is in use: gone from now on, for one caller.
fn take_dead(number: u32, held: &HeapGuard) -> Option<Arc<Image>> {
    let first = (0..=number).rev().find(|&at| metadata::chunk(at).image.load(Ordering::Relaxed) != 0)?;
    let record = metadata::chunk(first);
    let is_ours = record.process.load(Ordering::Relaxed) == table::process_number() as u32;
    let is_dead = |number: u32| {
        let chunk = metadata::chunk(number);
        chunk.state() == ChunkState::Frozen && chunk.live.load(Ordering::Acquire) == 0
    };
    if !is_ours || !chunks_of(first).contains(&number) || !chunks_of(first).all(is_dead) {
        return None;
    }
    let image = known_by(first, held)?.upgrade()?;
    chunks_of(first).for_each(|number| metadata::chunk(number).set_state(ChunkState::Gone, held));
    Some(image)
}

/// The facts of an image that the record of its first chunk keeps.
fn known_by(first: u32, _held: &HeapGuard) -> Option<ManuallyDrop<Weak<Image>>> {
    let at = metadata::chunk(first).image.load(Ordering::Relaxed);
    // SAFETY: a number that is not 0 is of a Weak that was leaked, and `ManuallyDrop` leaves it so.
    (at != 0).then(|| ManuallyDrop::new(unsafe { Weak::from_raw(with_exposed_provenance(at)) }))
}

/// Makes the addresses of images free that are gone and that nobody has any more.
pub(super) fn use_again() {
    // One at a time, because dropping takes the lock.
    while let Some(forgotten) = take_forgotten(&lock::take()) {
        drop(ManuallyDrop::into_inner(forgotten));
    }
}

fn take_forgotten(held: &HeapGuard) -> Option<ManuallyDrop<Weak<Image>>> {
    let is_forgotten = |first: u32| {
        metadata::chunk(first).state() == ChunkState::Gone
            && known_by(first, held).is_some_and(|image| image.strong_count() == 0)
    };
    let first = (0..metadata::chunks()).find(|&first| is_forgotten(first))?;
    let (image, chunks) = (known_by(first, held), chunks_of(first));
    metadata::chunk(first).image.store(0, Ordering::Relaxed);
    central::make_gone_absent(chunks, held);
    image
}
