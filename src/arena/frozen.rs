//! Freezing: a growing arena becomes an image that nobody can write.
//!
//! # Safety
//! Replacing the shared mapping by a private one keeps every byte: both show the same pages of the
//! same file. Who still holds a `&mut` into the arena, or a `Cell` in it, faults on writing; the
//! fault is diagnosed and kills, and no reader ever sees a change.
#![expect(unsafe_code, reason = "mappings are replaced under live references")]

use super::builder::Arena;
use super::collapse::Collapsed;
use super::collapse::collapse;
use super::handle::Handle;
use super::image::Image;
use super::image::{Marks, OriginalsLocation};
use super::inner::Inner;
use super::options::{HugePages, OnWrite};
use super::registry;
use super::site::Recorder;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::map::{self, Access, Range};
use crate::sys::{self, Errno, memfd};
use std::fmt;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

/// The number of times that the write seal is asked for. The kernel itself waits some 150 ms for pages that others hold, then says
/// EBUSY; compaction and reclaim take any page for a moment, and longer on a busy machine.
const SEAL_TRIES: usize = 8;

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
    /// The marks that the range gets, with the arena's policy of huge pages.
    pub(super) fn marks(&self, huge_pages: HugePages) -> Marks {
        let huge_pages = self.huge_pages.unwrap_or(huge_pages);
        Marks { huge_pages, on_write: self.on_write, dump: self.dump, lock: self.lock }
    }

    /// Children copy, pages as the builder said, in core dumps, not locked.
    pub fn new() -> Self {
        Self { huge_pages: None, on_write: OnWrite::Copy, dump: true, lock: false }
    }

    /// Overrules [`super::ArenaBuilder::huge_pages`].
    pub fn huge_pages(mut self, policy: HugePages) -> Self {
        self.huge_pages = Some(policy);
        self
    }

    /// Sets the effect of a child's write.
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

/// A frozen arena and the root of what is in it.
///
/// Dereferences to the root. It never drops it and never gives up the memory (see
/// [`Frozen::release`]), so references into it live for ever.
///
/// A clone is the same arena again; after the release of one, none may be used.
pub struct Frozen<T: 'static> {
    root: &'static T,
    inner: &'static Inner,
    image: Arc<Image>,
}

impl<T: 'static> Clone for Frozen<T> {
    fn clone(&self) -> Self {
        Self { root: self.root, inner: self.inner, image: Arc::clone(&self.image) }
    }
}

impl Arena {
    /// Moves `root` into the arena and freezes it with the default options, **whatever it leads to**. [`Self::freeze`] is for roots of which
    /// everything lies in the arena; this is for all others.
    ///
    /// Whatever is reached from the root and lies elsewhere (a `String`, a `std::vec::Vec`, an `Arc`) is the ordinary memory of this
    /// process, and stays it: children share it until they write, to count references too, and what they copy of it stands in no arena's
    /// part of a report, but under [`Outside`](crate::watch::Outside). It cannot be exported or saved. All that is unchecked is where memory lies: this
    /// is as safe as the other.
    ///
    /// # Errors
    /// The errors are those of [`Self::freeze_unchecked_with`].
    #[track_caller]
    pub fn freeze_unchecked<T: 'static>(self, root: T) -> Result<Frozen<T>> {
        self.freeze_unchecked_with(root, FreezeOptions::new())
    }

    /// [`Self::freeze_unchecked`] with options: children forked from now on share the arena's pages, and
    /// whoever writes one gets a copy (or dies, see [`OnWrite`]).
    ///
    /// Allocation by copies of the arena's [`ArenaRef`](super::ArenaRef) fails from now on. Writing into the arena in
    /// this process (through a `&mut`, a `Cell`, a `Mutex`, a reference count in it) is a SIGSEGV
    /// whose message names arena, page and instruction.
    ///
    /// The range is treated so: `fcntl(F_ADD_SEALS)` makes the content final for every process;
    /// `mmap(MAP_PRIVATE | MAP_FIXED)` in place lets readers share and writers copy, and gives children
    /// what `MADV_DONTFORK` kept from them while it grew; `PROT_READ` keeps this process from
    /// writing, because one private write of the parent makes every later fork copy all page tables.
    ///
    /// # Errors
    /// Out of capacity or memory for the root; frozen already; unsupported when huge pages were to be
    /// collapsed and the kernel cannot; EBUSY when the arena's pages stay pinned for I/O for more than a
    /// second or somebody maps its file; EPERM or ENOMEM from locking. The arena goes on growing then, for
    /// who still has an [`ArenaRef`](super::ArenaRef).
    #[track_caller]
    pub fn freeze_unchecked_with<T: 'static>(self, root: T, options: FreezeOptions) -> Result<Frozen<T>> {
        let root: &'static T = self.place_root(root)?;
        self.freeze_at(root, options)
    }

    /// Moves a root into the arena, in the process that built the arena.
    #[track_caller]
    pub(super) fn place_root<T: 'static>(&self, root: T) -> Result<&'static T> {
        self.known()?.check_process()?;
        Ok(self.alloc(root)?)
    }

    /// Freezes the arena with a root that lies in it.
    pub(super) fn freeze_at<T: 'static>(&self, root: &'static T, options: FreezeOptions) -> Result<Frozen<T>> {
        let inner = self.known()?;
        let huge_pages = options.huge_pages.unwrap_or(self.huge_pages);
        // Until the image is known, so that who writes next finds the arena frozen.
        let _nobody_writes = inner.writing.write().unwrap_or_else(PoisonError::into_inner);
        let image = Arc::new(freeze(inner, huge_pages, &options)?);
        let stored = inner.frozen.set(Arc::clone(&image)).is_ok();
        debug_assert!(stored, "the file is taken once, under the lock");
        registry::frozen(&image, false);
        Ok(Frozen { root, inner, image })
    }
}

fn freeze(inner: &Inner, huge_pages: HugePages, options: &FreezeOptions) -> Result<Image> {
    let mut growing = inner.growing();
    inner.check_process()?;
    let used = growing.used();
    let page = sys::page_size().bytes();
    let unit = if huge_pages == HugePages::Collapse { map::huge_page_size().unwrap_or(page) } else { page };
    let range = Range { start: inner.range.start, len: used.max(1).next_multiple_of(unit) };
    growing.commit(range.len)?;
    let allocations = growing.recorder.as_ref().map(Recorder::table).transpose()?.unwrap_or_default();
    let collapsed = if huge_pages == HugePages::Collapse { collapse(range)? } else { Collapsed::NotAsked };
    let marks = options.marks(huge_pages);

    let frozen = || Error::new(ErrorKind::Frozen { arena: inner.name.to_string() });
    let file = growing.file.take().ok_or_else(frozen)?;
    let rest = Range { start: range.end(), len: inner.range.end() - range.end() };
    if let Err(e) = make_final(range, rest, &file, &marks) {
        let undone = grow_on(inner.range, &file);
        growing.file = Some(file);
        // The range behind the cut has no memory any more.
        growing.committed = growing.committed.min(range.len);
        return Err(undone.err().unwrap_or(e));
    }
    growing.recorder = None;
    if rest.len > 0 {
        // SAFETY: as in `make_final`. Should it fail, the addresses stay reserved for nothing.
        let _reserved = unsafe { map::unmap(rest) };
    }
    Ok(Image {
        name: inner.name.clone(),
        slot: inner.slot,
        generation: inner.generation,
        range,
        used,
        plain: inner.plain,
        for_good: marks.deny_for_good(range),
        marks,
        collapsed,
        allocations,
        file,
        origin: OriginalsLocation::Sealed,
        given_back: Mutex::default(),
    })
}

/// Cuts the file, maps it privately in place, takes the shared mapping off the rest, and, when nothing else can
/// fail, seals it.
fn make_final(range: Range, rest: Range, file: &OwnedFd, marks: &Marks) -> Result<()> {
    memfd::set_len(file.as_fd(), range.len as u64)?;
    // SAFETY: the range is the arena's and the new mapping shows the same bytes.
    let mapped = unsafe { map::map_private_at(range, Access::Read, file.as_fd(), 0) };
    mapped.map_err(|e| Error::os("mmap(frozen arena)", e))?;
    if rest.len > 0 {
        // SAFETY: the addresses behind the last allocation were never handed out.
        unsafe { map::blank(rest) }.map_err(|e| Error::os("mmap(rest of arena)", e))?;
    }
    marks.put_on(range)?;
    seal(file)
}

/// Makes the content final.
fn seal(file: &OwnedFd) -> Result<()> {
    let is_busy = |e: &Error| e.errno() == Some(Errno::BUSY.raw_os_error());
    let mut sealed = memfd::seal(file.as_fd(), memfd::SEALS_FINAL);
    for _ in 1..SEAL_TRIES {
        if !sealed.as_ref().is_err_and(is_busy) {
            return sealed;
        }
        sealed = memfd::seal(file.as_fd(), memfd::SEALS_FINAL);
    }
    sealed.map_err(|e| {
        if is_busy(&e) {
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

impl<T: 'static> Frozen<T> {
    /// An arena that entered the registry frozen, with its root; whether another process froze it.
    pub(super) fn of(root: &'static T, inner: &'static Inner, adopted: bool) -> Result<Self> {
        let image = inner.image().ok_or_else(|| Error::invalid("the arena is not frozen"))?;
        registry::frozen(image, adopted);
        Ok(Self { root, inner, image: Arc::clone(image) })
    }

    /// The root, for as long as the program runs.
    pub fn root(&self) -> &'static T {
        self.root
    }

    /// A handle to an object in this arena: the root or something reached from it.
    ///
    /// It holds in this process and in all that are forked from it. A process that was forked before and adopted the arena, as a
    /// pool's workers do after [`Pool::replace`](crate::pool::Pool::replace), refuses it: what the object leads to may be
    /// this process's alone. There handles hold that [`Self::handle_contained`] made.
    ///
    /// # Errors
    /// Bad handle when the object lies elsewhere.
    pub fn handle<U: 'static>(&self, object: &'static U) -> Result<Handle<U>> {
        Handle::new(&self.image, object, false)
    }

    /// [`Self::handle`] for processes that adopt the arena as well, without a look at the object.
    ///
    /// # Safety
    /// Everything that is reached from the object lies in this arena, or is the same in every process that adopts the arena; and it may be
    /// used there: see [`Export::adopt`](super::Export::adopt).
    ///
    /// # Errors
    /// The errors are those of [`Self::handle`].
    pub unsafe fn handle_unchecked<U: 'static>(&self, object: &'static U) -> Result<Handle<U>> {
        Handle::new(&self.image, object, true)
    }

    /// The frozen content and what is known of it.
    pub fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// No reference into the arena, no [`ArenaRef`](super::ArenaRef) of it and nothing allocated from it may be used
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

#[cfg(feature = "pool")]
impl<T: 'static> Frozen<T> {
    /// Gives the memory up and keeps the addresses for nothing, for good: a reference that is still followed is a
    /// SIGSEGV and never reads another's memory, as with arenas that were growing when a child was forked. Handles are
    /// refused. Children forked from now on do not have the arena.
    ///
    /// # Safety
    /// The conditions are those of [`Self::release`], but for references, which fault.
    pub(crate) unsafe fn withdraw(self) -> Result<()> {
        // SAFETY: passed on to the caller.
        let Some(range) = (unsafe { self.disown() })? else { return Ok(()) };
        // SAFETY: the range is the arena's, and who refers into it faults as the caller was told.
        unsafe { map::blank(range) }.map_err(|e| Error::os("mmap(withdrawn arena)", e))
    }

    /// [`Self::release`] in a process that has the arena's descriptor in values besides, which are dropped later or never: the memory does not wait for them.
    ///
    /// # Safety
    /// The conditions are those of [`Self::release`].
    pub(crate) unsafe fn release_at_once(self) -> Result<()> {
        // SAFETY: passed on to the caller.
        let Some(range) = (unsafe { self.disown() })? else { return Ok(()) };
        // SAFETY: passed on to the caller.
        unsafe { map::unmap(range) }.map_err(|e| Error::os("munmap", e))
    }

    /// Takes the arena out of the table and lets its file go; its addresses, unless nobody can unmap them: then it stays, and so do its pages.
    ///
    /// # Safety
    /// The conditions are those of [`Self::release`], but for references: the memory is mapped still.
    unsafe fn disown(self) -> Result<Option<Range>> {
        if self.image.for_good {
            return Ok(None);
        }
        // SAFETY: passed on to the caller.
        drop(unsafe { registry::leave(self.inner) });
        // A forked process has the descriptor in values that are never dropped here. It would keep the memory.
        if matches!(self.image.origin, OriginalsLocation::Sealed) {
            // SAFETY: the number is the image's own, and who still maps or reads the file faults or fails as the caller was told.
            unsafe { memfd::forget(self.image.file.as_fd()) }?;
        }
        Ok(Some(self.image.range))
    }
}

impl Arena {
    /// Gives a growing arena's memory back.
    ///
    /// # Safety
    /// No reference into the arena, no [`ArenaRef`](super::ArenaRef) of it and nothing allocated from it may be used
    /// any more, by any thread.
    ///
    /// # Errors
    /// None known.
    pub unsafe fn release(self) -> Result<()> {
        let inner = self.known()?;
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
