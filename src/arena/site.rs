//! Allocation sites: which type was put where, by which line.

use crate::error::Result;
use crate::sys::shared_words::SharedWords;
use hashbrown::HashMap;
use std::fmt;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};

/// The origin of allocations: a type and the line that asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    /// `std::any::type_name` of what was allocated.
    pub type_name: &'static str,
    /// The line that called.
    pub location: &'static Location<'static>,
}

/// An allocation of a frozen arena, in bytes from the arena's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The first byte.
    pub offset: usize,
    /// The allocation's length in bytes.
    pub len: usize,
    /// The allocation's origin; `None` where it was made without a site.
    pub site: Option<Site>,
}

/// A site's number within its arena; 0 means none was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct SiteId(u32);

/// The record that is made while an arena grows. It lives outside the arena.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    sites: Vec<Site>,
    ids: HashMap<Site, SiteId>,
    /// By offset.
    live: HashMap<usize, (usize, SiteId)>,
}

impl Recorder {
    pub(super) fn id_of(&mut self, site: Site) -> SiteId {
        *self.ids.entry(site).or_insert_with(|| {
            self.sites.push(site);
            SiteId(self.sites.len() as u32)
        })
    }

    pub(super) fn add(&mut self, offset: usize, len: usize, site: SiteId) {
        self.live.insert(offset, (len, site));
    }

    pub(super) fn remove(&mut self, offset: usize) {
        self.live.remove(&offset);
    }

    pub(super) fn resize(&mut self, offset: usize, len: usize) {
        if let Some(entry) = self.live.get_mut(&offset) {
            entry.0 = len;
        }
    }

    /// Bytes of ordinary heap that recording so many more allocations may take at once: the table's next size.
    pub(super) fn growth(&self, more: usize) -> usize {
        let entry = size_of::<(usize, (usize, SiteId))>() + 1;
        // Tables double, and are at most seven eighths full.
        if self.live.len() + more > self.live.capacity() {
            (self.live.capacity() + more) * 2 * entry * 8 / 7
        } else {
            0
        }
    }

    /// All live allocations.
    pub(super) fn table(&self) -> Result<AllocationTable> {
        super::headroom::check_headroom(self.live.len() * (size_of::<(usize, (usize, SiteId))>() + WORDS * 8))?;
        let mut live: Vec<_> = self.live.iter().map(|(&offset, &entry)| (offset, entry)).collect();
        live.sort_unstable_by_key(|&(offset, _)| offset);
        let words = SharedWords::new(live.len() * WORDS)?;
        for ((offset, (len, SiteId(id))), entry) in live.iter().zip(words.words().chunks_exact(WORDS)) {
            // Sites beyond the last number that fits are as good as none.
            let id = if u64::from(*id) <= SITES_MAX { u64::from(*id) } else { 0 };
            for (word, value) in entry.iter().zip([*offset as u64, (*len as u64) << SITE_BITS | id]) {
                word.store(value, Ordering::Relaxed);
            }
        }
        Ok(AllocationTable { count: live.len(), words: Some(words), sites: self.sites.clone(), stacks: Vec::new() })
    }
}

/// Words of an entry: the offset; the length and, in the lowest bits, the site.
const WORDS: usize = 2;
const SITE_BITS: u32 = 20;
const SITES_MAX: u64 = (1 << SITE_BITS) - 1;

/// The allocations of a frozen arena by offset, without overlaps.
///
/// They lie in shared memory, of which fork copies no page table: in the ordinary heap, 16 bytes for each of
/// some million objects would make every fork slower. All reading is *async-signal-safe*.
#[derive(Default)]
pub(crate) struct AllocationTable {
    count: usize,
    words: Option<SharedWords>,
    sites: Vec<Site>,
    /// In place of sites, of a heap: the calls that led to the allocation.
    stacks: Vec<Vec<u64>>,
}

impl AllocationTable {
    /// Allocations by offset: offset, length, and which of the stacks led to it.
    ///
    /// # Errors
    /// ENOMEM.
    pub(crate) fn of_stacks(live: &[(usize, usize, u32)], stacks: Vec<Vec<u64>>) -> Result<Self> {
        let words = SharedWords::new(live.len() * WORDS)?;
        for (&(offset, len, stack), entry) in live.iter().zip(words.words().chunks_exact(WORDS)) {
            let id = u64::from(stack) + 1;
            let id = if id <= SITES_MAX { id } else { 0 };
            for (word, value) in entry.iter().zip([offset as u64, (len as u64) << SITE_BITS | id]) {
                word.store(value, Ordering::Relaxed);
            }
        }
        Ok(Self { count: live.len(), words: Some(words), sites: Vec::new(), stacks })
    }

    /// The words of all entries: two for each allocation, its offset, and its length above [`SITE_BITS`] bits that number its stack from 1; 0 for none.
    pub(crate) fn entries(&self) -> &[AtomicU64] {
        self.words.as_ref().and_then(|words| words.words().get(..self.count * WORDS)).unwrap_or_default()
    }

    /// The number of the stack that made the allocation which begins there, if it is recorded: its place in [`Self::stacks`].
    pub(crate) fn stack_at(&self, offset: usize) -> Option<usize> {
        let at = self.partition_point(|allocation| allocation.offset < offset);
        let (begin, _, id) = self.entry(at)?;
        (begin == offset).then(|| id.checked_sub(1))?
    }

    /// The stacks, each from the allocator outwards.
    pub(crate) fn stacks(&self) -> &[Vec<u64>] {
        &self.stacks
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = Allocation> + '_ {
        (0..self.count).filter_map(|at| self.get(at))
    }

    /// Those that overlap `start..end`.
    pub(crate) fn overlapping(&self, start: usize, end: usize) -> impl Iterator<Item = Allocation> + '_ {
        let first = self.partition_point(|allocation| allocation.offset + allocation.len <= start);
        (first..self.count).filter_map(|at| self.get(at)).take_while(move |allocation| allocation.offset < end)
    }

    /// Tells whether nothing is recorded.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn get(&self, at: usize) -> Option<Allocation> {
        let (offset, len, id) = self.entry(at)?;
        let site = id.checked_sub(1).and_then(|id| self.sites.get(id)).copied();
        Some(Allocation { offset, len, site })
    }

    /// Offset, length, and the number of the site or stack.
    fn entry(&self, at: usize) -> Option<(usize, usize, usize)> {
        let words: &[AtomicU64] = self.words.as_ref()?.words();
        let [offset, rest] = words.get(at * WORDS..(at + 1) * WORDS)? else { return None };
        let rest = rest.load(Ordering::Relaxed);
        Some((offset.load(Ordering::Relaxed) as usize, (rest >> SITE_BITS) as usize, (rest & SITES_MAX) as usize))
    }

    /// The first entry for which `is_before` is false, as of a slice.
    fn partition_point(&self, is_before: impl Fn(Allocation) -> bool) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            if self.get(middle).is_some_and(&is_before) { low = middle + 1 } else { high = middle }
        }
        low
    }
}

impl fmt::Debug for AllocationTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AllocationTable({} allocations)", self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_finds_the_allocations_that_touch_it() {
        let mut recorder = Recorder::default();
        let site = Site { type_name: "T", location: Location::caller() };
        let id = recorder.id_of(site);
        for (offset, len) in [(9000, 8), (0, 10), (4090, 16), (16, 100), (500, 20)] {
            recorder.add(offset, len, if offset == 16 { id } else { SiteId::default() });
        }
        recorder.remove(500);
        recorder.resize(9000, 9);
        let table = recorder.table().expect("memory");
        let at = |start, end| table.overlapping(start, end).map(|a| a.offset).collect::<Vec<_>>();
        assert_eq!(at(0, 4096), [0, 16, 4090]);
        assert_eq!(at(4096, 8192), [4090]);
        assert_eq!(at(8192, 9000), [] as [usize; 0]);
        assert_eq!(at(8192, 9001), [9000]);
        assert_eq!(at(9008, 9009), [9000]);
        let all: Vec<_> = table.iter().map(|a| (a.offset, a.len, a.site)).collect();
        assert_eq!(all, [(0, 10, None), (16, 100, Some(site)), (4090, 16, None), (9000, 9, None)]);
        assert!(AllocationTable::default().overlapping(0, usize::MAX).next().is_none());
    }
}
