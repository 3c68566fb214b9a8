//! Census: which pages of a frozen arena a process has copied, from its page tables.
//!
//! A page of the arena's private mapping is a copy when there is a page and it is not the file's:
//! that is all there is to it, and it equals `Anonymous:` (plus `Swap:`) of the mapping in smaps.

use crate::sys::map::Range;
use crate::sys::pagemap::{COPIED, COPIED_ARMED, Entry, Pagemap};
use crate::sys::{self, Errno};

/// Calls `copied` for runs of copied pages in `range`; a page may come twice. *Raw*, if `copied` is.
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
            Err(Errno::NOTTY) => return read(pagemap, range, armed, copied),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The same, from one word a page. *Raw*, if `copied` is.
///
/// # Errors
/// As [`scan`].
pub(crate) fn read(pagemap: &Pagemap, range: Range, armed: bool, mut copied: impl FnMut(Range)) -> Result<(), Errno> {
    let page = sys::page_size().bytes();
    pagemap.read(range, |address, entry| {
        let swapped = entry.contains(Entry::SWAPPED) && !(armed && entry.contains(Entry::UFFD_WP));
        if (entry.contains(Entry::PRESENT) || swapped) && !entry.contains(Entry::FILE) {
            copied(Range { start: address, len: page });
        }
    })
}
