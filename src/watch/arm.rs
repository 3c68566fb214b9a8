//! Beginning to watch, in the child, before user code: open a userfaultfd, arm the arenas, start the keeper.
//!
//! # Safety
//! Everything here is *raw*. Armed ranges are frozen arenas, in which the runtime itself writes nothing.
#![expect(unsafe_code, reason = "arming decides what writes do")]

use super::evidence::{Evidence, Word};
use super::{Watch, census, keeper, outside, trap};
use crate::facts::Door;
use crate::sys::perf::rings::Rings;
use crate::sys::uffd::{Features, Uffd};
use crate::sys::{Errno, process};
use std::cell::Cell;
use std::os::fd::BorrowedFd;

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
pub(crate) struct Failure(pub(crate) Step, pub(crate) Errno);

impl Failure {
    /// As one word, 0 for none.
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
    fn at(self, step: Step) -> Result<T, Failure>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, step: Step) -> Result<T, Failure> {
        self.map_err(|errno| Failure(step, errno))
    }
}

/// Begins to watch this process. `command` is the eventfd by which the parent calls the keeper; `rings` are prepared for [`Watch::Faults`].
pub(crate) fn begin(
    evidence: &'static Evidence,
    command: BorrowedFd<'_>,
    rings: &Cell<Option<Rings>>,
) -> Result<(), Failure> {
    census::note_inherited(evidence).at(Step::Inherited)?;
    outside::note_shared(evidence);
    let uffd = if evidence.watch.arms() { Some(arm(evidence)?) } else { None };
    if let Some(uffd) = &uffd {
        evidence.set_number(Word::UffdNumber, process::number(uffd));
    }
    if evidence.watch == Watch::Trap {
        trap::install(evidence).at(Step::Handlers)?;
    }
    if evidence.keep {
        keeper::start(evidence, command, rings)?;
    }
    // The keeper has its own descriptor. This process keeps one only where its handler needs it: as long
    // as the program itself cannot hold the last one, the death of the keeper lets every writer go on.
    match uffd {
        Some(uffd) if evidence.watch == Watch::Trap => std::mem::forget(uffd),
        _ => {}
    }
    Ok(())
}

fn arm(evidence: &Evidence) -> Result<Uffd, Failure> {
    let (door, uffd) = open(evidence.watch)?;
    evidence.set(Word::Door, Door::ALL.iter().position(|each| *each == door).unwrap_or(0) as u64 + 1);
    for image in &evidence.images {
        // SAFETY: a frozen arena is ours; its writers wait for our handler or our keeper.
        unsafe { uffd.register(image.range()) }.at(Step::Register)?;
        // SAFETY: the range was just registered, and its writers wait for our handler or our keeper.
        unsafe { uffd.write_protect(image.range(), true) }.at(Step::WriteProtect)?;
    }
    Ok(uffd)
}

/// The features a watch cannot do without, and those it is glad of.
fn features(watch: Watch) -> (Features, Features) {
    match watch {
        Watch::Census | Watch::Faults => (Features::empty(), Features::empty()),
        Watch::Async => (Features::WP_ASYNC.union(Features::WP_HUGETLBFS_SHMEM), Features::empty()),
        Watch::Trap => {
            (Features::SIGBUS.union(Features::PAGEFAULT_FLAG_WP).union(Features::WP_HUGETLBFS_SHMEM), Features::empty())
        }
        Watch::Monitor => (
            Features::PAGEFAULT_FLAG_WP.union(Features::WP_HUGETLBFS_SHMEM).union(Features::THREAD_ID),
            Features::EXACT_ADDRESS,
        ),
    }
}

/// Opens through the most powerful door that is open, with all features the kernel has.
fn open(watch: Watch) -> Result<(Door, Uffd), Failure> {
    let (needed, welcome) = features(watch);
    let mut refused = Errno::NOSYS;
    for door in Door::ALL {
        for wanted in [needed.union(welcome), needed] {
            match Uffd::open(door, wanted) {
                Ok(uffd) => return Ok((door, uffd)),
                // The most telling refusal: a kernel that lacks a feature says EINVAL through every door.
                Err(e) => refused = e,
            }
        }
    }
    Err(Failure(Step::OpenUserfaultfd, refused))
}
