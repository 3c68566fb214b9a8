//! A set of addresses, as ranges.

use std::collections::BTreeMap;

/// Disjoint ranges that do not touch: the end of each by its start.
#[derive(Clone, Debug, Default)]
pub struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Tells whether the address is in it.
    pub fn contains(&self, address: u64) -> bool {
        self.0.range(..=address).next_back().is_some_and(|(_, &end)| address < end)
    }

    /// Tells whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a range.
    pub fn add(&mut self, mut start: u64, mut end: u64) {
        // Ranges that touch the new one become one with it.
        while let Some((&from, &to)) = self.0.range(..=end).next_back().filter(|(_, to)| start <= **to) {
            (start, end) = (start.min(from), end.max(to));
            self.0.remove(&from);
        }
        if start < end {
            self.0.insert(start, end);
        }
    }

    /// Takes out what of it lies in a range.
    pub fn take(&mut self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut taken = Vec::new();
        while let Some((&from, &to)) = self.0.range(..end).next_back().filter(|(_, to)| start < **to) {
            self.0.remove(&from);
            taken.push((from.max(start), to.min(end)));
            self.0.extend([(from, start.max(from)), (end.min(to), to)].into_iter().filter(|(from, to)| from < to));
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_touches_becomes_one_range_and_what_is_taken_leaves_the_rest() {
        let mut ranges = Ranges::default();
        ranges.add(10, 20);
        ranges.add(30, 40);
        ranges.add(20, 25);
        assert_eq!(ranges.0, BTreeMap::from([(10, 25), (30, 40)]));
        assert_eq!([9, 10, 24, 25, 30, 40].map(|at| ranges.contains(at)), [false, true, true, false, true, false]);
        ranges.add(5, 35);
        assert_eq!(ranges.0, BTreeMap::from([(5, 40)]));
        assert_eq!(ranges.take(10, 12), [(10, 12)]);
        assert_eq!(ranges.take(38, 50), [(38, 40)]);
        assert_eq!(ranges.0, BTreeMap::from([(5, 10), (12, 38)]));
        assert_eq!(ranges.take(0, 100), [(12, 38), (5, 10)]);
        assert!(ranges.take(0, 100).is_empty() && !ranges.contains(6));
    }
}
