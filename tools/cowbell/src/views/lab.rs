//! The findings of the lab: as text, as Markdown, as a chart and as a page.

use super::check::escape;
use super::html::{self, HtmlPage, figure};
use super::json::Document;
use super::lines::{List, Row, Text, WIDTH, some};
use super::table::{self, figures, wrap};
use crate::analyse::experiment::{Experiment, Lab, Outcome, WatchedRun, Way};
use cowbell::page::Bytes;
use std::fmt::Write;

impl Document for Lab {
    const FORMAT: &'static str = "cowbell-lab";
    const VERSION: u32 = 1;
}

/// A measured figure of a way, and its title.
type Figure = (&'static str, fn(&Way) -> Option<u64>);

/// All of them, in order.
const FIGURES: [Figure; 5] = [
    ("copied", |way| Some(watched(way)?.copied_bytes)),
    ("ending", |way| watched(way)?.ending_bytes),
    ("new", |way| Some(watched(way)?.new_bytes)),
    ("parent", |way| Some(watched(way)?.parent_bytes)),
    ("all", |way| way.finding()?.told.get("together_bytes")?.as_u64()),
];
/// The legend of the figures.
const LEGEND: &str = "MiB that each worker copied on average at work, and while it ended; of new memory that it took; that the processes \
                      which forked copied; and of all processes together when the workers were done.";

fn mib(bytes: u64) -> String {
    let mib = bytes as f64 / (1 << 20) as f64;
    if mib < 9.95 { format!("{mib:.1}") } else { format!("{mib:.0}") }
}

/// The figures of a way that ran and was watched.
fn watched(way: &Way) -> Option<&WatchedRun> {
    way.finding()?.watched.as_ref()
}

/// The sentence of `cowbell run` on a way; or why it did not run.
fn said(way: &Way) -> Option<String> {
    match &way.outcome {
        Outcome::Skipped { why } => Some(format!("skipped: {why}")),
        Outcome::Failed { why } => Some(format!("FAILED: {why}")),
        Outcome::Ran(found) => {
            let watched = found.watched.as_ref()?;
            let Some(why) = &watched.why else {
                return Some(watched.says.split(':').next().unwrap_or_default().to_owned());
            };
            let place = watched.place.as_ref().map_or(String::new(), |place| format!(", at {place}"));
            Some(format!("{}: {why}{place}", watched.says.split(':').next().unwrap_or_default()))
        }
    }
}

/// The name of a way, with the number of its workers if others of that name have another.
fn name(experiment: &Experiment, way: &Way) -> String {
    let is_one = experiment.ways.iter().all(|other| other.name != way.name || other.workers == way.workers);
    if is_one {
        way.name.to_owned()
    } else {
        format!("{}, {}", way.name, some(way.workers.into(), "worker", "workers"))
    }
}

/// The machine and the size in one sentence.
fn setting(lab: &Lab) -> String {
    let machine = &lab.machine;
    let memory = machine.free_bytes.map_or(String::new(), |bytes| format!(", {} free", Bytes(bytes)));
    let runs = machine.interpreter.as_ref().map_or(String::new(), |interpreter| format!(", {interpreter}"));
    let processors = some(machine.processors as u64, "processor", "processors");
    let size = if lab.quick { "; small data (--quick)" } else { "" };
    format!("Linux {}, {processors}{memory}{runs}{size}.", machine.kernel)
}

/// How all of it went, in one sentence.
fn outcome(lab: &Lab) -> String {
    let not = lab.experiments.iter().filter(|experiment| !experiment.is_as_expected()).count() as u64;
    let all = lab.experiments.len() as u64;
    let is = |outcome: fn(&Outcome) -> bool| {
        lab.experiments.iter().flat_map(|experiment| &experiment.ways).filter(|way| outcome(&way.outcome)).count()
            as u64
    };
    let skipped = match is(|outcome| matches!(outcome, Outcome::Skipped { .. })) {
        0 => String::new(),
        skipped => format!("; {} skipped", some(skipped, "way was", "ways were")),
    };
    let all = some(all, "experiment", "experiments");
    match not {
        0 => format!("{all}: each came out as expected{skipped}."),
        not => format!("{all}: {not} NOT AS EXPECTED{skipped}."),
    }
}

/// For people at a terminal.
pub fn text(lab: &Lab) -> String {
    let mut text = Text::default();
    text.loud_sentence(&outcome(lab));
    text.faint_sentence(0, &setting(lab));
    text.faint_sentence(0, LEGEND);
    let columns: Vec<table::Column> = std::iter::once(table::names("", table::Keep::Head, 2))
        .chain(FIGURES.map(|(title, _)| figures(title, 6, 2)))
        .collect();
    for experiment in &lab.experiments {
        for (nth, line) in wrap(&format!("{}: {}", experiment.name, experiment.question), WIDTH).iter().enumerate() {
            if nth == 0 { text.heading(line) } else { text.line(line) }
        }
        text.faint_sentence(0, &experiment.work);
        let list = List { columns: &columns, entries: &experiment.ways, top: usize::MAX - 1, in_full: false };
        text.listing(&list, |way| {
            let cell = |(_, figure): Figure| figure(way).map_or(String::new(), mib);
            let cells = std::iter::once(name(experiment, way)).chain(FIGURES.map(cell));
            let below = std::iter::once(way.does.to_owned()).chain(said(way)).map(|said| (2, said));
            Row { cells: cells.collect(), below: below.collect() }
        });
        text.line("");
        for line in wrap(&experiment.seen.join(" "), WIDTH) {
            text.line(&line);
        }
        for expected in &experiment.unexpected {
            text.loud_sentence(&format!("NOT AS EXPECTED: {expected}."));
        }
    }
    text.finish()
}

/// For a file of documentation; the chart, if there is one, is beside it under this name.
pub fn markdown(lab: &Lab, chart: Option<&str>) -> String {
    let chart_option = chart.map_or(String::new(), |chart| format!(" --chart {chart}"));
    let mut text = format!(
        "# The lab\n\nWritten by `cowbell lab --markdown{chart_option}`. {} {}\n\n{LEGEND}\n",
        outcome(lab),
        setting(lab)
    );
    if let Some(chart) = chart {
        let _written = write!(text, "\n![Memory of each worker's own, by experiment and way]({chart})\n");
    }
    for experiment in &lab.experiments {
        let _written =
            write!(text, "\n## {}\n\n{} In each way {}.\n\n", experiment.name, experiment.question, experiment.work);
        let titles = FIGURES.map(|(title, _)| title).join(" | ");
        let _written =
            write!(text, "| way | {titles} | `cowbell run` says |\n|---|{}---|\n", "--:|".repeat(FIGURES.len()));
        for way in &experiment.ways {
            let cells = FIGURES.map(|(_, figure)| figure(way).map_or(String::new(), mib));
            let _written = writeln!(
                text,
                "| **{}**: {} | {} | {} |",
                name(experiment, way),
                in_cell(way.does),
                cells.join(" | "),
                in_cell(&said(way).unwrap_or_default())
            );
        }
        let _written = write!(text, "\n{}\n", experiment.seen.join(" "));
        for expected in &experiment.unexpected {
            let _written = write!(text, "\n**Not as expected**: {expected}.\n");
        }
    }
    text
}

/// Text in a cell of a table of Markdown.
fn in_cell(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('\\', "\\\\")
        .replace('|', "\\|")
        .replace('<', "\\<")
        .replace('`', "\\`")
}

/// A page of its own.
pub fn page(lab: &Lab) -> Vec<u8> {
    let mut page = HtmlPage::new("cowbell lab".to_owned(), vec![outcome(lab)], vec![setting(lab), LEGEND.to_owned()]);
    let column = |title, figures| html::Column { title, figures };
    let columns: Vec<html::Column> = std::iter::once(column("Way", false))
        .chain(FIGURES.map(|(title, _)| column(title, true)))
        .chain([column("It", false), column("cowbell run says", false)])
        .collect();
    for experiment in &lab.experiments {
        let row = |way: &Way| {
            let cell = |(_, take): Figure| {
                let most = experiment.ways.iter().filter_map(take).max().unwrap_or(0).max(1) as f64;
                take(way).map_or(html::words(""), |bytes| figure(mib(bytes), bytes as f64).bar(bytes as f64 / most))
            };
            std::iter::once(html::words(name(experiment, way)))
                .chain(FIGURES.map(cell))
                .chain([html::words(way.does), html::words(said(way).unwrap_or_default())])
                .collect()
        };
        let title = format!("{}: {}", experiment.name, experiment.question);
        page.table(experiment.name, &title, &columns, &experiment.ways.iter().map(row).collect::<Vec<_>>());
        let unexpected = experiment.unexpected.iter().map(|expected| format!("NOT AS EXPECTED: {expected}."));
        let seen: Vec<String> = experiment.seen.iter().cloned().chain(unexpected).collect();
        page.list(&format!("{}-seen", experiment.name), "Seen", &seen);
    }
    page.finish()
}

/// Pixels of the chart: names, bars, and lines of text.
const NAMES: f64 = 190.0;
const BARS: f64 = 420.0;
const FIGURE: f64 = 110.0;
const LINE: f64 = 22.0;

const STYLE: &str = "text { font: 13px system-ui, sans-serif; fill: #1f2328; } .head { font-weight: 600; } .copied { fill: #c4610f; } \
                     .new { fill: #57606a; } @media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .copied { fill: #e3813a; } \
                     .new { fill: #8b949e; } }";

/// A chart of what each worker has of its own, as SVG.
pub fn chart(lab: &Lab) -> String {
    let mut body = String::new();
    let mut top = LINE;
    let words = |body: &mut String, class: &str, x: f64, top: f64, anchor: &str, text: &str| {
        let _written = writeln!(
            body,
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{top:.1}\" text-anchor=\"{anchor}\">{}</text>",
            escape(text)
        );
    };
    let bar = |body: &mut String, class: &str, x: f64, top: f64, length: f64| {
        let _written = writeln!(
            body,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{length:.1}\" height=\"14\"/>",
            top - 11.0
        );
    };
    words(&mut body, "head", 0.0, top, "start", "Of each worker's own, MiB:");
    for (class, x) in [("copied", NAMES + 10.0), ("new", NAMES + 100.0)] {
        bar(&mut body, class, x, top, 14.0);
        words(&mut body, "", x + 20.0, top, "start", class);
    }
    for experiment in &lab.experiments {
        let ways: Vec<(&Way, &WatchedRun)> =
            experiment.ways.iter().filter_map(|way| Some((way, watched(way)?))).collect();
        let most = ways.iter().map(|(_, found)| found.copied_bytes + found.new_bytes).max().unwrap_or(0).max(1) as f64;
        top += 1.7 * LINE;
        words(&mut body, "head", 0.0, top, "start", &format!("{}: {}", experiment.name, experiment.work));
        for (way, found) in ways {
            top += LINE;
            words(&mut body, "", NAMES - 8.0, top, "end", &name(experiment, way));
            let length = |bytes: u64| BARS * bytes as f64 / most;
            let (copied, new) = (length(found.copied_bytes), length(found.new_bytes));
            bar(&mut body, "copied", NAMES, top, copied);
            bar(&mut body, "new", NAMES + copied, top, new);
            let of_parent = match found.parent_bytes {
                few if few < found.copied_bytes + found.new_bytes + (1 << 20) => String::new(),
                bytes => format!("; the parent {}", mib(bytes)),
            };
            let own = format!("{}{of_parent}", mib(found.copied_bytes + found.new_bytes));
            words(&mut body, "", NAMES + copied + new + 6.0, top, "start", &own);
        }
    }
    let (width, height) = (NAMES + BARS + FIGURE, top + LINE);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         role=\"img\">\n<title>Memory of each worker's own, by experiment and way</title>\n<style>{STYLE}</style>\n{body}</svg>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyse::experiment::{Finding, Machine};
    use crate::analyse::verdict::VerdictKind;

    fn way(name: &'static str, workers: u32, outcome: Outcome) -> Way {
        Way { name, workers, does: "a | b", outcome }
    }

    fn ran(copied_bytes: u64) -> Outcome {
        let watched = WatchedRun {
            verdict: VerdictKind::Copied,
            workers: 2,
            copied_bytes,
            ending_bytes: None,
            new_bytes: 0,
            parent_bytes: 0,
            says: "COPIED: 2 children copied".to_owned(),
            why: Some("counts".to_owned()),
            place: Some("job.py:5".to_owned()),
        };
        let told = serde_json::json!({ "together_bytes": 3 << 20 }).as_object().expect("an object").clone();
        Outcome::Ran(Box::new(Finding { watched: Some(watched), told }))
    }

    fn lab(unexpected: &[&str]) -> Lab {
        let ways = vec![
            way("list", 1, ran(5 << 20)),
            way("list", 4, ran(40 << 20)),
            way("numpy", 4, Outcome::Skipped { why: "there is no python3".to_owned() }),
        ];
        let experiment = Experiment {
            name: "pool",
            question: "Is it shared?",
            work: "4 workers".to_owned(),
            ways,
            seen: vec!["It is.".to_owned()],
            unexpected: unexpected.iter().map(|&expected| expected.to_owned()).collect(),
        };
        let machine = Machine { kernel: "6.18".to_owned(), processors: 2, free_bytes: None, interpreter: None };
        Lab { quick: false, machine, experiments: vec![experiment] }
    }

    #[test]
    fn each_form_has_the_figures_and_what_is_not_as_expected() {
        let plain = |lab: &Lab| anstream::adapter::strip_str(&text(lab)).to_string();
        let good = plain(&lab(&[]));
        assert!(good.starts_with("1 experiment: each came out as expected; 1 way was skipped."), "{good}");
        assert!(good.contains("list, 4 workers") && good.contains("COPIED: counts, at job.py:5"), "{good}");
        assert!(
            good.contains("skipped: there is no python3") && good.lines().all(|line| line.len() <= WIDTH),
            "{good}"
        );
        let bad = lab(&["it is shared"]);
        for text in [plain(&bad), markdown(&bad, None), String::from_utf8(page(&bad)).expect("text")] {
            assert!(text.to_lowercase().contains("not as expected") && text.contains("it is shared"), "{text}");
        }
        let written = markdown(&bad, Some("lab.svg"));
        assert!(
            written.contains("| **list, 4 workers**: a \\| b | 40 |  | 0.0 | 0.0 | 3.0 | COPIED: counts"),
            "{written}"
        );
        assert!(written.contains("](lab.svg)"));
        assert!(chart(&bad).contains(">list, 4 workers</text>"));
    }
}
