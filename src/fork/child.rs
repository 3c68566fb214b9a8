//! The parent's side of a child: waiting for it, killing it, reaping it and its keeper.

use crate::error::{Error, ErrorKind, Result};
use crate::facts::{Ended, StackOverflow};
use crate::page::PageSet;
use crate::report::Report;
#[cfg(feature = "pool")]
use crate::sys::map::Range;
use crate::sys::pidfd;
use crate::sys::{Errno, process, signal};
#[cfg(feature = "pool")]
use crate::watch::Bitmap;
use crate::watch::{DeniedWrite, Event, Evidence, PanicMessage, Watch, Word};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// The time after which a keeper without any progress counts as dead.
const KEEPER_SILENCE_MAX: Duration = Duration::from_secs(10);

/// The part of that time that may pass between two looks at the keeper.
const LOOK_STEP: Duration = Duration::from_secs(1);

/// The time for which a keeper that was asked for something has made no progress.
///
/// Only time in which this process was looking counts: when the whole machine stood still (a suspended virtual
/// machine, a frozen group), the keeper could not run either.
#[derive(Debug)]
pub(super) struct Silence {
    progress: u64,
    looked: Instant,
    silent: Duration,
}

impl Silence {
    /// Begins now, where it has come this far.
    pub(super) fn begin(progress: u64) -> Self {
        Self { progress, looked: Instant::now(), silent: Duration::ZERO }
    }

    /// Looks how far it has come; true when it has been silent for too long.
    pub(super) fn is_too_long(&mut self, progress: u64) -> bool {
        self.look(progress, Instant::now())
    }

    fn look(&mut self, progress: u64, now: Instant) -> bool {
        let step = now.saturating_duration_since(self.looked).min(LOOK_STEP);
        self.looked = now;
        if progress == self.progress {
            self.silent += step;
        } else {
            (self.progress, self.silent) = (progress, Duration::ZERO);
        }
        self.silent >= KEEPER_SILENCE_MAX
    }
}

/// The end of a child, and its report.
#[derive(Clone, Debug)]
pub struct Exit {
    /// The child's exit code or signal.
    pub ended: Ended,
    /// The message of its panic, if it panicked.
    pub panic: Option<PanicMessage>,
    /// The write it died of, if that was refused by an arena.
    pub denied: Option<DeniedWrite>,
    /// The stack that it died of, because that had overflowed. Only a handler on a stack of its own hears of that (`sigaltstack(2)`), which
    /// Rust's threads have; and the handler is there once the program has built an arena. Of a child whose own handler went on after an
    /// overflow, and that died of SIGSEGV or SIGABRT later, this is the earlier one.
    pub stack_overflow: Option<StackOverflow>,
    /// The report of what it copied.
    pub report: Report,
}

impl Exit {
    /// Did it exit with code 0?
    pub fn success(&self) -> bool {
        self.ended == Ended::Exited(0)
    }
}

/// A forked child. Dropping it kills the child, if it still runs, and reaps it.
///
/// A child takes three descriptors: `ulimit -n` bounds how many children there can be.
#[must_use = "dropping a Child kills the process"]
#[derive(Debug)]
pub struct Child {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    /// Gone when it is reaped.
    pub(super) keeper: Option<Keeper>,
    pub(super) command: OwnedFd,
    pub(super) evidence: Box<Evidence>,
    /// Known once the child is reaped.
    pub(super) ended: Option<Ended>,
    /// Events taken from the ring and not yet handed out.
    pub(super) events: Vec<Event>,
    /// The number of events that were handed out, and of those that found no room here.
    pub(super) events_told: u64,
    pub(super) events_dropped: u64,
    /// Pages the watch saw in epochs that are closed, for each arena.
    pub(super) earlier: Vec<PageSet>,
    /// The number of pages of those epochs: each page has one event an epoch.
    pub(super) earlier_marks: u64,
    /// The process that made it; in a process forked from that one, this is nobody's child.
    pub(super) owner: i32,
}

/// The keeper of a child; a child of ours too.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) pidfd: OwnedFd,
    /// Since the child's end was seen: only then is there something to wait for.
    silence: Option<Silence>,
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
            events_told: 0,
            events_dropped: 0,
            earlier,
            earlier_marks: 0,
            owner: process::pid(),
        }
    }

    /// Lets the arenas' files go, which would keep their memory as long as this value lives: of a child whose copies nobody is
    /// going to ask for.
    #[cfg(feature = "pool")]
    pub(crate) fn forget_images(&mut self) {
        self.evidence.images.clear();
        self.earlier.clear();
    }

    /// The frozen arenas that the child was forked with, each with the pages that are copies of whoever forked it.
    #[cfg(feature = "pool")]
    pub(crate) fn arenas(&self) -> impl Iterator<Item = (Range, PageSet)> + '_ {
        let images = self.evidence.images.iter().enumerate();
        images.map(|(at, image)| (image.range(), self.evidence.pages(at, Bitmap::Inherited)))
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
        // The keeper is our child (CLONE_PARENT), so the id is its own until we reap it; unless SIGCHLD is ignored and
        // is its signal, and then ESRCH or a stranger's id comes of it, which waiting will not take for a child.
        match pidfd::open(tid) {
            Ok(pidfd) => {
                self.keeper = Some(Keeper { pidfd, silence: None });
                Ok(())
            }
            Err(Errno::SRCH) => Ok(()),
            Err(e) => {
                // A keeper that cannot be awaited must not stay.
                signal::kill(tid);
                let _killed = pidfd::reap_by_id(tid);
                Err(Error::os("pidfd_open(keeper)", e))
            }
        }
    }

    /// The child's process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The child's process descriptor: readable (for `poll`) once the child has ended. Its last census may
    /// take a moment longer: [`Self::wait`] then.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The child's watch.
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
        self.wait_until(None)?.ok_or_else(|| Error::new(ErrorKind::Child("waiting ended without an end".into())))
    }

    /// Waits for the end and the last census, at most so long; `None` when they are not there yet.
    ///
    /// # Errors
    /// Those of [`Self::wait`].
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Option<Exit>> {
        self.wait_until(Instant::now().checked_add(timeout))
    }

    /// The end, if the child has ended and its last census was taken.
    ///
    /// # Errors
    /// Those of [`Self::wait`].
    pub fn try_wait(&mut self) -> Result<Option<Exit>> {
        self.wait_until(Some(Instant::now()))
    }

    fn wait_until(&mut self, deadline: Option<Instant>) -> Result<Option<Exit>> {
        self.check_owner()?;
        let left = || deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if self.ended.is_none() {
            self.ended = pidfd::wait_and_reap(self.pidfd.as_fd(), left())?;
            if self.ended.is_none() {
                return Ok(None);
            }
        }
        if !self.reap_keeper(left)? {
            return Ok(None);
        }
        let ended = self.ended.unwrap_or(Ended::Unknown);
        self.take_events();
        let report = self.make_report(true)?;
        // A panic that the closure caught is its own affair.
        let panic = (ended == Ended::Exited(super::panics::PANICKED)).then(|| self.evidence.panic_text()).flatten();
        // A handler of the program's may have gone on after it. Rust's aborts.
        let by_fault = [signal::SEGV, signal::ABRT].map(Ended::Signaled).contains(&ended);
        let stack_overflow = self.evidence.stack_overflow().filter(|_| by_fault);
        Ok(Some(Exit { ended, panic, denied: self.evidence.denied(), stack_overflow, report }))
    }

    /// Waits for the keeper's last census; false when the time is over before. A keeper that is dead, or silent
    /// for long, is a loss that the report counts.
    fn reap_keeper(&mut self, left: impl Fn() -> Option<Duration>) -> Result<bool> {
        while let Some(keeper) = &mut self.keeper {
            let progress = || self.evidence.get(Word::Progress);
            let silence = keeper.silence.get_or_insert_with(|| Silence::begin(progress()));
            let step = left().map_or(LOOK_STEP, |left| left.min(LOOK_STEP));
            if !pidfd::wait_end(keeper.pidfd.as_fd(), Some(step))? {
                if silence.is_too_long(progress()) {
                    pidfd::signal(&keeper.pidfd, signal::KILL)?;
                    pidfd::wait_end(keeper.pidfd.as_fd(), None)?;
                }
                if left().is_some_and(|left| left.is_zero()) {
                    return Ok(false);
                }
                continue;
            }
            pidfd::wait_and_reap(keeper.pidfd.as_fd(), None)?;
            self.keeper = None;
        }
        Ok(true)
    }

    /// In a process forked from the owner this value is a copy, and the child is somebody else's.
    pub(super) fn check_owner(&self) -> Result<()> {
        if self.owner == process::pid() {
            return Ok(());
        }
        Err(Error::invalid("this child belongs to the process that spawned it, not to one forked from that"))
    }

    /// Kills and reaps child and keeper.
    pub(super) fn end_now(&mut self) -> Result<Ended> {
        if let (Some(ended), None) = (self.ended, &self.keeper) {
            return Ok(ended);
        }
        self.kill(signal::KILL)?;
        if let Some(keeper) = &self.keeper {
            pidfd::signal(&keeper.pidfd, signal::KILL)?;
        }
        if self.ended.is_none() {
            self.ended = pidfd::wait_and_reap(self.pidfd.as_fd(), None)?;
        }
        self.reap_keeper(|| None)?;
        Ok(self.ended.unwrap_or(Ended::Unknown))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_while_somebody_listens() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut silence = Silence { progress: 7, looked: start, silent: Duration::ZERO };
        assert!(!(1..10).any(|second| silence.look(7, at(second))));
        assert!(!silence.look(8, at(10)), "it has come further");
        assert!(!silence.look(8, at(1000)), "the machine stood still");
        assert!(!(1001..1009).any(|second| silence.look(8, at(second))));
        assert!(silence.look(8, at(1009)));
    }
}
