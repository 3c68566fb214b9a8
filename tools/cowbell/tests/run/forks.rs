//! The forks themselves: page tables that they copied, forks for nothing but another program, and what processes take together.

use crate::exact::{may_hear_faults, may_trace};
use crate::lab::{Scratch, cowbell, run, skip};
use crate::python::PYTHON;
use serde_json::Value;
use std::process::Command;

/// Two children, of a process with two page tables of which a fork copies one: of its own memory, and not of a memory file that it only read.
/// The first one says what it has.
const TABLES: &str = r#"
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int n, char **arguments) {
    size_t step = 2 << 20, size = atol(arguments[1]) << 20;
    int file = memfd_create("data", 0);
    if (ftruncate(file, size)) return 1;
    volatile char *of_file = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    char *own = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(own, size, MADV_NOHUGEPAGE);
    for (size_t at = 0; at < size; at += step) own[at] = 1 + of_file[at];
    for (int nth = 0; nth < 2; nth++) {
        if (!fork()) {
            char line[200];
            FILE *status = fopen("/proc/self/status", "r");
            while (fgets(line, sizeof line, status)) if (line[2] == 'P' && line[3] == 'T') fputs(line, stdout);
            _exit(fflush(stdout));
        }
        wait(0);
    }
}
"#;

/// On one line.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn page_tables_that_a_fork_copied_are_told_as_the_child_has_them_unwatched() {
    let scratch = Scratch::new();
    let program = scratch.compile("tables", TABLES, &[]).expect("it compiles");
    let bare = run(&scratch, Command::new(&program).arg("2048"));
    let said = String::from_utf8(bare.out).expect("text");
    let kib = said.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    let due = kib.unwrap_or_else(|| panic!("VmPTE in {said:?}")) << 10;
    assert!(due > 4 << 20, "one touched page of each table: {due}");
    for mode in ["count", "faults", "trace"] {
        match mode {
            "trace" => may_trace(),
            "faults" => may_hear_faults(),
            _ => None,
        }
        .map_or_else(|| judge(&scratch, mode, &program, due), |why| skip(&why));
    }
    // A small process is not worth a word.
    let small = run(&scratch, &mut cowbell(&["--mode", "count"], [program.to_str().expect("text"), "64"]));
    assert!(small.code == Some(0) && !small.err.contains("Forks copied"), "{}", small.err);
}

/// Demands that page tables of two children are told as they are due.
fn judge(scratch: &Scratch, mode: &str, program: &std::path::Path, due: u64) {
    let (program, report) = (program.to_str().expect("text"), scratch.path("report"));
    let capture = scratch.path("capture");
    let options = ["--mode", mode, "--force", "--capture", capture.to_str().expect("text")];
    let outcome = run(scratch, &mut cowbell(&options, [program, "2048"]));
    let said = flat(&outcome.err);
    let told = said.split("Forks copied ").nth(1).unwrap_or_else(|| panic!("{mode}: {}", outcome.err));
    assert!(told.contains(" MiB of page tables for 2 children, at most 4."), "{mode}: {}", outcome.err);
    let arguments =
        ["report", "--json", "-o", report.to_str().expect("text"), "--force", capture.to_str().expect("text")];
    assert_eq!(run(scratch, Command::new(crate::lab::tool()).args(arguments)).code, Some(0));
    let report: Value = serde_json::from_slice(&std::fs::read(&report).expect("a report")).expect("JSON");
    let processes = report["processes"].as_array().expect("processes");
    let tables: Vec<u64> = processes.iter().filter_map(|process| process["fork_page_tables_bytes"].as_u64()).collect();
    // A table or a few more or less: where what was mapped lies is chance.
    assert!(
        tables.len() == 2 && tables.iter().all(|bytes| bytes.abs_diff(due) < 64 << 10),
        "{mode}: {tables:?}, {due}"
    );
    assert_eq!(report["totals"]["forks"]["page_tables_bytes"], tables.iter().sum::<u64>(), "{mode}");
}

#[test]
fn forks_for_nothing_but_another_program_are_told_with_what_they_copied() {
    let source = "\
import mmap, os, subprocess, sys
data = mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
data.madvise(mmap.MADV_NOHUGEPAGE)
for at in range(0, len(data), 2 << 20): data[at] = 1
for how in sys.argv[1:]:
    if how == 'fork':
        if os.fork() == 0: os.execv('/bin/true', ['true'])
        os.wait()
    elif how == 'hook': subprocess.run(['true'], preexec_fn=os.getpid)
    else: subprocess.run(['true'])
";
    let scratch = Scratch::new();
    let script = scratch.file("starts.py", source);
    let said = |how: &[&str]| {
        let target = [&[PYTHON, script.to_str().expect("text")], how].concat();
        let outcome = run(&scratch, &mut cowbell(&["--mode", "count"], target));
        assert_eq!(outcome.code, Some(0), "{}", outcome.err);
        (flat(&outcome.err), outcome.err)
    };
    let (one_line, text) = said(&["fork", "hook", "vfork"]);
    assert!(one_line.starts_with("NOTHING TO SHARE: "), "{text}");
    let told = one_line.split("start programs by posix_spawn or vfork; fork copies page tables first: ").nth(1);
    let told = told.unwrap_or_else(|| panic!("{text}"));
    assert!(
        told.contains(" MiB for 2 children that copied at most ") && told.contains(" KiB each and then executed"),
        "{text}"
    );
    assert!(told.contains("unless it is given preexec_fn"), "{text}");
    assert!(told.contains("Forks copied ") && told.contains(" of page tables for 2 children"), "{text}");
    // Python does what it is said to do.
    let (one_line, text) = said(&["vfork", "vfork"]);
    assert!(!one_line.contains("posix_spawn or vfork;") && !one_line.contains("Forks copied"), "{text}");
}

#[test]
fn what_top_shows_of_processes_that_share_is_set_right() {
    let source = r#"
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    int all[2], end[2];
    char c;
    if (pipe(all) || pipe(end)) return 1;
    memset(malloc(96 << 20), 1, 96 << 20);
    for (int nth = 0; nth < 3; nth++)
        if (!fork()) {
            close(end[1]);
            if (write(all[1], "x", 1) != 1) _exit(1);
            _exit((int)read(end[0], &c, 1));
        }
    for (int nth = 0; nth < 3; nth++)
        if (read(all[0], &c, 1) != 1) return 1;
    close(end[1]);
    while (wait(0) > 0);
}
"#;
    let scratch = Scratch::new();
    let program = scratch.compile("shares", source, &[]).expect("it compiles");
    let outcome = run(&scratch, &mut cowbell(&["--mode", "count"], [&program]));
    let text = flat(&outcome.err);
    let told = text.split("as one of 4 ended, RES was ").nth(1).unwrap_or_else(|| panic!("{}", outcome.err));
    let figure = |behind: &str| -> f64 {
        let figure = told.split(behind).nth(1).and_then(|rest| rest.trim().split(' ').next());
        figure.and_then(|figure| figure.parse().ok()).unwrap_or_else(|| panic!("{behind:?} in {told}"))
    };
    let resident: f64 = told.split(' ').next().and_then(|figure| figure.parse().ok()).expect("a figure");
    // Each has its program and libraries, too.
    assert!((384.0..400.0).contains(&resident) && told.contains(" MiB in all; PSS,"), "{}", outcome.err);
    assert!((96.0..104.0).contains(&figure("have them,")), "{}", outcome.err);
}

#[test]
fn modules_that_workers_of_a_fork_server_loaded_are_named_where_a_line_names_them() {
    let scratch = Scratch::new();
    // Loading takes many times as long as the time between two looks, so that each worker is seen at it.
    scratch.file("heavy.py", "data = [str(n) * 3 for n in range(1_500_000)]\n");
    let script = scratch.file(
        "serves.py",
        "import multiprocessing, sys\ndef load(all):\n    import heavy as data\n    all.wait()\nif __name__ == '__main__':\n    \
         context = multiprocessing.get_context(sys.argv[1])\n    all = context.Barrier(3)\n    \
         with context.Pool(2, load, [all]) as pool:\n        all.wait()\n        print(pool.map(abs, range(4)))\n",
    );
    for (how, line) in [
        ("forkserver", "multiprocessing.set_forkserver_preload(['heavy'])"),
        ("fork", "import heavy # in the parent, before the fork"),
    ] {
        let outcome =
            run(&scratch, &mut cowbell(&["--mode", "count"], [PYTHON.as_ref(), script.as_os_str(), how.as_ref()]));
        let text = flat(&outcome.err);
        assert!(text.starts_with("NEW: 2 children grew"), "{}", outcome.err);
        assert!(text.contains("Modules were loaded after the fork") && text.contains(line), "{}", outcome.err);
    }
}

#[test]
fn a_module_that_a_fork_server_was_to_preload_and_has_not_is_named() {
    let scratch = Scratch::new();
    // Where only its workers look: so its import fails in the server of every version, which has nothing to say of that.
    std::fs::create_dir(scratch.path("elsewhere")).expect("a directory");
    scratch.file("elsewhere/heavy.py", "data = [str(n) * 3 for n in range(1_500_000)]\n");
    let script = scratch.file(
        "serves.py",
        "import multiprocessing, sys\ndef load(all):\n    sys.path.append(sys.argv[1])\n    import heavy\n    all.wait()\n\
         if __name__ == '__main__':\n    context = multiprocessing.get_context('forkserver')\n    \
         context.set_forkserver_preload(['json', 'heavy'])\n    all = context.Barrier(3)\n    \
         with context.Pool(2, load, [all]) as pool:\n        all.wait()\n        print(pool.map(abs, range(4)))\n",
    );
    let words = [PYTHON.as_ref(), script.as_os_str(), scratch.path("elsewhere").as_os_str()].map(ToOwned::to_owned);
    let outcome = run(&scratch, &mut cowbell(&["--mode", "count"], words));
    let text = flat(&outcome.err);
    assert!(text.starts_with("NEW: 2 children grew"), "{}", outcome.err);
    assert!(text.contains("the fork server was told to preload heavy, and has not: where"), "{}", outcome.err);
    // The line to paste is there already.
    let known = ["have the fork server load these modules", "set_forkserver_preload(["];
    assert!(known.iter().all(|what| !text.contains(what)), "{}", outcome.err);
}
