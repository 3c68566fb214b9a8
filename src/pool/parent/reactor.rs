//! The one thread that a pool may have: it waits for results on behalf of futures and wakes their tasks.
//!
//! The reactor is started by the first ticket that is polled, so a program that only waits never has it.

use crate::pool::memory::region::Region;
use crate::pool::protocol::board::EVENT_COUNTS;
use crate::pool::protocol::failure::JobError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// A ticket that somebody awaits.
pub(crate) trait Awaited: Send + Sync {
    /// Wakes the task if the result is there, or never will be for the reason given; true if it needs no further look.
    fn look(&self, gone: Option<&JobError>) -> bool;
}

/// The pool that the reactor works for. It knows the pool by these two questions only, so that the pool may know the reactor.
pub(super) trait Host: Send + Sync {
    /// Tells whether the pool is at work.
    ///
    /// # Errors
    /// The pool is gone, and why.
    fn check(&self) -> Result<(), JobError>;

    /// Does what a thread that waits does for the pool meanwhile.
    fn look_after(&self);
}

/// The time between looks for results without a wake: only then may a dead zygote be noticed.
const LOOK: Duration = Duration::from_millis(100);

/// With nothing to wait for, the next ticket wakes it.
const LONG: Duration = Duration::from_secs(3600);

pub(crate) struct Reactor {
    shared: Arc<Shared>,
}

struct Shared {
    waiting: Mutex<Vec<Weak<dyn Awaited>>>,
    ended: AtomicBool,
}

/// The number of the event count that the reactor waits on. It may share it with threads of the program.
pub(crate) const WAITER: usize = EVENT_COUNTS - 1;

impl Reactor {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn start<P: Host + 'static>(region: &Arc<Region>, program: &Arc<P>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { waiting: Mutex::new(Vec::new()), ended: AtomicBool::new(false) });
        let (theirs, region, program) = (Arc::clone(&shared), Arc::clone(region), Arc::downgrade(program));
        std::thread::Builder::new().name("cowbell-pool".to_owned()).spawn(move || theirs.live(&region, &program))?;
        Ok(Self { shared })
    }

    /// Tells the thread to look after a ticket.
    pub(crate) fn watch(&self, region: &Region, ticket: Weak<dyn Awaited>) {
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(ticket);
        region.board().event_counts[WAITER].notify();
    }

    /// Ends the thread.
    pub(crate) fn end(&self, region: &Region) {
        self.shared.ended.store(true, Ordering::Release);
        region.board().event_counts[WAITER].notify();
    }
}

impl Shared {
    fn live(&self, region: &Region, program: &Weak<impl Host>) {
        let events = &region.board().event_counts[WAITER];
        loop {
            let seen = events.count();
            if self.ended.load(Ordering::Acquire) {
                return;
            }
            let mut waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            let Some(program) = program.upgrade() else { return };
            let gone = program.check().err();
            waiting.retain(|ticket| {
                // The ticket may have been dropped meanwhile. What drops its waker here then is the program's code, which may panic.
                let look = AssertUnwindSafe(|| ticket.upgrade().is_some_and(|ticket| !ticket.look(gone.as_ref())));
                catch_unwind(look).unwrap_or_else(|panicked| {
                    std::mem::forget(panicked);
                    false
                })
            });
            let none = {
                let mut all = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                all.append(&mut waiting);
                all.is_empty()
            };
            if !none {
                program.look_after();
            }
            drop(program);
            events.sleep(seen, Some(if none { LONG } else { LOOK }));
        }
    }
}
