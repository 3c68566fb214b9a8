//! The parts of the report that list where pages were copied and by which code.

use super::Verbosity;
use super::lines::{List, PAGES, Row, SHARE, Text, WIDTH, clean, count, percent, some, tail};
use super::table::{Keep, names, words};
use super::width::width;
use crate::analyse::summary::{Function, MappingCopies, ScriptLine, Summary};
use crate::analyse::{Cause, MappingKind};
use crate::stacks::{languages, own_name};
use cowbell::page::Bytes;
use std::collections::HashMap;

/// An anonymous mapping of less than this share of the copies is told together with others such.
const FOLD_SHARE: f64 = 0.25;
/// If there are more of them.
const FOLDED_MIN: usize = 2;
/// Below this share of the copies the kernel's writes are not told apart.
const KERNEL_SHARE_MIN: f64 = 0.01;

/// The table of mappings.
pub fn mappings(text: &mut Text, summary: &Summary, verbosity: &Verbosity) {
    let (mut rows, mut folded) = (Vec::new(), Vec::new());
    for mapping in summary.mappings.iter().filter(|mapping| mapping.copied_pages > 0) {
        let is_one_of_many = mapping.kind == MappingKind::Anonymous && mapping.share < FOLD_SHARE && !verbosity.verbose;
        let name = mapping_words(mapping);
        let list = if is_one_of_many { &mut folded } else { &mut rows };
        list.push((mapping.copied_pages, mapping.share, mapping.bytes, name));
    }
    if folded.len() <= FOLDED_MIN {
        rows.append(&mut folded);
    } else {
        // Addresses of many small ones tell nothing: what an allocator asked the kernel for, piece by piece.
        let (pages, share) = folded.iter().fold((0, 0.0), |sum, row| (row.0 + sum.0, row.1 + sum.1));
        let bytes = Bytes(folded.iter().map(|row| row.2).sum());
        let what = format!("anonymous memory, {bytes} in {} mappings", folded.len());
        rows.push((pages, share, 0, (what, String::new())));
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.0));
    if rows.is_empty() {
        return;
    }
    text.heading("Copied pages by mapping, with their share of all copies");
    // The words for the kind of a mapping are never lost with a part of its name.
    let columns = [PAGES, SHARE, words("", 0, 2)];
    let list = List { entries: &rows, columns: &columns, top: verbosity.top, in_full: verbosity.verbose };
    text.table(
        &list,
        |row| row.1,
        |(pages, share, _, (what, name))| {
            let room = WIDTH.saturating_sub(22 + width(what));
            let name = if verbosity.verbose || name.is_empty() { name.clone() } else { tail(name, room) };
            let name =
                if what.is_empty() || name.is_empty() { format!("{what}{name}") } else { format!("{what} {name}") };
            Row { cells: vec![count(*pages), percent(*share), name.trim_end().to_owned()], ..Row::default() }
        },
    );
}

/// A mapping, for people.
pub fn mapping_name(mapping: &MappingCopies) -> String {
    let (what, name) = mapping_words(mapping);
    if what.is_empty() || name.is_empty() { what + &name } else { format!("{what} {name}") }
}

/// The kind of a mapping, and the name that it has, of which a part may be left out.
fn mapping_words(mapping: &MappingCopies) -> (String, String) {
    let (name, bytes) = (clean(&mapping.name), Bytes(mapping.bytes));
    let nameless = |what: String| (what, String::new());
    match mapping.kind {
        MappingKind::Heap => nameless(format!("heap, {bytes}")),
        MappingKind::Stack if name == "[stack]" => nameless("stack".to_owned()),
        MappingKind::Stack | MappingKind::File => (String::new(), name),
        MappingKind::Anonymous => {
            nameless(format!("anonymous memory, {bytes} at {:#x}", mapping.start.unwrap_or_default()))
        }
        MappingKind::NamedAnonymous => (format!("anonymous memory, {bytes}:"), name),
        MappingKind::Bss => ("uninitialised data of".to_owned(), name),
        MappingKind::Memfd => (format!("memory file, {bytes}:"), name),
        MappingKind::Unknown => nameless("memory that was mapped and unmapped meanwhile".to_owned()),
    }
}

/// The table of functions.
pub fn functions(text: &mut Text, summary: &Summary, verbosity: &Verbosity) {
    if summary.functions.is_empty() {
        return;
    }
    text.heading("Copied pages by the code that first wrote to them: share of all copies");
    let columns = [PAGES, SHARE, names("", Keep::Head, 2), names("", Keep::Tail, 1)];
    let rows = function_rows(&summary.functions);
    let list = List { entries: &rows, columns: &columns, top: verbosity.top, in_full: verbosity.verbose };
    text.table(
        &list,
        |row| row.share,
        |row| {
            let cells = vec![count(row.pages), percent(row.share), row.name.clone(), row.place.clone()];
            let below = row.lines.iter().filter(|_| verbosity.verbose).map(|line| (23, line.clone())).collect();
            Row { cells, below }
        },
    );
    if summary.functions.iter().any(is_estimated) {
        text.faint_sentence(
            21,
            "< ~ f: called by f, as sampled stacks of the same code say; of these pages no caller was read",
        );
    }
    for unseen in &summary.totals.unknown.code {
        let share = percent(unseen.copied_pages as f64 / summary.totals.copied_pages as f64);
        text.faint(&format!("{:>11} {share:>7}  {}", count(unseen.copied_pages), unseen.text));
    }
}

/// Functions that a reader cannot tell apart.
struct FunctionRow {
    pages: u64,
    share: f64,
    name: String,
    place: String,
    /// The text of its lines.
    lines: Vec<String>,
}

fn function_rows(functions: &[Function]) -> Vec<FunctionRow> {
    let mut rows: Vec<FunctionRow> = Vec::new();
    let mut known: HashMap<(String, String), usize> = HashMap::new();
    for function in functions {
        let (name, place) = (function_name(function), function_place(function));
        let lines = function.lines.iter().filter_map(|line| Some((line.line, clean(line.source.as_ref()?))));
        let lines = lines.map(|(line, source)| format!("{line}: {source}"));
        let next = rows.len();
        let at = *known.entry((name.clone(), place.clone())).or_insert(next);
        match rows.get_mut(at) {
            Some(row) => {
                row.pages = row.pages.saturating_add(function.copied_pages);
                row.share += function.share;
                row.lines.extend(lines);
            }
            None => {
                let (pages, share) = (function.copied_pages, function.share);
                rows.push(FunctionRow { pages, share, name, place, lines: lines.collect() });
            }
        }
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.pages));
    rows
}

/// Tells whether the caller is one that sampled stacks agree on, for most of these pages.
fn is_estimated(function: &Function) -> bool {
    function.caller_estimated_pages.saturating_mul(2) > function.copied_pages
}

/// A function, with what was inlined there or who called it.
pub fn function_name(function: &Function) -> String {
    // There are as many names of one function as there are kinds of processors.
    let name = own_name::moving(&function.function).map_or_else(|| clean(&function.function), str::to_owned);
    match (&function.inlined, &function.called_from) {
        (Some(inlined), _) => format!("{name} ({})", clean(inlined)),
        (None, Some(caller)) => {
            let between = if function.called_indirectly { " < …" } else { "" };
            let estimated = if is_estimated(function) { "~ " } else { "" };
            format!("{name}{between} < {estimated}{}", clean(caller))
        }
        (None, None) => name,
    }
}

fn function_place(function: &Function) -> String {
    match function.lines.first() {
        Some(line) => {
            let more = function.lines.len() - 1;
            let more = if more > 0 { format!(" +{}", some(more as u64, "line", "lines")) } else { String::new() };
            format!("{}:{}{more}", clean(&line.file), line.line)
        }
        // A function without a name is called by its file already.
        None => {
            let file = function.module.rsplit('/').next().unwrap_or_default();
            if function.function.starts_with(&format!("{file}+")) { String::new() } else { clean(file) }
        }
    }
}

/// The table of lines of a program that an interpreter runs.
pub fn script(text: &mut Text, summary: &Summary, verbosity: &Verbosity) {
    let script = &summary.script;
    let Some(first) = script.lines.first() else { return };
    let samples = some(script.samples, "sampled stack", "sampled stacks");
    let is_one = script.lines.iter().all(|line| line.language == first.language);
    let language = languages::by_id(&first.language).filter(|_| is_one).map_or("script", |language| language.name());
    text.heading(&format!("Share of all copies by {language} line, ± points, estimated from {samples}"));
    let columns = [PAGES, SHARE, SHARE, names("", Keep::Tail, 2), names("", Keep::Head, 1), words("", 0, 1)];
    let list = List { entries: &script.lines, columns: &columns, top: verbosity.top, in_full: verbosity.verbose };
    text.table(
        &list,
        |line| line.share,
        |line| {
            let source = clean(line.source.as_deref().unwrap_or_default());
            let source = if source.is_empty() { format!("in {}", clean(&line.function)) } else { source };
            let cause = if line.cause == Cause::Unknown { "" } else { line.cause.short() };
            let error = format!("±{}", line.error_points.ceil());
            let figures = [count(line.copied_pages_estimated), percent(line.share), error];
            let cells = figures.into_iter().chain([script_place(line), source, cause.to_owned()]).collect();
            Row { cells, ..Row::default() }
        },
    );
}

/// The table of lines at which processes allocated memory of their own.
pub fn growth(text: &mut Text, summary: &Summary, verbosity: &Verbosity) {
    let growth = &summary.growth;
    if growth.lines.is_empty() {
        return;
    }
    let looks = some(growth.looks, "look", "looks");
    text.heading(&format!("New memory by line: share, ± points, of the growth that {looks} found"));
    let columns = [PAGES, SHARE, SHARE, names("", Keep::Tail, 2), names("", Keep::Head, 1)];
    let list = List { entries: &growth.lines, columns: &columns, top: verbosity.top, in_full: verbosity.verbose };
    text.table(
        &list,
        |line| line.share,
        |line| {
            let place = match (line.file.as_str(), line.line) {
                ("", _) => "no stack could be read".to_owned(),
                (file, 1..) => format!("{}:{}", clean(file), line.line),
                (file, _) => clean(file),
            };
            let source = clean(line.source.as_deref().unwrap_or(&line.function));
            let error = format!("±{}", line.error_points.ceil());
            let cells = vec![Bytes(line.bytes).to_string(), percent(line.share), error, place, source];
            Row { cells, ..Row::default() }
        },
    );
}

fn script_place(line: &ScriptLine) -> String {
    let place = |file: &str, number: i32| match number {
        1.. => format!("{file}:{number}"),
        _ => file.to_owned(),
    };
    let deciding = place(&line.file, line.line);
    match &line.called_from {
        // A line of a library stands with the user's own that led there.
        Some(own) => {
            let file = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
            format!("{} < {}", place(&file(&line.file), line.line), place(&file(&own.file), own.line))
        }
        None => deciding,
    }
}

/// The table of system calls.
pub fn syscalls(text: &mut Text, summary: &Summary, verbosity: &Verbosity) {
    let share: f64 = summary.syscalls.iter().map(|syscall| syscall.share).sum();
    if summary.syscalls.is_empty() || (share < KERNEL_SHARE_MIN && !verbosity.verbose) {
        return;
    }
    text.heading("Copied pages by system call, where the kernel wrote first: share of all copies");
    let columns = [PAGES, SHARE, words("", 0, 2)];
    let list = List { entries: &summary.syscalls, columns: &columns, top: verbosity.top, in_full: verbosity.verbose };
    text.table(
        &list,
        |syscall| syscall.share,
        |syscall| {
            let name = syscall.name.map_or_else(|| nameless_call(syscall.number), str::to_owned);
            Row { cells: vec![count(syscall.copied_pages), percent(syscall.share), name], ..Row::default() }
        },
    );
}
/// A system call that has no name here. Page faults do not tell in which one the kernel wrote.
fn nameless_call(number: i32) -> String {
    if number < 0 { "not known which".to_owned() } else { format!("number {number}") }
}
