//! A pool of forked workers that see the frozen data at no cost.
//!
//! ```no_run
//! use cowbell::arena::Arena;
//! use cowbell::pool::Pool;
//!
//! let arena = Arena::builder("squares").capacity(1 << 30).build()?;
//! let squares = arena.alloc_iter((0..1_000_000u64).map(|n| n * n))?;
//! let frozen = arena.freeze(&*squares)?;
//!
//! // Before the program starts threads.
//! let pool = Pool::builder().workers(2).spawn(frozen, |squares, at: usize| squares[at])?;
//! for square in pool.map(0..1000) {
//!     println!("{}", square?);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```text
//!  parent, any number of threads            zygote, one thread            workers, one thread each
//!  Pool, Ticket, Map                        forks, reaps, replaces        take batches, run jobs
//!      │   fork (once, single-threaded)  ──>    │   fork  ─────────────>      │
//!      └──────────────── one region of shared memory: queue, jobs, results ───┘
//! ```
//! - **The closure** and what it captured is inherited by the fork. Jobs and results go through shared memory, encoded by
//!   serde ([postcard](https://docs.rs/postcard)); [`Plain`] data goes as it is, [`crate::arena::Handle`]s name objects of the data,
//!   and a [`Buffer`] is written by the job where the parent reads it.
//! - **Workers repeat what was random before the fork**: `rand`'s thread generator says the same in all of them until each seeds it anew, in
//!   [`PoolBuilder::on_worker_start`]. docs/POOL.md says more.
//! - **Every job ends exactly once**, with a result or a [`JobError`]. A panic is that job's error. A worker that dies fails only the
//!   job it held; the rest of its batch goes to others; it is replaced.
//! - **Nobody stays behind**: the zygote dies with the thread that made the pool, workers with the zygote. Dropping the pool
//!   kills and reaps them all. Zygote and workers take no notice of SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2,
//!   which supervisors and terminals send to the whole group: the parent answers. [`PoolBuilder::worker_signal`] changes that.
//! - **No thread** is started, unless a [`Ticket`] is awaited as a future.

//!
//! The rooms, each of which uses those above it only:
//!
//! - `protocol`: the words in shared memory, how they change hands, and the messages between parent and zygote;
//! - `memory`: the one mapping, jobs and results in it;
//! - `worker`, `zygote`, `parent`: the three kinds of processes. README.md beside this file tells their life and their races.

mod context;
mod memory;
mod parent;
mod protocol;
mod settings;
mod signals;
mod worker;
mod zygote;

pub use crate::openmetrics::MEDIA_TYPE as OPENMETRICS_MEDIA_TYPE;
pub use crate::wire::{Plain, PlainVec};
pub use context::{WorkerContext, WorkerInfo};
pub use memory::buffer::Buffer;
pub use parent::figures::{DataMemory, PoolMemory, WorkerMemory, WorkerStats};
pub use parent::held::Held;
pub use parent::load::{Former, Loaded};
pub use parent::map::{Map, MapUnordered};
pub use parent::pool::{Pool, Shutdown, Stats};
pub use parent::prepared::Prepared;
pub use parent::ticket::{AsCompleted, Ticket, as_completed};
pub use protocol::failure::{Death, JobError};
pub use protocol::messages::WorkerExit;
pub use settings::{OverBudget, PoolBuilder};
pub use signals::{OnSignal, Signal};
