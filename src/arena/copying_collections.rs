//! Deep copies of maps, sets and queues of the heap.

use super::collections::{BTreeMap, BTreeSet, Building, HashMap, HashSet, VecDeque};
use super::copying::{CopyIn, Copying};
use super::place::Writing;
use super::refusal::quietly;
use crate::error::{Error, Result};
use allocator_api2::collections::TryReserveError;
use hashbrown::{hash_map, hash_set};
use std::collections::HashMap as StdHashMap;
use std::hash::{BuildHasher, Hash};

impl<T: CopyIn> CopyIn for std::collections::VecDeque<T> {
    type Twin = VecDeque<T::Twin>;
    fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
        let mut twins = VecDeque::new_in(to.arena);
        to.taken(|| twins.try_reserve_exact(self.len()))?;
        for value in self {
            let twin = value.copy_in(to)?;
            to.held(size_of::<T::Twin>(), || twins.push_back(twin))?;
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
        to.held(self.len(), || to.taken(|| twins.try_reserve(self.len())))??;
        for (key, value) in self {
            let (key, value) = (key.copy_in(to)?, value.copy_in(to)?);
            // Keys are hashed and compared, and what is replaced is dropped, while no freeze is held up.
            let _replaced = match twins.entry(key) {
                hash_map::Entry::Occupied(mut entry) => Some(to.held(self.len(), || entry.insert(value))?),
                hash_map::Entry::Vacant(entry) => {
                    to.held(self.len(), || entry.insert(value))?;
                    None
                }
            };
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
        to.held(self.len(), || to.taken(|| twins.try_reserve(self.len())))??;
        for value in self {
            // Values are hashed and compared while no freeze is held up, as the keys of a map are.
            if let hash_set::Entry::Vacant(entry) = twins.entry(value.copy_in(to)?) {
                to.held(self.len(), || entry.insert())?;
            }
        }
        Ok(twins)
    }
}

/// A tree could not grow: the arena is frozen, or has no memory.
struct Refused(Option<Error>);

impl From<TryReserveError> for Refused {
    fn from(_: TryReserveError) -> Self {
        Self(None)
    }
}

/// Calls what makes a tree larger, with a function that holds a freeze up.
fn grow<R>(
    to: &Copying,
    grow: impl FnOnce(&dyn Fn() -> std::result::Result<Writing<'static>, Refused>) -> std::result::Result<R, Refused>,
) -> Result<R> {
    let hold = || to.arena.writing().map_err(|e| Refused(Some(e)));
    quietly(|| grow(&hold)).map_err(|Refused(why)| why.unwrap_or_else(|| to.why_not()))
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
            grow(to, |hold| twins.try_push(key, value, hold))?;
        }
        grow(to, |hold| twins.finish(hold))
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
            grow(to, |hold| twins.try_push(value, (), hold))?;
        }
        grow(to, |hold| twins.finish(hold)).map(BTreeSet::of_map)
    }
}
