//! The way in which CPython's objects lie in memory.
//!
//! A reference count is called one only where the layout proves it: objects begin with their count and a pointer to their
//! type, and every chain of types ends at the type of types, which is its own type and is named `type`. Nothing else is
//! taken for an object, so an interpreter of another layout (free-threaded, or built to trace references) has none here.

use super::super::{ChangedWord, ObjectReader, PointerBudget, ReadWord, word_at};
use super::pools::PoolWalk;
use crate::record::{Kinds, Wrote};
use std::collections::HashMap;

/// Byte offsets in a type object (Include/cpython/object.h), the same in every CPython 3 with the usual layout.
pub const TYPE: u64 = 8;
pub const NAME: u64 = 24;
const SIZE: u64 = 32;
const FLAGS: u64 = 168;
/// Two words of the interpreter's own lie before each instance (`Py_TPFLAGS_MANAGED_DICT` since CPython 3.11, `Py_TPFLAGS_MANAGED_WEAKREF` since
/// 3.12).
const MANAGED: u64 = 1 << 3 | 1 << 4;
/// The collector knows the instances: two words of its own lie before each (`Py_TPFLAGS_HAVE_GC`).
const HAVE_GC: u64 = 1 << 14;
/// Flags in the second of these words, below the pointer to the header of the object before; a collection sets the higher one in
/// each object that it begins with (`_PyGC_PREV_MASK_COLLECTING`, since CPython 3.8), from the first of its list to the last.
const HEADER_FLAGS: u64 = 3;
const COLLECTING: u64 = 2;
/// Flags in either word: headers are aligned.
const LINK_FLAGS: u64 = 7;
/// The instances are strings of bytes or of characters (`Py_TPFLAGS_BYTES_SUBCLASS`, `Py_TPFLAGS_UNICODE_SUBCLASS`).
const STRING: u64 = 1 << 27 | 1 << 28;
/// Offset at which a string keeps its hash; all bits are set as long as it was not asked for it.
const HASH: usize = 24;
/// Counts from here on, in the lower half of the word, are of immortal objects (since CPython 3.12).
const IMMORTAL: u64 = 1 << 31;
/// The instances are types (`Py_TPFLAGS_TYPE_SUBCLASS`).
const TYPE_SUBCLASS: u64 = 1 << 31;
/// A metaclass may have a metaclass, and so on; chains in use are shorter.
const CHAIN_MAX: usize = 4;
/// No count moves by more while a child lives.
const COUNT_MOVES_MAX: u64 = 1 << 30;
/// The most answers that are remembered.
const KNOWN_MAX: usize = 1 << 16;

/// A type object that was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Type {
    /// True if its instances have the collector's two words before them.
    is_collected: bool,
    /// True if they are strings, which keep their hash at [`HASH`].
    keeps_hash: bool,
    layout: ObjectLayout,
}

/// How an object lies in the memory that was allocated for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectLayout {
    /// Bytes before it.
    pub words_before: u64,
    /// Bytes that it takes at least.
    pub size_min: u64,
}

/// The type objects of one process.
pub struct TypeObjects {
    known: HashMap<u64, Option<Type>>,
    /// The last answer: neighbours are mostly of one type.
    last: Option<(u64, Option<Type>)>,
    patience: PointerBudget,
}

impl TypeObjects {
    /// None known yet.
    pub fn new(patience: PointerBudget) -> Self {
        Self { known: HashMap::new(), last: None, patience }
    }

    /// The type of an object that begins with these two words, if it is one.
    fn of_object(&mut self, count: u64, of: u64, word: &mut ReadWord<'_>) -> Option<Type> {
        // Counts of objects in use are small; immortal ones (since 3.12) fill 32 bits, and since 3.14 have flags above.
        let is_count = count & 0xffff_ffff != 0 && count >> 32 & 0xffff == 0;
        if !is_count || !of.is_multiple_of(8) || of < 1 << 16 || of >> 47 != 0 {
            return None;
        }
        if let Some((_, known)) = self.last.filter(|&(last, _)| last == of) {
            return known;
        }
        if let Some(&known) = self.known.get(&of) {
            self.last = Some((of, known));
            return known;
        }
        if self.patience.is_over() {
            return None;
        }
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        let found = look(of, word);
        self.patience.note(found.is_some());
        self.known.insert(of, found);
        found
    }

    /// How the object lies that begins with these two words, if it is one.
    pub fn layout(&mut self, count: u64, of: u64, word: &mut ReadWord<'_>) -> Option<ObjectLayout> {
        self.of_object(count, of, word).map(|found| found.layout)
    }

    /// Tells whether the word at an offset of a page that went from `was` to `is` belongs to the collector, which moved an object that
    /// lives on in its lists, away from one that lives on as well.
    fn was_moved_by_collector(&mut self, was: &[u8], is: &[u8], at: usize, word: &mut ReadWord<'_>) -> bool {
        let mut lives_at = |at: usize, word: &mut ReadWord<'_>| {
            let mut of = |page: &[u8]| {
                let (count, of) = (word_at(page, at)?, word_at(page, at + TYPE as usize)?);
                self.of_object(count, of, word).filter(|found| found.is_collected).map(|_| of)
            };
            of(was).is_some_and(|before| of(is) == Some(before))
        };
        // The word is the first of the two before an object, or the second.
        if !lives_at(at + 16, word) && !lives_at(at + 8, word) {
            return false;
        }
        let [before, after] = [was, is].map(|page| word_at(page, at).unwrap_or(0) & !LINK_FLAGS);
        let mut at_neighbour = |nth: u64| before.checked_add(16 + 8 * nth).and_then(&mut *word).unwrap_or(0);
        let (count, of) = (at_neighbour(0), at_neighbour(1));
        before == after || self.of_object(count, of, word).is_some_and(|found| found.is_collected)
    }
}

/// Follows the chain of types from a pointer.
fn look(of: u64, word: &mut ReadWord<'_>) -> Option<Type> {
    let flags = word(of.checked_add(FLAGS)?)?;
    let mut meta = word(of.checked_add(TYPE)?)?;
    for _ in 0..CHAIN_MAX {
        // An instance has a type, too; but only a type's type makes types.
        if word(meta.checked_add(FLAGS)?)? & TYPE_SUBCLASS == 0 {
            return None;
        }
        let next = word(meta.checked_add(TYPE)?)?;
        if next == meta {
            let name = word(meta.checked_add(NAME)?)?;
            let is_type = word(name)? & 0xff_ffff_ffff == u64::from_le_bytes(*b"type\0\0\0\0");
            let (is_collected, keeps_hash) = (flags & HAVE_GC != 0, flags & STRING != 0);
            let words_before = 16 * (u64::from(is_collected) + u64::from(flags & MANAGED != 0));
            // Strings take less than their types say: most are kept in a shorter form.
            let size_min = if keeps_hash { HASH as u64 + 8 } else { word(of.checked_add(SIZE)?)?.max(16) };
            return is_type.then_some(Type {
                is_collected,
                keeps_hash,
                layout: ObjectLayout { words_before, size_min },
            });
        }
        meta = next;
    }
    None
}

/// Does a collection go on that has come to this object, or to the one before it? `previous`: what the second word of its header holds.
fn is_collecting(at: u64, previous: u64, word: &mut ReadWord<'_>) -> bool {
    let before = (previous & !HEADER_FLAGS).checked_add(8).filter(|before| *before != at);
    previous & COLLECTING != 0 || before.and_then(word).is_some_and(|before| before & COLLECTING != 0)
}

impl ObjectReader for TypeObjects {
    fn wrote(&mut self, address: u64, word: &mut ReadWord<'_>) -> Wrote {
        let first = address / 8 * 8;
        let Some(a) = word(first) else { return Wrote::Unknown };
        // Behind the end of what is mapped there is no object.
        let mut next = |nth: u64| first.checked_add(8 * nth).and_then(&mut *word).unwrap_or(0);
        let (b, c, d) = (next(1), next(2), next(3));
        if self.of_object(a, b, word).is_some() {
            return Wrote::ReferenceCount;
        }
        let is_collected = |found: Option<Type>| found.is_some_and(|found| found.is_collected);
        let previous = if is_collected(self.of_object(b, c, word)) {
            Some((first, a))
        } else {
            is_collected(self.of_object(c, d, word)).then(|| (first.wrapping_add(8), b))
        };
        match previous {
            // Making or freeing an object links the headers of its neighbours.
            Some((at, previous)) if is_collecting(at, previous, word) => Wrote::CollectorHeader,
            _ => Wrote::Other,
        }
    }

    fn any_in(&mut self, page: &[u8], word: &mut ReadWord<'_>) -> bool {
        let (words, _) = page.as_chunks::<8>();
        words.windows(2).any(|pair| {
            let [count, of] = pair else { return false };
            self.of_object(u64::from_le_bytes(*count), u64::from_le_bytes(*of), word).is_some()
        })
    }

    fn is_count(&mut self, was: u64, is: u64, next: u64, word: &mut ReadWord<'_>) -> bool {
        let apart = was.wrapping_sub(is);
        apart.min(apart.wrapping_neg()) < COUNT_MOVES_MAX
            && [was, is].iter().all(|&count| self.of_object(count, next, word).is_some())
    }

    fn changed(
        &mut self,
        was: &[u8],
        is: &[u8],
        (_, at): (u64, usize),
        word: &mut ReadWord<'_>,
    ) -> Option<ChangedWord> {
        self.was_moved_by_collector(was, is, at, word).then_some(ChangedWord::Mark)
    }

    fn kinds(&mut self, pages: &[u64], page_bytes: u64, word: &mut ReadWord<'_>) -> Option<Kinds> {
        let mut census = PoolWalk::new(self, word, page_bytes);
        census.add(pages.iter().copied());
        Some(census.finish())
    }

    fn kept_hash(&mut self, was: &[u8], is: &[u8], at: usize, word: &mut ReadWord<'_>) -> Option<bool> {
        let object = at.checked_sub(HASH).filter(|_| word_at(was, at) == Some(u64::MAX))?;
        let mut count_of_string = |page: &[u8]| {
            let (count, of) = (word_at(page, object)?, word_at(page, object + 8)?);
            self.of_object(count, of, word).is_some_and(|of| of.keeps_hash).then_some(count)
        };
        count_of_string(was)?;
        Some(count_of_string(is)? & 0xffff_ffff >= IMMORTAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE_OF_TYPES: u64 = 0x10_0000;
    const STR: u64 = 0x10_1000;
    const LIST: u64 = 0x10_2000;
    const META: u64 = 0x10_3000;
    const CLASS: u64 = 0x10_4000;
    const NAMED: u64 = 0x10_5000;

    /// Memory that holds what a CPython has: types, one of them with a metaclass, and objects from `HEAP` on.
    fn memory() -> HashMap<u64, u64> {
        let mut memory = HashMap::from([(NAMED, u64::from_le_bytes(*b"type\0str"))]);
        for (at, of, flags) in [
            (TYPE_OF_TYPES, TYPE_OF_TYPES, TYPE_SUBCLASS | HAVE_GC),
            (STR, TYPE_OF_TYPES, 0),
            (LIST, TYPE_OF_TYPES, HAVE_GC),
            (META, TYPE_OF_TYPES, TYPE_SUBCLASS | HAVE_GC),
            (CLASS, META, HAVE_GC),
        ] {
            memory.extend([(at, 1), (at + TYPE, of), (at + NAME, NAMED), (at + SIZE, 24), (at + FLAGS, flags)]);
        }
        memory
    }

    const HEAP: u64 = 0x20_0000;

    fn with(objects: &[u64]) -> HashMap<u64, u64> {
        let mut memory = memory();
        memory.extend((HEAP..).step_by(8).zip(objects.iter().copied()));
        memory
    }

    #[test]
    fn only_what_leads_to_the_type_of_types_is_an_object() {
        let mut memory = memory();
        // An instance of str, and a list head that points to itself, as empty lists in C do.
        memory.extend([(HEAP, 1), (HEAP + TYPE, STR), (HEAP + FLAGS, 0), (HEAP + 0x1000 + TYPE, HEAP + 0x1000)]);
        let (mut types, mut word) =
            (TypeObjects::new(PointerBudget::default()), |address: u64| memory.get(&address).copied());
        let mut is_object = |count, of| types.of_object(count, of, &mut word).is_some();
        assert!(is_object(1, STR) && is_object(70_000, LIST) && is_object(2, CLASS) && is_object(1, TYPE_OF_TYPES));
        assert!(is_object(0xffff_ffff, STR) && is_object(3 << 30 | 1 << 48, STR), "immortal ones");
        assert!(!is_object(0, STR), "a freed block");
        assert!(!is_object(0x7f12_3456_7890, STR), "a pointer is no count");
        assert!(!is_object(1, HEAP), "a pointer to an object is no pointer to a type");
        assert!(!is_object(1, HEAP + 0x1000) && !is_object(1, STR + 4) && !is_object(1, 0) && !is_object(1, u64::MAX));
    }

    #[test]
    fn a_word_is_told_by_what_follows_it() {
        let pointer = 0x7f00_0000_1000;
        // A str of four words; a list behind its collector's header; plain numbers.
        let mut memory = with(&[2, STR, 5, 6, pointer, pointer, 1, LIST, 3, pointer, 1, 2, 3, 4, 5, 6, 7]);
        let told = |memory: &HashMap<u64, u64>| {
            let (mut types, mut word) =
                (TypeObjects::new(PointerBudget::default()), |address: u64| memory.get(&address).copied());
            assert_eq!(types.wrote(HEAP + 4, &mut word), Wrote::ReferenceCount, "the upper half of the word");
            (0..13).map(|nth| types.wrote(HEAP + 8 * nth, &mut word)).collect::<Vec<_>>()
        };
        let (count, header, other) = (Wrote::ReferenceCount, Wrote::CollectorHeader, Wrote::Other);
        let due = |word| [count, other, other, other, word, word, count, other, other, other, other, other, other];
        // The object before it in the collector's list was freed, or made: its neighbours' headers are linked anew.
        memory.extend([(pointer, HEAP + 32), (pointer + 8, 0x7f00_0000_2000)]);
        assert_eq!(told(&memory), due(other));
        // A collection has come to the object before, or to this one.
        memory.insert(pointer + 8, 7 << 2 | COLLECTING);
        assert_eq!(told(&memory), due(header));
        memory.extend([(pointer + 8, 0x7f00_0000_2000), (HEAP + 40, 1 << 2 | COLLECTING)]);
        assert_eq!(told(&memory), due(header));
    }

    #[test]
    fn an_object_was_moved_by_the_collector_if_it_and_its_neighbour_live_on() {
        // Lists behind their headers, each of four words: at 0 and at 32 on the page; one more elsewhere.
        let (other, page_at) = (HEAP + 0x1000, HEAP);
        let lists = |links: [u64; 4]| -> Vec<u8> {
            let words = [links[0], links[1], 1, LIST, links[2], links[3], 1, LIST];
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        };
        let was = lists([page_at + 32, other, other, page_at]);
        let moved = |memory: &HashMap<u64, u64>, is: &[u8]| {
            let (mut types, mut word) =
                (TypeObjects::new(PointerBudget::default()), |address: u64| memory.get(&address).copied());
            (0..8).map(|nth| types.was_moved_by_collector(&was, is, 8 * nth, &mut word)).collect::<Vec<_>>()
        };
        let mut memory = with(&[0, 0, 1, LIST, 0, 0, 1, LIST]);
        memory.extend([(other, 0), (other + 16, 1), (other + 24, LIST)]);
        let is = lists([other, page_at + 32 + 1, page_at, other]);
        let links = [true, true, false, false, true, true, false, false];
        assert_eq!(moved(&memory, &is), links);
        // The neighbour elsewhere was freed: whoever did it linked the others anew.
        memory.insert(other + 16, 0);
        assert_eq!(moved(&memory, &is), [true, false, false, false, false, true, false, false]);
        // The object itself was freed, and another one put in its place.
        let mut freed = is.clone();
        freed[16..24].copy_from_slice(&0u64.to_le_bytes());
        assert_eq!(moved(&memory, &freed)[..2], [false, false]);
    }

    #[test]
    fn what_precedes_an_object_that_is_not_collected_is_no_header() {
        let memory = with(&[7, 8, 1, STR, 9]);
        let (mut types, mut word) =
            (TypeObjects::new(PointerBudget::default()), |address: u64| memory.get(&address).copied());
        assert_eq!([types.wrote(HEAP, &mut word), types.wrote(HEAP + 8, &mut word)], [Wrote::Other, Wrote::Other]);
    }

    #[test]
    fn a_process_without_objects_is_not_searched_for_ever() {
        let mut asked = 0;
        let patience = PointerBudget::default();
        // Two intervals of one process: the second does not begin anew.
        for _ in 0..2 {
            let mut types = TypeObjects::new(patience.clone());
            for nth in 0..100_000 {
                let mut word = |_| {
                    asked += 1;
                    Some(0)
                };
                assert_eq!(types.of_object(1, 0x10_0000 + 16 * nth, &mut word), None);
            }
        }
        assert!((4096..5 * 4096).contains(&asked), "{asked}");
        let memory = memory();
        let (mut types, mut word) =
            (TypeObjects::new(PointerBudget::default()), |address: u64| memory.get(&address).copied());
        assert!(types.of_object(1, STR, &mut word).is_some());
        for nth in 0..10_000 {
            types.of_object(1, 0x30_0000 + 16 * nth, &mut word);
        }
        assert!(types.of_object(1, LIST, &mut word).is_some(), "where one was found, all are looked for");
    }
}
