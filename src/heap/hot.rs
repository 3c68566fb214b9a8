//! Memory that is never frozen: counters, locks and caches that go on changing.
//!
//! # Safety
//! A [`SideArc`] owns one count of its value: the count is at least 1 while it lives, and value and count are freed by the one who takes it to 0.
#![expect(unsafe_code, reason = "a counted pointer")]

use super::{HOT, claim, ground};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

/// Puts the kind of allocations back that was before.
pub(super) struct Kind(u8);

impl Kind {
    /// This thread's allocations are hot while this lives.
    pub(super) fn hot() -> Self {
        Self::of(HOT)
    }

    /// This thread's allocations are of this kind while this lives.
    pub(super) fn of(kind: u8) -> Self {
        Self(claim::set_kind(kind))
    }
}

impl Drop for Kind {
    fn drop(&mut self) {
        claim::set_kind(self.0);
    }
}

/// Tells whether what lies at an address of the heap is hot.
pub(super) fn is_hot(address: usize) -> bool {
    ground::chunk(ground::chunk_of(address)).kind.load(Ordering::Relaxed) == HOT
}

/// A destructor of thread-local storage that does nothing.
struct Nothing;

impl Drop for Nothing {
    fn drop(&mut self) {}
}

thread_local! {
    static NOTHING: Nothing = const { Nothing };
}

/// Has the standard library allocate what it keeps for itself, as hot, where it did not yet: the buffer of standard output, its list of destructors of
/// thread-local storage, this thread's handle. Else each would keep the arena that it happens to be allocated in, or be written to on a frozen page.
pub(super) fn warm() {
    let _kind = Kind::hot();
    let _buffer = std::io::stdout();
    let _handle = std::thread::current();
    // At a thread's end there is no storage any more, and nothing is put in the list.
    let _listed = NOTHING.try_with(|_| ());
}

/// Runs `body`; what it allocates in this thread is never frozen, and lies on pages of its own: for counters, locks and caches that processes go on
/// writing, so that they do not copy pages of data. Of no effect where [`super::Heap`] is not the global allocator.
///
/// Memory is placed when it is allocated, and what is hot stays hot: a vector or a string that was made here is hot wherever it grows. A map that has to move goes
/// where it is grown: give it its capacity here, or grow it under `hot`, too. A vector that was made elsewhere becomes hot where it moves as it grows here; but one
/// of 1 MiB or more that is not frozen and grows beyond 32 MiB has its pages moved, and stays what it was, here as in [`arena`](super::arena()).
///
/// ```
/// use std::sync::Mutex;
///
/// let hits: Box<Mutex<u64>> = cowbell::heap::hot(|| Box::new(Mutex::new(0)));
/// # assert_eq!(*hits.lock().unwrap(), 0);
/// ```
pub fn hot<R>(body: impl FnOnce() -> R) -> R {
    let _kind = Kind::hot();
    body()
}

/// An [`std::sync::Arc`] whose count lies apart from its value, on a [`hot`] page: cloning and dropping one writes nothing to the value's page. There are no
/// weak ones.
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
    count: NonNull<AtomicUsize>,
    owns: PhantomData<T>,
}

// SAFETY: as of `Arc`: whoever has one may share the value, and the last one drops it, in whichever thread that is.
unsafe impl<T: Send + Sync> Send for SideArc<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for SideArc<T> {}

/// So many can only be leaked ones.
const COUNT_MAX: usize = isize::MAX as usize;

impl<T> SideArc<T> {
    /// Moves a value to the heap and counts it.
    pub fn new(value: T) -> Self {
        // The count first: should there be no memory, the value is dropped.
        let count = NonNull::from(Box::leak(hot(|| Box::new(AtomicUsize::new(1)))));
        Self { value: NonNull::from(Box::leak(Box::new(value))), count, owns: PhantomData }
    }

    fn count(&self) -> &AtomicUsize {
        // SAFETY: the count lives while there is one of these.
        unsafe { self.count.as_ref() }
    }

    /// Tells whether the two are of one value.
    pub fn ptr_eq(one: &Self, other: &Self) -> bool {
        one.value == other.value
    }

    /// The number of those of this value.
    pub fn strong_count(this: &Self) -> usize {
        this.count().load(Ordering::Relaxed)
    }
}

impl<T> Clone for SideArc<T> {
    fn clone(&self) -> Self {
        // Whoever has one may count one more without looking at the value.
        if self.count().fetch_add(1, Ordering::Relaxed) > COUNT_MAX {
            std::process::abort();
        }
        Self { value: self.value, count: self.count, owns: PhantomData }
    }
}

impl<T> Drop for SideArc<T> {
    fn drop(&mut self) {
        if self.count().fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        // All that others did with the value is done before it is dropped.
        fence(Ordering::Acquire);
        // SAFETY: made by `Box::leak`, and this was the last one.
        let count = unsafe { Box::from_raw(self.count.as_ptr()) };
        // SAFETY: as above.
        let value = unsafe { Box::from_raw(self.value.as_ptr()) };
        drop(count);
        drop(value);
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
