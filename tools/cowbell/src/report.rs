//! `cowbell report`: a capture, rendered again, for people or for other programs.

use crate::analyse::Summary;
use crate::analyse::detail::Detail;
use crate::failure::Failure;
use crate::input;
use crate::output::{self, Stream};
use crate::views::export;
use std::io::Write;
use std::path::PathBuf;

/// The capture to render, and how.
#[derive(clap::Args)]
pub struct Options {
    /// The capture, or reports of the library as JSON; - is standard input.
    #[arg(value_name = "FILE")]
    capture: PathBuf,
    #[command(flatten)]
    export: ExportFormats,
    /// Write a flame graph of the copies to this file as well, as SVG.
    #[arg(long, value_name = "SVG")]
    flamegraph: Option<PathBuf>,
    #[command(flatten)]
    output: output::Options,
}

/// The formats that other programs read, in place of the text.
#[derive(clap::Args)]
#[group(id = "export", multiple = false, conflicts_with = "json")]
struct ExportFormats {
    /// Print folded stacks, for flame graph programs.
    #[arg(long)]
    folded: bool,
    /// Print what speedscope opens.
    #[arg(long)]
    speedscope: bool,
    /// Print what the Firefox profiler opens.
    #[arg(long)]
    firefox: bool,
    /// Print what pprof opens.
    #[arg(long)]
    pprof: bool,
    /// Print OpenMetrics, for Prometheus.
    #[arg(long)]
    openmetrics: bool,
    /// Print a table for spreadsheets, a row for each process.
    #[arg(long)]
    csv: bool,
}

/// Renders a capture.
///
/// # Errors
/// A capture that cannot be read, a report that cannot be written.
pub fn run(options: &Options) -> Result<(), Failure> {
    let (summary, detail) = input::detailed(&options.capture)?;
    let exported = options.export.of(&summary, &detail)?;
    let graph = options.flamegraph.as_ref().map(|name| {
        has_stacks(&detail)?;
        let path = output::expand(name)?;
        let failure = |e: std::io::Error| Failure::new(format!("{}: {e}", path.display()));
        let mut file = output::create(&path, 0o666, options.output.force)?;
        file.write_all(export::flamegraph(&summary, &detail).as_bytes()).map_err(failure)
    });
    graph.transpose()?;
    // Not before: a capture that cannot be read must leave an earlier report where it is.
    let mut output = options.output.open(Stream::Output)?;
    match exported {
        Some(bytes) => {
            output.profile_page(&summary, &detail)?;
            output.export(&bytes)
        }
        None => output.report(&summary, &detail),
    }
}

impl ExportFormats {
    /// The export that is asked for, if any is.
    fn of(&self, summary: &Summary, detail: &Detail) -> Result<Option<Vec<u8>>, Failure> {
        let failure = |e: &dyn std::fmt::Display| Failure::new(format!("cannot be exported: {e}"));
        if self.openmetrics {
            return Ok(Some(export::metrics(summary).into_bytes()));
        }
        if self.csv {
            return Ok(Some(export::csv(summary).into_bytes()));
        }
        if !(self.folded || self.speedscope || self.firefox || self.pprof) {
            return Ok(None);
        }
        has_stacks(detail)?;
        Ok(Some(if self.folded {
            export::folded(summary, detail).into_bytes()
        } else if self.speedscope {
            serde_json::to_vec(&export::speedscope(summary, detail)).map_err(|e| failure(&e))?
        } else if self.firefox {
            export::firefox(summary, detail).map_err(|e| failure(&e))?
        } else {
            export::pprof(summary, detail).map_err(|e| failure(&e))?
        }))
    }
}

/// A file without copies would be one that says nothing.
fn has_stacks(detail: &Detail) -> Result<(), Failure> {
    if detail.stacks.is_empty() {
        return Err(Failure::new(
            "there are no stacks to export: nothing was copied, or it is a report of the library",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, Command};
    use std::collections::BTreeSet;

    #[test]
    fn each_export_has_its_row_in_the_listing_of_formats() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/FORMATS.md");
        let listing = std::fs::read_to_string(path).expect("docs/FORMATS.md");
        let (_, rows) = listing.split_once("\n## Of other programs\n").expect("its part");
        let row = |line: &'_ str| Some(line.strip_prefix("| `--")?.split(['`', ' ']).next()?.to_owned());
        let listed: BTreeSet<String> = rows.lines().filter_map(row).collect();
        let formats = ExportFormats::augment_args(Command::new("report"));
        let flags = formats.get_arguments().filter_map(|argument| argument.get_long()).map(str::to_owned);
        assert_eq!(listed, flags.chain(["flamegraph".to_owned()]).collect());
    }
}
