//! The kinds of objects on copied pages, against mixes that were planted.

use crate::exact::may_trace;
use crate::lab::{Scratch, skip};
use crate::programs::gunicorn;
use crate::python::PYTHON;
use crate::said::{NATIVE, report};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The most by which a figure may be off, as a part of what was planted.
const ERROR: f64 = 0.05;

/// All objects lie in the order in which they were made; a third of all of them was freed. The child reads what is left, and the
/// program tells of each type how many there are and what they take, in blocks of the allocator.
const MIX: &str = r#"
import gc, os, sys
gc.disable()
class Slotted:
    __slots__ = ("x", "y")
class Plain:
    def __init__(self): self.x = None
class Text(str): pass
makers = {
    "str": (6, lambda i: "text number %d" % i),
    "int": (5, lambda i: 10**6 + i),
    "float": (4, lambda i: i + 0.5),
    "tuple": (3, lambda i: (None, i % 2 == 0)),
    "list": (2, lambda i: [None]),
    "dict": (2, lambda i: {"a": None}),
    "Slotted": (2, lambda i: Slotted()),
    "Plain": (2, lambda i: Plain()),
    "Text": (1, lambda i: Text("t%d" % i)),
    "bytes": (3, lambda i: b"bytes %d" % i),
    "set": (1, lambda i: {None}),
}
made = {name: [] for name in makers}
for i in range(15_000):
    for name, (times, make) in makers.items():
        made[name].extend([make(i * times + nth) for nth in range(times)])
LARGE
for all in made.values():
    del all[::3]
def read():
    for all in made.values():
        for one in all: pass
pid = os.fork()
if pid == 0:
    read()
    os._exit(0)
os.waitpid(pid, 0)
for name, all in made.items():
    blocks = sum((sys.getsizeof(one) + 15) // 16 * 16 for one in all)
    print(name, len(all), blocks)
"#;

/// The interpreters at hand, from Debian's to the newest.
fn pythons() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from(PYTHON)];
    let folder =
        gunicorn().and_then(|python| Some(python.ancestors().nth(3)?.join("python-tests/cpython/root/usr/bin")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = folder.into_iter().chain(std::env::split_paths(&path)).collect();
    for version in 11..20 {
        let of = |folder: &PathBuf| folder.join(format!("python3.{version}"));
        let runs = |python: &PathBuf| {
            python.exists()
                && Command::new(python).args(["-c", ""]).output().is_ok_and(|output| output.status.success())
        };
        let is_debians = |python: &PathBuf| std::fs::canonicalize(python).ok() == std::fs::canonicalize(PYTHON).ok();
        found.extend(folders.iter().map(of).find(runs).filter(|python| !is_debians(python)));
    }
    found
}

/// The types that were told: objects and bytes of each.
fn told(report: &Value) -> BTreeMap<String, (f64, f64)> {
    let types = report["kinds"]["types"].as_array().expect("types");
    let number = |of: &Value| of.as_f64().expect("a number");
    let one =
        |of: &Value| (of["name"].as_str().expect("a name").to_owned(), (number(&of["objects"]), number(&of["bytes"])));
    types.iter().map(one).collect()
}

/// Runs a mix; what was planted, what was told, and the report.
fn mix(python: &Path, large: &str) -> (Vec<(String, f64, f64)>, Value, String) {
    let scratch = Scratch::new();
    let source = MIX.replace("LARGE", large);
    let script = scratch.file("mix.py", &source);
    let planted = scratch.path("planted");
    let shell = format!("exec {} {} > {}", python.display(), script.display(), planted.display());
    let (report, text) = report(&scratch, &[], ["/bin/sh", "-c", &shell]);
    let planted = std::fs::read_to_string(planted).expect("what was planted");
    let number = |word: &str| word.parse::<f64>().expect("a number");
    let one = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        (words[0].to_owned(), number(words[1]), number(words[2]))
    };
    (planted.lines().map(one).collect(), report, text)
}

#[test]
fn the_types_of_objects_on_copied_pages_are_those_that_were_planted() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    for python in pythons() {
        let (planted, report, text) = mix(&python, "");
        let told = told(&report);
        for (name, objects, bytes) in &planted {
            let (said, said_bytes) = told.get(name).copied().unwrap_or_default();
            println!("{}: {name}: {objects} planted, {said} told; {bytes} and {said_bytes} bytes", python.display());
            let is_near = |said: f64, planted: f64| (said - planted).abs() <= ERROR * planted;
            assert!(is_near(said, *objects), "{}: {name}: {objects}, {said}: {text}", python.display());
            // Memory that objects of other types take besides themselves lies in other blocks, or is not told by their size.
            let is_whole = ["str", "int", "float", "tuple", "bytes", "set", "Slotted"].contains(&name.as_str());
            let is_so = !is_whole || is_near(said_bytes, *bytes);
            assert!(is_so, "{}: {name}: {bytes}, {said_bytes}: {text}", python.display());
        }
        let kinds = &report["kinds"];
        let number = |of: &Value| of.as_f64().expect("a number");
        let all: f64 = told.values().map(|(_, bytes)| bytes).sum::<f64>()
            + ["other_bytes", "free_bytes", "outside_bytes"].map(|part| number(&kinds[part])).iter().sum::<f64>();
        assert!(
            all == number(&kinds["pages"]) * number(&report["run"]["page_size"]),
            "all parts are all pages: {kinds}"
        );
        assert!(text.contains("What lay on copied pages at the end, by type"), "{text}");
    }
}

#[test]
fn large_objects_are_told_by_their_type_and_what_is_no_pythons_has_none() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    // Each is larger than a page: all its first page is its own.
    let large = "made.clear(); made['str'] = ['x' * 6000 + str(i) for i in range(6000)]; \
                 made['tuple'] = [(None,) * 700 + (i,) for i in range(6000)]";
    let (planted, report, text) = mix(Path::new(PYTHON), large);
    let told = told(&report);
    for (name, objects, _) in &planted {
        let (said, _) = told.get(name).copied().unwrap_or_default();
        println!("large {name}: {objects} planted, {said} told");
        assert!((said - objects).abs() <= ERROR * objects, "{name}: {objects}, {said}: {text}");
    }
    let scratch = Scratch::new();
    let native = scratch.compile("native", NATIVE, &[]).expect("it compiles");
    let (report, text) = crate::said::report(&scratch, &[], [&native]);
    assert!(report["kinds"].is_null() && !text.contains("by type"), "{text}");
}
