//! Share a large data set with forked workers, and be told exactly which pages each of them copied.
//!
//! 1. Build the data in an [`arena`]: `Vec`, `Box`, `String`, `Arc`, maps, sets, queues and plain values.
//! 2. Freeze it: the pages are sealed for good and shared.
//! 3. [`fork`] workers over it, in constant time.
//! 4. Each worker's [`report`] names every page it copied; a [`watch`] adds when, which thread and
//!    which instruction.
//!
//! ```no_run
//! use cowbell::arena::{Arena, Vec};
//! use cowbell::fork::{self, ForkOptions};
//! use cowbell::watch::Watch;
//!
//! let arena = Arena::builder("squares").capacity(1 << 30).build()?;
//! let mut squares = Vec::new_in(*arena);
//! squares.extend((0..1_000_000u64).map(|n| n * n));
//! let squares = arena.freeze(squares)?;
//!
//! let mut worker = fork::spawn(&ForkOptions::new().watch(Watch::Census), |_| {
//!     println!("{}", squares[1000]);
//! })?;
//! print!("{}", worker.wait()?.report);
//! # Ok::<(), cowbell::Error>(())
//! ```
//!
//! # Words
//! **arena**: a reserved address range backed by one memfd; *growing*, then *frozen*.
//! **written**: a store reached the page. **copied**: the kernel gave the process a private copy of a
//! page that was shared. **reused**: the kernel made the page writable without a copy, because nobody
//! else had it any more. **first touch**: there was no page before.
//! **census**: reading from the page tables which pages were copied. **watch**: how copies are observed.
//! **arm**: write-protect a range through userfaultfd. **generation**: one frozen image of an arena.
//! **keeper**: the process that keeps a child's page tables alive until its last census.
//!
//! Words about pools: **zygote**: the process with one thread that forks the **workers**. **batch**: jobs that go to a worker
//! together. **slot**: where a batch lies until its results are read. **index**: which of the pool's workers one is; the worker that
//! replaces it has the same. **ticket**: one submitted job, and its result to come.
//!
//! # Rooms
//! ```text
//! page, error              types that everything uses
//! support                  what this kernel and this user can do
//! arena                    owns addresses: growing, frozen, handles
//! heap                     a global allocator whose memory can be frozen
//! shared                   writable memory of forked processes: atomics, mutex, vector, queue
//! fork                     clone3, the child before user code, reaping
//! watch                    census, async, faults, trap, monitor
//! report                   evidence in, report out: text and JSON
//! apart                    a process of one thread, for tests
//! assertion                a limit on copied pages, for tests
//! pool                     workers that take jobs: queue, results, generations
//! ```
//!
//! # What is promised
//! All that these pages show, and the types of the crates that stand in it: `allocator-api2` (the allocator of
//! [`arena`]'s collections), `hashbrown` ([`arena::HashMap`]), `bytemuck` ([`shared::Pod`]) and `serde`. Another major
//! version of one of them is another major version of this crate.
//!
//! **Not promised**: macros and modules that these pages do not show, `cowbell::sys` above all. It is the door to the kernel that the
//! command-line tool and the tests go through, and changes as they need it. Hidden is for stability only: a function there is
//! sound, or `unsafe` and says what it demands.

mod apart;
pub mod arena;
mod assertion;
pub mod error;
mod facts;
pub mod fork;
pub mod heap;
#[doc(hidden)]
pub mod openmetrics;
pub mod page;
#[cfg(feature = "pool")]
pub mod pool;
pub mod report;
pub mod shared;
pub mod support;
#[doc(hidden)]
pub mod sys;
pub mod watch;
#[cfg(feature = "pool")]
mod wire;

pub use apart::single_threaded;
#[doc(hidden)]
pub use assertion::__assert_copied_pages;
pub use error::{Error, Result};
pub use heap::{SideArc, hot};

/// The README's examples are compiled with the tests.
#[cfg(all(doctest, feature = "pool"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// The guide's programs run with the tests.
#[cfg(all(doctest, feature = "pool"))]
#[doc = include_str!("../docs/POOL.md")]
struct PoolGuide;

/// The recipes' programs run with the tests.
#[cfg(all(doctest, feature = "pool"))]
#[doc = include_str!("../docs/ZERO-COPY.md")]
struct ZeroCopy;
