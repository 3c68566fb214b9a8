//! Beginning to watch, in the child, before user code: open a userfaultfd, arm the arenas, start the keeper.
//!
//! # Safety
//! Everything here is *async-signal-safe*. Armed ranges are frozen arenas, in which the runtime itself writes nothing.
#![expect(unsafe_code, reason = "arming decides what writes do")]

use super::{census, keeper, outside, trap};
use crate::facts::Door;
use crate::sys::perf::rings::Rings;
use crate::sys::uffd::{Features, Uffd};
use crate::sys::{Errno, descriptor};
use crate::watch::evidence::{Evidence, Word};
use crate::watch::failure::{At, FailedStep, Step};
use crate::watch::kind::Watch;
use std::cell::Cell;
use std::os::fd::BorrowedFd;

/// Begins to watch this process. `command` is the eventfd by which the parent calls the keeper; `rings` are prepared for [`Watch::Faults`].
pub(crate) fn begin(
    evidence: &'static Evidence,
    command: BorrowedFd<'_>,
    rings: &Cell<Option<Rings>>,
) -> Result<(), FailedStep> {
    census::note_inherited(evidence).at(Step::Inherited)?;
    outside::note_shared(evidence);
    let uffd = if evidence.watch.arms() { Some(arm(evidence)?) } else { None };
    if let Some(uffd) = &uffd {
        evidence.set_number(Word::UffdNumber, descriptor::number(uffd));
    }
    if evidence.watch.is_answered_by_writer() {
        trap::install(evidence).at(Step::Handlers)?;
    }
    if evidence.keep {
        keeper::start(evidence, command, rings)?;
    }
    // The keeper has its own descriptor. This process keeps one only where its handler needs it: as long
    // as the program itself cannot hold the last one, the death of the keeper lets every writer go on.
    match uffd {
        Some(uffd) if evidence.watch.is_answered_by_writer() => std::mem::forget(uffd),
        _ => {}
    }
    Ok(())
}

fn arm(evidence: &Evidence) -> Result<Uffd, FailedStep> {
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
fn open(watch: Watch) -> Result<(Door, Uffd), FailedStep> {
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
    Err(FailedStep(Step::OpenUserfaultfd, refused))
}
