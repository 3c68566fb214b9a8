//! A counted pointer in an arena.
//!
//! # Safety
//! While the arena grows in this process the count is the number of those that were made or cloned then and not dropped, and is changed under
//! [`Writing`](crate::arena::place), which a freeze waits for. Who drops the last one drops the value. Once the arena is frozen, or in another process, nothing is counted any more:
//! so there the value is never dropped, and nobody has it alone.
#![expect(unsafe_code, reason = "a counted pointer")]

use super::Box;
use crate::arena::memory::ArenaRef;
use allocator_api2::alloc::{Layout, handle_alloc_error};
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{self, AtomicUsize};

/// An `Arc` in an arena, whose count lies apart from the value and stands still once the arena is frozen: then cloning and dropping
/// one writes nothing at all, in whichever process. There are no weak ones.
///
/// There is no `Rc` beside it: a frozen arena's values are for all threads. Where values need not be dropped while the arena grows, a
/// `&'static` reference from [`ArenaRef::alloc`] is smaller, and as good.
///
/// ```
/// use cowbell::arena::{Arc, Arena};
///
/// let arena = Arena::builder("names").build()?;
/// let name = arena.arc(17u64);
/// let mut names = arena.vec();
/// names.extend([Arc::clone(&name), name]);
/// let names = arena.freeze(names)?;
/// let third = Arc::clone(&names[0]);
/// assert!(Arc::ptr_eq(&third, &names[1]));
/// # Ok::<(), cowbell::Error>(())
/// ```
///
/// Threads share the value, so it has to be `Sync`:
///
/// ```compile_fail,E0277
/// fn shared<T: Send>(_: T) {}
/// let arena = cowbell::arena::Arena::builder("cells").build().unwrap();
/// shared(arena.arc(std::cell::Cell::new(1)));
/// ```
pub struct Arc<T: ?Sized> {
    value: NonNull<T>,
    count: NonNull<AtomicUsize>,
    arena: ArenaRef,
    owns: PhantomData<T>,
}

/// A count reaches this only if its references are leaked.
const COUNT_MAX: usize = isize::MAX as usize;

// SAFETY: as of the standard library's: whoever has one may share the value, and the last one drops it, in whichever thread that is.
unsafe impl<T: ?Sized + Send + Sync> Send for Arc<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Send + Sync> Sync for Arc<T> {}

impl<T> Arc<T> {
    /// Moves a value into the arena and counts it.
    pub fn new_in(value: T, arena: ArenaRef) -> Self {
        Self::from(Box::new_in(value, arena))
    }
}

impl<T: ?Sized> From<Box<T>> for Arc<T> {
    fn from(value: Box<T>) -> Self {
        let count = Box::try_new_in(AtomicUsize::new(1), *Box::allocator(&value));
        // The arena has told the reason.
        Self::of(value, count.unwrap_or_else(|_| handle_alloc_error(Layout::new::<AtomicUsize>())))
    }
}

impl<T: ?Sized> Arc<T> {
    /// Counts a value by a count of the same arena, which is 1.
    pub(in crate::arena) fn of(value: Box<T>, count: Box<AtomicUsize>) -> Self {
        let (count, _) = Box::into_non_null(count);
        let (value, arena) = Box::into_non_null(value);
        Self { value, count, arena, owns: PhantomData }
    }

    fn count(&self) -> &AtomicUsize {
        // SAFETY: the count is freed by the last one only, and the memory of a frozen arena stays.
        unsafe { self.count.as_ref() }
    }

    /// Tells whether the two are of one value.
    pub fn ptr_eq(one: &Self, other: &Self) -> bool {
        // Values without size share an address; each has a count of its own.
        one.count == other.count
    }

    /// The value, if nobody else has it, and the arena still grows.
    pub fn get_mut(this: &mut Self) -> Option<&mut T> {
        let _growing = this.arena.writing_here()?;
        if this.count().load(atomic::Ordering::Acquire) != 1 {
            return None;
        }
        // SAFETY: there is no other one, and none can be cloned from this while it is borrowed.
        Some(unsafe { this.value.as_mut() })
    }

    /// The address of the count.
    pub(in crate::arena) fn place_of_count(this: &Self) -> usize {
        this.count.addr().get()
    }
}

impl<T: ?Sized> Clone for Arc<T> {
    fn clone(&self) -> Self {
        if let Some(_growing) = self.arena.writing_here() {
            // The holder of one may count one more without looking at the value.
            let before = self.count().fetch_add(1, atomic::Ordering::Relaxed);
            if before > COUNT_MAX {
                std::process::abort();
            }
        }
        Self { value: self.value, count: self.count, arena: self.arena, owns: PhantomData }
    }
}

impl<T: ?Sized> Drop for Arc<T> {
    fn drop(&mut self) {
        // The lock is not held while the value's own code runs, which may freeze the arena.
        let is_last =
            self.arena.writing_here().is_some_and(|_growing| self.count().fetch_sub(1, atomic::Ordering::Release) == 1);
        if is_last {
            atomic::fence(atomic::Ordering::Acquire);
            // SAFETY: made by `Box::into_non_null`, and this was the last one.
            let count = unsafe { Box::from_raw_in(self.count.as_ptr(), self.arena) };
            // SAFETY: as above.
            let value = unsafe { Box::from_raw_in(self.value.as_ptr(), self.arena) };
            drop(count);
            drop(value);
        }
    }
}

impl<T: ?Sized> Deref for Arc<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the value lives while there is one of these that is counted, or for good, and is shared.
        unsafe { self.value.as_ref() }
    }
}

impl<T: ?Sized> AsRef<T> for Arc<T> {
    fn as_ref(&self) -> &T {
        self
    }
}

impl<T: ?Sized> Borrow<T> for Arc<T> {
    fn borrow(&self) -> &T {
        self
    }
}

impl<T: ?Sized + PartialEq> PartialEq for Arc<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: ?Sized + Eq> Eq for Arc<T> {}

impl<T: ?Sized + PartialOrd> PartialOrd for Arc<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (**self).partial_cmp(&**other)
    }
}

impl<T: ?Sized + Ord> Ord for Arc<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl<T: ?Sized + Hash> Hash for Arc<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Arc<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
