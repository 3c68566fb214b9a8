//! Tickets as futures: of a runtime, of a hand-written executor, and of nobody any more.

use crate::case::{Outcome, passed};
use crate::look::{SOON, has_children, until};
use crate::pool_kit::{Gate, adopt_orphans, all_end_soon, data, doubling, in_time, pool_mappings, table, zygote_of};
use cowbell::pool::{JobError, Pool, Ticket};
use cowbell::sys::{process, procfs, signal};
use libtest_mimic::Trial;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

/// A runtime of some threads, or on this one alone.
pub fn runtime(threads: usize) -> std::io::Result<Runtime> {
    match threads {
        0 => Builder::new_current_thread().enable_time().build(),
        _ => Builder::new_multi_thread().worker_threads(threads).enable_time().build(),
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The smallest executor there is.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// A result that awaits another job while it is read.
#[derive(Debug, PartialEq)]
struct Awaits(u64);

static ASKED: std::sync::OnceLock<Pool<cowbell::arena::Vec<u64>, u64, Awaits>> = std::sync::OnceLock::new();

impl Serialize for Awaits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Awaits {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = u64::deserialize(from)?;
        if let (true, Some(pool)) = (value > 0, ASKED.get()) {
            let deeper = pool.submit(value - 1).expect("open");
            assert_eq!(block_on(deeper), Ok(Awaits(value - 1)));
        }
        Ok(Self(value))
    }
}

/// The result was read with the ticket's lock held, or by the thread that looks after all futures: nobody woke the inner one.
fn a_result_may_await_other_jobs_while_it_is_read() -> Outcome {
    let arena = cowbell::arena::Arena::builder("awaits").capacity(1 << 20).build()?;
    let mut data = cowbell::arena::Vec::new_in(*arena);
    data.extend(0..8u64);
    let gate = Gate::new()?;
    let pool =
        Pool::builder().workers(1).spawn(arena.freeze(data)?, move |data: &cowbell::arena::Vec<u64>, at: u64| {
            if at == 3 {
                gate.pass();
            }
            Awaits(data[at as usize])
        })?;
    let pool = ASKED.get_or_init(|| pool);
    in_time(SOON, || {
        // One that is ready when it is asked for, and one that is awaited before.
        let ready = pool.submit(2).expect("open");
        while !ready.is_done() {
            process::yield_now();
        }
        assert_eq!(block_on(ready), Ok(Awaits(2)));
        let mut awaited = pool.submit(3).expect("open");
        let asleep = Pin::new(&mut awaited)
            .poll(&mut Context::from_waker(&Waker::from(Arc::new(Unpark(std::thread::current())))));
        assert!(asleep.is_pending());
        gate.reached().expect("the job waits");
        gate.open();
        assert_eq!(block_on(awaited), Ok(Awaits(3)));
    })?;
    passed()
}

fn tickets_are_futures_of_any_executor() -> Outcome {
    let pool = doubling(2)?;
    in_time(SOON, || {
        for job in 0..500 {
            assert_eq!(block_on(pool.submit(job).expect("open")), Ok(2 * job));
        }
        let sum = block_on(async {
            let mut sum = 0;
            for ticket in (0..500).map(|job| pool.submit(job)) {
                sum += ticket.expect("open").await.expect("a double");
            }
            sum
        });
        assert_eq!(sum, 499 * 500);
    })?;
    passed()
}

fn many_tasks_await_many_tickets() -> Outcome {
    let pool = Arc::new(doubling(2)?);
    for threads in [0, 1, 3] {
        in_time(2 * SOON, || {
            runtime(threads).expect("a runtime").block_on(async {
                let tasks: Vec<_> = (0..20u64)
                    .map(|task| {
                        let pool = Arc::clone(&pool);
                        tokio::spawn(async move {
                            for round in 0..10 {
                                let jobs = (0..30).map(|job| 1000 * task + 100 * round + job);
                                let tickets: Vec<_> = jobs.map(|job| (job, pool.submit(job).expect("open"))).collect();
                                for (job, ticket) in tickets {
                                    assert_eq!(ticket.await, Ok(2 * job));
                                }
                            }
                        })
                    })
                    .collect();
                for task in tasks {
                    task.await.expect("no panic");
                }
            });
        })?;
    }
    assert_eq!(pool.stats().jobs, 3 * 20 * 300);
    passed()
}

fn more_tickets_than_fit_are_awaited_at_once() -> Outcome {
    let pool = doubling(2)?;
    in_time(2 * SOON, || {
        runtime(0).expect("a runtime").block_on(async {
            let tasks: Vec<_> = (0..9000u64)
                .map(|job| {
                    let ticket = pool.submit(job).expect("open");
                    tokio::spawn(async move { assert_eq!(ticket.await, Ok(2 * job)) })
                })
                .collect();
            for task in tasks {
                task.await.expect("no panic");
            }
        });
    })?;
    passed()
}

fn a_future_may_be_given_up_by_a_timeout_a_select_or_an_abort() -> Outcome {
    let (gate, begun) = (Gate::new()?, table(16)?);
    let pool = Pool::builder().workers(1).spawn(data()?, move |_, job: usize| {
        begun[job].fetch_add(1, Ordering::SeqCst);
        if job == 0 {
            gate.pass();
        }
        job
    })?;
    let pool = Arc::new(pool);
    in_time(SOON, || {
        runtime(2).expect("a runtime").block_on(async {
            let short = Duration::from_millis(30);
            let mut running = pool.submit(0).expect("open");
            assert!(tokio::time::timeout(short, &mut running).await.is_err(), "the gate is closed");
            // This one waits in the queue, and is taken back.
            assert!(tokio::time::timeout(short, pool.submit(1).expect("open")).await.is_err());
            tokio::select! {
                result = pool.submit(2).expect("open") => panic!("{result:?}"),
                () = tokio::time::sleep(short) => {}
            }
            let waiting = pool.submit(3).expect("open");
            let task = tokio::spawn(waiting);
            tokio::task::yield_now().await;
            task.abort();
            assert!(task.await.is_err_and(|e| e.is_cancelled()));
            gate.open();
            tokio::select! {
                biased;
                result = &mut running => assert_eq!(result, Ok(0)),
                () = tokio::time::sleep(SOON) => panic!("too late"),
            }
            assert_eq!(pool.submit(4).expect("open").await, Ok(4));
        });
    })?;
    let counts: Vec<u64> = begun.iter().take(5).map(|count| count.load(Ordering::SeqCst)).collect();
    assert_eq!(counts, [1, 0, 0, 0, 1]);
    assert_eq!(pool.stats().deaths, 0);
    passed()
}

fn awaited_tickets_can_be_cancelled_and_fail() -> Outcome {
    let gate = Gate::new()?;
    let pool = Pool::builder().workers(1).spawn(data()?, move |_, job: u64| match job {
        0 => gate.pass(),
        1 => panic!("one"),
        2 => std::process::exit(2),
        _ => {}
    })?;
    in_time(SOON, || {
        let mut running = pool.submit(0).expect("open");
        gate.reached().expect("it begins");
        let waker = Waker::noop();
        assert!(Pin::new(&mut running).poll(&mut Context::from_waker(waker)).is_pending());
        assert!(running.cancel().expect("the pool is there"));
        assert_eq!(block_on(running), Err(JobError::Cancelled));
        assert!(matches!(block_on(pool.submit(1).expect("open")), Err(JobError::Panicked { .. })));
        assert!(matches!(block_on(pool.submit(2).expect("open")), Err(JobError::Died { .. })));
        assert_eq!(block_on(pool.submit(3).expect("open")), Ok(()));
    })?;
    passed()
}

fn the_waker_of_the_last_poll_is_woken() -> Outcome {
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let gate = Gate::new()?;
    let pool = Pool::builder().workers(1).spawn(data()?, move |_, job: u64| {
        gate.pass();
        job
    })?;
    let mut ticket = pool.submit(5)?;
    let (first, last) = (Arc::new(Count(AtomicUsize::new(0))), Arc::new(Count(AtomicUsize::new(0))));
    for counter in [&first, &last] {
        let waker = Waker::from(Arc::clone(counter));
        assert!(Pin::new(&mut ticket).poll(&mut Context::from_waker(&waker)).is_pending());
    }
    gate.open();
    until("the last is woken", || last.0.load(Ordering::SeqCst) == 1)?;
    assert_eq!(first.0.load(Ordering::SeqCst), 0);
    let waker = Waker::from(Arc::clone(&last));
    assert_eq!(Pin::new(&mut ticket).poll(&mut Context::from_waker(&waker)), Poll::Ready(Ok(5)));
    passed()
}

fn a_ticket_that_was_polled_can_be_waited_for() -> Outcome {
    let gate = Gate::new()?;
    let pool = Pool::builder().workers(1).spawn(data()?, move |_, job: u64| {
        gate.pass();
        job
    })?;
    let mut tickets: Vec<Ticket<u64>> = (0..3).map(|job| pool.submit(job)).collect::<Result<_, _>>()?;
    for ticket in &mut tickets {
        assert!(Pin::new(ticket).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    gate.open();
    in_time(SOON, || {
        for (job, ticket) in tickets.into_iter().enumerate() {
            assert_eq!(ticket.wait(), Ok(job as u64));
        }
    })?;
    passed()
}

fn futures_end_when_their_pool_does() -> Outcome {
    adopt_orphans()?;
    for killed in [false, true] {
        let gate = Gate::new()?;
        let pool = Pool::builder().workers(1).spawn(data()?, move |_, job: u64| {
            gate.pass();
            job
        })?;
        let zygote = zygote_of(&pool)?;
        in_time(SOON, || {
            let runtime = runtime(2).expect("a runtime");
            runtime.block_on(async {
                let tickets: Vec<_> = (0..5).map(|job| pool.submit(job).expect("open")).collect();
                let tasks: Vec<_> = tickets.into_iter().map(tokio::spawn).collect();
                gate.reached().expect("it begins");
                // All are polled once.
                tokio::time::sleep(Duration::from_millis(20)).await;
                let mut pool = Some(pool);
                if killed {
                    signal::kill(zygote);
                } else {
                    drop(pool.take());
                }
                for task in tasks {
                    let result = task.await.expect("no panic");
                    let right = match killed {
                        true => matches!(&result, Err(JobError::PoolGone(_))),
                        false => matches!(&result, Err(JobError::Cancelled)),
                    };
                    assert!(right, "killed: {killed}, {result:?}");
                }
                drop(pool);
            });
        })?;
        if killed {
            all_end_soon()?;
        }
        assert!(!has_children());
        until("the pool's thread and memory are gone", || {
            pool_mappings() == 0 && procfs::signal_safe::thread_count() == Ok(1)
        })?;
    }
    passed()
}

fn a_pool_and_its_futures_leave_nothing_behind() -> Outcome {
    let pool = doubling(1)?;
    let threads = || procfs::signal_safe::thread_count().unwrap_or(0);
    assert_eq!(pool.submit(1)?.wait(), Ok(2));
    assert_eq!(threads(), 1, "who only waits has no thread of the pool's");
    assert_eq!(block_on(pool.submit(2)?), Ok(4));
    assert_eq!(threads(), 2);
    // One that is awaited no more when the pool ends, and one that is not read.
    let mut left = pool.submit(3)?;
    let _pending = Pin::new(&mut left).poll(&mut Context::from_waker(Waker::noop()));
    drop(pool);
    drop(left);
    until("the thread is gone", || threads() == 1)?;
    until("the memory is gone", || pool_mappings() == 0)?;
    assert!(!has_children());
    passed()
}

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    claims![
        tickets_are_futures_of_any_executor,
        a_result_may_await_other_jobs_while_it_is_read,
        many_tasks_await_many_tickets,
        more_tickets_than_fit_are_awaited_at_once,
        a_future_may_be_given_up_by_a_timeout_a_select_or_an_abort,
        awaited_tickets_can_be_cancelled_and_fail,
        the_waker_of_the_last_poll_is_woken,
        a_ticket_that_was_polled_can_be_waited_for,
        futures_end_when_their_pool_does,
        a_pool_and_its_futures_leave_nothing_behind,
    ]
}
