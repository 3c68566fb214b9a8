//! Iterators into collections of an arena.

use super::btree::Building;
use super::{BTreeMap, BTreeSet, Box, HashMap, HashSet, String, Vec, VecDeque};
use crate::arena::memory::ArenaRef;
use allocator_api2::alloc::{Layout, handle_alloc_error};
use allocator_api2::collections::TryReserveError;
use std::convert::Infallible;
use std::hash::Hash;

/// A collection that an iterator can be collected into.
pub trait FromIteratorIn<T> {
    /// The collection of all that comes, in an arena.
    fn from_iter_in<I: IntoIterator<Item = T>>(values: I, arena: ArenaRef) -> Self;
}

/// [`Iterator::collect`] into an arena. Without memory the program aborts, as it does there; [`ArenaRef::alloc_iter`] returns an error.
///
/// ```
/// use cowbell::arena::{Arena, BTreeMap, CollectIn, Vec};
///
/// let arena = Arena::builder("squares").build()?;
/// let squares: Vec<u64> = (0..100).map(|n| n * n).collect_in(*arena);
/// let roots: BTreeMap<u64, u64> = squares.iter().zip(0..).map(|(&square, root)| (square, root)).collect_in(*arena);
/// let both = arena.freeze((squares, roots))?;
/// assert_eq!(both.1[&81], 9);
/// # Ok::<(), cowbell::Error>(())
/// ```
pub trait CollectIn: Iterator + Sized {
    /// All that comes, as a collection in an arena.
    #[track_caller]
    fn collect_in<C: FromIteratorIn<Self::Item>>(self, arena: ArenaRef) -> C {
        C::from_iter_in(self, arena.site::<C>())
    }
}

impl<I: Iterator> CollectIn for I {}

impl<T> FromIteratorIn<T> for Vec<T> {
    fn from_iter_in<I: IntoIterator<Item = T>>(values: I, arena: ArenaRef) -> Self {
        let values = values.into_iter();
        let mut all = Self::with_capacity_in(values.size_hint().0, arena);
        all.extend(values);
        all
    }
}

impl<T> FromIteratorIn<T> for Box<[T]> {
    fn from_iter_in<I: IntoIterator<Item = T>>(values: I, arena: ArenaRef) -> Self {
        Vec::from_iter_in(values, arena).into_boxed_slice()
    }
}

impl<K: Ord, V> FromIteratorIn<(K, V)> for BTreeMap<K, V> {
    fn from_iter_in<I: IntoIterator<Item = (K, V)>>(entries: I, arena: ArenaRef) -> Self {
        let mut building = Building::new_in(arena);
        for (key, value) in entries {
            let pushed = building.try_push(key, value, || Ok::<_, TryReserveError>(()));
            // The arena has told the reason.
            pushed.unwrap_or_else(|_| handle_alloc_error(Layout::new::<(K, V)>()));
        }
        let Ok(all) = building.finish(|| Ok::<_, Infallible>(()));
        all
    }
}

impl<T: Ord> FromIteratorIn<T> for BTreeSet<T> {
    fn from_iter_in<I: IntoIterator<Item = T>>(values: I, arena: ArenaRef) -> Self {
        Self::of_map(BTreeMap::from_iter_in(values.into_iter().map(|value| (value, ())), arena))
    }
}

/// Collections that are extended by what they are collected from.
macro_rules! extended {
    ($([$($param:tt)*] $item:ty => $collection:ty, $new:expr;)*) => { $(
        impl<$($param)*> FromIteratorIn<$item> for $collection {
            fn from_iter_in<I: IntoIterator<Item = $item>>(values: I, arena: ArenaRef) -> Self {
                let mut all: Self = $new(arena);
                all.extend(values);
                all
            }
        }
    )* };
}

extended![
    [] char => String, String::new_in;
    ['a] &'a str => String, String::new_in;
    [T] T => VecDeque<T>, VecDeque::new_in;
    [K: Eq + Hash, V] (K, V) => HashMap<K, V>, |arena| HashMap::with_hasher_in(Default::default(), arena);
    [T: Eq + Hash] T => HashSet<T>, |arena| HashSet::with_hasher_in(Default::default(), arena);
];
