//! Collections of other crates, with an arena for their allocator.

use crate::arena::memory::ArenaRef;

/// A `Vec` in an arena.
pub type Vec<T> = allocator_api2::vec::Vec<T, ArenaRef>;
/// A `Box` in an arena.
pub type Box<T> = allocator_api2::boxed::Box<T, ArenaRef>;
/// A hash map in an arena.
pub type HashMap<K, V> = hashbrown::HashMap<K, V, hashbrown::DefaultHashBuilder, ArenaRef>;
/// A hash set in an arena.
pub type HashSet<T> = hashbrown::HashSet<T, hashbrown::DefaultHashBuilder, ArenaRef>;
