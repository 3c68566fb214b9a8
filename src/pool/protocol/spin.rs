//! Waiting awake for a moment before sleeping: a wake through the kernel costs as much as many small jobs.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The time that is tried at least: less than a wake through the kernel costs.
const TRIED_NS: u64 = 2_000;
/// After so many waits the most is tried again: both sides may sleep only because the other does.
const TRY_AGAIN: u64 = 64;

/// The time to wait awake at most, learnt from how that went. One for each kind of wait, shared by all who wait so.
#[derive(Debug)]
pub(crate) struct AdaptiveSpin {
    max_ns: u64,
    /// Grows to what would have been enough, halves with each time it was not.
    allowed_ns: AtomicU64,
    waits: AtomicU64,
}

impl AdaptiveSpin {
    /// Never longer than `max`; not at all on a machine with one processor.
    pub(crate) fn new(max: Duration) -> Self {
        // Asking reads a dozen files.
        static PROCESSORS: OnceLock<usize> = OnceLock::new();
        let processors = *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from));
        let max_ns = if processors > 1 { max.as_nanos() as u64 } else { 0 };
        Self { max_ns, allowed_ns: AtomicU64::new(max_ns), waits: AtomicU64::new(0) }
    }

    /// Waits awake until `ready` holds; false if it did not in time.
    pub(crate) fn until(&self, ready: impl Fn() -> bool) -> bool {
        if ready() {
            return true;
        }
        if self.max_ns == 0 {
            return false;
        }
        let again = self.waits.fetch_add(1, Ordering::Relaxed) % TRY_AGAIN == TRY_AGAIN - 1;
        let learnt = self.allowed_ns.load(Ordering::Relaxed);
        let allowed = if again { self.max_ns } else { learnt };
        let since = Instant::now();
        loop {
            for _ in 0..32 {
                if ready() {
                    let took = since.elapsed().as_nanos() as u64;
                    self.allowed_ns.store(learnt.max(took * 4).min(self.max_ns), Ordering::Relaxed);
                    return true;
                }
                std::hint::spin_loop();
            }
            if since.elapsed().as_nanos() as u64 > allowed {
                // The other side may wait for this very processor.
                self.allowed_ns.store((learnt / 2).max(TRIED_NS.min(self.max_ns)), Ordering::Relaxed);
                return false;
            }
        }
    }
}
