//! Lines that copy no more: gone, or perhaps written anew.

use super::{LineChange, Pair, base};
use crate::analyse::summary::Summary;

/// A line that has less than this share of its side's copies is not told to be gone.
const LINE_SHARE_MIN: f64 = 0.05;

/// Tells of each line whether it is gone, or what it may have become.
pub fn tell(lines: &mut [LineChange], pair: &Pair<'_>) {
    let total_before = pair.total().before.median_bytes;
    let is_zero = |runs: &[u64]| runs.iter().all(|bytes| *bytes == 0);
    // Lines that only the side after has: an edit of a line makes one of its file, or of its function.
    let new = |line: &&LineChange| is_zero(&line.change.before.runs_bytes);
    let new: Vec<LineChange> = lines.iter().filter(new).cloned().collect();
    for line in lines {
        let before = line.change.before.median_bytes;
        let is_told = before as f64 >= total_before.max(1) as f64 * LINE_SHARE_MIN;
        let would_be_seen = |run: &Summary| would_be_seen(run, before);
        if !is_told || !is_zero(&line.change.after.runs_bytes) || !pair.after.iter().all(would_be_seen) {
            continue;
        }
        let is_near = |new: &&LineChange| base(&new.file) == base(&line.file) || is_named_alike(new, line);
        let near: Vec<&LineChange> = new.iter().filter(is_near).collect();
        let sum: u64 = near.iter().map(|new| new.change.after.median_bytes).sum();
        line.gone = sum < before / 2;
        let largest = near.into_iter().max_by_key(|new| new.change.after.median_bytes).filter(|_| !line.gone);
        line.perhaps_now = largest.map(|new| format!("{}:{}", base(&new.file), new.line));
    }
}

/// Tells whether two lines stand in functions of one name; what stands in no function is named alike in all files.
fn is_named_alike(one: &LineChange, other: &LineChange) -> bool {
    one.function == other.function && !one.function.starts_with('<')
}

/// Tells whether a run's samples would show a line that copies so much: lines were sampled, or there was not as much to sample.
fn would_be_seen(run: &Summary, bytes: u64) -> bool {
    run.script.script_samples > 0 || run.totals.copied_bytes < bytes / 2
}
