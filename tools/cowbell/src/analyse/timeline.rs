//! The change of the memory of each process while it was watched: what it shared, copied, and had of its own.

use super::Profile;
use std::collections::BTreeMap;

/// All processes together have about so many points: a page for browsers holds them all.
const POINTS_MAX: usize = 24_000;
/// One process has at most so many, and at least a few.
const OF_ONE: std::ops::RangeInclusive<usize> = 8..=240;

/// The memory of one process over time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// The number of the process in the summary.
    pub process: usize,
    /// Ascending by time; each holds until the next one.
    pub points: Vec<Point>,
    /// Copies of which it is not known when they were made: they stand at the ends of their intervals.
    pub untimed_pages: u64,
}

/// The memory of a process at one time, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// The time.
    pub time_ns: u64,
    /// Shared when the interval opened, and not copied since.
    pub shared: u64,
    /// Copied in the interval.
    pub copied: u64,
    /// New private memory, as far as cowbell saw it grow.
    pub new: u64,
}

/// A change of a process' memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    /// An interval opened: so much is shared, and nothing copied yet.
    Begin(u64),
    /// Pages were copied, of shared memory and of files.
    Copied(u64, u64),
    Grew(u64),
    /// An interval closed.
    End,
}

/// The timelines of all processes that were watched, in the order of the summary's processes.
pub fn timelines(profile: &Profile) -> Vec<Timeline> {
    let mut changes: BTreeMap<usize, (Vec<(u64, Change)>, u64)> = BTreeMap::new();
    for interval in &profile.intervals {
        let Some(process) = interval.process else { continue };
        let (changes, untimed) = changes.entry(process).or_default();
        let end_ns = interval.end.map_or(profile.latest_ns, |(_, time_ns)| time_ns);
        changes.push((interval.begin.time_ns, Change::Begin(interval.begin.held.shared)));
        for trail in &interval.sums.trail {
            *untimed += if trail.time_ns == 0 { trail.pages } else { 0 };
            let time_ns = if trail.time_ns == 0 { end_ns } else { trail.time_ns };
            let (shared, of_file) = if trail.of_file { (0, trail.pages) } else { (trail.pages, 0) };
            changes.push((time_ns, Change::Copied(shared, of_file)));
        }
        changes.push((end_ns, Change::End));
    }
    for grew in &profile.growth {
        let process = profile.process_by_pid.get(&grew.pid).and_then(|process| changes.get_mut(process));
        if let Some((changes, _)) = process {
            changes.push((grew.time_ns, Change::Grew(grew.pages)));
        }
    }
    let most = (POINTS_MAX / changes.len().max(1)).clamp(*OF_ONE.start(), *OF_ONE.end());
    let one = |(process, (changes, untimed_pages))| Timeline { process, points: points(changes, most), untimed_pages };
    changes.into_iter().map(one).collect()
}

/// The changes added up, at no more than so many times.
fn points(mut changes: Vec<(u64, Change)>, most: usize) -> Vec<Point> {
    // In the order in which they were told where times are the same.
    changes.sort_by_key(|(time_ns, _)| *time_ns);
    let (Some((first, _)), Some((last, _))) = (changes.first(), changes.last()) else { return Vec::new() };
    let (first, step) = (*first, (last - first) / most as u64 + 1);
    let mut points: Vec<Point> = Vec::new();
    let (mut now, mut inherited) = (Point::default(), 0u64);
    for (time_ns, change) in changes {
        now.time_ns = time_ns;
        match change {
            Change::Begin(shared) => (now.shared, now.copied, inherited) = (shared, 0, shared),
            Change::Copied(shared, of_file) => {
                now.copied += shared + of_file;
                inherited = inherited.saturating_sub(shared);
                now.shared = inherited;
            }
            Change::Grew(pages) => now.new += pages,
            Change::End => {}
        }
        let slot = |time_ns: u64| (time_ns - first) / step;
        // The first point stays, whatever follows at once.
        let is_first = points.len() < 2;
        match points.last_mut() {
            Some(before) if !is_first && slot(before.time_ns) == slot(time_ns) => *before = now,
            _ => points.push(now),
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_leave_what_is_shared_and_growth_adds() {
        let changes = vec![
            (10, Change::Begin(100)),
            (20, Change::Copied(30, 5)),
            (25, Change::Grew(7)),
            (30, Change::End),
            (30, Change::Begin(60)),
            (40, Change::End),
        ];
        let found = points(changes, 1000);
        let at = |time_ns, shared, copied, new| Point { time_ns, shared, copied, new };
        assert_eq!(
            found,
            [at(10, 100, 0, 0), at(20, 70, 35, 0), at(25, 70, 35, 7), at(30, 60, 0, 7), at(40, 60, 0, 7)]
        );
    }

    #[test]
    fn many_changes_are_few_points_and_the_last_is_kept() {
        let begin = [(0, Change::Begin(10_000))];
        let copies = (0..10_000).map(|nth| (nth * 1000, Change::Copied(1, 0)));
        let found = points(begin.into_iter().chain(copies).collect(), 50);
        assert!(found.len() <= 52 && found.len() > 40, "{}", found.len());
        assert_eq!(found.last(), Some(&Point { time_ns: 9_999_000, shared: 0, copied: 10_000, new: 0 }));
        assert!(found.windows(2).all(|two| two[0].time_ns < two[1].time_ns && two[0].copied < two[1].copied));
    }
}
