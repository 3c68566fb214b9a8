//! Things that could not be seen: those that the tracer tells, and those that show only when all is added up.

use super::Profile;
use super::interval::Interval;
use super::mapping::{Group, MappingKind};
use super::summary::{Gap, Totals};
use crate::record::{Closed, GapKind, Header, Mode};
use std::collections::{BTreeMap, BTreeSet};

/// No more processes are listed by number.
const PIDS_MAX: usize = 10;
/// No more particulars of one kind are kept.
const DETAILS_MAX: usize = 20;

/// All of it, by kind.
pub fn all(profile: &Profile, totals: &Totals) -> Vec<Gap> {
    let mut kinds = Kinds::default();
    for gap in &profile.gaps {
        kinds.add(gap.what, gap.pid, &gap.detail);
    }
    for interval in &profile.intervals {
        let pid = interval.begin.pid;
        for (name, why) in &interval.refused {
            let name = if name.is_empty() { "anonymous memory" } else { name };
            kinds.add(GapKind::NotArmed, pid, &format!("{name}: {why}"));
        }
        match interval.end {
            None => kinds.add(
                GapKind::Other,
                pid,
                "cut off: only those of its pages are known whose first write was reported",
            ),
            Some((Closed::Lost, _)) => {
                kinds.add(
                    GapKind::Other,
                    pid,
                    "gone before its page tables were read: only pages whose first write was reported are known",
                );
            }
            Some(_) => {}
        }
    }
    lost_pages(profile, &mut kinds);
    without_events(profile, &mut kinds);
    if totals.pages.copy_or_reuse > 0 {
        let pages = totals.pages.copy_or_reuse;
        let frames = profile.header.as_ref().is_some_and(|header| header.frames);
        let root = if frames { "" } else { "; root can tell more of them apart" };
        let detail = match pages {
            1 => format!(
                "1 page that counts as copied may have been written without a copy, because no other process had it any more{root}"
            ),
            _ => format!(
                "of {pages} pages that count as copied some may have been written without a copy, because no other process had them any more{root}"
            ),
        };
        kinds.add(GapKind::Other, 0, &detail);
    }
    if profile.intervals.iter().any(|interval| interval.begin.mode == Mode::Trace) {
        let detail = "while --mode trace watches, writes through /proc/PID/mem into pages not written yet fail with EIO; \
                      --mode count lets them through";
        kinds.add(GapKind::Other, 0, detail);
    }
    let is_sampled = |header: &&Header| header.mode == Mode::Faults && header.frames && header.stacks_every > 0;
    if profile.header.as_ref().is_some_and(|header| is_sampled(&header)) {
        let detail = "while stacks are sampled, writes through /proc/PID/mem into one page of some may fail with EIO, before the program \
                      has written it; --stacks 0 lets them through";
        kinds.add(GapKind::Other, 0, detail);
    }
    if profile.stray > 0 {
        let detail = format!("{} records belong to no interval or process of the capture", profile.stray);
        kinds.add(GapKind::Other, 0, &detail);
    }
    kinds.0.into_values().collect()
}

/// Pages that went before they could be counted: each loss once, whoever had it.
fn lost_pages(profile: &Profile, kinds: &mut Kinds) {
    let is_trace = profile.header.as_ref().is_some_and(|header| header.mode == Mode::Trace);
    let help = if is_trace { "" } else { "; --mode trace sees most of them" };
    let by_exec = |interval: &&Interval| interval.end.is_some_and(|(closed, _)| closed == Closed::Exec);
    for (executed, kind, how) in [
        (true, GapKind::Executed, "copied before that were gone before they could be counted"),
        (false, GapKind::Other, "more were unmapped before they could be counted, or written from outside"),
    ] {
        let lossy = profile.intervals.iter().filter(|interval| interval.unmapped_uncounted > 0);
        let lossy: Vec<_> = lossy.filter(|interval| by_exec(interval) == executed).collect();
        let pages = lossy.iter().fold(0u64, |sum, interval| sum.saturating_add(interval.unmapped_uncounted));
        let pages = if pages == 1 { "1 page".to_owned() } else { format!("{pages} pages") };
        for interval in lossy {
            kinds.add(kind, interval.begin.pid, &format!("at most {pages} {how}{help}"));
        }
    }
}

/// Mappings whose copies have no events though each first write was to be one.
fn without_events(profile: &Profile, kinds: &mut Kinds) {
    for interval in profile.intervals.iter().filter(|interval| interval.begin.mode == Mode::Trace) {
        let is_one = |group: &&Group, copied: u64| {
            group.kind == MappingKind::File && copied > 0 && interval.without_events.contains(&group.name)
        };
        let found = interval.sums.mappings.iter().filter(|(group, pages)| is_one(group, pages.copied()));
        // In an order of their own, so that a capture renders to the same report each time.
        let names: BTreeSet<&str> = found.map(|(group, _)| group.name.as_str()).collect();
        for name in names {
            kinds.add(GapKind::WithoutEvents, interval.begin.pid, name);
        }
    }
}

#[derive(Default)]
struct Kinds(BTreeMap<(GapKind, String), Gap>);

impl Kinds {
    fn add(&mut self, what: GapKind, pid: i32, detail: &str) {
        // A gap of no certain kind is told apart by its particulars.
        let apart = if what == GapKind::Other { detail.to_owned() } else { String::new() };
        let empty = || Gap { what, times: 0, pids: Vec::new(), details: Vec::new() };
        let gap = self.0.entry((what, apart)).or_insert_with(empty);
        gap.times += 1;
        if pid != 0 && gap.pids.len() < PIDS_MAX && !gap.pids.contains(&pid) {
            gap.pids.push(pid);
        }
        let is_new = !detail.is_empty() && !gap.details.iter().any(|known| known == detail);
        if is_new && gap.details.len() < DETAILS_MAX {
            gap.details.push(detail.to_owned());
        }
    }
}
