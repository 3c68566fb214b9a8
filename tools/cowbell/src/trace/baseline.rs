//! The pages that an address space held when its interval opened: the pages that were its own already.
//!
//! Files' pages are not listed, so "not here" means: a page of the file behind the mapping, or none.

use super::entries::{Entries, entry};
use super::tables::{PageTables, ZEROES};
use cowbell::sys::Errno;
use cowbell::sys::map::Range;
use cowbell::sys::pagemap::{Categories, Entry, PageState, Pagemap, Query};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

/// Asks for private pages with memory of their own, there or swapped out, and with each whether it is part of a huge one.
pub const PRIVATE: Query = Query {
    all: Categories::empty(),
    none: Categories::FILE.union(Categories::PFN_ZERO),
    any: Categories::PRESENT.union(Categories::SWAPPED).union(Categories::HUGE),
    rearm: false,
};

/// The state of a page when the interval opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Was {
    /// A private page.
    Private,
    /// A private page in swap.
    Swapped,
    /// The zero page.
    Zero,
}

/// Neighbouring pages of one kind.
#[derive(Clone, Debug)]
struct BaselineRun {
    start: u64,
    end: u64,
    was: Was,
    /// The frames of the pages, from this index on, where they were read.
    frames: Option<(Rc<[u64]>, usize)>,
}

/// The runs, by their starts; disjoint.
#[derive(Clone, Debug, Default)]
pub struct Baseline {
    runs: BTreeMap<u64, BaselineRun>,
    page: u64,
}

/// To look at so many pages takes longer than a system call for what lies before them and one for what lies behind.
const LONG_PAGES: u64 = 256;

/// Reading so many entries that nobody asked for takes less than another system call.
const NEAR_PAGES: u64 = 64;

/// The user's half of the address space, from its second page on.
pub fn user_space() -> Range {
    let page = cowbell::sys::page_size().bytes();
    Range { start: page, len: (1 << 47) - 2 * page }
}

impl Baseline {
    /// Reads page tables.
    ///
    /// # Errors
    /// Those of [`PageTables::runs`].
    pub fn scan(pagemap: &PageTables) -> Result<Self, Errno> {
        Ok(Self::of(runs_in(pagemap, user_space())?, page_bytes()))
    }

    /// The pages of a newborn: those of its parent, which were read in this very fork. Memory that the parent's mappings do not
    /// hand on (MADV_DONTFORK, MADV_WIPEONFORK) is found out by the first page of each.
    ///
    /// # Errors
    /// The process is gone.
    pub fn inherited(
        parent: &Self,
        mappings: impl Iterator<Item = (u64, u64)>,
        newborn: &PageTables,
    ) -> Result<Self, Errno> {
        let (mut runs, entries) = (Vec::new(), Entries::new(newborn));
        for (start, end) in mappings {
            let held = parent.clipped(start, end);
            let Some(first) = held.first().map(|run| run.start) else { continue };
            if entries.at(first)?.intersects(Entry::PRESENT | Entry::SWAPPED) {
                runs.extend(held);
            } else {
                runs.extend(runs_in(newborn, Range { start: start as usize, len: (end - start) as usize })?);
            }
        }
        Ok(Self::of(runs, parent.page))
    }

    fn of(runs: Vec<BaselineRun>, page: u64) -> Self {
        Self { runs: runs.into_iter().map(|run| (run.start, run)).collect(), page }
    }

    /// The runs that reach into a range, ascending.
    fn reaching(&self, start: u64, end: u64) -> impl Iterator<Item = &BaselineRun> {
        let before = self.runs.range(..start).next_back().map(|(_, run)| run);
        let inside = self.runs.range(start..end.max(start)).map(|(_, run)| run);
        before.filter(|run| start < run.end && start < end).into_iter().chain(inside)
    }

    /// The runs of a range, cut at its borders.
    fn clipped(&self, start: u64, end: u64) -> Vec<BaselineRun> {
        self.reaching(start, end).map(|run| self.cut(run, run.start.max(start), run.end.min(end))).collect()
    }

    fn cut(&self, run: &BaselineRun, from: u64, to: u64) -> BaselineRun {
        let skipped = ((from - run.start) / self.page) as usize;
        let frames = run.frames.as_ref().map(|(frames, first)| (Rc::clone(frames), first + skipped));
        BaselineRun { start: from, end: to, was: run.was, frames }
    }

    /// The ranges of pages that were in a range.
    pub fn ranges(&self, start: u64, end: u64) -> impl Iterator<Item = Range> {
        self.clipped(start, end)
            .into_iter()
            .map(|run| Range { start: run.start as usize, len: (run.end - run.start) as usize })
    }

    /// Reads the frames of the private pages of these ranges too, where they are not known yet. A process has many runs of few pages,
    /// and each reading is a system call; so those that lie near to each other are read in one.
    ///
    /// # Errors
    /// The process is gone.
    pub fn read_frames(&mut self, pagemap: &Pagemap, ranges: impl Iterator<Item = (u64, u64)>) -> Result<(), Errno> {
        // A run can reach over the borders of a mapping.
        let mut cut: Vec<BaselineRun> = ranges.flat_map(|(start, end)| self.take(start, end)).collect();
        let page = self.page;
        let is_due = |run: &BaselineRun| run.was == Was::Private && run.frames.is_none();
        let mut due: Vec<&mut BaselineRun> = cut.iter_mut().filter(|run| is_due(run)).collect();
        for near in due.chunk_by_mut(|run, next| are_near(run, next, page)) {
            let (Some(first), Some(last)) = (near.first(), near.last()) else { continue };
            let (start, end) = (first.start, last.end);
            let mut read = Vec::with_capacity(((end - start) / page) as usize);
            pagemap.read(Range { start: start as usize, len: (end - start) as usize }, |_, entry| {
                read.push(entry.frame())
            })?;
            let read: Rc<[u64]> = read.into();
            for run in near {
                run.frames = Some((Rc::clone(&read), ((run.start - start) / page) as usize));
            }
        }
        self.put(cut);
        Ok(())
    }

    /// The word now of each page that was there, in order.
    ///
    /// # Errors
    /// The process is gone.
    pub fn now(&self, pagemap: &Pagemap, mut each: impl FnMut(u64, Was, Entry)) -> Result<(), Errno> {
        let page = self.page;
        let runs: Vec<&BaselineRun> = self.runs.values().collect();
        for near in runs.chunk_by(|run, next| are_near(run, next, page)) {
            let (Some(first), Some(last)) = (near.first(), near.last()) else { continue };
            let mut words = Vec::with_capacity(((last.end - first.start) / page) as usize);
            let whole = Range { start: first.start as usize, len: (last.end - first.start) as usize };
            pagemap.read(whole, |_, entry| words.push(entry))?;
            for run in near {
                let words = words.iter().skip(((run.start - first.start) / page) as usize);
                let pages = (run.start..run.end).step_by(page as usize);
                pages.zip(words).for_each(|(page, &word)| each(page, run.was, word));
            }
        }
        Ok(())
    }

    /// The state of the page at this address.
    pub fn at(&self, page: u64) -> Option<Was> {
        self.run(page).map(|run| run.was)
    }

    /// The frame that the page at this address had, where frames were read.
    pub fn frame(&self, page: u64) -> Option<u64> {
        let run = self.run(page)?;
        let (frames, first) = run.frames.as_ref()?;
        frames.get(first + ((page - run.start) / self.page) as usize).copied().filter(|&frame| frame != 0)
    }

    /// The number of pages of a kind that lie in a range.
    pub fn count(&self, start: u64, end: u64, was: Was) -> u64 {
        let inside = self.reaching(start, end).filter(|run| run.was == was);
        inside.map(|run| run.end.min(end).saturating_sub(run.start.max(start)) / self.page).sum()
    }

    /// Tells whether there is any page in the range.
    pub fn any(&self, start: u64, end: u64) -> bool {
        self.reaching(start, end).next().is_some()
    }

    /// The private pages of a range, those in swap too, in order.
    pub fn held_in(&self, start: u64, end: u64) -> impl Iterator<Item = u64> {
        let page = self.page as usize;
        let inside = self.reaching(start, end).filter(|run| run.was != Was::Zero);
        inside.flat_map(move |run| (run.start.max(start)..run.end.min(end)).step_by(page))
    }

    /// The parts of a range in which there were none.
    pub fn holes(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut holes = Vec::new();
        let mut from = start;
        for run in self.reaching(start, end) {
            holes.push((from, run.start.min(end)));
            from = from.max(run.end);
        }
        holes.push((from, end));
        holes.retain(|(from, to)| from < to);
        holes
    }

    /// A range without the long runs of pages that were there, and these runs: what is new is looked for in the former only.
    pub fn apart(&self, range: Range) -> (Vec<Range>, Vec<Range>) {
        let (mut rest, mut long) = (Vec::new(), Vec::new());
        let between = |from: u64, to: u64| Range { start: from as usize, len: (to - from) as usize };
        let (mut from, end) = (range.start as u64, range.end() as u64);
        for run in self.reaching(from, end).filter(|run| run.end - run.start >= LONG_PAGES * self.page) {
            let (start, stop) = (run.start.max(from), run.end.min(end));
            if from < start {
                rest.push(between(from, start));
            }
            long.push(between(start, stop));
            from = stop;
        }
        if from < end {
            rest.push(between(from, end));
        }
        (rest, long)
    }

    /// The page of each frame that was read.
    pub fn frames(&self) -> HashMap<u64, u64> {
        let runs = self.runs.values().filter_map(|run| {
            let (frames, first) = run.frames.as_ref()?;
            let pages = (run.start..run.end).step_by(self.page as usize);
            Some(frames.iter().skip(*first).copied().zip(pages))
        });
        runs.flatten().filter(|&(frame, _)| frame != 0).collect()
    }

    /// Forgets what looked like pages in swap in a range.
    pub fn drop_swapped(&mut self, start: u64, end: u64) {
        let mut cut = self.take(start, end);
        cut.retain(|run| run.was != Was::Swapped);
        self.put(cut);
    }

    /// Forgets a range: its pages are gone.
    pub fn remove(&mut self, start: u64, end: u64) {
        self.take(start, end);
    }

    /// A range was moved: what it held is elsewhere now.
    pub fn relocate(&mut self, from: u64, to: u64, len: u64) {
        let mut moved = self.take(from, from + len);
        self.take(to, to + len);
        for run in &mut moved {
            (run.start, run.end) = (run.start - from + to, run.end - from + to);
        }
        self.put(moved);
    }

    fn put(&mut self, runs: Vec<BaselineRun>) {
        self.runs.extend(runs.into_iter().map(|run| (run.start, run)));
    }

    /// Takes out what lies in a range, cutting runs at its borders. It costs what is taken, not what is there: a process
    /// may have tens of thousands of mappings.
    fn take(&mut self, start: u64, end: u64) -> Vec<BaselineRun> {
        self.cut_at(start);
        self.cut_at(end);
        let starts: Vec<u64> = self.runs.range(start..end.max(start)).map(|(&start, _)| start).collect();
        starts.iter().filter_map(|start| self.runs.remove(start)).collect()
    }

    /// Makes two runs of the one that has `address` inside.
    fn cut_at(&mut self, address: u64) {
        let Some((_, run)) = self.runs.range(..address).next_back().filter(|(_, run)| address < run.end) else {
            return;
        };
        let (front, behind) = (self.cut(run, run.start, address), self.cut(run, address, run.end));
        self.put(vec![front, behind]);
    }

    fn run(&self, page: u64) -> Option<&BaselineRun> {
        self.runs.range(..=page).next_back().map(|(_, run)| run).filter(|run| page < run.end)
    }
}

/// Tells whether two runs are better read together.
fn are_near(run: &BaselineRun, next: &BaselineRun, page: u64) -> bool {
    run.end <= next.start && next.start - run.end < NEAR_PAGES * page
}

/// The runs of a range, from page tables.
fn runs_in(pagemap: &PageTables, range: Range) -> Result<Vec<BaselineRun>, Errno> {
    let query = Query {
        all: Categories::empty(),
        none: Categories::FILE,
        any: Categories::PRESENT | Categories::SWAPPED | Categories::PFN_ZERO | Categories::HUGE,
        rearm: false,
    };
    let mut runs: Vec<BaselineRun> = Vec::new();
    let mut huge = Vec::new();
    let mut add = |start: u64, end: u64, was| match runs.last_mut() {
        Some(last) if last.end == start && last.was == was => last.end = end,
        _ => runs.push(BaselineRun { start, end, was, frames: None }),
    };
    pagemap.runs(range, &query, |run, categories| {
        let was = match categories.state() {
            PageState::Zero => Was::Zero,
            PageState::Private => Was::Private,
            PageState::Swapped | PageState::Nothing | PageState::File => Was::Swapped,
        };
        if categories.contains(Categories::HUGE) {
            huge.push((run.start as u64, run.end() as u64));
        }
        add(run.start as u64, run.end() as u64, was);
    })?;
    let zero: Vec<_> = huge.into_iter().flat_map(|(start, end)| huge_zero_pages(pagemap, start, end)).collect();
    if zero.is_empty() {
        return Ok(runs);
    }
    let mut baseline = Baseline::of(runs, page_bytes());
    for (start, end) in zero {
        let mut cut = baseline.take(start, end);
        cut.iter_mut().for_each(|run| run.was = Was::Zero);
        baseline.put(cut);
    }
    Ok(baseline.runs.into_values().collect())
}

/// The parts of a run of huge pages that are the huge page of zeroes: the kernel's list calls them zero pages, where page
/// frames may be read.
fn huge_zero_pages(pagemap: &Pagemap, start: u64, end: u64) -> Vec<(u64, u64)> {
    let huge = huge_bytes();
    let Ok(flags) = File::open("/proc/kpageflags") else { return Vec::new() };
    let is_zero = |page: u64| {
        let frame = entry(pagemap, page).map_or(0, Entry::frame);
        let mut word = [0; 8];
        frame != 0 && flags.read_exact_at(&mut word, frame * 8).is_ok() && u64::from_ne_bytes(word) & ZEROES != 0
    };
    let blocks = (start / huge * huge..end).step_by(huge as usize);
    let blocks = blocks.map(|block| (block.max(start), (block + huge).min(end)));
    blocks.filter(|&(start, _)| is_zero(start)).collect()
}

/// A run that a scan has found, without the huge page of zeroes in it. The scan must ask for [`Categories::HUGE`].
pub fn without_zeroes(pagemap: &Pagemap, run: Range, categories: Categories) -> Vec<Range> {
    let (mut start, end) = (run.start as u64, run.end() as u64);
    let zero = if categories.contains(Categories::HUGE) { huge_zero_pages(pagemap, start, end) } else { Vec::new() };
    let mut left = Vec::new();
    let mut add = |start: u64, end: u64| {
        if start < end {
            left.push(Range { start: start as usize, len: (end - start) as usize });
        }
    };
    for (from, to) in zero {
        add(start, from);
        start = to;
    }
    add(start, end);
    left
}

/// Bytes a huge page: as many pages as a page has entries.
pub fn huge_bytes() -> u64 {
    page_bytes() * page_bytes() / 8
}

/// Bytes a page.
pub fn page_bytes() -> u64 {
    cowbell::sys::page_size().bytes() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline() -> Baseline {
        let page = page_bytes();
        let frames: Rc<[u64]> = (100..110).collect();
        let run = |start: u64, pages: u64, was, frames| BaselineRun {
            start: start * page,
            end: (start + pages) * page,
            was,
            frames,
        };
        let runs = vec![run(10, 10, Was::Private, Some((frames, 0))), run(30, 2, Was::Zero, None)];
        Baseline::of(runs, page)
    }

    #[test]
    fn a_cut_out_range_leaves_its_neighbours_with_their_frames() {
        let page = page_bytes();
        let mut base = baseline();
        base.remove(12 * page, 14 * page);
        let frame = |at: u64| base.frame(at * page);
        assert_eq!([11, 12, 13, 14, 19].map(frame), [Some(101), None, None, Some(104), Some(109)]);
        assert_eq!(base.count(0, 100 * page, Was::Private), 8);
        assert_eq!(base.held_in(11 * page, 15 * page).map(|at| at / page).collect::<Vec<_>>(), [11, 14]);
    }

    #[test]
    fn holes_are_what_no_run_covers() {
        let page = page_bytes();
        let holes = |start: u64, end: u64| {
            let found = baseline().holes(start * page, end * page).into_iter();
            found.map(|(from, to)| (from / page, to / page)).collect::<Vec<_>>()
        };
        assert_eq!(holes(5, 40), [(5, 10), (20, 30), (32, 40)]);
        assert_eq!(holes(12, 18), []);
        assert_eq!(holes(12, 25), [(20, 25)]);
        assert_eq!(holes(21, 25), [(21, 25)]);
        assert_eq!(baseline().frames(), (100..110).zip((10 * page..).step_by(page as usize)).collect());
    }

    #[test]
    fn a_newborn_inherits_what_lies_in_its_mappings_with_the_frames() {
        let page = page_bytes();
        // Our own page tables stand in for the newborn's: a page of ours that is there.
        let (here, ours) = (Box::new(7u8), PageTables::open(cowbell::sys::process::pid()).expect("our own"));
        let start = std::ptr::from_ref(&*here).addr() as u64 / page * page;
        let frames: Rc<[u64]> = (100..110).collect();
        let run = BaselineRun { start, end: start + 10 * page, was: Was::Private, frames: Some((frames, 0)) };
        let parent = Baseline::of(vec![run], page);
        let mappings = [(start, start + 4 * page)];
        let child = Baseline::inherited(&parent, mappings.into_iter(), &ours).expect("read");
        assert_eq!((child.frame(start + 3 * page), child.at(start + 4 * page)), (Some(103), None));
        assert_eq!(*here, 7);
    }

    #[test]
    fn a_moved_range_is_found_at_its_new_place_only() {
        let page = page_bytes();
        let mut base = baseline();
        base.relocate(15 * page, 50 * page, 20 * page);
        assert_eq!((base.at(15 * page), base.frame(14 * page)), (None, Some(104)));
        assert_eq!((base.at(50 * page), base.frame(54 * page)), (Some(Was::Private), Some(109)));
        assert_eq!(base.at(65 * page), Some(Was::Zero));
        assert!(base.any(54 * page, 60 * page) && !base.any(55 * page, 60 * page));
    }
}
