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

pub use compare::PageCounts;
pub use metrics::metrics;
pub use process::ReadState;
pub use text::{command, remark};

use crate::failure::Failure;
use crate::output::{self, Stream};
use crate::views::Verbosity;
use compare::{Against, Frames};
use cowbell::sys::{Errno, procfs, tracing};
use document::{Group, MemoryReport, ProcessReport, Readable, Relation, Snapshot, TakesBy, Total};
use process::{Node, ProcessMemory};
use space::{PageState, PagemapReader, ProcessPages};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// The process to look at, and how to show it.
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
    out.text(&text::text(&snapshot, &Verbosity { top: top as usize, quiet, verbose }))
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
    let mut line: Vec<Option<ProcessMemory>> = Vec::new();
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
fn unusable(node: &Node, state: &ReadState, why: &str) -> Failure {
    let ends = match state {
        ReadState::Gone => "it ended while it was read",
        ReadState::Zombie => "it is ending or has ended: it has no memory to read",
        ReadState::Read | ReadState::KernelThread | ReadState::Denied | ReadState::Failed => why,
    };
    Failure::new(format!("process {} ({}): {ends}", node.pid, crate::views::clean(&node.name)))
}

/// A snapshot in the making.
struct Look {
    reader: PagemapReader,
    notes: Vec<String>,
    processes: Vec<ProcessReport>,
    frames: Frames,
    frames_of_top: u64,
    /// The memories that were read, by a process and a living thread of it, in the kernel's order.
    memories: Vec<(i32, i32)>,
    total: Total,
    groups: BTreeMap<String, PageCounts>,
}

impl Look {
    fn new() -> Self {
        Self {
            reader: PagemapReader::new(),
            notes: Vec::new(),
            processes: Vec::new(),
            frames: Frames::default(),
            frames_of_top: 0,
            memories: Vec::new(),
            total: Total::default(),
            groups: BTreeMap::new(),
        }
    }

    /// The memory of the parent of the tree's top, where it may be read and was not replaced since the fork.
    fn parent_of(&self, top: &Node) -> Option<ProcessMemory> {
        let parent = Node::of(top.parent)?;
        let image = parent.image()?;
        if top.image() == Some(image.clone()) {
            parent.read(&self.reader).ok()
        } else {
            // Another program: that it is another is all there is to know.
            Some(ProcessMemory { space: ProcessPages::default(), sums: Default::default(), hugetlb_bytes: 0, image })
        }
    }

    /// Adds one process, read or not.
    fn add(&mut self, node: &Node, memory: &Result<ProcessMemory, process::Unread>, parent: Option<&ProcessMemory>) {
        let (state, why, report) = match memory {
            Ok(memory) => (ReadState::Read, String::new(), Some(self.memory(node, memory, parent))),
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

    fn memory(&mut self, node: &Node, memory: &ProcessMemory, parent: Option<&ProcessMemory>) -> MemoryReport {
        let relation = self.relation(node, memory, parent);
        let against = match (relation, parent) {
            (Relation::Forked | Relation::ForkedOrSameMemory, Some(parent)) => Against::Parent(&parent.space),
            (Relation::SameMemory { .. }, _) => Against::Itself,
            (Relation::ParentUnreadable, _) => Against::Unreadable,
            _ => Against::Nobody,
        };
        let groups = match relation {
            // Another process' pages are not its parent's.
            Relation::SameMemory { of } if of != node.parent => BTreeMap::new(),
            _ => compare::count(&memory.space, against),
        };
        let mut pages = PageCounts::default();
        groups.values().for_each(|group| pages.merge(group));
        let sums = &memory.sums;
        self.total.processes += 1;
        self.total.children.processes += u64::from(node.depth > 0);
        // The memory of the parent of the tree's top is that of the top, which nobody adds but the top.
        if node.depth == 0 || !matches!(relation, Relation::SameMemory { .. }) {
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

    fn relation(&mut self, node: &Node, memory: &ProcessMemory, parent: Option<&ProcessMemory>) -> Relation {
        let told = self.told(node);
        if let Ok(Some(of)) = told {
            return Relation::SameMemory { of };
        }
        match parent {
            None => Relation::ParentUnreadable,
            Some(parent) if parent.image != memory.image => Relation::Unrelated,
            Some(_) if told.is_ok() => Relation::Forked,
            Some(parent) => match alike(&memory.space, &parent.space) {
                Alike::Certain => Relation::SameMemory { of: node.parent },
                Alike::Perhaps => Relation::ForkedOrSameMemory,
                Alike::No => Relation::Forked,
            },
        }
    }

    /// The process in whose memory another one runs that is read now, as the kernel says: one that was read before it, or the
    /// parent of the tree's top.
    ///
    /// # Errors
    /// The kernel does not say.
    fn told(&mut self, node: &Node) -> Result<Option<i32>, Errno> {
        let mine = procfs::living(node.pid);
        // Processes that have ended have one memory, none.
        let living = |of: i32| Some(of).filter(|_| node.ended().is_none());
        let mut refused = None;
        let place = self.memories.binary_search_by(|(_, theirs)| {
            tracing::memory_order(*theirs, mine).unwrap_or_else(|e| {
                refused = Some(e);
                Ordering::Less
            })
        });
        match (place, refused) {
            (Ok(at), _) => Ok(self.memories.get(at).and_then(|(pid, _)| living(*pid))),
            (Err(_), Some(e)) if e != Errno::SRCH => Err(e),
            (Err(at), _) => {
                self.memories.insert(at, (node.pid, mine));
                let is_parents = match node.depth {
                    0 => tracing::same_memory(procfs::living(node.parent), mine),
                    _ => tracing::same_memory(mine, mine).map(|_| false),
                };
                is_parents.map(|is_parents| living(node.parent).filter(|_| is_parents))
            }
        }
    }

    fn sum(&mut self, node: &Node, memory: &ProcessMemory, pages: &PageCounts, groups: &BTreeMap<String, PageCounts>) {
        let page_bytes = cowbell::sys::page_size().bytes() as u64;
        let total = &mut self.total;
        total.memories += 1;
        total.pss_bytes += memory.sums.pss + memory.hugetlb_bytes;
        // Frames count what page tables show; PSS is comparable with RSS alone.
        total.unshared_bytes +=
            if self.frames.count() > 0 { pages.present() * page_bytes } else { memory.sums.rss + memory.hugetlb_bytes };
        if node.depth > 0 {
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
        let evidence = Readable { frames, zero_pages: self.reader.tells_zero_pages() };
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
fn by_own_pages(groups: BTreeMap<String, PageCounts>) -> Vec<Group> {
    let mut groups: Vec<_> = groups.into_iter().map(|(name, pages)| Group { name, pages }).collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.pages.own.pages));
    groups
}

/// Do a process and its parent run in one memory, as far as their pages tell? Certain is only that two do which have the same
/// page frame, and it is nobody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alike {
    No,
    Perhaps,
    Certain,
}

fn alike(mine: &ProcessPages, theirs: &ProcessPages) -> Alike {
    let private = || mine.pages().map(|(_, page)| page).filter(|page| page.kind() == PageState::Private);
    if private().next().is_none() || mine != theirs {
        Alike::No
    } else if private().any(|page| page.is_exclusive() && page.frame().is_some()) {
        Alike::Certain
    } else {
        // A fork that has written nothing yet looks the same; without page frames also one that wrote what its parent wrote.
        Alike::Perhaps
    }
}

#[cfg(test)]
mod tests {
    use super::space::{PageEntry, SpaceMapping, SpaceRun};
    use super::*;
    use cowbell::sys::map::Range;

    #[test]
    fn equal_pages_are_one_memory_for_certain_only_by_a_frame_that_is_nobody_elses() {
        let space = |pages: &[PageEntry]| {
            let range = Range { start: 0x1000, len: 0x1000 * pages.len() };
            let mapping = SpaceMapping { range, private: true, file: false, name: "[heap]".to_owned() };
            ProcessPages {
                mappings: vec![mapping],
                runs: vec![SpaceRun { mapping: 0, start: 0x1000, pages: pages.to_vec() }],
            }
        };
        let page = |exclusive, frame| PageEntry::new(PageState::Private, exclusive, frame);
        let of = |mine: &[PageEntry], theirs: &[PageEntry]| alike(&space(mine), &space(theirs));
        assert_eq!(of(&[page(true, 7), page(false, 8)], &[page(true, 7), page(false, 8)]), Alike::Certain);
        assert_eq!(of(&[page(false, 7)], &[page(false, 7)]), Alike::Perhaps, "a fork");
        assert_eq!(of(&[page(true, 0), page(false, 0)], &[page(true, 0), page(false, 0)]), Alike::Perhaps, "no frames");
        assert_eq!(of(&[page(true, 7)], &[page(true, 8)]), Alike::No);
        assert_eq!(of(&[page(true, 0), page(true, 0)], &[page(true, 0), page(false, 0)]), Alike::No);
        assert_eq!(of(&[PageEntry::NOTHING], &[PageEntry::NOTHING]), Alike::No, "nothing to tell it by");
    }
}
