//! A vector of fixed capacity.
//!
//! # Safety
//! Elements are read and written only under the lock. Elements at and above the length belong to nobody but its holder.
#![expect(unsafe_code, reason = "the lock makes access exclusive")]

use super::lock::{Lock, LockGuard, WithLocks, in_order, make};
use super::mapping::{Shared, SharedMapping, Slots};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::robust::LockPatience;
use bytemuck::Pod;
use std::fmt;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The vector's head as it lies in the shared memory, beside the elements.
#[repr(C)]
struct Head {
    lock: Lock,
    /// Elements. Stored last, so that a push that death interrupts did not happen.
    len: AtomicUsize,
    /// One more than the place that the spare element shall go to; 0 for none. Who dies in `set` has promised the
    /// whole element or nothing.
    pending: AtomicUsize,
}

// SAFETY: zeroes are numbers, and the lock is the only one.
unsafe impl WithLocks for Head {
    const LOCKS: &'static [usize] = &[offset_of!(Head, lock)];
}

/// A vector of plain values that processes share, made by [`SharedArena::vec`](super::SharedArena::vec). Its
/// capacity is fixed. A clone is the same vector.
///
/// Each call happens as a whole or, if the process dies in it, not at all. Only [`with_lock`](Self::with_lock) runs
/// code of yours, and a death or a panic in that makes every later call an error
/// ([`Error::is_owner_died`]) until [`repair`](Self::repair).
///
/// ```
/// use cowbell::shared::SharedArena;
///
/// let arena = SharedArena::new("squares", 1 << 16)?;
/// let squares = arena.vec::<u64>(100)?;
/// squares.extend_from_slice(&[1, 4, 9])?;
/// squares.with_lock(|squares| squares[0] += 80)?;
/// assert_eq!(squares.get(0)?, Some(81));
/// # Ok::<(), cowbell::Error>(())
/// ```
pub struct SharedVec<T> {
    head: Shared<Head>,
    /// The elements, and one to spare.
    slots: Slots<T>,
    capacity: usize,
}

impl<T: Pod + Send> SharedVec<T> {
    pub(super) fn new(mapping: &Arc<SharedMapping>, capacity: usize) -> Result<Self> {
        let too_many = || Error::invalid(format!("{capacity} elements are no shared vector's capacity"));
        if capacity == 0 {
            return Err(too_many());
        }
        let slots = Slots::new(mapping, capacity.checked_add(1).ok_or_else(too_many)?)?;
        Ok(Self { head: make(mapping)?, slots, capacity })
    }

    /// The most elements it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.head.len.load(Ordering::Acquire)
    }

    /// Tells whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds an element at the end.
    ///
    /// # Errors
    /// Out of capacity; as [`Self::with_lock`].
    pub fn push(&self, value: T) -> Result<()> {
        self.extend_from_slice(&[value])
    }

    /// Adds all elements at the end, or none.
    ///
    /// # Errors
    /// Out of capacity; as [`Self::with_lock`].
    pub fn extend_from_slice(&self, values: &[T]) -> Result<()> {
        let _held = self.lock()?;
        let len = self.len();
        let end = len.checked_add(values.len()).filter(|&end| end <= self.capacity);
        let full = || Error::new(ErrorKind::Full { capacity: self.capacity, asked: values.len() });
        let end = end.ok_or_else(full)?;
        for (at, &value) in (len..).zip(values) {
            // SAFETY: the lock is held.
            unsafe { self.slots.set(at, value) };
        }
        in_order();
        self.head.len.store(end, Ordering::Release);
        Ok(())
    }

    /// Takes the last element away.
    ///
    /// # Errors
    /// Those of [`Self::with_lock`].
    pub fn pop(&self) -> Result<Option<T>> {
        let _held = self.lock()?;
        let Some(last) = self.len().checked_sub(1) else { return Ok(None) };
        // SAFETY: the lock is held.
        let value = unsafe { self.slots.get(last) };
        self.head.len.store(last, Ordering::Release);
        Ok(Some(value))
    }

    /// An element's value; `None` if there are not so many.
    ///
    /// # Errors
    /// Those of [`Self::with_lock`].
    pub fn get(&self, index: usize) -> Result<Option<T>> {
        let _held = self.lock()?;
        if index >= self.len() {
            return Ok(None);
        }
        // SAFETY: the lock is held.
        Ok(Some(unsafe { self.slots.get(index) }))
    }

    /// Replaces an element.
    ///
    /// # Errors
    /// Invalid if there are not so many; as [`Self::with_lock`].
    pub fn set(&self, index: usize, value: T) -> Result<()> {
        let _held = self.lock()?;
        let len = self.len();
        if index >= len {
            return Err(Error::invalid(format!("there is no element {index}: the shared vector has {len}")));
        }
        // SAFETY: the lock is held.
        unsafe { self.slots.set(self.capacity, value) };
        in_order();
        self.head.pending.store(index + 1, Ordering::Release);
        in_order();
        self.finish_set();
        Ok(())
    }

    /// Copies all elements.
    ///
    /// # Errors
    /// Those of [`Self::with_lock`].
    pub fn to_vec(&self) -> Result<Vec<T>> {
        let _held = self.lock()?;
        // SAFETY: the lock is held until the copy is made.
        Ok(unsafe { self.slots.slice_mut(self.len()) }.to_vec())
    }

    /// Takes all elements away.
    ///
    /// # Errors
    /// Those of [`Self::with_lock`].
    pub fn clear(&self) -> Result<()> {
        let _held = self.lock()?;
        self.head.len.store(0, Ordering::Release);
        Ok(())
    }

    /// Waits for the lock and gives all elements to a closure, which nobody else sees or changes meanwhile.
    ///
    /// # Errors
    /// Owner died: an earlier closure did not come to its end, and nobody called [`Self::repair`]. EDEADLK when called
    /// from a closure of the same vector.
    pub fn with_lock<R>(&self, work: impl FnOnce(&mut [T]) -> R) -> Result<R> {
        Ok(self.run(self.lock()?, work))
    }

    /// [`Self::with_lock`] that accepts elements that are half changed, and afterwards they count as whole.
    ///
    /// # Errors
    /// EDEADLK, as before.
    pub fn repair<R>(&self, work: impl FnOnce(&mut [T]) -> R) -> Result<R> {
        Ok(self.run(self.lock_anyway()?, work))
    }

    fn run<R>(&self, held: LockGuard<'_>, work: impl FnOnce(&mut [T]) -> R) -> R {
        held.begin();
        // SAFETY: the lock is held until the closure is over, and no fork of ours happens meanwhile.
        let result = work(unsafe { self.slots.slice_mut(self.len()) });
        // Not after a panic.
        held.end();
        result
    }

    fn lock(&self) -> Result<LockGuard<'_>> {
        let held = self.lock_anyway()?;
        if held.is_dirty() {
            let hint = "SharedVec::repair gives the elements and makes them count as whole";
            return Err(Error::new(ErrorKind::OwnerDied).with_hint(hint));
        }
        Ok(held)
    }

    fn lock_anyway(&self) -> Result<LockGuard<'_>> {
        let held = self.head.lock.acquire(LockPatience::Endless)?;
        self.finish_set();
        Ok(held)
    }

    /// Does what a `set`, perhaps of one who died in it, has promised. Under the lock.
    fn finish_set(&self) {
        let Some(index) = self.head.pending.load(Ordering::Acquire).checked_sub(1) else { return };
        // SAFETY: the lock is held.
        let value = unsafe { self.slots.get(self.capacity) };
        // SAFETY: the lock is held.
        unsafe { self.slots.set(index, value) };
        in_order();
        self.head.pending.store(0, Ordering::Release);
    }
}

impl<T> Clone for SharedVec<T> {
    fn clone(&self) -> Self {
        Self { head: self.head.clone(), slots: self.slots.clone(), capacity: self.capacity }
    }
}

impl<T> fmt::Debug for SharedVec<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedVec({} of {})", self.head.len.load(Ordering::Relaxed), self.capacity)
    }
}
