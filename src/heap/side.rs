//! A counted pointer whose count lies apart from its value.
//!
//! # Safety
//! A [`SideArc`] owns one reference of its count: there is at least one while it lives, and value and count are freed by the one who takes the last.
#![expect(unsafe_code, reason = "a counted pointer")]

use super::counts::Count;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;

/// An [`std::sync::Arc`] whose count lies apart from its value, on a [`hot`](super::hot()) page: cloning and dropping one writes nothing to the value's page. There are
/// no weak ones.
///
/// **In a child** that was forked since, counting up and down again writes nothing to the page of the count either: the child keeps what it has counted since in
/// 64 KiB of its own. Up to 4,096 objects can have other counts than at the fork at a time there, where their places do not collide; of others the counts' pages are copied, 512
/// counts each. The process that made an object counts it as an `Arc` does; in children counting takes a lock of the object's own, about twice as long.
///
/// The value is dropped by whoever drops the last one in its process: what a child does changes nothing in its parent. Not in signal handlers.
///
/// ```
/// use cowbell::heap::SideArc;
///
/// let name = SideArc::new(String::from("a name"));
/// let same = SideArc::clone(&name);
/// assert_eq!(*same, "a name");
/// ```
pub struct SideArc<T> {
    value: NonNull<T>,
    count: Count,
    owns: PhantomData<T>,
}

// SAFETY: as of `Arc`: whoever has one may share the value, and the last one drops it, in whichever thread that is.
unsafe impl<T: Send + Sync> Send for SideArc<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for SideArc<T> {}

impl<T> SideArc<T> {
    /// Moves a value to the heap and counts it.
    pub fn new(value: T) -> Self {
        // The count first: should there be no memory, the value is dropped.
        let count = Count::new();
        Self { value: NonNull::from(Box::leak(Box::new(value))), count, owns: PhantomData }
    }

    /// Tells whether the two are of one value.
    pub fn ptr_eq(one: &Self, other: &Self) -> bool {
        one.value == other.value
    }

    /// The number of those of this value.
    pub fn strong_count(this: &Self) -> usize {
        this.count.get()
    }
}

impl<T> Clone for SideArc<T> {
    fn clone(&self) -> Self {
        // The holder of one may count one more without looking at the value.
        self.count.add();
        Self { value: self.value, count: self.count, owns: PhantomData }
    }
}

impl<T> Drop for SideArc<T> {
    fn drop(&mut self) {
        if !self.count.remove() {
            return;
        }
        // SAFETY: this was the last one.
        unsafe { self.count.free() };
        // SAFETY: made by `Box::leak`, and this was the last one.
        drop(unsafe { Box::from_raw(self.value.as_ptr()) });
    }
}

impl<T> Deref for SideArc<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the value lives while there is one of these, and is shared.
        unsafe { self.value.as_ref() }
    }
}

impl<T: fmt::Debug> fmt::Debug for SideArc<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
