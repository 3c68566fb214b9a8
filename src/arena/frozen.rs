//! Freezing: a growing arena becomes an image that nobody can write.
//!
//! # Safety
//! Replacing the shared mapping by a private one keeps every byte: both show the same pages of the
//! same file. Who still holds a `&mut` into the arena, or a `Cell` in it, faults on writing; the
//! fault is diagnosed and kills, and no reader ever sees a change.
#![expect(unsafe_code, reason = "mappings are replaced under live references")]

use super::site::{Recorder, Table};
use super::{Allocation, Arena, ArenaRef, Handle, HugePages, Inner, registry};
use crate::error::{Error, Kind, Result};
use crate::page::PageCount;
use crate::sys::map::{self, Access, Harmless, Range};
use crate::sys::{self, Errno, memfd, random};
use std::fmt;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// What happens when a child writes into a frozen arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum OnWrite {
    /// The child gets its own copy of the page, which is counted.
    #[default]
    Copy,
    /// The child dies by SIGSEGV, with a line that names arena, page, object and instruction. Where
    /// the kernel has `mseal` (6.10), nobody can lift that any more, and the arena cannot be released.
    Deny,
}

/// Settings of [`Arena::freeze_with`].
#[must_use]
#[derive(Clone, Debug)]
pub struct FreezeOptions {
    huge_pages: Option<HugePages>,
    on_write: OnWrite,
    dump: bool,
    lock: bool,
}

impl FreezeOptions {
    /// Children copy, pages as the builder said, in core dumps, not locked.
    pub fn new() -> Self {
        Self { huge_pages: None, on_write: OnWrite::Copy, dump: true, lock: false }
    }

    /// Overrules [`super::ArenaBuilder::huge_pages`].
    pub fn huge_pages(mut self, policy: HugePages) -> Self {
        self.huge_pages = Some(policy);
        self
    }

    /// What a child's write does.
    pub fn on_write(mut self, on_write: OnWrite) -> Self {
        self.on_write = on_write;
        self
    }

    /// False: `MADV_DONTDUMP`, the arena is left out of core dumps (which otherwise hold all of it, once a
    /// child has copied a page).
    pub fn dump(mut self, dump: bool) -> Self {
        self.dump = dump;
        self
    }

    /// True: pages once read by this process stay in memory (`mlock2(MLOCK_ONFAULT)`). Children do not
    /// inherit the lock, but read the same pages.
    pub fn lock(mut self, lock: bool) -> Self {
        self.lock = lock;
        self
    }
}

impl Default for FreezeOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// Were huge pages put behind the arena when it was frozen?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Collapsed {
    /// Nobody asked.
    NotAsked,
    /// All of it.
    Whole,
    /// Some of it stayed in ordinary pages, for this reason.
    Partly(String),
}

/// One generation of an arena: the frozen content and what is known of it.
pub struct Image {
    name: Box<str>,
    slot: u16,
    generation: u16,
    stamp: u64,
    range: Range,
    used: usize,
    on_write: OnWrite,
    for_good: bool,
    collapsed: Collapsed,
    allocations: Table,
    file: OwnedFd,
}

impl Image {
    /// The arena's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The image's number: handles of an image that was released are told by it. It counts the images of one
    /// place in this process's table of arenas, so a new arena may begin above 1.
    pub fn generation(&self) -> u16 {
        self.generation
    }

    /// The addresses, whole pages.
    pub fn range(&self) -> Range {
        self.range
    }

    /// How many pages the image has.
    pub fn pages(&self) -> PageCount {
        sys::page_size().pages_for(self.range.len)
    }

    /// Bytes from the start to the end of the last allocation.
    pub fn used(&self) -> usize {
        self.used
    }

    /// What a child's write does.
    pub fn on_write(&self) -> OnWrite {
        self.on_write
    }

    /// Is [`OnWrite::Deny`] held by `mseal` (Linux 6.10), so that nothing in any process can lift it?
    pub fn denied_for_good(&self) -> bool {
        self.for_good
    }

    /// Whether huge pages could be put behind it.
    pub fn collapsed(&self) -> &Collapsed {
        &self.collapsed
    }

    /// All allocations by offset, if the arena records sites; else none.
    pub fn allocations(&self) -> impl Iterator<Item = Allocation> + '_ {
        self.allocations.iter()
    }

    /// The same, to look an address up in. *Raw.*
    pub(crate) fn table(&self) -> &Table {
        &self.allocations
    }

    /// The sealed memfd, which holds the original of every page for good.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(crate) fn slot(&self) -> u16 {
        self.slot
    }

    /// A number that no other image has, in any process of a line of forks: slot and generation may come twice
    /// there, once two processes have each frozen an arena of their own.
    pub(crate) fn stamp(&self) -> u64 {
        self.stamp
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({} generation {}, {} pages)", self.name, self.generation, self.pages())
    }
}

/// A frozen arena and the root of what is in it.
///
/// Dereferences to the root. It never drops it and never gives up the memory (see
/// [`Frozen::release`]), so references into it live for ever.
pub struct Frozen<T: 'static> {
    root: &'static T,
    inner: &'static Inner,
    image: Arc<Image>,
}

impl Arena {
    /// Moves `root` into the arena and freezes it: children forked from now on share its pages, and
    /// whoever writes one gets a copy (or dies, see [`OnWrite`]).
    ///
    /// Allocation by copies of the arena's [`ArenaRef`] fails from now on. Writing into the arena in
    /// this process (through a `&mut`, a `Cell`, a `Mutex`, a reference count in it) is a SIGSEGV
    /// whose message names arena, page and instruction.
    ///
    /// What is done to the range: `fcntl(F_ADD_SEALS)` makes the content final for every process;
    /// `mmap(MAP_PRIVATE | MAP_FIXED)` in place lets readers share and writers copy, and gives children
    /// what `MADV_DONTFORK` kept from them while it grew; `PROT_READ` keeps this process from
    /// writing, because one private write of the parent makes every later fork copy all page tables.
    ///
    /// # Errors
    /// Out of capacity or memory for the root; frozen already; unsupported when huge pages were to be
    /// collapsed and the kernel cannot; EBUSY when the arena's pages are pinned for I/O or somebody
    /// maps its file; EPERM or ENOMEM from locking. The arena goes on growing then, for
    /// who still has an [`ArenaRef`].
    #[track_caller]
    pub fn freeze_with<T: 'static>(self, root: T, options: FreezeOptions) -> Result<Frozen<T>> {
        let handle: ArenaRef = *self;
        handle.check_process()?;
        let root: &'static T = handle.alloc(root)?;
        let huge_pages = options.huge_pages.unwrap_or(self.huge_pages);
        let image = Arc::new(freeze(handle, huge_pages, &options)?);
        let inner = handle.inner();
        let stored = inner.frozen.set(Arc::clone(&image)).is_ok();
        debug_assert!(stored, "the file is taken once, under the lock");
        registry::frozen(&image);
        Ok(Frozen { root, inner, image })
    }
}

fn freeze(handle: ArenaRef, huge_pages: HugePages, options: &FreezeOptions) -> Result<Image> {
    let inner = handle.inner();
    let mut growing = handle.growing();
    handle.check_process()?;
    let used = growing.used();
    let page = sys::page_size().bytes();
    let unit = if huge_pages == HugePages::Collapse { map::huge_page_size().unwrap_or(page) } else { page };
    let range = Range { start: inner.range.start, len: used.max(1).next_multiple_of(unit) };
    growing.commit(range.len)?;
    let stamp = random::bits().map_err(|e| Error::os("getrandom", e))?;
    let allocations = growing.recorder.as_ref().map(Recorder::table).transpose()?.unwrap_or_default();
    let collapsed = if huge_pages == HugePages::Collapse { collapse(range)? } else { Collapsed::NotAsked };

    let frozen = || Error::new(Kind::Frozen { arena: handle.name().to_owned() });
    let file = growing.file.take().ok_or_else(frozen)?;
    let rest = Range { start: range.end(), len: inner.range.end() - range.end() };
    if let Err(e) = make_final(range, rest, &file, huge_pages, options) {
        let undone = grow_on(inner.range, &file);
        growing.file = Some(file);
        // What lay behind the cut has no memory any more.
        growing.committed = growing.committed.min(range.len);
        return Err(undone.err().unwrap_or(e));
    }
    growing.recorder = None;
    if rest.len > 0 {
        // SAFETY: as in `make_final`. Should it fail, the addresses stay reserved for nothing.
        let _reserved = unsafe { map::unmap(rest) };
    }
    // Without mseal the range is read-only all the same; only deliberate code could lift that.
    let for_good = options.on_write == OnWrite::Deny && map::seal(range).is_ok();
    Ok(Image {
        name: handle.name().into(),
        slot: inner.slot,
        generation: inner.generation,
        stamp,
        range,
        used,
        on_write: options.on_write,
        for_good,
        collapsed,
        allocations,
        file,
    })
}

/// Cuts the file, maps it privately in place, takes the shared mapping off the rest, and, when nothing else can
/// fail, seals it.
fn make_final(range: Range, rest: Range, file: &OwnedFd, huge_pages: HugePages, options: &FreezeOptions) -> Result<()> {
    memfd::set_len(file.as_fd(), range.len as u64)?;
    // SAFETY: the range is the arena's and the new mapping shows the same bytes.
    let mapped = unsafe { map::map_private_at(range, Access::Read, file.as_fd(), 0) };
    mapped.map_err(|e| Error::os("mmap(frozen arena)", e))?;
    if rest.len > 0 {
        // SAFETY: the addresses behind the last allocation were never handed out.
        unsafe { map::blank(rest) }.map_err(|e| Error::os("mmap(rest of arena)", e))?;
    }
    mark(range, huge_pages, options)?;
    memfd::seal(file.as_fd(), memfd::SEALS_FINAL).map_err(|e| {
        if e.errno() == Some(Errno::BUSY.raw_os_error()) {
            e.with_hint("pages of the arena are pinned for I/O, or another process maps its file writable")
        } else {
            e
        }
    })
}

/// Undoes [`make_final`] where it failed half way.
fn grow_on(range: Range, file: &OwnedFd) -> Result<()> {
    memfd::set_len(file.as_fd(), range.len as u64)?;
    // SAFETY: the range is the arena's and the new mapping shows the same bytes.
    let mapped = unsafe { map::map_shared_at(range, Access::ReadWrite, file.as_fd(), 0) };
    mapped.map_err(|e| Error::os("mmap(arena)", e))?;
    // SAFETY: a child fences the range before any code of the user runs there.
    unsafe { map::inherit(range, false) }.map_err(|e| Error::os("madvise(MADV_DONTFORK)", e))
}

fn collapse(range: Range) -> Result<Collapsed> {
    // Linux 6.1 refuses a mapping that has no page table yet; one page is enough.
    let first = Range { start: range.start, len: sys::page_size().bytes() };
    match map::advise(first, Harmless::PopulateRead) {
        // Before 5.14 there is no such advice, and none to collapse either, which is what shall be said.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(e) => return Err(Error::os("madvise(MADV_POPULATE_READ)", e)),
    }
    match map::advise(range, Harmless::Collapse) {
        Ok(()) => Ok(Collapsed::Whole),
        Err(Errno::INVAL) => Err(Error::unsupported(
            "MADV_COLLAPSE",
            "6.1",
            "the kernel refused it for shared memory (no transparent huge pages, or too old)",
        )
        .with_hint("freeze with HugePages::Never")),
        Err(e) => Ok(Collapsed::Partly(Error::os("madvise(MADV_COLLAPSE)", e).to_string())),
    }
}

/// What the user asked for beyond sharing.
fn mark(range: Range, huge_pages: HugePages, options: &FreezeOptions) -> Result<()> {
    if huge_pages == HugePages::Advise {
        map::advise(range, Harmless::HugePage).map_err(|e| Error::os("madvise(MADV_HUGEPAGE)", e))?;
    }
    if !options.dump {
        map::advise(range, Harmless::DontDump).map_err(|e| Error::os("madvise(MADV_DONTDUMP)", e))?;
    }
    if options.lock {
        map::lock(range)
            .map_err(|e| Error::os("mlock2", e).with_hint("raise the limit on locked memory: ulimit -l"))?;
    }
    Ok(())
}

impl<T: 'static> Frozen<T> {
    /// The root, for as long as the program runs.
    pub fn root(&self) -> &'static T {
        self.root
    }

    /// A handle to an object in this arena: the root or something reached from it.
    ///
    /// # Errors
    /// Bad handle when the object lies elsewhere.
    pub fn handle<U: 'static>(&self, object: &'static U) -> Result<Handle<U>> {
        Handle::new(&self.image, object)
    }

    /// The frozen content and what is known of it.
    pub fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// No reference into the arena, no [`ArenaRef`] of it and nothing allocated from it may be used
    /// any more, by any thread, nor may another thread resolve a handle meanwhile. Handles that are
    /// resolved later are told from valid ones and refused.
    ///
    /// # Errors
    /// EPERM for an arena frozen with [`OnWrite::Deny`] where the kernel has `mseal`.
    pub unsafe fn release(self) -> Result<()> {
        if self.image.for_good {
            return Err(Error::os("munmap(arena sealed by mseal)", Errno::PERM));
        }
        // SAFETY: passed on to the caller.
        drop(unsafe { registry::leave(self.inner) });
        // SAFETY: passed on to the caller.
        unsafe { map::unmap(self.image.range) }.map_err(|e| Error::os("munmap", e))
    }
}

impl Arena {
    /// Gives a growing arena's memory back.
    ///
    /// # Safety
    /// No reference into the arena, no [`ArenaRef`] of it and nothing allocated from it may be used
    /// any more, by any thread.
    ///
    /// # Errors
    /// None known.
    pub unsafe fn release(self) -> Result<()> {
        let inner = self.inner();
        let range = inner.range;
        // SAFETY: passed on to the caller.
        drop(unsafe { registry::leave(inner) });
        // SAFETY: passed on to the caller.
        unsafe { map::unmap(range) }.map_err(|e| Error::os("munmap", e))
    }
}

impl<T: 'static> Deref for Frozen<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.root
    }
}

impl<T: 'static> fmt::Debug for Frozen<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frozen({:?})", self.image)
    }
}
