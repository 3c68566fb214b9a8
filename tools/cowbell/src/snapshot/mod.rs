//! `cowbell snapshot`: what each process of a tree shares with its parent now.
//!
//! A snapshot arms nothing, stops nothing and traces nothing: it reads page tables. The processes run on, so the figures
//! of one that is busy are of the moments at which they were read.

mod compare;
pub mod document;
mod metrics;
mod page;
mod process;
mod space;
mod text;

pub use compare::Counts;
pub use metrics::metrics;
pub use process::State;
pub use text::{command, remark};

use crate::failure::Failure;
use crate::output::{self, Stream};
use compare::{Against, Frames};
use document::{Evidence, Group, MemoryReport, ProcessReport, Relation, Snapshot, TakesBy, Total};
use process::{Memory, Node};
use space::{Kind, Page, Reader, Space};
use std::collections::{BTreeMap, HashMap};

/// What to look at and how to show it.
#[derive(clap::Args)]
pub struct Options {
    /// The process at the top of the tree.
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
    pid: i32,
    #[command(flatten)]
    output: output::Options,
}

/// Takes a snapshot and prints it, to standard output unless a file is named.
///
/// # Errors
/// When the process is not there, has no memory or may not be read, or when the outcome cannot be written.
pub fn run(options: &Options) -> Result<(), Failure> {
    let mut out = options.output.open(Stream::Output)?;
    let snapshot = take(options.pid)?;
    out.page(|| page::page(&snapshot))?;
    if options.output.json {
        return out.json(&snapshot);
    }
    let output::Options { top, quiet, verbose, .. } = options.output;
    out.text(&text::text(&snapshot, &text::Look { top: top as usize, quiet, verbose }))
}

/// Finds what each process of a tree shares with its parent now.
///
/// # Errors
/// As [`run`].
pub fn take(id: i32) -> Result<Snapshot, Failure> {
    let pid = process::of_thread(id);
    let nodes = process::tree(pid)?;
    let mut look = Look::new();
    if pid != id {
        look.notes.push(format!("{id} is a thread of process {pid}"));
    }
    let outside = nodes.first().and_then(|top| look.parent_of(top));
    // The line from the top of the tree to the process at hand, without it.
    let mut line: Vec<Option<Memory>> = Vec::new();
    for node in &nodes {
        line.truncate(node.depth);
        let memory = if node.depth == 0 {
            let memory = node.read(&look.reader).map_err(|(state, why)| unusable(node, &state, &why))?;
            Ok(memory)
        } else {
            node.read(&look.reader)
        };
        let parent = if node.depth == 0 { outside.as_ref() } else { line.last().and_then(Option::as_ref) };
        look.add(node, &memory, parent);
        line.push(memory.ok());
    }
    Ok(look.finish(pid))
}

/// The process that was asked for has no memory to read.
fn unusable(node: &Node, state: &State, why: &str) -> Failure {
    let ends = match state {
        State::Gone => "it ended while it was read",
        State::Zombie => "it has ended and waits to be reaped: it has no memory any more",
        State::Read | State::KernelThread | State::Denied | State::Failed => why,
    };
    Failure::new(format!("process {} ({}): {ends}", node.pid, crate::views::clean(&node.name)))
}

/// A snapshot in the making.
struct Look {
    reader: Reader,
    notes: Vec<String>,
    processes: Vec<ProcessReport>,
    frames: Frames,
    frames_of_top: u64,
    /// Marks of the memories read, for processes that share one: see [`marks`].
    marks: HashMap<u64, (i32, Vec<u8>)>,
    total: Total,
    groups: BTreeMap<String, Counts>,
}

impl Look {
    fn new() -> Self {
        Self {
            reader: Reader::new(),
            notes: Vec::new(),
            processes: Vec::new(),
            frames: Frames::default(),
            frames_of_top: 0,
            marks: HashMap::new(),
            total: Total::default(),
            groups: BTreeMap::new(),
        }
    }

    /// The memory of the parent of the tree's top, where it may be read and was not replaced since the fork.
    fn parent_of(&self, top: &Node) -> Option<Memory> {
        let parent = Node::of(top.parent)?;
        let image = parent.image()?;
        if top.image() == Some(image.clone()) {
            parent.read(&self.reader).ok()
        } else {
            // Another program: that it is another is all there is to know.
            Some(Memory { space: Space::default(), sums: Default::default(), hugetlb_bytes: 0, image })
        }
    }

    /// Adds one process, read or not.
    fn add(&mut self, node: &Node, memory: &Result<Memory, process::Unread>, parent: Option<&Memory>) {
        let (state, why, report) = match memory {
            Ok(memory) => (State::Read, String::new(), Some(self.memory(node, memory, parent))),
            Err((state, why)) => (state.clone(), why.clone(), None),
        };
        self.processes.push(ProcessReport {
            pid: node.pid,
            parent: node.parent,
            depth: node.depth,
            name: node.name.clone(),
            command: node.command(),
            state,
            why,
            memory: report,
        });
    }

    fn memory(&mut self, node: &Node, memory: &Memory, parent: Option<&Memory>) -> MemoryReport {
        let relation = self.relation(node, memory, parent);
        let against = match (relation, parent) {
            (Relation::Forked, Some(parent)) => Against::Parent(&parent.space),
            (Relation::SameMemory { .. }, _) => Against::Itself,
            (Relation::ParentUnreadable, _) => Against::Unreadable,
            _ => Against::Nobody,
        };
        let groups = compare::count(&memory.space, against);
        let mut pages = Counts::default();
        groups.values().for_each(|group| pages.merge(group));
        let sums = &memory.sums;
        if !matches!(relation, Relation::SameMemory { .. }) {
            for mark in marks(&memory.space) {
                self.marks.insert(mark, (node.pid, memory.image.clone()));
            }
            self.frames.add(&memory.space);
            if node.depth == 0 {
                self.frames_of_top = self.frames.count();
            }
            self.sum(node, memory, &pages, &groups);
        }
        MemoryReport {
            relation,
            rss_bytes: sums.rss,
            pss_bytes: sums.pss,
            uss_bytes: sums.private,
            swap_bytes: sums.swap,
            hugetlb_bytes: memory.hugetlb_bytes,
            pages,
            mappings: by_own_pages(groups),
        }
    }

    fn relation(&self, node: &Node, memory: &Memory, parent: Option<&Memory>) -> Relation {
        let same = marks(&memory.space).find_map(|mark| self.marks.get(&mark));
        if let Some((of, _)) = same.filter(|(_, image)| *image == memory.image) {
            return Relation::SameMemory { of: *of };
        }
        match parent {
            None => Relation::ParentUnreadable,
            Some(parent) if parent.image != memory.image => Relation::Unrelated,
            Some(parent) if is_one_memory(&memory.space, &parent.space) => Relation::SameMemory { of: node.parent },
            Some(_) => Relation::Forked,
        }
    }

    fn sum(&mut self, node: &Node, memory: &Memory, pages: &Counts, groups: &BTreeMap<String, Counts>) {
        let page_bytes = cowbell::sys::page_size().bytes() as u64;
        let total = &mut self.total;
        total.processes += 1;
        total.pss_bytes += memory.sums.pss + memory.hugetlb_bytes;
        // Frames count what page tables show; PSS is comparable with RSS alone.
        total.unshared_bytes +=
            if self.frames.count() > 0 { pages.present() * page_bytes } else { memory.sums.rss + memory.hugetlb_bytes };
        if node.depth > 0 {
            total.children.processes += 1;
            total.children.own_bytes += pages.own.pages * page_bytes;
            total.children.differs_bytes += (pages.own.differs + pages.own.copied_or_new) * page_bytes;
            total.children.pages.merge(pages);
            for (name, counts) in groups {
                self.groups.entry(name.clone()).or_default().merge(counts);
            }
        }
    }

    fn finish(mut self, pid: i32) -> Snapshot {
        let page_size = cowbell::sys::page_size().bytes() as u64;
        let frames = self.frames.count() > 0;
        let added = self.frames.count() - self.frames_of_top;
        self.total.children.added_bytes = frames.then_some(added * page_size);
        (self.total.takes_bytes, self.total.takes_by) = if frames {
            (self.frames.count() * page_size, TakesBy::Frames)
        } else {
            (self.total.pss_bytes, TakesBy::Pss)
        };
        self.total.saved_bytes = self.total.unshared_bytes.saturating_sub(self.total.takes_bytes);
        self.total.children.mappings = by_own_pages(self.groups);
        if !frames {
            self.notes.push(
                "whether a page is shared is known, but not with whom: run cowbell as root (CAP_SYS_ADMIN), who may read \
                 page frames, to tell what is shared with the parent from what is shared with others"
                    .to_owned(),
            );
        }
        let evidence = Evidence { frames, zero_pages: self.reader.tells_zero_pages() };
        if !evidence.zero_pages {
            self.notes.push("before Linux 6.7 the page of zeroes counts as a shared page".to_owned());
        }
        Snapshot {
            kernel: cowbell::sys::limits::kernel_release(),
            page_size,
            pid,
            evidence,
            notes: self.notes,
            processes: self.processes,
            total: self.total,
        }
    }
}

/// All groups, those with most own pages first.
fn by_own_pages(groups: BTreeMap<String, Counts>) -> Vec<Group> {
    let mut groups: Vec<_> = groups.into_iter().map(|(name, pages)| Group { name, pages }).collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.pages.own.pages));
    groups
}

/// Frames that only one memory has: those of its first and its last exclusive page. A second process with one of
/// them, and with the same image, runs in the same memory.
fn marks(space: &Space) -> impl Iterator<Item = u64> + '_ {
    let own = |(_, page): (usize, Page)| page.frame().filter(|_| page.kind() == Kind::Private && page.is_exclusive());
    space.pages().find_map(own).into_iter().chain(space.pages().rev().find_map(own))
}

/// Without page frames: do parent and child run in one memory? If every page of theirs is exclusive in both and lies
/// at the same address: after a fork that would need each inherited page to have been written, those that a program
/// never writes again after its start included.
fn is_one_memory(mine: &Space, theirs: &Space) -> bool {
    let anonymous = || mine.pages().map(|(_, page)| page).filter(|page| page.kind() == Kind::Private);
    anonymous().next().is_some() && anonymous().all(Page::is_exclusive) && mine == theirs
}
