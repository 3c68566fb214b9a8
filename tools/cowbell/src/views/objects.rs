//! The part of the report that lists objects of frozen heaps on copied pages.

use super::Verbosity;
use super::lines::{List, PAGES, Row, SHARE, Text, clean, count, percent, some};
use super::table::{Keep, names, words};
use crate::analyse::summary::{Object, ObjectsPage, Summary};
use std::collections::BTreeMap;

/// Words below a row begin here.
const INDENT: usize = 23;

/// The table of the objects of frozen heaps.
pub fn table(text: &mut Text, summary: &Summary, verbosity: &Verbosity) {
    // Pages of which a reader is told the same, the first of them, and how many.
    let mut groups: BTreeMap<[String; 3], (u64, &ObjectsPage)> = BTreeMap::new();
    for image in &summary.objects {
        for page in &image.pages {
            let of = [what(page, &image.arena), allocated(page.objects.first()), page.cause_name.clone()];
            groups.entry(of).or_insert((0, page)).0 += 1;
        }
    }
    if groups.is_empty() {
        return;
    }
    let mut rows: Vec<_> = groups.into_iter().collect();
    rows.sort_by_key(|(_, (pages, _))| std::cmp::Reverse(*pages));
    text.heading("Objects of frozen heaps on copied pages, by the line that allocated them: share of all copies");
    let columns = [PAGES, SHARE, words("", 0, 2), names("", Keep::Tail, 1), words("", 0, 1)];
    let list = List { entries: &rows, columns: &columns, top: verbosity.top, in_full: verbosity.verbose };
    let all = summary.totals.copied_pages.max(1) as f64;
    text.table(
        &list,
        |(_, (pages, _))| *pages as f64 / all,
        |([what, allocated, cause], (pages, first))| {
            let share = percent(*pages as f64 / all);
            let cells = vec![count(*pages), share, what.clone(), allocated.clone(), cause.clone()];
            Row { cells, below: vec![(INDENT, example(first)), (INDENT, first.advice.to_owned())] }
        },
    );
    let untold: u64 = summary.objects.iter().map(|image| image.untold_pages).sum();
    if untold > 0 {
        let pages = some(untold, "copied page", "copied pages");
        text.faint_sentence(2, &format!("Of {pages} more of frozen heaps the objects are not told."));
    }
}

fn what(page: &ObjectsPage, arena: &str) -> String {
    let arena = clean(arena);
    match page.objects.first() {
        Some(Object { type_name: Some(name), bytes, .. }) => {
            format!("{bytes} bytes allocated as `{}` in `{arena}`", clean(name))
        }
        Some(object) => format!("block of {} bytes in `{arena}`", object.bytes),
        None => format!("object not known in `{arena}`"),
    }
}

fn allocated(object: Option<&Object>) -> String {
    let line = object.map(|object| object.allocated_at.as_deref().map(clean));
    match line {
        Some(Some(line)) => line,
        Some(None) => "allocated at an unknown line".to_owned(),
        None => String::new(),
    }
}

/// One of the pages: what changed there, and who wrote first.
fn example(page: &ObjectsPage) -> String {
    let place = |byte: u32, field: &Option<String>| {
        // Code that collects a vector in place leaves elements of another type in its block.
        let field = field.as_ref().map_or(String::new(), |field| {
            let was = if field.starts_with('[') { "allocated as " } else { "" };
            format!(" ({was}`{}`)", clean(field))
        });
        format!("{}{field}", offset(page, page.address + u64::from(byte)))
    };
    let changed = match (page.changed_bytes, page.first_byte, page.last_byte) {
        (None, ..) => "what changed is not known".to_owned(),
        (Some(1), Some(first), _) => format!("1 byte changed, {}", place(first, &page.first_field)),
        (Some(bytes), Some(first), Some(last)) => {
            let [first, last] =
                [(first, &page.first_field), (last, &page.last_field)].map(|(byte, field)| place(byte, field));
            format!("{bytes} bytes changed, from {first} to {last}")
        }
        (Some(_), ..) => "the same as before".to_owned(),
    };
    let line = |line: &Option<String>| line.as_deref().map_or("an unknown line".to_owned(), clean);
    let writer =
        page.writer.as_ref().map(|writer| format!("; written by thread {} at {}", writer.tid, line(&writer.line)));
    format!("{:#x}: {changed}{}", page.address, writer.unwrap_or_default())
}

/// A byte's place in the object that holds it, or in the page.
fn offset(page: &ObjectsPage, byte: u64) -> String {
    match page.objects.iter().find(|object| (object.start..object.start + object.bytes).contains(&byte)) {
        Some(object) => format!("byte {} of {:#x}", byte - object.start, object.start),
        None => format!("byte {} of the page", byte - page.address),
    }
}
