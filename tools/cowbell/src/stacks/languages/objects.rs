//! The objects of interpreters in memory: what each layout tells of a page, and of the words that changed on it.

use crate::record::{Kinds, Wrote};
use std::cell::Cell;
use std::rc::Rc;

/// Reads the word at an address of a process.
pub type ReadWord<'a> = dyn FnMut(u64) -> Option<u64> + 'a;

/// The meaning of a word of an object that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangedWord {
    /// The word is a reference count.
    Count,
    /// The word was written because a string was used as a number, which it keeps.
    Number,
    /// The word was written because a number was used as a string, whose text it keeps.
    Text,
    /// The word was written because a value was asked for something that it remembers: the length of a string, the place of a match, which
    /// characters it has, the id of an object.
    Remembered,
    /// The word was written because a hash was made to keep where one stands that goes through it.
    Iterator,
    /// The word counts the copies of a text and nothing else of it changed, or says that a string or an array shares its memory with a copy.
    Copies,
    /// The collector wrote the word as it marked or freed an object, or moved it in its lists.
    Mark,
    /// An object was put in a place that was free; it may have died since.
    Made,
}

/// The word at an offset of a page.
pub fn word_at(page: &[u8], at: usize) -> Option<u64> {
    page.get(at..)?.first_chunk::<8>().map(|word| u64::from_le_bytes(*word))
}

/// The objects in one process' memory, told by their layout.
pub trait ObjectReader {
    /// The kind of the word at an address, as it is before it is written.
    fn wrote(&mut self, address: u64, word: &mut ReadWord<'_>) -> Wrote;

    /// Tells whether the byte at an address, to which one is about to be added, counts the copies that share a text. Never, in a language
    /// whose texts have no such counts.
    fn counts_copies(&mut self, _address: u64, _word: &mut ReadWord<'_>) -> bool {
        false
    }

    /// Tells whether a page holds an object.
    fn any_in(&mut self, page: &[u8], word: &mut ReadWord<'_>) -> bool;

    /// Tells whether a word that went from `was` to `is`, with `next` behind it before and after, is a reference count. Never, in a language that counts no
    /// references, or whose counts are told by [`Self::changed`].
    fn is_count(&mut self, _was: u64, _is: u64, _next: u64, _word: &mut ReadWord<'_>) -> bool {
        false
    }

    /// The same of a page at an address, where that tells.
    fn any_at(&mut self, _address: u64, page: &[u8], word: &mut ReadWord<'_>) -> bool {
        self.any_in(page, word)
    }

    /// The meaning of the word at an offset of the page at an address that went from `was` to `is`.
    fn changed(
        &mut self,
        _was: &[u8],
        _is: &[u8],
        _page_and_offset: (u64, usize),
        _word: &mut ReadWord<'_>,
    ) -> Option<ChangedWord> {
        None
    }

    /// Tells whether a page holds what the collector took for itself as it visits objects; `None` where that is not known.
    fn is_of_collector(&mut self, _page: u64, _word: &mut ReadWord<'_>) -> Option<bool> {
        None
    }

    /// The kinds of the objects on these pages, which ascend; `None` where no types are known.
    fn kinds(&mut self, _pages: &[u64], _page_bytes: u64, _word: &mut ReadWord<'_>) -> Option<Kinds> {
        None
    }

    /// Tells whether a string is immortal, so that using it counts nothing, if the word at an offset of a page that went from
    /// `was` to `is` is the hash that the string keeps once it was asked for it; else `None`.
    fn kept_hash(&mut self, _was: &[u8], _is: &[u8], _at: usize, _word: &mut ReadWord<'_>) -> Option<bool> {
        None
    }
}

/// The number of pointers that may still be followed in the search for objects: bounded in a process in which none has led
/// to one. Shared by all who look into processes that run the same code.
#[derive(Clone, Debug)]
pub struct PointerBudget(Rc<Cell<Option<u32>>>);

impl Default for PointerBudget {
    fn default() -> Self {
        Self(Rc::new(Cell::new(Some(4096))))
    }
}

impl PointerBudget {
    /// Tells whether nothing is looked for any more.
    pub fn is_over(&self) -> bool {
        self.0.get() == Some(0)
    }

    /// A pointer was followed. Where one object was found there are more.
    pub fn note(&self, found: bool) {
        self.0.set(self.0.get().filter(|_| !found).map(|left| left.saturating_sub(1)));
    }
}

/// The reader for a language whose objects are not known here.
pub struct NoObjects;

impl ObjectReader for NoObjects {
    fn wrote(&mut self, _address: u64, _word: &mut ReadWord<'_>) -> Wrote {
        Wrote::Other
    }

    fn any_in(&mut self, _page: &[u8], _word: &mut ReadWord<'_>) -> bool {
        false
    }
}
