//! Programs of the kinds of which something false was said once: of each, cause, line, module and remedy.

use crate::exact::may_trace;
use crate::lab::{Scratch, skip};
use crate::said::{most, python, report, share};
use serde_json::Value;
use std::path::Path;

/// Copied pages by function and the caller that was told, of those not estimated.
fn by_caller(report: &Value, function: &str) -> Vec<(String, u64)> {
    let functions = report["functions"].as_array().expect("functions").iter();
    let of = functions.filter(|row| row["function"].as_str().is_some_and(|name| name.contains(function)));
    let mut found: Vec<_> = of
        .filter(|row| row["caller_estimated_pages"] == 0)
        .filter_map(|row| Some((row["called_from"].as_str()?.to_owned(), row["copied_pages"].as_u64()?)))
        .collect();
    found.sort();
    found
}

/// The function with most copies.
fn first(report: &Value) -> &Value {
    &report["functions"][0]
}

const STORES: &str = r#"
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
struct record { long key; long *place; char text[48]; };
int main(int n, char **words) {
    struct record *all = mmap(0, 64000 * sizeof *all, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (long i = 0; i < 64000; i++) all[i].key = i, all[i].place = &all[i].key;
    int how = atoi(words[1]);
    if (!fork()) {
        for (long i = 0; i < 64000; i++) switch (how) {
            case 0: __atomic_store_n(&all[i].key, i * 7919, __ATOMIC_SEQ_CST); break;
            case 1: __atomic_exchange_n(&all[i].place, &all[63999 - i].key, __ATOMIC_ACQ_REL); break;
            case 2: { long was = i; __atomic_compare_exchange_n(&all[i].key, &was, i + 70000, 0, 5, 5); break; }
            case 3: __atomic_fetch_or(&all[i].key, 1L << 40, __ATOMIC_RELAXED); break;
        }
        _exit(0);
    }
    wait(0);
}
"#;

#[test]
fn data_that_is_stored_atomically_is_data_and_what_is_counted_or_flagged_is_not() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let program = scratch.compile("stores", STORES, &[]).expect("it compiles");
    for (how, due) in [("0", "real_write"), ("1", "real_write"), ("2", "real_write"), ("3", "counter")] {
        let (report, text) = report(&scratch, &["--mode", "trace"], [program.as_os_str(), how.as_ref()]);
        let (cause, share, _) = most(&report);
        let is_due = cause == due || (due == "counter" && cfg!(not(target_arch = "x86_64")));
        assert!(is_due && share > 0.98, "store {how}: {cause} {share}: {text}");
    }
}

const COPIES: &str = r#"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
static char block[5000];
static volatile long bytes = 3000;
__attribute__((noinline)) void load(char *to) { memcpy(to, block, bytes); __asm__ volatile(""); }
__attribute__((noinline)) void parse(char *to) { memcpy(to, block, bytes); __asm__ volatile(""); }
__attribute__((noinline)) void clear(char *to) { memset(to, 5, bytes); __asm__ volatile(""); }
int main(void) {
    long page = sysconf(_SC_PAGESIZE);
    char *all = mmap(0, 400 * page, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(all, 1, 400 * page);
    if (!fork()) {
        for (int i = 0; i < 400; i++) {
            char *to = all + i * page;
            if (i % 4 == 0) parse(to); else if (i % 4 == 1) clear(to); else load(to);
        }
        _exit(0);
    }
    wait(0);
}
"#;

#[test]
fn each_page_that_a_copy_of_bytes_wrote_is_told_of_its_own_caller() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let program = scratch.compile("copies", COPIES, &["-fno-builtin"]).expect("it compiles");
    let (report, text) = report(&scratch, &["--mode", "trace"], [program.as_os_str()]);
    let due = |function: &str| {
        let pages = report["functions"].as_array().expect("functions").iter();
        let of = pages.filter(|row| row["called_from"] == function && row["caller_estimated_pages"] == 0);
        of.filter_map(|row| row["copied_pages"].as_u64()).sum::<u64>()
    };
    // Other processors have functions with a frame for it.
    if cfg!(target_arch = "x86_64") {
        assert_eq!(["load", "parse", "clear"].map(due), [200, 100, 100], "{text}");
        assert!(text.contains("< load") && text.contains("< parse") && text.contains("< clear"), "{text}");
    }
    assert!(by_caller(&report, "memcpy").iter().all(|(caller, _)| caller != "main"), "{text}");
}

const FREED: &str = r#"
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
static char *all[60000];
int main(void) {
    for (int i = 0; i < 60000; i++) memset(all[i] = malloc(500), 1, 500);
    for (int i = 0; i < 59999; i++) if (i % 1000) free(all[i]);
    if (!fork()) {
        for (int i = 0; i < 40000; i++) memset(malloc(500), 2, 500);
        _exit(0);
    }
    wait(0);
}
"#;

#[test]
fn memory_that_malloc_gave_out_again_is_said_to_be_that() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let program = scratch.compile("freed", FREED, &[]).expect("it compiles");
    let (report, text) = report(&scratch, &["--mode", "trace"], [program.as_os_str()]);
    let (cause, share, remedy) = most(&report);
    assert!(cause == "real_write" && share > 0.9, "{cause} {share}: {text}");
    let has_names = first(&report)["function"].as_str().is_some_and(|name| name.contains("malloc"));
    if has_names {
        assert!(remedy.contains("malloc_trim(0)") && remedy.contains("was free"), "{remedy}");
    } else {
        println!("skipped: the C library has no symbols here");
    }
}

#[test]
fn a_native_line_is_told_with_its_text_unless_its_file_is_newer_than_the_build() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let program = scratch.compile("stores", STORES, &[]).expect("it compiles");
    let source = |report: &Value| first(report)["lines"][0]["source"].as_str().map(str::to_owned);
    let (with, _) = report(&scratch, &["--mode", "trace"], [program.as_os_str(), "0".as_ref()]);
    let text = source(&with).expect("the source is there");
    assert!(text.starts_with("case 0: __atomic_store_n(&all[i].key"), "{text}");
    // The same text under the same name, written after the program was built.
    std::fs::write(scratch.path("stores.c"), format!("// newer\n{STORES}")).expect("a file");
    let (without, _) = report(&scratch, &["--mode", "trace"], [program.as_os_str(), "0".as_ref()]);
    assert_eq!((source(&without), &first(&without)["function"]), (None, &Value::from("main")));
}

#[test]
fn what_is_not_known_of_code_is_told_with_its_reason() {
    let scratch = Scratch::new();
    let program = scratch.compile("stores", STORES, &["-s"]).expect("it compiles");
    let target = || [program.as_os_str(), "0".as_ref()];
    let reasons = |report: &Value, what: &str| -> Vec<(String, u64)> {
        let list = report["totals"]["unknown"][what].as_array().expect("a list").iter();
        list.map(|of| (of["reason"].as_str().expect("one").to_owned(), of["copied_pages"].as_u64().expect("pages")))
            .collect()
    };
    let (counted, _) = report(&scratch, &["--mode", "count"], target());
    let copied = counted["totals"]["copied_pages"].as_u64().expect("pages");
    assert_eq!(reasons(&counted, "code"), [("not_traced".to_owned(), copied)]);
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let (traced, text) = report(&scratch, &["--mode", "trace"], target());
    assert_eq!(first(&traced)["name_unknown"], "no_symbols", "{text}");
    assert_eq!(first(&traced)["line_unknown"], "no_symbols");
    assert!(reasons(&traced, "name").iter().any(|(why, pages)| why == "no_symbols" && *pages >= 1000), "{text}");
    assert!(text.contains("in private file mappings, where the kernel reports no write"), "{text}");
    let seen: u64 =
        traced["functions"].as_array().expect("rows").iter().filter_map(|f| f["copied_pages"].as_u64()).sum();
    let unseen: u64 = reasons(&traced, "code").iter().map(|(_, pages)| pages).sum();
    assert_eq!(traced["totals"]["copied_pages"], seen + unseen);
}

const LATER: &str = r#"
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    long page = sysconf(_SC_PAGESIZE);
    if (!fork()) {
        char *own = mmap(0, 300 * page, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memset(own, 1, 300 * page);
        if (!fork()) { for (int i = 0; i < 300; i++) own[i * page] = 2; _exit(0); }
        wait(0);
        execl("/bin/true", "true", (char *)0);
    }
    wait(0);
}
"#;

#[test]
fn memory_mapped_after_the_fork_is_no_unknown_mapping_of_no_bytes() {
    let scratch = Scratch::new();
    let program = scratch.compile("later", LATER, &[]).expect("it compiles");
    let (report, text) = report(&scratch, &["--mode", "count"], [program.as_os_str()]);
    let mappings = report["mappings"].as_array().expect("mappings");
    assert!(mappings.iter().all(|m| m["kind"] != "unknown" && m["bytes"] != 0), "{mappings:#?}\n{text}");
    let new = mappings.iter().find(|m| m["pages"]["first_touch"].as_u64() >= Some(300)).expect("what was mapped");
    assert_eq!(new["kind"], "anonymous");
}

const ALIGNED: &str = "
__attribute__((aligned(65536))) char area[40 * 4096];
void enter(long page) { for (int i = 0; i < 20; i++) area[2 * i * page] = 7; }
";

const OPENS: &str = r#"
#include <dlfcn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int n, char **words) {
    void *library = dlopen(words[1], RTLD_NOW);
    memset(dlsym(library, "area"), 1, 40 * 4096);
    void (*enter)(long) = (void (*)(long))dlsym(library, "enter");
    if (!fork()) { enter(4096); _exit(0); }
    wait(0);
}
"#;

#[test]
fn data_of_a_library_that_is_aligned_to_more_than_a_page_is_the_librarys() {
    let scratch = Scratch::new();
    let library = scratch.compile("libaligned.so", ALIGNED, &["-shared", "-fPIC"]).expect("a library");
    let program = scratch.compile("opens", OPENS, &["-ldl"]).expect("it compiles");
    let (report, text) = report(&scratch, &["--mode", "count"], [&program, &library]);
    let mappings = report["mappings"].as_array().expect("mappings");
    let is_it = |m: &&Value| m["kind"] == "bss" && m["name"].as_str().is_some_and(|name| Path::new(name) == library);
    let pages: u64 = mappings.iter().filter(is_it).filter_map(|m| m["copied_pages"].as_u64()).sum();
    assert_eq!(pages, 20, "{text}");
}

#[test]
fn a_hash_that_a_string_keeps_is_no_write_of_the_programs() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let source = "
import os
data = ['%d' % i for i in range(100_000)]
if os.fork() == 0:
    for i in range(len(data)):
        hash(data[i])
    os._exit(0)
os.wait()
";
    let (report, text) = python("hashes.py", &["--mode", "trace"], source);
    let known = share(&report, "reference_count") + share(&report, "hash");
    assert!(known > 0.9 && share(&report, "real_write") < 0.02, "{text}");
    assert!(text.contains("hashes.py:6"), "{text}");
}

#[test]
fn siblings_of_small_real_writes_are_told_at_their_lines() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    for (what, write) in [
        ("import array; buf = array.array('d', bytes(8 << 20))", "for i in range(0, len(buf), 512): buf[i] += 1.5"),
        (
            "import struct; buf = bytearray(8 << 20)",
            "for i in range(0, len(buf), 4096): struct.pack_into('q', buf, i, 7)",
        ),
        (
            "base = bytearray(8 << 20); buf = memoryview(base)",
            "for i in range(0, len(buf), 4096): buf[i:i + 2] = b'xy'",
        ),
        ("import ctypes; buf = (ctypes.c_int * (2 << 20))()", "for i in range(0, len(buf), 1024): buf[i] = 7"),
    ] {
        let source = format!("import os\n{what}\nif os.fork() == 0:\n    {write}\n    os._exit(0)\nos.wait()\n");
        let (report, text) = python("sibling.py", &["--mode", "trace"], &source);
        let (cause, part, remedy) = most(&report);
        assert!(cause == "real_write" && part > 0.9, "{what}: {cause} {part}: {text}");
        assert!(remedy.contains("one byte written copies its whole page"), "{remedy}");
        assert!(text.contains("sibling.py:4") && share(&report, "reference_count") < 0.05, "{text}");
    }
}

const LEAVES: &str = r#"
#include <map>
#include <memory>
#include <string>
#include <cstdlib>
#include <sys/wait.h>
#include <unistd.h>
static std::map<int, std::string> all;
int main(int n, char **words) {
    for (int i = 0; i < 60000; i++) all[i] = std::string(60, 'x');
    int how = atoi(words[1]);
    if (!fork()) {
        if (how == 0) exit(0);
        if (how == 1) { all.clear(); _exit(0); }
    }
    wait(0);
    _exit(0);
}
"#;

#[test]
fn destructors_on_the_way_out_are_told_from_those_before() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let file = scratch.file("leaves.cc", LEAVES);
    let program = scratch.path("leaves");
    let built = std::process::Command::new("c++").args(["-O2", "-g", "-o"]).arg(&program).arg(&file).status();
    assert!(built.is_ok_and(|status| status.success()), "a C++ compiler: tools/setup --tests installs it");
    let (report, text) = self::report(&scratch, &["--mode", "trace"], [program.as_os_str(), "0".as_ref()]);
    let (cause, part, remedy) = most(&report);
    assert!(cause == "exit" && part > 0.9 && remedy.contains("_exit(2)"), "{cause} {part}: {text}");
    let (report, text) = self::report(&scratch, &["--mode", "trace"], [program.as_os_str(), "1".as_ref()]);
    let (cause, part, _) = most(&report);
    assert!(cause != "exit" && part > 0.9 && share(&report, "exit") < 0.02, "{cause} {part}: {text}");
}
