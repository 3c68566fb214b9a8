//! Where the set-up of a child failed: a step and an errno, which fit in one word of shared memory.

use crate::sys::Errno;

/// The step at which a child's set-up failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    DieWithParent,
    FenceGrowing,
    AllowWriting,
    Handlers,
    Inherited,
    OpenUserfaultfd,
    Register,
    WriteProtect,
    Lifeline,
    KeeperStack,
    StartKeeper,
    KeeperDescriptors,
    KeeperPagemap,
    KeeperPoll,
    KeeperScan,
    OpenFaults,
    MapFaults,
    AwaitFaults,
}

impl Step {
    const ALL: [(Self, &str); 18] = [
        (Self::DieWithParent, "prctl(PR_SET_PDEATHSIG)"),
        (Self::FenceGrowing, "mmap(fence)"),
        (Self::AllowWriting, "mprotect(frozen arena)"),
        (Self::Handlers, "sigaction"),
        (Self::Inherited, "ioctl(PAGEMAP_SCAN)"),
        (Self::OpenUserfaultfd, "userfaultfd"),
        (Self::Register, "ioctl(UFFDIO_REGISTER)"),
        (Self::WriteProtect, "ioctl(UFFDIO_WRITEPROTECT)"),
        (Self::Lifeline, "pipe2"),
        (Self::KeeperStack, "mmap(keeper's stack)"),
        (Self::StartKeeper, "clone(keeper)"),
        (Self::KeeperDescriptors, "pidfd_open(child) in the keeper"),
        (Self::KeeperPagemap, "open(/proc/self/pagemap) in the keeper"),
        (Self::KeeperPoll, "ppoll in the keeper"),
        (Self::KeeperScan, "ioctl(PAGEMAP_SCAN) in the keeper"),
        (Self::OpenFaults, "perf_event_open"),
        (Self::MapFaults, "mmap(perf event)"),
        (Self::AwaitFaults, "epoll in the keeper"),
    ];

    pub(crate) fn operation(self) -> &'static str {
        Self::ALL.iter().find(|(step, _)| *step == self).map_or("", |(_, operation)| operation)
    }
}

/// A failed step and its errno.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FailedStep(pub(crate) Step, pub(crate) Errno);

impl FailedStep {
    /// The step and the errno as one word; 0 is none.
    pub(crate) fn pack(self) -> u64 {
        let at = Step::ALL.iter().position(|(step, _)| *step == self.0).unwrap_or(0) as u64;
        (at + 1) << 32 | self.1.raw_os_error() as u32 as u64
    }

    pub(crate) fn unpack(word: u64) -> Option<Self> {
        let (step, _) = Step::ALL.get(((word >> 32) as usize).checked_sub(1)?)?;
        Some(Self(*step, Errno::from_raw_os_error(word as u32 as i32)))
    }
}

/// Makes a kernel's errno a failed step.
pub(crate) trait At<T> {
    fn at(self, step: Step) -> Result<T, FailedStep>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, step: Step) -> Result<T, FailedStep> {
        self.map_err(|errno| FailedStep(step, errno))
    }
}
