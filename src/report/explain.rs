//! Why pages were copied: object, writer, cause and advice for each.
//!
//! This room names no instruction itself, because that takes a reader of debug information: whoever asks hands one in.

use super::{EventReport, ObjectReport, PageReport, Report};
use crate::page::PageIndex;
use crate::watch::Changed;
use std::collections::HashMap;
use std::fmt;

/// A function that an instruction belongs to, as debug information tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Frame {
    /// The function's demangled name.
    pub function: String,
    /// The source file, where it is known.
    pub file: Option<String>,
    /// The line, where it is known.
    pub line: Option<u32>,
}

/// The likely cause of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Cause {
    /// The count of an `Arc` or `Rc`.
    ReferenceCount,
    /// A lock, or the flag of a `RefCell`.
    Lock,
    /// An atomic that is neither of these.
    Atomic,
    /// An allocator's own notes in its memory.
    Allocator,
    /// A cell that is filled on first use.
    LazyCell,
    /// Elements were put in order where they lie.
    Sort,
    /// A collection was changed: an element put in, taken out or moved.
    Collection,
    /// One object was written, and all others on its page were allocated elsewhere, most of them or all.
    FalseSharing,
    /// Something was written, and the page is the same as before.
    SameAgain,
    /// The data itself was changed.
    Write,
    /// No watch saw the first write, or its code has no name.
    Unknown,
}

impl Cause {
    /// The remedy, in a line.
    pub fn advice(self) -> &'static str {
        match self {
            Self::ReferenceCount => {
                "lend references or indexes; use cowbell::SideArc, whose count lies apart; or give the copies back by reshare()"
            }
            Self::Lock => "allocate the lock under cowbell::hot, or make it after the fork",
            Self::Atomic => "allocate counters and flags under cowbell::hot, or count in each process and add up",
            Self::Allocator => "use cowbell::heap::Heap, which frees without writing to a frozen page",
            Self::LazyCell => "fill it before the freeze",
            Self::Sort => "sort before the freeze, or sort a list of indexes",
            Self::Collection => "change it before the freeze, or keep changes in a collection of the worker's own",
            Self::FalseSharing => "allocate this object under cowbell::hot: its page holds data that is only read",
            Self::SameAgain => "compare before writing; reshare() gives such copies back",
            Self::Write => "allocate what changes under cowbell::hot, or copy it in the worker before changing it",
            Self::Unknown => "watch with Watch::Trap and ForkOptions::callers, and build with debug information",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ReferenceCount => "reference count",
            Self::Lock => "lock or borrow flag",
            Self::Atomic => "atomic",
            Self::Allocator => "allocator",
            Self::LazyCell => "cell that is filled on first use",
            Self::Sort => "sorting",
            Self::Collection => "change of a collection",
            Self::FalseSharing => "false sharing",
            Self::SameAgain => "written, and the same again",
            Self::Write => "real write",
            Self::Unknown => "unknown",
        })
    }
}

/// An object on a copied page, and the line that allocated it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// The object.
    pub object: ObjectReport,
    /// The calls that led to the allocation, inlined ones resolved, from the allocator outwards; empty where that was not recorded.
    pub frames: Vec<Frame>,
    /// The innermost of them that is the program's own, as `file:line`; `None` where that is not known.
    pub line: Option<String>,
}

/// The first writer of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// The thread.
    pub tid: i32,
    /// The first byte that it wrote; the page's first address where the kernel did not tell.
    pub address: u64,
    /// The instruction, and the calls that led there, inlined ones resolved, the innermost first.
    pub frames: Vec<Frame>,
    /// The innermost of them that is the program's own, as `file:line`; `None` where that is not known.
    pub line: Option<String>,
}

/// A copied page, explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The arena's name.
    pub arena: String,
    /// The page, from the arena's start.
    pub page: PageIndex,
    /// The page's first address.
    pub address: u64,
    /// The difference from the original; `None` where that is unknown.
    pub changed: Option<Changed>,
    /// The objects that hold the first byte written, where a watch saw that, and the first and the last byte that differ.
    pub objects: Vec<Allocated>,
    /// The first write, where a watch saw it.
    pub writer: Option<Writer>,
    /// The likely cause.
    pub cause: Cause,
}

impl Report {
    /// Explains the copied pages that are [told](super::ArenaReport::told): which object lies there, which line allocated it, who wrote first, why, and
    /// [what helps](Cause::advice).
    ///
    /// `name` gives the functions that an address of this program belongs to, inlined ones first. Crates such as `addr2line`, `backtrace` and `blazesym` do that;
    /// an address that it gives nothing for stays unknown, and so does the cause where no name tells it: nothing is guessed.
    ///
    /// The cause is that of the **first** write to the page, and what lasted is told by the contents: what was written in between is not seen.
    ///
    /// ```no_run
    /// use addr2line::Loader;
    /// use cowbell::fork::{self, ForkOptions};
    /// use cowbell::heap::Heap;
    /// use cowbell::report::Frame;
    /// use cowbell::watch::Watch;
    /// use std::rc::Rc;
    ///
    /// #[global_allocator]
    /// static HEAP: Heap = Heap;
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     Heap::record_sites(1)?;
    ///     let names: Vec<Rc<str>> = (0..10_000).map(|n| n.to_string().into()).collect();
    ///     let _generation = Heap::freeze()?;
    ///     let options = ForkOptions::new().watch(Watch::Trap).callers(true);
    ///     let mut worker = fork::spawn(&options, |_| names.iter().for_each(|name| drop(Rc::clone(name))))?;
    ///     let report = worker.wait()?.report;
    ///
    ///     // An address of the executable, as its file has it.
    ///     let program = Loader::new(std::env::current_exe()?)?;
    ///     let name = |address: u64| -> Vec<Frame> {
    ///         let mut named = Vec::new();
    ///         let found = address.checked_sub(report.executable.start).and_then(|at| program.find_frames(at).ok());
    ///         let Some(mut frames) = found else { return named };
    ///         while let Ok(Some(frame)) = frames.next() {
    ///             named.push(Frame {
    ///                 function: frame.function.and_then(|f| f.demangle().map(|f| f.into_owned()).ok()).unwrap_or_default(),
    ///                 file: frame.location.as_ref().and_then(|at| at.file).map(str::to_owned),
    ///                 line: frame.location.as_ref().and_then(|at| at.line),
    ///             });
    ///         }
    ///         named
    ///     };
    ///     report.explain(name).iter().for_each(|page| print!("{page}"));
    ///     Ok(())
    /// }
    /// ```
    pub fn explain(&self, mut name: impl FnMut(u64) -> Vec<Frame>) -> Vec<Explained> {
        let mut known: HashMap<u64, Vec<Frame>> = HashMap::new();
        let mut resolve = |addresses: &mut dyn Iterator<Item = u64>| -> Vec<Frame> {
            addresses.flat_map(|address| known.entry(address).or_insert_with(|| name(address)).clone()).collect()
        };
        let mut first: HashMap<(usize, PageIndex), &EventReport> = HashMap::new();
        for event in &self.events {
            first.entry((event.arena, event.page)).or_insert(event);
        }
        let mut explained = Vec::new();
        for (at, arena) in self.arenas.iter().enumerate() {
            for page in &arena.told {
                let objects = page.objects.iter().map(|object| {
                    let stack = object.stack.and_then(|stack| arena.stacks.get(stack));
                    let frames = resolve(&mut stack.into_iter().flatten().copied());
                    let recorded = Some(object.location.clone()).filter(|location| !location.is_empty());
                    Allocated { object: object.clone(), line: recorded.or_else(|| own_line(&frames)), frames }
                });
                let objects: Vec<Allocated> = objects.collect();
                let event = first.get(&(at, page.page));
                let writer = event.map(|event| {
                    let pc = Some(event.pc).filter(|&pc| pc != 0);
                    let frames = resolve(&mut pc.into_iter().chain(event.callers.iter().copied()));
                    Writer { tid: event.tid, address: event.address, line: own_line(&frames), frames }
                });
                let cause = cause(page, writer.as_ref().map_or(&[], |writer| &writer.frames));
                explained.push(Explained {
                    arena: arena.name.clone(),
                    page: page.page,
                    address: arena.start + page.page.0 * self.page_size,
                    changed: page.changed,
                    objects,
                    writer,
                    cause,
                });
            }
        }
        explained
    }
}

/// This crate's own sources.
const OWN_SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/");

/// Tells whether a frame is the standard library's, another crate's from a registry, or this crate's. One of which no file is known is nobody's line.
fn is_library(frame: &Frame) -> bool {
    const FOLDERS: [&str; 9] = [
        OWN_SOURCES,
        "/rustc/",
        "/rustlib/",
        "/rust/deps/",
        "/library/core/src/",
        "/library/alloc/src/",
        "/library/std/src/",
        "/registry/src/",
        "/.cargo/git/checkouts/",
    ];
    // The compiler's entry to a global allocator has the line of its `static`.
    let is_entry = frame.function.contains("__rust_");
    is_entry || frame.file.as_ref().is_none_or(|file| FOLDERS.iter().any(|folder| file.contains(folder)))
}

fn own_line(frames: &[Frame]) -> Option<String> {
    let own = frames.iter().find(|frame| !is_library(frame))?;
    Some(format!("{}:{}", own.file.as_ref()?, own.line?))
}

/// What code's work is, by its file: with line tables alone, functions that were inlined have names without paths. The first that fits.
const WORK: &[(&str, Cause)] = &[
    ("library/alloc/src/sync.rs", Cause::ReferenceCount),
    ("library/alloc/src/rc.rs", Cause::ReferenceCount),
    ("library/std/src/sync/lazy_lock.rs", Cause::LazyCell),
    ("library/std/src/sync/once", Cause::LazyCell),
    ("library/std/src/sync/poison/once.rs", Cause::LazyCell),
    ("library/std/src/sys/sync/once", Cause::LazyCell),
    ("library/core/src/cell/once.rs", Cause::LazyCell),
    ("library/core/src/cell/lazy.rs", Cause::LazyCell),
    ("/once_cell-", Cause::LazyCell),
    ("library/std/src/sync/poison", Cause::Lock),
    ("library/std/src/sync/nonpoison", Cause::Lock),
    ("library/std/src/sync/reentrant_lock.rs", Cause::Lock),
    ("library/std/src/sys/sync/", Cause::Lock),
    ("/parking_lot", Cause::Lock),
    ("/lock_api-", Cause::Lock),
    ("library/core/src/slice/sort/", Cause::Sort),
    ("library/alloc/src/collections/", Cause::Collection),
    ("library/alloc/src/vec/", Cause::Collection),
    ("library/alloc/src/string.rs", Cause::Collection),
    ("library/std/src/collections/", Cause::Collection),
    ("/hashbrown-", Cause::Collection),
    ("/indexmap-", Cause::Collection),
    ("library/core/src/sync/atomic.rs", Cause::Atomic),
];

/// The work of a frame, as far as its file tells.
fn work_of(frame: &Frame) -> Option<Cause> {
    if frame.function.contains("__rust_") {
        return Some(Cause::Allocator);
    }
    let file = frame.file.as_deref()?;
    // Its file has cells of both kinds: such that count who borrows, and such that only hold a value.
    if file.ends_with("library/core/src/cell.rs") && frame.function.contains("borrow") {
        return Some(Cause::Lock);
    }
    if let Some(own) = file.strip_prefix(OWN_SOURCES) {
        return Some(if matches!(own, "heap/side.rs" | "heap/counts.rs") {
            Cause::ReferenceCount
        } else {
            Cause::Allocator
        });
    }
    WORK.iter().find(|(part, _)| file.contains(part)).map(|&(_, cause)| cause)
}

/// The work of the library's code between the writing instruction and the program's own line.
fn work(frames: &[Frame]) -> Option<Cause> {
    let mut atomic = None;
    for frame in frames.iter().take_while(|frame| is_library(frame)) {
        match work_of(frame) {
            // Locks, counts and cells are made of atomics.
            Some(Cause::Atomic) => atomic = Some(Cause::Atomic),
            Some(cause) => return Some(cause),
            None => {}
        }
    }
    atomic
}

fn cause(page: &PageReport, frames: &[Frame]) -> Cause {
    if frames.iter().all(|frame| frame.function.is_empty()) {
        return Cause::Unknown;
    }
    let is_same = page.changed.is_some_and(|changed| changed.bytes == 0);
    match work(frames) {
        None if is_same => Cause::SameAgain,
        // Code of a library that says nothing of its work: who called it is not known.
        None if frames.iter().all(is_library) => Cause::Unknown,
        None | Some(Cause::Lock | Cause::Atomic | Cause::LazyCell) if shares_falsely(page) => Cause::FalseSharing,
        None => Cause::Write,
        Some(cause) => cause,
    }
}

/// Tells whether one object alone was written, and more of the others there come from elsewhere than from where it comes.
fn shares_falsely(page: &PageReport) -> bool {
    let [object] = page.objects.as_slice() else { return false };
    let is_known = object.stack.is_some() || !object.location.is_empty();
    let (mut own, mut other) = (1, 0);
    for beside in page.beside.iter().filter(|beside| beside.stack.is_some() || !beside.location.is_empty()) {
        let is_same = (beside.stack, &beside.location) == (object.stack, &object.location);
        *(if is_same { &mut own } else { &mut other }) += beside.objects;
    }
    is_known && other > own
}

impl Explained {
    /// A byte's place in words: in the object that holds it, which with debug information tells the field, or in the page.
    fn place(&self, address: u64) -> String {
        let holds = |each: &&Allocated| (each.object.start..each.object.start + each.object.len).contains(&address);
        match self.objects.iter().find(holds) {
            Some(Allocated { object, .. }) if self.objects.len() == 1 => {
                format!("byte {} of the object", address - object.start)
            }
            Some(Allocated { object, .. }) => {
                format!("byte {} of the object at {:#x}", address - object.start, object.start)
            }
            None => format!("byte {} of the page", address.saturating_sub(self.address)),
        }
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unknown = "an unknown line";
        writeln!(f, "page {} of `{}`: {}", self.page, self.arena, self.cause)?;
        for allocated in &self.objects {
            let line = allocated.line.as_deref().unwrap_or(unknown);
            writeln!(
                f,
                "    object   {} at {:#x}, allocated at {line}",
                allocated.object.type_name, allocated.object.start
            )?;
        }
        match self.changed {
            None => writeln!(f, "    changed  unknown")?,
            Some(Changed { bytes: 0, .. }) => writeln!(f, "    changed  nothing: the page is the same as before")?,
            Some(Changed { bytes: 1, first, .. }) => {
                writeln!(f, "    changed  1 byte, {}", self.place(self.address + u64::from(first)))?;
            }
            Some(Changed { bytes, first, last }) => {
                let [first, last] = [first, last].map(|byte| self.place(self.address + u64::from(byte)));
                writeln!(f, "    changed  {bytes} bytes, from {first} to {last}")?;
            }
        }
        match &self.writer {
            None => writeln!(f, "    writer   unknown: no watch saw the first write")?,
            Some(writer) => {
                let function = writer.frames.iter().find(|frame| !is_library(frame)).or(writer.frames.first());
                let function = function.map_or("an unknown function", |frame| frame.function.as_str());
                let line = writer.line.as_deref().unwrap_or(unknown);
                let place = self.place(writer.address);
                writeln!(f, "    writer   thread {} in {function} at {line}, first {place}", writer.tid)?;
            }
        }
        writeln!(f, "    advice   {}", self.cause.advice())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Beside;
    use super::*;

    fn frame(function: &str, file: &str) -> Frame {
        Frame { function: function.to_owned(), file: Some(file.to_owned()), line: Some(7) }
    }

    fn page(bytes: u32, beside: &[(Option<usize>, u64)]) -> PageReport {
        let object =
            ObjectReport { start: 0, len: 64, type_name: String::new(), location: String::new(), stack: Some(0) };
        let beside = beside.iter().map(|&(stack, objects)| Beside { stack, location: String::new(), objects });
        let changed = Some(Changed { bytes, first: 0, last: bytes });
        PageReport { page: PageIndex(0), changed, objects: vec![object], beside: beside.collect() }
    }

    const CORE: &str = "/rustc/abc/library/core/src/sync/atomic.rs";

    #[test]
    fn the_library_code_before_the_programs_own_tells_the_cause() {
        let own = frame("program::work", "src/main.rs");
        let atomic = frame("core::sync::atomic::AtomicUsize::fetch_add", CORE);
        // As line tables name what was inlined.
        let atomic_store = frame("store", CORE);
        let clone =
            frame("<alloc::sync::Arc<T,A> as core::clone::Clone>::clone", "/rustc/abc/library/alloc/src/sync.rs");
        let of = |frames: &[&Frame], page: &PageReport| {
            cause(page, &frames.iter().map(|&frame| frame.clone()).collect::<Vec<_>>())
        };
        let alone = page(3, &[(Some(0), 10)]);
        assert_eq!(of(&[&atomic, &clone, &own], &alone), Cause::ReferenceCount);
        assert_eq!(
            of(&[&atomic, &own, &clone], &alone),
            Cause::Atomic,
            "who called the program's own code did not write"
        );
        assert_eq!(of(&[&atomic_store, &own], &alone), Cause::Atomic);
        let borrow = frame("try_borrow_mut<u64>", "/rustc/abc/library/core/src/cell.rs");
        let set = frame("set<u64>", "/rustc/abc/library/core/src/cell.rs");
        assert_eq!((of(&[&borrow, &own], &alone), of(&[&set, &own], &alone)), (Cause::Lock, Cause::Write));
        assert_eq!(of(&[&own], &alone), Cause::Write);
        assert_eq!(of(&[&own], &page(0, &[])), Cause::SameAgain);
        assert_eq!(of(&[], &page(0, &[])), Cause::Unknown);
        assert_eq!(of(&[&Frame::default()], &alone), Cause::Unknown, "an instruction without a name");
        let of_library = frame("core::ptr::write", "/rustc/abc/library/core/src/ptr/mod.rs");
        assert_eq!(of(&[&of_library], &alone), Cause::Unknown, "whoever called it is not known");
        let names_generic = frame("core::ptr::write<alloc::sync::Arc<u8>>", "/rustc/abc/library/core/src/ptr/mod.rs");
        assert_eq!(of(&[&names_generic, &own], &alone), Cause::Write, "a type's name is not the code's");
    }

    #[test]
    fn sharing_is_false_where_the_others_come_from_elsewhere() {
        let own = [frame("program::work", "src/main.rs")];
        assert_eq!(cause(&page(1, &[(Some(1), 20)]), &own), Cause::FalseSharing);
        assert_eq!(cause(&page(1, &[(Some(0), 30), (Some(1), 20)]), &own), Cause::Write);
        assert_eq!(cause(&page(1, &[(None, 20)]), &own), Cause::Write, "of whom nothing is known");
        assert_eq!(own_line(&own).as_deref(), Some("src/main.rs:7"));
        assert_eq!(own_line(&[frame("core::a", CORE)]), None);
    }
}
