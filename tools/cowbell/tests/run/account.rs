//! All the memory of each process: it adds up to what the kernel says, and its parts are what the program did.

use crate::lab::{Scratch, cowbell, run};
use serde_json::Value;
use std::path::Path;

/// Copies, allocates, leaves alone and shares as many pages as its arguments say, and prints what the kernel says of it as its
/// last act.
const ACCOUNT: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static char *map(size_t pages, int flags) {
    size_t page = sysconf(_SC_PAGESIZE);
    return mmap(0, (pages ? pages : 1) * page, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
}
static void touch(char *at, size_t pages) {
    size_t page = sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < pages; i++) at[i * page] += 1;
}
static char said[1 << 16];
int main(int n, char **arguments) {
    size_t copied = atol(arguments[1]), fresh = atol(arguments[2]), left = atol(arguments[3]), shared = atol(arguments[4]);
    char *data = map(copied + left, MAP_PRIVATE), *together = map(shared, MAP_SHARED);
    touch(data, copied + left);
    memset(said, 1, sizeof said);
    if (!fork()) {
        touch(said, sizeof said / sysconf(_SC_PAGESIZE));
        touch(data, copied);
        touch(map(fresh, MAP_PRIVATE), fresh);
        touch(together, shared);
        /* The code of what comes after is brought in before. */
        syscall(SYS_getpid), write(1, said, 0);
        int file = open("/proc/self/smaps_rollup", O_RDONLY);
        ssize_t got = read(file, said, sizeof said);
        write(1, said, got);
        syscall(SYS_exit_group, 0);
    }
    wait(0);
}
"#;

/// The memory of the one child, and what the child itself read of it.
fn account(scratch: &Scratch, mode: &str, target: &[&str]) -> (Value, String) {
    let report = scratch.path("report");
    let options = ["--mode", mode, "--json", "--force", "-o", report.to_str().expect("text")];
    let outcome = run(scratch, &mut cowbell(&options, target));
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let report: Value = serde_json::from_slice(&std::fs::read(&report).expect("a report")).expect("JSON");
    let processes = report["processes"].as_array().expect("processes");
    let child = processes.iter().find(|process| process["origin"] == "forked").expect("a child");
    assert!(child["memory"].is_object(), "{child}");
    (child["memory"].clone(), String::from_utf8_lossy(&outcome.out).into_owned())
}

/// A figure of the kernel's own text, in bytes.
fn bytes(smaps: &str, key: &str) -> u64 {
    let line = smaps.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")).unwrap_or_else(|| panic!("{key} in {smaps}"));
    kib.trim().parse::<u64>().expect("a number") * 1024
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("a number: {value}"))
}

/// The parts of what is resident.
const ANONYMOUS: &[&str] = &["inherited", "inherited_alone", "copied", "copied_or_reused", "copied_of_file", "new"];
const FILES: &[&str] = &["file", "shared_mapping"];

fn sum(memory: &Value, parts: &[&str]) -> u64 {
    parts.iter().map(|part| number(&memory["resident"][*part])).sum()
}

#[test]
fn all_memory_adds_up_to_smaps_to_the_page() {
    let scratch = Scratch::new();
    let program = scratch.compile("account", ACCOUNT, &[]).expect("it compiles");
    let program = program.to_str().expect("text");
    let page = cowbell::sys::page_size().bytes() as u64;
    for mode in modes() {
        let of = |counts: [u64; 4]| {
            let counts = counts.map(|count| count.to_string());
            let target: Vec<&str> = std::iter::once(program).chain(counts.iter().map(String::as_str)).collect();
            // Between the child's last look and its end the kernel may take pages of files away, or swap: then once more.
            let (memory, smaps) = (0..3)
                .map(|_| account(&scratch, mode, &target))
                .find(|(memory, smaps)| number(&memory["smaps"]["rss"]) == bytes(smaps, "Rss"))
                .expect("one of three is undisturbed");
            for (ours, key) in [
                ("private_dirty", "Private_Dirty"),
                ("shared_dirty", "Shared_Dirty"),
                ("anonymous", "Anonymous"),
                ("swap", "Swap"),
            ] {
                assert_eq!(number(&memory["smaps"][ours]), bytes(&smaps, key), "{mode} {key}: {memory} {smaps}");
            }
            assert_eq!(sum(&memory, ANONYMOUS), bytes(&smaps, "Anonymous"), "{mode}: {memory} {smaps}");
            assert_eq!(sum(&memory, ANONYMOUS) + sum(&memory, FILES), bytes(&smaps, "Rss"), "{mode}: {memory} {smaps}");
            assert!(number(&memory["rss_peak_bytes"]) >= bytes(&smaps, "Rss"), "{memory}");
            assert!(number(&memory["page_tables_bytes"]) >= page, "{memory}");
            memory
        };
        // The rest of the program is the same in both, but for where the kernel lets the stack begin, and for who of parent
        // and child is first to write a page of their own.
        let (few, many) = (of([0, 0, 0, 0]), of([700, 500, 300, 90]));
        let grew = |parts: &[&str], by: u64| {
            let grew = (sum(&many, parts) - sum(&few, parts)) / page;
            assert!(grew.abs_diff(by) <= 6, "{mode} {parts:?}: {grew}, not {by}: {few} {many}");
        };
        grew(&["copied", "copied_or_reused"], 700);
        grew(&["new"], 500);
        grew(&["inherited", "inherited_alone"], 300);
        // The parent has them still.
        grew(&["inherited"], 300);
        grew(&["shared_mapping"], 90);
    }
}

fn modes() -> &'static [&'static str] {
    if crate::exact::may_trace().is_none() { &["count", "trace"] } else { &["count"] }
}

#[test]
fn all_memory_of_a_python_child_adds_up_within_a_hundredth() {
    let scratch = Scratch::new();
    let script = scratch.file(
        "grow.py",
        "import os\ndata = [str(n) * 5 for n in range(200_000)]\nif os.fork() == 0:\n    for x in data: pass\n    \
         own = [bytes(1000) for _ in range(20_000)]\n    os.write(1, open('/proc/self/smaps_rollup', 'rb').read())\n    \
         os._exit(0)\nos.wait()\n",
    );
    for mode in modes() {
        let (memory, smaps) = account(&scratch, mode, &[crate::python::PYTHON, script.to_str().expect("text")]);
        let close = |ours: u64, key: &str| {
            let theirs = bytes(&smaps, key);
            assert!(ours.abs_diff(theirs) * 100 <= theirs, "{mode} {key}: {ours}, {theirs}");
        };
        close(number(&memory["smaps"]["private_dirty"]), "Private_Dirty");
        close(sum(&memory, ANONYMOUS), "Anonymous");
        close(sum(&memory, ANONYMOUS) + sum(&memory, FILES), "Rss");
        // 20,000 objects of 1,033 bytes, 15 a page of the allocator's 16 KiB.
        let own = number(&memory["resident"]["new"]);
        assert!((20_000_000..24_000_000).contains(&own), "{mode}: {own}");
    }
}

#[test]
fn a_program_that_was_executed_has_its_memory_to_itself() {
    let scratch = Scratch::new();
    let report = scratch.path("report");
    let options = ["--mode", "count", "--json", "-o", report.to_str().expect("text")];
    let outcome = run(&scratch, &mut cowbell(&options, ["sh", "-c", "sleep 0; exit 0"]));
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let report: Value = serde_json::from_slice(&std::fs::read(Path::new(&report)).expect("a report")).expect("JSON");
    let processes = report["processes"].as_array().expect("processes");
    assert_eq!(processes.len(), 2, "{processes:#?}");
    let sleep = &processes[1]["memory"];
    assert_eq!(sleep["name"], "sleep", "{sleep}");
    let parts = ["inherited", "inherited_alone", "copied", "copied_or_reused"].map(|part| &sleep["resident"][part]);
    assert!(parts.iter().all(|part| **part == 0), "{sleep}");
    assert_eq!(sum(sleep, ANONYMOUS), number(&sleep["smaps"]["anonymous"]), "{sleep}");
}
