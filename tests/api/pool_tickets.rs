//! Tickets: waited for, cancelled, dropped, awaited together, and from several threads.

use crate::case::{Outcome, passed};
use crate::look::{SOON, until};
use crate::pool_kit::{Gate, data, doubling, gated, in_time, table};
use cowbell::pool::{JobError, Pool, Ticket, as_completed};
use libtest_mimic::{Failed, Trial};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

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
    let (gate, pool) = gated(1, 1)?;
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
    let (gate, pool) = gated(1, 0)?;
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
    // More threads than there are event counts.
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

pub fn trials() -> Vec<Trial> {
    claims![
        a_ticket_is_waited_for_for_ever_for_a_while_or_not_at_all,
        cancel_takes_back_what_waits_kills_what_runs_and_leaves_what_is_done,
        a_job_that_is_cancelled_twice_or_by_two_threads_is_cancelled_once,
        as_completed_yields_results_as_their_jobs_end,
        tickets_of_two_pools_are_awaited_together_and_the_end_of_one_pool_is_not_the_others,
        several_threads_use_one_pool_at_once,
        more_tickets_may_be_open_than_batches_fit_into_the_pool,
        what_is_dropped_is_taken_back_and_the_pool_goes_on,
        tickets_dropped_by_the_thousand_leave_room,
        many_threads_wait_and_all_are_woken,
    ]
}
