//! All intervals together, and what looking cost.

use super::Profile;
use super::forks;
use super::sum::share;
use super::summary::{Interval, Overhead, Totals};
use crate::record::{Closed, Origin};

/// All intervals together.
pub fn totals(profile: &Profile, intervals: &[Interval], page_size: u64) -> Totals {
    let mut totals = Totals::default();
    (totals.intervals, totals.processes) = (intervals.len() as u64, profile.processes.len() as u64);
    for interval in intervals {
        totals.pages.add_all(&interval.pages);
        totals.shared_pages = totals.shared_pages.saturating_add(interval.held.shared);
    }
    totals.copied_pages = totals.pages.copied();
    totals.copied_pages_min = totals.pages.copy.saturating_add(totals.pages.private_file);
    let uncounted = intervals.iter().fold(0u64, |sum, interval| sum.saturating_add(interval.unmapped_uncounted_pages));
    let is_bounded = intervals.iter().all(|interval| !matches!(interval.closed, None | Some(Closed::Lost)));
    totals.copied_pages_max = is_bounded.then(|| totals.copied_pages.saturating_add(uncounted));
    let made = profile.processes.iter().filter(|process| matches!(process.origin, Origin::Forked | Origin::Shares));
    totals.started_afresh = made.filter(|process| !process.executed.is_empty()).count() as u64;
    totals.forks = forks::forks(&profile.processes);
    totals.copied_bytes = totals.copied_pages.saturating_mul(page_size);
    totals
}

/// The cost of looking.
pub fn overhead(profile: &Profile, duration_ns: u64) -> Overhead {
    let mut overhead = match &profile.finish {
        Some(finish) => Overhead {
            arming_ns: finish.arming_ns,
            events_ns: finish.events_ns,
            stacks_ns: finish.stacks_ns,
            closing_ns: finish.closing_ns,
            growth_ns: finish.growth_ns,
            weighing_ns: finish.weighing_ns,
            stops_ns: finish.stops_ns,
            stops: finish.stops,
            share: 0.0,
        },
        None => Overhead {
            arming_ns: profile.intervals.iter().fold(0, |sum, interval| interval.begin.arm_ns.saturating_add(sum)),
            ..Overhead::default()
        },
    };
    let Overhead { arming_ns, events_ns, stacks_ns, closing_ns, growth_ns, weighing_ns, stops_ns, .. } = overhead;
    let waited = [arming_ns, events_ns, stacks_ns, closing_ns, growth_ns, weighing_ns, stops_ns];
    overhead.share = share(waited.into_iter().fold(0, u64::saturating_add), duration_ns);
    overhead
}
