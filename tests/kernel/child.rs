//! Children of a case, and how they wait for each other.
//!
//! # Safety
//! A child is forked by glibc's `fork` and runs the test's own code. Where a case has more threads,
//! they only read descriptors and never hold a lock that the child takes.
#![expect(unsafe_code, reason = "claims about fork need forks")]

use cowbell::sys::pidfd::{self, Ended};
use cowbell::sys::shared_words::SharedWords;
use cowbell::sys::{eventfd, process};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A child process. It ends with the case at the latest.
pub struct Child {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// Forks a child that runs `body` and exits with 0.
pub fn spawn(body: impl FnOnce()) -> Child {
    // SAFETY: see the module's Safety section.
    match unsafe { libc::fork() } {
        0 => {
            body();
            process::exit(0)
        }
        pid => {
            assert!(pid > 0, "fork: {}", std::io::Error::last_os_error());
            Child { pid, pidfd: pidfd::open(pid).expect("pidfd_open of a child") }
        }
    }
}

/// Runs `body` in a child and returns its result.
pub fn compute(body: impl FnOnce() -> u64) -> u64 {
    let words = SharedWords::new(1).expect("a shared page");
    let [word, ..] = words.words() else { unreachable!("a page holds a word") };
    spawn(|| word.store(body(), Ordering::SeqCst)).finish();
    word.load(Ordering::SeqCst)
}

impl Child {
    /// Waits for the child's end.
    pub fn wait(self) -> Ended {
        pidfd::wait_and_reap(self.pidfd.as_fd(), None).expect("waitid").expect("it has ended")
    }

    /// Waits for the child, which must exit with 0.
    pub fn finish(self) {
        assert_eq!(self.wait(), Ended::Exited(0), "how the child ended");
    }

    /// Stops the child; it stands still when this returns.
    pub fn stop(&self) {
        pidfd::signal(&self.pidfd, libc::SIGSTOP).expect("pidfd_send_signal");
        let begun = Instant::now();
        while !pidfd::is_stopped(self.pidfd.as_fd()) {
            assert!(begun.elapsed() < Duration::from_secs(10), "the child stops");
            process::yield_now();
        }
    }

    /// Kills the child and waits for its end.
    pub fn kill(self) {
        pidfd::signal(&self.pidfd, libc::SIGKILL).expect("pidfd_send_signal");
        self.wait();
    }
}

/// Something that one process waits for and another lets happen, also over fork.
pub struct Gate(OwnedFd);

impl Gate {
    pub fn new() -> Self {
        Self(eventfd::new().expect("eventfd"))
    }

    /// Lets one waiter, now or later, go on.
    pub fn open(&self) {
        eventfd::notify(&self.0);
    }

    /// Waits for one [`Self::open`].
    pub fn pass(&self) {
        eventfd::take_notice(&self.0);
    }
}

impl AsFd for Gate {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
