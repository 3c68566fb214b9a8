//! The report's bounds of the pages that were copied hold, whatever the child does to its mappings before it ends.

use crate::exact::{may_hear_faults, may_trace};
use crate::lab::{Outcome, Scratch, cowbell, is_root, run, skip};
use serde_json::Value;
use std::path::PathBuf;

/// The program, built.
struct Changes {
    scratch: Scratch,
    program: PathBuf,
}

impl Changes {
    fn new() -> Self {
        let scratch = Scratch::new();
        let source = include_str!("../targets/changes.c");
        let program = scratch.compile("changes", source, &[]).expect("it compiles");
        Self { scratch, program }
    }

    fn run(&self, options: &[&str], how: &str, pages: u64) -> Outcome {
        let pages = pages.to_string();
        let program = self.program.to_str().expect("text");
        let outcome = run(&self.scratch, &mut cowbell(options, [program, how, &pages]));
        assert_eq!(outcome.code, Some(0), "{how}: {}", outcome.err);
        outcome
    }

    fn json(&self, mode: &str, how: &str, pages: u64) -> Value {
        let report = self.scratch.path("report");
        self.run(&["--mode", mode, "--json", "--force", "-o", report.to_str().expect("text")], how, pages);
        serde_json::from_str(&std::fs::read_to_string(&report).expect("the report")).expect("JSON")
    }
}

/// Pages that the child's C library and the kernel write around what the program does.
const BESIDES_MAX: u64 = 60;

#[test]
fn the_bounds_of_a_count_hold_when_pages_go_before_they_are_counted() {
    let changes = Changes::new();
    for (how, pages) in [("unmap", 3000), ("exec", 1000), ("move", 900)] {
        let totals = &changes.json("count", how, pages)["totals"];
        let (least, most) = (totals["copied_pages_min"].as_u64(), totals["copied_pages_max"].as_u64());
        let (least, most) = (least.expect("a number"), most.expect("a number"));
        println!("{how}: {pages} pages, said {least} to {most}");
        assert!(least <= pages + BESIDES_MAX, "{how}: at least {least}, and it copied {pages}");
        assert!(most >= pages, "{how}: at most {most}, and it copied {pages}");
        // The bound is as narrow as the page faults say.
        assert!(most <= pages + 4 * BESIDES_MAX, "{how}: at most {most}, and it copied {pages}");
        let text = changes.run(&["--mode", "count", "-v"], how, pages).err;
        assert!(text.contains("At least ") && text.contains(", at most "), "{how}: {text}");
    }
}

#[test]
fn a_loss_is_told_once() {
    let changes = Changes::new();
    let report = changes.json("count", "exec", 1000);
    let told = |gap: &&Value| gap["details"].to_string().contains("at most");
    let gaps: Vec<&Value> = report["gaps"].as_array().expect("gaps").iter().filter(told).collect();
    assert_eq!(gaps.len(), 1, "{gaps:#?}");
    assert_eq!((gaps[0]["what"].as_str(), gaps[0]["times"].as_u64()), (Some("executed"), Some(1)), "{gaps:#?}");
}

/// Copies and first touches of the memory that the program itself maps.
fn in_anonymous_memory(report: &Value) -> (u64, u64) {
    let is_ours = |mapping: &&Value| mapping["kind"] == "anonymous" && mapping["bytes"].as_u64() >= Some(1 << 20);
    let count = |name: &str| {
        let of = |interval: &Value| {
            let mappings = interval["mappings"].as_array().expect("mappings").iter().filter(is_ours);
            mappings.filter_map(|mapping| mapping["pages"][name].as_u64()).sum::<u64>()
        };
        report["intervals"].as_array().expect("intervals").iter().map(of).sum()
    };
    (count("copy") + count("copy_or_reuse"), count("first_touch"))
}

#[test]
fn shared_pages_stay_when_they_are_given_back_lazily_and_writing_them_copies() {
    let changes = Changes::new();
    let mut modes = vec!["count"];
    match may_trace() {
        Some(why) => skip(&why),
        None => modes.push("trace"),
    }
    // Others are not told what a fault found in its place.
    match may_hear_faults() {
        Some(why) => skip(&why),
        None if is_root() => modes.push("faults"),
        None => {}
    }
    for mode in modes {
        let (copied, touched) = in_anonymous_memory(&changes.json(mode, "free", 400));
        // The kernel may have put pages of the C library right beside it.
        let (many, few) = (200..=210, 0..=10);
        assert!(many.contains(&copied) && few.contains(&touched), "{mode}: {copied} copied, {touched} touched lazily");
        let (copied, touched) = in_anonymous_memory(&changes.json(mode, "drop", 400));
        assert!(few.contains(&copied) && many.contains(&touched), "{mode}: {copied} copied, {touched} touched dropped");
    }
}

#[test]
fn pages_that_are_given_back_one_by_one_beside_a_busy_process_are_no_copies() {
    let changes = Changes::new();
    let report = changes.scratch.path("report");
    let options = ["--mode", "count", "--json", "--force", "-o", report.to_str().expect("text")];
    let program = changes.program.to_str().expect("text");
    // All of them share the first processor that is allowed.
    let script = r#"cpu=$(taskset -cp $$ | sed 's/.*: \([0-9]*\).*/\1/') && exec taskset -c "$cpu" "$@""#;
    let watched = cowbell(&options, [program, "pressed", "400"]);
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script, "sh"]).arg(watched.get_program()).args(watched.get_args());
    let outcome = run(&changes.scratch, &mut command);
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let report = serde_json::from_str(&std::fs::read_to_string(&report).expect("the report")).expect("JSON");
    let (copied, touched) = in_anonymous_memory(&report);
    assert!(copied <= 10 && (200..=210).contains(&touched), "{copied} copied, {touched} touched");
}

#[test]
fn arming_costs_in_proportion_to_the_mappings() {
    let changes = Changes::new();
    let arming = |mappings: u64| {
        let once = || {
            let report = changes.json("count", "map", mappings);
            let arming = report["overhead"]["arming_ns"].as_u64();
            arming.expect("a number")
        };
        (0..3).map(|_| once()).min().expect("three")
    };
    let (few, many) = (arming(3000), arming(12_000));
    println!("3,000 pairs of mappings are armed in {few} ns, 12,000 in {many} ns");
    // Four times as many: four times as long, not sixteen times.
    assert!(many < 8 * few, "{few} ns, then {many} ns");
}

#[test]
fn what_looking_cost_includes_the_end_of_the_processes() {
    let changes = Changes::new();
    let overhead = changes.json("count", "free", 20_000)["overhead"].clone();
    let of = |name: &str| overhead[name].as_u64().expect("a number");
    // Ten thousand pages are compared with their originals there.
    assert!(of("closing_ns") > 10_000 * 100, "{overhead}");
    let share = overhead["share"].as_f64().expect("a share");
    assert!(share > 0.0 && of("stops_ns") > 0, "{overhead}");
}

#[test]
fn writes_through_proc_mem_are_counted_and_under_trace_they_fail_and_that_is_said() {
    let changes = Changes::new();
    let (copied, _) = in_anonymous_memory(&changes.json("count", "mem", 300));
    assert!((300..=310).contains(&copied), "{copied}");
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let program = changes.program.to_str().expect("text");
    let outcome = run(&changes.scratch, &mut cowbell(&["--mode", "trace"], [program, "mem", "300"]));
    assert_eq!(outcome.code, Some(5), "EIO, as the report says: {}", outcome.err);
    let text = outcome.err.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("writes through /proc/PID/mem into pages not written yet fail with EIO"), "{text}");
}

/// A parent that maps memory with huge pages, of a file or of nobody, and a child that writes a byte in each of two.
const HUGE: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	size_t bytes = 4 << 20;
	int file = open(argv[1], O_CREAT | O_RDWR, 0600);
	char *data;
	if (file < 0 || ftruncate(file, bytes))
		return 77;
	data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	if (data == MAP_FAILED)
		return 77;
	memset(data, 1, bytes);
	if (fork() == 0) {
		data[0] = data[bytes / 2] = 2;
		_exit(0);
	}
	wait(NULL);
	return 0;
}
"#;

#[test]
fn pages_of_a_file_of_huge_pages_are_said_not_to_be_watched() {
    if !is_root() {
        return skip("only root mounts file systems and has huge pages set aside");
    }
    let scratch = Scratch::new();
    let program = scratch.compile("huge", HUGE, &[]).expect("it compiles");
    let folder = scratch.path("mounted");
    std::fs::create_dir(&folder).expect("a folder");
    let reserve = "/proc/sys/vm/nr_hugepages";
    let before = std::fs::read_to_string(reserve).unwrap_or_default();
    let reserved = std::fs::write(reserve, "8").is_ok();
    let tool = crate::lab::tool();
    let outcomes: Vec<Outcome> = ["count", "trace"]
        .map(|mode| {
            // Mounted for this process alone.
            let script = "mount -t hugetlbfs none \"$1\" && exec \"$2\" run --mode \"$3\" -- \"$4\" \"$1/file\"";
            let words = [folder.as_os_str(), tool.as_os_str(), mode.as_ref(), program.as_os_str()];
            run(&scratch, std::process::Command::new("unshare").args(["--mount", "sh", "-c", script, "sh"]).args(words))
        })
        .into();
    let _restored = std::fs::write(reserve, before.trim());
    if !reserved || outcomes.iter().any(|outcome| outcome.code != Some(0)) {
        return skip(&format!("no huge pages can be set aside, or no file system of them mounted: {outcomes:?}"));
    }
    for Outcome { err, .. } in outcomes {
        let text = err.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains("mounted/file: huge pages of hugetlbfs are not watched"), "{text}");
        assert!(!text.contains("MiB of the") && !text.contains("all is well"), "{text}");
    }
}

/// A parent that watches its own memory by a userfaultfd when it forks.
const OTHERS: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void)
{
	size_t bytes = 800 * 4096;
	char *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register all = { .range = { (unsigned long)data, bytes }, .mode = UFFDIO_REGISTER_MODE_MISSING };
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	memset(data, 1, bytes);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &all))
		return 77;
	if (fork() == 0) {
		usleep(300000);
		_exit(0);
	}
	wait(NULL);
	return 0;
}
"#;

#[test]
fn memory_that_another_watches_is_not_called_new() {
    let scratch = Scratch::new();
    let program = scratch.compile("others", OTHERS, &[]).expect("it compiles");
    let report = scratch.path("report");
    let options = ["--mode", "count", "--json", "-o", report.to_str().expect("text")];
    let outcome = run(&scratch, &mut cowbell(&options, [program]));
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let report: Value = serde_json::from_slice(&std::fs::read(&report).expect("the report")).expect("JSON");
    let gaps = report["gaps"].to_string();
    assert!(gaps.contains("another userfaultfd watches it"), "{gaps}");
    assert_eq!(report["growth"]["lines"].as_array().map(Vec::len), Some(0), "{}", report["growth"]);
}
