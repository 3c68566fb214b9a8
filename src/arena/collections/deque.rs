//! A queue with two ends in an arena.
//!
//! # Safety
//! ```text
//!  places   0        head              head + len (round the end, if there is no room)
//!           |  room  |  values ...     |  room
//! ```
//! The places that hold values are the `len` ones from `head` on, round the end. `head` is less than the number of places, or both are 0.
#![expect(unsafe_code, reason = "places that hold values are told from those that do not")]

use super::Vec;
use crate::arena::memory::ArenaRef;
use allocator_api2::collections::TryReserveError;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::iter::Chain;
use std::mem::MaybeUninit;
use std::ops::{Index, IndexMut};
use std::slice;

/// A `VecDeque` in an arena: a ring.
///
/// ```
/// let arena = cowbell::arena::Arena::builder("recent").build()?;
/// let mut recent = arena.vec_deque();
/// for n in 0..100 {
///     recent.push_back(n);
///     if recent.len() > 3 {
///         recent.pop_front();
///     }
/// }
/// let recent = arena.freeze(recent)?;
/// assert!(recent.iter().eq(&[97, 98, 99]));
/// # Ok::<(), cowbell::Error>(())
/// ```
pub struct VecDeque<T> {
    places: Vec<MaybeUninit<T>>,
    head: usize,
    len: usize,
}

impl<T> VecDeque<T> {
    /// An empty queue.
    pub fn new_in(arena: ArenaRef) -> Self {
        Self { places: Vec::new_in(arena), head: 0, len: 0 }
    }

    /// An empty queue with room for so many values.
    pub fn with_capacity_in(values: usize, arena: ArenaRef) -> Self {
        let mut queue = Self { places: Vec::with_capacity_in(values, arena), head: 0, len: 0 };
        queue.open(values);
        queue
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Tells whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number of values for which there is room.
    pub fn capacity(&self) -> usize {
        self.places.len()
    }

    /// The arena.
    pub fn allocator(&self) -> &ArenaRef {
        self.places.allocator()
    }

    /// The place of the value of that number, or of the one that would follow the last.
    fn place(&self, number: usize) -> usize {
        let before_end = self.places.len() - self.head;
        if number < before_end { self.head + number } else { number - before_end }
    }

    /// Makes room for so many values more.
    ///
    /// # Errors
    /// There is no memory; [`ArenaRef::take_failure`] says why.
    pub fn try_reserve(&mut self, values: usize) -> Result<(), TryReserveError> {
        let before = self.places.len();
        if before - self.len >= values {
            return Ok(());
        }
        // The vector doubles its room, if that is more.
        self.places.try_reserve(values - (before - self.len))?;
        self.spread(before);
        Ok(())
    }

    /// [`Self::try_reserve`] without room that was not asked for.
    ///
    /// # Errors
    /// Those of [`Self::try_reserve`].
    pub fn try_reserve_exact(&mut self, values: usize) -> Result<(), TryReserveError> {
        let before = self.places.len();
        if before - self.len < values {
            self.places.try_reserve_exact(values - (before - self.len))?;
            self.spread(before);
        }
        Ok(())
    }

    /// Makes room for so many values more.
    pub fn reserve(&mut self, values: usize) {
        let before = self.places.len();
        if before - self.len < values {
            self.places.reserve(values - (before - self.len));
            self.spread(before);
        }
    }

    /// Takes the room that the vector has got into use.
    fn spread(&mut self, before: usize) {
        // A vector of values without size has room without end.
        let room = self.places.capacity().min(isize::MAX as usize);
        let room = if size_of::<T>() == 0 { room.min(before.max(2) * 2).max(self.len + 1) } else { room };
        self.open(room.max(before));
        let first = before - self.head;
        if self.len > first {
            // The values at the end move to the new end, so that those at the start still follow them.
            let more = self.places.len() - before;
            self.places[self.head..].rotate_right(more);
            self.head += more;
        }
    }

    /// Takes so much of the vector's room into use, and writes nothing to it.
    fn open(&mut self, room: usize) {
        debug_assert!(room <= self.places.capacity());
        // SAFETY: the vector has the room, and a place need not hold a value.
        unsafe { self.places.set_len(room) };
    }

    /// Appends a value.
    pub fn push_back(&mut self, value: T) {
        self.reserve(1);
        let place = self.place(self.len);
        self.places[place].write(value);
        self.len += 1;
    }

    /// Puts a value before the first.
    pub fn push_front(&mut self, value: T) {
        self.reserve(1);
        let head = if self.head == 0 { self.places.len() - 1 } else { self.head - 1 };
        self.places[head].write(value);
        self.head = head;
        self.len += 1;
    }

    /// Takes the last value.
    pub fn pop_back(&mut self) -> Option<T> {
        self.len = self.len.checked_sub(1)?;
        let place = self.place(self.len);
        // SAFETY: the place held the last value, and holds none from here on.
        Some(unsafe { self.places[place].assume_init_read() })
    }

    /// Takes the first value.
    pub fn pop_front(&mut self) -> Option<T> {
        self.len = self.len.checked_sub(1)?;
        let place = self.head;
        self.head = self.place(1);
        // SAFETY: the place held the first value, and holds none from here on.
        Some(unsafe { self.places[place].assume_init_read() })
    }

    /// The first value.
    pub fn front(&self) -> Option<&T> {
        self.get(0)
    }

    /// The last value.
    pub fn back(&self) -> Option<&T> {
        self.get(self.len.checked_sub(1)?)
    }

    /// The value of that number.
    pub fn get(&self, number: usize) -> Option<&T> {
        if number >= self.len {
            return None;
        }
        // SAFETY: the place of a value.
        Some(unsafe { self.places[self.place(number)].assume_init_ref() })
    }

    /// The value of that number, to change it.
    pub fn get_mut(&mut self, number: usize) -> Option<&mut T> {
        if number >= self.len {
            return None;
        }
        let place = self.place(number);
        // SAFETY: the place of a value.
        Some(unsafe { self.places[place].assume_init_mut() })
    }

    /// The values as two slices, of which the second follows the first.
    pub fn as_slices(&self) -> (&[T], &[T]) {
        let (first, second) = self.spans();
        // SAFETY: these places hold values.
        let head = unsafe { values(&self.places[self.head..self.head + first]) };
        // SAFETY: these, too.
        (head, unsafe { values(&self.places[..second]) })
    }

    /// The values as two slices, to change them.
    pub fn as_mut_slices(&mut self) -> (&mut [T], &mut [T]) {
        let (first, second) = self.spans();
        // Not all values fit behind the head, or none lies before it.
        let (start, end) = self.places.split_at_mut(self.head);
        // SAFETY: these places hold values.
        let head = unsafe { values_mut(&mut end[..first]) };
        // SAFETY: these, too.
        (head, unsafe { values_mut(&mut start[..second]) })
    }

    /// The number of values from the head to the end of the places, and of those at their start.
    fn spans(&self) -> (usize, usize) {
        let first = self.len.min(self.places.len() - self.head);
        (first, self.len - first)
    }

    /// The values in order.
    pub fn iter(&self) -> Chain<slice::Iter<'_, T>, slice::Iter<'_, T>> {
        let (first, second) = self.as_slices();
        first.iter().chain(second)
    }

    /// The values in order, to change them.
    pub fn iter_mut(&mut self) -> Chain<slice::IterMut<'_, T>, slice::IterMut<'_, T>> {
        let (first, second) = self.as_mut_slices();
        first.iter_mut().chain(second)
    }

    /// Drops all values; the room stays.
    pub fn clear(&mut self) {
        while self.pop_front().is_some() {}
    }

    pub(in crate::arena) fn raw(&self) -> &Vec<MaybeUninit<T>> {
        &self.places
    }
}

/// The values of places.
///
/// # Safety
/// Each of the places holds one.
unsafe fn values<T>(places: &[MaybeUninit<T>]) -> &[T] {
    let values: *const [T] = places as *const [MaybeUninit<T>] as *const [T];
    // SAFETY: the caller promised it; a place has the layout of its value.
    unsafe { &*values }
}

/// The values of places, to be changed.
///
/// # Safety
/// Each of the places holds a value.
unsafe fn values_mut<T>(places: &mut [MaybeUninit<T>]) -> &mut [T] {
    let values: *mut [T] = places as *mut [MaybeUninit<T>] as *mut [T];
    // SAFETY: as above.
    unsafe { &mut *values }
}

impl<'a, T> IntoIterator for &'a VecDeque<T> {
    type Item = &'a T;
    type IntoIter = Chain<slice::Iter<'a, T>, slice::Iter<'a, T>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The queue may lie in an arena that is frozen, so its own fields are not written.
impl<T> Drop for VecDeque<T> {
    fn drop(&mut self) {
        /// A destructor that panics leaves the rest, which is dropped while the panic unwinds.
        struct Values<'a, T>(&'a mut [T]);
        impl<T> Drop for Values<'_, T> {
            fn drop(&mut self) {
                // SAFETY: these are values of a queue that nobody uses any more, and each is dropped by this alone.
                unsafe { std::ptr::drop_in_place(self.0) }
            }
        }
        let (first, second) = self.as_mut_slices();
        // Variables are dropped in the reverse order.
        let _then = Values(second);
        let _before = Values(first);
    }
}

impl<T: Clone> Clone for VecDeque<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::with_capacity_in(self.len, *self.allocator());
        copy.extend(self.iter().cloned());
        copy
    }
}

impl<T> Extend<T> for VecDeque<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, values: I) {
        let values = values.into_iter();
        self.reserve(values.size_hint().0);
        values.for_each(|value| self.push_back(value));
    }
}

impl<T> Index<usize> for VecDeque<T> {
    type Output = T;

    fn index(&self, number: usize) -> &T {
        self.get(number).unwrap_or_else(|| panic!("there are {} values, and no number {number}", self.len))
    }
}

impl<T> IndexMut<usize> for VecDeque<T> {
    fn index_mut(&mut self, number: usize) -> &mut T {
        let len = self.len;
        self.get_mut(number).unwrap_or_else(|| panic!("there are {len} values, and no number {number}"))
    }
}

impl<T: PartialEq> PartialEq for VecDeque<T> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<T: Eq> Eq for VecDeque<T> {}

impl<T: Hash> Hash for VecDeque<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_usize(self.len);
        self.iter().for_each(|value| value.hash(state));
    }
}

impl<T: fmt::Debug> fmt::Debug for VecDeque<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
