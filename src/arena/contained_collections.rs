//! Collections that lie whole in their arena.
//!
//! # Safety
//! Each implementation says why its promise holds, as in [`contained`](super::contained).
#![expect(unsafe_code, reason = "promises that the compiler cannot check")]

use super::collections::{Arc, BTreeMap, BTreeSet, Box, Cow, HashMap, HashSet, Owned, String, TreeNode, Vec, VecDeque};
use super::contained::{Contained, Extent};
use std::hash::Hash;

// SAFETY: the elements lie in the arena and are whole; the allocator is a number.
unsafe impl<T: Contained> Contained for Vec<T> {
    const POINTS: bool = true;
    fn is_within(&self, arena: &Extent) -> bool {
        let capacity = self.capacity().saturating_mul(size_of::<T>());
        arena.holds_bytes(self.as_ptr().addr(), capacity) && self.as_slice().is_within(arena)
    }
}

// SAFETY: the object lies in the arena and is whole; the allocator is a number.
unsafe impl<T: Contained + ?Sized> Contained for Box<T> {
    const POINTS: bool = true;
    fn is_within(&self, arena: &Extent) -> bool {
        arena.holds::<T>(self) && (!T::POINTS || (**self).is_within(arena))
    }
}

// SAFETY: a table that is allocated comes from its allocator, which gives memory of its own arena only; one that is
// not is a constant of the program. The seed of the hashes is in the map and in a static, which is set before the
// first fork (`registry::prepare`). The entries are whole.
unsafe impl<K: Contained + Eq + Hash, V: Contained> Contained for HashMap<K, V> {
    const POINTS: bool = true;
    fn is_within(&self, arena: &Extent) -> bool {
        let points = K::POINTS || V::POINTS;
        (self.allocation_size() == 0 || arena.is_of(self.allocator()))
            && (!points || self.iter().all(|(key, value)| key.is_within(arena) && value.is_within(arena)))
    }
}

// SAFETY: as a map's.
unsafe impl<T: Contained + Eq + Hash> Contained for HashSet<T> {
    const POINTS: bool = true;
    fn is_within(&self, arena: &Extent) -> bool {
        (self.allocation_size() == 0 || arena.is_of(self.allocator()))
            && (!T::POINTS || self.iter().all(|value| value.is_within(arena)))
    }
}

// SAFETY: the bytes lie in the arena; the allocator is a number.
unsafe impl Contained for String {
    const POINTS: bool = true;
    fn is_within(&self, arena: &Extent) -> bool {
        self.raw().is_within(arena)
    }
}

// SAFETY: the places lie in the arena, those without a value are never read, and the values are whole.
unsafe impl<T: Contained> Contained for VecDeque<T> {
    const POINTS: bool = true;
    fn is_within(&self, arena: &Extent) -> bool {
        let places = self.raw();
        arena.holds_bytes(places.as_ptr().addr(), places.capacity().saturating_mul(size_of::<T>()))
            && (!T::POINTS || self.iter().all(|value| value.is_within(arena)))
    }
}

// SAFETY: a node is two vectors, which lie in the arena and whose entries and children are whole, and a number of entries.
unsafe impl<K: Contained, V: Contained> Contained for BTreeMap<K, V> {
    const POINTS: bool = true;
    fn is_within(&self, arena: &Extent) -> bool {
        fn is_whole<K: Contained, V: Contained>(node: &TreeNode<K, V>, arena: &Extent) -> bool {
            let bytes = node.children.capacity().saturating_mul(size_of::<TreeNode<K, V>>());
            node.entries.is_within(arena)
                && arena.holds_bytes(node.children.as_ptr().addr(), bytes)
                && node.children.iter().all(|child| is_whole(child, arena))
        }
        is_whole(self.root(), arena)
    }
}

// SAFETY: as a map's.
unsafe impl<T: Contained> Contained for BTreeSet<T> {
    const POINTS: bool = true;
    fn is_within(&self, arena: &Extent) -> bool {
        self.map().is_within(arena)
    }
}

// SAFETY: the value lies in the arena and is whole, and so is the count, which nobody reads once the arena is frozen; the allocator is a number.
unsafe impl<T: Contained + ?Sized> Contained for Arc<T> {
    const POINTS: bool = true;
    fn is_within(&self, arena: &Extent) -> bool {
        arena.holds_bytes(Arc::place_of_count(self), size_of::<usize>())
            && arena.holds::<T>(self)
            && (!T::POINTS || !arena.is_first_look::<T>(self) || (**self).is_within(arena))
    }
}

// SAFETY: whichever there is, it is whole.
unsafe impl<B: Owned + Contained + ?Sized> Contained for Cow<B>
where
    B::Copy: Contained,
{
    const POINTS: bool = true;
    fn is_within(&self, arena: &Extent) -> bool {
        match self {
            Self::Borrowed(data) => data.is_within(arena),
            Self::Owned(copy) => copy.is_within(arena),
        }
    }
}
