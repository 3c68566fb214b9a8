//! The number of threads of a process, by the kernel's own count.
#![expect(unsafe_code, reason = "the main thread ends alone")]

use crate::child::{self, Gate};
use crate::claim::{Claim, Verdict, claim};
use crate::io_ring::Polled;
use cowbell::sys::{self, process, procfs};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

pub const CLAIMS: &[Claim] = &[
    claim!(
        thread_count_is_never_1_beside_a_relay_of_threads,
        "`num_threads` of `/proc/self/stat`, `Threads:` of `status` and the links of `/proc/self/task` less 2 are one number: beside threads of which each starts the next and ends it is never 1, and soon after the last it is 1."
    ),
    claim!(
        main_thread_that_left_is_counted_for_ever,
        "A main thread that ends alone stays in the count of threads, and in `/proc/self/task` with PF_EXITING, as long as the process lives."
    ),
    claim!(
        program_is_linked_while_there_is_memory,
        "`/proc/TID/exe` can be read as long as the thread has memory; once it has ended it is ENOENT, though other threads of its process live."
    ),
    claim!(
        io_ring_threads_are_counted,
        "The kernel's own thread for an io_uring (`IORING_SETUP_SQPOLL`) is in the count, listed as `iou-sqp-…`, until the ring is closed."
    ),
    claim!(
        turns_of_a_thread_are_counted_as_they_begin,
        "The third number of `/proc/PID/task/TID/schedstat` goes up as soon as the thread is given a processor, and stays while it waits."
    ),
    claim!(
        time_of_a_thread_stands_while_another_has_its_processor,
        "`CLOCK_THREAD_CPUTIME_ID` goes on only while the thread runs: two that share a processor have run for no more than the time that went by, together."
    ),
];

/// The count in three places.
fn counts() -> [u64; 3] {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")).expect("a count");
    let links = std::fs::metadata("/proc/self/task").expect("task").nlink();
    let stat = procfs::signal_safe::thread_count().expect("stat");
    [stat.into(), threads.trim().parse().expect("a number"), links - 2]
}

fn soon(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}");
        process::yield_now();
    }
}

struct Relay {
    stop: AtomicBool,
    ended: AtomicBool,
    runs: AtomicU64,
}

fn run(relay: Arc<Relay>) {
    relay.runs.fetch_add(1, SeqCst);
    if relay.stop.load(SeqCst) {
        relay.ended.store(true, SeqCst);
    } else {
        std::thread::spawn(move || run(relay));
    }
}

fn thread_count_is_never_1_beside_a_relay_of_threads() -> Verdict {
    assert_eq!(counts(), [1; 3]);
    let relay =
        Arc::new(Relay { stop: AtomicBool::new(false), ended: AtomicBool::new(false), runs: AtomicU64::new(0) });
    let first = Arc::clone(&relay);
    std::thread::spawn(move || run(first));
    let begun = Instant::now();
    let mut looks = 0;
    while begun.elapsed() < Duration::from_secs(1) {
        let seen = counts();
        assert!(seen.iter().all(|&count| count > 1), "{seen:?} after {looks} looks");
        looks += 1;
    }
    assert!(looks > 100 && relay.runs.load(SeqCst) > 100, "{looks} looks, {:?} threads", relay.runs);
    relay.stop.store(true, SeqCst);
    soon("the relay ends", || relay.ended.load(SeqCst));
    soon("the kernel takes the last thread away", || counts() == [1; 3]);
    Ok(())
}

fn main_thread_that_left_is_counted_for_ever() -> Verdict {
    child::spawn(|| {
        std::thread::spawn(|| {
            let main = || {
                let threads = procfs::own_threads().expect("task");
                threads.into_iter().find(|thread| thread.tid == process::pid())
            };
            soon("the main thread ends", || main().is_some_and(|main| main.exiting));
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(200) {
                assert_eq!((counts(), main().map(|main| main.exiting)), ([2; 3], Some(true)));
            }
            process::exit(0);
        });
        // SAFETY: this thread alone ends, and nothing of its stack is used by the other.
        unsafe { libc::syscall(libc::SYS_exit, 1) };
    })
    .finish();
    Ok(())
}

fn program_is_linked_while_there_is_memory() -> Verdict {
    child::spawn(|| {
        let program = |id: i32| std::fs::read_link(format!("/proc/{id}/exe")).map_err(|e| e.raw_os_error());
        let pid = process::pid();
        assert_eq!(program(pid), std::env::current_exe().map_err(|e| e.raw_os_error()));
        std::thread::spawn(move || {
            soon("the main thread ends", || program(pid) == Err(Some(libc::ENOENT)));
            assert!(program(process::tid()).is_ok());
            process::exit(0);
        });
        // SAFETY: this thread alone ends, and nothing of its stack is used by the other.
        unsafe { libc::syscall(libc::SYS_exit, 1) };
    })
    .finish();
    Ok(())
}

fn io_ring_threads_are_counted() -> Verdict {
    assert_eq!(counts(), [1; 3]);
    let ring = Polled::new()?;
    assert_eq!(counts(), [2; 3]);
    // A thread names itself when it first runs.
    let threads = || procfs::own_threads().expect("task");
    soon("it has a name", || threads().iter().any(|thread| thread.name.starts_with("iou-sqp-")));
    drop(ring);
    soon("the kernel's thread ends", || counts() == [1; 3]);
    Ok(())
}

fn turns_of_a_thread_are_counted_as_they_begin() -> Verdict {
    let (go, started, stop) = (Gate::new(), AtomicBool::new(false), AtomicBool::new(false));
    let tid = AtomicI32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            tid.store(process::tid(), SeqCst);
            go.pass();
            started.store(true, SeqCst);
            while !stop.load(SeqCst) {
                std::hint::spin_loop();
            }
        });
        soon("the thread is there", || tid.load(SeqCst) != 0);
        let tid = tid.load(SeqCst);
        let syscall = procfs::syscall::open(process::pid(), tid).expect("its state");
        soon("it waits", || {
            procfs::syscall::blocked_in(&syscall).is_some_and(|at| at.syscall == Some(libc::SYS_read as i32))
        });
        let turns = || {
            let text = std::fs::read_to_string(format!("/proc/self/task/{tid}/schedstat")).expect("schedstat");
            text.split_ascii_whitespace().nth(2).expect("three numbers").parse::<u64>().expect("a number")
        };
        let before = turns();
        assert!(before > 0 && (0..1000).all(|_| turns() == before), "it waits");
        go.open();
        soon("it runs", || started.load(SeqCst));
        let then = turns();
        stop.store(true, SeqCst);
        assert!(then > before, "{before} turns before, {then} while it runs");
    });
    Ok(())
}

fn time_of_a_thread_stands_while_another_has_its_processor() -> Verdict {
    let mut one = rustix::thread::CpuSet::new();
    one.set(rustix::thread::sched_getcpu());
    rustix::thread::sched_setaffinity(None, &one).expect("a processor that this thread was on");
    let begun = sys::monotonic_ns();
    let spin = move || {
        let before = sys::ran_ns();
        while sys::monotonic_ns() - begun < 200_000_000 {
            std::hint::spin_loop();
        }
        sys::ran_ns() - before
    };
    // A new thread may run where its maker may.
    let other = std::thread::spawn(spin);
    let ran = [spin(), other.join().expect("the other thread")];
    let went_by = sys::monotonic_ns() - begun;
    assert!(ran.iter().all(|&ran| ran > 1_000_000) && ran.iter().sum::<u64>() <= went_by, "{ran:?} of {went_by} ns");
    Ok(())
}
