//! Arenas that grow: in huge pages once they are large; and in a forked child nothing of them is there, and nothing else takes their place.
#![expect(unsafe_code, reason = "arenas are released")]

use crate::apart::apart;
use crate::case::{Outcome, child_that_waits, passed, skipped};
use crate::faults::{SEGV, child_of};
use crate::look::{Bytes, anonymous_pages, first_byte, frozen_pages, original, set, usable, write};
use cowbell::arena::{Arena, Collapsed, Frozen, HugePages, Vec};
use cowbell::fork::ForkOptions;
use cowbell::support::{Availability, Feature, Support};
use cowbell::sys::map::{self, Range};
use cowbell::sys::procfs::smaps::{self, MappingFigures};
use cowbell::sys::{self, Errno, memfd, process};
use cowbell::watch::Watch;
use libtest_mimic::{Failed, Trial};
use std::sync::atomic::{AtomicU8, Ordering};

fn a_child_that_touches_a_growing_arena_dies_with_a_line_that_says_growing() -> Outcome {
    for frozen_before in [false, true] {
        let left = apart(|| {
            if frozen_before {
                frozen_pages("frozen", 1)?;
            }
            let arena = Arena::builder("unfinished").capacity(1 << 20).build()?;
            let value: &u64 = arena.alloc(5u64)?;
            let exit = child_of(|| {
                std::hint::black_box(*std::hint::black_box(value));
            })?;
            assert_eq!(exit.ended, SEGV);
            Ok(())
        })?;
        assert!(left.success(), "{left:?}");
        let said =
            left.stderr.contains("growing arena `unfinished`") && left.stderr.contains("freeze it before the fork");
        assert!(said, "with an arena frozen before: {frozen_before}; stderr: {:?}", left.stderr);
    }
    passed()
}

fn where_a_growing_arena_lies_a_child_can_map_nothing_else() -> Outcome {
    let arena = Arena::builder("kept free").capacity(8 << 20).build()?;
    arena.alloc(5u64)?;
    let range = crate::arena::place_of("kept free").ok_or("it is mapped")?;
    let page = sys::page_size().bytes();
    let exit = child_of(|| {
        assert!(crate::arena::place_of("kept free").is_none(), "the child has not got it");
        for start in [range.start, range.end() - page] {
            assert_eq!(map::fence(Range { start, len: page }), Err(Errno::EXIST), "the place is taken");
        }
    })?;
    assert!(exit.success(), "{:?}", exit.panic);
    passed()
}

fn a_child_cannot_allocate_from_a_growing_arena_but_may_build_its_own() -> Outcome {
    let arena = Arena::builder("the parents").capacity(1 << 20).build()?;
    arena.alloc(1u8)?;
    let exit = child_of(|| {
        let e = arena.alloc(2u8).expect_err("it is the parent's");
        assert!(e.is_invalid() && e.hint().is_some() && e.to_string().contains("`the parents`"), "{e}");
        let own = Arena::builder("its own").capacity(1 << 20).build().expect("a new arena");
        let frozen = own.freeze([4u64; 1000]).expect("freeze");
        assert_eq!(frozen[999], 4);
    })?;
    assert!(exit.success(), "{:?}", exit.panic);
    assert_eq!(*arena.alloc(3u8)?, 3, "here it goes on growing");
    passed()
}

fn a_child_cannot_freeze_a_growing_arena_of_its_parent() -> Outcome {
    for zero_sized in [false, true] {
        let arena = Arena::builder("the parents").capacity(1 << 20).build()?;
        let handle = *arena;
        let value = handle.alloc(5u64)?;
        let exit = child_of(move || {
            let e = if zero_sized { arena.freeze(()).err() } else { arena.freeze(1u64).err() };
            let e = e.expect("it is the parent's");
            assert!(e.is_invalid() && e.to_string().contains("`the parents`"), "{e}");
            assert!(!handle.is_frozen());
        })?;
        assert!(exit.success(), "{:?}", exit.panic);
        *value += *handle.alloc(1u64)?;
        assert_eq!(*value, 6, "here it goes on growing, and can be written");
    }
    passed()
}

/// The process is forked as by a program that forks by itself, or whose library does.
fn a_growing_arena_is_kept_from_a_process_forked_by_others() -> Outcome {
    let arena = Arena::builder("not yours").capacity(8 << 20).build()?;
    let handle = *arena;
    let value: &u64 = handle.alloc(5u64)?;
    let range = crate::arena::place_of("not yours").ok_or("it is mapped")?;
    let left = apart(|| {
        assert!(handle.alloc(1u8).is_err_and(|e| e.is_invalid()));
        assert!(arena.freeze(()).is_err_and(|e| e.is_invalid()));
        assert_eq!(map::fence(Range { start: range.start, len: sys::page_size().bytes() }), Err(Errno::EXIST));
        std::hint::black_box(*std::hint::black_box(value));
        Ok(())
    })?;
    assert!(left.ended == SEGV && left.stderr.contains("growing arena `not yours`"), "{left:?}");
    assert_eq!((*value, *handle.alloc(7u64)?), (5, 7));
    passed()
}

/// A frozen arena of 16 MiB and a huge page and a bit more, which has come there step by step or at once, under a policy.
fn grown(name: &str, huge_pages: HugePages, at_once: bool) -> cowbell::Result<Frozen<Bytes>> {
    let len = SMALL + HUGE + 3 * sys::page_size().bytes() + 100;
    let arena = Arena::builder(name).capacity(64 << 20).huge_pages(huge_pages).build()?;
    if at_once {
        let data: Bytes = arena.alloc_iter((0..len).map(|n| AtomicU8::new(original(n))))?;
        return arena.freeze(data);
    }
    let mut bytes = Vec::with_capacity_in(len, *arena);
    bytes.extend((0..len).map(|n| AtomicU8::new(original(n))));
    arena.freeze(&*bytes.leak())
}

const SMALL: usize = 16 << 20;
const HUGE: usize = 2 << 20;

/// The arena's figures in a process.
fn figures(pid: i32, frozen: &Frozen<Bytes>) -> Result<MappingFigures, Failed> {
    let mappings = smaps::mappings(pid, frozen.image().range())?;
    let [figures] = &mappings[..] else { return Err(format!("one mapping: {mappings:?}").into()) };
    Ok(figures.clone())
}

fn beyond_16_mib_an_arena_grows_in_huge_pages() -> Outcome {
    if Support::get().verdict(Feature::Collapse) != &Availability::Works || map::huge_page_size() != Some(HUGE) {
        return skipped("MADV_COLLAPSE does not work here, or not now, or huge pages have another size");
    }
    for at_once in [false, true] {
        let frozen = grown("grown", HugePages::Auto, at_once)?;
        // What was committed and is not used is given back: the file takes no more than its pages.
        let image = frozen.image();
        assert_eq!(image.range().len, sys::page_size().round_up(image.used()).ok_or("fits")?);
        assert_eq!(memfd::held_bytes(image.file())?, image.range().len as u64);
        assert_eq!(image.collapsed(), &Collapsed::NotAsked);
        let data: Bytes = frozen.root();
        let (mut child, turns) = child_that_waits(&ForkOptions::new(), |_| {
            assert!(data.iter().enumerate().all(|(at, byte)| byte.load(Ordering::Relaxed) == original(at)));
        })?;
        assert_eq!(figures(child.pid(), &frozen)?.huge_file, HUGE as u64, "at once: {at_once}");
        turns.give();
        assert_eq!(child.wait()?.report.copied_pages().0, 0);
    }
    let frozen = grown("not grown", HugePages::Never, false)?;
    frozen.populate()?;
    assert_eq!(figures(process::pid(), &frozen)?.huge_file, 0, "it was refused");
    passed()
}

/// Copies are those of ordinary pages: before the huge page, at its borders, within it, and where the last one was cut.
fn copies_of_an_arena_that_grew_in_huge_pages_are_exact() -> Outcome {
    let page = sys::page_size().bytes();
    let (first, last) = ((SMALL / page) as u64, ((SMALL + HUGE) / page) as u64);
    let written = [0, 7, first - 1, first, first + 5, first + 6, last - 1, last, last + 3];
    for watch in Watch::ALL {
        if let Err(why) = usable(watch)? {
            println!("without {watch}: {why}");
            continue;
        }
        let frozen = grown("grown", HugePages::Auto, true)?;
        let (range, data) = (frozen.image().range(), frozen.root());
        let (mut child, turns) = child_that_waits(&ForkOptions::new().watch(watch), |_| {
            std::hint::black_box(data.iter().step_by(page).map(|byte| byte.load(Ordering::Relaxed)).max());
            written.iter().for_each(|&page| write(data, page));
            (0..written.len()).for_each(|at| assert_eq!(first_byte(data, written[at]).load(Ordering::Relaxed) % 2, 1));
        })?;
        assert_eq!(anonymous_pages(child.pid(), range)?, written.len() as u64, "{watch}");
        assert_eq!(child.census()?[0].copied, set(written), "{watch}");
        turns.give();
        let report = child.wait()?.report;
        assert_eq!(report.arenas[0].copied_set(), set(written), "{watch}");
        if watch != Watch::Census {
            assert_eq!(report.arenas[0].observed_set(), set(written), "{watch}");
        }
        // SAFETY: the child is gone and the data is used no more.
        unsafe { frozen.release() }?;
    }
    passed()
}

pub fn trials() -> std::vec::Vec<Trial> {
    claims![
        a_child_that_touches_a_growing_arena_dies_with_a_line_that_says_growing,
        where_a_growing_arena_lies_a_child_can_map_nothing_else,
        a_child_cannot_allocate_from_a_growing_arena_but_may_build_its_own,
        a_child_cannot_freeze_a_growing_arena_of_its_parent,
        a_growing_arena_is_kept_from_a_process_forked_by_others,
        beyond_16_mib_an_arena_grows_in_huge_pages,
        copies_of_an_arena_that_grew_in_huge_pages_are_exact,
    ]
}
