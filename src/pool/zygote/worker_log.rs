//! The zygote's words about its workers: what those of now were forked with, and a line in the log for each that is there no more.

use crate::fork::Child;
use crate::pool::protocol::board::WorkerRecord;
use crate::pool::protocol::failure::Death;
use crate::pool::protocol::messages::{ForkedArena, ForkedWorker};
use crate::pool::settings::Settings;
use crate::pool::worker::Left;
use crate::sys;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Why the zygote has killed a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Killed {
    /// A job's time was over, or the worker was stopped for as long.
    TimedOut,
    /// The parent cancelled its job.
    JobCancelled,
    /// The parent cancelled the pool.
    PoolCancelled,
}

impl Killed {
    fn cause(self) -> &'static str {
        match self {
            Self::TimedOut => "its job's time was over, or it was stopped for so long",
            Self::JobCancelled => "its job was cancelled",
            Self::PoolCancelled => "the pool was cancelled",
        }
    }
}

/// Calls the program's logger. If it panics, as `eprintln!` does where nobody reads standard error any more, that is its own matter: the zygote goes on, and its
/// pool with it.
pub(crate) fn tell(log: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(log)) {
        // The payload's destructor might panic again.
        std::mem::forget(payload);
    }
}

/// The end of a worker, to be told.
pub(crate) struct WorkerEnd<'a> {
    pub(crate) own: &'a WorkerRecord,
    pub(crate) index: usize,
    pub(crate) pid: i32,
    /// Why it left of its own accord, if it did.
    pub(crate) left: Option<Left>,
    pub(crate) death: Death,
    /// Why the zygote killed it, if that is what it died of.
    pub(crate) killed: Option<Killed>,
}

/// A worker of now, and what it was forked with.
pub(crate) fn forked(index: usize, own: &WorkerRecord, child: &Child) -> ForkedWorker {
    let arenas = child.arenas().map(|(range, inherited)| ForkedArena {
        start: range.start as u64,
        bytes: range.len as u64,
        inherited: inherited.runs().map(|run| (run.start.0, run.count.0)).collect(),
    });
    ForkedWorker {
        index: index as u32,
        pid: child.pid(),
        started: own.started.load(Ordering::Acquire),
        generation: own.generation.load(Ordering::Acquire),
        armed: child.watch().arms(),
        arenas: arenas.collect(),
    }
}

impl WorkerEnd<'_> {
    /// Tells the log of it.
    pub(crate) fn log(&self, settings: &Settings) {
        let (own, death) = (self.own, self.death);
        let generation = own.generation.load(Ordering::Acquire);
        let jobs = own.jobs.load(Ordering::Acquire) - own.jobs_before.load(Ordering::Acquire);
        let age = Duration::from_nanos(sys::monotonic_ns().saturating_sub(own.started.load(Ordering::Acquire)));
        let who = format!(
            "the pool `{}`: worker {} (index {}, generation {generation}, {jobs} jobs, {:.1} s)",
            settings.name,
            self.pid,
            self.index,
            age.as_secs_f64()
        );
        match (self.left, self.killed) {
            (Some(Left::Closing), _) => log::info!("{who} has left: the pool closes"),
            (Some(Left::Replaced), _) => log::info!("{who} has left: there is newer data"),
            (Some(Left::OverBudget), _) => {
                let copied = own.copied.load(Ordering::Acquire);
                let budget = settings.copy_budget.map_or(0, |(pages, _)| pages.0);
                log::info!("{who} has left: it had copied {copied} pages, and its budget is {budget}");
            }
            (None, Some(killed @ Killed::TimedOut)) => log::warn!("{who} was killed: {}", killed.cause()),
            (None, Some(killed)) => log::info!("{who} was killed: {}", killed.cause()),
            (None, None) => log::warn!("{who} {death}"),
        }
    }
}
