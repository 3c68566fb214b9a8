//! Code whose meaning changes while it is watched: libraries that come and go, programs called by a link, and captures that
//! are rendered where neither libraries nor sources are.

use crate::exact::{may_hear_faults, may_trace};
use crate::lab::{Capture, Scratch, cowbell, is_root, run, skip, tool};
use crate::python::PYTHON;
use crate::record::{Code, Record, Stack, WriteClass};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::Command;

/// A child writes pages through libraries that it loads and closes, as its arguments say: the library, how many pages, and
/// whether its file is removed (`-`) or replaced by the next argument's (`=`) once it is closed.
const LOADS: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
typedef void (*Write)(char *, int);
int main(int count, char **words) {
  long page = sysconf(_SC_PAGESIZE);
  char *p = mmap(0, 2000 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memset(p, 1, 2000 * page);
  if (!fork()) {
    for (int i = 1; i + 2 < count; i += 3) {
      int pages = atoi(words[i + 1]);
      void *library = dlopen(words[i], RTLD_NOW);
      if (!library) { fprintf(stderr, "%s\n", dlerror()); _exit(9); }
      ((Write)dlsym(library, "enter"))(p, pages);
      p += pages * page;
      dlclose(library);
      if (*words[i + 2] == '-') unlink(words[i]);
      if (*words[i + 2] == '=') rename(words[i + 3], words[i]), words[i + 3] = words[i];
    }
    _exit(0);
  }
  int status;
  wait(&status);
  return WEXITSTATUS(status);
}
"#;

/// A library whose `enter` writes through another function of its own.
fn library(scratch: &Scratch, name: &str) -> String {
    let source = format!(
        "#include <unistd.h>\n__attribute__((noinline)) void write_by_{name}(char *p, int n, long page) {{\n  for (int i = \
         0; i < n; i++) p[i * page]++;\n}}\nvoid enter(char *p, int n) {{\n  write_by_{name}(p, n, \
         sysconf(_SC_PAGESIZE));\n  __asm__ volatile(\"\");\n}}\n"
    );
    let path = scratch.compile(&format!("lib{name}.so"), &source, &["-shared", "-fPIC"]).expect("a library");
    path.to_str().expect("text").to_owned()
}

/// The records about code, by the number of its place.
fn codes(capture: &Capture) -> HashMap<u32, &Code> {
    let symbols = capture.records.iter().filter_map(|record| match record {
        Record::Symbols { codes } => Some(codes),
        _ => None,
    });
    symbols.flatten().map(|code| (code.code, code)).collect()
}

/// Copied pages by the function that first wrote to them.
fn copies_by_function(capture: &Capture) -> BTreeMap<String, usize> {
    let codes = codes(capture);
    let mut copies = BTreeMap::new();
    for event in capture.intervals.values().flat_map(|interval| &interval.events) {
        let function = codes.get(&event.code).and_then(|code| code.frames.last());
        if matches!(event.class, WriteClass::Copy | WriteClass::CopyOrReuse) {
            *copies.entry(function.map_or_else(String::new, |frame| frame.function.clone())).or_default() += 1;
        }
    }
    copies
}

/// Traces the program that loads libraries; what it copied, by function, and the capture.
fn trace_loads(scratch: &Scratch, mode: &str, options: &[&str], words: &[&str]) -> (BTreeMap<String, usize>, Capture) {
    let program = scratch.compile("loads", LOADS, &["-ldl"]).expect("it compiles");
    let file = scratch.path("capture");
    let file = file.to_str().expect("text");
    let options = [options, &["--mode", mode, "--who", "child", "--force", "--capture", file]].concat();
    let words: Vec<&str> = [program.to_str().expect("text")].into_iter().chain(words.iter().copied()).collect();
    let outcome = run(scratch, &mut cowbell(&options, words));
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let capture = Capture::read(Path::new(file));
    (copies_by_function(&capture), capture)
}

#[test]
fn libraries_that_take_the_places_of_others_are_told_apart() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let [a, b] = ["a", "b"].map(|name| library(&scratch, name));
    let words = [&a[..], "20", ".", &b, "100", ".", &a, "7", ".", &b, "3", ".", &a, "50", "."];
    let (copies, _) = trace_loads(&scratch, "trace", &[], &words);
    let of = |function: &str| copies.get(function).copied().unwrap_or(0);
    assert_eq!((of("write_by_a"), of("write_by_b")), (77, 103), "{copies:?}");
}

/// Page faults are told after the fact, when the library may be gone and another in its place.
#[test]
fn page_faults_are_told_of_the_library_that_was_there_then() {
    if let Some(why) = may_hear_faults() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| library(&scratch, name));
    let words = [&a[..], "20", ".", &b, "100", ".", &a, "7", ".", &b, "3", ".", &a, "50", "."];
    let (copies, _) = trace_loads(&scratch, "faults", &[], &words);
    let of =
        |copies: &BTreeMap<String, usize>, name: &str| copies.get(&format!("write_by_{name}")).copied().unwrap_or(0);
    assert_eq!((of(&copies, "a"), of(&copies, "b")), (77, 103), "{copies:?}");
    // Code of a file that is gone by then has the file's name, and no function: none is better than another's.
    let (copies, capture) = trace_loads(&scratch, "faults", &[], &[&a, "20", "=", &b, "100", "-", &c, "30", "-"]);
    for (name, pages) in [("a", 20), ("b", 100), ("c", 30)] {
        assert!([0, pages].contains(&of(&copies, name)), "{name}: {copies:?}");
    }
    let all: usize = copies.values().sum();
    assert!(all >= 150, "each copy has its place: {copies:?}");
    let paths = capture.records.iter().filter_map(|record| match record {
        Record::Module(module) => Some(&module.path),
        _ => None,
    });
    assert!(
        paths.clone().any(|path| *path == a) && paths.clone().any(|path| *path == c),
        "{:?}",
        paths.collect::<Vec<_>>()
    );
}

#[test]
fn a_library_that_replaces_another_under_its_name_is_another() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| library(&scratch, name));
    // The second takes the first's name, the third its own; all are gone when the report is made.
    let (copies, _) = trace_loads(&scratch, "trace", &[], &[&a, "20", "=", &b, "100", "-", &c, "30", "-"]);
    let of = |function: &str| copies.get(function).copied().unwrap_or(0);
    assert_eq!((of("write_by_a"), of("write_by_b"), of("write_by_c")), (20, 100, 30), "{copies:?}");
}

#[test]
fn stacks_in_libraries_that_were_loaded_later_are_whole() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let [a, b] = ["a", "b"].map(|name| library(&scratch, name));
    let words = [&a[..], "20", ".", &b, "100", "."];
    let (_, capture) = trace_loads(&scratch, "trace", &["--stacks", "1/1"], &words);
    let codes = codes(&capture);
    let mut stacks: HashMap<u32, Vec<&str>> = HashMap::new();
    for record in &capture.records {
        if let Record::Stack(Stack { stack, native, .. }) = record {
            let name = |code: &u32| Some(codes.get(code)?.frames.last()?.function.as_str());
            stacks.insert(*stack, native.iter().map(|code| name(code).unwrap_or("?")).collect());
        }
    }
    let mut whole = BTreeMap::new();
    for event in capture.intervals.values().flat_map(|interval| &interval.events) {
        let Some(stack) = event.stack.and_then(|stack| stacks.get(&stack)) else { continue };
        if let Some(function) = stack.first().filter(|function| function.starts_with("write_by_")) {
            assert_eq!(stack.get(1..3), Some(&["enter", "main"][..]), "{stack:?}");
            *whole.entry(*function).or_default() += 1;
        }
    }
    // A thread that does not stand still in time, on a busy machine, is let go without a stack. The second library was loaded
    // after the first one's samples.
    let sampled = |function| whole.get(function).copied().unwrap_or(0);
    assert!((1..=100).contains(&sampled("write_by_b")) && sampled("write_by_a") <= 20, "{whole:?}");
}

#[test]
fn a_capture_is_rendered_the_same_where_neither_libraries_nor_sources_are() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let script = "import os\ndata = [str(i) for i in range(60_000)]\nif not os.fork():\n    for x in data:\n        pass\n    \
                  os._exit(0)\nos.wait()\n";
    let script = scratch.file("job.py", script);
    let [file, text] = ["capture", "report"].map(|name| scratch.path(name).to_str().expect("text").to_owned());
    let options = ["--mode", "trace", "--color", "never", "-v", "--capture", &file, "-o", &text];
    let outcome = run(&scratch, &mut cowbell(&options, [PYTHON, script.to_str().expect("text")]));
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let live = std::fs::read_to_string(&text).expect("a report");
    assert!(live.contains("for x in data:"), "{live}");

    std::fs::write(&script, "nothing\nof\nwhat\nran\nthere\n").expect("rewritten");
    let report = || Command::new(tool()).args(["report", "--color", "never", "-v", &file]).output().expect("started");
    assert_eq!(String::from_utf8_lossy(&report().stdout), live);
    std::fs::remove_file(&script).expect("removed");
    assert_eq!(String::from_utf8_lossy(&report().stdout), live);

    let capture = Capture::read(Path::new(&file));
    let builds = capture.records.iter().filter_map(|record| match record {
        Record::Module(module) if module.path.starts_with('/') => Some(&module.build_id),
        _ => None,
    });
    let builds: Vec<_> = builds.collect();
    assert!(!builds.is_empty() && builds.iter().all(|build| build.is_some()), "{builds:?}");
}

#[test]
fn a_program_is_called_by_the_link_that_it_was_found_by() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let program = scratch.compile("check-tool", LOADS, &["-ldl", "-s"]).expect("it compiles");
    let link = scratch.path("the-server");
    std::os::unix::fs::symlink(&program, &link).expect("a link");
    let library = library(&scratch, "a");
    let link = link.to_str().expect("text");
    let outcome = run(&scratch, &mut cowbell(&["--mode", "trace", "--who", "both"], [link, &library, "20", "."]));
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let report = outcome.err.split_once('\n').map_or("", |(_, rest)| rest);
    assert!(report.contains("the-server") && !report.contains("check-tool"), "{}", outcome.err);
}

/// Children started one after the other, each over the same inherited list.
const STAGGERED: &str = "\
import os, time
data = [str(i) for i in range(100_000)]
def reader(go):
    os.read(go, 1)
    for x in data:
        pass
    os.read(go, 1)
kids = []
for i in range(6):
    get, put = os.pipe()
    p = os.fork()
    if p == 0:
        reader(get)
        os._exit(0)
    kids.append((p, put))
    if i >= 2:
        p, put = kids[i - 2]
        os.write(put, b'..')
        os.waitpid(p, 0)
for p, put in kids[-2:]:
    os.write(put, b'..')
    os.waitpid(p, 0)
";

#[test]
fn pages_of_children_that_come_and_go_are_told_at_the_line_that_copied_them() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let script = scratch.file("staggered.py", STAGGERED);
    let file = scratch.path("capture.json");
    let options = ["--mode", "trace", "--who", "child", "--json", "-o", file.to_str().expect("text")];
    let outcome = run(&scratch, &mut cowbell(&options, [PYTHON, script.to_str().expect("text")]));
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).expect("a report")).expect("JSON");
    let lines = report["script"]["lines"].as_array().expect("lines");
    let pages = |line: &&serde_json::Value| line["copied_pages_estimated"].as_u64().expect("a number");
    let all: u64 = lines.iter().map(|line| pages(&line)).sum();
    let of_loop: u64 =
        lines.iter().filter(|line| [5, 6].map(Some).contains(&line["line"].as_u64())).map(|l| pages(&l)).sum();
    assert!(all > 0 && of_loop * 100 >= all * 98, "{of_loop} of {all}: {lines:#?}");
}

/// A child writes 2,000 pages through functions that do not call one another's tail, while a signal comes each millisecond.
const CALLS: &str = r#"
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
enum { PAGES = 2000 };
static volatile long signals;
static void count(int number) { (void)number; signals++; }
__attribute__((noinline)) static void inner(volatile char *p) { *p = 2; __asm__ volatile(""); }
__attribute__((noinline)) static void middle(volatile char *p) { char room[100]; inner(p); __asm__ volatile("" : : "r"(room) : "memory"); }
__attribute__((noinline)) static void outer(volatile char *p) { middle(p); __asm__ volatile(""); }
int main(void) {
  long page = sysconf(_SC_PAGESIZE);
  char *p = mmap(0, PAGES * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  madvise(p, PAGES * page, MADV_NOHUGEPAGE);
  for (int i = 0; i < PAGES; i++) p[i * page] = 1;
  if (!fork()) {
    signal(SIGALRM, count);
    struct itimerval each = {{0, 1000}, {0, 1000}};
    setitimer(ITIMER_REAL, &each, 0);
    for (int i = 0; i < PAGES; i++) outer(p + i * page);
    while (!signals) pause();
    _exit(0);
  }
  int status;
  wait(&status);
  return WEXITSTATUS(status);
}
"#;

/// The stacks of a run of that program: of the writes by `inner`, and how many threads were stopped.
fn stacks_of_calls(scratch: &Scratch, mode: &str, flag: &str) -> (usize, usize, u64) {
    let program = scratch.compile(&flag[2..], CALLS, &["-O2", flag]).expect("it compiles");
    let file = scratch.path("capture");
    let options = ["--mode", mode, "--stacks", "1", "--who", "child", "--force", "--capture"];
    let options = [&options[..], &[file.to_str().expect("text")]].concat();
    let outcome = run(scratch, &mut cowbell(&options, [&program]));
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let capture = Capture::read(&file);
    let codes = codes(&capture);
    let name = |code: &u32| codes.get(code).and_then(|code| code.frames.last()).map(|frame| frame.function.as_str());
    let stacks: HashMap<u32, Vec<Option<&str>>> = capture
        .records
        .iter()
        .filter_map(|record| match record {
            Record::Stack(Stack { stack, native, .. }) => Some((*stack, native.iter().map(name).collect())),
            _ => None,
        })
        .collect();
    let events = capture.intervals.values().flat_map(|interval| &interval.events).map(|e| (e.code, e.stack));
    let writes: Vec<_> = events.filter(|(code, _)| name(code) == Some("inner")).collect();
    let taken: Vec<_> = writes.iter().filter_map(|(_, stack)| stacks.get(&(*stack)?)).collect();
    let expected = ["inner", "middle", "outer", "main"].map(Some);
    assert!(taken.iter().all(|stack| stack.starts_with(&expected)), "{mode} {flag}: {taken:?}");
    let stops = capture.records.iter().find_map(|record| match record {
        Record::Finish(finish) => Some(finish.stops),
        _ => None,
    });
    let stops = stops.expect("the last record");
    println!("{mode} {flag}: {} stacks of {} writes, {stops} stops", taken.len(), writes.len());
    (writes.len(), taken.len(), stops)
}

/// A thread that waits for its page is read while it sleeps, and is stopped only where its stack takes the frame pointer.
#[test]
fn stacks_of_sleeping_threads_are_those_of_stopped_ones() {
    if let Some(why) = may_hear_faults() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    for (flag, stops_each) in [("-fomit-frame-pointer", false), ("-fno-omit-frame-pointer", true)] {
        let (writes, stacks, stops) = stacks_of_calls(&scratch, "faults", flag);
        assert_eq!(writes, 2000, "{flag}");
        // One page of eight is armed; fewer once the stacks tell nothing new. Users without pages of their own are sampled.
        assert!(stacks > 30 || !is_root(), "{flag}: {stacks}");
        if cfg!(target_arch = "x86_64") && is_root() {
            assert_eq!(stops >= stacks as u64, stops_each, "{flag}: {stops} stops, {stacks} stacks");
        }
    }
}

/// The kernel writes a frame to the stack as it delivers a signal: that is not the write of the line that was interrupted.
#[test]
fn frames_of_signals_are_not_the_interrupted_functions() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let (writes, stacks, _) = stacks_of_calls(&scratch, "trace", "-fomit-frame-pointer");
    assert_eq!(writes, 2000);
    // A signal makes a thread leave its fault, and some writes have no stack then.
    assert!(stacks > 1000, "{stacks}");
}
