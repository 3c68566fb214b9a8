//! The facts that a worker has about itself, for its jobs and for the program's hooks.

use super::memory::region::Region;
use crate::arena::Frozen;
use crate::arena::signal_safe::table;
use crate::sys::{futex, process};
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A worker, to its hooks; to its jobs it is a [`WorkerContext`].
#[derive(Clone, Copy)]
pub struct WorkerInfo {
    pub(crate) index: usize,
    pub(crate) generation: u64,
    pub(crate) seed: [u8; 32],
    pub(crate) region: &'static Region,
    /// The worker's number in its line of forks: a process that it forks has no region.
    pub(crate) process: usize,
}

impl WorkerInfo {
    /// Which of the pool's workers it is: 0 to the number of workers less one. The worker that replaces it has the same index.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The number of the data set: 0, and one more with each [`Pool::replace`](super::Pool::replace).
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Random bytes that the kernel made for this worker alone: to seed generators with, which otherwise say the same in all workers,
    /// because they were forked from one process.
    pub fn seed(&self) -> [u8; 32] {
        self.seed
    }

    /// The worker's process id.
    pub fn pid(&self) -> i32 {
        process::pid()
    }

    /// Tells whether the pool waits for this worker to leave: there is newer data, or the pool drains or closes. Some loads of shared memory.
    ///
    /// A job with an end need not ask, because its worker looks before it takes the next. One without end, such as a server's, ends soon after this is true. It stays
    /// true; and it is true in every process that the worker forked.
    ///
    /// ```no_run
    /// use cowbell::pool::{Pool, WorkerContext};
    ///
    /// # let data = cowbell::arena::Arena::builder("data").capacity(1 << 20).build()?.freeze(5u64)?;
    /// let pool = Pool::builder().spawn_with(data, |worker: &WorkerContext<u64>, (): ()| {
    ///     let mut served = 0u64;
    ///     while !worker.should_leave() {
    ///         served += 1; // One request, of a client that does not wait for long.
    ///     }
    ///     served
    /// })?;
    /// # Ok::<(), cowbell::Error>(())
    /// ```
    pub fn should_leave(&self) -> bool {
        if self.process != table::process_number() {
            return true;
        }
        let board = self.region.board();
        board.closing.load(Ordering::Acquire) != 0
            || board.draining.load(Ordering::Acquire) != 0
            || board.generation.0.load(Ordering::Acquire) > self.generation
    }

    /// Sleeps until [`Self::should_leave`]. For a thread of the worker's, which tells an event loop: this value is `Copy`, so the thread can have one. The worker does
    /// not wait for its threads when it leaves; and when the pool ends, whatever way, they end with it.
    pub fn wait_to_leave(&self) {
        while !self.should_leave() {
            let word = &self.region.board().worker_wakes[self.index];
            // Whoever changes what `should_leave` looks at raises the word behind that, so a change after this look ends the sleep.
            let heard = word.load(Ordering::Acquire);
            if !self.should_leave() {
                let _looked_at_again = futex::wait(word, heard, None);
            }
        }
    }
}

/// The seed is a secret.
impl fmt::Debug for WorkerInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerInfo")
            .field("index", &self.index)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// A worker and its data, to the jobs that it runs: see [`PoolBuilder::spawn_with`](super::PoolBuilder::spawn_with).
pub struct WorkerContext<T: 'static> {
    pub(crate) info: WorkerInfo,
    pub(crate) frozen: Frozen<T>,
}

impl<T: 'static> WorkerContext<T> {
    /// The root of the data.
    pub fn root(&self) -> &'static T {
        self.frozen.root()
    }

    /// The frozen data, to make handles of.
    pub fn frozen(&self) -> &Frozen<T> {
        &self.frozen
    }
}

impl<T: 'static> Deref for WorkerContext<T> {
    type Target = WorkerInfo;

    fn deref(&self) -> &WorkerInfo {
        &self.info
    }
}

impl<T: 'static> fmt::Debug for WorkerContext<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerContext").field("info", &self.info).field("frozen", &self.frozen).finish()
    }
}

/// A function of the program that workers call.
pub(crate) type WorkerHook = Arc<dyn Fn(&WorkerInfo) + Send + Sync>;

/// Functions that each worker calls, in the order in which they were given.
#[derive(Clone, Default)]
pub(crate) struct WorkerHooks(pub(crate) Vec<WorkerHook>);

impl WorkerHooks {
    pub(crate) fn call(&self, info: &WorkerInfo) {
        self.0.iter().for_each(|hook| hook(info));
    }
}

impl fmt::Debug for WorkerHooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} hooks", self.0.len())
    }
}
