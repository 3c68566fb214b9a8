//! How long free memory is kept for who asks next.
//!
//! Pages from the kernel are dear, and a program that needed memory a moment ago is likely to need it again. So free units stay while they and those in use are
//! together no more than were in use at some time within the last half second to second. That is looked at by who takes or gives back units, or finds a slab
//! exhausted: there is no thread for it, so a program that asks for no more than it just freed gives nothing back ([`super::Heap::trim`] does at once).
//!
//! Everything here is done under the lock, but for the question whether there is something to do.

use super::lock::Held;
use crate::sys;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The length of a period, in nanoseconds.
const PERIOD_NS: u64 = 500_000_000;

/// So many free units are kept in any case, and one for each so many in use.
const FREE_MIN: usize = 256;
const FREE_SHARE: usize = 8;

/// When this period began, and the most units in use since then.
static BEGAN_NS: AtomicU64 = AtomicU64::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

/// So many free units are kept however long nobody wants them.
pub(super) fn kept_for_good(used: usize) -> usize {
    FREE_MIN.max(used / FREE_SHARE)
}

/// So many units are in use.
pub(super) fn note_used(used: usize, _held: &Held) {
    if MOST.load(Ordering::Relaxed) < used {
        MOST.store(used, Ordering::Relaxed);
    }
}

/// Tells whether a period is over. Needs no lock.
pub(super) fn is_due() -> bool {
    sys::monotonic_ns().saturating_sub(BEGAN_NS.load(Ordering::Relaxed)) >= PERIOD_NS
}

/// Ends a period, and tells how many free units may stay.
pub(super) fn end_period(used: usize, _held: &Held) -> usize {
    let most = MOST.swap(used, Ordering::Relaxed).max(used);
    BEGAN_NS.store(sys::monotonic_ns(), Ordering::Relaxed);
    kept_for_good(used).max(most - used)
}
