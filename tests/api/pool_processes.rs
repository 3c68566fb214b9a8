//! Pools and the processes around them: forked children, workers that fork or print, threads, and signals that are ignored.

use crate::apart::apart;
use crate::case::{Outcome, passed};
use crate::look::{Bytes, descriptors, has_children, original, until, wait};
use crate::pool_kit::{Gate, data, doubles, doubling, gated, pool_mappings, table};
use cowbell::fork::{self, ForkOptions};
use cowbell::pool::{JobError, Pool, Shutdown};
use libtest_mimic::Trial;
use std::io::Write;
use std::sync::atomic::Ordering;

fn what_workers_print_is_seen() -> Outcome {
    let left = apart(|| {
        let pool = Pool::builder().workers(2).spawn(data()?, |_, job: u64| {
            println!("job {job} here");
            // In one piece: standard error has no buffer, and two workers write to it.
            std::io::stderr().write_all(format!("job {job} there\n").as_bytes()).expect("it takes everything");
        })?;
        for result in pool.map(0..20) {
            result?;
        }
        pool.shutdown(Shutdown::Drain)?;
        Ok(())
    })?;
    assert!(left.success(), "{left:?}");
    for job in 0..20 {
        assert_eq!(left.stdout.matches(&format!("job {job} here\n")).count(), 1, "{left:?}");
        assert_eq!(left.stderr.matches(&format!("job {job} there\n")).count(), 1, "{left:?}");
    }
    passed()
}

fn a_pool_is_made_before_threads_are_started() -> Outcome {
    let gate = Gate::new()?;
    let thread = std::thread::Builder::new().name("too early".to_owned()).spawn(move || gate.pass())?;
    gate.reached()?;
    let before = (descriptors(), pool_mappings());
    let e = doubling(1).expect_err("there is a thread");
    assert!(e.threads().is_some_and(|threads| threads.iter().any(|thread| thread.name == "too early")), "{e}");
    assert!(e.to_string().contains("before the program starts threads"), "{e}");
    gate.open();
    thread.join().map_err(|_| "it panicked")?;
    assert!(!has_children());
    // The data set of the attempt is freed with it but for its addresses.
    assert_eq!(pool_mappings(), before.1);
    assert_eq!(doubling(1)?.submit(4)?.wait(), Ok(8));
    passed()
}

/// A pool, tickets and iterators that a forked child has copies of.
fn in_a_forked_child_the_pool_is_gone_and_its_copies_harm_nobody() -> Outcome {
    let (gate, begun) = (Gate::new()?, table(64)?);
    let pool = Pool::builder().workers(1).spawn(data()?, move |_, job: usize| {
        begun[job].fetch_add(1, Ordering::SeqCst);
        if job == 0 {
            gate.pass();
        }
        vec![job as u64; 500]
    })?;
    let finished = pool.submit(1)?;
    until("it is done", || finished.is_done())?;
    let unread = pool.submit(2)?;
    until("it has run", || pool.stats().jobs == 2)?;
    let (running, waiting) = (pool.submit(0)?, pool.submit(3)?);
    gate.reached()?;
    let mut kept = Some((pool, finished, unread, running, waiting));
    let gone = |error: &JobError| matches!(error, JobError::PoolGone(why) if why.contains("made it"));
    // Taken out of its place in the child alone.
    let exit = {
        let kept = &mut kept;
        let mut child = fork::spawn(&ForkOptions::new(), move |_| {
            let (pool, finished, unread, running, waiting) = kept.take().expect("it was there");
            assert!(pool.submit(4).is_err_and(|e| gone(&e)));
            let mapped: Vec<_> = pool.map(0..3).collect();
            assert!(mapped.len() == 3 && mapped.iter().all(|result| result.as_ref().is_err_and(gone)), "{mapped:?}");
            assert!(waiting.cancel().is_err(), "it is not ours to cancel");
            assert!(running.cancel().is_err(), "it is not ours to cancel");
            // Results that this process had read already may be kept.
            let _kept = finished.try_wait();
            assert!(unread.wait().is_err_and(|e| gone(&e)));
            assert!(pool.take_exits().is_err());
            drop(waiting);
            drop(running);
            drop(pool);
        })?;
        wait(&mut child)?
    };
    assert!(exit.success(), "{:?}", exit.panic);
    let (pool, finished, unread, running, waiting) = kept.take().ok_or("the child had a copy")?;
    gate.open();
    assert_eq!(finished.wait(), Ok(vec![1; 500]));
    assert_eq!(unread.wait(), Ok(vec![2; 500]));
    assert_eq!(running.wait(), Ok(vec![0; 500]));
    assert_eq!(waiting.wait(), Ok(vec![3; 500]));
    for (at, result) in pool.map(10..60).enumerate() {
        assert_eq!(result?, vec![10 + at as u64; 500]);
    }
    assert_eq!((pool.stats().deaths, pool.stats().started), (0, 1));
    passed()
}

fn an_iterator_dropped_in_a_forked_child_takes_nothing_back() -> Outcome {
    let (gate, pool) = gated(1, 1)?;
    let mut results = Some(pool.map_unordered(0..100).chunk(1));
    assert_eq!(results.as_mut().and_then(Iterator::next), Some((0, Ok(0))));
    gate.reached()?;
    let exit = wait(&mut fork::spawn(&ForkOptions::new(), |_| drop(results.take()))?)?;
    assert!(exit.success(), "{:?}", exit.panic);
    gate.open();
    let mut rest: Vec<_> = results.ok_or("the child had a copy")?.collect();
    rest.sort_by_key(|(at, _)| *at);
    assert_eq!(rest, (1..100).map(|job| (job, Ok(job as u64))).collect::<Vec<_>>());
    passed()
}

fn a_worker_may_fork_threads_and_children() -> Outcome {
    let pool = Pool::builder().workers(2).spawn(data()?, |data: &'static Bytes, job: usize| {
        let read = std::thread::spawn(move || u64::from(data[job].load(Ordering::Relaxed)));
        let sum = read.join().expect("no panic");
        let mut child = fork::spawn(&ForkOptions::new(), |_| i32::from(data[job].load(Ordering::Relaxed) == 0))
            .expect("one thread again");
        let exit = child.wait().expect("a child of the worker's");
        (sum, exit.success())
    })?;
    for (at, result) in pool.map(0..20).enumerate() {
        assert_eq!(result?, (u64::from(original(at)), true));
    }
    passed()
}

fn a_program_that_ignores_sigchld_may_have_a_pool() -> Outcome {
    ignore_sigchld();
    let pool = doubling(2)?;
    assert_eq!(pool.map(0..100).collect::<Result<Vec<_>, _>>()?, doubles(100));
    let exits = pool.shutdown(Shutdown::Drain)?;
    assert!(exits.len() == 2 && exits.iter().all(|exit| exit.left_by_itself), "{exits:?}");
    assert!(!has_children());
    passed()
}

fn ignore_sigchld() {
    cowbell::sys::signal::ignore(libc::SIGCHLD);
}

pub fn trials() -> Vec<Trial> {
    claims![
        what_workers_print_is_seen,
        a_pool_is_made_before_threads_are_started,
        in_a_forked_child_the_pool_is_gone_and_its_copies_harm_nobody,
        an_iterator_dropped_in_a_forked_child_takes_nothing_back,
        a_worker_may_fork_threads_and_children,
        a_program_that_ignores_sigchld_may_have_a_pool,
    ]
}
