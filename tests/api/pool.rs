//! Pools: jobs in, results out, each exactly once.

use crate::case::{Outcome, passed};
use crate::look::{Bytes, SOON, has_children, original, until};
use crate::pool_kit::{Way, data, doubles, doubling, gated, in_time, pool_mappings};
use cowbell::arena::{Arena, Handle};
use cowbell::page::PageCount;
use cowbell::pool::{JobError, OverBudget, Plain, PlainVec, Pool};
use cowbell::watch::Watch;
use libtest_mimic::Trial;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

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
    let (gate, pool) = gated(2, 0)?;
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

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    claims![
        map_gives_results_in_the_order_of_the_jobs,
        map_unordered_and_for_each_give_each_result_once_with_its_number,
        map_unordered_does_not_wait_for_the_slow,
        jobs_are_pulled_only_a_few_batches_ahead,
        progress_is_told_and_ends_with_all,
        the_size_of_what_is_left_is_told,
        jobs_and_results_are_any_serde_types,
        plain_data_goes_as_it_is,
        handles_name_objects_of_the_data,
        workers_see_the_data_and_what_the_closure_captured_and_keep_their_own_state,
        settings_that_make_no_sense_are_errors,
        two_pools_at_once_do_not_know_of_each_other,
        batches_that_fill_the_memory_of_jobs_wait_for_one_another,
        numbers_of_the_pool_are_kept,
    ]
}
