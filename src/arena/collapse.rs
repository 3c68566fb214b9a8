//! Huge pages behind an arena that grows, and behind one that is being frozen.

use super::options::HugePages;
use crate::error::{Error, Result};
use crate::sys::map::{self, Harmless, Range};
use crate::sys::{self, Errno, probe};

/// The number of times that `MADV_COLLAPSE` is asked when somebody holds pages just then.
const COLLAPSE_TRIES: usize = 4;

/// The bytes of an arena that stay in ordinary pages under [`HugePages::Auto`]: a child maps them by 256 faults at most, and most arenas are smaller.
const SMALL: usize = 16 << 20;

/// The huge pages that an arena grows in.
pub(super) struct HugeGrowth {
    /// Their size; `None` where they are not wanted, or were refused.
    size: Option<usize>,
    /// The first byte that is to lie in one.
    from: usize,
}

impl HugeGrowth {
    pub(super) fn by(policy: HugePages) -> Self {
        match policy {
            HugePages::Auto => Self { size: map::huge_page_size(), from: SMALL },
            HugePages::Collapse => Self { size: map::huge_page_size(), from: 0 },
            HugePages::Never | HugePages::Advise => Self { size: None, from: 0 },
        }
    }

    /// Puts huge pages behind a range of an arena of which nothing is there yet, as far as there are any. The arena is mapped, as shared memory, from `arena` on.
    pub(super) fn grow(&mut self, arena: usize, range: Range) {
        let Some(size) = self.size else { return };
        let start = range.start.max(arena + self.from).next_multiple_of(size);
        let end = range.end() / size * size;
        if start >= end {
            return;
        }
        if refuses(size, Range { start, len: end - start }) {
            // A kernel without huge pages does not get any, and one that has none just now would look for them each time.
            self.size = None;
        }
    }
}

fn refuses(size: usize, range: Range) -> bool {
    let is_final = |refused: Errno| !matches!(refused, Errno::INTR | Errno::AGAIN);
    let page = sys::page_size().bytes();
    for start in (range.start..range.end()).step_by(size) {
        // Where nothing is there the kernel has nothing to collapse; one page is enough, and the others begin as zeroes.
        if map::advise(Range { start, len: page }, Harmless::PopulateRead).is_err_and(is_final) {
            return true;
        }
    }
    map::advise(range, Harmless::Collapse).is_err_and(is_final)
}

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
