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
//! - **Every job ends exactly once**, with a result or a [`JobError`]. A panic is that job's error. A worker that dies fails only the
//!   job it held; the rest of its batch goes to others; it is replaced.
//! - **Nobody stays behind**: the zygote dies with the thread that made the pool, workers with the zygote. Dropping the pool
//!   kills and reaps them all. Ctrl-C reaches the parent only; SIGTERM of the zygote ends the pool.
//! - **No thread** is started, unless a [`Ticket`] is awaited as a future.

mod batch;
mod bell;
mod buffer;
mod core;
mod failure;
mod heap;
mod make;
mod map;
mod orders;
mod panics;
mod progress;
mod queue;
mod reactor;
mod region;
mod results;
mod room;
mod run;
mod settings;
mod spin;
mod ticket;
mod verdicts;
mod waiting;
mod worker;
mod zygote;

pub use crate::wire::{Plain, PlainVec};
pub use buffer::Buffer;
pub use failure::{Death, JobError};
pub use map::{Map, MapUnordered};
pub use settings::{OverBudget, PoolBuilder};
pub use ticket::{AsCompleted, Ticket, as_completed};

use self::core::Core;
use crate::arena::{Contained, Frozen};
use crate::error::{Error, Kind, Result};
use crate::report::Report;
use crate::wire::{self};
use batch::Status;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An order to the zygote.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Tell how workers ended since this was asked last.
    Exits,
    /// Kill the worker that runs this job.
    Cancel { slot: u32, job: u32 },
    /// Take over a new generation; its file comes along.
    Adopt(Vec<u8>),
    /// End.
    Close { cancel: bool },
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Done(bool),
    Refused(String),
    Exits { exits: Vec<WorkerExit>, lost: u64 },
}

/// The way a worker ended, and what it copied.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerExit {
    /// Its process id.
    pub pid: i32,
    /// The way it ended.
    pub death: Death,
    /// The worker left of its own accord: its budget was used up, the data set was replaced, or the pool was closed.
    pub left_by_itself: bool,
    /// The pages that it copied.
    pub report: Report,
}

/// Numbers of a pool since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Jobs that workers have run to their end.
    pub jobs: u64,
    /// Workers that were started, the first ones included.
    pub started: u64,
    /// Workers that died.
    pub deaths: u64,
    /// Workers that retired because they copied more than their budget.
    pub retired: u64,
    /// The number of times a worker was found above its budget.
    pub over_budget: u64,
    /// Pages that workers gave back because they were the original again.
    pub reshared_pages: u64,
}

/// The fate of jobs that are not done when the pool is shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// They run first.
    Drain,
    /// They are cancelled; workers that run one are killed.
    Cancel,
}

/// A pool of workers over one data set: jobs `J` in, results `R` out. See the [module](self).
///
/// All methods may be called from several threads at once. Dropping it is [`Shutdown::Cancel`].
pub struct Pool<T: 'static, J, R> {
    core: Arc<Core>,
    frozen: Mutex<Frozen<T>>,
    types: map::Types<T, J, R>,
}

impl Pool<(), (), ()> {
    /// Settings for a new pool.
    pub fn builder() -> PoolBuilder {
        PoolBuilder::new()
    }
}

/// The ends of workers, with a word in the log about those that were not kept.
fn told(exits: Vec<WorkerExit>, lost: u64) -> Vec<WorkerExit> {
    if lost > 0 {
        log::warn!("{lost} workers ended whose reports were not kept: nobody asked for them in time");
    }
    exits
}

/// Appends a job's item to a row.
fn encode_job<J: Serialize>(job: &J, row: &mut Vec<u8>) -> Result<(), JobError> {
    let start = batch::begin(row);
    let mut passengers = Vec::new();
    let encoded = wire::encode(job, row, &mut passengers).map_err(|e| JobError::NotPassed(format!("the job {e}")));
    let ended = encoded.and_then(|()| {
        let fits = batch::end(row, start, Status::Value, &passengers);
        fits.then_some(()).ok_or_else(|| JobError::NotPassed("the job is larger than 4 GiB".to_owned()))
    });
    if ended.is_err() {
        row.truncate(start);
    }
    ended
}

impl<T, J, R> Pool<T, J, R>
where
    J: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
    /// Queues one job. Waits while 4,096 batches are queued or at work, or their jobs fill the pool's `job_capacity`.
    ///
    /// # Errors
    /// The job cannot be encoded; the pool is closed or gone; all places are taken by results that nobody has read for five seconds while
    /// no worker had anything to do ([`Map`]).
    pub fn submit(&self, job: J) -> Result<Ticket<R>, JobError>
    where
        R: Send + 'static,
    {
        let mut row = Vec::new();
        encode_job(&job, &mut row)?;
        let settings = &self.core.settings;
        Ticket::submit(&self.core, &row, settings.time_limit, settings.max_attempts)
    }

    /// Results in the order of their jobs.
    ///
    /// All threads may ask, whatever thread the pool's closure was made in, so results must be `Send`:
    ///
    /// ```compile_fail,E0277
    /// use cowbell::arena::{Arena, Handle};
    /// use cowbell::pool::Pool;
    /// use std::cell::Cell;
    ///
    /// fn leaked(pool: &Pool<u64, (), Handle<&'static Cell<u32>>>) {
    ///     pool.map([()]);
    /// }
    /// ```
    ///
    /// Lazy: jobs are pulled as results are asked for, a few batches ahead of them, so neither the jobs nor the results need fit in
    /// memory. How many jobs make a batch is chosen by how long they take. What is not asked for any more is taken
    /// back.
    pub fn map<I: IntoIterator<Item = J>>(&self, jobs: I) -> Map<'_, T, J, R, I::IntoIter>
    where
        R: Send,
    {
        Map::new(self, jobs.into_iter())
    }

    /// Results as they end, each with the number of its job. Otherwise as [`Self::map`].
    pub fn map_unordered<I: IntoIterator<Item = J>>(&self, jobs: I) -> MapUnordered<'_, T, J, R, I::IntoIter>
    where
        R: Send,
    {
        MapUnordered::new(self, jobs.into_iter())
    }

    /// Runs all jobs and calls `each` with the results as they end.
    pub fn for_each<I: IntoIterator<Item = J>>(&self, jobs: I, mut each: impl FnMut(usize, Result<R, JobError>))
    where
        R: Send,
    {
        for (at, result) in self.map_unordered(jobs) {
            each(at, result);
        }
    }
}

impl<T, J, R> Pool<T, J, R> {
    fn newest(&self) -> MutexGuard<'_, Frozen<T>> {
        self.frozen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The data that the newest workers are forked over.
    pub fn data(&self) -> &'static T {
        self.newest().root()
    }

    /// The frozen data that the newest workers are forked over, to make handles of.
    pub fn frozen(&self) -> Frozen<T> {
        self.newest().clone()
    }

    /// Moves on to a new data set, the next generation, and returns the old one.
    ///
    /// New workers are forked over it; the old ones end the batch they are at and leave. Jobs that are submitted from now on
    /// run over the new data; of those that are queued each runs once, over the old or the new. Handles of the old
    /// generation are refused by new workers, so jobs that hold some should be done before.
    ///
    /// The old generation's memory is free when its last worker has left and this process gives it up:
    /// [`Frozen::release`]. References to the old data that the pool's closure captured must not be followed any more: in
    /// new workers that is a SIGSEGV.
    ///
    /// Handles of the new data that are sent to workers are made by [`Frozen::handle_contained`], which looks at what the object leads to:
    /// one that [`Frozen::handle`] made is that job's error there.
    ///
    /// # Errors
    /// Invalid when some of the data lies outside of its arena, which the zygote does not have
    /// ([`Frozen::check_contained`]); EEXIST when its addresses are taken there; the pool is gone. The pool goes on
    /// with the data it has.
    #[expect(unsafe_code, reason = "what is to be promised was checked")]
    pub fn replace(&self, new: Frozen<T>) -> Result<Frozen<T>>
    where
        T: Contained,
    {
        new.check_contained()?;
        // SAFETY: it was checked just now.
        unsafe { self.replace_unchecked(new) }
    }

    /// [`Self::replace`] for types that do not say where their parts lie.
    ///
    /// # Safety
    /// Everything that is reached through the new root lies in its arena, or is the same in a process that was forked when
    /// the pool was made; and it may be used there: see [`crate::arena::Export::adopt`].
    ///
    /// # Errors
    /// As [`Self::replace`].
    #[expect(unsafe_code, reason = "declares an unsafe function")]
    pub unsafe fn replace_unchecked(&self, new: Frozen<T>) -> Result<Frozen<T>> {
        // One at a time, so that the newest here is the newest there.
        let mut newest = self.newest();
        let order = Order::Adopt(new.export()?.to_bytes());
        match self.core.order(&order, Some(new.image().file()))? {
            Reply::Done(_) => Ok(std::mem::replace(&mut newest, new)),
            Reply::Refused(why) => {
                Err(Error::new(Kind::Child(format!("the zygote cannot take the data over: {why}").into())))
            }
            Reply::Exits { .. } => Err(Error::invalid("the zygote answered something else")),
        }
    }

    /// Numbers since the pool began; zeroes in a process forked from the pool's.
    pub fn stats(&self) -> Stats {
        if self.core.check_process().is_err() {
            return Stats::default();
        }
        let board = self.core.region.board();
        let seats = self.core.region.seats();
        Stats {
            jobs: seats.iter().map(|seat| seat.jobs.load(Ordering::Acquire)).sum(),
            started: board.started.load(Ordering::Acquire),
            deaths: board.deaths.load(Ordering::Acquire),
            retired: board.retired.load(Ordering::Acquire),
            over_budget: board.over_budget.load(Ordering::Acquire),
            reshared_pages: board.reshared.load(Ordering::Acquire),
        }
    }

    /// The process ids of the workers that live now; none in a process forked from the pool's.
    pub fn workers(&self) -> Vec<i32> {
        if self.core.check_process().is_err() {
            return Vec::new();
        }
        let pids = self.core.region.seats().iter().map(|seat| seat.pid.load(Ordering::Acquire) as i32);
        pids.filter(|&pid| pid != 0).collect()
    }

    /// The ends of workers since this was asked last, the oldest first; the last 1024 are kept, and the log says how many were not.
    ///
    /// # Errors
    /// The pool is gone.
    pub fn take_exits(&self) -> Result<Vec<WorkerExit>> {
        match self.core.order(&Order::Exits, None)? {
            Reply::Exits { exits, lost } => Ok(told(exits, lost)),
            _ => Err(Error::invalid("the zygote answered something else")),
        }
    }

    /// Ends the pool and returns how its workers ended. When this returns no process of it is left.
    ///
    /// # Errors
    /// The zygote was gone already.
    pub fn shutdown(self, how: Shutdown) -> Result<Vec<WorkerExit>> {
        if how == Shutdown::Drain {
            self.core.drain();
        }
        match self.core.close(how == Shutdown::Cancel)? {
            Some(Reply::Exits { exits, lost }) => Ok(told(exits, lost)),
            _ => Ok(Vec::new()),
        }
    }
}

impl<T, J, R> Drop for Pool<T, J, R> {
    fn drop(&mut self) {
        if let Err(e) = self.core.close(true) {
            log::warn!("the pool `{}`: {e}", self.core.settings.name);
        }
    }
}

impl<T, J, R> fmt::Debug for Pool<T, J, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({}, {} workers)", self.core.settings.name, self.core.settings.workers)
    }
}
