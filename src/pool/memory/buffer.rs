//! Large results without a copy: the job writes them where the parent reads them.
//!
//! # Safety
//! A block has one owner at a time, and its state says who: the worker builds it, sends it, the parent holds it, and
//! dropping a [`Buffer`] frees it. A block is sent only once the worker's own `Buffer` is dropped ([`land`]): serde encodes
//! by reference, so the job may still have one. `T: Pod`, so whatever bytes lie there are values.
#![expect(unsafe_code, reason = "shared memory is lent as a slice")]

use super::heap::{self, NoBlock, ResultHeap};
use super::region::Region;
use crate::arena::signal_safe::table;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::{self, Passenger};
use bytemuck::Pod;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use std::any::TypeId;
use std::cell::RefCell;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A worker as its buffers see it.
#[derive(Clone, Copy)]
struct Mine {
    region: &'static Region,
    index: usize,
    /// The number of the process in a line of forks: its children have no region.
    process: usize,
}

/// Set in each worker. One that was forked in a worker's job, for a pool of that job's, finds that worker's here.
static MINE: Mutex<Option<Mine>> = Mutex::new(None);

/// The worker that this process is.
fn mine() -> Option<Mine> {
    let mine = *MINE.lock().unwrap_or_else(PoisonError::into_inner);
    mine.filter(|mine| mine.process == table::process_number())
}

thread_local! {
    /// The result that is being decoded.
    static DECODING: RefCell<Option<Decoding>> = const { RefCell::new(None) };
}

/// The blocks that the result of the current job has put into its table, and whether their buffers are dropped.
static BOARDED: Mutex<Vec<(usize, bool)>> = Mutex::new(Vec::new());

fn boarded() -> MutexGuard<'static, Vec<(usize, bool)>> {
    BOARDED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The current job is over, and its result dropped: may its buffers be sent? False when the job kept one, which would
/// share it with the parent. What is not to be sent (`keep`) or may not is freed, now or when it is dropped.
pub(crate) fn land(keep: bool) -> bool {
    let mut boarded = boarded();
    let all_dropped = boarded.iter().all(|&(_, dropped)| dropped);
    let sent = keep && all_dropped;
    for (block, dropped) in boarded.drain(..) {
        if let (false, true, Some(mine)) = (sent, dropped, mine()) {
            heap::free(mine.region, block);
        }
    }
    all_dropped
}

/// Says that this process is the worker of `index`. What it inherited, when its pool was made in a job of another's, is that worker's.
pub(crate) fn this_is(region: &'static Region, index: usize) {
    boarded().clear();
    let mine = Mine { region, index, process: table::process_number() };
    *MINE.lock().unwrap_or_else(PoisonError::into_inner) = Some(mine);
}

/// A result that is being decoded.
struct Decoding {
    region: Arc<Region>,
    /// The blocks of its buffers that were not taken out yet. Each is once: from then on it may be freed, and be
    /// another result's.
    left: Vec<usize>,
}

impl Decoding {
    fn take(&mut self, block: usize) -> bool {
        let at = self.left.iter().position(|&left| left == block);
        at.map(|at| self.left.swap_remove(at)).is_some()
    }
}

/// Runs `decode` for a result that lies in `region` and has these passengers. Frees the buffers that it did not take, whatever
/// the reason.
pub(crate) fn decoding<R>(region: &Arc<Region>, passengers: &[Passenger], decode: impl FnOnce() -> R) -> R {
    struct Restore(Option<Decoding>);
    impl Drop for Restore {
        fn drop(&mut self) {
            let Some(over) = DECODING.replace(self.0.take()) else { return };
            for block in over.left {
                heap::free(&over.region, block);
            }
        }
    }
    let left = passengers.iter().filter_map(block_of).collect();
    let _restore = Restore(DECODING.replace(Some(Decoding { region: Arc::clone(region), left })));
    decode()
}

/// The block that a passenger means; `None` if it is no buffer.
pub(crate) fn block_of(passenger: &Passenger) -> Option<usize> {
    (passenger.kind[0] == kind()).then_some(passenger.words[0] as usize)
}

/// Frees the buffers of a result that is not wanted and was not decoded.
pub(crate) fn discard(region: &Region, passengers: &[Passenger]) {
    for block in passengers.iter().filter_map(block_of) {
        let unread = heap::header(region, block).is_some_and(|header| {
            header.state.compare_exchange(heap::SENT, heap::HELD, Ordering::AcqRel, Ordering::Acquire).is_ok()
        });
        if unread {
            heap::free(region, block);
        }
    }
}

fn digest<T: 'static + ?Sized>() -> u64 {
    let mut hasher = DefaultHasher::new();
    TypeId::of::<T>().hash(&mut hasher);
    hasher.finish()
}

fn kind() -> u64 {
    digest::<Region>()
}

enum Home {
    Worker(&'static Region),
    Parent(Arc<Region>),
}

impl Deref for Home {
    type Target = Region;

    fn deref(&self) -> &Region {
        match self {
            Self::Worker(region) => region,
            Self::Parent(region) => region,
        }
    }
}

/// A slice in the memory that a worker shares with its parent: made by a job, returned in its result (also inside of a
/// structure), and read by the parent where it lies. Dropping it gives the memory back to the worker's
/// `result_capacity`.
///
/// A process that the job, or later the program, forks does not have it: who touches it there dies of SIGSEGV.
///
/// A buffer can travel only in the result of a pool's job, which must own it: a result that refers to a buffer that the job keeps
/// is refused.
///
/// The slice is borrowed from memory that its worker has mapped writable: no safe code there can reach it any more, but `unsafe`
/// code that writes wildly might, and the parent's behaviour is undefined then. Jobs that may break their own memory are not for
/// a pool.
pub struct Buffer<T: Pod> {
    home: Home,
    block: usize,
    len: usize,
    /// The buffer's block belongs to a result now.
    sent: AtomicBool,
    /// The process that it belongs to, in a line of forks.
    process: usize,
    elements: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    const FITS: () = assert!(align_of::<T>() <= heap::HEADER, "an alignment that blocks have");

    /// Room for `len` elements, all zeroes.
    ///
    /// # Errors
    /// Those of [`Self::stale`].
    pub fn zeroed(len: usize) -> Result<Self> {
        let mut buffer = Self::stale(len)?;
        buffer.fill(T::zeroed());
        Ok(buffer)
    }

    /// A copy of `elements`.
    ///
    /// # Errors
    /// Those of [`Self::stale`].
    pub fn copy_of(elements: &[T]) -> Result<Self> {
        let mut buffer = Self::stale(elements.len())?;
        buffer.copy_from_slice(elements);
        Ok(buffer)
    }

    /// Room for `len` elements whose values are whatever earlier results left there: for who writes all of them.
    ///
    /// Waits while earlier results that the parent is about to read leave no room.
    ///
    /// # Errors
    /// Invalid outside of a worker, where jobs and hooks run; out of memory when it is larger than the pool's `result_capacity`, or when buffers that the
    /// program still holds leave no room.
    pub fn stale(len: usize) -> Result<Self> {
        let () = Self::FITS;
        let Mine { region, index, process } =
            mine().ok_or_else(|| Error::invalid("a Buffer is made in a worker of a pool"))?;
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| Error::invalid("a Buffer of so many elements"))?;
        let block = ResultHeap::of(region, index).take(bytes).map_err(|why| {
            let limit = match why {
                NoBlock::TooLarge => "the pool's result_capacity",
                NoBlock::AllHeld => "the pool's result_capacity, which results that the program holds fill",
            };
            Error::new(ErrorKind::OutOfMemory { asked: bytes, limit: limit.to_owned() })
                .with_hint("raise PoolBuilder::result_capacity, or drop results earlier")
        })?;
        Ok(Self {
            home: Home::Worker(region),
            block,
            len,
            sent: AtomicBool::new(false),
            process,
            elements: PhantomData,
        })
    }

    fn start(&self) -> *mut T {
        let bytes = self.len * size_of::<T>();
        let start = self.home.bytes_at(self.block + heap::HEADER, bytes);
        start.map_or(std::ptr::dangling_mut(), <*mut u8>::cast)
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `stale` and `deserialize` checked that so many elements lie in the block, aligned; it is ours alone
        // until we are dropped, and any bytes are a `T`.
        unsafe { std::slice::from_raw_parts(self.start(), self.len) }
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len) }
    }
}

impl<T: Pod> Drop for Buffer<T> {
    fn drop(&mut self) {
        // In a process forked from its owner this value is a copy.
        if self.process != table::process_number() {
            return;
        }
        if self.sent.load(Ordering::Acquire)
            && let Some((_, dropped)) = boarded().iter_mut().find(|(block, _)| *block == self.block)
        {
            *dropped = true;
            return;
        }
        heap::free(&self.home, self.block);
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<T: Pod> Serialize for Buffer<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if matches!(self.home, Home::Parent(_)) || self.sent.swap(true, Ordering::AcqRel) {
            return Err(ser::Error::custom(wire::refuse("a Buffer is sent once, by the job that made it")));
        }
        let passenger = Passenger { kind: [kind(), digest::<T>()], words: [self.block as u64, self.len as u64] };
        let Some(index) = wire::embark_in_result(passenger) else {
            self.sent.store(false, Ordering::Release);
            return Err(ser::Error::custom(wire::refuse("a Buffer travels in a job's result only")));
        };
        boarded().push((self.block, false));
        serializer.serialize_u32(index)
    }
}

impl<'de, T: Pod> Deserialize<'de> for Buffer<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let () = Self::FITS;
        let wrong = || de::Error::custom("no Buffer of this type");
        let index = u32::deserialize(deserializer)?;
        let passenger = wire::disembark(index).ok_or_else(wrong)?;
        let region = DECODING.with_borrow(|now| now.as_ref().map(|now| Arc::clone(&now.region))).ok_or_else(wrong)?;
        let block = block_of(&passenger).filter(|_| passenger.kind[1] == digest::<T>()).ok_or_else(wrong)?;
        let len = passenger.words[1] as usize;
        let fits = len.checked_mul(size_of::<T>()).is_some_and(|bytes| bytes <= heap::room(&region, block));
        let header = heap::header(&region, block).filter(|_| fits).ok_or_else(wrong)?;
        let taken = DECODING.with_borrow_mut(|now| now.as_mut().is_some_and(|now| now.take(block)));
        if !taken {
            return Err(wrong());
        }
        header.state.store(heap::HELD, Ordering::Release);
        let process = table::process_number();
        Ok(Self {
            home: Home::Parent(region),
            block,
            len,
            sent: AtomicBool::new(false),
            process,
            elements: PhantomData,
        })
    }
}
