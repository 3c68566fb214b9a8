//! The records about code and what it wrote: stacks, names, and how copies differ.

use serde::{Deserialize, Serialize};

/// A sampled stack, innermost frame first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stack {
    /// The stack's number, unique in the capture.
    pub stack: u32,
    /// In which interval it was seen first; events of others may refer to it.
    pub interval: u32,
    /// Native frames, by the numbers of their [`Place`]s: the instruction, then for each caller an address within its
    /// call. Empty where not unwound.
    pub native: Vec<u32>,
    /// The language of `frames`, by its id; `None` where the thread runs none that can be read.
    pub language: Option<String>,
    /// Frames of the program that an interpreter runs.
    pub frames: Vec<Frame>,
    /// The kind of data that the instruction was about to write.
    #[serde(default)]
    pub wrote: Wrote,
}

/// The kind of data that a sampled instruction was about to write, as far as the layout of the memory or the instruction itself
/// tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wrote {
    /// The instruction was not looked at.
    #[default]
    Unknown,
    /// The reference count of an object whose layout is known.
    ReferenceCount,
    /// The same of an object of a class, where the language has counted values of other kinds.
    ObjectCount,
    /// The words before such an object that the language's collector keeps, while it collects.
    CollectorHeader,
    /// A word in which a hash counts the iterations over it; a collector writes it, too.
    Iteration,
    /// The flags in such an object, which an interpreter also sets, or writes as they are, when it only reads the object.
    Flags,
    /// The count of a text's copies, which stands behind the text.
    TextCopies,
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

/// A file that code lies in, as it was mapped when code in it was first seen.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Module {
    /// The module's number, from 1, unique in the capture.
    pub module: u32,
    /// The path in /proc/PID/maps; `[vdso]` is the kernel's own.
    pub path: String,
    /// The file's device, as in /proc/PID/maps.
    pub device: String,
    /// The file's inode there.
    pub inode: u64,
    /// The id of its build, in base 16, read from the memory of a process that maps it; `None` where it does not say.
    pub build_id: Option<String>,
}

/// A place in code: what an instruction's address meant when it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The place's number, from 1, unique in the capture.
    pub code: u32,
    /// The [`Module`] it lies in; `None` for code of no file.
    pub module: Option<u32>,
    /// The offset in that file; of no file, the address.
    pub offset: u64,
    /// The process whose address it is, for code of no file; else 0.
    pub pid: i32,
}

/// The names of a [`Place`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Code {
    /// The place's number.
    pub code: u32,
    /// Functions and lines, the innermost inlined one first; empty where there is no name.
    pub frames: Vec<NativeFrame>,
    /// The address as the file counts them, or of no file the address in memory.
    pub address: u64,
    /// Why there is no name; `None` where there is one.
    pub nameless: Option<Nameless>,
    /// The instruction counts, or sets or clears bits, atomically, by its bytes in the file.
    #[serde(default)]
    pub atomic: bool,
}

/// Why a [`Place`] has no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nameless {
    /// The place lies in no file: it is code that was generated while the program ran, of which no map of names was written.
    GeneratedCode,
    /// The file says nothing of this address, and no debug information of its build is installed.
    NoSymbols,
    /// The file was gone when it was to be opened.
    FileGone,
    /// Another build stood under the file's name when it was to be opened.
    FileReplaced,
    /// The file may not be read.
    FileUnreadable,
}

/// The text of a source line: of a program that an interpreter runs as it was when the line was seen, of native code as it
/// was when the run ended, if the file is not newer than the build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// File, as in [`Frame::file`].
    pub file: String,
    /// Line.
    pub line: i32,
    /// The text of the line, without the space around it.
    pub text: String,
}

/// The program that a process executes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executable {
    /// The mapping's file, as in /proc/PID/maps.
    pub path: String,
    /// The path by which it was executed, which may be a link to that file.
    pub called: String,
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

/// The difference between one copied page and its original when the interval closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "ContentRow", from = "ContentRow")]
pub struct Content {
    /// The page's address.
    pub page: u64,
    /// Bytes that differ; 0: identical again.
    pub bytes: u32,
    /// Aligned words of eight bytes that differ.
    pub words: u32,
    /// Those of them that are reference counts by the layout: an object begins there.
    pub counts: u32,
    /// True if the page held an object whose layout is known.
    pub objects: bool,
    /// Those words that are hashes which strings of CPython's keep once they were asked for, by the layout.
    pub hashes: u32,
    /// Those of them whose string is immortal: using it counts no reference.
    pub immortal: u32,
    /// The first and the last byte that differ, from the page's start; `None` where none does, and where that was not noted.
    pub ends: Option<(u32, u32)>,
    /// Words that changed because a string was used as a number, which it keeps, by the layout.
    pub numbers: u32,
    /// Words that a collector wrote as it marked or freed objects, by the layout.
    pub marks: u32,
    /// Words that changed because an object was put in a place that was free, by the layout; it may have died since.
    pub made: u32,
    /// Words that changed because a number was used as a text, which it keeps, by the layout.
    pub texts: u32,
    /// Words that changed because a string was asked for what it remembers then, by the layout: its length, the place of a match.
    pub remembered: u32,
    /// Words that changed because a hash was made to keep where one stands that goes through it, by the layout.
    pub iterators: u32,
    /// Words in which nothing but the count of a text's copies changed, by the layout.
    pub copies: u32,
}

/// A [`Content`] as an array: there are many.
#[derive(Serialize, Deserialize)]
struct ContentRow(
    u64,
    u32,
    u32,
    u32,
    bool,
    #[serde(default)] u32,
    #[serde(default)] u32,
    #[serde(default, skip_serializing_if = "Option::is_none")] Option<(u32, u32)>,
    // A page with such words differs, and so has its ends before.
    #[serde(default, skip_serializing_if = "Option::is_none")] Option<(u32, u32)>,
    #[serde(default, skip_serializing_if = "Option::is_none")] Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")] Option<(u32, u32, u32, u32)>,
);

impl From<Content> for ContentRow {
    fn from(c: Content) -> Self {
        let kept = Some((c.texts, c.remembered, c.iterators, c.copies)).filter(|kept| *kept != (0, 0, 0, 0));
        Self(
            c.page,
            c.bytes,
            c.words,
            c.counts,
            c.objects,
            c.hashes,
            c.immortal,
            c.ends,
            Some((c.numbers, c.marks)).filter(|both| *both != (0, 0) || c.made != 0 || kept.is_some()),
            Some(c.made).filter(|made| *made != 0 || kept.is_some()),
            kept,
        )
    }
}

impl From<ContentRow> for Content {
    fn from(row: ContentRow) -> Self {
        let ContentRow(page, bytes, words, counts, objects, hashes, immortal, ends, both, made, kept) = row;
        let (numbers, marks) = both.unwrap_or_default();
        let made = made.unwrap_or_default();
        let (texts, remembered, iterators, copies) = kept.unwrap_or_default();
        Self {
            page,
            bytes,
            words,
            counts,
            objects,
            hashes,
            immortal,
            ends,
            numbers,
            marks,
            made,
            texts,
            remembered,
            iterators,
            copies,
        }
    }
}
