//! The parent's side without the user's types: filling slots and reading what they hold. Making room is in reclaim.rs, waiting in
//! waiting.rs, requests to the zygote in requests.rs.
//!
//! The parent has no thread of its own here: whoever waits does what is to be done meanwhile ([`Core::look_after`]).

use super::reactor::Reactor;
use crate::arena::Space;
use crate::arena::signal_safe::table;
use crate::error::{Error, Result};
use crate::fork::Child;
use crate::pool::memory::region::Region;
use crate::pool::memory::results;
use crate::pool::protocol::batch;
use crate::pool::protocol::batch::Item;
use crate::pool::protocol::board::{BatchSlot, EVENT_COUNTS, SLOTS};
use crate::pool::protocol::failure::{JobError, JobFailure};
use crate::pool::protocol::progress;
use crate::pool::protocol::queue::{DONE, QUEUED};
use crate::pool::protocol::spin::AdaptiveSpin;
use crate::pool::settings::Settings;
use crate::sys::eventfd;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// The state that one lock guards: the free slots, the memory of jobs, the tail of the queue.
pub(crate) struct Front {
    pub(crate) free: Vec<u16>,
    pub(crate) payloads: Space,
    /// Nothing was written from here on since memory was given back.
    pub(crate) payloads_end: usize,
    /// The owner of each slot's result; a ticket that was dropped is gone.
    pub(crate) owners: Vec<Option<Owner>>,
    /// Results that were taken out of shared memory before their owner asked for them: the items.
    pub(crate) parked: HashMap<usize, Vec<u8>>,
    /// When memory was given back last.
    pub(crate) trimmed: Instant,
    pub(crate) closed: bool,
}

/// An owner of results: it can take those of a slot into this process's own memory.
pub(crate) trait Park: Send + Sync {
    /// Takes them, if the slot is this one's still and done; did it?
    fn park(&self, number: usize) -> bool;
}

/// A slot's owner.
#[derive(Clone)]
pub(crate) enum Owner {
    /// A ticket's. While it is being dropped it is gone, and still the one who decides about the slot.
    Ticket(Weak<dyn Park>),
    /// No owner: the slot is swept when it is done.
    Nobody,
    /// Somebody's who is reading its results.
    Reader,
}

/// The end of the channel to the zygote.
pub(crate) struct ZygoteChannel {
    pub(crate) end: OwnedFd,
    pub(crate) zygote: Option<Child>,
    /// Answers that are to come.
    pub(crate) owed: u32,
}

/// See the module.
pub(crate) struct Core {
    pub(crate) region: Arc<Region>,
    /// The limits of a thread that waits for one job.
    pub(crate) spin: AdaptiveSpin,
    pub(crate) settings: Settings,
    pub(crate) front: Mutex<Front>,
    pub(crate) line: Mutex<ZygoteChannel>,
    /// A descriptor of the zygote, readable at its end.
    pub(crate) zygote: OwnedFd,
    pub(crate) limits: OwnedFd,
    pub(crate) gone: AtomicBool,
    /// Jobs that are not done are not to be.
    pub(crate) cancelled: AtomicBool,
    pub(crate) reactor: OnceLock<Option<Reactor>>,
    /// The process that the pool belongs to, in a line of forks.
    pub(crate) process: usize,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a batch was not queued.
#[derive(Debug)]
pub(crate) enum NotQueued {
    /// All slots, or all memory of jobs, are taken for now.
    Full,
    /// The result will never be there.
    Because(JobError),
}

/// The settings that a batch is queued with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) jobs: usize,
    pub(crate) limit: Option<Duration>,
    pub(crate) waiter: usize,
}

/// The way a batch ended.
pub(crate) struct BatchEnd {
    /// The number of its jobs that are done and have an item.
    pub(crate) done: usize,
    /// Why the next one failed, if it did; otherwise it was not begun.
    pub(crate) failure: Option<JobFailure>,
}

/// The time that a thread sleeps before it looks whether the zygote lives and whether a wake was lost.
pub(super) const LOOK_AFTER: Duration = Duration::from_millis(100);

/// The time that a job waits for a place while no batch is queued or at work: all places are taken by results then, and only
/// who reads them can make room.
const IDLE_MAX: Duration = Duration::from_secs(5);

const NO_PLACE: &str = "all of the pool's places are taken by results that nobody reads: iterators of map or map_unordered that were \
                        forgotten, or are not asked any more; drop them";

impl Core {
    pub(crate) fn new(
        region: Arc<Region>,
        settings: Settings,
        end: OwnedFd,
        limits: OwnedFd,
        zygote: Child,
    ) -> Result<Self> {
        let pidfd = zygote.pidfd().try_clone_to_owned().map_err(|e| {
            Error::invalid(format!("no descriptor for the zygote: {e}")).with_hint("raise it: ulimit -n")
        })?;
        let front = Front {
            free: (0..SLOTS as u16).rev().collect(),
            payloads: Space::new(region.payloads().len),
            payloads_end: 0,
            owners: (0..SLOTS).map(|_| None).collect(),
            parked: HashMap::new(),
            trimmed: Instant::now(),
            closed: false,
        };
        Ok(Self {
            spin: AdaptiveSpin::new(settings.spin),
            region,
            settings,
            front: Mutex::new(front),
            line: Mutex::new(ZygoteChannel { end, zygote: Some(zygote), owed: 0 }),
            zygote: pidfd,
            limits,
            gone: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            reactor: OnceLock::new(),
            process: table::process_number(),
        })
    }

    pub(crate) fn slot(&self, number: usize) -> &BatchSlot {
        &self.region.slots()[number]
    }

    /// The number of the event count that the calling thread waits on. Threads may share one.
    pub(crate) fn waiter() -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static MINE: usize = 1 + NEXT.fetch_add(1, Ordering::Relaxed) % (EVENT_COUNTS - 1));
        MINE.with(|mine| *mine)
    }

    /// Queues a batch of encoded jobs.
    pub(crate) fn try_queue(&self, jobs: &[u8], terms: Terms, owner: Option<Owner>) -> Result<usize, NotQueued> {
        self.check_process().map_err(NotQueued::Because)?;
        let mut front = lock(&self.front);
        if front.closed {
            return Err(NotQueued::Because(JobError::Cancelled));
        }
        if jobs.len() > self.settings.payload_capacity {
            let why = format!("{} bytes of jobs are more than the pool's job_capacity", jobs.len());
            return Err(NotQueued::Because(JobError::NotPassed(why)));
        }
        let Some(number) = front.free.pop() else { return Err(NotQueued::Full) };
        let Some(place) = front.payloads.take(jobs.len().max(1), 16, 0) else {
            front.free.push(number);
            return Err(NotQueued::Full);
        };
        let number = usize::from(number);
        let at = self.region.payloads().start + place;
        front.payloads_end = front.payloads_end.max(place + jobs.len());
        self.fill(at, jobs);
        let slot = self.slot(number);
        slot.waiter.store(terms.waiter as u32, Ordering::Release);
        slot.jobs.store(terms.jobs as u32, Ordering::Release);
        // Centuries are as good as no limit.
        let limit = terms.limit.and_then(|limit| u64::try_from(limit.as_nanos()).ok()).filter(|&ns| ns < u64::MAX);
        slot.limit.store(limit.unwrap_or(0), Ordering::Release);
        slot.input.store(at as u64, Ordering::Release);
        slot.input_first.store(at as u64, Ordering::Release);
        slot.input_bytes.store(jobs.len() as u64, Ordering::Release);
        if let Some(place) = front.owners.get_mut(number) {
            *place = owner;
        }
        self.region.board().slots_used.fetch_max(number as u32 + 1, Ordering::AcqRel);
        self.push(&front, number);
        drop(front);
        self.announce(limit.is_some());
        Ok(number)
    }

    #[expect(unsafe_code, reason = "shared memory is written")]
    pub(crate) fn fill(&self, at: usize, jobs: &[u8]) {
        // SAFETY: `Space` handed the bytes out to this call alone.
        let written = unsafe { self.region.write(at, jobs) };
        debug_assert!(written, "Space stays inside");
    }

    /// Queues a slot that is filled. With the lock held: one at a time.
    pub(crate) fn push(&self, _front: &Front, number: usize) {
        let slot = self.slot(number);
        progress::reset(&slot.progress);
        slot.since.store(0, Ordering::Release);
        slot.failure.store(0, Ordering::Release);
        slot.output.store(0, Ordering::Release);
        slot.generation.store(self.region.board().generation.0.load(Ordering::Acquire), Ordering::Release);
        let pushed = self.region.queue().push(number);
        // Each slot has one entry that is not stale, and there are four times as many; stale ones make room.
        debug_assert!(pushed, "the ring has room for every slot");
    }

    pub(crate) fn announce(&self, limited: bool) {
        self.region.queue().announce();
        if limited && self.region.board().limits_watched.swap(1, Ordering::SeqCst) == 0 {
            eventfd::notify(&self.limits);
        }
    }

    /// Queues a batch, and waits for room.
    pub(crate) fn queue(&self, jobs: &[u8], terms: Terms, owner: Option<Owner>) -> Result<usize, JobError> {
        self.check_process()?;
        let room = &self.region.board().event_counts[0];
        let mut seen = None;
        let mut idle = None;
        loop {
            match self.try_queue(jobs, terms, owner.clone()) {
                Ok(number) => return Ok(number),
                Err(NotQueued::Because(e)) => return Err(e),
                Err(NotQueued::Full) => {}
            }
            if self.make_room() {
                continue;
            }
            self.check()?;
            if self.is_busy() {
                idle = None;
            } else if idle.get_or_insert_with(Instant::now).elapsed() > IDLE_MAX {
                return Err(JobError::NotPassed(NO_PLACE.to_owned()));
            }
            // Only who listened before it looked may sleep.
            if let Some(seen) = seen {
                room.sleep(seen, Some(LOOK_AFTER));
                self.look_after();
            }
            seen = Some(room.prepare_wait());
        }
    }

    /// Queues the rest of a batch again: all but its first `skip` jobs. What was done must have been read.
    pub(crate) fn queue_again(&self, number: usize, skip: usize) {
        let slot = self.slot(number);
        self.free_output(slot);
        let (at, len) =
            (slot.input.load(Ordering::Acquire) as usize, slot.input_bytes.load(Ordering::Acquire) as usize);
        let skipped: usize = batch::items(self.input(at, len)).take(skip).map(|item| item.size()).sum();
        slot.input.store((at + skipped) as u64, Ordering::Release);
        slot.input_bytes.store((len - skipped) as u64, Ordering::Release);
        slot.jobs.fetch_sub(skip as u32, Ordering::AcqRel);
        let mut front = lock(&self.front);
        if let Some(owner @ Some(Owner::Reader)) = front.owners.get_mut(number) {
            *owner = None;
        }
        self.push(&front, number);
        drop(front);
        self.announce(slot.limit.load(Ordering::Acquire) > 0);
    }

    #[expect(unsafe_code, reason = "shared memory is lent as bytes")]
    pub(crate) fn input(&self, at: usize, len: usize) -> &[u8] {
        // SAFETY: jobs are written before the slot is queued and freed with it; this is called by the slot's owner.
        unsafe { self.region.read(at, len) }.unwrap_or_default()
    }

    /// Tells whether the batch is done: its results are final then. Never in a process forked from the pool's, which must not free
    /// what is the pool's.
    pub(crate) fn is_done(&self, number: usize) -> bool {
        self.check_process().is_ok() && self.slot(number).state.load(Ordering::SeqCst) == DONE
    }

    /// The way a batch that is done ended.
    pub(crate) fn ended(&self, number: usize) -> BatchEnd {
        let slot = self.slot(number);
        let (done, _) = progress::read(&slot.progress);
        BatchEnd { done, failure: JobFailure::read(slot) }
    }

    /// Calls `each` with the results of a batch that is done, which nobody moves meanwhile.
    pub(crate) fn read_results(&self, number: usize, each: impl FnMut(Item<'_>)) {
        let mut front = lock(&self.front);
        if let Some(owner @ None) = front.owners.get_mut(number) {
            *owner = Some(Owner::Reader);
        }
        let parked = front.parked.remove(&number);
        drop(front);
        self.results(number, parked.as_deref()).for_each(each);
    }

    /// The results of a batch that is done, and where they were parked if they were.
    pub(crate) fn results<'a>(&'a self, number: usize, parked: Option<&'a [u8]>) -> impl Iterator<Item = Item<'a>> {
        let slot = self.slot(number);
        let (done, _) = progress::read(&slot.progress);
        let here = results::items(&self.region, slot.output.load(Ordering::Acquire) as usize);
        batch::items(parked.unwrap_or_default()).chain(here).take(done)
    }

    /// Takes a batch back that nobody has begun.
    pub(crate) fn take_back(&self, number: usize) -> bool {
        let slot = self.slot(number);
        let mine = slot.state.compare_exchange(QUEUED, DONE, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if mine {
            JobFailure::Cancelled.write(slot);
        }
        mine
    }
}
