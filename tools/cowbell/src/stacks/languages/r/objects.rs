//! The way in which R's objects lie in memory (Rinternals.h, Defn.h, memory.c, since R 3.5; 64-bit builds).
//!
//! An object begins with a word of bits, then its attributes, then the objects before and after it in a list of the collector's. The list is
//! linked both ways, so that the neighbour leads back: that is too much for chance. Small objects lie in places of a few sizes, which the word
//! of bits tells, one right behind the other.
//!
//! The collector marks what it finds in use, and the mark stays until a collection of older objects. So a place whose mark is set holds an object,
//! and one without holds an object that was made since the last collection, or none: what it held before is left there.

use super::super::{ChangedWord, ObjectReader, ReadWord, word_at};
use crate::record::Wrote;

/// Offsets of the next object and the previous one in the collector's list.
const NEXT: u64 = 16;
const PREVIOUS: u64 = 24;
/// The bits that the collector writes: the mark, and the generation.
const COLLECTORS: u64 = 1 << 24 | 1 << 28;
/// The byte in which these bits lie, and those of the count of references.
const COLLECTORS_BYTE: u64 = 3;
const COUNT_BYTES: std::ops::RangeInclusive<u64> = 4..=5;
const COUNT: u64 = 0xffff << 32;

/// The mark alone; the type, and whether a vector is of one element; the bits that tell the size of an object's place.
const MARK: u64 = 1 << 24;
const TYPE: u64 = 0x3f;
const SIZE: u64 = 7 << 29;
/// The bytes of a place by these bits. Of larger objects the header alone is told: no other object begins behind it.
const PLACES: [u64; 8] = [56, 56, 64, 80, 112, 176, 48, 48];
const PLACE_MAX: u64 = 176;
/// Offsets of the attributes, and of the first word behind the header: of vectors that is the length.
const ATTRIBUTES: u64 = 8;
const DATA: u64 = 32;
/// The type of promises, and the offset of the expression that one is for.
const PROMISE: u64 = 5;
const PROMISED: u64 = 40;

/// The objects of one process.
#[derive(Default)]
pub struct Nodes {
    /// The page that was compared last, and the places on it.
    compared: Option<(u64, Vec<Place>)>,
}

/// A place on a page that was compared.
struct Place {
    address: u64,
    end: u64,
    fate: Fate,
}

/// The fate of a place, by its words before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The place holds the same object, or none as before. The collector may have visited it, and references may have been counted.
    Same,
    /// The place was free, or no place yet, and holds another object or held one meanwhile.
    Made,
    /// The object was changed, or is another one of the same type: no collection had visited it before, so that the place may have been free.
    Young,
    /// The place has no mark, as before, and was not changed: it is free, or its object was not visited.
    Unmarked,
    /// The collector found the object to be dead.
    Died,
    /// An object that was in use was changed.
    Changed,
}

/// The same place on a page that was `was` and is `is`.
struct Compared<'a> {
    was: &'a [u8],
    is: &'a [u8],
    at: u64,
    size: u64,
}

impl Compared<'_> {
    /// A word of the place before and after; `None` where it lies on the next page.
    fn word(&self, offset: u64) -> Option<(u64, u64)> {
        let at = usize::try_from(self.at + offset).ok()?;
        word_at(self.was, at).zip(word_at(self.is, at))
    }

    fn differs(&self, offset: u64) -> bool {
        self.word(offset).is_some_and(|(before, after)| before != after)
    }

    fn fate(&self) -> Fate {
        let Some((before, after)) = self.word(0) else { return Fate::Unmarked };
        let links = [ATTRIBUTES, NEXT, PREVIOUS];
        let was_place = links.iter().all(|link| self.word(*link).is_none_or(|(before, _)| is_pointer(before)));
        if !was_place || (before ^ after) & SIZE != 0 {
            return Fate::Made;
        }
        let data = || (DATA..self.size).step_by(8);
        let other_type = (before ^ after) & TYPE != 0;
        let is_vector = after & SIZE != 0;
        // One word of a cell is what a program changes, and of a promise, the value and what it was asked in.
        let words = data().filter(|at| self.differs(*at)).count();
        let is_other_cell = words > 1 && (after & TYPE != PROMISE || self.differs(PROMISED));
        let is_other = other_type || if is_vector { self.differs(DATA) } else { is_other_cell };
        let bits = (before ^ after) & !(COLLECTORS | COUNT) != 0;
        let is_changed = bits || self.differs(ATTRIBUTES) || words > 0;
        match (before & MARK != 0, after & MARK != 0) {
            (true, true) if is_changed && !other_type => Fate::Changed,
            (true, _) if is_changed => Fate::Died,
            (false, _) if is_other => Fate::Made,
            (false, _) if is_changed => Fate::Young,
            (false, false) => Fate::Unmarked,
            _ => Fate::Same,
        }
    }
}

/// The places on a page, with what became of each. One that begins on the page before is not seen whole.
fn places(was: &[u8], is: &[u8], page: u64, word: &mut ReadWord<'_>) -> Vec<Place> {
    let end = page.saturating_add(is.len() as u64);
    let mut found = Vec::new();
    let mut address = page.saturating_sub(PLACE_MAX - 8);
    while address < end {
        let bits = if is_node(address, word) { word(address) } else { None };
        let size = bits.and_then(|bits| PLACES.get((bits & SIZE) as usize >> SIZE.trailing_zeros())).copied();
        if let Some(size) = size {
            let seen = address.checked_sub(page).map(|at| Compared { was, is, at, size }.fate());
            found.push(Place { address, end: address + size, fate: seen.unwrap_or(Fate::Unmarked) });
        }
        address += size.unwrap_or(8);
    }
    found
}

fn is_pointer(word: u64) -> bool {
    word.is_multiple_of(8) && word >= 1 << 16 && word >> 47 == 0
}

/// Tells whether an object begins here: a neighbour in the collector's list leads back. One of both does not while it is linked anew.
fn is_node(at: u64, word: &mut ReadWord<'_>) -> bool {
    let mut leads_back = |link: u64, back: u64| {
        let neighbour = word(at.checked_add(link)?).filter(|neighbour| is_pointer(*neighbour) && *neighbour != at)?;
        Some(word(neighbour.checked_add(back)?)? == at)
    };
    at.is_multiple_of(8) && (leads_back(NEXT, PREVIOUS) == Some(true) || leads_back(PREVIOUS, NEXT) == Some(true))
}

/// Tells whether an object begins so far before an address.
fn begins_before(address: u64, offset: u64, word: &mut ReadWord<'_>) -> bool {
    address.checked_sub(offset).is_some_and(|at| is_node(at, word))
}

impl ObjectReader for Nodes {
    fn wrote(&mut self, address: u64, word: &mut ReadWord<'_>) -> Wrote {
        let first = address / 8 * 8;
        if word(first).is_none() {
            return Wrote::Unknown;
        }
        let byte = address - first;
        if is_node(first, word) {
            match byte {
                COLLECTORS_BYTE => Wrote::CollectorHeader,
                byte if COUNT_BYTES.contains(&byte) => Wrote::ReferenceCount,
                _ => Wrote::Other,
            }
        } else if [NEXT, PREVIOUS].into_iter().any(|link| begins_before(first, link, word)) {
            Wrote::CollectorHeader
        } else {
            Wrote::Other
        }
    }

    fn is_of_collector(&mut self, _page: u64, _word: &mut ReadWord<'_>) -> Option<bool> {
        // The collector writes into the objects themselves, and takes nothing for itself.
        Some(false)
    }

    fn any_in(&mut self, _page: &[u8], _word: &mut ReadWord<'_>) -> bool {
        false
    }

    fn any_at(&mut self, address: u64, page: &[u8], word: &mut ReadWord<'_>) -> bool {
        (0..page.len() as u64).step_by(8).any(|at| is_node(address + at, word))
    }

    fn changed(
        &mut self,
        was: &[u8],
        is: &[u8],
        (page, at): (u64, usize),
        word: &mut ReadWord<'_>,
    ) -> Option<ChangedWord> {
        if self.compared.as_ref().is_none_or(|(known, _)| *known != page) {
            self.compared = Some((page, places(was, is, page, word)));
        }
        let (_, places) = self.compared.as_ref()?;
        let address = page.checked_add(at as u64)?;
        let bits = word_at(was, at)? ^ word_at(is, at)?;
        let place = places.iter().find(|place| (place.address..place.end).contains(&address))?;
        // A new object alone has its page copied, whatever became of others there that no collection had visited.
        let some_made = places.iter().any(|place| place.fate == Fate::Made);
        match place.fate {
            Fate::Made => Some(ChangedWord::Made),
            Fate::Young | Fate::Unmarked if some_made => Some(ChangedWord::Made),
            Fate::Died => Some(ChangedWord::Mark),
            _ => match address - place.address {
                0 if bits & !(COLLECTORS | COUNT) != 0 => None,
                0 if bits & COUNT != 0 => Some(ChangedWord::Count),
                0 | NEXT | PREVIOUS => Some(ChangedWord::Mark),
                _ => None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const AT: u64 = 0x5500_0000_1000;

    #[test]
    fn marks_and_links_are_the_collectors_and_counts_are_told_apart() {
        let other = AT + 56;
        let links = [(AT + NEXT, other), (AT + PREVIOUS, other), (other + NEXT, AT), (other + PREVIOUS, AT), (AT, 19)];
        let memory = HashMap::from(links);
        let wrote = |address: u64| Nodes::default().wrote(address, &mut |at| memory.get(&at).copied());
        assert_eq!([3, 16, 24].map(|offset| wrote(AT + offset)), [Wrote::CollectorHeader; 3]);
        assert_eq!((wrote(AT + 4), wrote(AT)), (Wrote::ReferenceCount, Wrote::Other));
    }

    /// So many places of cells of lists, linked in a ring, each with this word of bits and data.
    fn cells(bits: &[u64], data: u64) -> Vec<u64> {
        let count = bits.len();
        let neighbour = |nth: usize| AT + 56 * (nth % count) as u64;
        let cell =
            |(nth, bits): (usize, &u64)| [*bits, AT, neighbour(nth + 1), neighbour(nth + count - 1), data, data, data];
        bits.iter().enumerate().flat_map(cell).collect()
    }

    fn told(was: &[u64], is: &[u64], at: usize) -> Option<ChangedWord> {
        let bytes = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let memory: HashMap<u64, u64> = (AT..).step_by(8).zip(is.iter().copied()).collect();
        Nodes::default().changed(&bytes(was), &bytes(is), (AT, at), &mut |at| memory.get(&at).copied())
    }

    const LIST: u64 = 2;
    const COUNTED: u64 = 1 << 32;

    #[test]
    fn an_object_that_was_visited_is_told_from_one_that_was_made_and_from_one_that_changed() {
        let free = cells(&[LIST, LIST, LIST], 0x7000_0000);
        let of = |bits: &[u64]| cells(bits, 0x7000_0000);
        assert_eq!(told(&free, &of(&[LIST | MARK, LIST, LIST]), 0), Some(ChangedWord::Mark));
        assert_eq!(told(&free, &of(&[LIST | COUNTED, LIST, LIST]), 0), Some(ChangedWord::Count));
        let other = |bits: u64, data: u64, changed: std::ops::Range<usize>| {
            let mut is = of(&[bits, LIST, LIST]);
            is[changed].fill(data);
            is
        };
        let made = other(LIST | MARK, 0x7100_0000, 4..7);
        assert_eq!([0, 32, 48].map(|at| told(&free, &made, at)), [Some(ChangedWord::Made); 3], "and marked since");
        let mut linked = free.clone();
        linked[7 + 2] = 0x7200_0000;
        assert_eq!(told(&linked, &made, 72), Some(ChangedWord::Made), "the next place, which is free, is linked anew");
        assert_eq!(told(&linked, &free, 72), Some(ChangedWord::Mark), "nothing was made there");
        let changed = other(LIST, 0x7100_0000, 4..5);
        assert_eq!(told(&free, &changed, 32), None, "one word of an object that may have been there");
        let old = of(&[LIST | MARK, LIST, LIST]);
        assert_eq!(told(&old, &made, 32), None, "an object that was there changed");
        assert_eq!(told(&old, &other(LIST, 0x7100_0000, 4..7), 32), Some(ChangedWord::Mark), "it died first");
        assert_eq!(told(&vec![0; free.len()], &free, 32), Some(ChangedWord::Made), "no place yet");
    }
}
