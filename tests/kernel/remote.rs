//! Another process' memory: a userfaultfd injected there, and what reading it does.
//!
//! # Safety
//! Stores and system calls go to a [`Memory`], in children that do nothing else.
#![expect(unsafe_code, reason = "claims about stores and system calls")]

use crate::child::{self, Gate};
use crate::claim::{Claim, Need, PTRACE, Verdict, claim};
use crate::memory::{Kind, Memory, last_errno, mark};
use crate::tracee;
use crate::watcher::SYNC;
use cowbell::sys::pagemap::{Entry, Pagemap};
use cowbell::sys::ptrace::{self, EventStop, Stop, Until, WaitStatus};
use cowbell::sys::remote::RemoteUffd;
use cowbell::sys::shared_words::SharedWords;
use cowbell::sys::uffd::Features;
use cowbell::sys::{Errno, pidfd, pipe, process, remote, signal};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::Ordering;

pub const CLAIMS: &[Claim] = &[
    claim!(
        reading_by_process_vm_readv_copies_shared_pages,
        "`process_vm_readv` of an anonymous page that the target shares gives the target a copy of its own; reading `/proc/PID/mem` does not."
    ),
    claim!(
        injected_userfaultfd_watches_the_child,
        "A userfaultfd made in a forked child by an injected call, taken by `pidfd_getfd` and closed there, watches the child's memory and not the parent's; registers and signal mask are as before."
    )
    .needs(&[Need::Uffd]),
    claim!(
        unregistering_tells_whose_memory_a_userfaultfd_is_about,
        "`UFFDIO_UNREGISTER` of a range that was never registered succeeds if the userfaultfd's memory has something there, and is `EINVAL` if not; the copy that a forked process has is about the memory of whoever opened it."
    )
    .needs(&[Need::Uffd]),
    claim!(
        one_registered_mapping_hands_a_userfaultfd_on,
        "With `EVENT_FORK` a child is given a userfaultfd if its maker has any mapping registered; it registers and arms the child's other mappings, whose writes are told there, and is handed on to the child's child."
    )
    .needs(&[Need::FullUffd, PTRACE]),
    claim!(
        fork_goes_on_when_the_userfaultfd_is_closed,
        "A fork that waits for its `EVENT_FORK` to be read goes on when the userfaultfd is closed, and the child, though its mappings were armed, writes without waiting."
    )
    .needs(&[Need::FullUffd, PTRACE]),
    claim!(
        blocked_calls_go_on_after_an_injection,
        "`read` of a pipe, `futex`, `poll`, `nanosleep`, `pause` and `wait4` go on after an injected call, those with a time limit by `restart_syscall`."
    )
    .needs(&[Need::Uffd]),
    claim!(
        some_blocked_calls_are_interrupted_by_any_stop,
        "`epoll_wait`, `semtimedop` and `sigtimedwait` are EINTR after a tracer's stop, with an injected call or without."
    ),
];

pub fn entry_of(pid: i32, memory: &Memory, page: usize) -> Entry {
    let mut found = Entry::empty();
    Pagemap::open(pid).expect("pagemap").read(memory.at(page), |_, entry| found = entry).expect("read of pagemap");
    found
}

fn reading_by_process_vm_readv_copies_shared_pages() -> Verdict {
    let memory = Memory::marked(Kind::Anonymous, 4)?;
    let child = child::spawn(|| Gate::new().pass());
    let copied = |page| entry_of(child.pid, &memory, page).contains(Entry::PRESENT | Entry::EXCLUSIVE);
    let mut byte = [0u8];
    assert_eq!(remote::read_memory(child.pid, memory.at(1).start as u64, &mut byte), Ok(1));
    assert_eq!((byte, copied(1)), ([mark(1)], false), "/proc/PID/mem");
    let local = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let there = libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(memory.at(2).start), iov_len: 1 };
    // SAFETY: the kernel writes to `byte` only; the other vector is followed in the child.
    let got = unsafe { libc::process_vm_readv(child.pid, &raw const local, 1, &raw const there, 1, 0) };
    assert_eq!((got, byte), (1, [mark(2)]), "process_vm_readv: {}", last_errno());
    assert!(copied(2), "process_vm_readv");
    assert!(!copied(3), "others stay shared");
    child.kill();
    Ok(())
}

/// All general registers of a stopped thread, and its blocked signals.
fn state(tid: i32) -> (Vec<u8>, String) {
    let mut bytes = [0u8; 512];
    let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let set = std::ptr::without_provenance_mut::<libc::c_void>(libc::NT_PRSTATUS as usize);
    // SAFETY: the kernel writes at most as many bytes as the vector says.
    let done = unsafe { libc::ptrace(libc::PTRACE_GETREGSET, tid, set, &raw mut vector) };
    assert_eq!(done, 0, "PTRACE_GETREGSET: {}", last_errno());
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).expect("status");
    let mask = status.lines().find(|line| line.starts_with("SigBlk")).expect("a mask").to_owned();
    (bytes[..vector.iov_len].to_vec(), mask)
}

fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("/proc/PID/fd").count()
}

fn injected_userfaultfd_watches_the_child() -> Verdict {
    let memory = Memory::marked(Kind::Anonymous, 4)?;
    let parent = tracee::spawn(tracee::ALL, || {
        let child = child::spawn(|| memory.store(1, 200));
        memory.store(2, 200);
        child.finish();
    });
    let child = tracee::born(parent.pid);
    let before = (state(child), descriptors(child));
    let uffd = tracee::watch(child, false, SYNC | Features::THREAD_ID);
    assert!(before == (state(child), descriptors(child)), "as before");
    tracee::arm(&uffd, memory.range);
    ptrace::resume(parent.pid, Until::Event, 0).expect("PTRACE_CONT");
    ptrace::resume(child, Until::Event, 0).expect("PTRACE_CONT");
    let fault = tracee::next_fault(&uffd);
    assert_eq!((fault.address, fault.tid), (memory.at(1).start, child));
    assert!(fault.write_protect && !entry_of(child, &memory, 1).contains(Entry::EXCLUSIVE), "not yet copied");
    uffd.write_protect(memory.at(1), false).expect("UFFDIO_WRITEPROTECT");
    tracee::until(child, Stop::Event(EventStop::Exit));
    assert!(entry_of(child, &memory, 1).contains(Entry::EXCLUSIVE), "copied");
    assert_eq!(tracee::end(child), WaitStatus::Exited(0));
    while tracee::next(parent.pid) != WaitStatus::Exited(0) {
        ptrace::resume(parent.pid, Until::Event, 0).expect("PTRACE_CONT");
    }
    assert_eq!(uffd.read(|event| panic!("{event:?}")), Ok(false), "nothing of the parent");
    Ok(())
}

/// A userfaultfd of this process whose features nobody has agreed on yet.
fn fresh() -> std::os::fd::OwnedFd {
    let flags = rustix::mm::UserfaultfdFlags::CLOEXEC
        | rustix::mm::UserfaultfdFlags::NONBLOCK
        | rustix::mm::UserfaultfdFlags::from_bits_retain(1);
    // SAFETY: opening one, for faults of user mode only, changes nothing.
    unsafe { rustix::mm::userfaultfd(flags) }.expect("userfaultfd")
}

/// The library asks this of a number that is given to it as another process', so that arming by it cannot stop this one.
fn unregistering_tells_whose_memory_a_userfaultfd_is_about() -> Verdict {
    let uffds = [fresh(), fresh()];
    let gate = child::Gate::new();
    let child = child::spawn(|| gate.pass());
    for (pid, uffd) in [process::pid(), child.pid].into_iter().zip(&uffds) {
        let taken = RemoteUffd::adopt(pid, uffd.as_raw_fd(), SYNC);
        assert_eq!(taken.err(), Some(Errno::INVAL), "one of this process' own memory");
    }
    gate.open();
    child.finish();
    let memory = Memory::marked(Kind::Anonymous, 1)?;
    let gate = child::Gate::new();
    let tracee = tracee::spawn(tracee::ALL, || gate.pass());
    tracee::interrupt(tracee.pid);
    let uffd = tracee::watch(tracee.pid, false, SYNC);
    assert_eq!(uffd.register(memory.range), Ok(()), "one of the other's");
    drop(uffd);
    gate.open();
    assert_eq!(tracee::end(tracee.pid), WaitStatus::Exited(0));
    Ok(())
}

/// Waits until a process forks, and takes what its userfaultfd gives for the child.
fn handed_on(uffd: &RemoteUffd) -> RemoteUffd {
    let mut child = None;
    while child.is_none() {
        pidfd::readable(uffd.as_fd(), None).expect("poll");
        uffd.read_with_children(|event| panic!("{event:?}"), |given| child = Some(given)).expect("read");
    }
    child.expect("the loop ends with one")
}

fn one_registered_mapping_hands_a_userfaultfd_on() -> Verdict {
    let (memory, other) = (Memory::marked(Kind::Anonymous, 4)?, Memory::marked(Kind::Anonymous, 1)?);
    let begins = Gate::new();
    let parent = tracee::spawn(tracee::ALL, || {
        begins.pass();
        let child = child::spawn(|| {
            memory.store(1, 200);
            child::spawn(|| memory.store(2, 200)).finish();
        });
        child.finish();
    });
    tracee::interrupt(parent.pid);
    let uffd = tracee::watch(parent.pid, true, SYNC | Features::THREAD_ID | Features::EVENT_FORK);
    uffd.register(other.range).expect("UFFDIO_REGISTER");
    begins.open();
    tracee::resume(parent.pid, Stop::Trap);
    let (mut maker, mut given) = (parent.pid, uffd);
    for page in [1, 2] {
        let theirs = handed_on(&given);
        let child = tracee::born(maker);
        tracee::arm(&theirs, memory.range);
        ptrace::resume(maker, Until::Event, 0).expect("PTRACE_CONT");
        ptrace::resume(child, Until::Event, 0).expect("PTRACE_CONT");
        let fault = tracee::next_fault(&theirs);
        assert_eq!((fault.address, fault.tid), (memory.at(page).start, child));
        assert!(!entry_of(child, &memory, page).contains(Entry::EXCLUSIVE), "not yet copied");
        theirs.write_protect(memory.at(page), false).expect("UFFDIO_WRITEPROTECT");
        (maker, given) = (child, theirs);
    }
    assert_eq!(tracee::end_running(maker), WaitStatus::Exited(0), "the grandchild");
    drop(given);
    all_exit();
    Ok(())
}

/// Lets all tracees that are left through their stops; each exits with 0.
fn all_exit() {
    while let Ok(Some((tid, status))) = ptrace::wait(None, true) {
        match status {
            WaitStatus::Stopped(stop) => tracee::resume(tid, stop),
            ended => assert_eq!(ended, WaitStatus::Exited(0), "process {tid}"),
        }
    }
}

fn fork_goes_on_when_the_userfaultfd_is_closed() -> Verdict {
    let memory = Memory::marked(Kind::Anonymous, 4)?;
    let begins = Gate::new();
    let parent = tracee::spawn(tracee::ALL, || {
        begins.pass();
        child::spawn(|| memory.store(1, 200)).finish();
    });
    tracee::interrupt(parent.pid);
    let uffd = tracee::watch(parent.pid, true, SYNC | Features::EVENT_FORK);
    tracee::arm(&uffd, memory.range);
    begins.open();
    tracee::resume(parent.pid, Stop::Trap);
    assert_eq!(pidfd::readable(uffd.as_fd(), None), Ok(true), "the event is there, and nobody reads it");
    drop(uffd);
    all_exit();
    Ok(())
}

/// A system call that waits for ever, made by number; `-errno` or the result.
pub fn call(number: i64, arguments: [usize; 4]) -> i64 {
    let [a, b, c, d] = arguments;
    // SAFETY: the callers pass what the call demands.
    let got = unsafe { libc::syscall(number, a, b, c, d, 0, 0) };
    if got == -1 { -i64::from(last_errno().raw_os_error()) } else { got }
}

/// Longer than this test runs, and later than now.
static LONG: libc::timespec = libc::timespec { tv_sec: 1 << 31, tv_nsec: 0 };

/// Blocks a tracee in a system call, stops it there, injects if told to, and lets it go on. Its result, if it ends.
fn stop_in(number: i64, again: Option<i64>, inject: bool, body: impl FnOnce() -> i64) -> Option<i64> {
    let result = SharedWords::new(1).expect("a shared page");
    let [word, ..] = result.words() else { unreachable!("a page holds a word") };
    let ready = Gate::new();
    let child = tracee::spawn(tracee::ALL - ptrace::Options::FORK, || {
        ready.open();
        word.store(body() as u64, Ordering::SeqCst);
    });
    ready.pass();
    tracee::blocked_in(child.pid, |in_call, _| in_call == number);
    tracee::interrupt(child.pid);
    if inject {
        let before = state(child.pid);
        let _uffd = tracee::watch(child.pid, false, SYNC);
        assert!(before == state(child.pid), "call {number}: as before");
    }
    ptrace::resume(child.pid, Until::Event, 0).expect("PTRACE_CONT");
    let Some(again) = again else {
        tracee::until(child.pid, Stop::Event(EventStop::Exit));
        let result = word.load(Ordering::SeqCst) as i64;
        assert_eq!(tracee::end(child.pid), WaitStatus::Exited(0));
        return Some(result);
    };
    tracee::blocked_in(child.pid, |in_call, _| {
        let result = word.load(Ordering::SeqCst) as i64;
        assert_eq!(result, 0, "call {number} returned");
        in_call == again
    });
    signal::kill(child.pid);
    tracee::until(child.pid, Stop::Event(EventStop::Exit));
    assert_eq!(tracee::end(child.pid), WaitStatus::Signaled(libc::SIGKILL));
    None
}

fn blocked_calls_go_on_after_an_injection() -> Verdict {
    let (unread, _unwritten) = pipe::pair().expect("pipe");
    let unread = unread.as_raw_fd();
    let long = (&raw const LONG).expose_provenance();
    let mut byte = [0u8; 8];
    let byte = byte.as_mut_ptr().expose_provenance();
    let zero = 0u32;
    let word = (&raw const zero).expose_provenance();
    let polled = libc::pollfd { fd: unread, events: libc::POLLIN, revents: 0 };
    let polled = (&raw const polled).expose_provenance();
    // On aarch64 the kernel has forgotten what was to be restarted, and the call is made anew.
    let restart = |number| if cfg!(target_arch = "x86_64") { libc::SYS_restart_syscall } else { number };
    let calls = [
        (libc::SYS_read, [unread as usize, byte, 1, 0], libc::SYS_read),
        (libc::SYS_futex, [word, libc::FUTEX_WAIT as usize, 0, 0], libc::SYS_futex),
        (libc::SYS_futex, [word, libc::FUTEX_WAIT as usize, 0, long], restart(libc::SYS_futex)),
        (libc::SYS_ppoll, [polled, 1, 0, 0], libc::SYS_ppoll),
        (libc::SYS_clock_nanosleep, [libc::CLOCK_MONOTONIC as usize, 0, long, 0], restart(libc::SYS_clock_nanosleep)),
        (libc::SYS_clock_nanosleep, [libc::CLOCK_MONOTONIC as usize, 1, long, 0], libc::SYS_clock_nanosleep),
        (libc::SYS_nanosleep, [long, 0, 0, 0], restart(libc::SYS_nanosleep)),
    ];
    for (number, arguments, again) in calls {
        for inject in [false, true] {
            assert_eq!(stop_in(number, Some(again), inject, || call(number, arguments)), None);
        }
    }
    let waiting = || {
        let child = child::spawn(|| Gate::new().pass());
        call(libc::SYS_wait4, [child.pid as usize, 0, 0, 0])
    };
    assert_eq!(stop_in(libc::SYS_wait4, Some(libc::SYS_wait4), true, waiting), None);
    Ok(())
}

fn some_blocked_calls_are_interrupted_by_any_stop() -> Verdict {
    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).expect("epoll_create");
    let epoll = epoll.as_raw_fd() as usize;
    let mut room = [0u64; 4];
    let room = room.as_mut_ptr().expose_provenance();
    let long = (&raw const LONG).expose_provenance();
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the set is ours, and zeroes are the empty one.
    unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGUSR1) };
    let set = set.as_ptr().expose_provenance();
    for inject in [false, true] {
        // epoll_pwait without a mask, which every architecture has, is epoll_wait.
        let epolling = || call(libc::SYS_epoll_pwait, [epoll, room, 1, usize::MAX]);
        assert_eq!(stop_in(libc::SYS_epoll_pwait, None, inject, epolling), Some(-i64::from(libc::EINTR)), "epoll");
        let waiting = || call(libc::SYS_rt_sigtimedwait, [set, 0, long, 8]);
        let got = stop_in(libc::SYS_rt_sigtimedwait, None, inject, waiting);
        assert_eq!(got, Some(-i64::from(libc::EINTR)), "rt_sigtimedwait");
        let semaphore = || {
            // SAFETY: the call takes numbers.
            let id = unsafe { libc::semget(libc::IPC_PRIVATE, 1, 0o600) };
            let take = libc::sembuf { sem_num: 0, sem_op: -1, sem_flg: 0 };
            let got = call(libc::SYS_semtimedop, [id as usize, (&raw const take).expose_provenance(), 1, long]);
            // SAFETY: removing it takes no argument.
            unsafe { libc::semctl(id, 0, libc::IPC_RMID) };
            got
        };
        assert_eq!(stop_in(libc::SYS_semtimedop, None, inject, semaphore), Some(-i64::from(libc::EINTR)), "semtimedop");
    }
    Ok(())
}
