//! The parts of the report that say how much was pointless and why, what was not seen, and what looking cost.

use super::Verbosity;
use super::lines::{List, PAGES, Row, SHARE, Text, clean, count, percent, some, time};
use super::table::words;
use crate::analyse::Cause;
use crate::analyse::summary::{CauseShare, Gap, Interval, Summary};
use crate::record::{Closed, GapKind, Mode, WatchReason};
use crate::stacks::languages;
use cowbell::page::Bytes;

/// Below this share of the copies a cause is named without its remedy.
const REMEDY_SHARE_MIN: f64 = 0.03;
/// The most reasons that are told why a cause is not known.
const REASONS_MAX: usize = 3;

/// Says how much of the copying was pointless.
pub fn contents(text: &mut Text, summary: &Summary) {
    let contents = &summary.contents;
    if contents.compared_pages == 0 {
        return;
    }
    text.heading("What changed on copied pages: share of the copies that were compared");
    let compared = contents.compared_pages;
    if compared < summary.totals.copied_pages {
        let of = count(summary.totals.copied_pages);
        text.faint_sentence(21, &format!("{} of {of} copies were compared", count(compared)));
    }
    let mut row = |pages: u64, what: &str| {
        if pages > 0 {
            let share = percent(pages as f64 / compared as f64);
            text.line(&format!("{:>11} {share:>7}  {what}", count(pages)));
        }
    };
    row(contents.identical_pages, "the same as the original again: nothing written there lasted");
    row(contents.count_pages, "changed in reference counts only, or nearly only");
    let other = compared.saturating_sub(contents.identical_pages.saturating_add(contents.count_pages));
    row(other, "changed otherwise");
    if let Some(amplification) = contents.amplification {
        let changed = some(contents.changed_bytes, "byte", "bytes");
        // A fraction of a byte is worth its figure where the bytes are few.
        let for_each = if amplification < 10.0 {
            format!("{amplification:.1} bytes")
        } else {
            Bytes(amplification as u64).to_string()
        };
        text.faint_sentence(21, &format!("{changed} changed in all: {for_each} copied for each"));
    }
}

/// Why, and what helps.
pub fn causes(text: &mut Text, summary: &Summary) {
    if summary.causes.is_empty() {
        return;
    }
    text.heading("Likely causes, with their share of all copies, and what is known to help");
    let columns = [PAGES, SHARE, words("", 0, 2)];
    let list = List { entries: &summary.causes, columns: &columns, top: usize::MAX, in_full: false };
    text.table(
        &list,
        |cause| cause.share,
        |cause| {
            let cells = vec![count(cause.copied_pages), percent(cause.share), cause.name.to_owned()];
            let is_told = cause.share >= REMEDY_SHARE_MIN;
            let sentences = if is_told { cause_sentences(cause, summary) } else { Vec::new() };
            Row { cells, below: sentences.into_iter().map(|sentence| (23, sentence)).collect() }
        },
    );
}

/// Sentences on a cause besides its name: why it is not known, what would tell more, and what helps.
fn cause_sentences(cause: &CauseShare, summary: &Summary) -> Vec<String> {
    let mut sentences: Vec<String> = Vec::new();
    let reasons = cause.reasons.iter().take(REASONS_MAX);
    sentences.extend(reasons.map(|reason| match &cause.reasons[..] {
        [_] => reason.text.to_owned(),
        _ => format!("{}: {}", some(reason.copied_pages, "page", "pages"), reason.text),
    }));
    let is_open = matches!(cause.cause, Cause::Unknown | Cause::CountOrCollector);
    let is_most = |part: u64| part.saturating_mul(2) > cause.copied_pages;
    let named = cause.reasons.iter().filter(|share| share.reason.wants_names());
    let named = named.fold(0u64, |sum, share| sum.saturating_add(share.copied_pages));
    let may_be_named = cause.cause == Cause::CountOrCollector || is_most(named);
    if is_open && summary.run.mode == Mode::Count {
        sentences.push("--mode faults shows the code".to_owned());
    } else if let (true, Some(file)) = (may_be_named && is_most(cause.without_name_pages), &cause.nameless_file) {
        let package = symbols_package(file).map_or(String::new(), |package| format!(" (Debian: {package})"));
        sentences.push(format!("symbols of {} would tell{package}", clean(file)));
    }
    let is_attached = summary.intervals.iter().any(|interval| interval.role == WatchReason::Attached);
    if is_attached && !summary.run.frames && cause.reasons.iter().any(|reason| reason.reason.wants_comparing()) {
        sentences.push(
            "as root, cowbell compares copies of processes that it finds running with what they share".to_owned(),
        );
    }
    sentences.extend(cause.remedy.map(str::to_owned));
    sentences
}

/// Debian's package with the symbols of a file, where that is certain.
fn symbols_package(file: &str) -> Option<String> {
    languages::of_files(std::iter::once(file))?.symbols_package(file)
}

/// Says what could not be seen.
pub fn gaps(text: &mut Text, summary: &Summary, verbosity: &Verbosity) {
    let sentences = gap_sentences(summary, verbosity);
    if sentences.is_empty() {
        return;
    }
    text.heading("What could not be seen");
    for sentence in sentences {
        text.faint_sentence(2, &sentence);
    }
    if let Some(rest) = told_gaps(summary, verbosity).count().checked_sub(verbosity.top).filter(|rest| *rest > 0) {
        text.faint(&format!("  and {rest} more kinds"));
    }
}

/// Sentences on what could not be seen, a sentence for each kind.
pub fn gap_sentences(summary: &Summary, verbosity: &Verbosity) -> Vec<String> {
    told_gaps(summary, verbosity).take(verbosity.top).map(|gap| gap_sentence(gap, verbosity)).collect()
}

/// The gaps, without what the processes of a wrapper copied before they executed programs, where nobody else did: the verdict is about what
/// came after them. All that was copied, which `-v` tells, is bounded by it.
fn told_gaps<'a>(summary: &'a Summary, verbosity: &Verbosity) -> impl Iterator<Item = &'a Gap> {
    let folded = &summary.verdict.folded;
    // The first process was the wrapper until it executed the program.
    let wrapped = |at: usize| folded.contains(&at) || (at == 0 && !folded.is_empty());
    let is_one = |interval: &&Interval| {
        let is_lossy = interval.closed == Some(Closed::Exec) && interval.unmapped_uncounted_pages > 0;
        is_lossy && interval.process.is_some_and(wrapped)
    };
    let (of_wrapper, is_all) = (summary.intervals.iter().filter(is_one).count() as u64, verbosity.verbose);
    summary.gaps.iter().filter(move |gap| match gap.what {
        _ if is_all => true,
        GapKind::Executed => gap.times > of_wrapper,
        // This gap stands beside the verdict's places, where these are to be lines.
        GapKind::NoLines => false,
        _ => true,
    })
}

fn gap_sentence(gap: &Gap, verbosity: &Verbosity) -> String {
    let processes = some(gap.times, "process", "processes");
    let what = match gap.what {
        GapKind::TooManyChildren => format!("{processes} beyond --max-children ran unwatched"),
        GapKind::SharesMemory => {
            format!("{processes} shared memory with the parent (vfork, posix_spawn): there is nothing to copy")
        }
        GapKind::NotArmed => "not everything could be watched".to_owned(),
        GapKind::EventsDropped => "events came too fast to be kept: their pages are counted, not explained".into(),
        GapKind::Executed => format!("{processes} executed another program"),
        GapKind::CountedOnly => {
            format!("of {processes} the copies could only be counted: not when they were made, nor by which code")
        }
        GapKind::PrivilegeWithheld => {
            "programs ran without their privileges, which the kernel withholds from what a user without CAP_SYS_PTRACE \
             traces"
                .to_owned()
        }
        GapKind::WithoutEvents => {
            "which code copied pages of private mappings of files, because the kernel reports no writes there"
                .to_owned()
        }
        GapKind::StillRunning => format!("{processes} still ran when the watch ended"),
        GapKind::NotWeighed => "the memory of some processes was not added up when they ended".to_owned(),
        GapKind::NoStacks => "stacks could not be taken".to_owned(),
        GapKind::NoLines => "which lines an interpreter ran".to_owned(),
        GapKind::Other => String::new(),
    };
    let details = gap.details.iter().take(if verbosity.verbose { usize::MAX } else { 2 }).map(|detail| clean(detail));
    // One kind with several reasons is a list of them.
    let details: Vec<String> = details.collect();
    let details = details.join("; ");
    let parts: Vec<String> = [what, details].into_iter().filter(|part| !part.is_empty()).collect();
    let more = if !verbosity.verbose && gap.details.len() > 2 { "; …" } else { "" };
    let pids = match gap.pids.as_slice() {
        [] => String::new(),
        [pid] => format!(" (process {pid})"),
        pids => {
            let shown: Vec<_> = pids.iter().take(5).map(i32::to_string).collect();
            format!(" (processes {}{})", shown.join(", "), if pids.len() > 5 { ", …" } else { "" })
        }
    };
    format!("{}{more}{pids}", parts.join(": "))
}

/// Says what looking cost.
pub fn overhead(text: &mut Text, summary: &Summary) {
    let overhead = &summary.overhead;
    let parts = [
        (overhead.arming_ns, "to write-protect pages"),
        (overhead.events_ns, "to answer writes that the kernel reported"),
        (overhead.stacks_ns, "for sampled stacks"),
        (overhead.closing_ns, "to read page tables and compare copies at the end"),
        (overhead.growth_ns, "to see how processes grow"),
        (overhead.weighing_ns, "to add up all memory at the ends of processes"),
        (overhead.stops_ns, "for other stops"),
    ];
    let mut parts: Vec<String> =
        parts.iter().filter(|(ns, _)| *ns > 0).map(|(ns, what)| format!("{} {what}", time(*ns))).collect();
    if overhead.stops > 0 {
        parts.push(some(overhead.stops, "stop of a thread", "stops of threads"));
    }
    if !parts.is_empty() {
        text.heading("What watching cost");
        let sum = percent(overhead.share);
        text.faint_sentence(2, &format!("{sum} of the time watched: {}", parts.join(", ")));
    }
}
