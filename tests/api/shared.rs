//! Shared writable memory: what processes see of each other, what is an error, and what is given back.
#![expect(unsafe_code, reason = "forks by libc")]

use crate::apart::{Process, apart};
use crate::case::{Outcome, passed, skipped};
use crate::limits::{limit, limited_group};
use crate::look::{SOON, descriptors, frozen_pages, mapped_files, maps, wait};
use cowbell::fork::{self, Child, ForkOptions};
use cowbell::shared::{Shareable, Shared, SharedArena, SharedMutex, SharedQueue, SharedVec};
use cowbell::sys::map::Range;
use cowbell::sys::pagemap::{COPIED, Pagemap};
use cowbell::sys::pidfd::Ended;
use libtest_mimic::{Failed, Trial};
use rustix::process::Resource;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

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
pub fn place_of(name: &str) -> Option<Range> {
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
        threads_use_it_as_processes_do,
        nothing_is_left_when_the_last_handle_is_dropped,
        arguments_that_make_no_sense_are_refused,
        a_full_arena_is_an_error_that_takes_nothing,
        limits_met_are_errors_that_leave_nothing_behind,
        a_memory_limit_is_an_error_and_no_sigbus,
    ]
}
