//! The contents of a snapshot, as `--json` prints it.

use super::compare::PageCounts;
use super::process::ReadState;
use crate::views::Document;
use serde::Serialize;

/// All of it.
#[derive(Debug, Serialize)]
pub struct Snapshot {
    /// The release of the kernel, as `uname -r` says.
    pub kernel: String,
    /// Bytes a page.
    pub page_size: u64,
    /// The process at the top of the tree.
    pub pid: i32,
    /// On what the verdicts rest.
    pub evidence: Readable,
    /// Sentences on what could not be seen, for people.
    pub notes: Vec<String>,
    /// Parents before their children.
    pub processes: Vec<ProcessReport>,
    /// The tree's sums.
    pub total: Total,
}

impl Document for Snapshot {
    const FORMAT: &'static str = "cowbell-snapshot";
    // 2: `differs` is of mappings that both had at the fork; `copied_or_new` has the others.
    const VERSION: u32 = 2;
}

/// On what the verdicts rest.
#[derive(Debug, Serialize)]
pub struct Readable {
    /// True if page frames were readable. Without them a page that is shared may be the parent's or another's.
    pub frames: bool,
    /// True if the page of zeroes could be told from a shared page.
    pub zero_pages: bool,
}

/// A process and the memory it has now.
#[derive(Debug, Serialize)]
pub struct ProcessReport {
    /// The process' id.
    pub pid: i32,
    /// The parent's id.
    pub parent: i32,
    /// Generations below the top of the tree.
    pub depth: usize,
    /// The name of its main thread.
    pub name: String,
    /// The process' arguments, lossily as text.
    pub command: Vec<String>,
    /// Tells that it was read, or why not.
    pub state: ReadState,
    /// The same in words; empty where there is nothing to add.
    pub why: String,
    /// The process' memory; nothing if it was not read.
    pub memory: Option<MemoryReport>,
}

/// The relation of a process to its parent's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// The process was forked from the program that its parent runs; its pages were held against the parent's.
    Forked,
    /// The process or its parent executed another program since, or its parent by birth has ended: they share no private page.
    Unrelated,
    /// The parent's memory could not be read.
    ParentUnreadable,
    /// The process runs in the memory of another one that was read before it (`vfork`, `CLONE_VM`): nothing there is its own. Its
    /// pages are counted there, and here only if that is its parent.
    SameMemory {
        /// The other process.
        of: i32,
    },
    /// The process was forked, or runs in its parent's memory: the kernel does not say which, and each page of the two looks the same.
    ForkedOrSameMemory,
}

/// A process' memory in figures.
#[derive(Debug, Serialize)]
pub struct MemoryReport {
    /// The process' relation, which says what its pages were held against.
    pub relation: Relation,
    /// Resident, as the kernel says.
    pub rss_bytes: u64,
    /// Resident, each page divided by the number of its mappers.
    pub pss_bytes: u64,
    /// Resident and mapped by this process alone, pages of files included.
    pub uss_bytes: u64,
    /// Swapped out.
    pub swap_bytes: u64,
    /// In huge page pools: in the page counts, and in none of the figures above.
    pub hugetlb_bytes: u64,
    /// All mappings.
    pub pages: PageCounts,
    /// The mappings by name, those with most own pages first.
    pub mappings: Vec<Group>,
}

impl MemoryReport {
    /// Tells whether this memory is another's, and in the tree's sums there. Of the top of a tree it is its own.
    pub fn adds_nothing(&self, depth: usize) -> bool {
        depth > 0 && matches!(self.relation, Relation::SameMemory { .. })
    }

    /// Tells whether its pages were counted here, and not with another process that is not its parent.
    pub fn has_counts(&self, parent: i32) -> bool {
        !matches!(self.relation, Relation::SameMemory { of } if of != parent)
    }
}

/// Mappings of one name.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// The file, `[heap]`, `[stack]`, or `[anonymous]`.
    pub name: String,
    /// The pages of its mappings.
    pub pages: PageCounts,
}

/// The way in which the memory that a tree takes was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TakesBy {
    /// Page frames, each counted once.
    Frames,
    /// The sum of PSS: what processes outside of the tree share is counted in part.
    #[default]
    Pss,
}

/// The tree's sums. A process that runs in another's memory adds nothing.
#[derive(Debug, Default, Serialize)]
pub struct Total {
    /// Processes that were read.
    pub processes: u64,
    /// The memories that they run in.
    pub memories: u64,
    /// The bytes that the tree would take if nothing were shared.
    pub unshared_bytes: u64,
    /// The bytes that it takes.
    pub takes_bytes: u64,
    /// The way in which that was found.
    pub takes_by: TakesBy,
    /// The bytes that sharing saves: the difference.
    pub saved_bytes: u64,
    /// The sum of PSS.
    pub pss_bytes: u64,
    /// The sums of all processes but the top.
    pub children: Children,
}

/// Sums over all processes but the top of the tree.
#[derive(Debug, Default, Serialize)]
pub struct Children {
    /// The number of those that were read.
    pub processes: u64,
    /// Page frames that a child has and the top does not, each counted once; not known without page frames.
    pub added_bytes: Option<u64>,
    /// Private pages that nobody else has.
    pub own_bytes: u64,
    /// Those at whose address the parent has another page, in whatever mapping.
    pub differs_bytes: u64,
    /// The children's pages.
    pub pages: PageCounts,
    /// The mappings by name, those with most own pages first.
    pub mappings: Vec<Group>,
}
