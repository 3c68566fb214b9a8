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
//!   it by their `try_` methods and abort otherwise, as with any allocator. Memory is
//!   committed in steps of 4 MiB, so that the limit of a control group, of the machine or of
//!   overcommit is met in order and not as a SIGBUS or by the OOM killer (somebody else may
//!   still take the memory between the check and the use).
//! - **Zero-sized types** take no memory. **Alignment** may be any power of two that fits.
//! - **A process that was forked before** an arena was frozen may adopt it ([`Export`]); data of [`Contained`] types
//!   means the same there.
//! - **Data that outlives its processes**: an arena of plain old data can be [saved](Frozen::save) and
//!   [loaded](Frozen::load) or [opened in place](Frozen::open).
//! - **A child** does not get growing arenas: a touch there is a SIGSEGV that names the arena.

mod collapse;
mod contained;
mod defining;
mod diagnosis;
mod frozen;
mod handle;
mod image;
mod image_file;
mod images;
mod memory;
mod place;
mod poured;
pub(crate) mod registry;
mod site;
mod space;
mod span;
mod transfer;

pub use collapse::Collapsed;
pub use contained::{Contained, Extent};
#[doc(hidden)]
pub use defining::__points;
pub(crate) use diagnosis::{Refused, install_again as install_diagnosis_again, observe as observe_diagnosis};
pub use frozen::{FreezeOptions, Frozen, OnWrite};
pub use handle::Handle;
pub use image::Image;
pub use images::ImageOptions;
pub use memory::ArenaRef;
pub(crate) use poured::{Pieces, enter_poured, leave_poured};
pub(crate) use site::Table;
pub use site::{Allocation, Site};
#[cfg(feature = "pool")]
pub(crate) use space::Space;
pub use span::{PlainArena, Span};
pub use transfer::Export;

use crate::error::{Error, Result};
use crate::sys::map::Range;
use crate::sys::{self, map, memfd};
use memory::{Growing, Reserved};
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

/// A `Vec` in an arena.
pub type Vec<T> = allocator_api2::vec::Vec<T, ArenaRef>;
/// A `Box` in an arena.
pub type Box<T> = allocator_api2::boxed::Box<T, ArenaRef>;
/// A hash map in an arena.
pub type HashMap<K, V> = hashbrown::HashMap<K, V, hashbrown::DefaultHashBuilder, ArenaRef>;
/// A hash set in an arena.
pub type HashSet<T> = hashbrown::HashSet<T, hashbrown::DefaultHashBuilder, ArenaRef>;

/// The part that all handles to an arena share. It lives from `build` to `release`.
pub(crate) struct Inner {
    pub(crate) name: std::boxed::Box<str>,
    pub(crate) slot: u16,
    pub(crate) generation: u16,
    /// The reserved addresses; once it is frozen, only its image's are its own.
    pub(crate) range: Range,
    /// The most that can be allocated, in bytes.
    capacity: usize,
    /// Only plain old data is allocated from it.
    plain: bool,
    /// The number of the process, in a line of forks, whose arena it is; see [`registry::process_number`].
    process: usize,
    growing: Mutex<Growing>,
    /// Held by who writes to memory of a growing arena, and alone by who freezes it. Before `growing`.
    writing: RwLock<()>,
    frozen: OnceLock<Arc<Image>>,
}

impl Inner {
    /// The addresses that are the arena's now. *Raw.*
    pub(crate) fn addresses(&self) -> Range {
        self.image().map_or(self.range, |image| image.range())
    }

    /// The frozen image, if the arena is frozen. *Raw.*
    pub(crate) fn image(&self) -> Option<&Arc<Image>> {
        self.frozen.get()
    }
}

/// When huge pages are put behind an arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Never: ordinary pages.
    #[default]
    Never,
    /// `MADV_HUGEPAGE`: wherever the system's settings for shared memory allow it.
    Advise,
    /// `MADV_COLLAPSE` when the arena is frozen (Linux 6.1): works whatever the settings say, costs
    /// about half a second a GiB once, and makes a child's first read of everything many times
    /// faster. Copies stay as small as ordinary pages.
    Collapse,
}

/// Settings of a new [`Arena`].
#[must_use]
#[derive(Clone, Debug)]
pub struct ArenaBuilder {
    name: String,
    capacity: usize,
    huge_pages: HugePages,
    record_sites: bool,
    plain: bool,
}

impl ArenaBuilder {
    /// The most the arena can hold, in bytes (default 1 GiB). Only addresses are taken up front, so
    /// it may be larger than memory.
    pub fn capacity(mut self, bytes: usize) -> Self {
        self.capacity = bytes;
        self
    }

    /// Sets whether huge pages are used; [`FreezeOptions::huge_pages`] may overrule it.
    pub fn huge_pages(mut self, policy: HugePages) -> Self {
        self.huge_pages = policy;
        self
    }

    /// Remember each allocation's type and the line that made it, so that reports name the objects
    /// on a copied page. Costs about 60 bytes of ordinary heap an allocation while the arena grows, 16 bytes of shared memory then.
    pub fn record_sites(mut self, record: bool) -> Self {
        self.record_sites = record;
        self
    }

    /// Reserves the addresses and makes the memfd.
    ///
    /// # Errors
    /// Invalid: a capacity of 0, a name that is empty, longer than 200 bytes, or has control
    /// characters. ENOMEM when the addresses cannot be had (`ulimit -v`).
    pub fn build(self) -> Result<Arena> {
        if !is_name(&self.name) {
            return Err(Error::invalid("an arena's name has 1 to 200 bytes and no control characters"));
        }
        let too_large = || Error::invalid(format!("{} bytes are no arena's capacity", self.capacity));
        let align = map::huge_page_size().unwrap_or(sys::page_size().bytes());
        let len = self.capacity.checked_next_multiple_of(align);
        let len = len.filter(|&len| len > 0 && isize::try_from(len).is_ok()).ok_or_else(too_large)?;
        let file = memfd::create(&format!("cowbell:{}", self.name))?;
        memfd::set_len(file.as_fd(), len as u64)?;
        let capacity = sys::page_size().round_up(self.capacity).ok_or_else(too_large)?;
        prepare()?;
        let huge_pages = self.huge_pages;
        let reserved = Reserved::new(len, align)?;
        let inner = self.enter(reserved.range(), capacity, file)?;
        reserved.keep();
        Ok(Arena { handle: ArenaRef::new(inner), huge_pages })
    }

    fn enter(self, range: Range, capacity: usize, file: OwnedFd) -> Result<&'static Inner> {
        let growing = Growing::new(range, capacity, file, self.huge_pages, self.record_sites)?;
        registry::enter(|slot, generation| Inner {
            name: self.name.into(),
            slot,
            generation,
            range,
            capacity,
            plain: self.plain,
            process: registry::process_number(),
            growing: Mutex::new(growing),
            writing: RwLock::new(()),
            frozen: OnceLock::new(),
        })
    }
}

/// May an arena have this name?
fn is_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// Bytes of an arena's name.
const NAME_MAX: usize = 200;

/// Makes ready, once, what a process with arenas needs.
pub(crate) fn prepare() -> Result<()> {
    diagnosis::install_once()?;
    registry::prepare()?;
    static NOTICES: OnceLock<()> = OnceLock::new();
    if NOTICES.get().is_none() {
        registry::notice_other_forks()?;
        let _first = NOTICES.set(());
    }
    Ok(())
}

/// Settles the seed that all hash maps of this process share. Made at first use, it would be another one in a
/// process that was forked before: a map built here would not be searched right there.
fn prepare_hashing() {
    std::hint::black_box(hashbrown::DefaultHashBuilder::default());
}

/// The owner of a growing arena. Allocate through it or through copies of its [`ArenaRef`].
///
/// ```
/// use cowbell::arena::{Arena, Vec};
///
/// let arena = Arena::builder("squares").capacity(1 << 20).build()?;
/// let mut squares = Vec::new_in(*arena);
/// squares.extend((0..100u64).map(|n| n * n));
/// let frozen = arena.freeze(squares)?;
/// assert_eq!(frozen[9], 81);
/// # Ok::<(), cowbell::Error>(())
/// ```
#[derive(Debug)]
pub struct Arena {
    handle: ArenaRef,
    huge_pages: HugePages,
}

impl Arena {
    /// Starts a new arena. Its name shows in `/proc/PID/maps` as `/memfd:cowbell:NAME`.
    pub fn builder(name: impl Into<String>) -> ArenaBuilder {
        let huge_pages = HugePages::default();
        ArenaBuilder { name: name.into(), capacity: 1 << 30, huge_pages, record_sites: false, plain: false }
    }
}

/// Gives the allocator: `Vec::new_in(*arena)`.
impl Deref for Arena {
    type Target = ArenaRef;

    fn deref(&self) -> &ArenaRef {
        &self.handle
    }
}

/// A growing arena's file, kept until the image takes it over.
type File = Option<OwnedFd>;
