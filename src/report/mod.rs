//! Reports: what a child copied, from evidence alone. Pure: no descriptor, no system call, no unsafe code.
//!
//! A [`Report`] prints itself for people (`Display`) and, with the feature `serde`, is JSON with a
//! version field ([`VERSION`]).

mod explain;
mod objects;
mod text;

pub use explain::{Allocated, Cause, Explained, Frame, Writer};
pub use objects::{Beside, ObjectReport, PageReport, SiteReport};

use crate::arena::{Image, OnWrite};
use crate::facts::Door;
use crate::facts::Ended;
use crate::page::{PageCount, PageIndex, PageSet, PageSize, PageSpan};
use crate::sys::map::Range;
use crate::watch::{self, Changed, Outside, Watch};
use std::sync::Arc;

/// The version of the report's JSON: raised when a field changes its meaning or goes away.
pub const VERSION: u32 = 1;

/// The origin of a report's census.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Census {
    /// Taken from a living child: it may have copied more since.
    Living,
    /// Taken after the child's end: final.
    Last,
    /// Taken when the child executed another program: final for the memory it had.
    AtExec,
    /// There was to be none.
    NotTaken,
    /// Lost: the keeper was killed before it, or the kernel refused. `copied` has what an earlier census found,
    /// `observed` what the watch saw: the child may have copied more.
    Lost,
}

/// One child's report: its copies in the arenas that it was forked over.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// The child's process id.
    pub pid: i32,
    /// The child's watch.
    pub watch: Watch,
    /// Through which door its userfaultfd came; `UserModeOnly` means that system calls could not write
    /// into armed pages (except under [`Watch::Async`]).
    pub door: Option<Door>,
    /// The child's end; `None` while it lives.
    pub ended: Option<Ended>,
    /// The origin of the census.
    pub census: Census,
    /// Bytes in a page.
    pub page_size: u64,
    /// One part for each frozen arena.
    pub arenas: Vec<ArenaReport>,
    /// Writes in the order they were noted, the first to each page in each epoch (under [`Watch::Faults`], which begins none, since the
    /// fork); only under watches that have events.
    pub events: Vec<EventReport>,
    /// Writes whose event was lost because too many waited to be read, or with the writer that was
    /// killed. Their pages are in `observed` all the same.
    pub events_lost: u64,
    /// The page faults that the kernel told of; only under [`Watch::Faults`].
    #[cfg_attr(feature = "serde", serde(default))]
    pub page_faults: Option<PageFaults>,
    /// The program closed the trap's descriptor: from then on nothing was observed.
    pub trap_lost: bool,
    /// The number of times that a copied page was given back ([`crate::fork::Reshared`]): such a page is not in `copied`, unless it was copied
    /// again.
    #[cfg_attr(feature = "serde", serde(default))]
    pub reshared_pages: PageCount,
    /// The memory outside of the arenas that the child did not share any more, and what it had got.
    #[cfg_attr(feature = "serde", serde(default))]
    pub outside: Outside,
    /// The addresses of the program's executable: an instruction in it minus `start` is what `addr2line` takes.
    pub executable: Executable,
}

/// The page faults that the kernel told of under [`Watch::Faults`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PageFaults {
    /// Those too that the kernel took in a system call for the program, a `read(2)` for example. False: pages copied so are unobserved.
    pub by_kernel: bool,
    /// The number of faults that had no place in a ring, of any page of the process: copied pages may be unobserved for that. `None` before
    /// Linux 6.0, which does not tell, and when the keeper was killed before it asked.
    pub lost: Option<u64>,
}

/// The addresses of the program's executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Executable {
    /// Its first address.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// A child's copies in one arena.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ArenaReport {
    /// The arena's name.
    pub name: String,
    /// The number of the frozen image among those of its arena.
    pub generation: u16,
    /// Its first address.
    pub start: u64,
    /// The number of its pages.
    pub pages: PageCount,
    /// The effect of a write to a frozen page.
    pub on_write: OnWrite,
    /// The number of pages that the child has copied, by the census.
    pub copied_pages: PageCount,
    /// The pages that the child has copied.
    pub copied: Vec<PageSpan>,
    /// The number of pages that were private copies already when the child was forked, because its parent is a child that
    /// copied them, or has frozen its heap and written there since. They are not in `copied`: whether this child copied one again cannot be told.
    pub inherited_pages: PageCount,
    /// The number of bytes that differ from the original in the copied pages; `None` if that is unknown of some.
    pub bytes_changed: Option<u64>,
    /// The number of copied pages that are the same as the original again.
    pub identical_pages: PageCount,
    /// The pages that the watch observed being written; `None` under [`Watch::Census`].
    pub observed: Option<Vec<PageSpan>>,
    /// Pages copied that the watch did not observe: the kernel copied them for a system call that then
    /// failed, or the watch was lost. Under [`Watch::Faults`] no fault told is known to have written them.
    pub copied_unobserved: PageCount,
    /// Copied pages by what was allocated there, most pages first; empty unless the arena records sites.
    pub sites: Vec<SiteReport>,
    /// The first 5,000 copied pages one by one, and what lies there, of a frozen heap and of an arena that records sites.
    #[cfg_attr(feature = "serde", serde(default))]
    pub told: Vec<PageReport>,
    /// Of a frozen heap: the calls that led to allocations on pages that are [told](Self::told), from the allocator outwards, each an address inside of the calling
    /// instruction.
    #[cfg_attr(feature = "serde", serde(default))]
    pub stacks: Vec<Vec<u64>>,
}

/// A write as a watch saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct EventReport {
    /// The arena, by its place in [`Report::arenas`].
    pub arena: usize,
    /// The page.
    pub page: PageIndex,
    /// The address; to the byte where the kernel tells it.
    pub address: u64,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub time_ns: u64,
    /// The thread.
    pub tid: i32,
    /// The instruction; 0 where it could not be read.
    pub pc: u64,
    /// The type of the object written, where the arena records sites.
    pub object: Option<String>,
    /// The calls that led there, the innermost first, each an address inside of the calling instruction; only with
    /// [`ForkOptions::callers`](crate::fork::ForkOptions::callers).
    #[cfg_attr(feature = "serde", serde(default))]
    pub callers: Vec<u64>,
}

/// The facts that a report is made from besides the arenas.
pub(crate) struct Facts {
    pub(crate) pid: i32,
    pub(crate) watch: Watch,
    pub(crate) door: Option<Door>,
    pub(crate) ended: Option<Ended>,
    pub(crate) census: Census,
    pub(crate) trap_lost: bool,
    pub(crate) events_lost: u64,
    pub(crate) page_faults: Option<PageFaults>,
    pub(crate) reshared_pages: PageCount,
    pub(crate) outside: Outside,
    pub(crate) page_size: PageSize,
    pub(crate) executable: Range,
}

impl Report {
    pub(crate) fn new(
        facts: Facts,
        mut arenas: Vec<ArenaReport>,
        events: &[watch::Event],
        images: &[Arc<Image>],
    ) -> Self {
        for (at, (arena, image)) in arenas.iter_mut().zip(images).enumerate() {
            let written = events.iter().filter(|event| event.arena == at).map(|event| (event.page, event.address));
            (arena.told, arena.stacks) = objects::tell(image, &arena.told, written.collect());
        }
        let describe = |event: &watch::Event| {
            let image = images.get(event.arena);
            let offset = event.address.saturating_sub(image.map_or(0, |image| image.range().start));
            let allocation = image.and_then(|image| image.table().overlapping(offset, offset + 1).next());
            let object = allocation.and_then(|allocation| allocation.site).map(|site| site.type_name.to_owned());
            let block =
                || image.and_then(|image| image.block_at(event.address)).map(|block| objects::block_name(block.len));
            EventReport {
                arena: event.arena,
                page: event.page,
                address: event.address as u64,
                time_ns: event.time_ns,
                tid: event.tid,
                pc: event.registers.pc,
                object: object.or_else(block),
                callers: event.callers.iter().copied().take_while(|&caller| caller != 0).collect(),
            }
        };
        Self {
            version: VERSION,
            pid: facts.pid,
            watch: facts.watch,
            door: facts.door,
            ended: facts.ended,
            census: facts.census,
            page_size: facts.page_size.bytes() as u64,
            arenas,
            events: events.iter().map(describe).collect(),
            events_lost: facts.events_lost,
            page_faults: facts.page_faults,
            trap_lost: facts.trap_lost,
            reshared_pages: facts.reshared_pages,
            outside: facts.outside,
            executable: Executable { start: facts.executable.start as u64, len: facts.executable.len as u64 },
        }
    }

    /// Pages copied in all arenas.
    pub fn copied_pages(&self) -> PageCount {
        PageCount(self.arenas.iter().map(|arena| arena.copied_pages.0).sum())
    }

    /// Bytes copied in all arenas.
    pub fn copied_bytes(&self) -> u64 {
        self.copied_pages().0 * self.page_size
    }
}

impl ArenaReport {
    pub(crate) fn new(
        image: &Image,
        copied: &PageSet,
        inherited_pages: PageCount,
        observed: Option<&PageSet>,
        changed: impl Fn(PageIndex) -> Option<Changed>,
    ) -> Self {
        let changes: Vec<(PageIndex, Option<Changed>)> = copied.iter().map(|page| (page, changed(page))).collect();
        let bytes_changed = changes.iter().map(|(_, changed)| changed.map(|c| u64::from(c.bytes))).sum();
        let identical = changes.iter().filter(|(_, changed)| changed.is_some_and(|c| c.bytes == 0)).count();
        let unobserved = observed.map_or(PageCount(0), |observed| copied.difference(observed).count());
        Self {
            name: image.name().to_owned(),
            generation: image.generation(),
            start: image.range().start as u64,
            pages: image.pages(),
            on_write: image.on_write(),
            copied_pages: copied.count(),
            copied: copied.runs().collect(),
            inherited_pages,
            bytes_changed,
            identical_pages: PageCount(identical as u64),
            observed: observed.map(|observed| observed.runs().collect()),
            copied_unobserved: unobserved,
            sites: objects::sites(image, &changes),
            told: changes
                .iter()
                .map(|&(page, changed)| PageReport::bare(page, changed))
                .take(objects::TOLD_MAX)
                .collect(),
            stacks: Vec::new(),
        }
    }

    /// The copied pages as a set.
    pub fn copied_set(&self) -> PageSet {
        set_of(&self.copied)
    }

    /// The observed pages as a set; empty under [`Watch::Census`].
    pub fn observed_set(&self) -> PageSet {
        set_of(self.observed.as_deref().unwrap_or_default())
    }

    /// Bytes copied for each byte changed; `None` when no byte differs or that is unknown.
    pub fn amplification(&self, page_size: u64) -> Option<f64> {
        let changed = self.bytes_changed.filter(|&bytes| bytes > 0)?;
        Some((self.copied_pages.0 * page_size) as f64 / changed as f64)
    }
}

fn set_of(runs: &[PageSpan]) -> PageSet {
    let mut set = PageSet::new();
    runs.iter().for_each(|&run| set.insert_span(run));
    set
}
