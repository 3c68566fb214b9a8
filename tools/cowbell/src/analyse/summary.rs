//! The summary of a profile: the document of `--json`, and what the text is made from.
//!
//! Field names are stable: a field that changes its meaning or goes away raises [`VERSION`]. Pages are counted per
//! interval and added up, so that a page copied by two children counts twice: it takes memory twice. *Copied* is, here
//! and below, what [`ByClass::copied`] says. Shares are parts of one of all copied pages.

use super::cause::{Cause, Reason};
pub use super::classes::{ByClass, is_copied};
pub use super::forks::Forks;
use super::growth::Growth;
pub use super::growth::MemorySums;
use super::kinds::Kinds;
use super::mapping::MappingKind;
pub use super::told::{Object, Objects, ObjectsPage, Writer};
use super::unknown::{Unknown, UnknownShare};
use super::verdict::Verdict;
use crate::record::{Closed, Frame, GapKind, HeldPages, Mode, Origin, WatchReason, Who};
use crate::stacks::languages::Work;
use cowbell::fork::Ended;
use serde::Serialize;

/// The document's `format`, which its envelope has.
pub const FORMAT: &str = "cowbell-report";
/// The document's `version`.
pub const VERSION: u32 = 2;

/// All that a profile says.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The way in which the capture lacks its end; `null` if it is whole.
    pub cut: Option<String>,
    /// The verdict on it all: why memory grew, where, and what helps.
    pub verdict: Verdict,
    /// The description of the run: what was watched, where and how.
    pub run: Run,
    /// All intervals together.
    pub totals: Totals,
    /// The processes, in the order in which they came to notice.
    pub processes: Vec<ProcessSummary>,
    /// The intervals, in the order in which they opened.
    pub intervals: Vec<Interval>,
    /// Mappings with written pages, most copied first.
    pub mappings: Vec<MappingCopies>,
    /// Functions that copied, most copied first.
    pub functions: Vec<Function>,
    /// Lines of programs that an interpreter runs, which copied; estimated from samples.
    pub script: Script,
    /// The lines at which processes allocated memory of their own, most first; estimated from looks in turn.
    pub growth: Growth,
    /// System calls on whose behalf the kernel copied pages, most copied first.
    pub syscalls: Vec<Syscall>,
    /// The differences of copies from their originals.
    pub contents: Contents,
    /// Likely causes, most copied first.
    pub causes: Vec<CauseShare>,
    /// The objects on copied pages of frozen heaps of the library's.
    pub objects: Vec<Objects>,
    /// The objects on copied pages by their types, where an interpreter's are known.
    pub kinds: Option<Kinds>,
    /// The things that could not be seen.
    pub gaps: Vec<Gap>,
    /// The cost of looking.
    pub overhead: Overhead,
}

/// The capture's header: what was watched, where and how.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub command: Vec<String>,
    pub cowbell: String,
    pub kernel: String,
    pub page_size: u64,
    pub started_unix_ms: u64,
    /// From the first record to the last.
    pub duration_ns: u64,
    pub mode: Mode,
    pub mode_reason: String,
    pub who: Who,
    pub stacks_every: u32,
    /// True if page frames were readable.
    pub frames: bool,
    /// The end of the program that was run.
    pub ended: Option<Ended>,
}

/// All intervals together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    pub intervals: u64,
    pub processes: u64,
    pub pages: ByClass,
    pub copied_pages: u64,
    pub copied_bytes: u64,
    /// At least so many pages were copied: those that are certain.
    pub copied_pages_min: u64,
    /// At most so many pages were copied: with those that may have been reused, and those that went before they could be
    /// counted; `null` where an interval has no end, so that there is no bound.
    pub copied_pages_max: Option<u64>,
    /// Pages that were shared when the intervals opened: what could have been copied.
    pub shared_pages: u64,
    /// Processes that executed a program of their own after a fork, vfork or spawn: that shares nothing with its starter.
    pub started_afresh: u64,
    /// The page tables that forks copied.
    pub forks: Forks,
    /// The copies of which the code is not known, or not all of it.
    pub unknown: UnknownCode,
}

/// Copies of which the code is not known, or not all of it, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UnknownCode {
    /// The instruction that wrote first is not known: these pages are in no function. With those of [`Summary::functions`]
    /// they are all copied pages.
    pub code: Vec<UnknownShare>,
    /// Pages of functions without a name.
    pub name: Vec<UnknownShare>,
    /// Pages of functions without a line.
    pub line: Vec<UnknownShare>,
    /// Pages of functions that say little of themselves, without a caller.
    pub caller: Vec<UnknownShare>,
}

/// A process.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessSummary {
    pub pid: i32,
    /// 0 where not known.
    pub parent: i32,
    pub origin: Origin,
    /// The process' arguments when it was first seen: a forked child has its parent's.
    pub command: Vec<String>,
    /// The commands that it executed afterwards, in order.
    pub executed: Vec<Vec<String>>,
    /// When, for each.
    pub executed_ns: Vec<u64>,
    pub started_ns: u64,
    pub ended_ns: Option<u64>,
    pub ended: Option<Ended>,
    /// The page tables that its fork copied; `null` where it was not forked, or not known.
    pub fork_page_tables_bytes: Option<u64>,
    /// All its memory at its end, or when it was let go; `null` where that was not added up.
    pub memory: Option<MemorySums>,
}

impl ProcessSummary {
    /// The command of the program that it ran at a time.
    pub fn command_at(&self, time_ns: u64) -> &[String] {
        let executed = self.executed.iter().zip(&self.executed_ns);
        executed.rev().find(|(_, at_ns)| **at_ns <= time_ns).map_or(&self.command, |(command, _)| command)
    }

    /// The command of the program that it executed first from a time on.
    pub fn executed_from(&self, time_ns: u64) -> Option<&[String]> {
        let mut executed = self.executed.iter().zip(&self.executed_ns);
        executed.find(|(_, at_ns)| **at_ns >= time_ns).map(|(command, _)| command.as_slice())
    }
}

/// An interval: a period in which one process' memory was watched.
#[derive(Clone, Debug, Serialize)]
pub struct Interval {
    pub interval: u32,
    pub pid: i32,
    /// The number of its process in [`Summary::processes`], from 0; `null` where the capture does not have it.
    pub process: Option<usize>,
    pub role: WatchReason,
    /// The id of the language whose interpreter runs in it; `null` where none is known to.
    pub language: Option<&'static str>,
    pub mode: Mode,
    pub begin_ns: u64,
    /// `null`: it was cut off, and its pages are those of its events.
    pub end_ns: Option<u64>,
    pub closed: Option<Closed>,
    pub held: HeldPages,
    pub arm_ns: u64,
    pub pages: ByClass,
    pub copied_pages: u64,
    pub copied_bytes: u64,
    pub contents: Contents,
    /// The same of what was copied at work.
    pub at_work: AtWork,
    /// When it copied; `null` in count mode.
    pub when: Option<When>,
    pub causes: Vec<CauseShare>,
    /// Why the code that made copies is not known, of those of which it is not.
    pub code_unknown: Vec<UnknownShare>,
    pub mappings: Vec<MappingCopies>,
    pub unmapped_uncounted_pages: u64,
}

/// Copies that were made neither while a worker was set up nor on the way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AtWork {
    /// Those that were compared with their originals.
    pub compared_pages: u64,
    /// Those that are the same as their originals again.
    pub identical_pages: u64,
    /// Copies of pages of files, compared or not.
    pub file_pages: u64,
    /// Copies of which it is not known when they were made, in an interval of which others were made on the way out: these may
    /// have been, too.
    pub undated_pages: u64,
    /// Those that were copied after the last sampled stack, where none was sampled on the way out: it may be that.
    pub after_stacks_pages: u64,
}

/// When copies were made, from the opening of the interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct When {
    /// The first.
    pub first_ns: u64,
    /// Half of them.
    pub half_ns: u64,
    /// The last.
    pub last_ns: u64,
}

/// Mappings under one name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MappingCopies {
    pub kind: MappingKind,
    pub name: String,
    /// The first address, for anonymous mappings without a name.
    pub start: Option<u64>,
    /// Bytes mapped, of the largest interval that has it.
    pub bytes: u64,
    pub pages: ByClass,
    pub copied_pages: u64,
    pub share: f64,
}

/// A function that copied.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Function {
    /// The name in the symbol table; file and address where there is none.
    pub function: String,
    /// The function inlined into it that wrote, where that says more.
    pub inlined: Option<String>,
    /// Why it has no name; `null` where it has one.
    pub name_unknown: Option<Unknown>,
    /// The function that called it, where it has no name or merely copies bytes.
    pub called_from: Option<String>,
    /// Others without names lie between the two.
    pub called_indirectly: bool,
    /// Pages of which the caller was not read: the sampled stacks of this code agree on it.
    pub caller_estimated_pages: u64,
    /// Why there is no caller though there should be; else `null`.
    pub caller_unknown: Option<Unknown>,
    /// The file mapped there, where known.
    pub module: String,
    pub copied_pages: u64,
    /// Those of them that processes which fork copied while their children lived.
    pub parents_copied_pages: u64,
    pub share: f64,
    /// The function's most frequent likely cause.
    pub cause: Cause,
    /// The function's lines, most copied first; empty without debug information.
    pub lines: Vec<Line>,
    /// Why there is no line of some of its pages, mostly; `null` where each has one.
    pub line_unknown: Option<Unknown>,
}

/// A source line that copied.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Line {
    pub file: String,
    pub line: u32,
    pub copied_pages: u64,
    /// The line itself, where its file stood there and was not newer than the build.
    pub source: Option<String>,
}

/// Lines of programs that an interpreter runs, which copied.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Script {
    /// Copies of which a stack was sampled.
    pub samples: u64,
    /// Those of them in a thread that ran such a program.
    pub script_samples: u64,
    /// The points by which the share of a line can be off at most (95 %).
    pub error_points: Option<f64>,
    /// Most copied first.
    pub lines: Vec<ScriptLine>,
}

/// A line that copied, of a program that an interpreter runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScriptLine {
    /// The language's id, such as `python`.
    pub language: String,
    pub file: String,
    /// 0 where not known.
    pub line: i32,
    pub function: String,
    /// If the line is the standard library's or a package's: the innermost line outside of them that led there.
    pub called_from: Option<Frame>,
    /// The work of the stack (`unpickling`, say); `null` for the program's own work.
    pub work: Option<Work>,
    /// The line itself, where its file could be read while it ran.
    pub source: Option<String>,
    /// The number of samples that say so.
    pub samples: u64,
    /// The samples, scaled to the copies of their instructions.
    pub copied_pages_estimated: u64,
    /// Those of them that processes which fork copied while their children lived.
    pub parents_copied_pages_estimated: u64,
    /// The number of copies by which its number can be off (95 %).
    pub copied_pages_error: f64,
    /// The same of those that processes which fork copied, and of all others.
    pub parents_copied_pages_error: f64,
    pub others_copied_pages_error: f64,
    pub share: f64,
    /// The points by which its share can be off (95 %).
    pub error_points: f64,
    /// The line's most frequent likely cause.
    pub cause: Cause,
}

/// A system call on whose behalf the kernel copied pages.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Syscall {
    pub number: i32,
    /// The call's name, where this program knows it.
    pub name: Option<&'static str>,
    pub copied_pages: u64,
    pub share: f64,
}

/// The differences of copies from their originals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Contents {
    /// Copies that were compared.
    pub compared_pages: u64,
    /// Those that are the same as their originals again.
    pub identical_pages: u64,
    /// Those in which nearly only words changed that are reference counts by their layout.
    pub count_pages: u64,
    /// Those that changed otherwise, in at most an eighth of their words.
    pub few_pages: u64,
    /// Bytes that differ, in all.
    pub changed_bytes: u64,
    /// Bytes copied for each byte changed, in those compared; `null` if none changed.
    pub amplification: Option<f64>,
}

/// Copies of one likely cause.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CauseShare {
    pub cause: Cause,
    /// The cause in words.
    pub name: &'static str,
    pub copied_pages: u64,
    pub share: f64,
    /// Copies of this cause of which the code that wrote them was not seen.
    pub without_code_pages: u64,
    /// Copies of this cause of which the code that wrote them has no name.
    pub without_name_pages: u64,
    /// Why the cause is not known, most pages first; empty where it is.
    pub reasons: Vec<ReasonShare>,
    /// Why such code writes, in one sentence; `null` where the name says it.
    pub why: Option<&'static str>,
    /// The remedy that is known to help; `null` where nothing is.
    pub remedy: Option<&'static str>,
    /// Lines to paste for it.
    pub paste: &'static [&'static str],
    /// The copies that the remedy spares; 0 where none is for certain, and where it is not known how many.
    pub spared_pages: u64,
    /// Why it is not known how many of the copies the remedy spares; `null` where it is known.
    pub spares_a_part: Option<&'static str>,
    /// The file that most of the code without a name lies in.
    pub nameless_file: Option<String>,
}

/// Copies whose cause is not known for one reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReasonShare {
    pub reason: Reason,
    /// The reason in words.
    pub text: &'static str,
    pub copied_pages: u64,
}

/// A thing that could not be seen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gap {
    pub what: GapKind,
    /// The number of times it was met.
    pub times: u64,
    /// The processes, as far as known and few.
    pub pids: Vec<i32>,
    /// The particulars, each once.
    pub details: Vec<String>,
}

/// The cost of looking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Overhead {
    /// Time in which targets stood still to be armed.
    pub arming_ns: u64,
    /// Time spent answering page events and changes of mappings, in which their makers wait.
    pub events_ns: u64,
    /// Time spent on sampled stacks, in which writers wait.
    pub stacks_ns: u64,
    /// Time in which targets stood still while their intervals were closed: page tables read, copies compared.
    pub closing_ns: u64,
    /// Time spent on looks at how processes grow.
    pub growth_ns: u64,
    /// Time in which the memory of processes was added up at their ends.
    pub weighing_ns: u64,
    /// Time spent on all else that stops of threads ask for.
    pub stops_ns: u64,
    /// The number of times that a thread was stopped.
    pub stops: u64,
    /// The times together, as part of the run's duration, which they may exceed: targets run side by side.
    pub share: f64,
}
