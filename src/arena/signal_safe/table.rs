//! The table of all arenas, as signal handlers and forked children read it. What changes it stands in registry.rs.
//!
//! # Safety
//! A slot points to an [`Inner`] that lives until `release` takes it out. Whoever follows the pointer is counted ([`visit`]), and
//! `release` waits until nobody does; or holds an `ArenaRef` of it ([`find`]), which the caller of `release` promises that nobody uses.
#![expect(unsafe_code, reason = "slots are read without a lock, in signal handlers")]

use crate::arena::inner::Inner;
use crate::sys::Errno;
use crate::sys::map::{self, Range};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU16, AtomicUsize, Ordering};

/// The number of arenas that can be alive at once: as many as a handle can name, and more than mappings that a process may have by default.
pub(in crate::arena) const SLOTS: usize = 1 << 16;

pub(in crate::arena) struct ArenaSlot {
    pub(in crate::arena) inner: AtomicPtr<Inner>,
    /// The number of the slot's arena; 0 while there is none.
    pub(in crate::arena) generation: AtomicU16,
    /// The frozen image's addresses; no length while there is none. The start, which is a page's, has [`ADOPTED`] in its lowest bit.
    pub(in crate::arena) start: AtomicUsize,
    pub(in crate::arena) len: AtomicUsize,
}

pub(in crate::arena) static TABLE: [ArenaSlot; SLOTS] = [const {
    ArenaSlot {
        inner: AtomicPtr::new(null_mut()),
        generation: AtomicU16::new(0),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
    }
}; SLOTS];

/// Marks an image that another process froze after this one was forked from it.
pub(in crate::arena) const ADOPTED: usize = 1;

/// A frozen image as handles see it.
#[derive(Clone, Copy, Debug)]
pub(in crate::arena) struct KnownImage {
    pub(in crate::arena) range: Range,
    /// Another process froze it, and this one was forked before: memory that objects lead to, outside of the image, may be that
    /// process's alone.
    pub(in crate::arena) adopted: bool,
}

/// Slots at and above this were never used.
pub(in crate::arena) static USED: AtomicUsize = AtomicUsize::new(0);

/// The number of forks between this process and the one the program started in.
static FORKS: AtomicUsize = AtomicUsize::new(0);

/// The number of ranges, besides arenas, that a process may keep from its children.
pub(in crate::arena) const KEPT_MAX: usize = 256;

/// Ranges that a forked child must not have: start and length, which is 0 where there is none.
pub(in crate::arena) static KEPT: [(AtomicUsize, AtomicUsize); KEPT_MAX] =
    [const { (AtomicUsize::new(0), AtomicUsize::new(0)) }; KEPT_MAX];

/// The number of threads that follow a slot's pointer just now.
pub(in crate::arena) static VISITORS: AtomicUsize = AtomicUsize::new(0);

/// The number of this process in its line of forks: an arena that was growing belongs to one of them.
pub(crate) fn process_number() -> usize {
    FORKS.load(Ordering::Relaxed)
}

/// A forked child says that it is another process, and keeps the addresses of growing arenas: `MADV_DONTFORK`
/// left holes, and nothing else may ever be mapped there, because the parent's references into the arenas
/// are still in this process's memory. *Async-signal-safe.*
///
/// # Errors
/// ENOMEM.
pub(crate) fn entered_child() -> Result<(), Errno> {
    FORKS.fetch_add(1, Ordering::Relaxed);
    // Visitors were threads of the parent.
    VISITORS.store(0, Ordering::Release);
    for (start, len) in &KEPT {
        let range = Range { start: start.load(Ordering::Acquire), len: len.load(Ordering::Acquire) };
        if range.len > 0 {
            fence(range)?;
        }
    }
    visit(|mut arenas| {
        arenas.try_for_each(|arena| match arena.image() {
            Some(_) => Ok(()),
            None => fence(arena.range),
        })
    })
}

fn fence(range: Range) -> Result<(), Errno> {
    match map::fence(range) {
        // Fenced already, by an earlier fork in the line.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e),
    }
}

/// The arena of this number, if this process has it. For an [`crate::arena::ArenaRef`]'s own use only: see `release`.
pub(in crate::arena) fn find(slot: u16, generation: u16) -> Option<&'static Inner> {
    let slot = TABLE.get(usize::from(slot))?;
    if generation == 0 || slot.generation.load(Ordering::Acquire) != generation {
        return None;
    }
    // SAFETY: a non-null slot points to a leaked box, which only `leave` frees; its caller promises that no
    // ArenaRef of this number is used then or later.
    unsafe { slot.inner.load(Ordering::Acquire).as_ref() }
}

/// The image in a slot, if there is one of this generation. *Async-signal-safe.*
pub(in crate::arena) fn image_at(slot: u16, generation: u16) -> Option<KnownImage> {
    let slot = TABLE.get(usize::from(slot))?;
    let same = || slot.generation.load(Ordering::Acquire) == generation;
    if generation == 0 || !same() {
        return None;
    }
    // The length first, which `frozen` stores last: there is none but beside its own start.
    let len = slot.len.load(Ordering::Acquire);
    let start = slot.start.load(Ordering::Acquire);
    let known = KnownImage { range: Range { start: start & !ADOPTED, len }, adopted: start & ADOPTED != 0 };
    // Looked at again, so that the two numbers are of one image.
    (len > 0 && same()).then_some(known)
}

/// Looks at all arenas. *Async-signal-safe*, if `look` is; `look` must not release one.
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
    slots: std::slice::Iter<'v, ArenaSlot>,
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
