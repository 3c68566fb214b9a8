//! Python: the case that the tool was made for, and what a user of `multiprocessing` starts.

use crate::exact::may_trace;
use crate::lab::{Capture, Interval, Outcome, Scratch, cowbell, run, skip};
use crate::record::{Record, WatchReason, WriteClass};
use std::collections::BTreeMap;

/// Debian's, which the setup gives numpy and the library's own tests.
pub const PYTHON: &str = "/usr/bin/python3";

const READ_LIST: &str = include_str!("../targets/read_list.py");

/// Pages of one class in an interval, by its end.
pub fn pages_of(interval: &Interval, class: WriteClass) -> u64 {
    let end = interval.end.as_ref().expect("the interval is closed");
    end.pages.iter().filter(|run| run.class == class).map(|run| run.pages).sum()
}

/// Copies, also where they cannot be told from reuse.
fn copies(interval: &Interval) -> u64 {
    pages_of(interval, WriteClass::Copy) + pages_of(interval, WriteClass::CopyOrReuse)
}

/// The intervals of children.
pub fn children(capture: &Capture) -> Vec<&Interval> {
    capture.intervals.values().filter(|interval| interval.begin.role == WatchReason::Child).collect()
}

/// Runs read_list.py under the tool; how that ended, and the capture.
fn read_list(scratch: &Scratch, variant: &str, options: &[&str]) -> (Outcome, Capture) {
    let script = scratch.file("read_list.py", READ_LIST);
    let capture = scratch.path(&format!("capture-{variant}"));
    let file = capture.to_str().expect("text");
    let script = script.to_str().expect("text");
    let options = [options, &["--who", "child", "--capture", file]].concat();
    let outcome = run(scratch, &mut cowbell(&options, [PYTHON, script, variant]));
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    (outcome, Capture::read(&capture))
}

/// The number of events of each Python line, as far as stacks were sampled.
fn lines(capture: &Capture, interval: &Interval) -> BTreeMap<String, usize> {
    let mut of_stack = BTreeMap::new();
    for record in &capture.records {
        if let Record::Stack(stack) = record {
            of_stack.insert(stack.stack, stack);
        }
    }
    let mut lines = BTreeMap::new();
    for stack in interval.events.iter().filter_map(|event| event.stack) {
        let frame = of_stack.get(&stack).expect("a stack comes before the event that has it").frames.first();
        let line = frame.map_or_else(|| "none".to_owned(), |f| format!("{}:{}", f.file, f.line));
        *lines.entry(line).or_default() += 1;
    }
    lines
}

#[test]
fn reading_a_list_is_reported_as_reference_counting_at_the_line_of_its_loop() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let (outcome, capture) = read_list(&scratch, "list", &["--mode", "trace", "--stacks", "1/20"]);
    let [interval] = children(&capture)[..] else { panic!("one child, one interval") };
    // 300,000 strings of 54 bytes or so, and the list: each string is counted up and down once.
    let pages = 300_000 * 54 / capture.page_size();
    assert!((pages * 9 / 10..pages * 13 / 10).contains(&copies(interval)), "{} pages copied", copies(interval));

    let nth = 1 + READ_LIST.lines().position(|line| line.contains("for x in data")).expect("the loop");
    let due = format!("read_list.py:{nth}");
    let lines = lines(&capture, interval);
    let (top, times) = lines.iter().max_by_key(|(_, times)| **times).expect("stacks were sampled");
    let all: usize = lines.values().sum();
    assert!(top.ends_with(&due) && times * 10 > all * 7, "the loop is line {nth}: {lines:?}");

    assert!(outcome.err.contains(&due), "the report names {due}: {}", outcome.err);
    let text = outcome.err.to_lowercase();
    assert!(text.contains("python counts references"), "{text}");
    assert!(text.contains("numpy") || text.contains("off-heap"), "the remedy is told: {text}");
}

#[test]
fn counting_finds_the_same_pages_of_a_list_that_is_read() {
    let scratch = Scratch::new();
    let (outcome, capture) = read_list(&scratch, "list", &["--mode", "count"]);
    let [interval] = children(&capture)[..] else { panic!("one child, one interval") };
    let pages = 300_000 * 54 / capture.page_size();
    assert!((pages * 9 / 10..pages * 13 / 10).contains(&copies(interval)), "{} pages copied", copies(interval));
    assert!(outcome.err.contains("copied"), "{}", outcome.err);
}

#[test]
fn a_numpy_array_in_place_of_the_list_is_not_copied() {
    let scratch = Scratch::new();
    let copied = |variant| {
        let (_, capture) = read_list(&scratch, variant, &["--mode", "count"]);
        copies(children(&capture)[0])
    };
    let (list, array) = (copied("list"), copied("numpy"));
    assert!(array * 10 < list, "{array} pages with the array, {list} with the list");
}

#[test]
fn freezing_spares_the_collector_the_pages() {
    let scratch = Scratch::new();
    let copied = |variant| {
        let (_, capture) = read_list(&scratch, variant, &["--mode", "count"]);
        copies(children(&capture)[0])
    };
    let (collected, frozen) = (copied("collect"), copied("collect-frozen"));
    assert!(frozen * 10 < collected, "{frozen} pages frozen, {collected} not");
}

#[test]
fn where_garbage_is_collected_the_collector_is_named() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let (outcome, _) = read_list(&scratch, "collect", &["--mode", "trace", "--stacks", "1/20"]);
    let text = outcome.err.to_lowercase();
    assert!(text.contains("garbage") && text.contains("gc.freeze"), "{text}");
}

#[test]
fn workers_of_pools_have_an_interval_each_however_they_were_made() {
    let scratch = Scratch::new();
    let script = scratch.file("pools.py", include_str!("../targets/pools.py"));
    for how in ["fork", "forkserver", "futures"] {
        let capture = scratch.path(how);
        let options = ["--mode", "count", "--capture", capture.to_str().expect("text")];
        let outcome = run(&scratch, &mut cowbell(&options, [PYTHON, script.to_str().expect("text"), how]));
        assert_eq!(outcome.code, Some(0), "{how}: {}", outcome.err);
        let out = String::from_utf8(outcome.out).expect("text");
        let numbers: Vec<i32> = out.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        let [sum, workers @ ..] = &numbers[..] else { panic!("{how}: {out}") };
        assert_eq!((*sum, workers.len()), (188_890, 3), "{how}");
        let capture = Capture::read(&capture);
        for &worker in workers {
            let [interval] = capture.of(worker).filter(|a| a.begin.role == WatchReason::Child).collect::<Vec<_>>()[..]
            else {
                panic!("{how}: worker {worker} has not one interval of a child")
            };
            // A third of 40,000 strings, spread over all of their pages. The forkserver imports the data anew.
            let inherited = 40_000 * 54 / capture.page_size();
            let least = if how == "forkserver" { 50 } else { inherited * 8 / 10 };
            assert!(copies(interval) >= least, "{how}: worker {worker} copied {}", copies(interval));
        }
    }
}

/// The outcome of each of CPython's own tests, by name.
fn outcomes(log: &str) -> BTreeMap<String, String> {
    let mut outcomes = BTreeMap::new();
    let mut name = String::new();
    for line in log.lines() {
        if line.contains(" (test.") || line.contains(" (__main__.") {
            name = line.split(" ...").next().unwrap_or_default().to_owned();
        }
        let said = line.rsplit(" ... ").next().unwrap_or_default();
        let what = said.split_whitespace().next().unwrap_or_default();
        if ["ok", "FAIL", "ERROR", "skipped", "expected"].contains(&what) {
            outcomes.insert(name.clone(), what.to_owned());
        }
    }
    outcomes
}

fn own_tests_of_python(names: &[&str]) {
    for name in names {
        let scratch = Scratch::new();
        // Verbose, so that each test's outcome is told; `-k` patterns are part of the name.
        let target = || [&[PYTHON, "-m", "unittest", "-v"], &name.split(' ').collect::<Vec<_>>()[..]].concat();
        let native =
            run(&scratch, std::process::Command::new(PYTHON).args(&target()[1..]).current_dir(scratch.path("")));
        let watched = run(
            &scratch,
            cowbell(&["-o", "/dev/null", "--force", "--mode", "count"], target()).current_dir(scratch.path("")),
        );
        let (due, found) = (outcomes(&native.err), outcomes(&watched.err));
        assert!(!due.is_empty(), "{name}: {}", native.err);
        assert_eq!(found, due, "{name}");
        assert_eq!(watched.code, native.code, "{name}");
    }
}

#[test]
fn pythons_own_tests_of_fork_pass_as_they_do_unwatched() {
    own_tests_of_python(&["test.test_fork1", "test.test_subprocess -k check_ -k Popen_ -k preexec -k sigchld"]);
    if std::env::var_os("COWBELL_SOAK").is_some() {
        own_tests_of_python(&["test.test_subprocess", "test.test_multiprocessing_fork"]);
    }
}
