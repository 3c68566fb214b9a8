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
        // As narrow as the page faults say.
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
