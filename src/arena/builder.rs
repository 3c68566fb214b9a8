//! The owner of a growing arena, and how one is made.

use super::growing::{Growing, Reserved};
use super::inner::Inner;
use super::memory::ArenaRef;
use super::options::{HugePages, is_name};
use super::prepare::prepare;
use super::registry;
use super::signal_safe::table;
use crate::error::{Error, Result};
use crate::sys::map::Range;
use crate::sys::{self, map, memfd};
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, OnceLock, RwLock};

/// Settings of a new [`Arena`].
#[must_use]
#[derive(Clone, Debug)]
pub struct ArenaBuilder {
    name: String,
    capacity: usize,
    huge_pages: HugePages,
    record_sites: bool,
    pub(super) plain: bool,
}

impl ArenaBuilder {
    /// The most the arena can hold, in bytes (default 1 GiB). Only addresses are taken up front, so
    /// it may be larger than memory.
    pub fn capacity(mut self, bytes: usize) -> Self {
        self.capacity = bytes;
        self
    }

    /// Sets whether huge pages are used; [`FreezeOptions::huge_pages`](super::FreezeOptions::huge_pages) may overrule it.
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
        let reserved = Reserved::new(registry::next_addresses()?, len, align)?;
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
            process: table::process_number(),
            growing: Mutex::new(growing),
            writing: RwLock::new(()),
            frozen: OnceLock::new(),
        })
    }
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
    pub(super) handle: ArenaRef,
    pub(super) huge_pages: HugePages,
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
