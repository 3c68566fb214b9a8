//! Memory that is never frozen: counters, locks and caches that go on changing.

use super::{claim, metadata};
use std::sync::atomic::Ordering;

/// The kind of ordinary allocations.
pub(super) const ORDINARY: u8 = 0;
/// The kind of what is never frozen.
pub(super) const HOT: u8 = 1;
/// The first of those of arenas, one for each that is being built.
pub(super) const FIRST_SCOPE: u8 = 2;

/// Puts the kind of allocations back that was before.
pub(super) struct KindGuard(u8);

impl KindGuard {
    /// This thread's allocations are hot while this lives.
    pub(super) fn hot() -> Self {
        Self::of(HOT)
    }

    /// This thread's allocations are of this kind while this lives.
    pub(super) fn of(kind: u8) -> Self {
        Self(claim::set_kind(kind))
    }
}

impl Drop for KindGuard {
    fn drop(&mut self) {
        claim::set_kind(self.0);
    }
}

/// Tells whether what lies at an address of the heap is hot.
pub(super) fn is_hot(address: usize) -> bool {
    metadata::chunk(metadata::chunk_of(address)).kind.load(Ordering::Relaxed) == HOT
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
    let _kind = KindGuard::hot();
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
/// of 1 MiB or more that is not frozen and grows beyond 16 MiB has its pages moved, and stays what it was, here as in [`arena`](super::arena()).
///
/// ```
/// use std::sync::Mutex;
///
/// let hits: Box<Mutex<u64>> = cowbell::heap::hot(|| Box::new(Mutex::new(0)));
/// # assert_eq!(*hits.lock().unwrap(), 0);
/// ```
pub fn hot<R>(body: impl FnOnce() -> R) -> R {
    let _kind = KindGuard::hot();
    body()
}
