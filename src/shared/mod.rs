//! Writable memory that forked processes share: for what Python programs use `mmap(-1)`, `shared_memory` and
//! `Manager().list()`.
//!
//! A [`SharedArena`] is made **before** the fork. What is allocated in it is at the same address in every process
//! forked since, and a write is seen by all; nothing is copied, and no census counts it.
//!
//! ```standalone_crate
//! use cowbell::fork::{self, ForkOptions};
//! use cowbell::shared::SharedArena;
//! use std::sync::atomic::{AtomicU64, Ordering};
//!
//! let arena = SharedArena::new("progress", 1 << 20)?;
//! let done = arena.alloc(AtomicU64::new(0))?;
//! let results = arena.vec::<u64>(1000)?;
//! let mut worker = fork::spawn(&ForkOptions::new(), |_| {
//!     for n in 0..1000 {
//!         results.push(n * n).expect("there is room");
//!         done.fetch_add(1, Ordering::Relaxed);
//!     }
//! })?;
//! assert!(worker.wait()?.success());
//! assert_eq!((done.load(Ordering::Relaxed), results.get(30)?), (1000, Some(900)));
//! # Ok::<(), cowbell::Error>(())
//! ```
//!
//! | for | use | who dies in the middle |
//! |---|---|---|
//! | counters, flags | [`SharedArena::alloc`], [`SharedArena::atomics`] | has stored or not |
//! | a list | [`SharedVec`] | each call happened or not |
//! | work to pass on | [`SharedQueue`] | each call happened or not; nobody waits for the dead |
//! | anything else | [`SharedMutex`] | the next to lock it is told |
//!
//! # What is defined
//! - **What may lie there:** [`Shareable`] objects, which are changed through `&T`, and [`Pod`] values behind a lock:
//!   every pattern of bits is one, so that what another process left is never invalid. Both hold no pointers.
//! - **Nothing is given back singly.** Objects are never dropped; the memory goes when no process has the arena or a
//!   handle any more. It is committed when it is allocated: out of memory is an error, and no SIGBUS.
//! - **Locks** are robust mutexes of the C library. The kernel gives them free when their holder's thread ends in
//!   whichever way. A stopped holder (SIGSTOP) keeps them: use the calls with a timeout where that can be.
//! - **A fork while this thread holds a lock** is an error of [`fork::spawn`](crate::fork::spawn): the child would have
//!   the same exclusive access. libc's `fork` cannot be stopped; who calls it (`unsafe`) must not use in the child
//!   what a closure under a lock was given.
//! - **Signal handlers** may use atomics and nothing else. All processes must be in one pid namespace: a mutex knows its
//!   holder by thread id.

mod lock;
mod mapping;
mod mutex;
mod queue;
mod shareable;
mod vec;

/// For deriving without a dependency of your own: `#[bytemuck(crate = "cowbell::shared::bytemuck")]`.
pub use bytemuck;
pub use bytemuck::{Pod, Zeroable};
pub use lock::LockError;
pub(crate) use lock::is_held_by_this_thread;
pub use mapping::Shared;
pub use mutex::{SharedMutex, SharedMutexGuard};
pub use queue::{QueueError, SharedQueue};
pub use shareable::Shareable;
pub use vec::SharedVec;

use crate::error::Result;
use crate::sys::monotonic_ns;
use crate::sys::robust::Patience;
use mapping::Mapping;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Memory that this process shares with those forked from it while it has the arena or a handle.
///
/// Any of them may allocate, at the same time; but only those forked afterwards get the handle. A clone is the same
/// arena. Takes one descriptor.
#[derive(Clone)]
pub struct SharedArena {
    mapping: Arc<Mapping>,
}

impl SharedArena {
    /// Maps `capacity` bytes, rounded up to whole pages. Only addresses are taken up front. The name shows in
    /// `/proc/PID/maps` as `/memfd:cowbell-shared:NAME`.
    ///
    /// # Errors
    /// Invalid: a capacity of 0 or beyond all addresses, a name that is empty, longer than 200 bytes, or has control
    /// characters. ENOMEM when the addresses cannot be had (`ulimit -v`). Out of memory. EMFILE.
    pub fn new(name: impl Into<String>, capacity: usize) -> Result<Self> {
        let mapping = Arc::new(Mapping::new(name.into(), capacity)?);
        lock::notice_forks()?;
        Ok(Self { mapping })
    }

    /// The arena's name.
    pub fn name(&self) -> &str {
        &self.mapping.name
    }

    /// The most it can hold, in bytes.
    pub fn capacity(&self) -> usize {
        self.mapping.capacity
    }

    /// Bytes allocated by all processes.
    pub fn used(&self) -> usize {
        self.mapping.used()
    }

    /// Moves an object into the arena. It is never dropped.
    ///
    /// # Errors
    /// Out of capacity, out of memory.
    pub fn alloc<T: Shareable>(&self, value: T) -> Result<Shared<T>> {
        Shared::new(&self.mapping, value)
    }

    /// So many atomics (or tuples, or arrays of them) of zeroes.
    ///
    /// # Errors
    /// Out of capacity, out of memory; invalid when their size is beyond all addresses.
    pub fn atomics<A: Shareable + Zeroable>(&self, count: usize) -> Result<Shared<[A]>> {
        Shared::zeroed(&self.mapping, count)
    }

    /// A mutex around a value.
    ///
    /// # Errors
    /// Out of capacity, out of memory.
    pub fn mutex<T: Pod + Send>(&self, value: T) -> Result<SharedMutex<T>> {
        SharedMutex::new(&self.mapping, value)
    }

    /// An empty vector for so many elements.
    ///
    /// # Errors
    /// Invalid: a capacity of 0, or beyond all addresses. Out of capacity, out of memory.
    pub fn vec<T: Pod + Send>(&self, capacity: usize) -> Result<SharedVec<T>> {
        SharedVec::new(&self.mapping, capacity)
    }

    /// An empty queue for so many elements. (It takes room for the next power of two.)
    ///
    /// # Errors
    /// As [`Self::vec`].
    pub fn queue<T: Pod + Send>(&self, capacity: usize) -> Result<SharedQueue<T>> {
        SharedQueue::new(&self.mapping, capacity)
    }
}

impl fmt::Debug for SharedArena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedArena({}, {} of {} bytes)", self.name(), self.used(), self.capacity())
    }
}

/// When a timeout is over; a time beyond the clock is never.
fn deadline(timeout: Option<Duration>) -> Patience {
    let nanoseconds = timeout.and_then(|timeout| u64::try_from(timeout.as_nanos()).ok());
    let end = nanoseconds.and_then(|timeout| monotonic_ns().checked_add(timeout));
    // Beyond what the kernel's own clock counts.
    end.filter(|&end| i64::try_from(end).is_ok()).map_or(Patience::Endless, Patience::Until)
}
