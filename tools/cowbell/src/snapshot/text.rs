//! A snapshot as text for people: one line a process, then the sums.

use super::compare::Counts;
use super::document::{Group, MemoryReport, ProcessReport, Relation, Snapshot, TakesBy};
use super::process::State;
use cowbell::page::Bytes;
use std::fmt::{Result, Write};

/// Columns of the whole.
const WIDTH_MAX: usize = 100;
/// Columns of the name of a process or of a mapping.
const NAME_MIN: usize = 10;
/// Longer names of files lose their folders.
const PATH_MAX: usize = 32;
/// Generations that are indented; deeper ones stand below the last.
const INDENTED_MAX: usize = 6;

/// How much to say.
pub struct Look {
    /// Lines a list of mappings has.
    pub top: usize,
    /// The sums only.
    pub quiet: bool,
    /// Each process' own mappings too.
    pub verbose: bool,
}

/// A snapshot in words.
pub fn text(snapshot: &Snapshot, look: &Look) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _written = write(&mut out, snapshot, look);
    out
}

fn write(out: &mut String, snapshot: &Snapshot, look: &Look) -> Result {
    if look.quiet {
        return totals(out, snapshot);
    }
    let page = snapshot.page_size;
    let mut rows = vec![header("process", &["rss", "pss", "uss"])];
    for process in &snapshot.processes {
        let memory = process.memory.as_ref();
        let figures = memory.map(|memory| {
            let kernel = [memory.rss_bytes, memory.pss_bytes, memory.uss_bytes];
            kernel.into_iter().chain(figures(&memory.pages, page)).collect()
        });
        rows.push(Row { name: label(process), figures: figures.unwrap_or_default(), remark: remark(process) });
    }
    table(out, rows)?;
    legend(out, snapshot)?;
    writeln!(out)?;
    totals(out, snapshot)?;
    let children = &snapshot.total.children;
    if children.processes > 0 {
        groups(out, "the children's mappings", &children.mappings, snapshot, look)?;
    }
    for process in snapshot.processes.iter().filter(|_| look.verbose || children.processes == 0) {
        if let Some(memory) = &process.memory {
            groups(out, &format!("mappings of {}", process.pid), &memory.mappings, snapshot, look)?;
        }
    }
    for note in &snapshot.notes {
        writeln!(out, "note: {}", plain(note))?;
    }
    Ok(())
}

/// Columns of [`Counts`], in the order of [`figures`].
const COUNTS: [&str; 9] = ["=parent", "=others", "differs", "either", "new", "filecopy", "unknown", "file", "swap"];

fn figures(pages: &Counts, page: u64) -> [u64; COUNTS.len()] {
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

/// The first line: the names of the columns, as the remark holds them.
fn header(name: &str, before: &[&str]) -> Row {
    let columns: Vec<_> = before.iter().chain(&COUNTS).copied().collect();
    Row { name: name.to_owned(), figures: Vec::new(), remark: columns.join(" ") }
}

/// Writes rows below a [`header`]; columns without any figure are left out.
fn table(out: &mut String, mut rows: Vec<Row>) -> Result {
    if rows.is_empty() {
        return Ok(());
    }
    let first = rows.remove(0);
    let mut columns: Vec<(usize, Vec<String>)> = Vec::new();
    for (nth, title) in first.remark.split(' ').enumerate() {
        let figure = |row: &Row| row.figures.get(nth).copied();
        if rows.iter().any(|row| figure(row).is_some_and(|bytes| bytes > 0)) {
            let mut cells = vec![title.to_owned()];
            cells.extend(rows.iter().map(|row| figure(row).map_or(String::new(), short)));
            columns.push((cells.iter().map(String::len).max().unwrap_or(0), cells));
        }
    }
    let widths: usize = columns.iter().map(|(width, _)| width).sum();
    // Closer where two blanks between columns would leave no room for names.
    let gap = if widths + 2 * columns.len() + NAME_MIN <= WIDTH_MAX { 2 } else { 1 };
    let taken = widths + gap * columns.len();
    let longest = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max(first.name.len());
    let name_width = longest.min(WIDTH_MAX.saturating_sub(taken).max(NAME_MIN));
    let heading = Row { remark: String::new(), ..first };
    for (nth, row) in std::iter::once(&heading).chain(&rows).enumerate() {
        let mut line = format!("{:<name_width$}", cut(&row.name, name_width));
        for (width, cells) in columns.iter().filter(|_| row.remark.is_empty() || !row.figures.is_empty()) {
            line += &format!("{:gap$}{:>width$}", "", cells.get(nth).map_or("", String::as_str));
        }
        writeln!(out, "{}", line.trim_end())?;
        if !row.remark.is_empty() {
            let indent = row.name.len() - row.name.trim_start().len() + 2;
            writeln!(out, "{:indent$}{}", "", row.remark)?;
        }
    }
    Ok(())
}

/// Id and command, without the folder of the program.
fn label(process: &ProcessReport) -> String {
    let mut words = process.command.iter().map(String::as_str);
    let program = words.next().map_or(process.name.as_str(), |path| path.rsplit('/').next().unwrap_or(path));
    let command: Vec<_> = std::iter::once(program).chain(words).collect();
    let indent = 2 * process.depth.min(INDENTED_MAX);
    format!("{:indent$}{} {}", "", process.pid, plain(&command.join(" ")))
}

/// What there is to say of a process besides its figures.
fn remark(process: &ProcessReport) -> String {
    match (&process.state, process.memory.as_ref().map(|memory| memory.relation)) {
        (State::Gone, _) => "gone before it was read".to_owned(),
        (State::Zombie, _) => "has ended, not reaped yet: no memory".to_owned(),
        (State::Read, Some(Relation::SameMemory { of })) => format!("runs in the memory of {of}: nothing is its own"),
        (State::Read, Some(Relation::Unrelated)) if process.depth > 0 => {
            "not a fork of what its parent runs: shares no private page with it".to_owned()
        }
        (State::Read, Some(Relation::ParentUnreadable)) if process.depth > 0 => {
            "its parent was not readable: where its own pages came from is not known".to_owned()
        }
        (State::Read, _) => match process.memory.as_ref().map_or(0, |memory| memory.hugetlb_bytes) {
            0 => String::new(),
            bytes => format!("and {} of huge page pools, which rss, pss and uss leave out", Bytes(bytes)),
        },
        (State::KernelThread | State::Denied | State::Failed, _) => plain(&process.why),
    }
}

fn legend(out: &mut String, snapshot: &Snapshot) -> Result {
    let reports: Vec<&MemoryReport> = snapshot.processes.iter().filter_map(|p| p.memory.as_ref()).collect();
    let any = |of: fn(&Counts) -> u64| reports.iter().any(|memory| of(&memory.pages) > 0);
    let others = if snapshot.evidence.frames {
        "private pages that others have too: its children, siblings, or its parent elsewhere"
    } else {
        "private pages that its parent or others have too"
    };
    writeln!(out)?;
    for (shown, column, words) in [
        (any(|p| p.shared_with_parent), "=parent", "private pages that are still its parent's: the same page frame"),
        (any(|p| p.shared_with_others.pages + p.shared_unknown), "=others", others),
        (
            any(|p| p.own.differs),
            "differs",
            "own, and its parent has another there: one copied it, or both wrote it first",
        ),
        (
            any(|p| p.own.copied_or_new),
            "either",
            "the same where nothing is shared: copied, or mapped by each since the fork",
        ),
        (any(|p| p.own.new), "new", "own, and its parent has nothing there"),
        (any(|p| p.own.file_copies), "filecopy", "own private copies of a file's pages"),
        (any(|p| p.own.unknown), "unknown", "own; its parent's page is swapped out or not readable"),
        (any(|p| p.file), "file", "pages of files and of shared memory"),
    ] {
        if shown {
            writeln!(out, "  {column:<8}  {words}")?;
        }
    }
    Ok(())
}

fn totals(out: &mut String, snapshot: &Snapshot) -> Result {
    let total = &snapshot.total;
    let by = match total.takes_by {
        TakesBy::Frames => "each page frame counted once",
        TakesBy::Pss => "the sum of PSS",
    };
    let count = if total.processes == 1 { "1 process".to_owned() } else { format!("{} processes", total.processes) };
    writeln!(out, "{count}: {} if nothing were shared", Bytes(total.unshared_bytes))?;
    writeln!(out, "  {} taken ({by})", Bytes(total.takes_bytes))?;
    writeln!(out, "  {} saved by sharing", Bytes(total.saved_bytes))?;
    let children = &total.children;
    if children.processes > 0 {
        writeln!(
            out,
            "children's own memory: {}; for {} of it the parent has other pages",
            Bytes(children.own_bytes),
            Bytes(children.differs_bytes)
        )?;
        if let Some(added) = children.added_bytes {
            writeln!(out, "  {} added by the children to what the top has", Bytes(added))?;
        }
    }
    Ok(())
}

/// Mappings with most own memory.
fn groups(out: &mut String, title: &str, groups: &[Group], snapshot: &Snapshot, look: &Look) -> Result {
    let mut rows = vec![header(title, &["own"])];
    for group in groups.iter().take(look.top) {
        let own = group.pages.own.pages * snapshot.page_size;
        let figures = std::iter::once(own).chain(figures(&group.pages, snapshot.page_size)).collect();
        let name = plain(&group.name);
        let name = if look.verbose { &name } else { tail(&name) };
        rows.push(Row { name: format!("  {name}"), figures, remark: String::new() });
    }
    writeln!(out)?;
    table(out, rows)?;
    match groups.len().saturating_sub(look.top) {
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

/// Text that a process chose, without what a terminal would obey.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
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
    fn a_table_is_as_wide_as_agreed_whatever_the_names() {
        let mut rows = vec![header("process", &["rss", "pss", "uss"])];
        for name in ["1 x".to_owned(), "é".repeat(300), format!("{:12}7 {}", "", "long ".repeat(40))] {
            rows.push(Row { name, figures: vec![999 << 30; 12], remark: "a remark".to_owned() });
        }
        let mut shown = String::new();
        table(&mut shown, rows).expect("memory");
        assert_eq!(shown.lines().count(), 1 + 2 * 3, "{shown}");
        for line in shown.lines() {
            assert!(line.chars().count() <= WIDTH_MAX, "{line}");
        }
    }

    #[test]
    fn names_cannot_command_the_terminal() {
        assert_eq!(plain("a\x1b[2Jb\nc\u{9b}"), "a?[2Jb?c?");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(tail("/usr/lib/x86_64-linux-gnu/libpython3.12.so.1.0"), "libpython3.12.so.1.0");
    }
}
