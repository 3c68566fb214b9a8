//! The number of copies that a sampled stack stands for.

use super::interval::Seen;
use std::collections::HashMap;

/// The number of copies that each line stands for. A sample stands for the copies of its place since the one before it, and the
/// last one for those after it, too: the first copy of each place is sampled in any case, so that a line that made one copy on the
/// way is not told to have made a fair share of all. Besides, the sum of the squares of what each sample stands for.
pub fn spread(timed: &mut [(u32, u64, Seen)]) -> (HashMap<(u32, Option<u32>), u64>, u64) {
    timed.sort_by_key(|&(code, time_ns, _)| (code, time_ns));
    let mut sampled: HashMap<(u32, Option<u32>), u64> = HashMap::new();
    let mut squares = 0u64;
    for of_place in timed.chunk_by(|a, b| a.0 == b.0) {
        let (mut since, mut last, mut weight) = (0u64, None, 0u64);
        for &(code, _, seen) in of_place {
            since += 1;
            let line = match seen {
                Seen::Nothing | Seen::Event => continue,
                Seen::Native => None,
                Seen::Script(line) => Some(line),
            };
            last = Some((code, line));
            weight = std::mem::take(&mut since);
            squares = squares.saturating_add(weight * weight);
            *sampled.entry((code, line)).or_default() += weight;
        }
        if let Some(last) = last {
            *sampled.entry(last).or_default() += since;
            squares = squares.saturating_add((weight + since) * (weight + since) - weight * weight);
        }
    }
    (sampled, squares)
}
