//! A profile in the formats of other programs. Each is made of a summary and its detail; none opens a file.

mod csv;
mod firefox;
mod flamegraph;
mod folded;
mod metrics;
mod pprof;
mod speedscope;

pub use csv::csv;
pub use firefox::firefox;
pub use flamegraph::flamegraph;
pub use folded::folded;
pub use metrics::metrics;
pub use pprof::pprof;
pub use speedscope::speedscope;

use super::lines::{clean, head};
use crate::analyse::detail::Frame;
use crate::analyse::summary::{Interval, Summary};

/// A name is not told at more length: a stack of such would be larger than the rest of a file.
const NAME_MAX: usize = 400;

/// A foreign name: without control characters, and of bounded length.
fn name(foreign: &str) -> String {
    head(&foreign.chars().take(NAME_MAX + 1).collect::<String>(), NAME_MAX).trim_end().to_owned()
}

/// A frame as one text: the function, and where it stands.
fn label(frame: &Frame) -> String {
    let function = name(&frame.function);
    let file = name(frame.file.rsplit('/').next().unwrap_or_default());
    match (file.is_empty(), frame.line) {
        (true, _) => function,
        (false, 0) => format!("{function} ({file})"),
        (false, line) => format!("{function} ({file}:{line})"),
    }
}

/// A process of the summary as one text: its id and command.
fn process(summary: &Summary, interval: &Interval) -> String {
    let process = interval.process.and_then(|process| summary.processes.get(process));
    let command = process.map_or(String::new(), |process| clean(&process.command_at(interval.begin_ns).join(" ")));
    name(&format!("{} {command}", interval.pid))
}
