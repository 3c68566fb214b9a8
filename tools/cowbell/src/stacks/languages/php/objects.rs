//! The way in which PHP's counted values lie in memory (zend_types.h, since PHP 7.3; 64-bit builds).
//!
//! Strings, arrays, objects and references begin with a count and, in the upper half of the word, their type and what the collector
//! notes. What follows is told apart from anything else by what it must be: a string ends with a zero byte, an array has room for as many
//! entries as a power of two, an object leads to its class.

use super::super::{ChangedWord, ObjectReader, ReadWord, word_at};
use crate::record::Wrote;

/// Types in the lowest bits of the upper half.
const TYPE: u32 = 0xf;
const STRING: u32 = 6;
const ARRAY: u32 = 7;
const OBJECT: u32 = 8;
const REFERENCE: u32 = 10;
/// From this bit of the upper half on the collector notes the colour and the place among its candidates (`GC_INFO_SHIFT`).
const COLLECTORS: u32 = 10;
/// The highest bit of a string's hash is set; a string that was not asked for its hash has zero there.
const HASHED: u64 = 1 << 63;
/// No count of a value in use is higher.
const COUNT_MAX: u32 = 1 << 30;
/// No string in use is longer.
const LENGTH_MAX: u64 = 1 << 31;

/// Remembers nothing.
pub struct Counted;

/// The type in a value's first word, if that can be one.
fn kind(word: u64) -> Option<u32> {
    let (count, info) = (word as u32, (word >> 32) as u32);
    // Strings and references are nothing of the collector's.
    let is_noted = info >> COLLECTORS != 0;
    match info & TYPE {
        kind @ (ARRAY | OBJECT) => Some(kind),
        kind @ (STRING | REFERENCE) if !is_noted => Some(kind),
        _ => None,
    }
    .filter(|_| (1..COUNT_MAX).contains(&count))
}

fn is_pointer(word: u64) -> bool {
    word.is_multiple_of(8) && word >= 1 << 16 && word >> 47 == 0
}

/// Tells whether a counted value begins where the first of these words is read; `at` reads at offsets from there.
fn is_value(mut at: impl FnMut(u64) -> Option<u64>) -> bool {
    let mut look = || {
        let kind = kind(at(0)?)?;
        Some(match kind {
            STRING => {
                let (hash, length) = (at(8)?, at(16)?);
                // The byte behind the text.
                let end = 24 + length;
                let is_ended = length < LENGTH_MAX && (at(end / 8 * 8)? >> (end % 8 * 8)) & 0xff == 0;
                is_ended && (hash == 0 || hash & HASHED != 0)
            }
            ARRAY => {
                let (data, numbers, room) = (at(16)?, at(24)?, at(32)? as u32);
                let (used, elements) = (numbers as u32, (numbers >> 32) as u32);
                is_pointer(data) && room.is_power_of_two() && used <= room && elements <= used
            }
            OBJECT => is_pointer(at(16)?) && is_pointer(at(24)?),
            // The type of the value that is referred to.
            _ => at(16)? & 0xff <= 11,
        })
    };
    look() == Some(true)
}

/// A reader of words at offsets from a place in a page.
fn words(page: &[u8], start: usize) -> impl FnMut(u64) -> Option<u64> + '_ {
    move |offset| {
        let at = start.checked_add(usize::try_from(offset).ok()?)?;
        word_at(page, at)
    }
}

impl ObjectReader for Counted {
    fn wrote(&mut self, address: u64, word: &mut ReadWord<'_>) -> Wrote {
        let first = address / 8 * 8;
        if word(first).is_none() {
            return Wrote::Unknown;
        }
        let first_word = word(first).and_then(kind);
        match is_value(|offset| word(first.checked_add(offset)?)) {
            true if address == first && first_word == Some(OBJECT) => Wrote::ObjectCount,
            true if address == first => Wrote::ReferenceCount,
            // The collector's colours stand there, beside marks of what is being visited; who writes them is told by the code.
            true => Wrote::Flags,
            false => Wrote::Other,
        }
    }

    fn any_in(&mut self, page: &[u8], _word: &mut ReadWord<'_>) -> bool {
        let mut found = (0..page.len()).step_by(8).filter(|&at| is_value(words(page, at)));
        // One may be chance.
        found.nth(1).is_some()
    }

    fn changed(&mut self, was: &[u8], is: &[u8], (_, at): (u64, usize), _: &mut ReadWord<'_>) -> Option<ChangedWord> {
        let (before, after) = (words(was, at)(0)?, words(is, at)(0)?);
        let same_kind = kind(before).is_some() && kind(before) == kind(after);
        // PHP may note a value as a candidate for the collector when a reference to it is given back.
        (same_kind && (is_value(words(was, at)) || is_value(words(is, at)))).then_some(ChangedWord::Count)
    }

    fn kept_hash(&mut self, was: &[u8], is: &[u8], at: usize, _: &mut ReadWord<'_>) -> Option<bool> {
        let string = at.checked_sub(8)?;
        let is_string = |page: &[u8]| kind(words(page, string)(0)?).filter(|kind| *kind == STRING);
        let (before, after) = (words(was, at)(0)?, words(is, at)(0)?);
        let took = before == 0 && after & HASHED != 0 && is_string(was) == is_string(is);
        (took && is_string(is).is_some() && is_value(words(is, string))).then_some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const AT: u64 = 0x7f00_0000_1000;

    #[test]
    fn counts_are_those_of_strings_arrays_and_objects_by_what_follows_them() {
        let value = |kind: u64, rest: &[u64]| -> HashMap<u64, u64> {
            let words = [1 | kind << 32].into_iter().chain(rest.iter().copied());
            (AT..).step_by(8).zip(words).collect()
        };
        let wrote = |memory: &HashMap<u64, u64>, address| Counted.wrote(address, &mut |at| memory.get(&at).copied());
        let text = u64::from_le_bytes(*b"value\0\0\0");
        let string = value(6, &[HASHED | 7, 5, text]);
        assert_eq!(wrote(&string, AT), Wrote::ReferenceCount);
        assert_eq!(wrote(&string, AT + 8), Wrote::Other, "its hash");
        assert_eq!(wrote(&value(6, &[7, 5, text]), AT), Wrote::Other, "no hash has its highest bit clear");
        assert_eq!(wrote(&value(6, &[0, 4, text]), AT), Wrote::Other, "no zero byte behind the text");
        let array = value(7, &[0, AT + 0x1000, 3 << 32 | 3, 8]);
        assert_eq!((wrote(&array, AT), wrote(&array, AT + 4)), (Wrote::ReferenceCount, Wrote::Flags));
        assert_eq!(wrote(&value(7, &[0, AT + 0x1000, 9 << 32 | 9, 8]), AT), Wrote::Other, "more than it has room for");
        assert_eq!(wrote(&value(8, &[1, AT + 0x2000, AT + 0x3000]), AT), Wrote::ObjectCount);
        assert_eq!(wrote(&HashMap::new(), AT), Wrote::Unknown);
    }

    #[test]
    fn a_string_that_was_asked_for_its_hash_keeps_it() {
        let page = |words: [u64; 4]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let text = u64::from_le_bytes(*b"value\0\0\0");
        let string = |count: u64, hash: u64| page([count | 6 << 32, hash, 5, text]);
        let kept = |was: &[u8], is: &[u8]| Counted.kept_hash(was, is, 8, &mut |_| None);
        assert_eq!(kept(&string(1, 0), &string(2, HASHED | 7)), Some(false));
        assert_eq!(kept(&string(1, HASHED | 5), &string(1, HASHED | 7)), None, "a hash does not change");
        assert_eq!(kept(&string(1, 0), &string(1, 7)), None, "no hash has its highest bit clear");
        assert_eq!(kept(&page([0, 0, 5, text]), &string(1, HASHED | 7)), None, "there was no string");
    }
}
