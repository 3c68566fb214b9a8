//! Allocating from a growing arena.
//!
//! # Safety
//! Memory handed out lies in the arena's mapping, inside what is committed, and is handed out
//! once until it is given back: [`Space`] keeps count. The mapping stays until `release`, which is unsafe.
//! Memory that is free is zero, so that a frozen arena holds nothing of what was freed while it grew.
#![expect(unsafe_code, reason = "an allocator hands out raw memory")]

use super::growing::Growing;
use super::inner::Inner;
use super::refusal::{Refusal, is_quiet};
use super::signal_safe::table;
use super::site::{Site, SiteId};
use crate::error::{Error, Result};
use crate::sys::map;
use allocator_api2::alloc::{AllocError, Allocator, Layout};
use std::fmt;
use std::panic::Location;
use std::ptr::NonNull;
use std::sync::{MutexGuard, PoisonError};

/// A copyable, `'static` handle to an arena: an allocator for `Vec`, `Box` and `HashMap`.
///
/// Thread-safe. Allocates while the arena grows; once it is frozen, allocation fails and freeing
/// does nothing.
///
/// The handle holds a number and no pointer, so that it keeps its meaning in the data of an arena that another process
/// adopts. In a process that does not have the arena, it has no name, allocation fails and freeing does nothing.
#[derive(Clone, Copy)]
pub struct ArenaRef {
    slot: u16,
    generation: u16,
    site: SiteId,
}

impl ArenaRef {
    pub(super) fn new(inner: &Inner) -> Self {
        Self { slot: inner.slot, generation: inner.generation, site: SiteId::default() }
    }

    fn inner(&self) -> Option<&'static Inner> {
        table::find(self.slot, self.generation)
    }

    /// The arena, in a process that has it.
    pub(super) fn known(&self) -> Result<&'static Inner> {
        self.inner().ok_or_else(|| self.unknown())
    }

    fn unknown(&self) -> Error {
        let (slot, generation) = (self.slot, self.generation);
        Error::invalid(format!("arena {slot}.{generation} is not in this process"))
            .with_hint("its owner released it, or it was built in another process")
    }

    /// The first address of the arena.
    pub(super) fn range_start(&self) -> Result<usize> {
        Ok(self.known()?.range.start)
    }

    /// Slot and generation.
    pub(super) fn number(&self) -> (u16, u16) {
        (self.slot, self.generation)
    }

    /// The arena's name.
    pub fn name(&self) -> &'static str {
        self.inner().map_or("(of another process)", |inner| &inner.name)
    }

    /// The most the arena can hold, in bytes; 0 for an arena that did not grow in this process.
    pub fn capacity(&self) -> usize {
        self.inner().map_or(0, |inner| inner.capacity)
    }

    /// Bytes from the arena's start to the end of the last allocation.
    pub fn used(&self) -> usize {
        self.inner().map_or(0, |inner| inner.image().map_or_else(|| inner.growing().used(), |image| image.used()))
    }

    /// Tells whether the arena is frozen.
    pub fn is_frozen(&self) -> bool {
        self.inner().is_none_or(|inner| inner.image().is_some())
    }

    /// The same arena, with every allocation through the new handle recorded as a `T` asked for by
    /// the calling line (if the arena records sites): `Vec::new_in(arena.site::<Edge>())`.
    #[track_caller]
    pub fn site<T: ?Sized>(&self) -> Self {
        self.site_at::<T>(Location::caller())
    }

    pub(super) fn site_at<T: ?Sized>(&self, location: &'static Location<'static>) -> Self {
        let site = Site { type_name: std::any::type_name::<T>(), location };
        let id = self.inner().and_then(|inner| inner.growing().recorder.as_mut().map(|all| all.id_of(site)));
        Self { site: id.unwrap_or_default(), ..*self }
    }

    /// Why the last allocation by a collection failed, once: `try_reserve` and its like cannot say.
    pub fn take_failure(&self) -> Option<Error> {
        self.inner()?.growing().failure.take()
    }

    /// Takes memory for a layout.
    pub(super) fn take(&self, layout: Layout) -> Result<NonNull<u8>> {
        if layout.size() == 0 {
            return Ok(dangling(layout));
        }
        self.known()?.take(layout, self.site)
    }
}

impl Inner {
    /// Takes memory for a layout that is not empty.
    pub(super) fn take(&self, layout: Layout, site: SiteId) -> Result<NonNull<u8>> {
        self.try_take(layout, site).map_err(|refusal| self.error(refusal, layout.size()))
    }

    /// The same; whoever is refused for want of room learns it without further memory.
    fn try_take(&self, layout: Layout, site: SiteId) -> Result<NonNull<u8>, Refusal> {
        let mut growing = self.growing();
        if growing.file.is_none() {
            return Err(Refusal::Frozen);
        }
        self.check_process().map_err(Refusal::Because)?;
        let base = self.range.start;
        let offset = growing.space.take(layout.size(), layout.align(), base).ok_or(Refusal::Full)?;
        if let Err(e) = growing.commit(offset + layout.size()) {
            growing.space.give(offset, layout.size());
            return Err(Refusal::Because(e));
        }
        if let Some(recorder) = &mut growing.recorder {
            recorder.add(offset, layout.size(), site);
        }
        map::pointer_at(base + offset).ok_or(Refusal::Full)
    }

    /// Why nothing more can be allocated: it is frozen, or full.
    pub(super) fn refused(&self, asked: usize) -> Error {
        self.error(if self.image().is_some() { Refusal::Frozen } else { Refusal::Full }, asked)
    }

    pub(super) fn check_process(&self) -> Result<()> {
        if self.process == table::process_number() {
            return Ok(());
        }
        Err(Error::invalid(format!("arena `{}` was growing when this process was forked off", self.name))
            .with_hint("freeze it before the fork, or build a new one in the child"))
    }

    pub(super) fn growing(&self) -> MutexGuard<'_, Growing> {
        // A panic cannot leave the state half changed: nothing in here calls the user's code.
        self.growing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Can this process still allocate from the arena?
    fn is_growing_here(&self) -> bool {
        self.growing().file.is_some() && self.check_process().is_ok()
    }
}

fn dangling(layout: Layout) -> NonNull<u8> {
    NonNull::new(std::ptr::without_provenance_mut(layout.align())).unwrap_or(NonNull::dangling())
}

// SAFETY: a block stays valid and its own until it is given back, because `Space` hands out no byte
// twice and the mapping stays until the unsafe `release`; copies of an `ArenaRef` are the same
// allocator. Frozen blocks stay readable.
unsafe impl Allocator for ArenaRef {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            return Ok(NonNull::slice_from_raw_parts(dangling(layout), 0));
        }
        let taken = match self.inner() {
            Some(inner) => inner.try_take(layout, self.site),
            None => Err(Refusal::Because(self.unknown())),
        };
        match taken {
            Ok(place) => Ok(NonNull::slice_from_raw_parts(place, layout.size())),
            Err(refusal) => {
                // The trait has no room for the reason, so it is told, and kept for who asks.
                refusal.tell(self.name(), self.capacity(), layout.size());
                if let Some(inner) = self.inner() {
                    let e = inner.error(refusal, layout.size());
                    // The program's logger does not run where the caller gets the error, which may hold a freeze up.
                    if !is_quiet() {
                        log::warn!("{e}");
                    }
                    inner.growing().failure = Some(e);
                }
                Err(AllocError)
            }
        }
    }

    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let block = self.allocate(layout)?;
        if layout.size() > 0 {
            let _writing = self.writing().map_err(|_| AllocError)?;
            // SAFETY: the block was allocated just now, and is as long as the layout.
            unsafe { block.cast::<u8>().write_bytes(0, layout.size()) };
        }
        Ok(block)
    }

    unsafe fn deallocate(&self, place: NonNull<u8>, layout: Layout) {
        let Some(inner) = self.inner().filter(|_| layout.size() > 0) else { return };
        let mut growing = inner.growing();
        if growing.file.is_none() || inner.check_process().is_err() {
            return;
        }
        let offset = place.addr().get() - inner.range.start;
        // SAFETY: the caller gives the block up.
        unsafe { place.write_bytes(0, layout.size()) };
        growing.space.give(offset, layout.size());
        if let Some(recorder) = &mut growing.recorder {
            recorder.remove(offset);
        }
    }

    unsafe fn grow(&self, place: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if self.resize(place, old, new) {
            return Ok(NonNull::slice_from_raw_parts(place, new.size()));
        }
        // SAFETY: passed on to the caller; the old block is the smaller one.
        unsafe { self.move_to_new(place, old, new, old.size()) }
    }

    unsafe fn shrink(&self, place: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let kept = Ok(NonNull::slice_from_raw_parts(place, new.size()));
        let stays = || {
            place.addr().get().is_multiple_of(new.align()) && self.inner().is_none_or(|inner| !inner.is_growing_here())
        };
        if stays() || self.resize(place, old, new) {
            return kept;
        }
        // SAFETY: passed on to the caller; the new block is the smaller one.
        let moved = unsafe { self.move_to_new(place, old, new, new.size()) };
        // The arena may have been frozen since.
        if moved.is_err() && stays() { kept } else { moved }
    }
}

impl ArenaRef {
    /// Moves a block's first `len` bytes to a new block and gives the old one back.
    ///
    /// # Safety
    /// The caller owns the block and gives it up, if this succeeds; neither layout is shorter than `len`.
    unsafe fn move_to_new(
        &self,
        place: NonNull<u8>,
        old: Layout,
        new: Layout,
        len: usize,
    ) -> Result<NonNull<[u8]>, AllocError> {
        let moved = self.allocate(new)?;
        if len > 0 {
            // In an arena that was frozen since, nobody can write.
            let _writing = self.writing().map_err(|_| AllocError)?;
            // SAFETY: the caller owns so many bytes there, and a fresh block does not overlap them.
            unsafe { std::ptr::copy_nonoverlapping(place.as_ptr(), moved.cast().as_ptr(), len) };
        }
        // SAFETY: the caller gives the old block up.
        unsafe { self.deallocate(place, old) };
        Ok(moved)
    }

    /// Resizes a block where it lies; false when that cannot be done.
    fn resize(&self, place: NonNull<u8>, old: Layout, new: Layout) -> bool {
        if old.size() == 0 || new.size() == 0 || !place.addr().get().is_multiple_of(new.align()) {
            return false;
        }
        let Some(inner) = self.inner() else { return false };
        let mut growing = inner.growing();
        if growing.file.is_none() || inner.check_process().is_err() {
            return false;
        }
        let offset = place.addr().get() - inner.range.start;
        if !growing.space.resize(offset, old.size(), new.size()) {
            return false;
        }
        if growing.commit(offset + new.size()).is_err() {
            growing.space.resize(offset, new.size(), old.size());
            return false;
        }
        if let Some(cut) = old.size().checked_sub(new.size()) {
            // SAFETY: these bytes were the block's and are given up by the caller.
            let tail = unsafe { place.add(new.size()) };
            // SAFETY: as above.
            unsafe { tail.write_bytes(0, cut) };
        }
        if let Some(recorder) = &mut growing.recorder {
            recorder.resize(offset, new.size());
        }
        true
    }
}

impl fmt::Debug for ArenaRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArenaRef({})", self.name())
    }
}
