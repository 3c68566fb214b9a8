//! The way in which Ruby's objects lie in memory (gc.c, since Ruby 2.1; 64-bit builds).
//!
//! Objects lie in places of one size, in areas that begin at a multiple of their own size. An area's first word leads to its description,
//! and one of that one's first words leads back to the area's first place: both together are too much for chance. The first word of a place
//! is the object's flags, zero where it is free; the next free place follows then. Descriptions lie in blocks of malloc, among anything else, and
//! hold the bits that the collector sets for each object and clears. Beside them lie the chunks of its stack, on which it puts what it has yet to
//! visit: each is a block of 500 pointers and a link to the next chunk, and is kept for the next collection.

use super::super::{ChangedWord, ObjectReader, ReadWord};
use crate::record::Wrote;
use std::collections::HashMap;
use std::ops::Range;

/// Sizes of areas: 16 KiB up to Ruby 3.1, 64 KiB since.
const AREAS: [u64; 2] = [1 << 14, 1 << 16];
/// Words of the description among which the pointer to the first place is.
const DESCRIPTION: u64 = 12;
/// The first place lies so close to the area's beginning.
const FIRST_MAX: u64 = 1024;
/// Sizes of places: of the usual ones, and of the largest.
const PLACE: u64 = 40;
const PLACE_MAX: u64 = 640;
/// Flags of an object that tell its age (`FL_PROMOTED0`, `FL_PROMOTED1`).
const AGE: u64 = 0x60;
/// The most areas that are remembered.
const KNOWN_MAX: usize = 1 << 14;
/// Sizes of blocks of malloc that hold a description; the lowest bits of the word before a block are flags.
const DESCRIBED: Range<u64> = 64..4096;
const MALLOC_FLAGS: u64 = 7;
/// A block of malloc with a chunk of the collector's stack: the word before it, and the offset of the link.
const CHUNK_SIZE: u64 = 0xfb0;
const CHUNK_LINK: u64 = 500 * 8;

/// The size of pages, in bytes. Descriptions on one of them are looked for at once.
fn page_size() -> u64 {
    cowbell::sys::page_size().bytes() as u64
}

/// The first place of an area, and the size of its places.
type Area = (u64, u64);

/// The areas of one process.
#[derive(Default)]
pub struct Places {
    known: HashMap<u64, Option<Area>>,
    /// The page that was searched last for descriptions and chunks of the collector's stack, and those that lie on it.
    described: Option<(u64, Vec<Range<u64>>)>,
}

fn area(start: u64, size: u64, word: &mut ReadWord<'_>) -> Option<Area> {
    let is_pointer = |at: &u64| at.is_multiple_of(8) && *at > 1 << 16 && at >> 47 == 0;
    let description = word(start).filter(is_pointer)?;
    let is_first = |at: &u64| at.is_multiple_of(8) && *at > start && *at <= start + FIRST_MAX.min(size);
    let words = (0..DESCRIPTION).map_while(|nth| word(description.checked_add(8 * nth)?));
    let words: Vec<u64> = words.collect();
    let first = words.iter().copied().find(is_first)?;
    // Since Ruby 3.1 the size of the places stands at the beginning.
    let size = words.first()? & 0xffff;
    let is_size = (PLACE..=PLACE_MAX).contains(&size) && size.is_multiple_of(PLACE);
    Some((first, if is_size { size } else { PLACE }))
}

impl Places {
    /// The area that an address lies in.
    fn area(&mut self, address: u64, word: &mut ReadWord<'_>) -> Option<Area> {
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        AREAS.into_iter().find_map(|size| {
            let start = address / size * size;
            *self.known.entry(start | size >> 14).or_insert_with(|| area(start, size, word))
        })
    }
}

/// The description of an area that has its first place in this word, if one does.
fn described_at(at: u64, word: &mut ReadWord<'_>) -> Option<Range<u64>> {
    let first = word(at)?;
    AREAS.into_iter().find_map(|size| {
        let start = first / size * size;
        // Few words are such, and for no other is more read.
        if !first.is_multiple_of(8) || first >> 47 != 0 || first <= start || first > start + FIRST_MAX {
            return None;
        }
        let description = word(start).filter(|of| of.is_multiple_of(8) && *of <= at && at - *of < 8 * DESCRIPTION)?;
        let block = word(description.checked_sub(8)?)? & !MALLOC_FLAGS;
        DESCRIBED.contains(&block).then(|| description..description + block - 8)
    })
}

/// The chunk of the collector's stack before whose beginning this word stands, if one does: its first entry lies in an area, and its link leads to
/// another chunk.
fn chunk_behind(at: u64, word: &mut ReadWord<'_>) -> Option<Range<u64>> {
    let is_chunk = |size: u64| size & !MALLOC_FLAGS == CHUNK_SIZE;
    if !is_chunk(word(at)?) {
        return None;
    }
    let chunk = at + 8;
    let next = word(chunk + CHUNK_LINK)?;
    let is_linked = next.is_multiple_of(16) && word(next.checked_sub(8)?).is_some_and(is_chunk);
    let object = word(chunk)?;
    let lies_in_area = AREAS.into_iter().any(|size| area(object / size * size, size, word).is_some());
    (is_linked && lies_in_area).then_some(chunk..chunk + CHUNK_SIZE - 8)
}

impl Places {
    /// Tells whether an address lies in the description of an area, or in a chunk of the collector's stack.
    fn is_described(&mut self, address: u64, word: &mut ReadWord<'_>) -> bool {
        self.described(address / page_size() * page_size(), word)
            .iter()
            .any(|description| description.contains(&address))
    }

    /// The descriptions and chunks that lie on a page, whole or in part.
    fn described(&mut self, page: u64, word: &mut ReadWord<'_>) -> &[Range<u64>] {
        if self.described.as_ref().is_none_or(|(known, _)| *known != page) {
            let (from, end) = (page.saturating_sub(DESCRIBED.end), page.saturating_add(page_size()));
            let found =
                (from..end).step_by(8).filter_map(|at| described_at(at, word).or_else(|| chunk_behind(at, word)));
            let found = found.filter(|description| description.end > page && description.start < end).collect();
            self.described = Some((page, found));
        }
        self.described.as_ref().map_or(&[], |(_, found)| found)
    }
}

impl ObjectReader for Places {
    fn wrote(&mut self, address: u64, word: &mut ReadWord<'_>) -> Wrote {
        if self.area(address, word).is_none() && self.is_described(address, word) {
            return Wrote::CollectorHeader;
        }
        // The collector and the program write the same words: what they wrote there tells.
        if self.area(address, word).is_some() { Wrote::Unknown } else { Wrote::Other }
    }

    fn any_in(&mut self, page: &[u8], word: &mut ReadWord<'_>) -> bool {
        let _ = (page, word);
        false
    }

    fn any_at(&mut self, address: u64, page: &[u8], word: &mut ReadWord<'_>) -> bool {
        let _ = page;
        self.area(address, word).is_some() || !self.described(address / page_size() * page_size(), word).is_empty()
    }

    fn changed(
        &mut self,
        was: &[u8],
        is: &[u8],
        (page, at): (u64, usize),
        word: &mut ReadWord<'_>,
    ) -> Option<ChangedWord> {
        let read = |page: &[u8], at: usize| page.get(at..)?.first_chunk::<8>().map(|word| u64::from_le_bytes(*word));
        let address = page.checked_add(at as u64)?;
        let Some((first, size)) = self.area(address, word) else {
            return self.is_described(address, word).then_some(ChangedWord::Mark);
        };
        let within = address.checked_sub(first)? % size;
        let (before, after) = (read(was, at)?, read(is, at)?);
        let place = at.checked_sub(usize::try_from(within).ok()?)?;
        let was_free = read(was, place)? == 0;
        let is_free = read(is, place)? == 0;
        // A free place leads to the next one; what else is in it was left there by the object that it held.
        let held_another = || (place + 16..place + size as usize).step_by(8).any(|at| read(was, at) != read(is, at));
        match (was_free, is_free) {
            (true, false) => Some(ChangedWord::Made),
            (true, true) => Some(if held_another() { ChangedWord::Made } else { ChangedWord::Mark }),
            // The object was found to be dead. Others that were put there since are dead as well.
            (false, true) => Some(ChangedWord::Mark),
            // The object grew older.
            (false, false) => (within == 0 && (before ^ after) & !AGE == 0).then_some(ChangedWord::Mark),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREA: u64 = 0x7f00_0001_0000;
    const DESCRIBED_AT: u64 = 0x5500_0000_0100;

    #[test]
    fn an_object_that_grew_older_or_died_is_told_from_one_that_was_made() {
        let memory = HashMap::from([(AREA, DESCRIBED_AT), (DESCRIBED_AT, 40), (DESCRIBED_AT + 8, AREA + 16)]);
        let mut word = |at: u64| memory.get(&at).copied();
        let page = |flags: u64, klass: u64| -> Vec<u8> {
            [0, 0, flags, klass, 0, 0, 0].iter().flat_map(|word: &u64| word.to_le_bytes()).collect()
        };
        let mut told = |was: &[u8], is: &[u8], at: usize| Places::default().changed(was, is, (AREA, at), &mut word);
        let young = page(0x2005, 0x1000);
        assert_eq!(told(&young, &page(0x2025, 0x1000), 16), Some(ChangedWord::Mark), "older");
        assert_eq!(told(&young, &page(0, 0x2000), 16), Some(ChangedWord::Mark), "dead");
        assert_eq!(told(&young, &page(0, 0x2000), 24), Some(ChangedWord::Mark), "the next free place");
        assert_eq!(told(&page(0, 0), &young, 16), Some(ChangedWord::Made));
        assert_eq!(told(&page(0, 0), &young, 24), Some(ChangedWord::Made), "its class");
        assert_eq!(told(&page(0, 0), &page(0, 0x2000), 24), Some(ChangedWord::Mark), "linked anew");
        let mut left = page(0, 0x2000);
        left[32] = 7;
        assert_eq!(told(&page(0, 0), &left, 24), Some(ChangedWord::Made), "an object was there meanwhile");
        assert_eq!(
            told(&young, &left, 32),
            Some(ChangedWord::Mark),
            "who put something there after a death freed it as well"
        );
        assert_eq!(told(&young, &page(0x2805, 0x1000), 16), None, "frozen");
        let far = Places::default().changed(&young, &page(0, 0), (0x7e00_0000_0000, 16), &mut word);
        assert_eq!(far, None, "no area");
    }
    #[test]
    fn what_describes_an_area_is_the_collectors_and_what_lies_beside_it_is_not() {
        let described =
            [(AREA, DESCRIBED_AT), (DESCRIBED_AT - 8, 0x161), (DESCRIBED_AT, 40), (DESCRIBED_AT + 24, AREA + 16)];
        let memory = HashMap::from(described);
        let mut word = |at: u64| memory.get(&at).copied();
        let mut places = Places::default();
        let page = DESCRIBED_AT / page_size() * page_size();
        assert_eq!(places.wrote(DESCRIBED_AT + 0x100, &mut word), Wrote::CollectorHeader);
        assert_eq!(places.wrote(DESCRIBED_AT + 0x158, &mut word), Wrote::Other, "the next block");
        assert_eq!(places.wrote(DESCRIBED_AT - 8, &mut word), Wrote::Other, "malloc's own");
        assert!(places.any_at(page, &[], &mut word) && !places.any_at(page + page_size(), &[], &mut word));
        let (was, is) = (vec![0; page_size() as usize], vec![1; page_size() as usize]);
        let mut told = |at: u64| places.changed(&was, &is, (page, (at - page) as usize), &mut word);
        assert_eq!((told(DESCRIBED_AT + 0x100), told(DESCRIBED_AT + 0x200)), (Some(ChangedWord::Mark), None));
    }
    #[test]
    fn a_chunk_of_the_collectors_stack_has_an_object_first_and_leads_to_another_chunk() {
        let (chunk, next) = (0x5500_0000_2010, 0x5500_0000_4010);
        let mut memory = HashMap::from([(AREA, DESCRIBED_AT), (DESCRIBED_AT, 40), (DESCRIBED_AT + 8, AREA + 16)]);
        memory.extend([(chunk - 8, 0xfb1), (chunk, AREA + 96), (chunk + CHUNK_LINK, next), (next - 8, 0xfb1)]);
        let wrote =
            |memory: &HashMap<u64, u64>, at: u64| Places::default().wrote(at, &mut |at| memory.get(&at).copied());
        assert_eq!(wrote(&memory, chunk + 80), Wrote::CollectorHeader);
        assert_eq!(wrote(&memory, chunk + CHUNK_LINK + 8), Wrote::Other, "the next block");
        memory.insert(chunk, 0x7e00_0000_0000);
        assert_eq!(wrote(&memory, chunk + 80), Wrote::Other, "no object");
        memory.extend([(chunk, AREA + 96), (next - 8, 0x21)]);
        assert_eq!(wrote(&memory, chunk + 80), Wrote::Other, "it leads elsewhere");
    }
}
