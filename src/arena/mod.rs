//! Arenas: reserved address ranges backed by one memfd, from which objects are allocated.
//!
//! An arena is *growing* until it is *frozen*:
//!
//! ```text
//!            growing                                    frozen
//! addresses  reserved up front, a multiple of a         the same
//!            huge page
//! mapping    MAP_SHARED, read-write, MADV_DONTFORK      MAP_PRIVATE, read-only in the parent
//! memfd      as long as the capacity, sparse            cut to what is used, sealed for good
//! metadata   in the ordinary heap, never in the arena   dropped, but for recorded sites
//! ```
//!
//! Invariant: a page of a frozen arena is written by nobody but a child that gets its own copy.
//!
//! # What is defined
//! - **Drop.** Objects allocated by [`ArenaRef::alloc`] and everything in a frozen arena are never
//!   dropped. A `Vec` or `Box` in a growing arena drops as usual and its memory is used again; once
//!   the arena is frozen, freeing is a no-op.
//! - **Memory is never unmapped** unless by `unsafe` [`Arena::release`] or [`Frozen::release`]: a
//!   dropped [`Arena`] leaks, as `Box::leak` does, because allocators are `Copy` and `'static`.
//! - **Out of capacity, out of memory:** `alloc*` return an error that says which; collections report
//!   it by their `try_` methods and abort otherwise, as with any allocator. An allocator cannot tell which of the two its caller is,
//!   so the reason stands on standard error before either; [`ArenaRef::take_failure`] has it, too. Memory is
//!   committed in steps of 4 MiB, so that the limit of a control group, of the machine or of
//!   overcommit is met in order and not as a SIGBUS or by the OOM killer (somebody else may
//!   still take the memory between the check and the use).
//! - **Zero-sized types** take no memory. **Alignment** may be any power of two that fits.
//! - **A process that was forked before** an arena was frozen may adopt it ([`Export`]); data of [`Contained`] types
//!   means the same there.
//! - **Data that outlives its processes**: an arena of plain old data can be [saved](Frozen::save) and
//!   [loaded](Frozen::load) or [opened in place](Frozen::open).
//! - **A child** does not get growing arenas: a touch there is a SIGSEGV that names the arena.

mod builder;
mod collapse;
mod collections;
mod contained;
mod contained_collections;
mod copying;
mod copying_collections;
mod defining;
mod diagnosis;
mod frozen;
mod growing;
mod handle;
mod headroom;
mod image;
mod image_file;
mod images;
mod inner;
mod memory;
mod options;
mod pieces;
mod place;
mod populate;
mod poured;
pub(crate) mod prepare;
mod refusal;
pub(crate) mod registry;
pub(crate) mod signal_safe;
mod site;
mod space;
mod span;
mod transfer;
mod twins;

pub use builder::{Arena, ArenaBuilder};
pub use collapse::Collapsed;
pub use collections::{
    Arc, BTreeMap, BTreeSet, Box, CollectIn, Cow, FromIteratorIn, HashMap, HashSet, Owned, String, Vec, VecDeque,
    btree_map,
};
pub use contained::{Contained, Extent};
pub use copying::{CopyIn, Copying};
#[doc(hidden)]
pub use defining::__points;
pub(crate) use diagnosis::{install_again as install_diagnosis_again, observe as observe_diagnosis};
pub use frozen::{FreezeOptions, Frozen};
pub use handle::Handle;
pub use image::Image;
pub use images::ImageOptions;
pub use memory::ArenaRef;
pub use options::{HugePages, OnWrite};
pub(crate) use pieces::Pieces;
pub(crate) use poured::{enter_poured, leave_poured};
pub(crate) use signal_safe::handler::{Observer, RefusedAccess};
pub(crate) use site::AllocationTable;
pub use site::{Allocation, Site};
#[cfg(feature = "pool")]
pub(crate) use space::Space;
pub use span::{PlainArena, Span};
pub use transfer::Export;
