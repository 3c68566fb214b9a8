//! The way in which Ruby's objects lie in memory (gc.c, since Ruby 2.1; 64-bit builds).
//!
//! Objects lie in places of one size, in areas that begin at a multiple of their own size. An area's first word leads to its description,
//! and one of that one's first words leads back to the area's first place: both together are too much for chance. The first word of a place
//! is the object's flags, zero where it is free; the next free place follows then.

use super::super::{Changed, Objects, Word};
use crate::record::Wrote;
use std::collections::HashMap;

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
/// So many areas are remembered.
const KNOWN_MAX: usize = 1 << 14;

/// The first place of an area, and the size of its places.
type Area = (u64, u64);

/// The areas of one process.
#[derive(Default)]
pub struct Places {
    known: HashMap<u64, Option<Area>>,
}

fn area(start: u64, size: u64, word: &mut Word<'_>) -> Option<Area> {
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
    fn area(&mut self, address: u64, word: &mut Word<'_>) -> Option<Area> {
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        AREAS.into_iter().find_map(|size| {
            let start = address / size * size;
            *self.known.entry(start | size >> 14).or_insert_with(|| area(start, size, word))
        })
    }
}

impl Objects for Places {
    fn wrote(&mut self, address: u64, word: &mut Word<'_>) -> Wrote {
        // The collector and the program write the same words: what they wrote there tells.
        if self.area(address, word).is_some() { Wrote::Unknown } else { Wrote::Other }
    }

    fn any_in(&mut self, page: &[u8], word: &mut Word<'_>) -> bool {
        let _ = (page, word);
        false
    }

    fn any_at(&mut self, address: u64, page: &[u8], word: &mut Word<'_>) -> bool {
        let _ = page;
        self.area(address, word).is_some()
    }

    fn is_count(&mut self, _was: u64, _is: u64, _next: u64, _word: &mut Word<'_>) -> bool {
        false
    }

    fn changed(&mut self, was: &[u8], is: &[u8], (page, at): (u64, usize), word: &mut Word<'_>) -> Option<Changed> {
        let read = |page: &[u8], at: usize| page.get(at..)?.first_chunk::<8>().map(|word| u64::from_le_bytes(*word));
        let address = page.checked_add(at as u64)?;
        let (first, size) = self.area(address, word)?;
        let within = address.checked_sub(first)? % size;
        let (before, after) = (read(was, at)?, read(is, at)?);
        let place = at.checked_sub(usize::try_from(within).ok()?)?;
        let was_free = read(was, place)? == 0;
        let is_free = read(is, place)? == 0;
        // A free place leads to the next one; what else is in it was left there by the object that it held.
        let held_another = || (place + 16..place + size as usize).step_by(8).any(|at| read(was, at) != read(is, at));
        match (was_free, is_free) {
            (true, false) => Some(Changed::Made),
            (true, true) => Some(if held_another() { Changed::Made } else { Changed::Mark }),
            // The object was found to be dead. Others that were put there since are dead as well.
            (false, true) => Some(Changed::Mark),
            // The object grew older.
            (false, false) => (within == 0 && (before ^ after) & !AGE == 0).then_some(Changed::Mark),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREA: u64 = 0x7f00_0001_0000;
    const DESCRIBED: u64 = 0x5500_0000_0100;

    #[test]
    fn an_object_that_grew_older_or_died_is_told_from_one_that_was_made() {
        let memory = HashMap::from([(AREA, DESCRIBED), (DESCRIBED, 40), (DESCRIBED + 8, AREA + 16)]);
        let mut word = |at: u64| memory.get(&at).copied();
        let page = |flags: u64, klass: u64| -> Vec<u8> {
            [0, 0, flags, klass, 0, 0, 0].iter().flat_map(|word: &u64| word.to_le_bytes()).collect()
        };
        let mut told = |was: &[u8], is: &[u8], at: usize| Places::default().changed(was, is, (AREA, at), &mut word);
        let young = page(0x2005, 0x1000);
        assert_eq!(told(&young, &page(0x2025, 0x1000), 16), Some(Changed::Mark), "older");
        assert_eq!(told(&young, &page(0, 0x2000), 16), Some(Changed::Mark), "dead");
        assert_eq!(told(&young, &page(0, 0x2000), 24), Some(Changed::Mark), "the next free place");
        assert_eq!(told(&page(0, 0), &young, 16), Some(Changed::Made));
        assert_eq!(told(&page(0, 0), &young, 24), Some(Changed::Made), "its class");
        assert_eq!(told(&page(0, 0), &page(0, 0x2000), 24), Some(Changed::Mark), "linked anew");
        let mut left = page(0, 0x2000);
        left[32] = 7;
        assert_eq!(told(&page(0, 0), &left, 24), Some(Changed::Made), "an object was there meanwhile");
        assert_eq!(
            told(&young, &left, 32),
            Some(Changed::Mark),
            "who put something there after a death freed it as well"
        );
        assert_eq!(told(&young, &page(0x2805, 0x1000), 16), None, "frozen");
        let far = Places::default().changed(&young, &page(0, 0), (0x7e00_0000_0000, 16), &mut word);
        assert_eq!(far, None, "no area");
    }
}
