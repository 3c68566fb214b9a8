//! Records added up: who copied how much, in which mappings, by which code, and why. Computes; neither reads nor
//! prints.
//!
//! An interval's verdict ([`End`](crate::record::End)) says which pages were written and how; its events say
//! when and by whom, as far as they were seen. What the verdict counts is counted; what its events explain is
//! explained.

mod because;
mod cast;
mod cause;
mod causes;
pub mod check;
mod classes;
mod code;
mod codes;
mod copied;
pub mod detail;
pub mod diff;
mod evidence;
pub mod experiment;
mod faults;
mod forks;
mod gaps;
mod growth;
mod interval;
pub mod kinds;
pub mod library;
pub mod live;
mod mapping;
mod name;
mod new_memory;
pub mod objects;
mod phases;
mod remedy;
pub mod roles;
mod runtime;
mod script;
mod spread;
mod sum;
pub mod summary;
mod syscalls;
#[cfg(test)]
mod tests;
#[cfg(test)]
#[path = "code/tests.rs"]
mod tests_of_code;
mod timeline;
mod told;
mod totals;
mod unknown;
pub mod verdict;

pub use cause::Cause;
pub use mapping::MappingKind;
pub use summary::Summary;

use crate::record::{self, End, Finish, Frame, Header, Origin, Record, Stack, Wrote};
use crate::stacks::languages::{self, Import, Work};
use codes::Codes;
use detail::Detail;
use interval::Interval;
use objects::FirstWrites;
use std::collections::HashMap;

/// Records, added up as they come.
#[derive(Debug, Default)]
pub struct Profile {
    header: Option<Header>,
    processes: Vec<summary::ProcessSummary>,
    /// The newest process of each id.
    process_by_pid: HashMap<i32, usize>,
    /// The file that each process executes.
    executables: HashMap<i32, record::Executable>,
    intervals: Vec<Interval>,
    interval_by_number: HashMap<u32, usize>,
    stacks: Stacks,
    codes: Codes,
    /// The text of lines, by file and line.
    sources: HashMap<(String, i32), String>,
    places: Vec<ScriptPlace>,
    place_numbers: HashMap<ScriptPlace, u32>,
    growth: Vec<record::Grew>,
    gaps: Vec<record::Gap>,
    objects: Vec<record::Objects>,
    kinds: Vec<record::Kinds>,
    finish: Option<Finish>,
    cut: Option<String>,
    /// The latest time that a record has.
    latest_ns: u64,
    /// Records about intervals or processes that there are none of.
    stray: u64,
    /// True if every copied page is asked for.
    detailed: bool,
    /// Sampled stacks with all their frames, if so.
    full_stacks: HashMap<u32, Stack>,
}

/// Sampled stacks by number.
type Stacks = HashMap<u32, Sampled>;

/// The parts that are kept of a sampled stack.
#[derive(Debug)]
struct Sampled {
    /// The sample's place in a script.
    script: Option<u32>,
    /// The place of the instruction, if native frames were read.
    innermost: Option<u32>,
    /// The places of the calls, the innermost first.
    callers: Vec<u32>,
    /// The kind of data that the instruction was about to write.
    wrote: Wrote,
    /// The worker was starting or ending, as the frames of a script tell.
    phase: Option<Work>,
    /// The import that it was in, if its place is at work on one.
    import: Option<Import>,
}

/// A place in a program that an interpreter runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ScriptPlace {
    /// The language's id.
    language: Option<String>,
    /// The innermost frame that stands in a file.
    frame: Frame,
    /// The innermost of the user's own, where that is another.
    called_from: Option<Frame>,
    /// The work of the stack, where the language tells.
    work: Option<Work>,
}

impl ScriptPlace {
    /// Tells whether the place is a line, and not a function alone.
    fn is_line(&self) -> bool {
        languages::has_lines(self.language.as_deref())
    }
}

impl Profile {
    /// One of which every copied page is asked for, too.
    pub fn detailed() -> Self {
        Self { detailed: true, ..Self::default() }
    }

    /// Adds a record. Records come in the order of the capture, the header first.
    pub fn add(&mut self, record: Record) {
        match record {
            Record::Header(header) => self.header = Some(header),
            Record::Process(process) => self.process(process),
            Record::Begin(begin) => self.begin(begin),
            Record::Mapped { interval, mappings } => self.with(interval, |interval| interval.mapped(mappings)),
            Record::Uninitialised { interval, data } => self.with(interval, |interval| interval.uninitialised(data)),
            Record::Events { interval, events } => {
                self.seen_at(events.last().map_or(0, |event| event.time_ns));
                self.with(interval, |interval| interval.events(&events));
            }
            Record::Faults { interval, rows } => self.with(interval, |interval| interval.faults(&rows)),
            Record::Stack(stack) => self.stack(&stack),
            Record::End(mut end) => {
                self.seen_at(end.time_ns);
                self.kinds.extend(end.kinds.take());
                let (page_size, stacks) = (self.page_size(), std::mem::take(&mut self.stacks));
                self.with(end.interval, |interval| interval.close(end, page_size, &stacks));
                self.stacks = stacks;
            }
            Record::Grew(grew) => {
                self.seen_at(grew.time_ns);
                self.growth.push(grew);
            }
            Record::Memory(memory) => {
                self.seen_at(memory.time_ns);
                self.memory(memory);
            }
            Record::Exit { pid, time_ns, ended } => {
                self.seen_at(time_ns);
                match self.process_by_pid.get(&pid).and_then(|&at| self.processes.get_mut(at)) {
                    Some(process) => (process.ended_ns, process.ended) = (Some(time_ns), Some(ended)),
                    None => self.stray += 1,
                }
            }
            Record::Gap(gap) => self.gaps.push(gap),
            Record::Objects(objects) => self.objects.push(objects),
            Record::Module(module) => self.codes.module(module),
            Record::Place(place) => self.codes.place(place),
            Record::Source(source) => drop(self.sources.insert((source.file, source.line), source.text)),
            Record::Symbols { codes } => self.codes.names(codes),
            Record::Finish(finish) => {
                self.seen_at(finish.time_ns);
                self.finish = Some(finish);
            }
        }
    }

    /// The first writes to the pages of an interval that is about to close; `None` if there is no such interval.
    pub fn first_writes(&self, end: &End) -> Option<FirstWrites> {
        let interval = self.intervals.get(*self.interval_by_number.get(&end.interval)?)?;
        Some(interval.first_writes(end, self.page_size()))
    }

    /// Notes that the capture lacks its end, and how.
    pub fn cut(&mut self, how: &str) {
        self.cut = Some(how.to_owned());
    }

    /// The summary, and every copied page, if those were asked for.
    pub fn finish(mut self) -> (Summary, Detail) {
        let page_size = self.page_size();
        for interval in self.intervals.iter_mut().filter(|interval| interval.end.is_none()) {
            interval.cut_off(page_size, &self.stacks);
        }
        sum::summary(self)
    }

    fn page_size(&self) -> u64 {
        self.header.as_ref().map_or(1, |header| header.page_size)
    }

    fn seen_at(&mut self, time_ns: u64) {
        self.latest_ns = self.latest_ns.max(time_ns);
    }

    /// Changes an open interval, or one that is only to be named.
    fn with(&mut self, number: u32, change: impl FnOnce(&mut Interval)) {
        match self.interval_by_number.get(&number).and_then(|&at| self.intervals.get_mut(at)) {
            Some(interval) => change(interval),
            None => self.stray += 1,
        }
    }

    fn process(&mut self, process: record::Process) {
        self.seen_at(process.time_ns);
        let record::Process { pid, parent, time_ns, origin, command, executable, page_tables } = process;
        match origin {
            Origin::Forked | Origin::Shares => {
                if let Some(theirs) = self.executables.get(&parent).cloned() {
                    self.executables.insert(pid, theirs);
                }
            }
            _ => drop(executable.map(|executable| self.executables.insert(pid, executable))),
        }
        let known = self.process_by_pid.get(&pid).and_then(|&at| self.processes.get_mut(at));
        match known {
            Some(known) if origin == Origin::Executed => {
                known.executed.push(command);
                known.executed_ns.push(time_ns);
            }
            // A new process, be its id an old one's.
            _ => {
                self.process_by_pid.insert(pid, self.processes.len());
                self.processes.push(summary::ProcessSummary {
                    pid,
                    parent,
                    origin,
                    command,
                    executed: Vec::new(),
                    executed_ns: Vec::new(),
                    started_ns: time_ns,
                    ended_ns: None,
                    ended: None,
                    fork_page_tables_bytes: page_tables,
                    memory: None,
                });
            }
        }
    }

    fn memory(&mut self, memory: record::Memory) {
        let page_size = self.page_size();
        let Some(process) = self.process_by_pid.get(&memory.pid).and_then(|&at| self.processes.get_mut(at)) else {
            self.stray += 1;
            return;
        };
        let record::Memory {
            time_ns, name, command, pages, kernel, page_tables, resident_max, looks, together, ..
        } = memory;
        let bytes = |pages: u64| pages.saturating_mul(page_size);
        process.memory = Some(summary::MemorySums {
            time_ns,
            name,
            command,
            resident: pages.map(|pages| pages.in_bytes(page_size)),
            smaps: kernel,
            page_tables_bytes: page_tables,
            rss_peak_bytes: resident_max,
            private_first_bytes: looks.map(|looks| bytes(looks.first)),
            private_peak_bytes: looks.map(|looks| bytes(looks.most)),
            files_peak_bytes: looks.map(|looks| bytes(looks.files_most)),
            together,
        });
    }

    fn begin(&mut self, begin: record::Begin) {
        self.seen_at(begin.time_ns);
        let process = self.process_by_pid.get(&begin.pid).copied();
        let command = process.and_then(|at| self.processes.get(at)).map_or(&[][..], |process| {
            // The program that it executed last is what runs.
            process.executed.last().unwrap_or(&process.command)
        });
        let number = begin.interval;
        let executable = self.executables.get(&begin.pid).cloned();
        let mut interval = Interval::new(begin, process, command, executable);
        interval.detailed = self.detailed;
        self.interval_by_number.insert(number, self.intervals.len());
        self.intervals.push(interval);
    }

    fn stack(&mut self, stack: &Stack) {
        if self.detailed {
            self.full_stacks.insert(stack.stack, stack.clone());
        }
        let language = stack.language.as_deref();
        let stands_in_a_file = |frame: &&Frame| !frame.file.starts_with('<');
        let deciding = stack.frames.iter().find(stands_in_a_file).or(stack.frames.first());
        let place = deciding.map(|innermost| {
            let own = stack.frames.iter().find(|frame| languages::is_own(language, &frame.file));
            let work = languages::work_of_frames(language, &stack.frames);
            let called_from = own.filter(|own| *own != innermost).cloned();
            ScriptPlace { language: stack.language.clone(), frame: innermost.clone(), called_from, work }
        });
        let script = place.map(|place| {
            let next = self.places.len() as u32;
            *self.place_numbers.entry(place).or_insert_with_key(|place| {
                self.places.push(place.clone());
                next
            })
        });
        let is_import = |at: u32| self.places.get(at as usize).is_some_and(|place| place.work == Some(Work::Import));
        let import =
            script.filter(|at| is_import(*at)).and_then(|_| languages::import_of_frames(language, &stack.frames));
        let phase = languages::phase_of_frames(language, &stack.frames);
        let callers = stack.native.iter().skip(1).copied().collect();
        let innermost = stack.native.first().copied();
        self.stacks.insert(stack.stack, Sampled { script, innermost, callers, wrote: stack.wrote, phase, import });
    }
}
