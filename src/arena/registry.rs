//! All arenas of this process, in a table that signal handlers and forked children can read.
//!
//! # Safety
//! A slot points to an [`Inner`] that lives until `release` takes it out; `release` is unsafe and
//! demands that nobody uses the arena any more.
#![expect(unsafe_code, reason = "slots are read without a lock, in signal handlers")]

use super::Inner;
use crate::error::{Error, Result};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU16, AtomicUsize, Ordering};

/// How many arenas can be alive at once.
const SLOTS: usize = 1024;

struct Slot {
    inner: AtomicPtr<Inner>,
    /// Raised when the slot's arena is released, so that old handles are told from new ones.
    generation: AtomicU16,
}

static TABLE: [Slot; SLOTS] =
    [const { Slot { inner: AtomicPtr::new(null_mut()), generation: AtomicU16::new(1) } }; SLOTS];

/// Slots at and above this were never used.
static USED: AtomicUsize = AtomicUsize::new(0);

/// How many forks lie between this process and the one the program started in.
static FORKS: AtomicUsize = AtomicUsize::new(0);

/// The number of this process in its line of forks: an arena that was growing belongs to one of them.
pub(crate) fn process_number() -> usize {
    FORKS.load(Ordering::Relaxed)
}

/// A forked child says that it is another process. *Raw.*
pub(crate) fn entered_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Enters a new arena and returns it with its slot and generation settled.
pub(super) fn enter(make: impl FnOnce(u16, u16) -> Inner) -> Result<&'static Inner> {
    // One at a time, so that a slot found empty stays empty.
    static ENTERING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _entering = ENTERING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let free = TABLE.iter().position(|slot| slot.inner.load(Ordering::Acquire).is_null());
    let at = free.ok_or_else(|| Error::invalid(format!("{SLOTS} arenas are alive; release some first")))?;
    let inner = Box::leak(Box::new(make(at as u16, TABLE[at].generation.load(Ordering::Relaxed))));
    TABLE[at].inner.store(inner, Ordering::Release);
    USED.fetch_max(at + 1, Ordering::Release);
    Ok(inner)
}

/// Takes an arena out; its slot's next arena has another generation.
///
/// # Safety
/// Nobody uses the arena any more: no reference, no [`super::ArenaRef`], no watched child.
pub(super) unsafe fn leave(inner: &'static Inner) -> Box<Inner> {
    let slot = &TABLE[usize::from(inner.slot)];
    let pointer = slot.inner.swap(null_mut(), Ordering::AcqRel);
    slot.generation.fetch_add(1, Ordering::Relaxed);
    // SAFETY: `enter` made the pointer from a box, and the swap took it out once.
    unsafe { Box::from_raw(pointer) }
}

/// The arena in a slot, if there is one of this generation. *Raw.*
pub(super) fn at(slot: u16, generation: u16) -> Option<&'static Inner> {
    let inner = get(usize::from(slot))?;
    (inner.generation == generation).then_some(inner)
}

/// All arenas. *Raw.*
pub(crate) fn all() -> impl Iterator<Item = &'static Inner> {
    (0..USED.load(Ordering::Acquire)).filter_map(get)
}

/// The arena that owns an address. *Raw.*
pub(crate) fn owner_of(address: usize) -> Option<&'static Inner> {
    all().find(|inner| inner.range.contains(address))
}

fn get(at: usize) -> Option<&'static Inner> {
    let pointer = TABLE.get(at)?.inner.load(Ordering::Acquire);
    // SAFETY: a non-null slot points to a leaked box that lives until `leave`, whose caller
    // promises that nobody is here any more.
    unsafe { pointer.as_ref() }
}
