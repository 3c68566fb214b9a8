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
//! metadata  addresses; what is known of chunks, units and slabs, all of it out of the data's pages
//! central   units of 64 KiB: who has which; under the lock
//! decay     how long free memory is kept
//! span      what is larger than a block
//! local     a thread's slabs of blocks; blocks that another thread frees
//! links     a slab's lists of free blocks
//! claim     which thread has which slabs
//! freeze    pages are poured into sealed memfds and mapped back
//! trailer   what an image's file says of itself, for other programs
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
//! - **Alignment** may be any power of two. **Memory that is freed** is used again by whoever asks. What nobody wanted for half a second
//!   to a second goes to the kernel, but 16 MiB, or an eighth of what is in use if that is more; that is looked at by who runs out of blocks of a size, so a program
//!   that asks for no more than it just freed keeps it: [`Heap::trim`] gives all back. Allocations from 32 MiB, and those that moved as they grew to 16 MiB
//!   or more, go back at once. A fork inherits what is kept, and copies its page tables.

mod blocks;
mod central;
mod claim;
mod class;
mod counts;
mod decay;
mod freeze;
mod generation;
mod global;
mod handle;
mod hot;
mod links;
mod local;
mod lock;
mod metadata;
mod plan;
mod reclaim;
mod scope;
mod side;
mod sites;
mod span;
mod state;
mod trailer;

pub use generation::Generation;
pub use handle::Heap;
pub use hot::hot;
pub use scope::{Frozen, Scope, arena};
pub use side::SideArc;
