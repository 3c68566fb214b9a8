//! The one thread that a pool may have: it waits for results on behalf of futures and wakes their tasks.
//!
//! The reactor is started by the first ticket that is polled, so a program that only waits never has it.

use super::core::Core;
use super::failure::JobError;
use super::region::{BELLS, Region};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// A ticket that somebody awaits.
pub(super) trait Waits: Send + Sync {
    /// Wakes the task if the result is there, or never will be for the reason given; true if it needs no further look.
    fn look(&self, gone: Option<&JobError>) -> bool;
}

/// The time between looks for results without a ring: only then may a dead zygote be noticed.
const LOOK: Duration = Duration::from_millis(100);

/// With nothing to wait for, a ring comes with the next ticket.
const LONG: Duration = Duration::from_secs(3600);

pub(super) struct Reactor {
    shared: Arc<Shared>,
}

struct Shared {
    waiting: Mutex<Vec<Weak<dyn Waits>>>,
    ended: AtomicBool,
}

/// The bell of the reactor. It may share it with threads of the program.
pub(super) const BELL: usize = BELLS - 1;

impl Reactor {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn start(core: &Arc<Core>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { waiting: Mutex::new(Vec::new()), ended: AtomicBool::new(false) });
        let (theirs, region, core) = (Arc::clone(&shared), Arc::clone(&core.region), Arc::downgrade(core));
        std::thread::Builder::new().name("cowbell-pool".to_owned()).spawn(move || theirs.live(&region, &core))?;
        Ok(Self { shared })
    }

    /// Tells the thread to look after a ticket.
    pub(super) fn watch(&self, region: &Region, ticket: Weak<dyn Waits>) {
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(ticket);
        region.board().bells[BELL].ring();
    }

    /// Ends the thread.
    pub(super) fn end(&self, region: &Region) {
        self.shared.ended.store(true, Ordering::Release);
        region.board().bells[BELL].ring();
    }
}

impl Shared {
    fn live(&self, region: &Region, core: &Weak<Core>) {
        let bell = &region.board().bells[BELL];
        loop {
            let heard = bell.rings();
            if self.ended.load(Ordering::Acquire) {
                return;
            }
            let mut waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            let Some(core) = core.upgrade() else { return };
            let gone = core.check().err();
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
                core.look_after();
            }
            drop(core);
            bell.sleep(heard, Some(if none { LONG } else { LOOK }));
        }
    }
}
