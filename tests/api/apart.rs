//! Tests that run in a process of their own.
//!
//! A claim about arenas, handlers and limits changes the process it is made in, and some claims are about
//! how a process dies. So each runs in a fork of the (single-threaded) test process, with its output
//! caught and its time bounded; what it leaves behind ends with it.
//!
//! # Safety
//! The forks are glibc's own, of a process that has one thread at that moment.
#![expect(unsafe_code, reason = "forks a process for each test")]

use crate::case::{Outcome, soak, trial};
use cowbell::sys::pidfd::{self, Ended};
use cowbell::sys::{descriptor, prctl, process};
use libtest_mimic::{Completion, Failed, Trial};
use rustix::fs::{MemfdFlags, OFlags};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// The time a claim may take; far more than any needs.
const TIME_MAX: Duration = Duration::from_secs(300);
/// The least that a claim may take where long runs are asked for.
const SOAK_MAX: Duration = Duration::from_secs(2 * 3600);

/// The exit status of a claim's process when it failed, and when it was skipped.
const FAILED: i32 = 70;
const SKIPPED: i32 = 77;

/// All that a process that ran apart left behind.
#[derive(Debug)]
pub struct Left {
    pub ended: Ended,
    pub stdout: String,
    pub stderr: String,
}

impl Left {
    /// The process exited with 0.
    pub fn success(&self) -> bool {
        self.ended == Ended::Exited(0)
    }
}

/// A test by its claim, made in a process of its own.
pub fn claim(name: &str, test: impl FnOnce() -> Outcome + Send + 'static) -> Trial {
    claim_within(TIME_MAX, name, test)
}

/// [`claim`] with more time.
pub fn claim_within(time_max: Duration, name: &str, test: impl FnOnce() -> Outcome + Send + 'static) -> Trial {
    let time_max = if soak() { time_max.max(SOAK_MAX) } else { time_max };
    // The path without the name of the whole.
    trial(name.trim_start_matches("api::"), move || {
        let left = run(time_max, move || match test() {
            Ok(Completion::Completed) => 0,
            Ok(Completion::Ignored { reason }) => {
                print!("{}", reason.unwrap_or_default());
                SKIPPED
            }
            Err(failed) => {
                eprintln!("{}", failed.message().unwrap_or("failed"));
                FAILED
            }
        })?;
        match left.ended {
            Ended::Exited(0) => Ok(Completion::Completed),
            Ended::Exited(SKIPPED) => {
                eprintln!("skipped: {}", left.stdout);
                Ok(Completion::ignored_with(left.stdout))
            }
            ended => Err(format!("{ended}\n{}{}", left.stdout, left.stderr).into()),
        }
    })
}

/// Runs `body` in a process of its own and returns what it left behind; one that hangs is a failure.
pub fn apart(body: impl FnOnce() -> Result<(), Failed>) -> Result<Left, Failed> {
    run(TIME_MAX, || match body() {
        Ok(()) => 0,
        Err(failed) => {
            eprintln!("{}", failed.message().unwrap_or("failed"));
            FAILED
        }
    })
}

fn run(time_max: Duration, body: impl FnOnce() -> i32) -> Result<Left, Failed> {
    let (stdout, stderr) = (sink()?, sink()?);
    let process = Process::start(|| {
        for (sink, number) in [(&stdout, 1), (&stderr, 2)] {
            // SAFETY: 1 and 2 are the standard output and error, which nobody owns.
            assert_eq!(unsafe { libc::dup2(descriptor::number(sink), number) }, number);
        }
        let code = catch_unwind(AssertUnwindSafe(body)).unwrap_or(FAILED);
        std::io::stdout().flush().expect("the sink takes everything");
        code
    });
    let ended = process.end_within(time_max);
    let (stdout, stderr) = (text(&stdout)?, text(&stderr)?);
    match ended {
        Some(ended) => Ok(Left { ended, stdout, stderr }),
        None => Err(format!("it did not end within {time_max:?}\n{stdout}{stderr}").into()),
    }
}

/// A file in memory: unlike a pipe it is never full and has no end that somebody may hold. Several processes may write
/// to it at once, so all append: the kernel does not lock the position of such a file.
fn sink() -> Result<OwnedFd, Failed> {
    let file = rustix::fs::memfd_create(c"caught", MemfdFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&file, OFlags::APPEND)?;
    Ok(file)
}

fn text(sink: &OwnedFd) -> Result<String, Failed> {
    let file = File::from(sink.try_clone()?);
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A forked process that cowbell did not make; killed and reaped when dropped.
pub struct Process {
    pidfd: OwnedFd,
    reaped: bool,
}

impl Process {
    /// Forks a process that runs `body` and exits with the code it returns, without any destructor.
    pub fn start(body: impl FnOnce() -> i32) -> Self {
        std::io::stdout().flush().expect("stdout");
        // SAFETY: see the module's contract.
        match unsafe { libc::fork() } {
            0 => {
                prctl::die_with_parent().expect("prctl");
                process::exit(body())
            }
            -1 => panic!("fork: {}", std::io::Error::last_os_error()),
            pid => Self { pidfd: pidfd::open(pid).expect("a child of ours"), reaped: false },
        }
    }

    /// Sends it SIGKILL.
    pub fn kill(&self) {
        pidfd::signal(&self.pidfd, libc::SIGKILL).expect("a child of ours");
    }

    /// The way it ended; `None` when it had to be killed because it did not end in time.
    pub fn end_within(mut self, time_max: Duration) -> Option<Ended> {
        let in_time = pidfd::wait_end(self.pidfd.as_fd(), Some(time_max)).expect("poll");
        if !in_time {
            self.kill();
            pidfd::wait_end(self.pidfd.as_fd(), None).expect("poll");
        }
        self.reaped = true;
        pidfd::reap(self.pidfd.as_fd()).expect("waitid").filter(|_| in_time)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            let _gone = pidfd::wait_end(self.pidfd.as_fd(), None);
            let _reaped = pidfd::reap(self.pidfd.as_fd());
        }
    }
}
