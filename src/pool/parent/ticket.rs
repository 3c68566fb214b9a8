//! One job that was submitted, and its result to come.

use super::core::{Core, Owner, Park, Terms};
use super::in_flight::{InFlight, encode_job};
use super::pool::Pool;
use super::reactor;
use crate::error::Result;
use crate::pool::protocol::failure::JobError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// The cell that a ticket and the pool share.
pub(crate) struct TicketCell<R> {
    state: Mutex<State<R>>,
}

struct State<R> {
    /// Gone when its result was taken, and after a failed submission. With the lock held it reads no result, which may run the program's code for as
    /// long as that likes: [`Ticket::take`] does.
    run: Option<InFlight<R>>,
    waker: Option<Waker>,
}

impl<R> TicketCell<R> {
    fn lock(&self) -> MutexGuard<'_, State<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: DeserializeOwned + Send> Park for TicketCell<R> {
    fn park(&self, number: usize) -> bool {
        // The holder of the lock is looking at the result already.
        let Ok(mut state) = self.state.try_lock() else { return false };
        let Some(run) = state.run.as_mut() else { return false };
        if run.number() != Some(number) || !run.park() {
            return false;
        }
        wake(state);
        true
    }
}

impl<R: DeserializeOwned + Send> reactor::Awaited for TicketCell<R> {
    fn look(&self, gone: Option<&JobError>) -> bool {
        let mut state = self.lock();
        let Some(run) = state.run.as_mut() else { return true };
        // The task reads it: were that done here, nobody would look after what the program's code awaits meanwhile.
        let over = run.is_ready();
        if let (false, Some(error)) = (over, gone) {
            run.fail(error);
        } else if !over {
            return false;
        }
        wake(state);
        true
    }
}

/// Wakes the task that awaits the ticket. It may poll at once, on this thread, so the lock is given up before. A waker is the program's:
/// if it panics, that ends neither the reactor nor the wait of another task.
fn wake<R>(mut state: MutexGuard<'_, State<R>>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        // The destructor of what it panicked with might panic again.
        let _told_on_stderr = catch_unwind(AssertUnwindSafe(|| waker.wake())).map_err(std::mem::forget);
    }
}

/// A job under way. Waiting for it takes its result; so does awaiting it, as a `Future` of any runtime.
///
/// A dropped ticket's job runs all the same, if it has begun; one that waits in the queue is taken back.
#[must_use = "dropping a Ticket takes its job back, or drops the result"]
pub struct Ticket<R: DeserializeOwned + Send + 'static> {
    core: Arc<Core>,
    cell: Arc<TicketCell<R>>,
}

impl<R: DeserializeOwned + Send + 'static> Ticket<R> {
    pub(crate) fn submit(
        core: &Arc<Core>,
        jobs: &[u8],
        limit: Option<Duration>,
        max_attempts: u32,
    ) -> Result<Self, JobError> {
        let cell = Arc::new(TicketCell { state: Mutex::new(State { run: None, waker: None }) });
        let weak: Weak<TicketCell<R>> = Arc::downgrade(&cell);
        let owner = Owner::Ticket(weak);
        let terms = Terms { jobs: 1, limit, waiter: Core::waiter() };
        let mut state = cell.lock();
        state.run = InFlight::begin(core, jobs, terms, max_attempts, Some(owner), true)?;
        drop(state);
        Ok(Self { core: Arc::clone(core), cell })
    }

    /// Tells whether the result is there.
    fn look(&self, waiter: usize) -> bool {
        if self.core.check_process().is_err() {
            return false;
        }
        let mut state = self.cell.lock();
        let Some(run) = state.run.as_mut() else { return true };
        if let Some(number) = run.number() {
            // Before the look, so that who finishes after it notifies this one.
            self.core.slot(number).waiter.store(waiter as u32, Ordering::SeqCst);
        }
        run.is_ready()
    }

    /// The result, once [`Self::look`] found it. It is read here, by the thread that asks for it, with no lock held.
    fn take(&self) -> Option<Result<R, JobError>> {
        let mut run = self.cell.lock().run.take()?;
        run.advance();
        run.results.pop()
    }

    /// Waits for the result.
    ///
    /// # Errors
    /// Why there is none.
    pub fn wait(self) -> Result<R, JobError> {
        self.wait_until(None)?;
        self.take().unwrap_or(Err(JobError::Cancelled))
    }

    /// Waits at most so long; gives the ticket back when the result is not there by then.
    ///
    /// # Errors
    /// The ticket.
    pub fn wait_timeout(self, timeout: Duration) -> Result<Result<R, JobError>, Self> {
        match self.wait_until(Instant::now().checked_add(timeout)) {
            Ok(true) => Ok(self.take().unwrap_or(Err(JobError::Cancelled))),
            Ok(false) => Err(self),
            Err(e) => Ok(Err(e)),
        }
    }

    /// The result, if it is there; else the ticket.
    ///
    /// # Errors
    /// The ticket.
    pub fn try_wait(self) -> Result<Result<R, JobError>, Self> {
        self.wait_timeout(Duration::ZERO)
    }

    /// Tells whether the result is there.
    pub fn is_done(&self) -> bool {
        let is_done = self.look(Core::waiter());
        if !is_done && self.core.check_process().is_ok() {
            // A caller that only polls must not keep workers waiting for room.
            self.core.make_room_if_wanted();
        }
        is_done
    }

    /// Sets the waker, and gives back the one before: what drops it may be the program's code, so it is not dropped with the lock held.
    fn set_waker(&self, waker: Option<Waker>) -> Option<Waker> {
        std::mem::replace(&mut self.cell.lock().waker, waker)
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Result<bool, JobError> {
        let waiter = Core::waiter();
        self.core.wait(waiter, &self.core.spin, deadline, || self.look(waiter))
    }

    /// Cancels the job: takes it back from the queue, or kills the worker that runs it (which is replaced). False if it
    /// has ended already; then its result stays. Waiting for a cancelled job gives [`JobError::Cancelled`].
    ///
    /// # Errors
    /// The pool is gone.
    pub fn cancel(&self) -> Result<bool> {
        // Locked until it is done: the slot must not become another's meanwhile.
        let state = self.cell.lock();
        let number = state.run.as_ref().and_then(InFlight::number);
        number.map_or(Ok(false), |number| self.core.cancel(number))
    }
}

impl<T, J, R, D> Pool<T, J, R, D>
where
    J: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
    /// Queues one job. Waits while 4,096 batches are queued or at work, or their jobs fill the pool's `job_capacity`.
    ///
    /// # Errors
    /// The job cannot be encoded; the pool is closed or gone; all places are taken by results that nobody has read for five seconds while
    /// no worker had anything to do ([`super::map::Map`]).
    pub fn submit(&self, job: J) -> Result<Ticket<R>, JobError>
    where
        R: Send + 'static,
    {
        let mut row = Vec::new();
        encode_job(&job, &mut row)?;
        let settings = &self.core.settings;
        Ticket::submit(&self.core, &row, settings.time_limit, settings.max_attempts)
    }
}

impl<R: DeserializeOwned + Send + 'static> Future for Ticket<R> {
    type Output = Result<R, JobError>;

    /// The first poll of a pool's tickets starts the one thread that a pool may have.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Err(error) = self.core.check_process() {
            return Poll::Ready(Err(error));
        }
        let Some(waiter) = self.core.reactor_waiter() else {
            return Poll::Ready(Err(JobError::PoolGone("no thread can be started to wait for results".to_owned())));
        };
        let former = self.set_waker(Some(context.waker().clone()));
        if self.look(waiter) {
            self.set_waker(None);
            return Poll::Ready(self.take().unwrap_or(Err(JobError::Cancelled)));
        }
        if former.is_none() {
            let cell: Weak<TicketCell<R>> = Arc::downgrade(&self.cell);
            self.core.reactor_watch(cell);
        }
        Poll::Pending
    }
}

impl<R: DeserializeOwned + Send + 'static> fmt::Debug for Ticket<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket")
    }
}

/// Yields results as their jobs end, each with the place of its ticket.
pub fn as_completed<R: DeserializeOwned + Send + 'static>(
    tickets: impl IntoIterator<Item = Ticket<R>>,
) -> AsCompleted<R> {
    let waiting: Vec<_> = tickets.into_iter().enumerate().collect();
    AsCompleted { waiting, ended: Vec::new() }
}

/// See [`as_completed`].
#[derive(Debug)]
pub struct AsCompleted<R: DeserializeOwned + Send + 'static> {
    waiting: Vec<(usize, Ticket<R>)>,
    ended: Vec<(usize, Result<R, JobError>)>,
}

impl<R: DeserializeOwned + Send + 'static> AsCompleted<R> {
    fn sweep(&mut self, waiter: usize) {
        for (at, ticket) in self.waiting.extract_if(.., |(_, ticket)| ticket.look(waiter)) {
            self.ended.push((at, ticket.take().unwrap_or(Err(JobError::Cancelled))));
        }
    }
}

impl<R: DeserializeOwned + Send + 'static> Iterator for AsCompleted<R> {
    type Item = (usize, Result<R, JobError>);

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(ended) = self.ended.pop() {
            return Some(ended);
        }
        let core = Arc::clone(&self.waiting.first()?.1.core);
        let waiter = Core::waiter();
        let waited = core.wait(waiter, &core.spin, None, || {
            self.sweep(waiter);
            !self.ended.is_empty()
        });
        match waited {
            Ok(_) => {
                self.ended.reverse();
                self.ended.pop()
            }
            // The ticket is of the pool that is gone; the others may be another pool's.
            Err(error) => {
                let (at, _gone) = self.waiting.swap_remove(0);
                Some((at, Err(error)))
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.waiting.len() + self.ended.len();
        (left, Some(left))
    }
}
