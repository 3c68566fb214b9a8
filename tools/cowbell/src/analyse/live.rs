//! The state of a job while it is watched: copies by process and by line as they are told, before any interval has closed.
//!
//! In trace every copy is told with its instruction within a moment. In the other modes copies are told when an interval closes;
//! until then a process' count is of the intervals that have.

use super::summary::is_copied;
use crate::record::{Event, Frame, Mode, Place, Record, Stack};
use crate::stacks::languages;
use std::collections::{BTreeMap, HashMap};

/// Records, added up as they come.
#[derive(Debug, Default)]
pub struct Live {
    mode: Option<Mode>,
    page_size: u64,
    /// The process of each interval.
    owners: HashMap<u32, i32>,
    /// Copied pages of each interval.
    copied: HashMap<u32, u64>,
    /// New pages by process, as far as looks in turn found them.
    new: BTreeMap<i32, u64>,
    /// The line of each sampled stack.
    lines_of: HashMap<u32, LiveLine>,
    /// Copies of an instruction since it was sampled last.
    waiting: HashMap<(u32, u32), u64>,
    sums: BTreeMap<LiveLine, BTreeMap<i32, Sum>>,
    modules: HashMap<u32, String>,
    places: HashMap<u32, Place>,
}

/// A line of a script or, in native code, a place in a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LiveLine {
    /// The file and the line in it, or the offset in it.
    pub place: String,
    /// The function; empty where it has no name yet.
    pub function: String,
}

/// The sums of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Bytes copied, estimated: a sample stands for the copies of its instruction since the sample before.
    pub copied_bytes: u64,
    /// Bytes of new memory, by looks in turn.
    pub new_bytes: u64,
}

impl Live {
    /// Adds a record. Records come in the order of the capture.
    pub fn add(&mut self, record: &Record) {
        match record {
            Record::Header(header) => (self.mode, self.page_size) = (Some(header.mode), header.page_size),
            Record::Begin(begin) => drop(self.owners.insert(begin.interval, begin.pid)),
            Record::Module(module) => drop(self.modules.insert(module.module, module.path.clone())),
            Record::Place(place) => drop(self.places.insert(place.code, *place)),
            Record::Stack(stack) => {
                if let Some(line) = self.line(stack) {
                    self.lines_of.insert(stack.stack, line);
                }
            }
            Record::Events { interval, events } => events.iter().for_each(|event| self.event(*interval, event)),
            Record::End(end) => {
                let pages = end.pages.iter().filter(|run| is_copied(run.class)).map(|run| run.pages).sum();
                self.copied.insert(end.interval, pages);
                self.waiting.retain(|(interval, _), _| *interval != end.interval);
            }
            Record::Grew(grew) => {
                *self.new.entry(grew.pid).or_default() += grew.pages;
                let bytes = grew.pages.saturating_mul(self.page_size);
                if let Some(line) = grew.stack.and_then(|stack| self.lines_of.get(&stack)).cloned() {
                    self.sums.entry(line).or_default().entry(grew.pid).or_default().new_bytes += bytes;
                }
            }
            _ => {}
        }
    }

    fn event(&mut self, interval: u32, event: &Event) {
        if !is_copied(event.class) {
            return;
        }
        *self.copied.entry(interval).or_default() += 1;
        let waiting = self.waiting.entry((interval, event.code)).or_default();
        *waiting += 1;
        let line = event.stack.and_then(|stack| self.lines_of.get(&stack)).cloned();
        if let (Some(line), Some(pid)) = (line, self.owners.get(&interval)) {
            let bytes = std::mem::take(waiting).saturating_mul(self.page_size);
            self.sums.entry(line).or_default().entry(*pid).or_default().copied_bytes += bytes;
        }
    }

    /// The line at which a stack stands: in a script, if it has frames of one, in its innermost that lies in a file.
    fn line(&self, stack: &Stack) -> Option<LiveLine> {
        let in_file = |frame: &&Frame| !frame.file.starts_with('<');
        let has_lines = languages::has_lines(stack.language.as_deref());
        let frames = if has_lines { &stack.frames[..] } else { &[] };
        if let Some(frame) = frames.iter().find(in_file).or(frames.first()) {
            return Some(LiveLine {
                place: format!("{}:{}", frame.file, frame.line),
                function: frame.function.clone(),
            });
        }
        let place = self.places.get(stack.native.first()?)?;
        let module = place.module.and_then(|module| self.modules.get(&module));
        let module = module.map_or("code of no file", String::as_str);
        Some(LiveLine { place: format!("{module}+0x{:x}", place.offset), function: String::new() })
    }

    /// The way in which pages are observed; `None` before the first record.
    pub fn mode(&self) -> Option<Mode> {
        self.mode
    }

    /// Bytes copied by each process.
    pub fn copied(&self) -> BTreeMap<i32, u64> {
        let mut sums = BTreeMap::new();
        for (interval, pages) in &self.copied {
            if let Some(pid) = self.owners.get(interval) {
                *sums.entry(*pid).or_default() += pages.saturating_mul(self.page_size);
            }
        }
        sums
    }

    /// Lines, and what each did in each process.
    pub fn lines(&self) -> &BTreeMap<LiveLine, BTreeMap<i32, Sum>> {
        &self.sums
    }

    /// Bytes copied by instructions of which no sample was taken since.
    pub fn waiting_bytes(&self) -> u64 {
        self.waiting.values().sum::<u64>().saturating_mul(self.page_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn add(live: &mut Live, record: serde_json::Value) {
        live.add(&serde_json::from_value(record).expect("a record"));
    }

    #[test]
    fn a_sample_stands_for_the_copies_since_the_one_before_and_the_end_has_the_last_word() {
        let mut live = Live::default();
        add(
            &mut live,
            json!({"header": {"format": "cowbell-capture", "version": 2, "cowbell": "", "kernel": "", "page_size": 4096,
                "command": [], "started_unix_ms": 0, "mode": "trace", "mode_reason": "", "who": "both", "stacks_every": 2, "frames": true}}),
        );
        add(
            &mut live,
            json!({"begin": {"interval": 1, "pid": 7, "role": "child", "time_ns": 1, "mode": "trace", "arm_ns": 0, "mappings": [],
                "held": {"shared": 9, "exclusive": 0, "zero": 0, "file": 0, "swapped": 0}}}),
        );
        add(
            &mut live,
            json!({"stack": {"stack": 1, "interval": 1, "native": [], "language": "python",
                "frames": [{"function": "read", "file": "job.py", "line": 5}]}}),
        );
        let event =
            |page: u64, class: &str, stack: Option<u32>| json!([1, page * 4096, 7, 0, 3, class, null, stack, 0]);
        let events =
            [event(1, "copy", None), event(2, "copy", Some(1)), event(3, "first_touch", None), event(4, "copy", None)];
        add(&mut live, json!({"events": {"interval": 1, "events": events}}));
        assert_eq!(live.copied(), BTreeMap::from([(7, 3 * 4096)]));
        let line = LiveLine { place: "job.py:5".to_owned(), function: "read".to_owned() };
        let sum = |copied: u64, new: u64| Sum { copied_bytes: copied * 4096, new_bytes: new * 4096 };
        assert_eq!(live.lines(), &BTreeMap::from([(line.clone(), BTreeMap::from([(7, sum(2, 0))]))]));
        assert_eq!(live.waiting_bytes(), 4096);
        add(&mut live, json!({"grew": {"pid": 7, "time_ns": 2, "pages": 300, "stack": 1}}));
        assert_eq!(live.lines()[&line][&7], sum(2, 300));
        let pages = json!([[4096, 2, "copy"], [8 * 4096, 3, "first_touch"]]);
        add(
            &mut live,
            json!({"end": {"interval": 1, "time_ns": 3, "closed": "exit", "pages": pages, "contents": [], "unmapped_uncounted": 0}}),
        );
        assert_eq!((live.copied(), live.waiting_bytes()), (BTreeMap::from([(7, 2 * 4096)]), 0));
    }
}
