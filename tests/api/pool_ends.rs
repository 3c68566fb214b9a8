//! The ends of pools: by whatever way they end, no process of theirs stays behind.

use crate::apart::Process;
use crate::case::{Outcome, Turns, passed};
use crate::look::{SOON, descriptors, ends_soon, has_children, until};
use crate::pool_faults::mortal;
use crate::pool_kit::{
    Gate, adopt_orphans, all_end_soon, alone, data, descendants, pool_mappings, table, worker_pidfds, zygote_of,
};
use cowbell::fork::Ended;
use cowbell::pool::{JobError, OnSignal, Pool, Shutdown, Signal};
use cowbell::sys::{pidfd, process, signal};
use libtest_mimic::{Failed, Trial};
use std::os::unix::process::CommandExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

fn waiting_threads_learn_soon_that_the_zygote_is_gone_and_no_process_stays() -> Outcome {
    adopt_orphans()?;
    for signal in [signal::KILL, libc::SIGTERM] {
        let gate = Gate::new()?;
        let builder = Pool::builder().workers(3).zygote_signal(Signal::Terminate, OnSignal::Default);
        let pool = builder.spawn(data()?, move |_, job: u64| {
            gate.pass();
            job
        })?;
        let (zygote, workers) = (zygote_of(&pool)?, worker_pidfds(&pool)?);
        let held = descendants(process::pid());
        assert_eq!(held.len(), 1 + 2 * 3, "a zygote, workers and their keepers");
        std::thread::scope(|scope| -> Result<(), Failed> {
            let pool = &pool;
            let ticket = pool.submit(1)?;
            let many: Vec<_> = (0..5).map(|job| pool.submit(job)).collect::<Result<_, _>>()?;
            scope.spawn(move || assert!(ticket.wait().is_err_and(|e| gone(&e))));
            scope.spawn(move || assert!(cowbell::pool::as_completed(many).all(|(_, r)| r.is_err_and(|e| gone(&e)))));
            scope.spawn(move || assert!(pool.map(0..30).all(|result| result.is_err_and(|e| gone(&e)))));
            scope.spawn(move || assert!(pool.map_unordered(0..30).all(|(_, result)| result.is_err_and(|e| gone(&e)))));
            gate.reached()?;
            let begun = Instant::now();
            signal::send(zygote, signal);
            for worker in &workers {
                ends_soon(worker, "a worker")?;
            }
            assert!(begun.elapsed() < Duration::from_secs(10));
            Ok(())
        })?;
        assert!(matches!(pool.submit(1), Err(JobError::PoolGone(_)) | Ok(_)));
        until("the next call knows", || matches!(pool.submit(1).and_then(|t| t.wait()), Err(JobError::PoolGone(_))))?;
        assert!(pool.take_exits().is_err());
        assert!(pool.shutdown(Shutdown::Drain).is_err());
        all_end_soon()?;
        alone()?;
    }
    passed()
}

fn gone(e: &JobError) -> bool {
    matches!(e, JobError::PoolGone(why) if why.contains("zygote"))
}

/// The fate of a parent.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Signal(i32),
    /// The parent ends without dropping its pool.
    Exits,
    /// The parent becomes another program, which lives on.
    Executes,
}

fn when_the_parent_ends_no_process_of_the_pool_stays() -> Outcome {
    adopt_orphans()?;
    for (fate, busy) in [
        (Fate::Signal(libc::SIGKILL), false),
        (Fate::Signal(libc::SIGKILL), true),
        (Fate::Signal(libc::SIGTERM), true),
        (Fate::Signal(libc::SIGABRT), true),
        (Fate::Exits, false),
        (Fate::Exits, true),
        (Fate::Executes, false),
        (Fate::Executes, true),
    ] {
        let (mine, theirs) = Turns::new()?;
        let pids = table(1)?;
        let parent = Process::start(|| {
            let made = || -> Result<(), Failed> {
                let gate = Gate::new()?;
                let pool = Pool::builder().workers(2).spawn(data()?, move |_, job: u64| {
                    gate.pass();
                    job
                })?;
                let _tickets = busy.then(|| [pool.submit(1), pool.submit(2), pool.submit(3)]);
                if busy {
                    gate.reached()?;
                }
                pids[0].store(process::pid() as u64, Ordering::SeqCst);
                theirs.give();
                theirs.take();
                match fate {
                    Fate::Executes => Err(std::process::Command::new("sleep").arg("1000").exec().into()),
                    _ => std::process::exit(33),
                }
            };
            i32::from(made().is_err())
        });
        if !mine.take() {
            return Err("the parent made no pool".into());
        }
        let pid = pids[0].load(Ordering::SeqCst) as i32;
        let below: Vec<_> = descendants(pid).into_iter().map(pidfd::open).collect::<Result<_, _>>()?;
        assert_eq!(below.len(), 1 + 2 * 2);
        match fate {
            Fate::Signal(signal) => signal::send(pid, signal),
            Fate::Exits | Fate::Executes => mine.give(),
        }
        for process in below {
            ends_soon(process, &format!("a process of the pool, {fate:?}"))?;
        }
        match fate {
            Fate::Signal(signal) => assert_eq!(parent.end_within(SOON), Some(Ended::Signaled(signal))),
            Fate::Exits => assert_eq!(parent.end_within(SOON), Some(Ended::Exited(33))),
            Fate::Executes => drop(parent),
        }
        all_end_soon()?;
    }
    passed()
}

fn ctrl_c_reaches_the_parent_only() -> Outcome {
    let pool = mortal(Pool::builder().workers(2))?;
    let zygote = zygote_of(&pool)?;
    for pid in pool.workers().into_iter().chain([zygote]) {
        signal::send(pid, libc::SIGINT);
    }
    assert_eq!(pool.map((0..50).map(|job| (job, None))).filter(Result::is_ok).count(), 50);
    assert_eq!(pool.stats().deaths, 0);
    passed()
}

fn nothing_stays_behind_whatever_way_a_pool_ends() -> Outcome {
    adopt_orphans()?;
    // The first pool makes these for good: libc's and the standard library's own.
    drop(mortal(Pool::builder().workers(1))?);
    let frozen = data()?;
    let before = (descriptors(), crate::look::maps().len());
    for end in 0..6 {
        for round in 0..3 {
            let gate = Gate::new()?;
            let pool = Pool::builder().workers(2).spawn(frozen.clone(), move |_, job: u64| {
                if job > 0 {
                    gate.pass();
                }
                vec![job; 100]
            })?;
            assert_eq!(pool.submit(0)?.wait(), Ok(vec![0; 100]));
            let tickets: Vec<_> = (1..10).map(|job| pool.submit(job)).collect::<Result<_, _>>()?;
            gate.reached()?;
            let workers = worker_pidfds(&pool)?;
            let cancelled = |tickets: Vec<cowbell::pool::Ticket<Vec<u64>>>| {
                tickets.into_iter().all(|ticket| ticket.wait() == Err(JobError::Cancelled))
            };
            match end {
                0 => {
                    drop(pool);
                    assert!(cancelled(tickets));
                }
                1 => {
                    let exits = pool.shutdown(Shutdown::Cancel)?;
                    assert_eq!(exits.len(), 2);
                    assert!(cancelled(tickets));
                }
                2 => {
                    gate.open();
                    let exits = pool.shutdown(Shutdown::Drain)?;
                    assert!(exits.len() == 2 && exits.iter().all(|exit| exit.left_by_itself), "{exits:?}");
                    for (job, ticket) in (1..).zip(tickets) {
                        assert_eq!(ticket.wait(), Ok(vec![job; 100]));
                    }
                }
                3 => {
                    drop(tickets);
                    drop(pool);
                }
                4 => {
                    let waits = std::thread::spawn(move || cancelled(tickets));
                    drop(pool);
                    assert!(waits.join().map_err(|_| "it panicked")?);
                }
                _ => {
                    signal::kill(zygote_of(&pool)?);
                    drop(pool);
                    drop(tickets);
                }
            }
            if end == 5 {
                all_end_soon()?;
            }
            for worker in workers {
                assert!(
                    pidfd::wait_end(std::os::fd::AsFd::as_fd(&worker), Some(Duration::ZERO))?,
                    "a worker, end {end}"
                );
            }
            assert!(!has_children(), "end {end}: {:?}", descendants(process::pid()));
            assert_eq!(pool_mappings(), 0, "end {end}");
            assert_eq!(descriptors(), before.0, "end {end}, round {round}");
        }
    }
    // Each round's gate is a mapping that is kept.
    assert!(crate::look::maps().len() <= before.1 + 18 + 4, "{:#?}", crate::look::maps());
    passed()
}

pub fn trials() -> Vec<Trial> {
    claims![
        waiting_threads_learn_soon_that_the_zygote_is_gone_and_no_process_stays,
        when_the_parent_ends_no_process_of_the_pool_stays,
        ctrl_c_reaches_the_parent_only,
        nothing_stays_behind_whatever_way_a_pool_ends,
    ]
}
