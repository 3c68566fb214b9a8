//! The name by which programs have the heap.

use super::{claim, metadata};
use crate::error::Error;

/// The allocator: `#[global_allocator] static HEAP: Heap = Heap;`
#[derive(Clone, Copy, Debug, Default)]
pub struct Heap;

impl Heap {
    /// Tells whether this is the program's global allocator. Makes an allocation and looks where it lies.
    pub fn is_in_use() -> bool {
        let probe = std::hint::black_box(Box::new(0u64));
        metadata::holds(std::ptr::from_ref(&*probe).addr())
    }

    /// Gives all memory that nobody uses to the kernel, without waiting for what happens by itself: see "memory that is freed" in [the module](super). Pages stay of which
    /// a part is in use, what other threads keep for their next allocations, and what a freeze that failed has left a file behind.
    ///
    /// The heap's lock is held for as long as the kernel takes to free the pages, about a tenth of a second for a GiB.
    pub fn trim() {
        claim::trim_own();
    }
}

/// The error of whoever wants what only a program with this allocator has.
pub(super) fn not_in_use() -> Error {
    Error::invalid("cowbell::heap::Heap is not this program's global allocator")
        .with_hint("add: #[global_allocator] static HEAP: cowbell::heap::Heap = cowbell::heap::Heap;")
}
