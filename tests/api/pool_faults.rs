//! Workers, zygotes and parents that die: who fails, who goes on, and that nobody stays behind.

use crate::case::{Outcome, passed};
use crate::look::{Bytes, SOON, has_children, until, write};
use crate::pool_kit::{Way, adopt_orphans, all_end_soon, data, descendants, in_time, table, zygote_of};
use cowbell::fork::Ended;
use cowbell::page::PageCount;
use cowbell::pool::{Death, JobError, OnSignal, OverBudget, Pool, PoolBuilder, Shutdown, Signal};
use cowbell::sys::{process, signal};
use cowbell::watch::Watch;
use libtest_mimic::{Failed, Trial};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Ways that end a worker at once.
const WAYS: [Way; 8] =
    [Way::Exit(0), Way::Exit(1), Way::Exit(255), Way::Kill, Way::Term, Way::Fault, Way::Abort, Way::Overflow];

pub fn mortal(settings: PoolBuilder) -> cowbell::Result<Pool<Bytes, (u64, Option<Way>), u64>> {
    let settings = settings.worker_signal(Signal::Terminate, OnSignal::Default);
    settings.spawn(data()?, |_, (job, way): (u64, Option<Way>)| {
        if let Some(way) = way {
            way.go();
        }
        job
    })
}

/// A hundred jobs of which the 37th goes this way.
fn hundred(way: Way) -> impl Iterator<Item = (u64, Option<Way>)> {
    (0..100).map(move |job| (job, (job == 37).then_some(way)))
}

fn only_the_job_that_a_dead_worker_held_fails() -> Outcome {
    let pool = mortal(Pool::builder().workers(2))?;
    let mut deaths = 0;
    for way in WAYS {
        for chunk in [1, 100, 13] {
            let results: Vec<_> = pool.map(hundred(way)).chunk(chunk).collect();
            assert_eq!(results.len(), 100);
            for (job, result) in results.iter().enumerate() {
                match job {
                    37 => assert!(result.as_ref().is_err_and(|e| way.explains(e)), "{way:?}: {result:?}"),
                    _ => assert_eq!(*result, Ok(job as u64), "{way:?}"),
                }
            }
            deaths += 1;
        }
        let e = pool.submit((0, Some(way)))?.wait().expect_err("it died");
        assert!(way.explains(&e), "{way:?}: {e}");
        deaths += 1;
    }
    until("the last is replaced", || pool.stats().started == 2 + deaths)?;
    assert_eq!(pool.stats().deaths, deaths);
    let exits = pool.take_exits()?;
    assert_eq!(exits.len() as u64, deaths);
    assert!(exits.iter().all(|exit| !exit.left_by_itself));
    let all: Vec<_> = exits.iter().map(|exit| exit.death.ended).collect();
    assert!(all.contains(&Ended::Exited(255)) && all.contains(&Ended::Signaled(libc::SIGABRT)), "{all:?}");
    passed()
}

fn the_first_and_the_last_of_a_batch_may_die_and_all_of_them() -> Outcome {
    let pool = mortal(Pool::builder().workers(2))?;
    let jobs = |dies: fn(u64) -> bool| (0..20).map(move |job| (job, dies(job).then_some(Way::Kill)));
    for (dies, count) in
        [((|job| job == 0 || job == 19) as fn(u64) -> bool, 2), (|_| true, 20), (|job| job % 2 == 0, 10)]
    {
        for chunk in [20, 7] {
            let results: Vec<_> = pool.map(jobs(dies)).chunk(chunk).collect();
            assert_eq!(results.len(), 20);
            assert_eq!(
                results.iter().filter(|result| matches!(result, Err(JobError::Died { attempts: 1, .. }))).count(),
                count
            );
            for (job, result) in results.iter().enumerate().filter(|(job, _)| !dies(*job as u64)) {
                assert_eq!(*result, Ok(job as u64));
            }
        }
    }
    passed()
}

fn a_time_limit_ends_exactly_the_slow_job() -> Outcome {
    let limit = Duration::from_millis(400);
    let pool = Pool::builder().workers(2).time_limit(limit).spawn(data()?, |_, job: u64| {
        // All of a batch together take longer than the limit, but one job alone takes it.
        std::thread::sleep(if job == 37 { Duration::from_secs(3600) } else { Duration::from_millis(6) });
        job
    })?;
    for chunk in [1, 100] {
        let begun = Instant::now();
        let results: Vec<_> = pool.map(0..100).chunk(chunk).collect();
        for (job, result) in results.iter().enumerate() {
            match job {
                37 => assert_eq!(*result, Err(JobError::TimedOut { limit, attempts: 1 })),
                _ => assert_eq!(*result, Ok(job as u64)),
            }
        }
        assert!(begun.elapsed() > limit && begun.elapsed() < SOON);
    }
    // After a while without jobs the limit still holds.
    std::thread::sleep(2 * limit);
    assert_eq!(pool.submit(37)?.wait(), Err(JobError::TimedOut { limit, attempts: 1 }));
    assert_eq!(pool.submit(5)?.wait(), Ok(5));
    // The time in the queue is not the job's.
    let tickets: Vec<_> = (0..100).map(|_| pool.submit(1)).collect::<Result<_, _>>()?;
    assert!(tickets.into_iter().all(|ticket| ticket.wait() == Ok(1)));
    assert_eq!(pool.stats().deaths, 3);
    passed()
}

fn a_stopped_worker_is_found_by_the_time_limit() -> Outcome {
    let pool = mortal(Pool::builder().workers(2).time_limit(Duration::from_millis(400)))?;
    for chunk in [1, 100] {
        let results: Vec<_> = in_time(SOON, || pool.map(hundred(Way::Stop)).chunk(chunk).collect())?;
        for (job, result) in results.iter().enumerate() {
            match job {
                37 => assert!(result.as_ref().is_err_and(|e| Way::Stop.explains(e)), "{result:?}"),
                _ => assert_eq!(*result, Ok(job as u64)),
            }
        }
    }
    // All that are idle.
    until("both are alive", || pool.stats().started == 4)?;
    for worker in pool.workers() {
        signal::send(worker, signal::STOP);
    }
    let results = in_time(SOON, || pool.map((0..50).map(|job| (job, None))).collect::<Result<Vec<_>, _>>())?;
    assert_eq!(results?, (0..50).collect::<Vec<_>>());
    passed()
}

fn a_job_is_tried_as_often_as_allowed() -> Outcome {
    let tries = table(200)?;
    // The limit is so long that a worker which aborts is gone before, on a busy machine too.
    let limit = Duration::from_millis(400);
    let pool = Pool::builder().workers(2).max_attempts(3).time_limit(limit).spawn(data()?, move |_, job: u64| {
        let attempt = tries[job as usize].fetch_add(1, Ordering::SeqCst) + 1;
        match job % 100 {
            // Poison: it dies however often.
            10 => std::process::abort(),
            // Better luck the second, and the third time.
            20 if attempt < 2 => std::process::exit(9),
            30 if attempt < 3 => std::process::exit(9),
            40 => std::thread::sleep(Duration::from_secs(3600)),
            // A panic is not tried again.
            50 => panic!("no"),
            _ => {}
        }
        (job, attempt)
    })?;
    for (base, chunk) in [(0, 100), (100, 1)] {
        let results: Vec<_> = pool.map(base..base + 100).chunk(chunk).collect();
        for (job, result) in results.into_iter().enumerate() {
            let job = job as u64;
            match job {
                10 => assert!(
                    matches!(&result, Err(e @ JobError::Died { attempts: 3, .. }) if Way::Abort.explains(e)),
                    "{result:?}"
                ),
                40 => assert_eq!(result, Err(JobError::TimedOut { limit, attempts: 3 })),
                50 => assert!(matches!(result, Err(JobError::Panicked { .. }))),
                20 => assert_eq!(result, Ok((base + job, 2))),
                30 => assert_eq!(result, Ok((base + job, 3))),
                _ => assert_eq!(result, Ok((base + job, 1))),
            }
        }
        let counts: Vec<u64> = tries.iter().skip(base as usize).take(100).map(|n| n.load(Ordering::SeqCst)).collect();
        let expected: Vec<u64> = (0..100)
            .map(|job| match job {
                10 | 30 | 40 => 3,
                20 => 2,
                _ => 1,
            })
            .collect();
        assert_eq!(counts, expected);
    }
    passed()
}

fn an_idle_worker_that_is_killed_is_replaced_and_no_job_is_hurt() -> Outcome {
    let pool = mortal(Pool::builder().workers(2))?;
    for round in 1..=20 {
        let worker = pool.workers()[round as usize % 2];
        signal::kill(worker);
        let results: Vec<_> = in_time(SOON, || pool.map((0..20).map(|job| (job, None))).collect())?;
        // The one that was just about to take a job is the exception that must say so.
        let bad: Vec<_> = results.iter().filter(|result| result.is_err()).collect();
        assert!(bad.len() <= 1 && bad.iter().all(|e| e.as_ref().is_err_and(|e| Way::Kill.explains(e))), "{bad:?}");
        until("it is replaced", || pool.stats().started == 2 + round)?;
    }
    passed()
}

fn idle_workers_that_are_killed_again_and_again_are_started_less_often_and_the_pool_stays() -> Outcome {
    let pool = mortal(Pool::builder().workers(2))?;
    until("workers are started again and again", || {
        pool.workers().into_iter().for_each(signal::kill);
        pool.stats().started > 26
    })?;
    assert!(pool.stats().started < 40, "{:?}", pool.stats());
    // The last one may have been killed just when it took the job.
    until("a job is done", || pool.submit((1, None)).is_ok_and(|ticket| ticket.wait() == Ok(1)))?;
    assert!(pool.map((0..100).map(|job| (job, None))).all(|result| result.is_ok()));
    passed()
}

/// The number of descriptors another process may have.
fn limit_descriptors(pid: i32, most: u64) -> Result<u64, Failed> {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let limit = Rlimit { current: Some(most), maximum: None };
    let limit = Rlimit { maximum: rustix::process::getrlimit(Resource::Nofile).maximum, ..limit };
    Ok(prlimit(Pid::from_raw(pid), Resource::Nofile, limit)?.current.unwrap_or(1024))
}

fn a_pool_that_cannot_start_workers_says_so_and_recovers() -> Outcome {
    let pool = mortal(Pool::builder().workers(2))?;
    let zygote = zygote_of(&pool)?;
    let before = limit_descriptors(zygote, 3)?;
    // Both die, and no other can be started.
    let dying = [pool.submit((0, Some(Way::Kill)))?, pool.submit((0, Some(Way::Abort)))?];
    for ticket in dying {
        assert!(matches!(ticket.wait(), Err(JobError::Died { .. })));
    }
    let ended = pool.submit((1, None))?.wait_timeout(2 * SOON).map_err(|_| "it waits for ever")?;
    assert!(matches!(&ended, Err(JobError::PoolGone(why)) if why.contains("cannot be started")), "{ended:?}");
    assert!(pool.map((0..5).map(|job| (job, None))).all(|result| matches!(result, Err(JobError::PoolGone(_)))));
    limit_descriptors(zygote, before)?;
    until("it recovers", || pool.submit((7, None)).is_ok_and(|ticket| ticket.wait() == Ok(7)))?;
    assert!(pool.map((0..100).map(|job| (job, None))).all(|result| result.is_ok()));
    drop(pool);
    assert!(!has_children());
    passed()
}

fn drain_runs_what_is_queued_also_when_workers_die_meanwhile() -> Outcome {
    let done = table(300)?;
    let pool = Pool::builder().workers(2).spawn(data()?, move |_, job: u64| {
        if job % 50 == 7 {
            std::process::abort();
        }
        done[job as usize].fetch_add(1, Ordering::SeqCst);
        job
    })?;
    let tickets: Vec<_> = (0..300).map(|job| pool.submit(job)).collect::<Result<_, _>>()?;
    in_time(SOON, || pool.shutdown(Shutdown::Drain).map(|_| ()))??;
    for (job, ticket) in (0..300).zip(tickets) {
        let result = ticket.wait();
        match job % 50 {
            7 => assert!(result.as_ref().is_err_and(|e| Way::Abort.explains(e)), "{result:?}"),
            _ => assert_eq!(result, Ok(job)),
        }
    }
    assert!(!has_children());
    passed()
}

fn a_memory_limit_ends_the_job_that_takes_too_much() -> Outcome {
    let pool = Pool::builder().workers(2).memory_limit(64 << 20).spawn(data()?, |_, mib: usize| {
        let taken = vec![1u8; mib << 20];
        std::hint::black_box(&taken).iter().step_by(1 << 20).map(|&byte| usize::from(byte)).sum::<usize>()
    })?;
    assert_eq!(pool.submit(10)?.wait(), Ok(10));
    for chunk in [1, 3] {
        let results: Vec<_> = pool.map([5, 500, 7]).chunk(chunk).collect();
        assert_eq!((&results[0], &results[2]), (&Ok(5), &Ok(7)));
        assert!(results[1].as_ref().is_err_and(|e| Way::Abort.explains(e)), "{results:?}");
    }
    // The limit is each worker's, and the parent has none.
    assert_eq!(vec![1u8; 500 << 20].len(), 500 << 20);
    passed()
}

fn workers_over_their_copy_budget_retire_and_their_reports_are_exact() -> Outcome {
    for watch in Watch::ALL {
        if let Err(why) = crate::look::usable(watch)? {
            eprintln!("not under {watch}: {why}");
            continue;
        }
        let pool = Pool::builder().workers(1).watch(watch).copy_budget(PageCount(3)).spawn(
            data()?,
            |data: &'static Bytes, pages: Vec<u64>| {
                pages.iter().for_each(|&page| write(data, page));
                std::process::id()
            },
        )?;
        // Three pages are within the budget, however often they are written.
        let first = pool.submit(vec![0, 1, 2])?.wait()?;
        for _ in 0..20 {
            assert_eq!(pool.submit(vec![0, 1, 2])?.wait(), Ok(first));
        }
        assert_eq!(pool.submit(vec![5])?.wait(), Ok(first), "it is counted after the batch");
        let second = pool.submit(vec![1, 2, 3, 4])?.wait()?;
        assert_ne!(second, first);
        let third = pool.submit(vec![])?.wait()?;
        assert_ne!(third, second);
        until("the third is counted", || pool.stats().started == 3)?;
        let stats = pool.stats();
        assert_eq!((stats.retired, stats.over_budget, stats.deaths), (2, 2, 0));
        let exits = pool.take_exits()?;
        let told: Vec<_> = exits
            .iter()
            .map(|exit| (exit.pid as u32, exit.left_by_itself, exit.death.ended, exit.report.copied_pages()))
            .collect();
        assert_eq!(
            told,
            [(first, true, Ended::Exited(0), PageCount(4)), (second, true, Ended::Exited(0), PageCount(4))]
        );
        let last = pool.shutdown(Shutdown::Drain)?;
        assert!(matches!(&last[..], [exit] if exit.report.copied_pages() == PageCount(0)), "{last:?}");
    }
    passed()
}

fn workers_over_their_budget_are_only_counted_if_asked() -> Outcome {
    let pool = Pool::builder().workers(1).copy_budget(PageCount(2)).over_budget(OverBudget::Report).spawn(
        data()?,
        |data: &'static Bytes, page: u64| {
            write(data, page);
            std::process::id()
        },
    )?;
    let pids: Vec<u32> = pool.map(0..8).chunk(1).collect::<Result<_, _>>()?;
    assert!(pids.iter().all(|pid| *pid == pids[0]));
    let stats = pool.stats();
    assert_eq!((stats.retired, stats.started), (0, 1));
    assert!((1..=6).contains(&stats.over_budget), "{stats:?}");
    let exits = pool.shutdown(Shutdown::Drain)?;
    assert!(matches!(&exits[..], [exit] if exit.report.copied_pages() == PageCount(8)), "{exits:?}");
    passed()
}

fn exits_keep_what_a_killed_worker_copied() -> Outcome {
    let pool = Pool::builder().workers(1).spawn(data()?, |data: &'static Bytes, page: u64| {
        write(data, page);
        if page == 6 {
            Way::Kill.go();
        }
    })?;
    let results: Vec<_> = pool.map(4..8).chunk(4).collect();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 3);
    let exits = pool.take_exits()?;
    let death = Death { ended: Ended::Signaled(libc::SIGKILL), out_of_memory: false, stack_overflow: false };
    assert!(
        matches!(&exits[..], [exit] if exit.death == death && exit.report.copied_pages() == PageCount(3)),
        "{exits:?}"
    );
    passed()
}

fn a_pool_without_keepers_takes_a_process_a_worker_less() -> Outcome {
    adopt_orphans()?;
    let pool = mortal(Pool::builder().workers(3).last_census(false))?;
    assert_eq!(descendants(process::pid()).len(), 1 + 3);
    let results: Vec<_> = pool.map(hundred(Way::Kill)).chunk(100).collect();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 99);
    signal::kill(zygote_of(&pool)?);
    drop(pool);
    all_end_soon()?;
    passed()
}

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    claims![
        only_the_job_that_a_dead_worker_held_fails,
        the_first_and_the_last_of_a_batch_may_die_and_all_of_them,
        a_time_limit_ends_exactly_the_slow_job,
        a_stopped_worker_is_found_by_the_time_limit,
        a_job_is_tried_as_often_as_allowed,
        an_idle_worker_that_is_killed_is_replaced_and_no_job_is_hurt,
        idle_workers_that_are_killed_again_and_again_are_started_less_often_and_the_pool_stays,
        a_pool_that_cannot_start_workers_says_so_and_recovers,
        drain_runs_what_is_queued_also_when_workers_die_meanwhile,
        a_memory_limit_ends_the_job_that_takes_too_much,
        workers_over_their_copy_budget_retire_and_their_reports_are_exact,
        workers_over_their_budget_are_only_counted_if_asked,
        exits_keep_what_a_killed_worker_copied,
        a_pool_without_keepers_takes_a_process_a_worker_less,
    ]
}
