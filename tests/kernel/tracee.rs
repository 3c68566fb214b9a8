//! Tracees: children of a case that the case's own thread follows by ptrace.

use crate::child::{self, Child, Gate};
use cowbell::sys::inject::{Call, Injection};
use cowbell::sys::map::Range;
use cowbell::sys::pidfd;
use cowbell::sys::process;
use cowbell::sys::ptrace::{self, EventStop, Options, Stop, Until, WaitStatus};
use cowbell::sys::remote::RemoteUffd;
use cowbell::sys::uffd::{self, Features, WaitingWrite};
use std::os::fd::AsFd;

/// Events of every kind; the tracee outlives its tracer.
pub const ALL: Options = Options::all().difference(Options::KILL_WITH_TRACER);

/// Forks a child and seizes it before it runs `body`.
pub fn spawn(options: Options, body: impl FnOnce()) -> Child {
    let seized = Gate::new();
    let child = child::spawn(|| {
        seized.pass();
        body();
    });
    ptrace::seize(child.pid, options).expect("PTRACE_SEIZE");
    seized.open();
    child
}

/// The next thing that happens to a thread.
pub fn next(tid: i32) -> WaitStatus {
    ptrace::wait(Some(tid), true).expect("waitpid").expect("it blocks").1
}

/// Lets a thread run, with the signal it stopped for.
pub fn resume(tid: i32, stop: Stop) {
    let signal = if let Stop::Signal(signal) = stop { signal } else { 0 };
    ptrace::resume(tid, Until::Event, signal).expect("PTRACE_CONT");
}

/// Lets a running thread run until it stops for `wanted`; other stops are passed.
pub fn until(tid: i32, wanted: Stop) {
    loop {
        match next(tid) {
            WaitStatus::Stopped(stop) if stop == wanted => return,
            WaitStatus::Stopped(stop) => resume(tid, stop),
            ended => panic!("{ended:?} instead of {wanted:?}"),
        }
    }
}

/// Stops a running thread.
pub fn interrupt(tid: i32) {
    ptrace::interrupt(tid).expect("PTRACE_INTERRUPT");
    until(tid, Stop::Trap);
}

/// Lets a stopped thread run to its end; how that was.
pub fn end(tid: i32) -> WaitStatus {
    resume(tid, Stop::Trap);
    end_running(tid)
}

/// Waits for a running thread's end, passing all stops; how that was.
pub fn end_running(tid: i32) -> WaitStatus {
    loop {
        match next(tid) {
            WaitStatus::Stopped(stop) => resume(tid, stop),
            ended => return ended,
        }
    }
}

/// Lets a tracee that stands at a fork go on, and returns the child at its first stop.
pub fn born(parent: i32) -> i32 {
    until(parent, Stop::Event(EventStop::Fork));
    let child = ptrace::event_message(parent).expect("PTRACE_GETEVENTMSG") as i32;
    assert_eq!(next(child), WaitStatus::Stopped(Stop::Trap), "a child's first stop");
    child
}

/// An injection's way to wait.
pub fn wait(tid: i32) -> Result<WaitStatus, cowbell::sys::Errno> {
    ptrace::wait(Some(tid), true).map(|found| found.expect("it blocks").1)
}

/// Makes a userfaultfd in a thread that stands in a [`Stop::Trap`], by the door that everyone may take unless `full`.
pub fn watch(pid: i32, full: bool, features: Features) -> RemoteUffd {
    watch_in(pid, pid, full, features)
}

/// Watches as [`watch`] does, in a thread of the process `pid`.
pub fn watch_in(pid: i32, tid: i32, full: bool, features: Features) -> RemoteUffd {
    let mut wait = wait;
    let mut injection = Injection::begin(tid, &mut wait).expect("an injection");
    let number = injection.call(Call::Userfaultfd { user_mode_only: !full }).expect("a call");
    assert!(number >= 0, "userfaultfd: errno {}", -number);
    let uffd = RemoteUffd::adopt(pid, number as i32, features).expect("pidfd_getfd");
    assert_eq!(injection.call(Call::Close(number as i32)), Ok(0), "close");
    assert_eq!(injection.finish(), Ok(Stop::Trap));
    uffd
}

/// Registers and write-protects a range of a tracee.
pub fn arm(uffd: &RemoteUffd, range: Range) {
    uffd.register(range).expect("UFFDIO_REGISTER");
    uffd.write_protect(range, true).expect("UFFDIO_WRITEPROTECT");
}

/// Waits for the next event, which must be a fault.
pub fn next_fault(uffd: &RemoteUffd) -> WaitingWrite {
    loop {
        pidfd::readable(uffd.as_fd(), None).expect("poll");
        let mut seen = None;
        uffd.read(|event| match event {
            uffd::UffdMessage::Fault(fault) => seen = Some(fault),
            other => panic!("a fault was expected: {other:?}"),
        })
        .expect("read");
        if let Some(fault) = seen {
            return fault;
        }
    }
}

/// Waits until a thread is blocked in a system call that is wanted: by its number and its arguments.
pub fn blocked_in(tid: i32, wanted: impl Fn(i64, &[u64]) -> bool) {
    loop {
        let text = std::fs::read_to_string(format!("/proc/{tid}/syscall")).expect("syscall");
        let mut fields = text.split_whitespace();
        let number = fields.next().and_then(|number| number.parse().ok());
        let hex = |field: &str| u64::from_str_radix(field.trim_start_matches("0x"), 16).expect("an argument");
        let arguments: Vec<_> = fields.map(hex).collect();
        if number.is_some_and(|number| wanted(number, &arguments)) {
            return;
        }
        process::yield_now();
    }
}

/// Seizes a child that waits at a gate, opens the gate, and lets it run until it has executed another program.
pub fn exec_stop(pid: i32, gate: &Gate) {
    ptrace::seize(pid, Options::EXEC).expect("PTRACE_SEIZE");
    gate.open();
    until(pid, Stop::Event(EventStop::Exec));
}
