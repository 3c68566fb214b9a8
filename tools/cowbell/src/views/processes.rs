//! The table of processes: what each shared, copied and allocated, and what the kernel says of it at its end.

use super::Verbosity;
use super::lines::{List, Row, Text, clean, some};
use super::table::{self, Keep};
use crate::analyse::summary::{ProcessSummary, Summary};
use crate::record::{Origin, Sums, Together, WatchReason};
use cowbell::page::Bytes;

/// More processes of one name and one parent are told together.
const ALIKE_MAX: usize = 6;
/// The reader is told how top counts shared memory where so much is shared, in bytes.
const SHARED_MIN: u64 = 64 << 20;
/// Figures that took longer to read are not of one time.
const ONE_TIME_NS: u64 = 1_000_000_000;

/// The figures of one process, in bytes; `None` where not known, or where there can be none.
type Figures = [Option<u64>; 6];

/// One process, or several alike.
struct Line {
    pid: String,
    name: String,
    figures: Figures,
}

/// The table.
pub fn table(text: &mut Text, summary: &Summary, verbosity: &Verbosity) {
    let lines = lines(summary, verbosity);
    if lines.is_empty() {
        return;
    }
    let is_found = |process: &ProcessSummary| process.origin == Origin::Attached;
    text.heading(if summary.processes.iter().any(is_found) {
        "Memory in MiB: shared at first; copied, new since; PSS, RSS, peak at the end"
    } else {
        "Memory in MiB: shared at the fork; copied, new since; PSS, RSS, peak at the end"
    });
    let columns = [
        table::figures("pid", 7, 0),
        table::names("process", Keep::Head, 2),
        table::figures("shared", 7, 1),
        table::figures("copied", 7, 1),
        table::figures("new", 7, 1),
        table::figures("PSS", 7, 1),
        table::figures("RSS", 7, 1),
        table::figures("peak", 7, 1),
    ];
    let list = List { entries: &lines, columns: &columns, top: verbosity.top.max(3), in_full: verbosity.verbose };
    text.listing(&list, |line| {
        let figures = line.figures.iter().map(|bytes| mebibytes(*bytes));
        Row { cells: [line.pid.clone(), line.name.clone()].into_iter().chain(figures).collect(), ..Row::default() }
    });
    if let Some((rss, pss)) = together(summary) {
        let (rss, pss) = (Bytes(rss), Bytes(pss));
        let what = format!(
            "top counts shared pages once for each process: RES is {rss} in all; PSS, which divides them by all who have them, {pss}."
        );
        text.faint_sentence(0, &what);
    } else if let Some(all) = as_one_ended(summary) {
        let (memories, rss, pss) = (all.memories, Bytes(all.rss), Bytes(all.pss));
        let what = format!(
            "top counts shared pages once for each process: as one of {memories} ended, RES was {rss} in all; PSS, which divides them by all \
             who have them, {pss}."
        );
        text.faint_sentence(0, &what);
    }
    let folded = summary.verdict.folded.len() as u64;
    if folded > 0 {
        let processes = some(folded, "process", "processes");
        text.faint_sentence(
            0,
            &format!("Left out: {processes} of a wrapper, which had ended before it executed the program."),
        );
    }
}

/// The sums of several processes that were let go: they stood still together.
fn together(summary: &Summary) -> Option<(u64, u64)> {
    let run_on = summary.processes.iter().filter(|process| process.ended.is_none());
    let sums: Vec<_> = run_on.filter_map(|process| process.memory.as_ref()?.smaps).collect();
    let sum = |of: fn(&Sums) -> u64| sums.iter().map(of).sum();
    (sums.len() > 1).then(|| (sum(|sums| sums.rss), sum(|sums| sums.pss)))
}

/// The sums of the most processes that lived as one of them ended, if much of it was shared.
fn as_one_ended(summary: &Summary) -> Option<Together> {
    let found = summary.processes.iter().filter_map(|process| process.memory.as_ref()?.together);
    let is_shared =
        |all: &Together| all.rss >= all.pss.saturating_mul(3) / 2 && all.rss.saturating_sub(all.pss) >= SHARED_MIN;
    let is_of_one_time = |all: &Together| all.took_ns <= ONE_TIME_NS;
    found.max_by_key(|all| all.memories).filter(|all| is_shared(all) && is_of_one_time(all))
}

fn mebibytes(bytes: Option<u64>) -> String {
    match bytes.map(|bytes| bytes as f64 / f64::from(1 << 20)) {
        None => "-".to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(mib) if mib < 0.05 => "<0.1".to_owned(),
        Some(mib) if mib < 10.0 => format!("{mib:.1}"),
        Some(mib) => format!("{mib:.0}"),
    }
}

/// Processes of one parent and name, each with its number.
type Group<'a> = ((i32, String), Vec<(usize, &'a ProcessSummary)>);

fn lines(summary: &Summary, verbosity: &Verbosity) -> Vec<Line> {
    let shown = summary.processes.iter().enumerate().filter(|(at, process)| {
        !summary.verdict.folded.contains(at)
            && (process.memory.is_some() || summary.intervals.iter().any(|i| i.process == Some(*at)))
    });
    let mut groups: Vec<Group<'_>> = Vec::new();
    for (at, process) in shown {
        let key = (process.parent, name(process));
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, members)) => members.push((at, process)),
            None => groups.push((key, vec![(at, process)])),
        }
    }
    let mut lines = Vec::new();
    for ((_, name), members) in groups {
        let figures: Vec<Figures> = members.iter().map(|(at, process)| figures(summary, *at, process)).collect();
        if members.len() <= ALIKE_MAX || verbosity.verbose {
            let singles = members.iter().zip(figures);
            lines.extend(singles.map(|((_, process), figures)| Line {
                pid: process.pid.to_string(),
                name: name.clone(),
                figures,
            }));
            continue;
        }
        let number = members.len();
        let rows = [
            ("median", number / 2, format!("{number} × {name}")),
            ("least", 0, String::new()),
            ("most", number - 1, String::new()),
        ];
        for (what, which, name) in rows {
            lines.push(Line { pid: what.to_owned(), name, figures: column_wise(&figures, which) });
        }
    }
    lines
}

/// Takes, of each column of figures in order, the one that stands at this place.
fn column_wise(figures: &[Figures], which: usize) -> Figures {
    let mut found = Figures::default();
    for (nth, found) in found.iter_mut().enumerate() {
        let mut column: Vec<Option<u64>> = figures.iter().map(|row| row.get(nth).copied().flatten()).collect();
        column.sort_unstable();
        *found = column.get(which).copied().flatten();
    }
    found
}

/// The name of a process, by its own last word on it: programs give themselves titles.
fn name(process: &ProcessSummary) -> String {
    let command = match &process.memory {
        Some(memory) if !memory.command.is_empty() => &memory.command,
        _ => process.executed.last().unwrap_or(&process.command),
    };
    let program = command.first().map_or("", |program| program.rsplit('/').next().unwrap_or(program));
    let rest = command.get(1..).unwrap_or_default().join(" ");
    let file = rest.rsplit('/').next().filter(|_| !rest.contains(' ')).unwrap_or(&rest);
    clean(format!("{program} {file}").trim_end())
}

fn figures(summary: &Summary, at: usize, process: &ProcessSummary) -> Figures {
    let page = summary.run.page_size;
    let intervals = || summary.intervals.iter().filter(move |interval| interval.process == Some(at));
    let is_watched = intervals().next().is_some();
    let shared = intervals()
        .find(|interval| interval.role != WatchReason::Parent)
        .map(|interval| interval.held.shared.saturating_mul(page));
    let copied =
        is_watched.then(|| intervals().fold(0, |sum: u64, interval| sum.saturating_add(interval.copied_bytes)));
    let memory = process.memory.as_ref();
    let worker = summary.verdict.workers.iter().position(|worker| *worker == at);
    let new = worker.and_then(|nth| summary.verdict.new_bytes.get(nth).copied());
    let smaps = memory.and_then(|memory| memory.smaps);
    [
        shared,
        copied,
        new,
        smaps.map(|smaps| smaps.pss),
        smaps.map(|smaps| smaps.rss),
        memory.map(|memory| memory.rss_peak_bytes),
    ]
}
