//! Pools: jobs in, results out, each exactly once.

use crate::apart::apart;
use crate::case::{Outcome, passed};
use crate::look::{Bytes, SOON, descriptors, has_children, original, until, wait};
use crate::pool_kit::{Gate, Way, data, doubling, in_time, pool_mappings, table};
use cowbell::arena::{Arena, Handle};
use cowbell::fork::{self, ForkOptions};
use cowbell::page::PageCount;
use cowbell::pool::{JobError, OverBudget, Plain, PlainVec, Pool, Shutdown, Ticket, as_completed};
use cowbell::watch::Watch;
use libtest_mimic::{Failed, Trial};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn doubles(jobs: u64) -> Vec<u64> {
    (0..jobs).map(|job| 2 * job).collect()
}

fn map_gives_results_in_the_order_of_the_jobs() -> Outcome {
    let pool = doubling(3)?;
    for jobs in [0, 1, 2, 5, 3000] {
        let results: Vec<u64> = pool.map(0..jobs).collect::<Result<_, _>>()?;
        assert_eq!(results, doubles(jobs));
        for chunk in [0, 1, 7, 10_000] {
            let results: Vec<u64> = pool.map(0..jobs).chunk(chunk).collect::<Result<_, _>>()?;
            assert_eq!(results, doubles(jobs), "chunks of {chunk}");
        }
    }
    // Each chunk size ran all of them.
    assert_eq!(pool.stats().jobs, 5 * (1 + 2 + 5 + 3000));
    assert_eq!((pool.stats().started, pool.stats().deaths), (3, 0));
    passed()
}

fn map_unordered_and_for_each_give_each_result_once_with_its_number() -> Outcome {
    let pool = doubling(3)?;
    for chunk in [None, Some(1), Some(9)] {
        let mut results = pool.map_unordered(0..2000u64);
        if let Some(chunk) = chunk {
            results = results.chunk(chunk);
        }
        let mut seen = BTreeMap::new();
        for (at, result) in results {
            assert_eq!(seen.insert(at, result?), None, "{at} came twice");
        }
        assert_eq!(seen.keys().copied().collect::<Vec<_>>(), (0..2000).collect::<Vec<_>>());
        assert!(seen.iter().all(|(&at, &result)| result == 2 * at as u64));
    }
    let mut sum = 0;
    pool.for_each(0..1000u64, |at, result| {
        let result = result.expect("a double");
        assert_eq!(result, 2 * at as u64);
        sum += result;
    });
    assert_eq!(sum, 999 * 1000);
    passed()
}

fn map_unordered_does_not_wait_for_the_slow() -> Outcome {
    let gate = Gate::new()?;
    let pool = Pool::builder().workers(2).spawn(data()?, move |_, job: u64| {
        if job == 0 {
            gate.pass();
        }
        job
    })?;
    let mut results = pool.map_unordered(0..50).chunk(1);
    for _ in 1..50 {
        let (at, result) = results.next().ok_or("one more")?;
        assert!(at != 0 && result? == at as u64);
    }
    gate.open();
    assert_eq!(results.next(), Some((0, Ok(0))));
    assert_eq!(results.next(), None);
    passed()
}

fn a_ticket_is_waited_for_for_ever_for_a_while_or_not_at_all() -> Outcome {
    let gate = Gate::new()?;
    let pool = Pool::builder().workers(1).spawn(data()?, move |_, job: u64| {
        gate.pass();
        job
    })?;
    let ticket = pool.submit(5)?;
    assert!(!ticket.is_done());
    let ticket = ticket.try_wait().expect_err("the gate is closed");
    let ticket = ticket.wait_timeout(Duration::from_millis(30)).expect_err("the gate is closed");
    gate.open();
    assert_eq!(ticket.wait(), Ok(5));

    let ticket = pool.submit(6)?;
    until("the job is done", || ticket.is_done())?;
    assert_eq!(ticket.try_wait().map_err(|_| "it was done")?, Ok(6));
    let ticket = pool.submit(7)?;
    assert_eq!(ticket.wait_timeout(SOON).map_err(|_| "it has time")?, Ok(7));
    let ticket = pool.submit(8)?;
    assert_eq!(ticket.wait_timeout(Duration::MAX).map_err(|_| "it has time")?, Ok(8));
    passed()
}

fn cancel_takes_back_what_waits_kills_what_runs_and_leaves_what_is_done() -> Outcome {
    let (gate, begun) = (Gate::new()?, table(8)?);
    let pool = Pool::builder().workers(1).spawn(data()?, move |_, job: u64| {
        begun[job as usize].fetch_add(1, Ordering::SeqCst);
        if job == 1 {
            gate.pass();
        }
        job
    })?;
    let done = pool.submit(0)?;
    until("it is done", || done.is_done())?;
    let worker = pool.workers();
    let (running, waiting, after) = (pool.submit(1)?, pool.submit(2)?, pool.submit(3)?);
    gate.reached()?;
    assert!(waiting.cancel()?);
    assert_eq!(waiting.wait(), Err(JobError::Cancelled));
    assert!(running.cancel()?);
    assert_eq!(running.wait(), Err(JobError::Cancelled));
    assert!(!done.cancel()?, "it has ended");
    assert_eq!(done.wait(), Ok(0));
    assert_eq!(after.wait(), Ok(3));
    assert_ne!(pool.workers(), worker);
    assert_eq!((pool.stats().deaths, pool.stats().started), (1, 2));
    let counts: Vec<u64> = begun.iter().take(4).map(|count| count.load(Ordering::SeqCst)).collect();
    assert_eq!(counts, [1, 1, 0, 1]);
    passed()
}

fn a_job_that_is_cancelled_twice_or_by_two_threads_is_cancelled_once() -> Outcome {
    let gate = Gate::new()?;
    let pool = Pool::builder().workers(1).spawn(data()?, move |_, job: u64| {
        if job == 1 {
            gate.pass();
        }
        job
    })?;
    for _ in 0..5 {
        gate.close();
        let running = pool.submit(1)?;
        gate.reached()?;
        std::thread::scope(|scope| {
            let cancels: Vec<_> = (0..4).map(|_| scope.spawn(|| running.cancel())).collect();
            let said: Vec<bool> = cancels
                .into_iter()
                .map(|cancel| cancel.join().expect("no panic").expect("the pool is there"))
                .collect();
            assert!(said.contains(&true), "{said:?}");
        });
        assert_eq!(running.wait(), Err(JobError::Cancelled));
    }
    assert_eq!(pool.submit(9)?.wait(), Ok(9));
    assert_eq!(pool.stats().deaths, 5);
    passed()
}

fn as_completed_yields_results_as_their_jobs_end() -> Outcome {
    let gates = [Gate::new()?, Gate::new()?, Gate::new()?];
    let pool = Pool::builder().workers(3).spawn(data()?, move |_, job: usize| {
        gates[job].pass();
        10 * job
    })?;
    let tickets: Vec<Ticket<usize>> = (0..3).map(|job| pool.submit(job)).collect::<Result<_, _>>()?;
    let mut ended = as_completed(tickets);
    assert_eq!(ended.size_hint(), (3, Some(3)));
    for job in [1, 2, 0] {
        gates[job].open();
        assert_eq!(ended.next(), Some((job, Ok(10 * job))));
    }
    assert_eq!(ended.next(), None);
    assert_eq!(as_completed(Vec::<Ticket<usize>>::new()).count(), 0);
    // Many at once, of which most are done before the first is asked for.
    let tickets: Vec<_> = (0..2000).map(|job| pool.submit(job % 3)).collect::<Result<_, _>>()?;
    let mut seen: Vec<usize> = as_completed(tickets)
        .map(|(at, result)| {
            assert_eq!(result, Ok(10 * (at % 3)));
            at
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..2000).collect::<Vec<_>>());
    passed()
}

fn tickets_of_two_pools_are_awaited_together_and_the_end_of_one_pool_is_not_the_others() -> Outcome {
    let gate = Gate::new()?;
    let first = Pool::builder().workers(1).name("first").spawn(data()?, move |_, job: u64| {
        gate.pass();
        job
    })?;
    let second = Pool::builder().workers(1).name("second").spawn(data()?, move |_, job: u64| {
        gate.pass();
        job
    })?;
    let tickets = vec![first.submit(1)?, second.submit(2)?];
    drop(first);
    let mut ended = as_completed(tickets);
    assert!(matches!(ended.next(), Some((0, Err(_)))));
    gate.open();
    assert_eq!(ended.next(), Some((1, Ok(2))));
    passed()
}

fn several_threads_use_one_pool_at_once() -> Outcome {
    fn send_and_sync<T: Send + Sync>(_: &T) {}
    let pool = doubling(3)?;
    send_and_sync(&pool);
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let pool = &pool;
            scope.spawn(move || {
                let jobs = || (1000 * thread)..(1000 * thread + 300);
                let expected: Vec<u64> = jobs().map(|job| 2 * job).collect();
                for round in 0..3 {
                    let mapped: Vec<u64> = pool.map(jobs()).collect::<Result<_, _>>().expect("results");
                    assert_eq!(mapped, expected, "round {round}");
                    let tickets: Vec<_> = jobs().map(|job| pool.submit(job).expect("a ticket")).collect();
                    let waited: Vec<u64> = tickets.into_iter().map(|ticket| ticket.wait().expect("a result")).collect();
                    assert_eq!(waited, expected, "round {round}");
                }
            });
        }
    });
    assert_eq!(pool.stats().jobs, 8 * 3 * 600);
    passed()
}

fn jobs_are_pulled_only_a_few_batches_ahead() -> Outcome {
    let pool = doubling(2)?;
    let pulled = Cell::new(0usize);
    let endless = || (0u64..).inspect(|_| pulled.set(pulled.get() + 1));
    let mut results = pool.map(endless()).chunk(1);
    assert_eq!(pulled.get(), 0, "nothing is asked for yet");
    for asked in 0..500usize {
        assert_eq!(results.next(), Some(Ok(2 * asked as u64)));
        assert!(pulled.get() <= asked + 1 + 16, "{} jobs were pulled for {asked} results", pulled.get());
    }
    drop(results);
    pulled.set(0);
    let mut results = pool.map_unordered(endless()).chunk(10);
    for _ in 0..500 {
        results.next().ok_or("endless")?.1?;
    }
    assert!(pulled.get() <= 500 + 160, "{}", pulled.get());
    drop(results);
    // The pool is free for others at once.
    assert_eq!(pool.map(0..3).collect::<Result<Vec<_>, _>>()?, doubles(3));
    passed()
}

fn more_tickets_may_be_open_than_batches_fit_into_the_pool() -> Outcome {
    let pool = doubling(2)?;
    in_time(SOON, || {
        for backwards in [false, true] {
            let mut tickets: Vec<_> = (0..10_000u64).map(|job| (job, pool.submit(job).expect("a ticket"))).collect();
            if backwards {
                tickets.reverse();
            }
            for (job, ticket) in tickets {
                assert_eq!(ticket.wait(), Ok(2 * job));
            }
        }
    })?;
    passed()
}

fn progress_is_told_and_ends_with_all() -> Outcome {
    let pool = doubling(2)?;
    for chunk in [1, 30] {
        let told = std::cell::RefCell::new(Vec::new());
        let results = pool.map(0..300).chunk(chunk).progress(|done| told.borrow_mut().push(done));
        assert_eq!(results.count(), 300);
        let told = told.into_inner();
        assert!(told.is_sorted_by(|a, b| a < b) && told.last() == Some(&300), "{told:?}");
        assert_eq!(told.len(), 300 / chunk);
    }
    let none = Cell::new(0);
    assert_eq!(pool.map_unordered(0..0).progress(|_| none.set(1)).count(), 0);
    assert_eq!(none.get(), 0);
    passed()
}

fn the_size_of_what_is_left_is_told() -> Outcome {
    let pool = doubling(2)?;
    let mut results = pool.map(0..100).chunk(3);
    for left in (0..100usize).rev() {
        assert_eq!(results.size_hint(), (left + 1, Some(left + 1)));
        results.next();
        assert_eq!(results.size_hint(), (left, Some(left)));
    }
    let results = pool.map_unordered((0..100).filter(|job| job % 2 == 0));
    assert_eq!(results.size_hint(), (0, Some(100)));
    assert_eq!(results.count(), 50);
    passed()
}

fn what_is_dropped_is_taken_back_and_the_pool_goes_on() -> Outcome {
    let (gate, begun) = (Gate::new()?, table(100)?);
    let pool = Pool::builder().workers(1).spawn(data()?, move |_, job: usize| {
        begun[job].fetch_add(1, Ordering::SeqCst);
        if job == 0 {
            gate.pass();
        }
        vec![job; 1000]
    })?;
    let count = |job: usize| begun[job].load(Ordering::SeqCst);
    let running = pool.submit(0)?;
    gate.reached()?;
    // One that waits in the queue.
    drop(pool.submit(1)?);
    // One that runs: it runs to its end.
    drop(running);
    let mut results = pool.map(10..100).chunk(1);
    gate.open();
    assert_eq!(results.next(), Some(Ok(vec![10; 1000])));
    drop(results);
    assert_eq!(pool.submit(2)?.wait(), Ok(vec![2; 1000]));
    assert_eq!((count(0), count(1), count(2), count(10)), (1, 0, 1, 1));
    assert_eq!(count(50), 0, "far behind what was asked for");
    drop(pool.map(10..100));
    assert_eq!(pool.stats().deaths, 0);
    passed()
}

fn tickets_dropped_by_the_thousand_leave_room() -> Outcome {
    let gate = Gate::new()?;
    let pool = Pool::builder().workers(1).spawn(data()?, move |_, job: u64| {
        if job == 0 {
            gate.pass();
        }
        job
    })?;
    in_time(SOON, || {
        let (running, waiting) = (pool.submit(0).expect("a ticket"), pool.submit(1).expect("a ticket"));
        // All are taken back from the queue; what they leave in it must not fill it.
        for job in 0..40_000 {
            drop(pool.submit(job).expect("a ticket"));
        }
        // And several at once, so that they take different places.
        for job in 0..20 {
            drop((0..3000).map(|_| pool.submit(job).expect("a ticket")).collect::<Vec<_>>());
        }
        let last = pool.submit(2).expect("a ticket");
        gate.open();
        assert_eq!((running.wait(), waiting.wait(), last.wait()), (Ok(0), Ok(1), Ok(2)));
    })?;
    passed()
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Empty,
    Named { title: String, sides: Option<Vec<f64>>, of: BTreeMap<String, (u8, i64)> },
    Pair(Box<Shape>, char),
}

fn jobs_and_results_are_any_serde_types() -> Outcome {
    let shape = || Shape::Named {
        title: "ça va".to_owned(),
        sides: Some(vec![1.5, -0.0, f64::INFINITY]),
        of: [("a".to_owned(), (7, i64::MIN))].into(),
    };
    let pool = Pool::builder().workers(2).spawn(data()?, |_, job: Shape| Shape::Pair(Box::new(job), 'ß'))?;
    let jobs = [Shape::Empty, shape(), Shape::Pair(Box::new(shape()), 'x')];
    for (job, result) in jobs.iter().zip(pool.map(jobs.clone())) {
        assert_eq!(result?, Shape::Pair(Box::new(job.clone()), 'ß'));
    }

    let nothing = Pool::builder().workers(2).spawn(data()?, |_, (): ()| ())?;
    assert_eq!(nothing.map(std::iter::repeat_n((), 3000)).filter(|result| *result == Ok(())).count(), 3000);
    assert_eq!(nothing.submit(())?.wait(), Ok(()));

    let text = Pool::builder().workers(2).spawn(data()?, |_, job: String| job.repeat(3))?;
    assert_eq!(text.submit(String::new())?.wait(), Ok(String::new()));
    let long = "löng".repeat(300_000);
    assert_eq!(text.submit(long.clone())?.wait(), Ok(long.repeat(3)));
    passed()
}

fn plain_data_goes_as_it_is() -> Outcome {
    let pool =
        Pool::builder().workers(2).spawn(data()?, |_, (Plain(scale), job): (Plain<[f32; 4]>, PlainVec<u64>)| {
            PlainVec(job.0.iter().map(|n| n * scale[3] as u64).collect())
        })?;
    let numbers: Vec<u64> = (0..200_000).collect();
    let tripled: Vec<u64> = numbers.iter().map(|n| 3 * n).collect();
    let job = |numbers: &[u64]| (Plain([0.0, 1.0, 2.0, 3.0f32]), PlainVec(numbers.to_vec()));
    assert_eq!(pool.submit(job(&numbers))?.wait()?.0, tripled);
    assert!(pool.submit(job(&[]))?.wait()?.0.is_empty());
    passed()
}

fn handles_name_objects_of_the_data() -> Outcome {
    let arena = Arena::builder("names").capacity(8 << 20).build()?;
    let names: &[String; 3] = Box::leak(Box::new(["a", "bc", "def"].map(str::to_owned)));
    let lengths: &'static [u64] = arena.alloc_iter(names.iter().map(|name| name.len() as u64))?;
    let frozen = arena.freeze(lengths)?;
    let handles: Vec<Handle<u64>> = lengths.iter().map(|length| frozen.handle(length)).collect::<Result<_, _>>()?;
    let longest = *handles.last().ok_or("three")?;
    let pool =
        Pool::builder().workers(2).spawn(frozen.clone(), move |_, job: (Handle<u64>, Option<Handle<u64>>)| {
            let one = *job.0.get().expect("inherited");
            let two = job.1.map(|handle| *handle.get().expect("inherited"));
            (10 * one + two.unwrap_or(0), longest, vec![Some(job.0), None])
        })?;
    for (at, &handle) in handles.iter().enumerate() {
        let (sum, last, back) = pool.submit((handle, (at == 1).then_some(longest)))?.wait()?;
        assert_eq!(sum, 10 * (at as u64 + 1) + if at == 1 { 3 } else { 0 });
        assert!(std::ptr::eq(last.get()?, &lengths[2]));
        assert!(matches!(back[..], [Some(back), None] if std::ptr::eq(back.get()?, &lengths[at])));
    }
    // In batches each job has its own passengers.
    let results: Vec<_> = pool.map((0..300).map(|at| (handles[at % 3], None))).chunk(50).collect::<Result<_, _>>()?;
    for (at, (sum, ..)) in results.into_iter().enumerate() {
        assert_eq!(sum, 10 * (at as u64 % 3 + 1));
    }
    assert!(std::ptr::eq(*pool.data(), lengths));
    assert!(std::ptr::eq(pool.frozen().handle(&lengths[0])?.get()?, &lengths[0]));
    // One of an arena that the workers do not have.
    let late = Arena::builder("late").capacity(1 << 20).build()?;
    let object: &'static u64 = late.alloc(1u64)?;
    let late = late.freeze(object)?;
    let refused = pool.submit((late.handle(object)?, None))?.wait();
    assert!(matches!(&refused, Err(JobError::NotPassed(why)) if why.contains("not in this process")), "{refused:?}");
    assert_eq!(pool.stats().deaths, 0);
    passed()
}

fn workers_see_the_data_and_what_the_closure_captured_and_keep_their_own_state() -> Outcome {
    let frozen = data()?;
    let big: Vec<u64> = (0..1_000_000).collect();
    let mut runs = 0u64;
    let pool = Pool::builder().workers(2).spawn(frozen, move |data: &'static Bytes, job: usize| {
        runs += 1;
        (data[job].load(Ordering::Relaxed), big[job], runs, std::process::id())
    })?;
    let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
    for (at, result) in pool.map(0..500).enumerate() {
        let (byte, number, runs, pid) = result?;
        assert_eq!((byte, number), (original(at), at as u64));
        let count = counts.entry(pid).or_default();
        *count = (*count).max(runs);
    }
    assert_eq!(counts.values().sum::<u64>(), 500);
    assert!(counts.keys().all(|&pid| pool.workers().contains(&(pid as i32))));
    passed()
}

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

fn settings_that_make_no_sense_are_errors() -> Outcome {
    let builder = Pool::builder;
    for (settings, word) in [
        (builder().workers(0), "1 to 1024"),
        (builder().workers(1025), "1 to 1024"),
        (builder().max_attempts(0), "max_attempts"),
        (builder().time_limit(Duration::ZERO), "time limit"),
        (builder().result_capacity(100), "64 KiB"),
        (builder().job_capacity(100), "64 KiB"),
        (builder().watch(Watch::Async).last_census(false), "census"),
        (builder().result_capacity(usize::MAX / 2), "capacit"),
        (builder().workers(1000).result_capacity(1 << 56), "capacit"),
    ] {
        let text = format!("{settings:?}");
        let e = settings.spawn(data()?, |_, job: u64| job).expect_err(&text);
        assert!(e.to_string().contains(word), "{text}: {e}");
    }
    // Both halves of the budget count, in either order.
    for settings in [
        builder().copy_budget(PageCount(3)).over_budget(OverBudget::Report),
        builder().over_budget(OverBudget::Report).copy_budget(PageCount(3)),
    ] {
        assert!(format!("{settings:?}").contains("(PageCount(3), Report)"), "{settings:?}");
    }
    assert!(!has_children() && pool_mappings() == 0);
    passed()
}

fn two_pools_at_once_do_not_know_of_each_other() -> Outcome {
    let first = doubling(2)?;
    let second = Pool::builder().workers(2).spawn(data()?, |_, job: String| job + "!")?;
    let mut doubles = first.map(0..300u64);
    let mut shouts = second.map((0..300).map(|n| n.to_string()));
    for at in 0..300u64 {
        assert_eq!(doubles.next(), Some(Ok(2 * at)));
        assert_eq!(shouts.next(), Some(Ok(format!("{at}!"))));
    }
    drop((doubles, shouts));
    let pids = first.workers();
    drop(first);
    assert!(pids.iter().all(|pid| !second.workers().contains(pid)));
    assert_eq!(second.submit("still here".to_owned())?.wait(), Ok("still here!".to_owned()));
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
    let gate = Gate::new()?;
    let pool = Pool::builder().workers(1).spawn(data()?, move |_, job: u64| {
        if job == 1 {
            gate.pass();
        }
        job
    })?;
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

fn batches_that_fill_the_memory_of_jobs_wait_for_one_another() -> Outcome {
    let pool = Pool::builder().workers(2).job_capacity(1 << 16).spawn(data()?, |_, job: Vec<u8>| job.len())?;
    in_time(SOON, || {
        // Each takes more than half of the room.
        let jobs = || (0..20).map(|n| vec![7u8; 40_000 + n]);
        let lengths: Vec<_> = pool.map(jobs()).collect::<Result<_, _>>().expect("results");
        assert_eq!(lengths, (40_000..40_020).collect::<Vec<_>>());
        let lengths: Vec<_> = pool.map(jobs()).chunk(3).collect::<Result<_, _>>().expect("results");
        assert_eq!(lengths, (40_000..40_020).collect::<Vec<_>>());
        let lengths: Vec<_> =
            pool.map((0..50).map(|n| vec![1; 1000 * n])).chunk(9).collect::<Result<_, _>>().expect("results");
        assert_eq!(lengths, (0..50).map(|n| 1000 * n).collect::<Vec<_>>());
        assert_eq!(pool.map_unordered(jobs()).chunk(1).filter(|(_, length)| length.is_ok()).count(), 20);
        let tickets: Vec<_> = jobs().map(|job| pool.submit(job).expect("a ticket")).collect();
        for (n, ticket) in tickets.into_iter().enumerate() {
            assert_eq!(ticket.wait(), Ok(40_000 + n));
        }
        let refused = pool.submit(vec![0; 70_000]);
        assert!(matches!(&refused, Err(JobError::NotPassed(why)) if why.contains("job_capacity")), "{refused:?}");
        for chunk in [1, 2, 3] {
            let mixed: Vec<_> = pool.map([10, 70_000, 20].map(|len| vec![0u8; len])).chunk(chunk).collect();
            assert!(matches!(&mixed[..], [Ok(10), Err(JobError::NotPassed(_)), Ok(20)]), "{mixed:?}");
        }
    })?;
    passed()
}

fn numbers_of_the_pool_are_kept() -> Outcome {
    let pool = Pool::builder().workers(2).name("counted").spawn(data()?, |_, way: Option<Way>| {
        if let Some(way) = way {
            way.go();
        }
    })?;
    assert_eq!(format!("{pool:?}"), "Pool(counted, 2 workers)");
    assert_eq!(pool.workers().len(), 2);
    assert_eq!(pool.map([None, Some(Way::Exit(3)), None]).chunk(1).filter(Result::is_ok).count(), 2);
    until("the dead one is replaced", || pool.stats().started == 3)?;
    let stats = pool.stats();
    assert_eq!((stats.jobs, stats.deaths, stats.retired, stats.over_budget), (2, 1, 0, 0));
    let exits = pool.take_exits()?;
    assert!(matches!(&exits[..], [exit] if !exit.left_by_itself), "{exits:?}");
    assert!(pool.take_exits()?.is_empty());
    passed()
}

fn many_threads_wait_and_all_are_woken() -> Outcome {
    let (gate, pool) = {
        let gate = Gate::new()?;
        let pool = Pool::builder().workers(1).spawn(data()?, move |_, job: usize| {
            gate.pass();
            job
        })?;
        (gate, pool)
    };
    let waiting = AtomicUsize::new(0);
    // More threads than there are bells.
    std::thread::scope(|scope| -> Result<(), Failed> {
        for job in 0..150 {
            let ticket = pool.submit(job)?;
            let waiting = &waiting;
            scope.spawn(move || {
                waiting.fetch_add(1, Ordering::SeqCst);
                assert_eq!(ticket.wait(), Ok(job));
            });
        }
        until("all wait", || waiting.load(Ordering::SeqCst) == 150)?;
        gate.open();
        Ok(())
    })?;
    passed()
}

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    claims![
        map_gives_results_in_the_order_of_the_jobs,
        map_unordered_and_for_each_give_each_result_once_with_its_number,
        map_unordered_does_not_wait_for_the_slow,
        a_ticket_is_waited_for_for_ever_for_a_while_or_not_at_all,
        cancel_takes_back_what_waits_kills_what_runs_and_leaves_what_is_done,
        a_job_that_is_cancelled_twice_or_by_two_threads_is_cancelled_once,
        as_completed_yields_results_as_their_jobs_end,
        tickets_of_two_pools_are_awaited_together_and_the_end_of_one_pool_is_not_the_others,
        several_threads_use_one_pool_at_once,
        jobs_are_pulled_only_a_few_batches_ahead,
        more_tickets_may_be_open_than_batches_fit_into_the_pool,
        progress_is_told_and_ends_with_all,
        the_size_of_what_is_left_is_told,
        what_is_dropped_is_taken_back_and_the_pool_goes_on,
        tickets_dropped_by_the_thousand_leave_room,
        jobs_and_results_are_any_serde_types,
        plain_data_goes_as_it_is,
        handles_name_objects_of_the_data,
        workers_see_the_data_and_what_the_closure_captured_and_keep_their_own_state,
        what_workers_print_is_seen,
        a_pool_is_made_before_threads_are_started,
        settings_that_make_no_sense_are_errors,
        two_pools_at_once_do_not_know_of_each_other,
        in_a_forked_child_the_pool_is_gone_and_its_copies_harm_nobody,
        an_iterator_dropped_in_a_forked_child_takes_nothing_back,
        a_worker_may_fork_threads_and_children,
        a_program_that_ignores_sigchld_may_have_a_pool,
        batches_that_fill_the_memory_of_jobs_wait_for_one_another,
        numbers_of_the_pool_are_kept,
        many_threads_wait_and_all_are_woken,
    ]
}
