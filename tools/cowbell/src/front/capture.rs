//! Writing a capture: whole lines, at once, into a file that only its owner reads.

use crate::failure::Failure;
use crate::output;
use crate::record::Record;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A capture file being written.
///
/// A record that was written is in the kernel's hands when a call returns: it survives any end of this program. A write that
/// fails (a full disk) is reported once, by the call in which it failed; later calls then do nothing and succeed, so
/// that a run whose capture is lost still has its report.
#[derive(Debug)]
pub struct CaptureWriter {
    file: File,
    path: PathBuf,
    failed: bool,
}

impl CaptureWriter {
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

    /// A file without a name, which is gone when this process is.
    ///
    /// # Errors
    /// No file can be made in the folder for temporary files.
    pub fn nameless() -> Result<Self, Failure> {
        let name = format!("cowbell-{}-{}.capture", std::process::id(), cowbell::sys::monotonic_ns());
        let path = std::env::temp_dir().join(name);
        let failure = |e: io::Error| Failure::new(format!("{}: {e}", path.display()));
        let file =
            OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(&path).map_err(failure)?;
        fs::remove_file(&path).map_err(failure)?;
        Ok(Self { file, path, failed: false })
    }

    /// Writes what is in the file, and one more record, to a new file: readable by its owner alone, `%p` and `%t` expanded.
    ///
    /// # Errors
    /// A [`Failure`] for people, with the path.
    pub fn copy_to(&mut self, name: &Path, last: &Record) -> Result<PathBuf, Failure> {
        let path = output::expand(name)?;
        let failure = |e: io::Error| Failure::new(format!("{}: {e}", path.display()));
        let mut copy = output::create(&path, 0o600, false)?;
        self.file.rewind().map_err(failure)?;
        io::copy(&mut self.file, &mut copy).map_err(failure)?;
        let mut line = serde_json::to_vec(last).map_err(|e| failure(e.into()))?;
        line.push(b'\n');
        copy.write_all(&line).map_err(failure)?;
        Ok(path)
    }

    /// Tells whether a write was lost.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Finish;
    use crate::record::Reader;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("cowbell-write-{}-{name}", std::process::id()));
        let _none = fs::remove_file(&path);
        path
    }

    #[test]
    fn a_capture_is_its_owners_alone_and_holds_whole_lines() {
        let path = scratch("whole");
        let mut writer = CaptureWriter::create(&path, false).expect("a file");
        writer.lines(b"one\ntwo\n").expect("written");
        writer.lines(b"three").expect("written");
        let finish = Finish { time_ns: 1, ..Finish::default() };
        writer.record(&Record::Finish(finish)).expect("written");
        // Before the writer is gone: nothing waits in it.
        let written = fs::read_to_string(&path).expect("text");
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        fs::remove_file(&path).expect("removed");
        assert!(written.starts_with("one\ntwo\nthree\n{\"finish\":") && written.ends_with("}}\n"), "{written:?}");
        assert!(Reader::new(written.as_bytes()).is_err(), "no header, no capture");
    }

    #[test]
    fn an_existing_file_is_replaced_only_by_force_and_never_what_it_was_open_to() {
        let path = scratch("there");
        fs::write(&path, "mine").expect("a file");
        let old = fs::hard_link(&path, scratch("old")).map(|()| scratch_path("old")).expect("a link");
        let told = CaptureWriter::create(&path, false).expect_err("it is there").to_string();
        assert!(told.contains("--force"), "{told}");
        assert_eq!(fs::read_to_string(&path).expect("text"), "mine");
        CaptureWriter::create(&path, true).expect("replaced").lines(b"new").expect("written");
        assert_eq!(fs::read_to_string(&path).expect("text"), "new\n");
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&old).expect("text"), "mine", "another name of the old file keeps it");
        for path in [path, old] {
            fs::remove_file(path).expect("removed");
        }
    }

    /// [`scratch`] without removing.
    fn scratch_path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("cowbell-write-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_full_disk_is_told_once() {
        let mut writer = CaptureWriter::create(Path::new("/dev/full"), false).expect("a device is written to");
        let told = writer.lines(b"line\n").expect_err("full").to_string();
        assert!(told.contains("No space left") && told.contains("the run goes on"), "{told}");
        assert!(writer.failed());
        writer.lines(b"line\n").expect("dropped");
    }

    #[test]
    fn names_that_cannot_be_files_are_refused() {
        for (name, why) in
            [("/", "is a directory"), ("/nowhere/at/all", "No such file"), ("/tmp/%x", "% in a file name"), ("%", "%")]
        {
            let told = CaptureWriter::create(Path::new(name), true).expect_err(name).to_string();
            assert!(told.contains(why), "{name}: {told}");
        }
    }
}
