//! The way in which R's objects lie in memory (Rinternals.h, Defn.h, since R 3.5; 64-bit builds).
//!
//! An object begins with a word of bits, then its attributes, then the objects before and after it in a list of the collector's. The list is
//! linked both ways, so that the neighbour leads back: that is too much for chance.

use super::super::{ChangedWord, ObjectReader, ReadWord};
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

/// Remembers nothing.
pub struct Nodes;

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
        let read = |page: &[u8]| page.get(at..)?.first_chunk::<8>().map(|word| u64::from_le_bytes(*word));
        let (before, after) = (read(was)?, read(is)?);
        let address = page.checked_add(at as u64)?;
        let bits = before ^ after;
        if bits & !(COLLECTORS | COUNT) == 0 && is_node(address, word) {
            return Some(if bits & COUNT == 0 { ChangedWord::Mark } else { ChangedWord::Count });
        }
        let is_link = is_pointer(before) && is_pointer(after);
        let is_link = is_link && [NEXT, PREVIOUS].into_iter().any(|link| begins_before(address, link, word));
        is_link.then_some(ChangedWord::Mark)
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
        let wrote = |address: u64| Nodes.wrote(address, &mut |at| memory.get(&at).copied());
        assert_eq!([3, 16, 24].map(|offset| wrote(AT + offset)), [Wrote::CollectorHeader; 3]);
        assert_eq!((wrote(AT + 4), wrote(AT)), (Wrote::ReferenceCount, Wrote::Other));
        let told = |was: u64, is: u64| {
            let (was, is) = (was.to_le_bytes(), is.to_le_bytes());
            Nodes.changed(&was, &is, (AT, 0), &mut |at| memory.get(&at).copied())
        };
        assert_eq!(told(19, 19 | 1 << 24), Some(ChangedWord::Mark));
        assert_eq!(told(19, 19 | 1 << 32), Some(ChangedWord::Count));
        assert_eq!(told(19, 14), None, "another type");
    }
}
