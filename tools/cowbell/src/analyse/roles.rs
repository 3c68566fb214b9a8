//! The figures of each process, with the bounds of what is known, and the role that it plays in the tree.

use super::summary::{Gap, Interval, ProcessSummary, Summary};
use crate::record::{Closed, GapKind, Origin};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::ops::AddAssign;

/// The role that processes have in common which do the same work: what they run, and how many forks they are below the first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Role {
    /// Forks below the process that was started or attached to; 0 is that one.
    pub depth: u32,
    /// The program that they run, as one line.
    pub command: String,
}

/// A figure as far as it is certain. Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bounds {
    /// At least so much.
    pub least: u64,
    /// At most so much; `null` where there is no bound.
    pub most: Option<u64>,
}

impl Bounds {
    /// Nothing, for certain.
    pub const NOTHING: Self = Self { least: 0, most: Some(0) };
    /// Nothing is known.
    pub const UNKNOWN: Self = Self { least: 0, most: None };

    fn in_bytes(self, page_size: u64) -> Self {
        let bytes = |pages: u64| pages.saturating_mul(page_size);
        Self { least: bytes(self.least), most: self.most.map(bytes) }
    }
}

impl AddAssign for Bounds {
    fn add_assign(&mut self, other: Self) {
        self.least = self.least.saturating_add(other.least);
        self.most = self.most.zip(other.most).map(|(a, b)| a.saturating_add(b));
    }
}

/// The figures of one process, or of several together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Bytes that were copied.
    pub copied: Bounds,
    /// Copies that are the same as their originals again.
    pub for_nothing: Bounds,
    /// Memory that forked processes allocated themselves, and had at their ends.
    pub new: Bounds,
}

impl Figures {
    /// Nothing, for certain.
    pub const NOTHING: Self = Self { copied: Bounds::NOTHING, for_nothing: Bounds::NOTHING, new: Bounds::NOTHING };
    /// Nothing is known.
    pub const UNKNOWN: Self = Self { copied: Bounds::UNKNOWN, for_nothing: Bounds::UNKNOWN, new: Bounds::UNKNOWN };
}

impl AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.copied += other.copied;
        self.for_nothing += other.for_nothing;
        self.new += other.new;
    }
}

/// A process that was watched.
#[derive(Clone, Debug)]
pub struct WatchedProcess {
    pub pid: i32,
    pub role: Role,
    pub figures: Figures,
    /// Copied pages as they are counted, in bytes: with those that may have been reused.
    pub copied_bytes: u64,
}

/// The processes that were watched, in the order in which they came to notice.
pub fn watched(summary: &Summary) -> Vec<WatchedProcess> {
    let roles = roles(&summary.processes);
    let unbounded = Unbounded::of(summary);
    let mut of: BTreeMap<(usize, i32), (Figures, u64)> = BTreeMap::new();
    for interval in &summary.intervals {
        // A process that the capture does not have comes last, by its id.
        let key = (interval.process.unwrap_or(usize::MAX), interval.pid);
        let (figures, copied) = of.entry(key).or_insert((Figures::NOTHING, 0));
        *figures += in_interval(interval, summary.run.page_size, unbounded.has(interval.pid));
        *copied = copied.saturating_add(interval.copied_bytes);
    }
    let one = |((process, pid), (mut figures, copied_bytes)): ((usize, i32), (Figures, u64))| {
        figures.new = summary.processes.get(process).map_or(Bounds::UNKNOWN, new);
        let unknown = || Role { depth: 0, command: "unknown program".to_owned() };
        let role = roles.get(process).cloned().unwrap_or_else(unknown);
        WatchedProcess { pid, role, figures, copied_bytes }
    };
    of.into_iter().map(one).collect()
}

/// Why what the processes came to together has no upper bound, if it has none; one reason.
pub fn unwatched(summary: &Summary) -> Option<String> {
    let has = |kind: GapKind| summary.gaps.iter().any(|gap| gap.what == kind);
    let is_watched = |pid: &i32| summary.intervals.iter().any(|interval| interval.pid == *pid);
    match (&summary.cut, Unbounded::of(summary)) {
        (Some(cut), _) => Some(format!("the capture was cut off: {cut}")),
        _ if has(GapKind::TooManyChildren) => Some("processes beyond --max-children ran unwatched".to_owned()),
        (None, Unbounded::These(pids)) if pids.iter().all(is_watched) => None,
        (None, _) => Some("a process, or memory of one, could not be watched".to_owned()),
    }
}

/// Tells whether all that processes copied has an upper bound: nobody ran unwatched, and all memory was watched.
pub fn is_all_watched(summary: &Summary) -> bool {
    unwatched(summary).is_none() && matches!(Unbounded::of(summary), Unbounded::These(pids) if pids.is_empty())
}

/// Tells whether processes of this role may have run without being watched at all.
pub fn may_be_unwatched(summary: &Summary, role: &Role) -> bool {
    let unbounded = Unbounded::of(summary);
    let plays = || roles(&summary.processes).into_iter().zip(&summary.processes).filter(|(played, _)| played == role);
    unwatched(summary).is_some()
        || matches!(unbounded, Unbounded::All)
        || plays().any(|(_, process)| unbounded.has(process.pid))
}

/// The number of processes that ran unwatched and may have played any role; `None` where not even that is known.
pub fn beyond(summary: &Summary) -> Option<u64> {
    let beyond = |gap: &&Gap| gap.what == GapKind::TooManyChildren;
    summary.cut.is_none().then(|| summary.gaps.iter().filter(beyond).map(|gap| gap.times).sum())
}

fn in_interval(interval: &Interval, page_size: u64, unbounded: bool) -> Figures {
    let pages = &interval.pages;
    let is_open = unbounded || matches!(interval.closed, None | Some(Closed::Lost));
    let most = interval.copied_pages.saturating_add(interval.unmapped_uncounted_pages);
    let copied = Bounds { least: pages.copy.saturating_add(pages.private_file), most: (!is_open).then_some(most) };
    let contents = &interval.contents;
    let for_nothing = Bounds {
        // One that is the same again may be one that was reused.
        least: contents.identical_pages.saturating_sub(pages.copy_or_reuse),
        most: copied.most.map(|most| {
            let differ = contents.compared_pages.saturating_sub(contents.identical_pages);
            most.saturating_sub(differ)
        }),
    };
    Figures { copied: copied.in_bytes(page_size), for_nothing: for_nothing.in_bytes(page_size), new: Bounds::NOTHING }
}

/// The memory that a process allocated. That of one that was not forked is its data set, which is no growth.
fn new(process: &ProcessSummary) -> Bounds {
    let resident = process.memory.as_ref().and_then(|memory| memory.resident);
    match (process.origin, resident) {
        (Origin::Forked, Some(resident)) => Bounds { least: resident.new, most: Some(resident.new) },
        (Origin::Forked, None) => Bounds::UNKNOWN,
        _ => Bounds::NOTHING,
    }
}

/// The processes of which memory went unwatched.
enum Unbounded {
    All,
    These(Vec<i32>),
}

impl Unbounded {
    fn of(summary: &Summary) -> Self {
        if summary.cut.is_some() {
            return Self::All;
        }
        let mut pids = Vec::new();
        for gap in summary.gaps.iter().filter(|gap| gap.what == GapKind::NotArmed) {
            // Only some of many are listed.
            if gap.pids.is_empty() || gap.times > gap.pids.len() as u64 * gap.details.len().max(1) as u64 {
                return Self::All;
            }
            pids.extend(&gap.pids);
        }
        Self::These(pids)
    }

    fn has(&self, pid: i32) -> bool {
        match self {
            Self::All => true,
            Self::These(pids) => pids.contains(&pid),
        }
    }
}

/// The role of each process.
pub fn roles(processes: &[ProcessSummary]) -> Vec<Role> {
    let mut depths: HashMap<i32, u32> = HashMap::new();
    let role = |process: &ProcessSummary| {
        let depth = depths.get(&process.parent).map_or(0, |above| above.saturating_add(1));
        depths.insert(process.pid, depth);
        // By what it was forked as: what it executed later shares nothing.
        Role { depth, command: process.command.join(" ") }
    };
    processes.iter().map(role).collect()
}
