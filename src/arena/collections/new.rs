//! Empty collections of an arena.

use super::{Arc, BTreeMap, BTreeSet, Box, HashMap, HashSet, String, Vec, VecDeque};
use crate::arena::memory::ArenaRef;

impl ArenaRef {
    /// An empty vector; what it allocates is recorded as this line's, if the arena records sites.
    ///
    /// ```
    /// let arena = cowbell::arena::Arena::builder("squares").build()?;
    /// let mut squares = arena.vec();
    /// squares.extend((0..100u64).map(|n| n * n));
    /// let squares = arena.freeze(squares)?;
    /// # Ok::<(), cowbell::Error>(())
    /// ```
    #[track_caller]
    pub fn vec<T>(&self) -> Vec<T> {
        Vec::new_in(self.site::<T>())
    }

    /// An empty string; see [`Self::vec`].
    #[track_caller]
    pub fn string(&self) -> String {
        String::new_in(self.site::<str>())
    }

    /// An empty hash map; see [`Self::vec`].
    #[track_caller]
    pub fn hash_map<K, V>(&self) -> HashMap<K, V> {
        HashMap::with_hasher_in(hashbrown::DefaultHashBuilder::default(), self.site::<(K, V)>())
    }

    /// An empty hash set; see [`Self::vec`].
    #[track_caller]
    pub fn hash_set<T>(&self) -> HashSet<T> {
        HashSet::with_hasher_in(hashbrown::DefaultHashBuilder::default(), self.site::<T>())
    }

    /// An empty map in order of its keys; see [`Self::vec`].
    #[track_caller]
    pub fn btree_map<K, V>(&self) -> BTreeMap<K, V> {
        BTreeMap::new_in(self.site::<(K, V)>())
    }

    /// An empty set in order; see [`Self::vec`].
    #[track_caller]
    pub fn btree_set<T>(&self) -> BTreeSet<T> {
        BTreeSet::new_in(self.site::<T>())
    }

    /// An empty queue with two ends; see [`Self::vec`].
    #[track_caller]
    pub fn vec_deque<T>(&self) -> VecDeque<T> {
        VecDeque::new_in(self.site::<T>())
    }

    /// A value in a box, which drops it as long as the arena grows; see [`Self::vec`].
    ///
    /// Without memory for it the program aborts, as with [`std::boxed::Box`]; [`Self::alloc`] returns an error, and never drops the value.
    #[track_caller]
    pub fn boxed<T>(&self, value: T) -> Box<T> {
        Box::new_in(value, self.site::<T>())
    }

    /// A counted value; see [`Self::boxed`].
    #[track_caller]
    pub fn arc<T>(&self, value: T) -> Arc<T> {
        Arc::new_in(value, self.site::<T>())
    }
}
