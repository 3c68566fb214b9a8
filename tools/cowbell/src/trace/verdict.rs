//! The verdict on a page: what a write to it did. The one place that decides, whoever asks and when; pure.
//!
//! ```text
//!  a page event    ──> before the write: the entry that it will find ──┐
//!  asynchronous bits ─> after the write: the frames then and now ──────┼──> class, or: it was not written after all
//!  the last look   ──> what was thought of it, and how it stands now ──┘
//! ```

use super::baseline::Was;
use super::maps::Backing;
use crate::record::WriteClass;
use cowbell::sys::pagemap::Entry;

/// A page of an interval.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// The private page that was there when the interval opened; `None`: there was none, or it is known to be gone.
    pub was: Option<Was>,
    /// The memory behind its mapping, where that is known.
    pub backing: Option<Backing>,
    /// True if it lies where pages may have been given back meanwhile.
    pub dropped: bool,
}

/// The moment at which a write is seen, with what is seen of it.
#[derive(Clone, Copy, Debug)]
pub enum Sight {
    /// The write waits, and will find this entry. `part_of_huge`: the page may be mapped as a part of a huge page of which
    /// others map another part: then it is copied though nobody else maps it.
    Before { entry: Entry, part_of_huge: bool },
    /// The write is done. The frames before it and now; 0 where they are not known.
    After { before: u64, now: u64 },
    /// An earlier verdict is looked at again when the interval closes. `before`: the page's frame when the write was
    /// seen; `entry`: the page now; `forked`: the process has just forked.
    Closing { thought: WriteClass, before: u64, entry: Entry, forked: bool },
}

/// The effect of a write; `None` if there was none after all.
pub fn verdict(page: Page, sight: Sight) -> Option<WriteClass> {
    let of_new = match page.backing {
        Some(Backing::Memory | Backing::File) => WriteClass::PrivateFile,
        _ => WriteClass::FirstTouch,
    };
    match sight {
        Sight::Closing { thought, before, entry, forked } => closing(page, thought, before, entry, forked),
        Sight::Before { entry, part_of_huge } => {
            // MADV_FREE leaves a page that others share: it is present still, and no file's.
            let survives = entry.contains(Entry::PRESENT) && !entry.contains(Entry::FILE);
            Some(match page.was.filter(|_| survives || !page.dropped) {
                Some(Was::Private | Was::Swapped) if !entry.contains(Entry::EXCLUSIVE) => WriteClass::Copy,
                Some(Was::Private | Was::Swapped) if part_of_huge => WriteClass::CopyOrReuse,
                Some(Was::Private | Was::Swapped) => WriteClass::Reuse,
                Some(Was::Zero) => WriteClass::ZeroPage,
                None => of_new,
            })
        }
        Sight::After { before, now } => Some(match page.was {
            Some(Was::Private) if before != 0 && before == now => WriteClass::Reuse,
            Some(Was::Private) if before != 0 && now != 0 && !page.dropped => WriteClass::Copy,
            Some(Was::Private | Was::Swapped) => WriteClass::CopyOrReuse,
            Some(Was::Zero) => WriteClass::ZeroPage,
            None => of_new,
        }),
    }
}

/// A thread that was killed while it waited for a page never wrote it; and between the event and the write others can
/// have given the page up.
fn closing(page: Page, thought: WriteClass, before: u64, entry: Entry, forked: bool) -> Option<WriteClass> {
    let is_told = matches!(thought, WriteClass::Copy | WriteClass::Reuse) && before != 0;
    let is_there = entry.contains(Entry::PRESENT) && !entry.contains(Entry::FILE);
    if !is_told || !is_there || page.was.is_none() || page.dropped {
        return Some(thought);
    }
    match (entry.frame() == before, entry.contains(Entry::EXCLUSIVE)) {
        (false, _) => Some(WriteClass::Copy),
        (true, true) => Some(WriteClass::Reuse),
        // The new child has it too.
        (true, false) if forked && thought == WriteClass::Reuse => Some(WriteClass::Reuse),
        (true, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THERE: Entry = Entry::PRESENT;
    const ALONE: Entry = Entry::PRESENT.union(Entry::EXCLUSIVE);

    fn page(was: Option<Was>) -> Page {
        Page { was, backing: Some(Backing::Anonymous), dropped: false }
    }

    fn framed(entry: Entry, frame: u64) -> Entry {
        entry | Entry::from_bits_retain(frame)
    }

    #[test]
    fn before_a_write_the_entry_decides() {
        let of = |was, entry| verdict(page(was), Sight::Before { entry, part_of_huge: false });
        assert_eq!(of(Some(Was::Private), THERE), Some(WriteClass::Copy));
        assert_eq!(of(Some(Was::Private), ALONE), Some(WriteClass::Reuse));
        assert_eq!(of(Some(Was::Swapped), Entry::SWAPPED), Some(WriteClass::Copy));
        assert_eq!(of(Some(Was::Zero), THERE), Some(WriteClass::ZeroPage));
        assert_eq!(of(None, Entry::empty()), Some(WriteClass::FirstTouch));
        let file = Page { backing: Some(Backing::File), ..page(None) };
        assert_eq!(verdict(file, Sight::Before { entry: THERE, part_of_huge: false }), Some(WriteClass::PrivateFile));
        let huge = Sight::Before { entry: ALONE, part_of_huge: true };
        assert_eq!(verdict(page(Some(Was::Private)), huge), Some(WriteClass::CopyOrReuse));
    }

    #[test]
    fn what_was_given_back_is_new_unless_it_is_there() {
        let dropped = Page { dropped: true, ..page(Some(Was::Private)) };
        let before = |entry| verdict(dropped, Sight::Before { entry, part_of_huge: false });
        assert_eq!(before(Entry::empty()), Some(WriteClass::FirstTouch));
        assert_eq!(before(THERE), Some(WriteClass::Copy), "MADV_FREE leaves what others share");
        assert_eq!(verdict(dropped, Sight::After { before: 7, now: 8 }), Some(WriteClass::CopyOrReuse));
        assert_eq!(verdict(dropped, Sight::After { before: 7, now: 7 }), Some(WriteClass::Reuse));
    }

    #[test]
    fn after_a_write_the_frames_decide_where_they_are_known() {
        let of = |was, before, now| verdict(page(was), Sight::After { before, now });
        assert_eq!(of(Some(Was::Private), 7, 7), Some(WriteClass::Reuse));
        assert_eq!(of(Some(Was::Private), 7, 8), Some(WriteClass::Copy));
        for (before, now) in [(0, 0), (7, 0), (0, 7)] {
            assert_eq!(of(Some(Was::Private), before, now), Some(WriteClass::CopyOrReuse), "{before} {now}");
        }
        assert_eq!(of(Some(Was::Swapped), 7, 8), Some(WriteClass::CopyOrReuse));
        assert_eq!(of(Some(Was::Zero), 0, 8), Some(WriteClass::ZeroPage));
        assert_eq!(of(None, 0, 8), Some(WriteClass::FirstTouch));
    }

    #[test]
    fn at_the_close_a_write_that_never_happened_is_taken_back() {
        let of = |thought, before, entry, forked| {
            verdict(page(Some(Was::Private)), Sight::Closing { thought, before, entry, forked })
        };
        assert_eq!(of(WriteClass::Copy, 7, framed(THERE, 7), false), None, "it is shared as it was");
        assert_eq!(
            of(WriteClass::Copy, 7, framed(ALONE, 7), false),
            Some(WriteClass::Reuse),
            "the others had gone by then"
        );
        assert_eq!(of(WriteClass::Reuse, 7, framed(ALONE, 8), false), Some(WriteClass::Copy));
        assert_eq!(
            of(WriteClass::Reuse, 7, framed(THERE, 7), true),
            Some(WriteClass::Reuse),
            "the new child has it too"
        );
        assert_eq!(of(WriteClass::Copy, 7, framed(THERE, 7), true), None);
        // Without frames, or where the page is gone, the earlier verdict stands.
        assert_eq!(of(WriteClass::Copy, 0, framed(THERE, 7), false), Some(WriteClass::Copy));
        assert_eq!(of(WriteClass::Copy, 7, Entry::empty(), false), Some(WriteClass::Copy));
        assert_eq!(of(WriteClass::CopyOrReuse, 7, framed(THERE, 7), false), Some(WriteClass::CopyOrReuse));
    }
}
