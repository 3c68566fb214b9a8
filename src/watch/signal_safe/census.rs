//! Census: which pages of a frozen arena a process has copied, from its page tables.
//!
//! A page of the arena's private mapping is a copy when there is a page and it is not the file's:
//! that is all there is to it, and it equals `Anonymous:` (plus `Swap:`) of the mapping in smaps.

use crate::arena::Image;
use crate::page::PageIndex;
use crate::sys::map::Range;
use crate::sys::pagemap::{COPIED, COPIED_ARMED, Pagemap};
#[cfg(feature = "pool")]
use crate::sys::pagemap::{Entry, MAPPED};
use crate::sys::{self, Errno};
use crate::watch::evidence::{Bitmap, Evidence};

/// Calls `copied` for runs of copied pages in `range`; a page may come twice. *Async-signal-safe*, if `copied` is.
///
/// `armed` says whether the range is under userfaultfd: untouched pages then hold markers that look
/// swapped, and only an unprotected swap entry is a copy. In an armed range a copy that was swapped out
/// **and** armed again looks like a marker; who arms again keeps what was copied before.
///
/// # Errors
/// The errno of reading the page tables; ESRCH when the process is gone.
pub(crate) fn scan(pagemap: &Pagemap, range: Range, armed: bool, mut copied: impl FnMut(Range)) -> Result<(), Errno> {
    let queries = if armed { &COPIED_ARMED[..] } else { &COPIED[..] };
    for query in queries {
        match pagemap.scan(range, query, &mut copied) {
            Ok(()) => {}
            // Linux before 6.7 has no PAGEMAP_SCAN.
            Err(Errno::NOTTY) => return pagemap.read_copied(range, armed, copied),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Calls `mapped` for runs of pages in `range` that are there and the file's own: which this process maps and has not copied. *Async-signal-safe*, if
/// `mapped` is.
///
/// # Errors
/// Those of [`scan`].
#[cfg(feature = "pool")]
pub(crate) fn scan_mapped(pagemap: &Pagemap, range: Range, mut mapped: impl FnMut(Range)) -> Result<(), Errno> {
    match pagemap.scan(range, &MAPPED, &mut mapped) {
        Err(Errno::NOTTY) => pagemap.read(range, |address, entry| {
            if entry.contains(Entry::PRESENT | Entry::FILE) {
                mapped(Range { start: address, len: sys::page_size().bytes() });
            }
        }),
        scanned => scanned,
    }
}

/// The pages of a run, counted from the start of `range`. *Async-signal-safe.*
pub(crate) fn pages_of(range: Range, run: Range) -> impl Iterator<Item = PageIndex> {
    let page = sys::page_size();
    let first = page.index_of(run.start.saturating_sub(range.start)).0;
    (first..first + (run.len / page.bytes()) as u64).map(PageIndex)
}

/// Before anything is armed: notes the pages that are private copies already. They are
/// the parent's copies, not this process's; whether it copies one again cannot be told from its page tables. Only a child can have copies to pass on, because
/// where arenas are built they are read-only; and whoever froze a heap. *Async-signal-safe.*
///
/// # Errors
/// Those of [`scan`].
pub(in crate::watch) fn note_inherited(evidence: &Evidence) -> Result<(), Errno> {
    let is_to_be_read = |image: &Image| evidence.from_child || image.is_written_by_parents();
    if !evidence.images.iter().any(|image| is_to_be_read(image)) {
        return Ok(());
    }
    let pagemap = Pagemap::open_self()?;
    for (at, image) in evidence.images.iter().enumerate().filter(|(_, image)| is_to_be_read(image)) {
        scan(&pagemap, image.range(), false, |run| {
            for page in pages_of(image.range(), run) {
                evidence.mark(at, Bitmap::Inherited, page);
            }
        })?;
    }
    Ok(())
}
