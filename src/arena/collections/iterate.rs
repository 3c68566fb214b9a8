//! The entries of a B-tree in order.

use super::node::Node;
use std::borrow::Borrow;
use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::slice;

/// A place between two entries: nodes from the root down, and in each the number of the entry that follows the place.
struct Cursor<'a, K, V>(Vec<(&'a Node<K, V>, usize)>);

impl<'a, K, V> Cursor<'a, K, V> {
    /// The place before the first entry below a node, or behind the last.
    fn end(root: &'a Node<K, V>, last: bool) -> Self {
        let mut cursor = Self(Vec::new());
        cursor.descend(root, last);
        cursor
    }

    fn descend(&mut self, mut node: &'a Node<K, V>, last: bool) {
        loop {
            let number = if last { node.entries.len() } else { 0 };
            self.0.push((node, number));
            match node.children.get(number) {
                Some(child) => node = child,
                None => return,
            }
        }
    }

    /// The place before the entries with this key and greater ones, or behind that with this key.
    fn at<Q: Ord + ?Sized>(mut node: &'a Node<K, V>, key: &Q, behind: bool) -> Self
    where
        K: Borrow<Q>,
    {
        let mut cursor = Self(Vec::new());
        loop {
            let number = match node.search(key) {
                // Between the entry and its neighbour in a leaf is one place, which is that in the leaf.
                Ok(number) => {
                    let number = number + usize::from(behind);
                    cursor.0.push((node, number));
                    if let Some(child) = node.children.get(number) {
                        cursor.descend(child, !behind);
                    }
                    return cursor;
                }
                Err(number) => number,
            };
            cursor.0.push((node, number));
            match node.children.get(number) {
                Some(child) => node = child,
                None => return cursor,
            }
        }
    }

    /// The entry that follows.
    fn following(&self) -> Option<&'a (K, V)> {
        self.0.iter().rev().find_map(|(node, number)| node.entries.get(*number))
    }

    /// The entry that precedes.
    fn preceding(&self) -> Option<&'a (K, V)> {
        self.0.iter().rev().find_map(|(node, number)| node.entries.get(number.checked_sub(1)?))
    }

    /// Goes behind the entry that follows, and returns it.
    fn forth(&mut self) -> Option<&'a (K, V)> {
        while let Some((node, number)) = self.0.last_mut() {
            if let Some(entry) = node.entries.get(*number) {
                *number += 1;
                if let Some(child) = node.children.get(*number) {
                    self.descend(child, false);
                }
                return Some(entry);
            }
            self.0.pop();
        }
        None
    }

    /// Goes before the entry that precedes, and returns it.
    fn back(&mut self) -> Option<&'a (K, V)> {
        while let Some((node, number)) = self.0.last_mut() {
            if let Some(before) = number.checked_sub(1) {
                *number = before;
                let entry = node.entries.get(before);
                if let Some(child) = node.children.get(before) {
                    self.descend(child, true);
                }
                return entry;
            }
            self.0.pop();
        }
        None
    }
}

impl<K, V> Clone for Cursor<'_, K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// Entries of a [`BTreeMap`](super::BTreeMap) in order.
pub struct Iter<'a, K, V> {
    front: Cursor<'a, K, V>,
    back: Cursor<'a, K, V>,
    /// The last entry that is to come; `None` where all have come.
    last: Option<&'a (K, V)>,
}

impl<'a, K, V> Iter<'a, K, V> {
    pub(super) fn all(root: &'a Node<K, V>) -> Self {
        Self::new(Cursor::end(root, false), Cursor::end(root, true))
    }

    pub(super) fn within<Q: Ord + ?Sized, R: RangeBounds<Q>>(root: &'a Node<K, V>, range: &R) -> Self
    where
        K: Borrow<Q>,
    {
        let front = match range.start_bound() {
            Bound::Included(key) => Cursor::at(root, key, false),
            Bound::Excluded(key) => Cursor::at(root, key, true),
            Bound::Unbounded => Cursor::end(root, false),
        };
        let back = match range.end_bound() {
            Bound::Included(key) => Cursor::at(root, key, true),
            Bound::Excluded(key) => Cursor::at(root, key, false),
            Bound::Unbounded => Cursor::end(root, true),
        };
        // The first entry from the start may lie behind the end.
        let is_empty = front.following().is_none_or(|(first, _)| match range.end_bound() {
            Bound::Included(key) => first.borrow() > key,
            Bound::Excluded(key) => first.borrow() >= key,
            Bound::Unbounded => false,
        });
        let mut within = Self::new(front, back);
        if is_empty {
            within.last = None;
        }
        within
    }

    fn new(front: Cursor<'a, K, V>, back: Cursor<'a, K, V>) -> Self {
        let last = back.preceding();
        Self { front, back, last }
    }
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        let last = self.last?;
        let entry = self.front.forth()?;
        if std::ptr::eq(entry, last) {
            self.last = None;
        }
        Some((&entry.0, &entry.1))
    }
}

impl<K, V> DoubleEndedIterator for Iter<'_, K, V> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.last?;
        let entry = self.back.back()?;
        let is_first = self.front.following().is_none_or(|first| std::ptr::eq(first, entry));
        self.last = if is_first { None } else { self.back.preceding() };
        Some((&entry.0, &entry.1))
    }
}

impl<K, V> Clone for Iter<'_, K, V> {
    fn clone(&self) -> Self {
        Self { front: self.front.clone(), back: self.back.clone(), last: self.last }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Iter<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.clone()).finish()
    }
}

/// Entries of a [`BTreeMap`](super::BTreeMap) in order, to change their values.
pub struct IterMut<'a, K, V>(Vec<Rest<'a, K, V>>);

/// The entries of a node that are to come, and the children behind each of them.
type Rest<'a, K, V> = (slice::IterMut<'a, (K, V)>, slice::IterMut<'a, Node<K, V>>);

impl<'a, K, V> IterMut<'a, K, V> {
    pub(super) fn new(root: &'a mut Node<K, V>) -> Self {
        let mut iter = Self(Vec::new());
        iter.enter(root);
        iter
    }

    /// Goes down to the first entry below a node.
    fn enter(&mut self, mut node: &'a mut Node<K, V>) {
        loop {
            let mut children = node.children.iter_mut();
            let first = children.next();
            self.0.push((node.entries.iter_mut(), children));
            match first {
                Some(child) => node = child,
                None => return,
            }
        }
    }
}

impl<'a, K, V> Iterator for IterMut<'a, K, V> {
    type Item = (&'a K, &'a mut V);

    fn next(&mut self) -> Option<Self::Item> {
        while let Some((entries, children)) = self.0.last_mut() {
            if let Some((key, value)) = entries.next() {
                if let Some(child) = children.next() {
                    self.enter(child);
                }
                return Some((key, value));
            }
            self.0.pop();
        }
        None
    }
}

impl<K, V> fmt::Debug for IterMut<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IterMut").finish_non_exhaustive()
    }
}
