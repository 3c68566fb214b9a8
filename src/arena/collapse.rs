//! Huge pages behind an arena that is being frozen.

use crate::error::{Error, Result};
use crate::sys::map::{self, Harmless, Range};
use crate::sys::{self, Errno, probe};

/// The number of times that `MADV_COLLAPSE` is asked when somebody holds pages just then.
const COLLAPSE_TRIES: usize = 4;

/// Were huge pages put behind the arena when it was frozen?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Collapsed {
    /// Nobody asked.
    NotAsked,
    /// All of it.
    Whole,
    /// Some of it stayed in ordinary pages, for this reason.
    Partly(String),
}

/// Puts huge pages behind a mapped range of shared memory.
pub(super) fn collapse(range: Range) -> Result<Collapsed> {
    // Linux 6.1 refuses a mapping that has no page table yet; one page is enough.
    let first = Range { start: range.start, len: sys::page_size().bytes() };
    match map::advise(first, Harmless::PopulateRead) {
        // Before 5.14 there is no such advice, and none to collapse either, which is what shall be said.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(e) => return Err(Error::os("madvise(MADV_POPULATE_READ)", e)),
    }
    let mut collapsed = map::advise(range, Harmless::Collapse);
    for _ in 1..COLLAPSE_TRIES {
        if collapsed != Err(Errno::AGAIN) {
            break;
        }
        // A page that is huge by now stays huge, and counts.
        collapsed = map::advise(range, Harmless::Collapse);
    }
    match collapsed {
        Ok(()) => Ok(Collapsed::Whole),
        Err(Errno::INVAL) if !collapses_elsewhere() => Err(Error::unsupported(
            "MADV_COLLAPSE",
            "6.1",
            "the kernel refused it for shared memory (no transparent huge pages, or too old)",
        )
        .with_hint("freeze with HugePages::Never")),
        Err(e) => Ok(Collapsed::Partly(Error::os("madvise(MADV_COLLAPSE)", e).to_string())),
    }
}

/// Does the kernel collapse other shared memory? EINVAL alone does not tell: it also stands for a race that was lost
/// (with a fault, with another collapse), and for a range that was kept from huge pages.
fn collapses_elsewhere() -> bool {
    let Some(size) = map::huge_page_size() else { return false };
    // Out of memory, or busy, is the answer of a kernel that would.
    probe::collapse(size).map_or_else(|e| e.errno() != Some(Errno::INVAL.raw_os_error()), |()| true)
}
