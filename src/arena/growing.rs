//! The state of an arena that grows: its file, mapped, with memory behind what is used.
#![expect(unsafe_code, reason = "a file is mapped over reserved addresses")]

use super::collapse::HugeGrowth;
use super::headroom::{check_headroom, step};
use super::options::HugePages;
use super::site::Recorder;
use super::space::Space;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::map::{self, Access, Harmless, Range};
use crate::sys::memfd;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicU64;

/// A growing arena's file, kept until the image takes it over.
pub(super) type File = Option<OwnedFd>;

/// The smallest allocations that are expected to fill a step: smaller ones are rare.
const SMALL_ALLOCATION: usize = 32;

/// The state that changes while an arena grows.
pub(super) struct Growing {
    pub(super) space: Space,
    pub(super) recorder: Option<Recorder>,
    /// Bytes from the start that have memory behind them.
    pub(super) committed: usize,
    pub(super) capacity: usize,
    start: usize,
    growth: HugeGrowth,
    /// Why a collection's last allocation failed.
    pub(super) failure: Option<Error>,
    /// Gone when the arena is frozen.
    pub(super) file: File,
}

impl Growing {
    /// Maps the file over the reserved range.
    pub(super) fn new(
        range: Range,
        capacity: usize,
        file: OwnedFd,
        huge_pages: HugePages,
        record_sites: bool,
    ) -> Result<Self> {
        // SAFETY: the range was just reserved and nobody was given an address in it.
        let mapped = unsafe { map::map_shared_at(range, Access::ReadWrite, file.as_fd(), 0) };
        mapped.map_err(|e| Error::os("mmap(arena)", e))?;
        // SAFETY: a child fences the range before any code of the user runs there.
        let kept = unsafe { map::inherit(range, false) };
        kept.map_err(|e| Error::os("madvise(MADV_DONTFORK)", e))?;
        if huge_pages == HugePages::Advise {
            map::advise(range, Harmless::HugePage).map_err(|e| Error::os("madvise(MADV_HUGEPAGE)", e))?;
        }
        let recorder = record_sites.then(Recorder::default);
        Ok(Self {
            space: Space::new(capacity),
            recorder,
            committed: 0,
            capacity,
            start: range.start,
            growth: HugeGrowth::by(huge_pages),
            failure: None,
            file: Some(file),
        })
    }

    /// The state of an arena that never grew in this process.
    pub(super) fn never() -> Self {
        Self {
            space: Space::new(0),
            recorder: None,
            committed: 0,
            capacity: 0,
            start: 0,
            growth: HugeGrowth::by(HugePages::Never),
            failure: None,
            file: None,
        }
    }

    /// Bytes from the start to the end of the last allocation.
    pub(super) fn used(&self) -> usize {
        self.space.used()
    }

    /// Puts memory behind the first `end` bytes, or says why there is none.
    pub(super) fn commit(&mut self, end: usize) -> Result<()> {
        let Some(missing) = end.checked_sub(self.committed).filter(|&missing| missing > 0) else { return Ok(()) };
        let room_max = self.capacity.max(end) - self.committed;
        // Recording the allocations that fit in a step takes ordinary heap beside it.
        let recording =
            |step: usize| self.recorder.as_ref().map_or(0, |recorder| recorder.growth(step / SMALL_ALLOCATION));
        let step = step(self.committed, missing, |step| {
            let step = step.min(room_max);
            check_headroom(step + recording(step)).map(|()| step)
        })?;
        let Some(file) = &self.file else { return Ok(()) };
        self.growth.grow(self.start, Range { start: self.start + self.committed, len: step });
        // Pages that are there by now stay.
        memfd::allocate(file.as_fd(), self.committed as u64, step as u64).map_err(|e| {
            let limit = format!("the kernel refused: {}", Error::os("fallocate", e));
            Error::new(ErrorKind::OutOfMemory { asked: step, limit })
        })?;
        self.committed += step;
        Ok(())
    }
}

/// A reserved range that may become an arena; unmapped if it does not.
pub(super) struct Reserved(Range);

impl Reserved {
    pub(super) fn new(next: &AtomicU64, len: usize, align: usize) -> Result<Self> {
        map::reserve_apart(next, len, align).map(Self)
    }

    pub(super) fn range(&self) -> Range {
        self.0
    }

    /// The range is an arena's now.
    pub(super) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: `new` reserved it, and what was not kept was handed to nobody.
        let unmapped = unsafe { map::unmap(self.0) };
        debug_assert!(unmapped.is_ok());
    }
}
