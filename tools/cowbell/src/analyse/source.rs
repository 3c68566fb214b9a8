//! The text of source lines, read when the report is made.

use super::Summary;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

/// No longer file is read for its lines.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// So many characters of a line are kept.
const LINE_CHARACTERS_MAX: usize = 120;
/// So many lines are looked up.
const LINES_MAX: usize = 100;

impl Summary {
    /// Adds the text of the script's lines that copied most, of files that can be read now.
    pub fn read_sources(&mut self) {
        let mut files: HashMap<String, Option<String>> = HashMap::new();
        for line in self.script.lines.iter_mut().take(LINES_MAX) {
            let (file, number) = match &line.called_from {
                Some(frame) => (&frame.file, frame.line),
                None => (&line.file, line.line),
            };
            let text = files.entry(file.clone()).or_insert_with(|| read(file));
            let nth = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
            let found = nth.and_then(|nth| text.as_ref()?.lines().nth(nth)).map(str::trim);
            line.source =
                found.filter(|line| !line.is_empty()).map(|line| line.chars().take(LINE_CHARACTERS_MAX).collect());
        }
    }
}

fn read(path: &str) -> Option<String> {
    // A capture may name anything: opening a pipe must not wait, and a device is not read.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
