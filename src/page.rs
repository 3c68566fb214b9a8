//! Pages as types: a size, an index, a count, a range, a span, a set. No unsafe code, no system call.

use std::collections::BTreeMap;
use std::fmt;

/// The size of one page in bytes: a power of two. This machine's is [`crate::support::Machine::page_size`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSize(u32);

impl PageSize {
    /// From a size in bytes; `None` unless it is a power of two.
    pub const fn new(bytes: usize) -> Option<Self> {
        if bytes.is_power_of_two() { Some(Self(bytes.trailing_zeros())) } else { None }
    }

    /// Bytes in one page.
    pub const fn bytes(self) -> usize {
        1 << self.0
    }

    /// The page that holds the byte at `offset` (bytes from the range's start).
    pub const fn index_of(self, offset: usize) -> PageIndex {
        PageIndex((offset >> self.0) as u64)
    }

    /// The start of `page`, in bytes from the range's start.
    pub const fn offset_of(self, page: PageIndex) -> usize {
        (page.0 as usize) << self.0
    }

    /// The number of pages that hold `bytes` bytes, the last one perhaps in part.
    pub const fn pages_for(self, bytes: usize) -> PageCount {
        PageCount((bytes.div_ceil(1 << self.0)) as u64)
    }

    /// `bytes` rounded up to whole pages; `None` if that overflows.
    pub const fn round_up(self, bytes: usize) -> Option<usize> {
        bytes.checked_next_multiple_of(1 << self.0)
    }

    /// `address` rounded down to the start of its page.
    pub const fn round_down(self, address: usize) -> usize {
        address & !(self.bytes() - 1)
    }
}

/// A page's place in its range, counted from the range's first page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PageIndex(pub u64);

impl fmt::Display for PageIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number of pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PageCount(pub u64);

impl PageCount {
    /// The bytes these pages hold.
    pub const fn bytes(self, size: PageSize) -> u64 {
        self.0 << size.0
    }
}

impl fmt::Display for PageCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number of bytes, shown to people in the largest unit that leaves at least one before the point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
        match (1..=UNITS.len()).rev().find(|unit| self.0 >> (10 * unit) > 0) {
            Some(unit) => write!(f, "{:.1} {}", self.0 as f64 / (1u64 << (10 * unit)) as f64, UNITS[unit - 1]),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// A range of addresses, in bytes. Holding one promises nothing about what is mapped there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// The first address.
    pub start: usize,
    /// The length in bytes.
    pub len: usize,
}

impl Range {
    /// One past the last address.
    pub const fn end(self) -> usize {
        self.start + self.len
    }

    /// Does the range hold this address?
    pub const fn contains(self, address: usize) -> bool {
        address >= self.start && address - self.start < self.len
    }

    /// Have the two an address in common?
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

/// A run of neighbouring pages: `start`, and `count` pages from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PageSpan {
    /// The first page.
    pub start: PageIndex,
    /// The number of pages, the first included.
    pub count: PageCount,
}

/// The words of 8 bytes in which two contents of one page differ: where each begins in the page, what it was, what it is.
/// Bytes beyond the last whole word, or beyond the shorter content, are not compared. Nothing is allocated.
pub fn differing_words<'a>(was: &'a [u8], is: &'a [u8]) -> impl Iterator<Item = (usize, [u8; 8], [u8; 8])> + 'a {
    let words = was.as_chunks::<8>().0.iter().zip(is.as_chunks::<8>().0).enumerate();
    words.filter(|(_, (was, is))| was != is).map(|(nth, (was, is))| (nth * 8, *was, *is))
}

/// A set of pages, as runs of neighbours: what it takes is measured by its runs, wherever they lie and however long they are.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PageSet {
    /// The last page of each run by its first. Invariant: between two runs lies a page that is in none, so that
    /// equal sets compare equal.
    runs: BTreeMap<u64, u64>,
}

impl PageSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self { runs: BTreeMap::new() }
    }

    /// From words of 64 pages each, page 0 in bit 0 of the first.
    pub fn from_words(words: impl IntoIterator<Item = u64>) -> Self {
        let mut set = Self::new();
        for (at, word) in words.into_iter().enumerate() {
            let (mut rest, mut page) = (word, at as u64 * 64);
            while rest != 0 {
                page += u64::from(rest.trailing_zeros());
                rest >>= rest.trailing_zeros();
                let count = rest.trailing_ones();
                set.add(page, page + u64::from(count) - 1);
                page += u64::from(count);
                rest = rest.checked_shr(count).unwrap_or(0);
            }
        }
        set
    }

    /// Adds a page; true if it was not there before.
    pub fn insert(&mut self, page: PageIndex) -> bool {
        let new = !self.contains(page);
        if new {
            self.add(page.0, page.0);
        }
        new
    }

    /// Adds every page of a span, up to the highest index that there is.
    pub fn insert_span(&mut self, span: PageSpan) {
        if let Some(more) = span.count.0.checked_sub(1) {
            self.add(span.start.0, span.start.0.saturating_add(more));
        }
    }

    /// Adds the pages from `first` to `last`.
    fn add(&mut self, mut first: u64, mut last: u64) {
        // Most pages come in order.
        if let Some(mut highest) = self.runs.last_entry()
            && *highest.key() <= first
            && highest.get().saturating_add(1) >= first
        {
            let end = last.max(*highest.get());
            highest.insert(end);
            return;
        }
        let before = self.runs.range(..first).next_back();
        if let Some((&start, &end)) = before.filter(|(_, end)| end.saturating_add(1) >= first) {
            first = start;
            last = last.max(end);
        }
        // Those that it covers, or that begin right behind it.
        while let Some((&start, &end)) = self.runs.range(first..=last.saturating_add(1)).next() {
            self.runs.remove(&start);
            last = last.max(end);
        }
        self.runs.insert(first, last);
    }

    /// Tells whether the page is in the set.
    pub fn contains(&self, page: PageIndex) -> bool {
        self.runs.range(..=page.0).next_back().is_some_and(|(_, &last)| page.0 <= last)
    }

    /// The number of pages in the set.
    pub fn count(&self) -> PageCount {
        PageCount(self.runs().fold(0u64, |pages, run| pages.saturating_add(run.count.0)))
    }

    /// Tells whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The pages, in order.
    pub fn iter(&self) -> impl Iterator<Item = PageIndex> + '_ {
        self.runs.iter().flat_map(|(&first, &last)| (first..=last).map(PageIndex))
    }

    /// The pages as maximal runs of neighbours, in order.
    pub fn runs(&self) -> impl Iterator<Item = PageSpan> + '_ {
        self.runs.iter().map(|(&first, &last)| PageSpan {
            start: PageIndex(first),
            count: PageCount((last - first).saturating_add(1)),
        })
    }

    /// Pages in this set and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut left = Self::new();
        for (&first, &last) in &self.runs {
            let mut next = Some(first);
            // The other's runs that have pages of this one, the first of which may begin before it.
            let begin = other.runs.range(..=first).next_back().map_or(first, |(&start, _)| start);
            for (&start, &end) in other.runs.range(begin..=last) {
                let Some(from) = next.filter(|&from| end >= from) else { continue };
                if start > from {
                    left.add(from, start - 1);
                }
                next = end.checked_add(1);
            }
            if let Some(from) = next.filter(|&from| from <= last) {
                left.add(from, last);
            }
        }
        left
    }

    /// Adds all pages of `other`.
    pub fn union_with(&mut self, other: &Self) {
        other.runs.iter().for_each(|(&first, &last)| self.add(first, last));
    }
}

impl FromIterator<PageIndex> for PageSet {
    fn from_iter<I: IntoIterator<Item = PageIndex>>(pages: I) -> Self {
        let mut set = Self::new();
        for page in pages {
            set.insert(page);
        }
        set
    }
}

/// Runs, as `0-3, 7, 9-12`.
impl fmt::Debug for PageSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for run in self.runs() {
            write!(f, "{separator}{}", run.start)?;
            if run.count.0 > 1 {
                write!(f, "-{}", run.start.0 + (run.count.0 - 1))?;
            }
            separator = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn words_that_differ_are_found_where_they_are() {
        let was = [7u8; 32];
        let mut is = was;
        assert_eq!(differing_words(&was, &is).count(), 0);
        (is[8], is[31]) = (0, 1);
        let found: Vec<_> = differing_words(&was, &is).map(|(at, was, is)| (at, was == [7; 8], is[0], is[7])).collect();
        assert_eq!(found, [(8, true, 0, 7), (24, true, 7, 1)]);
    }

    proptest! {
        #[test]
        fn a_page_set_is_a_set(a in proptest::collection::btree_set(0u64..500, 0..80), b in proptest::collection::btree_set(0u64..500, 0..80)) {
            let make = |s: &BTreeSet<u64>| s.iter().map(|&p| PageIndex(p)).collect::<PageSet>();
            let (left, right) = (make(&a), make(&b));
            prop_assert_eq!(left.count().0, a.len() as u64);
            prop_assert_eq!(left.iter().map(|p| p.0).collect::<BTreeSet<_>>(), a.clone());
            prop_assert_eq!(left.difference(&right), make(&a.difference(&b).copied().collect()));
            let mut both = left.clone();
            both.union_with(&right);
            prop_assert_eq!(both, make(&a.union(&b).copied().collect()));
            prop_assert_eq!(left == right, a == b);
        }

        #[test]
        fn runs_are_maximal_and_cover(a in proptest::collection::btree_set(0u64..300, 0..200)) {
            let set: PageSet = a.iter().map(|&p| PageIndex(p)).collect();
            let runs: Vec<_> = set.runs().collect();
            for pair in runs.windows(2) {
                prop_assert!(pair[0].start.0 + pair[0].count.0 < pair[1].start.0);
            }
            let mut again = PageSet::new();
            runs.into_iter().for_each(|run| again.insert_span(run));
            prop_assert_eq!(again, set);
        }
    }

    #[test]
    fn a_set_takes_no_more_memory_for_pages_that_lie_far_away_or_for_many_of_them() {
        let mut set = PageSet::new();
        let far = [0, 1 << 45, u64::MAX - 1, u64::MAX].map(PageIndex);
        assert!(far.iter().all(|&page| set.insert(page)) && far.iter().all(|&page| set.contains(page)));
        assert!(!set.insert(PageIndex(u64::MAX)) && !set.contains(PageIndex(1)));
        assert_eq!(format!("{set:?} {}", set.count()), format!("0, {}, {}-{} 4", 1u64 << 45, u64::MAX - 1, u64::MAX));
        let most = PageSpan { start: PageIndex(5), count: PageCount(u64::MAX) };
        set.insert_span(most);
        assert_eq!(set.count(), PageCount(u64::MAX - 3));
        let all_but_five = [0..5, 6..u64::MAX]
            .map(|run| PageSpan { start: PageIndex(run.start), count: PageCount(run.end - run.start) });
        let mut others = PageSet::new();
        all_but_five.into_iter().for_each(|run| others.insert_span(run));
        assert_eq!(set.difference(&others).iter().map(|page| page.0).collect::<Vec<_>>(), [5, u64::MAX]);
        others.union_with(&set);
        assert_eq!((others.count(), others.runs().count()), (PageCount(u64::MAX), 1));
        assert_eq!(
            PageSet::from_words([!0, !0, 1]),
            [PageSpan { start: PageIndex(0), count: PageCount(129) }].into_iter().fold(
                PageSet::new(),
                |mut set, run| {
                    set.insert_span(run);
                    set
                },
            )
        );
    }

    #[test]
    fn bytes_are_shown_in_their_unit() {
        let shown = [0, 1023, 4096, 5 << 30].map(|bytes| Bytes(bytes).to_string());
        assert_eq!(shown, ["0 bytes", "1023 bytes", "4.0 KiB", "5.0 GiB"]);
    }

    #[test]
    fn sizes_round_as_stated() {
        let size = PageSize::new(16384).expect("a power of two");
        assert_eq!(size.pages_for(0), PageCount(0));
        assert_eq!(size.pages_for(16385), PageCount(2));
        assert_eq!(size.round_up(usize::MAX), None);
        assert_eq!(size.offset_of(size.index_of(40000)), 32768);
        assert_eq!(PageSize::new(5000), None);
    }
}
