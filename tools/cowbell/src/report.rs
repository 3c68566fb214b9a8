//! `cowbell report`: a capture, rendered again.

use crate::failure::Failure;
use crate::input;
use crate::output::{self, Stream};
use std::path::PathBuf;

/// What to render and how.
#[derive(clap::Args)]
pub struct Options {
    /// The capture; - is standard input.
    #[arg(value_name = "FILE")]
    capture: PathBuf,
    #[command(flatten)]
    output: output::Options,
}

/// Renders a capture.
///
/// # Errors
/// A capture that cannot be read, a report that cannot be written.
pub fn run(options: &Options) -> Result<(), Failure> {
    let summary = input::summary(&options.capture)?;
    // Not before: a capture that cannot be read must leave an earlier report where it is.
    options.output.open(Stream::Output)?.report(&summary)
}
