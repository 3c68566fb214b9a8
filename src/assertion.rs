//! [`assert_copied_pages!`](crate::assert_copied_pages): a limit on what a worker copies, for tests that run among the threads of a test harness.
//!
//! ```text
//!  test process             starts this program again for the one test ──┐      (other tests run meanwhile, in other threads)
//!  a process for the test   <────────────────────────────────────────────┘      two threads: the test's, and the harness', which sleeps
//!     │ fork(), while the harness sleeps
//!  a process of one thread  freezes the heap, spawns the worker, reads its report
//!     │ fork::spawn
//!  the worker               runs the closure
//! ```
//! A fork beside a thread that runs takes no picture of one moment. So the fork is made while the harness' only thread sleeps, and is thrown away if the kernel
//! has counted that this thread ran meanwhile.
#![expect(unsafe_code, reason = "a fork of a process of two threads, one of which sleeps")]

use crate::error::{Error, Result};
use crate::fork::{self, ForkOptions, IntoExitCode};
use crate::heap::Heap;
use crate::report::Census;
use crate::sys::clone::{self, ForkedPlainly};
use crate::sys::procfs::status::Status;
use crate::sys::{memfd, pidfd, process};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::process::Command;
use std::time::{Duration, Instant};

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

/// In the process that was started for one test: the number of the process that started it, and the assertion that it was started for.
const APART: &str = "COWBELL_ASSERT_COPIED_PAGES";

/// In a process that was started for one test, the assertion that it was started for.
fn asked() -> Option<String> {
    let value = std::env::var(APART).ok()?;
    let (parent, asked) = value.split_once(' ')?;
    // The processes that a test starts inherit the variable, and are another's children.
    (parent == process::parent_pid().to_string()).then(|| asked.to_owned())
}

fn is_apart() -> bool {
    asked().is_some()
}

thread_local! {
    /// How often each assertion was reached in this thread, which is one test's.
    static REACHED: RefCell<HashMap<&'static Location<'static>, u32>> = RefCell::default();
}

/// An assertion by its place, and by how often its test has come there.
fn name_of(place: &'static Location<'static>) -> String {
    let count = REACHED.with_borrow_mut(|reached| {
        let count = reached.entry(place).or_default();
        *count += 1;
        *count
    });
    format!("{place} #{count}")
}

/// The time that threads which are ending are given.
const THREADS_END_MAX: Duration = Duration::from_secs(1);

/// The time that the harness is given to fall asleep.
const HARNESS_SLEEPS_MAX: Duration = Duration::from_secs(10);

/// The text by which a process that was started for a test says that an assertion held; which one follows.
const HELD: &str = "cowbell: at most so many pages were copied, as asserted at";

#[doc(hidden)]
#[track_caller]
pub fn __assert_copied_pages<R: IntoExitCode>(max: u64, body: impl FnOnce() -> R) {
    let name = name_of(Location::caller());
    let judged = match where_it_runs() {
        Ok(Place::Here(sleeper)) => in_a_fork(sleeper, || judge(max, body)),
        Ok(Place::Apart(test)) => apart(&test, &name),
        Err(e) => Err(e.to_string()),
    };
    match judged {
        Ok(()) => {
            if let Some(asked) = asked() {
                eprintln!("{HELD} {name}");
                if asked == name {
                    // The test has done what it was started for. Unwinding has it clean up, and prints nothing.
                    resume_unwind(Box::new(HELD));
                }
            }
        }
        Err(text) => panic!("{text}"),
    }
}

/// Where an assertion is judged.
enum Place {
    /// In a fork of this process, whose only other thread this is, if it has one.
    Here(Option<i32>),
    /// In another process, started for the test of this name.
    Apart(String),
}

fn where_it_runs() -> Result<Place> {
    if !is_apart() {
        // The harness names each test's thread by the test.
        let test = std::thread::current().name().filter(|&name| name != "main").map(str::to_owned);
        return match test.filter(|_| !fork::is_alone()) {
            Some(test) => Ok(Place::Apart(test)),
            None => {
                let alone = fork::wait_until_alone(fork::PATIENCE).map(|()| Place::Here(None));
                alone.map_err(|e| e.with_hint("assert in the thread that the test began in"))
            }
        };
    }
    // The helper ends with whoever waits for it. One that is gone by now is not its parent any more, and was not asked for.
    process::die_with_parent().map_err(|e| Error::os("prctl(PR_SET_PDEATHSIG)", e))?;
    // Threads of the test's own may be on their way out.
    let alone = if process::tid() == process::pid() {
        fork::wait_until_alone(THREADS_END_MAX).map(|()| Place::Here(None))
    } else {
        fork::wait_until_alone_beside_main(THREADS_END_MAX).map(|()| Place::Here(Some(process::pid())))
    };
    alone.map_err(|e| e.with_hint("the test has threads of its own: end them before the assertion"))
}

/// How often a thread has been switched to and from; `None` unless it sleeps.
fn sleeping_since(tid: i32) -> Option<[i32; 2]> {
    let status = Status::of_thread(process::pid(), tid).ok()?;
    let sleeps = status.field("State")?.starts_with('S');
    let switches = [status.number("voluntary_ctxt_switches")?, status.number("nonvoluntary_ctxt_switches")?];
    sleeps.then_some(switches)
}

/// Runs `work` in a process that is forked from this one, and has one thread.
fn in_a_fork(
    sleeper: Option<i32>,
    work: impl FnOnce() -> std::result::Result<(), String>,
) -> std::result::Result<(), String> {
    let failed = |what: &str, e: &dyn std::fmt::Display| format!("{what}: {e}");
    // A file and no pipe: what the worker leaves running may keep a pipe open.
    let mut words = File::from(memfd::create("cowbell:assertion").map_err(|e| e.to_string())?);
    let mut work = Some(work);
    let begun = Instant::now();
    let (child, go) = loop {
        // The list of threads may lack one that was just started; the kernel's count does not.
        let is_counted = process::thread_count() == Ok(if sleeper.is_some() { 2 } else { 1 });
        let before = sleeper.map(sleeping_since);
        let (go_ahead, go) = process::pipe().map_err(|e| failed("pipe2", &e))?;
        let _unflushed = std::io::stdout().flush();
        // SAFETY: all other threads there are sleep; should one have run meanwhile, the child ends below, where it has done nothing but read.
        let child = match unsafe { clone::fork_plainly() }.map_err(|e| failed("fork", &e))? {
            ForkedPlainly::Child => {
                process::close(go);
                // A parent that ended before this closed its end of the pipe.
                if process::die_with_parent().is_err() || !process::take_byte(&go_ahead) {
                    process::exit(1);
                }
                end_with(work.take().map(|work| catch_unwind(AssertUnwindSafe(work))), &words);
            }
            ForkedPlainly::ParentOf(pid) => pid,
        };
        let slept = before == sleeper.map(sleeping_since) && before.flatten().is_some();
        let is_one_moment = is_counted && (sleeper.is_none() || slept);
        if is_one_moment {
            break (child, go);
        }
        // The child reads the end of the pipe, and ends.
        drop(go);
        pidfd::reap_by_id(child);
        if begun.elapsed() > HARNESS_SLEEPS_MAX {
            return Err("there is another thread, and it does not sleep while the test runs".to_owned());
        }
    };
    process::give_byte(&go);
    pidfd::reap_by_id(child);
    let mut text = String::new();
    words
        .rewind()
        .and_then(|()| words.read_to_string(&mut text))
        .map_err(|e| failed("read(what the forked process found)", &e))?;
    match text.strip_prefix(FOUND) {
        Some("") => Ok(()),
        Some(text) => Err(text.to_owned()),
        None => Err("the process that was forked for the assertion ended without a word".to_owned()),
    }
}

/// The forked process's words begin with it: a file without it was never written.
const FOUND: &str = "found:";

/// In the forked process: says what was found and ends.
fn end_with(found: Option<std::thread::Result<std::result::Result<(), String>>>, mut into: &File) -> ! {
    let text = match found {
        Some(Ok(Ok(()))) => String::new(),
        Some(Ok(Err(text))) => text,
        Some(Err(_)) | None => "the assertion panicked".to_owned(),
    };
    // Without a word, the reader knows that something failed.
    let _written = into.write_all(format!("{FOUND}{text}").as_bytes());
    let _unflushed = std::io::stdout().flush();
    process::exit(0)
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

/// Starts this program again, for one assertion of one test.
fn apart(test: &str, name: &str) -> std::result::Result<(), String> {
    let program = std::env::current_exe().map_err(|e| format!("this program's path: {e}"))?;
    let arguments = [test, "--exact", "--nocapture", "--include-ignored", "--test-threads=1"];
    let output = Command::new(&program).args(arguments).env(APART, format!("{} {name}", process::pid())).output();
    let output = output.map_err(|e| format!("{} cannot be started again: {e}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let held = format!("{HELD} {name}");
    if said.lines().any(|line| line == held) {
        return Ok(());
    }
    Err(format!(
        "in a process of its own the test `{test}` failed, or did not come here ({})\n{}{said}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    ))
}
