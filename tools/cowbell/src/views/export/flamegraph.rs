//! A flame graph as SVG: no script, no network. A frame's title, which browsers show at the pointer and screen readers read,
//! has its name, bytes and share; the page of `--html` has the same graph with zoom and search.

use super::super::check::escape;
use super::{label, name, process};
use crate::analyse::detail::Detail;
use crate::analyse::summary::Summary;
use crate::views::lines::percent;
use cowbell::page::Bytes;
use std::collections::BTreeMap;
use std::fmt::Write;

const WIDTH: f64 = 1200.0;
const ROW: f64 = 18.0;
/// Frames narrower than this are left out.
const NARROWEST: f64 = 0.3;
/// Deeper frames are left out.
const DEEPEST: usize = 300;
/// About the width of a character.
const CHARACTER: f64 = 6.6;

/// A frame and what it called.
#[derive(Default)]
struct Node {
    bytes: u64,
    below: BTreeMap<String, Node>,
}

/// Copies as a flame graph.
pub fn flamegraph(summary: &Summary, detail: &Detail) -> String {
    let labels: Vec<String> = detail.frames.iter().map(label).collect();
    let mut root = Node::default();
    for stack in &detail.stacks {
        let Some(interval) = summary.intervals.get(stack.interval) else { continue };
        let bytes = stack.pages.saturating_mul(summary.run.page_size);
        root.bytes += bytes;
        let mut at = root.below.entry(process(summary, interval)).or_default();
        at.bytes += bytes;
        // A recursion without end must not become one here.
        for frame in stack.frames.iter().take(DEEPEST) {
            let Some(label) = labels.get(*frame as usize) else { continue };
            at = at.below.entry(label.clone()).or_default();
            at.bytes += bytes;
        }
    }
    let mut body = String::new();
    let title = format!("{} copied under {}", Bytes(root.bytes), name(&summary.run.command.join(" ")));
    let mut graph = Graph { all: root.bytes.max(1), deepest: 0.0, body: &mut body };
    graph.node(&root, &title, 0.0, 0.0);
    let height = graph.deepest + ROW + 2.0;
    let title = escape(&title);
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"monospace\" font-size=\"11\">\n<title>{title}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{body}</svg>\n"
    )
}

struct Graph<'a> {
    all: u64,
    deepest: f64,
    body: &'a mut String,
}

impl Graph<'_> {
    fn node(&mut self, node: &Node, called: &str, left: f64, top: f64) {
        let share = node.bytes as f64 / self.all as f64;
        let width = WIDTH * share;
        if width < NARROWEST {
            return;
        }
        self.deepest = self.deepest.max(top);
        let title = escape(&format!("{called}: {}, {}", Bytes(node.bytes), percent(share)));
        // A color of its own for each name, the same each time.
        let hue = called.bytes().fold(7u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte))) % 50;
        let shown = ((width - 6.0) / CHARACTER) as usize;
        let text: String = if shown >= 3 { called.chars().take(shown).collect() } else { String::new() };
        let _written = writeln!(
            self.body,
            "<g><title>{title}</title><rect x=\"{left:.2}\" y=\"{top}\" width=\"{:.2}\" height=\"{}\" \
             fill=\"hsl({hue},80%,72%)\"/><text x=\"{:.2}\" y=\"{}\">{}</text></g>",
            (width - 0.4).max(0.1),
            ROW - 1.0,
            left + 3.0,
            top + ROW - 6.0,
            escape(&text)
        );
        let mut from = left;
        for (called, below) in &node.below {
            self.node(below, called, from, top + ROW);
            from += WIDTH * below.bytes as f64 / self.all as f64;
        }
    }
}
