//! The heap's one lock. It neither allocates nor panics, and a fork takes it.

use crate::sys::futex;
use std::sync::atomic::{AtomicU32, Ordering};

const FREE: u32 = 0;
const HELD: u32 = 1;
/// Held, and somebody may be asleep.
const AWAITED: u32 = 2;

/// The number of looks that a thread takes before it sleeps: what is done under the lock takes less than a switch of threads.
const LOOKS: u32 = 100;

static WORD: AtomicU32 = AtomicU32::new(FREE);

/// The proof that this thread holds the lock. Given back when dropped.
pub(super) struct HeapGuard(());

/// Takes the lock.
pub(super) fn take() -> HeapGuard {
    raw_take();
    HeapGuard(())
}

impl Drop for HeapGuard {
    fn drop(&mut self) {
        raw_give();
    }
}

fn raw_take() {
    let try_once = || WORD.compare_exchange_weak(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok();
    for _ in 0..LOOKS {
        if try_once() {
            return;
        }
        std::hint::spin_loop();
    }
    while WORD.swap(AWAITED, Ordering::Acquire) != FREE {
        // The next look decides, whether the thread slept or not.
        let _woken = futex::wait(&WORD, AWAITED, None);
    }
}

fn raw_give() {
    if WORD.swap(FREE, Ordering::Release) == AWAITED {
        // A reference is a valid address, so this cannot fail.
        let _woken = futex::wake(&WORD, 1);
    }
}

/// Before a fork: nobody else is in the middle of a change then, so the child's copy is whole. *Async-signal-safe.*
pub(super) extern "C" fn before_fork() {
    raw_take();
}

/// After it, in parent and child: whichever thread this is, it stands for the one that took the lock. *Async-signal-safe.*
pub(super) extern "C" fn after_fork() {
    raw_give();
}
