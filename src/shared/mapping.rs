//! The memory of a shared arena: one mapping, a bump allocator that all processes use, and handles.
//!
//! # Safety
//! Memory is handed out once, because the only way to it is one compare-and-exchange of the bump pointer,
//! which lies in the shared memory; it is never given back. It stays mapped, in this process, as long as an
//! [`Arc`] of the [`SharedMapping`] lives, and each handle has one. A forked process has the same mapping at the same
//! addresses, and its own counts.
#![expect(unsafe_code, reason = "an allocator hands out raw memory")]

use super::shareable::Shareable;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::map::{self, Access, Range};
use crate::sys::{self, limits, memfd};
use std::alloc::Layout;
use std::fmt;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Memory is committed in steps of this many bytes: a system call per step, not per page.
const COMMIT_STEP: usize = 4 << 20;

/// The start of the shared memory. Both numbers only grow.
struct MappingHeader {
    /// Bytes from the start that were handed out, this header's page among them.
    used: AtomicUsize,
    /// Bytes from the start that have memory behind them.
    committed: AtomicUsize,
}

/// One arena's memory as this process has it. Unmapped when dropped.
pub(super) struct SharedMapping {
    pub(super) name: Box<str>,
    /// The most that can be handed out, in bytes.
    pub(super) capacity: usize,
    range: Range,
    /// Kept for committing.
    file: OwnedFd,
}

impl SharedMapping {
    pub(super) fn new(name: String, capacity: usize) -> Result<Self> {
        if name.is_empty() || name.len() > 200 || name.chars().any(char::is_control) {
            return Err(Error::invalid("a shared arena's name has 1 to 200 bytes and no control characters"));
        }
        let too_large = || Error::invalid(format!("{capacity} bytes are no shared arena's capacity"));
        let page = sys::page_size();
        let capacity = page.round_up(capacity).filter(|&bytes| bytes > 0).ok_or_else(too_large)?;
        let len = capacity.checked_add(page.bytes()).filter(|&len| isize::try_from(len).is_ok());
        let len = len.ok_or_else(too_large)?;
        let file = memfd::create(&format!("cowbell-shared:{name}"))?;
        memfd::set_len(file.as_fd(), len as u64)?;
        let range = map::reserve(len, page.bytes())?;
        // From here on the range is unmapped by its owner, whatever happens.
        let mapping = Self { name: name.into(), capacity, range, file };
        let committed = mapping.commit(0, page.bytes())?;
        // SAFETY: the range was just reserved and nobody was given an address in it.
        let mapped = unsafe { map::map_shared_at(range, Access::ReadWrite, mapping.file.as_fd(), 0) };
        mapped.map_err(|e| Error::os("mmap(shared arena)", e))?;
        mapping.header()?.committed.store(committed, Ordering::Relaxed);
        mapping.header()?.used.store(page.bytes(), Ordering::Release);
        Ok(mapping)
    }

    fn header(&self) -> Result<&MappingHeader> {
        let place = map::pointer_at(self.range.start).ok_or_else(|| Error::invalid("a mapping at address 0"))?;
        // SAFETY: the first page is mapped while `self` lives, zeroes are a header, and nothing else is ever put
        // there: the bump pointer starts behind it.
        Ok(unsafe { place.cast::<MappingHeader>().as_ref() })
    }

    /// Bytes handed out.
    pub(super) fn used(&self) -> usize {
        let used = self.header().map_or(0, |header| header.used.load(Ordering::Relaxed));
        used.saturating_sub(sys::page_size().bytes())
    }

    /// Takes zeroed memory for a layout; by any process, at any time. Who dies in here has taken nothing.
    pub(super) fn take(&self, layout: Layout) -> Result<NonNull<u8>> {
        if layout.size() == 0 {
            return Ok(NonNull::new(std::ptr::without_provenance_mut(layout.align())).unwrap_or(NonNull::dangling()));
        }
        let header = self.header()?;
        let full = || {
            let (arena, capacity, asked) = (self.name.to_string(), self.capacity, layout.size());
            Error::new(ErrorKind::OutOfCapacity { arena, capacity, asked })
                .with_hint("give the shared arena a larger capacity: only addresses are taken up front")
        };
        let mut used = header.used.load(Ordering::Relaxed);
        loop {
            let start = (self.range.start + used).checked_next_multiple_of(layout.align()).ok_or_else(full)?;
            let end = (start - self.range.start).checked_add(layout.size());
            let end = end.filter(|&end| end <= self.range.len).ok_or_else(full)?;
            // Committed first: memory that was handed out has memory behind it, whoever dies when. Two that
            // commit the same do no harm.
            let committed = header.committed.load(Ordering::Acquire);
            if end > committed {
                let committed = self.commit(committed, end)?;
                header.committed.fetch_max(committed, Ordering::AcqRel);
            }
            match header.used.compare_exchange_weak(used, end, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return map::pointer_at(start).ok_or_else(full),
                Err(now) => used = now,
            }
        }
    }

    /// Puts memory behind the file from `from` to at least `end`; returns to where.
    fn commit(&self, from: usize, end: usize) -> Result<usize> {
        let step = (end - from).next_multiple_of(COMMIT_STEP).min(self.range.len - from);
        // A step to spare for what else the process needs before the next check.
        let needed = step.saturating_add(COMMIT_STEP) as u64;
        if let Some(headroom) = limits::memory_headroom().filter(|headroom| headroom.bytes < needed) {
            return Err(Error::new(ErrorKind::OutOfMemory { asked: step, limit: headroom.to_string() }));
        }
        memfd::allocate(self.file.as_fd(), from as u64, step as u64).map_err(|e| {
            let limit = format!("the kernel refused: {}", Error::os("fallocate", e));
            Error::new(ErrorKind::OutOfMemory { asked: step, limit })
        })?;
        Ok(from + step)
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: `new` reserved the range, and whoever has an address in it has an `Arc` of this.
        let unmapped = unsafe { map::unmap(self.range) };
        debug_assert!(unmapped.is_ok());
    }
}

/// A handle to an object in a [`SharedArena`](super::SharedArena): the same object in every forked process.
///
/// A clone is another handle to the same object. The object is never dropped and its place never used again;
/// the arena's memory is unmapped when this process has neither the arena nor a handle any more.
pub struct Shared<T: ?Sized> {
    place: NonNull<T>,
    mapping: Arc<SharedMapping>,
}

// SAFETY: it only ever gives `&T`, and the object is never dropped.
unsafe impl<T: ?Sized + Sync> Send for Shared<T> {}
// SAFETY: as before.
unsafe impl<T: ?Sized + Sync> Sync for Shared<T> {}

// A panic while somebody uses the object is like a death of another process: those types care for themselves.
impl<T: ?Sized> UnwindSafe for Shared<T> {}
impl<T: ?Sized> RefUnwindSafe for Shared<T> {}

impl<T> Shared<T> {
    /// Moves a value into the arena.
    pub(super) fn new(mapping: &Arc<SharedMapping>, value: T) -> Result<Self>
    where
        T: Shareable,
    {
        const { assert!(!std::mem::needs_drop::<T>(), "what is shared is never dropped") };
        let place = mapping.take(Layout::new::<T>())?.cast::<T>();
        // SAFETY: `take` gave memory for one T, aligned and used by nobody else.
        unsafe { place.write(value) };
        Ok(Self { place, mapping: mapping.clone() })
    }

    /// An object that `init` makes in its place.
    ///
    /// # Safety
    /// When `init` returns `Ok`, there is a `T` at the place it was given, which may be used by all
    /// processes at this address.
    pub(super) unsafe fn with(
        mapping: &Arc<SharedMapping>,
        init: impl FnOnce(NonNull<T>) -> Result<()>,
    ) -> Result<Self> {
        let place = mapping.take(Layout::new::<T>())?.cast::<T>();
        init(place)?;
        Ok(Self { place, mapping: mapping.clone() })
    }
}

impl<T> Shared<[T]> {
    /// Zeroes.
    pub(super) fn zeroed(mapping: &Arc<SharedMapping>, count: usize) -> Result<Self>
    where
        T: Shareable + bytemuck::Zeroable,
    {
        const { assert!(!std::mem::needs_drop::<T>(), "what is shared is never dropped") };
        let place = take_slice::<T>(mapping, count)?;
        Ok(Self { place: NonNull::slice_from_raw_parts(place, count), mapping: mapping.clone() })
    }
}

fn take_slice<T>(mapping: &SharedMapping, count: usize) -> Result<NonNull<T>> {
    let layout = Layout::array::<T>(count).map_err(|_| Error::invalid(format!("{count} objects are too many")))?;
    Ok(mapping.take(layout)?.cast::<T>())
}

impl<T: ?Sized> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new`, `with` or `zeroed` put an object there, which stays as long as the mapping; only those
        // who may write through a `&T` ever do.
        unsafe { self.place.as_ref() }
    }
}

impl<T: ?Sized> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self { place: self.place, mapping: self.mapping.clone() }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        T::fmt(self, f)
    }
}

/// Places for plain values in shared memory. Who may touch them when is settled by a lock beside them.
pub(super) struct Slots<T> {
    first: NonNull<T>,
    count: usize,
    _mapping: Arc<SharedMapping>,
}

// SAFETY: it is a place; those who read and write through it hold a lock, as they promise.
unsafe impl<T: Send> Send for Slots<T> {}
// SAFETY: as before.
unsafe impl<T: Send> Sync for Slots<T> {}

impl<T> UnwindSafe for Slots<T> {}
impl<T> RefUnwindSafe for Slots<T> {}

impl<T: bytemuck::Pod> Slots<T> {
    /// Zeroes, which are values of any `T`.
    pub(super) fn new(mapping: &Arc<SharedMapping>, count: usize) -> Result<Self> {
        Ok(Self { first: take_slice(mapping, count)?, count, _mapping: mapping.clone() })
    }

    fn at(&self, index: usize) -> *mut T {
        assert!(index < self.count, "place {index} of {}", self.count);
        // SAFETY: the place is one of those that were taken.
        unsafe { self.first.add(index) }.as_ptr()
    }

    /// A copy of one value.
    ///
    /// # Safety
    /// Nobody writes it meanwhile: the caller holds the lock.
    pub(super) unsafe fn get(&self, index: usize) -> T {
        // SAFETY: in bounds and aligned, whatever bytes are there are a `T`; the rest is the caller's promise.
        unsafe { self.at(index).read() }
    }

    /// Replaces one value.
    ///
    /// # Safety
    /// Nobody reads or writes it meanwhile: the caller holds the lock.
    pub(super) unsafe fn set(&self, index: usize, value: T) {
        // SAFETY: in bounds and aligned; the rest is the caller's promise.
        unsafe { self.at(index).write(value) }
    }

    /// The first `count` values.
    ///
    /// # Safety
    /// Nobody else reads or writes them as long as the slice lives: the caller holds the lock so long.
    #[expect(clippy::mut_from_ref, reason = "the lock makes it exclusive")]
    pub(super) unsafe fn slice_mut(&self, count: usize) -> &mut [T] {
        // SAFETY: as many places were taken, whatever bytes are there are values of T; the rest is the
        // caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), count.min(self.count)) }
    }
}

impl<T> Clone for Slots<T> {
    fn clone(&self) -> Self {
        Self { first: self.first, count: self.count, _mapping: self._mapping.clone() }
    }
}
