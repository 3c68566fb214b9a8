//! The contenders that are threads of this process: rayon, and copying in one thread.

use super::order::{self, Answer, JOB_NS, Order, Peer, Work};
use crate::error::{Error, Result};
use crate::spread::Spread;
use cowbell::sys;
use rayon::prelude::*;
use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicU64, Ordering};

/// The busy job. It is measured by the thread's own time: while a worker waits for a processor its work is not done.
pub(super) fn busy() {
    let end = sys::ran_ns() + JOB_NS;
    while sys::ran_ns() < end {
        // The clock is a system call: not so often that workers disturb each other's scheduler.
        (0..32).for_each(|_| spin_loop());
    }
}

/// Times `jobs` jobs done by `all`, after a few of them to warm up.
pub(super) fn time(jobs: usize, mut all: impl FnMut(usize) -> Result<()>) -> Result<Answer> {
    all((jobs / 50).max(1))?;
    let begun = sys::monotonic_ns();
    all(jobs)?;
    Ok(Answer { ns_per_job: (sys::monotonic_ns() - begun) as f64 / jobs as f64 })
}

/// The median time of `jobs` jobs one after the other, after a few of them to warm up.
pub(super) fn round_trips(jobs: usize, mut one: impl FnMut(usize) -> Result<()>) -> Result<Answer> {
    (0..jobs / 10).try_for_each(&mut one)?;
    let mut times = Vec::with_capacity(jobs);
    for number in 0..jobs {
        let begun = sys::monotonic_ns();
        one(number)?;
        times.push((sys::monotonic_ns() - begun) as f64);
    }
    let spread = Spread::of(times).ok_or_else(|| Error::Input("at least one job".into()))?;
    Ok(Answer { ns_per_job: spread.median })
}

/// rayon.
pub(super) fn rayon(order: &Order) -> Result<Answer> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(order.workers).build();
    let pool = pool.map_err(|e| Error::Failed(format!("rayon: {e}")))?;
    let numbers = |results: Vec<u64>| (0..).zip(results).try_for_each(|(n, result)| order::check_number(n, result));
    match (order.work, order.peer) {
        (Work::RoundTrip, _) => {
            round_trips(order.jobs, |n| order::check_number(n, pool.install(|| black_box(n as u64))))
        }
        (Work::Empty | Work::Busy, Peer::RayonTasks) => time(order.jobs, |jobs| {
            let results: Vec<AtomicU64> = (0..jobs).map(|_| AtomicU64::new(u64::MAX)).collect();
            pool.scope(|scope| {
                for (number, result) in results.iter().enumerate() {
                    scope.spawn(move |_| {
                        if order.work == Work::Busy {
                            busy();
                        }
                        result.store(number as u64, Ordering::Relaxed);
                    });
                }
            });
            numbers(results.into_iter().map(AtomicU64::into_inner).collect())
        }),
        (Work::Empty, _) => {
            time(order.jobs, |jobs| numbers(pool.install(|| (0..jobs as u64).into_par_iter().map(black_box).collect())))
        }
        (Work::Busy, _) => time(order.jobs, |jobs| {
            let job = |number| {
                busy();
                number
            };
            numbers(pool.install(|| (0..jobs as u64).into_par_iter().map(job).collect()))
        }),
        (Work::Lookup, _) => {
            let data: Vec<u64> = order::words(order.bytes).collect();
            time(order.jobs, |jobs| {
                let at = |number| data[order::place(number, data.len())];
                let results: Vec<u64> = pool.install(|| (0..jobs).into_par_iter().map(at).collect());
                results.iter().enumerate().try_for_each(|(n, &word)| order::check_word(n, data.len(), word))
            })
        }
        (Work::Large, _) => {
            let data: Vec<u8> = order::block_bytes(order.bytes).collect();
            time(order.jobs, |jobs| {
                let copy = |number: usize| {
                    let result = block(&data, number, order.bytes).to_vec();
                    order::check_block(number, &result, order.bytes)
                };
                pool.install(|| (0..jobs).into_par_iter().try_for_each(copy))
            })
        }
    }
}

/// The yardstick of the large results: the same bytes copied in one thread.
pub(super) fn memcpy(order: &Order) -> Result<Answer> {
    let data: Vec<u8> = order::block_bytes(order.bytes).collect();
    let mut buffer = vec![0; order.bytes];
    time(order.jobs, |jobs| {
        (0..jobs).try_for_each(|number| {
            let source = block(black_box(&data), number, order.bytes);
            if order.peer == Peer::MemcpyFresh {
                return order::check_block(number, &black_box(source.to_vec()), order.bytes);
            }
            buffer.copy_from_slice(source);
            order::check_block(number, black_box(&buffer), order.bytes)
        })
    })
}

/// The block that job `number` copies.
pub(super) fn block(data: &[u8], number: usize, bytes: usize) -> &[u8] {
    let start = number % order::BLOCKS * bytes;
    data.get(start..start + bytes).unwrap_or_default()
}
