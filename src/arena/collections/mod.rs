//! Collections in an arena.
//!
//! `Vec`, `Box`, `HashMap` and `HashSet` are other crates', with an arena for their allocator. No crate that takes this allocator has the others, so
//! they are ours, and have no more than data that is built once and read needs.

mod btree;
mod collect;
mod counted;
mod cow;
mod deque;
mod iterate;
mod new;
mod node;
mod set;
mod string;
mod types;

pub use btree::BTreeMap;
pub(super) use btree::Building;
pub use collect::{CollectIn, FromIteratorIn};
pub use counted::Arc;
pub use cow::{Cow, Owned};
pub use deque::VecDeque;
pub(super) use node::Node as TreeNode;
pub use set::BTreeSet;
pub use string::String;
pub use types::{Box, HashMap, HashSet, Vec};

/// Entries and iterators of a [`BTreeMap`](super::BTreeMap).
pub mod btree_map {
    pub use super::btree::{Entry, IntoIter};
    pub use super::iterate::{Iter, IterMut};
}

#[cfg(test)]
mod tests;
