//! Lines of programs that an interpreter runs, estimated from sampled stacks.

use super::Profile;
use super::cause::Cause;
use super::copied::{Copied, SeenParts};
use super::interval::Sums;
use super::spread::SamplingError;
use super::sum::{most, share};
use super::summary::{self, ScriptLine};
use crate::record::WatchReason;
use std::collections::HashMap;

/// The findings of samples about a script's lines, in all intervals.
#[derive(Default)]
pub struct ScriptSum {
    samples: u64,
    script_samples: u64,
    places: HashMap<u32, PlaceSum>,
    /// How far the copies that lines stand for can be off: of processes that forked, and of others.
    parents_error: SamplingError,
    others_error: SamplingError,
}

#[derive(Default)]
struct PlaceSum {
    samples: u64,
    pages: u64,
    /// Those of them in intervals of processes that forked.
    by_parents: u64,
    causes: HashMap<Cause, u64>,
}

/// The copies of an interval by what its samples saw, for each place in code apart: those that copy little are sampled more
/// often than those that copy much.
#[derive(Default)]
pub struct SampledCopies {
    instructions: HashMap<u32, SampledInstruction>,
}

#[derive(Default)]
struct SampledInstruction {
    samples: u64,
    places: HashMap<u32, (u64, HashMap<Cause, u64>)>,
}

impl SampledCopies {
    /// Adds copies of one kind.
    pub fn add(&mut self, copied: &Copied, pages: u64, cause: Cause) {
        if copied.seen == SeenParts::Nothing {
            return;
        }
        let sum = self.instructions.entry(copied.code).or_default();
        sum.samples += if matches!(copied.seen, SeenParts::Native | SeenParts::Script(_)) { pages } else { 0 };
        if let SeenParts::Script(place) = copied.seen {
            let (samples, causes) = sum.places.entry(place).or_default();
            *samples += pages;
            *causes.entry(cause).or_default() += pages;
        }
    }

    /// Adds what was sampled in an interval of this role.
    pub fn into_sum(self, sums: &Sums, role: WatchReason, sum: &mut ScriptSum) {
        // How many copies the samples of a place and a line stand for.
        let spread = &sums.sampled.pages;
        if self.instructions.values().all(|instruction| instruction.samples == 0) {
            return;
        }
        let error = if role == WatchReason::Parent { &mut sum.parents_error } else { &mut sum.others_error };
        error.add(&sums.sampled.error);
        for (code, SampledInstruction { samples, places }) in self.instructions {
            sum.samples += samples;
            for (line, (samples, causes)) in places {
                sum.script_samples += samples;
                let place = sum.places.entry(line).or_default();
                place.samples += samples;
                let pages = spread.get(&(code, Some(line))).copied().unwrap_or(0);
                place.pages += pages;
                place.by_parents += if role == WatchReason::Parent { pages } else { 0 };
                for (cause, samples) in causes {
                    *place.causes.entry(cause).or_default() += samples;
                }
            }
        }
    }
}

/// The lines of all intervals.
pub fn script(mut sum: ScriptSum, profile: &Profile, copied: u64) -> summary::Script {
    let mut error = sum.parents_error.clone();
    error.add(&sum.others_error);
    let is_line = |number: u32| profile.places.get(number as usize).is_some_and(|place| place.is_line());
    let without = sum.places.iter().filter(|(number, _)| !is_line(**number));
    let without = without.fold(0u64, |sum, (_, place)| sum.saturating_add(place.samples));
    let named = |(number, place_sum): (u32, PlaceSum)| {
        let place = profile.places.get(number as usize).filter(|place| place.is_line())?.clone();
        Some(ScriptLine {
            language: place.language.unwrap_or_default(),
            source: profile.sources.get(&(place.frame.file.clone(), place.frame.line)).cloned(),
            file: place.frame.file,
            line: place.frame.line,
            function: place.frame.function,
            called_from: place.called_from,
            work: place.work,
            samples: place_sum.samples,
            copied_pages_estimated: place_sum.pages,
            parents_copied_pages_estimated: place_sum.by_parents,
            copied_pages_error: error.pages(number),
            parents_copied_pages_error: sum.parents_error.pages(number),
            others_copied_pages_error: sum.others_error.pages(number),
            share: share(place_sum.pages, copied),
            error_points: 0.0,
            cause: most(&place_sum.causes).unwrap_or(Cause::Unknown),
        })
    };
    let mut lines = merge_equals(std::mem::take(&mut sum.places).into_iter().filter_map(named).collect());
    let name = |l: &ScriptLine| (l.file.clone(), l.line, l.function.clone());
    lines.sort_by(|a, b| b.copied_pages_estimated.cmp(&a.copied_pages_estimated).then_with(|| name(a).cmp(&name(b))));
    for line in &mut lines {
        line.error_points = error_points(line.copied_pages_error, copied);
    }
    let error_points = lines.iter().map(|line| line.error_points).reduce(f64::max);
    let script_samples = sum.script_samples.saturating_sub(without);
    summary::Script { samples: sum.samples, script_samples, error_points, lines }
}

/// By how many points a share of so many copies can be off.
pub fn error_points(pages_error: f64, of: u64) -> f64 {
    (100.0 * pages_error / of.max(1) as f64).min(100.0)
}

/// Lines that a reader cannot tell apart are one: a line may hold several functions.
fn merge_equals(mut lines: Vec<ScriptLine>) -> Vec<ScriptLine> {
    // The largest first: its function and cause are the line's.
    lines.sort_by(|a, b| {
        b.copied_pages_estimated.cmp(&a.copied_pages_estimated).then_with(|| a.function.cmp(&b.function))
    });
    let mut merged: Vec<ScriptLine> = Vec::new();
    let mut places: HashMap<_, usize> = HashMap::new();
    for line in lines {
        let from = line.called_from.as_ref().map(|from| (from.file.clone(), from.line));
        let place = (line.language.clone(), line.file.clone(), line.line, from);
        match places.get(&place).and_then(|&at| merged.get_mut(at)) {
            Some(same) => {
                same.samples += line.samples;
                same.copied_pages_estimated += line.copied_pages_estimated;
                same.parents_copied_pages_estimated += line.parents_copied_pages_estimated;
                same.share += line.share;
                // Where the two take turns, nothing changes: both together are off by no more than this.
                let add = |error: &mut f64, other: f64| *error = error.hypot(other);
                add(&mut same.copied_pages_error, line.copied_pages_error);
                add(&mut same.parents_copied_pages_error, line.parents_copied_pages_error);
                add(&mut same.others_copied_pages_error, line.others_copied_pages_error);
            }
            None => {
                places.insert(place, merged.len());
                merged.push(line);
            }
        }
    }
    merged
}
