//! Exactness: every page and every class, equal to what is known of a program that does as its script says.

use crate::case::{Case, Kind, Op, Random, Region, Step};
use crate::lab::{Capture, Outcome, Scratch, cases, cowbell, is_root, run, skip};
use crate::model::{self, Fault};
use crate::record::{Mode, WriteClass};
use crate::verdict::{self, Log, check_frames};
use std::path::PathBuf;
use std::process::Command;

/// The writer, and what a run of it leaves behind.
struct Writer {
    scratch: Scratch,
    programs: Vec<PathBuf>,
}

impl Writer {
    fn new() -> Self {
        let scratch = Scratch::new();
        let source = include_str!("../targets/writer.c");
        let dynamic = scratch.compile("writer", source, &[]).expect("the writer compiles");
        let built_static = scratch.compile("writer-static", source, &["-static"]).expect("libc6-dev has libc.a");
        Self { scratch, programs: vec![dynamic, built_static] }
    }

    /// The command line of the writer for a case.
    fn arguments(&self, case: &Case, nth: u64) -> Vec<PathBuf> {
        let script = self.scratch.file("script", &case.to_string());
        let program = self.programs[nth as usize % self.programs.len()].clone();
        vec![program, script, self.scratch.path("log"), self.scratch.path("data")]
    }

    fn log(&self) -> Log {
        Log::read(&self.scratch.path("log"))
    }
}

#[test]
fn the_model_agrees_with_the_page_tables_of_an_unwatched_run() {
    let writer = Writer::new();
    for seed in 0..cases(100) {
        let case = Case::random(seed);
        let arguments = writer.arguments(&case, seed);
        let outcome = run(&writer.scratch, Command::new(&arguments[0]).args(&arguments[1..]));
        assert_eq!(outcome.code, Some(0), "seed {seed}: {}\n{case}", outcome.err);
        let wrong = check_frames(&model::play(&case), &writer.log());
        assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}\n{case}");
    }
}

/// Runs a case under the tool and returns all that is not as it must be.
fn differences(writer: &Writer, case: &Case, nth: u64, mode: Mode) -> (Outcome, Vec<String>) {
    let capture = writer.scratch.path("capture");
    let name = match mode {
        Mode::Count => "count",
        Mode::Faults => "faults",
        Mode::Trace => "trace",
    };
    let file = capture.to_str().expect("text");
    let options = ["-q", "--mode", name, "--stacks", "0", "--capture", file, "--force"];
    let outcome = run(&writer.scratch, &mut cowbell(&options, writer.arguments(case, nth)));
    if outcome.code != Some(0) {
        return (outcome, vec!["the target did not end well".to_owned()]);
    }
    let (truth, log, capture) = (model::play(case), writer.log(), Capture::read(&capture));
    (outcome, verdict::differences(case, &truth, &log, &capture, mode))
}

/// Leaves out of a wrong case what it can do without.
fn smaller(writer: &Writer, case: Case, nth: u64, mode: Mode) -> Case {
    let mut small = case;
    let mut at = small.steps.len();
    while at > 0 {
        at -= 1;
        let step = small.steps[at];
        if matches!(step.op, Op::Fork | Op::Map | Op::Move | Op::Unlock | Op::Protect | Op::Unmap) || step.op.ends() {
            continue;
        }
        let mut less = small.clone();
        less.steps.remove(at);
        let (outcome, wrong) = differences(writer, &less, nth, mode);
        if outcome.code == Some(0) && !wrong.is_empty() {
            small = less;
        }
    }
    small
}

/// The most wrong cases that are told: they say enough.
const WRONG_MAX: usize = 5;

fn every_case(mode: Mode, count: u64) {
    let writer = Writer::new();
    let first = std::env::var("COWBELL_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut bad: Vec<(u64, Vec<String>)> = Vec::new();
    for seed in first..first + cases(count) {
        let (outcome, mut wrong) = differences(&writer, &Case::random(seed), seed, mode);
        if !wrong.is_empty() {
            let more = wrong.len();
            wrong.truncate(4);
            wrong.push(format!("... {more} in all; the tool said {}", outcome.err));
            bad.push((seed, wrong));
        }
        if bad.len() == WRONG_MAX {
            break;
        }
    }
    let Some(&(seed, _)) = bad.first() else { return };
    let small = smaller(&writer, Case::random(seed), seed, mode);
    let (_, still) = differences(&writer, &small, seed, mode);
    panic!("{mode:?}: {bad:#?}\nwhat is left of COWBELL_SEED={seed}: {still:#?}\n{small}");
}

/// Why this user may not trace, if so. Kernel writes would fail under a userfaultfd of user mode only.
pub fn may_trace() -> Option<String> {
    let outcome = run(&Scratch::new(), &mut cowbell(&["--mode", "trace"], ["true"]));
    let why = (outcome.code == Some(125)).then_some(outcome.err)?;
    assert!(!is_root(), "root may trace: {why}");
    assert!(why.contains("count"), "says what can be done instead: {why}");
    Some(format!("this user may not trace: {why}"))
}

#[test]
fn counting_finds_every_page_and_class_of_random_cases() {
    every_case(Mode::Count, 200);
}

#[test]
fn tracing_finds_every_page_and_class_of_random_cases() {
    match may_trace() {
        Some(why) => skip(&why),
        None => every_case(Mode::Trace, 200),
    }
}

/// Why this user may not hear of page faults, if so: then pages are counted, and the report says why.
pub fn may_hear_faults() -> Option<String> {
    let scratch = Scratch::new();
    let capture = scratch.path("capture");
    let options = ["--mode", "faults", "--capture", capture.to_str().expect("text")];
    let outcome = run(&scratch, &mut cowbell(&options, ["true"]));
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let capture = Capture::read(&capture);
    let header = capture.header();
    if header.mode == Mode::Faults {
        return None;
    }
    let why = &header.mode_reason;
    assert!(!is_root(), "root may: {why}");
    assert_eq!(header.mode, Mode::Count, "{why}");
    assert!(why.contains("perf_event_paranoid") || why.contains("seccomp"), "says what helps: {why}");
    Some(format!("this user may not hear of page faults: {why}"))
}

#[test]
fn page_faults_find_every_page_and_class_of_random_cases() {
    match may_hear_faults() {
        Some(why) => skip(&why),
        // The test's cases are full of system calls that write and of mappings that move.
        None if !is_root() => skip("only root is told of the kernel's faults, and sees by page frames what was moved"),
        None => every_case(Mode::Faults, 60),
    }
}

/// A case in which every copy is of memory that was there at the fork: what taskstats counts, and nothing else.
fn anonymous_case(seed: u64) -> Case {
    let mut random = Random::new(seed);
    let pages = 20 + random.below(40);
    let regions = vec![Region { kind: Kind::Anon, pages }; 2];
    let mut steps = vec![Step::on(0, Op::Write, 0, 0, pages), Step::on(0, Op::Write, 1, 0, 1)];
    steps.push(Step::on(0, Op::Read, 1, 1, pages - 1));
    steps.extend([Step::of(0, Op::Fork, 1), Step::of(1, Op::Settle, 0), Step::of(1, Op::Settle, 0)]);
    // Only while the others sleep is its count still.
    steps.push(Step::of(0, Op::Stats, 1));
    for _ in 0..30 {
        let page = random.below(pages);
        let pages = (1 + random.below(4)).min(pages - page);
        let actor = usize::from(random.below(4) > 0);
        let op = [Op::Write, Op::Kwrite, Op::Read][random.below(3)];
        steps.push(Step::on(actor, op, random.below(2), page, pages));
    }
    steps.extend([Step::of(0, Op::Stats, 1), Step::of(1, Op::Quit, 0)]);
    Case { regions, steps }
}

/// Switches the kernel's counting of delays on; as it was when dropped.
struct Accounting(String);

impl Accounting {
    const SETTING: &str = "/proc/sys/kernel/task_delayacct";

    fn on() -> Result<Self, std::io::Error> {
        let was = std::fs::read_to_string(Self::SETTING)?;
        std::fs::write(Self::SETTING, "1")?;
        Ok(Self(was))
    }
}

impl Drop for Accounting {
    fn drop(&mut self) {
        let _best_effort = std::fs::write(Self::SETTING, &self.0);
    }
}

/// `wpcopy_count` counts copies of pages that were mapped, the page of zeroes among them; not reuse, not first touches,
/// and not the copy of a file's page that was not mapped before. So only anonymous memory is compared to the page; the
/// child's whole count lies between what the tool says of it with and without pages of files.
#[test]
fn copies_are_as_many_as_the_kernel_counts_in_taskstats() {
    let accounting = Accounting::on();
    if let Err(e) = &accounting {
        assert!(!is_root(), "{}: {e}", Accounting::SETTING);
        return skip(&format!("{}: {e}", Accounting::SETTING));
    }
    let writer = Writer::new();
    for (seed, mode) in
        (0..cases(20)).flat_map(|seed| [Mode::Count, Mode::Faults, Mode::Trace].map(|mode| (seed, mode)))
    {
        let case = anonymous_case(seed);
        let (outcome, wrong) = differences(&writer, &case, seed, mode);
        assert!(wrong.is_empty(), "seed {seed}, {mode:?}: {wrong:#?}\n{case}{}", outcome.err);
        let (truth, log) = (model::play(&case), writer.log());
        let [(_, before), (_, after)] = log.stats.iter().collect::<Vec<_>>()[..] else { panic!("asked twice") };
        if *before < 0 {
            return skip("no taskstats in this kernel");
        }
        let copied =
            |fault: &&Fault| fault.actor == 1 && matches!(fault.kernel, WriteClass::Copy | WriteClass::ZeroPage);
        let due = truth.faults.iter().filter(copied).count() as i64;
        assert_eq!(after - before, due, "seed {seed}, {mode:?}\n{case}");

        let capture = Capture::read(&writer.scratch.path("capture"));
        let pages = |classes: &[WriteClass]| -> i64 {
            let ends = capture.of(log.pids[&1]).filter_map(|interval| interval.end.as_ref());
            let runs = ends.flat_map(|end| &end.pages).filter(|run| classes.contains(&run.class));
            runs.map(|run| run.pages as i64).sum()
        };
        let (least, files) = (pages(&[WriteClass::Copy, WriteClass::ZeroPage]), pages(&[WriteClass::PrivateFile]));
        // Asked before its last step, the kernel has not counted what leaving copies: names bound by then, the stack.
        let agree = (least - 2..=least + files).contains(after);
        assert!(agree, "seed {seed}, {mode:?}: {least} copies and {files} of files, and the kernel counts {after}");
    }
}
