//! Memory outside of the arenas: what a child no longer shares there, and what it got, stands in its report.

use crate::case::{Outcome, child_that_waits, passed};
use crate::look::{anonymous_outside, frozen_pages, usable, wait, write};
use cowbell::arena::Arena;
use cowbell::fork::{self, ForkOptions};
use cowbell::page::PageCount;
use cowbell::report::Report;
use cowbell::sys::{self, signal};
use cowbell::watch::{Outside, OutsidePages, Watch};
use libtest_mimic::{Failed, Trial};
use std::cell::Cell;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Pages that a child of this test program comes by without doing anything: its stack, variables, what the allocator writes.
const SLACK_PAGES: u64 = 150;

fn counted(outside: Outside) -> Result<(OutsidePages, OutsidePages), Failed> {
    match outside {
        Outside::Counted { unshared, new } => Ok((unshared, new)),
        other => Err(format!("it was not counted: {other:?}").into()),
    }
}

fn pages(bytes: usize) -> u64 {
    sys::page_size().pages_for(bytes).0
}

/// Strings that are counted references on the heap, as who comes from elsewhere has them; together about 30 MB.
fn strings() -> Vec<Arc<String>> {
    (0..200_000).map(|at| Arc::new(format!("{at:0100}"))).collect()
}

/// The root of the arena is a page, and all else is on the heap: clones of the references copy it, and the report says how much.
fn data_that_was_left_on_the_heap_is_in_the_report() -> Outcome {
    let frozen = Arena::builder("strings").capacity(1 << 20).build()?.freeze_unchecked(strings())?;
    // The counts lie before the strings.
    let counts = frozen.iter().map(|text| std::ptr::from_ref(&**text).addr() - 2 * size_of::<usize>());
    let expected = counts.map(|at| at / sys::page_size().bytes()).collect::<HashSet<_>>().len() as u64;
    let mut child = fork::spawn(&ForkOptions::new(), |_| {
        let clones: Vec<_> = frozen.iter().cloned().collect();
        std::hint::black_box(&clones);
    })?;
    let report = wait(&mut child)?.report;
    assert_eq!((report.copied_pages(), report.arenas[0].pages), (PageCount(0), PageCount(1)));
    let (unshared, new) = counted(report.outside)?;
    // The clones lie in new memory, or in what the parent had freed and still had: that is a copy, too.
    let clones = pages(200_000 * size_of::<Arc<String>>());
    assert!((expected..expected + clones + SLACK_PAGES).contains(&unshared.heap.0), "{unshared:?}, {expected}");
    assert!(unshared.heap.0 + new.heap.0 >= expected + clones, "{unshared:?}, {new:?}, {expected}");
    assert!(unshared.heap.0 * sys::page_size().bytes() as u64 > 7 << 20, "{unshared:?}");
    let said = format!("outside the arenas: {} pages", unshared.total());
    assert!(report.to_string().contains(&said) && report.to_string().contains("shared no longer"), "{report}");
    passed()
}

/// A child that only reads has a few pages of its own; memory that it makes is new, and not called unshared.
fn memory_that_a_child_makes_is_new() -> Outcome {
    const MADE: usize = 20 << 20;
    let before = vec![1u8; MADE];
    let mut child = fork::spawn(&ForkOptions::new(), |_| {
        let sum: usize = before.iter().map(|&byte| usize::from(byte)).sum();
        let made = vec![sum as u8 | 1; MADE];
        std::hint::black_box(&made);
        assert!(std::hint::black_box(&before).len() == MADE);
        std::mem::forget(made);
    })?;
    let (unshared, new) = counted(wait(&mut child)?.report.outside)?;
    assert!(unshared.total().0 < SLACK_PAGES, "{unshared:?}");
    assert!((pages(MADE)..pages(MADE) + SLACK_PAGES).contains(&new.heap.0), "{new:?}");
    passed()
}

static VARIABLES: [std::sync::atomic::AtomicU64; 1 << 16] = [const { std::sync::atomic::AtomicU64::new(7) }; 1 << 16];

/// Heap, variables and stack are told apart, under each watch, in a living child and a dead one, and are what smaps counts.
fn heap_data_and_stack_are_told_apart_under_each_watch() -> Outcome {
    const DEEP: usize = 1 << 20;
    let frozen = frozen_pages("beside", 50)?;
    let heap = vec![Cell::new(1u8); 3 << 20];
    // Memory that lies below the stack pointer was touched before the fork, and is the child's copy when it goes there.
    let deep = |mark: u8| {
        let frame = [mark; DEEP];
        std::hint::black_box(&frame);
    };
    deep(1);
    for watch in Watch::ALL {
        if let Err(why) = usable(watch)? {
            eprintln!("skipped: {why}");
            continue;
        }
        let work = |_: &fork::Context| {
            write(frozen.root(), 7);
            heap.iter().step_by(sys::page_size().bytes()).for_each(|byte| byte.set(2));
            std::hint::black_box(&heap);
            for variable in VARIABLES.iter().step_by(64) {
                variable.fetch_add(1, Ordering::Relaxed);
            }
            deep(2);
        };
        let (mut child, turns) = child_that_waits(&ForkOptions::new().watch(watch), work)?;
        let (unshared, new) = counted(child.outside()?)?;
        let (heap, data, stack) = (unshared.heap.0, unshared.data.0, unshared.stack.0);
        assert!((pages(3 << 20)..pages(3 << 20) + SLACK_PAGES).contains(&heap), "{watch}: {unshared:?}");
        assert!((pages(1 << 19)..pages(1 << 19) + SLACK_PAGES).contains(&data), "{watch}: {unshared:?}");
        assert!((pages(DEEP)..pages(DEEP) + SLACK_PAGES).contains(&stack), "{watch}: {unshared:?}");
        // The kernel's own count of anonymous memory that nobody else has; the keeper's stack is in it, and not in ours.
        let theirs = anonymous_outside(child.pid(), frozen.image().range())?;
        let ours = heap + stack + new.total().0;
        assert!((theirs.saturating_sub(80)..=theirs).contains(&ours), "{watch}: {ours} of {theirs}");
        // The keeper sees the same, but for what this process has written since.
        let (again, new_again) = counted(child.report()?.outside)?;
        let near = |one: PageCount, other: PageCount| one.0.abs_diff(other.0) < SLACK_PAGES;
        assert!(near(again.total(), unshared.total()) && near(new_again.total(), new.total()), "{watch}: {again:?}");
        turns.give();
        let report = wait(&mut child)?.report;
        assert_eq!(report.copied_pages(), PageCount(1), "{watch}");
        let (last, _) = counted(report.outside)?;
        assert!((0..SLACK_PAGES).contains(&(last.total().0 - unshared.total().0)), "{watch}: {last:?}, {unshared:?}");
    }
    passed()
}

/// The page is shared no longer, no matter which of the two writes: the documentation says so.
fn what_the_parent_writes_is_shared_no_longer_either() -> Outcome {
    let mut heap = vec![1u8; 4 << 20];
    let (mut child, turns) = child_that_waits(&ForkOptions::new(), |_| ())?;
    let (before, _) = counted(child.outside()?)?;
    assert!(before.total().0 < SLACK_PAGES, "{before:?}");
    heap.fill(2);
    std::hint::black_box(&heap);
    let (after, _) = counted(child.outside()?)?;
    assert!(after.heap.0 >= before.heap.0 + pages(4 << 20) - 1, "{before:?}, {after:?}");
    turns.give();
    wait(&mut child)?;
    passed()
}

/// An answer that there is none has a reason.
fn what_is_not_counted_says_why() -> Outcome {
    let outside =
        |options: &ForkOptions<'_>| -> Result<Report, Failed> { Ok(wait(&mut fork::spawn(options, |_| ())?)?.report) };
    for options in [ForkOptions::new().outside(false), ForkOptions::new().last_census(false)] {
        let report = outside(&options)?;
        assert_eq!(report.outside, Outside::NotAsked);
        assert!(report.to_string().contains("outside the arenas: not counted, not asked for"), "{report}");
    }
    let (mut child, turns) = child_that_waits(&ForkOptions::new(), |_| ())?;
    signal::kill(child.keeper_pid().ok_or("it has a keeper")?);
    turns.give();
    let report = wait(&mut child)?.report;
    assert_eq!(report.outside, Outside::Lost, "{report}");
    assert!(child.outside().is_err(), "it has ended");
    passed()
}

/// Memory in more pieces than are kept is said to be that.
#[expect(unsafe_code, reason = "holes are made in memory of this test's own")]
fn memory_in_too_many_pieces_is_not_counted() -> Outcome {
    let page = sys::page_size().bytes();
    let count = (1 << 16) + 10;
    let range = sys::map::anonymous(2 * count * page)?;
    for piece in 0..count {
        let place = std::ptr::with_exposed_provenance_mut::<u8>(range.start + 2 * piece * page);
        // SAFETY: it lies in memory that was just mapped, and is nobody else's.
        unsafe { place.write_volatile(1) };
    }
    let mut child = fork::spawn(&ForkOptions::new(), |_| ())?;
    assert_eq!(wait(&mut child)?.report.outside, Outside::Scattered);
    // SAFETY: the memory is this test's, and nothing refers to it.
    unsafe { sys::map::unmap(range) }?;
    passed()
}

/// A pool's workers are children like others.
#[cfg(feature = "pool")]
fn a_workers_report_counts_what_it_copied_outside() -> Outcome {
    let heap = vec![1u8; 4 << 20];
    let write_all = move |_: &(), _: u64| {
        let mut heap = heap.clone();
        heap.fill(2);
        std::hint::black_box(&heap).len() as u64
    };
    let data = Arena::builder("nothing").capacity(1 << 16).build()?.freeze(())?;
    let pool = cowbell::pool::Pool::builder().workers(1).spawn(data, write_all)?;
    pool.submit(1)?.wait()?;
    let exits = pool.shutdown(cowbell::pool::Shutdown::Drain)?;
    let (unshared, _) = counted(exits.first().ok_or("one worker")?.report.outside)?;
    assert!((1..SLACK_PAGES).contains(&unshared.total().0), "{unshared:?}");
    passed()
}

pub fn trials() -> Vec<Trial> {
    let mut trials = claims![
        data_that_was_left_on_the_heap_is_in_the_report,
        memory_that_a_child_makes_is_new,
        heap_data_and_stack_are_told_apart_under_each_watch,
        what_the_parent_writes_is_shared_no_longer_either,
        what_is_not_counted_says_why,
        memory_in_too_many_pieces_is_not_counted,
    ];
    #[cfg(feature = "pool")]
    trials.extend(claims![a_workers_report_counts_what_it_copied_outside]);
    trials
}
