//! Shared writable memory whose users are killed at any instruction: nothing hangs, and what is there is whole.

use crate::case::{Outcome, Turns, passed};
use crate::look::{SOON, until, wait};
use cowbell::fork::{self, Child, ForkOptions};
use cowbell::shared::{LockError, QueueError, SharedArena};
use cowbell::sys::pidfd::Ended;
use cowbell::sys::procfs;
use libtest_mimic::{Failed, Trial};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Without a keeper: what is shown does not rest on it, and half as many processes are made.
fn spawn(work: impl FnOnce()) -> cowbell::Result<Child> {
    fork::spawn(&ForkOptions::new().last_census(false), |_| work())
}

fn kill(mut child: Child) -> Result<(), Failed> {
    child.kill(libc::SIGKILL)?;
    assert_eq!(wait(&mut child)?.ended, Ended::Signaled(libc::SIGKILL));
    Ok(())
}

/// Keeps `width` children at `work`, kills them one after the other at random moments, and calls `look` after each.
fn slaughter(
    deaths: usize,
    width: usize,
    progress: &AtomicU64,
    work: impl Fn(usize),
    mut look: impl FnMut() -> Result<(), Failed>,
) -> Result<(), Failed> {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut children: Vec<Child> = (0..width).map(|number| spawn(|| work(number))).collect::<Result<_, _>>()?;
    for death in 0..deaths {
        // At no moment in particular: a few steps on, and some instructions more.
        let goal = progress.load(Ordering::Relaxed) + random.below(20);
        until("the others go on", || progress.load(Ordering::Relaxed) >= goal)?;
        for _ in 0..random.below(2_000) {
            std::hint::spin_loop();
        }
        let number = death % width;
        let fresh = spawn(|| work(number))?;
        kill(std::mem::replace(&mut children[number], fresh))?;
        look()?;
    }
    children.into_iter().try_for_each(kill)?;
    look()
}

fn a_mutex_survives_its_holders() -> Outcome {
    let arena = SharedArena::new("mutex", 1 << 16)?;
    let (mutex, progress) = (arena.mutex([0u64; 16])?, arena.alloc(AtomicU64::new(0))?);
    let mut told = 0;
    let work = |_| loop {
        // The process that is told mends it, or only looks and leaves it as it is.
        match mutex.lock() {
            Ok(mut guard) => guard.with(|numbers| numbers.iter_mut().for_each(|n| *n += 1)),
            Err(LockError::OwnerDied(mut guard)) => {
                guard.with(|numbers| *numbers = [numbers[0]; 16]);
                if guard.get()[0] % 2 == 0 {
                    guard.mark_consistent();
                } else {
                    guard.set([guard.get()[0] + 1; 16]);
                }
            }
            Err(e) => panic!("{e}"),
        }
        progress.fetch_add(1, Ordering::Relaxed);
    };
    slaughter(300, 2, &progress, work, || {
        match mutex.lock_timeout(SOON) {
            Ok(guard) => assert!(guard.get().iter().all(|&n| n == guard.get()[0]), "{:?}", guard.get()),
            Err(LockError::OwnerDied(_)) => told += 1,
            Err(e) => return Err(e.to_string().into()),
        }
        Ok(())
    })?;
    println!("told of {told} deaths");
    passed()
}

fn a_killed_holder_is_told_of_once_it_is_dead() -> Outcome {
    let arena = SharedArena::new("held", 1 << 16)?;
    let mutex = arena.mutex(1u64)?;
    // With a keeper, in whose memory the dead child's lives on.
    for census in [true, false] {
        let (mine, theirs) = Turns::new()?;
        let mut child = fork::spawn(&ForkOptions::new().last_census(census), |_| {
            let _never = mutex.with(|n| {
                *n = 2;
                theirs.give();
                theirs.take();
            });
        })?;
        assert!(mine.take() && matches!(mutex.try_lock(), Err(LockError::Busy)));
        // Somebody already waits when it dies.
        let mut waiter = spawn(|| assert!(matches!(mutex.lock(), Err(LockError::OwnerDied(_)))))?;
        child.kill(libc::SIGKILL)?;
        assert!(wait(&mut waiter)?.success());
        assert_eq!(wait(&mut child)?.ended, Ended::Signaled(libc::SIGKILL));
        let Err(LockError::OwnerDied(mut guard)) = mutex.try_lock() else { return Err("nobody was told".into()) };
        assert_eq!(guard.get(), 2);
        guard.mark_consistent();
        drop(guard);
        assert!(mutex.try_lock().is_ok());
    }
    passed()
}

fn a_vector_is_whole_whoever_died() -> Outcome {
    let arena = SharedArena::new("vector", 4 << 20)?;
    let (list, progress) = (arena.vec::<[u64; 32]>(2000)?, arena.alloc(AtomicU64::new(0))?);
    let work = |number: usize| {
        for n in (number as u64..).step_by(2) {
            let value = [n; 32];
            let done = match n % 5 {
                0..=2 => list.push(value),
                3 => list.extend_from_slice(&[value, value, value]),
                _ => list.pop().and_then(|_| list.len().checked_sub(1).map_or(Ok(()), |last| list.set(last, value))),
            };
            match done {
                Err(e) if e.is_out_of_capacity() => list.clear().expect("no closure is run"),
                // Another may have taken the last.
                Err(e) if e.is_invalid() => {}
                done => done.expect("no closure is run"),
            }
            progress.fetch_add(1, Ordering::Relaxed);
        }
    };
    slaughter(300, 2, &progress, work, || {
        let whole = |element: &[u64; 32]| element.iter().all(|n| *n == element[0]);
        assert!(list.with_lock(|elements| elements.iter().all(whole))?);
        Ok(())
    })?;
    passed()
}

fn an_element_is_replaced_as_a_whole_or_not_at_all() -> Outcome {
    // The type is so large that a death in the middle of copying it is likely.
    type Large = [u64; 5000];
    let arena = SharedArena::new("elements", 4 << 20)?;
    let (list, progress) = (arena.vec::<Large>(2)?, arena.alloc(AtomicU64::new(0))?);
    list.extend_from_slice(&[[0; 5000], [0; 5000]])?;
    let work = |number: usize| {
        for n in 0.. {
            list.set(number % 2, [n; 5000]).expect("no closure is run");
            progress.fetch_add(1, Ordering::Relaxed);
        }
    };
    slaughter(100, 1, &progress, work, || {
        assert!(list.with_lock(|both| both.iter().all(|large| large.iter().all(|&n| n == large[0])))?);
        Ok(())
    })?;
    passed()
}

fn a_vector_tells_who_died_in_a_closure() -> Outcome {
    let arena = SharedArena::new("closure", 1 << 16)?;
    let list = arena.vec::<u64>(8)?;
    list.extend_from_slice(&[1, 2, 3, 4])?;
    let (mine, theirs) = Turns::new()?;
    let child = spawn(|| {
        let _never = list.with_lock(|elements| {
            elements[0] = 9;
            theirs.give();
            theirs.take();
        });
    })?;
    assert!(mine.take());
    kill(child)?;
    assert!(list.push(1).is_err_and(|e| e.is_owner_died()));
    list.repair(|elements| elements[0] = 1)?;
    list.push(5)?;
    assert_eq!(list.to_vec()?, [1, 2, 3, 4, 5]);
    passed()
}

fn a_queue_loses_at_most_what_the_dead_had_taken() -> Outcome {
    const DEATHS: u64 = 400;
    for capacity in [1, 4] {
        let arena = SharedArena::new("queue", 8 << 20)?;
        let queue = arena.queue::<[u64; 8]>(capacity)?;
        let (next, taken, progress) =
            (arena.alloc(AtomicU64::new(0))?, arena.atomics::<AtomicU64>(1 << 18)?, arena.alloc(AtomicU64::new(0))?);
        let put_in = arena.atomics::<AtomicU64>(taken.len())?;
        let work = |number: usize| loop {
            if number.is_multiple_of(2) {
                // A number is used once: one that died with it leaves a gap.
                let n = next.fetch_add(1, Ordering::Relaxed);
                queue.push([n; 8]).expect("it is open");
                put_in[n as usize].store(1, Ordering::Relaxed);
            } else {
                let element = queue.pop().expect("it is open");
                assert!(element.iter().all(|&n| n == element[0]), "{element:?}");
                taken[element[0] as usize].fetch_add(1, Ordering::Relaxed);
            }
            progress.fetch_add(1, Ordering::Relaxed);
        };
        slaughter(DEATHS as usize / 2, 4, &progress, work, || Ok(()))?;
        queue.close()?;
        loop {
            match queue.pop_timeout(SOON) {
                Ok(element) => taken[element[0] as usize].fetch_add(1, Ordering::Relaxed),
                Err(QueueError::Closed) => break,
                Err(e) => return Err(e.to_string().into()),
            };
        }
        let count =
            |numbers: &[AtomicU64], n: u64| numbers.iter().filter(|x| x.load(Ordering::Relaxed) == n).count() as u64;
        let (sent, received) = (count(&put_in, 1), count(&taken, 1));
        assert_eq!(received + count(&taken, 0), taken.len() as u64, "none twice");
        // One who died may have taken one that it did not note; or put one in that it did not note.
        assert!(sent <= received + DEATHS && received <= sent + DEATHS, "{sent} sent, {received} received");
        println!("capacity {capacity}: {sent} sent, {received} received");
    }
    passed()
}

/// Waits until a process sleeps in a futex call.
fn sleeps(child: &Child) -> Result<(), Failed> {
    let state = procfs::syscall::open(child.pid(), child.pid()).map_err(|e| e.to_string())?;
    until("it sleeps", || {
        procfs::syscall::blocked_in(&state).is_some_and(|blocked| blocked.syscall == Some(libc::SYS_futex as i32))
    })
}

fn a_wake_up_passes_from_a_dead_waiter_to_the_next() -> Outcome {
    let arena = SharedArena::new("waiters", 1 << 16)?;
    let (queue, answers) = (arena.queue::<u64>(1)?, arena.queue::<u64>(64)?);
    let waiter = || spawn(|| while answers.push(queue.pop().expect("it is open")).is_ok() {});
    let mut random = Random(7);
    let mut others = vec![];
    for round in 0..100 {
        // The first holds the turnstile; the others wait behind it.
        let first = waiter()?;
        sleeps(&first)?;
        while others.len() < 2 {
            let other = waiter()?;
            sleeps(&other)?;
            others.push(other);
        }
        // Killed asleep, or just as it wakes up for an element.
        if round % 2 == 0 {
            kill(first)?;
            queue.push_timeout(round, SOON)?;
        } else {
            queue.push_timeout(round, SOON)?;
            for _ in 0..random.below(20_000) {
                std::hint::spin_loop();
            }
            kill(first)?;
            // The dead one may have taken the element along.
            queue.push_timeout(1000, SOON)?;
        }
        let begun = Instant::now();
        let wanted = if round % 2 == 0 { round } else { 1000 };
        let mut answer = answers.pop_timeout(SOON)?;
        // The first element of an odd round may have gone to a waiter that lives, and whose answer comes after the second's.
        while answer != wanted {
            assert!(answer % 2 == 1 && answer <= round, "{answer} in round {round}");
            answer = answers.pop_timeout(SOON)?;
        }
        assert!(begun.elapsed() < SOON);
        if round % 10 == 0 {
            kill(others.remove(0))?;
        }
    }
    others.into_iter().try_for_each(kill)?;
    passed()
}

fn a_stopped_waiter_does_not_stop_the_others() -> Outcome {
    let arena = SharedArena::new("stopped", 1 << 16)?;
    let (queue, answers) = (arena.queue::<u64>(4)?, arena.queue::<u64>(4)?);
    let waiter = || spawn(|| while answers.push(queue.pop().expect("it is open")).is_ok() {});
    let stopped = waiter()?;
    sleeps(&stopped)?;
    let other = waiter()?;
    sleeps(&other)?;
    stopped.kill(libc::SIGSTOP)?;
    queue.push(1)?;
    queue.push(2)?;
    assert_eq!((answers.pop_timeout(SOON)?, answers.pop_timeout(SOON)?), (1, 2));
    stopped.kill(libc::SIGCONT)?;
    queue.push(3)?;
    assert_eq!(answers.pop_timeout(SOON)?, 3);
    assert!(matches!(answers.pop_timeout(Duration::ZERO), Err(QueueError::TimedOut)));
    kill(stopped)?;
    kill(other)?;
    passed()
}

fn an_arena_survives_those_who_allocate() -> Outcome {
    let arena = SharedArena::new("allocating", 256 << 20)?;
    let (progress, made) = (arena.alloc(AtomicU64::new(0))?, arena.alloc(AtomicU64::new(0))?);
    let work = |number: usize| loop {
        // When it is full, which it may be on a slow machine, it stays so.
        if let Ok(place) = arena.atomics::<AtomicU64>(40) {
            assert!(place.iter().all(|n| n.swap(number as u64 + 1, Ordering::Relaxed) == 0), "nobody else has it");
            made.fetch_add(1, Ordering::Relaxed);
        }
        progress.fetch_add(1, Ordering::Relaxed);
    };
    slaughter(100, 2, &progress, work, || Ok(()))?;
    assert!(arena.used() as u64 >= made.load(Ordering::Relaxed) * 320);
    passed()
}

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    claims![
        a_mutex_survives_its_holders,
        a_killed_holder_is_told_of_once_it_is_dead,
        a_vector_is_whole_whoever_died,
        an_element_is_replaced_as_a_whole_or_not_at_all,
        a_vector_tells_who_died_in_a_closure,
        a_queue_loses_at_most_what_the_dead_had_taken,
        a_wake_up_passes_from_a_dead_waiter_to_the_next,
        a_stopped_waiter_does_not_stop_the_others,
        an_arena_survives_those_who_allocate,
    ]
}
