//! A set in order, in an arena.

use super::btree::BTreeMap;
use crate::arena::memory::ArenaRef;
use allocator_api2::collections::TryReserveError;
use std::borrow::Borrow;
use std::fmt;
use std::ops::RangeBounds;

/// A `BTreeSet` in an arena; see [`BTreeMap`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BTreeSet<T>(BTreeMap<T, ()>);

impl<T> BTreeSet<T> {
    /// An empty set.
    pub fn new_in(arena: ArenaRef) -> Self {
        Self(BTreeMap::new_in(arena))
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The arena.
    pub fn allocator(&self) -> &ArenaRef {
        self.0.allocator()
    }

    /// Drops all values.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The values in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.0.keys()
    }

    /// The smallest value.
    pub fn first(&self) -> Option<&T> {
        self.0.first_key_value().map(|(value, ())| value)
    }

    /// The largest value.
    pub fn last(&self) -> Option<&T> {
        self.0.last_key_value().map(|(value, ())| value)
    }

    /// Takes the smallest value.
    pub fn pop_first(&mut self) -> Option<T> {
        self.0.pop_first().map(|(value, ())| value)
    }

    /// Takes the largest value.
    pub fn pop_last(&mut self) -> Option<T> {
        self.0.pop_last().map(|(value, ())| value)
    }

    pub(in crate::arena) fn of_map(map: BTreeMap<T, ()>) -> Self {
        Self(map)
    }

    pub(in crate::arena) fn map(&self) -> &BTreeMap<T, ()> {
        &self.0
    }
}

impl<T: Ord> BTreeSet<T> {
    /// Puts a value in; false if it was there.
    pub fn insert(&mut self, value: T) -> bool {
        self.0.insert(value, ()).is_none()
    }

    /// [`Self::insert`] that returns where there is no memory. The value is dropped then.
    ///
    /// # Errors
    /// There is no memory; [`ArenaRef::take_failure`] says why.
    pub fn try_insert(&mut self, value: T) -> Result<bool, TryReserveError> {
        Ok(self.0.try_insert(value, ())?.is_none())
    }

    /// Tells whether the value is there.
    pub fn contains<Q: Ord + ?Sized>(&self, value: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.0.contains_key(value)
    }

    /// The value that equals this one.
    pub fn get<Q: Ord + ?Sized>(&self, value: &Q) -> Option<&T>
    where
        T: Borrow<Q>,
    {
        self.0.get_key_value(value).map(|(own, ())| own)
    }

    /// Takes a value out; false if it was not there.
    pub fn remove<Q: Ord + ?Sized>(&mut self, value: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.0.remove(value).is_some()
    }

    /// The values in order that lie in a range; see [`BTreeMap::range`].
    pub fn range<Q: Ord + ?Sized, R: RangeBounds<Q>>(&self, range: R) -> impl DoubleEndedIterator<Item = &T>
    where
        T: Borrow<Q>,
    {
        self.0.range(range).map(|(value, ())| value)
    }
}

impl<T: Ord> Extend<T> for BTreeSet<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, values: I) {
        self.0.extend(values.into_iter().map(|value| (value, ())));
    }
}

impl<T: fmt::Debug> fmt::Debug for BTreeSet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
