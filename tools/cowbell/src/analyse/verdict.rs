//! The verdict: why memory grew, where, and what helps. Computed from the summary alone.
//!
//! The verdict counts what workers did at work. Copies that they made while they started or shut down are told apart, and so are
//! processes of a wrapper (a shim, `env`, `setpriv`) that were over before it became the program.

use super::because::copies;
use super::cast::{Cast, cast};
use super::cause::Cause;
use super::forks;
use super::new_memory::new_memory;
use super::summary::{Interval, ProcessSummary, Summary};
use crate::record::{Closed, Frame, GapKind, Origin, Who};
use serde::Serialize;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Less than this, in bytes for each worker, is little.
pub const LITTLE: u64 = 1 << 20;
/// And this is much, if it is a tenth of what was shared.
const MUCH: u64 = 16 << 20;
/// Copies of one process that are told of, whatever part of its memory they are.
pub const MUCH_OF_ONE: u64 = 64 << 20;
/// And so much of all together.
const MUCH_IN_ALL: u64 = 256 << 20;
/// The part of what one process shared that is told of if it copied it, however little others copied.
const PART_OF_ONE: u64 = 2;
/// The kind of the verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictKind {
    /// Workers copied much of what they shared.
    Copied,
    /// Workers copied little and allocated little: all is well.
    Shared,
    /// Workers allocated much of their own, more than they copied.
    New,
    /// Workers may have copied much or little: too much went before it could be counted.
    Uncertain,
    /// All processes that were started executed a program, which shares nothing with its starter.
    NothingToShare,
    /// There was but one process.
    NothingForked,
    /// The processes had memory of their own when the tool came, and copied little since.
    CopiedBefore,
    /// The process that forked copied more than its children.
    ParentPays,
    /// No process was watched.
    #[default]
    Unwatched,
}

/// Why memory grew, where, and what helps.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    pub kind: VerdictKind,
    /// The workers: forked processes that executed no program, or copied [`LITTLE`] or more before. Their numbers in
    /// [`Summary::processes`].
    pub workers: Vec<usize>,
    /// Processes of a wrapper that were over before it became the program. Their numbers.
    pub folded: Vec<usize>,
    /// The memory that the workers shared with their parents at their forks, and that processes which were found running shared then.
    pub shared_bytes: u64,
    /// The bytes that they copied at work; an upper bound if it differs from the next.
    pub copied_bytes: u64,
    /// At least so much of it is certain.
    pub copied_bytes_min: u64,
    /// The part of the copied bytes that were pages of files, which nobody shared as memory; 0 where that part is little.
    pub file_bytes: u64,
    /// The part of the upper bound that was unmapped before it could be counted.
    pub gone_bytes: u64,
    /// The part of the compared copies that ended as their originals; `null` where too few were compared.
    pub same_share: Option<f64>,
    /// The memory that the workers allocated of their own, each at its most as far as found: at least so much, in order of
    /// `workers`.
    pub new_bytes: Vec<u64>,
    /// The bytes that workers copied while they were set up after their forks, as sampled stacks tell.
    pub starting_bytes: u64,
    /// The bytes that workers copied while they shut down, as sampled stacks tell.
    pub ending_bytes: u64,
    /// Copies on the way out are not told apart, and some worker had a way out on which an interpreter frees what it has.
    pub ending_is_unknown: bool,
    /// The bytes that processes that forked copied at work while their children lived.
    pub parent_bytes: u64,
    /// The memory that attached processes had of their own when the tool came.
    pub before_bytes: u64,
    /// The bytes that were resident in a worker for a moment beyond those that looks found, where they are many: new memory, or files that
    /// it had mapped.
    pub unseen_peak_bytes: u64,
    /// All processes were watched to their ends, as far as known, and whatever they copied.
    pub is_whole: bool,
    /// Why, most first.
    pub why: Vec<Why>,
    /// The places, most first.
    pub places: Vec<VerdictPlace>,
    /// The points by which the shares of places can be off at most (95 %), where these are many.
    pub places_error_points: Option<f64>,
    /// The reason why there is no place, where copies were made at work.
    pub places_unknown: Option<&'static str>,
    /// The reason why no place is a line of a script, where an interpreter made copies at work.
    pub no_line: Option<String>,
    /// The remedies, by what they save.
    pub helps: Vec<Help>,
}

/// A reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Why {
    /// The cause of copies; `null` for new memory.
    pub cause: Option<Cause>,
    /// In words.
    pub text: String,
    /// The cause's part of what the verdict is about.
    pub share: f64,
}

/// A place in code.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VerdictPlace {
    pub function: String,
    /// Empty where not known.
    pub file: String,
    /// 0 where not known.
    pub line: i32,
    pub called_from: Option<Frame>,
    /// The function that called it, if it merely copies bytes for others and there is no script.
    pub called_by: Option<String>,
    /// The line itself, where it is known.
    pub source: Option<String>,
    /// The place's part of what the verdict is about.
    pub share: f64,
    /// The points by which the share can be off (95 %), where it is an estimate.
    pub error_points: Option<f64>,
}

/// A remedy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Help {
    pub text: Cow<'static, str>,
    /// Lines to paste.
    pub paste: Vec<Cow<'static, str>>,
    /// The bytes that it can save at most; `null` where that is not known.
    pub saves_bytes: Option<u64>,
    /// Why it saves a part only, and how much is not known; `null` where that is not so.
    pub saves_a_part: Option<&'static str>,
}

/// The verdict on a summary.
pub fn verdict(summary: &Summary) -> Verdict {
    let page = summary.run.page_size;
    let (folded, cast) = cast(summary);
    let mut verdict = Verdict {
        workers: cast.workers.iter().copied().collect(),
        folded: folded.into_iter().collect(),
        // Those of frozen arenas, too.
        shared_bytes: cast.held(|held| held.shared.saturating_add(held.file)).saturating_mul(page),
        new_bytes: cast.workers.iter().map(|&at| cast.new_of(at, page)).collect(),
        before_bytes: sum(&cast.attached, |interval| interval.held.exclusive).saturating_mul(page),
        parent_bytes: sum(&cast.parents, at_work).saturating_mul(page),
        is_whole: is_whole(summary),
        unseen_peak_bytes: cast.unseen_peak(),
        ..Verdict::default()
    };
    let (pages, of) = (cast.pages(), cast.counted.as_slice());
    let ending = sum(of, |interval| cause_pages(interval, Cause::Exit));
    let starting = sum(of, |interval| cause_pages(interval, Cause::Start));
    let copied = pages.copied().saturating_sub(ending.saturating_add(starting));
    let bytes = |pages: u64| pages.saturating_mul(page);
    let gone = sum(of, |interval| interval.unmapped_uncounted_pages);
    verdict.copied_bytes = bytes(copied.saturating_add(gone));
    verdict.gone_bytes = bytes(gone);
    let undated = sum(of, |interval| interval.at_work.undated_pages);
    // Pages of frozen arenas are among what was shared.
    let of_files = sum(of, |interval| interval.at_work.file_pages).saturating_sub(cast.held(|held| held.file));
    verdict.file_bytes = if of_files.saturating_mul(10) >= copied { bytes(of_files) } else { 0 };
    verdict.copied_bytes_min = bytes(copied.saturating_sub(pages.copy_or_reuse).saturating_sub(undated));
    (verdict.starting_bytes, verdict.ending_bytes) = (bytes(starting), bytes(ending));
    verdict.ending_is_unknown = cast.ending_is_unknown();
    verdict.kind = kind(summary, &cast, &verdict, bytes(copied.saturating_sub(undated)));
    match verdict.kind {
        VerdictKind::New => new_memory(summary, &mut verdict),
        VerdictKind::ParentPays => copies(summary, &cast.parents, &mut verdict),
        _ => copies(summary, &cast.counted, &mut verdict),
    }
    if verdict.kind == VerdictKind::ParentPays && verdict.helps.is_empty() {
        let text = "end the children sooner, or write less while they live: each page that they share with the parent is copied when it \
                    writes there first";
        verdict.helps.push(Help { text: text.into(), paste: Vec::new(), saves_bytes: None, saves_a_part: None });
    }
    verdict.helps.extend(forks::to_programs(summary, verdict.kind == VerdictKind::NothingToShare));
    verdict
}

/// Tells whether all processes were watched to their ends, as far as known, and whatever they copied.
fn is_whole(summary: &Summary) -> bool {
    let hides = |gap: &GapKind| matches!(gap, GapKind::TooManyChildren | GapKind::NotArmed);
    let is_open = |interval: &Interval| matches!(interval.closed, None | Some(Closed::Lost));
    summary.cut.is_none()
        && summary.run.who == Who::Both
        && !summary.gaps.iter().any(|gap| hides(&gap.what))
        && !summary.intervals.iter().any(is_open)
}

/// `counted`: what was counted of the copies, and is not known to be of another phase.
fn kind(summary: &Summary, cast: &Cast<'_>, verdict: &Verdict, counted: u64) -> VerdictKind {
    let made = summary.processes.iter().enumerate().skip(1).filter(|(at, _)| !verdict.folded.contains(at));
    let made: Vec<&ProcessSummary> = made.map(|(_, process)| process).collect();
    let (copied, shared) = (counted, verdict.shared_bytes);
    let workers = verdict.workers.len() as u64;
    let parent_shared = cast.parents.iter().map(|interval| interval.held.shared).max().unwrap_or(0);
    let parent_shared = parent_shared.saturating_mul(summary.run.page_size);
    // A tenth of little is not worth a word: a worker writes some pages of any program's own.
    let is_much = |part: u64, of: u64, each: u64| {
        let (tenths, fifths) = (part.saturating_mul(10), part.saturating_mul(5));
        fifths >= of.max(1) || (tenths >= of && part >= MUCH.saturating_mul(each.max(1)))
    };
    let page = summary.run.page_size;
    let dated = |interval: &Interval| at_work(interval).saturating_sub(interval.at_work.undated_pages);
    let with_gone = |interval: &Interval| at_work(interval).saturating_add(interval.unmapped_uncounted_pages);
    // Others that copy nothing make it no better for the one that copies most of its memory.
    let is_half = |interval: &&Interval| {
        let held = interval.held.shared.saturating_add(interval.held.file);
        dated(interval).saturating_mul(PART_OF_ONE) >= held && dated(interval).saturating_mul(page) >= LITTLE
    };
    let are_large = is_large(of_each(&cast.counted, dated, page)) || cast.counted.iter().any(is_half);
    let may_be_large = is_large(of_each(&cast.counted, with_gone, page));
    let of_copies = |each: u64| {
        let may_be = is_much(verdict.copied_bytes, shared, each) || may_be_large;
        match is_much(copied, shared, each) || are_large {
            true if copied > 0 => VerdictKind::Copied,
            _ if may_be && verdict.gone_bytes > 0 => VerdictKind::Uncertain,
            _ => VerdictKind::Shared,
        }
    };
    let new = verdict.new_bytes.iter().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
    let is_part = new >= LITTLE.saturating_mul(workers.max(1)) && new.saturating_mul(10) >= shared;
    let grew = new > copied && (is_part || is_large(verdict.new_bytes.iter().copied()));
    if grew && new >= verdict.parent_bytes {
        return VerdictKind::New;
    }
    if verdict.parent_bytes > copied
        && verdict.parent_bytes >= LITTLE
        && (is_much(verdict.parent_bytes, parent_shared, 1) || is_large(of_each(&cast.parents, at_work, page)))
    {
        return VerdictKind::ParentPays;
    }
    if cast.counted.is_empty() {
        let afresh = |process: &&ProcessSummary| !process.executed.is_empty() || process.origin == Origin::Shares;
        return match made.len() {
            // Nobody knows what came after a capture was cut off.
            0 if summary.cut.is_some() => VerdictKind::Unwatched,
            0 => VerdictKind::NothingForked,
            _ if made.iter().all(afresh) => VerdictKind::NothingToShare,
            _ if !cast.parents.is_empty() => VerdictKind::Shared,
            _ => VerdictKind::Unwatched,
        };
    }
    if grew {
        return VerdictKind::New;
    }
    if cast.attached.is_empty() {
        return of_copies(workers);
    }
    let is_found = |process: &ProcessSummary| process.origin == Origin::Attached;
    let shares = cast.counted.iter().any(|interval| interval.held.shared > 0);
    // Memory that nobody else had was not copied, though it was written and page frames do not tell.
    if !shares && summary.processes.iter().all(is_found) && verdict.copied_bytes_min == 0 {
        return VerdictKind::NothingForked;
    }
    let late = verdict.before_bytes >= LITTLE && copied.saturating_mul(10) < verdict.before_bytes;
    if late { VerdictKind::CopiedBefore } else { of_copies(1) }
}

/// Tells whether this is so much, of each of several processes, that it is told of, whatever it is a part of.
fn is_large(of_each: impl Iterator<Item = u64>) -> bool {
    let (most, all) = of_each.fold((0, 0u64), |(most, all), one| (one.max(most), all.saturating_add(one)));
    most >= MUCH_OF_ONE || all >= MUCH_IN_ALL
}

/// The bytes of each process that has one of these intervals.
fn of_each(intervals: &[&Interval], of: impl Fn(&Interval) -> u64, page: u64) -> impl Iterator<Item = u64> {
    let mut pages: BTreeMap<(Option<usize>, i32), u64> = BTreeMap::new();
    for interval in intervals {
        let sum = pages.entry((interval.process, interval.pid)).or_default();
        *sum = sum.saturating_add(of(interval));
    }
    pages.into_values().map(move |pages| pages.saturating_mul(page))
}

/// Pages of the intervals together.
fn sum(intervals: &[&Interval], of: impl Fn(&Interval) -> u64) -> u64 {
    intervals.iter().map(|interval| of(interval)).fold(0, u64::saturating_add)
}

fn cause_pages(interval: &Interval, cause: Cause) -> u64 {
    interval.causes.iter().find(|share| share.cause == cause).map_or(0, |share| share.copied_pages)
}

/// Pages that were copied neither while a worker was set up nor on the way out.
fn at_work(interval: &Interval) -> u64 {
    let besides = cause_pages(interval, Cause::Start).saturating_add(cause_pages(interval, Cause::Exit));
    interval.copied_pages.saturating_sub(besides)
}
