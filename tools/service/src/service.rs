//! The parent's part: the pool, its shifts, new generations of the data, the drain.

use crate::data::{self, Packages};
use crate::{Options, worker};
use cowbell::page::PageCount;
use cowbell::pool::{JobError, Loaded, Pool, Prepared, Shutdown, WorkerContext};
use std::error::Error;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

/// A job is a shift of so long; its result is the number of requests that were answered. Data is loaded by the number of its generation.
type Shifts = Pool<Packages, Duration, u64, Loaded<u64>>;

/// The zygote of such a pool, which has no data yet.
pub type Zygote = Prepared<Packages, Duration, u64, Loaded<u64>>;

pub type Failure = Box<dyn Error + Send + Sync>;

/// Forks the zygote. While the program has one thread: before the runtime.
pub fn prepare(listener: &TcpListener, options: &Options) -> Result<Zygote, Failure> {
    let (listener, inherited) = (listener.try_clone()?, options.clone());
    let packages = options.packages;
    // In each worker this is its own.
    let mut leaving = None;
    let zygote = Pool::builder()
        .name("service")
        .workers(options.workers)
        // A worker that has copied so many pages retires after its shift, and another takes its place.
        .copy_budget(PageCount(options.copied_pages_max))
        // Without a keeper each worker is one process. What a worker copied after its last shift is in no report.
        .last_census(false)
        .prepare_loaded(
            // In a process of its own, which the zygote forks: this one never has the data.
            move |generation: u64| data::build(generation, packages),
            move |worker: &WorkerContext<Packages>, time: Duration| {
                let leaving = leaving.get_or_insert_with(|| worker::leaving(worker)).clone();
                worker::shift(worker.root(), &listener, leaving, &inherited, time).expect("a runtime")
            },
        )?;
    Ok(zygote)
}

pub struct Service {
    options: Options,
    /// Gone when the drain has begun.
    pool: RwLock<Option<Shifts>>,
    /// The newest generation. Whoever asks for the next holds the lock.
    newest: Mutex<u64>,
    draining: AtomicBool,
}

impl Service {
    /// Has the data built and starts the workers.
    pub fn start(zygote: Zygote, options: Options) -> Result<Self, Failure> {
        let pool = zygote.load(&0)?;
        Ok(Self { options, pool: RwLock::new(Some(pool)), newest: Mutex::new(0), draining: AtomicBool::new(false) })
    }

    pub fn workers(&self) -> usize {
        self.options.workers
    }

    /// Asks the pool; `None` when it is draining.
    pub fn ask<A>(&self, question: impl FnOnce(&Shifts) -> A) -> Option<A> {
        self.pool.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(question)
    }

    /// Asks for shifts, one after the other, until the drain.
    ///
    /// # Errors
    /// The pool is gone.
    pub async fn keep_a_worker_busy(&self) -> Result<(), JobError> {
        while let Some(ticket) = self.ask(|pool| pool.submit(self.options.shift())) {
            let ended = match ticket {
                Ok(ticket) => ticket.await,
                Err(e) => Err(e),
            };
            match ended {
                Ok(answered) => log::info!("a shift is over: {answered} requests answered"),
                Err(JobError::Cancelled) => break,
                Err(e @ JobError::PoolGone(_)) => return Err(e),
                // The worker died, which the pool tells and mends; or this program has a bug, and must not be busy with that.
                Err(e) => {
                    log::error!("a shift failed: {e}");
                    if !matches!(e, JobError::Died { .. }) {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            }
        }
        Ok(())
    }

    /// Has a new generation of the data built and moves the pool to it. Returns its number. Workers finish what they have begun over the old data, whose memory is free when the
    /// last of them has left.
    pub fn reload(&self) -> Result<u64, Failure> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if self.draining.load(Ordering::SeqCst) {
            return Err("the service drains".into());
        }
        self.ask(|pool| pool.reload(&(*newest + 1))).ok_or("the service drains")??;
        *newest += 1;
        Ok(*newest)
    }

    /// Lets all workers finish and leave. When this returns there is no process of the pool.
    pub fn drain(&self) -> Result<(), Failure> {
        self.draining.store(true, Ordering::SeqCst);
        // Nobody will ask the data that is being loaded, and the pool is free when that has ended.
        self.ask(Shifts::stop_loading).transpose()?;
        let pool = self.pool.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(pool) = pool {
            let exits = pool.shutdown(Shutdown::Drain)?;
            log::info!("drained: {} workers left", exits.iter().filter(|exit| exit.left_by_itself).count());
        }
        Ok(())
    }
}
