//! All arenas of this process, in a table that signal handlers and forked children can read.
//!
//! # Safety
//! A slot points to an [`Inner`] that lives until `release` takes it out. Who follows the pointer is counted
//! ([`visit`]), and `release` waits until nobody does. A handle follows no pointer: what it needs stands in
//! the slot itself.
#![expect(unsafe_code, reason = "slots are read without a lock, in signal handlers")]

use super::{Image, Inner};
use crate::error::{Error, Result};
use crate::sys::map::{self, Range};
use crate::sys::{Errno, process};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU16, AtomicU64, AtomicUsize, Ordering};

/// How many arenas can be alive at once.
const SLOTS: usize = 1024;

struct Slot {
    inner: AtomicPtr<Inner>,
    /// Raised when the slot's arena is released, so that old handles are told from new ones. At its highest
    /// value the slot is used no more: no number comes twice.
    generation: AtomicU16,
    /// The frozen image's addresses; no length while there is none.
    start: AtomicUsize,
    len: AtomicUsize,
    /// The frozen image's stamp, the same in every process that has the image.
    stamp: AtomicU64,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        inner: AtomicPtr::new(null_mut()),
        generation: AtomicU16::new(1),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        stamp: AtomicU64::new(0),
    }
}; SLOTS];

/// Slots at and above this were never used.
static USED: AtomicUsize = AtomicUsize::new(0);

/// How many forks lie between this process and the one the program started in.
static FORKS: AtomicUsize = AtomicUsize::new(0);

/// How many are following a slot's pointer.
static VISITORS: AtomicUsize = AtomicUsize::new(0);

/// The number of this process in its line of forks: an arena that was growing belongs to one of them.
pub(crate) fn process_number() -> usize {
    FORKS.load(Ordering::Relaxed)
}

/// A forked child says that it is another process, and keeps the addresses of growing arenas: `MADV_DONTFORK`
/// left holes, and nothing else may ever be mapped there, because the parent's references into the arenas
/// are still in this process's memory. *Raw.*
///
/// # Errors
/// ENOMEM.
pub(crate) fn entered_child() -> Result<(), Errno> {
    FORKS.fetch_add(1, Ordering::Relaxed);
    // Visitors were threads of the parent.
    VISITORS.store(0, Ordering::Release);
    visit(|mut arenas| {
        arenas.try_for_each(|arena| match arena.image() {
            Some(_) => Ok(()),
            None => match map::fence(arena.range) {
                // Fenced already, by an earlier fork in the line.
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(e) => Err(e),
            },
        })
    })
}

/// Has `fork()` itself call [`entered_child`], for forks that are not ours. Once.
pub(super) fn notice_other_forks() -> Result<()> {
    extern "C" fn entered() {
        if entered_child().is_err() {
            process::write_stderr(b"cowbell: no memory to fence off a growing arena after fork\n");
            process::exit(101);
        }
    }
    process::after_fork_in_child(entered).map_err(|e| Error::os("pthread_atfork", e))
}

/// Enters a new arena and returns it with its slot and generation settled.
pub(super) fn enter(make: impl FnOnce(u16, u16) -> Inner) -> Result<&'static Inner> {
    // One at a time, so that a slot found empty stays empty.
    static ENTERING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _entering = ENTERING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let generation = |at: usize| TABLE[at].generation.load(Ordering::Acquire);
    let is_free = |&at: &usize| TABLE[at].inner.load(Ordering::Acquire).is_null() && generation(at) < u16::MAX;
    let free = (0..SLOTS).find(is_free);
    let at = free.ok_or_else(|| Error::invalid(format!("{SLOTS} arenas are alive; release some first")))?;
    let inner = Box::leak(Box::new(make(at as u16, generation(at))));
    TABLE[at].inner.store(inner, Ordering::Release);
    USED.fetch_max(at + 1, Ordering::Release);
    Ok(inner)
}

/// Makes a frozen image known to handles.
pub(super) fn frozen(image: &Image) {
    let slot = &TABLE[usize::from(image.slot())];
    slot.stamp.store(image.stamp(), Ordering::Release);
    slot.start.store(image.range().start, Ordering::Release);
    slot.len.store(image.range().len, Ordering::Release);
}

/// Takes an arena out; its slot's next arena has another generation.
///
/// # Safety
/// Nobody uses the arena any more: no reference, no [`super::ArenaRef`].
pub(super) unsafe fn leave(inner: &'static Inner) -> Box<Inner> {
    let slot = &TABLE[usize::from(inner.slot)];
    slot.len.store(0, Ordering::Release);
    slot.generation.fetch_add(1, Ordering::AcqRel);
    let pointer = slot.inner.swap(null_mut(), Ordering::SeqCst);
    // A signal handler on another thread may be reading; it takes microseconds.
    while VISITORS.load(Ordering::SeqCst) != 0 {
        std::thread::yield_now();
    }
    // SAFETY: `enter` made the pointer from a box, the swap took it out once, and nobody follows it.
    unsafe { Box::from_raw(pointer) }
}

/// The addresses of the image in a slot, if there is one of this generation. *Raw.*
pub(super) fn image_at(slot: u16, generation: u16) -> Option<Range> {
    let slot = TABLE.get(usize::from(slot))?;
    let same = || slot.generation.load(Ordering::Acquire) == generation;
    if !same() {
        return None;
    }
    let range = Range { start: slot.start.load(Ordering::Acquire), len: slot.len.load(Ordering::Acquire) };
    // Looked at again, so that the two numbers are of one image.
    (range.len > 0 && same()).then_some(range)
}

/// The stamp of the image in a slot, if there is one of this generation. *Raw.*
#[cfg(feature = "pool")]
pub(super) fn stamp_at(slot: u16, generation: u16) -> Option<u64> {
    let stamp = TABLE.get(usize::from(slot))?.stamp.load(Ordering::Acquire);
    // Looked at after the stamp, so that it is this image's.
    image_at(slot, generation).map(|_| stamp)
}

/// Where this process has the image of a stamp: slot and generation. Another process may have it in another
/// slot. *Raw.*
#[cfg(feature = "pool")]
pub(super) fn find(stamp: u64) -> Option<(u16, u16)> {
    let used = TABLE.get(..USED.load(Ordering::Acquire)).unwrap_or_default();
    used.iter().enumerate().find_map(|(at, slot)| {
        let generation = slot.generation.load(Ordering::Acquire);
        (stamp_at(at as u16, generation)? == stamp).then_some((at as u16, generation))
    })
}

/// Looks at all arenas. *Raw*, if `look` is; `look` must not release one.
pub(crate) fn visit<R>(look: impl for<'v> FnOnce(Arenas<'v>) -> R) -> R {
    struct Visit;
    impl Drop for Visit {
        fn drop(&mut self) {
            VISITORS.fetch_sub(1, Ordering::SeqCst);
        }
    }
    VISITORS.fetch_add(1, Ordering::SeqCst);
    let _visit = Visit;
    look(Arenas { slots: TABLE.get(..USED.load(Ordering::Acquire)).unwrap_or_default().iter() })
}

/// All arenas, during a visit.
pub(crate) struct Arenas<'v> {
    slots: std::slice::Iter<'v, Slot>,
}

impl<'v> Iterator for Arenas<'v> {
    type Item = &'v Inner;

    fn next(&mut self) -> Option<&'v Inner> {
        self.slots.find_map(|slot| {
            let pointer = slot.inner.load(Ordering::SeqCst);
            // SAFETY: a non-null slot points to a leaked box, which `leave` frees only after the slot is
            // null and no visitor is left; 'v ends with the visit.
            unsafe { pointer.as_ref() }
        })
    }
}
