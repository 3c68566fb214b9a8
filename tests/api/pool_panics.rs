//! Tickets as futures whose results, wakers and leftovers panic: each fails alone.

use crate::case::{Outcome, passed};
use crate::look::{SOON, until};
use crate::pool_futures::{block_on, runtime};
use crate::pool_kit::{Gate, data, in_time};
use cowbell::pool::{JobError, Pool};
use libtest_mimic::Trial;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};

#[derive(serde::Serialize)]
struct Bomb(u64);

impl<'de> serde::Deserialize<'de> for Bomb {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match u64::deserialize(from)? {
            13 => panic!("unlucky"),
            n => Ok(Self(n)),
        }
    }
}

fn a_result_that_panics_while_it_is_read_fails_alone() -> Outcome {
    let pool = Pool::builder().workers(1).spawn(data()?, |_, job: u64| Bomb(job))?;
    in_time(SOON, || {
        runtime(1).expect("a runtime").block_on(async {
            for round in 0..3 {
                let tickets: Vec<_> = (10..16).map(|job| pool.submit(job).expect("open")).collect();
                let tasks: Vec<_> = tickets.into_iter().map(tokio::spawn).collect();
                for (job, task) in (10..16).zip(tasks) {
                    let result = task.await.expect("the task does not panic");
                    match job {
                        13 => assert!(matches!(result, Err(JobError::NotPassed(_))), "round {round}"),
                        _ => assert!(result.is_ok_and(|bomb| bomb.0 == job)),
                    }
                }
            }
        });
    })?;
    passed()
}

/// Counts how often it is called, and panics.
struct Fails(AtomicUsize);

impl Wake for Fails {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
        std::panic::panic_any(BadDrop);
    }
}

/// A panic's leftovers may panic again when they are dropped.
struct BadDrop;

impl Drop for BadDrop {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "dropped by who caught it");
    }
}

/// A result of this type panics while it is read.
#[derive(Debug)]
struct Unread;

impl Serialize for Unread {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

impl<'de> Deserialize<'de> for Unread {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        std::panic::panic_any(BadDrop)
    }
}

fn a_waker_that_panics_ends_no_other_tasks_wait() -> Outcome {
    let gate = Gate::new()?;
    let pool = Pool::builder().workers(1).spawn(data()?, move |_, job: u64| {
        gate.pass();
        2 * job
    })?;
    let called = Arc::new(Fails(AtomicUsize::new(0)));
    let mut given_up = pool.submit(0)?;
    let waker = Waker::from(Arc::clone(&called));
    assert!(Pin::new(&mut given_up).poll(&mut Context::from_waker(&waker)).is_pending());
    gate.open();
    until("the waker is called", || called.0.load(Ordering::SeqCst) == 1)?;
    in_time(SOON, || {
        for job in 1..100 {
            assert_eq!(block_on(pool.submit(job).expect("open")), Ok(2 * job));
        }
    })?;
    passed()
}

fn what_a_panic_leaves_behind_is_not_dropped() -> Outcome {
    let pool = Pool::builder().workers(1).spawn(data()?, |_, _: u64| Unread)?;
    in_time(SOON, || {
        for job in 0..20 {
            let result = block_on(pool.submit(job).expect("open"));
            assert!(matches!(result, Err(JobError::NotPassed(_))), "{result:?}");
        }
    })?;
    passed()
}

pub fn trials() -> Vec<Trial> {
    claims![
        a_result_that_panics_while_it_is_read_fails_alone,
        a_waker_that_panics_ends_no_other_tasks_wait,
        what_a_panic_leaves_behind_is_not_dropped,
    ]
}
