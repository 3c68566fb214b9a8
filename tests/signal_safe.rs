//! Between the fork and the closure, in signal handlers and in the keeper nothing is allocated or freed: here that aborts.
//!
//! The allocator of this program serves the process that armed it, and of its children only one that has come to its closure; never a
//! keeper, which has an id of its own in the child's memory. A closure forbids the allocator to itself around each write that has a handler run.
//! Memory that C code takes is not seen, nor are the heap's own handlers of a fork: that heap is no allocator here. They are held to the same by
//! their mark alone (tests/tidy/signal_safe.rs), and run in tests/heap.
#![expect(unsafe_code, reason = "an allocator is an unsafe trait")]

use cowbell::arena::{Arena, FreezeOptions, Frozen, OnWrite};
use cowbell::fork::{self, Ended, Exit, ForkOptions};
use cowbell::shared::SharedArena;
use cowbell::sys::{pipe, process, signal, stderr};
use cowbell::watch::{Outside, Watch};
use libtest_mimic::{Arguments, Failed, Trial};
use std::alloc::{GlobalAlloc, Layout, System};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// The one process that may allocate; 0 while all may, -1 while none may.
static ALLOWED: AtomicI32 = AtomicI32::new(0);

struct Fenced;

fn check() {
    let allowed = ALLOWED.load(Ordering::Relaxed);
    if allowed != 0 && allowed != process::pid() {
        stderr::write_all(b"an allocation where none may be\n");
        signal::send(process::pid(), libc_abort());
        process::exit(99);
    }
}

/// SIGABRT, by its number on Linux.
fn libc_abort() -> i32 {
    6
}

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Fenced {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check();
        // SAFETY: passed on to the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        check();
        // SAFETY: passed on to the caller.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static FENCED: Fenced = Fenced;

const PAGES: usize = 40;

fn words(page: usize) -> usize {
    page * cowbell::sys::page_size().bytes() / 8
}

fn data(on_write: OnWrite) -> cowbell::Result<Frozen<&'static [AtomicU64]>> {
    let arena = Arena::builder("fenced").capacity(4 << 20).record_sites(true).build()?;
    let words = arena.alloc_iter((0..words(PAGES)).map(|word| AtomicU64::new(word as u64)))?;
    arena.freeze_with(&*words, FreezeOptions::new().on_write(on_write))
}

/// Runs a closure in a child that may allocate nothing before it.
fn child(options: &ForkOptions<'_>, body: impl FnOnce()) -> cowbell::Result<Exit> {
    ALLOWED.store(process::pid(), Ordering::SeqCst);
    let child = fork::spawn(options, |_| {
        ALLOWED.store(process::pid(), Ordering::SeqCst);
        body();
    });
    ALLOWED.store(0, Ordering::SeqCst);
    child?.wait()
}

/// Does what no allocation may be part of.
fn fenced(work: impl FnOnce()) {
    ALLOWED.store(-1, Ordering::SeqCst);
    work();
    ALLOWED.store(process::pid(), Ordering::SeqCst);
}

/// A child under each watch copies pages; its set-up, its handler and its keeper, which counts them at the end, allocate nothing.
fn no_watch_allocates_in_a_child(watch: Watch) -> Result<(), Failed> {
    let frozen = data(OnWrite::Copy)?;
    for callers in [false, watch == Watch::Trap] {
        let options = ForkOptions::new().watch(watch).callers(callers);
        let exit = child(&options, || {
            fenced(|| (0..PAGES).step_by(2).for_each(|page| frozen[words(page)].store(7, Ordering::Relaxed)));
        })?;
        assert_eq!(exit.ended, Ended::Exited(0));
        let arena = exit.report.arenas.iter().find(|arena| arena.name == "fenced").expect("the arena");
        assert_eq!(arena.copied_pages.0 as usize, PAGES / 2, "the last census was taken");
        assert!(!matches!(exit.report.outside, Outside::Lost), "memory outside was counted, too");
    }
    Ok(())
}

/// A census, the events and an epoch of a living child are the keeper's work, too.
fn a_keeper_that_is_asked_allocates_nothing() -> Result<(), Failed> {
    let frozen = data(OnWrite::Copy)?;
    for watch in works() {
        let (ask, go) = (pipe::pair()?, pipe::pair()?);
        ALLOWED.store(process::pid(), Ordering::SeqCst);
        let child = fork::spawn(&ForkOptions::new().watch(watch), |_| {
            ALLOWED.store(process::pid(), Ordering::SeqCst);
            fenced(|| frozen[words(3)].store(7, Ordering::Relaxed));
            pipe::give_byte(&ask.1);
            pipe::take_byte(&go.0);
        });
        ALLOWED.store(0, Ordering::SeqCst);
        let mut child = child?;
        assert!(pipe::take_byte(&ask.0), "the child has written");
        let copied: u64 = child.census()?.iter().map(|arena| arena.copied.iter().count() as u64).sum();
        assert_eq!(copied, 1, "under {watch}");
        child.end_epoch()?;
        pipe::give_byte(&go.1);
        assert_eq!(child.wait()?.ended, Ended::Exited(0), "under {watch}");
    }
    Ok(())
}

/// The sentence about a refused write is made without an allocation: the child dies of the fault, and not of an abort.
fn a_refused_write_is_told_without_an_allocation() -> Result<(), Failed> {
    let frozen = data(OnWrite::Deny)?;
    let exit = child(&ForkOptions::new(), || fenced(|| frozen[words(3)].store(7, Ordering::Relaxed)))?;
    assert_eq!(exit.ended, Ended::Signaled(signal::SEGV));
    assert!(exit.denied.is_some(), "the parent is told");
    Ok(())
}

/// Runs a function in a child of libc's `fork`, which calls the library's handlers there, before another program is executed.
fn executed_after(in_child: fn()) -> Result<std::process::ExitStatus, Failed> {
    let mut command = Command::new("true");
    // SAFETY: it does what a signal handler may, and where it allocates the child ends.
    unsafe {
        command.pre_exec(move || {
            in_child();
            Ok(())
        });
    }
    ALLOWED.store(process::pid(), Ordering::SeqCst);
    let status = command.status();
    ALLOWED.store(0, Ordering::SeqCst);
    Ok(status?)
}

/// A program's own forks run handlers of the library, too: an arena that grows is fenced in the child, and locks are another process' there.
fn a_fork_of_the_program_allocates_nothing() -> Result<(), Failed> {
    let growing = Arena::builder("growing").capacity(4 << 20).build()?;
    let first = growing.alloc(7u64)?;
    let shared = SharedArena::new("shared", 1 << 20)?;
    let lock = shared.mutex(5u64)?;
    let held = lock.lock()?;
    assert!(executed_after(|| ()).is_ok_and(|status| status.success()));
    assert_eq!((*first, held.get()), (7, 5));
    let allocates = executed_after(|| drop(std::hint::black_box(Box::new(7))))?;
    assert_eq!(allocates.signal(), Some(libc_abort()), "an allocation there would be noticed");
    Ok(())
}

/// The proof that an allocation would be noticed.
fn an_allocation_would_abort() -> Result<(), Failed> {
    let exit = child(&ForkOptions::new(), || fenced(|| drop(std::hint::black_box(Box::new(7)))))?;
    assert_eq!(exit.ended, Ended::Signaled(libc_abort()));
    // The child is set up by what may be part of any library: a handler of `fork` is none of ours, but runs before a closure, too.
    ALLOWED.store(process::pid(), Ordering::SeqCst);
    let child = fork::spawn(&ForkOptions::new(), |_| drop(std::hint::black_box(Box::new(7))));
    ALLOWED.store(0, Ordering::SeqCst);
    assert_eq!(child?.wait()?.ended, Ended::Signaled(libc_abort()), "in a closure that has not said that it has begun");
    Ok(())
}

/// The watches that work here.
fn works() -> impl Iterator<Item = Watch> {
    Watch::ALL.into_iter().filter(|watch| cowbell::support::Support::get().watch(*watch).require().is_ok())
}

/// A case's name and what it does.
type Case = (String, Box<dyn Fn() -> Result<(), Failed>>);

fn cases() -> Vec<Case> {
    let watch = |watch: Watch| -> Case {
        (format!("{watch}_allocates_nothing_in_a_child"), Box::new(move || no_watch_allocates_in_a_child(watch)))
    };
    let mut cases: Vec<_> = works().map(watch).collect();
    cases.push((
        "a_keeper_that_is_asked_allocates_nothing".to_owned(),
        Box::new(a_keeper_that_is_asked_allocates_nothing),
    ));
    cases.push((
        "a_refused_write_is_told_without_an_allocation".to_owned(),
        Box::new(a_refused_write_is_told_without_an_allocation),
    ));
    cases.push((
        "a_fork_of_the_program_allocates_nothing".to_owned(),
        Box::new(a_fork_of_the_program_allocates_nothing),
    ));
    cases.push(("an_allocation_would_abort".to_owned(), Box::new(an_allocation_would_abort)));
    cases
}

/// Names the case that this process is to run: each has a process of its own, which has one thread.
const CASE: &str = "COWBELL_FENCED_CASE";

fn main() -> ExitCode {
    if let Some(name) = std::env::var_os(CASE) {
        let case = cases().into_iter().find(|(each, _)| name == **each);
        if let Err(e) = case.expect("a case of this name").1() {
            eprintln!("{e:?}");
            return ExitCode::FAILURE;
        }
        return ExitCode::SUCCESS;
    }
    let trials = cases().into_iter().map(|(name, _)| Trial::test(name.clone(), move || apart(&name))).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn apart(name: &str) -> Result<(), Failed> {
    let output = Command::new(std::env::current_exe()?).env(CASE, name).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}
