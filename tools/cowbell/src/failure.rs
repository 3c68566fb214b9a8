//! A failure of the tool: one line for standard error.

use cowbell::sys::procfs;
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

/// The sentence on a process that is not there, or not to be seen.
pub fn absent(pid: i32) -> String {
    match procfs::is_there(pid) {
        true => format!("/proc does not show process {pid}, though it is there: see hidepid in proc(5)"),
        false => format!("there is no process {pid}"),
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
