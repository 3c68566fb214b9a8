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

mod arena;
mod lock;
mod mapping;
mod mutex;
mod queue;
mod shareable;
mod vec;

/// For deriving without a dependency of your own: `#[bytemuck(crate = "cowbell::shared::bytemuck")]`.
pub use arena::SharedArena;
pub use bytemuck;
pub use bytemuck::{Pod, Zeroable};
pub use lock::LockError;
pub(crate) use lock::is_held_by_this_thread;
pub use mapping::Shared;
pub use mutex::{SharedMutex, SharedMutexGuard};
pub use queue::{QueueError, SharedQueue};
pub use shareable::Shareable;
pub use vec::SharedVec;
