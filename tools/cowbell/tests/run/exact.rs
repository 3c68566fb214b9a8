//! Exactness: every page and every class, equal to what is known of a program that does as its script says.

use crate::case::{Case, Kind, Op, Random, Region, Step};
use crate::lab::{Account, Capture, Outcome, Scratch, cases, cowbell, is_root, run, skip};
use crate::model::{self, Fault, Seen, Truth};
use crate::record::{Blindness, Class, Closed, Mode, Record, Role};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A page of a region.
type Place = (usize, usize);

/// What writer.c wrote down of a run.
#[derive(Default)]
struct Log {
    page_size: u64,
    zero: u64,
    pids: BTreeMap<usize, i32>,
    /// Step (from 1), actor, region, address.
    bases: Vec<(usize, usize, usize, u64)>,
    /// Words of pagemap before and after a step, by step and page.
    seen: BTreeMap<(usize, usize), (u64, u64)>,
    stats: BTreeMap<usize, i64>,
}

impl Log {
    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).expect("the writer's log");
        let mut log = Self::default();
        for line in text.lines() {
            let mut words = line.split(' ');
            let what = words.next().expect("a word");
            let n: Vec<u64> = words.map(|word| u64::from_str_radix(word, 16).expect("a number")).collect();
            match (what, &n[..]) {
                ("page", &[bytes]) => log.page_size = bytes,
                ("zero", &[word]) => log.zero = word,
                ("process", &[actor, pid]) => {
                    log.pids.insert(actor as usize, pid as i32);
                }
                ("stats", &[step, count]) => {
                    log.stats.insert(step as usize, count as i64);
                }
                ("base", &[step, actor, region, address]) => {
                    log.bases.push((step as usize, actor as usize, region as usize, address));
                }
                ("seen", &[step, page, before, after]) => {
                    log.seen.insert((step as usize, page as usize), (before, after));
                }
                _ => panic!("{line}"),
            }
        }
        log
    }

    /// Where each page that an actor ever had lay, also before it was moved.
    fn places(&self, case: &Case, actor: usize, before_step: usize, into: &mut BTreeMap<u64, Place>) {
        let fork = case.steps.iter().position(|s| s.op == Op::Fork && s.value == actor);
        if let Some(fork) = fork {
            self.places(case, case.steps[fork].actor, fork + 1, into);
        }
        for &(_, _, region, base) in self.bases.iter().filter(|b| b.1 == actor && b.0 < before_step) {
            for page in 0..case.regions[region].pages {
                into.insert(base + page as u64 * self.page_size, (region, page));
            }
        }
    }
}

const PRESENT: u64 = 1 << 63;
const FILE: u64 = 1 << 61;
const EXCLUSIVE: u64 = 1 << 56;
const FRAME: u64 = (1 << 55) - 1;

/// Does what the writer saw of its page tables agree with the model?
fn check_frames(truth: &Truth, log: &Log) -> Vec<String> {
    let mut wrong = Vec::new();
    for (&(step, page), &seen) in &truth.seen {
        let Some(&(before, after)) = log.seen.get(&(step, page)) else {
            wrong.push(format!("step {step} page {page} was not reached"));
            continue;
        };
        let there = before & PRESENT != 0;
        let own_after = after & PRESENT != 0 && after & FILE == 0;
        let same = before & FRAME == after & FRAME;
        // Frames are 0 for who may not see them; the other bits are true for everybody.
        let frames = log.zero & FRAME != 0;
        let right = match seen {
            Seen::Nothing => true,
            Seen::Own => there && own_after && (!frames || same),
            Seen::Fault(Class::FirstTouch) => !there && own_after,
            Seen::Fault(Class::ZeroPage) => {
                there && own_after && (!frames || before & FRAME == log.zero & FRAME && !same)
            }
            Seen::Fault(Class::PrivateFile) => (!there || before & FILE != 0) && own_after && (!frames || !same),
            Seen::Fault(_) => there && before & (FILE | EXCLUSIVE) == 0 && own_after && (!frames || !same),
        };
        if !right {
            wrong.push(format!("step {step} page {page}: {seen:?}, but pagemap went from {before:x} to {after:x}"));
        }
    }
    wrong
}

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

/// What a report said of one page, account by account.
type Reported = BTreeMap<(usize, Place), Vec<Class>>;

struct Verdict<'a> {
    case: &'a Case,
    truth: &'a Truth,
    log: &'a Log,
    capture: &'a Capture,
    mode: Mode,
    wrong: Vec<String>,
}

impl Verdict<'_> {
    fn say(&mut self, what: String) {
        self.wrong.push(what);
    }

    /// One account of each child from birth to end, and at least one of a parent; none was lost.
    fn check_accounts(&mut self) {
        for (&actor, &parent) in &self.truth.parents {
            let pid = self.log.pids[&actor];
            let mine: Vec<&Account> = self.capture.of(pid).filter(|a| a.begin.role == Role::Child).collect();
            let [account] = mine[..] else {
                self.wrong.push(format!("actor {actor} has {} accounts of a child", mine.len()));
                continue;
            };
            let due = if self.truth.ends[&actor] == Op::Exec { Closed::Exec } else { Closed::Exit };
            match account.end.as_ref().map(|end| end.closed) {
                Some(closed) if closed == due => {}
                other => self.wrong.push(format!("the account of actor {actor} closed with {other:?}, not {due:?}")),
            }
            let forked = self.capture.records.iter().any(
                |record| matches!(record, Record::Process(p) if p.pid == pid && p.parent == self.log.pids[&parent]),
            );
            if !forked {
                self.wrong.push(format!("nothing says that actor {parent} forked actor {actor}"));
            }
        }
        let first = self.log.pids[&0];
        if !self.capture.of(first).any(|account| account.begin.role == Role::Parent) {
            self.say("the first process forked, and has no account".to_owned());
        }
        let is_sharing = |r: &&Record| matches!(r, Record::Blind(b) if b.what == Blindness::SharesMemory);
        if self.truth.sharing > 0 && self.capture.records.iter().find(is_sharing).is_none() {
            self.say("vfork was not spoken of".to_owned());
        }
    }

    /// The pages of all accounts, by actor and place.
    fn reported(&mut self) -> Reported {
        let mut reported = Reported::new();
        for (&actor, &pid) in &self.log.pids {
            let mut places = BTreeMap::new();
            self.log.places(self.case, actor, usize::MAX, &mut places);
            for account in self.capture.of(pid) {
                let Some(end) = &account.end else { continue };
                for run in &end.pages {
                    for nth in 0..run.pages {
                        if let Some(&place) = places.get(&(run.start + nth * self.log.page_size)) {
                            reported.entry((actor, place)).or_default().push(run.class);
                        }
                    }
                }
            }
        }
        reported
    }

    fn check_pages(&mut self) {
        let reported = self.reported();
        let mut known: BTreeMap<(usize, Place), Vec<&Fault>> = BTreeMap::new();
        for fault in &self.truth.faults {
            known.entry((fault.actor, fault.place)).or_default().push(fault);
        }
        let mut missing: BTreeMap<usize, u64> = BTreeMap::new();
        for (&(actor, place), faults) in &known {
            let first = faults[0];
            let kind = self.case.regions[place.0].kind;
            let classes = reported.get(&(actor, place)).map_or(&[][..], |classes| classes);
            match classes.first() {
                None if first.gone && (first.late || self.mode == Mode::Count) => {
                    *missing.entry(actor).or_default() += u64::from(!first.late);
                }
                None => self.say(format!("actor {actor} {kind:?} {place:?}: missing, {first:?}")),
                Some(&class) if !self.may_be_called(first, class) => {
                    self.say(format!("actor {actor} {kind:?} {place:?}: {class:?}, but {first:?}"));
                }
                Some(_) => {}
            }
            if classes.len() > faults.len() {
                self.say(format!("actor {actor} {kind:?} {place:?}: {classes:?}, but only {faults:?}"));
            }
        }
        for (&(actor, place), classes) in &reported {
            let kind = self.case.regions[place.0].kind;
            if !known.contains_key(&(actor, place)) {
                self.say(format!("actor {actor} {kind:?} {place:?}: {classes:?}, and nothing was written"));
            }
        }
        for (actor, pages) in missing {
            let bound = |account: &Account| account.end.as_ref().map_or(0, |end| end.unmapped_uncounted);
            let uncounted: u64 = self.capture.of(self.log.pids[&actor]).map(bound).sum();
            if pages > uncounted {
                self.say(format!(
                    "actor {actor}: {pages} pages gone before they were counted, said at most {uncounted}"
                ));
            }
        }
    }

    fn may_be_called(&self, fault: &Fault, class: Class) -> bool {
        let frames = self.log.zero & FRAME != 0;
        let either = class == Class::CopyOrReuse && !frames && matches!(fault.kernel, Class::Copy | Class::Reuse);
        // Counting looks at the end only: what was there at the fork, given back and written anew, is another page.
        let counted = fault.gone && self.mode == Mode::Count;
        either || fault.classes.contains(&class) || counted
    }

    /// Tracing: each first write is an event, with the thread and the instruction or the system call.
    fn check_events(&mut self) {
        for (&actor, &pid) in &self.log.pids {
            let mut places = BTreeMap::new();
            self.log.places(self.case, actor, usize::MAX, &mut places);
            let mut events = BTreeMap::new();
            for event in self.capture.of(pid).flat_map(|account| &account.events) {
                if let Some(&place) = places.get(&event.page) {
                    events.entry(place).or_insert(*event);
                }
            }
            for fault in self.truth.faults.iter().filter(|f| f.actor == actor && f.required && !f.late) {
                let op = self.case.steps[fault.step].op;
                // A private file cannot be watched synchronously: its pages are read when the account closes.
                let may_be_silent = matches!(self.case.regions[fault.place.0].kind, Kind::File | Kind::Data);
                let Some(event) = events.get(&fault.place) else {
                    if !may_be_silent {
                        self.wrong.push(format!("no event: {fault:?}"));
                    }
                    continue;
                };
                if event.syscall.is_some() != (op == Op::Kwrite) {
                    self.wrong.push(format!("{op:?} as {event:?}"));
                }
                if event.pc == 0 || event.tid == 0 || (op == Op::Write && event.tid != pid) {
                    self.wrong.push(format!("{op:?} by nobody or nowhere: {event:?}"));
                }
            }
        }
    }
}

/// Runs a case under the tool and returns all that is not as it must be.
fn differences(writer: &Writer, case: &Case, nth: u64, mode: Mode) -> (Outcome, Vec<String>) {
    let capture = writer.scratch.path("capture");
    let name = if mode == Mode::Count { "count" } else { "trace" };
    let file = capture.to_str().expect("text");
    let options = ["-q", "--mode", name, "--stacks", "0", "--capture", file, "--force"];
    let outcome = run(&writer.scratch, &mut cowbell(&options, writer.arguments(case, nth)));
    if outcome.code != Some(0) {
        return (outcome, vec!["the target did not end well".to_owned()]);
    }
    let (truth, log, capture) = (model::play(case), writer.log(), Capture::read(&capture));
    let wrong = check_frames(&truth, &log);
    let mut verdict = Verdict { case, truth: &truth, log: &log, capture: &capture, mode, wrong };
    verdict.check_accounts();
    verdict.check_pages();
    if mode == Mode::Trace {
        verdict.check_events();
    }
    (outcome, verdict.wrong)
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

fn every_case(mode: Mode, count: u64) {
    let writer = Writer::new();
    let first = std::env::var("COWBELL_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    for seed in first..first + cases(count) {
        let case = Case::random(seed);
        let (outcome, wrong) = differences(&writer, &case, seed, mode);
        if !wrong.is_empty() {
            let small = smaller(&writer, case, seed, mode);
            let (_, still) = differences(&writer, &small, seed, mode);
            panic!(
                "COWBELL_SEED={seed}, {mode:?}: {wrong:#?}\nit said: {}\nleft of it: {still:#?}\n{small}",
                outcome.err
            );
        }
    }
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
    for (seed, mode) in (0..cases(20)).flat_map(|seed| [(seed, Mode::Count), (seed, Mode::Trace)]) {
        let case = anonymous_case(seed);
        let (outcome, wrong) = differences(&writer, &case, seed, mode);
        assert!(wrong.is_empty(), "seed {seed}, {mode:?}: {wrong:#?}\n{case}{}", outcome.err);
        let (truth, log) = (model::play(&case), writer.log());
        let [(_, before), (_, after)] = log.stats.iter().collect::<Vec<_>>()[..] else { panic!("asked twice") };
        if *before < 0 {
            return skip("no taskstats in this kernel");
        }
        let copied = |fault: &&Fault| fault.actor == 1 && matches!(fault.kernel, Class::Copy | Class::ZeroPage);
        let due = truth.faults.iter().filter(copied).count() as i64;
        assert_eq!(after - before, due, "seed {seed}, {mode:?}\n{case}");

        let capture = Capture::read(&writer.scratch.path("capture"));
        let pages = |classes: &[Class]| -> i64 {
            let ends = capture.of(log.pids[&1]).filter_map(|account| account.end.as_ref());
            let runs = ends.flat_map(|end| &end.pages).filter(|run| classes.contains(&run.class));
            runs.map(|run| run.pages as i64).sum()
        };
        let (least, files) = (pages(&[Class::Copy, Class::ZeroPage]), pages(&[Class::PrivateFile]));
        assert!((least..=least + files).contains(after), "seed {seed}, {mode:?}: {least} + {files}, not {after}");
    }
}
