//! Deep copies of maps, sets and queues of the heap.

use super::collections::{BTreeMap, BTreeSet, Building, HashMap, HashSet, VecDeque};
use super::copying::{CopyIn, Copying};
use crate::error::Result;
use std::collections::HashMap as StdHashMap;
use std::hash::{BuildHasher, Hash};

impl<T: CopyIn> CopyIn for std::collections::VecDeque<T> {
    type Twin = VecDeque<T::Twin>;
    fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
        let mut twins = VecDeque::new_in(to.arena);
        to.taken(|| twins.try_reserve_exact(self.len()))?;
        for value in self {
            twins.push_back(value.copy_in(to)?);
        }
        Ok(twins)
    }
}

impl<K: CopyIn, V: CopyIn, S: BuildHasher> CopyIn for StdHashMap<K, V, S>
where
    K::Twin: Eq + Hash,
{
    type Twin = HashMap<K::Twin, V::Twin>;
    fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
        let mut twins: Self::Twin = HashMap::with_hasher_in(Default::default(), to.arena);
        to.taken(|| twins.try_reserve(self.len()))?;
        for (key, value) in self {
            twins.insert(key.copy_in(to)?, value.copy_in(to)?);
        }
        Ok(twins)
    }
}

impl<T: CopyIn, S: BuildHasher> CopyIn for std::collections::HashSet<T, S>
where
    T::Twin: Eq + Hash,
{
    type Twin = HashSet<T::Twin>;
    fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
        let mut twins: Self::Twin = HashSet::with_hasher_in(Default::default(), to.arena);
        to.taken(|| twins.try_reserve(self.len()))?;
        for value in self {
            twins.insert(value.copy_in(to)?);
        }
        Ok(twins)
    }
}

impl<K: CopyIn, V: CopyIn> CopyIn for std::collections::BTreeMap<K, V>
where
    K::Twin: Ord,
{
    type Twin = BTreeMap<K::Twin, V::Twin>;
    fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
        let mut twins = Building::new_in(to.arena);
        for (key, value) in self {
            let (key, value) = (key.copy_in(to)?, value.copy_in(to)?);
            to.taken(|| twins.try_push(key, value))?;
        }
        Ok(twins.finish())
    }
}

impl<T: CopyIn> CopyIn for std::collections::BTreeSet<T>
where
    T::Twin: Ord,
{
    type Twin = BTreeSet<T::Twin>;
    fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
        let mut twins = Building::new_in(to.arena);
        for value in self {
            let value = value.copy_in(to)?;
            to.taken(|| twins.try_push(value, ()))?;
        }
        Ok(BTreeSet::of_map(twins.finish()))
    }
}
