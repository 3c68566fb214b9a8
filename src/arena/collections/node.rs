//! Nodes of a B-tree: how values are found, and how nodes stay half full.
//!
//! ```text
//!            [ 10 | 20 ]              entries, in order; none but the root's has fewer than HALF - 1
//!           /     |     \
//!    [ 3 | 7 ] [ 15 ] [ 22 | 30 ]     children: one more than entries, or none in a leaf
//! ```
//! Both lists of a node have all the room that they may need from the beginning, so that only a split allocates. Walks go from the root down
//! once: a full node is split before an insertion enters it, and a poor one is filled before a removal does.

use super::Vec;
use crate::arena::memory::ArenaRef;
use allocator_api2::collections::TryReserveError;
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::mem;

/// The smallest number of children of an inner node that is not the root.
const HALF: usize = 6;
/// The most entries of a node.
const ENTRIES_MAX: usize = 2 * HALF - 1;

pub(in crate::arena) struct Node<K, V> {
    pub(in crate::arena) entries: Vec<(K, V)>,
    pub(in crate::arena) children: Vec<Self>,
}

impl<K, V> Node<K, V> {
    /// A node without memory, for an empty tree.
    pub(super) fn empty(arena: ArenaRef) -> Self {
        Self { entries: Vec::new_in(arena), children: Vec::new_in(arena) }
    }

    /// A node with all the room that it may need.
    fn with_room(is_leaf: bool, arena: ArenaRef) -> Result<Self, TryReserveError> {
        let mut node = Self::empty(arena);
        node.entries.try_reserve_exact(ENTRIES_MAX)?;
        if !is_leaf {
            node.children.try_reserve_exact(ENTRIES_MAX + 1)?;
        }
        Ok(node)
    }

    pub(super) fn is_leaf(&self) -> bool {
        self.children.is_empty()
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= ENTRIES_MAX
    }

    /// The number of the entry with this key, or of the child in which it would lie.
    pub(super) fn search<Q: Ord + ?Sized>(&self, key: &Q) -> Result<usize, usize>
    where
        K: Borrow<Q>,
    {
        for (number, (own, _)) in self.entries.iter().enumerate() {
            match key.cmp(own.borrow()) {
                Ordering::Greater => {}
                Ordering::Equal => return Ok(number),
                Ordering::Less => return Err(number),
            }
        }
        Err(self.entries.len())
    }

    pub(super) fn find<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&(K, V)>
    where
        K: Borrow<Q>,
    {
        let mut node = self;
        loop {
            match node.search(key) {
                Ok(number) => return node.entries.get(number),
                Err(number) => node = node.children.get(number)?,
            }
        }
    }

    pub(super) fn find_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let mut node = self;
        loop {
            match node.search(key) {
                Ok(number) => return node.entries.get_mut(number).map(|(_, value)| value),
                Err(number) => node = node.children.get_mut(number)?,
            }
        }
    }

    /// Puts an entry in, from the root, and returns the value that it replaces. Without memory the tree holds what it held.
    ///
    /// The guard that `hold` returns is held whenever a node is written. Meanwhile no keys are compared, nothing is dropped that the user made, and nothing is allocated.
    pub(super) fn insert<G, E: From<TryReserveError>>(
        &mut self,
        key: K,
        value: V,
        hold: impl Fn() -> Result<G, E>,
    ) -> Result<Option<V>, E>
    where
        K: Ord,
    {
        let arena = *self.entries.allocator();
        if self.entries.capacity() < ENTRIES_MAX {
            *self = Self::with_room(true, arena)?;
        }
        if self.is_full() {
            let (mut root, mut right) = (Self::with_room(false, arena)?, Self::with_room(self.is_leaf(), arena)?);
            let _held = hold()?;
            let middle = self.split(&mut right);
            let left = mem::replace(self, Self::empty(arena));
            root.entries.push(middle);
            root.children.push(left);
            root.children.push(right);
            *self = root;
        }
        let mut node = self;
        loop {
            let mut number = match node.search(&key) {
                Ok(number) => {
                    let _held = hold()?;
                    return Ok(Some(mem::replace(&mut node.entries[number].1, value)));
                }
                Err(number) => number,
            };
            if node.is_leaf() {
                let _held = hold()?;
                node.entries.insert(number, (key, value));
                return Ok(None);
            }
            if node.children[number].is_full() {
                let mut right = Self::with_room(node.children[number].is_leaf(), arena)?;
                let held = hold()?;
                let middle = node.children[number].split(&mut right);
                node.entries.insert(number, middle);
                node.children.insert(number + 1, right);
                drop(held);
                match key.cmp(&node.entries[number].0) {
                    Ordering::Less => {}
                    Ordering::Equal => {
                        let _held = hold()?;
                        return Ok(Some(mem::replace(&mut node.entries[number].1, value)));
                    }
                    Ordering::Greater => number += 1,
                }
            }
            node = &mut node.children[number];
        }
    }

    /// The entry with the largest key.
    pub(super) fn last(&self) -> Option<&(K, V)> {
        self.children.last().and_then(Self::last).or(self.entries.last())
    }

    /// Puts an entry behind all others, from the root of a tree that is being built by this alone: its nodes are full, but for the last of each level, which may have
    /// no entry until [`Self::settle`]. `hold` is as in [`Self::insert`].
    pub(super) fn push_last<G, E: From<TryReserveError>>(
        &mut self,
        entry: (K, V),
        hold: &impl Fn() -> Result<G, E>,
    ) -> Result<(), E> {
        let arena = *self.entries.allocator();
        if self.entries.capacity() < ENTRIES_MAX {
            *self = Self::with_room(true, arena)?;
        }
        if !self.has_room_at_end() {
            let mut root = Self::with_room(false, arena)?;
            let _held = hold()?;
            root.children.push(mem::replace(self, Self::empty(arena)));
            *self = root;
        }
        let mut node = self;
        while node.children.last().is_some_and(Self::has_room_at_end) {
            let last = node.children.len() - 1;
            node = &mut node.children[last];
        }
        // Where all below is full, the entry divides it from a new last child.
        let child = node.children.last().map(|last| last.sprout(hold)).transpose()?;
        let _held = hold()?;
        node.children.extend(child);
        node.entries.push(entry);
        Ok(())
    }

    /// Tells whether this node or a last one below it has room.
    fn has_room_at_end(&self) -> bool {
        !self.is_full() || self.children.last().is_some_and(Self::has_room_at_end)
    }

    /// A node without entries, and one below another as deep as this goes.
    fn sprout<G, E: From<TryReserveError>>(&self, hold: &impl Fn() -> Result<G, E>) -> Result<Self, E> {
        let mut node = Self::with_room(self.is_leaf(), *self.entries.allocator())?;
        if let Some(last) = self.children.last() {
            let child = last.sprout(hold)?;
            let _held = hold()?;
            node.children.push(child);
        }
        Ok(node)
    }

    /// Gives the last nodes of a tree that was built by [`Self::push_last`] the entries that they must have, from the full ones before them.
    pub(super) fn settle(&mut self) {
        let mut node = self;
        while let Some(last) = node.children.len().checked_sub(1) {
            while last > 0 && node.children[last].entries.len() < HALF - 1 {
                node.take_from_left(last);
            }
            node = &mut node.children[last];
        }
    }

    /// Moves the last entry of a child's left neighbour to the child, by way of the entry between them.
    fn take_from_left(&mut self, number: usize) {
        let left = &mut self.children[number - 1];
        let (entry, child) = (left.entries.pop(), left.children.pop());
        if let Some(entry) = entry {
            let between = mem::replace(&mut self.entries[number - 1], entry);
            let poor = &mut self.children[number];
            poor.entries.insert(0, between);
            child.into_iter().for_each(|child| poor.children.insert(0, child));
        }
    }

    /// Moves the second half of a full node to one that has room, and returns the entry before it.
    fn split(&mut self, right: &mut Self) -> (K, V) {
        right.entries.extend(self.entries.drain(HALF..));
        if !self.is_leaf() {
            right.children.extend(self.children.drain(HALF..));
        }
        // The node was full, so that HALF entries are left in it.
        self.entries.remove(HALF - 1)
    }

    /// Takes an entry out, from the root. A root without entries has at most one child, which the caller makes the root.
    pub(super) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<(K, V)>
    where
        K: Borrow<Q>,
    {
        let mut node = self;
        loop {
            let number = match (node.search(key), node.is_leaf()) {
                (Ok(number), true) => return Some(node.entries.remove(number)),
                (Err(_), true) => return None,
                (Ok(number), false) => {
                    // The entry's place is taken by its neighbour, which lies in a leaf.
                    if node.children[number].entries.len() >= HALF {
                        let before = node.children[number].remove_end(true)?;
                        return Some(mem::replace(&mut node.entries[number], before));
                    }
                    if node.children[number + 1].entries.len() >= HALF {
                        let after = node.children[number + 1].remove_end(false)?;
                        return Some(mem::replace(&mut node.entries[number], after));
                    }
                    node.merge(number);
                    number
                }
                (Err(number), false) => node.fill(number),
            };
            node = &mut node.children[number];
        }
    }

    /// Takes the last entry out, or the first, of a node that is not poor or is the root.
    pub(super) fn remove_end(&mut self, last: bool) -> Option<(K, V)> {
        let mut node = self;
        while !node.is_leaf() {
            let end = if last { node.children.len() - 1 } else { 0 };
            let number = node.fill(end);
            node = &mut node.children[number];
        }
        if last { node.entries.pop() } else { (!node.entries.is_empty()).then(|| node.entries.remove(0)) }
    }

    /// Gives a child an entry more than it must have, from a neighbour or by joining the two; returns where it is then.
    fn fill(&mut self, number: usize) -> usize {
        // A root may be left with one child where the order of keys panicked.
        if self.children[number].entries.len() >= HALF || self.children.len() == 1 {
            return number;
        }
        if number > 0 && self.children[number - 1].entries.len() >= HALF {
            self.take_from_left(number);
            return number;
        }
        if self.children.get(number + 1).is_some_and(|right| right.entries.len() >= HALF) {
            let right = &mut self.children[number + 1];
            let entry = right.entries.remove(0);
            let child = (!right.is_leaf()).then(|| right.children.remove(0));
            let between = mem::replace(&mut self.entries[number], entry);
            let poor = &mut self.children[number];
            poor.entries.push(between);
            poor.children.extend(child);
            return number;
        }
        let left = if number + 1 < self.children.len() { number } else { number - 1 };
        self.merge(left);
        left
    }

    /// Joins two poor children and the entry between them; there is room for all in the first.
    fn merge(&mut self, left: usize) {
        let between = self.entries.remove(left);
        let mut right = self.children.remove(left + 1);
        let left = &mut self.children[left];
        left.entries.push(between);
        left.entries.append(&mut right.entries);
        left.children.append(&mut right.children);
    }
}

#[cfg(test)]
impl<K, V> Node<K, V> {
    /// The depth below a node, if it is the same everywhere, and all nodes have as many entries and children as they must.
    pub(super) fn is_sound(&self, is_root: bool) -> Option<usize> {
        let entries = self.entries.len();
        let fits = entries <= ENTRIES_MAX && (is_root || entries >= HALF - 1);
        if self.is_leaf() {
            return fits.then_some(0);
        }
        let depths: std::vec::Vec<_> = self.children.iter().map(|child| child.is_sound(false)).collect();
        let first = depths[0]?;
        (fits && entries + 1 == depths.len() && depths.iter().all(|depth| *depth == Some(first))).then_some(first + 1)
    }
}

impl<K: Clone, V: Clone> Node<K, V> {
    /// A copy with the room that its nodes need when they are changed.
    pub(super) fn copy(&self) -> Self {
        let arena = *self.entries.allocator();
        let mut copy = Self::empty(arena);
        if self.entries.capacity() > 0 {
            copy.entries.reserve_exact(ENTRIES_MAX);
            copy.entries.extend(self.entries.iter().cloned());
        }
        if !self.is_leaf() {
            copy.children.reserve_exact(ENTRIES_MAX + 1);
            copy.children.extend(self.children.iter().map(Self::copy));
        }
        copy
    }
}
