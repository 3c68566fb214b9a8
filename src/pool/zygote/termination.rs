//! Ending jobs before they are done, and their workers with them: those whose time is over, those of stopped workers, and those that
//! the parent cancels; and ending the pool.

use crate::pool::protocol::board::BatchSlot;
use crate::pool::protocol::failure::JobFailure;
use crate::pool::protocol::progress::{self, JobPhase, Progress};
use crate::pool::protocol::queue::{self, QUEUED};
use crate::pool::zygote::Zygote;
use crate::pool::zygote::worker_log::{Killed, tell};
use crate::sys::{self, pidfd, signal};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

impl Zygote<'_> {
    /// Ends jobs whose time is over. `None`: no job has a time limit now; else when to look again.
    pub(crate) fn watch_limits(&mut self) -> Option<Duration> {
        let watched = &self.region.board().limits_watched;
        if watched.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut shortest = u64::MAX;
        let mut over = Vec::new();
        for pass in 0..2 {
            for (number, slot) in self.slots() {
                // First: if this is still so when the job is condemned, all that is read now was about this job.
                let seen = progress::look(&slot.progress);
                let state = slot.state.load(Ordering::Acquire);
                let limit = slot.limit.load(Ordering::Acquire);
                if limit == 0 || !(state == QUEUED || queue::holder(state).is_some()) {
                    continue;
                }
                shortest = shortest.min(limit);
                let Some(index) = queue::holder(state) else { continue };
                if self.is_over(number, slot, seen, index, limit) {
                    over.push((number, seen, index));
                }
            }
            if shortest < u64::MAX || pass == 1 {
                break;
            }
            // A thread that queues from now on notifies; one that queued before is seen by the second look.
            watched.store(0, Ordering::SeqCst);
        }
        for (number, seen, index) in over {
            self.condemn(number, seen, index, JobFailure::TimedOut);
        }
        if shortest == u64::MAX {
            return None;
        }
        watched.store(1, Ordering::SeqCst);
        self.end_stopped(Duration::from_nanos(shortest));
        Some(Duration::from_nanos(shortest / 8).clamp(Duration::from_millis(1), Duration::from_millis(50)))
    }

    /// Ends workers that have been stopped (SIGSTOP) for so long: those without a job, which no time limit finds, and those
    /// that wait for room, for which it stands still. If all were stopped nothing would go on.
    pub(crate) fn end_stopped(&mut self, limit: Duration) {
        let mut over = Vec::new();
        for (index, member) in self.crew.iter_mut().enumerate() {
            if !member.child.as_ref().is_some_and(|child| pidfd::is_stopped(child.pidfd())) {
                member.stopped = None;
            } else if member.stopped.get_or_insert_with(Instant::now).elapsed() > limit {
                over.push(index);
            }
        }
        for index in over {
            let held = |slot: &BatchSlot| queue::holder(slot.state.load(Ordering::Acquire)) == Some(index);
            if let Some((number, slot)) = self.slots().find(|(_, slot)| held(slot)) {
                self.condemn(number, progress::look(&slot.progress), index, JobFailure::TimedOut);
            } else if let Some(member) = self.crew.get_mut(index)
                && let Some(child) = member.child.as_ref()
            {
                member.killed = Some(Killed::TimedOut);
                if let Err(e) = child.kill(signal::KILL) {
                    tell(|| log::warn!("worker {}: {e}", child.pid()));
                }
            }
        }
    }

    /// Tells whether the time of a slot's current job is over.
    pub(crate) fn is_over(
        &mut self,
        number: usize,
        slot: &BatchSlot,
        seen: Progress,
        index: usize,
        limit: u64,
    ) -> bool {
        match seen.phase() {
            JobPhase::Condemned => false,
            JobPhase::Running => {
                let now = sys::monotonic_ns();
                if self.region.workers().get(index).is_some_and(|worker| worker.waits.load(Ordering::Acquire) != 0) {
                    // The worker waits for the parent to read results.
                    slot.since.store(now, Ordering::Release);
                }
                now.saturating_sub(slot.since.load(Ordering::Acquire)) > limit
            }
            // Taken and not begun: its worker was stopped in between, or the next moment will tell.
            JobPhase::Ahead => {
                let (last, since) = self.ahead_since.entry(number).or_insert((seen, Instant::now()));
                if *last != seen {
                    (*last, *since) = (seen, Instant::now());
                }
                since.elapsed() > Duration::from_nanos(limit)
            }
        }
    }

    /// Lets a job end with its worker, if the job is current still.
    pub(crate) fn condemn(&mut self, number: usize, seen: Progress, index: usize, why: JobFailure) -> bool {
        let Some(slot) = self.region.slots().get(number) else { return false };
        let Some(member) = self.crew.get_mut(index) else { return false };
        let Some(child) = member.child.as_ref() else { return false };
        // A worker that is killed must not have gone on to another batch.
        if !queue::hold(&slot.state, index) {
            return false;
        }
        if !progress::condemn(&slot.progress, seen) {
            queue::let_go(&slot.state, index);
            return false;
        }
        self.condemned.insert(number, (seen.job(), why));
        member.killed = Some(if why == JobFailure::TimedOut { Killed::TimedOut } else { Killed::JobCancelled });
        if let Err(e) = child.kill(signal::KILL) {
            tell(|| log::warn!("worker {}: {e}", child.pid()));
        }
        true
    }

    /// Condemns a job if it is current.
    pub(crate) fn cancel(&mut self, number: usize, job: usize) -> bool {
        let Some(slot) = self.region.slots().get(number) else { return false };
        let seen = progress::look(&slot.progress);
        let index = queue::holder(slot.state.load(Ordering::Acquire));
        let current = seen.job() == job && job < slot.jobs.load(Ordering::Acquire) as usize;
        current && index.is_some_and(|index| self.condemn(number, seen, index, JobFailure::Cancelled))
    }

    /// Closes the pool: workers leave when nothing is queued, or are killed.
    pub(crate) fn close(&mut self, cancel: bool) {
        self.closing = true;
        self.region.board().closing.store(if cancel { 2 } else { 1 }, Ordering::SeqCst);
        self.region.queue().wake_all();
        self.loader.close();
        for member in &mut self.crew {
            member.due = None;
        }
        if !cancel {
            return;
        }
        for (number, slot) in self.slots() {
            if let Some(index) = queue::holder(slot.state.load(Ordering::Acquire)) {
                self.condemn(number, progress::look(&slot.progress), index, JobFailure::Cancelled);
            }
        }
        for member in &mut self.crew {
            member.killed = Some(Killed::PoolCancelled);
            let Some(child) = member.child.as_ref() else { continue };
            if let Err(e) = child.kill(signal::KILL) {
                tell(|| log::warn!("worker {}: {e}", child.pid()));
            }
        }
    }
}
