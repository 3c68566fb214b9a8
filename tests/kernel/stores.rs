//! The kernel's own stores to armed pages: in a system call, and for its bookkeeping of threads.
//!
//! # Safety
//! Stores and system calls go to a [`Memory`], in children that do nothing else.
#![expect(unsafe_code, reason = "claims about stores and system calls")]

use crate::child::Gate;
use crate::claim::{Claim, Need, Verdict, claim};
use crate::evidence;
use crate::memory::{Kind, Memory, mark};
use crate::remote::call;
use crate::tracee;
use crate::watcher::SYNC;
use cowbell::sys::ptrace::{self, EventStop, Stop, Until, WaitStatus};
use cowbell::sys::uffd::Features;
use cowbell::sys::{pidfd, pipe, process, signal};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::Ordering;

pub const CLAIMS: &[Claim] = &[
    claim!(
        kernel_write_waits_inside_its_system_call,
        "`/proc/PID/task/TID/syscall` of a thread whose `read(2)` waits at an armed page is the call's number, its arguments, and the stack pointer and program counter of user mode."
    )
    .needs(&[Need::FullUffd]),
    claim!(
        rseq_area_on_an_armed_page,
        "The kernel's store to a thread's rseq area is a message under a full synchronous watch, and recorded under `WP_ASYNC`; under a user-mode-only synchronous watch the thread dies of SIGSEGV."
    )
    .needs(&[Need::WpAsync, Need::Scan]),
    claim!(
        tid_word_disarmed_at_the_exit_stop_is_cleared,
        "The `CLONE_CHILD_CLEARTID` word on a page under synchronous write-protection is cleared if the page is disarmed at the thread's `PTRACE_EVENT_EXIT`, and else not."
    )
    .needs(&[Need::FullUffd]),
    claim!(
        robust_futex_on_a_sync_armed_page_is_not_marked,
        "A robust futex on a page under synchronous write-protection does not get `FUTEX_OWNER_DIED` when its owner ends; disarmed at `PTRACE_EVENT_EXIT` it does."
    )
    .needs(&[Need::FullUffd]),
];

fn kernel_write_waits_inside_its_system_call() -> Verdict {
    let memory = Memory::marked(Kind::Anonymous, 4)?;
    let (unread, to_child) = pipe::pair().expect("pipe");
    let address = memory.at(1).start;
    let arguments = [unread.as_raw_fd() as usize, address, 1, 0];
    let child = tracee::spawn(tracee::ALL, || assert_eq!(call(libc::SYS_read, arguments), 1));
    tracee::blocked_in(child.pid, |number, given| number == libc::SYS_read && given.get(1) == Some(&(address as u64)));
    tracee::interrupt(child.pid);
    let registers = ptrace::registers(child.pid).expect("PTRACE_GETREGSET");
    let uffd = tracee::watch(child.pid, true, SYNC);
    tracee::arm(&uffd, memory.range);
    ptrace::resume(child.pid, Until::Event, 0).expect("PTRACE_CONT");
    pipe::give_byte(&to_child);
    assert_eq!(tracee::next_fault(&uffd).address, address);
    // On aarch64 the registers of the stop are those of the call about to be made anew.
    let behind = if cfg!(target_arch = "x86_64") { 0 } else { 4 };
    tracee::blocked_in(child.pid, |number, given| {
        assert_eq!((number, given.get(1)), (libc::SYS_read, Some(&(address as u64))));
        assert_eq!(given.get(6..), Some([registers.sp(), registers.pc() + behind].as_slice()));
        true
    });
    uffd.write_protect(memory.at(1), false).expect("UFFDIO_WRITEPROTECT");
    assert_eq!(tracee::end_running(child.pid), WaitStatus::Exited(0));
    Ok(())
}

/// `struct rseq`: 32 bytes, aligned to as many.
const RSEQ_LEN: usize = 32;

/// Registers its rseq area there, tells so, and sleeps now and then until told to end. It has no thread-local storage.
extern "C" fn sleep_with_rseq(shared: *mut libc::c_void) -> i32 {
    // SAFETY: `rseq_case` passes three words that outlive this process.
    let [area, ready, go] = unsafe { *shared.cast::<[usize; 3]>() };
    // SAFETY: the area is mapped, aligned, and nobody's else.
    if unsafe { libc::syscall(libc::SYS_rseq, area, RSEQ_LEN, 0, 0x5305_3053) } != 0 {
        return 9;
    }
    let mut count = 1u64;
    let count = &raw mut count;
    // SAFETY: the number is an eventfd's.
    unsafe { libc::syscall(libc::SYS_write, ready, count, 8) };
    // SAFETY: as above; it waits, and so the thread is scheduled again, and the kernel stores where it runs.
    unsafe { libc::syscall(libc::SYS_read, go, count, 8) };
    0
}

/// The end of a process that is scheduled with its rseq area on an armed page, and what came of the page.
fn rseq_case(full: bool, features: Features) -> Result<(pidfd::Ended, usize, bool), crate::claim::Skip> {
    let memory = Memory::new(Kind::Anonymous, 4)?;
    memory.store(1, 0);
    let stack = Memory::new(Kind::Anonymous, 16)?.range;
    let (ready, go) = (Gate::new(), Gate::new());
    let words = [memory.at(1).start, ready.as_fd().as_raw_fd() as usize, go.as_fd().as_raw_fd() as usize];
    let tid = std::sync::atomic::AtomicU64::new(0);
    let argument = (&raw const words).cast_mut().cast();
    // SAFETY: the entry makes system calls only; stack and argument outlive the process.
    let pid = unsafe { cowbell::sys::clone::share_memory(sleep_with_rseq, argument, stack, &tid) }.expect("clone");
    let pidfd = pidfd::open(pid).expect("pidfd_open");
    ready.pass();
    tracee::blocked_in(pid, |number, given| {
        number == libc::SYS_read && given.first() == words.get(2).map(|go| *go as u64).as_ref()
    });
    let uffd = if full { crate::watcher::full(features) } else { Ok(crate::watcher::user_mode(features)) };
    let uffd = uffd.expect("userfaultfd");
    crate::watcher::arm(&uffd, &memory);
    go.open();
    let mut messages = 0;
    if full && !features.contains(Features::WP_ASYNC) {
        assert_eq!(crate::watcher::next_fault(&uffd).address, memory.at(1).start);
        messages += 1;
        crate::watcher::protect(&uffd, memory.range, false).expect("UFFDIO_WRITEPROTECT");
    }
    pidfd::wait_end(pidfd.as_fd(), None).expect("poll");
    let written = features.contains(Features::WP_ASYNC) && evidence::written(&memory) == evidence::pages([1]);
    // The process is the harness' child.
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let code: i32 = status.split_whitespace().last().and_then(|code| code.parse().ok()).expect("an exit code");
    Ok((ptrace::end_in(code as u64), messages, written))
}

fn rseq_area_on_an_armed_page() -> Verdict {
    use pidfd::Ended;
    assert_eq!(rseq_case(false, SYNC)?, (Ended::Signaled(libc::SIGSEGV), 0, false), "user mode only");
    assert_eq!(rseq_case(false, crate::watcher::ASYNC)?, (Ended::Exited(0), 0, true), "asynchronous");
    if crate::watcher::full(SYNC).is_ok() {
        assert_eq!(rseq_case(true, SYNC)?, (Ended::Exited(0), 1, false), "full");
    }
    Ok(())
}

/// A traced child whose `prepare` points the kernel to something in page 1, ended with that page armed (and disarmed at
/// the exit stop, if asked). The memory is shared with us, so that it can be looked at.
fn ended_with_armed_page(memory: &Memory, disarm: bool, prepare: impl FnOnce()) {
    let (ready, go) = (Gate::new(), Gate::new());
    let child = tracee::spawn(tracee::ALL, || {
        prepare();
        ready.open();
        go.pass();
    });
    ready.pass();
    tracee::interrupt(child.pid);
    let uffd = tracee::watch(child.pid, true, SYNC);
    tracee::arm(&uffd, memory.at(1));
    ptrace::resume(child.pid, Until::Event, 0).expect("PTRACE_CONT");
    go.open();
    tracee::until(child.pid, Stop::Event(EventStop::Exit));
    if disarm {
        uffd.write_protect(memory.at(1), false).expect("UFFDIO_WRITEPROTECT");
    }
    assert_eq!(tracee::end(child.pid), WaitStatus::Exited(0));
    assert_eq!(uffd.read(|event| panic!("{event:?}")), Ok(false), "no message");
}

fn tid_word_disarmed_at_the_exit_stop_is_cleared() -> Verdict {
    for disarm in [false, true] {
        let memory = Memory::marked(Kind::SharedMemfd, 4)?;
        let (ready, go) = (Gate::new(), Gate::new());
        let child = tracee::spawn(tracee::ALL, || {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    call(libc::SYS_set_tid_address, [memory.at(1).start, 0, 0, 0]);
                    ready.open();
                    go.pass();
                    call(libc::SYS_exit, [0; 4]);
                });
                Gate::new().pass();
            });
        });
        tracee::until(child.pid, Stop::Event(EventStop::Clone));
        let thread = ptrace::event_message(child.pid).expect("PTRACE_GETEVENTMSG") as i32;
        tracee::until(thread, Stop::Trap);
        ptrace::resume(thread, Until::Event, 0).expect("PTRACE_CONT");
        ready.pass();
        tracee::interrupt(thread);
        let uffd = tracee::watch_in(child.pid, thread, true, SYNC);
        tracee::arm(&uffd, memory.at(1));
        ptrace::resume(thread, Until::Event, 0).expect("PTRACE_CONT");
        go.open();
        tracee::until(thread, Stop::Event(EventStop::Exit));
        if disarm {
            uffd.write_protect(memory.at(1), false).expect("UFFDIO_WRITEPROTECT");
        }
        assert_eq!(tracee::end(thread), WaitStatus::Exited(0));
        assert_eq!(uffd.read(|event| panic!("{event:?}")), Ok(false), "no message");
        assert_eq!(memory.load(1), if disarm { 0 } else { mark(1) });
        signal::kill(child.pid);
        assert_eq!(tracee::end_running(child.pid), WaitStatus::Signaled(libc::SIGKILL));
    }
    Ok(())
}

fn robust_futex_on_a_sync_armed_page_is_not_marked() -> Verdict {
    for disarm in [false, true] {
        let memory = Memory::new(Kind::SharedMemfd, 4)?;
        let word_at = |page: usize| {
            let at = std::ptr::with_exposed_provenance::<std::sync::atomic::AtomicU32>(memory.at(page).start);
            // SAFETY: the page is mapped for as long as this process lives, and aligned.
            unsafe { &*at }
        };
        ended_with_armed_page(&memory, disarm, || {
            // The list's head is in page 2 and its one entry in page 3, whose futex is where the offset leads: in page 1.
            let [futex, head, entry] = [1, 2, 3].map(|page| memory.at(page).start);
            let list = std::ptr::with_exposed_provenance_mut::<[usize; 3]>(head);
            // SAFETY: page 2 is mapped, and nobody refers to it.
            unsafe { list.write_volatile([entry, futex.wrapping_sub(entry), 0]) };
            let next = std::ptr::with_exposed_provenance_mut::<usize>(entry);
            // SAFETY: page 3 is mapped, and nobody refers to it.
            unsafe { next.write_volatile(head) };
            word_at(1).store(process::tid() as u32, Ordering::SeqCst);
            assert_eq!(call(libc::SYS_set_robust_list, [head, 24, 0, 0]), 0);
        });
        let marked = word_at(1).load(Ordering::SeqCst) & libc::FUTEX_OWNER_DIED != 0;
        assert_eq!(marked, disarm);
    }
    Ok(())
}
