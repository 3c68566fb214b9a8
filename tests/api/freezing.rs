//! An arena that one thread freezes while another allocates from it or writes into it.

use crate::apart::{Left, apart};
use crate::case::{Outcome, passed, soak};
use cowbell::arena::{Arena, ArenaRef, Vec};
use cowbell::fork::Ended;
use libtest_mimic::{Failed, Trial};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Lets another thread allocate by `step` until that is an error, freezes the arena meanwhile, and returns whether
/// the error is the one that is documented.
fn freeze_beside(step: fn(ArenaRef, u64) -> cowbell::Result<()>) -> Result<Left, Failed> {
    apart(|| {
        let arena = Arena::builder("beside").capacity(4 << 30).build()?;
        let handle = *arena;
        let allocating = std::thread::spawn(move || {
            let mut number = 0;
            loop {
                match step(handle, number) {
                    Ok(()) => number += 1,
                    Err(e) => return e,
                }
            }
        });
        std::thread::sleep(Duration::from_millis(3));
        let frozen = arena.freeze(7u8)?;
        let error = allocating.join().map_err(|_| "it panicked")?;
        assert!(error.is_frozen(), "{error}");
        assert_eq!(*frozen, 7);
        Ok(())
    })
}

fn many_times(step: fn(ArenaRef, u64) -> cowbell::Result<()>) -> Outcome {
    let runs = if soak() { 20_000 } else { 100 };
    for run in 0..runs {
        let left = freeze_beside(step)?;
        assert!(left.success(), "run {run}: {left:?}");
    }
    passed()
}

fn a_value_that_is_put_in_beside_a_freeze_is_an_error() -> Outcome {
    many_times(|arena, number| arena.alloc([number; 32]).map(drop))
}

fn a_slice_that_is_put_in_beside_a_freeze_is_an_error() -> Outcome {
    many_times(|arena, number| {
        arena.alloc_str("a string")?;
        arena.alloc_slice(&[number; 1000]).map(drop)
    })
}

fn an_iterator_that_is_put_in_beside_a_freeze_is_an_error() -> Outcome {
    many_times(|arena, number| arena.alloc_iter((0..5000).map(|n| n ^ number)).map(drop))
}

/// Each value writes to itself when it is dropped.
fn values_of_an_iterator_that_found_the_arena_frozen_are_dropped_elsewhere() -> Outcome {
    struct Writes(u64);
    impl Drop for Writes {
        fn drop(&mut self) {
            self.0 = std::hint::black_box(self.0 + 1);
        }
    }
    many_times(|arena, number| arena.alloc_iter((0..5000).filter(|_| true).map(|n| Writes(n ^ number))).map(drop))
}

/// Two vectors that grow in turns have to move each time.
fn a_vector_that_moves_beside_a_freeze_is_an_error() -> Outcome {
    many_times(|arena, _| {
        let (mut one, mut other) = (Vec::<u64>::new_in(arena), Vec::<u64>::new_in(arena));
        for len in 1..2000 {
            if one.try_reserve_exact(len).is_err() || other.try_reserve_exact(len).is_err() {
                arena.alloc(0u8)?;
            }
        }
        Ok(())
    })
}

/// Puts the first page of a growing arena's file into a pipe, so that sealing the file has to wait.
fn hold_a_page(name: &str) -> Result<(OwnedFd, OwnedFd), Failed> {
    let target = format!("/memfd:cowbell:{name} (deleted)");
    let entries = std::fs::read_dir("/proc/self/fd")?.flatten();
    let fd = entries
        .map(|entry| entry.path())
        .find(|path| std::fs::read_link(path).is_ok_and(|link| link.to_string_lossy() == target));
    let file = std::fs::File::open(fd.ok_or("the arena has a file")?)?;
    let pipe = rustix::pipe::pipe()?;
    let moved = rustix::pipe::splice(&file, Some(&mut 0), &pipe.1, None, 1, rustix::pipe::SpliceFlags::empty())?;
    assert_eq!(moved, 1);
    Ok(pipe)
}

fn a_write_while_another_thread_freezes_is_told_as_that() -> Outcome {
    let left = apart(|| {
        let arena = Arena::builder("winter").capacity(1 << 20).build()?;
        let word = arena.alloc(0u64)?;
        let _held = hold_a_page("winter")?;
        std::thread::spawn(move || {
            loop {
                *std::hint::black_box(&mut *word) += 1;
            }
        });
        // The seal waits while the page is held, and the writer dies before.
        let frozen = arena.freeze(());
        eprintln!("survived: {frozen:?}");
        Ok(())
    })?;
    assert_eq!(left.ended, Ended::Signaled(libc::SIGSEGV), "{left:?}");
    let said = ["write to now freezing arena `winter`", "another thread freezes the arena"];
    assert!(said.iter().all(|part| left.stderr.contains(part)) && !left.stderr.contains("child"), "{}", left.stderr);
    passed()
}

/// The tests of this file.
pub fn trials() -> std::vec::Vec<Trial> {
    claims![
        a_value_that_is_put_in_beside_a_freeze_is_an_error,
        a_slice_that_is_put_in_beside_a_freeze_is_an_error,
        an_iterator_that_is_put_in_beside_a_freeze_is_an_error,
        values_of_an_iterator_that_found_the_arena_frozen_are_dropped_elsewhere,
        a_vector_that_moves_beside_a_freeze_is_an_error,
        a_write_while_another_thread_freezes_is_told_as_that,
    ]
}
