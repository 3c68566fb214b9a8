//! Where frozen data lies, and what it was made of before the fork: by these, what a copied page was written for.
//!
//! ```text
//! add      each piece of memory that frozen objects lie in, word by word
//! look     a sum of the words of each kind in a block, before the fork
//! explain  the same sums of a page that was copied: which of them are others now?
//! ```
//!
//! Frozen data is not followed a second time: a child that changed it would be led elsewhere. Values only: memory is read by
//! whoever calls.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use cowbell::page::Range;

/// Memory is looked at in blocks of so many bytes; pages are multiples of it.
pub const BLOCK: usize = 4096;
const WORD: usize = size_of::<u64>();
const WORDS: usize = BLOCK / WORD;

/// A kind of memory. `tools/python/src/extents.rs` has the same numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An object's header, and the values in it.
    Object = 0,
    /// An array or table that belongs to an object.
    Array = 1,
    /// All that is neither.
    Rest = 2,
}

/// A bit for each word of a block.
type Words = [u64; WORDS / 64];

/// Bits of words, from one to another that does not count.
fn mark(words: &mut Words, from: usize, to: usize) {
    for (at, bits) in words.iter_mut().enumerate() {
        let (low, high) = (from.max(at * 64), to.min(at * 64 + 64));
        if low < high {
            *bits |= (u64::MAX >> (64 - (high - low))) << (low - at * 64);
        }
    }
}

/// One block in which frozen data lies.
#[derive(Clone)]
struct Block {
    at: usize,
    objects: Words,
    arrays: Words,
    /// The words that it has of each [`Kind`], with their places, in one number.
    sums: [u64; 3],
}

impl Block {
    fn kind(&self, word: usize) -> Kind {
        let has = |words: &Words| words[word / 64] >> (word % 64) & 1 == 1;
        match (has(&self.objects), has(&self.arrays)) {
            (true, _) => Kind::Object,
            (false, true) => Kind::Array,
            (false, false) => Kind::Rest,
        }
    }

    fn sums(&self, content: &[u8]) -> [u64; 3] {
        let mut sums = [0u64; 3];
        for (at, bytes) in content.chunks_exact(WORD).enumerate() {
            let word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            let sum = &mut sums[self.kind(at) as usize];
            *sum = sum.wrapping_add(scattered(word, at));
        }
        sums
    }

    /// The kind of every word, if it is the same.
    fn only(&self) -> Option<Kind> {
        let first = self.kind(0);
        (1..WORDS).all(|word| self.kind(word) == first).then_some(first)
    }
}

/// A word and its place in one number, whose sums are equal by chance in one of 2⁶⁴ cases.
fn scattered(word: u64, at: usize) -> u64 {
    let mut x = word.wrapping_add((at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Addresses of blocks are spread by one multiplication.
#[derive(Default)]
pub struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_usize(usize::from(*byte)));
    }

    fn write_usize(&mut self, number: usize) {
        let product = (self.0 ^ number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ product >> 32;
    }
}

/// Bytes of copied pages, each page in one of these.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Causes {
    /// Arrays and tables of frozen objects changed, and no frozen object.
    pub arrays: u64,
    /// Frozen objects changed.
    pub objects: u64,
    /// All frozen data is as it was, and something beside it changed.
    pub holes: u64,
    /// Nothing changed: it was written with what it had.
    pub undecided: u64,
    /// No frozen data lies there.
    pub elsewhere: u64,
    /// Bytes of the pages in which frozen data lies.
    pub frozen: u64,
}

/// Where frozen data lies.
#[derive(Default)]
pub struct Frozen {
    blocks: Vec<Block>,
    by_address: HashMap<usize, usize, BuildHasherDefault<Spread>>,
    last: Option<(usize, usize)>,
    looked_at: usize,
}

impl Frozen {
    /// Adds a piece of memory. Its last word is taken whole: what allocates gives no part of a word to another.
    pub fn add(&mut self, kind: Kind, piece: Range) {
        let (first, end) = (piece.start / WORD, piece.end().div_ceil(WORD));
        let mut word = first;
        while word < end {
            let at = word / WORDS * BLOCK;
            let until = end.min((at + BLOCK) / WORD);
            let block = self.block(at);
            let words = if kind == Kind::Object { &mut block.objects } else { &mut block.arrays };
            mark(words, word % WORDS, until - at / WORD);
            word = until;
        }
    }

    fn block(&mut self, at: usize) -> &mut Block {
        let place = match self.last {
            Some((last, place)) if last == at => place,
            _ => *self.by_address.entry(at).or_insert_with(|| {
                self.blocks.push(Block { at, objects: Words::default(), arrays: Words::default(), sums: [0; 3] });
                self.blocks.len() - 1
            }),
        };
        self.last = Some((at, place));
        &mut self.blocks[place]
    }

    /// All pieces were added: sorts, and forgets what does not lie in `kept`, ascending ranges.
    pub fn sort(&mut self, kept: &[Range]) {
        self.by_address = HashMap::default();
        self.last = None;
        self.blocks.sort_unstable_by_key(|block| block.at);
        self.blocks.retain(|block| {
            let at = kept.partition_point(|range| range.end() <= block.at);
            kept.get(at).is_some_and(|range| range.start <= block.at)
        });
        self.blocks.shrink_to_fit();
    }

    /// Looks at so many blocks more, and returns how many are left. Those that cannot be read are as if all of them were zero.
    pub fn look(&mut self, budget: usize, mut read: impl FnMut(usize, &mut [u8])) -> usize {
        let mut content = [0; BLOCK];
        let from = self.looked_at;
        for block in self.blocks.iter_mut().skip(from).take(budget) {
            content.fill(0);
            read(block.at, &mut content);
            block.sums = block.sums(&content);
            self.looked_at += 1;
        }
        self.blocks.len() - self.looked_at
    }

    /// Tells what these pages, of `page` bytes each, were written for.
    pub fn explain(&self, pages: &[Range], page: usize, mut read: impl FnMut(usize, &mut [u8])) -> Causes {
        let mut causes = Causes { frozen: (self.blocks.len() * BLOCK) as u64, ..Causes::default() };
        for run in pages {
            let mut place = self.blocks.partition_point(|block| block.at < run.start);
            for at in (run.start..run.end()).step_by(page) {
                let here = self.blocks[place..].iter().take_while(|block| block.at < at + page).count();
                let counter = self.cause(&self.blocks[place..place + here], page, &mut read);
                *counter(&mut causes) += page as u64;
                place += here;
            }
        }
        causes
    }

    /// The sum that a page with these blocks belongs to.
    fn cause(
        &self,
        blocks: &[Block],
        page: usize,
        read: &mut impl FnMut(usize, &mut [u8]),
    ) -> fn(&mut Causes) -> &mut u64 {
        if blocks.is_empty() {
            return |causes| &mut causes.elsewhere;
        }
        let mut content = [0; BLOCK];
        let mut is_other = [false; 3];
        for block in blocks {
            content.fill(0);
            read(block.at, &mut content);
            for (is_other, (now, then)) in is_other.iter_mut().zip(block.sums(&content).into_iter().zip(block.sums)) {
                *is_other |= now != then;
            }
        }
        let has_only = |kind| blocks.len() * BLOCK == page && blocks.iter().all(|block| block.only() == Some(kind));
        match is_other {
            [true, ..] => |causes| &mut causes.objects,
            [false, true, _] => |causes| &mut causes.arrays,
            [false, false, true] => |causes| &mut causes.holes,
            // The object that has the whole page was written, if with what it had.
            _ if has_only(Kind::Array) => |causes| &mut causes.arrays,
            _ if has_only(Kind::Object) => |causes| &mut causes.objects,
            _ => |causes| &mut causes.undecided,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory that begins at block 1.
    struct Memory(Vec<u8>);

    impl Memory {
        fn read(&self, at: usize, to: &mut [u8]) {
            to.copy_from_slice(&self.0[at - BLOCK..at - BLOCK + to.len()]);
        }
    }

    fn range(start: usize, len: usize) -> Range {
        Range { start: BLOCK + start, len }
    }

    #[test]
    fn each_byte_that_changes_is_known_for_what_lies_there() {
        let kinds = [
            (Kind::Object, range(16, 41)),
            (Kind::Array, range(200, 3 * BLOCK)),
            (Kind::Object, range(3 * BLOCK + 1000, 24)),
        ];
        let mut frozen = Frozen::default();
        kinds.iter().rev().for_each(|(kind, piece)| frozen.add(*kind, *piece));
        frozen.sort(&[range(0, 4 * BLOCK)]);
        assert_eq!(frozen.blocks.len(), 4);
        let mut memory = Memory((0..5 * BLOCK).map(|at| (at * 7) as u8).collect());
        assert_eq!(frozen.look(3, |at, to| memory.read(at, to)), 1);
        assert_eq!(frozen.look(3, |at, to| memory.read(at, to)), 0);
        for at in 0..5 * BLOCK {
            memory.0[at] ^= 0x10;
            let page = range(at / BLOCK * BLOCK, BLOCK);
            let causes = frozen.explain(&[page], BLOCK, |at, to| memory.read(at, to));
            let one = |set: fn(&mut Causes) -> &mut u64| {
                let mut causes = Causes { frozen: 4 * BLOCK as u64, ..Causes::default() };
                *set(&mut causes) = BLOCK as u64;
                causes
            };
            let expected = match at {
                // The rest of the last word belongs to the piece.
                16..64 => one(|causes| &mut causes.objects),
                _ if (200..200 + 3 * BLOCK).contains(&at) => one(|causes| &mut causes.arrays),
                _ if (3 * BLOCK + 1000..3 * BLOCK + 1024).contains(&at) => one(|causes| &mut causes.objects),
                _ if at < 4 * BLOCK => one(|causes| &mut causes.holes),
                _ => one(|causes| &mut causes.elsewhere),
            };
            assert_eq!(causes, expected, "byte {at}");
            memory.0[at] ^= 0x10;
        }
    }

    #[test]
    fn what_is_written_with_what_it_had_is_known_only_where_one_kind_has_the_whole_page() {
        let mut frozen = Frozen::default();
        frozen.add(Kind::Array, range(8, 2 * BLOCK));
        frozen.sort(&[range(0, 3 * BLOCK)]);
        let memory = Memory(vec![5; 3 * BLOCK]);
        frozen.look(9, |at, to| memory.read(at, to));
        let block = BLOCK as u64;
        let causes = frozen.explain(&[range(0, 3 * BLOCK)], BLOCK, |at, to| memory.read(at, to));
        assert_eq!(causes, Causes { arrays: block, undecided: 2 * block, frozen: 3 * block, ..Causes::default() });
        // Pages of two blocks; the fourth block has nothing that is frozen.
        let causes = frozen.explain(&[range(0, 4 * BLOCK)], 2 * BLOCK, |at, to| memory.read(at, to));
        assert_eq!((causes.undecided, causes.arrays, causes.elsewhere), (4 * block, 0, 0));
    }

    #[test]
    fn words_that_change_places_are_a_change() {
        let mut frozen = Frozen::default();
        frozen.add(Kind::Array, range(0, BLOCK));
        frozen.sort(&[range(0, BLOCK)]);
        let mut memory = Memory((0..BLOCK).map(|at| (at / 8) as u8).collect());
        frozen.look(1, |at, to| memory.read(at, to));
        let (first, second) = memory.0.split_at_mut(8);
        first.swap_with_slice(&mut second[..8]);
        let causes = frozen.explain(&[range(0, BLOCK)], BLOCK, |at, to| memory.read(at, to));
        assert_eq!((causes.arrays, causes.undecided), (BLOCK as u64, 0));
    }

    #[test]
    fn blocks_outside_of_what_is_kept_are_forgotten() {
        let mut frozen = Frozen::default();
        (0..6).for_each(|at| frozen.add(Kind::Object, range(at * BLOCK + 8, 8)));
        frozen.sort(&[range(BLOCK, BLOCK), range(3 * BLOCK, 2 * BLOCK)]);
        assert_eq!(frozen.blocks.iter().map(|block| block.at / BLOCK - 1).collect::<Vec<_>>(), [1, 3, 4]);
    }
}
