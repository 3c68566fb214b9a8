//! A robust mutex around a plain value.
//!
//! # Safety
//! The value is read and written only by who holds the lock. References to it live only inside a closure: a leaked
//! guard's lock is given free by the kernel when its thread ends, and a reference that the guard had lent for longer
//! would still be there.
#![expect(unsafe_code, reason = "the lock makes access exclusive")]

use super::lock::deadline;
use super::lock::{Lock, LockError, LockGuard, WithLocks, make};
use super::mapping::{Shared, SharedMapping};
use crate::error::Result;
use crate::sys::robust::LockPatience;
use bytemuck::Pod;
use std::cell::UnsafeCell;
use std::fmt;
use std::mem::{ManuallyDrop, offset_of};
use std::sync::Arc;
use std::time::Duration;

/// The mutex as it lies in the shared memory.
#[repr(C)]
struct Protected<T> {
    lock: Lock,
    value: UnsafeCell<T>,
}

// SAFETY: the value is used only under the lock, by one thread of one process at a time.
unsafe impl<T: Send> Sync for Protected<T> {}

// SAFETY: zeroes are a Pod, and the lock is the only one.
unsafe impl<T: Pod> WithLocks for Protected<T> {
    const LOCKS: &'static [usize] = &[offset_of!(Protected<T>, lock)];
}

/// A value that processes change one at a time, made by [`SharedArena::mutex`](super::SharedArena::mutex).
///
/// A clone is the same mutex. A holder that dies, is killed or panics makes the next [`lock`](Self::lock) an error
/// that gives the guard all the same, [`LockError::OwnerDied`]; nobody waits for the dead. It stays an error
/// until [`SharedMutexGuard::mark_consistent`].
///
/// ```
/// use cowbell::shared::{LockError, SharedArena};
///
/// let arena = SharedArena::new("account", 1 << 16)?;
/// let balance = arena.mutex([100i64, 0])?;
/// balance.with(|[mine, yours]| {
///     *mine -= 30;
///     *yours += 30;
/// })?;
/// let guard = match balance.lock() {
///     Ok(guard) => guard,
///     Err(LockError::OwnerDied(mut guard)) => {
///         guard.set([100, 0]);
///         guard.mark_consistent();
///         guard
///     }
///     Err(e) => return Err(e.into()),
/// };
/// assert_eq!(guard.get(), [70, 30]);
/// # Ok::<(), cowbell::Error>(())
/// ```
pub struct SharedMutex<T> {
    object: Shared<Protected<T>>,
}

impl<T: Pod + Send> SharedMutex<T> {
    pub(super) fn new(mapping: &Arc<SharedMapping>, value: T) -> Result<Self> {
        let object = make::<Protected<T>>(mapping)?;
        // SAFETY: nobody else has the object yet.
        unsafe { object.value.get().write(value) };
        Ok(Self { object })
    }

    /// Waits for the lock.
    ///
    /// # Errors
    /// [`LockError::OwnerDied`] with the guard, [`LockError::Deadlock`].
    pub fn lock(&self) -> Result<SharedMutexGuard<T>, LockError<SharedMutexGuard<T>>> {
        self.acquire(LockPatience::Endless)
    }

    /// Takes the lock if nobody holds it.
    ///
    /// # Errors
    /// [`LockError::Busy`] if somebody else does; and as [`Self::lock`].
    pub fn try_lock(&self) -> Result<SharedMutexGuard<T>, LockError<SharedMutexGuard<T>>> {
        self.acquire(LockPatience::None)
    }

    /// Waits for the lock, at most so long.
    ///
    /// # Errors
    /// [`LockError::TimedOut`], and as [`Self::lock`].
    pub fn lock_timeout(&self, timeout: Duration) -> Result<SharedMutexGuard<T>, LockError<SharedMutexGuard<T>>> {
        self.acquire(deadline(Some(timeout)))
    }

    /// Waits for the lock and changes the value in its place.
    ///
    /// # Errors
    /// Those of [`Self::lock`]; then `change` was not called.
    pub fn with<R>(&self, change: impl FnOnce(&mut T) -> R) -> Result<R, LockError<SharedMutexGuard<T>>> {
        Ok(self.lock()?.with(change))
    }

    fn acquire(&self, patience: LockPatience) -> Result<SharedMutexGuard<T>, LockError<SharedMutexGuard<T>>> {
        let object = self.object.clone();
        let held = object.lock.acquire(patience)?;
        let consistent = !held.is_dirty();
        held.begin();
        // SAFETY: only the lifetime changes: the object stays where it is as long as the guard has its handle,
        // and the guard drops this before it.
        let held = unsafe { std::mem::transmute::<LockGuard<'_>, LockGuard<'static>>(held) };
        let panicking = std::thread::panicking();
        let guard = SharedMutexGuard { held: ManuallyDrop::new(held), object, consistent, panicking };
        if consistent { Ok(guard) } else { Err(LockError::OwnerDied(guard)) }
    }
}

impl<T> Clone for SharedMutex<T> {
    fn clone(&self) -> Self {
        Self { object: self.object.clone() }
    }
}

impl<T> fmt::Debug for SharedMutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedMutex")
    }
}

/// The lock of a [`SharedMutex`], held by this thread. Given back when dropped; if that happens in a panic, the next
/// to lock it is told.
///
/// This guard has no `Deref`: the kernel gives the lock free when the thread ends, even where the guard was leaked, so
/// references to the value live only inside [`with`](Self::with). It belongs to its thread and process: not `Send`,
/// and a fork by libc (which is `unsafe`) leaves the child a guard that panics when used.
///
/// ```compile_fail,E0277
/// let mutex = cowbell::shared::SharedArena::new("guard", 4096)?.mutex(0u8)?;
/// let guard = mutex.lock()?;
/// std::thread::spawn(move || drop(guard)).join().expect("no panic");
/// # Ok::<(), cowbell::Error>(())
/// ```
pub struct SharedMutexGuard<T> {
    /// Dropped before the object's memory may go.
    held: ManuallyDrop<LockGuard<'static>>,
    /// A handle of its own, so that a leaked guard keeps the memory that the thread's list of mutexes points into.
    object: Shared<Protected<T>>,
    consistent: bool,
    /// True where the thread was panicking when it took the lock: then that panic is no news.
    panicking: bool,
}

impl<T: Pod + Send> SharedMutexGuard<T> {
    /// The value.
    pub fn get(&self) -> T {
        self.check();
        // SAFETY: this thread holds the lock.
        unsafe { self.object.value.get().read() }
    }

    /// Replaces the value.
    pub fn set(&mut self, value: T) {
        self.check();
        // SAFETY: this thread holds the lock.
        unsafe { self.object.value.get().write(value) }
    }

    /// Changes the value in its place.
    pub fn with<R>(&mut self, change: impl FnOnce(&mut T) -> R) -> R {
        self.check();
        // SAFETY: this thread holds the lock until the closure is over, and no fork of ours happens meanwhile.
        change(unsafe { &mut *self.object.value.get() })
    }

    /// The value is whole again, or never was half changed.
    pub fn mark_consistent(&mut self) {
        self.consistent = true;
    }

    /// Tells whether the value is known to be whole.
    pub fn is_consistent(&self) -> bool {
        self.consistent
    }

    fn check(&self) {
        assert!(self.held.is_ours(), "the process that this one was forked from holds the lock");
    }
}

impl<T> Drop for SharedMutexGuard<T> {
    fn drop(&mut self) {
        let panicked = std::thread::panicking() && !self.panicking;
        if self.consistent && !panicked && self.held.is_ours() {
            self.held.end();
        }
        // SAFETY: not used after this.
        unsafe { ManuallyDrop::drop(&mut self.held) };
    }
}

impl<T> fmt::Debug for SharedMutexGuard<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedMutexGuard")
    }
}
