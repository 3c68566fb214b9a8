//! The text of source lines, read when a stack that stands in them is heard of: when the report is made, the file may be
//! another, or elsewhere.

use crate::record::{Begin, Header, Role, Source, Stack};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// No longer file is read for its lines.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// So many characters of a line are kept.
const LINE_CHARACTERS_MAX: usize = 120;

/// The lines that were told.
#[derive(Debug, Default)]
pub struct Sources {
    /// By process, since what a name means depends on where it is; `None` for what cannot be read.
    files: HashMap<(i32, String), Option<String>>,
    told: HashSet<(String, i32)>,
    pids: HashMap<u32, i32>,
    /// What was written later is not what runs.
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
        if begin.role == Role::Attached {
            // It has loaded its program long before it was attached to.
            let started = started(begin.pid);
            self.until = self.until.into_iter().chain(started).min();
            self.attached = true;
        }
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
            let line = text.as_ref().and_then(|text| text.lines().nth(frame.line as usize - 1)).map(str::trim);
            let Some(line) = line.filter(|line| !line.is_empty()) else { continue };
            let text = line.chars().take(LINE_CHARACTERS_MAX).collect();
            found.push(Source { file: frame.file.clone(), line: frame.line, text });
        }
        found
    }
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
    // Opening a pipe must not wait, and a device is not read.
    let open = |path: &String| File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok();
    let file = seen.iter().flatten().find_map(open)?;
    let metadata = file.metadata().ok()?;
    let is_older = until.is_none_or(|until| metadata.modified().is_ok_and(|written| written <= until));
    if !metadata.is_file() || !is_older {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
