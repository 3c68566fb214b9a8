//! The way in which Perl's values lie in memory (sv.h, hv.h of Perl 5.10 and later; 64-bit builds).
//!
//! A value has a head of three words: a pointer to its body, the reference count and the flags, and a pointer or a number of its own. Bodies
//! of plain numbers and references are not there: the pointer leads to where a body would begin whose last field is the head's
//! third word. A key that hashes share has its reference count after the pointer to its text, which lies right behind.

use super::super::{ChangedWord, ObjectReader, ReadWord, word_at};
use crate::record::Wrote;

/// Offsets in the head of a value.
const COUNT: u64 = 8;
const OWN: u64 = 16;
const HEAD: usize = 24;
const FLAGS: u64 = 12;
/// The lowest byte of the flags is the type; these are the types of Perl 5.36, and one more since 5.38.
const TYPES: u32 = 18;
const NUMBER: u32 = 1;
const FLOAT: u32 = 2;
const STRING: u32 = 3;
const STRING_AND_NUMBER: u32 = 5;
const STRING_AND_FLOAT: u32 = 6;
const MAGICAL: u32 = 7;
const ARRAY: u32 = 11;
const HASH: u32 = 12;
const CODE: u32 = 13;
/// The type of a head that is free.
const FREE: u32 = 0xff;
/// Flags: the value has a number or a string that may be used (`SVp_IOK`, `SVp_NOK`, `SVp_POK`).
const HAS_NUMBER: u32 = 0x1000 | 0x2000;
const HAS_STRING: u32 = 0x4000;
/// The flags of a hash that keeps where one stands that goes through it (`SVf_OOK`, `SVphv_HasAUX` since Perl 5.36).
const HAS_ITERATOR: u32 = 0x0200_0000 | 0x0100_0000;
/// The flag of a string whose text other strings may share (`SVf_IsCOW`).
const SHARES_TEXT: u32 = 0x1000_0000;
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
/// glibc's malloc: blocks begin at multiples of this number of bytes, and the word before them says the size of the block, with three bits:
/// that the block before it is in use, that it is a mapping of its own, that it is of another arena.
const BLOCK: u64 = 16;
const BLOCK_BITS: u64 = 7;
const BEFORE_IN_USE: u64 = 1;
/// No block in use is larger, but for those that are mappings of their own.
const BLOCK_MAX: u64 = 1 << 40;
/// No more copies of one text are told from anything else.
const COPIES_MAX: u8 = 64;
/// The text's end is looked for in so many bytes before the count of copies.
const END_WITHIN: usize = 32;
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

/// A value's head in a page.
fn head(page: &[u8], at: usize) -> Option<[u64; 3]> {
    Some([word_at(page, at)?, word_at(page, at + 8)?, word_at(page, at + 16)?])
}

impl ObjectReader for Values {
    fn wrote(&mut self, address: u64, word: &mut ReadWord<'_>) -> Wrote {
        let head = address.checked_sub(COUNT).filter(|head| head.is_multiple_of(8));
        // Anything may lie at the end of what is there.
        if word(address / 8 * 8).is_none() {
            return Wrote::Unknown;
        }
        if head.is_some_and(|_| is_count_of_key(address, word)) {
            return Wrote::ReferenceCount;
        }
        let of_value = head.filter(|&head| is_value(head, word)).and_then(|head| word(head.checked_add(COUNT)?));
        if let Some(counted) = of_value {
            let is_code = (counted >> 32) as u32 & 0xff == CODE;
            return if is_code { Wrote::ObjectCount } else { Wrote::ReferenceCount };
        }
        // Flags may be written by the byte.
        let of_flags = (address / 4 * 4).checked_sub(FLAGS).filter(|&head| is_value(head, word));
        if of_flags.is_some() { Wrote::Flags } else { Wrote::Other }
    }

    fn counts_copies(&mut self, address: u64, word: &mut ReadWord<'_>) -> bool {
        is_last_of_block(address, word)
    }

    fn any_in(&mut self, page: &[u8], word: &mut ReadWord<'_>) -> bool {
        let _ = word;
        let is_key = |at: usize| {
            let (text, count) = (word_at(page, at + 8)?, word_at(page, at + 16)?);
            Some(is_pointer(text) && text % 4096 == (at as u64 + KEY_TEXT) % 4096 && count >> 32 == 0)
        };
        // Three values in a row, or a key: both are too much for chance.
        let is_row = |at: usize| (0..3).all(|nth| is_state(at + nth * HEAD, head(page, at + nth * HEAD)));
        // Texts lie in malloc's blocks, of which three in a row are no chance either.
        let next =
            |at: usize| word_at(page, at).filter(|&size| is_size(size)).map(|size| at + (size & !BLOCK_BITS) as usize);
        let is_blocks = |at: usize| at as u64 % BLOCK == 8 && next(at).and_then(next).and_then(next).is_some();
        (0..page.len()).step_by(8).any(|at| is_row(at) || is_key(at) == Some(true) || is_blocks(at))
    }

    fn changed(
        &mut self,
        was: &[u8],
        is: &[u8],
        (page, at): (u64, usize),
        word: &mut ReadWord<'_>,
    ) -> Option<ChangedWord> {
        // A free head that was given to a value, which may have died since.
        let is_taken = |start: usize| head(was, start).is_some_and(is_free) && is_state(start, head(is, start));
        let starts = [Some(at), at.checked_sub(8), at.checked_sub(16)];
        if starts.into_iter().flatten().any(is_taken) {
            return Some(ChangedWord::Made);
        }
        let heads = |start: usize| {
            let (before, after) = (head(was, start)?, head(is, start)?);
            let valid = is_head_somewhere(start, before) && is_head_somewhere(start, after);
            valid.then_some((before, after))
        };
        let kept = starts.into_iter().flatten().filter_map(heads).find_map(|(before, after)| keeps(before, after));
        if kept.is_some() {
            return kept;
        }
        let counts_only = |(before, after): &([u64; 3], [u64; 3])| {
            before[0] == after[0] && before[1] >> 32 == after[1] >> 32 && before[2] == after[2]
        };
        let of_key = || {
            let text = |page: &[u8]| word_at(page, at.checked_sub(8)?);
            let same = text(was).filter(|text| is_pointer(*text) && text % 4096 == (at as u64 + 8) % 4096);
            same.is_some() && same == text(is)
        };
        if at.checked_sub(8).and_then(heads).as_ref().is_some_and(counts_only) || of_key() {
            return Some(ChangedWord::Count);
        }
        is_count_of_copies(was, is, (page, at), word).then_some(ChangedWord::Copies)
    }
}

/// Tells whether a head is free: such a head leads to the next one.
fn is_free([next, counted, _]: [u64; 3]) -> bool {
    (counted >> 32) as u32 == FREE && (next == 0 || is_pointer(next))
}

/// Tells whether there is a head at this place of a page, of a value or free.
fn is_state(at: usize, words: Option<[u64; 3]>) -> bool {
    words.is_some_and(|words| is_free(words) || is_head_somewhere(at, words))
}

/// The word that a value keeps although it was only used, by its head before and after.
fn keeps(before: [u64; 3], after: [u64; 3]) -> Option<ChangedWord> {
    let (was, is) = ((before[1] >> 32) as u32, (after[1] >> 32) as u32);
    let gained = |flag: u32| was & flag == 0 && is & flag != 0;
    let has_text = before[2] == after[2] && was & is & HAS_STRING != 0;
    if has_text && gained(HAS_NUMBER) {
        Some(ChangedWord::Number)
    } else if has_text && was & 0xff < MAGICAL && is & 0xff == MAGICAL {
        Some(ChangedWord::Remembered)
    } else if has_text && before[0] == after[0] && gained(SHARES_TEXT) {
        Some(ChangedWord::Copies)
    } else if was & 0xff == HASH && is & 0xff == HASH && before[2] == after[2] && gained(HAS_ITERATOR) {
        Some(ChangedWord::Iterator)
    } else if was & is & HAS_NUMBER != 0 && gained(HAS_STRING) {
        Some(ChangedWord::Text)
    } else {
        None
    }
}

/// Tells whether this is the word with the size of one of malloc's blocks, behind one that is in use.
fn is_size(word: u64) -> bool {
    let size = word & !BLOCK_BITS;
    word & BEFORE_IN_USE != 0 && size.is_multiple_of(BLOCK) && (2 * BLOCK..BLOCK_MAX).contains(&size)
}

/// Tells whether a byte can be the last one that was asked for in one of malloc's blocks: the word with the size of the next block follows
/// within [`BLOCK`] bytes, and the next but one where that size says.
fn is_last_of_block(address: u64, word: &mut ReadWord<'_>) -> bool {
    let next = |at: u64| at.checked_add(BLOCK + 7).map(|at| at / BLOCK * BLOCK - 8);
    let mut look = || {
        let next = next(address.checked_add(1)?)?;
        let size = word(next).filter(|&size| is_size(size))?;
        // The last block of all borders on what is not there.
        let after = word(next.checked_add(size & !BLOCK_BITS)?);
        Some(after.is_none_or(|after| is_size(after | BEFORE_IN_USE)))
    };
    look() == Some(true)
}

/// Tells whether nothing changed in a word but the count of a text's copies. It stands in the last byte of the text's block, behind the zero
/// byte that ends the text.
fn is_count_of_copies(was: &[u8], is: &[u8], (page, at): (u64, usize), word: &mut ReadWord<'_>) -> bool {
    let differs = |place: &usize| was.get(*place) != is.get(*place);
    let mut places = (at..at + 8).filter(differs);
    let (Some(place), None) = (places.next(), places.next()) else { return false };
    let ends = is.get(place.saturating_sub(END_WITHIN)..place).is_some_and(|before| before.contains(&0));
    let is_few = is.get(place).is_some_and(|&copies| copies < COPIES_MAX);
    let mut in_page = |address: u64| {
        let of_page = address.checked_sub(page).and_then(|at| word_at(is, usize::try_from(at).ok()?));
        of_page.or_else(|| word(address))
    };
    ends && is_few && is_last_of_block(page + place as u64, &mut in_page)
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
        assert_eq!(wrote(&number(1), AT + 12), Wrote::Flags);
        assert_eq!(wrote(&number(1), AT + 16), Wrote::Other, "its own number");
        assert_eq!(wrote(&number(0), AT + 8), Wrote::Other, "a value that was freed");
        assert_eq!(wrote(&key, AT + 16), Wrote::ReferenceCount);
        assert_eq!(wrote(&key, AT + 8), Wrote::Other, "the pointer to its text");
        assert_eq!(wrote(&[], AT), Wrote::Unknown);
    }

    #[test]
    fn the_count_of_a_texts_copies_is_the_last_byte_that_was_asked_for_of_a_block() {
        // The text, its end and its count: 14 bytes of a block of 32, behind which lies one of 48.
        let text = |count: u8| [&b"some text...\0"[..], &[count], &[0; 10]].concat();
        let block = |count: u8, size: u64| -> Vec<u8> {
            let words = [size, 0, 0, 0, 0, 0].into_iter().flat_map(u64::to_le_bytes);
            [text(count), words.collect(), 0x31u64.to_le_bytes().to_vec()].concat()
        };
        // Blocks begin at multiples of 16, behind the word with their size.
        let memory = |page: Vec<u8>| move |at: u64| word_at(&page, usize::try_from(at - AT).ok()?);
        assert!(Values.counts_copies(AT + 13, &mut memory(block(1, 0x31))));
        assert!(!Values.counts_copies(AT + 13, &mut memory(block(1, 0))), "no block follows");
        assert!(!Values.counts_copies(AT + 13, &mut memory(block(1, 0x39))), "no size has this bit");
        assert!(!Values.counts_copies(AT + 4, &mut memory(block(1, 0x31))), "the block goes on for more than its rest");
        let changed = |was: &[u8], is: &[u8]| Values.changed(was, is, (AT, 8), &mut |_| None);
        assert_eq!(changed(&block(0, 0x31), &block(1, 0x31)), Some(ChangedWord::Copies));
        let mut written = block(0, 0x31);
        written[9] = b'x';
        assert_eq!(changed(&block(0, 0x31), &written), None, "a letter of the text");
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
        let changed = |was: &[u8], is: &[u8], at: usize| Values.changed(was, is, (AT, at), &mut |_| None);
        let number = |flags: u64, own: u64| page([AT - NO_BODY_OF_NUMBER, 1 | (1 | flags) << 32, own]);
        let with_text = page([AT + 640, 1 | (5 | 0x5100) << 32, AT + 64]);
        for at in [0, 8, 16] {
            assert_eq!(changed(&number(0x1100, 7), &with_text, at), Some(ChangedWord::Text), "{at}");
        }
        assert_eq!(changed(&string(3, 0x4400), &string(7, 0x4400), 8), Some(ChangedWord::Remembered));
        assert_eq!(changed(&string(3, 0x4400), &string(3, 0x1000_4400), 8), Some(ChangedWord::Copies));
        let hash = |body: u64, flags: u64| page([body, 1 | (12 | flags) << 32, AT + 64]);
        assert_eq!(changed(&hash(AT, 0), &hash(AT + 128, 0x0200_0000), 0), Some(ChangedWord::Iterator));
        let free = page([AT, 0xff << 32, 0]);
        assert_eq!(changed(&free, &number(0x1100, 7), 8), Some(ChangedWord::Made));
        assert_eq!(changed(&number(0x1100, 7), &number(0x1100, 8), 16), None, "the program's own number");
        let other = page([AT, 1 | (3 | 0x4400) << 32, AT + 96]);
        assert_eq!(Values.changed(&text, &other, (0, 16), &mut |_| None), None, "its text lies elsewhere");
    }
}
