//! Putting values into a growing arena, also while another thread freezes it: then that is an error.
//!
//! # Safety
//! Memory that was taken is written under [`Writing`], which a freeze waits for. Who takes memory just before a freeze and comes to
//! write after it finds the arena frozen.
#![expect(unsafe_code, reason = "values are written to raw memory")]

use super::memory::ArenaRef;
use super::refusal::quietly;
use super::signal_safe::table;
use crate::error::{Error, ErrorKind, Result};
use allocator_api2::alloc::Layout;
use std::panic::Location;
use std::sync::{PoisonError, RwLockReadGuard};

/// The most values of an iterator that are moved at a time, and the most bytes that they may have together.
const CHUNK: usize = 64;
const CHUNK_BYTES: usize = 1 << 14;

impl ArenaRef {
    /// Moves a value into the arena. It is never dropped.
    ///
    /// # Errors
    /// Out of capacity, out of memory, frozen, or not this process's arena.
    #[track_caller]
    pub fn alloc<T: 'static>(&self, value: T) -> Result<&'static mut T> {
        let place = self.site_at::<T>(Location::caller()).take(Layout::new::<T>())?.cast::<T>();
        let writing = self.writing_to(size_of::<T>())?;
        // SAFETY: `take` gave memory for one T, aligned and used by nobody else.
        unsafe { place.write(value) };
        drop(writing);
        // SAFETY: initialised just now, never given back, and the mapping stays.
        Ok(unsafe { &mut *place.as_ptr() })
    }

    /// Copies a slice into the arena. The copy begins at a multiple of 16 bytes, whatever its type: what is read in place from bytes may need that.
    ///
    /// # Errors
    /// Those of [`Self::alloc`].
    #[track_caller]
    pub fn alloc_slice<T: Copy + 'static>(&self, values: &[T]) -> Result<&'static mut [T]> {
        let place = self.site_at::<T>(Location::caller()).take(Layout::for_value(values))?.cast::<T>();
        let writing = self.writing_to(size_of_val(values))?;
        // SAFETY: `take` gave memory for as many T, and fresh memory does not overlap `values`.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), place.as_ptr(), values.len()) };
        drop(writing);
        // SAFETY: initialised just now, never given back, and the mapping stays.
        Ok(unsafe { std::slice::from_raw_parts_mut(place.as_ptr(), values.len()) })
    }

    /// Copies a string into the arena.
    ///
    /// # Errors
    /// Those of [`Self::alloc`].
    #[track_caller]
    pub fn alloc_str(&self, text: &str) -> Result<&'static mut str> {
        let bytes = self.alloc_slice(text.as_bytes())?;
        // SAFETY: the bytes are a copy of a str's.
        Ok(unsafe { std::str::from_utf8_unchecked_mut(bytes) })
    }

    /// Moves everything an iterator yields into the arena, as one slice. The values are never dropped.
    ///
    /// # Errors
    /// Those of [`Self::alloc`]; what was taken from the iterator until then is dropped.
    #[track_caller]
    pub fn alloc_iter<T: 'static>(&self, values: impl IntoIterator<Item = T>) -> Result<&'static mut [T]> {
        let mut values = values.into_iter();
        let mut list = Unfinished(Some(super::Vec::new_in(self.site_at::<T>(Location::caller()))));
        list.reserve(values.size_hint().0)?;
        // The iterator is the user's code and may itself freeze, so it does not run while the freeze is held up.
        let many = (CHUNK_BYTES / size_of::<T>().max(1)).clamp(1, CHUNK);
        let mut chunk = std::vec::Vec::new();
        loop {
            chunk.extend(values.by_ref().take(many));
            if chunk.is_empty() {
                return list.finish();
            }
            list.append(&mut chunk)?;
        }
    }
}

/// A list that an iterator is moved into.
///
/// Its values are dropped outside of the arena, which may have been frozen: a destructor may write to its value.
struct Unfinished<T: 'static>(Option<super::Vec<T>>);

impl<T: 'static> Unfinished<T> {
    fn reserve(&mut self, more: usize) -> Result<()> {
        let Some(list) = self.0.as_mut().filter(|list| list.capacity() - list.len() < more) else { return Ok(()) };
        let handle = *list.allocator();
        quietly(|| list.try_reserve(more)).map_err(|_| {
            let why = || handle.known().map_or_else(|e| e, |inner| inner.refused(usize::MAX));
            handle.take_failure().unwrap_or_else(why)
        })
    }

    /// Moves a chunk to the list's end.
    fn append(&mut self, chunk: &mut std::vec::Vec<T>) -> Result<()> {
        self.reserve(chunk.len())?;
        let Some(list) = &mut self.0 else { return Ok(()) };
        let writing = list.allocator().writing_to(size_of::<T>())?;
        list.extend(chunk.drain(..));
        drop(writing);
        Ok(())
    }

    fn finish(mut self) -> Result<&'static mut [T]> {
        let mut list = self.0.take().ok_or_else(|| Error::invalid("the list is gone"))?;
        list.shrink_to_fit();
        Ok(list.leak())
    }
}

impl<T: 'static> Drop for Unfinished<T> {
    fn drop(&mut self) {
        if let Some(list) = self.0.take() {
            list.into_iter().for_each(drop);
        }
    }
}

/// An arena is not frozen while this lives. Nothing of the user's may run meanwhile: it might freeze the arena.
pub(super) struct Writing<'a>(#[expect(dead_code, reason = "held, not used")] RwLockReadGuard<'a, ()>);

impl ArenaRef {
    /// Holds a freeze up while memory that was taken is written, in a process that may write there.
    ///
    /// # Errors
    /// The arena is frozen: it was while the memory was taken, or since.
    pub(super) fn writing(&self) -> Result<Writing<'static>> {
        let inner = self.known()?;
        let held = inner.writing.read().unwrap_or_else(PoisonError::into_inner);
        if inner.image().is_some() {
            return Err(Error::new(ErrorKind::Frozen { arena: inner.name.to_string() }));
        }
        Ok(Writing(held))
    }

    /// [`Self::writing`], without a reason where this process cannot write there.
    pub(super) fn writing_here(&self) -> Option<Writing<'static>> {
        let (slot, generation) = self.number();
        let inner = table::find(slot, generation)?;
        if inner.image().is_some() || inner.process != table::process_number() {
            return None;
        }
        let held = inner.writing.read().unwrap_or_else(PoisonError::into_inner);
        inner.image().is_none().then_some(Writing(held))
    }

    /// The same as [`Self::writing`] for so many bytes; what has no size is not written.
    pub(super) fn writing_to(&self, len: usize) -> Result<Option<Writing<'static>>> {
        (len > 0).then(|| self.writing()).transpose()
    }
}
