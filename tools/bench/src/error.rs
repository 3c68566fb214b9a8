//! Why a measurement could not be made.

use std::fmt;

/// The result of a measurement.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a measurement could not be made.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// An argument makes no sense, or asks for more than this machine has.
    Input(String),
    /// The runtime or the kernel refused.
    Failed(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(what) | Self::Failed(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {}

impl From<cowbell::Error> for Error {
    fn from(e: cowbell::Error) -> Self {
        Self::Failed(e.to_string())
    }
}

impl From<cowbell::pool::JobError> for Error {
    fn from(e: cowbell::pool::JobError) -> Self {
        Self::Failed(format!("a job failed: {e}"))
    }
}
