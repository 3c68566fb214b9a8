//! A map in order of its keys, in an arena.

use super::iterate::{Iter, IterMut};
use super::node::Node;
use crate::arena::memory::ArenaRef;
use allocator_api2::alloc::{Layout, handle_alloc_error};
use allocator_api2::collections::TryReserveError;
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{Index, RangeBounds};

/// A `BTreeMap` in an arena: a B-tree whose nodes have room for eleven entries.
///
/// ```
/// let arena = cowbell::arena::Arena::builder("squares").build()?;
/// let mut squares = arena.btree_map();
/// for n in 0..100u64 {
///     squares.insert(n * n, n);
/// }
/// let squares = arena.freeze(squares)?;
/// assert_eq!(squares.get(&81), Some(&9));
/// assert_eq!(squares.range(50..).next(), Some((&64, &8)));
/// # Ok::<(), cowbell::Error>(())
/// ```
pub struct BTreeMap<K, V> {
    root: Node<K, V>,
    len: usize,
}

impl<K, V> BTreeMap<K, V> {
    /// An empty map.
    pub fn new_in(arena: ArenaRef) -> Self {
        Self { root: Node::empty(arena), len: 0 }
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Tells whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The arena.
    pub fn allocator(&self) -> &ArenaRef {
        self.root.entries.allocator()
    }

    /// Drops all entries.
    pub fn clear(&mut self) {
        *self = Self::new_in(*self.allocator());
    }

    /// The entries in order.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter::all(&self.root)
    }

    /// The entries in order, to change their values.
    pub fn iter_mut(&mut self) -> IterMut<'_, K, V> {
        IterMut::new(&mut self.root)
    }

    /// The keys in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// The values in order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// The values in order of their keys, to change them.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.iter_mut().map(|(_, value)| value)
    }

    /// The entry with the smallest key.
    pub fn first_key_value(&self) -> Option<(&K, &V)> {
        self.iter().next()
    }

    /// The entry with the largest key.
    pub fn last_key_value(&self) -> Option<(&K, &V)> {
        self.iter().next_back()
    }

    /// Takes the entry with the smallest key.
    pub fn pop_first(&mut self) -> Option<(K, V)> {
        let taken = self.root.remove_end(false);
        self.taken(taken)
    }

    /// Takes the entry with the largest key.
    pub fn pop_last(&mut self) -> Option<(K, V)> {
        let taken = self.root.remove_end(true);
        self.taken(taken)
    }

    /// Counts an entry that was taken, and takes a root away that has nothing but one child.
    fn taken(&mut self, taken: Option<(K, V)>) -> Option<(K, V)> {
        if self.root.entries.is_empty()
            && let Some(child) = self.root.children.pop()
        {
            self.root = child;
        }
        let taken = taken?;
        self.len -= 1;
        Some(taken)
    }

    pub(in crate::arena) fn root(&self) -> &Node<K, V> {
        &self.root
    }
}

impl<K: Ord, V> BTreeMap<K, V> {
    /// Puts an entry in; the value that it replaces is returned, and the key that was there stays.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let inserted = self.try_insert(key, value);
        // The arena has told the reason.
        inserted.unwrap_or_else(|_| handle_alloc_error(Layout::new::<Node<K, V>>()))
    }

    /// [`Self::insert`] that returns where there is no memory. The entry is dropped then.
    ///
    /// # Errors
    /// There is no memory; [`ArenaRef::take_failure`] says why.
    pub fn try_insert(&mut self, key: K, value: V) -> Result<Option<V>, TryReserveError> {
        self.insert_held(key, value, || Ok(()))
    }

    /// [`Self::try_insert`] that holds what `hold` returns whenever it writes.
    fn insert_held<G, E: From<TryReserveError>>(
        &mut self,
        key: K,
        value: V,
        hold: impl Fn() -> Result<G, E>,
    ) -> Result<Option<V>, E> {
        let replaced = self.root.insert(key, value, hold)?;
        self.len += usize::from(replaced.is_none());
        Ok(replaced)
    }

    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.root.find(key).map(|(_, value)| value)
    }

    /// The value of a key, to change it.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.root.find_mut(key)
    }

    /// The entry of a key.
    pub fn get_key_value<Q: Ord + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        self.root.find(key).map(|(key, value)| (key, value))
    }

    /// Tells whether there is such a key.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.root.find(key).is_some()
    }

    /// Takes the value of a key.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.remove_entry(key).map(|(_, value)| value)
    }

    /// Takes the entry of a key.
    pub fn remove_entry<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<(K, V)>
    where
        K: Borrow<Q>,
    {
        let taken = self.root.remove(key);
        self.taken(taken)
    }

    /// The entries in order whose keys lie in a range. Unlike the standard library's this does not panic where the range's start lies behind its end:
    /// there are none then.
    pub fn range<Q: Ord + ?Sized, R: RangeBounds<Q>>(&self, range: R) -> Iter<'_, K, V>
    where
        K: Borrow<Q>,
    {
        Iter::within(&self.root, &range)
    }

    /// The place of a key, to look at it and fill it.
    pub fn entry(&mut self, key: K) -> Entry<'_, K, V> {
        Entry { map: self, key }
    }
}

/// A map that is being built. While keys rise, its nodes are filled to the last place; by [`BTreeMap::insert`] they would be half full.
///
/// The guard that `hold` returns is held whenever the map is written, and at no time when keys are compared, which is the user's code.
pub(in crate::arena) struct Building<K, V> {
    map: BTreeMap<K, V>,
    rises: bool,
}

impl<K: Ord, V> Building<K, V> {
    pub(in crate::arena) fn new_in(arena: ArenaRef) -> Self {
        Self { map: BTreeMap::new_in(arena), rises: true }
    }

    pub(in crate::arena) fn try_push<G, E: From<TryReserveError>>(
        &mut self,
        key: K,
        value: V,
        hold: impl Fn() -> Result<G, E>,
    ) -> Result<(), E> {
        if self.rises && self.map.root.last().is_some_and(|(last, _)| *last >= key) {
            self.settle(&hold)?;
        }
        if self.rises {
            self.map.root.push_last((key, value), &hold)?;
            self.map.len += 1;
            return Ok(());
        }
        self.map.insert_held(key, value, hold).map(drop)
    }

    fn settle<G, E>(&mut self, hold: impl Fn() -> Result<G, E>) -> Result<(), E> {
        let _held = hold()?;
        self.map.root.settle();
        self.rises = false;
        Ok(())
    }

    pub(in crate::arena) fn finish<G, E>(mut self, hold: impl Fn() -> Result<G, E>) -> Result<BTreeMap<K, V>, E> {
        self.settle(hold)?;
        Ok(self.map)
    }
}

/// The place of a key in a [`BTreeMap`].
pub struct Entry<'a, K, V> {
    map: &'a mut BTreeMap<K, V>,
    key: K,
}

impl<'a, K: Ord + Clone, V> Entry<'a, K, V> {
    /// The value, which is `value` where there was none.
    pub fn or_insert(self, value: V) -> &'a mut V {
        self.or_insert_with(|| value)
    }

    /// The value, which is made where there was none.
    pub fn or_insert_with(self, make: impl FnOnce() -> V) -> &'a mut V {
        let Self { map, key } = self;
        if !map.contains_key(&key) {
            map.insert(key.clone(), make());
        }
        map.get_mut(&key).unwrap_or_else(|| unreachable!("the key's order is not the same each time"))
    }

    /// The value, which is its type's default where there was none.
    pub fn or_default(self) -> &'a mut V
    where
        V: Default,
    {
        self.or_insert_with(V::default)
    }

    /// Changes the value, if there is one.
    pub fn and_modify(self, change: impl FnOnce(&mut V)) -> Self {
        if let Some(value) = self.map.get_mut(&self.key) {
            change(value);
        }
        self
    }
}

impl<K: fmt::Debug, V> fmt::Debug for Entry<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Entry").field(&self.key).finish()
    }
}

impl<K: Ord + Borrow<Q>, V, Q: Ord + ?Sized> Index<&Q> for BTreeMap<K, V> {
    type Output = V;

    fn index(&self, key: &Q) -> &V {
        self.get(key).unwrap_or_else(|| panic!("there is no such key"))
    }
}

impl<K: Ord, V> Extend<(K, V)> for BTreeMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<'a, K, V> IntoIterator for &'a BTreeMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Iter<'a, K, V> {
        self.iter()
    }
}

impl<'a, K, V> IntoIterator for &'a mut BTreeMap<K, V> {
    type Item = (&'a K, &'a mut V);
    type IntoIter = IterMut<'a, K, V>;

    fn into_iter(self) -> IterMut<'a, K, V> {
        self.iter_mut()
    }
}

impl<K, V> IntoIterator for BTreeMap<K, V> {
    type Item = (K, V);
    type IntoIter = IntoIter<K, V>;

    fn into_iter(self) -> IntoIter<K, V> {
        IntoIter(self)
    }
}

impl<K: Clone, V: Clone> Clone for BTreeMap<K, V> {
    fn clone(&self) -> Self {
        Self { root: self.root.copy(), len: self.len }
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for BTreeMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<K: Eq, V: Eq> Eq for BTreeMap<K, V> {}

impl<K: PartialOrd, V: PartialOrd> PartialOrd for BTreeMap<K, V> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.iter().partial_cmp(other.iter())
    }
}

impl<K: Ord, V: Ord> Ord for BTreeMap<K, V> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.iter().cmp(other.iter())
    }
}

impl<K: Hash, V: Hash> Hash for BTreeMap<K, V> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_usize(self.len);
        self.iter().for_each(|entry| entry.hash(state));
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for BTreeMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

/// The entries of a [`BTreeMap`] that was given up, in order. They are taken out of its nodes, which is a write: not where the arena is frozen.
pub struct IntoIter<K, V>(BTreeMap<K, V>);

impl<K, V> Iterator for IntoIter<K, V> {
    type Item = (K, V);

    fn next(&mut self) -> Option<(K, V)> {
        self.0.pop_first()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.0.len(), Some(self.0.len()))
    }
}

impl<K, V> DoubleEndedIterator for IntoIter<K, V> {
    fn next_back(&mut self) -> Option<(K, V)> {
        self.0.pop_last()
    }
}

impl<K, V> ExactSizeIterator for IntoIter<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for IntoIter<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.0).finish()
    }
}
