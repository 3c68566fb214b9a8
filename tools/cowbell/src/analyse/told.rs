//! The summary's part on objects of frozen heaps.

use cowbell::report;
use serde::Serialize;

/// The objects on the pages that an interval copied of one image of a frozen heap.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Objects {
    pub interval: u32,
    pub pid: i32,
    /// The name of the arena, `heap` for all that was not built in one of its own.
    pub arena: String,
    /// The number of the image among those of its arena.
    pub generation: u16,
    /// The image's first address.
    pub start: u64,
    pub bytes: u64,
    /// One in so many allocations was recorded when it was frozen; 0 for none.
    pub recorded_every: u32,
    /// The image's copied pages, ascending: the first 5,000.
    pub pages: Vec<ObjectsPage>,
    /// The number of further ones.
    pub untold_pages: u64,
}

/// A copied page of a frozen heap.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ObjectsPage {
    pub address: u64,
    /// The number of bytes that differ from the original; `null` where that was not compared.
    pub changed_bytes: Option<u32>,
    /// The first and the last of them, from the page's start.
    pub first_byte: Option<u32>,
    pub last_byte: Option<u32>,
    /// The fields that these two belong to: `inner.count`, `[3].links[1]`; `null` where debug information does not tell.
    pub first_field: Option<String>,
    pub last_field: Option<String>,
    /// The objects that hold the first byte written, where that was seen, and the first and the last byte that differ; the one that was written
    /// first is first.
    pub objects: Vec<Object>,
    /// The number of all other blocks there, those that nobody has too.
    pub other_objects: u64,
    /// The first write; `null` where it was not seen.
    pub writer: Option<Writer>,
    /// The likely cause, as reports of the library tell it.
    pub cause: report::Cause,
    pub cause_name: String,
    pub advice: &'static str,
}

/// An object of a frozen heap.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Object {
    /// The object's first address.
    pub start: u64,
    /// The length of its block, which may be a little longer than what was asked for.
    pub bytes: u64,
    /// The type of Rust's that it was allocated for, by the program's debug information; `null` where that does not tell.
    pub type_name: Option<String>,
    /// The program's own line that allocated it, as `file:line`; `null` where that is not known.
    pub allocated_at: Option<String>,
    /// The function of this line.
    pub allocated_in: Option<String>,
}

/// The first write to a page.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Writer {
    pub tid: i32,
    /// The first byte that was written; the page's first address where that is not known.
    pub address: u64,
    /// The field of this byte; `null` where debug information does not tell.
    pub field: Option<String>,
    /// The program's own line, as `file:line`; `null` where that is not known.
    pub line: Option<String>,
    /// The function of this line.
    pub function: Option<String>,
}
