//! Shared writable memory: what processes see of each other, what is an error, and what is given back.
#![expect(unsafe_code, reason = "forks by libc")]

use crate::apart::{Process, apart};
use crate::case::{Outcome, Turns, passed, skipped};
use crate::limits::{limit, limited_group};
use crate::look::{SOON, descriptors, frozen_pages, mapped_files, maps, wait};
use cowbell::fork::{self, Child, ForkOptions};
use cowbell::shared::{
    LockError, Pod, QueueError, Shareable, Shared, SharedArena, SharedMutex, SharedQueue, SharedVec, Zeroable,
};
use cowbell::sys::map::Range;
use cowbell::sys::pagemap::{COPIED, Pagemap};
use cowbell::sys::pidfd::Ended;
use libtest_mimic::{Failed, Trial};
use rustix::process::Resource;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Children that all run `work`, each with its number; all must end well.
pub fn all(children: usize, work: impl Fn(usize)) -> Result<(), Failed> {
    let forked: Result<Vec<Child>, _> =
        (0..children).map(|number| fork::spawn(&ForkOptions::new(), |_| work(number))).collect();
    for mut child in forked? {
        let exit = wait(&mut child)?;
        assert!(exit.success(), "{:?} {:?}", exit.ended, exit.panic);
    }
    Ok(())
}

/// The address at which a shared arena is mapped.
fn place_of(name: &str) -> Option<Range> {
    let shown = format!("/memfd:cowbell-shared:{name} (deleted)");
    let line = maps().into_iter().find(|line| line.ends_with(&shown))?;
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some(Range { start, len: end - start })
}

fn what_one_process_stores_all_others_load() -> Outcome {
    let arena = SharedArena::new("counters", 1 << 20)?;
    let sum = arena.alloc(AtomicU64::new(5))?;
    let pair = arena.alloc((AtomicU32::new(1), [AtomicU8::new(2), AtomicU8::new(3)]))?;
    let many = arena.atomics::<AtomicU64>(1000)?;
    assert!(many.len() == 1000 && many.iter().all(|n| n.load(Ordering::Relaxed) == 0));
    all(4, |number| {
        for at in 0..10_000 {
            sum.fetch_add(1, Ordering::Relaxed);
            many[at % many.len()].fetch_add(number as u64, Ordering::Relaxed);
        }
        pair.1[1].fetch_add(1, Ordering::Relaxed);
    })?;
    assert_eq!(sum.load(Ordering::Relaxed), 40_005);
    assert!(many.iter().all(|n| n.load(Ordering::Relaxed) == 60));
    assert_eq!((pair.0.load(Ordering::Relaxed), pair.1[1].load(Ordering::Relaxed)), (1, 7));
    // libc's own fork, and a child's child.
    let other = Process::start(|| {
        let grandchild = Process::start(|| {
            sum.store(1, Ordering::Relaxed);
            0
        });
        i32::from(grandchild.end_within(SOON) != Some(Ended::Exited(0)))
    });
    assert_eq!(other.end_within(SOON), Some(Ended::Exited(0)));
    assert_eq!(sum.load(Ordering::Relaxed), 1);
    passed()
}

fn processes_allocate_at_the_same_time() -> Outcome {
    const EACH: usize = 20_000;
    let arena = SharedArena::new("allocated", 64 << 20)?;
    let places = arena.vec::<[usize; 2]>(4 * EACH)?;
    all(4, |number| {
        for n in 0..EACH {
            // Beyond one step of committing, together.
            let place = arena.alloc([number, n, 0, 0, 0, 0, 0]).expect("there is room");
            assert!(std::ptr::from_ref(&*place).is_aligned());
            assert_eq!(place[1], n);
            places.push([std::ptr::from_ref(&*place).addr(), size_of_val(&*place)]).expect("there is room");
        }
    })?;
    let mut places = places.to_vec()?;
    places.sort_unstable();
    assert_eq!(places.len(), 4 * EACH);
    assert!(places.windows(2).all(|two| two[0][0] + two[0][1] <= two[1][0]), "no two overlap");
    let range = place_of("allocated").ok_or("it is mapped")?;
    assert!(places.iter().all(|place| range.contains(place[0]) && range.contains(place[0] + place[1] - 1)));
    let used: usize = places.iter().map(|place| place[1]).sum();
    // The list of places has one element to spare, and its head.
    let expected = used + (4 * EACH + 1) * size_of::<[usize; 2]>();
    assert!((expected..expected + 200).contains(&arena.used()), "{} and not {expected}", arena.used());
    passed()
}

fn a_census_counts_no_page_of_it() -> Outcome {
    let frozen = frozen_pages("frozen beside it", 4)?;
    let arena = SharedArena::new("written", 1 << 20)?;
    let bytes = arena.atomics::<AtomicU8>(1 << 20)?;
    let list = SharedArena::new("list", 1 << 20)?.vec::<u64>(1000)?;
    let copies = arena.name().len();
    let mut child = fork::spawn(&ForkOptions::new(), |_| {
        bytes.iter().for_each(|byte| byte.store(1, Ordering::Relaxed));
        list.extend_from_slice(&[7; 1000]).expect("there is room");
        let mut found = 0;
        let pagemap = Pagemap::open_self().expect("pagemap");
        for name in ["written", "list"] {
            let range = place_of(name).expect("it is mapped");
            match COPIED.iter().try_for_each(|query| pagemap.scan(range, query, |pages| found += pages.len)) {
                Ok(()) => {}
                // Before Linux 6.7.
                Err(_) => pagemap.read(range, |_, entry| found += usize::from(is_copy(entry))).expect("pagemap"),
            }
        }
        i32::from(found > 0)
    })?;
    let exit = wait(&mut child)?;
    assert!(exit.success(), "{:?} {:?}", exit.ended, exit.panic);
    assert_eq!((exit.report.copied_pages().0, exit.report.copied_bytes()), (0, 0), "{}", exit.report);
    assert!(bytes.iter().all(|byte| byte.load(Ordering::Relaxed) == 1) && list.len() == 1000 && copies > 0);
    // The same census does see a copy.
    let mut child = fork::spawn(&ForkOptions::new(), |_| crate::look::write(*frozen, 1))?;
    assert_eq!(wait(&mut child)?.report.copied_pages().0, 1);
    passed()
}

fn is_copy(entry: cowbell::sys::pagemap::Entry) -> bool {
    use cowbell::sys::pagemap::Entry;
    entry.intersects(Entry::PRESENT | Entry::SWAPPED) && !entry.contains(Entry::FILE)
}

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

fn threads_use_it_as_processes_do() -> Outcome {
    let arena = SharedArena::new("threads", 1 << 20)?;
    let (mutex, list, queue) = (arena.mutex(0u64)?, arena.vec::<u64>(4000)?, arena.queue::<u64>(2)?);
    std::thread::scope(|scope| {
        for number in 0..2 {
            let (mutex, list, queue) = (mutex.clone(), list.clone(), queue.clone());
            scope.spawn(move || {
                for n in 0..1000 {
                    mutex.with(|sum| *sum += 1).expect("nobody dies");
                    list.push(n).expect("there is room");
                    if number == 0 { queue.push(n).expect("it is open") } else { assert_eq!(queue.pop().ok(), Some(n)) }
                }
            });
        }
    });
    assert_eq!((mutex.lock()?.get(), list.len(), queue.len()), (2000, 2000, 0));
    passed()
}

fn nothing_is_left_when_the_last_handle_is_dropped() -> Outcome {
    // An object that is made once stays.
    wait(&mut fork::spawn(&ForkOptions::new().last_census(false), |_| ())?)?;
    let before = (descriptors(), mapped_files());
    let arena = SharedArena::new("gone", 8 << 20)?;
    let number: Shared<AtomicU64> = arena.alloc(AtomicU64::new(1))?;
    let mutex: SharedMutex<u8> = arena.mutex(1)?;
    let list: SharedVec<u8> = arena.vec(10)?;
    let queue: SharedQueue<u8> = arena.queue(10)?;
    let many = arena.atomics::<AtomicU64>(10)?;
    assert_eq!((arena.name(), arena.capacity()), ("gone", 8 << 20));
    drop((arena, many));
    assert!(place_of("gone").is_some_and(|range| range.len >= 8 << 20));
    // One after the other, each the last for a while.
    assert_eq!(number.load(Ordering::Relaxed), 1);
    drop(number);
    mutex.with(|n| *n += 1)?;
    drop(mutex);
    list.push(1)?;
    drop(list);
    assert!(place_of("gone").is_some());
    let mut child = fork::spawn(&ForkOptions::new().last_census(false), |_| drop(queue.clone()))?;
    assert!(wait(&mut child)?.success());
    drop(child);
    queue.push(1)?;
    let another = queue.clone();
    drop(queue);
    assert_eq!(another.pop()?, 1);
    drop(another);
    assert!(place_of("gone").is_none());
    assert_eq!((descriptors(), mapped_files()), before);
    passed()
}

fn arguments_that_make_no_sense_are_refused() -> Outcome {
    for name in ["", "a\nb", "nul\0", &"x".repeat(201)] {
        assert!(SharedArena::new(name, 4096).is_err_and(|e| e.is_invalid()), "{name:?}");
    }
    assert_eq!(SharedArena::new("é".repeat(100), 1)?.capacity(), cowbell::sys::page_size().bytes());
    for capacity in [0, usize::MAX, usize::MAX / 2 + 1] {
        let e = SharedArena::new("capacity", capacity).err().ok_or("that is no capacity")?;
        assert!(e.is_invalid(), "{capacity}: {e}");
    }
    let arena = SharedArena::new("small", 1 << 16)?;
    for capacity in [0, usize::MAX, usize::MAX / 8] {
        assert!(arena.vec::<u64>(capacity).is_err_and(|e| e.is_invalid()), "{capacity}");
        assert!(arena.queue::<u64>(capacity).is_err_and(|e| e.is_invalid()), "{capacity}");
    }
    assert!(arena.atomics::<AtomicU64>(usize::MAX).is_err_and(|e| e.is_invalid()));
    passed()
}

fn a_full_arena_is_an_error_that_takes_nothing() -> Outcome {
    let arena = SharedArena::new("full", 1 << 16)?;
    let e = arena.atomics::<AtomicU64>(1 << 14).err().ok_or("128 KiB in 64")?;
    assert!(e.is_out_of_capacity() && e.hint().is_some(), "{e}");
    assert!(arena.vec::<u64>(1 << 14).is_err_and(|e| e.is_out_of_capacity()));
    assert_eq!(arena.used(), 0);
    let all = arena.atomics::<AtomicU8>(1 << 16)?;
    all.iter().for_each(|byte| byte.store(1, Ordering::Relaxed));
    assert!(arena.alloc(1u8).is_err_and(|e| e.is_out_of_capacity()));
    assert!(arena.mutex(1u8).is_err_and(|e| e.is_out_of_capacity()));
    // An object that takes no room can be had.
    arena.alloc(())?;
    assert!(arena.atomics::<AtomicU64>(0)?.is_empty());
    #[repr(align(8192))]
    struct Wide(AtomicU8);
    // SAFETY: an atomic, and nothing else.
    unsafe impl Shareable for Wide {}
    let wide = SharedArena::new("wide", 1 << 16)?.alloc(Wide(AtomicU8::new(3)))?;
    assert!(std::ptr::from_ref(&*wide).addr().is_multiple_of(8192) && wide.0.load(Ordering::Relaxed) == 3);
    passed()
}

fn limits_met_are_errors_that_leave_nothing_behind() -> Outcome {
    let before = (descriptors(), mapped_files());
    limit(Resource::As, 4 << 30)?;
    let e = SharedArena::new("too wide", 64 << 30).err().ok_or("64 GiB in 4 GiB of addresses")?;
    assert!(e.is_out_of_memory() && e.hint().is_some(), "{e}");
    assert_eq!((descriptors(), mapped_files()), before);
    let hard = rustix::process::getrlimit(Resource::Fsize).maximum;
    limit(Resource::Fsize, 1 << 20)?;
    let e = SharedArena::new("too long", 1 << 30).err().ok_or("1 GiB in a file of 1 MiB")?;
    assert!(e.is_invalid() && e.hint().is_some(), "{e}");
    assert_eq!((descriptors(), mapped_files()), before);
    limit(Resource::Fsize, hard.unwrap_or(u64::MAX))?;
    limit(Resource::Nofile, 0)?;
    assert_eq!(SharedArena::new("no file", 1 << 16).err().and_then(|e| e.errno()), Some(libc::EMFILE));
    passed()
}

fn a_memory_limit_is_an_error_and_no_sigbus() -> Outcome {
    let group = match limited_group(64 << 20) {
        Ok(group) => group,
        Err(why) => return skipped(format!("needs a control group of its own: {why}")),
    };
    let left = apart(|| {
        std::fs::write(group.0.join("cgroup.procs"), "0")?;
        let arena = SharedArena::new("limited", 1 << 30)?;
        let mut chunks = 0;
        let e = loop {
            match arena.atomics::<AtomicU8>(1 << 20) {
                Ok(chunk) => chunk.iter().for_each(|byte| byte.store(1, Ordering::Relaxed)),
                Err(e) => break e,
            }
            chunks += 1;
            assert!(chunks < 64, "64 MiB are allowed in all");
        };
        assert!(e.is_out_of_memory() && !e.is_out_of_capacity(), "{e}");
        assert!(chunks >= 32, "half of what is allowed can be had: {chunks} MiB");
        Ok(())
    })?;
    assert!(left.success(), "{left:?}");
    passed()
}

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    claims![
        what_one_process_stores_all_others_load,
        processes_allocate_at_the_same_time,
        a_census_counts_no_page_of_it,
        a_mutex_lets_in_one_at_a_time,
        a_lock_that_is_held_is_an_error_of_its_kind,
        a_fork_while_a_lock_is_held_is_refused,
        a_guard_that_is_leaked_is_found_out_when_its_thread_ends,
        a_panic_under_a_lock_is_told_to_the_next,
        a_vector_holds_what_all_put_in,
        a_queue_hands_each_element_to_one,
        a_full_or_empty_queue_is_an_error_or_a_wait,
        closing_a_queue_wakes_all_who_wait,
        threads_use_it_as_processes_do,
        nothing_is_left_when_the_last_handle_is_dropped,
        arguments_that_make_no_sense_are_refused,
        a_full_arena_is_an_error_that_takes_nothing,
        limits_met_are_errors_that_leave_nothing_behind,
        a_memory_limit_is_an_error_and_no_sigbus,
    ]
}
