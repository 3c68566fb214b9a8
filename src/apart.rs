//! Work that needs a process of one thread, for tests that run among the threads of a test harness.
//!
//! ```text
//!  test process             starts this program again for the one test ──┐      (other tests run meanwhile, in other threads)
//!  a process for the test   <────────────────────────────────────────────┘      two threads: the test's, and the harness', which sleeps
//!     │ fork(), while the harness sleeps
//!  a process of one thread  does the work
//! ```
//! A fork beside a thread that runs takes no picture of one moment. So the fork is made while the harness' only thread sleeps, and is thrown away if the kernel
//! has counted that this thread ran meanwhile.
#![expect(unsafe_code, reason = "a fork of a process of two threads, one of which sleeps")]

use crate::error::Result;
use crate::fork::{self, IntoExitCode};
use crate::sys::clone::{self, ForkedPlainly};
use crate::sys::procfs::status::Status;
use crate::sys::{descriptor, launch, memfd, pidfd, pipe, prctl, process, procfs};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Runs `body` where the process has one thread, which a pool and [`fork::spawn`](crate::fork::spawn) want and a test harness has not. A test, behind its `#[test]`:
///
/// ```
/// use cowbell::fork::{self, Ended, ForkOptions};
///
/// fn a_worker_finds_it() {
///     cowbell::single_threaded(|| -> cowbell::Result<()> {
///         let exit = fork::spawn(&ForkOptions::new(), |_| assert_eq!(6 * 7, 42))?.wait()?;
///         assert_eq!(exit.ended, Ended::Exited(0));
///         Ok(())
///     });
/// }
/// # fn main() { a_worker_finds_it() }
/// ```
///
/// - **Where the process has other threads**, as under plain `cargo test` and `cargo nextest`, the test's program is started again for this one test (`NAME --exact`), which is known by the
///   name of its thread. There the test runs again up to here; a process of one thread is forked, which runs the closure; and the test is left as by a panic. So the test's lines before this one run
///   once more for each time that it comes here, and what the closure writes to memory is seen by nobody else. It is best called once, around the whole test.
/// - **Where there is one thread** (`harness = false`, a documentation test, within another `single_threaded`) the closure runs in place.
///
/// The output of the closure is printed when it has ended. The processes that this one was started again as end with it, also where it is killed.
///
/// # Panics
/// If the closure panics, with its message; if it returns an error or an exit code other than 0; if it ends its process. Also where the test has threads of its own, or cannot be started again.
#[track_caller]
pub fn single_threaded<R: IntoExitCode>(body: impl FnOnce() -> R) {
    let work = || match body().code() {
        0 => Ok(()),
        code => Err(format!("it failed with exit code {code}")),
    };
    let done = run(Location::caller(), |sleeper| if is_apart() { in_a_fork(sleeper, work) } else { work() });
    if let Err(text) = done {
        panic!("{text}");
    }
}

/// In the process that was started for one test: the number of the process that started it, and the place that it was started for.
const APART: &str = "COWBELL_TEST_APART";

/// In a process that was started for one test, the place that it was started for.
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
    /// How often each place was reached in this thread, which is one test's.
    static REACHED: RefCell<HashMap<&'static Location<'static>, u32>> = RefCell::default();
}

/// A place in a test, and by how often its test has come there.
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

/// Lines by which a process that was started for a test tells of its work; the place follows. What was printed stands behind the first, the failure's text between the last two.
const BEGINS: &str = "cowbell: work begins that was asked for at";
const DONE: &str = "cowbell: work is done that was asked for at";
const FAILED: &str = "cowbell: work failed that was asked for at";
const ENDS: &str = "cowbell: this was said of the work at";

/// Does a test's work: by `here` in a process of one thread, or of two of which the one it is told sleeps; else in a process that is started for the test,
/// which comes here again.
pub(crate) fn run(
    place: &'static Location<'static>,
    here: impl FnOnce(Option<i32>) -> std::result::Result<(), String>,
) -> std::result::Result<(), String> {
    let name = name_of(place);
    let is_asked = asked().is_some_and(|asked| asked == name);
    if is_asked {
        eprintln!("{BEGINS} {name}");
    }
    let done = match where_it_runs() {
        Ok(Place::Here(sleeper)) => here(sleeper),
        Ok(Place::Apart(test)) => apart(&test, &name),
        Err(e) => Err(e.to_string()),
    };
    if is_asked {
        match done {
            Ok(()) => eprintln!("{DONE} {name}"),
            Err(text) => eprintln!("{FAILED} {name}\n{text}\n{ENDS} {name}"),
        }
        // The test has done what it was started for. Unwinding has it clean up, and prints nothing.
        resume_unwind(Box::new(DONE));
    }
    done
}

/// Where work is done.
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
                alone.map_err(|e| e.with_hint("call this in the thread that the test began in"))
            }
        };
    }
    // Threads of the test's own may be on their way out.
    let alone = if process::tid() == process::pid() {
        fork::wait_until_alone(THREADS_END_MAX).map(|()| Place::Here(None))
    } else {
        fork::wait_until_alone_beside_main(THREADS_END_MAX).map(|()| Place::Here(Some(process::pid())))
    };
    alone.map_err(|e| e.with_hint("the test has threads of its own: end them before this line"))
}

/// How often a thread has been switched to and from; `None` unless it sleeps.
fn sleeping_since(tid: i32) -> Option<[i32; 2]> {
    let status = Status::of_thread(process::pid(), tid).ok()?;
    let sleeps = status.field("State")?.starts_with('S');
    let switches = [status.number("voluntary_ctxt_switches")?, status.number("nonvoluntary_ctxt_switches")?];
    sleeps.then_some(switches)
}

/// Runs `work` in a process that is forked from this one, and has one thread.
pub(crate) fn in_a_fork(
    sleeper: Option<i32>,
    work: impl FnOnce() -> std::result::Result<(), String>,
) -> std::result::Result<(), String> {
    let failed = |what: &str, e: &dyn std::fmt::Display| format!("{what}: {e}");
    // A file and no pipe: what the worker leaves running may keep a pipe open.
    let mut words = File::from(memfd::create("cowbell:words").map_err(|e| e.to_string())?);
    let mut work = Some(work);
    let begun = Instant::now();
    let (child, go) = loop {
        // The list of threads may lack one that was just started; the kernel's count does not.
        let is_counted = procfs::signal_safe::thread_count() == Ok(if sleeper.is_some() { 2 } else { 1 });
        let before = sleeper.map(sleeping_since);
        let (go_ahead, go) = pipe::pair().map_err(|e| failed("pipe2", &e))?;
        let _unflushed = std::io::stdout().flush();
        // SAFETY: all other threads there are sleep; should one have run meanwhile, the child ends below, where it has done nothing but read.
        let child = match unsafe { clone::fork_plainly() }.map_err(|e| failed("fork", &e))? {
            ForkedPlainly::Child => {
                descriptor::close(go);
                // A parent that ended before this closed its end of the pipe.
                if prctl::die_with_parent().is_err() || !pipe::take_byte(&go_ahead) {
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
    pipe::give_byte(&go);
    let ended = pidfd::reap_by_id(child);
    let mut text = String::new();
    words
        .rewind()
        .and_then(|()| words.read_to_string(&mut text))
        .map_err(|e| failed("read(what the forked process found)", &e))?;
    match text.strip_prefix(FOUND) {
        Some("") => Ok(()),
        Some(text) => Err(text.to_owned()),
        None => Err(format!("the process that was forked for it ended before it was done: {ended}")),
    }
}

/// The forked process's words begin with it: a file without it was never written.
const FOUND: &str = "found:";

/// In the forked process: says what was found and ends.
fn end_with(found: Option<std::thread::Result<std::result::Result<(), String>>>, mut into: &File) -> ! {
    let text = match found {
        Some(Ok(Ok(()))) => String::new(),
        Some(Ok(Err(text))) => text,
        Some(Err(panic)) => format!("it panicked: {}", fork::panics::message(&*panic)),
        None => "the work was done already".to_owned(),
    };
    // Without a word, the reader knows that something failed.
    let _written = into.write_all(format!("{FOUND}{text}").as_bytes());
    let _unflushed = std::io::stdout().flush();
    process::exit(0)
}

/// Starts this program again, for one place of one test.
fn apart(test: &str, name: &str) -> std::result::Result<(), String> {
    let program = std::env::current_exe().map_err(|e| format!("this program's path: {e}"))?;
    let failed = |e: &dyn std::fmt::Display| format!("{} cannot be started again: {e}", program.display());
    // A file and no pipe: what the test leaves running may keep a pipe open.
    let said = memfd::create_to_append("cowbell:said").map_err(|e| failed(&e))?;
    let to = || said.try_clone().map(Stdio::from);
    let mut command = Command::new(&program);
    command.args([test, "--exact", "--nocapture", "--include-ignored", "--test-threads=1"]);
    command.env(APART, format!("{} {name}", process::pid())).stdin(Stdio::null());
    command.stdout(to().map_err(|e| failed(&e))?).stderr(to().map_err(|e| failed(&e))?);
    launch::end_with_this_thread(&mut command);
    let status = command.status().map_err(|e| failed(&e))?;
    let (mut said, mut bytes) = (File::from(said), Vec::new());
    said.rewind().and_then(|()| said.read_to_end(&mut bytes)).map_err(|e| format!("read(what it said): {e}"))?;
    let said = String::from_utf8_lossy(&bytes);
    let line = |mark: &str| format!("{mark} {name}\n");
    let Some((_, work)) = said.split_once(&line(BEGINS)) else {
        return Err(format!("in a process of its own the test `{test}` did not come here ({status})\n{said}"));
    };
    if let Some((printed, _)) = work.split_once(&line(DONE)) {
        // The harness keeps it for the one who asks.
        print!("{printed}");
        return Ok(());
    }
    let failure =
        work.split_once(&line(FAILED)).and_then(|(printed, text)| Some((printed, text.split_once(&line(ENDS))?.0)));
    match failure {
        Some((printed, text)) => Err(format!("in a process of its own: {text}{printed}")),
        None => Err(format!("in a process of its own the test `{test}` ended early ({status})\n{said}")),
    }
}
