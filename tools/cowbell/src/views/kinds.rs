//! The part of the report that lists the kinds of objects on copied pages.

use super::Verbosity;
use super::html::{Column, HtmlPage, figure, words as text_cell};
use super::lines::{List, Row, SHARE, Text, clean, count, percent, some};
use super::table::{Keep, figures, names};
use crate::analyse::kinds::Kinds;
use crate::analyse::summary::Summary;
use cowbell::page::Bytes;

/// The most types that are told in a sentence, where those of less than this share are not told.
const TYPES_MAX: usize = 4;
const SHARE_MIN: f64 = 0.05;

const TITLE: &str = "What lay on copied pages at the end, by type: bytes, share, objects that begin there";

/// A part of the copied pages.
struct Part {
    bytes: u64,
    objects: Option<u64>,
    what: String,
}

/// All parts: types first, then what is no object that is known.
fn parts(kinds: &Kinds) -> Vec<Part> {
    let types = kinds.types.iter().map(|of_type| Part {
        bytes: of_type.bytes,
        objects: Some(of_type.objects),
        what: clean(&of_type.name),
    });
    let rests = [
        (kinds.other_bytes, "other blocks in use, such as tables of dicts"),
        (kinds.free_bytes, "free, or records of the allocator"),
        (kinds.outside_bytes, "outside of such blocks, no known object"),
    ];
    let rests = rests.into_iter().filter(|(bytes, _)| *bytes > 0);
    let rests = rests.map(|(bytes, what)| Part { bytes, objects: None, what: what.to_owned() });
    let mut parts: Vec<Part> = types.chain(rests).collect();
    parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
    parts
}

fn share_of(bytes: u64, summary: &Summary, kinds: &Kinds) -> f64 {
    bytes as f64 / kinds.pages.saturating_mul(summary.run.page_size).max(1) as f64
}

/// The types of most objects in one sentence; nothing where no type is a fair part.
pub fn sentence(text: &mut Text, summary: &Summary) {
    let Some(kinds) = &summary.kinds else { return };
    let types = kinds.types.iter().filter(|of_type| of_type.share >= SHARE_MIN).take(TYPES_MAX);
    let told: Vec<String> =
        types.map(|of_type| format!("{} {}", clean(&of_type.name), percent(of_type.share))).collect();
    if told.is_empty() {
        return;
    }
    let free = percent(share_of(kinds.free_bytes, summary, kinds));
    let (told, pages, all) = (told.join(", "), count(kinds.pages), summary.totals.copied_pages);
    let sentence = if kinds.pages < all {
        let all = count(all);
        format!(
            "Of {all} copied pages {pages} were looked at; at the end they held, by bytes: {told}; {free} was free."
        )
    } else {
        format!("At the end the copied pages held, by bytes: {told}; {free} was free.")
    };
    text.faint_sentence(0, &sentence);
}

/// How many of the copied pages were looked at, where others were not.
fn looked_at(summary: &Summary, kinds: &Kinds) -> Option<String> {
    let all = summary.totals.copied_pages;
    let pages = some(kinds.pages, "page", "pages");
    (kinds.pages < all).then(|| format!("{pages} of {} were looked at", count(all)))
}

/// The table of the types.
pub fn table(text: &mut Text, summary: &Summary, verbosity: &Verbosity) {
    let Some(kinds) = &summary.kinds else { return };
    text.heading(TITLE);
    if let Some(looked_at) = looked_at(summary, kinds) {
        text.faint_sentence(23, &looked_at);
    }
    let parts = parts(kinds);
    let columns = [figures("", 12, 0), SHARE, figures("", 11, 2), names("", Keep::Head, 2)];
    let list = List { entries: &parts, columns: &columns, top: verbosity.top, in_full: verbosity.verbose };
    text.table(
        &list,
        |part| share_of(part.bytes, summary, kinds),
        |part| {
            let objects = part.objects.map_or(String::new(), count);
            let share = percent(share_of(part.bytes, summary, kinds));
            Row { cells: vec![Bytes(part.bytes).to_string(), share, objects, part.what.clone()], ..Row::default() }
        },
    );
}

/// The same as a page's table.
pub fn html(page: &mut HtmlPage, summary: &Summary) {
    let Some(kinds) = &summary.kinds else { return };
    let column = |title, figures| Column { title, figures };
    let columns = [column("Bytes", true), column("Share", true), column("Objects", true), column("Type", false)];
    let row = |part: &Part| {
        let share = share_of(part.bytes, summary, kinds);
        vec![
            figure(Bytes(part.bytes).to_string(), part.bytes as f64),
            figure(percent(share), share).bar(share),
            part.objects.map_or_else(|| text_cell(""), |objects| figure(count(objects), objects as f64)),
            text_cell(&part.what),
        ]
    };
    let title =
        looked_at(summary, kinds).map_or_else(|| TITLE.to_owned(), |looked_at| format!("{TITLE} ({looked_at})"));
    page.table("kinds", &title, &columns, &parts(kinds).iter().map(row).collect::<Vec<_>>());
}
