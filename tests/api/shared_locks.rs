//! Locks in shared writable memory: one holder at a time, forks, leaked guards and panics.

use crate::apart::Process;
use crate::case::{Outcome, passed};
use crate::look::{SOON, wait};
use crate::shared::{all, place_of};
use cowbell::fork::{self, ForkOptions};
use cowbell::shared::{LockError, SharedArena};
use cowbell::sys::pidfd::Ended;
use libtest_mimic::Trial;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

fn a_mutex_lets_in_one_at_a_time() -> Outcome {
    let arena = SharedArena::new("mutex", 1 << 16)?;
    let both = arena.mutex([0u64; 2])?;
    all(4, |number| {
        for _ in 0..5_000 {
            if number.is_multiple_of(2) {
                both.with(|[a, b]| {
                    *a += 1;
                    *b += 1;
                })
                .expect("nobody dies");
            } else {
                let mut guard = both.lock().expect("nobody dies");
                let [a, b] = guard.get();
                assert_eq!(a, b);
                guard.set([a + 1, b + 1]);
            }
        }
    })?;
    assert_eq!(both.lock()?.get(), [20_000; 2]);
    passed()
}

fn a_lock_that_is_held_is_an_error_of_its_kind() -> Outcome {
    let arena = SharedArena::new("held", 1 << 16)?;
    let mutex = arena.mutex(0u8)?;
    let guard = mutex.lock()?;
    assert!(matches!(mutex.lock(), Err(LockError::Deadlock)));
    assert!(matches!(mutex.lock_timeout(SOON), Err(LockError::Deadlock)));
    assert!(matches!(mutex.try_lock(), Err(LockError::Deadlock)));
    let other = Process::start(|| {
        assert!(matches!(mutex.try_lock(), Err(LockError::Busy)));
        let begun = Instant::now();
        assert!(matches!(mutex.lock_timeout(Duration::from_millis(30)), Err(LockError::TimedOut)));
        assert!(begun.elapsed() >= Duration::from_millis(30));
        0
    });
    assert_eq!(other.end_within(SOON), Some(Ended::Exited(0)));
    drop(guard);
    mutex.lock_timeout(Duration::ZERO)?;
    mutex.lock_timeout(Duration::MAX)?;
    mutex.try_lock()?.set(1);
    let e: cowbell::Error = mutex.with(|_| mutex.lock().err().map(cowbell::Error::from))?.ok_or("a deadlock")?;
    assert_eq!((e.errno(), e.hint().is_some()), (Some(libc::EDEADLK), true), "{e}");
    passed()
}

fn a_fork_while_a_lock_is_held_is_refused() -> Outcome {
    let arena = SharedArena::new("forked", 1 << 16)?;
    let (mutex, list) = (arena.mutex(1u8)?, arena.vec::<u8>(4)?);
    let refused =
        || fork::spawn(&ForkOptions::new(), |_| ()).err().is_some_and(|e| e.is_invalid() && e.hint().is_some());
    assert!(mutex.with(|_| refused())? && list.with_lock(|_| refused())? && list.repair(|_| refused())?);
    let mut guard = Some(mutex.lock()?);
    assert!(refused());
    // libc's fork cannot be stopped; the child's guard is none.
    let other = Process::start(|| {
        let mut guard = guard.take().expect("it was locked");
        let unusable = |look: &mut dyn FnMut()| catch_unwind(AssertUnwindSafe(look)).is_err();
        assert!(unusable(&mut || assert_eq!(guard.get(), 1)) && unusable(&mut || guard.set(2)));
        assert!(unusable(&mut || guard.with(|n| *n = 2)));
        assert!(matches!(mutex.try_lock(), Err(LockError::Busy)), "it is the parent's");
        drop(guard);
        assert!(matches!(mutex.try_lock(), Err(LockError::Busy)), "it still is");
        // The child's own locks work, and are not in the parent's list.
        list.push(1).expect("there is room");
        assert!(fork::spawn(&ForkOptions::new(), |_| ()).is_ok(), "it holds nothing");
        0
    });
    assert_eq!(other.end_within(SOON), Some(Ended::Exited(0)));
    assert!(refused());
    drop(guard);
    let mut again = mutex.try_lock()?;
    assert_eq!((again.get(), list.to_vec()?), (1, vec![1]));
    again.set(3);
    drop(again);
    assert!(!refused());
    passed()
}

fn a_guard_that_is_leaked_is_found_out_when_its_thread_ends() -> Outcome {
    let arena = SharedArena::new("leaked", 1 << 16)?;
    let (mutex, other) = (arena.mutex(1u64)?, SharedArena::new("other", 1 << 16)?.mutex(2u64)?);
    std::thread::scope(|scope| {
        let leaking = scope.spawn(|| {
            std::mem::forget(mutex.lock());
            matches!(mutex.lock(), Err(LockError::Deadlock))
        });
        assert!(leaking.join().expect("no panic"));
    });
    let Err(LockError::OwnerDied(guard)) = mutex.lock_timeout(SOON) else { return Err("nobody was told".into()) };
    drop(guard);
    // Leaked by a thread that lives: the memory stays, because the thread's list of mutexes points into it.
    std::mem::forget(mutex.lock());
    drop((mutex, arena));
    assert!(place_of("leaked").is_some());
    other.with(|n| *n += 1)?;
    drop(other);
    assert!(place_of("other").is_none());
    passed()
}

fn a_panic_under_a_lock_is_told_to_the_next() -> Outcome {
    let arena = SharedArena::new("panic", 1 << 16)?;
    let (mutex, list) = (arena.mutex([1u64; 4])?, arena.vec::<u64>(4)?);
    list.extend_from_slice(&[1, 2, 3])?;
    let mut child = fork::spawn(&ForkOptions::new(), |_| drop(mutex.with(|_| panic!("in the middle"))))?;
    assert_eq!(wait(&mut child)?.ended, Ended::Exited(101));
    let mut child = fork::spawn(&ForkOptions::new(), |_| drop(list.with_lock(|_| panic!("in the middle"))))?;
    assert_eq!(wait(&mut child)?.ended, Ended::Exited(101));
    // Until somebody looks after it; the guard is given all the same.
    for _ in 0..2 {
        let Err(LockError::OwnerDied(guard)) = mutex.lock() else { return Err("nobody was told".into()) };
        assert!(!guard.is_consistent() && guard.get() == [1; 4]);
    }
    let e: cowbell::Error = mutex.with(|_| ()).err().ok_or("nobody was told")?.into();
    assert!(e.is_owner_died(), "{e}");
    if let Err(LockError::OwnerDied(mut guard)) = mutex.lock() {
        guard.mark_consistent();
    }
    assert_eq!(mutex.lock()?.get(), [1; 4]);
    let calls = [list.push(4).err(), list.get(0).err(), list.with_lock(|_| ()).err(), list.set(0, 0).err()];
    for e in calls {
        let e = e.ok_or("nobody was told")?;
        assert!(e.is_owner_died() && e.hint().is_some(), "{e}");
    }
    list.repair(|elements| elements.reverse())?;
    assert_eq!(list.to_vec()?, [3, 2, 1]);
    passed()
}

pub fn trials() -> Vec<Trial> {
    claims![
        a_mutex_lets_in_one_at_a_time,
        a_lock_that_is_held_is_an_error_of_its_kind,
        a_fork_while_a_lock_is_held_is_refused,
        a_guard_that_is_leaked_is_found_out_when_its_thread_ends,
        a_panic_under_a_lock_is_told_to_the_next,
    ]
}
