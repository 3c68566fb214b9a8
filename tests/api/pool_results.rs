//! Things that go through a pool, and things that cannot: large results, buffers, types that refuse, panics.

use crate::case::{Outcome, passed};
use crate::look::{SOON, until};
use crate::pool_kit::{Gate, data, in_time, pool_mappings, table};
use cowbell::pool::{Buffer, JobError, PlainVec, Pool, PoolBuilder};
use libtest_mimic::Trial;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

pub fn small() -> PoolBuilder {
    Pool::builder().workers(1).result_capacity(1 << 16).job_capacity(1 << 16)
}

/// Tells whether this is the error of something that could not be passed, and says so.
pub fn not_passed<R>(result: &Result<R, JobError>, word: &str) -> bool {
    matches!(result, Err(JobError::NotPassed(why)) if why.contains(word))
}

fn buffers_are_written_by_the_job_and_read_where_they_lie() -> Outcome {
    let pool = Pool::builder().workers(2).spawn(data()?, |_, job: u64| {
        let mut one = Buffer::<u64>::zeroed(MIB / 8).expect("room");
        assert!(one.iter().all(|&n| n == 0));
        one.iter_mut().enumerate().for_each(|(at, n)| *n = job + at as u64);
        let two = Buffer::copy_of(&[job as u8; 3]).expect("room");
        (job, one, Some(two), vec![Buffer::<u32>::zeroed(0).expect("room")])
    })?;
    for round in 0..20 {
        let tickets: Vec<_> = (0..20).map(|job| pool.submit(job)).collect::<Result<_, _>>()?;
        for (job, ticket) in (0..20).zip(tickets) {
            let (number, mut one, two, three) = ticket.wait()?;
            assert_eq!(number, job);
            assert_eq!(one.len(), MIB / 8);
            assert!(one.iter().enumerate().all(|(at, &n)| n == job + at as u64), "round {round}");
            assert_eq!(two.as_deref(), Some(&[job as u8; 3][..]));
            assert!(matches!(&three[..], [empty] if empty.is_empty()));
            // The result is the program's own now.
            one[0] = 7;
            assert_eq!(one[0], 7);
        }
    }
    assert_eq!(pool.stats().deaths, 0);
    let through_map: Vec<_> = pool.map(0..50).map(|result| result.expect("a result").1[1]).collect();
    assert_eq!(through_map, (1..51).collect::<Vec<_>>());
    passed()
}

fn a_buffer_outlives_its_pool() -> Outcome {
    let pool =
        Pool::builder().workers(2).spawn(data()?, |_, job: u8| Buffer::copy_of(&vec![job; MIB]).expect("room"))?;
    let kept: Vec<Buffer<u8>> = pool.map(0..8).collect::<Result<_, _>>()?;
    let unread = pool.submit(9)?;
    until("it is done", || unread.is_done())?;
    drop(pool);
    assert!(kept.iter().enumerate().all(|(at, buffer)| buffer.iter().all(|&byte| usize::from(byte) == at)));
    assert_eq!(unread.wait()?[..3], [9, 9, 9]);
    assert_eq!(pool_mappings(), 1);
    drop(kept);
    assert_eq!(pool_mappings(), 0);
    passed()
}

fn a_buffer_is_made_in_a_job_only_and_travels_in_its_result_only() -> Outcome {
    assert!(Buffer::<u8>::zeroed(1).is_err_and(|e| e.is_invalid()));
    let echo = Pool::builder()
        .workers(1)
        .spawn(data()?, |_, job: Option<Buffer<u8>>| job.unwrap_or_else(|| Buffer::copy_of(&[5u8]).expect("room")))?;
    let buffer = echo.submit(None)?.wait()?;
    assert!(not_passed(&echo.submit(Some(buffer)), "the job"));
    // The room of the one that was refused is free again, and the worker is the first one still.
    assert_eq!(echo.submit(None)?.wait()?[..], [5]);
    assert_eq!(echo.stats().started, 1);
    passed()
}

#[derive(Deserialize)]
struct Shared(#[serde(deserialize_with = "alone")] Arc<Buffer<u8>>);

fn alone<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<Buffer<u8>>, D::Error> {
    Buffer::deserialize(from).map(Arc::new)
}

impl Serialize for Shared {
    fn serialize<S: Serializer>(&self, into: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(into)
    }
}

fn a_buffer_that_the_job_keeps_is_not_sent() -> Outcome {
    let mut kept = Vec::new();
    let pool = small().spawn(data()?, move |_, keep: bool| {
        kept.clear();
        let buffer = Arc::new(Buffer::copy_of(&[7u8; 10_000]).expect("room"));
        if keep {
            kept.push(Arc::clone(&buffer));
        }
        // The buffers it kept before must not have become anybody else's.
        assert!(kept.iter().all(|buffer| buffer.iter().all(|&byte| byte == 7)));
        Shared(buffer)
    })?;
    for _ in 0..30 {
        assert!(not_passed(&pool.submit(true)?.wait(), "still has a Buffer"));
        let mut sent = pool.submit(false)?.wait()?;
        let buffer = Arc::get_mut(&mut sent.0).ok_or("alone")?;
        buffer.fill(1);
    }
    assert_eq!(pool.stats().deaths, 0);
    passed()
}

fn results_larger_than_the_capacity_are_an_error_of_their_jobs() -> Outcome {
    let pool = small().spawn(data()?, |_, len: usize| vec![3u8; len])?;
    assert!(not_passed(&pool.submit(70_000)?.wait(), "result_capacity"));
    assert_eq!(pool.submit(60_000)?.wait()?.len(), 60_000);
    // In a batch only those fail.
    let lens = [10, 70_000, 20, 100_000, 30];
    for (len, result) in lens.into_iter().zip(pool.map(lens).chunk(5)) {
        match len {
            100.. => assert!(not_passed(&result, "result_capacity")),
            _ => assert_eq!(result?.len(), len),
        }
    }
    let buffers = small()
        .spawn(data()?, |_, len: usize| Buffer::<u8>::zeroed(len).map_err(|e| (e.is_out_of_memory(), e.to_string())))?;
    let (out_of_memory, text) = buffers.submit(70_000)?.wait()?.err().ok_or("too large")?;
    assert!(out_of_memory && text.contains("result_capacity"), "{text}");
    assert!(buffers.submit(usize::MAX)?.wait()?.is_err());
    assert_eq!(buffers.submit(60_000)?.wait()?.map(|buffer| buffer.len()), Ok(60_000));
    passed()
}

fn buffers_that_the_program_holds_are_an_error_and_no_hang() -> Outcome {
    let pool = small()
        .spawn(data()?, |_, len: usize| Buffer::<u8>::zeroed(len).map_err(|e| (e.is_out_of_memory(), e.to_string())))?;
    in_time(SOON, || {
        for round in 0..5 {
            let mut held: Vec<_> = (0..6).map(|_| pool.submit(10_000).expect("open").wait().expect("passed")).collect();
            assert!(held.iter().all(Result::is_ok), "round {round}");
            let (out_of_memory, text) = pool.submit(10_000).expect("open").wait().expect("passed").expect_err("full");
            assert!(out_of_memory && text.contains("drop results earlier"), "{text}");
            // A result that is no buffer finds no room either, or just does.
            drop(held.pop());
            assert!(pool.submit(10_000).expect("open").wait().expect("passed").is_ok(), "round {round}");
        }
    })?;
    passed()
}

fn results_that_nobody_read_yet_are_waited_for_or_moved_out_of_the_way() -> Outcome {
    let pool = small().spawn(data()?, |_, len: usize| vec![1u8; len])?;
    in_time(SOON, || {
        // Ten times what fits, and the last is asked for first.
        let tickets: Vec<_> = (0..20).map(|n| pool.submit(30_000 + n).expect("open")).collect();
        for (n, ticket) in tickets.into_iter().enumerate().rev() {
            assert_eq!(ticket.wait().map(|bytes| bytes.len()), Ok(30_000 + n));
        }
    })?;
    passed()
}

fn a_map_of_large_results_goes_on_whatever_fits() -> Outcome {
    for workers in [1, 2] {
        let pool = small().workers(workers).spawn(data()?, |_, len: usize| vec![1u8; len])?;
        in_time(SOON, || {
            for len in [9_000, 20_000, 40_000, 60_000] {
                for chunk in [1, 2, 5] {
                    let results = pool.map((0..12).map(|n| len + n)).chunk(chunk);
                    let lens: Vec<_> = results.map(|bytes| bytes.map(|bytes| bytes.len())).collect();
                    assert_eq!(lens, (0..12).map(|n| Ok(len + n)).collect::<Vec<_>>(), "chunks of {chunk}");
                    let results = pool.map_unordered((0..12).map(|n| len + n)).chunk(chunk);
                    assert_eq!(
                        results.filter(|(n, bytes)| bytes.as_ref().is_ok_and(|b| b.len() == len + n)).count(),
                        12
                    );
                }
            }
        })?;
    }
    passed()
}

fn results_that_are_dropped_unread_leave_their_room() -> Outcome {
    let pool = small().spawn(data()?, |_, len: usize| (Buffer::<u8>::zeroed(len).expect("room"), vec![0u8; 100]))?;
    in_time(SOON, || {
        for _ in 0..50 {
            let ticket = pool.submit(30_000).expect("open");
            until("it is done", || ticket.is_done()).expect("soon");
            drop(ticket);
            // One that is dropped while it runs.
            drop(pool.submit(30_000).expect("open"));
            drop(pool.map([20_000; 3]).chunk(1).next());
        }
        assert_eq!(pool.submit(60_000).expect("open").wait().map(|result| result.0.len()), Ok(60_000));
    })?;
    assert_eq!(pool.stats().deaths, 0);
    passed()
}

fn a_panic_is_its_jobs_error_with_message_and_place() -> Outcome {
    struct Opaque;
    let pool = Pool::builder().workers(1).spawn(data()?, |_, job: u32| {
        match job {
            1 => panic!("plain"),
            2 => panic!("number {job}"),
            3 => std::panic::panic_any(Opaque),
            4 => _ = std::hint::black_box(None::<u32>).expect("nothing"),
            // Caught by the job itself, so it is no error.
            5 => _ = std::panic::catch_unwind(|| panic!("caught")),
            // Another thread's is no error either.
            6 => _ = std::thread::spawn(|| panic!("elsewhere")).join(),
            _ => {}
        }
        job
    })?;
    for chunk in [1, 10] {
        let results: Vec<_> = pool.map(0..8).chunk(chunk).collect();
        for (job, text) in [(1, "plain"), (2, "number 2"), (3, "(a payload that is no text)"), (4, "nothing")] {
            let Err(JobError::Panicked { message, location: Some(location) }) = &results[job] else {
                return Err(format!("{:?}", results[job]).into());
            };
            assert_eq!(message, text);
            assert!(location.starts_with("tests/api/pool_results.rs:"), "{location}");
            let shown = results[job].as_ref().expect_err("it is").to_string();
            assert!(shown.contains(text) && shown.contains(location), "{shown}");
        }
        for job in [0, 5, 6, 7] {
            assert_eq!(results[job], Ok(job as u32));
        }
    }
    assert_eq!((pool.stats().deaths, pool.stats().started, pool.stats().jobs), (0, 1, 16));
    passed()
}

fn a_worker_that_dies_leaves_the_room_of_its_results_to_the_next() -> Outcome {
    let pool = small().spawn(data()?, |_, (len, dies): (usize, bool)| {
        let buffer = Buffer::<u8>::zeroed(len).expect("room");
        if dies {
            std::process::abort();
        }
        (buffer, vec![1u8; 100])
    })?;
    in_time(SOON, || {
        for _ in 0..20 {
            let results: Vec<_> = pool.map([(20_000, false), (30_000, true), (20_000, false)]).chunk(3).collect();
            // The work that was done before the worker died counts, buffers and all.
            let as_it_should = matches!(&results[..], [Ok(a), Err(JobError::Died { .. }), Ok(c)]
                if a.0.len() == 20_000 && c.0.len() == 20_000);
            assert!(as_it_should, "{results:?}");
        }
        assert_eq!(pool.submit((60_000, false)).expect("open").wait().map(|result| result.0.len()), Ok(60_000));
    })?;
    assert_eq!(pool.stats().deaths, 20);
    passed()
}

fn a_worker_killed_while_it_waits_for_room_is_replaced() -> Outcome {
    let begun = table(2)?;
    let pool = small().spawn(data()?, move |_, len: usize| {
        begun[0].fetch_add(1, Ordering::SeqCst);
        vec![1u8; len]
    })?;
    let (one, two) = (pool.submit(40_000)?, pool.submit(40_001)?);
    // The second finds no room: nobody reads the first.
    until("both have begun", || begun[0].load(Ordering::SeqCst) == 2)?;
    let sleeps = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
    };
    let worker = pool.workers()[0];
    until("it waits", || sleeps(worker))?;
    cowbell::sys::signal::kill(worker);
    until("it is replaced", || pool.stats().started == 2)?;
    assert_eq!(one.wait().map(|bytes| bytes.len()), Ok(40_000));
    assert!(matches!(two.wait(), Err(JobError::Died { .. })));
    assert_eq!(pool.submit(60_000)?.wait().map(|bytes| bytes.len()), Ok(60_000));
    passed()
}

fn waiting_for_room_is_not_the_jobs_time() -> Outcome {
    let gate = Gate::new()?;
    let pool = small().time_limit(Duration::from_millis(300)).spawn(data()?, move |_, len: usize| {
        if len == 40_001 {
            gate.pass();
        }
        vec![1u8; len]
    })?;
    gate.open();
    let (one, two) = (pool.submit(40_000)?, pool.submit(40_001)?);
    gate.reached()?;
    let begun = Instant::now();
    // Nobody reads for several limits.
    while begun.elapsed() < Duration::from_millis(1200) {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(two.wait().map(|bytes| bytes.len()), Ok(40_001));
    assert_eq!(one.wait().map(|bytes| bytes.len()), Ok(40_000));
    assert_eq!(pool.stats().deaths, 0);
    passed()
}

fn large_plain_results_come_whole() -> Outcome {
    let pool =
        Pool::builder().workers(2).spawn(data()?, |_, job: u64| PlainVec((0..2_000_000).map(|n| n ^ job).collect()))?;
    for (job, result) in pool.map(0..6).enumerate() {
        let PlainVec::<u64>(numbers) = result?;
        assert!(numbers.len() == 2_000_000 && numbers.iter().enumerate().all(|(at, &n)| n == (at ^ job) as u64));
    }
    passed()
}

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    claims![
        buffers_are_written_by_the_job_and_read_where_they_lie,
        a_buffer_outlives_its_pool,
        a_buffer_is_made_in_a_job_only_and_travels_in_its_result_only,
        a_buffer_that_the_job_keeps_is_not_sent,
        results_larger_than_the_capacity_are_an_error_of_their_jobs,
        buffers_that_the_program_holds_are_an_error_and_no_hang,
        results_that_nobody_read_yet_are_waited_for_or_moved_out_of_the_way,
        a_map_of_large_results_goes_on_whatever_fits,
        results_that_are_dropped_unread_leave_their_room,
        a_panic_is_its_jobs_error_with_message_and_place,
        a_worker_that_dies_leaves_the_room_of_its_results_to_the_next,
        a_worker_killed_while_it_waits_for_room_is_replaced,
        waiting_for_room_is_not_the_jobs_time,
        large_plain_results_come_whole,
    ]
}
