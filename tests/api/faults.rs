//! A write that may not be is a death that says where, and nothing more than that.
#![expect(unsafe_code, reason = "faults are made on purpose, and handled")]

use crate::apart::{Left, apart};
use crate::case::{Outcome, passed, skipped};
use crate::look::{first_byte, frozen_pages, frozen_pages_with, original, wait, write};
use cowbell::arena::{Arena, FreezeOptions, OnWrite, Vec};
use cowbell::fork::{self, Ended, Exit, ForkOptions};
use cowbell::page::PageIndex;
use cowbell::sys::map::{self, Access, Range};
use cowbell::sys::{self, Errno, executable, process, signal, stderr};
use libtest_mimic::{Failed, Trial};
use std::cell::Cell;
use std::ffi::c_void;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

pub const SEGV: Ended = Ended::Signaled(libc::SIGSEGV);

/// The hexadecimal number behind `label` in a text.
fn number(text: &str, label: &str) -> Option<usize> {
    let digits = text.split_once(label)?.1.split(|c: char| !c.is_ascii_hexdigit()).next()?;
    usize::from_str_radix(digits, 16).ok()
}

/// A write of the parent's own: what each sentence must say.
fn died_by_writing(left: &Left, parts: &[&str]) -> Result<(), Failed> {
    assert_eq!(left.ended, SEGV, "{}", left.stderr);
    for part in parts {
        assert!(left.stderr.contains(part), "`{part}` is not in:\n{}", left.stderr);
    }
    let pc = number(&left.stderr, "instruction 0x").ok_or("no instruction")?;
    assert!(executable::executable().contains(pc), "{pc:#x} is not in this program");
    let offset = number(&left.stderr, "executable's 0x").ok_or("no place for addr2line")?;
    assert_eq!(offset, pc - executable::executable().start);
    Ok(())
}

fn a_write_to_frozen_data_dies_with_arena_page_instruction_object_and_line() -> Outcome {
    let page = sys::page_size().bytes();
    let line = line!() + 3;
    let left = apart(|| {
        let arena = Arena::builder("ledger").capacity(1 << 20).record_sites(true).build()?;
        let data = arena.alloc_iter((0..5 * page as u64 / 8).map(AtomicU64::new))?;
        let frozen = arena.freeze(&*data)?;
        assert_eq!(frozen[3 * page / 8 + 2].load(Ordering::Relaxed), 3 * page as u64 / 8 + 2);
        frozen[3 * page / 8 + 2].fetch_add(1, Ordering::Relaxed);
        Ok(())
    })?;
    let byte = format!("byte {}", 3 * page + 16);
    let site = format!("{} allocated at {}:{}", std::any::type_name::<AtomicU64>(), file!(), line);
    died_by_writing(
        &left,
        &["write to frozen arena `ledger`", "page 3,", &byte, &site, "Cell, Mutex or reference count"],
    )?;
    passed()
}

fn cells_and_locks_in_frozen_data_are_diagnosed_too() -> Outcome {
    let cell = apart(|| {
        let frozen =
            Arena::builder("cell").capacity(1 << 20).record_sites(true).build()?.freeze_unchecked(Cell::new(1u64))?;
        frozen.set(2);
        Ok(())
    })?;
    died_by_writing(&cell, &["arena `cell`", "page 0,", std::any::type_name::<Cell<u64>>()])?;
    let mutex = apart(|| {
        let frozen =
            Arena::builder("mutex").capacity(1 << 20).record_sites(true).build()?.freeze_unchecked(Mutex::new(1u64))?;
        drop(frozen.lock());
        Ok(())
    })?;
    died_by_writing(&mutex, &["arena `mutex`", std::any::type_name::<Mutex<u64>>()])?;
    let push = apart(|| {
        let arena = Arena::builder("push").capacity(1 << 20).build()?;
        let mut kept = Vec::new_in(*arena);
        kept.reserve(100);
        kept.push(1u64);
        let _frozen = arena.freeze(())?;
        kept.push(2);
        Ok(())
    })?;
    died_by_writing(&push, &["write to frozen arena `push`"])?;
    assert!(!push.stderr.contains("object:"), "no sites were recorded");
    passed()
}

fn a_collection_without_memory_says_why_before_the_program_aborts() -> Outcome {
    let full = apart(|| {
        let arena = Arena::builder("barrel").capacity(1 << 20).build()?;
        let mut list = Vec::new_in(*arena);
        list.extend((0..1 << 20).map(|n: u64| n));
        Ok(())
    })?;
    let frozen = apart(|| {
        let arena = Arena::builder("ice").capacity(1 << 20).build()?;
        let list = Vec::new_in(*arena);
        let frozen = arena.freeze(list)?;
        let mut copy: Vec<u64> = Vec::clone(&frozen);
        copy.push(1);
        Ok(())
    })?;
    for (left, why) in [(full, "cowbell: arena `barrel` is full: "), (frozen, "cowbell: arena `ice` is frozen: ")] {
        assert_eq!(left.ended, Ended::Signaled(libc::SIGABRT), "{left:?}");
        let (reason, abort) = (left.stderr.find(why), left.stderr.find("memory allocation of"));
        assert!(reason.is_some() && abort.is_some() && reason < abort, "{}", left.stderr);
    }
    passed()
}

fn who_gets_the_reason_as_an_error_does_not_have_it_told() -> Outcome {
    let left = apart(|| {
        let arena = Arena::builder("cup").capacity(1 << 20).build()?;
        assert!(arena.alloc_iter((0..1 << 20).map(|n: u64| n)).is_err_and(|e| e.is_out_of_capacity()));
        assert!(arena.alloc_slice(&[0u8; 1 << 20]).is_ok());
        assert!(arena.alloc(1u64).is_err_and(|e| e.is_out_of_capacity()));
        Ok(())
    })?;
    assert!(left.success() && left.stderr.is_empty(), "{left:?}");
    passed()
}

/// Spawns a child in this process, whose stderr is caught, and says how it ended.
pub fn child_of(body: impl FnOnce()) -> Result<Exit, Failed> {
    wait(&mut fork::spawn(&ForkOptions::new(), |_| body())?)
}

/// Calls itself until the stack is full.
pub fn deeper(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 32]);
    if depth == u64::MAX { 0 } else { deeper(frame[0] + 1) + std::hint::black_box(frame)[1] }
}

fn a_stack_overflow_is_told_with_thread_and_instruction() -> Outcome {
    for (reset, signal) in [(false, libc::SIGABRT), (true, libc::SIGSEGV)] {
        let options = ForkOptions::new().reset_handlers(reset);
        let left = apart(|| {
            frozen_pages("there is a handler", 1)?;
            let mut child = fork::spawn(&options, |_| {
                deeper(0);
            })?;
            let (pid, exit) = (child.pid(), wait(&mut child)?);
            assert_eq!(exit.ended, Ended::Signaled(signal));
            let overflow = exit.stack_overflow.ok_or("a stack that overflowed")?;
            assert_eq!(overflow.tid, pid);
            assert!(executable::executable().contains(overflow.pc as usize), "{overflow:?}");
            let in_thread = wait(&mut fork::spawn(&options, |_| {
                std::thread::scope(|scope| {
                    scope.spawn(|| deeper(0));
                });
            })?)?;
            assert!(in_thread.stack_overflow.is_some_and(|overflow| overflow.tid != pid), "{in_thread:?}");
            Ok(())
        })?;
        assert!(left.success(), "{left:?}");
        assert_eq!(left.stderr.matches("overflowed").count(), 2, "{}", left.stderr);
        assert_eq!(left.stderr.contains("cowbell: the stack of thread "), reset, "{}", left.stderr);
    }
    passed()
}

fn another_fault_is_no_stack_overflow() -> Outcome {
    let left = apart(|| {
        frozen_pages("there is a handler", 1)?;
        let exit = wait(&mut fork::spawn(&ForkOptions::new().reset_handlers(true), |_| {
            // SAFETY: it is to fault: the first pages of all address spaces are kept free.
            unsafe { std::ptr::without_provenance_mut::<u8>(std::hint::black_box(64)).write_volatile(1) };
        })?)?;
        assert_eq!((exit.ended, exit.stack_overflow), (SEGV, None));
        Ok(())
    })?;
    assert!(left.success() && left.stderr.is_empty(), "{left:?}");
    passed()
}

fn a_denied_write_tells_the_parent_arena_page_address_thread_and_instruction() -> Outcome {
    let left = apart(|| {
        let frozen = frozen_pages_with("statute", 9, FreezeOptions::new().on_write(OnWrite::Deny))?;
        let target = first_byte(*frozen, 6);
        let mut child = fork::spawn(&ForkOptions::new(), |_| {
            assert_eq!(target.load(Ordering::Relaxed), original(6 * sys::page_size().bytes()), "reading works");
            target.store(0, Ordering::Relaxed);
        })?;
        let pid = child.pid();
        let exit = wait(&mut child)?;
        assert_eq!(exit.ended, SEGV);
        let denied = exit.denied.ok_or("a denied write")?;
        assert_eq!((denied.arena.as_str(), denied.page, denied.tid), ("statute", Some(PageIndex(6)), pid));
        assert_eq!(denied.address, std::ptr::from_ref(target).addr());
        assert!(executable::executable().contains(denied.pc as usize), "{:#x}", denied.pc);
        assert_eq!((exit.panic, exit.report.copied_pages().0), (None, 0));
        Ok(())
    })?;
    assert!(left.success(), "{left:?}");
    let said = ["frozen arena `statute`", "page 6,", "OnWrite::Deny"].iter().all(|part| left.stderr.contains(part));
    assert!(said, "{}", left.stderr);
    passed()
}

fn a_child_cannot_lift_a_denial() -> Outcome {
    let frozen = frozen_pages_with("sealed", 2, FreezeOptions::new().on_write(OnWrite::Deny))?;
    let range = frozen.image().range();
    let probe = map::anonymous(sys::page_size().bytes())?;
    if map::seal(probe) == Err(Errno::NOSYS) {
        return skipped("this kernel has no mseal (Linux 6.10 and later have it)");
    }
    let exit = child_of(|| {
        // SAFETY: nothing but bytes lies there, and the call is to be refused.
        assert_eq!(unsafe { map::protect(range, Access::ReadWrite) }, Err(Errno::PERM));
        // SAFETY: as above.
        assert_eq!(unsafe { map::unmap(range) }, Err(Errno::PERM));
        // SAFETY: as above.
        assert_eq!(unsafe { map::blank(range) }, Err(Errno::PERM));
    })?;
    assert!(exit.success(), "{:?}", exit.panic);
    // SAFETY: nothing in the arena is used any more.
    let e = unsafe { frozen.release() }.err().ok_or("it is sealed in the parent, too")?;
    assert!(e.is_permission(), "{e}");
    passed()
}

/// The child's own arena takes the slot, and mostly the addresses, of one that was released.
fn a_denied_write_in_an_arena_of_the_childs_own_is_not_laid_to_another() -> Outcome {
    let frozen = frozen_pages("the parents", 3)?;
    let mut frozen = Some(frozen);
    let exit = child_of(|| {
        let old = frozen.take().expect("it is here");
        // SAFETY: nothing in the arena is used any more.
        unsafe { old.release() }.expect("release");
        let deny = FreezeOptions::new().on_write(OnWrite::Deny);
        let own = frozen_pages_with("its own", 3, deny).expect("a new arena");
        write(*own, 1);
    })?;
    assert_eq!(exit.ended, SEGV);
    let denied = exit.denied.ok_or("a denied write")?;
    assert_ne!(denied.arena, "the parents");
    passed()
}

fn read(address: usize) {
    // SAFETY: none; the read is to fault.
    unsafe { std::ptr::with_exposed_provenance::<u8>(std::hint::black_box(address)).read_volatile() };
}

fn a_fault_elsewhere_is_not_claimed() -> Outcome {
    for place in ["null", "beside"] {
        let left = apart(|| {
            let frozen = frozen_pages("innocent", 1)?;
            let mine: Range = frozen.image().range();
            let near = map::anonymous(4096)?;
            // SAFETY: fresh memory that nobody refers to.
            unsafe { map::protect(near, Access::None) }?;
            assert!(!mine.contains(near.start));
            let address = if place == "null" { 16 } else { near.start };
            let exit = child_of(|| read(address))?;
            assert_eq!((exit.ended, exit.denied), (SEGV, None));
            read(address);
            Ok(())
        })?;
        assert_eq!(left.ended, SEGV, "{left:?}");
        assert!(!left.stderr.contains("cowbell"), "{}", left.stderr);
    }
    passed()
}

extern "C" fn leave_with_42(_: i32, _: *mut libc::siginfo_t, _: *mut c_void) {
    stderr::write_all(b"the earlier handler\n");
    process::exit(42);
}

fn an_earlier_sigsegv_handler_is_still_called() -> Outcome {
    for ours in [true, false] {
        let left = apart(|| {
            // SAFETY: the handler writes and exits, by system calls alone.
            unsafe { signal::install(signal::SEGV, leave_with_42) }?;
            let frozen = frozen_pages("handled", 2)?;
            if ours {
                write(*frozen, 1);
            } else {
                read(16);
            }
            Ok(())
        })?;
        assert_eq!(left.ended, Ended::Exited(42), "{left:?}");
        assert!(left.stderr.contains("the earlier handler"), "{left:?}");
        assert_eq!(left.stderr.contains("arena `handled`"), ours, "{left:?}");
    }
    passed()
}

fn a_handler_installed_between_two_freezes_is_still_called() -> Outcome {
    let left = apart(|| {
        let first = frozen_pages("first", 1)?;
        // SAFETY: the handler writes and exits, by system calls alone.
        unsafe { signal::install(signal::SEGV, leave_with_42) }?;
        let _second = frozen_pages("second", 1)?;
        write(*first, 0);
        Ok(())
    })?;
    assert_eq!(left.ended, Ended::Exited(42), "{left:?}");
    passed()
}

fn a_child_with_handlers_reset_still_says_what_it_died_of() -> Outcome {
    let left = apart(|| {
        let frozen = frozen_pages_with("rule", 3, FreezeOptions::new().on_write(OnWrite::Deny))?;
        let options = ForkOptions::new().reset_handlers(true);
        let exit = wait(&mut fork::spawn(&options, |_| write(*frozen, 2))?)?;
        assert_eq!((exit.ended, exit.denied.and_then(|denied| denied.page)), (SEGV, Some(PageIndex(2))));
        Ok(())
    })?;
    assert!(left.success() && left.stderr.contains("arena `rule`"), "{left:?}");
    passed()
}

#[expect(unconditional_recursion, reason = "it is to use up the stack")]
fn deep(n: u64) -> u64 {
    let block = std::hint::black_box([n; 512]);
    deep(n ^ block[0]) ^ block[511]
}

fn a_stack_overflow_keeps_its_own_message() -> Outcome {
    let left = apart(|| {
        let _frozen = frozen_pages("not me", 1)?;
        let exit = child_of(|| {
            deep(1);
        })?;
        assert_eq!((exit.ended, exit.denied), (Ended::Signaled(libc::SIGABRT), None));
        Ok(())
    })?;
    assert!(left.success() && left.stderr.contains("overflowed its stack"), "{left:?}");
    assert!(!left.stderr.contains("cowbell"), "{left:?}");
    passed()
}

/// The tests of this file.
pub fn trials() -> std::vec::Vec<Trial> {
    claims![
        a_write_to_frozen_data_dies_with_arena_page_instruction_object_and_line,
        cells_and_locks_in_frozen_data_are_diagnosed_too,
        a_collection_without_memory_says_why_before_the_program_aborts,
        who_gets_the_reason_as_an_error_does_not_have_it_told,
        a_stack_overflow_is_told_with_thread_and_instruction,
        another_fault_is_no_stack_overflow,
        a_denied_write_tells_the_parent_arena_page_address_thread_and_instruction,
        a_child_cannot_lift_a_denial,
        a_denied_write_in_an_arena_of_the_childs_own_is_not_laid_to_another,
        a_fault_elsewhere_is_not_claimed,
        an_earlier_sigsegv_handler_is_still_called,
        a_handler_installed_between_two_freezes_is_still_called,
        a_child_with_handlers_reset_still_says_what_it_died_of,
        a_stack_overflow_keeps_its_own_message,
    ]
}
