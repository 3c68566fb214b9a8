//! Folded stacks: a line for each, its frames joined by semicolons, and bytes copied. What flame graph programs read.

use super::{label, process};
use crate::analyse::detail::Detail;
use crate::analyse::summary::Summary;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Copies as folded stacks, the process first.
pub fn folded(summary: &Summary, detail: &Detail) -> String {
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    // A semicolon parts frames, and the last blank parts the figure from them.
    let one = |text: &str| text.replace(';', ":");
    let labels: Vec<String> = detail.frames.iter().map(|frame| one(&label(frame))).collect();
    for stack in &detail.stacks {
        let Some(interval) = summary.intervals.get(stack.interval) else { continue };
        let mut line = one(&process(summary, interval));
        for frame in stack.frames.iter().filter_map(|&frame| labels.get(frame as usize)) {
            line.push(';');
            line.push_str(frame);
        }
        *lines.entry(line).or_default() += stack.pages.saturating_mul(summary.run.page_size);
    }
    let mut text = String::new();
    for (line, bytes) in lines {
        let _written = writeln!(text, "{line} {bytes}");
    }
    text
}
