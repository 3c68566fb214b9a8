//! Files that the tool can render, diff and check: its own captures, and reports of the library as JSON.

use crate::analyse::detail::Detail;
use crate::analyse::{Profile, Summary, library};
use crate::failure::Failure;
use crate::record::Reader;
use cowbell::report::Report;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

/// The first field of a report of the library, as it is written, and in the order of the alphabet.
const OF_THE_LIBRARY: [&[u8]; 2] = [b"\"version\"", b"\"arenas\""];

/// The summary of a file; - is standard input.
///
/// # Errors
/// The file cannot be read, or is of neither kind.
pub fn summary(path: &Path) -> Result<Summary, Failure> {
    Ok(read(path, Profile::default())?.0)
}

/// The same with every copied page; a report of the library has no detail.
///
/// # Errors
/// As [`summary`].
pub fn detailed(path: &Path) -> Result<(Summary, Detail), Failure> {
    read(path, Profile::detailed())
}

fn read(path: &Path, profile: Profile) -> Result<(Summary, Detail), Failure> {
    if path.as_os_str() == "-" {
        return summed("standard input", io::stdin().lock(), profile);
    }
    let name = path.display().to_string();
    let file = File::open(path).map_err(|e| Failure::new(format!("{name}: {e}")))?;
    summed(&name, BufReader::with_capacity(1 << 20, file), profile)
}

fn summed(name: &str, mut input: impl BufRead, mut profile: Profile) -> Result<(Summary, Detail), Failure> {
    let failure = |why: &dyn std::fmt::Display| Failure::new(format!("{name}: {why}"));
    if is_of_the_library(&mut input) {
        let reports = serde_json::Deserializer::from_reader(input).into_iter::<Report>();
        let reports: Result<Vec<Report>, _> = reports.collect();
        let reports = reports.map_err(|e| failure(&format!("no reports of the library: {e}")))?;
        let summary = library::summary(&reports).map_err(|why| failure(&why))?;
        return Ok((summary, Detail::default()));
    }
    let mut reader = Reader::new(input).map_err(|e| failure(&e))?;
    for record in reader.by_ref() {
        profile.add(record.map_err(|e| failure(&e))?);
    }
    if let Some(cut) = reader.cut() {
        profile.cut(&cut.to_string());
    }
    Ok(profile.finish())
}

/// A capture's first line begins with its header.
fn is_of_the_library(input: &mut impl BufRead) -> bool {
    // An error is found again by whoever reads on.
    let Ok(begin) = input.fill_buf() else { return false };
    let begin = begin.trim_ascii_start();
    let Some(fields) = begin.strip_prefix(b"{") else { return false };
    OF_THE_LIBRARY.iter().any(|first| fields.trim_ascii_start().starts_with(first))
}
