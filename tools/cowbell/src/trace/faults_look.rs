//! One page at the end of an interval, by its page-table entry, the faults that it took and what its parent has.

use super::entries::Entries;
use super::faults_page::{backing_at, class_of_new, is_of_file};
use super::faults_settle::FaultEvidence;
use super::touched::{Fate, Touched};
use crate::record::WriteClass;
use cowbell::sys::pagemap::Entry;

/// One look at many pages.
pub struct PageLook<'a> {
    pub evidence: &'a FaultEvidence<'a>,
    pub theirs: Option<Entries<'a>>,
}

impl PageLook<'_> {
    /// Tells whether the parent has this page still, as both had it.
    pub fn parent_has(&self, page: u64) -> bool {
        let donor = self.evidence.donor.zip(self.theirs.as_ref());
        donor.is_some_and(|(donor, entries)| donor.still_has(self.evidence.watch, entries, page))
    }

    /// Tells whether the parent has this very frame there: then both had it when the child wrote, and the child was given another.
    pub fn parent_keeps(&self, page: u64, frame: u64) -> bool {
        self.theirs.as_ref().is_some_and(|entries| entries.at(page).is_ok_and(|entry| entry.frame() == frame))
    }

    /// Tells whether a page that was private may be the page of zeroes by now, which is nobody's own and another than it was.
    pub fn may_be_zero(&self, page: u64, entry: Entry) -> bool {
        let is_the_same = entry.frame() != 0 && self.evidence.watch.base.frame(page) == Some(entry.frame());
        !entry.contains(Entry::EXCLUSIVE) && !is_the_same
    }

    /// Tells whether a page that nobody is known to have written may have been: it is another one than it was, as far as is known, and
    /// nobody else has it. The kernel moves pages, too.
    pub fn may_be_written(&self, page: u64, entry: Entry) -> bool {
        let is_other = self.evidence.watch.base.frame(page).is_none_or(|before| before != entry.frame());
        entry.contains(Entry::PRESENT | Entry::EXCLUSIVE) && !entry.contains(Entry::FILE) && is_other
    }

    /// The class of a page that was private and is now; `touched`: its faults.
    pub fn class_of_held(&self, page: u64, entry: Entry, touched: Option<&Touched>) -> Option<WriteClass> {
        let &FaultEvidence { watch, shared_anew, .. } = self.evidence;
        let is_own = entry.contains(Entry::EXCLUSIVE) || shared_anew;
        let fate = |touched: &Touched| touched.fate(watch.base.frame(page), entry.frame(), is_of_file(watch, page));
        match (touched.map_or(Fate::Unknown, fate), touched) {
            (Fate::Copied, _) => Some(WriteClass::Copy),
            (Fate::Reused, _) => is_own.then_some(WriteClass::Reuse),
            (Fate::New, _) if !*self.evidence.swaps => class_of_new(backing_at(watch, page), true),
            (Fate::New | Fate::Open, Some(touched)) => self.class_of_open(page, entry, touched),
            _ => self.class_by_entries(page, entry, touched.is_some()),
        }
    }

    /// The class of a page that the frames do not tell: one that was given back at some time, and that was a copy if it had been written
    /// before, while the parent had it too.
    fn class_of_open(&self, page: u64, entry: Entry, touched: &Touched) -> Option<WriteClass> {
        let now = entry.frame();
        let held = self.evidence.watch.base.frame(page);
        let is_shared = !entry.contains(Entry::EXCLUSIVE);
        if is_shared && held == Some(now) && (!self.evidence.shared_anew || self.parent_keeps(page, now)) {
            return None;
        }
        let written = held.filter(|_| touched.first.found == held);
        let is_copy = written.is_some_and(|held| self.parent_has(page) || self.parent_keeps(page, held));
        Some(if is_copy { WriteClass::Copy } else { WriteClass::CopyOrReuse })
    }

    /// The same, where faults do not tell what they found.
    fn class_by_entries(&self, page: u64, entry: Entry, touched: bool) -> Option<WriteClass> {
        let &FaultEvidence { watch, shared_anew, lost, .. } = self.evidence;
        let exclusive = entry.contains(Entry::EXCLUSIVE);
        let parent_has = || self.parent_has(page);
        let maybe = touched || lost && (exclusive || shared_anew);
        match (watch.base.frame(page), entry.frame()) {
            (Some(before), now) if now != 0 => match (before == now, touched) {
                (true, true) if exclusive || shared_anew => Some(WriteClass::Reuse),
                (true, _) => None,
                (false, _) if maybe => Some(WriteClass::Copy),
                // The kernel moves pages without a fault. Where somebody wrote who takes none, the parent has what was before.
                (false, _) => (exclusive && parent_has()).then_some(WriteClass::Copy),
            },
            _ if !(exclusive || touched && shared_anew) => None,
            // Without a fault: those who shared it are gone, or the kernel wrote for one of them.
            _ if !maybe => None,
            // A fault of this process, if there had been one, would have been told.
            _ if self.evidence.complete && parent_has() => Some(WriteClass::Copy),
            _ => Some(WriteClass::CopyOrReuse),
        }
    }
}
