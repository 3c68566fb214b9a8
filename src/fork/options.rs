//! The settings of a fork, and what passes between parent and child besides memory.

use super::single_thread;
use crate::sys::perf::rings::Rings;
use crate::watch::Watch;
use std::cell::Cell;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

/// Settings of [`spawn`](super::spawn).
#[must_use]
#[derive(Clone, Debug)]
pub struct ForkOptions<'a> {
    pub(super) watch: Watch,
    pub(super) events_max: usize,
    pub(super) callers: bool,
    pub(super) last_census: bool,
    pub(super) outside: bool,
    pub(super) exit_signal: i32,
    pub(super) reset_handlers: bool,
    pub(super) cgroup: Option<BorrowedFd<'a>>,
    pub(super) wait_for_threads: Duration,
}

impl<'a> ForkOptions<'a> {
    /// Census, last census taken, no SIGCHLD, signal handlers kept, threads that are ending awaited for 100 ms.
    pub fn new() -> Self {
        Self {
            watch: Watch::Census,
            events_max: 1 << 16,
            callers: false,
            last_census: true,
            outside: true,
            exit_signal: 0,
            reset_handlers: false,
            cgroup: None,
            wait_for_threads: single_thread::PATIENCE,
        }
    }

    /// Sets how the child's copies are observed.
    pub fn watch(mut self, watch: Watch) -> Self {
        self.watch = watch;
        self
    }

    /// Sets the number of events that are kept until they are read (default 65,536, of 64 bytes). Further ones are counted
    /// as lost; which pages were written is known all the same.
    pub fn events_max(mut self, events: usize) -> Self {
        self.events_max = events;
        self
    }

    /// True: events say which calls led to the write ([`Event::callers`](crate::watch::Event::callers), up to [`CALLERS_MAX`](crate::watch::CALLERS_MAX)). Only for
    /// [`Watch::Trap`], whose handler runs in the writing thread: it walks that thread's stack at each page's first write, by the tables that
    /// compilers write for panics. Code whose tables are wrong (assembler written by hand) may crash the child that way. Each event takes 256 bytes.
    pub fn callers(mut self, callers: bool) -> Self {
        self.callers = callers;
        self
    }

    /// False: no keeper is started, and a dead child's report has no census (only for
    /// [`Watch::Census`], the others need the keeper). Saves one `clone` a child.
    pub fn last_census(mut self, take: bool) -> Self {
        self.last_census = take;
        self
    }

    /// True, the default: a census also counts what the child no longer shares with this process **outside** of the arenas, in its
    /// heap, variables and stack ([`Outside`](crate::watch::Outside)). It takes the last census and Linux 6.7.
    ///
    /// Page tables are walked for it at the fork and at the child's end: some 0.1 ms a child, of which a fifth is [`spawn`](super::spawn)'s, and 60 to 130 ns
    /// for each page of private memory that the child has, where fork and exit take 150. Arenas cost nothing.
    pub fn outside(mut self, count: bool) -> Self {
        self.outside = count;
        self
    }

    /// The signal this process gets when the child ends, such as SIGCHLD. Default: none, so that children
    /// neither disturb a SIGCHLD handler nor are taken by a foreign `wait()`. The kernel gives the keeper the
    /// same signal: it comes twice for each child, unless [`Self::last_census`] is false.
    pub fn exit_signal(mut self, signal: i32) -> Self {
        self.exit_signal = signal;
        self
    }

    /// True: signal handlers are back to their defaults in the child (`CLONE_CLEAR_SIGHAND`, Linux 5.5).
    pub fn reset_handlers(mut self, reset: bool) -> Self {
        self.reset_handlers = reset;
        self
    }

    /// A directory of a version 2 control group to start the child in (`CLONE_INTO_CGROUP`, Linux 5.7).
    pub fn cgroup(mut self, directory: BorrowedFd<'a>) -> Self {
        self.cgroup = Some(directory);
        self
    }

    /// Sets how long [`spawn`](super::spawn) waits for other threads to end before it refuses (default 100 ms): those of a
    /// `thread::scope` that is over, or of a thread pool that was dropped, need a moment. Threads that have ended, and that the kernel
    /// has not taken away yet, are waited for up to a second in any case.
    pub fn wait_for_threads(mut self, timeout: Duration) -> Self {
        self.wait_for_threads = timeout;
        self
    }
}

impl Default for ForkOptions<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// The pipes and events of one child.
pub(super) struct Channels {
    pub(super) ready: (OwnedFd, OwnedFd),
    pub(super) command: OwnedFd,
    /// Room for the rings of [`Watch::Faults`], which the child's keeper opens.
    pub(super) rings: Cell<Option<Rings>>,
}
