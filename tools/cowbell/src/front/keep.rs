//! What the tracer says, kept: in the capture file, in the profile, and as instructions that want a name.

use super::capture::Writer;
use crate::analyse::{Profile, Summary};
use crate::failure::Failure;
use crate::record::{Code, Finish, Mapping, Origin, Record};
use crate::stacks::names::Names;
use crate::trace::link::Said;
use cowbell::fork::Ended;
use std::collections::{BTreeMap, BTreeSet};

/// One run, as far as heard.
pub struct Kept {
    profile: Profile,
    writer: Option<Writer>,
    places: BTreeMap<u32, Places>,
    names: Names,
    unread: Vec<u8>,
    /// The tracer's last record.
    pub finish: Option<Finish>,
    /// Why it could not begin.
    pub failed: Option<(u8, String)>,
    /// The process that the tool started, until it has ended.
    main: Main,
    /// The processes that have not ended.
    living: BTreeSet<i32>,
}

/// What became of the process that the tool started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Main {
    /// None was started, or it is not heard of yet.
    None,
    Runs(i32),
    Ended,
}

/// The instructions of one interval.
struct Places {
    pid: i32,
    mappings: Vec<Mapping>,
    pcs: BTreeSet<u64>,
}

impl Kept {
    /// Nothing yet.
    pub fn new(writer: Option<Writer>) -> Self {
        let (profile, places, unread) = (Profile::default(), BTreeMap::new(), Vec::new());
        let (main, living) = (Main::None, BTreeSet::new());
        Self { profile, writer, places, names: Names::new(), unread, finish: None, failed: None, main, living }
    }

    /// Whom the watch still waits for after the program that was started has ended: processes that it left. Empty
    /// before.
    pub fn left_behind(&self) -> Vec<i32> {
        if self.main == Main::Ended && self.finish.is_none() {
            self.living.iter().copied().collect()
        } else {
            Vec::new()
        }
    }

    fn note_processes(&mut self, record: &Record) {
        match record {
            Record::Process(process) => {
                if process.origin == Origin::Started {
                    self.main = Main::Runs(process.pid);
                }
                self.living.insert(process.pid);
            }
            Record::Exit { pid, .. } => {
                self.living.remove(pid);
                if self.main == Main::Runs(*pid) {
                    self.main = Main::Ended;
                }
            }
            _ => {}
        }
    }

    /// Takes what came from the tracer.
    ///
    /// # Errors
    /// The first write to the capture file that failed.
    pub fn hear(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.unread.extend_from_slice(bytes);
        let Some(end) = self.unread.iter().rposition(|&byte| byte == b'\n') else { return Ok(()) };
        let rest = self.unread.split_off(end + 1);
        let lines = std::mem::replace(&mut self.unread, rest);
        let mut written = Ok(());
        for line in lines.split_inclusive(|&byte| byte == b'\n') {
            match serde_json::from_slice(line) {
                Ok(Said::Failed { failed, message }) => self.failed = Some((failed, message)),
                // Names come before it.
                Ok(Said::Record(Record::Finish(finish))) => self.finish = Some(finish),
                Ok(Said::Record(record)) => {
                    if let Some(writer) = &mut self.writer {
                        written = written.and(writer.lines(line));
                    }
                    self.note_places(&record);
                    self.note_processes(&record);
                    let uninitialised = self.uninitialised(&record);
                    self.profile.add(record);
                    if let Some(record) = uninitialised {
                        written = written.and(self.writer.as_mut().map_or(Ok(()), |writer| writer.record(&record)));
                        self.profile.add(record);
                    }
                }
                Err(e) => self.profile.cut(&format!("the tracer said what is no record: {e}")),
            }
        }
        written
    }

    /// What of newly mapped memory is data of a file. Asked here and not by the tracer, for which targets wait.
    fn uninitialised(&mut self, record: &Record) -> Option<Record> {
        let (interval, mappings) = match record {
            Record::Begin(begin) => (begin.interval, &begin.mappings),
            Record::Mapped { interval, .. } => (*interval, &self.places.get(interval)?.mappings),
            _ => return None,
        };
        let data = self.names.uninitialised(mappings);
        (!data.is_empty()).then_some(Record::Uninitialised { interval, data })
    }

    fn note_places(&mut self, record: &Record) {
        match record {
            Record::Begin(begin) => {
                let places = Places { pid: begin.pid, mappings: begin.mappings.clone(), pcs: BTreeSet::new() };
                self.places.insert(begin.interval, places);
            }
            Record::Mapped { interval, mappings } => {
                let Some(places) = self.places.get_mut(interval) else { return };
                for new in mappings {
                    places.mappings.retain(|old| old.end <= new.start || new.end <= old.start);
                }
                places.mappings.extend(mappings.iter().cloned());
                places.mappings.sort_by_key(|mapping| mapping.start);
            }
            Record::Events { interval, events } => {
                let Some(places) = self.places.get_mut(interval) else { return };
                places.pcs.extend(events.iter().map(|event| event.pc).filter(|&pc| pc != 0));
            }
            Record::Stack(stack) => {
                let Some(places) = self.places.get_mut(&stack.interval) else { return };
                places.pcs.extend(&stack.native);
            }
            _ => {}
        }
    }

    /// Names the instructions, closes the capture, and adds everything up. `cut`: why there is no more to hear.
    ///
    /// # Errors
    /// The first write to the capture file that failed.
    pub fn finish(mut self, cut: &str) -> (Summary, Result<bool, Failure>) {
        let mut records = Vec::new();
        for (interval, places) in std::mem::take(&mut self.places) {
            let pcs: Vec<u64> = places.pcs.into_iter().collect();
            let codes: Vec<Code> = self.names.resolve(places.pid, &places.mappings, &pcs);
            if !codes.is_empty() {
                records.push(Record::Symbols { interval, codes });
            }
        }
        match self.finish.take() {
            Some(finish) => records.push(Record::Finish(finish)),
            None => self.profile.cut(cut),
        }
        let mut written = Ok(());
        for record in records {
            if let Some(writer) = &mut self.writer {
                written = written.and(writer.record(&record));
            }
            self.profile.add(record);
        }
        let lost = self.writer.as_ref().is_some_and(Writer::failed);
        (self.profile.finish(), written.map(|()| !lost))
    }
}

/// The exit code that passes on how a program ended.
pub fn exit_code(ended: Ended) -> u8 {
    match ended {
        Ended::Exited(code) => code as u8,
        Ended::Signaled(signal) => 128 + signal as u8,
        Ended::Unknown => 125,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_program_ended_is_passed_on_as_a_shell_does() {
        assert_eq!([Ended::Exited(0), Ended::Exited(3), Ended::Signaled(9)].map(exit_code), [0, 3, 137]);
    }

    #[test]
    fn a_line_that_comes_in_two_parts_is_heard_once() {
        let mut kept = Kept::new(None);
        kept.hear(b"{\"failed\":127,\"mess").expect("no file");
        assert!(kept.failed.is_none());
        kept.hear(b"age\":\"x: not found\"}\n").expect("no file");
        assert_eq!(kept.failed, Some((127, "x: not found".to_owned())));
    }
}
