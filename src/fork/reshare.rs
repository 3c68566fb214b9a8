//! In a child: how much it has copied, and giving back what is the same as the original again.
#![expect(unsafe_code, reason = "states that nobody writes meanwhile")]

use super::{panics, single_thread};
use crate::arena::{Frozen, Image};
use crate::error::{Error, Result};
use crate::page::PageCount;
use crate::sys::signal::{self, Mask};
use crate::sys::usage;
use crate::watch;
use std::time::Duration;

/// The time that is given to threads that are ending. Signals are blocked meanwhile.
const THREADS_END_MAX: Duration = Duration::from_millis(5);

/// The counts of what [`Frozen::reshare`] found and gave back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Reshared {
    /// Pages that were copies, and so were compared with the original.
    pub looked_at: PageCount,
    /// Those that were the same, and are shared again.
    pub reshared: PageCount,
    /// Those that differ, and stay.
    pub kept: PageCount,
}

impl<T: 'static> Frozen<T> {
    /// In a child made by [`super::spawn`]: gives back the arena's pages that this process copied and whose content is the
    /// original again, so that they are shared once more. For between two jobs, when what one job wrote (marks,
    /// counters, locks) is undone. What readers see does not change.
    ///
    /// Later censuses do not count those pages, unless they are copied again; the report says how many were given back.
    /// Costs what [`copied_now`] does, and reads each copied page and its original once, 16 neighbours at a time.
    ///
    /// In a process that [`super::spawn`] did not make, and for an arena that was not frozen before the fork, there is
    /// nothing to give back: all counts are 0.
    ///
    /// A write that the **kernel** makes later into memory given to it before (io_uring's fixed buffers, a read with
    /// `O_DIRECT` under way) goes to the page that is given back, and is lost: have none in the arena. What is read then is the
    /// original, never something else.
    ///
    /// # Errors
    /// [`Error::threads`] when there are other threads: what they wrote meanwhile could be lost. EINVAL when this process
    /// has locked pages of the arena (`mlock`); what was given back before stays so. EPERM under [`watch::Watch::Async`] when the keeper was killed. ENOENT when `/proc`
    /// is not mounted.
    pub fn reshare(&self) -> Result<Reshared> {
        reshare_image(self.image())
    }
}

/// [`Frozen::reshare`] of an image.
///
/// The image must hold nothing that this allocates, now or later: a page is dropped a moment after it was compared.
pub(crate) fn reshare_image(image: &Image) -> Result<Reshared> {
    let Some(evidence) = panics::own() else { return Ok(Reshared::default()) };
    let mine = (image.slot(), image.generation());
    let at = evidence.images.iter().position(|image| (image.slot(), image.generation()) == mine);
    let Some(at) = at else { return Ok(Reshared::default()) };
    // Before counting: a handler might start a thread.
    let _blocked = Blocked(signal::block_all());
    single_thread::wait_until_alone(THREADS_END_MAX).map_err(|e| match e.threads() {
        Some(_) => e.with_hint("join the other threads first: what they write meanwhile could be lost"),
        None => e,
    })?;
    // SAFETY: this is the only thread, it takes no signal, and what shares the memory (the keeper) writes no arena.
    let (looked_at, reshared) = unsafe { watch::give_back(evidence, at) }?;
    Ok(Reshared { looked_at, reshared, kept: PageCount(looked_at.0 - reshared.0) })
}

/// All signals are blocked while it lives.
struct Blocked(Mask);

impl Drop for Blocked {
    fn drop(&mut self) {
        signal::restore(&self.0);
    }
}

/// Counts the pages of the frozen arenas that this process has copied now, without those that its parent had copied before the
/// fork; 0 in a process that [`super::spawn`] did not make.
///
/// Walks the page tables of all arenas: about 50 ns for each page that is mapped. As long as [`page_faults`] is not above some
/// budget, the copies are not either, and there is no need to ask.
///
/// # Errors
/// ENOENT when `/proc` is not mounted.
pub fn copied_now() -> Result<PageCount> {
    let Some(evidence) = panics::own() else { return Ok(PageCount(0)) };
    watch::copied_now(evidence).map_err(|e| Error::os("ioctl(PAGEMAP_SCAN)", e))
}

/// Counts the page faults that this process has had since it was forked (`getrusage`), in less than a microsecond.
///
/// Each page that it copied took one at least, so this bounds [`copied_now`]; and every fault counts, not only copies.
/// Copies that another process makes by writing into this one (a debugger) are not among them.
pub fn page_faults() -> u64 {
    usage::page_faults()
}
