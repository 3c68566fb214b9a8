//! Two sides of runs as text: what changed first, then the tables.

use super::Verbosity;
use super::check::role_name;
use super::json::Document;
use super::lines::{List, Row, Text, clean, head, percent, some};
use super::table::{Keep, figures, names, words};
use super::tables;
use crate::analyse::diff::{Diff, DiffVerdict, FigureChange, LineChange, MappingChange, RoleChange, Side};
use crate::analyse::summary::{ByClass, MappingCopies};
use cowbell::page::Bytes;

impl Document for Diff {
    const FORMAT: &'static str = "cowbell-diff";
    const VERSION: u32 = 1;
}

/// The most roles and lines that are told in sentences.
const TOLD_MAX: usize = 3;

/// The comparison, with colours.
pub fn text(diff: &Diff, verbosity: &Verbosity) -> String {
    let mut text = Text::default();
    for sentence in verdict(diff) {
        text.loud_sentence(&sentence);
    }
    text.faint_sentence(0, &noise(diff));
    for note in &diff.notes {
        text.faint_sentence(0, note);
    }
    if !verbosity.quiet {
        let each = |role: &RoleChange| (role_words(role), role.change.clone());
        table(&mut text, "Copied by each process on average, by its role", &diff.roles, each, verbosity);
        table(
            &mut text,
            "Copied by all, by likely cause",
            &diff.causes,
            |c| (c.name.to_owned(), c.change.clone()),
            verbosity,
        );
        let line = |line: &LineChange| (line_words(line), line.change.clone());
        table(&mut text, "Copied by all, by line, estimated from sampled stacks", &diff.lines, line, verbosity);
        let function = |f: &crate::analyse::diff::FunctionChange| {
            (format!("{} {}", clean(&f.function), clean(&f.module)), f.change.clone())
        };
        table(&mut text, "Copied by all, by the code that first wrote", &diff.functions, function, verbosity);
        let mapping = |mapping: &MappingChange| (mapping_words(mapping), mapping.change.clone());
        table(&mut text, "Copied by all, by mapping", &diff.mappings, mapping, verbosity);
    }
    text.finish()
}

/// The first thing to read: one sentence, or one for each role that changed and each line that is gone.
pub fn verdict(diff: &Diff) -> Vec<String> {
    let is_told = |role: &&RoleChange| role.change.verdict != DiffVerdict::Same;
    let mut sentences: Vec<String> = diff.roles.iter().filter(is_told).take(TOLD_MAX).map(role_sentence).collect();
    if sentences.is_empty() {
        sentences.push(match diff.total.verdict {
            DiffVerdict::Same => {
                let (counted, doubt) = match is_in_doubt(diff) {
                    true => (" as counted", "; what could not be seen may differ"),
                    false => ("", ""),
                };
                format!(
                    "NO CHANGE{counted}: all together copied {} before and {} after{doubt}",
                    Bytes(diff.total.before.median_bytes),
                    Bytes(diff.total.after.median_bytes)
                )
            }
            // The sum can change alone, where there are more or fewer processes of a role.
            verdict => {
                format!("{}: all together copied {}{}", word(verdict), difference(&diff.total), doubt(verdict))
            }
        });
    }
    let gone = diff.lines.iter().filter(|line| line.gone || line.perhaps_now.is_some()).take(TOLD_MAX);
    sentences.extend(gone.map(|line| {
        let source = line.source.as_deref().map_or(String::new(), |source| format!(": {}", clean(source)));
        let file = base(&clean(&line.file));
        match &line.perhaps_now {
            None => format!("GONE: no sample shows line {} of {file} copying any more{source}", line.line),
            Some(now) => format!(
                "PERHAPS GONE: no sample shows line {} of {file} copying any more, but it may be {now} \
                 now{source}",
                line.line
            ),
        }
    }));
    sentences
}

/// Tells whether there may be a change where none was counted.
fn is_in_doubt(diff: &Diff) -> bool {
    diff.total.is_in_doubt || diff.roles.iter().any(|role| role.change.is_in_doubt)
}

fn role_sentence(role: &RoleChange) -> String {
    let name = role_name(&role.role);
    let is_one = role.processes_before.max(role.processes_after) <= 1;
    let who = if is_one { name } else { format!("on average each {name}") };
    let (change, verdict) = (&role.change, role.change.verdict);
    // Where a role was not played its figure is no process'.
    let copied = match (role.processes_before, role.processes_after) {
        (_, 0) => format!("{} before; {} after", Bytes(change.before.median_bytes), nobody(&change.after)),
        (0, _) => format!("{} after; {} before", Bytes(change.after.median_bytes), nobody(&change.before)),
        _ => difference(change),
    };
    format!("{}: {who} copied {copied}{}", word(verdict), doubt(verdict))
}

/// The words for a side whose run in the middle has no process of a role.
fn nobody(side: &Side) -> &'static str {
    if side.runs_bytes.len() == 1 { "none was watched" } else { "none was watched in most runs" }
}

fn doubt(verdict: DiffVerdict) -> &'static str {
    match verdict {
        DiffVerdict::BoundsOverlap => ", but what could not be seen may make up for it",
        _ => "",
    }
}

fn word(verdict: DiffVerdict) -> &'static str {
    match verdict {
        DiffVerdict::Same => "NO CHANGE",
        DiffVerdict::Less => "LESS",
        DiffVerdict::More => "MORE",
        DiffVerdict::NoiseUnknown => "DIFFERENT",
        DiffVerdict::BoundsOverlap => "CANNOT TELL",
    }
}

fn difference(change: &FigureChange) -> String {
    let (before, after) = (Bytes(change.before.median_bytes), Bytes(change.after.median_bytes));
    let size = Bytes(change.difference_bytes.unsigned_abs());
    let how = if change.difference_bytes < 0 { "less" } else { "more" };
    format!("{size} {how}: {before} before, {after} after")
}

/// A sentence on what is known of noise.
pub fn noise(diff: &Diff) -> String {
    let runs = |number| some(number, "run", "runs");
    if diff.noise_known {
        let (before, after) = (runs(diff.before_runs), runs(diff.after_runs));
        return format!("noise is told from change by {before} before and {after} after");
    }
    "noise is unknown: give two or more runs of each side, as in cowbell diff before*.cap -- after*.cap".to_owned()
}

/// A role and how many played it, for people.
pub fn role_words(role: &RoleChange) -> String {
    let name = role_name(&role.role);
    let name = role.became.as_ref().map_or(name.clone(), |became| format!("{name}, now {}", clean(&became.command)));
    match (role.processes_before, role.processes_after) {
        (before, after) if before == after => format!("{} {name}", super::lines::count(before)),
        (before, after) => format!("{before}, then {after} {name}"),
    }
}

/// A line, for people.
pub fn line_words(line: &LineChange) -> String {
    let source = line.source.clone().unwrap_or_else(|| format!("in {}", line.function));
    format!("{}:{} {}", base(&clean(&line.file)), line.line, clean(&source))
}

/// A mapping, for people.
pub fn mapping_words(mapping: &MappingChange) -> String {
    if mapping.kind == crate::analyse::MappingKind::Anonymous {
        return "anonymous memory".to_owned();
    }
    let pages = ByClass::default();
    // Sizes differ between runs; the kind and the name do not.
    let shown = MappingCopies {
        kind: mapping.kind,
        name: mapping.name.clone(),
        start: None,
        bytes: 0,
        pages,
        copied_pages: 0,
        share: 0.0,
    };
    tables::mapping_name(&shown).replace(", 0 bytes", "")
}

fn base(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

fn table<T>(
    text: &mut Text,
    title: &str,
    entries: &[T],
    row: impl Fn(&T) -> (String, FigureChange),
    verbosity: &Verbosity,
) {
    if entries.is_empty() {
        return;
    }
    text.heading(title);
    let columns = [
        figures("before", 10, 0),
        figures("after", 10, 2),
        figures("change", 8, 1),
        words("", 0, 1),
        names("", Keep::Head, 2),
    ];
    let list = List { entries, columns: &columns, top: verbosity.top, in_full: verbosity.verbose };
    // A part of what was there before is no part of a whole: those of the rest cannot be added up.
    text.listing(&list, |entry| {
        let (name, change) = row(entry);
        let what = state(change.verdict);
        let [before, after] = [&change.before, &change.after].map(|side| Bytes(side.median_bytes).to_string());
        let name = if verbosity.verbose { name } else { head(&name, 60).trim_end().to_owned() };
        Row { cells: vec![before, after, part(&change), what.to_owned(), name], ..Row::default() }
    });
}

/// The verdict on a difference, in a word; nothing where that is not known.
pub fn state(verdict: DiffVerdict) -> &'static str {
    match verdict {
        DiffVerdict::Same => "same",
        DiffVerdict::Less => "less",
        DiffVerdict::More => "more",
        DiffVerdict::NoiseUnknown => "",
        DiffVerdict::BoundsOverlap => "bounds overlap",
    }
}

/// The difference as a part of what was there before.
pub fn part(change: &FigureChange) -> String {
    let before = change.before.median_bytes;
    let sign = match change.difference_bytes {
        0 => return "0 %".to_owned(),
        1.. => '+',
        _ => '-',
    };
    if before == 0 {
        return "new".to_owned();
    }
    format!("{sign}{}", percent(change.difference_bytes.unsigned_abs() as f64 / before as f64))
}
