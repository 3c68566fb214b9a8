//! A profile as a page: verdict, processes, lines, flame graph, map of pages, what could not be seen.

use super::{Cell, Column, HtmlPage, figure, words};
use crate::analyse::Cause;
use crate::analyse::detail::Detail;
use crate::analyse::summary::{Interval, ProcessSummary, Summary};
use crate::views::lines::{clean, count, percent};
use crate::views::{Verbosity, kinds, tables, text};
use cowbell::page::Bytes;
use serde::Serialize;
use std::collections::BTreeSet;

/// The colour of a cause in pictures: light enough for black text on either background, and kept apart by lightness, too.
fn color(cause: Cause) -> &'static str {
    match cause {
        Cause::ReferenceCount => "#f4a259",
        Cause::CountOrCollector => "#f7c59f",
        Cause::Counter => "#ffe066",
        Cause::GarbageCollector => "#f28482",
        Cause::Allocator => "#cdb4db",
        Cause::Start => "#a9d6e5",
        Cause::Exit => "#c9ada7",
        Cause::RealWrite => "#8ecae6",
        Cause::Hash | Cause::Number | Cause::Text | Cause::Remembered | Cause::Iterator | Cause::TextCopies => {
            "#e9c46a"
        }
        Cause::Rewritten => "#bde0fe",
        Cause::Kernel => "#95d5b2",
        Cause::Stack => "#d8f3dc",
        Cause::NewObject => "#b8c0ff",
        Cause::Unknown => "#ced4da",
    }
}

/// The causes that a picture has, by number, with their names and colours.
#[derive(Debug, Default, Serialize)]
struct Causes {
    #[serde(skip)]
    known: Vec<Cause>,
    names: Vec<&'static str>,
    colors: Vec<&'static str>,
}

impl Causes {
    fn of(causes: impl Iterator<Item = Cause>) -> Self {
        let known: Vec<Cause> = causes.collect::<BTreeSet<Cause>>().into_iter().collect();
        let names = known.iter().map(|cause| cause.name()).collect();
        Self { names, colors: known.iter().map(|cause| color(*cause)).collect(), known }
    }

    fn number(&self, cause: Cause) -> usize {
        self.known.iter().position(|known| *known == cause).unwrap_or_default()
    }
}

/// The heading of what stands in a list of its own.
const GAPS: &str = "What could not be seen";
/// A frame's name is not told at more length.
const NAME_MAX: usize = 200;

const fn column(title: &'static str, figures: bool) -> Column {
    Column { title, figures }
}

/// The page of a profile.
pub fn profile(summary: &Summary, detail: &Detail) -> Vec<u8> {
    // The same words as in a terminal.
    let plain = |verbose| {
        let verbosity = Verbosity { top: 10, quiet: false, verbose };
        anstream::adapter::strip_str(&text(summary, &verbosity)).to_string()
    };
    let brief = plain(false);
    let shown: Vec<&str> = brief.lines().take_while(|line| *line != GAPS).collect();
    // The verdict is the first paragraph, on as many lines as it took there.
    let (verdict, rest) = shown.split_at(shown.iter().position(|line| line.trim().is_empty()).unwrap_or(shown.len()));
    let title = format!("cowbell: {}", clean(&summary.run.command.join(" ")));
    let mut page = HtmlPage::new(title, vec![verdict.join(" ")], Vec::new());
    page.brief(rest.get(1..).unwrap_or_default());
    causes(&mut page, summary);
    processes(&mut page, summary);
    lines(&mut page, summary);
    kinds::html(&mut page, summary);
    functions(&mut page, summary);
    over_time(&mut page, summary, detail);
    pictures(&mut page, summary, detail);
    mappings(&mut page, summary);
    page.list("gaps", GAPS, &gaps(summary));
    page.text("The report as text", &plain(true));
    page.finish()
}

fn bytes(summary: &Summary, pages: u64) -> Cell {
    let bytes = pages.saturating_mul(summary.run.page_size);
    figure(Bytes(bytes).to_string(), bytes as f64)
}

fn causes(page: &mut HtmlPage, summary: &Summary) {
    let columns =
        [column("Copied", true), column("Share", true), column("Likely cause", false), column("What helps", false)];
    let row = |cause: &crate::analyse::summary::CauseShare| {
        vec![
            bytes(summary, cause.copied_pages),
            figure(percent(cause.share), cause.share).bar(cause.share),
            words(cause.name),
            words(cause.remedy.unwrap_or_default()),
        ]
    };
    page.table(
        "causes",
        "Likely causes, and what is known to help",
        &columns,
        &summary.causes.iter().map(row).collect::<Vec<_>>(),
    );
}

fn processes(page: &mut HtmlPage, summary: &Summary) {
    let columns = [
        column("Process", true),
        column("Copied", true),
        column("Of all", true),
        column("Shared at first", true),
        column("For nothing", true),
        column("Role", false),
        column("Forked by", true),
        column("Command", false),
    ];
    let all = summary.totals.copied_pages.max(1) as f64;
    let row = |interval: &Interval| {
        let process = interval.process.and_then(|process| summary.processes.get(process));
        let role = match interval.role {
            crate::record::WatchReason::Child => "child",
            crate::record::WatchReason::Parent => "parent",
            crate::record::WatchReason::Attached => "attached",
        };
        let part = interval.copied_pages as f64 / all;
        let parent = process.map_or(0, |process| process.parent);
        vec![
            figure(interval.pid.to_string(), f64::from(interval.pid)),
            bytes(summary, interval.copied_pages),
            figure(percent(part), part).bar(part),
            bytes(summary, interval.held.shared),
            bytes(summary, interval.contents.identical_pages),
            words(role),
            figure(if parent > 0 { parent.to_string() } else { String::new() }, f64::from(parent)),
            words(process.map_or(String::new(), |process| clean(&process.command_at(interval.begin_ns).join(" ")))),
        ]
    };
    let mut intervals: Vec<&Interval> = summary.intervals.iter().collect();
    intervals.sort_by_key(|interval| std::cmp::Reverse(interval.copied_pages));
    let rows: Vec<_> = intervals.into_iter().map(row).collect();
    page.table("processes", "Copied by process", &columns, &rows);
}

fn lines(page: &mut HtmlPage, summary: &Summary) {
    let columns = [
        column("Copied, about", true),
        column("Share", true),
        column("Line", false),
        column("Source", false),
        column("Likely cause", false),
    ];
    let mut lines: Vec<_> = summary.script.lines.iter().collect();
    // The lines stand in the order of a source: by file, and then from the top.
    lines.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    let row = |line: &&crate::analyse::summary::ScriptLine| {
        let place = if line.line > 0 { format!("{}:{}", line.file, line.line) } else { line.file.clone() };
        vec![
            bytes(summary, line.copied_pages_estimated),
            figure(percent(line.share), line.share).bar(line.share),
            words(clean(&place)),
            words(line.source.clone().unwrap_or_else(|| format!("in {}", line.function))),
            words(line.cause.name()),
        ]
    };
    page.table(
        "lines",
        "Source lines that copied, estimated from sampled stacks",
        &columns,
        &lines.iter().map(row).collect::<Vec<_>>(),
    );
}

fn functions(page: &mut HtmlPage, summary: &Summary) {
    let columns = [
        column("Copied", true),
        column("Share", true),
        column("Function", false),
        column("File", false),
        column("Likely cause", false),
    ];
    let row = |function: &crate::analyse::summary::Function| {
        let place =
            function.lines.first().map_or(function.module.clone(), |line| format!("{}:{}", line.file, line.line));
        vec![
            bytes(summary, function.copied_pages),
            figure(percent(function.share), function.share).bar(function.share),
            words(tables::function_name(function)),
            words(place),
            words(function.cause.name()),
        ]
    };
    page.table(
        "functions",
        "Copied by the code that first wrote",
        &columns,
        &summary.functions.iter().map(row).collect::<Vec<_>>(),
    );
}

fn mappings(page: &mut HtmlPage, summary: &Summary) {
    let columns = [column("Copied", true), column("Share", true), column("Pages", true), column("Mapping", false)];
    let mappings = summary.mappings.iter().filter(|mapping| mapping.copied_pages > 0);
    let row = |mapping: &crate::analyse::summary::MappingCopies| {
        vec![
            bytes(summary, mapping.copied_pages),
            figure(percent(mapping.share), mapping.share).bar(mapping.share),
            figure(count(mapping.copied_pages), mapping.copied_pages as f64),
            words(tables::mapping_name(mapping)),
        ]
    };
    page.table("mappings", "Copied by mapping", &columns, &mappings.map(row).collect::<Vec<_>>());
}

/// Sentences on what could not be seen, in the words of the text.
fn gaps(summary: &Summary) -> Vec<String> {
    let whole = crate::views::why::gap_sentences(summary, &Verbosity { top: usize::MAX, quiet: false, verbose: true });
    summary.cut.iter().map(|cut| format!("This capture was cut off: {cut}.")).chain(whole).collect()
}

#[derive(Serialize)]
struct Flame<'a> {
    frames: Vec<String>,
    /// Frames by number, bytes, cause.
    stacks: Vec<(&'a [u32], u64, usize)>,
    causes: Causes,
}

#[derive(Serialize)]
struct Map {
    page_size: u64,
    processes: Vec<MapRow>,
    causes: Causes,
}

#[derive(Serialize)]
struct MapRow {
    name: String,
    /// By three: pages from the end of the run before, pages, cause. Pages are told by their numbers.
    runs: Vec<u64>,
}

#[derive(Serialize)]
struct Time {
    page_size: u64,
    processes: Vec<TimeOf>,
}

#[derive(Serialize)]
struct TimeOf {
    name: String,
    /// By four: microseconds, and pages shared, copied, new.
    points: Vec<u64>,
}

/// Memory of each process over time, as far as a capture has it.
fn over_time(page: &mut HtmlPage, summary: &Summary, detail: &Detail) {
    let timelines: Vec<_> = detail.timelines.iter().filter(|timeline| !timeline.points.is_empty()).collect();
    if timelines.is_empty() {
        return;
    }
    let one = |timeline: &&crate::analyse::detail::Timeline| {
        let process = summary.processes.get(timeline.process);
        let intervals = || summary.intervals.iter().filter(|interval| interval.process == Some(timeline.process));
        let begin_ns = intervals().map(|interval| interval.begin_ns).max().unwrap_or_default();
        let command = |process: &ProcessSummary| process.command_at(begin_ns).join(" ");
        let name = process.map_or(String::new(), |process| format!("{} {}", process.pid, command(process)));
        let flat =
            |point: &crate::analyse::detail::Point| [point.time_ns / 1000, point.shared, point.copied, point.new];
        let points = timeline.points.iter().flat_map(flat).collect();
        TimeOf { name: clean(&name.chars().take(NAME_MAX).collect::<String>()), points }
    };
    let untimed: u64 = timelines.iter().map(|timeline| timeline.untimed_pages).sum();
    let mut says = "Shared: what a process had in common with others when it was first watched or last forked, and did not copy since. \
                    Copied: since then. New: its own, as far as cowbell saw it grow; growth by less than 1 MiB is not told."
        .to_owned();
    if untimed > 0 {
        let bytes = Bytes(untimed.saturating_mul(summary.run.page_size));
        says +=
            &format!(" Of {bytes} it is not known when they were copied: they stand at the ends of their processes.");
    }
    let processes = timelines.iter().map(one).collect();
    page.picture("time", "Memory over time", &says, &Time { page_size: summary.run.page_size.max(1), processes });
}

fn pictures(page: &mut HtmlPage, summary: &Summary, detail: &Detail) {
    let page_size = summary.run.page_size.max(1);
    if !detail.stacks.is_empty() {
        let frame = |frame: &crate::analyse::detail::Frame| {
            let file = frame.file.rsplit('/').next().unwrap_or_default();
            let label = match (file, frame.line) {
                ("", _) => frame.function.clone(),
                (file, 0) => format!("{} ({file})", frame.function),
                (file, line) => format!("{} ({file}:{line})", frame.function),
            };
            clean(&label.chars().take(NAME_MAX).collect::<String>())
        };
        let causes = Causes::of(detail.stacks.iter().map(|stack| stack.cause));
        let stack = |stack: &crate::analyse::detail::Weighted| {
            (stack.pages.saturating_mul(page_size), causes.number(stack.cause))
        };
        let stacks = detail.stacks.iter().map(|one| (&one.frames[..], stack(one).0, stack(one).1)).collect();
        let flame = Flame { frames: detail.frames.iter().map(frame).collect(), stacks, causes };
        let says = "Who called what copied, estimated from sampled stacks: a frame is as wide as what was copied in it and below, \
                    in the colour of the most frequent likely cause.";
        page.picture("flame", "Copies by stack", says, &flame);
    }
    let causes = Causes::of(detail.maps.iter().flatten().map(|run| run.cause));
    let mut rows = Vec::new();
    for (interval, runs) in summary.intervals.iter().zip(&detail.maps).filter(|(_, runs)| !runs.is_empty()) {
        let process = interval.process.and_then(|process| summary.processes.get(process));
        let command = process.map_or(String::new(), |process| clean(&process.command_at(interval.begin_ns).join(" ")));
        let (mut flat, mut at) = (Vec::with_capacity(runs.len() * 3), 0);
        for run in runs {
            let first = run.start / page_size;
            flat.extend([first.saturating_sub(at), run.pages, causes.number(run.cause) as u64]);
            at = first + run.pages;
        }
        let name: String = format!("{} {command}", interval.pid).chars().take(NAME_MAX).collect();
        rows.push(MapRow { name, runs: flat });
    }
    if !rows.is_empty() {
        let says = "Which process copied which page, in the colour of the likely cause.";
        page.picture("map", "Pages", says, &Map { page_size, processes: rows, causes });
    }
}
