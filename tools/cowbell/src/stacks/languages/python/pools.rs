//! The objects on some pages of a CPython's memory, by their types' names.
//!
//! Small objects lie in pools (Objects/obmalloc.c): areas that begin at a multiple of their own size with a header that says how large a block is,
//! how many are in use, where the free ones begin and how far blocks were given out. Free blocks are a list, and those in use and those in it are
//! together all that were given out: that is too much for chance. A block holds an object if its type says that objects begin
//! where it does, behind the words that come before them. Larger objects lie in blocks of malloc, whose size stands before them.

use super::super::ReadWord;
use super::objects::{NAME, TYPE, TypeObjects};
use crate::record::{Kinds, OfType};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Sizes of pools: since CPython 3.10, and before.
const POOLS: [u64; 2] = [1 << 14, 1 << 12];
/// Bytes of the header, and offsets in it.
const HEADER: u64 = 48;
const FREE: u64 = 8;
const CLASS: u64 = 32;
const GIVEN: u64 = 40;
/// Blocks are a multiple of this; so many classes of sizes there are.
const UNIT: u64 = 16;
const CLASSES: u64 = 32;
/// A block of malloc that is larger than those of pools, and none is larger than this; the lowest bits of its size are flags.
const LARGE: std::ops::Range<u64> = CLASSES * UNIT..1 << 40;
const MALLOC_FLAGS: u64 = 7;
const IN_USE_BEFORE: u64 = 1;
const MAPPED: u64 = 2;
/// The most bytes of a type's name, which is more than any in use has.
const NAME_MAX: u64 = 256;
/// The process stands still meanwhile: no page is begun after this, or after so many names.
const TIME_MAX: Duration = Duration::from_secs(1);
const NAMES_MAX: usize = 1 << 14;

/// One page after the other of one process.
pub struct PoolWalk<'a, 'w> {
    types: &'a mut TypeObjects,
    word: &'a mut ReadWord<'w>,
    page_bytes: u64,
    began: Instant,
    /// The pool that was looked at last.
    pool: Option<Pool>,
    names: BTreeMap<u64, String>,
    found: BTreeMap<String, OfType>,
    kinds: Kinds,
}

/// A pool, and its blocks that are in use.
struct Pool {
    start: u64,
    size: u64,
    /// Each block's first byte, and whether it is in use.
    blocks: Vec<(u64, bool)>,
    block: u64,
}

impl<'a, 'w> PoolWalk<'a, 'w> {
    /// Begins a census, of no page yet.
    pub fn new(types: &'a mut TypeObjects, word: &'a mut ReadWord<'w>, page_bytes: u64) -> Self {
        let (names, found, kinds) = (BTreeMap::new(), BTreeMap::new(), Kinds::default());
        Self { types, word, page_bytes, began: Instant::now(), pool: None, names, found, kinds }
    }

    /// Adds pages, which ascend. Those that cannot be read are none, and neither are those for which time or names are too many.
    pub fn add(&mut self, pages: impl Iterator<Item = u64>) {
        for page in pages {
            if self.names.len() >= NAMES_MAX || self.began.elapsed() >= TIME_MAX {
                return;
            }
            if (self.word)(page).is_none() {
                continue;
            }
            self.kinds.pages += 1;
            let left = if self.find_pool(page) { self.in_pool(page) } else { self.outside(page) };
            self.kinds.outside_bytes += left;
        }
    }

    /// All that was found.
    pub fn finish(mut self) -> Kinds {
        self.kinds.types = self.found.into_values().collect();
        self.kinds
    }

    /// Finds the pool that a page lies in, if it lies in one.
    fn find_pool(&mut self, page: u64) -> bool {
        let is_in = |pool: &Pool| (pool.start..pool.start + pool.size).contains(&page);
        if !self.pool.as_ref().is_some_and(is_in) {
            self.pool = POOLS.into_iter().find_map(|size| pool(page / size * size, size, self.word));
        }
        self.pool.is_some()
    }

    /// Adds a page of the pool; returns the bytes that belong to nothing.
    fn in_pool(&mut self, page: u64) -> u64 {
        let Some(pool) = self.pool.take() else { return self.page_bytes };
        let ends = page..page + self.page_bytes;
        let mut told = 0;
        for &(block, is_used) in &pool.blocks {
            let bytes = overlap(&ends, block, pool.block);
            if bytes == 0 || !is_used {
                continue;
            }
            told += bytes;
            match self.object_in(block, pool.block) {
                Some((object, of)) => self.note(of, bytes, ends.contains(&object)),
                None => self.kinds.other_bytes += bytes,
            }
        }
        self.kinds.free_bytes += self.page_bytes - told;
        self.pool = Some(pool);
        0
    }

    /// Adds a page that lies in no pool: large objects may begin there, and there may be static ones. Returns the bytes that belong to
    /// none.
    fn outside(&mut self, page: u64) -> u64 {
        let (end, mut left) = (page + self.page_bytes, self.page_bytes);
        let mut at = page;
        while at < end {
            let large = if at.is_multiple_of(UNIT) { large_block(at, self.word) } else { None };
            if let Some(size) = large
                && let Some((object, of)) = self.object_in(at, size)
            {
                let bytes = overlap(&(page..end), at, size);
                self.note(of, bytes, (page..end).contains(&object));
                left -= bytes;
                at += bytes.max(8) / 8 * 8;
            } else {
                at += 8;
            }
        }
        left
    }

    /// The object that a block in use holds: its address and its type's.
    fn object_in(&mut self, block: u64, size: u64) -> Option<(u64, u64)> {
        [0, 16, 32].into_iter().find_map(|before| {
            let object = block.checked_add(before)?;
            let (count, of) = ((self.word)(object)?, (self.word)(object + TYPE)?);
            let layout = self.types.layout(count, of, self.word)?;
            let fits = layout.words_before == before && before + layout.size_min <= size;
            fits.then_some((object, of))
        })
    }

    /// Notes an object's bytes; it counts where it begins.
    fn note(&mut self, of: u64, bytes: u64, begins: bool) {
        if !self.names.contains_key(&of) {
            let name = name(of, self.word).unwrap_or_else(|| "(a type without a name)".to_owned());
            self.names.insert(of, name);
        }
        let Some(name) = self.names.get(&of) else { return };
        if !self.found.contains_key(name) {
            self.found.insert(name.clone(), OfType { name: name.clone(), ..OfType::default() });
        }
        if let Some(found) = self.found.get_mut(name) {
            found.bytes += bytes;
            found.objects += u64::from(begins);
        }
    }
}

/// Returns how many of the bytes from `start` on lie within.
fn overlap(within: &std::ops::Range<u64>, start: u64, bytes: u64) -> u64 {
    let (from, to) = (start.max(within.start), start.saturating_add(bytes).min(within.end));
    to.saturating_sub(from)
}

/// The bytes of the large block of glibc's malloc that begins here, if one does: the next block says that this one is in use, or it is a
/// mapping of its own.
fn large_block(at: u64, word: &mut ReadWord<'_>) -> Option<u64> {
    let size_and_flags = word(at.checked_sub(8)?)?;
    let size = size_and_flags & !MALLOC_FLAGS;
    if !LARGE.contains(&size) || !size.is_multiple_of(UNIT) {
        return None;
    }
    let is_one = if size_and_flags & MAPPED != 0 {
        // Such a mapping is whole pages.
        let page = cowbell::sys::page_size().bytes() as u64;
        at % page == UNIT && size.is_multiple_of(page)
    } else {
        let next = word(at - 8 + size)?;
        next & IN_USE_BEFORE != 0 && (2 * UNIT..LARGE.end).contains(&(next & !MALLOC_FLAGS))
    };
    // The next block's size stands behind its words.
    is_one.then_some(size - 8)
}

/// The pool at an address, if one is there.
fn pool(start: u64, size: u64, word: &mut ReadWord<'_>) -> Option<Pool> {
    let (used, free) = (word(start)? & 0xffff_ffff, word(start.checked_add(FREE)?)?);
    let (class, given) = (word(start + CLASS)? >> 32, word(start + GIVEN)?);
    let (given, last) = (given & 0xffff_ffff, given >> 32);
    let block = (class + 1) * UNIT;
    let is_whole = |given: &u64| given.is_multiple_of(block);
    let blocks = given.checked_sub(HEADER).filter(is_whole)? / block;
    if class >= CLASSES || last != size - block || blocks == 0 || given > size || used > blocks {
        return None;
    }
    let mut blocks: Vec<(u64, bool)> = (0..blocks).map(|nth| (start + HEADER + nth * block, true)).collect();
    let mut next = free;
    for _ in used..blocks.len() as u64 {
        let behind = next.checked_sub(start + HEADER).filter(is_whole)?;
        let (_, is_used) = blocks.get_mut((behind / block) as usize).filter(|(_, is_used)| *is_used)?;
        *is_used = false;
        next = word(next)?;
    }
    (next == 0).then_some(Pool { start, size, blocks, block })
}

/// The name of a type.
fn name(of: u64, word: &mut ReadWord<'_>) -> Option<String> {
    let start = word(of.checked_add(NAME)?)?;
    let mut bytes = Vec::new();
    for at in start..start.checked_add(NAME_MAX)? {
        let byte = word(at / 8 * 8)?.to_le_bytes();
        match byte.get((at % 8) as usize)? {
            0 => break,
            byte => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).ok().filter(|name| !name.is_empty() && !name.contains(char::is_control))
}

#[cfg(test)]
mod tests {
    use super::super::super::PointerBudget;
    use super::*;
    use std::collections::HashMap;

    const TYPE_OF_TYPES: u64 = 0x10_0000;
    const FLOAT: u64 = 0x10_1000;
    const LIST: u64 = 0x10_2000;
    const POOL: u64 = 0x7f00_0000_4000;
    const TYPES: u64 = 1 << 31;
    const COLLECTED: u64 = 1 << 14;

    /// A pool of blocks of 48 bytes: a float, a list behind the collector's words, a table, one that is free and two that were never given out.
    fn memory() -> HashMap<u64, u64> {
        let mut memory = HashMap::new();
        for (of, name, size, flags) in [
            (TYPE_OF_TYPES, *b"type\0\0\0\0", 400, TYPES | COLLECTED),
            (FLOAT, *b"float\0\0\0", 24, 0),
            (LIST, *b"list\0\0\0\0", 24, COLLECTED),
        ] {
            memory.extend([(of, 1), (of + TYPE, TYPE_OF_TYPES), (of + NAME, of + 0x800), (of + 32, size)]);
            memory.extend([(of + 168, flags), (of + 0x800, u64::from_le_bytes(name))]);
        }
        memory.extend((POOL..POOL + (1 << 14)).step_by(8).map(|at| (at, 0)));
        let [float, list, table, free] = [0, 1, 2, 3].map(|nth| POOL + HEADER + 48 * nth);
        memory.extend([(POOL, 3), (POOL + FREE, free), (POOL + CLASS, 2 << 32)]);
        memory.insert(POOL + GIVEN, (HEADER + 4 * 48) | ((1 << 14) - 48) << 32);
        memory.extend([(float, 1), (float + 8, FLOAT), (list + 16, 2), (list + 24, LIST), (table, 7), (table + 8, 9)]);
        // The freed block holds what it held before, but for its first word.
        memory.extend([(free, 0), (free + 8, FLOAT)]);
        memory
    }

    fn census(memory: &HashMap<u64, u64>) -> Kinds {
        let (mut types, mut word) = (TypeObjects::new(PointerBudget::default()), |at: u64| memory.get(&at).copied());
        let mut census = PoolWalk::new(&mut types, &mut word, 4096);
        census.add([POOL, POOL + 4096, POOL + (1 << 14)].into_iter());
        census.finish()
    }

    #[test]
    fn blocks_in_use_are_objects_of_their_types_and_others_are_not() {
        let mut memory = memory();
        let of_type = |name: &str, objects| OfType { name: name.to_owned(), objects, bytes: 48 };
        let found = census(&memory);
        assert_eq!(found.types, [of_type("float", 1), of_type("list", 1)]);
        assert_eq!(
            (found.pages, found.other_bytes, found.free_bytes),
            (2, 48, 2 * 4096 - 3 * 48),
            "one page is not there"
        );
        assert_eq!(found.outside_bytes, 0);
        // Two blocks are in use by the header, and three are not in the list of free ones.
        memory.insert(POOL, 2);
        let found = census(&memory);
        assert_eq!((found.types, found.free_bytes, found.outside_bytes), (Vec::new(), 0, 2 * 4096), "no pool");
    }

    #[test]
    fn no_page_is_begun_after_a_second_or_after_too_many_names() {
        let memory = memory();
        let pages_after = |began: Instant, names: usize| {
            let (mut types, mut word) =
                (TypeObjects::new(PointerBudget::default()), |at: u64| memory.get(&at).copied());
            let mut census = PoolWalk::new(&mut types, &mut word, 4096);
            census.began = began;
            census.names.extend((0..names as u64).map(|of| (of, String::new())));
            census.add([POOL, POOL + 4096].into_iter());
            census.finish().pages
        };
        let now = Instant::now();
        assert_eq!(pages_after(now, 0), 2);
        assert_eq!(pages_after(now - TIME_MAX, 0), 0, "time is over");
        assert_eq!(pages_after(now, NAMES_MAX - 1), 1, "the first page has names enough");
        assert_eq!(pages_after(now, NAMES_MAX), 0);
    }

    #[test]
    fn a_large_object_has_a_block_of_malloc() {
        let mut memory = memory();
        memory.insert(POOL, 2);
        let large = POOL + 0x100;
        memory.extend([(large - 8, 0x801), (large + 16, 1), (large + 24, LIST)]);
        assert_eq!(census(&memory).types, [], "what stands before it is no size: nothing begins where it would end");
        memory.insert(large - 8 + 0x800, 0x21);
        let list = OfType { name: "list".to_owned(), objects: 1, bytes: 0x7f8 };
        assert_eq!(census(&memory).types, [list]);
    }
}
