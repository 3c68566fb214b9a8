//! A snapshot as text for people: one line a process, then the sums.

use super::compare::PageCounts;
use super::document::{Group, MemoryReport, ProcessReport, Relation, Snapshot, TakesBy};
use super::process::ReadState;
use crate::views::table::{self, Column, Keep};
use crate::views::{Verbosity, WIDTH, clean, some};
use cowbell::page::Bytes;
use std::fmt::{Result, Write};

/// Longer names of files lose their folders.
const PATH_MAX: usize = 32;
/// Generations that are indented; deeper ones stand below the last.
const INDENTED_MAX: usize = 6;

/// A snapshot in words.
pub fn text(snapshot: &Snapshot, verbosity: &Verbosity) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _written = write(&mut out, snapshot, verbosity);
    out
}

fn write(out: &mut String, snapshot: &Snapshot, verbosity: &Verbosity) -> Result {
    if verbosity.quiet {
        return totals(out, snapshot);
    }
    let page = snapshot.page_size;
    let mut rows = Vec::new();
    for process in &snapshot.processes {
        let memory = process.memory.as_ref();
        let figures = memory.map(|memory| {
            let kernel = [memory.rss_bytes, memory.pss_bytes, memory.uss_bytes];
            kernel.into_iter().chain(figures(&memory.pages, page)).collect()
        });
        rows.push(Row { name: label(process), figures: figures.unwrap_or_default(), remark: remark(process) });
    }
    table(out, "process", &["rss", "pss", "uss"], &rows, verbosity)?;
    legend(out, snapshot)?;
    writeln!(out)?;
    totals(out, snapshot)?;
    let children = &snapshot.total.children;
    let has_children = !children.mappings.is_empty();
    if has_children {
        groups(out, "the children's mappings", &children.mappings, snapshot, verbosity)?;
    }
    for process in snapshot.processes.iter().filter(|_| verbosity.verbose || !has_children) {
        if let Some(memory) = &process.memory {
            groups(out, &format!("mappings of {}", process.pid), &memory.mappings, snapshot, verbosity)?;
        }
    }
    for note in &snapshot.notes {
        for line in table::described(0, &[(vec!["note:".to_owned()], clean(note))], WIDTH) {
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

/// Columns of [`PageCounts`], in the order of [`figures`].
const COUNTS: [&str; 9] = ["=parent", "=others", "differs", "either", "new", "filecopy", "unknown", "file", "swap"];

fn figures(pages: &PageCounts, page: u64) -> [u64; COUNTS.len()] {
    [
        pages.shared_with_parent,
        pages.shared_with_others.pages + pages.shared_unknown,
        pages.own.differs,
        pages.own.copied_or_new,
        pages.own.new,
        pages.own.file_copies,
        pages.own.unknown,
        pages.file,
        pages.swapped,
    ]
    .map(|pages| pages * page)
}

/// A line of a table: its figures in bytes, none of them where there is nothing to show.
struct Row {
    name: String,
    figures: Vec<u64>,
    remark: String,
}

/// Writes rows; columns without any figure are left out.
fn table(
    out: &mut String,
    names: &'static str,
    before: &[&'static str],
    rows: &[Row],
    verbosity: &Verbosity,
) -> Result {
    let titles: Vec<&'static str> = before.iter().chain(&COUNTS).copied().collect();
    let is_told = |nth: &usize| rows.iter().any(|row| row.figures.get(*nth).is_some_and(|&bytes| bytes > 0));
    let told: Vec<usize> = (0..titles.len()).filter(is_told).collect();
    let mut columns: Vec<Column> = vec![table::names(names, Keep::Head, 0)];
    columns.extend(told.iter().filter_map(|&nth| Some(table::figures(titles.get(nth).copied()?, 0, 1))));
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let figures = told.iter().map(|&nth| row.figures.get(nth).copied().map_or(String::new(), short));
            std::iter::once(row.name.clone()).chain(figures).collect()
        })
        .collect();
    let blocks = table::blocks(&columns, &cells, (!verbosity.verbose).then_some(WIDTH));
    for (number, block) in blocks.iter().enumerate() {
        for (nth, line) in block {
            writeln!(out, "{line}")?;
            let row = nth.filter(|_| number == 0).and_then(|nth| rows.get(nth));
            if let Some(row) = row.filter(|row| !row.remark.is_empty()) {
                let indent = row.name.len() - row.name.trim_start().len() + 2;
                for line in table::wrap(&row.remark, WIDTH - indent) {
                    writeln!(out, "{:indent$}{line}", "")?;
                }
            }
        }
    }
    Ok(())
}

/// Id and command, without the folder of the program.
/// A process, for people.
pub fn label(process: &ProcessReport) -> String {
    let indent = 2 * process.depth.min(INDENTED_MAX);
    format!("{:indent$}{} {}", "", process.pid, command(process))
}

/// The program that a process runs, as one line: its program without the folder, its arguments.
pub fn command(process: &ProcessReport) -> String {
    let mut words = process.command.iter().map(String::as_str);
    let program = words.next().map_or(process.name.as_str(), |path| path.rsplit('/').next().unwrap_or(path));
    clean(&std::iter::once(program).chain(words).collect::<Vec<_>>().join(" "))
}

/// Words to add to a process' figures; empty if there are none.
pub fn remark(process: &ProcessReport) -> String {
    match (&process.state, process.memory.as_ref().map(|memory| memory.relation)) {
        (ReadState::Gone, _) => "gone before it was read".to_owned(),
        (ReadState::Zombie, _) => "is ending or has ended: no memory to read".to_owned(),
        (ReadState::Read, Some(Relation::SameMemory { of })) if of == process.parent => {
            format!("runs in the memory of {of}: nothing is its own")
        }
        (ReadState::Read, Some(Relation::SameMemory { of })) => {
            format!("runs in the memory of {of}, where its pages are counted: nothing is its own")
        }
        (ReadState::Read, Some(Relation::ForkedOrSameMemory)) => format!(
            "perhaps runs in the memory of {}, and nothing is its own: all pages look the same, and the kernel does not \
             say (kcmp)",
            process.parent
        ),
        (ReadState::Read, Some(Relation::Unrelated)) if process.depth > 0 => {
            "not a fork of what its parent runs: shares no private page with it".to_owned()
        }
        (ReadState::Read, Some(Relation::ParentUnreadable)) if process.depth > 0 => {
            "its parent was not readable: where its own pages came from is not known".to_owned()
        }
        (ReadState::Read, _) => match process.memory.as_ref().map_or(0, |memory| memory.hugetlb_bytes) {
            0 => String::new(),
            bytes => format!("and {} of huge page pools, which rss, pss and uss leave out", Bytes(bytes)),
        },
        (ReadState::KernelThread | ReadState::Denied | ReadState::Failed, _) => clean(&process.why),
    }
}

fn legend(out: &mut String, snapshot: &Snapshot) -> Result {
    let reports: Vec<&MemoryReport> = snapshot.processes.iter().filter_map(|p| p.memory.as_ref()).collect();
    let any = |of: fn(&PageCounts) -> u64| reports.iter().any(|memory| of(&memory.pages) > 0);
    let frames = snapshot.evidence.frames;
    let others = match frames {
        true => "private pages that other processes have too; not known to be its parent's page there",
        false => "private pages that its parent or others have too",
    };
    let differs = match frames {
        true => {
            "own, and its parent has another one there: it, its parent, or one between them that has ended, copied it \
             after the fork, or each was the first to write it"
        }
        false => {
            "own, and its parent has another one there: it, its parent, or one between them that has ended, copied it \
             after the fork, or each was the first to write it; perhaps in memory that each mapped since the fork"
        }
    };
    writeln!(out)?;
    let mut terms = Vec::new();
    let own = "pages that no other process has: differs, either, new, filecopy and unknown together";
    for (shown, column, words) in [
        (any(|p| p.shared_with_parent), "=parent", "private pages that are still its parent's: the same page frame"),
        (any(|p| p.shared_with_others.pages + p.shared_unknown), "=others", others),
        (any(|p| p.own.differs), "differs", differs),
        (
            any(|p| p.own.copied_or_new),
            "either",
            "the same, in a mapping of which they share no page: copied, or mapped by each since the fork",
        ),
        (any(|p| p.own.new), "new", "own, and its parent has nothing there, or runs another program"),
        (any(|p| p.own.file_copies), "filecopy", "own private copies of a file's pages"),
        (any(|p| p.own.unknown), "unknown", "own; its parent's page is swapped out or not readable"),
        (any(|p| p.own.pages), "own", own),
        (any(|p| p.file), "file", "pages of files and of shared memory"),
    ] {
        if shown {
            terms.push((vec![column.to_owned()], words.to_owned()));
        }
    }
    for line in table::described(2, &terms, WIDTH) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

fn totals(out: &mut String, snapshot: &Snapshot) -> Result {
    let total = &snapshot.total;
    let by = match total.takes_by {
        TakesBy::Frames => "each page frame counted once",
        TakesBy::Pss => "the sum of PSS",
    };
    let mut count = some(total.processes, "process", "processes");
    if total.memories < total.processes {
        count += &format!(" in {}", some(total.memories, "memory", "memories"));
    }
    writeln!(out, "{count}: {} if nothing were shared", Bytes(total.unshared_bytes))?;
    writeln!(out, "  {} taken ({by})", Bytes(total.takes_bytes))?;
    writeln!(out, "  {} saved by sharing", Bytes(total.saved_bytes))?;
    let children = &total.children;
    if !children.mappings.is_empty() {
        writeln!(
            out,
            "children's own: {}, {} of it where the parent has other pages",
            Bytes(children.own_bytes),
            Bytes(children.differs_bytes)
        )?;
        if let Some(added) = children.added_bytes {
            writeln!(out, "  {} more than the top process has by itself, added by the children", Bytes(added))?;
        }
    }
    Ok(())
}

/// Mappings with most own memory.
fn groups(out: &mut String, title: &str, groups: &[Group], snapshot: &Snapshot, verbosity: &Verbosity) -> Result {
    let mut rows = Vec::new();
    for group in groups.iter().take(verbosity.top) {
        let own = group.pages.own.pages * snapshot.page_size;
        let figures = std::iter::once(own).chain(figures(&group.pages, snapshot.page_size)).collect();
        let name = clean(&group.name);
        let name = if verbosity.verbose { &name } else { tail(&name) };
        rows.push(Row { name: format!("  {name}"), figures, remark: String::new() });
    }
    writeln!(out)?;
    writeln!(out, "{title}")?;
    table(out, "", &["own"], &rows, verbosity)?;
    match groups.len().saturating_sub(verbosity.top) {
        0 => Ok(()),
        more => writeln!(out, "  and {more} more"),
    }
}

/// A path's last part where the whole is long: the rest is the same for many.
fn tail(name: &str) -> &str {
    match name.rsplit_once('/') {
        Some((_, last)) if name.chars().count() > PATH_MAX && !last.is_empty() => last,
        _ => name,
    }
}

/// Bytes in at most six columns.
fn short(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["K", "M", "G", "T", "P"];
    if bytes == 0 {
        return "-".to_owned();
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut units = UNITS.iter().peekable();
    while let Some(unit) = units.next() {
        // 999.95 would be rounded to a column more.
        if amount < 999.95 || units.peek().is_none() {
            return if *unit == "K" { format!("{amount:.0}K") } else { format!("{amount:.1}{unit}") };
        }
        amount /= 1024.0;
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_figures_stay_short() {
        let cases = [(0, "-"), (4096, "4K"), (999 << 10, "999K"), (1 << 20, "1.0M"), (1023 << 20, "1.0G")];
        for (bytes, shown) in cases {
            assert_eq!(short(bytes), shown, "{bytes}");
        }
        for shift in 10..=49 {
            for bytes in [1 << shift, (1 << shift) - 1, (1 << shift) + (1 << (shift - 1))] {
                assert!(short(bytes).len() <= 6, "{bytes}: {}", short(bytes));
            }
        }
    }

    #[test]
    fn a_table_is_as_wide_as_agreed_whatever_the_names_and_leaves_no_figure_out() {
        let mut rows = Vec::new();
        for name in ["1 x".to_owned(), "é".repeat(300), format!("{:12}7 {}", "", "long ".repeat(40))] {
            rows.push(Row { name, figures: (1..=12).map(|nth| nth << 30).collect(), remark: "a remark".to_owned() });
        }
        let mut shown = String::new();
        let verbosity = Verbosity { top: 10, quiet: false, verbose: false };
        table(&mut shown, "process", &["rss", "pss", "uss"], &rows, &verbosity).expect("memory");
        for line in shown.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        for title in ["rss", "pss", "uss"].iter().chain(&COUNTS) {
            assert!(shown.split_whitespace().any(|word| word == *title), "{title} in {shown}");
        }
        for figure in 1..=12 {
            assert_eq!(shown.matches(&format!(" {figure}.0G")).count(), 3, "{figure} in {shown}");
        }
        assert_eq!(shown.matches("a remark").count(), 3, "said once of each: {shown}");
    }

    #[test]
    fn names_cannot_command_the_terminal() {
        assert_eq!(clean("a\x1b[2Jb\nc\u{9b}"), "a?[2Jb?c?");
        assert_eq!(tail("/usr/lib/x86_64-linux-gnu/libpython3.12.so.1.0"), "libpython3.12.so.1.0");
    }
}
