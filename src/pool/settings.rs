//! The settings that a pool is made with.

use super::context::{WorkerHooks, WorkerInfo};
use super::protocol::board::WORKERS_MAX;
use super::signals::{OnSignal, OnSignals, Signal};
use crate::error::{Error, Result};
use crate::page::PageCount;
use crate::watch::Watch;
use std::sync::Arc;
use std::time::Duration;

/// The treatment of a worker that has copied more pages than its budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OverBudget {
    /// The worker leaves when its batch is done, and a new one, which has copied nothing, takes its place.
    #[default]
    Retire,
    /// The worker is counted ([`super::Stats::over_budget`]) and goes on.
    Report,
}

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) name: String,
    pub(crate) workers: usize,
    pub(crate) watch: Watch,
    pub(crate) last_census: bool,
    pub(crate) copy_budget: Option<(PageCount, OverBudget)>,
    pub(crate) reshare: bool,
    pub(crate) populate: bool,
    pub(crate) time_limit: Option<Duration>,
    pub(crate) max_attempts: u32,
    pub(crate) memory_limit: Option<u64>,
    pub(crate) payload_capacity: usize,
    pub(crate) result_capacity: usize,
    pub(crate) spin: Duration,
    pub(crate) wait_for_threads: Option<Duration>,
    pub(crate) check_types: bool,
    pub(crate) worker_signals: OnSignals,
    pub(crate) zygote_signals: OnSignals,
    pub(crate) on_start: WorkerHooks,
    pub(crate) on_end: WorkerHooks,
}

/// Settings of a new [`super::Pool`].
#[must_use]
#[derive(Clone, Debug)]
pub struct PoolBuilder {
    pub(super) settings: Settings,
}

impl PoolBuilder {
    pub(crate) fn new() -> Self {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let settings = Settings {
            name: "pool".to_owned(),
            workers,
            watch: Watch::Census,
            last_census: true,
            copy_budget: None,
            reshare: false,
            populate: false,
            time_limit: None,
            max_attempts: 1,
            memory_limit: None,
            payload_capacity: 1 << 30,
            result_capacity: 256 << 20,
            spin: Duration::from_micros(50),
            wait_for_threads: None,
            check_types: true,
            worker_signals: OnSignals::default(),
            zygote_signals: OnSignals::default(),
            on_start: WorkerHooks::default(),
            on_end: WorkerHooks::default(),
        };
        Self { settings }
    }

    /// The number of workers, 1 to 1024 (default: one for each processor this process may use).
    pub fn workers(mut self, workers: usize) -> Self {
        self.settings.workers = workers;
        self
    }

    /// The name in `/proc/PID/maps` and in messages (default `pool`).
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = name.into();
        self
    }

    /// The way the workers' copies are observed (default [`Watch::Census`], under which writes take as long as without it).
    pub fn watch(mut self, watch: Watch) -> Self {
        self.settings.watch = watch;
        self
    }

    /// False: no keeper, and no census of a worker that has ended (only for [`Watch::Census`]). Saves a process a worker.
    pub fn last_census(mut self, take: bool) -> Self {
        self.settings.last_census = take;
        self
    }

    /// The number of pages of frozen arenas that a worker may copy. They are counted between batches, by a census where page faults say
    /// that there may be as many.
    pub fn copy_budget(mut self, pages: PageCount) -> Self {
        let then = self.settings.copy_budget.map(|(_, then)| then).unwrap_or_default();
        self.settings.copy_budget = Some((pages, then));
        self
    }

    /// Sets what becomes of a worker above the budget (default: it retires).
    pub fn over_budget(mut self, then: OverBudget) -> Self {
        let pages = self.settings.copy_budget.map_or(PageCount(u64::MAX), |(pages, _)| pages);
        self.settings.copy_budget = Some((pages, then));
        self
    }

    /// True: a worker above its budget first gives back the copies whose content is the original again
    /// ([`crate::arena::Frozen::reshare`], counted in [`super::Stats::reshared_pages`]), and only then counts as above it. For jobs that
    /// undo what they write.
    pub fn reshare(mut self, reshare: bool) -> Self {
        self.settings.reshare = reshare;
        self
    }

    /// True: each worker maps all of the data's pages before its first job ([`Frozen::populate`](crate::arena::Frozen::populate)), so that no job pays for
    /// them. For data that most workers read most of, where [huge pages](crate::arena::HugePages) are not wanted, or not to be had. It takes
    /// Linux 5.14, and 2 MiB of page tables for each GiB in each worker.
    pub fn populate(mut self, populate: bool) -> Self {
        self.settings.populate = populate;
        self
    }

    /// The time a job may take (default: for ever). Then its worker is killed, and the job's error says so. A stopped
    /// worker (SIGSTOP) is found out this way only.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.settings.time_limit = Some(limit);
        self
    }

    /// The number of times a job is tried whose worker dies or whose time is over (default 1: it is not tried again, since it may have
    /// done half of what it does). A panic is never tried again.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.settings.max_attempts = attempts;
        self
    }

    /// The memory a worker may take beyond what it is born with, in bytes (`RLIMIT_DATA`; shared memory and the
    /// arenas do not count). An allocation beyond fails, of which Rust programs die by SIGABRT.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.settings.memory_limit = Some(bytes);
        self
    }

    /// The most that results of one worker may take while they are not read or still held, in bytes (default 256 MiB). Only
    /// addresses are taken up front.
    pub fn result_capacity(mut self, bytes: usize) -> Self {
        self.settings.result_capacity = bytes;
        self
    }

    /// The most that jobs may take that are queued or at work, in bytes (default 1 GiB). Only addresses are taken up front.
    pub fn job_capacity(mut self, bytes: usize) -> Self {
        self.settings.payload_capacity = bytes;
        self
    }

    /// Has each worker call this before its first job. May be given several times; all are called, in that order. It is the place to seed
    /// generators of random numbers anew, which were forked with the worker and would say the same in all of them:
    ///
    /// ```no_run
    /// # let builder = cowbell::pool::Pool::builder();
    /// builder.on_worker_start(|_| rand::rng().reseed().expect("random numbers of the kernel's"));
    /// ```
    ///
    /// A worker in which it panics has died, and another is tried in its place; where all do, jobs end with
    /// [`JobError::PoolGone`](super::JobError::PoolGone).
    pub fn on_worker_start(mut self, hook: impl Fn(&WorkerInfo) + Send + Sync + 'static) -> Self {
        self.settings.on_start.0.push(Arc::new(hook));
        self
    }

    /// Has each worker call this that leaves of its own accord, behind its last job: because the pool is drained or the data replaced, or it
    /// copied too much. Not one that dies or is killed, as all are by [`Shutdown::Cancel`](super::Shutdown::Cancel). May be given several times; all are
    /// called, in that order. A worker in which it panics has died; one that is at it when the pool is cancelled is killed. A pool that is drained
    /// waits for it, however long it takes.
    pub fn on_worker_end(mut self, hook: impl Fn(&WorkerInfo) + Send + Sync + 'static) -> Self {
        self.settings.on_end.0.push(Arc::new(hook));
        self
    }

    /// Sets what workers do with a signal (default for each: [`OnSignal::Ignore`]).
    ///
    /// A supervisor that ends a service, and a terminal on Ctrl-C, send their signal to all processes of the group. What is to happen is the parent's matter: its
    /// handler may drain the pool, and while it does the workers go on with their jobs. So by default they take no notice, and a worker is killed by SIGKILL only.
    ///
    /// ```no_run
    /// use cowbell::pool::{OnSignal, Pool, Signal};
    ///
    /// // `kill WORKER` is to end that worker, and another is to take its place.
    /// let builder = Pool::builder().worker_signal(Signal::Terminate, OnSignal::Default);
    /// ```
    pub fn worker_signal(mut self, signal: Signal, then: OnSignal) -> Self {
        self.settings.worker_signals.set(signal, then);
        self
    }

    /// Sets what the zygote does with a signal (default for each: [`OnSignal::Ignore`]). With [`OnSignal::Default`] it ends, and the pool with it. It calls no
    /// hooks, so [`OnSignal::Hook`] is invalid here.
    pub fn zygote_signal(mut self, signal: Signal, then: OnSignal) -> Self {
        self.settings.zygote_signals.set(signal, then);
        self
    }

    /// The time that a worker without a job, or a thread without a result, waits awake before it sleeps, if waits are that
    /// short on the average (default 50 µs). Zero: never.
    pub fn spin(mut self, spin: Duration) -> Self {
        self.settings.spin = spin;
        self
    }

    /// The time that [`Self::spawn`] waits for other threads to end before it refuses: see
    /// [`ForkOptions::wait_for_threads`](crate::fork::ForkOptions::wait_for_threads), whose default it has.
    pub fn wait_for_threads(mut self, timeout: Duration) -> Self {
        self.settings.wait_for_threads = Some(timeout);
        self
    }

    /// False: the types of jobs and results are not checked when the pool is made (default: they are).
    ///
    /// The check has both types read made-up values (0, empty text, lists of one), in this process, before it forks. So it runs whatever their `Deserialize` runs, and
    /// drops the values that come of it. The program's panic hook is not called in this thread meanwhile, and a panic ends the check of that type. Types whose `Deserialize` or `Drop` must not run
    /// for a value that nobody sent, because it ends the process or has effects elsewhere, need `false`. In programs that are built with `panic = "abort"`, and in a thread that is unwinding,
    /// nothing is checked.
    ///
    /// With the check or without, a value that cannot be decoded is its job's error, [`JobError::NotPassed`](super::JobError::NotPassed).
    pub fn check_types(mut self, check: bool) -> Self {
        self.settings.check_types = check;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let settings = &self.settings;
        if !(1..=WORKERS_MAX).contains(&settings.workers) {
            return Err(Error::invalid(format!("a pool has 1 to {} workers", WORKERS_MAX)));
        }
        if settings.zygote_signals.has_hook() {
            return Err(Error::invalid("the zygote calls no hooks that could handle a signal: zygote_signal"));
        }
        if settings.max_attempts == 0 {
            return Err(Error::invalid("a job is tried once at least: max_attempts"));
        }
        if settings.time_limit.is_some_and(|limit| limit.is_zero()) {
            return Err(Error::invalid("a time limit of nothing"));
        }
        if settings.result_capacity < 1 << 16 || settings.payload_capacity < 1 << 16 {
            return Err(Error::invalid("job_capacity and result_capacity are 64 KiB at least"));
        }
        if settings.watch.observes() && !settings.last_census {
            return Err(Error::invalid(format!("watch `{}` cannot do without the last census", settings.watch)));
        }
        Ok(())
    }
}
