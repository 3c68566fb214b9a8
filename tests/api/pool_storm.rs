//! Ten thousand jobs whose workers are killed at random: each job ends once and rightly, and nothing is left of it.

use crate::apart::{apart, claim_within};
use crate::case::{Outcome, passed, skipped, soak};
use crate::limits::limited_group;
use crate::look::{Bytes, descriptors, has_children, until};
use crate::pool_kit::{Way, data, in_time, pool_mappings, table};
use cowbell::fork::Ended;
use cowbell::pool::{Death, JobError, Pool, Shutdown};
use cowbell::sys::shared_words::SharedWords;
use cowbell::sys::signal;
use libtest_mimic::{Failed, Trial};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// The way jobs are sent.
#[derive(Clone, Copy, Debug)]
enum Sent {
    Singly,
    Chunked(Option<usize>),
    Unordered(Option<usize>),
}

/// Marsaglia's xorshift: a seed that is printed makes a run that can be looked at.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// The way a job ends itself, if it does.
fn fate(job: u64) -> Option<Way> {
    match job % 211 {
        5 => Some(Way::Exit(7)),
        50 => Some(Way::Abort),
        77 => Some(Way::Fault),
        150 => Some(Way::Kill),
        _ if job % 1999 == 9 => Some(Way::Stop),
        _ => None,
    }
}

const SIGNALS: [i32; 4] = [libc::SIGKILL, libc::SIGSEGV, libc::SIGABRT, libc::SIGTERM];

/// May a job end so, where workers are killed and stopped by others all the time?
fn explained(job: u64, result: &Result<u64, JobError>) -> bool {
    match result {
        Ok(number) => *number == 3 * job && fate(job).is_none(),
        Err(JobError::Died { death: Death { ended, out_of_memory: false, stack_overflow: false }, attempts: 1 }) => {
            match ended {
                Ended::Exited(code) => *code == 7 && fate(job) == Some(Way::Exit(7)),
                Ended::Signaled(signal) => SIGNALS.contains(signal),
                Ended::Unknown => false,
            }
        }
        Err(JobError::TimedOut { attempts: 1, .. }) => true,
        Err(_) => false,
    }
}

/// Kills and stops workers until it is told to end.
fn kill_at_random<J, R>(pool: &Pool<Bytes, J, R>, seed: u64, enough: &AtomicBool) {
    let mut dice = Dice(seed);
    while !enough.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_micros(500 + dice.roll(8000)));
        let workers = pool.workers();
        let Some(&worker) = workers.get(dice.roll(workers.len().max(1) as u64) as usize) else { continue };
        let signal = if dice.roll(40) == 0 { libc::SIGSTOP } else { SIGNALS[dice.roll(4) as usize] };
        // The worker may be dead, but its number is not another's so soon.
        signal::send(worker, signal);
    }
}

fn storm(sent: Sent, jobs: u64, seed: u64) -> Outcome {
    // Once before, for what is made once.
    drop(crate::pool_kit::doubling(1)?);
    let frozen = data()?;
    let before = descriptors();
    let (begun, ended) = (table(jobs as usize)?, table(jobs as usize)?);
    let pool =
        Pool::builder().workers(4).time_limit(Duration::from_millis(150)).spawn(frozen, move |_, job: u64| {
            begun[job as usize].fetch_add(1, Ordering::SeqCst);
            if let Some(way) = fate(job) {
                way.go();
            }
            // Long enough to be killed in.
            let mut sum = 0u64;
            for n in 0..job % 5 * 2000 {
                sum = std::hint::black_box(sum + n);
            }
            ended[job as usize].fetch_add(1, Ordering::SeqCst);
            3 * job
        })?;
    let results = in_time(Duration::from_secs(100 + jobs / 500), || {
        let enough = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| kill_at_random(&pool, seed, &enough));
            let results: Vec<Result<u64, JobError>> = match sent {
                Sent::Singly => {
                    let tickets: Vec<_> = (0..jobs).map(|job| pool.submit(job).expect("open")).collect();
                    tickets.into_iter().map(|ticket| ticket.wait()).collect()
                }
                Sent::Chunked(None) => pool.map(0..jobs).collect(),
                Sent::Chunked(Some(many)) => pool.map(0..jobs).chunk(many).collect(),
                Sent::Unordered(many) => {
                    let results = pool.map_unordered(0..jobs);
                    let mut results: Vec<_> = match many {
                        Some(many) => results.chunk(many).collect(),
                        None => results.collect(),
                    };
                    results.sort_by_key(|(at, _)| *at);
                    assert!(results.iter().enumerate().all(|(at, (number, _))| at == *number), "one of each");
                    results.into_iter().map(|(_, result)| result).collect()
                }
            };
            enough.store(true, Ordering::SeqCst);
            results
        })
    })?;
    assert_eq!(results.len() as u64, jobs);
    let mut failed = 0;
    for (job, result) in results.iter().enumerate() {
        let (begun, ended) = (begun[job].load(Ordering::SeqCst), ended[job].load(Ordering::SeqCst));
        assert!(explained(job as u64, result), "{sent:?}, seed {seed}, job {job}: {result:?}");
        assert!(begun <= 1, "{sent:?}, seed {seed}: job {job} was run {begun} times");
        assert!(result.is_err() || (begun, ended) == (1, 1), "{sent:?}, seed {seed}: job {job}");
        failed += u64::from(result.is_err());
    }
    let ended_themselves = (0..jobs).filter(|job| fate(*job).is_some()).count() as u64;
    assert!((ended_themselves..jobs / 2).contains(&failed), "{failed} of {jobs}, seed {seed}");
    // And the pool is as good as new.
    assert_eq!(pool.submit(1)?.wait(), Ok(3));
    let stats = pool.stats();
    eprintln!("{sent:?}: {failed} of {jobs} jobs failed, {stats:?}");
    in_time(Duration::from_secs(30), || pool.shutdown(Shutdown::Cancel).map(|_| ()))??;
    assert!(!has_children(), "no process stays");
    assert_eq!((descriptors(), pool_mappings()), (before, 0));
    passed()
}

/// Each storm has its own process and its own seed; a longer one by `COWBELL_SOAK`.
fn storms() -> Vec<Trial> {
    let jobs = if soak() { 300_000 } else { 10_000 };
    let forms = [
        ("singly", Sent::Singly),
        ("one_by_one_in_order", Sent::Chunked(Some(1))),
        ("in_batches", Sent::Chunked(None)),
        ("in_large_batches_without_order", Sent::Unordered(Some(100))),
    ];
    forms
        .into_iter()
        .map(|(name, sent)| {
            let name = format!("pool_storm::ten_thousand_jobs_{name}_end_once_though_workers_are_killed_at_random");
            claim_within(Duration::from_secs(180 + jobs / 100), &name, move || {
                let seed = std::env::var("COWBELL_SEED").ok().and_then(|seed| seed.parse().ok());
                storm(sent, jobs, seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1))
            })
        })
        .collect()
}

fn tickets_are_cancelled_dropped_polled_and_awaited_by_many_threads_and_none_gets_anothers_result() -> Outcome {
    let rounds = if soak() { 40_000 } else { 1500 };
    let begun = table(6 * rounds)?;
    let pool = Pool::builder().workers(3).time_limit(Duration::from_secs(5)).spawn(data()?, move |_, job: u64| {
        begun[job as usize].fetch_add(1, Ordering::SeqCst);
        if job % 100 == 3 {
            std::thread::sleep(Duration::from_millis(3));
        }
        (job, vec![job; (job % 7) as usize * 100])
    })?;
    let right = |job: u64, result: &Result<(u64, Vec<u64>), JobError>| match result {
        Ok((number, many)) => *number == job && many.len() as u64 == job % 7 * 100 && many.iter().all(|n| *n == job),
        Err(e) => *e == JobError::Cancelled,
    };
    let cancelled = AtomicU64::new(0);
    in_time(Duration::from_secs(100), || {
        std::thread::scope(|scope| {
            for thread in 0..6u64 {
                let (pool, cancelled) = (&pool, &cancelled);
                scope.spawn(move || {
                    let mut dice = Dice(thread + 1);
                    let mut open = Vec::new();
                    let mut context = Context::from_waker(Waker::noop());
                    for job in thread * rounds as u64..(thread + 1) * rounds as u64 {
                        open.push((job, pool.submit(job).expect("open"), false));
                        if dice.roll(3) > 0 && open.len() < 300 {
                            continue;
                        }
                        let (job, mut ticket, told) = open.swap_remove(dice.roll(open.len() as u64) as usize);
                        let check = |result: &Result<_, _>| {
                            assert!(right(job, result), "job {job}: {result:?}");
                            assert!(result.is_ok() || told, "job {job} was not cancelled");
                        };
                        match dice.roll(8) {
                            0 => drop(ticket),
                            1 | 2 => {
                                let told = told | ticket.cancel().expect("the pool is there");
                                cancelled.fetch_add(1, Ordering::SeqCst);
                                open.push((job, ticket, told));
                            }
                            3 => match Pin::new(&mut ticket).poll(&mut context) {
                                Poll::Ready(result) => check(&result),
                                Poll::Pending => open.push((job, ticket, told)),
                            },
                            4 => match ticket.try_wait() {
                                Ok(result) => check(&result),
                                Err(ticket) => open.push((job, ticket, told)),
                            },
                            5 => {
                                let _done = ticket.is_done();
                                open.push((job, ticket, told));
                            }
                            _ => check(&ticket.wait()),
                        }
                    }
                    for (job, ticket, told) in open {
                        let result = ticket.wait();
                        assert!(right(job, &result) && (result.is_ok() || told), "job {job}: {result:?}");
                    }
                });
            }
        });
    })?;
    assert!(begun.iter().all(|count| count.load(Ordering::SeqCst) <= 1));
    assert!(cancelled.load(Ordering::SeqCst) > 100);
    assert_eq!(pool.submit(1)?.wait()?.0, 1);
    passed()
}

fn jobs_that_take_all_memory_of_a_control_group_fail_alone() -> Outcome {
    let group = match limited_group(96 << 20) {
        Ok(group) => group,
        Err(why) => return skipped(format!("needs a control group of its own: {why}")),
    };
    let left = apart(|| {
        group.enter()?;
        in_group()
    })?;
    assert!(left.success(), "{left:?}");
    passed()
}

fn in_group() -> Result<(), Failed> {
    const JOBS: u64 = 400;
    let begun = SharedWords::new(JOBS as usize)?;
    let begun: &'static [AtomicU64] = Box::leak(Box::new(begun)).words();
    let greedy = |job: u64| job % 57 == 11;
    let pool = Pool::builder().workers(2).spawn(data()?, move |_, job: u64| {
        begun[job as usize].fetch_add(1, Ordering::SeqCst);
        if greedy(job) {
            // More than the group has, touched bit by bit.
            let mut taken = vec![0u8; 512 << 20];
            taken.iter_mut().step_by(1024).for_each(|byte| *byte = 1);
            std::hint::black_box(&taken);
        }
        job
    })?;
    for (chunk, base) in [(1, 0), (50, 200)] {
        let results: Vec<_> = in_time(Duration::from_secs(60), || pool.map(base..base + 200).chunk(chunk).collect())?;
        for (job, result) in (base..).zip(results) {
            match result {
                Ok(number) => assert!(number == job && !greedy(job)),
                Err(JobError::Died {
                    death: Death { ended: Ended::Signaled(libc::SIGKILL), out_of_memory, .. },
                    ..
                }) => {
                    // The kernel may take the other worker, too: it is as old.
                    assert!(out_of_memory, "job {job}");
                }
                other => return Err(format!("job {job}: {other:?}").into()),
            }
            assert_eq!(begun[job as usize].load(Ordering::SeqCst), 1, "job {job}");
        }
    }
    assert!(pool.stats().deaths >= 7, "{:?}", pool.stats());
    until("the workers are replaced", || pool.stats().started == 2 + pool.stats().deaths)?;
    assert_eq!(pool.submit(0)?.wait(), Ok(0));
    Ok(())
}

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    let mut trials = storms();
    trials.extend(claims![
        tickets_are_cancelled_dropped_polled_and_awaited_by_many_threads_and_none_gets_anothers_result,
        jobs_that_take_all_memory_of_a_control_group_fail_alone
    ]);
    trials
}
