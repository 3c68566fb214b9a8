//! The way in which Ruby's objects lie in memory (gc.c, since Ruby 2.1; 64-bit builds).
//!
//! Objects lie in places of one size, in areas that begin at a multiple of their own size. An area's first word leads to its description,
//! and one of that one's first words leads back to the area's first place: both together are too much for chance. The first word of a place
//! is the object's flags, zero where it is free; the next free place follows then. Descriptions lie in blocks of malloc, among anything else, and
//! hold the bits that the collector sets for each object and clears. Beside them lie the chunks of its stack, on which it puts what it has yet to
//! visit: each is a block of 500 pointers and a link to the next chunk, and is kept for the next collection.

use super::super::{ChangedWord, ObjectReader, ReadWord, word_at};
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
/// The bits of the flags that tell an object's type.
const TYPE: u64 = 0x1f;
/// Of each type whose objects may have their body in the transient heap, which the collector moves to malloc's as they grow old (Ruby 2.6 to
/// 3.2): the type, the flag for it, and the offset of the pointer to the body. `T_OBJECT`, `T_ARRAY`, `T_HASH` and `T_STRUCT`.
const TRANSIENT: [(u64, u64, u64); 4] = [(1, 1 << 25, 24), (7, 1 << 25, 32), (8, 1 << 24, 16), (9, 1 << 15, 24)];
/// The word before a body in the transient heap: its lowest half word is this, and the third is the collector's, who links there what it
/// marked. The next word leads to the object, and to none (`Qundef` up to Ruby 3.1, and since) once the body was moved or the object died.
const BODY: u64 = 0xfeab;
const NOBODY: [u64; 2] = [0x34, 0x24];
const BODY_MASK: u64 = 0xffff;
const BODY_LINK: u64 = 0xffff << 32;
/// Flags that an object gets when it is first asked for its id (`FL_SEEN_OBJ_ID`), and when the characters of a string are first looked at (the two
/// bits of its code range, both zero before).
const HAS_ID: u64 = 1 << 9;
const CODE_RANGE: u64 = 3 << 20;
/// The flag that a string or an array has whose body is another's (`STR_SHARED`, `RARRAY_SHARED_FLAG`): a copy makes the original such a one. With each type
/// the words behind the flags that change: `aux`, and of an array whose body leaves the transient heap its pointer.
const SHARES: u64 = 1 << 14;
const STRING: u64 = 5;
const ARRAY: u64 = 7;
const HASH: u64 = 8;
/// The most areas that are remembered.
const KNOWN_MAX: usize = 1 << 14;
/// Sizes of blocks of glibc's malloc that hold a description; the lowest bits of the word before a block are flags.
const DESCRIBED: Range<u64> = 64..4096;
const MALLOC_FLAGS: u64 = 7;
/// Other allocators write no size before a block: then so much of a description is known, its bits of the smallest areas included.
const DESCRIBED_MIN: u64 = 344;
/// A chunk of the collector's stack: the offset of its link, and its size. glibc's malloc puts a word before it, and others, which have blocks of
/// a page for it, put it at the beginning of one.
const CHUNK_LINK: u64 = 500 * 8;
const CHUNK_BYTES: u64 = CHUNK_LINK + 8;
const CHUNK_BLOCK: u64 = 0xfb0;
const CHUNK_ALIGN: u64 = 4096;

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
        let is_glibcs = DESCRIBED.contains(&block) && block.is_multiple_of(16);
        Some(description..description + if is_glibcs { block - 8 } else { DESCRIBED_MIN })
    })
}

/// Tells whether a chunk of the collector's stack begins here: its first entry lies in an area, and its link leads to another chunk.
fn is_chunk(chunk: u64, word: &mut ReadWord<'_>) -> bool {
    let has_object = |chunk: u64, word: &mut ReadWord<'_>| {
        word(chunk).is_some_and(|object| AREAS.into_iter().any(|size| area(object / size * size, size, word).is_some()))
    };
    let is_glibcs = |chunk: u64, word: &mut ReadWord<'_>| {
        chunk.checked_sub(8).and_then(word).is_some_and(|size| size & !MALLOC_FLAGS == CHUNK_BLOCK)
    };
    let next = |word: &mut ReadWord<'_>| word(chunk + CHUNK_LINK).filter(|next| next.is_multiple_of(16));
    if is_glibcs(chunk, word) {
        return next(word).is_some_and(|next| is_glibcs(next, word)) && has_object(chunk, word);
    }
    // Nothing but its place and its contents tells such a chunk: then the next one must hold objects, too.
    let is_aligned = |chunk: &u64| *chunk != 0 && chunk.is_multiple_of(CHUNK_ALIGN);
    is_aligned(&chunk)
        && next(word).filter(is_aligned).is_some_and(|next| has_object(chunk, word) && has_object(next, word))
}

/// The chunks of the collector's stack of which a part lies on a page.
fn chunks_on(page: u64, word: &mut ReadWord<'_>) -> impl Iterator<Item = Range<u64>> {
    let (from, end) = (page.saturating_sub(CHUNK_LINK), page.saturating_add(page_size()));
    let begins = (from..end).step_by(16).filter(move |&at| is_chunk(at, word));
    begins.map(|at| at..at + CHUNK_BYTES)
}

impl Places {
    /// Tells whether an address lies in the description of an area, or in a chunk of the collector's stack.
    fn is_described(&mut self, address: u64, word: &mut ReadWord<'_>) -> bool {
        self.described(address / page_size() * page_size(), word)
            .iter()
            .any(|description| description.contains(&address))
    }

    /// Tells whether this word stands before a body in the transient heap, by the next one, which leads to its object.
    fn is_body(&mut self, header: u64, object: Option<u64>, word: &mut ReadWord<'_>) -> bool {
        header & BODY_MASK == BODY && object.is_some_and(|object| self.area(object, word).is_some())
    }

    /// The descriptions and chunks that lie on a page, whole or in part.
    fn described(&mut self, page: u64, word: &mut ReadWord<'_>) -> &[Range<u64>] {
        if self.described.as_ref().is_none_or(|(known, _)| *known != page) {
            let (from, end) = (page.saturating_sub(DESCRIBED.end), page.saturating_add(page_size()));
            let descriptions = (from..end).step_by(8).filter_map(|at| described_at(at, word));
            let on_page = |description: &Range<u64>| description.end > page && description.start < end;
            let mut found: Vec<_> = descriptions.filter(on_page).collect();
            found.extend(chunks_on(page, word));
            self.described = Some((page, found));
        }
        self.described.as_ref().map_or(&[], |(_, found)| found)
    }
}

/// The meaning of the word at an offset of a live object that changed, by the object's flags before and after.
fn changed_of_live(was: u64, is: u64, within: u64) -> Option<ChangedWord> {
    let transient = TRANSIENT.into_iter().find(|(of, flag, _)| *of == was & TYPE && was & flag != 0);
    let (flag, pointer) = transient.map_or((0, None), |(_, flag, pointer)| (flag, Some(pointer)));
    let (code_range, shares) = match was & TYPE {
        STRING => (if was & CODE_RANGE == 0 { CODE_RANGE } else { 0 }, SHARES),
        ARRAY => (0, SHARES),
        _ => (0, 0),
    };
    let (set, kept) = (is & !was, HAS_ID | code_range);
    if (was ^ is) & !(AGE | flag) & !(set & (kept | shares)) != 0 {
        return None;
    }
    let begins_to_share = set & shares != 0;
    match within {
        0 if begins_to_share => Some(ChangedWord::Copies),
        0 if set & kept != 0 => Some(ChangedWord::Remembered),
        0 => Some(ChangedWord::Mark),
        32 if begins_to_share => Some(ChangedWord::Copies),
        24 if begins_to_share && was & TYPE == ARRAY => Some(ChangedWord::Copies),
        within if Some(within) == pointer => Some(ChangedWord::Mark),
        _ => None,
    }
}

impl ObjectReader for Places {
    fn wrote(&mut self, address: u64, word: &mut ReadWord<'_>) -> Wrote {
        let Some((first, size)) = self.area(address, word) else {
            return if self.is_described(address, word) { Wrote::CollectorHeader } else { Wrote::Other };
        };
        let within = address.checked_sub(first).map(|from| from % size);
        let flags = within.filter(|within| *within < 8).and_then(|within| word(address - within));
        // The collector and the program write the same words: what they wrote there tells.
        if flags.is_some_and(|flags| flags & TYPE == HASH) { Wrote::Iteration } else { Wrote::Unknown }
    }

    fn any_in(&mut self, page: &[u8], word: &mut ReadWord<'_>) -> bool {
        let _ = (page, word);
        false
    }

    fn any_at(&mut self, address: u64, page: &[u8], word: &mut ReadWord<'_>) -> bool {
        if self.area(address, word).is_some() || !self.described(address / page_size() * page_size(), word).is_empty() {
            return true;
        }
        let words: Vec<u64> =
            page.chunks_exact(8).filter_map(|word| word.first_chunk()).map(|word| u64::from_le_bytes(*word)).collect();
        words.windows(2).any(|both| matches!(both, &[header, object] if self.is_body(header, Some(object), word)))
    }

    fn is_of_collector(&mut self, page: u64, word: &mut ReadWord<'_>) -> Option<bool> {
        Some(chunks_on(page, word).next().is_some())
    }

    fn changed(
        &mut self,
        was: &[u8],
        is: &[u8],
        (page, at): (u64, usize),
        word: &mut ReadWord<'_>,
    ) -> Option<ChangedWord> {
        let address = page.checked_add(at as u64)?;
        let Some((first, size)) = self.area(address, word) else {
            let (before, after) = (word_at(was, at)?, word_at(is, at)?);
            let is_header = self.is_body(before, word_at(was, at + 8), word) && (before ^ after) & !BODY_LINK == 0;
            let mut is_owner = || {
                let header = at.checked_sub(8).and_then(|header| word_at(was, header));
                NOBODY.contains(&after) && header.is_some_and(|header| self.is_body(header, Some(before), word))
            };
            let is_collectors = is_header || is_owner() || self.is_described(address, word);
            return is_collectors.then_some(ChangedWord::Mark);
        };
        let within = address.checked_sub(first)? % size;
        let place = at.checked_sub(usize::try_from(within).ok()?)?;
        let was_free = word_at(was, place)? == 0;
        let is_free = word_at(is, place)? == 0;
        // A free place leads to the next one; what else is in it was left there by the object that it held.
        let held_another =
            || (place + 16..place + size as usize).step_by(8).any(|at| word_at(was, at) != word_at(is, at));
        match (was_free, is_free) {
            (true, false) => Some(ChangedWord::Made),
            (true, true) => Some(if held_another() { ChangedWord::Made } else { ChangedWord::Mark }),
            // The object was found to be dead. Others that were put there since are dead as well.
            (false, true) => Some(ChangedWord::Mark),
            (false, false) => changed_of_live(word_at(was, place)?, word_at(is, place)?, within),
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
        assert_eq!(wrote(&memory, chunk + CHUNK_BYTES), Wrote::Other, "the next block");
        let is_new = |memory: &HashMap<u64, u64>| {
            let page = chunk / page_size() * page_size();
            Places::default().is_of_collector(page, &mut |at| memory.get(&at).copied())
        };
        assert_eq!(is_new(&memory), Some(true));
        memory.insert(chunk, 0x7e00_0000_0000);
        assert_eq!(wrote(&memory, chunk + 80), Wrote::Other, "no object");
        memory.extend([(chunk, AREA + 96), (next - 8, 0x21)]);
        assert_eq!(wrote(&memory, chunk + 80), Wrote::Other, "it leads elsewhere");
        assert_eq!(is_new(&memory), Some(false));
    }
    #[test]
    fn a_chunk_of_another_allocators_begins_a_page_and_leads_to_one_with_objects() {
        let (chunk, next) = (0x5500_0000_2000, 0x5500_0000_9000);
        let mut memory = HashMap::from([(AREA, DESCRIBED_AT), (DESCRIBED_AT, 40), (DESCRIBED_AT + 8, AREA + 16)]);
        memory.extend([(chunk, AREA + 96), (chunk + CHUNK_LINK, next), (next, AREA + 136)]);
        let is_chunk = |memory: &HashMap<u64, u64>| super::is_chunk(chunk, &mut |at| memory.get(&at).copied());
        assert!(is_chunk(&memory));
        memory.insert(next, 7);
        assert!(!is_chunk(&memory), "it leads to something else");
        memory.extend([(next, AREA + 136), (chunk, 7)]);
        assert!(!is_chunk(&memory), "it holds something else");
    }

    #[test]
    fn a_body_that_is_moved_out_of_the_transient_heap_changes_its_object_and_its_header() {
        let memory = HashMap::from([(AREA, DESCRIBED_AT), (DESCRIBED_AT, 40), (DESCRIBED_AT + 8, AREA + 16)]);
        let mut word = |at: u64| memory.get(&at).copied();
        let bytes = |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
        let object = |flags: u64, body: u64, more: u64| bytes(&[0, 0, flags, 0x1000, body, more, 0]);
        let hash = 8 | 1 << 24;
        let was = object(hash, 0x7000, 5);
        let mut told = |is: &[u8], at: usize| Places::default().changed(&was, is, (AREA, at), &mut word);
        let moved = object(8 | 0x20, 0x9000, 5);
        assert_eq!([16, 32].map(|at| told(&moved, at)), [Some(ChangedWord::Mark); 2], "flags and pointer");
        assert_eq!(told(&object(hash, 0x7000, 6), 40), None, "what the program changed");
        let plain = object(8, 0x7000, 5);
        let grown = Places::default().changed(&plain, &object(8, 0x9000, 5), (AREA, 32), &mut word);
        assert_eq!(grown, None, "it was not transient");

        // A page of the transient heap: a header, its object, and the body.
        let page = 0x7f00_0002_0000;
        let heap = |link: u64, object: u64, first: u64| bytes(&[BODY | 40 << 16 | link << 32, object, first]);
        let was = heap(0, AREA + 16, 1);
        let mut told = |is: &[u8], at: usize| Places::default().changed(&was, is, (page, at), &mut word);
        assert_eq!(told(&heap(3, AREA + 16, 1), 0), Some(ChangedWord::Mark), "linked");
        assert_eq!(told(&heap(0, NOBODY[0], 1), 8), Some(ChangedWord::Mark), "let go");
        assert_eq!(told(&heap(0, AREA + 16, 2), 16), None, "what the program changed");
        assert!(Places::default().any_at(page, &was, &mut word));
        assert!(!Places::default().any_at(page, &heap(0, 7, 1), &mut word), "it leads to no object");
    }

    #[test]
    fn what_an_object_keeps_of_its_first_use_is_told_from_what_the_program_and_the_collector_write() {
        let (string, array) = (STRING | 1 << 13, ARRAY);
        let told = |was: u64, is: u64, within: u64| changed_of_live(was, is, within);
        assert_eq!(told(string, string | 1 << 20, 0), Some(ChangedWord::Remembered), "its characters");
        assert_eq!(told(string | 1 << 20, string | 3 << 20, 0), None, "they were known, and are others now");
        assert_eq!(told(1, 1 | HAS_ID, 0), Some(ChangedWord::Remembered), "its id");
        assert_eq!(told(string, string | SHARES, 0), Some(ChangedWord::Copies));
        assert_eq!(
            told(string, string | SHARES | 1 << 20, 32),
            Some(ChangedWord::Copies),
            "the string that has the body"
        );
        assert_eq!(told(string, string | SHARES, 16), None, "its length");
        assert_eq!(told(array, array | SHARES, 24), Some(ChangedWord::Copies));
        assert_eq!(told(HASH, HASH | SHARES, 0), None, "of a hash the flag is another");
        assert_eq!(told(string | SHARES, string, 0), None, "it has a body of its own again");
    }

    #[test]
    fn the_flags_of_a_hash_are_where_iterations_are_counted() {
        let place = AREA + 16;
        let mut memory = HashMap::from([(AREA, DESCRIBED_AT), (DESCRIBED_AT, 40), (DESCRIBED_AT + 8, place)]);
        memory.extend([(place, HASH), (place + 40, STRING)]);
        let wrote = |at: u64| Places::default().wrote(at, &mut |at| memory.get(&at).copied());
        assert_eq!(wrote(place + 4), Wrote::Iteration);
        assert_eq!([place + 8, place + 40].map(wrote), [Wrote::Unknown; 2], "behind them, and of a string");
    }
}
