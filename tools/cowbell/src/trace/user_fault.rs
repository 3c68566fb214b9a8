//! The moment at which a running thread may be interrupted.
//!
//! In a system call it may not: an interrupted `read(2)` of a pipe or of /dev/zero returns what it has, which is less than without
//! anybody who looks. No interface tells whether a thread that runs is in one. But one that has just taken a page fault of
//! its own is not.

use cowbell::sys::perf::record::RingRecord;
use cowbell::sys::perf::{Follow, Options, PerfEvent, Ring};
use cowbell::sys::pidfd;
use std::os::fd::AsFd;
use std::time::Duration;

/// A thread that takes no fault for so long is left alone.
const PATIENCE: Duration = Duration::from_micros(300);

/// Waits for a moment until a thread takes a page fault of its own; true if it has just taken one. To wait without running lets it run
/// that may be on the same processor.
pub fn comes(tid: i32) -> bool {
    // A user who may not be told of faults does not know when one comes.
    let Some(mut next) = next(tid) else { return false };
    pidfd::readable(next.as_fd(), Some(PATIENCE)) == Ok(true) && news(&mut next) == FaultState::Came
}

/// The next fault that a thread takes itself: this becomes readable then. `None` where that is not told.
pub fn next(tid: i32) -> Option<Ring> {
    let of_its_own = Options {
        cpu: None,
        follow: Follow::Thread,
        kernel: false,
        frames: false,
        registers: false,
        code: false,
        wakeup_bytes: 1,
    };
    let event = PerfEvent::open(tid, of_its_own).ok()?;
    Ring::new(event, cowbell::sys::page_size().bytes()).ok()
}

/// The state of a fault that is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultState {
    /// The thread has taken it.
    Came,
    /// The thread takes it some time, maybe.
    None,
    /// The thread has ended, which is told for ever.
    Ended,
}

/// The state of the fault that is waited for.
pub fn news(next: &mut Ring) -> FaultState {
    let mut has_come = false;
    next.drain(|record| has_come |= matches!(record, RingRecord::Fault(_)));
    if has_come {
        return FaultState::Came;
    }
    // With nothing left to read, readable means hung up.
    if pidfd::readable(next.as_fd(), Some(Duration::ZERO)) == Ok(true) { FaultState::Ended } else { FaultState::None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    /// How often of so many looks a thread is met that does this over and over.
    fn times_met(looks: u32, work: impl Fn() + Send + 'static) -> usize {
        let over = std::sync::Arc::new(AtomicBool::new(false));
        let (ends, (say, hear)) = (over.clone(), mpsc::channel());
        let worker = std::thread::spawn(move || {
            // The first time it touches more than later.
            work();
            say.send(cowbell::sys::process::tid()).expect("heard");
            while !ends.load(Ordering::Relaxed) {
                work();
            }
        });
        let tid = hear.recv().expect("its number");
        let met = (0..looks).filter(|_| comes(tid)).take(20).count();
        over.store(true, Ordering::Relaxed);
        worker.join().expect("it ends");
        met
    }

    #[test]
    fn a_thread_that_ended_without_a_fault_is_told_to_have() {
        let (go, wait) = mpsc::channel::<()>();
        let (say, hear) = mpsc::channel();
        let sleeper = std::thread::spawn(move || {
            say.send(cowbell::sys::process::tid()).expect("heard");
            let _gone = wait.recv();
        });
        let tid = hear.recv().expect("its number");
        let Some(mut ring) = next(tid) else { return eprintln!("skipped: perf events are refused here") };
        // The thread may have had faults on its way to sleep.
        while pidfd::readable(ring.as_fd(), Some(Duration::from_millis(20))) == Ok(true) {
            assert_eq!(news(&mut ring), FaultState::Came);
        }
        assert_eq!(news(&mut ring), FaultState::None);
        drop(go);
        sleeper.join().expect("it ends");
        // The last faults of a thread come before its end.
        let ended = (0..100).any(|_| {
            pidfd::readable(ring.as_fd(), Some(Duration::from_secs(5))) == Ok(true)
                && news(&mut ring) == FaultState::Ended
        });
        assert!(ended);
    }

    #[test]
    fn who_touches_new_memory_is_met_and_whom_the_kernel_serves_is_not() {
        let page = cowbell::sys::page_size().bytes();
        let who_touches = times_met(2000, move || {
            // The vector is so large that it is mapped anew each time: the C library keeps no more than half as much.
            let mut fresh = vec![0u8; 64 << 20];
            fresh.iter_mut().step_by(page).for_each(|byte| *byte = 1);
            assert_eq!(std::hint::black_box(&fresh).first(), Some(&1));
        });
        let buffer = std::sync::Mutex::new(vec![0u8; 1 << 20]);
        let whom_the_kernel_serves = times_met(200, move || {
            use std::io::Read;
            let mut buffer = buffer.lock().expect("ours alone");
            std::fs::File::open("/dev/zero").and_then(|mut zero| zero.read_exact(&mut buffer)).expect("zeroes");
        });
        // The code that opens the file has a fault now and then.
        assert!(who_touches == 20 && whom_the_kernel_serves < 10, "{who_touches}, {whom_the_kernel_serves}");
    }
}
