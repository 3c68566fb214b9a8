//! The pool's queue, event counts and progress under loom, which runs every interleaving of small models (up to a number of
//! preemptions) and every value that a load may see.
//!
//! The code is the pool's own. Here are the words it works on: atomics of loom, and a futex made of a lock and a condition
//! variable. No sleep has a timeout, so a wake that is lost is a deadlock, and loom reports it.
//!
//! A worker dies or is stopped by its `Life`: before its n-th access to shared memory it is no more. Each n is a model of
//! its own. What the zygote does then runs in the same thread of loom, as it happens after the death.

#[path = "queue/jobs.rs"]
mod jobs;
#[path = "queue/sleepers.rs"]
mod sleepers;
#[path = "queue/slots.rs"]
mod slots;

// The very files of the pool, which need nothing of the crate: what only this test uses is no part of its interface.
#[path = "../src/pool/protocol/event_count.rs"]
mod event_count;
#[path = "../src/pool/protocol/progress.rs"]
mod progress;
#[path = "../src/pool/protocol/queue.rs"]
mod queue;

use event_count::EventCount;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use progress::{JobPhase, Progress};
use queue::{DONE, FREE, FutexWord, QUEUED, Queue, Word64};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// The number of accesses to shared memory a process has left, if they are counted.
struct Life(Cell<Option<u32>>);

/// The payload with which a dying worker unwinds.
struct Death;

impl Life {
    fn long() -> Self {
        Self(Cell::new(None))
    }

    fn of(accesses: u32) -> Self {
        Self(Cell::new(Some(accesses)))
    }

    fn access(&self) {
        match self.0.get() {
            None => {}
            Some(0) => resume_unwind(Box::new(Death)),
            Some(left) => self.0.set(Some(left - 1)),
        }
    }

    /// Runs a process; true if it died.
    fn live(&self, body: impl FnOnce()) -> bool {
        match catch_unwind(AssertUnwindSafe(body)) {
            Ok(()) => false,
            Err(payload) if payload.is::<Death>() => true,
            Err(payload) => resume_unwind(payload),
        }
    }
}

struct Memory32 {
    value: AtomicU32,
    kernel: Mutex<()>,
    sleepers: Condvar,
    /// Somebody has gone to sleep; the test's own.
    slept: Cell<bool>,
}

impl Memory32 {
    fn new() -> Self {
        Self { value: AtomicU32::new(0), kernel: Mutex::new(()), sleepers: Condvar::new(), slept: Cell::new(false) }
    }
}

/// A word as one process accesses it.
struct Word32<'a>(&'a Memory32, &'a Life);

impl FutexWord for Word32<'_> {
    fn load(&self) -> u32 {
        self.1.access();
        self.0.value.load(Ordering::Acquire)
    }
    fn store(&self, value: u32) {
        self.1.access();
        self.0.value.store(value, Ordering::Release);
    }
    fn replace(&self, old: u32, new: u32) -> bool {
        self.1.access();
        self.0.value.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
    fn increment(&self) {
        self.1.access();
        self.0.value.fetch_add(1, Ordering::AcqRel);
    }
    /// The kernel compares and goes to sleep under a lock that a wake takes as well. It returns at any wake, as after a
    /// signal: the caller is to look again.
    fn wait(&self, expected: u32, timeout: Option<Duration>) {
        self.1.access();
        assert!(timeout.is_none(), "models wait for ever");
        let locked = self.0.kernel.lock().expect("no panic");
        if self.0.value.load(Ordering::Acquire) == expected {
            self.0.slept.set(true);
            drop(self.0.sleepers.wait(locked).expect("no panic"));
        }
    }
    fn wake(&self) {
        self.1.access();
        let _locked = self.0.kernel.lock().expect("no panic");
        self.0.sleepers.notify_all();
    }
    fn fence() {
        fence(Ordering::SeqCst);
    }
}

struct Long64<'a>(&'a AtomicU64, &'a Life);

impl Word64 for Long64<'_> {
    fn load(&self) -> u64 {
        self.1.access();
        self.0.load(Ordering::Acquire)
    }
    fn store(&self, value: u64) {
        self.1.access();
        self.0.store(value, Ordering::Release);
    }
    fn replace(&self, old: u64, new: u64) -> bool {
        self.1.access();
        self.0.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
    fn set(&self, bits: u64) {
        self.1.access();
        self.0.fetch_or(bits, Ordering::AcqRel);
    }
    fn clear(&self, bits: u64) -> u64 {
        self.1.access();
        self.0.fetch_and(!bits, Ordering::AcqRel)
    }
}

/// The end of a job, as its slot says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Result,
    Died,
    TakenBack,
    /// A stopped worker has it.
    Kept,
}

/// A pool's shared memory, and what the test counts.
struct Pool {
    head: AtomicU64,
    tail: AtomicU64,
    ring: Vec<Memory32>,
    places: Vec<Memory32>,
    states: Vec<Memory32>,
    wakes: Vec<Memory32>,
    idle: Vec<AtomicU64>,
    /// Not shared memory: that the end is told is another matter.
    closing: Cell<bool>,
    /// Raised when there is news for the parent.
    news: Mutex<u32>,
    told: Condvar,
    /// The job in each slot, and how it ended. Loom finds accesses that the queue does not order.
    jobs: Vec<loom::cell::Cell<usize>>,
    ends: Vec<loom::cell::Cell<End>>,
    /// The number of times each job was begun, and its end. The test's own.
    begun: Vec<Cell<u32>>,
    ended: Vec<Cell<Option<End>>>,
    /// The mortal worker is dead or stopped.
    gone: Cell<bool>,
}

const WORKERS: usize = 2;

fn many<T>(count: usize, make: impl Fn() -> T) -> Vec<T> {
    std::iter::repeat_with(make).take(count).collect()
}

impl Pool {
    fn new(entries: usize, slots: usize, jobs: usize) -> Rc<Self> {
        Rc::new(Self {
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
            ring: many(entries, Memory32::new),
            places: many(slots, Memory32::new),
            states: many(slots, Memory32::new),
            wakes: many(WORKERS, Memory32::new),
            idle: many(1, || AtomicU64::new(0)),
            closing: Cell::new(false),
            news: Mutex::new(0),
            told: Condvar::new(),
            jobs: many(slots, || loom::cell::Cell::new(0)),
            ends: many(slots, || loom::cell::Cell::new(End::Result)),
            begun: many(jobs, || Cell::new(0)),
            ended: many(jobs, || Cell::new(None)),
            gone: Cell::new(false),
        })
    }

    fn tell(&self) {
        *self.news.lock().expect("no panic") += 1;
        self.told.notify_all();
    }

    fn view<'a>(&'a self, life: &'a Life) -> View<'a> {
        let words = |memory: &'a [Memory32]| memory.iter().map(|word| Word32(word, life)).collect();
        View {
            head: Long64(&self.head, life),
            tail: Long64(&self.tail, life),
            ring: words(&self.ring),
            places: words(&self.places),
            states: words(&self.states),
            wakes: words(&self.wakes),
            idle: self.idle.iter().map(|word| Long64(word, life)).collect(),
        }
    }

    /// A worker's life.
    fn work(&self, index: usize, life: &Life) {
        let view = self.view(life);
        let queue = view.queue();
        loop {
            if let Some(slot) = queue.claim(index) {
                let job = self.jobs[slot].get();
                self.begun[job].set(self.begun[job].get() + 1);
                self.ends[slot].set(End::Result);
                assert!(queue::give_back(&view.states[slot], index), "nobody holds it");
                self.tell();
                continue;
            }
            if self.closing.get() {
                return;
            }
            queue.sleep(index, None, || self.closing.get());
        }
    }

    /// The zygote's work after a death.
    fn settle(&self, index: usize) {
        let life = Life::long();
        let view = self.view(&life);
        for (slot, state) in view.states.iter().enumerate() {
            if queue::holder(state.load()) == Some(index) {
                self.ends[slot].set(End::Died);
                state.store(DONE);
            }
        }
        view.queue().bury(index);
        self.tell();
    }
}

struct View<'a> {
    head: Long64<'a>,
    tail: Long64<'a>,
    ring: Vec<Word32<'a>>,
    places: Vec<Word32<'a>>,
    states: Vec<Word32<'a>>,
    wakes: Vec<Word32<'a>>,
    idle: Vec<Long64<'a>>,
}

impl<'a> View<'a> {
    fn queue<'s>(&'s self) -> Queue<'s, Word32<'a>, Long64<'a>, impl Fn(usize) -> &'s Word32<'a>> {
        Queue {
            head: &self.head,
            tail: &self.tail,
            ring: &self.ring,
            places: &self.places,
            state: |slot: usize| &self.states[slot],
            wakes: &self.wakes,
            idle: &self.idle,
        }
    }
}

/// The parent's one thread.
struct Parent<'a> {
    pool: &'a Pool,
    view: View<'a>,
    free: Vec<usize>,
    seen: u32,
}

impl<'a> Parent<'a> {
    fn new(pool: &'a Pool, life: &'a Life) -> Self {
        Self { pool, view: pool.view(life), free: (0..pool.states.len()).collect(), seen: 0 }
    }

    /// Queues a job in a free slot; waits for one. Returns the slot.
    fn submit(&mut self, job: usize) -> usize {
        let slot = loop {
            match self.free.pop() {
                Some(slot) => break slot,
                None => self.collect(),
            }
        };
        self.pool.jobs[slot].set(job);
        assert!(self.view.queue().push(slot), "there are as many entries as slots");
        self.view.queue().announce();
        slot
    }

    /// Takes a job back if nobody has it.
    fn take_back(&mut self, slot: usize) {
        if self.view.states[slot].replace(QUEUED, DONE) {
            self.pool.ends[slot].set(End::TakenBack);
            self.read(slot);
        }
    }

    /// Sleeps until there is news, and reads and frees what is done.
    fn collect(&mut self) {
        self.sleep();
        for slot in 0..self.view.states.len() {
            if !self.free.contains(&slot) && self.view.states[slot].load() == DONE {
                self.read(slot);
            }
        }
    }

    fn sleep(&mut self) {
        let mut news = self.pool.news.lock().expect("no panic");
        while *news == self.seen {
            news = self.pool.told.wait(news).expect("no panic");
        }
        self.seen = *news;
    }

    fn read(&mut self, slot: usize) {
        let job = self.pool.jobs[slot].get();
        let before = self.pool.ended[job].replace(Some(self.pool.ends[slot].get()));
        assert_eq!(before, None, "job {job} ended before");
        self.view.states[slot].store(FREE);
        self.free.push(slot);
    }

    /// Lets all workers go to sleep, or be gone, before anything is explored.
    fn await_sleepers(&self) {
        loom::stop_exploring();
        let [mortal, other] = &self.pool.wakes[..] else { return };
        while !(other.slept.get() && (mortal.slept.get() || self.pool.gone.get())) {
            thread::yield_now();
        }
        loom::explore();
    }

    fn await_all(&mut self) {
        while self.pool.ended.iter().any(|end| end.get().is_none()) {
            self.collect();
        }
    }

    fn close(&self) {
        // All is said: what follows is not explored.
        loom::stop_exploring();
        self.pool.closing.set(true);
        self.view.queue().wake_all();
    }
}

/// Explores a model up to so many preemptions.
fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    builder.max_branches = 10_000;
    builder.check(model);
}

/// Starts a worker that lives long.
fn start(pool: &Rc<Pool>, index: usize) -> thread::JoinHandle<()> {
    let pool = Rc::clone(pool);
    thread::spawn(move || pool.work(index, &Life::long()))
}

fn join(workers: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    for worker in workers {
        worker.join().expect("no panic");
    }
}
