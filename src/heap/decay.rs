//! How long free memory is kept for who asks next.
//!
//! Pages from the kernel are dear, and a program that needed memory a moment ago is likely to need it again. So units that are free stay *dirty*, and of each kind
//! as many are given to the kernel as were free all through a period of half a second. That is looked at by who takes or gives back units, or finds a slab
//! exhausted: there is no thread for it, so a program that asks for no more than it just freed gives nothing back ([`super::Heap::trim`] does at once).
//! No call gives back more than a chunk, as the others wait meanwhile.
//!
//! Everything here is done under the lock, but for the question whether there is something to do.

use super::lock::HeapGuard;
use super::state::KINDS;
use crate::sys;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The length of a period, in nanoseconds.
const PERIOD_NS: u64 = 500_000_000;

/// Dirty units that are kept however long nobody wants them: so many, or one for each `KEPT_SHARE` in use if that is more.
const KEPT_MIN: usize = 256;
const KEPT_SHARE: usize = 8;

/// Dirty units of a kind.
struct DirtyCount {
    now: AtomicUsize,
    /// The fewest since the period began: so many nobody wanted.
    least: AtomicUsize,
    /// Those that nobody wanted in the period before, and that are still to be given back.
    unwanted: AtomicUsize,
}

static COUNTS: [DirtyCount; KINDS] =
    [const { DirtyCount { now: AtomicUsize::new(0), least: AtomicUsize::new(0), unwanted: AtomicUsize::new(0) } };
        KINDS];

/// When this period began.
static BEGAN_NS: AtomicU64 = AtomicU64::new(0);
/// The sums of what is dirty, and of what is unwanted.
static DIRTY: AtomicUsize = AtomicUsize::new(0);
static UNWANTED: AtomicUsize = AtomicUsize::new(0);

/// Units became dirty.
pub(super) fn add(kind: u8, units: u32, _held: &HeapGuard) {
    let Some(count) = COUNTS.get(usize::from(kind)) else { return };
    count.now.fetch_add(units as usize, Ordering::Relaxed);
    DIRTY.fetch_add(units as usize, Ordering::Relaxed);
}

/// Dirty units were taken, or given to the kernel.
pub(super) fn remove(kind: u8, units: u32, _held: &HeapGuard) {
    let Some(count) = COUNTS.get(usize::from(kind)) else { return };
    let now = count.now.fetch_sub(units as usize, Ordering::Relaxed) - units as usize;
    DIRTY.fetch_sub(units as usize, Ordering::Relaxed);
    count.least.fetch_min(now, Ordering::Relaxed);
}

/// Is there something to give back, or to be looked at, while so many units are in use? Needs no lock.
pub(super) fn is_due(used: usize) -> bool {
    DIRTY.load(Ordering::Relaxed) > kept(used) && (UNWANTED.load(Ordering::Relaxed) > 0 || period_is_over())
}

/// The number of dirty units that stay while so many are in use.
fn kept(used: usize) -> usize {
    KEPT_MIN.max(used / KEPT_SHARE)
}

fn period_is_over() -> bool {
    sys::monotonic_ns().saturating_sub(BEGAN_NS.load(Ordering::Relaxed)) >= PERIOD_NS
}

/// A kind, and how many dirty units of it are to be given back now.
pub(super) fn unwanted(used: usize, _held: &HeapGuard) -> Option<(u8, u32)> {
    if period_is_over() {
        BEGAN_NS.store(sys::monotonic_ns(), Ordering::Relaxed);
        for count in &COUNTS {
            let least = count.least.swap(count.now.load(Ordering::Relaxed), Ordering::Relaxed);
            set_unwanted(count, least);
        }
    }
    let above = DIRTY.load(Ordering::Relaxed).saturating_sub(kept(used));
    let found = (0u8..).zip(&COUNTS).find(|(_, count)| count.unwanted.load(Ordering::Relaxed) > 0);
    let (kind, count) = found?;
    let units = count.unwanted.load(Ordering::Relaxed).min(count.now.load(Ordering::Relaxed)).min(above);
    if units == 0 {
        set_unwanted(count, 0);
    }
    (units > 0).then_some((kind, units as u32))
}

/// Units of a kind were given back. With none, those that there are cannot be, and are let be.
pub(super) fn note_given(kind: u8, units: u32, _held: &HeapGuard) {
    let Some(count) = COUNTS.get(usize::from(kind)) else { return };
    let before = count.unwanted.load(Ordering::Relaxed);
    set_unwanted(count, if units == 0 { 0 } else { before.saturating_sub(units as usize) });
}

fn set_unwanted(count: &DirtyCount, units: usize) {
    let before = count.unwanted.swap(units, Ordering::Relaxed);
    UNWANTED.fetch_add(units, Ordering::Relaxed);
    UNWANTED.fetch_sub(before, Ordering::Relaxed);
}
