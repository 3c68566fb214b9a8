//! Writing a capture: whole lines, at once, into a file that only its owner reads.

use super::record::Record;
use crate::failure::Failure;
use crate::output;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A capture file being written.
///
/// What was written is in the kernel's hands when a call returns: it survives any end of this program. A write that
/// fails (a full disk) is reported once, by the call in which it failed; later calls then do nothing and succeed, so
/// that a run whose capture is lost still has its report.
#[derive(Debug)]
pub struct Writer {
    file: File,
    path: PathBuf,
    failed: bool,
}

impl Writer {
    /// Creates the file, readable and writable by its owner alone. `%p`, `%t` and `%%` in its name are expanded as
    /// [`output::expand`] says. An existing file is an error unless `force` is given.
    ///
    /// # Errors
    /// A [`Failure`] for people, with the path.
    pub fn create(name: &Path, force: bool) -> Result<Self, Failure> {
        let path = output::expand(name)?;
        let file = output::create(&path, 0o600, force)?;
        Ok(Self { file, path, failed: false })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Was a write lost?
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// Writes one or more whole lines, as they came; a missing last line feed is added.
    ///
    /// # Errors
    /// The first failure only.
    pub fn lines(&mut self, lines: &[u8]) -> Result<(), Failure> {
        if self.failed || lines.is_empty() {
            return Ok(());
        }
        let written = match lines.last() {
            Some(b'\n') => self.file.write_all(lines),
            // In one write: another process' view of the file has no line without its end.
            _ => self.file.write_all(&[lines, b"\n"].concat()),
        };
        written.map_err(|e| self.fail(&e))
    }

    /// Writes a record.
    ///
    /// # Errors
    /// The first failure only.
    pub fn record(&mut self, record: &Record) -> Result<(), Failure> {
        match serde_json::to_vec(record) {
            Ok(line) => self.lines(&line),
            Err(e) => Err(self.fail(&io::Error::from(e))),
        }
    }

    fn fail(&mut self, e: &io::Error) -> Failure {
        self.failed = true;
        Failure::new(format!("{}: {e}; the capture ends here, the run goes on", self.path.display()))
    }
}
