//! The claims of threads: each [`Local`] belongs to one thread, or to nobody.
//!
//! A thread claims one when it first needs it, and leaves it when it ends, to the next thread that starts.
//!
//! # Safety
//! A [`Local`] is never unmapped. It is claimed by one thread, or vacant and whoever's who holds the lock.
#![expect(unsafe_code, reason = "a thread finds what it claimed by address")]

use super::central;
use super::local::{CLAIMED, Local, VACANT, owner_at, settle_vacant};
use super::lock::{self, HeapGuard};
use super::metadata::{self, ChunkState, Slab, UNITS};
use super::state::KINDS;
use crate::sys::map::{self, Range};
use crate::sys::{c_library, page_size};
use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::null;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

/// The first one of all.
static ALL: AtomicUsize = AtomicUsize::new(0);
/// Memory for further ones: the next address, and the end.
static ROOM: (AtomicUsize, AtomicUsize) = (AtomicUsize::new(0), AtomicUsize::new(0));

/// The number of them that room is made for at a time.
const ROOM_STEP: usize = 16;

thread_local! {
    /// For each kind this thread's own; neither is dropped, so that both can be used at any time of a thread's life.
    static MINE: [Cell<*const Local>; KINDS] = const { [const { Cell::new(null()) }; KINDS] };
    /// The kind that this thread allocates now, and which of the above that is.
    static KIND: Cell<u8> = const { Cell::new(0) };
    static CURRENT: Cell<*const Local> = const { Cell::new(null()) };
    /// The thread is at its end, or its end cannot be seen: it has nothing of its own any more.
    static ENDED: Cell<bool> = const { Cell::new(false) };
}

/// True once this process has prepared for forks and for the ends of threads.
static PREPARED: AtomicU8 = AtomicU8::new(0);

/// The kind that this thread allocates from now on; returns the one before.
pub(super) fn set_kind(kind: u8) -> u8 {
    CURRENT.with(|current| current.set(of_kind(kind)));
    KIND.with(|cell| cell.replace(kind))
}

/// The [`Local`] that this thread allocates from now; null if it has none of that kind.
#[inline]
pub(super) fn current() -> *const Local {
    CURRENT.with(Cell::get)
}

/// The kind that this thread allocates.
pub(super) fn kind() -> u8 {
    KIND.with(Cell::get)
}

/// The [`Local`] that this thread has of a kind; null if it has none.
pub(super) fn of_kind(kind: u8) -> *const Local {
    MINE.with(|mine| mine[usize::from(kind)].get())
}

fn set_of_kind(kind: u8, local: *const Local) {
    MINE.with(|mine| mine[usize::from(kind)].set(local));
    if kind == self::kind() {
        CURRENT.with(|current| current.set(local));
    }
}

/// Tells whether this thread has nothing of its own any more.
pub(super) fn has_ended() -> bool {
    ENDED.with(Cell::get)
}

/// Runs `work` with a Local that is this thread's: for good, or at a thread's end just for this.
pub(super) fn with_claimed<R>(work: impl FnOnce(&'static Local) -> R) -> Option<R> {
    let kind = kind();
    // SAFETY: claimed by this thread, and never unmapped.
    if let Some(local) = unsafe { of_kind(kind).as_ref() } {
        return Some(work(local));
    }
    let local = claim(kind, &lock::take())?;
    if !ENDED.with(Cell::get) && notice_end() {
        set_of_kind(kind, local);
        return Some(work(local));
    }
    ENDED.with(|ended| ended.set(true));
    let done = work(local);
    local.leave(&lock::take());
    Some(done)
}

/// A Local of this kind for one user: a vacant one, or a new one.
fn claim(kind: u8, _held: &HeapGuard) -> Option<&'static Local> {
    let vacant = &VACANT[usize::from(kind)];
    if let Some(local) = owner_at(vacant.load(Ordering::Relaxed)) {
        vacant.store(local.next_vacant.load(Ordering::Relaxed), Ordering::Relaxed);
        local.vacant.store(0, Ordering::Relaxed);
        CLAIMED.fetch_add(1, Ordering::Relaxed);
        return Some(local);
    }
    let (next, end) = (&ROOM.0, &ROOM.1);
    if next.load(Ordering::Relaxed) == end.load(Ordering::Relaxed) {
        let len = page_size().round_up(ROOM_STEP * size_of::<Local>())?;
        let Range { start, len } = map::anonymous(len).ok()?;
        next.store(start, Ordering::Relaxed);
        end.store(start + len / size_of::<Local>() * size_of::<Local>(), Ordering::Relaxed);
    }
    // Fresh memory is zero, as a Local's atomics may be.
    let local = owner_at(next.fetch_add(size_of::<Local>(), Ordering::Relaxed))?;
    local.kind.store(kind, Ordering::Relaxed);
    local.forget_heads();
    local.next.store(ALL.load(Ordering::Relaxed), Ordering::Relaxed);
    ALL.store(local.address(), Ordering::Release);
    CLAIMED.fetch_add(1, Ordering::Relaxed);
    Some(local)
}

/// Gives this thread's slabs back that nobody uses, and all free memory to the kernel.
pub(super) fn trim_own() {
    let held = lock::take();
    for kind in 0..KINDS as u8 {
        // SAFETY: claimed by this thread, and never unmapped.
        if let Some(local) = unsafe { of_kind(kind).as_ref() } {
            local.give_up_unused(&held);
        }
    }
    settle_vacant(&held);
    central::purge_all(&held);
}

/// Runs `work`, which changes what is another's, so that a fork knows of it.
pub(super) fn announced<R>(work: impl FnOnce() -> R) -> R {
    if !has_ended() && with_claimed(|_| ()).is_some() && !has_ended() {
        return work();
    }
    let _held = lock::take();
    work()
}

/// In a forked child. A fork takes no picture of one moment: pages that other threads wrote meanwhile may be older or newer than others. What the lock guards,
/// and what is this thread's, nobody wrote. The lists of blocks that others freed may be torn, so they are let be: those blocks are lost here. *Async-signal-safe.*
extern "C" fn in_child() {
    let mine = MINE.with(|mine| mine.iter().filter(|mine| !mine.get().is_null()).count());
    if CLAIMED.swap(mine, Ordering::Relaxed) > mine {
        for number in 0..metadata::chunks() {
            if metadata::chunk(number).state() == ChunkState::Open {
                // Also where no slab begins now: one that was given back may be marked as in a mailbox.
                (0..UNITS).for_each(|place| forget_others(metadata::unit(number, place).slab()));
            }
        }
        let mut at = ALL.load(Ordering::Acquire);
        while let Some(local) = owner_at(at) {
            local.mailbox.store(0, Ordering::Relaxed);
            at = local.next.load(Ordering::Relaxed);
        }
    }
    lock::after_fork();
}

fn forget_others(slab: &Slab) {
    // Reading copies no page.
    if slab.remote.load(Ordering::Relaxed) != 0 {
        slab.remote.store(0, Ordering::Relaxed);
    }
    if slab.mailed.load(Ordering::Relaxed) != 0 {
        slab.mailed.store(0, Ordering::Relaxed);
    }
}

/// Sees to it that this thread's end is noticed, and, once, that forks are. False where that cannot be: then nothing may be left to the thread.
fn notice_end() -> bool {
    if PREPARED.swap(1, Ordering::AcqRel) == 0 {
        // SAFETY: the three take and give a lock, and neither allocate nor use what a child lacks.
        let prepared = unsafe { c_library::around_fork(lock::before_fork, lock::after_fork, in_child) };
        // Without, a fork in a program of several threads could find the lock held; those of one thread do not need it.
        let _ = prepared;
    }
    // SAFETY: `ended` neither unwinds nor relies on destructors of thread-local storage.
    unsafe { c_library::at_thread_end(ended) }.is_ok()
}

/// The thread is about to end. Further keys may have destructors that allocate and free still.
unsafe extern "C" fn ended(_: *mut c_void) {
    ENDED.with(|ended| ended.set(true));
    for kind in 0..KINDS as u8 {
        // SAFETY: claimed by this thread, and never unmapped.
        if let Some(local) = unsafe { of_kind(kind).as_ref() } {
            set_of_kind(kind, null());
            local.leave(&lock::take());
        }
    }
}

/// Tells whether this is the address of a Local that this thread has, or nobody. What other threads had when this process was forked may be half changed.
pub(super) fn is_settled(owner: usize) -> bool {
    let mine = MINE.with(|mine| mine.iter().any(|mine| mine.get().addr() == owner));
    mine || owner_at(owner).is_some_and(|local| local.vacant.load(Ordering::Relaxed) != 0)
}

/// Calls `each` for all Locals that this thread has or nobody.
pub(super) fn settled(_held: &HeapGuard, mut each: impl FnMut(&'static Local)) {
    let mut at = ALL.load(Ordering::Acquire);
    while let Some(local) = owner_at(at) {
        if is_settled(at) {
            each(local);
        }
        at = local.next.load(Ordering::Relaxed);
    }
}
