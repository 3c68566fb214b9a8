//! Robust mutexes and futexes in memory that forked processes share.
//!
//! # Safety
//! The mutexes and words lie in shared memory that stays mapped until the case ends. Forked processes use them and
//! leave by `exit` or a signal.
#![expect(unsafe_code, reason = "claims about the C library's and the kernel's robust mutexes")]

use crate::child::{self, Gate};
use crate::claim::{Claim, Need, Verdict, claim};
use crate::memory::{Kind, Memory, last_errno};
use cowbell::sys::clone::{ForkArgs, Forked};
use cowbell::sys::pidfd::{self, Ended};
use cowbell::sys::robust::{LockPatience, Locked, RobustMutex};
use cowbell::sys::shared_words::SharedWords;
use cowbell::sys::{Errno, futex, monotonic_ns, process, procfs};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

pub const CLAIMS: &[Claim] = &[
    claim!(
        robust_mutex_is_told_of_a_killed_holder_whose_memory_lives,
        "The kernel marks a robust mutex of a killed process, and wakes one who waits for it, also while another process lives on in the dead one's memory."
    )
    .needs(&[Need::TidAddress]),
    claim!(
        robust_mutex_is_told_of_a_thread_that_ended,
        "The kernel marks a robust mutex when the thread that holds it ends, though its process lives."
    ),
    claim!(
        robust_list_is_inherited_as_memory,
        "A child made by clone3 finds in its memory the thread's list of robust mutexes that its parent's thread holds; the crate's fork empties it, as libc's does."
    )
    .needs(&[Need::TidAddress]),
    claim!(
        swallowed_wake_up_of_a_robust_futex_is_passed_on,
        "Who ends while it waits for a robust futex (`list_op_pending`) that nobody holds wakes another who waits, whether the futex is marked or not."
    ),
    claim!(
        futex_wakes_another_process_through_a_memfd,
        "Without `FUTEX_PRIVATE_FLAG` a futex in a shared memfd mapping wakes who waits on it in a forked process, and a wait for another value than is there returns at once (EAGAIN)."
    ),
];

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);

/// A robust mutex in shared memory.
fn mutex() -> &'static RobustMutex {
    let words: &'static SharedWords = Box::leak(Box::new(SharedWords::new(1).expect("a shared page")));
    let place = words.words().as_ptr().cast_mut().cast::<RobustMutex>();
    // SAFETY: a page of zeroes that nobody else uses.
    unsafe { RobustMutex::init(place) }.expect("pthread_mutex_init");
    // SAFETY: it was made just now and stays.
    unsafe { &*place }
}

fn lock(mutex: &RobustMutex) -> Result<Locked, Errno> {
    let patience = LockPatience::Until(monotonic_ns() + LONG.as_nanos() as u64);
    // SAFETY: it was made where it is, and stays.
    unsafe { mutex.lock(patience) }
}

fn unlock(mutex: &RobustMutex, locked: Locked) {
    if locked == Locked::OwnerDied {
        // SAFETY: this thread has it so.
        unsafe { mutex.make_consistent() };
    }
    // SAFETY: it was made where it is, and stays.
    unsafe { mutex.unlock() };
}

/// Lives in its maker's memory until it is killed.
extern "C" fn live_on(_: *mut libc::c_void) -> i32 {
    loop {
        // SAFETY: the call takes no argument, and the signal that ends it kills.
        unsafe { libc::syscall(libc::SYS_pause) };
    }
}

fn robust_mutex_is_told_of_a_killed_holder_whose_memory_lives() -> Verdict {
    let (mutex, ready) = (mutex(), Gate::new());
    let waiter_ended = Gate::new();
    let other = SharedWords::new(1).expect("a shared page");
    let stack = Memory::new(Kind::Anonymous, 64)?.range;
    // SAFETY: this process has one thread; the child only waits.
    let holder = match unsafe { cowbell::sys::clone::fork(&ForkArgs::default()) }.expect("clone3") {
        Forked::Parent { pidfd, .. } => pidfd,
        Forked::Child => {
            lock(mutex).expect("nobody has it");
            let tid = AtomicU64::new(0);
            // SAFETY: the entry uses the stack and nothing else.
            let pid = unsafe { cowbell::sys::clone::share_memory(live_on, std::ptr::null_mut(), stack, &tid) };
            other.words()[0].store(pid.expect("clone") as u64, Ordering::SeqCst);
            ready.open();
            loop {
                live_on(std::ptr::null_mut());
            }
        }
    };
    ready.pass();
    let other = pidfd::open(other.words()[0].load(Ordering::SeqCst) as i32).expect("a child of ours, too");
    let waiter = child::spawn(|| {
        let locked = lock(mutex).expect("within the time");
        assert_eq!(locked, Locked::OwnerDied);
        unlock(mutex, locked);
        waiter_ended.open();
    });
    pidfd::signal(&holder, libc::SIGKILL).expect("a child of ours");
    waiter_ended.pass();
    waiter.finish();
    assert!(pidfd::reap(other.as_fd()).expect("waitid").is_none(), "the memory lives");
    assert_eq!(pidfd::wait_and_reap(holder.as_fd(), None).expect("waitid"), Some(Ended::Signaled(libc::SIGKILL)));
    assert_eq!(lock(mutex), Ok(Locked::Clean), "made consistent");
    unlock(mutex, Locked::Clean);
    pidfd::signal(&other, libc::SIGKILL).expect("a child of ours");
    pidfd::wait_and_reap(other.as_fd(), None).expect("waitid");
    Ok(())
}

fn robust_mutex_is_told_of_a_thread_that_ended() -> Verdict {
    let mutex = mutex();
    std::thread::spawn(|| assert_eq!(lock(mutex), Ok(Locked::Clean))).join().expect("no panic");
    let locked = lock(mutex);
    assert_eq!(locked, Ok(Locked::OwnerDied));
    assert_eq!(lock(mutex), Err(Errno::DEADLK), "and it is ours now");
    unlock(mutex, Locked::OwnerDied);
    Ok(())
}

/// The address that this thread's list of robust mutexes starts at, or a thread's that had it here.
fn list_head() -> usize {
    let (mut head, mut len) = (0usize, 0usize);
    // SAFETY: the out-parameters are ours; 0 means this thread.
    let got = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut len) };
    assert_eq!(got, 0, "get_robust_list: {}", last_errno());
    head
}

/// Does the list at an address hold no mutex?
fn is_empty(head: usize) -> bool {
    let first = std::ptr::with_exposed_provenance::<usize>(head);
    // SAFETY: it is the C library's, whose first word is the first mutex or the head.
    unsafe { first.read() == head }
}

fn robust_list_is_inherited_as_memory() -> Verdict {
    let (mutex, head) = (mutex(), list_head());
    assert!(is_empty(head));
    lock(mutex).expect("nobody has it");
    assert!(!is_empty(head));
    let empty = SharedWords::new(1).expect("a shared page");
    let [word, ..] = empty.words() else { unreachable!("a page holds a word") };
    let note = || word.store(1 + u64::from(is_empty(head)), Ordering::SeqCst);
    // A bare clone3.
    let mut args = linux_raw_sys::general::clone_args {
        flags: 0,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    // SAFETY: without CLONE_VM the child has its own copy of everything; the arguments are valid.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) };
    assert!(pid >= 0, "clone3: {}", last_errno());
    if pid == 0 {
        note();
        process::exit(0)
    }
    child::Child { pid: pid as i32, pidfd: pidfd::open(pid as i32).expect("pidfd_open") }.finish();
    assert_eq!(word.load(Ordering::SeqCst), 1, "a bare clone3");
    // SAFETY: this process has one thread; the child leaves by `exit`.
    match unsafe { cowbell::sys::clone::fork(&ForkArgs::default()) }.expect("clone3") {
        Forked::Child => {
            note();
            process::exit(0)
        }
        Forked::Parent { pid, pidfd } => child::Child { pid, pidfd }.finish(),
    }
    assert_eq!(word.load(Ordering::SeqCst), 2, "the crate's fork");
    child::spawn(note).finish();
    assert_eq!(word.load(Ordering::SeqCst), 2, "libc's fork");
    assert_eq!(lock(mutex), Err(Errno::DEADLK), "still ours");
    unlock(mutex, Locked::Clean);
    assert!(is_empty(head));
    Ok(())
}

/// A word in memory that children share.
fn shared_word() -> &'static AtomicU32 {
    let words: &'static SharedWords = Box::leak(Box::new(SharedWords::new(1).expect("a shared page")));
    // SAFETY: half of a word of shared memory that is used as nothing else.
    unsafe { AtomicU32::from_ptr(words.words().as_ptr().cast_mut().cast()) }
}

/// Waits until a process waits in a futex call.
fn until_it_waits(child: &child::Child) {
    let state = procfs::syscall::open(child.pid, child.pid).expect("its state");
    while procfs::syscall::blocked_in(&state).is_none_or(|blocked| blocked.syscall != Some(libc::SYS_futex as i32)) {
        process::yield_now();
    }
}

fn swallowed_wake_up_of_a_robust_futex_is_passed_on() -> Verdict {
    const OWNER_DIED: u32 = 1 << 30;
    const WAITERS: u32 = 1 << 31;
    for value in [0, OWNER_DIED | WAITERS] {
        let word = shared_word();
        word.store(value, Ordering::SeqCst);
        let waiter = child::spawn(|| assert_eq!(futex::wait(word, value, Some(LONG)), Ok(true), "woken in time"));
        until_it_waits(&waiter);
        child::spawn(|| {
            // The C library's list looks like this while it waits for a mutex: no mutex held, one pending.
            let mut head = [0usize, 0, word.as_ptr().expose_provenance()];
            head[0] = head.as_ptr().expose_provenance();
            // SAFETY: the list is valid until this process has ended.
            let set = unsafe { libc::syscall(libc::SYS_set_robust_list, head.as_ptr(), size_of_val(&head)) };
            assert_eq!(set, 0, "set_robust_list: {}", last_errno());
            process::exit(0)
        })
        .finish();
        waiter.finish();
        assert_eq!(word.load(Ordering::SeqCst), value, "it is not marked");
    }
    Ok(())
}

fn futex_wakes_another_process_through_a_memfd() -> Verdict {
    let memory = Memory::new(Kind::SharedMemfd, 1)?;
    let place = std::ptr::with_exposed_provenance_mut::<u32>(memory.at(0).start);
    // SAFETY: the start of a mapped page that is used as nothing else.
    let word = unsafe { AtomicU32::from_ptr(place) };
    assert_eq!(futex::wait(word, 1, None), Ok(true), "another value: no wait");
    assert_eq!(futex::wait(word, 0, Some(Duration::from_millis(1))), Ok(false), "the time is over");
    let waiter = child::spawn(|| assert_eq!(futex::wait(word, 0, Some(LONG)), Ok(true)));
    until_it_waits(&waiter);
    assert_eq!(futex::wake(word, 2), Ok(1), "one waits");
    waiter.finish();
    Ok(())
}
