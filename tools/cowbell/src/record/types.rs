//! The parts of a capture: one [`Record`] a line, as JSON, in the order in which things happened.
//!
//! The tracer writes records, the report reads them; nothing else passes between the two. So a capture file renders
//! to the same report as the live run, and one that was cut off renders up to its last complete line.
//!
//! Times are nanoseconds of the monotonic clock since the header. Addresses are those of the process named. An
//! **interval** is one period in which one process' memory was watched: a child from its birth to its end or `exec`, a
//! parent from a fork until nobody shares with it any more, an attached process until the tool lets go.

pub use super::code::{Code, Content, Executable, Frame, Module, Nameless, NativeFrame, Place, Source, Stack, Wrote};
pub use super::event::Event;
pub use super::fault::Fault;
pub use super::gaps::{Gap, GapKind};
pub use super::kinds::{Kinds, OfType};
pub use super::memory::{Grew, Looks, Memory, Resident, Sums, Together};
pub use super::objects::{Beside, Block, Changed, FirstWrite, Objects, OnPage};
use cowbell::fork::Ended;
use serde::{Deserialize, Serialize};

/// The first line's `format`.
pub const FORMAT: &str = "cowbell-capture";
/// The version this program writes, and the newest that it reads.
pub const VERSION: u32 = 2;

/// One line of a capture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// Always the first.
    Header(Header),
    /// A process came into being, was found, or executed another program.
    Process(Process),
    /// An interval opens.
    Begin(Begin),
    /// The mappings of an interval's address space besides those that were known, found when an instruction lay outside of that.
    Mapped { interval: u32, mappings: Vec<Mapping> },
    /// The anonymous memory of the interval that is data of a program or library, among what was mapped since the last such record.
    Uninitialised { interval: u32, data: Vec<Uninitialised> },
    /// Pages written, in order. Only of intervals in [`Mode::Trace`].
    Events { interval: u32, events: Vec<Event> },
    /// The faults by which pages were written, before the interval's end. Only of intervals in [`Mode::Faults`].
    Faults { interval: u32, rows: Vec<Fault> },
    /// A file with code in it, before the first place in it.
    Module(Module),
    /// A place in code, before the first event or stack that refers to it.
    Place(Place),
    /// A sampled stack, before the event that refers to it.
    Stack(Stack),
    /// The text of a line, after the stack that it stands in.
    Source(Source),
    /// The objects on the pages that an interval copied of a frozen heap of the library's, before its end.
    Objects(Objects),
    /// An interval closes. An interval without an end was cut off: its events stand, its pages are not known.
    End(End),
    /// A process has grown.
    Grew(Grew),
    /// All the memory that a process has, once: at its end, or when it is let go.
    Memory(Memory),
    /// A process ended.
    Exit { pid: i32, time_ns: u64, ended: Ended },
    /// Something that the tool could not see or chose not to look at.
    Gap(Gap),
    /// Names of places.
    Symbols { codes: Vec<Code> },
    /// Always the last; without it the capture was cut off.
    Finish(Finish),
}

/// The description of the run: what, where and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// The version of cowbell.
    pub cowbell: String,
    /// The release of the kernel, as `uname -r` says.
    pub kernel: String,
    /// Bytes a page.
    pub page_size: u64,
    /// The program and its arguments, or the process attached to.
    pub command: Vec<String>,
    /// When, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// The way in which it was watched.
    pub mode: Mode,
    /// Why this mode and not another, for people; empty if it was asked for and given.
    pub mode_reason: String,
    /// The processes whose copies were counted.
    pub who: Who,
    /// Every how many events a stack was asked for; 0 for never.
    pub stacks_every: u32,
    /// True if page frames were readable (root). Without them a copy and a reuse cannot always be told apart.
    pub frames: bool,
}

/// The way in which pages are observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Tells which pages, in which mappings, without a stop at a write (`WP_ASYNC`).
    Count,
    /// Also when, by which thread and which instruction, as far as page faults tell; no stop at a write (perf events).
    Faults,
    /// Also when, by which thread and which instruction (synchronous write protection).
    Trace,
}

/// The processes whose copies are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// Copies of forked children.
    Child,
    /// Copies of processes that forked, while a child shares memory with them.
    Parent,
    /// Copies of both.
    Both,
}

/// A process, named.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// The process' id.
    pub pid: i32,
    /// The process that forked it; 0 where not known.
    pub parent: i32,
    /// The time.
    pub time_ns: u64,
    /// The way in which it came to the tool's notice.
    pub origin: Origin,
    /// The process' arguments, lossily as text.
    pub command: Vec<String>,
    /// The file that it executes, where known; a forked process executes what its parent does.
    pub executable: Option<Executable>,
    /// Bytes of page tables that it had before its first instruction: those that the fork copied. Only of [`Origin::Forked`]; `None` where
    /// that was not read, soon after a fork of the same process that copied less than 256 KiB for one, or could not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_tables: Option<u64>,
}

/// The way in which a process came to the tool's notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The tool started it.
    Started,
    /// The process was there when the tool attached.
    Attached,
    /// `fork`, or a clone that copies memory.
    Forked,
    /// `vfork`, `posix_spawn` or a clone that shares memory: nothing is copied, nothing is armed.
    Shares,
    /// The process executed another program: what it had is gone, its interval with it.
    Executed,
}

/// An interval opens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Begin {
    /// The interval's number, unique in the capture.
    pub interval: u32,
    /// The process whose memory is watched.
    pub pid: i32,
    /// Why it is watched.
    pub role: WatchReason,
    /// When: the moment from which writes are seen.
    pub time_ns: u64,
    /// The way in which it is watched.
    pub mode: Mode,
    /// The whole address space, ascending.
    pub mappings: Vec<Mapping>,
    /// The pages that the armed mappings held.
    pub held: HeldPages,
    /// In mode faults: true if some pages stop whoever writes them first, whose stack is that of the write. Without, threads are
    /// interrupted a little after a fault.
    #[serde(default)]
    pub exact_stacks: bool,
    /// The time that arming took, all told.
    pub arm_ns: u64,
}

/// Why a process' memory is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchReason {
    /// The process was forked.
    Child,
    /// The process forked.
    Parent,
    /// The process was running when the tool came.
    Attached,
}

/// One mapping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// The permissions in /proc/PID/maps: `rw-p`.
    pub permissions: String,
    /// Offset into the file.
    pub offset: u64,
    /// The name in /proc/PID/maps: a path, `[heap]`, `[anon:name]` or nothing.
    pub name: String,
    /// The way in which its pages are observed.
    pub watched: Watched,
}

/// Uninitialised data of a program or library: it lies in anonymous memory, and the file's headers say how far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uninitialised {
    /// First address.
    pub start: u64,
    /// One past the last byte: mostly within a page.
    pub end: u64,
    /// The file.
    pub name: String,
}

/// The way in which a mapping is observed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Watched {
    /// Shared, or of the kernel: its writes copy nothing.
    No,
    /// Each first write is an event.
    Events,
    /// The pages that were written are read when the interval closes.
    #[serde(rename = "bits")]
    Async,
    /// Page faults are told, and page tables are compared when the interval closes.
    Faults,
    /// Page tables are compared when the interval closes; inherited copies in it cannot be told.
    Census,
    /// The mapping should have been watched and could not be, for this reason.
    Refused(String),
}

/// The pages that an interval's watched mappings held when it opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldPages {
    /// Private pages that others have too: each write copies one.
    pub shared: u64,
    /// Private pages that nobody else has.
    pub exclusive: u64,
    /// The zero page.
    pub zero: u64,
    /// Pages of files.
    pub file: u64,
    /// In swap.
    pub swapped: u64,
}

/// The effect of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteClass {
    /// The kernel gave the process a private copy of a page that others had too.
    Copy,
    /// Nobody else had the page any more: made writable, no copy.
    Reuse,
    /// Written and shared when the interval opened; without page frames a copy and a reuse cannot be told apart.
    CopyOrReuse,
    /// There was no page before.
    FirstTouch,
    /// The zero page was replaced by a page of its own.
    ZeroPage,
    /// A page of a file (a memfd too) was copied to a private one.
    PrivateFile,
}

/// The kernel wrote in a system call that is not known, or in none: it writes a frame as it delivers a signal.
pub const UNKNOWN_CALL: i32 = -1;

/// An interval closes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// The interval's number.
    pub interval: u32,
    /// The time.
    pub time_ns: u64,
    /// The reason.
    pub closed: Closed,
    /// Every page written in this interval that is known, those of events included: ascending, disjoint runs. This is
    /// the verdict; where it contradicts an event's class (only with page frames), it is right and the event is not.
    pub pages: Vec<PageRun>,
    /// The differences of copies from their originals, as far as compared; in order of address.
    pub contents: Vec<Content>,
    /// Copies that were there no more, so that they could not be compared: ascending, disjoint runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<PageRun>,
    /// At most so many more pages may have been copied that were unmapped before they could be counted.
    pub unmapped_uncounted: u64,
    /// The kinds of objects on its copied pages, where the interpreter's types are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kinds: Option<Kinds>,
    /// The pages that it touched first of which a collector took a part for itself, apart from objects; `None` where these are not told from others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collector_new: Option<u64>,
}

/// Why an interval closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Closed {
    /// The process ends.
    Exit,
    /// The process executed another program.
    Exec,
    /// The process forked: its pages are shared anew, and another interval of it follows.
    Forked,
    /// Nobody shares with it any more.
    Unshared,
    /// The tool let go: time was up or it was told to.
    Detached,
    /// The process was gone before it could be read: pages without events are not known.
    Lost,
}

/// Neighbouring pages of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "(u64, u64, WriteClass)", from = "(u64, u64, WriteClass)")]
pub struct PageRun {
    /// The first page's address.
    pub start: u64,
    /// The number of pages.
    pub pages: u64,
    /// The effect of the writes.
    pub class: WriteClass,
}

impl From<PageRun> for (u64, u64, WriteClass) {
    fn from(run: PageRun) -> Self {
        (run.start, run.pages, run.class)
    }
}

impl From<(u64, u64, WriteClass)> for PageRun {
    fn from((start, pages, class): (u64, u64, WriteClass)) -> Self {
        Self { start, pages, class }
    }
}

/// The end of the capture, and what looking cost. No time is in two of the sums.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finish {
    /// The time.
    pub time_ns: u64,
    /// The end of the program that was run; `None` under attach.
    pub ended: Option<Ended>,
    /// Time in which targets stood still to be armed.
    pub arming_ns: u64,
    /// Time that the tool spent answering page events and changes of mappings, in which their maker waits.
    pub events_ns: u64,
    /// Time spent on sampled stacks, in which the writer waits.
    pub stacks_ns: u64,
    /// Time in which intervals were closed: page tables read and copies compared, while the target stands still.
    #[serde(default)]
    pub closing_ns: u64,
    /// Time spent on looks at how processes grow.
    #[serde(default)]
    pub growth_ns: u64,
    /// Time in which the memory of processes was added up at their ends.
    #[serde(default)]
    pub weighing_ns: u64,
    /// Time spent on all else that stops of threads ask for.
    #[serde(default)]
    pub stops_ns: u64,
    /// The number of times that a thread was stopped by the tracer.
    pub stops: u64,
}

impl Finish {
    /// The times together, but for that of stops.
    pub fn told_ns(&self) -> u64 {
        self.arming_ns + self.events_ns + self.stacks_ns + self.closing_ns + self.weighing_ns + self.growth_ns
    }
}
