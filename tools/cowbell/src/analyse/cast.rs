//! The processes and intervals of a summary, by their parts in the verdict.

use super::summary::{ByClass, Interval, ProcessSummary, Summary};
use super::verdict::{LITTLE, MUCH_OF_ONE};
use crate::record::{Closed, HeldPages, Mode, WatchReason};
use crate::stacks::languages::{self, Work};
use cowbell::fork::Ended;
use std::collections::BTreeSet;

/// The kernel adds up what each processor has counted of resident pages only now and then: its peak is right within this.
const COUNTED_MIN: u64 = 2 << 20;

/// The copies after the last sampled stack are much of what a worker copied from one of so many parts on.
const LAST_SHARE: u64 = 8;

/// The processes and intervals of the summary, by their parts in the verdict.
pub struct Cast<'a> {
    summary: &'a Summary,
    /// The workers.
    pub workers: BTreeSet<usize>,
    children: Vec<&'a Interval>,
    /// Those of processes that forked.
    pub parents: Vec<&'a Interval>,
    /// Those of processes that were found running.
    pub attached: Vec<&'a Interval>,
    /// The intervals whose copies the verdict is about: of children, and of processes that were found running.
    pub counted: Vec<&'a Interval>,
}

impl<'a> Cast<'a> {
    fn new(summary: &'a Summary, folded: &BTreeSet<usize>) -> Self {
        let became = summary.processes.first().and_then(|root| root.executed_ns.last().copied()).unwrap_or(0);
        let page = summary.run.page_size;
        let is_wrappers = |interval: &&Interval| {
            interval.process.is_some_and(|at| folded.contains(&at) || (at == 0 && interval.begin_ns < became))
        };
        let intervals: Vec<&Interval> = summary.intervals.iter().filter(|interval| !is_wrappers(interval)).collect();
        let of = |role: WatchReason| {
            let of_role = intervals.iter().copied().filter(move |interval| interval.role == role);
            // A process that executed a program was on its way there, unless it had worked before.
            let is_told = |interval: &&Interval| interval.closed != Some(Closed::Exec) || has_worked(interval, page);
            of_role.filter(is_told).collect::<Vec<_>>()
        };
        let children = of(WatchReason::Child);
        let workers = children.iter().filter_map(|interval| interval.process).collect();
        let attached = of(WatchReason::Attached);
        let counted = children.iter().chain(&attached).copied().collect();
        Self { summary, workers, children, parents: of(WatchReason::Parent), attached, counted }
    }

    fn of(&self, process: usize) -> impl Iterator<Item = &&'a Interval> {
        self.children.iter().filter(move |interval| interval.process == Some(process))
    }

    /// The pages that the processes had at first: a later interval of the same process begins with what is left of them.
    pub fn held(&self, of: impl Fn(&HeldPages) -> u64) -> u64 {
        let mut begun = BTreeSet::new();
        let first = self.counted.iter().filter(|interval| interval.process.is_none_or(|at| begun.insert(at)));
        first.fold(0, |sum: u64, interval| sum.saturating_add(of(&interval.held)))
    }

    /// Tells whether a worker ended by itself whose interpreter frees what it has then, and no stacks were sampled to tell, or none of
    /// much that it copied last.
    pub fn ending_is_unknown(&self) -> bool {
        let (stacks_every, page) = (self.summary.run.stacks_every, self.summary.run.page_size);
        let exited = |at: usize| {
            let ended = self.summary.processes.get(at).and_then(|process| process.ended);
            matches!(ended, Some(Ended::Exited(_)))
        };
        let frees = |interval: &&&Interval| {
            let language = interval.language.and_then(languages::by_id);
            let last = interval.at_work.after_stacks_pages;
            let is_much =
                last.saturating_mul(page) >= LITTLE && last.saturating_mul(LAST_SHARE) >= interval.copied_pages;
            (interval.mode == Mode::Count || stacks_every == 0 || is_much)
                && interval.closed == Some(Closed::Exit)
                && language.is_some_and(|language| language.remedy(Work::Exit).is_some())
        };
        self.children.iter().filter(frees).any(|interval| interval.process.is_some_and(exited))
    }

    /// The copies of the verdict.
    pub fn pages(&self) -> ByClass {
        let mut pages = ByClass::default();
        self.counted.iter().for_each(|interval| pages.add_all(&interval.pages));
        pages
    }

    /// The memory that a worker allocated of its own.
    pub fn new_of(&self, at: usize, page: u64) -> u64 {
        let pages = |of: fn(&ByClass) -> u64| {
            let pages = self.of(at).fold(0, |sum: u64, interval| sum.saturating_add(of(&interval.pages)));
            pages.saturating_mul(page)
        };
        let written = pages(|pages| pages.first_touch.saturating_add(pages.zero_page));
        // The account of a process that executed a program is the program's.
        let process = self.summary.processes.get(at).filter(|process| process.executed.is_empty());
        let Some(memory) = process.and_then(|process| process.memory.as_ref()) else {
            return written;
        };
        let resident = memory.resident.map_or(written, |resident| resident.new);
        let (Some(first), Some(most)) = (memory.private_first_bytes, memory.private_peak_bytes) else {
            return resident;
        };
        // A private copy of a file's page is one private page more, and no new memory.
        resident.max(most.saturating_sub(first).saturating_sub(pages(|pages| pages.private_file)))
    }

    /// The most that was resident in a worker for a moment, by the kernel's own peak, besides what looks found at their most: private
    /// memory, or files and shared mappings.
    pub fn unseen_peak(&self) -> u64 {
        let of_one = |&at: &usize| {
            let process = self.summary.processes.get(at).filter(|process| process.executed.is_empty())?;
            let memory = process.memory.as_ref()?;
            let seen = memory.private_peak_bytes?.saturating_add(memory.files_peak_bytes?);
            Some(memory.rss_peak_bytes.saturating_sub(seen).saturating_sub(COUNTED_MIN))
        };
        self.workers.iter().filter_map(of_one).max().filter(|bytes| *bytes >= MUCH_OF_ONE).unwrap_or(0)
    }
}

/// The processes of a wrapper that were over before it became the program, and the parts of the others. A shell that serves as a
/// wrapper asks others where the program is, and then executes it. One whose processes worked is none: it ran programs in turn.
pub fn cast(summary: &Summary) -> (BTreeSet<usize>, Cast<'_>) {
    let all = Cast::new(summary, &BTreeSet::new());
    let Some(became) = summary.processes.first().and_then(|root| root.executed_ns.last().copied()) else {
        return (BTreeSet::new(), all);
    };
    let page = summary.run.page_size;
    let was_over = |process: &ProcessSummary| process.ended_ns.is_some_and(|ended_ns| ended_ns <= became);
    let others = summary.processes.iter().enumerate().skip(1);
    let folded: BTreeSet<usize> = others.filter(|(_, process)| was_over(process)).map(|(at, _)| at).collect();
    let is_early = |interval: &&&Interval| match interval.process {
        Some(0) => interval.begin_ns < became,
        at => at.is_some_and(|at| folded.contains(&at)),
    };
    let copied = |interval: &&Interval| has_worked(interval, page);
    let grew = |at: &usize| all.workers.contains(at) && all.new_of(*at, page) >= LITTLE;
    if all.counted.iter().chain(&all.parents).filter(is_early).any(copied) || folded.iter().any(grew) {
        return (BTreeSet::new(), all);
    }
    let cast = Cast::new(summary, &folded);
    (folded, cast)
}

/// Tells whether a process copied more, for certain, than one does on its way to another program.
fn has_worked(interval: &Interval, page: u64) -> bool {
    interval.copied_pages.saturating_sub(interval.pages.copy_or_reuse).saturating_mul(page) >= LITTLE
}
