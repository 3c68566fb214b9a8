//! Arenas that grow, in a forked child: nothing of them is there, and nothing else takes their place.

use crate::apart::apart;
use crate::case::{Outcome, passed};
use crate::faults::{SEGV, child_of};
use crate::look::frozen_pages;
use cowbell::arena::Arena;
use cowbell::sys::map::{self, Range};
use cowbell::sys::{self, Errno};
use libtest_mimic::Trial;

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

pub fn trials() -> std::vec::Vec<Trial> {
    claims![
        a_child_that_touches_a_growing_arena_dies_with_a_line_that_says_growing,
        where_a_growing_arena_lies_a_child_can_map_nothing_else,
        a_child_cannot_allocate_from_a_growing_arena_but_may_build_its_own,
        a_child_cannot_freeze_a_growing_arena_of_its_parent,
        a_growing_arena_is_kept_from_a_process_forked_by_others,
    ]
}
