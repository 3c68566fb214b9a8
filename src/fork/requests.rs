//! The requests of the parent to a child and its keeper: censuses, events, epochs, and the report.

use super::census::{ArenaCensus, census_of};
use super::child::{Child, Silence};
use crate::arena::Image;
use crate::error::{Error, ErrorKind, Result};
use crate::page::{PageCount, PageIndex, PageSet};
use crate::report::{self, Report};
use crate::sys::pagemap::Pagemap;
use crate::sys::{self, eventfd, executable, pidfd};
use crate::watch::{self, Bitmap, Event, FailedStep, KeeperRequest, Outside, Word};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

/// The pages of one frozen arena that an epoch had.
#[derive(Clone, Debug)]
pub struct ArenaEpoch {
    /// The arena.
    pub image: Arc<Image>,
    /// The pages written; under [`crate::watch::Watch::Census`] and [`crate::watch::Watch::Faults`], those copied for the first time.
    pub pages: PageSet,
}

impl Child {
    /// The pages a living child has copied so far, read from its page tables by this process.
    ///
    /// # Errors
    /// ESRCH or ENOENT when it has ended; EACCES without ptrace read access to it.
    pub fn census(&self) -> Result<Vec<ArenaCensus>> {
        let pagemap = Pagemap::open(self.living()?).map_err(|e| Error::os("open(/proc/PID/pagemap)", e))?;
        census_of(&self.evidence, &pagemap)
    }

    /// The memory that a living child no longer shares outside of the arenas, and what it has got since the fork, read from its page tables by this
    /// process.
    ///
    /// # Errors
    /// The errors are those of [`Self::census`].
    pub fn outside(&self) -> Result<Outside> {
        let pid = self.living()?;
        let pagemap = Pagemap::open(pid).map_err(|e| Error::os("open(/proc/PID/pagemap)", e))?;
        watch::outside::now(&self.evidence, &pagemap, pid).map_err(|e| Error::os("read(/proc/PID/maps, pagemap)", e))
    }

    /// The process whose page tables are a living child's.
    fn living(&self) -> Result<i32> {
        self.check_owner()?;
        if self.ended.is_some() {
            return Err(Error::new(ErrorKind::Child("it has ended; its report has the last census".into())));
        }
        // The keeper has the same memory, and keeps it even if the child ends in between.
        Ok(self.keeper_pid().unwrap_or(self.pid))
    }

    /// Takes the events since the last call, in the order they were noted. They are not in later reports.
    ///
    /// # Errors
    /// Invalid in another process than the one that spawned the child.
    pub fn events(&mut self) -> Result<Vec<Event>> {
        self.check_owner()?;
        if self.evidence.watch.reads_page_faults() && self.keeper.is_some() {
            // From a keeper that has ended there is no more to come than the end brings.
            let _ended = self.request(KeeperRequest::Events);
        }
        self.take_events();
        self.events_told += self.events.len() as u64;
        Ok(std::mem::take(&mut self.events))
    }

    pub(super) fn take_events(&mut self) {
        let writers_gone = self.ended.is_some();
        while let Some(event) = self.evidence.take_event(writers_gone) {
            // A report keeps as many events as the ring has; a program that wants all takes them in time.
            if self.events.len() < self.evidence.events_max {
                self.events.push(event);
            } else {
                self.events_dropped += 1;
            }
        }
        if self.evidence.watch.reads_page_faults() {
            // Events are noted page by page, once the page tables have been read.
            self.events.sort_by_key(|event| event.time_ns);
        }
    }

    /// The pages that a living child has copied so far.
    ///
    /// # Errors
    /// Child: it has no keeper, or the keeper is gone.
    pub fn report(&mut self) -> Result<Report> {
        self.request(KeeperRequest::Census)?;
        self.take_events();
        self.make_report(false)
    }

    /// Ends an epoch and begins the next: returns, for each arena, the pages written since the last
    /// call (or the fork), and arms them again.
    ///
    /// Under [`crate::watch::Watch::Census`] and [`crate::watch::Watch::Faults`], which arm nothing, these are the pages *copied* for the first time.
    ///
    /// # Errors
    /// Those of [`Self::report`].
    pub fn end_epoch(&mut self) -> Result<Vec<ArenaEpoch>> {
        self.request(KeeperRequest::Epoch)?;
        self.take_events();
        let mut epoch = Vec::new();
        for (at, image) in self.evidence.images.iter().enumerate() {
            let Some(earlier) = self.earlier.get_mut(at) else { continue };
            let pages = if self.evidence.watch.arms() {
                self.evidence.pages(at, Bitmap::Epoch)
            } else {
                self.evidence.pages(at, Bitmap::Copied).difference(earlier)
            };
            earlier.union_with(&pages);
            if self.evidence.watch.arms() {
                self.earlier_marks += pages.count().0;
            }
            epoch.push(ArenaEpoch { image: Arc::clone(image), pages });
        }
        Ok(epoch)
    }

    /// Sends the keeper a request and waits until it is done.
    fn request(&self, request: KeeperRequest) -> Result<()> {
        self.check_owner()?;
        let lost = |what: &'static str| Error::new(ErrorKind::Child(what.into()));
        let keeper = self.keeper.as_ref().ok_or_else(|| lost("it has no keeper, or has ended"))?;
        let number = request.encode_after(self.evidence.get(Word::Request));
        self.evidence.set(Word::Request, number);
        eventfd::notify(&self.command);
        let mut silence = Silence::begin(self.evidence.get(Word::Progress));
        while self.evidence.get(Word::Done) != number {
            // The keeper's end is an event; its progress is a matter of microseconds, so a short wait
            // for the one doubles as a pause for the other.
            let over = pidfd::wait_end(keeper.pidfd.as_fd(), Some(Duration::from_micros(50)))?;
            if over && self.evidence.get(Word::Done) != number {
                return Err(lost("its keeper has ended; wait() has what it left"));
            }
            if silence.is_too_long(self.evidence.get(Word::Progress)) {
                return Err(lost("its keeper does not answer (stopped?)"));
            }
        }
        match FailedStep::unpack(self.evidence.get(Word::RequestFailure)) {
            None => Ok(()),
            Some(FailedStep(step, errno)) => Err(Error::os(step.operation(), errno)),
        }
    }

    /// Events that did not reach us: dropped for want of room, or not yet made when their writer was killed.
    /// A writer marks the page first, so what has a mark and no event was lost.
    fn events_lost(&self) -> u64 {
        let dropped = self.evidence.events_lost() + self.events_dropped;
        if self.ended.is_none() || !self.evidence.watch.has_events() {
            return dropped;
        }
        let open = (0..self.evidence.images.len()).map(|at| self.evidence.pages(at, Bitmap::Seen).count().0);
        let marks = self.earlier_marks + open.sum::<u64>();
        dropped.max(marks.saturating_sub(self.events.len() as u64 + self.events_told))
    }

    pub(super) fn make_report(&self, last: bool) -> Result<Report> {
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
            let copied = evidence.pages(at, Bitmap::Copied);
            let observed = evidence.watch.observes().then(|| {
                let mut observed = evidence.pages(at, Bitmap::Seen);
                if evidence.watch.arms() {
                    // An epoch whose end was not answered for is in nobody's hands yet.
                    observed.union_with(&evidence.pages(at, Bitmap::Epoch));
                    self.earlier.get(at).into_iter().for_each(|earlier| observed.union_with(earlier));
                }
                observed
            });
            let changed = |page: PageIndex| evidence.changed(at, page);
            let inherited = evidence.pages(at, Bitmap::Inherited).count();
            report::ArenaReport::new(image, &copied, inherited, observed.as_ref(), changed)
        });
        let facts = report::Facts {
            pid: self.pid,
            watch: evidence.watch,
            door: evidence.door(),
            ended: self.ended,
            census,
            trap_lost: evidence.get(Word::TrapLost) == 1,
            events_lost: self.events_lost(),
            page_faults: evidence.faults().map(|(by_kernel, lost)| {
                // Records that a keeper leaves in the rings when it is killed are lost, too.
                let lost = lost.filter(|_| census != report::Census::Lost);
                report::PageFaults { by_kernel, lost }
            }),
            reshared_pages: PageCount(evidence.get(Word::Reshared)),
            outside: watch::outside::taken(evidence),
            page_size: sys::page_size(),
            executable: executable::executable(),
        };
        Ok(Report::new(facts, arenas.collect(), &self.events, &evidence.images))
    }
}
