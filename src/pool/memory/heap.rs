//! The heap of a worker's results: the worker allocates, the parent frees, and either may stop at any instruction.
//!
//! ```text
//! | header: bytes, state, next, used | ... | header | ... | zeroes: never used
//! ```
//! Blocks lie end to end, so the next worker of the same index finds them all. Only the worker splits and joins blocks; each
//! step is one store that leaves the row whole. The parent only says that a block is free.
//!
//! # Safety
//! Only the inside of free blocks is given back to the system: see [`ResultHeap::trim`].

#![expect(unsafe_code, reason = "memory is given back to the system")]

use super::region::Region;
use crate::sys::futex;
use crate::sys::map::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Bytes of a header: four words.
pub(crate) const HEADER: usize = 32;
/// Blocks are multiples of this many bytes: a cache line.
const GRAIN: usize = 64;

/// A block without an owner. The zeroes of a new file say so, too.
pub(crate) const FREE: u64 = 0;
/// The worker writes it. If the worker dies the block is free again.
pub(crate) const BUILDING: u64 = 1;
/// Holds results that the parent has not read.
pub(crate) const SENT: u64 = 2;
/// The parent keeps it for the user.
pub(crate) const HELD: u64 = 3;

/// Results that are read soon after they were written are in the processor's cache still; and what is given back is queued again.
const FAIR_SHARE_MAX: usize = 8 << 20;

/// The time that a worker that found no room sleeps before it looks again by itself.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A block's header.
pub(crate) struct BlockHeader<'a> {
    bytes: &'a AtomicU64,
    pub(crate) state: &'a AtomicU64,
    /// The next block of the same batch; 0 for none.
    pub(crate) next: &'a AtomicU64,
    /// The number of bytes that hold results.
    pub(crate) used: &'a AtomicU64,
}

/// The header of the block at an offset.
pub(crate) fn header(region: &Region, block: usize) -> Option<BlockHeader<'_>> {
    region.heap_owner(block)?;
    let word = |at: usize| region.word(block + 8 * at);
    Some(BlockHeader { bytes: word(0)?, state: word(1)?, next: word(2)?, used: word(3)? })
}

/// The number of bytes a block has room for; 0 for what is no block.
pub(crate) fn room(region: &Region, block: usize) -> usize {
    let bytes = header(region, block).map_or(0, |header| header.bytes.load(Ordering::Acquire) as usize);
    bytes.saturating_sub(HEADER)
}

/// Gives a block back to its worker. Called by the parent.
pub(crate) fn free(region: &Region, block: usize) {
    let (Some(header), Some(index)) = (header(region, block), region.heap_owner(block)) else { return };
    header.state.store(FREE, Ordering::SeqCst);
    let owner = &region.workers()[index];
    if owner.wants_room.load(Ordering::SeqCst) != 0 {
        owner.freed.fetch_add(1, Ordering::AcqRel);
        let _how_many = futex::wake(&owner.freed, 1);
    }
}

/// Frees the blocks of a batch.
pub(crate) fn free_chain(region: &Region, first: usize) {
    for block in chain(region, first) {
        free(region, block);
    }
}

/// The blocks of a batch. What a block's `next` says is read before the block is handed out.
pub(crate) fn chain(region: &Region, first: usize) -> impl Iterator<Item = usize> + '_ {
    let mut next = first;
    std::iter::from_fn(move || {
        let block = next;
        next = header(region, block)?.next.load(Ordering::Acquire) as usize;
        Some(block)
    })
}

/// Threads of a job allocate, too: one at a time.
static TAKING: Mutex<()> = Mutex::new(());

/// Why there is no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoBlock {
    /// More than the heap could ever hold.
    TooLarge,
    /// The user holds so many results that there is no room left, and waiting would not help.
    AllHeld,
}

/// The worker's side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResultHeap<'a> {
    region: &'a Region,
    range: Range,
    index: usize,
}

impl<'a> ResultHeap<'a> {
    /// The heap of the worker of this index.
    pub(crate) fn of(region: &'a Region, index: usize) -> Self {
        Self { region, range: region.heap(index), index }
    }

    /// Takes over the heap of the worker that had this index before: what it was writing is free again.
    pub(crate) fn take_over(region: &'a Region, index: usize) -> Self {
        let heap = Self::of(region, index);
        heap.blocks().for_each(|(_, header)| {
            let _kept = header.state.compare_exchange(BUILDING, FREE, Ordering::AcqRel, Ordering::Acquire);
        });
        heap
    }

    fn blocks(&self) -> impl Iterator<Item = (usize, BlockHeader<'a>)> + use<'a> {
        self.blocks_from(self.range.start)
    }

    fn blocks_from(&self, first: usize) -> impl Iterator<Item = (usize, BlockHeader<'a>)> + use<'a> {
        let (region, end) = (self.region, self.range.end());
        let mut next = first;
        std::iter::from_fn(move || {
            let block = next;
            let header = (block < end).then(|| header(region, block)).flatten()?;
            let bytes = header.bytes.load(Ordering::Acquire) as usize;
            next = block.checked_add(bytes)?;
            (bytes > 0).then_some((block, header))
        })
    }

    /// The number of bytes one batch may fill before it should end: so that several fit.
    pub(crate) fn fair_share(&self) -> usize {
        (self.range.len / 8).min(FAIR_SHARE_MAX)
    }

    /// A block with room for `bytes`, state [`BUILDING`]. Waits while the parent has results to read that would make room.
    pub(crate) fn take(&self, bytes: usize) -> Result<usize, NoBlock> {
        let need = bytes.checked_add(HEADER).and_then(|need| need.checked_next_multiple_of(GRAIN));
        let need = need.filter(|&need| need <= self.range.len).ok_or(NoBlock::TooLarge)?;
        let own = &self.region.workers()[self.index];
        let _alone = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(block) = self.find(need) {
                return Ok(block);
            }
            let seen = own.freed.load(Ordering::Acquire);
            own.wants_room.store(1, Ordering::SeqCst);
            // A block that is freed after this look wakes it.
            let found = self.find(need);
            let unread = self.blocks().any(|(_, header)| header.state.load(Ordering::SeqCst) == SENT);
            if found.is_none() && unread {
                own.waits.store(1, Ordering::Release);
                let _looked_at_again = futex::wait(&own.freed, seen, Some(LOOK_AGAIN));
                own.waits.store(0, Ordering::Release);
            }
            own.wants_room.store(0, Ordering::SeqCst);
            match found {
                Some(block) => return Ok(block),
                // The last one that was unread may have been freed between the two looks.
                None if !unread => return self.find(need).ok_or(NoBlock::AllHeld),
                None => {}
            }
        }
    }

    /// Joins free blocks and gives the memory of large ones back to the system. What is there next reads as zeroes.
    pub(crate) fn trim(&self) {
        let _alone = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
        // Only the worker makes a free block anything else.
        let free = |block: usize| {
            let header = header(self.region, block).filter(|_| block < self.range.end())?;
            (header.state.load(Ordering::Acquire) == FREE).then_some(header)
        };
        let mut next = self.range.start;
        while let Some((block, header)) = self.blocks_from(next).next() {
            let mut bytes = header.bytes.load(Ordering::Acquire) as usize;
            if free(block).is_some() {
                while let Some(behind) = free(block + bytes) {
                    let more = behind.bytes.load(Ordering::Acquire) as usize;
                    if more == 0 {
                        break;
                    }
                    bytes += more;
                    header.bytes.store(bytes as u64, Ordering::Release);
                }
                // SAFETY: the inside of a free block is nobody's, and says nothing.
                unsafe { self.region.trim(block + HEADER, bytes.saturating_sub(HEADER)) };
            }
            next = block + bytes;
        }
    }

    /// The first free block of `need` bytes or more, cut to size.
    fn find(&self, need: usize) -> Option<usize> {
        let end = self.range.end();
        let mut block = self.range.start;
        while block < end {
            let header = header(self.region, block)?;
            let mut bytes = header.bytes.load(Ordering::Acquire) as usize;
            if bytes > 0 && header.state.load(Ordering::Acquire) != FREE {
                block += bytes;
                continue;
            }
            // Joins what is free behind it.
            let mut untouched = bytes == 0;
            while bytes < need && block + bytes < end && !untouched {
                let behind = self::header(self.region, block + bytes)?;
                let more = behind.bytes.load(Ordering::Acquire) as usize;
                if more == 0 {
                    untouched = true;
                } else if behind.state.load(Ordering::Acquire) == FREE {
                    bytes += more;
                    header.bytes.store(bytes as u64, Ordering::Release);
                } else {
                    break;
                }
            }
            if untouched && end - block >= need {
                // Zeroes lie behind it, which say that it is untouched.
                header.next.store(0, Ordering::Release);
                header.used.store(0, Ordering::Release);
                header.state.store(BUILDING, Ordering::Release);
                header.bytes.store(need as u64, Ordering::Release);
                return Some(block);
            }
            if bytes >= need {
                if bytes > need {
                    let rest = self::header(self.region, block + need)?;
                    rest.state.store(FREE, Ordering::Release);
                    rest.bytes.store((bytes - need) as u64, Ordering::Release);
                    header.bytes.store(need as u64, Ordering::Release);
                }
                header.next.store(0, Ordering::Release);
                header.used.store(0, Ordering::Release);
                header.state.store(BUILDING, Ordering::Release);
                return Some(block);
            }
            if untouched {
                return None;
            }
            block += bytes;
        }
        None
    }
}
