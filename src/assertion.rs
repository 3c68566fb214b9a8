//! [`assert_copied_pages!`](crate::assert_copied_pages): a limit on what a worker copies, for tests that run among the threads of a test harness.
//!
//! In a process of one thread, which it is forked for (`apart`), the assertion freezes the heap, spawns the worker and reads its report.

use crate::apart;
use crate::fork::{self, ForkOptions, IntoExitCode};
use crate::heap::Heap;
use crate::report::Census;
use std::panic::Location;

/// Asserts that a forked worker copies at most so many pages of what is frozen: `assert_copied_pages!(<= 3, || …)`. For tests, under plain `cargo test`
/// as well, although that runs tests in threads and [`fork::spawn`](crate::fork::spawn) wants a process that has one.
///
/// - **Where the process has other threads** the test's program is started again for this one test (`NAME --exact`), which is known by the name of its
///   thread, as the standard test harness and `cargo nextest` give it. There the test runs again up to here, and is left as by a panic. So its lines before
///   this one run once more, for each time that an assertion is reached: the n-th time at one line is judged by the n-th time there.
/// - There, or at once where the process has one thread (`harness = false`, a documentation test), **a process of its own is forked**. It
///   [freezes the heap](crate::heap::Heap::freeze) if that is the program's allocator, and spawns a worker that runs the closure. Arenas that were frozen before are frozen
///   there, too. What is written there is seen by nobody else: after this line nothing is frozen that was not before.
/// - The worker's last census decides. Panics, with the worker's report, where more pages were copied; also where the closure fails, where nothing is frozen, where
///   the census was lost, and where the test has threads of its own or cannot be started again.
///
/// ```
/// use cowbell::heap::Heap;
/// use std::collections::HashMap;
///
/// #[global_allocator]
/// static HEAP: Heap = Heap;
///
/// # fn main() {
/// let names: HashMap<u32, String> = (0..10_000).map(|n| (n, n.to_string())).collect();
/// cowbell::assert_copied_pages!(<= 0, || assert!(names.values().all(|name| !name.is_empty())));
/// # }
/// ```
#[macro_export]
macro_rules! assert_copied_pages {
    (<= $max:expr, $body:expr $(,)?) => {
        $crate::__assert_copied_pages($max, $body)
    };
}

#[doc(hidden)]
#[track_caller]
pub fn __assert_copied_pages<R: IntoExitCode>(max: u64, body: impl FnOnce() -> R) {
    let judged = apart::run(Location::caller(), |sleeper| apart::in_a_fork(sleeper, || judge(max, body)));
    if let Err(text) = judged {
        panic!("{text}");
    }
}

/// In a process of one thread: freezes, lets the worker work, and reads its report.
fn judge<R: IntoExitCode>(max: u64, body: impl FnOnce() -> R) -> std::result::Result<(), String> {
    let _frozen = if Heap::is_in_use() { Some(Heap::freeze().map_err(|e| e.to_string())?) } else { None };
    let mut worker = fork::spawn(&ForkOptions::new(), |_| body()).map_err(|e| e.to_string())?;
    let exit = worker.wait().map_err(|e| e.to_string())?;
    let report = exit.report;
    if report.arenas.is_empty() {
        return Err("nothing is frozen, so no copied page can be counted: use an arena, or cowbell::heap::Heap as the global allocator".to_owned());
    }
    if !matches!(report.census, Census::Last | Census::AtExec) {
        return Err(format!("what was copied is not known\n{report}"));
    }
    if exit.ended != fork::Ended::Exited(0) {
        let panic = exit.panic.map_or(String::new(), |panic| format!(": {}", panic.0));
        return Err(format!("the worker failed{panic}\n{report}"));
    }
    let copied = report.copied_pages();
    if copied.0 > max {
        return Err(format!("the worker copied {copied} of the frozen pages, and at most {max} were to be\n{report}"));
    }
    Ok(())
}
