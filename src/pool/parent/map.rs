//! Many jobs from an iterator: pulled as workers get free, sent in batches, given out in order or as they end.

use super::core::{Core, Terms};
use super::in_flight::{InFlight, encode_job};
use super::pool::Pool;
use crate::pool::protocol::failure::JobError;
use crate::pool::protocol::spin::AdaptiveSpin;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::fmt;
use std::iter::Fuse;
use std::sync::Arc;

/// A batch is to take so long: long against the cost of passing it, short against a person's patience.
const BATCH_NS: u64 = 1_000_000;
/// The most jobs of a batch whose size is chosen by itself.
const BATCH_JOBS_MAX: usize = 1 << 12;
/// A batch ends early when its jobs take so many bytes.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// The number of jobs that go into one batch.
#[derive(Debug)]
enum ChunkSize {
    Fixed(usize),
    /// The number that takes [`BATCH_NS`], by what a job took so far.
    Auto {
        last: usize,
        job_ns: Option<u64>,
    },
}

impl ChunkSize {
    /// The number of jobs the next batch gets, where `left` are known to be left for `workers`.
    fn next(&mut self, left: usize, workers: usize) -> usize {
        match self {
            Self::Fixed(jobs) => *jobs,
            Self::Auto { last, job_ns } => {
                let Some(job_ns) = job_ns else { return 1 };
                let wanted = (BATCH_NS / (*job_ns).max(1)).clamp(1, BATCH_JOBS_MAX as u64) as usize;
                // Towards the end smaller ones, so that all workers end together.
                *last = wanted.min(*last * 4).min((left / (2 * workers)).max(1));
                *last
            }
        }
    }

    fn learn(&mut self, (ns, jobs): (u64, usize)) {
        if let (Self::Auto { job_ns, .. }, true) = (self, jobs > 0) {
            let now = ns / jobs as u64;
            *job_ns = Some(job_ns.map_or(now, |mean| (mean * 3 + now) / 4));
        }
    }
}

/// Batches of one iterator under way.
struct Window<'p, R, I: Iterator> {
    core: &'p Arc<Core>,
    jobs: Fuse<I>,
    chunk: ChunkSize,
    /// Each with the number of its first job.
    runs: VecDeque<(usize, InFlight<R>)>,
    /// The number of jobs that were pulled, and of those that are done.
    pulled: usize,
    done: usize,
    /// The progress that was told last.
    told: usize,
    progress: Option<Box<dyn FnMut(usize) + 'p>>,
    /// Encoded jobs.
    row: Vec<u8>,
    /// The first of the jobs in `row`, and how many, if they found no room yet.
    pending: Option<(usize, usize)>,
    /// The next job, encoded, if it did not fit into that batch.
    spilled: Vec<u8>,
    spin: AdaptiveSpin,
    waiter: usize,
    /// Why nothing more is queued.
    failed: Option<JobError>,
    /// Jobs that could not be encoded or queued, with their numbers.
    refused: VecDeque<(usize, JobError)>,
}

impl<'p, R, I> Window<'p, R, I>
where
    R: DeserializeOwned,
    I: Iterator<Item: Serialize>,
{
    fn new(core: &'p Arc<Core>, jobs: I) -> Self {
        Self {
            core,
            jobs: jobs.fuse(),
            chunk: ChunkSize::Auto { last: 1, job_ns: None },
            runs: VecDeque::new(),
            pulled: 0,
            done: 0,
            told: 0,
            progress: None,
            row: Vec::new(),
            pending: None,
            spilled: Vec::new(),
            spin: AdaptiveSpin::new(core.settings.spin),
            waiter: Core::waiter(),
            failed: None,
            refused: VecDeque::new(),
        }
    }

    /// Two batches for each worker: one at work, one to go on with.
    fn width(&self) -> usize {
        2 * self.core.settings.workers + 1
    }

    /// Pulls and queues jobs until as many batches are under way as are useful.
    fn fill(&mut self) {
        if let Some((first, jobs)) = self.pending.take() {
            self.queue(first, jobs);
        }
        while self.pending.is_none() && self.runs.len() < self.width() && self.refused.is_empty() {
            // An iterator may not know its length (the lines of a file): then there may be many.
            let left = self.jobs.size_hint().1.unwrap_or(usize::MAX);
            let many = self.chunk.next(left, self.core.settings.workers);
            let mut jobs = usize::from(!self.spilled.is_empty());
            let first = self.pulled - jobs;
            self.row.clear();
            self.row.append(&mut self.spilled);
            while jobs < many && self.row.len() < BATCH_BYTES_MAX {
                let Some(job) = self.jobs.next() else { break };
                let start = self.row.len();
                let encoded = match &self.failed {
                    Some(error) => Err(error.clone()),
                    None => encode_job(&job, &mut self.row),
                };
                self.pulled += 1;
                match encoded {
                    Ok(()) if jobs > 0 && self.row.len() > self.core.settings.payload_capacity => {
                        self.spilled = self.row.split_off(start);
                        break;
                    }
                    Ok(()) => jobs += 1,
                    Err(error) => {
                        self.refused.push_back((self.pulled - 1, error));
                        break;
                    }
                }
            }
            if jobs == 0 {
                return;
            }
            self.queue(first, jobs);
        }
    }

    fn queue(&mut self, first: usize, jobs: usize) {
        let settings = &self.core.settings;
        let terms = Terms { jobs, limit: settings.time_limit, waiter: self.waiter };
        // The room that is missing may be what earlier batches of our own take: then they are read first.
        let waits = self.runs.is_empty();
        match InFlight::begin(self.core, &self.row, terms, settings.max_attempts, None, waits) {
            Ok(Some(run)) => self.runs.push_back((first, run)),
            Ok(None) => self.pending = Some((first, jobs)),
            Err(error) => {
                for job in (first..first + jobs).rev() {
                    self.refused.push_front((job, error.clone()));
                }
                // A job that is too large is its own affair.
                if !matches!(error, JobError::NotPassed(_)) {
                    self.failed = Some(error);
                }
            }
        }
    }

    /// Waits until the first batch, or any, has all its results, and takes it out with the number of its first job.
    fn next(&mut self, in_order: bool) -> Option<(usize, Vec<Result<R, JobError>>)> {
        self.fill();
        let refused_first = match (self.refused.front(), self.runs.front()) {
            (Some((refused, _)), Some((run, _))) => refused < run,
            (refused, _) => refused.is_some(),
        };
        if refused_first && let Some((job, error)) = self.refused.pop_front() {
            self.done += 1;
            return Some((job, vec![Err(error)]));
        }
        if self.runs.is_empty() {
            return None;
        }
        let core = self.core;
        let mut found = 0;
        let runs = &mut self.runs;
        let waited = core.wait(self.waiter, &self.spin, None, || {
            let many = if in_order { 1 } else { runs.len() };
            let over = runs.iter_mut().take(many).position(|(_, run)| run.advance());
            if over.is_none() && runs.front().and_then(|(_, run)| run.number()).is_some_and(|first| core.starves(first))
            {
                // Results of later batches take the room that the first one needs.
                runs.iter_mut().skip(1).for_each(|(_, run)| _ = run.advance());
            }
            match over {
                Some(at) => {
                    found = at;
                    true
                }
                None => false,
            }
        });
        if let Err(error) = waited {
            runs.iter_mut().for_each(|(_, run)| run.fail(&error));
            self.failed = Some(error);
        }
        let (first, mut run) = self.runs.remove(found)?;
        self.chunk.learn(run.ran);
        self.done += run.results.len();
        let results = std::mem::take(&mut run.results);
        drop(run);
        // The workers go on while the results are looked at.
        self.fill();
        Some((first, results))
    }

    fn tell(&mut self) {
        if let Some(progress) = self.progress.as_mut().filter(|_| self.told != self.done) {
            self.told = self.done;
            progress(self.done);
        }
    }
}

macro_rules! settings {
    () => {
        /// Sends so many jobs at a time (at least one) instead of choosing by what a job takes.
        pub fn chunk(mut self, jobs: usize) -> Self {
            self.window.chunk = ChunkSize::Fixed(jobs.max(1));
            self
        }

        /// Calls `progress` with the number of jobs that are done, whenever that has grown.
        pub fn progress(mut self, progress: impl FnMut(usize) + 'p) -> Self {
            self.window.progress = Some(Box::new(progress));
            self
        }
    };
}

/// Results in the order of their jobs; see [`Pool::map`].
///
/// One that is forgotten (`std::mem::forget`), or not asked any more, keeps the places of its batches under way, of which a pool has 4,096.
/// When all places are kept so, jobs fail with [`JobError::NotPassed`], which says so, after five seconds.
#[must_use = "iterators are lazy: nothing runs until it is asked for"]
pub struct Map<'p, R, I: Iterator> {
    window: Window<'p, R, I>,
    ready: std::vec::IntoIter<Result<R, JobError>>,
}

impl<'p, R, I> Map<'p, R, I>
where
    R: DeserializeOwned,
    I: Iterator<Item: Serialize>,
{
    pub(crate) fn new(core: &'p Arc<Core>, jobs: I) -> Self {
        Self { window: Window::new(core, jobs), ready: Vec::new().into_iter() }
    }

    settings!();
}

impl<R, I> Iterator for Map<'_, R, I>
where
    R: DeserializeOwned,
    I: Iterator<Item: Serialize>,
{
    type Item = Result<R, JobError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(result) = self.ready.next() {
                return Some(result);
            }
            let (_, results) = self.window.next(true)?;
            self.ready = results.into_iter();
            self.window.tell();
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let (least, most) = self.window.jobs.size_hint();
        let pulled = self.window.pulled - self.window.done + self.ready.len();
        (least.saturating_add(pulled), most.and_then(|most| most.checked_add(pulled)))
    }
}

/// Results as they end, each with the number of its job; see [`Pool::map_unordered`]. Forgotten, it is as a [`Map`] is.
#[must_use = "iterators are lazy: nothing runs until it is asked for"]
pub struct MapUnordered<'p, R, I: Iterator> {
    window: Window<'p, R, I>,
    ready: std::iter::Enumerate<std::vec::IntoIter<Result<R, JobError>>>,
    first: usize,
}

impl<'p, R, I> MapUnordered<'p, R, I>
where
    R: DeserializeOwned,
    I: Iterator<Item: Serialize>,
{
    pub(crate) fn new(core: &'p Arc<Core>, jobs: I) -> Self {
        Self { window: Window::new(core, jobs), ready: Vec::new().into_iter().enumerate(), first: 0 }
    }

    settings!();
}

impl<R, I> Iterator for MapUnordered<'_, R, I>
where
    R: DeserializeOwned,
    I: Iterator<Item: Serialize>,
{
    type Item = (usize, Result<R, JobError>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((at, result)) = self.ready.next() {
                return Some((self.first + at, result));
            }
            let (first, results) = self.window.next(false)?;
            self.first = first;
            self.ready = results.into_iter().enumerate();
            self.window.tell();
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let (least, most) = self.window.jobs.size_hint();
        let pulled = self.window.pulled - self.window.done + self.ready.len();
        (least.saturating_add(pulled), most.and_then(|most| most.checked_add(pulled)))
    }
}

impl<T, J, R, D> Pool<T, J, R, D>
where
    J: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
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
    pub fn map<I: IntoIterator<Item = J>>(&self, jobs: I) -> Map<'_, R, I::IntoIter>
    where
        R: Send,
    {
        Map::new(&self.core, jobs.into_iter())
    }

    /// Results as they end, each with the number of its job. Otherwise as [`Self::map`].
    pub fn map_unordered<I: IntoIterator<Item = J>>(&self, jobs: I) -> MapUnordered<'_, R, I::IntoIter>
    where
        R: Send,
    {
        MapUnordered::new(&self.core, jobs.into_iter())
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

macro_rules! debug {
    ($($name:ident)*) => {$(
        impl<R, I: Iterator> fmt::Debug for $name<'_, R, I> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let window = &self.window;
                write!(f, concat!(stringify!($name), "({} of {} pulled jobs done)"), window.done, window.pulled)
            }
        }
    )*};
}

debug!(Map MapUnordered);
