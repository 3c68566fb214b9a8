//! The parent's side of a child: waiting, killing, asking, and the report at the end.

use crate::arena::Image;
use crate::error::{Error, Kind, Result};
use crate::page::{PageIndex, PageSet};
use crate::report::{self, Report};
use crate::sys::pagemap::Pagemap;
use crate::sys::pidfd::{self, Ended};
use crate::sys::{self, Errno, process, signal};
use crate::watch::{self, DeniedWrite, Event, Evidence, Pages, PanicMessage, Task, Watch, Word};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a keeper may go without any progress before it counts as dead.
const KEEPER_SILENCE_MAX: Duration = Duration::from_secs(10);

/// The pages of one frozen arena that a process has copied.
#[derive(Clone, Debug)]
pub struct ArenaCensus {
    /// The arena.
    pub image: Arc<Image>,
    /// The copied pages.
    pub copied: PageSet,
}

/// How a child ended, and what it copied.
#[derive(Clone, Debug)]
pub struct Exit {
    /// Its exit code or signal.
    pub ended: Ended,
    /// What its panic said, if it panicked.
    pub panic: Option<PanicMessage>,
    /// The write it died of, if that was refused by an arena.
    pub denied: Option<DeniedWrite>,
    /// What it copied.
    pub report: Report,
}

impl Exit {
    /// Did it exit with code 0?
    pub fn success(&self) -> bool {
        self.ended == Ended::Exited(0)
    }
}

/// A forked child. Dropping it kills the child, if it still runs, and reaps it.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    pidfd: OwnedFd,
    /// Gone when it is reaped.
    keeper: Option<OwnedFd>,
    command: OwnedFd,
    evidence: Box<Evidence>,
    /// Known once the child is reaped.
    ended: Option<Ended>,
    /// Events taken from the ring so far.
    events: Vec<Event>,
    /// Pages the watch saw in epochs that are closed, for each arena.
    earlier: Vec<PageSet>,
    /// The process that made it; in a process forked from that one, this is nobody's child.
    owner: i32,
}

impl Child {
    pub(super) fn new(pid: i32, pidfd: OwnedFd, evidence: Evidence, command: OwnedFd) -> Self {
        let earlier = vec![PageSet::new(); evidence.images.len()];
        Self {
            pid,
            pidfd,
            keeper: None,
            command,
            evidence: Box::new(evidence),
            ended: None,
            events: Vec::new(),
            earlier,
            owner: process::pid(),
        }
    }

    pub(super) fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// Opens the keeper, whose id the kernel stored when the child made it.
    pub(super) fn find_keeper(&mut self, expected: bool) -> Result<()> {
        let tid = self.evidence.get(Word::KeeperTid) as i32;
        if tid == 0 && !expected {
            return Ok(());
        }
        // It is our child (CLONE_PARENT) and not reaped, so the id is still its own.
        match pidfd::open(tid) {
            Ok(keeper) => self.keeper = Some(keeper),
            Err(Errno::SRCH) => {}
            Err(e) => return Err(Error::os("pidfd_open(keeper)", e)),
        }
        Ok(())
    }

    /// The child's process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The child's process descriptor: readable (for `poll`) once the child has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How the child is watched.
    pub fn watch(&self) -> Watch {
        self.evidence.watch
    }

    /// The keeper's process id, if there is one (shown as `cowbell-keeper` by ps).
    pub fn keeper_pid(&self) -> Option<i32> {
        self.keeper.is_some().then(|| self.evidence.get(Word::KeeperTid) as i32)
    }

    /// Sends a signal. A child that has ended is no error.
    ///
    /// # Errors
    /// Invalid for a number that is no signal; EPERM when the child has become another user's.
    pub fn kill(&self, signal: i32) -> Result<()> {
        pidfd::signal(&self.pidfd, signal)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// From `ppoll(2)` and `waitid(2)`; none known for a child of ours.
    pub fn wait(&mut self) -> Result<Exit> {
        self.wait_at_most(None)?.ok_or_else(|| Error::new(Kind::Child("waiting ended without an end".into())))
    }

    /// Waits for the end, at most so long; `None` when the child still runs.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Option<Exit>> {
        self.wait_at_most(Some(timeout))
    }

    /// The end, if the child has ended.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn try_wait(&mut self) -> Result<Option<Exit>> {
        self.wait_at_most(Some(Duration::ZERO))
    }

    fn wait_at_most(&mut self, timeout: Option<Duration>) -> Result<Option<Exit>> {
        if self.ended.is_none() {
            if !pidfd::wait_end(self.pidfd.as_fd(), timeout)? {
                return Ok(None);
            }
            self.reap_child()?;
            self.reap_keeper()?;
        }
        let ended = self.ended.unwrap_or(Ended::Unknown);
        self.take_events();
        let report = self.make_report(true)?;
        Ok(Some(Exit { ended, panic: self.evidence.panic_text(), denied: self.evidence.denied(), report }))
    }

    fn reap_child(&mut self) -> Result<Ended> {
        let ended = pidfd::reap(self.pidfd.as_fd())?.unwrap_or(Ended::Unknown);
        self.ended = Some(ended);
        Ok(ended)
    }

    /// Waits for the keeper's last census. One that is dead, or stuck, is a loss the report counts.
    fn reap_keeper(&mut self) -> Result<()> {
        let Some(keeper) = self.keeper.take() else { return Ok(()) };
        if !self.keeper_done(|| pidfd::wait_end(keeper.as_fd(), Some(KEEPER_SILENCE_MAX)))? {
            pidfd::signal(&keeper, signal::KILL)?;
            pidfd::wait_end(keeper.as_fd(), None)?;
        }
        pidfd::reap(keeper.as_fd())?;
        Ok(())
    }

    /// Repeats a wait for the keeper as long as it makes progress.
    fn keeper_done(&self, mut wait: impl FnMut() -> Result<bool>) -> Result<bool> {
        loop {
            let progress = self.evidence.get(Word::Progress);
            if wait()? {
                return Ok(true);
            }
            if self.evidence.get(Word::Progress) == progress {
                return Ok(false);
            }
        }
    }

    /// Kills and reaps child and keeper.
    pub(super) fn end_now(&mut self) -> Result<Ended> {
        if let Some(ended) = self.ended {
            return Ok(ended);
        }
        self.kill(signal::KILL)?;
        if let Some(keeper) = &self.keeper {
            pidfd::signal(keeper, signal::KILL)?;
        }
        pidfd::wait_end(self.pidfd.as_fd(), None)?;
        let ended = self.reap_child()?;
        self.reap_keeper()?;
        Ok(ended)
    }

    /// The pages a living child has copied so far, read from its page tables by this process.
    ///
    /// # Errors
    /// ESRCH or ENOENT when it has ended; EACCES without ptrace read access to it.
    pub fn census(&self) -> Result<Vec<ArenaCensus>> {
        let pagemap = Pagemap::open(self.pid).map_err(|e| Error::os("open(/proc/PID/pagemap)", e))?;
        census_of(&self.evidence, &pagemap)
    }

    /// Events since the last call, in the order they were noted.
    pub fn events(&mut self) -> Vec<Event> {
        let before = self.events.len();
        self.take_events();
        self.events.get(before..).unwrap_or_default().to_vec()
    }

    fn take_events(&mut self) {
        let writers_gone = self.ended.is_some();
        while let Some(event) = self.evidence.take_event(writers_gone) {
            self.events.push(event);
        }
    }

    /// What a living child has copied so far.
    ///
    /// # Errors
    /// Child: it has no keeper, or the keeper is gone.
    pub fn report(&mut self) -> Result<Report> {
        self.order(Task::Census)?;
        self.take_events();
        self.make_report(false)
    }

    /// Ends an epoch and begins the next: returns, for each arena, the pages written since the last
    /// call (or the fork), and arms them again.
    ///
    /// Under [`Watch::Census`], which arms nothing, these are the pages *copied* for the first time.
    ///
    /// # Errors
    /// As [`Self::report`].
    pub fn end_epoch(&mut self) -> Result<Vec<ArenaCensus>> {
        self.order(Task::Epoch)?;
        self.take_events();
        let mut epoch = Vec::new();
        for (at, image) in self.evidence.images.iter().enumerate() {
            let Some(earlier) = self.earlier.get_mut(at) else { continue };
            let pages = if self.evidence.watch.arms() {
                self.evidence.pages(at, Pages::Epoch)
            } else {
                self.evidence.pages(at, Pages::Copied).difference(earlier)
            };
            earlier.union_with(&pages);
            epoch.push(ArenaCensus { image: Arc::clone(image), copied: pages });
        }
        Ok(epoch)
    }

    /// Gives the keeper an order and waits until it is done.
    fn order(&self, task: Task) -> Result<()> {
        let lost = |what: &'static str| Error::new(Kind::Child(what.into()));
        let keeper = self.keeper.as_ref().ok_or_else(|| lost("it has no keeper, or has ended"))?;
        let order = self.evidence.get(Word::Order) + 1;
        self.evidence.set(Word::Task, task as u64);
        self.evidence.set(Word::Order, order);
        process::notify(&self.command);
        let begun = Instant::now();
        let mut progress = self.evidence.get(Word::Progress);
        let mut since = begun;
        while self.evidence.get(Word::Done) != order {
            // The keeper's end is an event; its progress is a matter of microseconds, so a short wait
            // for the one doubles as a pause for the other.
            let over = pidfd::wait_end(keeper.as_fd(), Some(Duration::from_micros(50)))?;
            if over && self.evidence.get(Word::Done) != order {
                return Err(lost("its keeper has ended; wait() has what it left"));
            }
            let now = self.evidence.get(Word::Progress);
            if now != progress {
                (progress, since) = (now, Instant::now());
            } else if since.elapsed() > KEEPER_SILENCE_MAX {
                return Err(lost("its keeper does not answer (stopped?)"));
            }
        }
        Ok(())
    }

    fn make_report(&self, last: bool) -> Result<Report> {
        let evidence = &self.evidence;
        let census = if evidence.get(Word::LastCensus) == 1 {
            let executed = evidence.get(Word::Executed) == 1;
            if executed { report::Census::AtExec } else { report::Census::Last }
        } else if !evidence.keep {
            report::Census::NotTaken
        } else if last {
            report::Census::Lost
        } else {
            report::Census::Living
        };
        let arenas = evidence.images.iter().enumerate().map(|(at, image)| {
            let copied = evidence.pages(at, Pages::Copied);
            let mut observed = evidence.pages(at, Pages::Seen);
            if let Some(earlier) = self.earlier.get(at).filter(|_| evidence.watch.arms()) {
                observed.union_with(earlier);
            }
            let changed = |page: PageIndex| evidence.changed(at, page);
            let observed = evidence.watch.arms().then_some(observed);
            report::ArenaReport::new(image, &copied, observed.as_ref(), changed)
        });
        let facts = report::Facts {
            pid: self.pid,
            watch: evidence.watch,
            door: evidence.door(),
            ended: self.ended,
            census,
            trap_lost: evidence.get(Word::TrapLost) == 1,
            events_lost: evidence.events_lost(),
            page_size: sys::page_size(),
            executable: process::executable(),
        };
        Ok(Report::new(facts, arenas.collect(), &self.events, &evidence.images))
    }
}

/// A census of all arenas in `evidence`, by whoever may read the page tables.
pub(super) fn census_of(evidence: &Evidence, pagemap: &Pagemap) -> Result<Vec<ArenaCensus>> {
    let page = sys::page_size();
    let mut all = Vec::new();
    for (at, image) in evidence.images.iter().enumerate() {
        let armed = evidence.watch.arms();
        // Copies that were armed again and swapped out look untouched: what was counted stays counted.
        let mut copied = if armed { evidence.pages(at, Pages::Copied) } else { PageSet::new() };
        watch::census::scan(pagemap, image.range(), armed, |run| {
            let first = page.index_of(run.start - image.range().start).0;
            for index in first..first + page.pages_for(run.len).0 {
                copied.insert(PageIndex(index));
            }
        })
        .map_err(|e| Error::os("ioctl(PAGEMAP_SCAN)", e))?;
        all.push(ArenaCensus { image: Arc::clone(image), copied });
    }
    Ok(all)
}

impl Drop for Child {
    fn drop(&mut self) {
        // A process forked from the owner has a copy of this value, but not this child.
        if self.owner == process::pid() && self.end_now().is_err() {
            log::warn!("child {} could not be reaped", self.pid);
        }
    }
}

impl std::fmt::Debug for Evidence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Evidence({})", self.watch)
    }
}
