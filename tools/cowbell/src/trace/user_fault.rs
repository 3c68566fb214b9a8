//! The moment at which a running thread may be interrupted.
//!
//! In a system call it may not: an interrupted `read(2)` of a pipe or of /dev/zero returns what it has, which is less than without
//! anybody who looks. No interface tells whether a thread that runs is in one. But one that has just taken a page fault of
//! its own is not.

use cowbell::sys::monotonic_ns;
use cowbell::sys::perf::record::Record;
use cowbell::sys::perf::{Event, Follow, Options, Ring};

/// A thread that takes no fault for so long is left alone.
const PATIENCE_NS: u64 = 100_000;

/// The faults that a thread takes itself.
const OF_ITS_OWN: Options = Options {
    cpu: None,
    follow: Follow::Thread,
    kernel: false,
    frames: false,
    registers: false,
    code: false,
    wakeup_bytes: 1,
};

/// Waits for a moment until a thread takes a page fault of its own; true if it has just taken one.
pub fn comes(tid: i32) -> bool {
    // Who may not count them does not know when it comes.
    let Ok(event) = Event::open(tid, OF_ITS_OWN) else { return false };
    let count = || event.counts().map(|counts| counts.faults).ok();
    let (began, first) = (monotonic_ns(), count());
    while monotonic_ns() - began < PATIENCE_NS {
        if count() != first {
            return true;
        }
        std::hint::spin_loop();
    }
    false
}

/// The next fault that a thread takes itself: this becomes readable then. `None` where that is not told.
pub fn next(tid: i32) -> Option<Ring> {
    let event = Event::open(tid, OF_ITS_OWN).ok()?;
    Ring::new(event, cowbell::sys::page_size().bytes()).ok()
}

/// Tells whether it has come.
pub fn has_come(next: &mut Ring) -> bool {
    let mut has_come = false;
    next.drain(|record| has_come |= matches!(record, Record::Fault(_)));
    has_come
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    /// Looks at a thread that does this over and over.
    fn is_met(work: impl Fn() + Send + 'static) -> bool {
        let over = std::sync::Arc::new(AtomicBool::new(false));
        let (ends, (say, hear)) = (over.clone(), mpsc::channel());
        let worker = std::thread::spawn(move || {
            say.send(cowbell::sys::process::tid()).expect("heard");
            while !ends.load(Ordering::Relaxed) {
                work();
            }
        });
        let tid = hear.recv().expect("its number");
        // On a busy machine it does not run all the time.
        let met = (0..2000).any(|_| comes(tid));
        over.store(true, Ordering::Relaxed);
        worker.join().expect("it ends");
        met
    }

    #[test]
    fn who_touches_new_memory_is_met_and_whom_the_kernel_serves_is_not() {
        let page = cowbell::sys::page_size().bytes();
        assert!(is_met(move || {
            let mut fresh = vec![0u8; 1024 * page];
            fresh.iter_mut().step_by(page).for_each(|byte| *byte = 1);
            assert_eq!(std::hint::black_box(&fresh).first(), Some(&1));
        }));
        let buffer = std::sync::Mutex::new(vec![0u8; 1 << 20]);
        assert!(!is_met(move || {
            use std::io::Read;
            let mut buffer = buffer.lock().expect("ours alone");
            std::fs::File::open("/dev/zero").and_then(|mut zero| zero.read_exact(&mut buffer)).expect("zeroes");
        }));
    }
}
