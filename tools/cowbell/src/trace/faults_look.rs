//! One page at the end of an interval, by its page-table entry, the faults that it took and what its parent has.

use super::baseline::Entries;
use super::faults_page::is_of_file;
use super::faults_settle::Evidence;
use super::touched::Touched;
use crate::record::Class;
use cowbell::sys::pagemap::Entry;

/// One look at many pages.
pub struct Look<'a> {
    pub evidence: &'a Evidence<'a>,
    pub theirs: Option<Entries<'a>>,
}

impl Look<'_> {
    /// Tells whether the parent has this page still, as both had it.
    pub fn parent_has(&self, page: u64) -> bool {
        let donor = self.evidence.donor.zip(self.theirs.as_ref());
        donor.is_some_and(|(donor, entries)| donor.still_has(self.evidence.watch, entries, page))
    }

    /// Tells whether the parent has this very frame there: then both had it when the child wrote, and the child was given another.
    pub fn parent_keeps(&self, page: u64, frame: u64) -> bool {
        self.theirs.as_ref().is_some_and(|entries| entries.at(page).is_ok_and(|entry| entry.frame() == frame))
    }

    /// Tells whether a page that was private, and is now, was given back and filled again before anything was written to it.
    pub fn is_new(&self, page: u64, entry: Entry, touched: Option<&Touched>) -> bool {
        let watch = self.evidence.watch;
        let held = watch.base.frame(page);
        // A file's page came to the place of its copy.
        let is_of_file = |found| is_of_file(watch, page) && held.is_some() && held != found;
        let is_filled = |touched: &Touched| match touched.last.found {
            Some(0) => touched.found_none() && held.is_none_or(|held| held != entry.frame()),
            _ => !touched.went && touched.first.found.is_some() && is_of_file(touched.first.found),
        };
        touched.is_some_and(is_filled) && !*self.evidence.swaps
    }

    /// The class of a page that was private and is now; `touched`: its faults.
    pub fn class_of_held(&self, page: u64, entry: Entry, touched: Option<&Touched>) -> Option<Class> {
        let &Evidence { watch, shared_anew, lost, .. } = self.evidence;
        let exclusive = entry.contains(Entry::EXCLUSIVE);
        let held = watch.base.frame(page);
        let is_another = touched.and_then(|touched| touched.is_another(held, entry.frame()));
        // Filled from swap, or by reading; or written, given back, and filled.
        let is_open = touched.is_some_and(|touched| touched.last.found.is_some()) && is_another.is_none();
        let parent_has = || self.parent_has(page);
        let touched = touched.is_some();
        let maybe = touched || lost && (exclusive || shared_anew);
        match (is_another, held, entry.frame()) {
            (Some(true), ..) => Some(Class::Copy),
            (Some(false), ..) => (exclusive || shared_anew).then_some(Class::Reuse),
            (None, Some(before), now) if now != 0 => match (before == now, touched) {
                (true, true) if exclusive || shared_anew => Some(Class::Reuse),
                (true, _) => None,
                (false, true) if is_open && !parent_has() => Some(Class::CopyOrReuse),
                (false, _) if maybe => Some(Class::Copy),
                // The kernel moves pages without a fault. Where somebody wrote who takes none, the parent has what was before.
                (false, _) => (exclusive && parent_has()).then_some(Class::Copy),
            },
            _ if !(exclusive || touched && shared_anew) => None,
            // Without a fault: those who shared it are gone, or the kernel wrote for one of them.
            _ if !maybe => None,
            // Its own fault, if it had one, would have been told.
            _ if self.evidence.complete && parent_has() => Some(Class::Copy),
            _ => Some(Class::CopyOrReuse),
        }
    }
}
