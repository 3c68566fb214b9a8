//! Waiting for results, and what is looked after meanwhile.

use super::core::{Core, LOOK_AFTER, lock};
use super::reactor::{self, Host, Reactor};
use crate::arena::signal_safe::table;
use crate::pool::protocol::board::{EventCount, WorkerRecord};
use crate::pool::protocol::failure::JobError;
use crate::pool::protocol::queue::{self, QUEUED};
use crate::pool::protocol::spin::AdaptiveSpin;
use crate::sys::pidfd;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

impl Core {
    /// Waits until `ready` holds; false when `deadline` is over before.
    ///
    /// # Errors
    /// The pool is gone.
    pub(crate) fn wait(
        &self,
        waiter: usize,
        spin: &AdaptiveSpin,
        deadline: Option<Instant>,
        mut ready: impl FnMut() -> bool,
    ) -> Result<bool, JobError> {
        self.check_process()?;
        if ready() {
            return Ok(true);
        }
        let done: &EventCount = &self.region.board().event_counts[waiter];
        let begun = Instant::now();
        let start = done.count();
        if !ready() && deadline.is_none_or(|deadline| deadline > begun) {
            spin.until(|| done.count() != start);
        }
        loop {
            let seen = done.count();
            if ready() {
                return Ok(true);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                // A caller that only polls must not keep workers waiting for room either.
                self.make_room_if_wanted();
                return Ok(false);
            }
            // A result from before the pool's end still counts, so this comes after `ready`.
            self.check()?;
            done.sleep(seen, Some(left.map_or(LOOK_AFTER, |left| left.min(LOOK_AFTER))));
            if begun.elapsed() > LOOK_AFTER {
                self.look_after();
            }
        }
    }

    /// Does a batch wait for results of others to be read? Its worker does, or all that could take it.
    pub(crate) fn starves(&self, number: usize) -> bool {
        let waits = |worker: &WorkerRecord| worker.waits.load(Ordering::Acquire) != 0;
        let workers = self.region.workers();
        let state = self.slot(number).state.load(Ordering::Acquire);
        match queue::holder(state) {
            Some(index) => workers.get(index).is_some_and(waits),
            None => state == QUEUED && workers.iter().all(waits),
        }
    }

    /// A waiting thread's chores, done now and then: finds out whether the zygote is gone, wakes workers whose wake was lost, makes
    /// room for workers that wait for it.
    pub(crate) fn look_after(&self) {
        self.region.queue().nudge();
        if pidfd::readable(self.zygote.as_fd(), Some(Duration::ZERO)) == Ok(true)
            && !self.gone.swap(true, Ordering::AcqRel)
        {
            self.region.tell_all();
        }
        self.make_room_if_wanted();
    }

    /// Makes room if a worker waits for it.
    pub(crate) fn make_room_if_wanted(&self) {
        if self.region.workers().iter().any(|worker| worker.waits.load(Ordering::Acquire) != 0) {
            self.make_room();
        }
    }

    /// Tells whether the pool is at work.
    ///
    /// # Errors
    /// It is gone, and why.
    pub(crate) fn check(&self) -> Result<(), JobError> {
        self.check_process()?;
        if self.gone.load(Ordering::Acquire) {
            return Err(JobError::PoolGone("its zygote has ended".to_owned()));
        }
        if self.region.board().broken.load(Ordering::Acquire) != 0 {
            let why = "its workers die as soon as they are started, or cannot be started; see the log";
            return Err(JobError::PoolGone(why.to_owned()));
        }
        Ok(())
    }

    /// In a process forked from the pool's, this value is a copy and the pool another's. The region is not there: to be
    /// asked before it is touched.
    pub(crate) fn check_process(&self) -> Result<(), JobError> {
        if self.process == table::process_number() {
            return Ok(());
        }
        Err(JobError::PoolGone("it belongs to the process that made it, not to one forked from that".to_owned()))
    }

    /// Waits until nothing is queued or at work, and takes no further jobs.
    pub(crate) fn drain(&self) {
        if self.check_process().is_err() {
            return;
        }
        lock(&self.front).closed = true;
        self.region.board().draining.store(1, Ordering::SeqCst);
        // Jobs that wait to be told this sleep on the words of workers that are idle.
        self.region.queue().wake_all();
        let room = &self.region.board().event_counts[0];
        loop {
            let seen = room.prepare_wait();
            // This queues again each failed job that is to be tried again.
            self.make_room();
            if !self.is_busy() || self.check().is_err() {
                return;
            }
            room.sleep(seen, Some(LOOK_AFTER));
            self.look_after();
        }
    }

    /// May what a batch has not done be queued again?
    pub(crate) fn may_queue_again(&self) -> bool {
        !self.cancelled.load(Ordering::Acquire) && self.check().is_ok()
    }

    /// The number of the reactor's event count; `None` if its thread cannot be started.
    pub(crate) fn reactor_waiter(self: &Arc<Self>) -> Option<usize> {
        let started = self.reactor.get_or_init(|| match Reactor::start(&self.region, self) {
            Ok(reactor) => Some(reactor),
            Err(e) => {
                log::warn!("the pool's thread cannot be started: {e}");
                None
            }
        });
        started.as_ref().map(|_| reactor::WAITER)
    }

    /// Tells the reactor to look after a ticket.
    pub(crate) fn reactor_watch(&self, ticket: Weak<dyn reactor::Awaited>) {
        if let Some(Some(reactor)) = self.reactor.get() {
            reactor.watch(&self.region, ticket);
        }
    }

    /// Tells whether batches are queued or at work.
    pub(crate) fn is_busy(&self) -> bool {
        let used = self.region.board().slots_used.load(Ordering::Acquire) as usize;
        self.region.slots().iter().take(used).any(|slot| {
            let state = slot.state.load(Ordering::SeqCst);
            state == QUEUED || queue::holder(state).is_some()
        })
    }

    /// Tells whether the pool is closed for new jobs.
    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.front).closed
    }
}

impl Host for Core {
    fn check(&self) -> Result<(), JobError> {
        self.check()
    }

    fn look_after(&self) {
        self.look_after();
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if let Some(Some(reactor)) = self.reactor.get()
            && self.check_process().is_ok()
        {
            reactor.end(&self.region);
        }
    }
}
