//! The report as text: how much, which mappings, which code, how much of it pointless and why, what was not seen.

use super::Look;
use super::lines::{Text, WIDTH, clean, count, head, percent, some, time};
use super::{tables, why};
use crate::analyse::summary::{ByClass, Interval, Summary};
use crate::record::{Closed, Mode, Role};
use cowbell::page::Bytes;

/// The report, with colours.
pub fn text(summary: &Summary, look: &Look) -> String {
    let mut text = Text::default();
    if let Some(cut) = &summary.cut {
        text.loud(&format!("This capture was cut off: {}. What it holds:", clean(cut)));
    }
    headline(&mut text, summary);
    if !look.quiet && summary.totals.intervals > 0 {
        intervals(&mut text, summary, look);
        tables::mappings(&mut text, summary, look);
        tables::functions(&mut text, summary, look);
        tables::script(&mut text, summary, look);
        tables::syscalls(&mut text, summary, look);
        why::contents(&mut text, summary);
        why::causes(&mut text, summary);
    }
    if !look.quiet {
        why::gaps(&mut text, summary, look);
        why::overhead(&mut text, summary);
    }
    text.finish()
}

/// How much was copied, all told.
fn headline(text: &mut Text, summary: &Summary) {
    let totals = &summary.totals;
    let (children, parents) = (role_count(summary, Role::Child), role_count(summary, Role::Parent));
    let command = head(&summary.run.command.join(" "), 60);
    let command = command.trim_end();
    if totals.intervals == 0 {
        let why = if summary.processes.len() > 1 { "no process was watched" } else { "nothing forked" };
        text.loud(&format!("Nothing was copied under {command}: {why}."));
    } else {
        let mut who = Vec::new();
        if children > 0 {
            who.push(some(children, "child", "children"));
        }
        if parents > 0 {
            who.push(some(parents, "parent", "parents"));
        }
        let attached = role_count(summary, Role::Attached);
        if attached > 0 {
            who.push(some(attached, "process", "processes"));
        }
        let most = if totals.pages.copy_or_reuse > 0 { "At most " } else { "" };
        let pages = some(totals.copied_pages, "page", "pages");
        let bytes = Bytes(totals.copied_bytes);
        let line = format!("{most}{pages} ({bytes}) copied by {}: {command}", who.join(" and "));
        text.loud(head(&line, WIDTH).trim_end());
        besides(text, &totals.pages);
    }
    let run = &summary.run;
    let mode = match run.mode {
        Mode::Count => "count (which pages)",
        Mode::Trace => "trace (which pages, when, which code)",
    };
    let reason = if run.mode_reason.is_empty() { String::new() } else { format!(": {}", clean(&run.mode_reason)) };
    let ended = run.ended.map_or(String::new(), |ended| format!(", {ended}"));
    text.faint_sentence(0, &format!("watched for {}{ended}; mode {mode}{reason}", time(run.duration_ns)));
}

/// Written pages that are no copies, and what the copies were of.
fn besides(text: &mut Text, pages: &ByClass) {
    let mut parts = Vec::new();
    if pages.private_file > 0 {
        parts.push(format!("{} of the copies are of file pages", count(pages.private_file)));
    }
    let others =
        [(pages.reuse, "reused"), (pages.first_touch, "first touched"), (pages.zero_page, "from the zero page")];
    let others: Vec<_> =
        others.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{} {what}", count(*n))).collect();
    if !others.is_empty() {
        parts.push(format!("written without a copy: {}", others.join(", ")));
    }
    if !parts.is_empty() {
        text.faint(&parts.join("; "));
    }
}

fn role_count(summary: &Summary, role: Role) -> u64 {
    // A parent is one parent, however often it forked.
    let mut pids: Vec<_> = summary.intervals.iter().filter(|a| a.role == role).map(|a| (a.process, a.pid)).collect();
    pids.sort_unstable();
    pids.dedup();
    pids.len() as u64
}

/// A line per interval.
fn intervals(text: &mut Text, summary: &Summary, look: &Look) {
    let mut sorted: Vec<&Interval> = summary.intervals.iter().collect();
    sorted.sort_by_key(|interval| std::cmp::Reverse(interval.copied_pages));
    let times = sorted.iter().any(|interval| interval.when.is_some());
    text.heading("Copied pages by process");
    let when = if times { format!("{:>8} {:>8} {:>8}", "first", "half", "last") } else { String::new() };
    text.faint(&format!("{:>11} {:>10} {:>9}  {:>7} {:<8} {when}", "copied", "", "of shared", "pid", "role"));
    let all = summary.totals.copied_pages.max(1) as f64;
    let share = |interval: &&Interval| interval.copied_pages as f64 / all;
    text.list(&sorted, look.top, share, |text, interval| {
        text.line(&interval_line(summary, interval, times));
        if look.verbose {
            interval_details(text, summary, interval);
        }
    });
}

fn interval_line(summary: &Summary, interval: &Interval, times: bool) -> String {
    let of_shared = match interval.held.shared {
        0 => String::new(),
        shared => percent((interval.pages.copy.saturating_add(interval.pages.copy_or_reuse)) as f64 / shared as f64),
    };
    let role = match interval.role {
        Role::Child => "child",
        Role::Parent => "parent",
        Role::Attached => "attached",
    };
    let when = match interval.when {
        Some(when) => format!("{:>8} {:>8} {:>8}  ", time(when.first_ns), time(when.half_ns), time(when.last_ns)),
        None if times => format!("{:28}", ""),
        None => String::new(),
    };
    let process = interval.process.and_then(|process| summary.processes.get(process));
    let end = match (interval.closed, process.and_then(|process| process.ended)) {
        (None, _) => "cut off".to_owned(),
        (Some(Closed::Exec), _) => {
            let program = process.and_then(|process| process.executed.first()?.first());
            program.map_or("executed another program".to_owned(), |program| format!("then ran {}", clean(program)))
        }
        (Some(Closed::Unshared), _) => "shares no more".to_owned(),
        (Some(Closed::Forked), _) => "forked again".to_owned(),
        (Some(Closed::Detached), _) => "let go".to_owned(),
        (Some(Closed::Lost), None) => "lost".to_owned(),
        (Some(Closed::Exit), None) => "ended".to_owned(),
        (Some(_), Some(ended)) => ended.to_string(),
    };
    let (copied, bytes) = (count(interval.copied_pages), Bytes(interval.copied_bytes).to_string());
    let line = format!("{copied:>11} {bytes:>10} {of_shared:>9}  {:>7} {role:<8} {when}{end}", interval.pid);
    head(&line, WIDTH).trim_end().to_owned()
}

/// An interval's own mappings and causes, for those who want to know more.
fn interval_details(text: &mut Text, summary: &Summary, interval: &Interval) {
    if let Some(process) = interval.process.and_then(|process| summary.processes.get(process)) {
        let command = clean(&process.executed.last().unwrap_or(&process.command).join(" "));
        let parent = if process.parent > 0 { format!(", forked by {}", process.parent) } else { String::new() };
        text.faint(&format!("{:>34}{command}{parent}", ""));
    }
    for mapping in interval.mappings.iter().take(3).filter(|mapping| mapping.copied_pages > 0) {
        text.faint(&format!(
            "{:>34}{} in {}",
            "",
            some(mapping.copied_pages, "page", "pages"),
            tables::mapping_name(mapping)
        ));
    }
    for cause in interval.causes.iter().take(3) {
        text.faint(&format!("{:>34}{}: likely {}", "", some(cause.copied_pages, "page", "pages"), cause.name));
    }
}
