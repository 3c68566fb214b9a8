//! A snapshot as a page.

use super::compare::PageCounts;
use super::document::{MemoryReport, Snapshot};
use super::text::{label, remark, text};
use crate::views::Verbosity;
use crate::views::html::{Cell, Column, HtmlPage, figure, words};
use cowbell::page::Bytes;

/// The pages that a column tells.
type Figure = fn(&PageCounts) -> u64;

/// Columns of figures.
const COUNTS: [(&str, Figure); 7] = [
    ("Shared with parent", |pages| pages.shared_with_parent),
    ("Shared otherwise", |pages| pages.shared_with_others.pages.saturating_add(pages.shared_unknown)),
    ("Own", |pages| pages.own.pages),
    ("Own: differs", |pages| pages.own.differs),
    ("Own: either", |pages| pages.own.copied_or_new),
    ("Files", |pages| pages.file),
    ("Swapped", |pages| pages.swapped),
];

/// The page of a snapshot.
pub fn page(snapshot: &Snapshot) -> Vec<u8> {
    let plain = |quiet| text(snapshot, &Verbosity { top: 10, quiet, verbose: false });
    let totals = plain(true);
    let mut sentences = totals.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned);
    let verdict = sentences.next().into_iter().collect();
    let mut page = HtmlPage::new(format!("cowbell snapshot {}", snapshot.pid), verdict, sentences.collect());
    let column = |title, figures| Column { title, figures };
    let columns: Vec<Column> = [column("Process", false), column("RSS", true), column("PSS", true)]
        .into_iter()
        .chain(COUNTS.iter().map(|(title, _)| column(title, true)))
        .chain([column("Remark", false)])
        .collect();
    let most =
        snapshot.processes.iter().filter_map(|process| process.memory.as_ref()).map(|memory| memory.rss_bytes).max();
    let bytes =
        |bytes: u64| figure(Bytes(bytes).to_string(), bytes as f64).bar(bytes as f64 / most.unwrap_or(1).max(1) as f64);
    let figures = |memory: &MemoryReport| -> Vec<Cell> {
        let counts = COUNTS.iter().map(|(_, of)| bytes(of(&memory.pages).saturating_mul(snapshot.page_size)));
        [bytes(memory.rss_bytes), bytes(memory.pss_bytes)].into_iter().chain(counts).collect()
    };
    let rows: Vec<Vec<Cell>> = snapshot
        .processes
        .iter()
        .map(|process| {
            let unknown = || (0..COUNTS.len() + 2).map(|_| words("")).collect();
            let figures = process.memory.as_ref().map_or_else(unknown, figures);
            [words(label(process))].into_iter().chain(figures).chain([words(remark(process))]).collect()
        })
        .collect();
    page.table("processes", "Memory of each process, and with whom it is shared", &columns, &rows);
    page.list("gaps", "What could not be seen", &snapshot.notes);
    page.text("The snapshot as text", &plain(false));
    page.finish()
}
