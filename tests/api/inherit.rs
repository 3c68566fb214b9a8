//! A child is free of some of what its parent has, and inherits the rest: handlers, groups, text, locks, pipes, its parent's death.
#![expect(unsafe_code, reason = "handlers, foreign waits and glibc's locks are looked at from below")]

use crate::apart::{Process, apart};
use crate::case::{Outcome, Turns, child_that_waits, passed, skipped};
use crate::look::{frozen_pages, usable, wait, write};
use cowbell::fork::{self, Ended, ForkOptions};
use cowbell::sys::shared_words::SharedWords;
use cowbell::sys::{pipe, process, signal};
use cowbell::watch::Watch;
use libtest_mimic::{Failed, Trial};
use std::ffi::c_void;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_signal(_: i32, _: *mut libc::siginfo_t, _: *mut c_void) {
    SIGNALS.fetch_add(1, Ordering::SeqCst);
}

fn handlers_are_kept_or_reset_as_asked() -> Outcome {
    // SAFETY: the handler counts in an atomic.
    unsafe { signal::install(libc::SIGUSR1, count_signal) }?;
    // SAFETY: raise takes a number.
    let raise = |_: &fork::Context| unsafe { libc::raise(libc::SIGUSR1) };
    let kept = wait(&mut fork::spawn(&ForkOptions::new(), raise)?)?;
    assert_eq!(kept.ended, Ended::Exited(0));
    let reset = wait(&mut fork::spawn(&ForkOptions::new().reset_handlers(true), raise)?)?;
    assert_eq!(reset.ended, Ended::Signaled(libc::SIGUSR1));
    assert_eq!(SIGNALS.load(Ordering::SeqCst), 0, "here nothing was raised");
    passed()
}

fn blocked_signals(file: &str) -> String {
    let status = std::fs::read_to_string(file).expect("/proc");
    status.lines().find(|line| line.starts_with("SigBlk")).expect("a mask").to_owned()
}

fn parent_and_child_go_on_with_the_signal_mask_from_before() -> Outcome {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the call fills the set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: it was just made.
    unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGUSR2) };
    // SAFETY: it is a valid set.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
    let before = blocked_signals("/proc/self/status");
    assert!(before.ends_with("800"), "{before}");
    let exit =
        wait(&mut fork::spawn(&ForkOptions::new(), |_| assert_eq!(blocked_signals("/proc/self/status"), before))?)?;
    assert!(exit.success(), "{:?}", exit.panic);
    assert_eq!(blocked_signals("/proc/self/status"), before);
    passed()
}

fn a_child_starts_in_the_control_group_it_was_given() -> Outcome {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
    let Some(mount) = mount else { return skipped("no version 2 control groups are mounted") };
    let name = format!("cowbell-fork-{}", std::process::id());
    let own = std::fs::read_to_string("/proc/self/cgroup")?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").trim_end_matches('/').to_owned();
    let path = format!("{mount}{own}/{name}");
    if let Err(e) = std::fs::create_dir(&path) {
        return skipped(format!("{path}: {e}"));
    }
    let made = std::fs::File::open(&path).map_err(Failed::from).and_then(|group| {
        let options = ForkOptions::new().cgroup(group.as_fd());
        let mut child = fork::spawn(&options, |_| {
            let mine = std::fs::read_to_string("/proc/self/cgroup").expect("/proc");
            assert!(mine.lines().any(|line| line == format!("0::{own}/{name}")), "{mine}");
        })?;
        wait(&mut child)
    });
    std::fs::remove_dir(&path)?;
    let exit = made?;
    assert!(exit.success(), "{:?}", exit.panic);
    passed()
}

fn text_buffered_before_the_fork_is_written_once() -> Outcome {
    let left = apart(|| {
        print!("rust;");
        // SAFETY: a C string without anything to format.
        unsafe { libc::printf(c"c;".as_ptr()) };
        let mut child = fork::spawn(&ForkOptions::new(), |_| {
            print!("childs rust;");
            // SAFETY: as above.
            unsafe { libc::printf(c"childs c;".as_ptr()) };
        })?;
        wait(&mut child)?;
        print!("end");
        std::io::stdout().flush()?;
        Ok(())
    })?;
    assert_eq!((left.success(), left.stdout.as_str()), (true, "rust;c;childs rust;childs c;end"));
    passed()
}

#[cfg(target_env = "gnu")]
fn glibc_knows_the_childs_thread_id() -> Outcome {
    let mut mutex = MaybeUninit::<libc::pthread_mutex_t>::zeroed();
    let mutex = mutex.as_mut_ptr();
    let exit = wait(&mut fork::spawn(&ForkOptions::new(), |_| {
        let mut attributes = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        let attributes = attributes.as_mut_ptr();
        // SAFETY: the call fills the attributes.
        assert_eq!(unsafe { libc::pthread_mutexattr_init(attributes) }, 0);
        // SAFETY: they were just made.
        assert_eq!(unsafe { libc::pthread_mutexattr_settype(attributes, libc::PTHREAD_MUTEX_ERRORCHECK) }, 0);
        // SAFETY: as above, and the mutex is nobody else's.
        assert_eq!(unsafe { libc::pthread_mutex_init(mutex, attributes) }, 0);
        // SAFETY: it was just made.
        assert_eq!(unsafe { libc::pthread_mutex_lock(mutex) }, 0);
        // The owner is the third int of glibc's mutex (struct __pthread_mutex_s).
        // SAFETY: the mutex is larger than that, and initialised.
        let owner = unsafe { mutex.cast::<[i32; 3]>().read() }[2];
        assert_eq!(owner, process::tid(), "the owner glibc recorded");
        // SAFETY: it is locked by this thread.
        assert_eq!(unsafe { libc::pthread_mutex_lock(mutex) }, libc::EDEADLK);
        // SAFETY: as above.
        assert_eq!(unsafe { libc::pthread_mutex_unlock(mutex) }, 0);
        let shared = std::sync::Mutex::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| *shared.lock().expect("no panic") += 1);
            }
        });
        assert_eq!(shared.into_inner().expect("no panic"), 4);
    })?)?;
    assert!(exit.success(), "{:?}", exit.panic);
    passed()
}

/// The kernel releases a dead process's robust mutexes by a list it must know of.
fn a_robust_mutex_of_a_child_that_died_is_released() -> Outcome {
    let words = SharedWords::new(64)?;
    let mutex: *mut libc::pthread_mutex_t = words.words().as_ptr().cast_mut().cast();
    let mut attributes = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
    let attributes = attributes.as_mut_ptr();
    // SAFETY: the call fills the attributes.
    unsafe { libc::pthread_mutexattr_init(attributes) };
    // SAFETY: they were just made.
    unsafe { libc::pthread_mutexattr_setrobust(attributes, libc::PTHREAD_MUTEX_ROBUST) };
    // SAFETY: as above.
    unsafe { libc::pthread_mutexattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED) };
    // SAFETY: shared zeroed memory of more than a mutex's size.
    assert_eq!(unsafe { libc::pthread_mutex_init(mutex, attributes) }, 0);
    // SAFETY: the mutex was just made, in memory that both share.
    let lock = || unsafe { libc::pthread_mutex_lock(mutex) };
    assert_eq!(wait(&mut fork::spawn(&ForkOptions::new(), |_| lock())?)?.ended, Ended::Exited(0));
    // SAFETY: as above.
    let taken = unsafe { libc::pthread_mutex_trylock(mutex) };
    assert_eq!(taken, libc::EOWNERDEAD, "its owner died with it locked");
    passed()
}

fn a_pipe_reaches_its_end_when_the_child_closes_it_though_the_keeper_lives() -> Outcome {
    for watch in Watch::ALL {
        if usable(watch)?.is_err() {
            continue;
        }
        let (from, to) = pipe::pair()?;
        let (mine, theirs) = Turns::new()?;
        let mut to = Some(to);
        let mut child = fork::spawn(&ForkOptions::new().watch(watch), |_| {
            pipe::give_byte(to.take().expect("it is here"));
            theirs.take();
        })?;
        drop(to);
        assert!(pipe::take_byte(&from));
        let at_end = cowbell::sys::pidfd::readable(from.as_fd(), Some(crate::look::SOON))?;
        assert!(at_end && !pipe::take_byte(&from), "{watch}: somebody holds the pipe open");
        assert!(child.try_wait()?.is_none() && child.keeper_pid().is_some());
        mine.give();
        assert!(wait(&mut child)?.success());
    }
    passed()
}

fn a_child_forks_children_of_its_own() -> Outcome {
    for watch in Watch::ALL {
        if let Err(why) = usable(watch)? {
            eprintln!("left out: {why}");
            continue;
        }
        let frozen = frozen_pages("nested", 8)?;
        let options = ForkOptions::new().watch(watch);
        let mut child = fork::spawn(&options, |_| {
            let mut inner = fork::spawn(&options, |_| write(*frozen, 5)).expect("a grandchild");
            let exit = inner.wait().expect("its end");
            assert!(exit.success());
            assert_eq!(exit.report.arenas[0].copied_set(), crate::look::set([5]));
            write(*frozen, 2);
        })?;
        let exit = wait(&mut child)?;
        assert!(exit.success(), "{watch}: {:?}", exit.panic);
        assert_eq!(exit.report.arenas[0].copied_set(), crate::look::set([2]), "{watch}");
        // SAFETY: nothing in the arena is used any more.
        unsafe { frozen.release() }?;
    }
    passed()
}

fn a_grandchild_does_not_answer_for_what_the_child_copied_before() -> Outcome {
    for watch in Watch::ALL {
        if let Err(why) = usable(watch)? {
            eprintln!("left out: {why}");
            continue;
        }
        let frozen = frozen_pages("heirs", 8)?;
        let mut child = fork::spawn(&ForkOptions::new(), |_| {
            write(*frozen, 1);
            write(*frozen, 3);
            let inner = fork::spawn(&ForkOptions::new().watch(watch), |_| {
                write(*frozen, 3);
                write(*frozen, 5);
            });
            let exit = inner.expect("a grandchild").wait().expect("its end");
            let report = &exit.report.arenas[0];
            assert_eq!((report.copied_set(), report.inherited_pages.0), (crate::look::set([5]), 2));
            assert_eq!(report.copied_unobserved.0, 0);
            if watch.arms() {
                assert_eq!(report.observed_set(), crate::look::set([3, 5]), "a watch sees them written, too");
            }
        })?;
        let exit = wait(&mut child)?;
        assert!(exit.success(), "{watch}: {:?}", exit.panic);
        // SAFETY: nothing in the arena is used any more.
        unsafe { frozen.release() }?;
    }
    passed()
}

/// Kills the process that made a child, and sees child and keeper go.
fn dies_with_its_parent(watch: Watch) -> Result<(), Failed> {
    let words = SharedWords::new(2)?;
    let [child, keeper, ..] = words.words() else { return Err("two words".into()) };
    let (mine, theirs) = Turns::new()?;
    let parent = Process::start(|| {
        let frozen = frozen_pages("orphan", 2).expect("freeze");
        let (forked, _turns) =
            child_that_waits(&ForkOptions::new().watch(watch), |_| write(*frozen, 0)).expect("a child");
        child.store(forked.pid() as u64, Ordering::SeqCst);
        keeper.store(forked.keeper_pid().unwrap_or(0) as u64, Ordering::SeqCst);
        theirs.give();
        theirs.take();
        0
    });
    assert!(mine.take(), "the parent has forked");
    let [child, keeper] = [child, keeper].map(|word| cowbell::sys::pidfd::open(word.load(Ordering::SeqCst) as i32));
    parent.kill();
    assert_eq!(parent.end_within(crate::look::SOON), Some(Ended::Signaled(libc::SIGKILL)));
    crate::look::ends_soon(child?, "the child")?;
    crate::look::ends_soon(keeper?, "the keeper")
}

/// A payload whose drop panics.
struct Grenade;

impl Drop for Grenade {
    fn drop(&mut self) {
        panic!("dropping the payload");
    }
}

fn a_panic_within_a_panic_never_runs_the_parents_frames_in_the_child() -> Outcome {
    let left = apart(|| {
        let here = process::pid();
        let spawned =
            std::panic::catch_unwind(|| fork::spawn(&ForkOptions::new(), |_| -> () { std::panic::panic_any(Grenade) }));
        if process::pid() != here {
            println!("the child came back");
            return Ok(());
        }
        let exit = wait(&mut spawned.expect("the parent does not panic")?)?;
        assert!(matches!(exit.ended, Ended::Exited(101) | Ended::Signaled(libc::SIGABRT)), "{:?}", exit.ended);
        println!("the parent");
        Ok(())
    })?;
    assert_eq!((left.success(), left.stdout.as_str()), (true, "the parent\n"), "{}", left.stderr);
    passed()
}

/// The keeper lives in the child's memory, its thread-local cells included.
fn looking_at_a_child_does_not_touch_its_errno() -> Outcome {
    const MARK: i32 = 4711;
    for watch in Watch::ALL {
        if usable(watch)?.is_err() {
            continue;
        }
        let frozen = frozen_pages("errno", 8)?;
        let words = SharedWords::new(2)?;
        let [ready, go_on, ..] = words.words() else { return Err("two words".into()) };
        let mut child = fork::spawn(&ForkOptions::new().watch(watch), |_| {
            (0..4).for_each(|page| write(*frozen, page));
            // SAFETY: glibc gives this thread's cell.
            let errno = unsafe { libc::__errno_location() };
            // SAFETY: it is valid as long as the thread lives.
            unsafe { errno.write(MARK) };
            ready.store(1, Ordering::SeqCst);
            // No system call, which could set it, until the parent has looked.
            while go_on.load(Ordering::SeqCst) == 0 {
                std::hint::spin_loop();
            }
            // SAFETY: as above.
            assert_eq!(unsafe { errno.read_volatile() }, MARK);
        })?;
        crate::look::until("it is ready", || ready.load(Ordering::SeqCst) == 1)?;
        for _ in 0..20 {
            child.report()?;
            child.end_epoch()?;
        }
        go_on.store(1, Ordering::SeqCst);
        let exit = wait(&mut child)?;
        assert!(exit.success(), "{watch}: {:?}", exit.panic);
        // SAFETY: nothing in the arena is used any more.
        unsafe { frozen.release() }?;
    }
    passed()
}

fn child_and_keeper_die_with_the_parent() -> Outcome {
    for watch in Watch::ALL {
        if usable(watch)?.is_ok() {
            dies_with_its_parent(watch)?;
        }
    }
    passed()
}

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    claims![
        handlers_are_kept_or_reset_as_asked,
        parent_and_child_go_on_with_the_signal_mask_from_before,
        a_child_starts_in_the_control_group_it_was_given,
        text_buffered_before_the_fork_is_written_once,
        glibc_knows_the_childs_thread_id,
        a_robust_mutex_of_a_child_that_died_is_released,
        a_pipe_reaches_its_end_when_the_child_closes_it_though_the_keeper_lives,
        a_child_forks_children_of_its_own,
        a_grandchild_does_not_answer_for_what_the_child_copied_before,
        child_and_keeper_die_with_the_parent,
        a_panic_within_a_panic_never_runs_the_parents_frames_in_the_child,
        looking_at_a_child_does_not_touch_its_errno,
    ]
}
