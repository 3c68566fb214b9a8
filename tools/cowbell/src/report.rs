//! `cowbell report`: a capture, rendered again.

use crate::analyse::{Profile, Summary};
use crate::failure::Failure;
use crate::output::{self, Stream};
use crate::record::Reader;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

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
    let path = &options.capture;
    let summary = if path.as_os_str() == "-" {
        summary(Path::new("standard input"), std::io::stdin().lock())?
    } else {
        let file = File::open(path).map_err(|e| Failure::new(format!("{}: {e}", path.display())))?;
        summary(path, BufReader::with_capacity(1 << 20, file))?
    };
    // Not before: a capture that cannot be read must leave an earlier report where it is.
    options.output.open(Stream::Output)?.report(&summary)
}

fn summary(name: &Path, input: impl BufRead) -> Result<Summary, Failure> {
    let failure = |e| Failure::new(format!("{}: {e}", name.display()));
    let mut reader = Reader::new(input).map_err(failure)?;
    let mut profile = Profile::default();
    for record in reader.by_ref() {
        profile.add(record.map_err(failure)?);
    }
    if let Some(cut) = reader.cut() {
        profile.cut(&cut.to_string());
    }
    Ok(profile.finish())
}
