//! Text in an arena.
//!
//! # Safety
//! The bytes of a [`String`] are UTF-8: they are only ever those of whole strings and characters, and are cut only at the boundaries of characters.
#![expect(unsafe_code, reason = "bytes that are known to be UTF-8 are text")]

use super::{Box, Vec};
use crate::arena::memory::ArenaRef;
use allocator_api2::collections::TryReserveError;
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{Deref, DerefMut};
use std::str::{self, Utf8Error};

/// A `String` in an arena.
///
/// ```
/// use cowbell::arena::Arena;
/// use std::fmt::Write;
///
/// let arena = Arena::builder("names").build()?;
/// let mut names = arena.vec();
/// for n in 0..100 {
///     let mut name = arena.string();
///     write!(name, "number {n}").expect("there is room");
///     names.push(name);
/// }
/// let names = arena.freeze(names)?;
/// assert_eq!(names[7], "number 7");
/// # Ok::<(), cowbell::Error>(())
/// ```
#[derive(Clone)]
pub struct String(Vec<u8>);

impl String {
    /// An empty string.
    pub fn new_in(arena: ArenaRef) -> Self {
        Self(Vec::new_in(arena))
    }

    /// An empty string with room for so many bytes.
    pub fn with_capacity_in(bytes: usize, arena: ArenaRef) -> Self {
        Self(Vec::with_capacity_in(bytes, arena))
    }

    /// A copy of a text.
    pub fn from_str_in(text: &str, arena: ArenaRef) -> Self {
        let mut copy = Self::with_capacity_in(text.len(), arena);
        copy.push_str(text);
        copy
    }

    /// The text that bytes are.
    ///
    /// # Errors
    /// They are not UTF-8.
    pub fn from_utf8(bytes: Vec<u8>) -> Result<Self, Utf8Error> {
        str::from_utf8(&bytes)?;
        Ok(Self(bytes))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        // SAFETY: the bytes are UTF-8, see the module's contract.
        unsafe { str::from_utf8_unchecked(&self.0) }
    }

    /// The text, to change it in place.
    pub fn as_mut_str(&mut self) -> &mut str {
        // SAFETY: as above; a `&mut str` keeps them so.
        unsafe { str::from_utf8_unchecked_mut(&mut self.0) }
    }

    /// Appends a text.
    pub fn push_str(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    /// Appends a character.
    pub fn push(&mut self, letter: char) {
        self.push_str(letter.encode_utf8(&mut [0; 4]));
    }

    /// Takes the last character.
    pub fn pop(&mut self) -> Option<char> {
        let last = self.chars().next_back()?;
        self.0.truncate(self.0.len() - last.len_utf8());
        Some(last)
    }

    /// Cuts the text to so many bytes; a shorter one stays.
    ///
    /// # Panics
    /// There is no boundary of characters.
    pub fn truncate(&mut self, bytes: usize) {
        if bytes < self.len() {
            assert!(self.is_char_boundary(bytes), "{bytes} bytes are no boundary of characters");
            self.0.truncate(bytes);
        }
    }

    /// Takes all of the text; the room stays.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The number of bytes for which there is room.
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Makes room for so many bytes more.
    pub fn reserve(&mut self, bytes: usize) {
        self.0.reserve(bytes);
    }

    /// Makes room for so many bytes more.
    ///
    /// # Errors
    /// There is no memory; [`ArenaRef::take_failure`] says why.
    pub fn try_reserve(&mut self, bytes: usize) -> Result<(), TryReserveError> {
        self.0.try_reserve(bytes)
    }

    /// [`Self::try_reserve`] without room that was not asked for.
    ///
    /// # Errors
    /// Those of [`Self::try_reserve`].
    pub fn try_reserve_exact(&mut self, bytes: usize) -> Result<(), TryReserveError> {
        self.0.try_reserve_exact(bytes)
    }

    /// Gives room back that is not used.
    pub fn shrink_to_fit(&mut self) {
        self.0.shrink_to_fit();
    }

    /// The arena.
    pub fn allocator(&self) -> &ArenaRef {
        self.0.allocator()
    }

    /// The bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// The text without room for more.
    pub fn into_boxed_str(self) -> Box<str> {
        let (bytes, arena) = Box::into_raw_with_allocator(self.0.into_boxed_slice());
        // SAFETY: the block is of this arena, and its bytes are UTF-8: a str has the layout of its bytes.
        unsafe { Box::from_raw_in(bytes as *mut str, arena) }
    }

    /// The text for as long as the program runs.
    pub fn leak(self) -> &'static mut str {
        let bytes = self.0.leak();
        // SAFETY: the bytes are UTF-8.
        unsafe { str::from_utf8_unchecked_mut(bytes) }
    }

    pub(in crate::arena) fn raw(&self) -> &Vec<u8> {
        &self.0
    }
}

impl Deref for String {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl DerefMut for String {
    fn deref_mut(&mut self) -> &mut str {
        self.as_mut_str()
    }
}

impl Borrow<str> for String {
    fn borrow(&self) -> &str {
        self
    }
}

impl AsRef<str> for String {
    fn as_ref(&self) -> &str {
        self
    }
}

impl AsRef<[u8]> for String {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Display for String {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.as_str(), f)
    }
}

impl fmt::Debug for String {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Fails without room, and does not abort.
impl fmt::Write for String {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.try_reserve(text.len()).map_err(|_| fmt::Error)?;
        self.push_str(text);
        Ok(())
    }
}

impl Extend<char> for String {
    fn extend<I: IntoIterator<Item = char>>(&mut self, letters: I) {
        letters.into_iter().for_each(|letter| self.push(letter));
    }
}

impl<'a> Extend<&'a str> for String {
    fn extend<I: IntoIterator<Item = &'a str>>(&mut self, texts: I) {
        texts.into_iter().for_each(|text| self.push_str(text));
    }
}

impl Eq for String {}

impl PartialEq for String {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl PartialEq<str> for String {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for String {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl PartialEq<std::string::String> for String {
    fn eq(&self, other: &std::string::String) -> bool {
        self.as_str() == other
    }
}

impl PartialOrd for String {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for String {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

/// The hash is that of the `str`, by which maps may be asked.
impl Hash for String {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for String {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}
