//! The only thread of a process: forks, pools and reshare beside threads that come and go.
#![expect(unsafe_code, reason = "the main thread ends alone")]

use crate::apart::{Process, apart, claim_within};
use crate::case::{Outcome, passed, soak};
use crate::look::{frozen_pages, wait};
use cowbell::arena::Arena;
use cowbell::fork::{self, Ended, ForkOptions};
use cowbell::sys::{process, procfs};
use libtest_mimic::Trial;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

/// The time a storm blows: an hour by hand, or so many seconds as `COWBELL_STORM` says.
fn storm() -> Duration {
    let said = std::env::var("COWBELL_STORM").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(said.unwrap_or(if soak() { 3600 } else { 3 }))
}

static STOP: AtomicBool = AtomicBool::new(false);
static RUNS: AtomicU64 = AtomicU64::new(0);
static LIVE: AtomicBool = AtomicBool::new(true);
static LOCK: Mutex<u64> = Mutex::new(0);

/// At every moment one more thread is alive: each starts the next, under a lock, then ends.
fn relay() {
    if STOP.load(SeqCst) {
        LIVE.store(false, SeqCst);
        return;
    }
    let mut runs = LOCK.lock().expect("no panic");
    *runs += 1;
    RUNS.fetch_add(1, SeqCst);
    std::thread::spawn(relay);
    drop(runs);
}

/// Ends the relay; false if it had ended before.
fn stop_relay() -> bool {
    let ran_until_now = LIVE.load(SeqCst);
    STOP.store(true, SeqCst);
    ran_until_now
}

/// On a busy machine a storm takes longer to have shown anything.
fn has_hardly_begun(refused: u64) -> bool {
    LIVE.load(SeqCst) && !(RUNS.load(SeqCst) > 1000 && refused > 50)
}

fn no_fork_is_let_through_beside_a_relay_of_threads() -> Outcome {
    std::thread::spawn(relay);
    let (mut refused, begun) = (0, Instant::now());
    let options = ForkOptions::new().last_census(false).wait_for_threads(Duration::from_millis(2));
    while begun.elapsed() < storm() || has_hardly_begun(refused) {
        let spawned = fork::spawn(&options, |_| drop(LOCK.lock()));
        let error = spawned.err().ok_or_else(|| format!("a fork beside a live thread, after {refused} refused"))?;
        assert!(error.threads().is_some(), "{error}");
        refused += 1;
    }
    assert!(stop_relay() && RUNS.load(SeqCst) > 1000 && refused > 50, "{refused} refused, {RUNS:?} threads ran");
    println!("{refused} refused beside {RUNS:?} threads");
    passed()
}

#[cfg(feature = "pool")]
fn no_pool_is_made_beside_a_relay_of_threads() -> Outcome {
    let frozen = Arena::builder("relay").capacity(1 << 20).build()?.freeze(7u64)?;
    std::thread::spawn(relay);
    let (mut refused, begun) = (0, Instant::now());
    while begun.elapsed() < storm() || has_hardly_begun(refused) {
        let builder = cowbell::pool::Pool::builder().workers(1).wait_for_threads(Duration::from_millis(2));
        let pool = builder.spawn(frozen.clone(), |data: &u64, job: u64| data + job);
        let error = pool.err().ok_or_else(|| format!("a pool beside a live thread, after {refused} refused"))?;
        assert!(error.threads().is_some(), "{error}");
        refused += 1;
    }
    assert!(stop_relay() && RUNS.load(SeqCst) > 1000 && refused > 50, "{refused} refused, {RUNS:?} threads ran");
    passed()
}

/// One thread stores at a time, and looks at once whether what it stored is there; then it starts the next.
fn storing(cells: &'static [AtomicU64], lost: &'static AtomicU64) {
    if STOP.load(SeqCst) {
        LIVE.store(false, SeqCst);
        return;
    }
    RUNS.fetch_add(1, SeqCst);
    for cell in cells.iter().step_by(512) {
        cell.store(1, SeqCst);
        lost.fetch_add(u64::from(cell.load(SeqCst) != 1), SeqCst);
        cell.store(0, SeqCst);
    }
    std::thread::spawn(move || storing(cells, lost));
}

fn reshare_takes_no_store_of_a_relay_of_threads() -> Outcome {
    static LOST: AtomicU64 = AtomicU64::new(0);
    let arena = Arena::builder("stores").capacity(64 << 20).build()?;
    let cells: &'static [AtomicU64] = arena.alloc_iter((0..512 * 200).map(|_| AtomicU64::new(0)))?;
    let frozen = arena.freeze(cells)?;
    let mut child = fork::spawn(&ForkOptions::new().last_census(false), |_| {
        let cells = *frozen.root();
        std::thread::spawn(move || storing(cells, &LOST));
        let (mut refused, begun) = (0, Instant::now());
        while begun.elapsed() < storm() {
            let error = frozen.reshare().expect_err("another thread is alive");
            assert!(error.threads().is_some(), "{error}");
            refused += 1;
        }
        assert!(stop_relay() && RUNS.load(SeqCst) > 100 && refused > 50, "{refused} refused, {RUNS:?} threads ran");
        assert_eq!(LOST.load(SeqCst), 0, "stores are gone");
    })?;
    let exit = child.wait()?;
    assert!(exit.success(), "{:?}", exit.panic);
    passed()
}

/// The scope is over when its threads have run; each then still ends, in user space and in the kernel.
fn right_after_a_scope_of_threads_a_fork_succeeds() -> Outcome {
    for n in 0..500 {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| std::hint::black_box(vec![n; 100]));
            }
        });
        // More than the default: the machine may be busy.
        let options = ForkOptions::new().last_census(false).wait_for_threads(Duration::from_secs(10));
        let child = fork::spawn(&options, |_| ());
        assert!(wait(&mut child.map_err(|e| format!("the {n}th: {e}"))?)?.success());
    }
    passed()
}

/// The threads are as those of a thread pool that is dropped: it tells them to end and does not join them.
fn right_after_threads_were_told_to_end_a_fork_succeeds() -> Outcome {
    for n in 0..200 {
        let tell: Vec<_> = (0..8)
            .map(|_| {
                let (tell, told) = mpsc::channel::<()>();
                std::thread::spawn(move || told.recv());
                tell
            })
            .collect();
        drop(tell);
        // More than the default: the machine may be busy.
        let options = ForkOptions::new().last_census(false).wait_for_threads(Duration::from_secs(10));
        let child = fork::spawn(&options, |_| ());
        assert!(wait(&mut child.map_err(|e| format!("the {n}th: {e}"))?)?.success());
    }
    passed()
}

fn reshare_right_after_a_scope_of_threads_succeeds() -> Outcome {
    let frozen = frozen_pages("scoped", 4)?;
    let mut child = fork::spawn(&ForkOptions::new(), |_| {
        for n in 0..200 {
            std::thread::scope(|scope| _ = scope.spawn(|| std::hint::black_box(n)));
            frozen.reshare().unwrap_or_else(|e| panic!("the {n}th: {e}"));
        }
    })?;
    let exit = wait(&mut child)?;
    assert!(exit.success(), "{:?}", exit.panic);
    passed()
}

fn what_a_child_prints_before_its_threads_are_gone_is_flushed() -> Outcome {
    let left = apart(|| {
        for n in 0..200 {
            let mut child = fork::spawn(&ForkOptions::new().last_census(false), |_| {
                print!("{n};");
                std::thread::scope(|scope| _ = scope.spawn(|| std::hint::black_box(n)));
            })?;
            assert!(wait(&mut child)?.success());
        }
        Ok(())
    })?;
    let expected: String = (0..200).map(|n| format!("{n};")).collect();
    assert!(left.success() && left.stdout == expected, "{left:?}");
    passed()
}

fn a_fork_waits_for_threads_as_long_as_it_is_told() -> Outcome {
    let (say, said) = mpsc::channel::<()>();
    // A thread gives itself its name.
    let (named, is_named) = mpsc::channel();
    let busy = std::thread::Builder::new().name("late".into()).spawn(move || {
        named.send(()).expect("main listens");
        said.recv()
    })?;
    is_named.recv()?;
    let begun = Instant::now();
    let no_time = ForkOptions::new().wait_for_threads(Duration::ZERO);
    let error = fork::spawn(&no_time, |_| ()).err().ok_or("a thread is alive")?;
    assert!(begun.elapsed() < Duration::from_millis(500), "at once: {:?}", begun.elapsed());
    assert!(error.to_string().contains("late") && error.to_string().contains("wait_for_threads"), "{error}");

    // The thread ends while the fork waits, and not before.
    let ender = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(400));
        drop(say);
        busy.join().map(|_| ())
    });
    let patient = ForkOptions::new().wait_for_threads(Duration::from_secs(60));
    assert!(wait(&mut fork::spawn(&patient, |_| ())?)?.success());
    assert!(begun.elapsed() >= Duration::from_millis(400));
    ender.join().map_err(|_| "the thread panicked")?.map_err(|_| "the thread panicked")?;
    passed()
}

/// The kernel counts a main thread that has left for as long as the process lives, so there is nothing to wait for.
fn a_main_thread_that_has_left_is_named_at_once() -> Outcome {
    let process = Process::start(|| {
        std::thread::spawn(|| {
            let me = process::tid();
            let main =
                || procfs::own_threads().expect("/proc").iter().any(|thread| thread.tid != me && !thread.exiting);
            while main() {
                std::thread::yield_now();
            }
            let begun = Instant::now();
            let options = ForkOptions::new().wait_for_threads(Duration::from_secs(600));
            let error = fork::spawn(&options, |_| ()).err();
            let text = error.as_ref().map(ToString::to_string).unwrap_or_default();
            let named = text.contains("main thread") && text.contains("pthread_exit");
            let listed = error.as_ref().and_then(|e| e.threads()).map(<[_]>::len) == Some(2);
            eprintln!("{text}");
            process::exit(if named && listed && begun.elapsed() < Duration::from_secs(30) { 0 } else { 1 })
        });
        // SAFETY: this thread alone ends, as by pthread_exit, which would unwind.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
        1
    });
    assert_eq!(process.end_within(Duration::from_secs(60)), Some(Ended::Exited(0)));
    passed()
}

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    let limit = storm() + Duration::from_secs(60);
    let mut trials = claims![
        right_after_a_scope_of_threads_a_fork_succeeds,
        right_after_threads_were_told_to_end_a_fork_succeeds,
        reshare_right_after_a_scope_of_threads_succeeds,
        what_a_child_prints_before_its_threads_are_gone_is_flushed,
        a_fork_waits_for_threads_as_long_as_it_is_told,
        a_main_thread_that_has_left_is_named_at_once,
    ];
    trials.push(claim_within(
        limit,
        "threads::no_fork_is_let_through_beside_a_relay_of_threads",
        no_fork_is_let_through_beside_a_relay_of_threads,
    ));
    #[cfg(feature = "pool")]
    trials.push(claim_within(
        limit,
        "threads::no_pool_is_made_beside_a_relay_of_threads",
        no_pool_is_made_beside_a_relay_of_threads,
    ));
    trials.push(claim_within(
        limit,
        "threads::reshare_takes_no_store_of_a_relay_of_threads",
        reshare_takes_no_store_of_a_relay_of_threads,
    ));
    trials
}
