//! Statements about copies: causes, remedies and names of memory, for programs of which the truth is known.

use crate::exact::may_trace;
use crate::lab::{Scratch, cowbell, run, skip};
use crate::python::PYTHON;
use serde_json::Value;
use std::ffi::OsStr;

/// A program of R whose child only collects.
pub const R_COLLECTS: &str = "
rows <- lapply(1:100000, function(i) c(i, i + 1))
child <- parallel::mcparallel({ gc(); 0 })
invisible(parallel::mccollect(child))
";

/// A program without an interpreter, whose child writes what it inherits.
pub const NATIVE: &str = "
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    volatile char *all = malloc(16 << 20);
    for (size_t at = 0; at < 16 << 20; at += 4096) all[at] = 1;
    if (!fork()) { for (size_t at = 0; at < 16 << 20; at += 4096) all[at] = 2; _exit(0); }
    wait(0);
}
";

/// The report on a program, as JSON and as text without its line breaks.
pub fn report<I: AsRef<OsStr>>(
    scratch: &Scratch,
    options: &[&str],
    target: impl IntoIterator<Item = I>,
) -> (Value, String) {
    let [capture, json] = ["capture", "json"].map(|name| scratch.path(name).to_str().expect("text").to_owned());
    let options = [options, &["-v", "--force", "--capture", &capture]].concat();
    let outcome = run(scratch, &mut cowbell(&options, target));
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let mut again = std::process::Command::new(crate::lab::tool());
    let again = run(scratch, again.args(["report", "--json", "--force", "-o", &json, &capture]));
    assert_eq!(again.code, Some(0), "{}", again.err);
    let json = serde_json::from_slice(&std::fs::read(json).expect("a report")).expect("JSON");
    (json, outcome.err.split_whitespace().collect::<Vec<_>>().join(" "))
}

pub fn python(name: &str, options: &[&str], source: &str) -> (Value, String) {
    let scratch = Scratch::new();
    let script = scratch.file(name, source);
    report(&scratch, options, [PYTHON.as_ref(), script.as_os_str()])
}

/// The part of all copies that has this cause.
pub fn share(report: &Value, cause: &str) -> f64 {
    let causes = report["causes"].as_array().expect("causes");
    causes.iter().find(|known| known["cause"] == cause).map_or(0.0, |known| known["share"].as_f64().expect("a share"))
}

/// The cause of most copies, its share and its remedy.
pub fn most(report: &Value) -> (&str, f64, &str) {
    let most = &report["causes"][0];
    let text = |name: &str| most[name].as_str().unwrap_or_default();
    (text("cause"), most["share"].as_f64().expect("a share"), text("remedy"))
}

const FIELDS: &str = r#"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
struct record { char *pointer; double number; int state; int unused; char text[40]; };
int main(int n, char **arguments) {
    size_t records = 1000 * 64;
    struct record *all = mmap(0, records * sizeof *all, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t i = 0; i < records; i++) {
        all[i].pointer = malloc(16), all[i].number = i * 1.5, all[i].state = 1, strcpy(all[i].text, "hello");
    }
    int field = atoi(arguments[1]);
    if (!fork()) {
        for (size_t i = 0; i < records; i++) switch (field) {
            case 0: all[i].pointer += 8; break;
            case 1: all[i].number = all[i].number * 2 + 1; break;
            case 2: all[i].state = 7; break;
            case 3: all[i].text[0] = 'j'; break;
            case 4: all[i].pointer = (char *)(i * 7919); break;
            case 5: __atomic_fetch_add(&all[i].state, 1, __ATOMIC_SEQ_CST); break;
            case 6: all[i].state = all[i].state; __asm__ volatile("" ::: "memory"); break;
        }
        _exit(0);
    }
    wait(0);
}
"#;

#[test]
fn a_changed_field_is_data_however_little_it_changed_and_an_atomic_one_is_a_counter() {
    let scratch = Scratch::new();
    let program = scratch.compile("fields", FIELDS, &[]).expect("it compiles");
    for field in 0..5 {
        let field = field.to_string();
        let target = [program.as_os_str(), field.as_ref()];
        let (report, text) = report(&scratch, &["--mode", "count"], target);
        let (cause, share, _) = most(&report);
        assert!(cause == "real_write" && share > 0.98, "field {field}: {cause} {share}: {text}");
        assert!(!text.contains("count of") && !text.contains("reference count"), "{text}");
    }
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let (report, text) = report(&scratch, &["--mode", "trace"], [program.as_os_str(), "5".as_ref()]);
    let (cause, share, _) = most(&report);
    let is_known = cause == "counter" && share > 0.98;
    assert!(is_known || cfg!(not(target_arch = "x86_64")), "{cause} {share}: {text}");
}

#[test]
fn small_real_writes_in_python_are_told_as_such_at_their_line() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    for (what, write) in [
        ("buf = bytearray(8 << 20)", "for i in range(0, len(buf), 4096): buf[i] = 2"),
        ("import numpy; buf = numpy.ones(2 << 20)", "buf[::64] += 1"),
    ] {
        let source = format!("import os\n{what}\nif os.fork() == 0:\n    {write}\n    os._exit(0)\nos.wait()\n");
        let (report, text) = python("writes.py", &["--mode", "trace"], &source);
        let (cause, share, remedy) = most(&report);
        assert!(cause == "real_write" && share > 0.9, "{what}: {cause} {share}: {text}");
        assert!(!remedy.contains("numpy"), "{remedy}");
        assert!(text.contains("writes.py:4") && text.contains("copied for each"), "{text}");
        assert!(self::share(&report, "reference_count") < 0.05, "{text}");
    }
}

#[test]
fn the_collector_is_told_from_counting_without_symbols() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let source = "
import gc, os
data = [[i] for i in range(100_000)]
if os.fork() == 0:
    gc.collect(); os._exit(0)
os.wait()
";
    let (report, text) = python("collects.py", &["--mode", "trace"], source);
    let (cause, share, remedy) = most(&report);
    assert!(cause == "garbage_collector" && share > 0.9, "{cause} {share}: {text}");
    for part in ["gc.disable()", "gc.freeze()", "gc.enable() in the child"] {
        assert!(remedy.contains(part), "{part} in {remedy}");
    }
}

#[test]
fn who_frees_an_object_is_no_collector_though_its_neighbours_headers_change() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    // No collection ever runs. In the collector's list, lists lie next to others that are anywhere in memory.
    let source = "
import gc, os, random
gc.disable()
random.seed(1)
data = [[i] for i in range(100_000)]
order = list(range(100_000)); random.shuffle(order)
for k in order[:50_000]: data[k] = None
for k in order[:50_000]: data[k] = [k]
if os.fork() == 0:
    for k in order[::50]: data[k] = None
    os._exit(0)
os.wait()
";
    let (report, text) = python("frees.py", &["--mode", "trace"], source);
    let (told, pages) = (self::share(&report, "garbage_collector"), &report["totals"]["copied_pages"]);
    assert!(pages.as_u64().is_some_and(|pages| pages > 1000), "{text}");
    assert!(told < 0.02 && !text.contains("gc.freeze"), "{told}: {text}");
}

#[test]
fn who_has_bytes_set_by_the_c_library_is_told_as_the_place() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let source = "
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
static char *memory;
__attribute__((noinline)) void clear(int to) { memset(memory, to, 8 << 20); __asm__ volatile(\"\" ::: \"memory\"); }
int main() {
    memory = mmap(0, 8 << 20, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    clear(1);
    if (!fork()) clear(2), _exit(0);
    wait(0);
}
";
    let scratch = Scratch::new();
    let program = scratch.compile("clears", source, &[]).expect("it compiles");
    let (report, text) = report(&scratch, &["--mode", "trace"], [program.as_os_str()]);
    let place = &report["verdict"]["places"][0];
    assert_eq!(place["called_by"], "clear", "{text}");
    assert!(text.contains("% clear memset What helps"), "{text}");
}

#[test]
fn freezing_is_not_advised_where_counts_copy() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let source = "
import os, gc
gc.disable()
data = [['row', str(i), float(i)] for i in range(50_000)]
gc.freeze()
pid = os.fork()
if pid == 0:
    gc.enable()
    s = 0.0
    for row in data:
        s += row[2]
    os._exit(0)
os.waitpid(pid, 0)
";
    let (report, text) = python("frozen.py", &["--mode", "trace"], source);
    let (cause, share, remedy) = most(&report);
    assert!(cause == "reference_count" && share > 0.9, "{cause} {share}: {text}");
    assert!(remedy.contains("not of dtype=object") && !text.contains("gc.freeze"), "{text}");
    assert!(self::share(&report, "garbage_collector") < 0.02, "{text}");
}

#[test]
fn counting_does_not_guess_which_of_two_it_was() {
    let source = "
import os
data = [str(i) for i in range(100_000)]
if os.fork() == 0:
    for x in data: pass
    os._exit(0)
os.wait()
";
    let (report, text) = python("reads.py", &["--mode", "count"], source);
    let (cause, share, _) = most(&report);
    assert!(cause == "count_or_collector" && share > 0.9, "{cause} {share}: {text}");
    assert!(text.contains("--mode faults shows the code"), "{text}");
    // A remedy against one of the two is none if it was the other.
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (counts, collector) =
        (text.find("Reading an object counts"), text.find("if it was the garbage collector: gc.disable()"));
    assert!(counts.is_some() && counts < collector, "{text}");
}

#[test]
fn what_is_copied_on_the_way_out_is_told_with_the_way_round_it() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let source = "
import os, sys
data = [str(i) for i in range(200_000)]
p = os.fork()
if p == 0:
    sys.exit(0)
os.waitpid(p, 0); os._exit(0)
";
    let (report, text) = python("exits.py", &["--mode", "trace"], source);
    let (cause, share, remedy) = most(&report);
    assert!(cause == "exit" && share > 0.8, "{cause} {share}: {text}");
    assert!(remedy.contains("os._exit()"), "{remedy}");
    // Interpreters without a reader are told by their exported names.
    let scratch = Scratch::new();
    let source = "my @a; push @a, {id => $_} for 0..50_000; my $pid = fork; if (!$pid) { exit 0 } waitpid $pid, 0;";
    let (report, text) = self::report(&scratch, &["--mode", "trace"], ["perl", "-e", source]);
    let (cause, share, remedy) = most(&report);
    assert!(cause == "exit" && share > 0.85 && remedy.contains("POSIX::_exit()"), "{cause} {share}: {text}");
}

#[test]
fn an_interpreter_that_is_not_known_is_said_not_to_be() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let program = scratch.compile("tclsh8.6", FIELDS, &[]).expect("it compiles");
    let (report, text) = report(&scratch, &["--mode", "trace"], [program.as_os_str(), "2".as_ref()]);
    let (cause, share, remedy) = most(&report);
    assert!(cause == "unknown" && share > 0.9 && remedy.is_empty(), "{cause} {share}: {text}");
    assert_eq!(report["causes"][0]["reasons"][0]["reason"], "interpreter");
    assert!(text.contains("an interpreter whose objects cowbell does not know"), "{text}");
}

#[test]
fn memory_above_a_library_is_not_the_librarys() {
    let source = "
import os; big = bytearray(24 << 20)
import _ctypes
for i in range(0, len(big), 4096): big[i] = 1
if os.fork() == 0:
    for i in range(0, len(big), 4096): big[i] = 2
    os._exit(0)
os.wait()
";
    let (report, text) = python("above.py", &["--mode", "count"], source);
    let mapping = &report["mappings"][0];
    assert_eq!(mapping["kind"], "anonymous", "{text}");
    assert!(mapping["share"].as_f64().is_some_and(|share| share > 0.9), "{text}");
    let of_libraries = report["mappings"].as_array().expect("mappings").iter().filter(|m| m["kind"] == "bss");
    let pages: u64 = of_libraries.filter_map(|mapping| mapping["copied_pages"].as_u64()).sum();
    assert!(pages < 100, "uninitialised data of libraries is small: {text}");
}

/// Memory laid out as CPython's objects, and a type of types whose name nobody reads after the fork.
const OBJECTS: &str = r#"
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
static const char read_only[1 << 20] __attribute__((aligned(4096))) = {1, [1 << 19] = 't', 'y', 'p', 'e'};
static long types[2][64];
int main(void) {
    for (int i = 0; i < 2; i++) types[i][0] = 1, types[i][1] = (long)types[1], types[i][3] = (long)(read_only + (1 << 19));
    types[1][21] = 1L << 31;
    size_t objects = 100000;
    long (*all)[4] = mmap(0, objects * 32, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t i = 0; i < objects; i++) all[i][0] = 1, all[i][1] = (long)types[0];
    if (!fork()) {
        for (size_t i = 0; i < objects; i++) all[i][0]++;
        _exit(0);
    }
    wait(0);
}
"#;

#[test]
fn counts_are_told_though_the_child_never_read_what_the_types_are_called() {
    let scratch = Scratch::new();
    let program = scratch.compile("objects", OBJECTS, &[]).expect("it compiles");
    let (report, text) = report(&scratch, &["--mode", "count"], [program.as_os_str()]);
    let (cause, share, _) = most(&report);
    assert!(cause == "reference_count" && share > 0.95, "{cause} {share}: {text}");
}

#[test]
fn attributes_and_objects_that_are_freed_are_neither_counting_nor_collecting() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let attributes = "
import os, gc
class Row:
    __slots__ = tuple('abcdefghijkl')
    def __init__(self):
        for name in self.__slots__: setattr(self, name, name)
data = [Row() for _ in range(20_000)]
gc.disable()
if os.fork() == 0:
    for row in data: row.a = 7
    os._exit(0)
os.wait()
";
    let freed = "
import os, gc
data = [[i] for i in range(50_000)]
gc.disable()
if os.fork() == 0:
    data.clear(); os._exit(0)
os.wait()
";
    for (name, source, cause, remedy) in [
        ("attributes.py", attributes, "reference_count", "numpy"),
        ("freed.py", freed, "garbage_collector", "gc.freeze"),
    ] {
        let (report, text) = python(name, &["--mode", "trace"], source);
        let known = share(&report, cause);
        assert!(known < 0.1 && !text.contains(remedy), "{name}: {known}: {text}");
    }
}

const LOADS: &str = r#"
#include <dlfcn.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int n, char **words) {
    if (!dlopen(words[1], RTLD_NOW)) return 1;
    char *all = mmap(0, 1000 * 4096L, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(all, 1, 1000 * 4096L);
    if (!fork()) {
        for (int i = 0; i < 1000; i++) all[i * 4096L] = 2;
        _exit(0);
    }
    wait(0);
}
"#;

#[test]
fn a_program_that_loads_an_interpreter_and_never_runs_it_is_like_any_other() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let library = scratch.compile("libperl.so.5.36", "int perl_run(void) { return 0; }", &["-shared", "-fPIC"]);
    let program = scratch.compile("loads", LOADS, &[]).expect("it compiles");
    let target = [program.as_os_str(), library.as_ref().expect("it compiles").as_os_str()];
    let (report, text) = report(&scratch, &["--mode", "trace"], target);
    let (cause, share, _) = most(&report);
    assert!(cause == "real_write" && share > 0.95, "{cause} {share}: {text}");
    assert!(!text.contains("an interpreter whose objects cowbell does not know"), "{text}");
}
