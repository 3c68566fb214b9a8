//! Programs that the tracer starts and follows: their ends, their masks, and their lists of robust mutexes.
//!
//! # Safety
//! What a bare clone runs makes raw system calls only, on its own stack, with what is never freed.
#![expect(unsafe_code, reason = "claims about clone and robust lists")]

use crate::case;
use crate::child::{self, Gate};
use crate::claim::{Claim, Verdict, claim};
use crate::memory::{Kind, Memory, last_errno};
use crate::remote_ends::with_tracer;
use crate::tracee;
use cowbell::sys::launch::Launch;
use cowbell::sys::pidfd::{self, Ended};
use cowbell::sys::procfs::status::Status;
use cowbell::sys::ptrace::{self, Options, Until};
use cowbell::sys::tracing::{give_number, robust_list, take_number};
use cowbell::sys::{Errno, pipe, signal};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::time::Duration;

pub const CLAIMS: &[Claim] = &[
    claim!(
        tracee_dies_with_its_tracer_while_the_option_is_set,
        "With `PTRACE_O_EXITKILL`, set while it stands, a tracee is killed when its tracer dies, standing or running; with the option taken back it goes on."
    ),
    claim!(
        robust_list_of_another_process_shows,
        "`get_robust_list` of another process' thread gives the address that it passed to `set_robust_list`, and none once it has passed none."
    ),
    claim!(
        launch_ends_with_its_tracer,
        "A process that waits for its tracer's byte before it executes a program sees the pipe's end when the tracer is killed, and ends without executing it: no end for writing is its own."
    ),
    claim!(
        launch_says_why_its_program_does_not_run,
        "A launch of a program that is missing ends in ENOENT, of one that may not be executed in EACCES."
    ),
    claim!(
        launched_program_has_the_mask_asked_for,
        "A launched program blocks exactly the signals asked for, though the process that launched it blocks all."
    ),
];

fn tracee_dies_with_its_tracer_while_the_option_is_set() -> Verdict {
    for running in [false, true] {
        let (child, tracer) = with_tracer(
            |_| Gate::new().pass(),
            |pid, _| {
                ptrace::seize(pid, Options::empty()).expect("PTRACE_SEIZE");
                tracee::interrupt(pid);
                ptrace::set_options(pid, Options::KILL_WITH_TRACER).expect("PTRACE_SETOPTIONS");
                if running {
                    ptrace::resume(pid, Until::Event, 0).expect("PTRACE_CONT");
                }
            },
        );
        let early = pidfd::wait_end(child.pidfd.as_fd(), Some(Duration::from_millis(20)));
        assert!(!early.expect("poll"), "while the tracer lives");
        tracer.kill();
        assert_eq!(child.wait(), Ended::Signaled(libc::SIGKILL), "running: {running}");
    }
    let (child, tracer) = with_tracer(
        |go| go.pass(),
        |pid, go| {
            ptrace::seize(pid, Options::empty()).expect("PTRACE_SEIZE");
            tracee::interrupt(pid);
            for options in [Options::KILL_WITH_TRACER, Options::empty()] {
                ptrace::set_options(pid, options).expect("PTRACE_SETOPTIONS");
            }
            go.open();
        },
    );
    tracer.kill();
    child.finish();
    Ok(())
}

fn robust_list_of_another_process_shows() -> Verdict {
    let memory = Memory::marked(Kind::Anonymous, 1)?;
    let head = memory.range.start;
    let (set, go) = (Gate::new(), Gate::new());
    let child = child::spawn(|| {
        for head in [head, 0] {
            // SAFETY: the kernel only notes the address; when this process ends, none is noted.
            let done = unsafe { libc::syscall(libc::SYS_set_robust_list, head, 3 * size_of::<usize>()) };
            assert_eq!(done, 0, "set_robust_list: {}", last_errno());
            set.open();
            go.pass();
        }
    });
    set.pass();
    assert_eq!(robust_list(child.pid), Some(head as u64), "set");
    go.open();
    set.pass();
    assert_eq!(robust_list(child.pid), None, "taken back");
    go.open();
    child.finish();
    Ok(())
}

fn launch_ends_with_its_tracer() -> Verdict {
    let ran = case::scratch().join("ran");
    let (told, tell) = pipe::pair().expect("pipe");
    let tracer = child::spawn(|| {
        let launch = Launch::prepare(&["touch".into(), ran.clone().into()], 0).expect("a launch");
        give_number(&tell, launch.pid());
        Gate::new().pass();
    });
    let pid = take_number(&told).expect("an id");
    let launched = pidfd::open(pid).expect("pidfd_open");
    let ended = |limit| pidfd::wait_end(launched.as_fd(), limit).expect("poll");
    assert!(!ended(Some(Duration::from_millis(20))), "it waits");
    tracer.kill();
    assert!(ended(Some(Duration::from_secs(10))), "it ends");
    assert!(!ran.exists(), "the program did not run");
    Ok(())
}

fn launch_says_why_its_program_does_not_run() -> Verdict {
    let forbidden = case::scratch().join("forbidden");
    std::fs::write(&forbidden, "#!/bin/sh\n").expect("a file");
    let missing = case::scratch().join("missing");
    for (program, errno) in [(missing, Errno::NOENT), (forbidden, Errno::ACCESS)] {
        let launch = Launch::prepare(&[program.into()], 0).expect("a launch");
        let result = launch.go().result().expect_err("there is no such program");
        assert_eq!(result.raw_os_error(), Some(errno.raw_os_error()), "{result}");
    }
    Ok(())
}

fn launched_program_has_the_mask_asked_for() -> Verdict {
    let bit = |signal: i32| 1u64 << (signal - 1);
    let before = signal::block_all();
    for mask in [0, bit(libc::SIGUSR1) | bit(libc::SIGTERM), bit(libc::SIGHUP) | bit(libc::SIGRTMAX())] {
        let launch = Launch::prepare(&["sleep", "1000"].map(OsString::from), mask).expect("a launch");
        let pid = launch.pid();
        launch.go().result().expect("it runs");
        let status = Status::of(pid).expect("status");
        assert_eq!(status.bits("SigBlk"), Some(mask), "{status:?}");
        signal::kill(pid);
    }
    signal::restore(&before);
    Ok(())
}
