//! One figure of both sides: is the difference a change?

use crate::analyse::roles::Bounds;
use serde::Serialize;

/// Differences up to this part of the larger side are none.
const SHARE_MIN: f64 = 0.01;
/// A difference of fewer pages is none, however few pages there were.
const PAGES_MIN: u64 = 4;

/// A figure of one run.
#[derive(Clone, Copy, Debug)]
pub struct RunFigure {
    /// The figure as it is counted.
    pub bytes: u64,
    /// The figure as far as it is certain.
    pub bounds: Bounds,
}

impl RunFigure {
    /// A part of this figure: all that is in doubt about the whole may be about this part.
    pub fn part(self, bytes: u64) -> Self {
        let least = bytes.saturating_sub(self.bytes.saturating_sub(self.bounds.least));
        let most = self.bounds.most.map(|most| bytes.saturating_add(most.saturating_sub(self.bytes)));
        Self { bytes, bounds: Bounds { least, most } }
    }

    /// By how much it may be wrong; `None` where there is no bound.
    fn doubt(self) -> Option<u64> {
        Some(self.bounds.most?.saturating_sub(self.bounds.least))
    }
}

/// A figure of the runs of one side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Side {
    /// In the order of the runs.
    pub runs_bytes: Vec<u64>,
    /// The median; the mean of the two in the middle for an even number of runs.
    pub median_bytes: u64,
    /// From the least that is certain of any run to the most that is possible of any.
    pub bounds_bytes: Bounds,
    /// By how much the figure of a run may be wrong at most; `None` where there is no bound.
    #[serde(skip)]
    doubt_bytes: Option<u64>,
}

impl Side {
    /// The figure of these runs.
    pub fn new(samples: Vec<RunFigure>) -> Self {
        let runs_bytes: Vec<u64> = samples.iter().map(|sample| sample.bytes).collect();
        let least = samples.iter().map(|sample| sample.bounds.least).min().unwrap_or_default();
        let most =
            samples.iter().map(|sample| sample.bounds.most).try_fold(0, |most, one| one.map(|one| most.max(one)));
        let doubt_bytes = samples.iter().map(|one| one.doubt()).try_fold(0, |most, one| one.map(|one| most.max(one)));
        Self { median_bytes: median(&runs_bytes), runs_bytes, bounds_bytes: Bounds { least, most }, doubt_bytes }
    }

    fn ends(&self) -> (u64, u64) {
        let (least, most) = (self.runs_bytes.iter().min(), self.runs_bytes.iter().max());
        (least.copied().unwrap_or_default(), most.copied().unwrap_or_default())
    }
}

/// The kind of the difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DiffVerdict {
    /// There is none worth the name, or none beyond noise.
    Same,
    Less,
    More,
    /// The figure is less or more for certain, and how far runs of one side differ is not known.
    NoiseUnknown,
    /// The figure is less or more by what was counted, and what could not be seen may make up for it.
    BoundsOverlap,
}

/// A figure before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FigureChange {
    pub before: Side,
    pub after: Side,
    /// The difference of the medians: less than nothing where there is less after.
    pub difference_bytes: i64,
    pub verdict: DiffVerdict,
    /// True if what could not be seen is enough for a difference where none was counted.
    #[serde(skip)]
    pub is_in_doubt: bool,
}

impl FigureChange {
    /// The change between two sides.
    pub fn new(before: Side, after: Side, page_size: u64) -> Self {
        let difference_bytes = after.median_bytes as i64 - before.median_bytes as i64;
        let verdict = verdict(&before, &after, difference_bytes, page_size);
        let larger = before.median_bytes.max(after.median_bytes);
        let is_in_doubt = [&before, &after]
            .iter()
            .any(|side| side.doubt_bytes.is_none_or(|doubt| !is_small(doubt, larger, page_size)));
        Self { before, after, difference_bytes, verdict, is_in_doubt }
    }
}

/// Tells whether a difference is none worth the name.
fn is_small(bytes: u64, larger: u64, page_size: u64) -> bool {
    bytes <= PAGES_MIN * page_size || (bytes as f64) <= larger as f64 * SHARE_MIN
}

fn verdict(before: &Side, after: &Side, difference: i64, page_size: u64) -> DiffVerdict {
    let size = difference.unsigned_abs();
    let larger = before.median_bytes.max(after.median_bytes);
    if is_small(size, larger, page_size) {
        return DiffVerdict::Same;
    }
    let (b, a) = (before.bounds_bytes, after.bounds_bytes);
    let is_below = |lower: Bounds, upper: Bounds| lower.most.is_some_and(|most| most < upper.least);
    let is_certain = if difference < 0 { is_below(a, b) } else { is_below(b, a) };
    let runs = before.runs_bytes.len().min(after.runs_bytes.len());
    if runs < 2 {
        return if is_certain { DiffVerdict::NoiseUnknown } else { DiffVerdict::BoundsOverlap };
    }
    let ((b_least, b_most), (a_least, a_most)) = (before.ends(), after.ends());
    let spread = (b_most - b_least) + (a_most - a_least);
    // Two or three runs lie close to each other by chance more often than many do.
    let times = match runs {
        2 => 3.0,
        3 => 1.5,
        _ => 1.0,
    };
    let apart = a_most < b_least || b_most < a_least;
    if !apart || (size as f64) <= spread as f64 * times {
        return DiffVerdict::Same;
    }
    match is_certain {
        true if difference < 0 => DiffVerdict::Less,
        true => DiffVerdict::More,
        false => DiffVerdict::BoundsOverlap,
    }
}

fn median(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let half = sorted.len() / 2;
    let at = |nth: usize| sorted.get(nth).copied().unwrap_or_default();
    match sorted.len() {
        0 => 0,
        odd if odd % 2 == 1 => at(half),
        _ => u64::midpoint(at(half - 1), at(half)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn certain(pages: u64) -> RunFigure {
        sample(pages, Some(pages))
    }

    fn sample(pages: u64, most: Option<u64>) -> RunFigure {
        let bounds = Bounds { least: pages * PAGE, most: most.map(|most| most * PAGE) };
        RunFigure { bytes: pages * PAGE, bounds }
    }

    fn change(before: &[u64], after: &[u64]) -> DiffVerdict {
        let side = |values: &[u64]| Side::new(values.iter().map(|pages| certain(*pages)).collect());
        FigureChange::new(side(before), side(after), PAGE).verdict
    }

    #[test]
    fn what_differs_by_more_than_runs_of_a_side_do_has_changed() {
        assert_eq!(change(&[1000, 1010, 1005], &[500, 510, 505]), DiffVerdict::Less);
        assert_eq!(change(&[1000, 1010, 1005], &[1100, 1110, 1105]), DiffVerdict::More);
        assert_eq!(
            change(&[1000, 1040, 1080], &[1090, 1130, 1170]),
            DiffVerdict::Same,
            "apart, and less than the spread"
        );
        assert_eq!(change(&[1000, 1100], &[1050, 1160]), DiffVerdict::Same, "not apart");
        assert_eq!(change(&[1000, 1000], &[1009, 1009]), DiffVerdict::Same, "below one in a hundred");
        assert_eq!(change(&[1, 1], &[5, 5]), DiffVerdict::Same, "a handful of pages");
        assert_eq!(change(&[0, 0], &[6, 6]), DiffVerdict::More);
    }

    #[test]
    fn one_run_on_a_side_tells_no_noise() {
        assert_eq!(change(&[1000], &[500]), DiffVerdict::NoiseUnknown);
        assert_eq!(change(&[1000, 1000, 1000], &[500]), DiffVerdict::NoiseUnknown);
        assert_eq!(change(&[1000], &[1000]), DiffVerdict::Same);
    }

    #[test]
    fn what_was_not_seen_may_make_up_for_a_change() {
        let before = Side::new(vec![sample(1000, Some(1000)); 3]);
        for (most, verdict) in [
            (Some(500), DiffVerdict::Less),
            (Some(1000), DiffVerdict::BoundsOverlap),
            (None, DiffVerdict::BoundsOverlap),
        ] {
            let after = Side::new(vec![sample(500, most); 3]);
            assert_eq!(FigureChange::new(before.clone(), after, PAGE).verdict, verdict, "{most:?}");
        }
    }

    #[test]
    fn bounds_that_overlap_are_told_of_one_run_too() {
        let change =
            |most| FigureChange::new(Side::new(vec![certain(1000)]), Side::new(vec![sample(500, most)]), PAGE).verdict;
        assert_eq!(change(Some(999)), DiffVerdict::NoiseUnknown);
        assert_eq!((change(Some(1000)), change(None)), (DiffVerdict::BoundsOverlap, DiffVerdict::BoundsOverlap));
    }

    #[test]
    fn no_change_is_in_doubt_where_what_was_not_seen_is_enough_for_one() {
        let change =
            |most| FigureChange::new(Side::new(vec![certain(1000)]), Side::new(vec![sample(1000, most)]), PAGE);
        for (most, doubt) in [(Some(1000), false), (Some(1010), false), (Some(1011), true), (None, true)] {
            assert_eq!((change(most).verdict, change(most).is_in_doubt), (DiffVerdict::Same, doubt), "{most:?}");
        }
    }

    #[test]
    fn a_part_is_in_doubt_as_far_as_its_whole() {
        let whole = RunFigure { bytes: 100, bounds: Bounds { least: 70, most: Some(140) } };
        assert_eq!(whole.part(50).bounds, Bounds { least: 20, most: Some(90) });
        assert_eq!(whole.part(10).bounds, Bounds { least: 0, most: Some(50) });
        assert_eq!(sample(3, None).part(PAGE).bounds, Bounds { least: PAGE, most: None });
    }

    /// Bell-shaped noise of 2 % around a level, the same each time: sums of twelve even numbers.
    fn noisy(level: f64, runs: usize, seed: &mut u64) -> Vec<u64> {
        let mut even = || {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*seed >> 33) as f64 / (1u64 << 31) as f64
        };
        let mut bell = || (0..12).map(|_| even()).sum::<f64>() - 6.0;
        (0..runs).map(|_| (level * (1.0 + 0.02 * bell())) as u64).collect()
    }

    #[test]
    fn noise_is_hardly_ever_called_a_change() {
        let mut seed = 7;
        for (runs, most) in [(2, 40), (3, 25), (5, 5), (10, 2)] {
            let wrong = (0..1000).filter(|_| {
                let (before, after) = (noisy(10_000.0, runs, &mut seed), noisy(10_000.0, runs, &mut seed));
                change(&before, &after) != DiffVerdict::Same
            });
            let wrong = wrong.count();
            assert!(wrong <= most, "{runs} runs: {wrong} of 1000");
        }
    }
}
