//! A worker: takes batches, runs their jobs one by one, leaves when it is told to or has copied too much.

pub(super) mod panics;

use crate::arena::signal_safe::table;
use crate::error::Result;
use crate::fork::{self, Reshared};
use crate::pool::context::WorkerInfo;
use crate::pool::memory::heap::{self, NoBlock, ResultHeap};
use crate::pool::memory::region::Region;
use crate::pool::memory::{buffer, results};
use crate::pool::protocol::batch::{self, JobStatus};
use crate::pool::protocol::board::{BatchSlot, WorkerRecord};
use crate::pool::protocol::progress;
use crate::pool::protocol::queue;
use crate::pool::protocol::spin::AdaptiveSpin;
use crate::pool::settings::{OverBudget, Settings};
use crate::sys::{self, limits, prctl, process, random};
use crate::wire::Passenger;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Why a worker left of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// The pool is closing.
    Closing = 1,
    /// There is a newer generation.
    Replaced = 2,
    /// The worker copied more pages than its budget.
    OverBudget = 3,
}

impl Left {
    pub(crate) fn of(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::Closing),
            2 => Some(Self::Replaced),
            3 => Some(Self::OverBudget),
            _ => None,
        }
    }
}

/// The end of a job: its item, and the passengers in it.
#[derive(Default)]
pub(crate) struct JobEnd {
    pub(crate) item: Vec<u8>,
    pub(crate) passengers: Vec<Passenger>,
}

impl JobEnd {
    /// An item that says why there is no result.
    pub(crate) fn refuse(&mut self, status: JobStatus, why: &str) {
        self.item.clear();
        self.passengers.clear();
        let start = batch::begin(&mut self.item);
        self.item.extend_from_slice(why.as_bytes());
        let _short_enough = batch::end(&mut self.item, start, status, &[]);
    }
}

/// The user's closure over the data, without their types.
pub(crate) trait JobRunner {
    /// In a worker, once: who it is.
    fn begin(&mut self, info: WorkerInfo);

    /// Runs one job and appends its item to the outcome, which is empty. Does not panic.
    fn run(&mut self, bytes: &[u8], passengers: &[Passenger], outcome: &mut JobEnd);

    /// Maps all pages of the data.
    ///
    /// # Errors
    /// Those of [`crate::arena::Frozen::populate`].
    fn populate(&self) -> Result<()>;

    /// Gives back copies of the data that are the original again.
    ///
    /// # Errors
    /// Those of [`crate::arena::Frozen::reshare`].
    fn reshare(&self) -> Result<Reshared>;
}

/// A worker that was without a job for so long gives back the memory of results that were read.
const IDLE: Duration = Duration::from_secs(1);

/// The worker's life; returns when it leaves.
pub(crate) fn live(region: &'static Region, settings: &Settings, index: usize, work: &mut dyn JobRunner) {
    prctl::set_name(c"cowbell-worker");
    settings.worker_signals.begin_worker();
    limits::die_first_of_memory();
    if let Some(bytes) = settings.memory_limit {
        limits::limit_data(bytes);
    }
    panics::capture();
    if let Err(e) = region.keep_from_children() {
        log::warn!("worker {}: {e}", process::pid());
        return;
    }
    let Some(own) = region.workers().get(index) else { return };
    // This frees what the last worker of this index had under way, so it comes before any code of the program's, whose buffers lie there too.
    let heap = ResultHeap::take_over(region, index);
    buffer::this_is(region, index);
    own.welcome(region.board(), process::pid());
    let generation = own.generation.load(Ordering::Acquire);
    let mut seed = [0; 32];
    if let Err(e) = random::fill(&mut seed) {
        log::warn!("worker {}: getrandom: {e}", process::pid());
        return;
    }
    let info = WorkerInfo { index, generation, seed, region, process: table::process_number() };
    work.begin(info);
    // Jobs can do without.
    if settings.populate
        && let Err(e) = work.populate()
    {
        log::warn!("worker {}: {e}", process::pid());
    }
    let zygote = process::parent_pid();
    settings.on_start.call(&info);
    settings.worker_signals.hooks_have_run();
    // A hook that changed this process' user has switched off the signal by which it dies with the zygote, see prctl(2).
    if prctl::die_with_parent().is_err() || process::parent_pid() != zygote {
        return;
    }
    let worker = Worker { region, settings, index, own, generation, heap, faults_checked: 0 };
    worker.work(work);
    // A program that cancels the pool kills its workers, and would cut a hook off.
    if region.board().closing.load(Ordering::Acquire) != 2 {
        settings.on_end.call(&info);
    }
}

struct Worker<'a> {
    region: &'static Region,
    settings: &'a Settings,
    index: usize,
    own: &'a WorkerRecord,
    generation: u64,
    heap: ResultHeap<'static>,
    /// The number of page faults at the last census.
    faults_checked: u64,
}

impl Worker<'_> {
    fn work(mut self, work: &mut dyn JobRunner) {
        let queue = self.region.queue();
        let mut outcome = JobEnd::default();
        let spin = AdaptiveSpin::new(self.settings.spin);
        // The faults of the fork itself are no job's copies.
        self.faults_checked = fork::page_faults();
        let mut trimmed = true;
        loop {
            if let Some(left) = self.leaves() {
                self.own.left.store(left as u32, Ordering::Release);
                return;
            }
            if let Some(slot) = queue.claim(self.index) {
                self.run(slot, work, &mut outcome);
                trimmed = false;
                // A worker has a batch, so the pool is not broken any more.
                if self.region.board().broken.load(Ordering::Relaxed) != 0 {
                    self.region.board().broken.store(0, Ordering::Release);
                }
                if self.is_over_budget(work) {
                    self.own.left.store(Left::OverBudget as u32, Ordering::Release);
                    return;
                }
                continue;
            }
            if self.closes_when_empty() {
                self.own.left.store(Left::Closing as u32, Ordering::Release);
                return;
            }
            if spin.until(|| !queue.is_empty()) {
                continue;
            }
            let since = Instant::now();
            queue.sleep(self.index, (!trimmed).then_some(IDLE), || self.leaves().is_some() || self.closes_when_empty());
            if !trimmed && since.elapsed() >= IDLE {
                self.heap.trim();
                trimmed = true;
            }
        }
    }

    fn leaves(&self) -> Option<Left> {
        let board = self.region.board();
        if board.closing.load(Ordering::Acquire) == 2 {
            return Some(Left::Closing);
        }
        (board.generation.0.load(Ordering::Acquire) > self.generation).then_some(Left::Replaced)
    }

    fn closes_when_empty(&self) -> bool {
        self.region.board().closing.load(Ordering::Acquire) == 1
    }

    /// Runs the jobs of a batch until one is condemned, or the results are many.
    fn run(&self, number: usize, work: &mut dyn JobRunner, outcome: &mut JobEnd) {
        let slots = self.region.slots();
        let Some(slot) = slots.get(number) else { return };
        let begun = sys::monotonic_ns();
        let input = self.input(slot);
        let mut output = Output { region: self.region, heap: self.heap, slot, block: 0, sent: Vec::new() };
        let limited = slot.limit.load(Ordering::Acquire) > 0;
        // One that was queued for a newer generation goes back untouched.
        let may = slot.generation.load(Ordering::Acquire) <= self.generation;
        for (job, item) in batch::items(input).enumerate().take_while(|_| may) {
            if limited {
                slot.since.store(sys::monotonic_ns(), Ordering::Release);
            }
            if !progress::begin(&slot.progress, job) {
                process::wait_for_death();
            }
            outcome.item.clear();
            outcome.passengers.clear();
            work.run(item.bytes, &item.passengers(), outcome);
            let written = output.write(outcome);
            if !progress::finish(&slot.progress, job) {
                process::wait_for_death();
            }
            self.own.jobs.fetch_add(1, Ordering::Relaxed);
            // Behind an item that is missing there must be none: it would pass for that one.
            if !written || output.bytes_sent() > self.heap.fair_share() {
                break;
            }
        }
        output.send();
        slot.ran.store(sys::monotonic_ns() - begun, Ordering::Release);
        while !queue::give_back(&slot.state, self.index) {
            // The zygote decides whether this process is to end now.
            std::thread::yield_now();
        }
        self.region.tell(slot);
    }

    #[expect(unsafe_code, reason = "shared memory is lent as bytes")]
    fn input(&self, slot: &BatchSlot) -> &'static [u8] {
        let (at, len) = (slot.input.load(Ordering::Acquire), slot.input_bytes.load(Ordering::Acquire));
        // SAFETY: the parent wrote the bytes before it queued the slot, and frees them after it is done; the worker uses
        // them only while it holds the slot.
        unsafe { self.region.read(at as usize, len as usize) }.unwrap_or_default()
    }

    /// Tells whether the worker has copied more pages than it may, and must leave for it.
    fn is_over_budget(&mut self, work: &dyn JobRunner) -> bool {
        let Some((pages, then)) = self.settings.copy_budget else { return false };
        // Each copy is a page fault, so before there were as many faults there is nothing to count.
        let copied = self.own.copied.load(Ordering::Relaxed);
        let faults = fork::page_faults();
        if copied + (faults - self.faults_checked) <= pages.0 {
            return false;
        }
        let mut now = fork::copied_now();
        if self.settings.reshare && now.as_ref().is_ok_and(|&now| now > pages) {
            match work.reshare() {
                Ok(reshared) => {
                    self.region.board().reshared.fetch_add(reshared.reshared.0, Ordering::AcqRel);
                    now = fork::copied_now();
                }
                Err(e) => log::warn!("worker {}: {e}", process::pid()),
            }
        }
        // Looking may fault as well.
        self.faults_checked = fork::page_faults();
        // Without /proc nobody can tell.
        let Ok(now) = now else { return false };
        self.own.copied.store(now.0, Ordering::Release);
        if now <= pages {
            return false;
        }
        self.region.board().over_budget.fetch_add(1, Ordering::AcqRel);
        then == OverBudget::Retire
    }
}

/// The results of a batch, as they come.
struct Output<'a> {
    region: &'static Region,
    heap: ResultHeap<'static>,
    slot: &'a BatchSlot,
    /// The block that is being filled; 0 for none yet.
    block: usize,
    /// Blocks to hand over at the end: what the results are in, and what they mean.
    sent: Vec<usize>,
}

/// The first block of a batch of many jobs has room for so many bytes at least, and each further one for twice as many.
const BLOCK_BYTES_MIN: usize = 1024;
const BLOCK_BYTES_MAX: usize = 64 << 10;

impl Output<'_> {
    fn bytes_sent(&self) -> usize {
        self.sent.iter().map(|&block| heap::room(self.region, block)).sum()
    }

    /// Writes a job's item behind the ones before. What finds no room becomes an error of that job. False if not even that
    /// finds some: then the parent says so.
    fn write(&mut self, outcome: &mut JobEnd) -> bool {
        let buffers: Vec<usize> = outcome.passengers.iter().filter_map(buffer::block_of).collect();
        match self.append(outcome) {
            Ok(()) => {
                self.sent.extend(buffers);
                true
            }
            Err(why) => {
                for block in buffers {
                    heap::free(self.region, block);
                }
                let why = match why {
                    NoBlock::TooLarge => "the result is larger than the pool's result_capacity",
                    NoBlock::AllHeld => {
                        "no room: earlier results that the program still holds fill the pool's result_capacity"
                    }
                };
                outcome.refuse(JobStatus::NoRoom, why);
                self.append(outcome).is_ok()
            }
        }
    }

    #[expect(unsafe_code, reason = "shared memory is written")]
    fn append(&mut self, outcome: &JobEnd) -> Result<(), NoBlock> {
        let item = &outcome.item;
        let used =
            |block| heap::header(self.region, block).map_or(0, |header| header.used.load(Ordering::Acquire) as usize);
        let mut at = used(self.block);
        if self.block == 0 || heap::room(self.region, self.block) - at < item.len() {
            let last = heap::room(self.region, self.block);
            let jobs = self.slot.jobs.load(Ordering::Acquire);
            let least = if jobs == 1 { 0 } else { (2 * last).clamp(BLOCK_BYTES_MIN, BLOCK_BYTES_MAX) };
            let block = self.heap.take(item.len().max(least))?;
            match heap::header(self.region, self.block) {
                Some(before) => before.next.store(block as u64, Ordering::Release),
                None => self.slot.output.store(block as u64, Ordering::Release),
            }
            self.sent.push(block);
            self.block = block;
            at = 0;
        }
        // SAFETY: the block is being built by this worker, and nobody reads behind `used`.
        let written = unsafe { self.region.write(self.block + heap::HEADER + at, item) };
        if let Some(header) = heap::header(self.region, self.block).filter(|_| written) {
            header.used.store((at + item.len()) as u64, Ordering::Release);
        }
        Ok(())
    }

    /// Hands the blocks over to the parent.
    fn send(self) {
        for &block in &self.sent {
            if let Some(header) = heap::header(self.region, block) {
                header.state.store(heap::SENT, Ordering::Release);
            }
        }
    }
}

/// Hands over, in a dead worker's place, what it had done of a batch. The zygote calls it.
pub(crate) fn hand_over(region: &Region, slot: &BatchSlot) {
    let (done, _) = progress::read(&slot.progress);
    let first = slot.output.load(Ordering::Acquire) as usize;
    let send = |block: usize| {
        if let Some(header) = heap::header(region, block) {
            let _only = header.state.compare_exchange(heap::BUILDING, heap::SENT, Ordering::AcqRel, Ordering::Acquire);
        }
    };
    results::items(region, first).take(done).for_each(|item| {
        item.passengers().iter().filter_map(buffer::block_of).for_each(send);
    });
    heap::chain(region, first).for_each(send);
}
