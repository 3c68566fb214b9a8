//! The record about what lies on copied pages of a frozen heap.

use serde::{Deserialize, Serialize};

/// The blocks on the pages that an interval copied of one image, as the image's own file tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objects {
    /// The interval.
    pub interval: u32,
    /// The name of the image's arena.
    pub arena: String,
    /// The number of the image among those of its arena.
    pub generation: u16,
    /// The image's first address.
    pub start: u64,
    /// The image's length in bytes.
    pub len: u64,
    /// The program had one in so many allocations recorded when it froze; 0 for none.
    pub recorded: u32,
    /// The image's copied pages, ascending: the first few thousand.
    pub pages: Vec<OnPage>,
    /// The number of further ones.
    pub untold: u64,
    /// The types of blocks, as Rust spells them.
    #[serde(default)]
    pub types: Vec<String>,
    /// The calls that led to allocations, from the allocator outwards, by the numbers of their [`Place`](super::Place)s.
    pub stacks: Vec<Vec<u32>>,
}

/// A copied page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnPage {
    /// The page's address.
    pub page: u64,
    /// The difference from its original; `None` where it was not compared.
    pub changed: Option<Changed>,
    /// The first write, where it was seen.
    pub written: Option<FirstWrite>,
    /// The blocks that hold the first byte written, and the first and the last byte that differ; the one that was written first is first.
    pub blocks: Vec<Block>,
    /// All other blocks there.
    pub beside: Vec<Beside>,
    /// The fields of these bytes, which are counted from the page's start, where their blocks' types tell.
    #[serde(default)]
    pub fields: Vec<(u32, String)>,
}

/// The difference of a page from its original.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Bytes that differ.
    pub bytes: u32,
    /// The first of them, from the page's start; 0 where none differs.
    pub first: u32,
    /// The last.
    pub last: u32,
}

/// The first write to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstWrite {
    /// The thread.
    pub tid: i32,
    /// The [`Place`](super::Place) of the instruction; 0 where not known.
    pub code: u32,
    /// The byte, from the page's start; `None` where not known.
    pub byte: Option<u32>,
    /// The [`Stack`](super::Stack) that was sampled at the very write.
    pub stack: Option<u32>,
    /// The place of the call by which the instruction was run; 0 where it was not read.
    pub caller: u32,
}

/// A block of the heap: a little longer than what was asked for, maybe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// The block's first address.
    pub start: u64,
    /// The block's length in bytes.
    pub len: u64,
    /// The calls that allocated it, by their place in [`Objects::stacks`]; `None` where that was not recorded.
    pub stack: Option<u32>,
    /// The block's type, by its place in [`Objects::types`]; `None` where debug information does not tell.
    #[serde(default)]
    pub of: Option<u32>,
}

/// Blocks that were allocated at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beside {
    /// The stack as in a [`Block`]; `None` also for blocks that nobody had.
    pub stack: Option<u32>,
    /// How many there are.
    pub blocks: u64,
}
