//! The ways in which a child's copies are observed.

/// The way in which a child's copies are observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Watch {
    /// Read the page tables when asked: which pages were copied. Costs the writer nothing.
    #[default]
    Census,
    /// userfaultfd with `WP_ASYNC` (Linux 6.7): pages written per epoch. About 1.5 times a copy.
    Async,
    /// Page faults told by perf events (5.13): order, time, thread, registers, writes by system calls too; 1.5 to 1.8 times a copy.
    /// Nothing is armed: system calls work, no signal is sent, and a page has one event, of its first write since the fork. Which pages were copied
    /// page tables tell, and what instructions do which fault was a write (on x86-64).
    ///
    /// It takes `kernel.perf_event_paranoid` at most 2 or CAP_PERFMON, for writes by system calls at most 1 or CAP_PERFMON; without that these pages are
    /// copied and unobserved. Each child takes up to 1 MiB of locked memory for records, or 64 KiB a processor where there are more than 16
    /// (less where `RLIMIT_MEMLOCK` forbids), and its keeper a descriptor a processor; records that had no place are counted
    /// ([`PageFaults`](crate::report::PageFaults)).
    Faults,
    /// userfaultfd with `SIGBUS`, handled in the writer (5.19): order, time, thread, registers. It takes 3.5 to 4
    /// times a copy. A system call that writes into an armed page fails with `EFAULT`: one not yet copied, or not in this epoch. The program must not
    /// replace the SIGBUS handler, and a thread that blocks SIGBUS dies of its first write.
    Trap,
    /// userfaultfd with messages to another process (5.19): the same, and writes by system calls too
    /// (where the user may, see [`crate::support`]). It takes 7 to 9 times a copy beside busy processes, and about 30 times on an idle machine:
    /// each write waits for another process to be woken (`cargo run --release -p cowbell-bench -- writes`, and with `--busy`).
    Monitor,
}

impl Watch {
    /// All watches, the cheapest first.
    pub const ALL: [Self; 5] = [Self::Census, Self::Async, Self::Faults, Self::Trap, Self::Monitor];

    /// Does it arm pages?
    pub fn arms(self) -> bool {
        match self {
            Self::Census | Self::Faults => false,
            Self::Async | Self::Trap | Self::Monitor => true,
        }
    }

    /// Does it report single writes, with time and thread?
    pub fn has_events(self) -> bool {
        match self {
            Self::Census | Self::Async => false,
            Self::Faults | Self::Trap | Self::Monitor => true,
        }
    }

    /// Tells whether it sees pages being written, besides counting copies.
    pub(crate) fn observes(self) -> bool {
        match self {
            Self::Census => false,
            Self::Async | Self::Faults | Self::Trap | Self::Monitor => true,
        }
    }

    /// Tells whether the kernel lets each write go on and marks its page, so that a scan finds the marks and arms the pages again.
    pub(crate) fn leaves_marks(self) -> bool {
        match self {
            Self::Async => true,
            Self::Census | Self::Faults | Self::Trap | Self::Monitor => false,
        }
    }

    /// Tells whether the keeper reads page faults from perf events.
    pub(crate) fn reads_page_faults(self) -> bool {
        match self {
            Self::Faults => true,
            Self::Census | Self::Async | Self::Trap | Self::Monitor => false,
        }
    }

    /// Tells whether a signal handler in the writing thread answers each first write.
    pub(crate) fn is_answered_by_writer(self) -> bool {
        match self {
            Self::Trap => true,
            Self::Census | Self::Async | Self::Faults | Self::Monitor => false,
        }
    }

    /// Tells whether a writer waits at each first write until the keeper has answered.
    pub(crate) fn is_answered_by_keeper(self) -> bool {
        match self {
            Self::Monitor => true,
            Self::Census | Self::Async | Self::Faults | Self::Trap => false,
        }
    }

    /// The watch's name in lower case, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Census => "census",
            Self::Async => "async",
            Self::Faults => "faults",
            Self::Trap => "trap",
            Self::Monitor => "monitor",
        }
    }
}

impl std::fmt::Display for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
