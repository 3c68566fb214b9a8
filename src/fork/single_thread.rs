//! The check that the calling thread is the only one of its process.
//!
//! The list of threads cannot tell: while it is read, a thread that is not listed yet may be started by one that was
//! already passed over as it ended. The kernel's count is one number. A thread is in it before it first runs and until the kernel has
//! taken it away, and whoever starts a thread is counted itself meanwhile. So a 1 that is read by a thread of the
//! process means that there is no other, and nobody who could start one.

use crate::error::{Error, ErrorKind, Result, Thread};
use crate::sys::{process, procfs};
use std::time::{Duration, Instant};

/// The time that [`super::spawn`] waits for other threads to end, unless it is told otherwise. A scope of threads, and a
/// thread pool that is dropped, are over a moment before their threads are; on a busy machine that moment is long.
pub(crate) const PATIENCE: Duration = Duration::from_millis(100);

/// The time that is given to threads that have ended and that the kernel has not taken away yet.
const EXITING_MAX: Duration = Duration::from_secs(1);

/// The number of looks that are made without sleeping between them.
const LOOKS_AWAKE: u32 = 50;

/// The count is 1 now. *Async-signal-safe.*
pub(crate) fn is_alone() -> bool {
    procfs::signal_safe::thread_count() == Ok(1)
}

/// Waits until the calling thread is the only one: as long as `patience` allows, and up to a second longer while all others
/// are on their way out of the kernel.
///
/// # Errors
/// [`Error::threads`] when there are others then, or a main thread that has left: the kernel counts that one for as long as the
/// process lives, so it is not waited for. ENOENT when `/proc` is not mounted.
pub(crate) fn wait_until_alone(patience: Duration) -> Result<()> {
    wait_for_others(None, patience)
}

/// The same, until the main thread and the calling one, which is another, are the only ones.
///
/// # Errors
/// Those of [`wait_until_alone`].
pub(crate) fn wait_until_alone_beside_main(patience: Duration) -> Result<()> {
    wait_for_others(Some(process::pid()), patience)
}

/// `spared`: a thread that is not waited for.
fn wait_for_others(spared: Option<i32>, patience: Duration) -> Result<()> {
    let is_done = || {
        let count = procfs::signal_safe::thread_count().map_err(|e| Error::os("read(/proc/self/stat)", e))?;
        Ok::<bool, Error>(count as usize == 1 + usize::from(spared.is_some()))
    };
    if is_done()? {
        return Ok(());
    }
    let begun = Instant::now();
    let mut looks = 0;
    loop {
        let threads = procfs::own_threads()?;
        if is_done()? {
            return Ok(());
        }
        let me = process::tid();
        let main_left = threads.iter().any(|thread| thread.tid == process::pid() && thread.tid != me && thread.exiting);
        let all_exiting = threads.iter().all(|thread| thread.tid == me || Some(thread.tid) == spared || thread.exiting);
        let time_max = if all_exiting { patience.max(EXITING_MAX) } else { patience };
        if main_left || begun.elapsed() >= time_max {
            let hint = hint(&threads, main_left, all_exiting);
            return Err(Error::new(ErrorKind::Threads(threads)).with_hint(hint));
        }
        looks += 1;
        // There is no event for a thread's last step: its id is cleared, and its descriptor readable, before that.
        if looks < LOOKS_AWAKE {
            process::yield_now();
        } else {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

fn hint(threads: &[Thread], main_left: bool, all_exiting: bool) -> &'static str {
    if main_left {
        "the main thread has left by pthread_exit, and the kernel counts it for as long as the process lives: let it wait instead of leaving"
    } else if threads.iter().any(|thread| thread.name.starts_with("iou-")) {
        "iou-* are the kernel's own threads for an io_uring of this process: close it first, or wait longer with wait_for_threads"
    } else if all_exiting {
        "they have ended, and the kernel has not taken them away yet: wait longer with wait_for_threads"
    } else {
        "fork before starting threads, wait for those that are ending with wait_for_threads, or use spawn_unchecked"
    }
}
