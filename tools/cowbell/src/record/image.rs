//! The words in which an image's file of the library's heap says what it holds, as docs/FORMATS.md promises it.

/// The beginning of the names of such files, as mappings have them.
pub const NAME: &str = "/memfd:cowbell:heap (deleted)";
/// Bytes of the footer, which is the file's end.
pub const FOOTER: usize = 19 * WORD;
/// Bytes of a word.
pub const WORD: usize = 8;
/// Bytes of what is told of a unit.
pub const UNIT: usize = 3 * WORD;
/// Bytes of what is told of an allocation.
pub const ALLOCATION: usize = 2 * WORD;

const MAGIC: u64 = u64::from_ne_bytes(*b"cowbellh");
/// The version that this program reads.
const VERSION: u64 = 1;
/// The low bits of an allocation's second word number its stack, from 1.
const STACK_BITS: u32 = 20;

/// The reason why a file tells nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// The file has no footer: the library is older than that.
    NoFooter,
    /// The file's layout is of this version, which this program does not know.
    Version(u64),
    /// The file contradicts itself, or what is mapped.
    Damaged,
}

/// A part of the file: where it begins, and how many entries it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub at: u64,
    pub count: u64,
}

/// The file's last words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// The image's first address.
    pub start: u64,
    /// The image's length in bytes.
    pub len: u64,
    pub generation: u16,
    /// The image's pages lie in the file in pieces of so many bytes,
    pub piece: u64,
    /// and so many from the start of one to that of the next.
    pub stride: u64,
    /// Bytes of addresses that a unit tells of.
    pub unit_bytes: u64,
    pub units: Part,
    pub allocations: Part,
    pub ends: Part,
    pub calls: Part,
    pub name: Part,
    /// One in so many allocations was recorded; 0 for none.
    pub recorded: u32,
}

impl Footer {
    /// Reads the last [`FOOTER`] bytes of a file of so many bytes.
    ///
    /// # Errors
    /// The reason why it tells nothing.
    pub fn parse(bytes: &[u8], file_len: u64) -> Result<Self, Unread> {
        let words = bytes.as_chunks::<WORD>().0;
        let word = |nth: usize| words.get(nth).map_or(0, |word| u64::from_ne_bytes(*word));
        if word(0) != MAGIC {
            return Err(Unread::NoFooter);
        }
        if word(1) != VERSION {
            return Err(Unread::Version(word(1)));
        }
        let part = |nth: usize| Part { at: word(nth), count: word(nth + 1) };
        let footer = Self {
            start: word(2),
            len: word(3),
            generation: word(4) as u16,
            piece: word(5),
            stride: word(6),
            unit_bytes: word(7),
            units: part(8),
            allocations: part(10),
            ends: part(12),
            calls: part(14),
            name: part(16),
            recorded: u32::try_from(word(18)).unwrap_or(u32::MAX),
        };
        let parts = [
            (footer.units, UNIT),
            (footer.allocations, ALLOCATION),
            (footer.ends, WORD),
            (footer.calls, WORD),
            (footer.name, 1),
        ];
        let is_inside = |(part, entry): (Part, usize)| {
            let end = part.count.checked_mul(entry as u64).and_then(|len| part.at.checked_add(len));
            end.is_some_and(|end| end <= file_len)
        };
        let is_whole = footer.piece > 0
            && footer.stride >= footer.piece
            && footer.unit_bytes > 0
            && footer.start.checked_add(footer.len).is_some()
            && parts.into_iter().all(is_inside);
        if is_whole { Ok(footer) } else { Err(Unread::Damaged) }
    }

    /// Tells whether these addresses show the file at this offset as the image's place is.
    pub fn is_at(&self, start: u64, end: u64, offset: u64) -> bool {
        let Some(inside) = start.checked_sub(self.start) else { return false };
        let is_in_one_piece = end > start && (end - 1 - self.start) / self.piece == inside / self.piece;
        is_in_one_piece
            && end - self.start <= self.len
            && offset == inside / self.piece * self.stride + inside % self.piece
    }

    /// The number of the unit of an address of the image.
    pub fn unit_of(&self, address: u64) -> Option<u64> {
        let unit = address.checked_sub(self.start)? / self.unit_bytes;
        (unit < self.units.count).then_some(unit)
    }
}

/// The block that holds an address, by the words of the address' unit: where the first block begins, how long each is, and how many there are.
pub fn block_at(unit: [u64; 3], address: u64) -> Option<(u64, u64)> {
    let [start, len, count] = unit;
    let nth = address.checked_sub(start)?.checked_div(len)?;
    (nth < count).then_some((start + nth * len, len))
}

/// An allocation: its offset from the image's start, its length, and the number of its stack.
pub fn allocation([offset, rest]: [u64; 2]) -> (u64, u64, Option<u32>) {
    let stack = (rest & ((1 << STACK_BITS) - 1)).checked_sub(1).map(|stack| stack as u32);
    (offset, rest >> STACK_BITS, stack)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer(change: impl Fn(&mut [u64; 19])) -> Result<Footer, Unread> {
        let mut words =
            [MAGIC, 1, 1 << 30, 1 << 20, 3, 1 << 16, (1 << 16) + 4096, 1 << 16, 1 << 21, 16, 0, 0, 0, 0, 0, 0, 0, 4, 1];
        change(&mut words);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        Footer::parse(&bytes, 1 << 22)
    }

    #[test]
    fn a_footer_is_read_only_if_it_is_known_and_whole() {
        let known = footer(|_| ()).expect("a footer");
        assert_eq!((known.generation, known.units.count, known.recorded), (3, 16, 1));
        assert_eq!(footer(|words| words[0] = 0), Err(Unread::NoFooter));
        assert_eq!(footer(|words| words[1] = 2), Err(Unread::Version(2)));
        assert_eq!(footer(|words| words[9] = 1 << 40), Err(Unread::Damaged), "more than the file has");
        assert_eq!(footer(|words| words[5] = 0), Err(Unread::Damaged));
        assert_eq!(Footer::parse(&[], 0), Err(Unread::NoFooter));
        let second = (1 << 30) + (1 << 16);
        assert!(known.is_at(second, second + 4096, (1 << 16) + 4096));
        assert!(!known.is_at(second, second + 4096, 1 << 16), "the file is mapped elsewhere");
        assert!(!known.is_at(1 << 30, second + 1, 0), "beyond its piece");
        assert_eq!((known.unit_of(second), known.unit_of(1 << 31)), (Some(1), None));
    }

    #[test]
    fn blocks_lie_side_by_side_as_many_as_there_are() {
        let slab = [0x10000, 48, 1365];
        assert_eq!(block_at(slab, 0x10000 + 47), Some((0x10000, 48)));
        assert_eq!(block_at(slab, 0x10000 + 48), Some((0x10030, 48)));
        assert_eq!(block_at(slab, 0x10000 + 1365 * 48), None, "the rest of the slab");
        assert_eq!(block_at([0; 3], 0x10000), None);
        assert_eq!(allocation([32, 100 << 20 | 8]), (32, 100, Some(7)));
        assert_eq!(allocation([32, 100 << 20]), (32, 100, None));
    }
}
