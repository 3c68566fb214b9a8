//! The way in which Perl's values lie in memory (sv.h, hv.h of Perl 5.10 and later; 64-bit builds).
//!
//! A value has a head of three words: a pointer to its body, the reference count and the flags, and a pointer or a number of its own. Bodies
//! of plain numbers and references are not there: the pointer leads to where a body would begin whose last field is the head's
//! third word. A key that hashes share has its reference count after the pointer to its text, which lies right behind.

use super::super::{ChangedWord, ObjectReader, ReadWord};
use crate::record::Wrote;

/// Offsets in the head of a value.
const COUNT: u64 = 8;
const OWN: u64 = 16;
const HEAD: usize = 24;
/// The lowest byte of the flags is the type; these are the types of Perl 5.36, and one more since 5.38.
const TYPES: u32 = 18;
const NUMBER: u32 = 1;
const FLOAT: u32 = 2;
const STRING: u32 = 3;
const STRING_AND_NUMBER: u32 = 5;
const STRING_AND_FLOAT: u32 = 6;
const MAGICAL: u32 = 7;
const ARRAY: u32 = 11;
/// Flags: the value has a number or a string that may be used (`SVp_IOK`, `SVp_NOK`, `SVp_POK`).
const HAS_NUMBER: u32 = 0x1000 | 0x2000;
const HAS_STRING: u32 = 0x4000;
const USABLE: u32 = 0xff00;
/// Offsets from a value's head to the body that is not there.
const NO_BODY_OF_NUMBER: u64 = 16;
const NO_BODY_OF_FLOAT: u64 = 24;
/// Offsets in the bodies of strings.
const LENGTH: u64 = 16;
const ROOM: u64 = 24;
/// Offset of the count in a key that hashes share, and of its text.
const KEY_COUNT: u64 = 16;
const KEY_TEXT: u64 = 24;
/// The values that Perl has one of (`undef`, true) have a count of half of all numbers.
const COUNT_MAX: u32 = u32::MAX / 2 + 1;

/// Reads nothing twice, remembers nothing.
pub struct Values;

/// The two halves of a head's second word, if they can be a count and flags.
fn count_and_flags(word: u64) -> Option<(u32, u32)> {
    let (count, flags) = (word as u32, (word >> 32) as u32);
    (count > 0 && count <= COUNT_MAX && flags & 0xff < TYPES).then_some((count, flags))
}

fn is_pointer(word: u64) -> bool {
    word.is_multiple_of(8) && word >= 1 << 16 && word >> 47 == 0
}

/// Tells whether three words at `head` are a value's, by what can be seen in them alone.
fn is_head(head: u64, [body, counted, own]: [u64; 3]) -> bool {
    let Some((_, flags)) = count_and_flags(counted) else { return false };
    match flags & 0xff {
        // A value of no kind has nothing that may be used.
        0 => body == 0 && flags & USABLE == 0,
        NUMBER => body == head.wrapping_sub(NO_BODY_OF_NUMBER),
        FLOAT => body == head.wrapping_sub(NO_BODY_OF_FLOAT),
        STRING | STRING_AND_NUMBER | STRING_AND_FLOAT if flags & HAS_STRING != 0 => is_pointer(body) && own >= 1 << 16,
        _ => is_pointer(body),
    }
}

/// The same, with what its body says: an array's last index lies below its room, a string's length too.
fn is_value(head: u64, word: &mut ReadWord<'_>) -> bool {
    let mut at = |offset: u64| word(head.checked_add(offset)?);
    let (Some(body), Some(counted), Some(own)) = (at(0), at(COUNT), at(OWN)) else { return false };
    if !head.is_multiple_of(8) || !is_head(head, [body, counted, own]) {
        return false;
    }
    let flags = (counted >> 32) as u32;
    let mut sizes = || Some((word(body.checked_add(LENGTH)?)?, word(body.checked_add(ROOM)?)?));
    match flags & 0xff {
        STRING | STRING_AND_NUMBER | STRING_AND_FLOAT | MAGICAL if flags & HAS_STRING != 0 => {
            sizes().is_some_and(|(length, room)| length < room || room == 0 && length >> 32 == 0)
        }
        ARRAY => sizes().is_some_and(|(last, most)| last as i64 >= -1 && (last as i64) <= (most as i64)),
        // The head tells all of values that have no body.
        0..=FLOAT => true,
        _ => is_pointer(body) && word(body).is_some(),
    }
}

/// Tells whether the word at an address is the count of a key that hashes share.
fn is_count_of_key(address: u64, word: &mut ReadWord<'_>) -> bool {
    let text = address.checked_sub(KEY_COUNT).and_then(|key| key.checked_add(KEY_TEXT));
    text.is_some() && address.checked_sub(8).and_then(word) == text
}

fn read(page: &[u8], at: usize) -> Option<u64> {
    page.get(at..)?.first_chunk::<8>().map(|word| u64::from_le_bytes(*word))
}

/// A value's head in a page.
fn head(page: &[u8], at: usize) -> Option<[u64; 3]> {
    Some([read(page, at)?, read(page, at + 8)?, read(page, at + 16)?])
}

impl ObjectReader for Values {
    fn wrote(&mut self, address: u64, word: &mut ReadWord<'_>) -> Wrote {
        let head = address.checked_sub(COUNT).filter(|head| head.is_multiple_of(8));
        // Anything may lie at the end of what is there.
        if word(address / 8 * 8).is_none() {
            return Wrote::Unknown;
        }
        let is_count = head.is_some_and(|head| is_count_of_key(address, word) || is_value(head, word));
        if is_count { Wrote::ReferenceCount } else { Wrote::Other }
    }

    fn any_in(&mut self, page: &[u8], word: &mut ReadWord<'_>) -> bool {
        let _ = word;
        let is_key = |at: usize| {
            let (text, count) = (read(page, at + 8)?, read(page, at + 16)?);
            Some(is_pointer(text) && text % 4096 == (at as u64 + KEY_TEXT) % 4096 && count >> 32 == 0)
        };
        // Three values in a row, or a key: both are too much for chance.
        let is_row = |at: usize| {
            (0..3).all(|nth| head(page, at + nth * HEAD).is_some_and(|words| is_head_somewhere(at + nth * HEAD, words)))
        };
        (0..page.len()).step_by(8).any(|at| is_row(at) || is_key(at) == Some(true))
    }

    fn changed(&mut self, was: &[u8], is: &[u8], (_, at): (u64, usize), _: &mut ReadWord<'_>) -> Option<ChangedWord> {
        let heads = |start: usize| {
            let (before, after) = (head(was, start)?, head(is, start)?);
            let valid = is_head_somewhere(start, before) && is_head_somewhere(start, after);
            valid.then_some((before, after))
        };
        let flags = |head: &[u64; 3]| (head[1] >> 32) as u32;
        // The number was written into a string: it is a string still, and has a number now.
        let took_number = |(before, after): &([u64; 3], [u64; 3])| {
            let strings = flags(before) & flags(after) & HAS_STRING != 0;
            strings && flags(before) & HAS_NUMBER == 0 && flags(after) & HAS_NUMBER != 0 && before[2] == after[2]
        };
        let by_head = heads(at).filter(took_number);
        let by_flags = at.checked_sub(8).and_then(heads);
        if by_head.is_some() || by_flags.as_ref().is_some_and(took_number) {
            return Some(ChangedWord::Number);
        }
        let counts_only = |(before, after): &([u64; 3], [u64; 3])| {
            before[0] == after[0] && flags(before) == flags(after) && before[2] == after[2]
        };
        let of_key = || {
            let text = at.checked_sub(8).and_then(|before| Some((read(was, before)?, read(is, before)?)));
            text.is_some_and(|(before, after)| {
                before == after && is_pointer(before) && before % 4096 == (at as u64 + 8) % 4096
            })
        };
        (by_flags.as_ref().is_some_and(counts_only) || of_key()).then_some(ChangedWord::Count)
    }
}

/// [`is_head`] of a head in a page whose address is not known: what lies before it is told by its place in the page.
fn is_head_somewhere(at: usize, words: [u64; 3]) -> bool {
    let page = words[0].wrapping_add(NO_BODY_OF_FLOAT) / 4096 * 4096;
    let near = [page.wrapping_sub(4096), page, page.wrapping_add(4096)];
    near.iter().any(|page| is_head(page.wrapping_add(at as u64), words))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const AT: u64 = 0x7f00_0000_1000;

    fn memory(words: &[(u64, u64)]) -> HashMap<u64, u64> {
        words.iter().copied().collect()
    }

    #[test]
    fn counts_are_those_of_values_and_of_keys_that_hashes_share() {
        let number = |count: u64| [(AT, AT - NO_BODY_OF_NUMBER), (AT + 8, count | 0x1101 << 32), (AT + 16, 7)];
        let key = [(AT, 0), (AT + 8, AT + 24), (AT + 16, 1), (AT + 24, 5 << 32 | 9)];
        let wrote = |words: &[(u64, u64)], address: u64| {
            let memory = memory(words);
            Values.wrote(address, &mut |at| memory.get(&at).copied())
        };
        assert_eq!(wrote(&number(1), AT + 8), Wrote::ReferenceCount);
        assert_eq!(wrote(&number(1), AT + 12), Wrote::Other, "its flags");
        assert_eq!(wrote(&number(1), AT + 16), Wrote::Other, "its own number");
        assert_eq!(wrote(&number(0), AT + 8), Wrote::Other, "a value that was freed");
        assert_eq!(wrote(&key, AT + 16), Wrote::ReferenceCount);
        assert_eq!(wrote(&key, AT + 8), Wrote::Other, "the pointer to its text");
        assert_eq!(wrote(&[], AT), Wrote::Unknown);
    }

    #[test]
    fn a_string_that_took_a_number_is_told_from_one_that_changed() {
        let page = |words: [u64; 3]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let string = |kind: u64, flags: u64| page([AT, 1 | (kind | flags) << 32, AT + 64]);
        let text = string(3, 0x4400);
        let with_number = string(5, 0x5500);
        assert_eq!(Values.changed(&text, &with_number, (0, 8), &mut |_| None), Some(ChangedWord::Number));
        assert_eq!(Values.changed(&with_number, &text, (0, 8), &mut |_| None), None, "it lost its number");
        let counted = page([AT, 2 | (3 | 0x4400) << 32, AT + 64]);
        assert_eq!(Values.changed(&text, &counted, (0, 8), &mut |_| None), Some(ChangedWord::Count));
        let other = page([AT, 1 | (3 | 0x4400) << 32, AT + 96]);
        assert_eq!(Values.changed(&text, &other, (0, 16), &mut |_| None), None, "its text lies elsewhere");
    }
}
