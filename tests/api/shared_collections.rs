//! Vectors and queues in shared writable memory: each element is put in once and taken out once.

use crate::case::{Outcome, Turns, passed};
use crate::look::{SOON, wait};
use crate::shared::all;
use cowbell::fork::{self, ForkOptions};
use cowbell::shared::{Pod, QueueError, SharedArena, Zeroable};
use libtest_mimic::Trial;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Derived by the user, as the documentation says.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[bytemuck(crate = "cowbell::shared::bytemuck")]
#[repr(C)]
struct Edge {
    from: u32,
    to: u32,
    weight: f64,
}

fn a_vector_holds_what_all_put_in() -> Outcome {
    let arena = SharedArena::new("vector", 1 << 20)?;
    let list = arena.vec::<Edge>(4000)?;
    all(4, |number| {
        for n in 0..500 {
            let edge = Edge { from: number as u32, to: n, weight: 0.5 };
            if n % 2 == 0 {
                list.push(edge).expect("there is room");
            } else {
                list.extend_from_slice(&[edge, edge]).expect("there is room");
            }
        }
    })?;
    assert_eq!((list.len(), list.capacity(), list.is_empty()), (3000, 4000, false));
    let edges = list.to_vec()?;
    for number in 0..4 {
        let own = edges.iter().filter(|edge| edge.from == number).map(|edge| edge.to);
        let expected = (0..500).flat_map(|n| std::iter::repeat_n(n, 1 + n as usize % 2));
        assert!(own.eq(expected), "in the order it put them in");
    }
    let e = list.extend_from_slice(&edges).err().ok_or("1000 are left")?;
    assert!(e.is_out_of_capacity() && list.len() == 3000, "{e}");
    let last = Edge { from: 9, to: 9, weight: -1.0 };
    list.set(2999, last)?;
    assert_eq!((list.get(2999)?, list.get(3000)?), (Some(last), None));
    assert!(list.set(3000, last).is_err_and(|e| e.is_invalid()));
    assert_eq!((list.pop()?, list.len()), (Some(last), 2999));
    assert_eq!(list.with_lock(|edges| edges.iter().filter(|edge| edge.to == 0).count())?, 4);
    let again =
        list.with_lock(|_| list.len() == 2999 && list.push(last).is_err_and(|e| e.errno() == Some(libc::EDEADLK)))?;
    assert!(again, "a closure does not wait for itself");
    list.clear()?;
    assert_eq!((list.to_vec()?, list.pop()?), (vec![], None));
    passed()
}

fn a_queue_hands_each_element_to_one() -> Outcome {
    const EACH: u64 = 5_000;
    for capacity in [1, 3, 64] {
        let arena = SharedArena::new("queue", 1 << 20)?;
        let queue = arena.queue::<[u64; 2]>(capacity)?;
        let taken = arena.vec::<[u64; 2]>(2 * EACH as usize)?;
        let left = arena.alloc(AtomicU32::new(2))?;
        all(4, |number| {
            if number < 2 {
                (0..EACH).for_each(|n| queue.push([number as u64, n]).expect("it is open"));
                if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                    queue.close().expect("it can be closed");
                }
                return;
            }
            let mut newest = [None; 2];
            loop {
                match queue.pop() {
                    Ok([from, n]) => {
                        let before = newest[from as usize].replace(n);
                        assert!(before < Some(n), "first in, first out");
                        taken.push([from, n]).expect("there is room");
                    }
                    Err(QueueError::Closed) => break,
                    Err(e) => panic!("{e}"),
                }
            }
        })?;
        let all: BTreeSet<[u64; 2]> = taken.to_vec()?.into_iter().collect();
        assert_eq!((taken.len() as u64, all.len() as u64), (2 * EACH, 2 * EACH), "each once");
        assert!(queue.is_closed() && queue.is_empty());
        assert!(matches!(queue.push([0; 2]), Err(QueueError::Closed)));
    }
    passed()
}

fn a_full_or_empty_queue_is_an_error_or_a_wait() -> Outcome {
    let queue = SharedArena::new("bounds", 1 << 16)?.queue::<u8>(3)?;
    let short = Duration::from_millis(30);
    let waits = |attempt: &dyn Fn() -> Result<(), QueueError>| {
        let begun = Instant::now();
        matches!(attempt(), Err(QueueError::TimedOut)) && begun.elapsed() >= short
    };
    assert!(matches!(queue.try_pop(), Err(QueueError::Empty)));
    assert!(waits(&|| queue.pop_timeout(short).map(drop)));
    (1..=3).try_for_each(|n| queue.try_push(n))?;
    assert_eq!((queue.len(), queue.capacity()), (3, 3));
    assert!(matches!(queue.try_push(4), Err(QueueError::Full)));
    assert!(waits(&|| queue.push_timeout(4, short)));
    let (mine, theirs) = Turns::new()?;
    let mut child = fork::spawn(&ForkOptions::new(), |_| {
        theirs.give();
        queue.push(4).expect("there will be room");
        queue.push_timeout(5, SOON).expect("there will be room");
    })?;
    assert!(mine.take());
    for n in 1..=5 {
        assert_eq!(queue.pop_timeout(SOON)?, n);
    }
    assert!(wait(&mut child)?.success());
    queue.push_timeout(6, Duration::ZERO)?;
    queue.close()?;
    assert!(matches!(queue.try_push(7), Err(QueueError::Closed)));
    assert_eq!(queue.pop_timeout(Duration::MAX)?, 6, "what is in it can still be taken");
    for e in [queue.try_pop(), queue.pop(), queue.pop_timeout(SOON)] {
        assert!(matches!(e, Err(QueueError::Closed)));
    }
    passed()
}

fn closing_a_queue_wakes_all_who_wait() -> Outcome {
    let arena = SharedArena::new("closed", 1 << 16)?;
    let (empty, full, waiting) = (arena.queue::<u8>(1)?, arena.queue::<u8>(1)?, arena.alloc(AtomicU32::new(0))?);
    full.push(1)?;
    let spawn = |work: &dyn Fn() -> bool| {
        fork::spawn(&ForkOptions::new(), |_| {
            waiting.fetch_add(1, Ordering::SeqCst);
            i32::from(!work())
        })
    };
    let closed = |e| matches!(e, Err(QueueError::Closed));
    let mut children = vec![];
    for _ in 0..3 {
        children.push(spawn(&|| closed(empty.pop().map(drop)))?);
        children.push(spawn(&|| closed(full.push(2)))?);
    }
    crate::look::until("all wait", || waiting.load(Ordering::SeqCst) == 6)?;
    let begun = Instant::now();
    empty.close()?;
    full.close()?;
    for mut child in children {
        let exit = wait(&mut child)?;
        assert!(exit.success(), "{:?} {:?}", exit.ended, exit.panic);
    }
    assert!(begun.elapsed() < SOON);
    passed()
}

pub fn trials() -> Vec<Trial> {
    claims![
        a_vector_holds_what_all_put_in,
        a_queue_hands_each_element_to_one,
        a_full_or_empty_queue_is_an_error_or_a_wait,
        closing_a_queue_wakes_all_who_wait,
    ]
}
