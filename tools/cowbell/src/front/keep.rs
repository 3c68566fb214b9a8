//! The tracer's records, kept: in the capture file, in the profile, and as instructions that want a name.

use super::capture::CaptureWriter;
use super::images::Images;
use super::sources::Sources;
use crate::analyse::detail::Detail;
use crate::analyse::live::Live;
use crate::analyse::{Profile, Summary};
use crate::failure::Failure;
use crate::record::{End, Finish, Gap, GapKind, Mapping, Origin, Place, Record, Source};
use crate::stacks::names::Names;
use crate::trace::link::TracerMessage;
use cowbell::fork::Ended;
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

/// One run, as far as heard.
pub struct Kept {
    profile: Profile,
    /// The state of the run while it goes on, where somebody looks on.
    live: Option<Live>,
    writer: Option<CaptureWriter>,
    /// The tracer's process, whose open files are those of the modules.
    tracer: i32,
    names: Names,
    /// Files of modules that are about to be told.
    opened: HashMap<u32, File>,
    places: Vec<Place>,
    /// The process of each interval, and the mappings of its memory.
    mappings: HashMap<u32, (i32, Vec<Mapping>)>,
    sources: Sources,
    images: Images,
    unread: Vec<u8>,
    /// The tracer's last record.
    pub finish: Option<Finish>,
    /// Why it could not begin.
    pub failed: Option<(u8, String)>,
    /// The process that the tool started, until it has ended.
    main: Main,
    /// The processes that have not ended.
    living: BTreeSet<i32>,
    /// The processes that could not be watched.
    refused: BTreeSet<i32>,
}

/// The state of the process that the tool started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Main {
    /// None was started, or it is not heard of yet.
    None,
    Runs(i32),
    Ended,
}

impl Kept {
    /// Nothing yet. `detailed`: every copied page is asked for.
    pub fn new(writer: Option<CaptureWriter>, detailed: bool) -> Self {
        Self {
            profile: if detailed { Profile::detailed() } else { Profile::default() },
            live: None,
            writer,
            tracer: 0,
            names: Names::new(),
            opened: HashMap::new(),
            places: Vec::new(),
            mappings: HashMap::new(),
            sources: Sources::default(),
            images: Images::default(),
            unread: Vec::new(),
            finish: None,
            failed: None,
            main: Main::None,
            living: BTreeSet::new(),
            refused: BTreeSet::new(),
        }
    }

    /// The same for somebody who looks on.
    pub fn looked_at(writer: CaptureWriter) -> Self {
        Self { live: Some(Live::default()), ..Self::new(Some(writer), false) }
    }

    /// The state of the run up to now.
    pub fn live(&self) -> Option<&Live> {
        self.live.as_ref()
    }

    /// Writes what was captured up to now, and the names of its code, to a file of that name.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&mut self, name: &Path) -> Result<PathBuf, Failure> {
        let codes = self.names.resolve(&self.places);
        let writer = self.writer.as_mut().ok_or_else(|| Failure::new("nothing is captured"))?;
        writer.copy_to(name, &Record::Symbols { codes })
    }

    /// Says which process it is that will be heard.
    pub fn listen_to(&mut self, tracer: u32) {
        self.tracer = tracer as i32;
    }

    /// The processes that the watch still waits for after the program that was started has ended and left them. Empty
    /// before.
    pub fn left_behind(&self) -> Vec<i32> {
        if self.main == Main::Ended && self.finish.is_none() {
            self.living.iter().copied().collect()
        } else {
            Vec::new()
        }
    }

    /// Tells whether a process is being watched.
    pub fn watches(&self, pid: i32) -> bool {
        self.mappings.values().any(|(of, _)| *of == pid)
    }

    /// Tells whether a process could not be watched.
    pub fn is_refused(&self, pid: i32) -> bool {
        self.refused.contains(&pid)
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
            Record::Gap(gap) if gap.what == GapKind::NotArmed => {
                self.refused.insert(gap.pid);
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
            match TracerMessage::parse(line) {
                Ok(TracerMessage::Failed { failed, message }) => self.failed = Some((failed, message)),
                // Names come before it.
                Ok(TracerMessage::Record(Record::Finish(finish))) => self.finish = Some(finish),
                Ok(TracerMessage::Opened { opened, descriptor }) => {
                    let file = File::open(format!("/proc/{}/fd/{descriptor}", self.tracer)).ok();
                    self.opened.extend(file.map(|file| (opened, file)));
                }
                Ok(TracerMessage::Images { images, of, code }) => self.images.add(images, of, code, self.tracer),
                Ok(TracerMessage::Record(record)) => {
                    for record in self.objects(&record) {
                        written = written.and(self.keep(record));
                    }
                    if let Some(writer) = &mut self.writer {
                        written = written.and(writer.lines(line));
                    }
                    self.note_processes(&record);
                    if let Some(live) = &mut self.live {
                        live.add(&record);
                    }
                    let sources = self.note(&record);
                    let uninitialised = self.uninitialised(&record);
                    self.profile.add(record);
                    let sources = sources.into_iter().map(Record::Source);
                    for record in uninitialised.into_iter().chain(sources) {
                        written = written.and(self.keep(record));
                    }
                }
                Err(e) => self.profile.cut(&format!("the tracer said something that is no record: {e}")),
            }
        }
        written
    }

    /// Tells what lies on the copied pages of images of the library's heap, before the end of their interval.
    fn objects(&mut self, record: &Record) -> Vec<Record> {
        let Record::End(end) = record else { return Vec::new() };
        if !self.images.has(end.interval) {
            return Vec::new();
        }
        let Some(written) = self.profile.first_writes(end) else { return Vec::new() };
        let news = self.images.tell(end, &written, &mut self.names);
        self.places.extend(&news.places);
        let pid = self.mappings.get(&end.interval).map_or(0, |(pid, _)| *pid);
        let End { time_ns, .. } = *end;
        let gap = |detail| Record::Gap(Gap { pid, time_ns, what: GapKind::Other, detail });
        let places = news.places.into_iter().map(Record::Place);
        places.chain(news.objects.into_iter().map(Record::Objects)).chain(news.unknown.into_iter().map(gap)).collect()
    }

    /// The parts of newly mapped memory that are data of a file. Asked here and not by the tracer, for which targets wait.
    fn uninitialised(&mut self, record: &Record) -> Option<Record> {
        let interval = match record {
            Record::Begin(begin) => begin.interval,
            Record::Mapped { interval, .. } => *interval,
            _ => return None,
        };
        let (pid, mappings) = self.mappings.get(&interval)?;
        let data = self.names.uninitialised(*pid, mappings);
        (!data.is_empty()).then_some(Record::Uninitialised { interval, data })
    }

    /// Notes what wants a name, and returns the lines that a stack stands in.
    fn note(&mut self, record: &Record) -> Vec<Source> {
        match record {
            Record::Header(header) => self.sources.begin(header),
            Record::Begin(begin) => {
                self.mappings.insert(begin.interval, (begin.pid, begin.mappings.clone()));
                self.sources.interval(begin);
            }
            Record::Mapped { interval, mappings } => {
                let (_, known) = self.mappings.entry(*interval).or_default();
                for new in mappings {
                    known.retain(|old| old.end <= new.start || new.end <= old.start);
                }
                known.extend(mappings.iter().cloned());
                known.sort_by_key(|mapping| mapping.start);
            }
            Record::End(end) => drop(self.mappings.remove(&end.interval)),
            Record::Module(module) => {
                let file = self.opened.remove(&module.module);
                self.names.add(module, file);
            }
            Record::Place(place) => self.places.push(*place),
            Record::Stack(stack) => return self.sources.of(stack),
            _ => {}
        }
        Vec::new()
    }

    fn keep(&mut self, record: Record) -> Result<(), Failure> {
        let written = self.writer.as_mut().map_or(Ok(()), |writer| writer.record(&record));
        self.profile.add(record);
        written
    }

    /// Names the instructions, closes the capture, and adds everything up. `cut`: why there is no more to hear.
    ///
    /// # Errors
    /// The first write to the capture file that failed.
    pub fn finish(mut self, cut: &str) -> (Summary, Detail, Result<bool, Failure>) {
        let mut written = Ok(());
        let places = std::mem::take(&mut self.places);
        let module_of: HashMap<u32, u32> =
            places.iter().filter_map(|place| Some((place.code, place.module?))).collect();
        let codes = self.names.resolve(&places);
        if !codes.is_empty() {
            let lines = self.sources.of_native(&codes, |code| self.names.built(*module_of.get(&code)?));
            written = written.and(self.keep(Record::Symbols { codes }));
            for line in lines {
                written = written.and(self.keep(Record::Source(line)));
            }
        }
        match self.finish.take() {
            Some(finish) => written = written.and(self.keep(Record::Finish(finish))),
            None => self.profile.cut(cut),
        }
        let lost = self.writer.as_ref().is_some_and(CaptureWriter::failed);
        let (summary, detail) = self.profile.finish();
        (summary, detail, written.map(|()| !lost))
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
        let mut kept = Kept::new(None, false);
        kept.hear(b"{\"failed\":127,\"mess").expect("no file");
        assert!(kept.failed.is_none());
        kept.hear(b"age\":\"x: not found\"}\n").expect("no file");
        assert_eq!(kept.failed, Some((127, "x: not found".to_owned())));
    }
}
