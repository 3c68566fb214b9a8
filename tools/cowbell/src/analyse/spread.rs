//! The number of copies that a sampled stack stands for, and how far that can be off.

use super::copied::SeenParts;
use std::collections::HashMap;

/// Bounds hold in 95 of 100 cases: so many standard deviations.
const DEVIATIONS: f64 = 1.96;
/// A few samples that all saw the same do not say that there is nothing else: as if four more had been taken, of which half saw something
/// else (Agresti and Coull, 1998).
const MORE_SAMPLES: f64 = 4.0;
const MORE_OTHERS: f64 = 2.0;

/// A copy that may have been sampled.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    /// The place of its instruction.
    pub code: u32,
    /// When it was made.
    pub time_ns: u64,
    /// The findings of a sample of it, if there was one.
    pub seen: SeenParts,
    /// The sample is of the write itself, and not of where its thread stood a little later.
    pub is_exact: bool,
}

/// A sample in the order of the writes.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The line that it saw; `None` for what is no line.
    pub line: Option<u32>,
    /// The number of copies that it stands for.
    pub weight: u64,
    /// True for a sample of the write itself, and not of where its thread stood a little later.
    pub is_exact: bool,
}

/// Copies by what samples saw.
#[derive(Clone, Debug, Default)]
pub struct Spread {
    /// By place and by the script's line; without a script's frames, `None`.
    pub pages: HashMap<(u32, Option<u32>), u64>,
    /// How far that can be off.
    pub error: SamplingError,
}

/// An estimate, from samples, of how far the copies of a line can be off.
///
/// Samples come in the order of the writes. Where lines take turns, each sample is like a draw; where a line goes on for long, the
/// samples before and after say what was between. The squares of the differences between neighbours tell both (the usual estimate
/// for a sample that follows an order: Wolter, Introduction to Variance Estimation, chapter 8).
#[derive(Clone, Debug, Default)]
pub struct SamplingError {
    /// The copies that samples stand for, and the sum of the squares of each sample's number.
    weights: f64,
    squares: f64,
    /// The same sum without the copies that were sampled themselves: of these nothing is estimated.
    unseen: f64,
    /// The part of the squares of samples that are not exact.
    inexact: f64,
    /// By line: half the squares of samples beside one of another line.
    turns: HashMap<u32, f64>,
}

impl SamplingError {
    /// Adds what samples say that follow each other.
    pub fn follow(&mut self, samples: &[Sample]) {
        for &Sample { weight, is_exact, .. } in samples {
            let weight = weight as f64;
            self.weights += weight;
            self.squares += weight * weight;
            self.unseen += weight * (weight - 1.0);
            self.inexact += if is_exact { 0.0 } else { weight * weight };
        }
        for pair in samples.windows(2) {
            let &[one, next] = pair else { continue };
            let [a, b] = [one, next].map(|sample| (sample.weight as f64).powi(2));
            match [one.is_exact, next.is_exact] {
                [true, true] if one.line != next.line => {
                    for line in [one.line, next.line].into_iter().flatten() {
                        *self.turns.entry(line).or_default() += (a + b) / 4.0;
                    }
                }
                // A neighbour that is not exact does not tell whether lines took turns here.
                [true, false] => self.inexact += a / 2.0,
                [false, true] => self.inexact += b / 2.0,
                _ => {}
            }
        }
    }

    /// Adds what the samples of another interval say.
    pub fn add(&mut self, other: &Self) {
        self.weights += other.weights;
        self.squares += other.squares;
        self.unseen += other.unseen;
        self.inexact += other.inexact;
        for (&line, squares) in &other.turns {
            *self.turns.entry(line).or_default() += squares;
        }
    }

    /// The number of pages by which a line's can be off (95 %).
    pub fn pages(&self, line: u32) -> f64 {
        if self.squares == 0.0 {
            return 0.0;
        }
        // This is the number of samples of one weight that say as much as these (Kish).
        let samples = self.weights * self.weights / self.squares;
        let turns = self.turns.get(&line).copied().unwrap_or(0.0) + self.inexact / 4.0;
        let variance = (turns / self.squares * samples + MORE_OTHERS) / (samples + MORE_SAMPLES);
        // Draws of two kinds vary no more than where both are as many.
        let part = DEVIATIONS * (variance.min(0.25) / samples * self.unseen / self.squares).sqrt();
        self.weights * part.min(1.0)
    }
}

/// The number of copies that each line stands for. A sample stands for the copies of its place since the one before it, and the
/// last one for those after it, too: the first copy of each place is sampled in any case, so that a line that made one copy on the
/// way is not told to have made a fair share of all.
pub fn spread(timed: &mut [Timed]) -> Spread {
    timed.sort_by_key(|copy| (copy.code, copy.time_ns));
    let mut spread = Spread::default();
    for of_place in timed.chunk_by(|a, b| a.code == b.code) {
        let mut samples: Vec<Sample> = Vec::new();
        let mut since = 0u64;
        for copy in of_place {
            since += 1;
            let line = match copy.seen {
                SeenParts::Nothing | SeenParts::Event => continue,
                SeenParts::Native => None,
                SeenParts::Script(line) => Some(line),
            };
            samples.push(Sample { line, weight: std::mem::take(&mut since), is_exact: copy.is_exact });
        }
        if let Some(last) = samples.last_mut() {
            last.weight += since;
        }
        let code = of_place.first().map_or(0, |copy| copy.code);
        for sample in &samples {
            *spread.pages.entry((code, sample.line)).or_default() += sample.weight;
        }
        spread.error.follow(&samples);
    }
    spread
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each `every`-th of these copies is sampled, which the lines of `of` made in order.
    fn sampled(of: impl Iterator<Item = u32>, every: usize, is_exact: bool) -> Spread {
        let mut timed: Vec<Timed> = (0..)
            .zip(of)
            .map(|(nth, line)| Timed {
                code: 7,
                time_ns: nth,
                seen: if (nth as usize + 1).is_multiple_of(every) { SeenParts::Script(line) } else { SeenParts::Event },
                is_exact,
            })
            .collect();
        spread(&mut timed)
    }

    fn points(spread: &Spread, line: u32) -> u32 {
        let all: u64 = spread.pages.values().sum();
        (100.0 * spread.error.pages(line) / all as f64).round() as u32
    }

    #[test]
    fn lines_that_take_turns_by_chance_are_off_by_the_binomial_bound() {
        // The bits of a full cycle of a linear congruential generator: both lines make half the copies.
        let chance = |nth: u64| {
            (nth.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) >> 40 & 1) as u32
        };
        let spread = sampled((0..10_000).map(|nth| chance(nth * nth + 17)), 100, true);
        let points = points(&spread, 0);
        assert!((9..=10).contains(&points), "0.98 / sqrt(100), and not {points}");
    }

    #[test]
    fn a_line_that_goes_on_for_long_is_known_better() {
        let halves = sampled((0..10_000).map(|nth| nth / 5000), 100, true);
        assert_eq!((points(&halves, 0), points(&halves, 1)), (3, 3));
        let one = sampled((0..10_000).map(|_| 0), 100, true);
        assert_eq!((points(&one, 0), points(&one, 9)), (3, 3), "100 samples do not exclude 3 in 100");
        let few = sampled((0..10_000).map(|_| 0), 1000, true);
        assert_eq!(points(&few, 0), 23, "nor 10 samples 23");
    }

    #[test]
    fn samples_that_are_not_of_the_write_itself_are_off_as_if_lines_took_turns() {
        let one = sampled((0..10_000).map(|_| 0), 100, false);
        assert_eq!(points(&one, 0), 10);
        // Nor do exact ones tell anything of their neighbours where each second one is not.
        let mut mixed = SamplingError::default();
        let sample = |nth: u32| Sample { line: Some(nth % 2), weight: 100, is_exact: nth.is_multiple_of(2) };
        mixed.follow(&(0..100).map(sample).collect::<Vec<_>>());
        assert_eq!((mixed.pages(0) / 100.0).round(), 10.0);
    }

    #[test]
    fn what_was_sampled_whole_is_known() {
        let all = sampled((0..100).map(|nth| nth % 2), 1, true);
        assert_eq!(points(&all, 0), 0);
        assert_eq!(points(&sampled(std::iter::empty(), 1, true), 0), 0);
    }

    #[test]
    fn one_sample_that_stands_for_nearly_all_says_little() {
        let mut timed: Vec<Timed> = (0..1000)
            .map(|nth| Timed {
                code: 7,
                time_ns: nth,
                seen: if nth < 4 || nth == 999 { SeenParts::Script(0) } else { SeenParts::Event },
                is_exact: true,
            })
            .collect();
        assert_eq!(points(&spread(&mut timed), 0), 98);
    }
}
