//! Forking: the thread check, limits, how children end and who hears of it.
#![expect(unsafe_code, reason = "handlers, foreign waits and glibc's locks are looked at from below")]

use crate::apart::apart;
use crate::case::{Outcome, Turns, child_that_waits, passed, skipped};
use crate::look::{SOON, descriptors, frozen_pages, has_children, maps, usable, wait};
use cowbell::fork::{self, Ended, ForkOptions};
use cowbell::sys::{process, signal};
use cowbell::watch::Watch;
use libtest_mimic::Trial;
use rustix::process::{Resource, Rlimit, WaitId, WaitIdOptions, getrlimit, setrlimit};
use std::ffi::c_void;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

fn threads_that_are_alive_are_listed_and_after_a_join_fork_works() -> Outcome {
    let (stop, stopped) = mpsc::channel::<()>();
    let (say, said) = mpsc::channel();
    let busy = std::thread::Builder::new().name("busy-bee".into()).spawn(move || {
        say.send(process::tid()).expect("main listens");
        let _end = stopped.recv();
    })?;
    let tid = said.recv()?;
    let e = fork::spawn(&ForkOptions::new(), |_| ()).err().ok_or("two threads are alive")?;
    let threads = e.threads().ok_or("it lists the threads")?;
    assert_eq!(threads.len(), 2);
    assert!(threads.iter().any(|thread| thread.tid == tid && thread.name == "busy-bee"), "{threads:?}");
    assert!(threads.iter().any(|thread| thread.tid == process::pid()), "the caller among them: {threads:?}");
    let text = e.to_string();
    assert!(text.contains("busy-bee") && text.contains(&tid.to_string()) && e.hint().is_some(), "{text}");
    assert!(!has_children());
    drop(stop);
    busy.join().expect("no panic");
    assert!(wait(&mut fork::spawn(&ForkOptions::new(), |_| ())?)?.success());
    passed()
}

/// A join returns while the kernel still takes the thread away; that thread holds no lock any more.
fn a_thread_just_joined_never_stops_a_fork() -> Outcome {
    for n in 0..2000 {
        std::thread::spawn(|| ()).join().expect("no panic");
        let child = fork::spawn(&ForkOptions::new().last_census(false), |_| ());
        let mut child = child.map_err(|e| format!("the {n}th: {e}"))?;
        assert!(wait(&mut child)?.success());
    }
    passed()
}

fn spawn_unchecked_forks_with_a_thread_alive() -> Outcome {
    let (stop, stopped) = mpsc::channel::<()>();
    let busy = std::thread::spawn(move || stopped.recv());
    // SAFETY: the child does nothing but return a number.
    let mut child = unsafe { fork::spawn_unchecked(&ForkOptions::new(), |_| 3) }?;
    assert_eq!(wait(&mut child)?.ended, Ended::Exited(3));
    drop(stop);
    assert!(busy.join().expect("no panic").is_err());
    passed()
}

fn what_the_closure_returns_is_the_exit_code() -> Outcome {
    let left = apart(|| {
        let options = ForkOptions::new();
        assert_eq!(wait(&mut fork::spawn(&options, |_| ())?)?.ended, Ended::Exited(0));
        assert_eq!(wait(&mut fork::spawn(&options, |_| 7)?)?.ended, Ended::Exited(7));
        assert_eq!(wait(&mut fork::spawn(&options, |_| Ok::<_, String>(9))?)?.ended, Ended::Exited(9));
        let exit = wait(&mut fork::spawn(&options, |_| Err::<(), _>("no such vertex"))?)?;
        assert_eq!((exit.ended, exit.success(), exit.panic), (Ended::Exited(1), false, None));
        Ok(())
    })?;
    assert!(left.success() && left.stderr == "no such vertex\n", "{left:?}");
    passed()
}

fn a_signal_that_ends_a_child_is_told() -> Outcome {
    for number in [libc::SIGTERM, libc::SIGKILL, libc::SIGABRT, libc::SIGUSR1] {
        // SAFETY: raise takes a number.
        let mut child = fork::spawn(&ForkOptions::new(), |_| unsafe { libc::raise(number) })?;
        let exit = wait(&mut child)?;
        assert_eq!((exit.ended, exit.panic), (Ended::Signaled(number), None));
    }
    passed()
}

fn a_panics_message_and_place_reach_the_parent() -> Outcome {
    let line = line!() + 1;
    let exit = wait(&mut fork::spawn(&ForkOptions::new(), |_| -> () { panic!("vertex {} is missing", 7) })?)?;
    let text = exit.panic.ok_or("a panic")?.0;
    assert_eq!(exit.ended, Ended::Exited(101));
    assert!(text.contains("vertex 7 is missing") && text.contains(&format!("{}:{line}", file!())), "{text}");

    let exit = wait(&mut fork::spawn(&ForkOptions::new(), |_| -> () { std::panic::panic_any(5) })?)?;
    assert!(exit.ended == Ended::Exited(101) && exit.panic.is_some_and(|panic| panic.0.contains("no text")));

    let in_a_thread = |_: &fork::Context| drop(std::thread::spawn(|| panic!("elsewhere")).join());
    let exit = wait(&mut fork::spawn(&ForkOptions::new(), in_a_thread)?)?;
    assert!(exit.success() && exit.panic.is_none(), "a panic that did not end the child is its own affair");
    passed()
}

fn a_long_panic_message_is_cut_off_between_two_characters() -> Outcome {
    for shift in 0..4 {
        let message = format!("{}{}", "x".repeat(shift), "\u{1d11e}".repeat(700));
        let exit = wait(&mut fork::spawn(&ForkOptions::new(), |_| -> () { panic!("{message}") })?)?;
        let text = exit.panic.ok_or("a panic")?.0;
        assert_eq!(exit.ended, Ended::Exited(101));
        let (kept, place) = text.split_once(", at ").ok_or("a place")?;
        assert!(kept.len() > 1000 && message.starts_with(kept), "{shift}: ends with {:?}", kept.chars().last());
        assert!(place.contains(file!()), "{place}");
    }
    passed()
}

fn waiting_ends_with_the_time_or_the_child() -> Outcome {
    let (mine, theirs) = Turns::new()?;
    let mut child = fork::spawn(&ForkOptions::new(), |_| if theirs.take() { 5 } else { 6 })?;
    assert!(child.try_wait()?.is_none());
    assert!(child.wait_timeout(Duration::from_millis(20))?.is_none());
    mine.give();
    let exit = wait(&mut child)?;
    assert_eq!(exit.ended, Ended::Exited(5));
    assert_eq!(child.try_wait()?.map(|exit| exit.ended), Some(Ended::Exited(5)), "it can be asked again");
    assert_eq!(child.wait()?.report, exit.report);
    child.kill(libc::SIGKILL)?;
    assert!(child.kill(12_345).is_err_and(|e| e.is_invalid()));
    passed()
}

fn dropping_a_child_kills_and_reaps_it_and_its_keeper() -> Outcome {
    let before = descriptors();
    for watch in Watch::ALL {
        if usable(watch)?.is_err() {
            continue;
        }
        let (child, _turns) = child_that_waits(&ForkOptions::new().watch(watch), |_| ())?;
        assert!(has_children());
        drop(child);
        assert!(!has_children(), "{watch}");
    }
    assert_eq!(descriptors(), before);
    passed()
}

static CHILD_SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_signal(_: i32, _: *mut libc::siginfo_t, _: *mut c_void) {
    CHILD_SIGNALS.fetch_add(1, Ordering::SeqCst);
}

/// The answer that a program's own `waitpid(-1, WNOHANG)` finds.
fn foreign_wait() -> rustix::io::Result<Option<rustix::process::WaitIdStatus>> {
    rustix::process::waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
}

fn a_child_neither_signals_its_end_nor_is_taken_by_a_foreign_wait() -> Outcome {
    // SAFETY: the handler counts in an atomic.
    unsafe { signal::install(libc::SIGCHLD, count_signal) }?;
    let mut child = fork::spawn(&ForkOptions::new(), |_| 4)?;
    assert!(cowbell::sys::pidfd::wait_end(child.pidfd(), Some(SOON))?);
    assert_eq!(foreign_wait().err(), Some(rustix::io::Errno::CHILD));
    assert_eq!((wait(&mut child)?.ended, CHILD_SIGNALS.load(Ordering::SeqCst)), (Ended::Exited(4), 0));
    passed()
}

fn a_child_with_an_exit_signal_signals_once_and_a_foreign_wait_may_take_it() -> Outcome {
    // SAFETY: the handler counts in an atomic.
    unsafe { signal::install(libc::SIGCHLD, count_signal) }?;
    let options = ForkOptions::new().exit_signal(libc::SIGCHLD).last_census(false);
    assert_eq!(wait(&mut fork::spawn(&options, |_| 4)?)?.ended, Ended::Exited(4));
    assert_eq!(CHILD_SIGNALS.load(Ordering::SeqCst), 1);
    let mut child = fork::spawn(&options, |_| 5)?;
    assert!(cowbell::sys::pidfd::wait_end(child.pidfd(), Some(SOON))?);
    assert_eq!(foreign_wait()?.and_then(|status| status.exit_status()), Some(5));
    assert_eq!(wait(&mut child)?.ended, Ended::Unknown, "somebody else took its status");
    assert!(!has_children());
    passed()
}

/// The kernel gives the keeper the exit signal of the child that made it.
fn a_keeper_ends_with_its_childs_exit_signal_and_may_be_taken_too() -> Outcome {
    let mut child = fork::spawn(&ForkOptions::new().exit_signal(libc::SIGCHLD), |_| 4)?;
    let keeper = cowbell::sys::pidfd::open(child.keeper_pid().ok_or("a keeper")?)?;
    for pidfd in [child.pidfd(), keeper.as_fd()] {
        assert!(cowbell::sys::pidfd::wait_end(pidfd, Some(SOON))?);
        assert!(foreign_wait()?.is_some());
    }
    assert_eq!(foreign_wait().err(), Some(rustix::io::Errno::CHILD));
    let exit = wait(&mut child)?;
    assert_eq!((exit.ended, exit.report.census), (Ended::Unknown, cowbell::report::Census::Last));
    passed()
}

/// Raises a limit step by step until a fork succeeds; each failure before must leave nothing.
fn fails_cleanly_until_enough(resource: Resource, from: u64, to: u64, errnos: &[i32], watch: Watch) -> Outcome {
    let before = (descriptors(), maps().len());
    let mut failures = 0;
    for current in from..to {
        let old = getrlimit(resource);
        setrlimit(resource, Rlimit { current: Some(current), ..old })?;
        let spawned = fork::spawn(&ForkOptions::new().watch(watch), |_| ());
        setrlimit(resource, old)?;
        match spawned {
            Ok(mut child) => {
                assert!(wait(&mut child)?.success());
                assert!(failures > 0, "the limit never bit");
                drop(child);
                assert_eq!((descriptors(), maps().len(), has_children()), (before.0, before.1, false));
                return passed();
            }
            Err(e) => {
                failures += 1;
                assert!(e.errno().is_some_and(|errno| errnos.contains(&errno)), "{watch}: {e}");
                assert_eq!((descriptors(), maps().len(), has_children()), (before.0, before.1, false), "{watch}: {e}");
            }
        }
    }
    Err(format!("{watch}: no limit below {to} was enough").into())
}

fn a_fork_without_a_descriptor_to_spare_fails_and_leaves_nothing() -> Outcome {
    let _frozen = frozen_pages("few", 1)?;
    for watch in Watch::ALL {
        if usable(watch)?.is_ok() {
            let from = descriptors() as u64 - 1;
            fails_cleanly_until_enough(Resource::Nofile, from, from + 30, &[libc::EMFILE], watch)?;
        }
    }
    passed()
}

fn a_fork_beyond_the_limit_on_processes_fails_and_leaves_nothing() -> Outcome {
    if rustix::process::geteuid().is_root() {
        return skipped("no limit on processes holds for root");
    }
    let _frozen = frozen_pages("many", 1)?;
    fails_cleanly_until_enough(Resource::Nproc, 0, 5000, &[libc::EAGAIN], Watch::Census)
}

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    claims![
        threads_that_are_alive_are_listed_and_after_a_join_fork_works,
        a_thread_just_joined_never_stops_a_fork,
        spawn_unchecked_forks_with_a_thread_alive,
        what_the_closure_returns_is_the_exit_code,
        a_signal_that_ends_a_child_is_told,
        a_panics_message_and_place_reach_the_parent,
        a_long_panic_message_is_cut_off_between_two_characters,
        waiting_ends_with_the_time_or_the_child,
        dropping_a_child_kills_and_reaps_it_and_its_keeper,
        a_child_neither_signals_its_end_nor_is_taken_by_a_foreign_wait,
        a_child_with_an_exit_signal_signals_once_and_a_foreign_wait_may_take_it,
        a_keeper_ends_with_its_childs_exit_signal_and_may_be_taken_too,
        a_fork_without_a_descriptor_to_spare_fails_and_leaves_nothing,
        a_fork_beyond_the_limit_on_processes_fails_and_leaves_nothing,
    ]
}
