//! The report as text: the verdict first, then each process' memory, and what was not seen; with `--verbose` all that the
//! verdict rests on.

use super::Verbosity;
use super::kinds;
use super::lines::{List, Row, Text, clean, count, percent, some, time};
use super::objects;
use super::table::{self, Keep};
use super::verdict::{self, PARENT_UNWATCHED, has_watched_parent};
use super::width::width;
use super::{processes, tables, why};
use crate::analyse::summary::{ByClass, Interval, ProcessSummary, Summary};
use crate::record::{Closed, Mode, Origin, WatchReason};
use cowbell::page::Bytes;

/// The end of an interval stands beside its figures if its words are no longer than this.
const END_WIDTH: usize = 18;
/// Words below an interval's figures begin here.
const END_INDENT: usize = 34;

/// The report, with colours.
pub fn text(summary: &Summary, verbosity: &Verbosity) -> String {
    let mut text = Text::default();
    if let Some(cut) = &summary.cut {
        text.loud(&format!("This capture was cut off: {}. What it holds:", clean(cut)));
    }
    verdict::verdict(&mut text, summary, verbosity.quiet);
    if verbosity.quiet {
        return text.finish();
    }
    processes::table(&mut text, summary, verbosity);
    not_counted(&mut text, summary);
    kinds::sentence(&mut text, summary);
    watched(&mut text, summary, verbosity);
    if verbosity.verbose && summary.totals.intervals > 0 {
        headline(&mut text, summary);
        intervals(&mut text, summary, verbosity);
        tables::mappings(&mut text, summary, verbosity);
        objects::table(&mut text, summary, verbosity);
        kinds::table(&mut text, summary, verbosity);
        tables::functions(&mut text, summary, verbosity);
        tables::script(&mut text, summary, verbosity);
        tables::growth(&mut text, summary, verbosity);
        tables::syscalls(&mut text, summary, verbosity);
        why::contents(&mut text, summary);
        why::causes(&mut text, summary);
    }
    why::gaps(&mut text, summary, verbosity);
    if verbosity.verbose {
        why::overhead(&mut text, summary);
    }
    text.finish()
}

/// Copies that the verdict leaves out.
fn not_counted(text: &mut Text, summary: &Summary) {
    let verdict = &summary.verdict;
    let parts = [(verdict.starting_bytes, "while children started"), (verdict.ending_bytes, "while they ended")];
    let told = parts.iter().filter(|(bytes, _)| *bytes > 0).map(|(bytes, when)| format!("{} {when}", Bytes(*bytes)));
    let told: Vec<String> = told.collect();
    text.line("");
    if !told.is_empty() {
        text.faint_sentence(0, &format!("Also copied, and left out above: {}.", told.join(", ")));
    }
    if verdict.unseen_peak_bytes > 0 {
        let bytes = Bytes(verdict.unseen_peak_bytes);
        let what =
            "were in the memory of a child for a moment than cowbell saw: new memory, or files that it had mapped";
        text.faint_sentence(0, &format!("At least {bytes} more {what}."));
    }
}

/// Says how it was watched.
fn watched(text: &mut Text, summary: &Summary, verbosity: &Verbosity) {
    let run = &summary.run;
    let mode = match run.mode {
        Mode::Count => "count (which pages)",
        Mode::Faults => "faults (which pages, when, which code)",
        Mode::Trace => "trace (which pages, when, which code)",
    };
    let reason = if run.mode_reason.is_empty() { String::new() } else { format!(": {}", clean(&run.mode_reason)) };
    let ended = run.ended.map_or(String::new(), |ended| format!(", {ended}"));
    let more = match run.mode {
        _ if verbosity.verbose || summary.totals.intervals == 0 => "",
        Mode::Count => "; -v shows mappings and causes",
        Mode::Faults | Mode::Trace => "; -v shows mappings, code and causes",
    };
    text.faint_sentence(0, &format!("Watched for {}{ended}; mode {mode}{reason}{more}.", time(run.duration_ns)));
    if verdict::role_count(summary, WatchReason::Attached) > 0 {
        text.faint_sentence(0, &since_attached(summary));
    }
    let forks = &summary.totals.forks;
    if forks.are_large() {
        let (all, most) = (Bytes(forks.page_tables_bytes), Bytes(forks.page_tables_most_bytes));
        let one = if forks.children > 1 { format!(", at most {most} for one") } else { String::new() };
        let children = some(forks.children, "child", "children");
        text.faint_sentence(0, &format!("Forks copied {all} of page tables for {children}{one}."));
    }
    // Those of a wrapper are told apart, with the processes.
    let is_afresh = |process: &ProcessSummary| {
        matches!(process.origin, Origin::Forked | Origin::Shares) && !process.executed.is_empty()
    };
    let of_wrapper = summary.verdict.folded.iter().filter_map(|&at| summary.processes.get(at));
    let of_wrapper = of_wrapper.filter(|process| is_afresh(process)).count() as u64;
    let executed = summary.totals.started_afresh.saturating_sub(of_wrapper);
    if executed > 0 && summary.totals.intervals > 0 {
        let executed = some(executed, "process", "processes");
        let what = "executed a program, which shares nothing with its starter and is not counted";
        text.faint_sentence(0, &format!("{executed} {what}."));
    }
}

/// Says how much was copied, all told, page by page.
fn headline(text: &mut Text, summary: &Summary) {
    let totals = &summary.totals;
    let (children, parents) =
        (verdict::role_count(summary, WatchReason::Child), verdict::role_count(summary, WatchReason::Parent));
    let mut who = Vec::new();
    if children > 0 {
        who.push(some(children, "child", "children"));
    }
    if parents > 0 {
        who.push(some(parents, "parent", "parents"));
    }
    let attached = verdict::role_count(summary, WatchReason::Attached);
    if attached > 0 {
        who.push(some(attached, "process", "processes"));
    }
    text.heading(&format!("{} copied by {}", bounds(summary), who.join(" and ")));
    besides(text, &totals.pages);
}

/// The number of pages that were copied, as far as that is certain.
fn bounds(summary: &Summary) -> String {
    let totals = &summary.totals;
    let of = |pages: u64| {
        let bytes = Bytes(pages.saturating_mul(summary.run.page_size));
        format!("{} ({bytes})", some(pages, "page", "pages"))
    };
    match (totals.copied_pages_min, totals.copied_pages_max) {
        (least, Some(most)) if least == most => of(least),
        (0, Some(most)) => format!("At most {}", of(most)),
        (least, Some(most)) => format!("At least {}, at most {}", of(least), of(most)),
        (least, None) => format!("At least {}", of(least)),
    }
}

/// A watch that comes late sees nothing of what was copied before.
fn since_attached(summary: &Summary) -> String {
    let own = summary.intervals.iter().filter(|interval| interval.role == WatchReason::Attached);
    let own = own.fold(0u64, |sum, interval| sum.saturating_add(interval.held.exclusive));
    let own = Bytes(own.saturating_mul(summary.run.page_size));
    if !has_watched_parent(summary) {
        return format!("Counted since cowbell attached; the process had {own} of its own by then. {PARENT_UNWATCHED}");
    }
    let pid = summary.processes.first().map_or(String::new(), |process| format!(" {}", process.pid));
    format!(
        "Counted since cowbell attached; the processes had {own} of their own by then, some of which may be copies made \
         before: `cowbell snapshot{pid}` tells what of it differs from the parent's."
    )
}

/// Written pages that are no copies, and what the copies were of.
fn besides(text: &mut Text, pages: &ByClass) {
    let mut parts = Vec::new();
    if pages.private_file > 0 {
        parts.push(format!("{} of the copies are of file pages", count(pages.private_file)));
    }
    let new = pages.first_touch.saturating_add(pages.zero_page);
    let mut others = Vec::new();
    if pages.reuse > 0 {
        others.push(format!("{} that no other process had any more", some(pages.reuse, "page", "pages")));
    }
    if new > 0 {
        others.push(some(new, "new page", "new pages"));
    }
    if !others.is_empty() {
        parts.push(format!("also written, without a copy: {}", others.join(", ")));
    }
    if !parts.is_empty() {
        text.faint_sentence(0, &parts.join("; "));
    }
}

/// A line per interval.
fn intervals(text: &mut Text, summary: &Summary, verbosity: &Verbosity) {
    let mut sorted: Vec<&Interval> = summary.intervals.iter().collect();
    sorted.sort_by_key(|interval| std::cmp::Reverse(interval.copied_pages));
    let times = sorted.iter().any(|interval| interval.when.is_some());
    text.heading("Copied pages by process");
    let half = match times {
        true => {
            "; half, last: how long until half of the copies, and the last, were made, of those whose time is known"
        }
        false => "",
    };
    let part = "part: of the pages that the process shared with others when its row began";
    text.faint_sentence(2, &format!("{part}{half}; until: what ended the row"));
    let [half, last] = if times { ["half", "last"] } else { [""; 2] };
    let columns = [
        table::figures("copied", 8, 0),
        table::figures("", 0, 1),
        table::figures("part", 0, 1),
        table::figures("pid", 7, 2),
        table::words("role", 6, 1),
        table::figures(half, 0, 1),
        table::figures(last, 0, 1),
        table::names("until", Keep::Head, 2),
    ];
    let all = summary.totals.copied_pages.max(1) as f64;
    let list = List { entries: &sorted, columns: &columns, top: verbosity.top, in_full: verbosity.verbose };
    text.table(
        &list,
        |interval| interval.copied_pages as f64 / all,
        |interval| {
            let mut row = interval_row(summary, interval);
            if verbosity.verbose {
                row.below = interval_details(summary, interval);
            }
            row
        },
    );
}

fn interval_row(summary: &Summary, interval: &Interval) -> Row {
    let of_shared = match interval.held.shared {
        0 => String::new(),
        shared => percent((interval.pages.copy.saturating_add(interval.pages.copy_or_reuse)) as f64 / shared as f64),
    };
    let role = match interval.role {
        WatchReason::Child => "child",
        WatchReason::Parent => "parent",
        WatchReason::Attached => "attached",
    };
    let when = interval.when.map_or_else(Default::default, |w| [w.half_ns, w.last_ns].map(time));
    let process = interval.process.and_then(|process| summary.processes.get(process));
    let end = match (interval.closed, process.and_then(|process| process.ended)) {
        (None, _) => "capture cut off".to_owned(),
        (Some(Closed::Exec), _) => {
            let program =
                process.and_then(|process| process.executed_from(interval.end_ns.unwrap_or_default())?.first());
            program.map_or("it ran another program".to_owned(), |program| format!("it ran {}", clean(program)))
        }
        (Some(Closed::Unshared), _) => "no sharer was left".to_owned(),
        (Some(Closed::Forked), _) => "it forked".to_owned(),
        (Some(Closed::Detached), _) => "cowbell detached".to_owned(),
        (Some(Closed::Lost), None) => "lost".to_owned(),
        (Some(Closed::Exit), None) => "ended".to_owned(),
        (Some(_), Some(ended)) => ended.to_string(),
    };
    let (copied, bytes) = (count(interval.copied_pages), Bytes(interval.copied_bytes).to_string());
    let figures = [copied, bytes, of_shared, interval.pid.to_string(), role.to_owned()];
    // An end that does not fit beside the figures stands below them, whole.
    let fits = width(&end) <= END_WIDTH;
    let below = if fits { Vec::new() } else { vec![(END_INDENT, end.clone())] };
    let end = if fits { end } else { String::new() };
    Row { cells: figures.into_iter().chain(when).chain([end]).collect(), below }
}

/// An interval's own mappings and causes, for those who want to know more.
fn interval_details(summary: &Summary, interval: &Interval) -> Vec<(usize, String)> {
    let mut details = Vec::new();
    if let Some(process) = interval.process.and_then(|process| summary.processes.get(process)) {
        let command = clean(&process.command_at(interval.begin_ns).join(" "));
        let parent = if process.parent > 0 { format!(", forked by {}", process.parent) } else { String::new() };
        details.push(format!("{command}{parent}"));
    }
    for mapping in interval.mappings.iter().take(3).filter(|mapping| mapping.copied_pages > 0) {
        details.push(format!("{} in {}", some(mapping.copied_pages, "page", "pages"), tables::mapping_name(mapping)));
    }
    for cause in interval.causes.iter().take(3) {
        details.push(format!("{}: likely {}", some(cause.copied_pages, "page", "pages"), cause.name));
    }
    details.into_iter().map(|detail| (END_INDENT, detail)).collect()
}
