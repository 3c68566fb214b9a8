//! All arenas of this process, in a table that signal handlers and forked children can read.
//!
//! # Safety
//! A slot points to an [`Inner`] that lives until `release` takes it out. Who follows the pointer is counted
//! (`signal_safe::table::visit`), and `release` waits until nobody does; or holds an [`super::ArenaRef`] of it ([`find`]), which the
//! caller of `release` promises that nobody uses. A handle follows no pointer: what it needs stands in the slot
//! itself.
//!
//! The ranges beside it are what a child gets a fence for instead.
//!
//! # One number for one arena
//! Handles and allocators name an arena by slot and generation, and both may come to another process: in
//! the data of an arena that is [adopted](super::Export::adopt), or in a worker's job. So the generations of
//! a slot are counted in memory that stays shared over fork: no two arenas of processes that came from one
//! have the same slot and generation.
#![expect(unsafe_code, reason = "an arena lives behind a pointer until it is released")]

use super::growing::Growing;
use super::image::Image;
use super::inner::Inner;
use super::signal_safe::table::{ADOPTED, SLOTS, TABLE, USED, VISITORS, entered_child, find, process_number};
#[cfg(feature = "pool")]
use super::signal_safe::table::{KEPT, KEPT_MAX};
use crate::error::{Error, Result};
#[cfg(feature = "pool")]
use crate::sys::map::{self, Range};
use crate::sys::shared_words::SharedWords;
use crate::sys::{c_library, process, stderr};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

/// For each slot the highest generation that any process which came from this one's first has given out, and the addresses that the next arena looks for first.
static FAMILY: OnceLock<SharedWords> = OnceLock::new();

/// The number of slots that are used before further ones are: whoever looks at all arenas looks at all slots that were ever used.
const TIER: usize = 1024;

/// One at a time enters an arena, so that a slot found empty stays empty.
static ENTERING: Mutex<()> = Mutex::new(());

/// Keeps shared memory from processes that this one forks from now on: they get a fence there, so that who follows a
/// reference faults, and nobody writes what this process has lent. Until [`unkeep`].
///
/// # Safety
/// The range is mapped, the caller's, and stays so until [`unkeep`].
///
/// # Errors
/// Invalid when there are too many ranges.
#[cfg(feature = "pool")]
pub(crate) unsafe fn keep_from_children(range: Range) -> Result<()> {
    let _entering = entering();
    let free = KEPT.iter().find(|(_, len)| len.load(Ordering::Acquire) == 0);
    let (start, len) = free.ok_or_else(|| Error::invalid(format!("{KEPT_MAX} pools are alive; drop some first")))?;
    start.store(range.start, Ordering::Release);
    len.store(range.len, Ordering::Release);
    // SAFETY: the range is the caller's; a child fences it before any code of the user runs there.
    unsafe { map::inherit(range, false) }.map_err(|e| Error::os("madvise(MADV_DONTFORK)", e))
}

/// The range is about to be unmapped.
#[cfg(feature = "pool")]
pub(crate) fn unkeep(range: Range) {
    let _entering = entering();
    let own = KEPT.iter().filter(|(start, len)| {
        start.load(Ordering::Acquire) == range.start && len.load(Ordering::Acquire) == range.len
    });
    own.for_each(|(_, len)| len.store(0, Ordering::Release));
}

/// Makes `fork()` itself call [`entered_child`], for forks that are not ours. Does so once.
pub(super) fn notice_other_forks() -> Result<()> {
    /// Runs in every child of a `fork()`. *Async-signal-safe.*
    extern "C" fn entered() {
        if entered_child().is_err() {
            stderr::write_all(b"cowbell: no memory to fence off a growing arena after fork\n");
            process::exit(101);
        }
    }
    // SAFETY: it maps fences and stores to atomics: no lock, no allocation.
    unsafe { c_library::after_fork_in_child(entered) }.map_err(|e| Error::os("pthread_atfork", e))
}

/// Makes what this process and those forked from it must have in common: before the first arena and before any
/// fork.
///
/// # Errors
/// ENOMEM.
pub(crate) fn prepare() -> Result<()> {
    let _entering = entering();
    if FAMILY.get().is_none() {
        let _first = FAMILY.set(SharedWords::new(SLOTS + 1)?);
        prepare_hashing();
    }
    Ok(())
}

fn entering() -> MutexGuard<'static, ()> {
    ENTERING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The highest generation of a slot in all processes; `None` before [`prepare`].
fn family(at: usize) -> Option<&'static AtomicU64> {
    FAMILY.get()?.words().get(at)
}

/// The word by which all processes of the family count the addresses of their arenas: so an arena of one can be adopted by another, whatever that has built meanwhile.
///
/// # Errors
/// ENOMEM.
pub(super) fn next_addresses() -> Result<&'static AtomicU64> {
    prepare()?;
    family(SLOTS).ok_or_else(|| Error::invalid("the family has no memory"))
}

/// Enters a new arena and returns it with its slot and generation settled.
pub(super) fn enter(make: impl FnOnce(u16, u16) -> Inner) -> Result<&'static Inner> {
    prepare()?;
    let _entering = entering();
    let highest = |at: usize| family(at).map_or(0, |word| word.load(Ordering::Relaxed));
    // At its highest number a slot is used no more: no number comes twice.
    let is_free = |&at: &usize| TABLE[at].inner.load(Ordering::Acquire).is_null() && highest(at) < u64::from(u16::MAX);
    // The one used least: other processes may still have arenas of this process that it has released, and arenas of
    // their own, under the numbers of those slots.
    let among = |tier: usize| (tier * TIER..(tier + 1) * TIER).filter(is_free).min_by_key(|&at| highest(at));
    let free = (0..SLOTS / TIER).find_map(among);
    let at = free.ok_or_else(|| Error::invalid(format!("{SLOTS} arenas are alive; release some first")))?;
    let number = family(at).map_or(0, |word| word.fetch_add(1, Ordering::Relaxed) + 1);
    let generation = u16::try_from(number).map_err(|_| Error::invalid("an arena's place was used too often"))?;
    Ok(put(at, generation, make(at as u16, generation)))
}

/// Enters an arena of another process under the number it has there.
///
/// # Errors
/// Invalid when this process has an arena in that slot, or when `make` fails.
pub(super) fn enter_as(slot: u16, generation: u16, make: impl FnOnce() -> Result<Inner>) -> Result<&'static Inner> {
    prepare()?;
    let _entering = entering();
    let at = usize::from(slot);
    let is_free = TABLE.get(at).is_some_and(|slot| slot.inner.load(Ordering::Acquire).is_null());
    if !is_free || generation == 0 {
        return Err(Error::invalid(format!("this process has an arena of its own in place {slot}"))
            .with_hint("release it first, or adopt before building"));
    }
    if let Some(word) = family(at) {
        word.fetch_max(u64::from(generation), Ordering::Relaxed);
    }
    Ok(put(at, generation, make()?))
}

fn put(at: usize, generation: u16, inner: Inner) -> &'static Inner {
    let inner = Box::leak(Box::new(inner));
    let slot = &TABLE[at];
    slot.generation.store(generation, Ordering::Release);
    slot.inner.store(inner, Ordering::Release);
    USED.fetch_max(at + 1, Ordering::Release);
    inner
}

/// Makes a frozen image known to handles.
pub(super) fn frozen(image: &Image, adopted: bool) {
    let slot = &TABLE[usize::from(image.slot())];
    slot.start.store(image.range().start | if adopted { ADOPTED } else { 0 }, Ordering::Release);
    slot.len.store(image.range().len, Ordering::Release);
}

/// Takes an arena out; its slot's next arena has another generation.
///
/// # Safety
/// Nobody uses the arena any more: no reference, no [`super::ArenaRef`].
pub(super) unsafe fn leave(inner: &'static Inner) -> Box<Inner> {
    let slot = &TABLE[usize::from(inner.slot)];
    slot.len.store(0, Ordering::Release);
    slot.generation.store(0, Ordering::Release);
    let pointer = slot.inner.swap(null_mut(), Ordering::SeqCst);
    // A signal handler on another thread may be reading; it takes microseconds.
    while VISITORS.load(Ordering::SeqCst) != 0 {
        std::thread::yield_now();
    }
    // SAFETY: `enter` made the pointer from a box, the swap took it out once, and nobody follows it.
    unsafe { Box::from_raw(pointer) }
}

/// Takes an image out that nobody has a reference to, neither to its objects nor by an [`super::ArenaRef`]: the heap's, which has handed out none.
pub(super) fn leave_image(image: &Image) {
    let Some(inner) = find(image.slot(), image.generation()) else { return };
    // SAFETY: of such an image no ArenaRef was ever made.
    drop(unsafe { leave(inner) });
}

/// The entry of an image that did not grow in this process.
pub(super) fn entry(image: Image) -> Inner {
    Inner {
        name: image.name.clone(),
        slot: image.slot,
        generation: image.generation,
        range: image.range,
        capacity: 0,
        plain: image.plain,
        process: process_number(),
        growing: Mutex::new(Growing::never()),
        writing: RwLock::new(()),
        frozen: OnceLock::from(Arc::new(image)),
    }
}

/// Settles the seed that all hash maps of this process share. Made at first use, it would be another one in a
/// process that was forked before: a map built here would not be searched right there.
fn prepare_hashing() {
    std::hint::black_box(hashbrown::DefaultHashBuilder::default());
}
