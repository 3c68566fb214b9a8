//! Documents for programs: JSON, all in one envelope.

use crate::analyse::summary::{self, Summary};
use serde::Serialize;

/// A document that `--json` prints: an object that begins with its `format` and its `version`, then has the fields of its own.
pub trait Document: Serialize {
    /// The name of the document: `cowbell-` and a word.
    const FORMAT: &'static str;
    /// Raised when a field changes its meaning or goes away.
    const VERSION: u32;
}

impl Document for Summary {
    const FORMAT: &'static str = summary::FORMAT;
    const VERSION: u32 = summary::VERSION;
}

#[derive(Serialize)]
struct Envelope<'a, T> {
    format: &'static str,
    version: u32,
    #[serde(flatten)]
    document: &'a T,
}

/// A document in its envelope, with a line feed at its end.
///
/// # Errors
/// The document is no object.
pub fn json<T: Document>(document: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = serde_json::to_vec_pretty(&Envelope { format: T::FORMAT, version: T::VERSION, document })?;
    bytes.push(b'\n');
    Ok(bytes)
}
