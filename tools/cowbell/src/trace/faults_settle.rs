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

use super::baseline::{self, Entries, Was, page_bytes};
use super::compare::{Compared, Donor, Originals};
use super::faults_look::Look;
use super::faults_page::{backing_at, class_of_new, is_of_writable_file, is_zero, may_be_moved};
use super::maps::{self, Map};
use super::settle::{Close, runs};
use super::touched::{self, Pages, Touched};
use super::watch::Watch;
use crate::record::{Class, Closed, End, Fault};
use cowbell::sys::Errno;
use cowbell::sys::map::Range;
use cowbell::sys::pagemap::{Categories, Entry};
use std::cell::LazyCell;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The evidence for a verdict.
pub struct Evidence<'a> {
    /// The interval.
    pub watch: &'a Watch,
    /// Its pages that had faults.
    pub touched: &'a Pages,
    /// True if all faults were told: those that the kernel took for the process, too, and none was lost.
    pub complete: bool,
    /// True if some were lost, so that any page may have had one.
    pub lost: bool,
    /// True if pages may have gone to swap. One that comes back from there looks like one that was given back.
    pub swaps: LazyCell<bool>,
    /// The process forked and its pages were shared anew, maybe.
    pub shared_anew: bool,
    /// The parent, which may have the originals.
    pub donor: Option<&'a Donor<'a>>,
}

/// A verdict in the making.
#[derive(Default)]
struct Verdict {
    pages: BTreeMap<u64, Class>,
    /// Pages that were written and are gone, as far as that is not known for certain.
    gone: u64,
    /// Pages that were written, for certain, before they went.
    went: BTreeMap<u64, Class>,
    /// Pages that were in swap: they may have been read before they were written.
    swapped: HashSet<u64>,
    /// The addresses at which pages lay before they were moved.
    moved: HashMap<u64, u64>,
}

/// Closes an interval: its end, and the faults by which its pages were written.
pub fn settle(evidence: &Evidence<'_>, originals: &Originals, close: Close) -> (End, Vec<Fault>) {
    let Close { mut closed, is_there, now_ns } = close;
    let mut verdict = Verdict::default();
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
    };
    (end, rows)
}

impl Verdict {
    /// Without page tables only the faults are known: each of a page that was there was a write, one of a file's page may have
    /// been; and one in a mapping that came later may have been moved there.
    fn count_as_gone(&mut self, evidence: &Evidence<'_>) {
        let watch = evidence.watch;
        let may_be_a_copy = |page: u64| {
            watch.base.at(page).is_some() || is_of_writable_file(watch, page) || watch.space.find(page).is_none()
        };
        self.gone = evidence.touched.keys().filter(|&&page| may_be_a_copy(page)).count() as u64;
    }

    /// Pages where there had been none, that were written and given back again: those that were found where they had been moved to,
    /// and copies of a file's. Of the latter all that is known is that they took a fault, which may have been for reading, too.
    fn count_given_back(&mut self, evidence: &Evidence<'_>) -> Result<(), Errno> {
        let watch = evidence.watch;
        let entries = Entries::new(&watch.pagemap);
        let touched: BTreeMap<_, _> = evidence.touched.iter().collect();
        for (&page, touched) in touched {
            if watch.base.at(page).is_some() || self.pages.contains_key(&page) {
                continue;
            }
            let is_of_file = is_of_writable_file(watch, page);
            if !is_of_file && touched.found_at_once().is_none() && !touched.went {
                continue;
            }
            let is_there = entries.at(page)?.intersects(Entry::PRESENT | Entry::SWAPPED);
            // One that was only read took one fault.
            self.gone += u64::from(!is_there || is_of_file && touched.first.time_ns != touched.last.time_ns);
        }
        Ok(())
    }

    fn read(&mut self, evidence: &Evidence<'_>) -> Result<(), Errno> {
        self.read_held(evidence)?;
        self.read_new(evidence)?;
        self.count_those_that_went(evidence);
        self.count_given_back(evidence)?;
        // The kernel wrote these before the child had its first instruction.
        for (&page, written) in evidence.watch.written.iter().filter(|(_, written)| written.class == Class::Copy) {
            self.pages.insert(page, written.class);
        }
        Ok(())
    }

    /// The pages that the process had at the beginning.
    fn read_held(&mut self, evidence: &Evidence<'_>) -> Result<(), Errno> {
        let watch = evidence.watch;
        let look = Look { evidence, theirs: evidence.donor.map(Donor::entries) };
        if evidence.complete {
            // In order of address: neighbours are read together.
            let touched: BTreeMap<_, _> = evidence.touched.iter().collect();
            let entries = Entries::new(&watch.pagemap);
            for (&page, touched) in touched {
                if let Some(was) = watch.base.at(page) {
                    self.held(&look, page, was, entries.at(page)?, Some(touched));
                }
            }
            return Ok(());
        }
        // Writes are to be found that no fault tells of.
        let held: Vec<Range> = watch.base.ranges(0, u64::MAX).collect();
        for range in held {
            let mut entries = Vec::new();
            watch.pagemap.read(range, |_, entry| entries.push(entry))?;
            let pages = (range.start as u64..).step_by(page_bytes() as usize);
            for (page, entry) in pages.zip(entries) {
                let Some(was) = watch.base.at(page) else { continue };
                self.held(&look, page, was, entry, evidence.touched.get(&page));
            }
        }
        Ok(())
    }

    fn held(&mut self, look: &Look<'_>, page: u64, was: Was, entry: Entry, touched: Option<&Touched>) {
        let is_private = entry.contains(Entry::PRESENT) && !entry.contains(Entry::FILE);
        let class = match was {
            // Given back, and read since.
            Was::Private if is_private && !entry.contains(Entry::EXCLUSIVE) && is_zero(look.evidence.watch, page) => {
                self.given_back(look, page, touched)
            }
            Was::Private if is_private && look.is_new(page, entry, touched) => {
                class_of_new(backing_at(look.evidence.watch, page), true)
            }
            Was::Private if is_private => look.class_of_held(page, entry, touched),
            Was::Private if touched.is_some() && entry.contains(Entry::SWAPPED) => Some(Class::CopyOrReuse),
            Was::Swapped if is_private && entry.contains(Entry::EXCLUSIVE) && touched.is_some() => {
                self.swapped.insert(page);
                Some(if look.parent_has(page) { Class::Copy } else { Class::CopyOrReuse })
            }
            Was::Zero if is_private && !is_zero(look.evidence.watch, page) => Some(Class::ZeroPage),
            Was::Private | Was::Swapped | Was::Zero => {
                let is_there = entry.intersects(Entry::PRESENT | Entry::SWAPPED) && !entry.contains(Entry::FILE);
                if is_there { None } else { self.given_back(look, page, touched) }
            }
        };
        self.pages.extend(class.map(|class| (page, class)));
    }

    /// A page that was there and was given back. A page that is there takes a fault for a write only: if the first one found it
    /// as it was at the beginning, it was written before it went. Else it may have been.
    fn given_back(&mut self, look: &Look<'_>, page: u64, touched: Option<&Touched>) -> Option<Class> {
        match touched?.first.found {
            Some(found) if look.evidence.watch.base.frame(page) == Some(found) => {
                let is_copy = look.parent_has(page) || look.parent_keeps(page, found);
                self.went.insert(page, if is_copy { Class::Copy } else { Class::CopyOrReuse });
            }
            _ => self.gone += 1,
        }
        None
    }

    /// Pages that were written before they went are copies, unless they may have been moved to where a new page is that nobody
    /// touched, or at which a fault found one: then they count there.
    fn count_those_that_went(&mut self, evidence: &Evidence<'_>) {
        let is_from_elsewhere = |page: &u64| match evidence.touched.get(page) {
            Some(touched) => !touched.found_none(),
            None => true,
        };
        let went = std::mem::take(&mut self.went);
        if self.pages.keys().any(|page| evidence.watch.base.at(*page).is_none() && is_from_elsewhere(page)) {
            self.gone += went.len() as u64;
        } else {
            self.pages.extend(went);
        }
    }

    /// Private pages where there were none.
    fn read_new(&mut self, evidence: &Evidence<'_>) -> Result<(), Errno> {
        let watch = evidence.watch;
        let now = maps::read(watch.pid)?;
        let mut found: Vec<(Range, Categories)> = Vec::new();
        for range in watch.base.apart(baseline::user_space()).0 {
            let add = |range, categories| found.push((range, categories));
            watch.pagemap.scan_categories(range, &baseline::PRIVATE, add)?;
        }
        let (mut unexplained, mut found_there) = (Vec::new(), Vec::new());
        for (range, categories) in found {
            let present = categories.contains(Categories::PRESENT);
            for range in baseline::without_zeroes(&watch.pagemap, range, categories) {
                let (start, end) = (range.start as u64, range.end() as u64);
                for (start, end) in watch.base.holes(start, end) {
                    for page in (start..end).step_by(page_bytes() as usize) {
                        let map = maps::find(&now, page);
                        let backing = map.map(|map| map.backing);
                        let Some(class) = class_of_new(backing, present) else { continue };
                        match evidence.touched.get(&page) {
                            None if present => unexplained.push(page),
                            Some(touched) if present => {
                                let found = touched.found_at_once().map(|found| (page, found, touched));
                                found_there.extend(found.filter(|_| may_be_moved(watch, page, map)));
                            }
                            _ => {}
                        }
                        self.pages.insert(page, class);
                    }
                }
            }
        }
        self.find_moved(evidence, &found_there)?;
        self.follow_moves(evidence, &now, &unexplained)?;
        self.gone += self.may_have_moved(evidence)?;
        Ok(())
    }

    /// A page that a fault found where there had been nothing was moved there, if its frame is one that the process held.
    fn find_moved(&mut self, evidence: &Evidence<'_>, found: &[(u64, u64, &Touched)]) -> Result<(), Errno> {
        if found.is_empty() {
            return Ok(());
        }
        let watch = evidence.watch;
        let (frames, entries) = (watch.base.frames(), Entries::new(&watch.pagemap));
        for &(page, frame, touched) in found {
            // One that was written where it lay before had another frame by then, or may have.
            let before = frames.get(&frame).filter(|before| !evidence.touched.contains_key(before));
            let Some(&before) = before else { continue };
            let class = match touched.is_another(Some(frame), entries.at(page)?.frame()) {
                Some(true) => Class::Copy,
                Some(false) => Class::Reuse,
                None => Class::CopyOrReuse,
            };
            self.pages.insert(page, class);
            self.moved.insert(page, before);
        }
        Ok(())
    }

    /// New pages that nobody touched were moved there (mremap), or the kernel put them there unasked (huge pages,
    /// MAP_POPULATE). What was moved has the frame that it had before, or is shared still; its frame leads to the place where the
    /// whole mapping was.
    fn follow_moves(&mut self, evidence: &Evidence<'_>, now: &[Map], unexplained: &[u64]) -> Result<(), Errno> {
        let (base, entries) = (&evidence.watch.base, Entries::new(&evidence.watch.pagemap));
        let mut frames = None;
        let mut shifts: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for &page in unexplained {
            let entry = entries.at(page)?;
            if entry.frame() == 0 && !evidence.complete && self.may_be_untold(evidence, page) {
                continue;
            }
            let before = match entry.frame() {
                0 if entry.contains(Entry::EXCLUSIVE) || evidence.shared_anew => continue,
                0 => None,
                // The frame of a page that was copied may have come back as another's.
                frame => match frames.get_or_insert_with(|| base.frames()).get(&frame) {
                    Some(&before) if !evidence.touched.contains_key(&before) => Some(before),
                    _ => continue,
                },
            };
            self.pages.remove(&page);
            if let Some((before, map)) = before.zip(maps::find(now, page)) {
                shifts.insert(map.mapping.start, (map.mapping.end, page.wrapping_sub(before)));
            }
        }
        for (start, (end, shift)) in shifts {
            let new: Vec<u64> = self.pages.range(start..end).map(|(&page, _)| page).collect();
            for page in new {
                let before = page.wrapping_sub(shift);
                let same =
                    base.frame(before).is_some_and(|frame| entries.at(page).is_ok_and(|now| now.frame() == frame));
                let is_filled = evidence.touched.get(&page).is_some_and(Touched::found_none) && !*evidence.swaps;
                let class = match base.at(before) {
                    // The page was given back before it was moved, or after.
                    Some(Was::Private) if is_filled => continue,
                    Some(Was::Private) if same => Class::Reuse,
                    Some(Was::Private | Was::Swapped) => Class::Copy,
                    Some(Was::Zero) => Class::ZeroPage,
                    None => continue,
                };
                self.moved.insert(page, before);
                self.pages.insert(page, class);
            }
        }
        Ok(())
    }

    /// Without frames, and where the kernel's faults are not told: a new page without a fault may have been moved, or written by
    /// the kernel. If that would be a copy, it is one of "at most".
    fn may_be_untold(&mut self, evidence: &Evidence<'_>, page: u64) -> bool {
        let is_copy = self.pages.get(&page) == Some(&Class::PrivateFile);
        let came_later = evidence.watch.space.find(page).is_none();
        if is_copy || came_later {
            self.pages.remove(&page);
        }
        self.gone += u64::from(is_copy);
        is_copy || came_later
    }

    /// A page that was there and is no more, untouched, may have been moved and then written, to where new pages are.
    fn may_have_moved(&self, evidence: &Evidence<'_>) -> Result<u64, Errno> {
        let is_new = |(page, class): (&u64, &Class)| {
            let may_be = |touched: &Touched| !touched.found_none();
            matches!(class, Class::FirstTouch | Class::PrivateFile) && evidence.touched.get(page).is_some_and(may_be)
        };
        let new = self.pages.iter().filter(|&page| is_new(page)).count() as u64;
        if new == 0 {
            return Ok(0);
        }
        let mut private: Vec<(u64, u64)> = Vec::new();
        let add = |run: Range| private.push((run.start as u64, run.end() as u64));
        evidence.watch.pagemap.scan(baseline::user_space(), &baseline::PRIVATE, add)?;
        let from: HashSet<u64> = self.moved.values().copied().collect();
        let base = &evidence.watch.base;
        let starts = private.iter().map(|(start, _)| *start).chain([u64::MAX]);
        let ends = [0].into_iter().chain(private.iter().map(|(_, end)| *end));
        let left = ends.zip(starts).filter(|(from, to)| from < to).flat_map(|(start, end)| base.held_in(start, end));
        let left = left.filter(|page| !evidence.touched.contains_key(page) && !from.contains(page)).count() as u64;
        Ok(left.min(new))
    }

    /// The fault by which each page was written.
    fn rows(&self, touched: &Pages) -> Vec<Fault> {
        let row = |(&page, &class): (&u64, &Class)| {
            let touched = touched.get(&page).or_else(|| touched.get(self.moved.get(&page)?))?;
            let was_there = matches!(class, Class::Copy | Class::Reuse | Class::CopyOrReuse);
            let fault = if was_there && !self.swapped.contains(&page) { touched.first } else { touched.last };
            let touched::Fault { time_ns, tid, code, by_kernel, stack, .. } = fault;
            Some(Fault { time_ns, page, tid, code, by_kernel, stack })
        };
        self.pages.iter().filter_map(row).collect()
    }
}
