//! A table for spreadsheets (RFC 4180): a row for each interval of a process, its causes beside it.

use super::name;
use crate::analyse::summary::Summary;
use std::collections::BTreeSet;

/// Copies by process.
pub fn csv(summary: &Summary) -> String {
    let causes: BTreeSet<_> =
        summary.intervals.iter().flat_map(|interval| &interval.causes).map(|cause| (cause.cause, cause.name)).collect();
    let titles = [
        "pid",
        "parent",
        "role",
        "command",
        "begin_ns",
        "end_ns",
        "shared_bytes",
        "copied_bytes",
        "copied_bytes_min",
        "copied_bytes_max",
        "compared_bytes",
        "identical_bytes",
        "reused_bytes",
        "first_touched_bytes",
    ];
    let titles = titles.iter().map(|title| (*title).to_owned());
    let titles = titles.chain(causes.iter().map(|(_, cause)| format!("\"{cause} bytes\"")));
    let mut rows = vec![titles.collect::<Vec<_>>().join(",")];
    let bytes = |pages: u64| pages.saturating_mul(summary.run.page_size).to_string();
    for interval in &summary.intervals {
        let process = interval.process.and_then(|process| summary.processes.get(process));
        let is_open = matches!(interval.closed, None | Some(crate::record::Closed::Lost));
        let most = interval.copied_pages.saturating_add(interval.unmapped_uncounted_pages);
        let role = match interval.role {
            crate::record::WatchReason::Child => "child",
            crate::record::WatchReason::Parent => "parent",
            crate::record::WatchReason::Attached => "attached",
        };
        let mut row = vec![
            interval.pid.to_string(),
            process.map_or(String::new(), |process| process.parent.to_string()),
            role.to_owned(),
            cell(&process.map_or(String::new(), |process| process.command_at(interval.begin_ns).join(" "))),
            interval.begin_ns.to_string(),
            interval.end_ns.map_or(String::new(), |end| end.to_string()),
            bytes(interval.held.shared),
            interval.copied_bytes.to_string(),
            bytes(interval.pages.copy.saturating_add(interval.pages.private_file)),
            if is_open { String::new() } else { bytes(most) },
            bytes(interval.contents.compared_pages),
            bytes(interval.contents.identical_pages),
            bytes(interval.pages.reuse),
            bytes(interval.pages.first_touch.saturating_add(interval.pages.zero_page)),
        ];
        for (cause, _) in &causes {
            let of = interval.causes.iter().find(|share| share.cause == *cause);
            row.push(bytes(of.map_or(0, |share| share.copied_pages)));
        }
        rows.push(row.join(","));
    }
    rows.join("\r\n") + "\r\n"
}

/// A foreign text as a cell: in quotes, and never one that a spreadsheet takes for a formula.
fn cell(text: &str) -> String {
    let text = name(text);
    let is_formula = text.starts_with(['=', '+', '-', '@']);
    format!("\"{}{}\"", if is_formula { "'" } else { "" }, text.replace('"', "\"\""))
}
