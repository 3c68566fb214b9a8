//! The parts of the report that list where pages were copied and by which code.

use super::Look;
use super::lines::{Text, WIDTH, clean, head, pages_and_share, some, tail};
use crate::analyse::summary::{Function, Mapping, ScriptLine, Summary};
use crate::analyse::{Cause, Kind};
use crate::stacks::languages;
use cowbell::page::Bytes;

/// An anonymous mapping of less than this share of the copies is told together with others such.
const FOLD_SHARE: f64 = 0.25;
/// If there are more of them.
const FOLDED_MIN: usize = 2;
/// Below this share of the copies the kernel's writes are not told apart.
const KERNEL_SHARE_MIN: f64 = 0.01;
/// Columns of the lists, after pages and share.
const COLUMNS: usize = WIDTH - 21;

/// Which mappings.
pub fn mappings(text: &mut Text, summary: &Summary, look: &Look) {
    let (mut rows, mut folded) = (Vec::new(), Vec::new());
    for mapping in summary.mappings.iter().filter(|mapping| mapping.copied_pages > 0) {
        let is_one_of_many = mapping.kind == Kind::Anonymous && mapping.share < FOLD_SHARE && !look.verbose;
        let name = mapping_name(mapping);
        let list = if is_one_of_many { &mut folded } else { &mut rows };
        list.push((mapping.copied_pages, mapping.share, mapping.bytes, name));
    }
    if folded.len() <= FOLDED_MIN {
        rows.append(&mut folded);
    } else {
        // Addresses of many small ones tell nothing: what an allocator asked the kernel for, piece by piece.
        let (pages, share) = folded.iter().fold((0, 0.0), |sum, row| (row.0 + sum.0, row.1 + sum.1));
        let bytes = Bytes(folded.iter().map(|row| row.2).sum());
        rows.push((pages, share, 0, format!("anonymous memory, {bytes} in {} mappings", folded.len())));
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.0));
    if rows.is_empty() {
        return;
    }
    text.heading("Copied pages by mapping, with their share of all copies");
    text.list(
        &rows,
        look.top,
        |row| row.1,
        |text, (pages, share, _, name)| {
            let name = if look.verbose { name.clone() } else { tail(name, COLUMNS).trim_end().to_owned() };
            text.line(&format!("{}  {name}", pages_and_share(*pages, *share)));
        },
    );
}

/// A mapping, for people.
pub fn mapping_name(mapping: &Mapping) -> String {
    let (name, bytes) = (clean(&mapping.name), Bytes(mapping.bytes));
    match mapping.kind {
        Kind::Heap => format!("heap, {bytes}"),
        Kind::Stack => {
            if name == "[stack]" {
                "stack".to_owned()
            } else {
                name
            }
        }
        Kind::Anonymous => format!("anonymous memory, {bytes} at {:#x}", mapping.start.unwrap_or_default()),
        Kind::NamedAnonymous => format!("{name}, {bytes}"),
        Kind::Bss => format!("uninitialised data of {name}"),
        Kind::File => name,
        Kind::Memfd => format!("{name}, {bytes}"),
        Kind::Unknown => "mappings that came after the fork and went".to_owned(),
    }
}

/// Which functions.
pub fn functions(text: &mut Text, summary: &Summary, look: &Look) {
    if summary.functions.is_empty() {
        return;
    }
    text.heading("Copied pages by the code that first wrote to them");
    text.list(
        &summary.functions,
        look.top,
        |function| function.share,
        |text, function| {
            let (name, place) = (function_name(function), function_place(function));
            let columns = if look.verbose {
                format!("{name}  {place}")
            } else {
                format!("{} {}", head(&name, 44), tail(&place, COLUMNS - 45))
            };
            text.line(&format!("{}  {columns}", pages_and_share(function.copied_pages, function.share)));
        },
    );
}

fn function_name(function: &Function) -> String {
    let name = clean(&function.function);
    match (&function.inlined, &function.called_from) {
        (Some(inlined), _) => format!("{name} ({})", clean(inlined)),
        (None, Some(caller)) => format!("{name} < {}", clean(caller)),
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
        // What has no name is called by its file already.
        None => {
            let file = function.module.rsplit('/').next().unwrap_or_default();
            if function.function.starts_with(&format!("{file}+")) { String::new() } else { clean(file) }
        }
    }
}

/// Which lines of a program that an interpreter runs.
pub fn script(text: &mut Text, summary: &Summary, look: &Look) {
    let script = &summary.script;
    let Some(first) = script.lines.first() else { return };
    let samples = some(script.samples, "sampled stack", "sampled stacks");
    let is_one = script.lines.iter().all(|line| line.language == first.language);
    let language = languages::by_id(&first.language).filter(|_| is_one).map_or("script", |language| language.name());
    text.heading(&format!("Copied pages by {language} line, estimated from {samples}"));
    text.list(
        &script.lines,
        look.top,
        |line| line.share,
        |text, line| {
            let source = clean(line.source.as_deref().unwrap_or_default());
            let source = if source.is_empty() { format!("in {}", clean(&line.function)) } else { source };
            let place = script_place(line);
            let cause = if line.cause == Cause::Unknown { "" } else { line.cause.name() };
            let columns = if look.verbose {
                format!("{place}  {source}  {cause}")
            } else {
                format!("{} {} {cause}", tail(&place, 33), head(&source, 26))
            };
            text.line(&format!("{}  {columns}", pages_and_share(line.copied_pages_estimated, line.share)));
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
        // Of a library's line, the user's own that led there.
        Some(own) => {
            let file = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
            format!("{} < {}", place(&file(&line.file), line.line), place(&file(&own.file), own.line))
        }
        None => deciding,
    }
}

/// Which system calls.
pub fn syscalls(text: &mut Text, summary: &Summary, look: &Look) {
    let share: f64 = summary.syscalls.iter().map(|syscall| syscall.share).sum();
    if summary.syscalls.is_empty() || (share < KERNEL_SHARE_MIN && !look.verbose) {
        return;
    }
    text.heading("Copied pages by system call, where the kernel wrote first");
    text.list(
        &summary.syscalls,
        look.top,
        |syscall| syscall.share,
        |text, syscall| {
            let name = syscall.name.map_or(format!("number {}", syscall.number), str::to_owned);
            text.line(&format!("{}  {name}", pages_and_share(syscall.copied_pages, syscall.share)));
        },
    );
}
