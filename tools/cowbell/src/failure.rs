//! A failure of the tool: one line for standard error.

use std::fmt;

/// Why the tool stops with exit code 1.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    /// A failure in these words.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<cowbell::Error> for Failure {
    fn from(e: cowbell::Error) -> Self {
        Self(e.to_string())
    }
}
