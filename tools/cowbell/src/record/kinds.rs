//! The record about the kinds of objects on copied pages.

use serde::{Deserialize, Serialize};

/// The objects on the pages that an interval copied, by type, as they lay there when the interval closed. The bytes of all parts together
/// are those of the pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kinds {
    /// The copied pages that could be read.
    pub pages: u64,
    /// Each type, in order of names.
    pub types: Vec<OfType>,
    /// Bytes of blocks that are in use and hold no object that is known: tables and items of containers, for the most part.
    pub other_bytes: u64,
    /// Bytes of blocks that are free, and of the allocator's own.
    pub free_bytes: u64,
    /// Bytes outside of the blocks of the interpreter's allocator that belong to no object that is known.
    pub outside_bytes: u64,
}

/// The objects of one type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfType {
    /// The type's name, as the interpreter keeps it.
    pub name: String,
    /// The objects whose reference count lies on a copied page.
    pub objects: u64,
    /// The bytes that they and others of the type take of copied pages.
    pub bytes: u64,
}
