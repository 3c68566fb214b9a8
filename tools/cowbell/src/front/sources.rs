//! The text of source lines: of scripts read when a stack that stands in them is heard of, of native code when the run
//! ends. When the report is made, the file may be another, or elsewhere.

use crate::record::{Begin, Code, Header, Source, Stack, WatchReason};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// No longer file is read for its lines.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// The most characters of a line that are kept.
const LINE_CHARACTERS_MAX: usize = 120;

/// The lines that were told.
#[derive(Debug, Default)]
pub struct Sources {
    /// By process, since what a name means depends on where it is; `None` for what cannot be read.
    files: HashMap<(i32, String), Option<String>>,
    told: HashSet<(String, i32)>,
    pids: HashMap<u32, i32>,
    /// A file that was written after this time is not what runs.
    until: Option<SystemTime>,
    /// Some process was there before us, whose files may be others than ours under the same names.
    attached: bool,
}

impl Sources {
    /// The run begins.
    pub fn begin(&mut self, header: &Header) {
        // In whole milliseconds, rounded down.
        self.until = UNIX_EPOCH.checked_add(Duration::from_millis(header.started_unix_ms + 1));
    }

    /// An interval opens.
    pub fn interval(&mut self, begin: &Begin) {
        self.pids.insert(begin.interval, begin.pid);
        if begin.role == WatchReason::Attached {
            // The process has loaded its program long before it was attached to.
            let started = started(begin.pid);
            self.until = self.until.into_iter().chain(started).min();
            self.attached = true;
        }
    }

    /// The lines of native code that were not told yet. `built`: when the file of a place was written, where the paths in it
    /// mean ours; what was written later is not its source.
    pub fn of_native(&mut self, codes: &[Code], built: impl Fn(u32) -> Option<SystemTime>) -> Vec<Source> {
        let mut texts: HashMap<&str, Option<(String, SystemTime)>> = HashMap::new();
        let mut found = Vec::new();
        for code in codes {
            let Some(built) = built(code.code) else { continue };
            let lines =
                code.frames.iter().filter_map(|frame| frame.file.as_deref().zip(i32::try_from(frame.line?).ok()));
            for (file, line) in lines.filter(|(file, line)| file.starts_with('/') && *line > 0) {
                let text = texts.entry(file).or_insert_with(|| read_ours(file));
                let Some((text, _)) = text.as_ref().filter(|(_, written)| *written <= built) else { continue };
                if self.told.insert((file.to_owned(), line)) {
                    found.extend(line_of(text, file, line));
                }
            }
        }
        found
    }

    /// The lines of a stack that were not told yet.
    pub fn of(&mut self, stack: &Stack) -> Vec<Source> {
        let pid = self.pids.get(&stack.interval).copied().unwrap_or(0);
        let mut found = Vec::new();
        for frame in &stack.frames {
            if frame.line < 1 || frame.file.starts_with('<') || !self.told.insert((frame.file.clone(), frame.line)) {
                continue;
            }
            let (until, is_ours) = (self.until, !self.attached);
            let key = (pid, frame.file.clone());
            let text = self.files.entry(key).or_insert_with(|| read(pid, &frame.file, until, is_ours));
            found.extend(text.as_ref().and_then(|text| line_of(text, &frame.file, frame.line)));
        }
        found
    }
}

/// A line of a text, if anything stands there.
fn line_of(text: &str, file: &str, line: i32) -> Option<Source> {
    let found = text.lines().nth(usize::try_from(line).ok()?.checked_sub(1)?)?.trim();
    let text = found.chars().take(LINE_CHARACTERS_MAX).collect();
    (!found.is_empty()).then(|| Source { file: file.to_owned(), line, text })
}

/// When a process was started: the time since boot in its status line is in ticks.
fn started(pid: i32) -> Option<SystemTime> {
    const TICKS_A_SECOND: u64 = 100;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks: u64 = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let boot: u64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(boot + ticks / TICKS_A_SECOND + 1))
}

/// A file as a process names it, unless it was written after `until`. `is_ours`: the process may be gone, and had its names
/// from us.
fn read(pid: i32, path: &str, until: Option<SystemTime>, is_ours: bool) -> Option<String> {
    let (from, rest) = path.strip_prefix('/').map_or(("cwd", path), |rest| ("root", rest));
    let seen = [Some(format!("/proc/{pid}/{from}/{rest}")), is_ours.then(|| path.to_owned())];
    let (text, written) = text_of(seen.iter().flatten().find_map(|path| open(path))?)?;
    until.is_none_or(|until| written <= until).then_some(text)
}

/// A file as we name it, and when it was written.
fn read_ours(path: &str) -> Option<(String, SystemTime)> {
    text_of(open(path)?)
}

/// Opens a file, if it is to be opened. Opening a pipe must not wait, and a device is not read.
fn open(path: &str) -> Option<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()
}

fn text_of(file: File) -> Option<(String, SystemTime)> {
    let metadata = file.metadata().ok().filter(fs::Metadata::is_file)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some((String::from_utf8_lossy(&bytes).into_owned(), metadata.modified().ok()?))
}
