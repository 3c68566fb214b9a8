//! The zygote: a process with one thread, forked when the pool is made, that forks the workers, reaps them, tells what
//! became of the jobs they held, and replaces them. The parent may have as many threads as it likes meanwhile.
//!
//! The zygote dies with its parent and its workers die with it (`PR_SET_PDEATHSIG`), so nothing stays behind, whoever is killed.

mod loader;
mod loading;
mod requests;
mod termination;
mod worker_log;

use crate::error::{Error, Result};
use crate::facts::Ended;
use crate::fork::{self, Child, ForkOptions};
use crate::pool::memory::region::Region;
use crate::pool::protocol::board::BatchSlot;
use crate::pool::protocol::failure::{Death, JobFailure};
use crate::pool::protocol::messages::{Reply, WorkerExit};
use crate::pool::protocol::progress::{self, JobPhase, Progress};
use crate::pool::protocol::queue::{self, DONE, QUEUED};
use crate::pool::settings::Settings;
use crate::pool::signals;
use crate::pool::worker::{self, JobRunner, Left};
use crate::sys::epoll::Poller;
use crate::sys::{self, channel, eventfd, limits, prctl, signal, tracing};
use crate::wire;
pub(crate) use loader::Loaded;
use loader::Loader;
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
pub(crate) use worker_log::tell;
use worker_log::{Killed, WorkerEnd};

/// Tokens of the poller above the indices of all workers.
const REQUESTS: u64 = 1 << 32;
const LIMITS: u64 = REQUESTS + 1;
const LOADER: u64 = REQUESTS + 2;

/// For so long after the OOM killer was seen at work a worker's SIGKILL is taken for its doing.
const OUT_OF_MEMORY: Duration = Duration::from_secs(1);

/// The number of ends of workers that are kept until somebody asks for them.
const EXITS_MAX: usize = 1024;

/// A worker that dies this often in a row before it has done anything is not started at once again.
const SHORT_LIVES: u32 = 3;
/// When no worker could be started for so many tries, the pool is given up.
const SHORT_LIVES_MAX: u32 = 12;

/// The data and the closure, without their types.
pub(crate) trait Data: JobRunner {
    /// Is there data to fork workers over?
    fn has_data(&self) -> bool;

    /// Takes over a new generation of the data and gives up the old one.
    ///
    /// # Errors
    /// Its addresses are taken, or the file is no sealed image.
    fn adopt(&mut self, export: &[u8], file: OwnedFd) -> Result<()>;

    /// In a process of its own: has the program build the data that `source` asks for.
    ///
    /// # Errors
    /// The pool has nobody who loads; whatever the program says; the data cannot be handed over.
    fn load(&mut self, source: &[u8]) -> Result<Loaded, String>;
}

/// What the zygote knows of the worker with one index.
#[derive(Default)]
pub(crate) struct Member {
    pub(crate) child: Option<Child>,
    /// The number of workers in a row that died before they had done a job.
    pub(crate) short_lives: u32,
    /// Why the zygote has killed its worker.
    pub(crate) killed: Option<Killed>,
    /// When the next is to be started.
    pub(crate) due: Option<Instant>,
    /// Since when it was seen stopped by a signal.
    pub(crate) stopped: Option<Instant>,
    /// The channel's end of its data, if that was loaded. It is held here until the worker is reaped, because a keeper has the memory for a moment longer.
    pub(crate) users: Option<Rc<OwnedFd>>,
}

/// The ends of the channels that the zygote has.
pub(crate) struct ZygoteEnds {
    pub(crate) requests: OwnedFd,
    /// Notified when batches with a time limit are queued after a while without.
    pub(crate) limits: OwnedFd,
}

/// The zygote's whole life, from its fork on.
pub(crate) fn run(region: &'static Region, settings: &Settings, channels: ZygoteEnds, data: &mut dyn Data) {
    let requests = channels.requests.try_clone();
    match Zygote::begin(region, settings, channels, data) {
        Ok(zygote) => zygote.live(),
        Err(e) => {
            if let Ok(requests) = requests {
                reply(&requests, &Reply::Refused(e.to_string()), None);
            }
        }
    }
}

fn reply(requests: &OwnedFd, reply: &Reply, with: Option<OwnedFd>) -> bool {
    let mut message = Vec::new();
    wire::encode(reply, &mut message, &mut Vec::new()).is_ok()
        && channel::send(requests.as_fd(), &message, with.as_ref().map(AsFd::as_fd)).is_ok()
}

pub(crate) struct Zygote<'a> {
    pub(crate) region: &'static Region,
    pub(crate) settings: &'a Settings,
    pub(crate) channels: ZygoteEnds,
    pub(crate) poller: Poller,
    pub(crate) crew: Vec<Member>,
    pub(crate) data: &'a mut dyn Data,
    pub(crate) exits: VecDeque<WorkerExit>,
    pub(crate) exits_lost: u64,
    /// Jobs that end with their workers: which slot, which job, and why.
    pub(crate) condemned: HashMap<usize, (usize, JobFailure)>,
    /// Since when a job that has not begun was seen current.
    pub(crate) ahead_since: HashMap<usize, (Progress, Instant)>,
    pub(crate) out_of_memory_kills: Option<u64>,
    /// When that count was seen to have grown.
    pub(crate) out_of_memory_at: Option<Instant>,
    pub(crate) closing: bool,
    pub(crate) loader: Loader,
}

impl<'a> Zygote<'a> {
    /// In the zygote: gets ready and starts the first workers.
    ///
    /// # Errors
    /// Those of [`fork::spawn`].
    fn begin(
        region: &'static Region,
        settings: &'a Settings,
        channels: ZygoteEnds,
        data: &'a mut dyn Data,
    ) -> Result<Self> {
        prctl::set_name(c"cowbell-zygote");
        settings.zygote_signals.begin_zygote();
        tracing::raise_descriptors_max();
        let poller = Poller::new().map_err(|e| Error::os("epoll_create1", e))?;
        let add = |fd: &OwnedFd, token| poller.add(fd, token).map_err(|e| Error::os("epoll_ctl", e));
        add(&channels.requests, REQUESTS)?;
        add(&channels.limits, LIMITS)?;
        let crew = std::iter::repeat_with(Member::default).take(settings.workers).collect();
        let mut zygote = Self {
            region,
            settings,
            channels,
            poller,
            crew,
            data,
            exits: VecDeque::new(),
            exits_lost: 0,
            condemned: HashMap::new(),
            ahead_since: HashMap::new(),
            out_of_memory_kills: limits::out_of_memory_kills(),
            out_of_memory_at: None,
            closing: false,
            loader: Loader::default(),
        };
        if zygote.data.has_data() {
            zygote.start_all()?;
        }
        Ok(zygote)
    }

    /// The zygote's life; returns when the pool is closed.
    fn live(mut self) {
        self.reply(&Reply::Done(true));
        let mut found = Vec::new();
        while !(self.closing && self.crew.iter().all(|member| member.child.is_none())) {
            let ticks = self.watch_limits();
            // While the pool closes, no worker is started any more.
            let due = self.crew.iter().filter_map(|member| member.due).filter(|_| !self.closing).min();
            let due = due.map(|due| due.saturating_duration_since(Instant::now()));
            if self.poller.wait(ticks.into_iter().chain(due).min(), &mut found).is_err() {
                return;
            }
            for &token in &found {
                match token {
                    REQUESTS => {
                        if !self.answer() {
                            return;
                        }
                    }
                    LIMITS => eventfd::take_notice(&self.channels.limits),
                    LOADER => self.reap_loader(),
                    index => self.reap(index as usize),
                }
            }
            self.start_due();
        }
        // The thread that asked for the end waits for the news that is left to tell.
        let exits = self.take_exits();
        self.reply(&exits);
    }

    fn start_all(&mut self) -> Result<()> {
        (0..self.settings.workers).try_for_each(|index| self.start(index))
    }

    fn start(&mut self, index: usize) -> Result<()> {
        let Some(own) = self.region.workers().get(index) else { return Ok(()) };
        let board = self.region.board();
        own.clear(board.generation.0.load(Ordering::Acquire), sys::monotonic_ns());
        let options = ForkOptions::new().watch(self.settings.watch).last_census(self.settings.last_census);
        let (region, settings, data) = (self.region, self.settings, &mut *self.data);
        let (crew, loader) = (&mut self.crew, &mut self.loader);
        // The worker has its own settings for them, and gets what comes before it has.
        let held = signals::hold();
        let child = fork::spawn(&options, |_| {
            // Copies of descriptors that are the zygote's business.
            crew.clear();
            loader.leave();
            worker::live(region, settings, index, data);
        });
        drop(held);
        let child = child?;
        own.welcome(board, child.pid());
        self.poller.add(child.pidfd(), index as u64).map_err(|e| Error::os("epoll_ctl", e))?;
        if let Some(member) = self.crew.get_mut(index) {
            member.killed = None;
            member.child = Some(child);
            member.due = None;
            member.stopped = None;
            member.users = self.loader.users();
        }
        Ok(())
    }

    /// Starts whoever's time has come.
    fn start_due(&mut self) {
        for index in 0..self.crew.len() {
            let due = self.crew.get(index).and_then(|member| member.due).is_some_and(|due| due <= Instant::now());
            if !due || self.closing {
                continue;
            }
            if let Err(e) = self.start(index) {
                // The worker may have run for a moment and taken a batch, before it was found to lack something.
                if let Some(own) = self.region.workers().get(index) {
                    own.pid.store(0, Ordering::Release);
                    // Then it was counted as started.
                    self.region.board().deaths.fetch_add(u64::from(own.is_welcomed()), Ordering::AcqRel);
                }
                self.settle(index, Death::of(Ended::Signaled(signal::KILL)));
                self.put_off(index);
                tell(|| log::warn!("no worker can be started: {e}"));
            }
        }
    }

    /// Lets a worker be replaced: at once, or after a while if the workers of its index do not last.
    fn put_off(&mut self, index: usize) {
        let Some(member) = self.crew.get_mut(index) else { return };
        member.short_lives += 1;
        let wait = match member.short_lives.checked_sub(SHORT_LIVES) {
            None => Duration::ZERO,
            Some(more) => Duration::from_millis(10 << more.min(7)),
        };
        member.due = Some(Instant::now() + wait);
        let hopeless = |member: &Member| member.child.is_none() && member.short_lives >= SHORT_LIVES_MAX;
        // Without a job that waits nobody is hurt, and whoever kills idle workers may stop.
        let waits = |(_, slot): (usize, &BatchSlot)| slot.state.load(Ordering::Acquire) == QUEUED;
        if self.crew.iter().all(hopeless) && self.slots().any(waits) {
            self.region.board().broken.store(1, Ordering::Release);
            self.region.tell_all();
        }
    }

    /// A worker has ended: tells what became of its job and has it replaced.
    fn reap(&mut self, index: usize) {
        let Some(member) = self.crew.get_mut(index) else { return };
        let Some(mut child) = member.child.take() else { return };
        let users = member.users.take();
        let _closed_soon = self.poller.remove(child.pidfd());
        // The kernel may soon give the worker's id to another process.
        if let Some(own) = self.region.workers().get(index) {
            own.pid.store(0, Ordering::Release);
        }
        let waited = child.wait();
        drop(users);
        let exit = match waited {
            Ok(exit) => exit,
            Err(e) => {
                let pid = child.pid();
                // The worker is killed, if it lives.
                tell(|| drop(child));
                self.region.board().deaths.fetch_add(1, Ordering::AcqRel);
                self.settle(index, Death::of(Ended::Unknown));
                self.put_off(index);
                return tell(|| log::warn!("worker {pid}: {e}"));
            }
        };
        let Some(own) = self.region.workers().get(index) else { return };
        let board = self.region.board();
        let left = Left::of(own.left.load(Ordering::Acquire)).filter(|_| exit.ended == Ended::Exited(0));
        let death = Death {
            ended: exit.ended,
            out_of_memory: self.was_out_of_memory(exit.ended),
            stack_overflow: exit.stack_overflow.is_some(),
        };
        if left.is_none() {
            board.deaths.fetch_add(1, Ordering::AcqRel);
        }
        if left == Some(Left::OverBudget) {
            board.retired.fetch_add(1, Ordering::AcqRel);
        }
        let killed = self.crew.get(index).and_then(|member| member.killed);
        let killed = killed.filter(|_| exit.ended == Ended::Signaled(signal::KILL));
        let end = WorkerEnd { own, index, pid: child.pid(), left, death, killed };
        let held = self.settle(index, death);
        if self.exits.len() == EXITS_MAX {
            self.exits.pop_front();
            self.exits_lost += 1;
        }
        let retired = left.is_some();
        self.exits.push_back(WorkerExit { pid: child.pid(), death, left_by_itself: retired, report: exit.report });
        let Some(member) = self.crew.get_mut(index) else { return };
        if held || retired || own.jobs.load(Ordering::Acquire) > own.jobs_before.load(Ordering::Acquire) {
            member.short_lives = 0;
            member.due = Some(Instant::now());
        } else {
            self.put_off(index);
        }
        // Last, because the logger is the program's: whoever waits for the job has its result, however long this takes.
        tell(|| end.log(self.settings));
    }

    fn was_out_of_memory(&mut self, ended: Ended) -> bool {
        if ended != Ended::Signaled(signal::KILL) {
            return false;
        }
        let before = std::mem::replace(&mut self.out_of_memory_kills, limits::out_of_memory_kills());
        if self.out_of_memory_kills > before {
            self.out_of_memory_at = Some(Instant::now());
        }
        // The count may have been raised for several who are reaped one after the other.
        self.out_of_memory_at.is_some_and(|at| at.elapsed() < OUT_OF_MEMORY)
    }

    /// Writes into the slots that a dead worker held how far it came; did it hold any?
    fn settle(&mut self, index: usize, death: Death) -> bool {
        let mut held = false;
        for (number, slot) in self.slots() {
            if queue::holder(slot.state.load(Ordering::Acquire)) != Some(index) {
                continue;
            }
            held = true;
            worker::hand_over(self.region, slot);
            self.ahead_since.remove(&number);
            let condemned = self.condemned.remove(&number);
            match (progress::read(&slot.progress), condemned) {
                ((_, JobPhase::Ahead), _) => slot.failure.store(0, Ordering::Release),
                // The worker had done all of its jobs.
                ((job, _), _) if job >= slot.jobs.load(Ordering::Acquire) as usize => {
                    slot.failure.store(0, Ordering::Release);
                }
                ((job, JobPhase::Condemned), Some((which, why))) if job == which => why.write(slot),
                ((_, JobPhase::Running | JobPhase::Condemned), _) => JobFailure::Died(death).write(slot),
            }
            slot.state.store(DONE, Ordering::SeqCst);
        }
        // A wake that the dead one was to get is somebody else's now, and it may have ended a batch without ringing.
        self.region.queue().bury(index);
        self.region.tell_all();
        held
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = (usize, &'static BatchSlot)> + use<> {
        let used = self.region.board().slots_used.load(Ordering::Acquire) as usize;
        self.region.slots().iter().enumerate().take(used)
    }
}
