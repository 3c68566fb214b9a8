//! `assert_copied_pages!` under the standard test harness, which runs these tests in threads, at the same time.

use cowbell::arena::Arena;
use cowbell::assert_copied_pages;
use cowbell::heap::Heap;
use std::cell::Cell;
use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

#[global_allocator]
static HEAP: Heap = Heap;

fn names() -> HashMap<u32, String> {
    (0..20_000).map(|n| (n, n.to_string())).collect()
}

/// The message of an assertion that fails.
fn failure(assertion: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(assertion)).expect_err("the assertion fails");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[test]
fn a_worker_that_reads_copies_nothing() {
    let names = names();
    assert_copied_pages!(<= 0, || assert!(names.values().all(|name| !name.is_empty())));
    // Data that was asserted on is not frozen here, and is this test's as before.
    let mut names = names;
    names.insert(1, String::from("one"));
    assert_copied_pages!(<= 0, || assert_eq!(names[&1], "one"),);
}

#[test]
fn writes_are_counted_to_the_page() {
    let cells: Vec<Cell<u64>> = (0..100_000).map(Cell::new).collect();
    assert_copied_pages!(<= 3, || [10_000, 50_000, 90_000].iter().for_each(|&at: &usize| cells[at].set(0)));
    let text = failure(
        || assert_copied_pages!(<= 2, || [10_000, 50_000, 90_000].iter().for_each(|&at: &usize| cells[at].set(0))),
    );
    assert!(text.contains("the worker copied 3 of the frozen pages, and at most 2 were to be"), "{text}");
    assert!(text.contains("a block of"), "the report is there: {text}");
}

#[test]
fn each_time_that_an_assertion_is_reached_counts() {
    let cells: Vec<Cell<u64>> = (0..100_000).map(Cell::new).collect();
    let at = [10_000, 50_000, 90_000];
    let copy =
        |pages: usize| assert_copied_pages!(<= 1, || at[..pages].iter().for_each(|&at: &usize| cells[at].set(0)));
    let fails = [1, 3, 0, 2].map(|pages| catch_unwind(AssertUnwindSafe(|| copy(pages))).is_err());
    assert_eq!(fails, [false, true, false, true]);
}

/// Appends a line to a file where the test is left.
struct Leaves<'a>(&'a Path);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        append(self.0, "left");
    }
}

fn append(to: &Path, line: &str) {
    let file = OpenOptions::new().append(true).create(true).open(to);
    file.and_then(|mut file| writeln!(file, "{line}")).expect("a line is written");
}

#[test]
fn a_process_apart_ends_at_its_assertion_and_cleans_up() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("assertion-lines");
    // The variable is there in the processes that this test is run again in.
    if std::env::var_os("COWBELL_TEST_APART").is_none() {
        let _there_was_none = std::fs::remove_file(&file);
    }
    let leaves = Leaves(&file);
    for at in ["first", "second"] {
        append(&file, at);
        assert_copied_pages!(<= 0, || ());
    }
    drop(leaves);
    let lines = std::fs::read_to_string(&file).expect("what was written");
    // This process and one of the first assertion; this process and one of the second, which passes the first; this process in the end.
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines, ["first", "first", "left", "second", "first", "second", "left", "left"]);
}

/// The pipe on which the worker of the test below says that it runs.
const PIPE: &str = "COWBELL_TEST_PIPE";

#[test]
#[ignore = "another test starts and kills it"]
fn its_worker_goes_on_for_a_minute() {
    let Some(pipe) = std::env::var_os(PIPE) else { return };
    assert_copied_pages!(<= 1000, || {
        let mut pipe = OpenOptions::new().write(true).open(&pipe).expect("the pipe");
        pipe.write_all(b"!").expect("its reader is there");
        std::thread::sleep(Duration::from_secs(60));
    });
}

#[test]
fn nobody_outlives_a_test_that_is_killed() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("assertion-pipe");
    let _there_was_none = std::fs::remove_file(&path);
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
    let program = std::env::current_exe().expect("this program");
    let mut test = std::process::Command::new(program)
        .args(["its_worker_goes_on_for_a_minute", "--exact", "--ignored"])
        .env(PIPE, &path)
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("started");
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // Opening it waits for the worker, and its end is read once the worker has ended.
        let mut pipe = std::fs::File::open(path).expect("the pipe");
        let mut byte = [0; 1];
        while let Ok(read) = pipe.read(&mut byte) {
            if sender.send(read).is_err() || read == 0 {
                break;
            }
        }
    });
    assert_eq!(receiver.recv_timeout(Duration::from_secs(30)), Ok(1), "the worker runs");
    test.kill().expect("killed");
    test.wait().expect("reaped");
    assert_eq!(receiver.recv_timeout(Duration::from_secs(30)), Ok(0), "the worker has ended");
}

#[test]
fn counting_references_copies() {
    let arcs: Vec<Arc<[u64; 6]>> = (0..10_000).map(|n| Arc::new([n; 6])).collect();
    assert_copied_pages!(<= 0, || assert_eq!(arcs.iter().map(|arc| arc[5]).sum::<u64>(), 49_995_000));
    let text = failure(|| assert_copied_pages!(<= 100, || arcs.iter().for_each(|arc| drop(Arc::clone(arc)))));
    assert!(text.contains("at most 100 were to be") && text.contains("changed  nothing"), "{text}");
}

#[test]
fn arenas_that_were_frozen_before_are_counted_too() {
    let arena = Arena::builder("cells").capacity(1 << 20).build().expect("an arena");
    let cells = arena.alloc_iter((0..1000).map(std::sync::atomic::AtomicU64::new)).expect("room");
    let cells = arena.freeze(&*cells).expect("frozen");
    let write = || cells[7].store(1, std::sync::atomic::Ordering::Relaxed);
    assert_copied_pages!(<= 1, write);
    let text = failure(|| assert_copied_pages!(<= 0, write));
    assert!(text.contains("the worker copied 1 of the frozen pages"), "{text}");
}

#[test]
fn a_worker_that_fails_fails_the_assertion() {
    let names = names();
    let text = failure(|| assert_copied_pages!(<= 1000, || assert_eq!(names[&1], "two", "of its own")));
    assert!(text.contains("the worker failed") && text.contains("of its own"), "{text}");
    let text = failure(|| assert_copied_pages!(<= 1000, || 7));
    assert!(text.contains("the worker failed"), "{text}");
}

#[test]
fn a_test_with_threads_of_its_own_is_refused() {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || receiver.recv().is_err());
    let text = failure(|| assert_copied_pages!(<= 0, || ()));
    drop(sender);
    assert!(text.contains("the test has threads of its own"), "{text}");
    assert!(thread.join().expect("it ends well"));
    // Those that have ended are not in the way.
    assert_copied_pages!(<= 0, || ());
}

#[test]
fn a_thread_that_is_no_test_is_told_so() {
    let failed = std::thread::spawn(|| failure(|| assert_copied_pages!(<= 0, || ()))).join().expect("it ends well");
    assert!(failed.contains("call this in the thread that the test began in"), "{failed}");
}
