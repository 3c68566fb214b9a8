//! The end of an interval that page faults were told of: the verdict over its pages.
//!
//! A fault is not a copy. Page tables decide, of each page that had a fault and of each that is new:
//!
//! | at the beginning | now | verdict |
//! |---|---|---|
//! | private | another frame | copied |
//! | private | the same frame, and nobody else has it | reused |
//! | private | the same frame, and others have it | not written: the fault came to nothing |
//! | private, frames not readable | nobody else has it | copied if the parent has it still and all faults are told, else open |
//! | private | gone | at most one copy more |
//! | none, or a file's | private | new, or a copy of the file's |
//!
//! Page tables do not tell a copy from a page that was given back (MADV_DONTNEED, munmap) and taken again at the same
//! address: both have another frame, and both took a fault. Nor do they tell a page that was moved (mremap) and then written from a
//! new one. Where the ring tells the frame that each fault found, these are told apart ([`super::touched`]). Where it does not, what
//! was taken again counts as copied or reused, and what was moved is one of "at most so many more".

use super::baseline::{self, Was, page_bytes};
use super::compare::{Compared, Donor, Originals};
use super::entries::Entries;
use super::faults_look::PageLook;
use super::faults_moved::found_before;
use super::faults_page::{
    came_later, class_of_new, class_of_zero, file_pages_that_left, is_of_file, is_of_file_writable_now,
    is_of_writable_file, is_zero, may_be_moved, may_have_come_back,
};
use super::maps::{self, BackedMapping};
use super::settle::{Close, runs};
use super::touched::{self, FaultedPages, Touched};
use super::watch::OpenInterval;
use crate::record::{Closed, End, Fault, WriteClass};
use cowbell::sys::Errno;
use cowbell::sys::map::Range;
use cowbell::sys::pagemap::{Categories, Entry};
use std::cell::LazyCell;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The evidence for a verdict.
pub struct FaultEvidence<'a> {
    /// The interval.
    pub watch: &'a OpenInterval,
    /// The pages of the process that had faults.
    pub touched: &'a FaultedPages,
    /// True if all faults were told: those that the kernel took for the process, too, and none was lost.
    pub complete: bool,
    /// True if some were lost, so that any page may have had one.
    pub lost: bool,
    /// `Some` if pages may have been written without a fault that was told, and how many at most by the process itself.
    pub untold: Option<u64>,
    /// True if pages may have gone to swap. One that comes back from there looks like one that was given back.
    pub swaps: LazyCell<bool>,
    /// The process forked and its pages were shared anew, maybe.
    pub shared_anew: bool,
    /// The parent, which may have the originals.
    pub donor: Option<&'a Donor<'a>>,
}

/// A verdict in the making.
#[derive(Default)]
pub struct SettledPages {
    pub(super) pages: BTreeMap<u64, WriteClass>,
    /// Pages that were written and are gone, as far as that is not known for certain.
    pub(super) gone: u64,
    /// Pages that were written, for certain, before they went.
    pub(super) went: BTreeMap<u64, WriteClass>,
    /// Pages that were in swap: they may have been read before they were written.
    swapped: HashSet<u64>,
    /// The addresses at which pages lay before they were moved.
    pub(super) moved: HashMap<u64, u64>,
    /// Pages without a fault that were written all the same, for certain.
    without_fault: u64,
    /// Those that may have been, and those that are not there any more.
    may_be_written: u64,
    vanished: u64,
}

/// Closes an interval: its end, and the faults by which its pages were written.
pub fn settle(evidence: &FaultEvidence<'_>, originals: &Originals, close: Close) -> (End, Vec<Fault>) {
    let Close { mut closed, is_there, now_ns } = close;
    let mut verdict = SettledPages::default();
    let read = if is_there {
        verdict.read(evidence)
    } else {
        verdict.count_as_gone(evidence);
        Ok(())
    };
    if read.is_err() {
        closed = Closed::Lost;
    }
    let mut compared = Compared::default();
    if is_there && read.is_ok() {
        compared = originals.compare(evidence.watch, &verdict.pages, evidence.donor);
    }
    let rows = verdict.rows(evidence.touched);
    let end = End {
        interval: evidence.watch.interval,
        time_ns: now_ns,
        closed,
        pages: runs(&verdict.pages),
        contents: compared.contents,
        gone: runs(&compared.gone),
        unmapped_uncounted: verdict.gone,
        kinds: None,
        collector_new: None,
    };
    (end, rows)
}

impl SettledPages {
    /// Without page tables only the faults are known: each of a page that was there was a write, one of a file's page may have
    /// been; and one that found a page where there had been none, or lies where a mapping came later, may be of one that was moved there.
    fn count_as_gone(&mut self, evidence: &FaultEvidence<'_>) {
        let watch = evidence.watch;
        let may_be_a_copy = |&(&page, touched): &(&u64, &Touched)| {
            let was_there = watch.base.at(page).is_some() || is_of_writable_file(watch, page);
            let may_be_moved = touched.found_first().is_some() && !is_of_file(watch, page);
            was_there || may_be_moved || came_later(watch, page)
        };
        self.gone = evidence.touched.iter().filter(may_be_a_copy).count() as u64 + evidence.untold.unwrap_or(0);
    }

    /// Pages that may have been copied by faults that were not told: those that look so, and of those that are gone as many as there were
    /// such faults.
    fn count_untold(&mut self, evidence: &FaultEvidence<'_>) {
        let Some(untold) = evidence.untold else { return };
        let elsewhere = untold.saturating_sub(self.without_fault + self.may_be_written);
        self.gone += self.may_be_written + elsewhere.min(self.vanished);
    }

    /// Pages where there had been none, that were written and given back again: those that were found where they had been moved to,
    /// and copies of a file's. Of the latter all that is known is that they took a fault, which may have been for reading, too.
    fn count_given_back(&mut self, evidence: &FaultEvidence<'_>, now: &[BackedMapping]) -> Result<(), Errno> {
        let watch = evidence.watch;
        let entries = Entries::new(&watch.pagemap);
        let all: BTreeMap<_, _> = evidence.touched.iter().map(|(&page, touched)| (page, touched)).collect();
        let new = all.iter().filter(|(page, _)| watch.base.at(**page).is_none() && !self.pages.contains_key(page));
        let (mut known, mut elsewhere) = (0, 0);
        for (&page, &touched) in new {
            let is_of_file = is_of_file_writable_now(watch, page, now);
            let is_from_elsewhere = came_later(watch, page);
            let was_there = touched.found_at_once().is_some() || touched.went;
            if !is_of_file && !is_from_elsewhere && !was_there {
                continue;
            }
            let is_there = entries.at(page)?.intersects(Entry::PRESENT | Entry::SWAPPED);
            let is_gone = !is_there || (is_of_file || is_from_elsewhere) && may_have_come_back(&all, page, touched);
            match is_of_file || was_there {
                true => known += u64::from(is_gone),
                false => elsewhere += u64::from(is_gone),
            }
        }
        // A file's mapping that came from elsewhere is known by its length only.
        self.gone += known + if elsewhere == 0 { 0 } else { elsewhere.min(file_pages_that_left(watch, now)) };
        Ok(())
    }

    fn read(&mut self, evidence: &FaultEvidence<'_>) -> Result<(), Errno> {
        let look = PageLook { evidence, theirs: evidence.donor.map(Donor::entries) };
        self.read_held(&look)?;
        let now = maps::read(evidence.watch.pid)?;
        self.read_new(&look, &now)?;
        self.count_those_that_went(evidence, &now);
        self.count_given_back(evidence, &now)?;
        self.count_untold(evidence);
        // The kernel wrote these before the child had its first instruction.
        for (&page, written) in evidence.watch.written.iter().filter(|(_, written)| written.class == WriteClass::Copy) {
            self.pages.insert(page, written.class);
        }
        Ok(())
    }

    /// The pages that the process had at the beginning.
    fn read_held(&mut self, look: &PageLook<'_>) -> Result<(), Errno> {
        let evidence = look.evidence;
        let watch = evidence.watch;
        if evidence.complete && evidence.untold.is_none() {
            // In order of address: neighbours are read together.
            let touched: BTreeMap<_, _> = evidence.touched.iter().collect();
            let entries = Entries::new(&watch.pagemap);
            for (&page, touched) in touched {
                if let Some(was) = watch.base.at(page) {
                    self.held(look, page, was, entries.at(page)?, Some(touched));
                }
            }
            return Ok(());
        }
        // Writes are to be found that no fault tells of.
        watch.base.now(&watch.pagemap, |page, was, entry| {
            self.held(look, page, was, entry, evidence.touched.get(&page));
        })
    }

    fn held(&mut self, look: &PageLook<'_>, page: u64, was: Was, entry: Entry, touched: Option<&Touched>) {
        let is_private = entry.contains(Entry::PRESENT) && !entry.contains(Entry::FILE);
        let class = match was {
            // Given back, and read since.
            Was::Private if is_private && look.may_be_zero(page, entry) && is_zero(look.evidence.watch, page) => {
                self.given_back(look, page, touched)
            }
            Was::Private if is_private => look.class_of_held(page, entry, touched),
            Was::Private if touched.is_some() && entry.contains(Entry::SWAPPED) => Some(WriteClass::CopyOrReuse),
            Was::Swapped if is_private && entry.contains(Entry::EXCLUSIVE) && touched.is_some() => {
                self.swapped.insert(page);
                Some(if look.parent_has(page) { WriteClass::Copy } else { WriteClass::CopyOrReuse })
            }
            Was::Zero if is_private && !is_zero(look.evidence.watch, page) => Some(class_of_zero(touched)),
            Was::Private | Was::Swapped | Was::Zero => {
                let is_there = entry.intersects(Entry::PRESENT | Entry::SWAPPED) && !entry.contains(Entry::FILE);
                if is_there { None } else { self.given_back(look, page, touched) }
            }
        };
        if touched.is_none() && look.evidence.untold.is_some() {
            match class {
                Some(_) => self.without_fault += 1,
                None if look.may_be_written(page, entry) => self.may_be_written += 1,
                None => self.vanished += u64::from(!entry.intersects(Entry::PRESENT | Entry::SWAPPED)),
            }
        }
        self.pages.extend(class.map(|class| (page, class)));
    }

    /// A page that was there and was given back. A page that is there takes a fault for a write only: if the first one found it
    /// as it was at the beginning, it was written before it went. Else it may have been.
    fn given_back(&mut self, look: &PageLook<'_>, page: u64, touched: Option<&Touched>) -> Option<WriteClass> {
        match touched?.first.found {
            Some(found) if look.evidence.watch.base.frame(page) == Some(found) => {
                let is_copy = look.parent_has(page) || look.parent_keeps(page, found);
                self.went.insert(page, if is_copy { WriteClass::Copy } else { WriteClass::CopyOrReuse });
            }
            _ => self.gone += 1,
        }
        None
    }

    /// Pages that were written before they went are copies, unless they were moved to where they count now; or may have been, to where a
    /// new page is that nobody touched, or at which a fault found one.
    fn count_those_that_went(&mut self, evidence: &FaultEvidence<'_>, now: &[BackedMapping]) {
        let is_from_elsewhere = |page: &u64| match evidence.touched.get(page) {
            Some(touched) => !touched.found_none(),
            None => true,
        };
        let mut went = std::mem::take(&mut self.went);
        let moved: HashSet<&u64> = self.moved.values().collect();
        went.retain(|page, _| !moved.contains(page));
        let is_known = |page: &u64| evidence.watch.base.at(*page).is_some() || self.moved.contains_key(page);
        let may_come = |page: &u64| may_be_moved(evidence.watch, *page, now);
        if self.pages.keys().any(|page| !is_known(page) && is_from_elsewhere(page) && may_come(page)) {
            self.gone += went.len() as u64;
        } else {
            self.pages.extend(went);
        }
    }

    /// Private pages where there were none.
    fn read_new(&mut self, look: &PageLook<'_>, now: &[BackedMapping]) -> Result<(), Errno> {
        let evidence = look.evidence;
        let watch = evidence.watch;
        let mut found: Vec<(Range, Categories)> = Vec::new();
        let (apart, _) = watch.base.apart(baseline::user_space());
        watch.pagemap.runs_of(&apart, &baseline::PRIVATE, |range, categories| found.push((range, categories)))?;
        let mut unexplained = Vec::new();
        for (range, categories) in found {
            let present = categories.contains(Categories::PRESENT);
            for range in baseline::without_zeroes(&watch.pagemap, range, categories) {
                let (start, end) = (range.start as u64, range.end() as u64);
                for (start, end) in watch.base.holes(start, end) {
                    for page in (start..end).step_by(page_bytes() as usize) {
                        let backing = maps::find(now, page).map(|map| map.backing);
                        let Some(class) = class_of_new(backing, present) else { continue };
                        if present && !evidence.touched.contains_key(&page) {
                            unexplained.push(page);
                        }
                        self.pages.insert(page, class);
                    }
                }
            }
        }
        self.follow_written(evidence, &unexplained)?;
        let mut from = found_before(evidence, now);
        self.find_moved(evidence, &unexplained, &mut from)?;
        self.follow_moves(look, now, &from)?;
        self.gone += self.may_have_moved(evidence)?;
        Ok(())
    }

    /// The faults of a page, with those that it took before it was moved.
    pub(super) fn touched(&self, touched: &FaultedPages, page: u64) -> Option<Touched> {
        let before = self.moved.get(&page).and_then(|before| touched.get(before));
        match (before, touched.get(&page)) {
            (Some(before), Some(here)) => Some(before.followed_by(here)),
            (before, here) => before.or(here).copied(),
        }
    }

    /// Without frames, and where the kernel's faults are not told: a new page without a fault may have been moved, or written by
    /// the kernel. If that would be a copy, it is one of "at most".
    pub(super) fn may_be_untold(&mut self, evidence: &FaultEvidence<'_>, page: u64) -> bool {
        let is_copy = self.pages.get(&page) == Some(&WriteClass::PrivateFile);
        let came_later = evidence.watch.space.find(page).is_none();
        if is_copy || came_later {
            self.pages.remove(&page);
        }
        self.gone += u64::from(is_copy);
        is_copy || came_later
    }

    /// The fault by which each page was written.
    fn rows(&self, touched: &FaultedPages) -> Vec<Fault> {
        let row = |(&page, &class): (&u64, &WriteClass)| {
            let touched = self.touched(touched, page)?;
            let was_there = matches!(class, WriteClass::Copy | WriteClass::Reuse | WriteClass::CopyOrReuse);
            let fault = if was_there && !self.swapped.contains(&page) { touched.first } else { touched.last };
            let touched::PageFault { time_ns, tid, code, by_kernel, stack, address, .. } = fault;
            // A page that was moved since took its fault elsewhere, at the same place in it.
            let byte = Some((address % page_bytes()) as u32);
            Some(Fault { time_ns, page, tid, code, by_kernel, stack, byte })
        };
        self.pages.iter().filter_map(row).collect()
    }
}
