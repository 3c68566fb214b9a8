//! The pool as its users hold it. What it gives out, tickets and iterators, adds its own methods to it: ticket.rs, map.rs.

use super::core::{Core, lock};
use crate::arena::{Contained, Frozen};
use crate::error::{Error, Result};
use crate::pool::protocol::messages::{Reply, Request, WorkerExit};
use crate::pool::settings::PoolBuilder;
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

/// The types that a pool carries along.
pub(crate) type PoolTypes<T, J, R> = PhantomData<fn(J) -> (R, PhantomData<T>)>;

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
    /// The jobs run first.
    Drain,
    /// The jobs are cancelled; workers that run one are killed.
    Cancel,
}

/// A pool of workers over one data set: jobs `J` in, results `R` out. See the [module](crate::pool).
///
/// All methods may be called from several threads at once. Dropping it is [`Shutdown::Cancel`].
///
/// `D` is what this process has of the data: the data itself, [`Frozen`], or, where a process of its own loads each data set, its file alone: [`Loaded`](super::load::Loaded).
pub struct Pool<T: 'static, J, R, D = Frozen<T>> {
    pub(super) core: Arc<Core>,
    /// One thread at a time moves on to new data, so that the newest here is the newest in the zygote. Taken before `data`.
    pub(super) turn: Mutex<()>,
    pub(super) data: Mutex<D>,
    pub(super) types: PoolTypes<T, J, R>,
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

impl<T, J, R, D> Pool<T, J, R, D> {
    pub(super) fn new(core: Arc<Core>, data: D) -> Self {
        Self { core, turn: Mutex::new(()), data: Mutex::new(data), types: PhantomData }
    }

    /// The newest data, which nobody replaces as long as this is held.
    pub(super) fn newest(&self) -> MutexGuard<'_, D> {
        lock(&self.data)
    }
}

impl<T, J, R> Pool<T, J, R> {
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
    /// Those of [`Self::replace`].
    #[expect(unsafe_code, reason = "declares an unsafe function")]
    pub unsafe fn replace_unchecked(&self, new: Frozen<T>) -> Result<Frozen<T>> {
        let _turn = lock(&self.turn);
        let mut newest = self.newest();
        // SAFETY: passed on to the caller.
        unsafe { self.core.hand_over(&new.export()?, new.image().file()) }?;
        Ok(std::mem::replace(&mut newest, new))
    }
}

impl<T, J, R, D> Pool<T, J, R, D> {
    /// Numbers since the pool began; zeroes in a process forked from the pool's.
    pub fn stats(&self) -> Stats {
        if self.core.check_process().is_err() {
            return Stats::default();
        }
        let board = self.core.region.board();
        let workers = self.core.region.workers();
        Stats {
            jobs: workers.iter().map(|worker| worker.jobs.load(Ordering::Acquire)).sum(),
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
        let pids = self.core.region.workers().iter().map(|worker| worker.pid.load(Ordering::Acquire) as i32);
        pids.filter(|&pid| pid != 0).collect()
    }

    /// The ends of workers since this was asked last, the oldest first; the last 1024 are kept, and the log says how many were not.
    ///
    /// # Errors
    /// The pool is gone.
    pub fn take_exits(&self) -> Result<Vec<WorkerExit>> {
        match self.core.request(&Request::Exits, None)? {
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

impl<T, J, R, D> Drop for Pool<T, J, R, D> {
    fn drop(&mut self) {
        if let Err(e) = self.core.close(true) {
            log::warn!("the pool `{}`: {e}", self.core.settings.name);
        }
    }
}

impl<T, J, R, D> fmt::Debug for Pool<T, J, R, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({}, {} workers)", self.core.settings.name, self.core.settings.workers)
    }
}
