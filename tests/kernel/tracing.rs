//! Tracing: what a tracer is told, and in which state it finds its tracees.
//!
//! # Safety
//! Stores go to a [`Memory`]; a seccomp filter and a signal handler are set up in children only.
#![expect(unsafe_code, reason = "claims about stores, filters and handlers")]

use crate::child::{self, Gate};
use crate::claim::{Claim, Need, Verdict, claim};
use crate::evidence::{self, pages};
use crate::memory::{Kind, Memory, last_errno};
use crate::processes::cowbell_claim_store;
use crate::{tracee, watcher};
use cowbell::sys::inject::{Call, Injection, Interrupted};
use cowbell::sys::map::Range;
use cowbell::sys::pagemap::{COPIED, Entry, Pagemap};
use cowbell::sys::pidfd::{self, Ended};
use cowbell::sys::ptrace::{self, EventStop, Options, Stop, Until, WaitStatus};
use cowbell::sys::shared_words::SharedWords;
use cowbell::sys::{Errno, pipe, prctl, process, remote, signal};
use rustix::process::{Pid, WaitId, WaitIdOptions};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

pub const CLAIMS: &[Claim] = &[
    claim!(
        exit_stop_shows_the_memory_of_a_killed_process,
        "A tracee that dies by SIGKILL or by SIGSEGV stops at `PTRACE_EVENT_EXIT` with its wait status as the message; memory, maps and page tables are there until it is let go."
    )
    .needs(&[Need::Scan]),
    claim!(
        each_thread_stops_at_the_end_of_its_group,
        "At `exit_group` each thread of the process stops at `PTRACE_EVENT_EXIT`, and memory is there until the last one is let go."
    ),
    claim!(
        killed_tracee_passes_its_exit_stop_when_it_is_resumed,
        "SIGKILL takes a stopped tracee on to its `PTRACE_EVENT_EXIT`, and `PTRACE_CONT` then lets it pass, though nobody waited for that stop."
    ),
    claim!(
        tracee_in_another_process_group_needs_wait_for_any,
        "A tracee that has left the tracer's process group is found by `waitpid(-1)` and not by `waitpid(0)`."
    ),
    claim!(
        traced_child_has_no_status_before_its_tracer_saw_it,
        "When a traced child has ended, its pidfd is readable, and `waitid` of its parent says nothing until the tracer has waited for it."
    ),
    claim!(
        forked_tracee_stands_before_its_first_instruction,
        "With `PTRACE_O_TRACEFORK` a forked child's first stop is an EVENT_STOP where its fork returns 0; the kernel has stored its thread id by then (`CLONE_CHILD_SETTID`), and that page is a copy of its own."
    )
    .needs(&[Need::TidAddress]),
    claim!(
        interrupted_page_fault_is_taken_again,
        "`PTRACE_INTERRUPT` stops a thread that waits in a synchronous userfaultfd fault at the faulting instruction; resumed it faults again, with a second message if the page is still protected."
    )
    .needs(&[Need::Uffd]),
    claim!(
        interrupted_read_returns_what_it_has,
        "`PTRACE_INTERRUPT` of a thread that runs inside of `read(2)` of /dev/zero ends the call with less than was asked for, and than it returns undisturbed."
    ),
    claim!(
        seccomp_decides_about_an_injected_call,
        "An injected call passes the target's seccomp filter: refused with its errno; SIGSYS instead, which the tracer can swallow; or the end of the process."
    ),
    claim!(
        blocked_sigsys_loses_its_handler,
        "Where a seccomp filter sends SIGSYS to a thread that blocks it, the kernel resets the handler to the default."
    ),
    claim!(
        suspending_seccomp_needs_administration,
        "`PTRACE_O_SUSPEND_SECCOMP` lets an injected call pass a filter that kills; without CAP_SYS_ADMIN it is EPERM."
    ),
];

fn exit_stop_shows_the_memory_of_a_killed_process() -> Verdict {
    for signal in [libc::SIGKILL, libc::SIGSEGV] {
        let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
        let (ready, never) = (Gate::new(), Gate::new());
        let child = tracee::spawn(Options::EXIT, || {
            memory.store(1, 200);
            ready.open();
            if signal == libc::SIGSEGV {
                crate::memory::store(8, 1);
            }
            never.pass();
        });
        ready.pass();
        if signal == libc::SIGKILL {
            signal::kill(child.pid);
        }
        tracee::until(child.pid, Stop::Event(EventStop::Exit));
        let message = ptrace::event_message(child.pid).expect("PTRACE_GETEVENTMSG");
        assert_eq!(ptrace::end_in(message), Ended::Signaled(signal));
        let mut bytes = [0; 1];
        assert_eq!(remote::read_memory(child.pid, memory.at(1).start as u64, &mut bytes), Ok(1), "{signal}");
        assert_eq!(bytes, [200]);
        let pagemap = Pagemap::open(child.pid).expect("pagemap");
        assert_eq!(evidence::scan(&pagemap, &memory, &COPIED), pages([1]), "{signal}");
        assert_eq!(evidence::smaps(child.pid, &memory).anonymous as usize, memory.page.bytes(), "{signal}");
        ptrace::resume(child.pid, Until::Event, 0).expect("PTRACE_CONT");
        assert_eq!(tracee::next(child.pid), WaitStatus::Signaled(signal));
        assert!(evidence::shows_nothing(&pagemap, &memory), "let go");
    }
    Ok(())
}

fn each_thread_stops_at_the_end_of_its_group() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    let child = tracee::spawn(tracee::ALL, || {
        memory.store(1, 200);
        let (runs, never) = (Gate::new(), Gate::new());
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    runs.open();
                    never.pass();
                });
                // One that still stood at its first stop would be taken out of it.
                runs.pass();
            }
            process::exit(7);
        });
    });
    let mut ending = Vec::new();
    while ending.len() < 3 {
        match ptrace::wait(None, true).expect("waitpid").expect("it blocks") {
            (tid, WaitStatus::Stopped(Stop::Event(EventStop::Exit))) => ending.push(tid),
            (tid, WaitStatus::Stopped(stop)) => tracee::resume(tid, stop),
            (tid, ended) => panic!("{tid} {ended:?} without its event"),
        }
    }
    for &tid in &ending {
        let message = ptrace::event_message(tid).expect("PTRACE_GETEVENTMSG");
        assert_eq!(ptrace::end_in(message), Ended::Exited(7));
    }
    let read = |tid| remote::read_memory(tid, memory.at(1).start as u64, &mut [0]);
    // The leader's end is told last, whoever is let go first.
    ending.sort_unstable_by_key(|&tid| tid == child.pid);
    for (at, &tid) in ending.iter().enumerate() {
        assert!(ending.iter().skip(at).all(|&waits| read(waits) == Ok(1)), "{at} are gone");
        ptrace::resume(tid, Until::Event, 0).expect("PTRACE_CONT");
        assert_eq!(tracee::next(tid), WaitStatus::Exited(7));
    }
    Ok(())
}

fn killed_tracee_passes_its_exit_stop_when_it_is_resumed() -> Verdict {
    let never = Gate::new();
    let child = tracee::spawn(Options::EXIT, || never.pass());
    tracee::interrupt(child.pid);
    signal::kill(child.pid);
    let id = WaitId::Pid(Pid::from_raw(child.pid).expect("an id"));
    let looking = WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT | WaitIdOptions::from_bits_retain(libc::__WALL as u32);
    let seen = rustix::process::waitid(id, looking).expect("waitid").expect("it blocks");
    let event = seen.trapping_signal().expect("it stands");
    assert_eq!(event, libc::SIGTRAP | libc::PTRACE_EVENT_EXIT << 8, "only looked at, not waited for");
    ptrace::resume(child.pid, Until::Event, 0).expect("PTRACE_CONT");
    assert_eq!(tracee::next(child.pid), WaitStatus::Signaled(libc::SIGKILL), "no event came");
    Ok(())
}

fn tracee_in_another_process_group_needs_wait_for_any() -> Verdict {
    let left = Gate::new();
    let never = Gate::new();
    let child = tracee::spawn(Options::EXIT, || {
        rustix::process::setsid().expect("setsid");
        left.open();
        never.pass();
    });
    left.pass();
    signal::kill(child.pid);
    let id = WaitId::Pid(Pid::from_raw(child.pid).expect("an id"));
    let looking = WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT | WaitIdOptions::from_bits_retain(libc::__WALL as u32);
    rustix::process::waitid(id, looking).expect("waitid").expect("it blocks");
    let wall = rustix::process::WaitOptions::from_bits_retain(libc::__WALL as u32);
    let own_group = rustix::process::waitpid(None, wall | rustix::process::WaitOptions::NOHANG);
    assert_eq!(own_group.map(|_| ()), Err(Errno::CHILD));
    assert_eq!(ptrace::wait(None, false), Ok(Some((child.pid, WaitStatus::Stopped(Stop::Event(EventStop::Exit))))));
    assert_eq!(tracee::end(child.pid), WaitStatus::Signaled(libc::SIGKILL));
    Ok(())
}

fn traced_child_has_no_status_before_its_tracer_saw_it() -> Verdict {
    let (told, tell) = pipe::pair().expect("pipe");
    let (seized, go, release) = (Gate::new(), Gate::new(), Gate::new());
    let tracer = child::spawn(|| {
        let pid = cowbell::sys::tracing::take_number(&told).expect("an id");
        ptrace::seize(pid, Options::empty()).expect("PTRACE_SEIZE");
        seized.open();
        release.pass();
        assert_eq!(tracee::next(pid), WaitStatus::Exited(7));
    });
    let child = child::spawn(|| {
        prctl::allow_tracing_by(tracer.pid);
        cowbell::sys::tracing::give_number(&tell, process::pid());
        go.pass();
        process::exit(7);
    });
    seized.pass();
    go.open();
    assert!(pidfd::wait_end(child.pidfd.as_fd(), None).expect("poll"), "readable");
    assert_eq!(pidfd::reap(child.pidfd.as_fd()).expect("waitid"), None);
    let soon = Some(std::time::Duration::from_millis(1));
    assert_eq!(pidfd::wait_and_reap(child.pidfd.as_fd(), soon).expect("waitid"), None);
    release.open();
    assert_eq!(child.wait(), Ended::Exited(7));
    tracer.finish();
    Ok(())
}

fn forked_tracee_stands_before_its_first_instruction() -> Verdict {
    let memory = Memory::marked(Kind::Anonymous, 4)?;
    let words = SharedWords::new(1).expect("a shared page");
    let [ran, ..] = words.words() else { unreachable!("a page holds a word") };
    let cell = rustix::thread::get_clear_child_tid_address().expect("it is there").expect("glibc sets it");
    let cell = cell.as_ptr().expose_provenance();
    let parent = tracee::spawn(tracee::ALL, || child::spawn(|| ran.store(1, Ordering::SeqCst)).finish());
    let child = tracee::born(parent.pid);
    assert_eq!(ran.load(Ordering::SeqCst), 0, "it has not run");
    let [here, there] = [parent.pid, child].map(|tid| ptrace::registers(tid).expect("PTRACE_GETREGSET"));
    assert_eq!((there.pc(), there.sp(), there.result()), (here.pc(), here.sp(), 0), "the fork returns");
    let stored = |pid| {
        let mut bytes = [0; 4];
        assert_eq!(remote::read_memory(pid, cell as u64, &mut bytes), Ok(4));
        i32::from_ne_bytes(bytes)
    };
    assert_eq!((stored(parent.pid), stored(child)), (parent.pid, child), "each has its own id");
    let alone = |address: usize| {
        let mut found = Entry::empty();
        let range = Range { start: memory.page.round_down(address), len: memory.page.bytes() };
        Pagemap::open(child).expect("pagemap").read(range, |_, entry| found = entry).expect("read of pagemap");
        found.contains(Entry::PRESENT | Entry::EXCLUSIVE)
    };
    assert!(alone(cell) && !alone(memory.at(1).start), "the id's page is a copy, others are shared");
    assert_eq!(tracee::end(child), WaitStatus::Exited(0));
    assert_eq!(ran.load(Ordering::SeqCst), 1, "it has run");
    assert_eq!(tracee::end(parent.pid), WaitStatus::Exited(0));
    Ok(())
}

fn interrupted_read_returns_what_it_has() -> Verdict {
    const BYTES: usize = 64 << 20;
    /// The exit status of a child that read all each time, and of one that once read less.
    const ALL: u8 = 0;
    const LESS: u8 = 7;
    let reads_less = || {
        let mut buffer = vec![0u8; BYTES];
        let mut zero = std::fs::File::open("/dev/zero").expect("open");
        (0..100).any(|_| std::io::Read::read(&mut zero, &mut buffer).expect("read") < BYTES)
    };
    let status = || i32::from(if reads_less() { LESS } else { ALL });
    assert_eq!(child::spawn(|| process::exit(status())).wait(), Ended::Exited(i32::from(ALL)), "undisturbed");
    let reader = tracee::spawn(Options::empty(), || process::exit(status()));
    let ended = loop {
        // One that has ended says so below.
        let _ended = ptrace::interrupt(reader.pid);
        match tracee::next(reader.pid) {
            WaitStatus::Stopped(stop) => tracee::resume(reader.pid, stop),
            ended => break ended,
        }
    };
    assert_eq!(ended, WaitStatus::Exited(i32::from(LESS)));
    Ok(())
}

fn interrupted_page_fault_is_taken_again() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    let go = Gate::new();
    let child = tracee::spawn(tracee::ALL, || {
        go.pass();
        // SAFETY: the address lies in the memory.
        unsafe { cowbell_claim_store(memory.at(1).start, 200) };
        process::exit(i32::from(memory.load(1)));
    });
    tracee::interrupt(child.pid);
    let uffd = tracee::watch(child.pid, false, watcher::SYNC);
    tracee::arm(&uffd, memory.range);
    ptrace::resume(child.pid, Until::Event, 0).expect("PTRACE_CONT");
    go.open();
    for message in 1..=2 {
        assert_eq!(tracee::next_fault(&uffd).address, memory.at(1).start, "message {message}");
        tracee::interrupt(child.pid);
        let registers = ptrace::registers(child.pid).expect("PTRACE_GETREGSET");
        assert_eq!(registers.pc(), cowbell_claim_store as *const () as u64, "at the store");
        if message == 2 {
            uffd.write_protect(memory.at(1), false).expect("UFFDIO_WRITEPROTECT");
        }
        ptrace::resume(child.pid, Until::Event, 0).expect("PTRACE_CONT");
    }
    tracee::until(child.pid, Stop::Event(EventStop::Exit));
    assert_eq!(uffd.read(|event| panic!("{event:?}")), Ok(false), "no third message");
    assert_eq!(tracee::end(child.pid), WaitStatus::Exited(200));
    Ok(())
}

/// From now on `userfaultfd` has this result for the calling process; everything else is allowed.
fn filter_userfaultfd(action: u32) {
    let code = |code: u32| code as u16;
    let step = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    let mut program = [
        step(code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS), 0),
        libc::sock_filter {
            jt: 0,
            jf: 1,
            ..step(code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K), libc::SYS_userfaultfd as u32)
        },
        step(code(libc::BPF_RET | libc::BPF_K), action),
        step(code(libc::BPF_RET | libc::BPF_K), libc::SECCOMP_RET_ALLOW),
    ];
    rustix::thread::set_no_new_privs(true).expect("PR_SET_NO_NEW_PRIVS");
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program is valid for the call, which copies it.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    assert_eq!(done, 0, "PR_SET_SECCOMP: {}", last_errno());
}

extern "C" fn ignore(_: i32) {}

/// A tracee under a filter that waits, makes the call itself if it is to, and exits with 7 if its SIGSYS handler is still
/// there.
fn filtered(options: Options, action: u32, calls: bool, blocked: bool) -> (child::Child, Gate) {
    let (ready, go) = (Gate::new(), Gate::new());
    let child = tracee::spawn(options, || {
        let handler = ignore as *const () as usize;
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(libc::SIGSYS, handler) };
        filter_userfaultfd(action);
        if blocked {
            let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
            // SAFETY: the set is ours, and the call fills it.
            unsafe { libc::sigfillset(set.as_mut_ptr()) };
            // SAFETY: it was filled just now; the old one is not asked for.
            unsafe { libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
        }
        ready.open();
        go.pass();
        // SAFETY: the call takes flags; the filter sends a signal instead.
        unsafe { calls.then(|| libc::syscall(libc::SYS_userfaultfd, 0)) };
        // SAFETY: the handler put back does nothing.
        let still = unsafe { libc::signal(libc::SIGSYS, handler) };
        process::exit(if still == handler { 7 } else { 8 });
    });
    ready.pass();
    (child, go)
}

fn seccomp_decides_about_an_injected_call() -> Verdict {
    let results = [
        (libc::SECCOMP_RET_ERRNO | libc::EXDEV as u32, Ok(-i64::from(libc::EXDEV))),
        (libc::SECCOMP_RET_TRAP, Err(Interrupted::Refused(Errno::PERM))),
        (libc::SECCOMP_RET_KILL_PROCESS, Err(Interrupted::Ending(WaitStatus::Stopped(Stop::Event(EventStop::Exit))))),
    ];
    for (action, expected) in results {
        let (child, go) = filtered(tracee::ALL, action, false, false);
        tracee::interrupt(child.pid);
        let mut wait = tracee::wait;
        let mut injection = Injection::begin(child.pid, &mut wait).expect("an injection");
        assert_eq!(injection.call(Call::Userfaultfd { user_mode_only: true }), expected);
        if let Err(Interrupted::Ending(_)) = expected {
            assert_eq!(tracee::end(child.pid), WaitStatus::Signaled(libc::SIGSYS));
            continue;
        }
        assert_eq!(injection.finish(), Ok(Stop::Trap));
        go.open();
        assert_eq!(tracee::end(child.pid), WaitStatus::Exited(7), "{action:#x}: unharmed");
    }
    Ok(())
}

fn blocked_sigsys_loses_its_handler() -> Verdict {
    for blocked in [true, false] {
        let (child, go) = filtered(tracee::ALL, libc::SECCOMP_RET_TRAP, true, blocked);
        go.open();
        tracee::until(child.pid, Stop::Signal(libc::SIGSYS));
        // The signal is swallowed.
        assert_eq!(tracee::end(child.pid), WaitStatus::Exited(if blocked { 8 } else { 7 }));
    }
    Ok(())
}

fn suspending_seccomp_needs_administration() -> Verdict {
    const SUSPEND_SECCOMP: u32 = 1 << 21;
    let options = tracee::ALL | Options::from_bits_retain(SUSPEND_SECCOMP);
    let held = rustix::thread::capabilities(None).expect("capget").effective;
    if !held.contains(rustix::thread::CapabilitySet::SYS_ADMIN) {
        let child = child::spawn(|| Gate::new().pass());
        assert_eq!(ptrace::seize(child.pid, options), Err(Errno::PERM));
        child.kill();
        return Ok(());
    }
    let (child, go) = filtered(options, libc::SECCOMP_RET_KILL_PROCESS, false, false);
    tracee::interrupt(child.pid);
    let _uffd = tracee::watch(child.pid, false, watcher::SYNC);
    go.open();
    assert_eq!(tracee::end(child.pid), WaitStatus::Exited(7));
    Ok(())
}
