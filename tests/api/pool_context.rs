//! Workers know who they are, run hooks at their start and end, and draw random numbers that were forked.
#![expect(unsafe_code, reason = "old generations are released")]

use crate::case::{Outcome, passed, skipped};
use crate::look::{Bytes, SOON, frozen_pages};
use crate::pool_kit::{data, in_time, table};
use cowbell::arena::{Arena, Frozen};
use cowbell::fork;
use cowbell::pool::{Buffer, JobError, Pool, PoolBuilder, Shutdown, Ticket, WorkerContext, WorkerInfo};
use cowbell::sys::page_size;
use libtest_mimic::{Failed, Trial};
use rand::Rng;
use std::collections::{BTreeSet, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const WORKERS: usize = 3;
const DRAWS: usize = 1000;

/// The draws of one worker: `rand`'s numbers, and a hash whose keys are random, in its own thread and in another.
type Drawn = (Vec<u64>, u64, u64);

fn draw() -> Drawn {
    let hash = || RandomState::new().hash_one(1);
    let mut random = rand::rng();
    let numbers = (0..DRAWS).map(|_| random.random()).collect();
    (numbers, hash(), std::thread::spawn(hash).join().expect("it does not panic"))
}

/// In a job: waits until so many have come in all, so that each worker has one of them.
fn meet(here: &AtomicU64, wanted: u64) {
    here.fetch_add(1, Ordering::SeqCst);
    while here.load(Ordering::SeqCst) < wanted {
        std::thread::yield_now();
    }
}

/// The numbers that each of three workers draws, of a program that has drawn before.
fn drawn(settings: PoolBuilder) -> Result<Vec<Drawn>, Failed> {
    let _used: (u64, RandomState) = (rand::random(), RandomState::new());
    let here = &table(1)?[0];
    let pool = settings.workers(WORKERS).spawn(data()?, move |_, (): ()| {
        meet(here, WORKERS as u64);
        draw()
    })?;
    let results = in_time(SOON, || pool.map([(); WORKERS]).chunk(1).collect::<Result<Vec<_>, _>>())??;
    pool.shutdown(Shutdown::Drain)?;
    Ok(results)
}

fn workers_draw_equal_numbers_unless_they_seed_their_generators_anew() -> Outcome {
    let repeated = drawn(Pool::builder())?;
    assert!(
        repeated.iter().all(|drawn| drawn.0 == repeated[0].0 && drawn.1 == repeated[0].1),
        "this is what POOL.md warns of"
    );
    let threads: BTreeSet<u64> = repeated.iter().map(|drawn| drawn.2).collect();
    assert_eq!(threads.len(), WORKERS, "a new thread has keys of its own");

    let anew = drawn(Pool::builder().on_worker_start(|_| rand::rng().reseed().expect("getrandom")))?;
    let numbers: HashSet<u64> = anew.iter().flat_map(|drawn| drawn.0.iter().copied()).collect();
    assert_eq!(numbers.len(), WORKERS * DRAWS, "not one is drawn twice");
    assert!(anew.iter().all(|drawn| drawn.1 == anew[0].1), "RandomState cannot be seeded anew, as POOL.md says");
    passed()
}

/// A worker as a job saw it: process, index, generation, seed.
type Seen = (i32, usize, u64, [u8; 32]);

fn seen(worker: &WorkerInfo) -> Seen {
    (worker.pid(), worker.index(), worker.generation(), worker.seed())
}

fn numbers(generation: u64) -> cowbell::Result<Frozen<u64>> {
    Arena::builder(format!("context {generation}")).capacity(1 << 20).build()?.freeze(generation)
}

fn a_job_knows_its_workers_index_generation_seed_and_data() -> Outcome {
    let here = &table(1)?[0];
    let pool =
        Pool::builder().workers(WORKERS).spawn_with(numbers(0)?, |worker: &WorkerContext<u64>, wanted: u64| {
            if wanted == 0 {
                std::process::abort();
            }
            meet(here, wanted);
            assert_eq!((*worker.root(), **worker.frozen()), (worker.generation(), worker.generation()));
            seen(worker)
        })?;
    let mut all: Vec<Seen> = Vec::new();
    for generation in 0..4 {
        if generation > 0 {
            let old = pool.replace(numbers(generation)?)?;
            // SAFETY: nobody in this process looks at the old generation any more.
            unsafe { old.release() }?;
        }
        assert!(matches!(pool.submit(0)?.wait(), Err(JobError::Died { .. })));
        let wanted = (generation + 1) * WORKERS as u64;
        let workers = in_time(SOON, || pool.map([wanted; WORKERS]).chunk(1).collect::<Result<Vec<_>, _>>())??;
        assert!(workers.iter().all(|worker| worker.2 == generation), "{workers:?}");
        assert_eq!(workers.iter().map(|worker| worker.1).collect::<BTreeSet<_>>(), (0..WORKERS).collect());
        all.extend(workers);
    }
    let (pids, seeds): (BTreeSet<i32>, BTreeSet<[u8; 32]>) = all.iter().map(|worker| (worker.0, worker.3)).unzip();
    assert_eq!((pids.len(), seeds.len()), (all.len(), all.len()), "each worker has a seed of its own, and one only");
    passed()
}

/// The numbers that the first of two hooks adds, and the second.
const FIRST: u64 = 1;
const SECOND: u64 = 1 << 32;

fn add(count: &'static AtomicU64, what: u64) -> impl Fn(&WorkerInfo) + Send + Sync + 'static {
    move |_| {
        count.fetch_add(what, Ordering::SeqCst);
    }
}

/// Counts behind the first hook of the same worker.
fn add_second(count: &'static AtomicU64) -> impl Fn(&WorkerInfo) + Send + Sync + 'static {
    move |_| {
        let before = count.fetch_add(SECOND, Ordering::SeqCst);
        assert!(before % SECOND > before / SECOND, "the first hook was called before");
    }
}

fn hooks_run_once_in_each_worker_in_their_order() -> Outcome {
    let counts = table(2)?;
    let builder = Pool::builder()
        .workers(2)
        .on_worker_start(add(&counts[0], FIRST))
        .on_worker_start(add_second(&counts[0]))
        .on_worker_end(add(&counts[1], FIRST))
        .on_worker_end(add_second(&counts[1]));
    let pool = builder.spawn(numbers(0)?, |_, dies: bool| {
        // Before a worker's first job its start is over.
        let started = counts[0].load(Ordering::SeqCst);
        if dies {
            std::process::abort();
        }
        started
    })?;
    let started = pool.submit(false)?.wait()?;
    assert!(started >= FIRST + SECOND, "{started:#x}");
    assert!(pool.submit(true)?.wait().is_err());
    let old = pool.replace(numbers(1)?)?;
    pool.submit(false)?.wait()?;
    drop(old);
    let exits = pool.shutdown(Shutdown::Drain)?;
    let left = exits.iter().filter(|exit| exit.left_by_itself).count() as u64;
    let (starts, ends) = (counts[0].load(Ordering::SeqCst), counts[1].load(Ordering::SeqCst));
    assert_eq!(starts, exits.len() as u64 * (FIRST + SECOND), "{starts:#x}");
    assert_eq!(ends, left * (FIRST + SECOND), "whoever dies calls none: {ends:#x}, {exits:?}");
    assert!(left >= 2 && (left as usize) < exits.len(), "{exits:?}");
    passed()
}

/// A buffer that each worker makes at its start and keeps.
static KEPT: Mutex<Option<Buffer<u8>>> = Mutex::new(None);

fn a_buffer_of_the_start_stays_the_workers_own() -> Outcome {
    let settings = Pool::builder().workers(1).on_worker_start(|_| {
        let sevens = Buffer::copy_of(&[7u8; 4096]).expect("room");
        *KEPT.lock().expect("nobody else has it") = Some(sevens);
    });
    let pool = settings.spawn(numbers(0)?, |_, with: u8| {
        let result = Buffer::copy_of(&[with; 4096]).expect("room");
        let kept = KEPT.lock().expect("nobody else has it");
        let is_whole = kept.as_ref().is_some_and(|kept| kept.iter().all(|&byte| byte == 7));
        (is_whole, result)
    })?;
    for with in 0..3 {
        let (is_whole, result) = pool.submit(with)?.wait()?;
        assert!(is_whole, "a job's result lies where the buffer does");
        assert!(result.iter().all(|&byte| byte == with));
    }
    pool.shutdown(Shutdown::Drain)?;
    passed()
}

fn a_pool_that_is_cancelled_begins_no_hook_at_the_end() -> Outcome {
    let count = &table(1)?[0];
    // Idle workers wake as the pool closes, and are killed a moment later: some of fifty pools would have begun one.
    for _ in 0..50 {
        let pool = Pool::builder().workers(2).on_worker_end(add(count, 1)).spawn(numbers(0)?, |_, (): ()| ())?;
        pool.submit(())?.wait()?;
        pool.shutdown(Shutdown::Cancel)?;
    }
    assert_eq!(count.load(Ordering::SeqCst), 0);
    passed()
}

fn a_worker_whose_hook_changes_its_user_dies_with_its_zygote_as_before() -> Outcome {
    if !rustix::process::geteuid().is_root() {
        return skipped("only root may become another user");
    }
    const NOBODY: libc::uid_t = 65534;
    let settings = Pool::builder().workers(1).on_worker_start(|_| {
        // SAFETY: setresuid(2) touches no memory of this process, which has one thread.
        assert_eq!(unsafe { libc::setresuid(NOBODY, NOBODY, NOBODY) }, 0, "root may");
    });
    let pool = settings.spawn(numbers(0)?, |_, (): ()| {
        let mut signal = 0;
        // SAFETY: PR_GET_PDEATHSIG writes an int to the address, which is that of a local variable.
        let asked = unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal) };
        // SAFETY: getuid(2) touches no memory.
        (asked, signal, unsafe { libc::getuid() })
    })?;
    assert_eq!(pool.submit(())?.wait()?, (0, libc::SIGKILL, NOBODY));
    pool.shutdown(Shutdown::Drain)?;
    passed()
}

fn a_start_that_panics_is_a_death_and_the_pool_says_that_it_is_gone() -> Outcome {
    let settings = Pool::builder().workers(2).on_worker_start(|_| panic!("no licence"));
    let pool = settings.spawn(data()?, |_, (): ()| ())?;
    let error = in_time(SOON, || pool.submit(()).and_then(Ticket::wait))?;
    assert!(matches!(error, Err(JobError::PoolGone(_))), "{error:?}");
    assert!(pool.stats().deaths > 2);
    passed()
}

fn a_populated_worker_reads_without_a_fault() -> Outcome {
    const PAGES: usize = 2048;
    for populate in [false, true] {
        let pool = Pool::builder().workers(1).populate(populate).spawn(
            frozen_pages("populated", PAGES)?,
            |bytes: &Bytes, (): ()| {
                let before = fork::page_faults();
                std::hint::black_box(
                    bytes
                        .iter()
                        .step_by(page_size().bytes())
                        .fold(0, |sum: u64, byte| sum.wrapping_add(u64::from(byte.load(Ordering::Relaxed)))),
                );
                fork::page_faults() - before
            },
        )?;
        let faults = pool.submit(())?.wait()?;
        assert_eq!(faults < 16, populate, "{faults} faults");
        pool.shutdown(Shutdown::Drain)?;
    }
    passed()
}

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    claims![
        workers_draw_equal_numbers_unless_they_seed_their_generators_anew,
        a_job_knows_its_workers_index_generation_seed_and_data,
        hooks_run_once_in_each_worker_in_their_order,
        a_buffer_of_the_start_stays_the_workers_own,
        a_pool_that_is_cancelled_begins_no_hook_at_the_end,
        a_worker_whose_hook_changes_its_user_dies_with_its_zygote_as_before,
        a_populated_worker_reads_without_a_fault,
        a_start_that_panics_is_a_death_and_the_pool_says_that_it_is_gone,
    ]
}
