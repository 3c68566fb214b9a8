//! The records about code and what it wrote: stacks, names, and how copies differ.

use serde::{Deserialize, Serialize};

/// A sampled stack, innermost frame first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stack {
    /// Its number, unique in the capture.
    pub stack: u32,
    /// Of which interval.
    pub interval: u32,
    /// Native frames: the instruction, then for each caller an address within its call. Empty where not unwound.
    pub native: Vec<u64>,
    /// The language of `frames`, by its id; `None` where the thread runs none that can be read.
    pub language: Option<String>,
    /// Frames of the program that an interpreter runs.
    pub frames: Vec<Frame>,
    /// What the instruction was about to write.
    #[serde(default)]
    pub wrote: Wrote,
}

/// What a sampled instruction was about to write, as far as the layout of the memory or the instruction itself tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wrote {
    /// It was not looked at.
    #[default]
    Unknown,
    /// The reference count of an object of CPython.
    ReferenceCount,
    /// The words before an object of CPython that its collector keeps.
    CollectorHeader,
    /// Something else, by an atomic instruction: a counter, lock or flag that threads share.
    Atomic,
    /// Something else.
    Other,
}

/// A frame of a program that an interpreter runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Frame {
    /// Function.
    pub function: String,
    /// File, as the interpreter knows it.
    pub file: String,
    /// Line, 0 where not known.
    pub line: i32,
}

/// An instruction's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Code {
    /// The instruction.
    pub pc: u64,
    /// Functions and lines, the innermost inlined one first; empty where there is no name.
    pub frames: Vec<NativeFrame>,
    /// The file mapped there and the address in it, for what has no name.
    pub module: String,
}

/// A named frame of native code.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NativeFrame {
    /// Function, demangled.
    pub function: String,
    /// Source file, where debug information tells.
    pub file: Option<String>,
    /// Line, where debug information tells.
    pub line: Option<u32>,
}

/// How one copied page differed from its original when the interval closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "ContentRow", from = "ContentRow")]
pub struct Content {
    /// The page's address.
    pub page: u64,
    /// Bytes that differ; 0: identical again.
    pub bytes: u32,
    /// Aligned words of eight bytes that differ.
    pub words: u32,
    /// Those of them that are reference counts by the layout: an object of CPython's begins there.
    pub counts: u32,
    /// Did the page hold an object of CPython's?
    pub objects: bool,
}

/// A [`Content`] as an array: there are many.
type ContentRow = (u64, u32, u32, u32, bool);

impl From<Content> for ContentRow {
    fn from(c: Content) -> Self {
        (c.page, c.bytes, c.words, c.counts, c.objects)
    }
}

impl From<ContentRow> for Content {
    fn from((page, bytes, words, counts, objects): ContentRow) -> Self {
        Self { page, bytes, words, counts, objects }
    }
}
