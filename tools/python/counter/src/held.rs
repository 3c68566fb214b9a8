//! The pages that a child held when counting began, and sets of pages as runs. Values only: nothing is asked of the kernel.

use cowbell::page::Range;

/// Neighbouring pages, with the frame of each; none where frames may not be read.
#[derive(Debug)]
struct Run {
    range: Range,
    frames: Vec<u64>,
}

/// The private pages that the child shared with others when counting began, ascending.
#[derive(Debug)]
pub struct Held {
    runs: Vec<Run>,
    page: usize,
    /// The number of these pages.
    pub pages: u64,
}

impl Held {
    /// None yet.
    pub fn new(page: usize) -> Self {
        Self { runs: Vec::new(), page, pages: 0 }
    }

    /// Adds a page behind all others; the frame is 0 where it may not be read.
    pub fn push(&mut self, address: usize, frame: u64) {
        self.pages += 1;
        let has_frame = frame != 0;
        match self.runs.last_mut() {
            Some(last) if last.range.end() == address && last.frames.is_empty() != has_frame => {
                last.range.len += self.page;
                last.frames.extend(has_frame.then_some(frame));
            }
            _ => {
                let frames = if has_frame { vec![frame] } else { Vec::new() };
                self.runs.push(Run { range: Range { start: address, len: self.page }, frames });
            }
        }
    }

    /// Adds pages behind all others, whose frames may not be read.
    pub fn push_run(&mut self, range: Range) {
        self.pages += (range.len / self.page) as u64;
        self.runs.push(Run { range, frames: Vec::new() });
    }

    /// Tells whether there is a page at this address; the inner value is its frame, where it was read.
    pub fn at(&self, address: usize) -> Option<Option<u64>> {
        let after = self.runs.partition_point(|run| run.range.start <= address);
        let run = self.runs.get(after.checked_sub(1)?).filter(|run| address < run.range.end())?;
        Some(run.frames.get((address - run.range.start) / self.page).copied())
    }

    /// The runs of pages that lie in a range, cut at its borders.
    pub fn inside(&self, range: Range) -> impl Iterator<Item = Range> {
        let first = self.runs.partition_point(|run| run.range.end() <= range.start);
        let reaching = self.runs.iter().skip(first).take_while(move |run| run.range.start < range.end());
        reaching.map(move |run| {
            let start = run.range.start.max(range.start);
            Range { start, len: run.range.end().min(range.end()) - start }
        })
    }
}

/// A set of pages, as runs that ascend and do not touch.
#[derive(Debug, Default)]
pub struct Pages(Vec<Range>);

impl Pages {
    /// Adds pages at or behind the end of all others.
    pub fn push(&mut self, range: Range) {
        match self.0.last_mut() {
            Some(last) if last.end() == range.start => last.len += range.len,
            _ => self.0.push(range),
        }
    }

    /// The pages' runs.
    pub fn runs(&self) -> &[Range] {
        &self.0
    }

    /// The bytes in it.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|run| run.len as u64).sum()
    }

    /// The bytes of a range that are in it.
    pub fn bytes_in(&self, range: Range) -> u64 {
        let first = self.0.partition_point(|run| run.end() <= range.start);
        let reaching = self.0.iter().skip(first).take_while(|run| run.start < range.end());
        reaching.map(|run| (run.end().min(range.end()) - run.start.max(range.start)) as u64).sum()
    }

    /// The pages that are in it and were not in an earlier one.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut left = Self::default();
        let mut before = earlier.0.iter().peekable();
        for run in &self.0 {
            let mut start = run.start;
            while let Some(old) = before.peek().filter(|old| old.start < run.end()) {
                if start < old.start {
                    left.push(Range { start, len: old.start - start });
                }
                start = start.max(old.end());
                if old.end() > run.end() {
                    break;
                }
                before.next();
            }
            if start < run.end() {
                left.push(Range { start, len: run.end() - start });
            }
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 0x1000;

    fn range(first: usize, pages: usize) -> Range {
        Range { start: first * PAGE, len: pages * PAGE }
    }

    fn pages(runs: &[(usize, usize)]) -> Pages {
        let mut pages = Pages::default();
        runs.iter().for_each(|&(first, count)| pages.push(range(first, count)));
        pages
    }

    #[test]
    fn a_page_is_found_with_the_frame_it_had() {
        let mut held = Held::new(PAGE);
        for (at, frame) in [(10, 7), (11, 8), (12, 0), (20, 0), (21, 9)] {
            held.push(at * PAGE, frame);
        }
        held.push_run(range(30, 2));
        let at = |page: usize| held.at(page * PAGE);
        assert_eq!([at(9), at(10), at(11), at(12), at(13)], [None, Some(Some(7)), Some(Some(8)), Some(None), None]);
        assert_eq!([at(20), at(21), at(22)], [Some(None), Some(Some(9)), None]);
        assert_eq!([at(30), at(31), at(32)], [Some(None), Some(None), None]);
        assert_eq!(held.pages, 7);
        let inside = |first, count| held.inside(range(first, count)).map(|run| (run.start / PAGE, run.len / PAGE));
        assert_eq!(inside(11, 10).collect::<Vec<_>>(), [(11, 1), (12, 1), (20, 1)]);
        assert_eq!(inside(13, 7).count(), 0);
    }

    #[test]
    fn the_difference_of_two_sets_is_what_a_walk_page_by_page_finds() {
        // Each pair of sets of seven pages, by their bits.
        let of_bits = |bits: u32| {
            let mut pages = Pages::default();
            (0..7).filter(|at| bits >> at & 1 == 1).for_each(|at| pages.push(range(at, 1)));
            pages
        };
        for (now, earlier) in (0..128).flat_map(|now| (0..128).map(move |earlier| (now, earlier))) {
            let left = of_bits(now).since(&of_bits(earlier));
            assert_eq!(left.0, of_bits(now & !earlier).0, "{now:b} since {earlier:b}");
            assert_eq!(left.bytes(), u64::from((now & !earlier).count_ones()) * PAGE as u64);
        }
    }

    #[test]
    fn bytes_of_a_range_are_cut_at_its_borders() {
        let set = pages(&[(1, 3), (6, 2)]);
        assert_eq!(set.bytes_in(range(2, 5)), 3 * PAGE as u64);
        assert_eq!(set.bytes_in(range(4, 2)), 0);
    }
}
