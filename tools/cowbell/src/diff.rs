//! `cowbell diff`: what changed between two sides of runs.

use crate::analyse::diff;
use crate::failure::Failure;
use crate::input;
use crate::output::{self, Stream};
use crate::views;
use std::path::PathBuf;

/// The runs to compare.
#[derive(clap::Args)]
pub struct Options {
    /// The run before and the run after; or all runs before, and behind -- all runs after. Captures, or reports of the library
    /// as JSON.
    #[arg(value_name = "BEFORE", required = true)]
    before: Vec<PathBuf>,
    /// Behind --: the runs after.
    #[arg(value_name = "AFTER", last = true)]
    after: Vec<PathBuf>,
    #[command(flatten)]
    output: output::Options,
}

/// Compares and prints.
///
/// # Errors
/// A capture that cannot be read, sides that cannot be compared, an outcome that cannot be written.
pub fn run(options: &Options) -> Result<(), Failure> {
    let (before, after) = match (&options.before[..], &options.after[..]) {
        ([before, after], []) => (std::slice::from_ref(before), std::slice::from_ref(after)),
        (_, []) => {
            let how = "it takes one capture before and one after, or several before and, behind --, several after";
            return Err(Failure::new(how));
        }
        (before, after) => (before, after),
    };
    let read = |paths: &[PathBuf]| paths.iter().map(|path| input::summary(path)).collect::<Result<Vec<_>, _>>();
    let diff = diff::diff(&read(before)?, &read(after)?).map_err(Failure::new)?;
    let mut out = options.output.open(Stream::Output)?;
    out.page(|| views::html::compared(&diff))?;
    if options.output.json {
        return out.json(&diff);
    }
    let output::Options { top, quiet, verbose, .. } = options.output;
    out.text(&views::diff::text(&diff, &views::Verbosity { top: top as usize, quiet, verbose }))
}
