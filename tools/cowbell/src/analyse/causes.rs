//! Causes added up: what each rests on, which pages were copied on the way out, and what helps.

use super::cause::{self, Cause, Difference, Reason};
use super::code::{self, Purpose};
use super::copied::{Copied, SeenParts};
use super::interval::Interval;
use super::name::Named;
use super::phases::Phase;
use super::remedy::{self, Circumstances};
use super::runtime::Runtime;
use super::sum::{most, share};
use super::summary::{self, CauseShare};
use super::syscalls;
use crate::record::Wrote;
use crate::stacks::languages::{Language, Spares, Work};
use std::collections::HashMap;

/// Pages by cause and what runs there.
pub type Causes = HashMap<(Cause, Runtime), CauseSum>;

#[derive(Clone, Default)]
pub struct CauseSum {
    /// The number of pages.
    pub pages: u64,
    /// Those of them whose code was not seen.
    without_code: u64,
    /// Those of them whose code has no name.
    without_name: u64,
    /// Those of them that changed in a few words only.
    few_words: u64,
    /// Those of them that glibc's allocator wrote first when it gave out memory there.
    given_out: u64,
    /// Those of them that the kernel wrote on behalf of calls that read.
    reads: u64,
    /// Those of them that an interpreter copied as it took itself down, or destructors as they freed memory.
    torn_down: u64,
    /// Those whose line in a program was sampled, and those of them where the program itself asked for a collection.
    seen: u64,
    asked: u64,
    /// Those on which a collector first wrote what it keeps for itself, beside objects or apart from them.
    of_collector: u64,
    /// The pages that it took for itself and that were no copies.
    collector_new: u64,
    /// Those of an interval of which that is not known.
    collector_unknown: u64,
    /// Those that were seen to be written for the count of an object of a class, and those for any count.
    object_counts: u64,
    counts: u64,
    /// Those of them that a search wrote which keeps its place.
    positions: u64,
    /// Why the cause is not known.
    reasons: HashMap<Reason, u64>,
    /// The files of code without a name.
    files: HashMap<String, u64>,
}

impl CauseSum {
    /// The sum of new pages that a collector took for itself in an interval. `pages`: the pages that were copied for it.
    pub fn of_new(pages: u64, collector_new: Option<u64>) -> Self {
        let collector_unknown = if collector_new.is_none() { pages } else { 0 };
        Self { collector_new: collector_new.unwrap_or(0), collector_unknown, ..Self::default() }
    }

    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.pages = self.pages.saturating_add(other.pages);
        self.without_code = self.without_code.saturating_add(other.without_code);
        self.without_name = self.without_name.saturating_add(other.without_name);
        self.few_words = self.few_words.saturating_add(other.few_words);
        self.given_out = self.given_out.saturating_add(other.given_out);
        self.reads = self.reads.saturating_add(other.reads);
        self.torn_down = self.torn_down.saturating_add(other.torn_down);
        self.seen = self.seen.saturating_add(other.seen);
        self.asked = self.asked.saturating_add(other.asked);
        self.of_collector = self.of_collector.saturating_add(other.of_collector);
        self.collector_new = self.collector_new.saturating_add(other.collector_new);
        self.collector_unknown = self.collector_unknown.saturating_add(other.collector_unknown);
        self.object_counts = self.object_counts.saturating_add(other.object_counts);
        self.counts = self.counts.saturating_add(other.counts);
        self.positions = self.positions.saturating_add(other.positions);
        for (&reason, &pages) in &other.reasons {
            let sum = self.reasons.entry(reason).or_default();
            *sum = sum.saturating_add(pages);
        }
        for (file, &pages) in &other.files {
            let sum = self.files.entry(file.clone()).or_default();
            *sum = sum.saturating_add(pages);
        }
    }
}

/// Tells whether this is glibc's allocator as it gives out memory, or a copy of bytes that it has made for that.
fn gives_out(named: &Named<'_>) -> bool {
    let own = named.place.as_ref().map(|place| place.function);
    let caller = named.caller.as_ref().filter(|caller| !caller.is_indirect && !caller.is_estimated);
    let by_caller = own.is_some_and(code::moves_bytes).then_some(caller).flatten();
    own.into_iter().chain(by_caller.map(|caller| caller.function.as_str())).any(code::gives_out)
}

/// Tells whether this is code that gives memory or references up.
fn frees(named: &Named<'_>) -> bool {
    matches!(named.purpose, Some(Purpose::Allocator | Purpose::References)) && !gives_out(named)
}

/// The part that pages add to the sum of their cause. `torn_down`: an interpreter was taking itself down then. `work`: that of the line
/// at which they were sampled. `wrote`: the kind of data that was first written there.
pub fn cause_sum(
    copied: &Copied,
    named: Option<&Named<'_>>,
    pages: u64,
    (cause, reason): (Cause, Option<Reason>),
    runtime: Runtime,
    (torn_down, work, wrote): (bool, Option<Work>, Wrote),
) -> CauseSum {
    let of = |is: bool| if is { pages } else { 0 };
    let is_of_objects = named.is_some_and(|named| named.purpose == Some(Purpose::ObjectReferences));
    let is_object_count = copied.wrote == Wrote::ObjectCount || copied.wrote == Wrote::Other && is_of_objects;
    let is_nameless = named.is_some_and(|named| named.purpose.is_none());
    let file = named.and_then(|named| named.file).filter(|_| is_nameless);
    CauseSum {
        pages,
        without_code: of(named.is_none() && copied.syscall.is_none()),
        without_name: of(is_nameless),
        few_words: of(copied.change == Difference::Few),
        given_out: of(named.is_some_and(gives_out)),
        reads: of(copied.syscall.is_some_and(syscalls::reads)),
        torn_down: of(cause == Cause::Exit && (torn_down || runtime.language().is_none() && named.is_some_and(frees))),
        seen: of(matches!(copied.seen, SeenParts::Script(_))),
        asked: of(work == Some(Work::AskedCollector)),
        of_collector: of(wrote == Wrote::CollectorHeader),
        collector_new: 0,
        collector_unknown: 0,
        object_counts: of(is_object_count),
        counts: of(is_object_count || of_any(copied.wrote) == Wrote::ReferenceCount || copied.wrote == Wrote::Flags),
        positions: of(named.is_some_and(|named| named.purpose == Some(Purpose::Positions))),
        reasons: reason.map(|reason| (reason, pages)).into_iter().collect(),
        files: file.map(|file| (file.to_owned(), pages)).into_iter().collect(),
    }
}

/// The cause of a copy of this kind, in a phase of the worker. While it starts and ends that is the cause, whatever is done then, but
/// for what has causes of its own.
pub fn cause_of(
    interval: &Interval,
    runtime: Runtime,
    copied: &Copied,
    named: Option<&Named<'_>>,
    (phase, has_teardown): (Phase, bool),
) -> (Cause, Option<Reason>) {
    // The interpreter gave back at its end what its program had only read.
    let is_gone = has_teardown && copied.change == Difference::Gone;
    // Where values are freed one by one the contents at the end are those of freed memory.
    let is_freed = has_teardown && !runtime.has_collector() && copied.change.is_compared();
    let change = if is_gone || is_freed { Difference::Unknown } else { copied.change };
    let told = cause_at_work(interval, runtime, &Copied { change, ..*copied }, named);
    let told = if is_freed && told.0 == Cause::Unknown { (Cause::Unknown, Some(Reason::Freed)) } else { told };
    match (told.0, phase) {
        (Cause::Stack | Cause::Kernel, _) | (_, Phase::Work) => told,
        (_, Phase::Start) => (Cause::Start, None),
        (_, Phase::End) => (Cause::Exit, None),
    }
}

fn cause_at_work(
    interval: &Interval,
    runtime: Runtime,
    copied: &Copied,
    named: Option<&Named<'_>>,
) -> (Cause, Option<Reason>) {
    let Copied { change, objects, syscall, in_stack, code, .. } = *copied;
    let wrote = match first_wrote(interval, copied) {
        Wrote::Unknown if named.is_some_and(|named| named.is_atomic) => Wrote::Atomic,
        wrote => wrote,
    };
    cause::likely(&cause::CopyEvidence {
        change,
        objects,
        wrote,
        code: code != 0,
        purpose: named.and_then(|named| named.purpose),
        by_kernel: syscall.is_some(),
        in_stack,
        runtime,
    })
}

/// The kind of data that was first written on a copied page: as it was sampled there, or else as the samples of the same instruction agree.
pub fn first_wrote(interval: &Interval, copied: &Copied) -> Wrote {
    let by_instruction = || interval.sums.wrote.get(&copied.code).map_or(Wrote::Unknown, agreed);
    if copied.wrote == Wrote::Unknown { by_instruction() } else { of_any(copied.wrote) }
}

/// The kind of data that was written, without the kind of value that a reference count is of.
fn of_any(wrote: Wrote) -> Wrote {
    if wrote == Wrote::ObjectCount { Wrote::ReferenceCount } else { wrote }
}

/// The kind of data that an instruction writes, if its samples say the same nearly each time.
fn agreed(samples: &HashMap<Wrote, u64>) -> Wrote {
    let all: u64 = samples.values().sum();
    let mut kinds: HashMap<Wrote, u64> = HashMap::new();
    for (wrote, times) in samples {
        *kinds.entry(of_any(*wrote)).or_default() += times;
    }
    most(&kinds).filter(|most| kinds.get(most).is_some_and(|n| n * 10 >= all * 9)).unwrap_or_default()
}

/// The causes, most copied first.
pub fn causes(table: &Causes, copied: u64) -> Vec<CauseShare> {
    let mut by_cause: HashMap<Cause, (CauseSum, HashMap<Runtime, u64>)> = HashMap::new();
    for ((cause, runtime), added) in table {
        let (sum, runtimes) = by_cause.entry(*cause).or_default();
        sum.add(added);
        runtimes.insert(*runtime, added.pages);
    }
    let named = |(cause, (sum, runtimes)): (Cause, (CauseSum, HashMap<Runtime, u64>))| {
        let runtime = most(&runtimes).unwrap_or_default();
        let is_most = |part: u64| part.saturating_mul(2) > sum.pages;
        let circumstances = Circumstances {
            few_words: is_most(sum.few_words),
            given_out: is_most(sum.given_out),
            reads: is_most(sum.reads),
            // Leaving at once would lose the work that the program itself did on its way out.
            torn_down: sum.torn_down.saturating_mul(10) >= sum.pages.saturating_mul(9),
            asked: sum.asked.saturating_mul(2) > sum.seen,
            only_asked: sum.asked > 0
                && sum.asked.saturating_mul(10) >= sum.seen.saturating_mul(9)
                && sum.collector_unknown == 0,
            of_tables: is_most(sum.of_collector),
            of_objects: sum.object_counts.saturating_mul(2) > sum.counts,
            of_positions: is_most(sum.positions),
        };
        let reason =
            |(reason, copied_pages): (Reason, u64)| summary::ReasonShare { reason, text: reason.text(), copied_pages };
        let mut reasons: Vec<_> = sum.reasons.into_iter().map(reason).collect();
        reasons.sort_by_key(|share| (std::cmp::Reverse(share.copied_pages), share.reason));
        let mut files: Vec<_> = sum.files.into_iter().collect();
        files.sort_by(|(a, a_pages), (b, b_pages)| b_pages.cmp(a_pages).then_with(|| a.cmp(b)));
        let remedy = remedy::remedy(cause, runtime, circumstances);
        // A page that changes must be copied: there is a word on it, and nothing to save for certain.
        let is_certain = remedy.is_some() && cause != Cause::RealWrite;
        let has_objects = cause == Cause::ReferenceCount && sum.object_counts.saturating_mul(10) > sum.counts;
        let language = runtime.language().filter(|_| has_objects);
        let beside = language.and_then(Language::beside_object_references).map(Spares::Part);
        let spares = is_certain.then(|| beside.unwrap_or_else(|| remedy::spares(cause, runtime, circumstances)));
        CauseShare {
            cause,
            name: cause.name(),
            copied_pages: sum.pages,
            share: share(sum.pages, copied),
            without_code_pages: sum.without_code,
            without_name_pages: sum.without_name,
            reasons,
            why: remedy::why(cause, runtime, circumstances),
            remedy,
            paste: remedy::paste(cause, runtime, circumstances),
            spared_pages: match spares {
                Some(Spares::All) => sum.pages,
                Some(Spares::Objects) => sum.pages.saturating_sub(sum.of_collector.saturating_add(sum.collector_new)),
                Some(Spares::Part(_)) | None => 0,
            },
            spares_a_part: if let Some(Spares::Part(why)) = spares { Some(why) } else { None },
            nameless_file: files.into_iter().next().map(|(file, _)| file),
        }
    };
    let mut causes: Vec<_> = by_cause.into_iter().map(named).collect();
    causes.sort_by_key(|share| (std::cmp::Reverse(share.copied_pages), share.cause));
    causes
}

#[cfg(test)]
mod tests;
