//! The addresses of the heap, and what is known of each piece of it.
//!
//! ```text
//!  records             headers               data, from BASE
//!  a Chunk for each    a Slab for each unit  chunks of 64 MiB, each of 1024 units of 64 KiB
//!  chunk
//! ```
//! The three lie at fixed distances from one address, so that what is known of a block is found by arithmetic. Nothing is reserved: each
//! piece is mapped when it is needed, where nothing else is mapped (`MAP_FIXED_NOREPLACE`); `ulimit -v` counts what is used, no more. A
//! place that somebody else has is passed over.
//!
//! # Safety
//! Records and headers are atomics, zero where they were never written, and stay mapped for good. A [`Unit`] or a chunk's number is made only
//! for a chunk that was opened, that is whose record and headers are mapped, or from a block that the heap handed out.
#![expect(unsafe_code, reason = "records and headers are found by arithmetic")]

use super::class::{UNIT, UNIT_SHIFT};
use super::lock::HeapGuard;
pub(super) use super::state::ChunkState;
use crate::sys::map::{self, Range};
use crate::sys::{self, Errno};
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// Bytes of a chunk.
pub(super) const CHUNK: usize = 64 << 20;
/// Units of a chunk.
pub(super) const UNITS: u32 = (CHUNK >> UNIT_SHIFT) as u32;
/// The number of chunks that there may be: 8 TiB of addresses.
const CHUNKS_MAX: u32 = 1 << 17;

/// From the headers to the data, and from the records to the headers.
const HEADERS_ROOM: usize = 16 << 30;
const RECORDS_ROOM: usize = 1 << 30;
const _: () = assert!(CHUNKS_MAX as usize * UNITS as usize * size_of::<Slab>() <= HEADERS_ROOM);
const _: () = assert!(CHUNKS_MAX as usize * size_of::<Chunk>() <= RECORDS_ROOM);

/// The addresses at which the heap may begin: above what arenas take for themselves and below executables. The second is for kernels with
/// addresses of 39 bits, and for ThreadSanitizer, whose shadow lies at the first.
const PLACES: &[(usize, usize)] =
    if cfg!(cowbell_low_arenas) { &[(160 << 30, 32 << 30)] } else { &[(44 << 40, 8 << 40), (160 << 30, 32 << 30)] };

/// Records are mapped so many bytes at a time.
const RECORDS_STEP: usize = 1 << UNIT_SHIFT;
/// Data is mapped at least so many units at a time, so that growing takes few system calls.
const DATA_STEP: u32 = 64;

/// The first address of the data; 0 before the first allocation.
static BASE: AtomicUsize = AtomicUsize::new(0);
/// Bytes of records that are mapped.
static RECORDS: AtomicUsize = AtomicUsize::new(0);
/// Chunks at and above this number were never opened.
static OPENED: AtomicU32 = AtomicU32::new(0);

/// One bit a unit.
pub(super) type Bits = [AtomicU64; UNITS as usize / 64];

/// The record of a chunk. It is changed under the lock, but for the counts of what died.
#[repr(C, align(64))]
#[derive(Default)]
pub(super) struct Chunk {
    state: AtomicU8,
    /// The chunk's headers are mapped.
    headed: AtomicU8,
    /// A file is behind it although it is not frozen, because a freeze failed: memory that is given up there is not zero after.
    pub(super) filed: AtomicU8,
    /// The kind of allocations that it is for.
    pub(super) kind: AtomicU8,
    /// Units from the start that are mapped.
    pub(super) mapped: AtomicU32,
    /// Units that are free.
    pub(super) free: AtomicU32,
    /// No run of free units is longer.
    pub(super) run_max: AtomicU32,
    /// The extent of one huge allocation: how many chunks it has, and how many bytes are mapped.
    pub(super) span: AtomicU32,
    pub(super) bytes: AtomicUsize,
    /// Frozen blocks that are in use, and bytes of those that were freed since.
    pub(super) live: AtomicUsize,
    pub(super) dead_bytes: AtomicUsize,
    /// In an image's first chunk, the number of the image and the process that made it; see `reclaim`.
    pub(super) image: AtomicUsize,
    pub(super) process: AtomicU32,
    /// Units in use.
    pub(super) used: Bits,
    /// Free units that may hold something.
    pub(super) dirty: Bits,
}

impl Chunk {
    pub(super) fn state(&self) -> ChunkState {
        ChunkState::numbered(self.state.load(Ordering::Acquire))
    }

    pub(super) fn set_state(&self, state: ChunkState, _held: &HeapGuard) {
        self.state.store(state as u8, Ordering::Release);
    }
}

/// The record of a slab, or of a larger span; it stands in the header of the first unit. Only the owner changes it, but for `remote` and `mailed`.
///
/// Everything zero: no slab begins here.
#[repr(C, align(64))]
#[derive(Default)]
pub(super) struct Slab {
    /// The address of the [`super::local::Local`] whose slab it is, or one of the marks below.
    pub(super) owner: AtomicUsize,
    /// The first free block.
    pub(super) free: AtomicUsize,
    /// The first block that another thread freed.
    pub(super) remote: AtomicUsize,
    /// Neighbours in the owner's queue, and behind it in a mailbox; numbers of units, plus 1.
    pub(super) next: AtomicU32,
    pub(super) prev: AtomicU32,
    pub(super) mail_next: AtomicU32,
    /// Blocks in use, those in `remote` too.
    pub(super) used: AtomicI32,
    /// The owner has something to do once no more blocks than this are in use: [`NONE_IN_USE`] in a queue, [`NEVER`] at its head. A slab
    /// that is full is in no queue, and any block that is freed concerns it.
    pub(super) notice: AtomicI32,
    /// Blocks in all; of a larger span its units.
    pub(super) blocks: AtomicU32,
    /// Blocks that were free or in use already; those behind are untouched since the slab was made. Of a larger span, the bytes
    /// at its end that nobody asked for.
    pub(super) fresh: AtomicU32,
    pub(super) class: AtomicU8,
    /// The memory held something before.
    pub(super) dirty: AtomicU8,
    /// The slab is in a mailbox.
    pub(super) mailed: AtomicU8,
}

const _: () = assert!(size_of::<Slab>() == 64);

/// No slab begins at this unit.
pub(super) const NOBODY: usize = 0;
/// A span of units that is one allocation.
pub(super) const SPAN: usize = 1;
/// The class of a span, which has none.
pub(super) const NO_CLASS: u8 = u8::MAX;
/// Part of an image.
pub(super) const FROZEN: usize = 2;
/// Addresses of owners are above this.
pub(super) const MARKS_END: usize = 3;

/// Notices that a slab may have been given, see [`Slab::notice`].
pub(super) const NEVER: i32 = -1;
pub(super) const NONE_IN_USE: i32 = 0;

impl Slab {
    /// The slab is in no queue, because it had no free block when last looked at.
    pub(super) fn is_full(&self) -> bool {
        self.notice.load(Ordering::Relaxed) > NONE_IN_USE
    }

    /// The header of the unit of an address.
    ///
    /// # Safety
    /// The address lies in an opened chunk.
    #[inline]
    pub(super) unsafe fn of(address: usize) -> &'static Self {
        let base = BASE.load(Ordering::Relaxed);
        let at = base - HEADERS_ROOM + ((address - base) >> UNIT_SHIFT) * size_of::<Self>();
        // SAFETY: the headers of an opened chunk are mapped for good, and a header is atomics only.
        unsafe { &*std::ptr::with_exposed_provenance::<Self>(at) }
    }
}

/// A unit of an opened chunk, by number from the heap's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unit(u32);

impl Unit {
    /// The unit of an address.
    ///
    /// # Safety
    /// The address lies in an opened chunk.
    #[inline]
    pub(super) unsafe fn of(address: usize) -> Self {
        Self(((address - BASE.load(Ordering::Relaxed)) >> UNIT_SHIFT) as u32)
    }

    /// The unit whose header this is.
    pub(super) fn of_slab(slab: &Slab) -> Self {
        Self(((std::ptr::from_ref(slab).addr() - headers()) / size_of::<Slab>()) as u32)
    }

    /// The unit that [`Self::link`] gave the number of.
    pub(super) fn linked(link: u32) -> Option<Self> {
        link.checked_sub(1).map(Self)
    }

    /// The unit's number, plus 1.
    pub(super) fn link(self) -> u32 {
        self.0 + 1
    }

    /// The unit's header.
    #[inline]
    pub(super) fn slab(self) -> &'static Slab {
        let at = headers() + self.0 as usize * size_of::<Slab>();
        // SAFETY: a unit is one of an opened chunk, whose headers are mapped for good, and a header is atomics only.
        unsafe { &*std::ptr::with_exposed_provenance::<Slab>(at) }
    }

    /// The unit's first address.
    #[inline]
    pub(super) fn start(self) -> usize {
        BASE.load(Ordering::Relaxed) + ((self.0 as usize) << UNIT_SHIFT)
    }

    /// The unit's chunk, and its place there.
    pub(super) fn place(self) -> (u32, u32) {
        (self.0 / UNITS, self.0 % UNITS)
    }
}

#[inline]
fn headers() -> usize {
    BASE.load(Ordering::Relaxed) - HEADERS_ROOM
}

fn records() -> usize {
    headers() - RECORDS_ROOM
}

/// A unit of a chunk that was opened.
pub(super) fn unit(chunk: u32, place: u32) -> Unit {
    Unit(chunk * UNITS + place)
}

/// The record of a chunk that was opened.
pub(super) fn chunk(number: u32) -> &'static Chunk {
    let at = records() + number as usize * size_of::<Chunk>();
    // SAFETY: `open` maps a chunk's record for good before its number is known, and a record is atomics only.
    unsafe { &*std::ptr::with_exposed_provenance::<Chunk>(at) }
}

/// The number of chunks that were ever opened.
pub(super) fn chunks() -> u32 {
    OPENED.load(Ordering::Relaxed)
}

/// A chunk's addresses.
pub(super) fn addresses(chunk: u32) -> Range {
    Range { start: BASE.load(Ordering::Relaxed) + chunk as usize * CHUNK, len: CHUNK }
}

/// The addresses of some chunks' headers.
pub(super) fn headers_of(first: u32, count: u32) -> Range {
    let len = UNITS as usize * size_of::<Slab>();
    Range { start: headers() + first as usize * len, len: count as usize * len }
}

/// The chunk of an address of the heap.
pub(super) fn chunk_of(address: usize) -> u32 {
    ((address - BASE.load(Ordering::Relaxed)) / CHUNK) as u32
}

/// Does the heap hold this address?
pub(super) fn holds(address: usize) -> bool {
    let base = BASE.load(Ordering::Relaxed);
    base != 0 && (base..base + chunks() as usize * CHUNK).contains(&address)
}

/// Chooses where the heap lies, once. False where there is no room.
pub(super) fn settle(_held: &HeapGuard) -> bool {
    if BASE.load(Ordering::Relaxed) != 0 {
        return true;
    }
    for &(first, room) in PLACES {
        // Not the same in every run, as other mappings are not; a multiple of a huge page, and of more.
        let step = CHUNK;
        let base = first + any_number() % (room / step) * step;
        let start = base - HEADERS_ROOM - RECORDS_ROOM;
        if map::anonymous_at(Range { start, len: RECORDS_STEP }).is_ok() {
            RECORDS.store(RECORDS_STEP, Ordering::Relaxed);
            BASE.store(base, Ordering::Release);
            return true;
        }
    }
    false
}

/// Some number that differs from run to run: of the clock, and of where the kernel put the stack.
fn any_number() -> usize {
    let here = 0u8;
    let seed = sys::monotonic_ns() ^ (std::ptr::from_ref(&here).addr() as u64).rotate_left(32);
    (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24) as usize
}

/// Makes sure that a chunk has a record.
fn record(number: u32, _held: &HeapGuard) -> bool {
    if number >= CHUNKS_MAX {
        return false;
    }
    let end = ((number as usize + 1) * size_of::<Chunk>()).next_multiple_of(RECORDS_STEP);
    let now = RECORDS.load(Ordering::Relaxed);
    if end > now {
        // An allocation of a large alignment may skip many chunks, and those between get records, too.
        if map::anonymous_at(Range { start: records() + now, len: end - now }).is_err() {
            return false;
        }
        RECORDS.store(end, Ordering::Relaxed);
    }
    OPENED.fetch_max(number + 1, Ordering::Relaxed);
    true
}

/// Makes sure that a chunk has headers.
fn head(number: u32, held: &HeapGuard) -> bool {
    if !record(number, held) {
        return false;
    }
    let chunk = chunk(number);
    if chunk.headed.load(Ordering::Relaxed) != 0 {
        return true;
    }
    match map::anonymous_at(headers_of(number, 1)) {
        Ok(()) => chunk.headed.store(1, Ordering::Relaxed),
        // Somebody else is where the headers go, so nothing can be known of such a chunk.
        Err(Errno::EXIST) => chunk.set_state(ChunkState::Foreign, held),
        Err(_) => {}
    }
    chunk.headed.load(Ordering::Relaxed) != 0
}

/// Opens a chunk that is absent, for units. False where there is no memory; a chunk whose addresses are somebody else's is
/// [`ChunkState::Foreign`] then.
pub(super) fn open(number: u32, kind: u8, held: &HeapGuard) -> bool {
    if !head(number, held) {
        return false;
    }
    let chunk = chunk(number);
    chunk.mapped.store(0, Ordering::Relaxed);
    chunk.free.store(UNITS, Ordering::Relaxed);
    chunk.run_max.store(UNITS, Ordering::Relaxed);
    chunk.filed.store(0, Ordering::Relaxed);
    chunk.span.store(0, Ordering::Relaxed);
    chunk.kind.store(kind, Ordering::Relaxed);
    chunk.used.iter().chain(&chunk.dirty).for_each(|word| word.store(0, Ordering::Relaxed));
    if !map_units(number, 1, held) {
        return false;
    }
    chunk.set_state(ChunkState::Open, held);
    true
}

/// Maps the first `end` units of a chunk, and some more.
pub(super) fn map_units(number: u32, end: u32, held: &HeapGuard) -> bool {
    let chunk = chunk(number);
    let now = chunk.mapped.load(Ordering::Relaxed);
    if end <= now {
        return true;
    }
    let generous = end.next_multiple_of(DATA_STEP).min(UNITS);
    for to in [generous, end] {
        let start = addresses(number).start + now as usize * UNIT;
        match map::anonymous_at(Range { start, len: (to - now) as usize * UNIT }) {
            Ok(()) => {
                chunk.mapped.store(to, Ordering::Relaxed);
                return true;
            }
            Err(Errno::EXIST) if to == end => {
                give_up_behind(number, now, held);
                return false;
            }
            Err(_) => {}
        }
    }
    false
}

/// Somebody else has addresses behind the first `end` units of a chunk.
fn give_up_behind(number: u32, end: u32, held: &HeapGuard) {
    let chunk = chunk(number);
    if end == 0 {
        return chunk.set_state(ChunkState::Foreign, held);
    }
    for place in end..UNITS {
        let (word, bit) = (&chunk.used[place as usize / 64], 1 << (place % 64));
        if word.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            chunk.free.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Opens neighbouring absent chunks for one allocation, and maps so many bytes from the first's start.
pub(super) fn open_huge(first: u32, count: u32, bytes: usize, kind: u8, held: &HeapGuard) -> bool {
    if first.checked_add(count).is_none_or(|end| end > CHUNKS_MAX) {
        return false;
    }
    // A chunk inside needs nothing but its record, and its headers should the heap be frozen.
    if !(first..first + count).all(|number| head(number, held)) {
        return false;
    }
    match map::anonymous_at(Range { start: addresses(first).start, len: bytes }) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            chunk(first).set_state(ChunkState::Foreign, held);
            return false;
        }
        Err(_) => return false,
    }
    for number in first..first + count {
        let chunk = chunk(number);
        chunk.kind.store(kind, Ordering::Relaxed);
        chunk.filed.store(0, Ordering::Relaxed);
        chunk.free.store(0, Ordering::Relaxed);
        chunk.span.store(0, Ordering::Relaxed);
        chunk.set_state(if number == first { ChunkState::Huge } else { ChunkState::Rest }, held);
    }
    chunk(first).span.store(count, Ordering::Relaxed);
    chunk(first).bytes.store(bytes, Ordering::Relaxed);
    true
}
