//! Each watch tells these: epochs, events, objects, bytes.
#![expect(unsafe_code, reason = "arenas are released, pages dropped")]

use crate::case::{Outcome, Turns, child_that_waits, passed};
use crate::look::{Bytes, anonymous_pages, first_byte, frozen_pages, original, set, usable, wait, write};
use cowbell::arena::{Arena, Frozen};
use cowbell::fork::{self, Child, Ended, ForkOptions};
use cowbell::page::PageSet;
use cowbell::report::{Census, Report};
use cowbell::sys::{self, executable, process};
use cowbell::watch::Watch;
use libtest_mimic::{Completion, Failed, Trial};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// Makes a claim about each of the watches that can be used here; skipped if there is none.
pub fn for_each(watches: &[Watch], claim: impl Fn(Watch) -> Result<(), Failed>) -> Outcome {
    let mut left_out = Vec::new();
    for &watch in watches {
        match usable(watch)? {
            Ok(()) => claim(watch).map_err(|e| format!("{watch}: {}", e.message().unwrap_or_default()))?,
            Err(why) => left_out.push(why),
        }
    }
    match left_out.len() == watches.len() {
        true => Ok(Completion::ignored_with(left_out.join("; "))),
        false => passed(),
    }
}

/// The watches that this is true of.
pub fn watches_that(are: fn(Watch) -> bool) -> Vec<Watch> {
    Watch::ALL.into_iter().filter(|watch| are(*watch)).collect()
}

/// The finding of the census in the first arena.
pub fn copied(report: &Report) -> PageSet {
    report.arenas[0].copied_set()
}

/// Lets a child that takes turns do its next step, and waits until it is done.
fn next(turns: &Turns) -> Result<(), Failed> {
    turns.give();
    if turns.take() { Ok(()) } else { Err("the child ended early".into()) }
}

fn each_epoch_has_the_pages_written_in_it_and_no_other() -> Outcome {
    for_each(&Watch::ALL, |watch| {
        let frozen = frozen_pages("epochs", 70)?;
        let (mine, theirs) = Turns::new()?;
        let step = |pages: &[u64]| {
            pages.iter().for_each(|&page| write(*frozen, page));
            theirs.give();
            theirs.take();
        };
        let mut child = fork::spawn(&ForkOptions::new().watch(watch), |_| {
            step(&[1, 5, 64]);
            step(&[1, 2]);
            std::hint::black_box(first_byte(*frozen, 9).load(Ordering::Relaxed));
            step(&[]);
            step(&[5, 5, 69]);
            write(*frozen, 7);
        })?;
        let again = |all: &[u64], new: &[u64]| set(if watch.arms() { all } else { new }.iter().copied());
        let epoch = |child: &mut Child| child.end_epoch().map(|epoch| epoch[0].pages.clone());
        assert!(mine.take());
        assert_eq!(epoch(&mut child)?, set([1, 5, 64]));
        next(&mine)?;
        assert_eq!(epoch(&mut child)?, again(&[1, 2], &[2]));
        next(&mine)?;
        assert_eq!(epoch(&mut child)?, set([]), "reading is not writing");
        next(&mine)?;
        assert_eq!(epoch(&mut child)?, again(&[5, 69], &[69]));
        assert_eq!(epoch(&mut child)?, set([]), "nothing happened since");
        mine.give();
        let exit = wait(&mut child)?;
        assert_eq!(copied(&exit.report), set([1, 2, 5, 7, 64, 69]));
        if watch != Watch::Census {
            assert_eq!(exit.report.arenas[0].observed_set(), set([1, 2, 5, 7, 64, 69]));
        }
        if watch.has_events() {
            let pages: Vec<u64> = exit.report.events.iter().map(|event| event.page.0).collect();
            if watch.arms() {
                assert_eq!(pages, [1, 5, 64, 1, 2, 5, 69, 7], "one event a page in each epoch");
            } else {
                assert_eq!(pages, [1, 5, 64, 2, 69, 7], "one event a page");
            }
        }
        release(frozen)
    })
}

/// Gives an arena back after its children.
pub fn release(frozen: Frozen<Bytes>) -> Result<(), Failed> {
    // SAFETY: the children are gone and nothing in the arena is used any more.
    Ok(unsafe { frozen.release() }?)
}

fn a_living_child_is_reported_by_itself_its_keeper_and_its_parent_alike() -> Outcome {
    for_each(&Watch::ALL, |watch| {
        let frozen = frozen_pages("living", 10)?;
        let options = ForkOptions::new().watch(watch);
        let (mut child, turns) = child_that_waits(&options, |context| {
            [3, 4, 8].iter().for_each(|&page| write(*frozen, page));
            assert_eq!((context.pid(), context.watch()), (process::pid(), watch));
            let census = context.census().expect("its own page tables");
            assert_eq!(census[0].copied, set([3, 4, 8]));
        })?;
        let report = child.report()?;
        assert_eq!((report.census, report.ended, report.pid), (Census::Living, None, child.pid()));
        assert_eq!((copied(&report), child.census()?[0].copied.clone()), (set([3, 4, 8]), set([3, 4, 8])));
        assert_eq!(anonymous_pages(child.pid(), frozen.image().range())?, 3);
        assert_eq!(child.report()?.arenas, report.arenas, "looking changes nothing");
        turns.give();
        let exit = wait(&mut child)?;
        assert_eq!((exit.report.census, exit.report.ended), (Census::Last, Some(Ended::Exited(0))));
        assert_eq!(exit.report.arenas, report.arenas);
        assert!(child.report().is_err() && child.end_epoch().is_err(), "a dead child has no further one");
        release(frozen)
    })
}

fn events_come_in_order_with_time_thread_address_and_instruction() -> Outcome {
    for_each(&watches_that(Watch::has_events), |watch| {
        let frozen = frozen_pages("events", 10)?;
        let data: Bytes = frozen.root();
        let words = sys::shared_words::SharedWords::new(2)?;
        let tids: &[AtomicU64] = words.words();
        let at = |page: u64| sys::page_size().bytes() * page as usize + 100 + page as usize;
        let store = |page: u64| data[at(page)].store(0, Ordering::Relaxed);
        let before = sys::monotonic_ns();
        let mut child = fork::spawn(&ForkOptions::new().watch(watch), |_| {
            let in_a_thread = |number: usize, page: u64| {
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        tids[number].store(process::tid() as u64, Ordering::Relaxed);
                        store(page);
                    });
                });
            };
            in_a_thread(0, 7);
            store(3);
            in_a_thread(1, 5);
            store(7);
            store(4);
        })?;
        let exit = wait(&mut child)?;
        assert!(exit.success(), "{:?}", exit.panic);
        let events = &exit.report.events;
        let tid = |number: usize| tids[number].load(Ordering::Relaxed) as i32;
        let told: Vec<_> = events.iter().map(|event| (event.arena, event.page.0, event.tid)).collect();
        assert_eq!(told, [(0, 7, tid(0)), (0, 3, child.pid()), (0, 5, tid(1)), (0, 4, child.pid())]);
        let mut last = before;
        for event in events {
            assert!((last..sys::monotonic_ns()).contains(&event.time_ns));
            last = event.time_ns;
            let executable = &exit.report.executable;
            let pc = event.pc.wrapping_sub(executable.start);
            assert!(pc < executable.len, "instruction {:#x}", event.pc);
            let address = std::ptr::from_ref(&data[at(event.page.0)]).addr() as u64;
            assert_eq!(event.address, address, "to the byte");
        }
        assert_eq!(exit.report.executable.start, executable::executable().start as u64);
        release(frozen)
    })
}

fn events_that_find_no_room_are_counted_and_the_pages_stay_exact() -> Outcome {
    for_each(&watches_that(Watch::has_events), |watch| {
        let frozen = frozen_pages("full", 40)?;
        let options = ForkOptions::new().watch(watch).events_max(4);
        let (mut child, turns) = child_that_waits(&options, |_| (0..10).for_each(|page| write(*frozen, page)))?;
        let first: Vec<u64> = child.events()?.iter().map(|event| event.page.0).collect();
        assert_eq!(first, [0, 1, 2, 3]);
        assert!(child.events()?.is_empty(), "each is told once");
        assert_eq!(child.report()?.events_lost, 6, "also while the child lives");
        turns.give();
        let report = wait(&mut child)?.report;
        assert_eq!((report.events.len(), report.events_lost), (0, 6), "what was taken is not told again");
        assert_eq!((copied(&report), report.arenas[0].observed_set()), (set(0..10), set(0..10)));
        release(frozen)
    })
}

#[repr(align(4096))]
struct Account {
    balance: AtomicU64,
}

struct Pair {
    left: AtomicU64,
    right: AtomicU64,
}

fn the_objects_on_copied_pages_are_named_with_their_line() -> Outcome {
    for_each(&Watch::ALL, |watch| {
        let arena = Arena::builder("objects").capacity(1 << 20).record_sites(true).build()?;
        let line = line!() + 1;
        let accounts = arena.alloc_iter((0..5).map(|n| Account { balance: AtomicU64::new(n) }))?;
        let pair = arena.alloc(Pair { left: AtomicU64::new(0), right: AtomicU64::new(0) })?;
        let other = arena.alloc(AtomicI32::new(0))?;
        let frozen = arena.freeze_unchecked((&*accounts, &*pair, &*other))?;
        let page = |object: usize| (object - frozen.image().range().start) / sys::page_size().bytes();
        let same = page(std::ptr::from_ref(&*pair).addr()) == page(std::ptr::from_ref(&*other).addr());
        assert!(same, "two objects on one page");
        let mut child = fork::spawn(&ForkOptions::new().watch(watch), |_| {
            accounts[1].balance.fetch_add(1, Ordering::Relaxed);
            accounts[3].balance.fetch_add(1, Ordering::Relaxed);
            pair.right.fetch_add(pair.left.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        })?;
        let report = wait(&mut child)?.report;
        let sites = &report.arenas[0].sites;
        let told: Vec<_> = sites.iter().map(|site| (site.type_name.as_str(), site.pages.0)).collect();
        let (account, pair_name) = (std::any::type_name::<Account>(), std::any::type_name::<Pair>());
        assert_eq!(told, [(account, 2), (pair_name, 1)], "not the unchanged object beside the pair");
        assert_eq!(sites[0].location, format!("{}:{line}", file!()));
        if watch.has_events() {
            let objects: Vec<_> = report.events.iter().map(|event| event.object.as_deref()).collect();
            assert_eq!(objects, [Some(account), Some(account), Some(pair_name)]);
        }
        // SAFETY: the child is gone and nothing in the arena is used any more.
        Ok(unsafe { frozen.release() }?)
    })
}

fn changed_bytes_are_counted_and_a_page_put_back_is_identical() -> Outcome {
    for_each(&Watch::ALL, |watch| {
        let page = sys::page_size().bytes();
        let frozen = frozen_pages("bytes", 6)?;
        let data: Bytes = frozen.root();
        let flip = |at: usize| {
            data[at].fetch_xor(0xff, Ordering::Relaxed);
        };
        let options = ForkOptions::new().watch(watch);
        let (mut child, turns) = child_that_waits(&options, |_| {
            [0, 1, page - 1, 3 * page + 7].iter().for_each(|&at| flip(at));
            flip(5 * page);
            flip(5 * page);
        })?;
        let report = child.report()?;
        turns.give();
        for report in [report, wait(&mut child)?.report] {
            let arena = &report.arenas[0];
            assert_eq!((copied(&report), arena.bytes_changed, arena.identical_pages.0), (set([0, 3, 5]), Some(4), 1));
            assert_eq!(arena.amplification(page as u64), Some(3.0 * page as f64 / 4.0));
        }
        let mut child = fork::spawn(&options, |_| {
            flip(9);
            flip(9);
        })?;
        let report = wait(&mut child)?.report;
        let arena = &report.arenas[0];
        assert_eq!((arena.bytes_changed, arena.identical_pages.0), (Some(0), 1));
        assert_eq!(arena.amplification(page as u64), None);
        release(frozen)
    })
}

fn a_copy_that_was_given_back_is_no_copy_any_more() -> Outcome {
    let frozen = frozen_pages("given back", 6)?;
    let range = frozen.image().range();
    let (mut child, turns) = child_that_waits(&ForkOptions::new(), |_| {
        (1..5).for_each(|page| write(*frozen, page));
        let start = range.start + 2 * sys::page_size().bytes();
        // SAFETY: nobody holds a reference that the change of its content would break.
        unsafe { sys::map::drop_private_pages(sys::map::Range { start, len: sys::page_size().bytes() }) }
            .expect("madvise");
        assert_eq!(first_byte(*frozen, 2).load(Ordering::Relaxed), original(2 * sys::page_size().bytes()));
    })?;
    assert_eq!(copied(&child.report()?), set([1, 3, 4]));
    turns.give();
    assert_eq!(copied(&wait(&mut child)?.report), set([1, 3, 4]));
    passed()
}

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    claims![
        each_epoch_has_the_pages_written_in_it_and_no_other,
        a_living_child_is_reported_by_itself_its_keeper_and_its_parent_alike,
        events_come_in_order_with_time_thread_address_and_instruction,
        events_that_find_no_room_are_counted_and_the_pages_stay_exact,
        the_objects_on_copied_pages_are_named_with_their_line,
        changed_bytes_are_counted_and_a_page_put_back_is_identical,
        a_copy_that_was_given_back_is_no_copy_any_more,
    ]
}
