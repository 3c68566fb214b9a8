//! The pool's queue, bells and progress under loom, which runs every interleaving of small models (up to a number of
//! preemptions) and every value that a load may see.
//!
//! The code is the pool's own. Here are the words it works on: atomics of loom, and a futex made of a lock and a condition
//! variable. No sleep has a timeout, so a wake that is lost is a deadlock, and loom reports it.
//!
//! A worker dies or is stopped by its `Life`: before its n-th access to shared memory it is no more. Each n is a model of
//! its own. What the zygote does then runs in the same thread of loom, as it happens after the death.

// The very files of the pool, which need nothing of the crate: what only this test uses is no part of its interface.
#[path = "../src/pool/protocol/bell.rs"]
mod bell;
#[path = "../src/pool/protocol/progress.rs"]
mod progress;
#[path = "../src/pool/protocol/queue.rs"]
mod queue;

use bell::Bell;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use progress::{Phase, Seen};
use queue::{DONE, FREE, Long, QUEUED, Queue, Word};
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

impl Word for Word32<'_> {
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

impl Long for Long64<'_> {
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
    bells: Vec<Memory32>,
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
            bells: many(WORKERS, Memory32::new),
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
            bells: words(&self.bells),
            idle: self.idle.iter().map(|word| Long64(word, life)).collect(),
        }
    }

    /// A worker's life.
    fn work(&self, seat: usize, life: &Life) {
        let view = self.view(life);
        let queue = view.queue();
        loop {
            if let Some(slot) = queue.claim(seat) {
                let job = self.jobs[slot].get();
                self.begun[job].set(self.begun[job].get() + 1);
                self.ends[slot].set(End::Result);
                assert!(queue::give_back(&view.states[slot], seat), "nobody holds it");
                self.tell();
                continue;
            }
            if self.closing.get() {
                return;
            }
            queue.sleep(seat, None, || self.closing.get());
        }
    }

    /// The zygote's work after a death.
    fn settle(&self, seat: usize) {
        let life = Life::long();
        let view = self.view(&life);
        for (slot, state) in view.states.iter().enumerate() {
            if queue::holder(state.load()) == Some(seat) {
                self.ends[slot].set(End::Died);
                state.store(DONE);
            }
        }
        view.queue().bury(seat);
        self.tell();
    }
}

struct View<'a> {
    head: Long64<'a>,
    tail: Long64<'a>,
    ring: Vec<Word32<'a>>,
    places: Vec<Word32<'a>>,
    states: Vec<Word32<'a>>,
    bells: Vec<Word32<'a>>,
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
            bells: &self.bells,
            idle: &self.idle,
        }
    }
}

/// The parent's one thread.
struct Parent<'a> {
    pool: &'a Pool,
    view: View<'a>,
    free: Vec<usize>,
    heard: u32,
}

impl<'a> Parent<'a> {
    fn new(pool: &'a Pool, life: &'a Life) -> Self {
        Self { pool, view: pool.view(life), free: (0..pool.states.len()).collect(), heard: 0 }
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
        while *news == self.heard {
            news = self.pool.told.wait(news).expect("no panic");
        }
        self.heard = *news;
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
        let [mortal, other] = &self.pool.bells[..] else { return };
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
fn start(pool: &Rc<Pool>, seat: usize) -> thread::JoinHandle<()> {
    let pool = Rc::clone(pool);
    thread::spawn(move || pool.work(seat, &Life::long()))
}

fn join(workers: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    for worker in workers {
        worker.join().expect("no panic");
    }
}

fn every_job_is_taken_once(preemptions: usize, jobs: usize) {
    explore(preemptions, move || {
        let pool = Pool::new(2, 2, jobs);
        let workers = [start(&pool, 0), start(&pool, 1)];
        let life = Life::long();
        let mut parent = Parent::new(&pool, &life);
        for job in 0..jobs {
            parent.submit(job);
        }
        parent.await_all();
        parent.close();
        join(workers);
        for (begun, ended) in pool.begun.iter().zip(&pool.ended) {
            assert_eq!((begun.get(), ended.get()), (1, Some(End::Result)));
        }
    });
}

#[test]
fn every_job_is_taken_once_and_who_sleeps_is_woken() {
    every_job_is_taken_once(2, 1);
}

/// The third goes into a slot and an entry that were used before.
#[test]
fn slots_and_entries_are_used_again() {
    every_job_is_taken_once(1, 3);
}

/// Slots are taken back and queued again behind one that nobody takes, until the ring is full, over and over.
#[test]
fn a_ring_full_of_stale_entries_is_swept() {
    for count in 2..12 {
        explore(0, move || {
            let pool = Pool::new(4, 4, 2 * count + 1);
            let life = Life::long();
            let mut parent = Parent::new(&pool, &life);
            let mut queued = vec![parent.submit(0)];
            let mut job = 1;
            for _ in 0..2 {
                for _ in 1..count {
                    let slot = parent.submit(job);
                    parent.take_back(slot);
                    job += 1;
                }
                // In a slot that has many stale entries.
                queued.push(parent.submit(job));
                job += 1;
            }
            for slot in queued {
                let claimed = parent.view.queue().claim(0);
                assert_eq!(claimed, Some(slot), "they stand in the order in which they were queued");
            }
            assert_eq!(parent.view.queue().claim(0), None);
        });
    }
}

/// The same while a worker takes from it.
#[test]
fn a_ring_is_swept_while_workers_take_from_it() {
    // Slow without optimisation.
    explore(if cfg!(debug_assertions) { 1 } else { 2 }, || {
        let pool = Pool::new(2, 2, 4);
        let worker = start(&pool, 0);
        let life = Life::long();
        let mut parent = Parent::new(&pool, &life);
        parent.submit(0);
        for job in 1..3 {
            let slot = parent.submit(job);
            parent.take_back(slot);
        }
        parent.submit(3);
        parent.await_all();
        parent.close();
        join([worker]);
        for (begun, ended) in pool.begun.iter().zip(&pool.ended) {
            assert_eq!(begun.get() == 1, ended.get() == Some(End::Result), "begun or taken back, not both");
            assert!(begun.get() <= 1);
        }
    });
}

/// For each number of accesses: explores a model of a worker with so many left, until it does not use them up.
fn each_death(preemptions: usize, model: impl Fn(u32) -> bool + Send + Sync + Copy + 'static) {
    for accesses in 0.. {
        let died = Arc::new(AtomicBool::new(false));
        let some = Arc::clone(&died);
        explore(preemptions, move || {
            if model(accesses) {
                some.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        });
        if !died.load(std::sync::atomic::Ordering::Relaxed) {
            assert!(accesses > 10, "a worker does more than that");
            return;
        }
    }
}

/// The job that the dead worker held ends as died, all others with a result, whenever it dies. Its seat is filled again
/// after the zygote has settled what it left.
#[test]
fn a_worker_that_dies_at_any_access_fails_only_what_it_held() {
    each_death(1, |accesses| {
        let pool = Pool::new(2, 2, 2);
        let shared = Rc::clone(&pool);
        let mortal = thread::spawn(move || {
            let life = Life::of(accesses);
            let died = life.live(|| shared.work(0, &life));
            if died {
                shared.settle(0);
                shared.work(0, &Life::long());
            }
            died
        });
        let other = start(&pool, 1);
        let life = Life::long();
        let mut parent = Parent::new(&pool, &life);
        for job in 0..2 {
            parent.submit(job);
        }
        parent.await_all();
        parent.close();
        let died = mortal.join().expect("no panic");
        join([other]);
        let failed = pool.ended.iter().filter(|end| end.get() == Some(End::Died)).count();
        assert!(failed <= usize::from(died), "{failed} failed");
        assert!(pool.begun.iter().all(|begun| begun.get() <= 1), "none ran twice");
        died
    });
}

/// A worker dies and is not replaced for long: who is left does it all.
#[test]
fn nobody_waits_for_the_successor_of_a_dead_worker() {
    each_death(2, |accesses| {
        let pool = Pool::new(2, 2, 1);
        let shared = Rc::clone(&pool);
        let mortal = thread::spawn(move || {
            let life = Life::of(accesses);
            let died = life.live(|| shared.work(0, &life));
            if died {
                shared.gone.set(true);
                shared.settle(0);
            }
            died
        });
        let other = start(&pool, 1);
        let life = Life::long();
        let mut parent = Parent::new(&pool, &life);
        parent.await_sleepers();
        parent.submit(0);
        parent.await_all();
        parent.close();
        let died = mortal.join().expect("no panic");
        join([other]);
        died
    });
}

/// A worker is stopped for good, and nobody knows. A thread that waits wakes the others after a while, and they do all
/// jobs but the one that it holds.
#[test]
fn a_worker_that_is_stopped_at_any_access_keeps_only_what_it_holds() {
    each_death(1, |accesses| {
        let pool = Pool::new(2, 2, 2);
        let shared = Rc::clone(&pool);
        let stopped = thread::spawn(move || {
            let life = Life::of(accesses);
            let stopped = life.live(|| shared.work(0, &life));
            let life = Life::long();
            for (slot, state) in shared.view(&life).states.iter().enumerate() {
                if stopped && queue::holder(state.load()) == Some(0) {
                    shared.ended[shared.jobs[slot].get()].set(Some(End::Kept));
                }
            }
            // Stands for the time that passes.
            shared.gone.set(stopped);
            shared.tell();
        });
        let other = start(&pool, 1);
        let life = Life::long();
        let mut parent = Parent::new(&pool, &life);
        parent.await_sleepers();
        for job in 0..2 {
            parent.submit(job);
        }
        let mut nudged = false;
        while pool.ended.iter().any(|end| end.get().is_none()) {
            if pool.gone.get() && !nudged {
                parent.view.queue().nudge();
                nudged = true;
                continue;
            }
            parent.collect();
        }
        let was_stopped = pool.gone.get();
        parent.close();
        join([stopped, other]);
        assert!(pool.begun.iter().all(|begun| begun.get() <= 1), "none ran twice");
        was_stopped
    });
}

/// Two threads wait on one bell for what two others let be there.
#[test]
fn who_waits_on_a_bell_is_woken() {
    explore(2, || {
        let bell = Rc::new(Memory32::new());
        let there = Rc::new([AtomicU32::new(0), AtomicU32::new(0)]);
        let wait = |which: usize| {
            let (bell, there) = (Rc::clone(&bell), Rc::clone(&there));
            move || {
                let life = Life::long();
                let bell = Bell(Word32(&bell, &life));
                loop {
                    let heard = bell.rings();
                    if there[which].load(Ordering::Acquire) == 1 {
                        return;
                    }
                    bell.sleep(heard, None);
                }
            }
        };
        let waiter = thread::spawn(wait(0));
        let ringer = thread::spawn({
            let (bell, there) = (Rc::clone(&bell), Rc::clone(&there));
            move || {
                let life = Life::long();
                let bell = Bell(Word32(&bell, &life));
                for there in there.iter() {
                    there.store(1, Ordering::Release);
                    bell.ring();
                }
            }
        });
        wait(1)();
        join([waiter, ringer]);
    });
}

/// The same with a bell that rings only if somebody listens.
#[test]
fn who_listens_to_a_bell_is_woken() {
    explore(3, || {
        let bell = Rc::new(Memory32::new());
        let there = Rc::new(AtomicU32::new(0));
        let ring = || {
            let (bell, there) = (Rc::clone(&bell), Rc::clone(&there));
            thread::spawn(move || {
                let life = Life::long();
                let bell = Bell(Word32(&bell, &life));
                there.fetch_add(1, Ordering::AcqRel);
                bell.ring_if_heard();
            })
        };
        let ringers = [ring(), ring()];
        let life = Life::long();
        let own = Bell(Word32(&bell, &life));
        loop {
            let heard = own.listen();
            if there.load(Ordering::Acquire) == 2 {
                break;
            }
            own.sleep(heard, None);
        }
        join(ringers);
    });
}

/// A batch of two jobs, and the next one in the same slot, in the hands of the same worker.
struct Batches {
    state: Memory32,
    progress: AtomicU64,
    /// The batch that is in the slot; the test's own.
    batch: Cell<usize>,
    finished: Cell<usize>,
    killed: Cell<bool>,
}

impl Batches {
    /// True if all was done; else the worker waits for its death.
    fn work(&self) -> bool {
        let life = Life::long();
        let (state, progress) = (Word32(&self.state, &life), Long64(&self.progress, &life));
        for batch in 1..=2 {
            if batch == 2 {
                progress::reset(&progress);
                self.batch.set(2);
                self.finished.set(0);
            }
            state.store(queue::taken_by(0));
            for job in 0..2 {
                if !progress::begin(&progress, job) || !progress::finish(&progress, job) {
                    return false;
                }
                self.finished.set(job + 1);
            }
            while !queue::give_back(&state, 0) {
                // Death is no access to memory; it comes while the worker waits.
                if self.killed.get() {
                    return false;
                }
                thread::yield_now();
            }
        }
        true
    }
}

impl Batches {
    /// The zygote's judgement: no later than at which batch it looked, what it saw, and, if it could not condemn that, what
    /// it saw then of the same batch.
    fn judge(&self) -> Option<(usize, Seen, Option<Seen>)> {
        let life = Life::long();
        let (state, progress) = (Word32(&self.state, &life), Long64(&self.progress, &life));
        let seen = progress::look(&progress);
        let batch = self.batch.get();
        if !queue::hold(&state, 0) {
            return None;
        }
        if progress::condemn(&progress, seen) {
            self.killed.set(true);
            return Some((batch, seen, None));
        }
        // Seen in the first batch, and that is still in the slot.
        let after = (self.batch.get() == 1).then(|| progress::look(&progress));
        queue::let_go(&state, 0);
        Some((batch, seen, after))
    }
}

/// A job that the zygote has condemned never counts as done, and its worker never leaves it for another; a job that
/// was done, or stood in the slot before, is not condemned.
#[test]
fn a_job_is_done_or_condemned() {
    explore(5, || {
        let all = Rc::new(Batches {
            state: Memory32::new(),
            progress: AtomicU64::new(0),
            batch: Cell::new(1),
            finished: Cell::new(0),
            killed: Cell::new(false),
        });
        let worker = thread::spawn({
            let all = Rc::clone(&all);
            move || all.work()
        });
        let zygote = thread::spawn({
            let all = Rc::clone(&all);
            move || all.judge()
        });
        let judged = zygote.join().expect("no panic");
        let left = worker.join().expect("no panic");
        assert_eq!(left, !all.killed.get(), "who is killed has not left, who is not killed gets on");
        let Some((batch, seen, after)) = judged else { return };
        let life = Life::long();
        let progress = Long64(&all.progress, &life);
        if all.killed.get() {
            assert!(all.batch.get() <= batch, "the look was at an earlier batch");
            assert_eq!(all.finished.get(), seen.job(), "the job was not done");
            assert_eq!(progress::read(&progress), (seen.job(), Phase::Condemned));
        }
        if let Some(after) = after {
            assert!(after.job() > seen.job(), "it could have been condemned");
        }
    });
}
