//! Jobs without end learn that their worker is to leave: there is newer data, or the pool drains.
#![expect(unsafe_code, reason = "old generations are released")]

use crate::apart::Process;
use crate::case::{Outcome, Turns, passed, soak};
use crate::look::{SOON, ends_soon};
use crate::pool_kit::{Gate, adopt_orphans, all_end_soon, descendants, in_time, table};
use cowbell::arena::{Arena, Frozen};
use cowbell::fork::{self, Ended, ForkOptions};
use cowbell::pool::{JobError, Pool, Shutdown, Ticket, WorkerContext};
use cowbell::sys::{pidfd, process, signal};
use libtest_mimic::{Failed, Trial};
use std::sync::atomic::{AtomicU64, Ordering};

const WORKERS: usize = 2;

fn numbers(generation: u64) -> cowbell::Result<Frozen<u64>> {
    Arena::builder(format!("leaving {generation}")).capacity(1 << 20).build()?.freeze(generation)
}

/// Moves the pool to the next data.
fn replace<J, R>(pool: &Pool<u64, J, R>, generation: u64) -> Result<(), Failed> {
    let old = pool.replace(numbers(generation)?)?;
    // SAFETY: nobody in this process looks at the old generation any more.
    unsafe { old.release() }?;
    Ok(())
}

/// A pool whose jobs last until their worker is to leave, and the number of them that have begun. The job says how it waits: in the kernel or awake.
fn endless() -> cowbell::Result<(Pool<u64, bool, u64>, &'static AtomicU64)> {
    let begun = &table(1)?[0];
    let pool = Pool::builder().workers(WORKERS).spawn_with(
        numbers(0)?,
        move |worker: &WorkerContext<u64>, sleeps: bool| {
            assert_eq!(worker.generation(), *worker.root());
            begun.fetch_add(1, Ordering::SeqCst);
            if sleeps {
                worker.wait_to_leave();
            }
            while !worker.should_leave() {
                std::hint::spin_loop();
            }
            *worker.root()
        },
    )?;
    Ok((pool, begun))
}

/// Submits a job for each worker, one that sleeps and one that does not.
fn fill(pool: &Pool<u64, bool, u64>) -> Result<Vec<Ticket<u64>>, JobError> {
    (0..WORKERS).map(|at| pool.submit(at % 2 == 0)).collect()
}

fn wait(tickets: Vec<Ticket<u64>>) -> Result<Vec<u64>, Failed> {
    Ok(in_time(SOON, || tickets.into_iter().map(Ticket::wait).collect::<Result<_, _>>())??)
}

/// Waits until so many jobs have begun.
fn reached(begun: &AtomicU64, jobs: u64) -> Result<(), Failed> {
    crate::look::until("the jobs have begun", || begun.load(Ordering::SeqCst) == jobs)
}

fn a_job_without_end_hears_of_newer_data_and_of_the_drain_and_of_nothing_else() -> Outcome {
    let (pool, begun) = endless()?;
    for generation in 0..3 {
        let tickets = fill(&pool)?;
        reached(begun, (generation + 1) * WORKERS as u64)?;
        // A signal to the group, and a look, are none of its business.
        pool.workers().into_iter().for_each(|worker| signal::send(worker, libc::SIGTERM));
        assert_eq!(pool.worker_stats()?.len(), WORKERS);
        assert!(tickets.iter().all(|ticket| !ticket.is_done()));
        if generation < 2 {
            replace(&pool, generation + 1)?;
            assert_eq!(wait(tickets)?, [generation; WORKERS]);
            continue;
        }
        let exits = in_time(SOON, || pool.shutdown(Shutdown::Drain))??;
        assert_eq!(wait(tickets)?, [generation; WORKERS], "they ended in order");
        assert!(exits.iter().all(|exit| exit.left_by_itself), "{exits:?}");
        return passed();
    }
    Err("the last one drains".into())
}

fn jobs_that_wait_behind_endless_ones_have_their_turn_when_the_pool_drains() -> Outcome {
    let (pool, _) = endless()?;
    let tickets: Vec<_> = (0..5).map(|_| fill(&pool)).collect::<Result<_, _>>()?;
    in_time(SOON, || pool.shutdown(Shutdown::Drain))??;
    assert_eq!(wait(tickets.into_iter().flatten().collect())?, [0; 5 * WORKERS]);
    passed()
}

fn no_word_to_leave_is_lost_however_soon_it_comes() -> Outcome {
    for round in 0..if soak() { 5000 } else { 100 } {
        let (pool, begun) = endless()?;
        for generation in 0..3 {
            let tickets = fill(&pool)?;
            reached(begun, (generation + 1) * WORKERS as u64)?;
            // The jobs are just falling asleep.
            (0..round % 20 * 50).for_each(|_| std::hint::spin_loop());
            if generation < 2 {
                replace(&pool, generation + 1)?;
                assert_eq!(wait(tickets)?, [generation; WORKERS]);
            }
        }
        in_time(SOON, || pool.shutdown(Shutdown::Drain))??;
    }
    passed()
}

fn hooks_know_whether_their_worker_is_to_leave() -> Outcome {
    let words = table(2)?;
    let note = |word: &'static AtomicU64| {
        move |worker: &cowbell::pool::WorkerInfo| {
            word.fetch_or(1 << u32::from(worker.should_leave()), Ordering::SeqCst);
        }
    };
    let pool = Pool::builder()
        .workers(1)
        .on_worker_start(note(&words[0]))
        .on_worker_end(note(&words[1]))
        .spawn(numbers(0)?, |_, (): ()| ())?;
    pool.submit(())?.wait()?;
    assert_eq!((words[0].load(Ordering::SeqCst), words[1].load(Ordering::SeqCst)), (1, 0));
    pool.shutdown(Shutdown::Drain)?;
    assert_eq!(words[1].load(Ordering::SeqCst), 2);
    passed()
}

fn a_process_that_the_worker_forks_does_not_wait() -> Outcome {
    let pool = Pool::builder().workers(1).spawn_with(numbers(0)?, |worker: &WorkerContext<u64>, (): ()| {
        let child = fork::spawn(&ForkOptions::new().last_census(false), |_| {
            worker.wait_to_leave();
            i32::from(!worker.should_leave())
        });
        let ended = child.and_then(|mut child| child.wait()).expect("a child").ended;
        (ended == Ended::Exited(0), worker.should_leave())
    })?;
    assert_eq!(in_time(SOON, || pool.submit(()).and_then(Ticket::wait))??, (true, false));
    pool.shutdown(Shutdown::Drain)?;
    passed()
}

fn a_thread_that_waits_to_leave_ends_with_its_pool() -> Outcome {
    adopt_orphans()?;
    let (mine, theirs) = Turns::new()?;
    let pids = table(1)?;
    let parent = Process::start(|| {
        let made = || -> Result<(), Failed> {
            let gate = Gate::new()?;
            pids[0].store(process::pid() as u64, Ordering::SeqCst);
            let body = move |worker: &WorkerContext<u64>, (): ()| {
                let worker = **worker;
                let waits = std::thread::spawn(move || worker.wait_to_leave());
                gate.pass();
                waits.join().expect("it does not panic");
            };
            let pool = Pool::builder().workers(1).spawn_with(numbers(0)?, body)?;
            let _ticket = pool.submit(())?;
            gate.reached()?;
            gate.open();
            theirs.give();
            theirs.take();
            Ok(())
        };
        i32::from(made().is_err())
    });
    if !mine.take() {
        return Err("the parent made no pool".into());
    }
    let pid = pids[0].load(Ordering::SeqCst) as i32;
    let below: Vec<_> = descendants(pid).into_iter().map(pidfd::open).collect::<Result<_, _>>()?;
    assert_eq!(below.len(), 3, "zygote, worker, keeper");
    signal::kill(pid);
    for process in below {
        ends_soon(process, "a process of the pool")?;
    }
    assert_eq!(parent.end_within(SOON), Some(Ended::Signaled(signal::KILL)));
    all_end_soon()?;
    passed()
}

pub fn trials() -> Vec<Trial> {
    claims![
        a_job_without_end_hears_of_newer_data_and_of_the_drain_and_of_nothing_else,
        jobs_that_wait_behind_endless_ones_have_their_turn_when_the_pool_drains,
        no_word_to_leave_is_lost_however_soon_it_comes,
        hooks_know_whether_their_worker_is_to_leave,
        a_process_that_the_worker_forks_does_not_wait,
        a_thread_that_waits_to_leave_ends_with_its_pool,
    ]
}
