//! A comparison as a page.

use super::{Cell, Column, HtmlPage, figure, words};
use crate::analyse::diff::{Diff, FigureChange};
use crate::views::Verbosity;
use crate::views::diff::{line_words, mapping_words, noise, part, role_words, state, text, verdict};
use cowbell::page::Bytes;

/// The page of a comparison.
pub fn compared(diff: &Diff) -> Vec<u8> {
    let remarks = std::iter::once(noise(diff)).chain(diff.notes.iter().cloned()).collect();
    let mut page = HtmlPage::new("cowbell diff".to_owned(), verdict(diff), remarks);
    let roles = diff.roles.iter().map(|role| (role_words(role), &role.change));
    table(&mut page, "roles", "Copied by each process on average, by its role", roles);
    let causes = diff.causes.iter().map(|cause| (cause.name.to_owned(), &cause.change));
    table(&mut page, "causes", "Copied by all, by likely cause", causes);
    let lines = diff.lines.iter().map(|line| (line_words(line), &line.change));
    table(&mut page, "lines", "Copied by all, by line, estimated from sampled stacks", lines);
    let functions = diff.functions.iter().map(|f| (format!("{} {}", f.function, f.module), &f.change));
    table(&mut page, "functions", "Copied by all, by the code that first wrote", functions);
    let mappings = diff.mappings.iter().map(|mapping| (mapping_words(mapping), &mapping.change));
    table(&mut page, "mappings", "Copied by all, by mapping", mappings);
    let verbosity = Verbosity { top: 10, quiet: false, verbose: false };
    page.text("The comparison as text", &anstream::adapter::strip_str(&text(diff, &verbosity)).to_string());
    page.finish()
}

fn table<'a>(
    page: &mut HtmlPage,
    id: &'static str,
    title: &str,
    rows: impl Iterator<Item = (String, &'a FigureChange)>,
) {
    let column = |title, figures| Column { title, figures };
    let columns = [
        column("Before", true),
        column("After", true),
        column("Change", true),
        column("Verdict", false),
        column("What", false),
    ];
    let rows: Vec<(String, &FigureChange)> = rows.collect();
    let largest = |change: &FigureChange| change.before.median_bytes.max(change.after.median_bytes);
    let most = rows.iter().map(|(_, change)| largest(change)).max().unwrap_or_default().max(1) as f64;
    let bytes = |bytes: u64| figure(Bytes(bytes).to_string(), bytes as f64).bar(bytes as f64 / most);
    let row = |(name, change): (String, &FigureChange)| -> Vec<Cell> {
        vec![
            bytes(change.before.median_bytes),
            bytes(change.after.median_bytes),
            figure(part(change), change.difference_bytes as f64),
            words(state(change.verdict)),
            words(name),
        ]
    };
    page.table(id, title, &columns, &rows.into_iter().map(row).collect::<Vec<_>>());
}
