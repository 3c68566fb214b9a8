//! A summary of many measurements of one thing.

use serde::{Deserialize, Serialize};

/// The smallest, the middle and the largest of some numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// The spread of some numbers; `None` when there are none.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let upper = sorted.len() / 2;
        let lower = (sorted.len() - 1) / 2;
        let median = f64::midpoint(sorted[lower], sorted[upper]);
        Some(Self { min, median, max })
    }

    /// The ratio for people: `1.42x (1.38 to 1.50)`.
    pub(crate) fn times(&self) -> String {
        format!("{:.2}x ({:.2} to {:.2})", self.median, self.min, self.max)
    }

    /// The spread of the ratios `these[i] / those[i]`.
    pub(crate) fn of_ratios(these: &[f64], those: &[f64]) -> Option<Self> {
        Self::of(these.iter().zip(those).filter(|(_, that)| **that > 0.0).map(|(this, that)| this / that))
    }
}

/// The order of `count` contenders in a round: it rotates, and every other round runs backwards, so that
/// nobody always runs first or always behind the same neighbour.
pub(crate) fn order(count: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).map(|at| (at + round / 2) % count).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_the_middle_two() {
        assert_eq!(Spread::of([3.0, 1.0, 8.0]), Some(Spread { min: 1.0, median: 3.0, max: 8.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 8.0]), Some(Spread { min: 1.0, median: 3.0, max: 8.0 }));
        assert_eq!(Spread::of([]), None);
        let ratios = Spread::of_ratios(&[2.0, 9.0], &[1.0, 3.0]);
        assert_eq!(ratios.map(|ratios| ratios.median), Some(2.5));
        assert_eq!(ratios.map(|ratios| ratios.times()).as_deref(), Some("2.50x (2.00 to 3.00)"));
    }

    #[test]
    fn every_round_runs_everyone_once_and_everyone_comes_first_once() {
        let mut first = Vec::new();
        for round in 0..8 {
            let mut order = order(4, round);
            first.push(order[0]);
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2, 3]);
        }
        first.sort_unstable();
        assert_eq!(first, [0, 0, 1, 1, 2, 2, 3, 3]);
    }
}
