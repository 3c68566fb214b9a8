//! Exactness: every page and every class, equal to what is known of a program that does as its script says.

use crate::case::{Case, Kind, Op, Random, Region, Step};
use crate::lab::{Account, Capture, Outcome, Scratch, cases, cowbell, is_root, run, skip};
use crate::model::{self, Fault, Seen, Truth};
use crate::record::{Blindness, Class, Closed, Mode, Origin, Record, Role};
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

    /// The accounts of an actor in the order in which they opened.
    fn accounts(&self, actor: usize) -> Vec<&Account> {
        self.capture.of(self.log.pids[&actor]).collect()
    }

    /// A child has an account from its birth, one more from each fork of its own, and all of them are closed.
    fn check_accounts(&mut self) {
        for (&actor, &parent) in &self.truth.parents {
            let pid = self.log.pids[&actor];
            let forks = self.truth.parents.values().filter(|other| **other == actor).count();
            let mut due = vec![(Role::Child, Closed::Forked); forks];
            let end = if self.truth.ends[&actor] == Op::Exec { Closed::Exec } else { Closed::Exit };
            due.push((Role::Child, end));
            let closed = |account: &&Account| (account.begin.role, account.end.as_ref().map(|end| end.closed));
            let found: Vec<_> = self.accounts(actor).iter().map(closed).collect();
            if !found.iter().copied().eq(due.iter().map(|&(role, closed)| (role, Some(closed)))) {
                self.say(format!("accounts of actor {actor}: {found:?}, not {due:?}"));
            }
            let forked = self.capture.records.iter().any(
                |record| matches!(record, Record::Process(p) if p.pid == pid && p.parent == self.log.pids[&parent]),
            );
            if !forked {
                self.say(format!("nothing says that actor {parent} forked actor {actor}"));
            }
        }
        let forks = self.truth.parents.values().filter(|other| **other == 0).count();
        let first = self.accounts(0);
        if first.len() != forks || first.iter().any(|account| account.begin.role != Role::Parent) {
            let found: Vec<_> = first.iter().map(|account| account.begin.role).collect();
            self.say(format!("the first process forked {forks} times, and has the accounts {found:?}"));
        }
        for (actor, _) in self.truth.ends.iter().filter(|(_, op)| self.mode == Mode::Count && **op == Op::Exec) {
            let pid = self.log.pids[actor];
            let is_told = |r: &Record| matches!(r, Record::Blind(b) if b.pid == pid && b.what == Blindness::Executed);
            if !self.capture.records.iter().any(is_told) {
                self.wrong.push(format!("nothing says that what actor {actor} copied before exec was not counted"));
            }
        }
        let is_sharing = |r: &&Record| matches!(r, Record::Process(p) if p.origin == Origin::Shares);
        let sharing = self.capture.records.iter().filter(is_sharing).count();
        if self.truth.sharing != sharing {
            self.say(format!("{sharing} processes share memory, not {}", self.truth.sharing));
        }
    }

    /// The pages of all accounts, by actor, account and place.
    fn reported(&self) -> BTreeMap<(usize, usize, Place), Vec<Class>> {
        let mut reported: BTreeMap<_, Vec<Class>> = BTreeMap::new();
        for &actor in self.log.pids.keys() {
            let mut places = BTreeMap::new();
            self.log.places(self.case, actor, usize::MAX, &mut places);
            for (epoch, account) in self.accounts(actor).into_iter().enumerate() {
                for run in account.end.iter().flat_map(|end| &end.pages) {
                    for nth in 0..run.pages {
                        if let Some(&place) = places.get(&(run.start + nth * self.log.page_size)) {
                            reported.entry((actor, epoch, place)).or_default().push(run.class);
                        }
                    }
                }
            }
        }
        reported
    }

    fn check_pages(&mut self) {
        let mut reported = self.reported();
        let mut missing: BTreeMap<(usize, usize), u64> = BTreeMap::new();
        for fault in &self.truth.faults {
            let Fault { actor, epoch, place, .. } = *fault;
            let kind = self.case.regions[place.0].kind;
            // A page that was moved may be told at both its addresses.
            let classes = reported.remove(&(actor, epoch, place)).unwrap_or_default();
            match classes.first() {
                // What it had is gone with exec, and only events tell of it.
                None if fault.gone || self.is_lost_by_exec(fault) => {
                    // First touches are no copies, and what was mapped since the fork has none.
                    let counts = self.must_be_bounded(fault);
                    *missing.entry((actor, epoch)).or_default() += u64::from(counts);
                }
                None => self.wrong.push(format!("{kind:?} missing: {fault:?}")),
                Some(_) if classes.iter().all(|&class| self.may_be_called(fault, class)) => {}
                Some(_) => self.wrong.push(format!("{kind:?} {classes:?}, but {fault:?}")),
            }
        }
        for ((actor, epoch, place), classes) in reported {
            let kind = self.case.regions[place.0].kind;
            self.say(format!("actor {actor} account {epoch} {kind:?} {place:?}: {classes:?}, and nothing was written"));
        }
        for ((actor, epoch), pages) in missing {
            let end = self.accounts(actor).get(epoch).and_then(|account| account.end.as_ref());
            let bound = end.map_or(0, |end| end.unmapped_uncounted);
            if pages > bound {
                self.say(format!("actor {actor} account {epoch}: {pages} pages gone and untold, said at most {bound}"));
            }
        }
    }

    fn is_lost_by_exec(&self, fault: &Fault) -> bool {
        let account = self.accounts(fault.actor).into_iter().nth(fault.epoch);
        let closed = account.and_then(|account| account.end.as_ref()).map(|end| end.closed);
        closed == Some(Closed::Exec) && !(self.mode == Mode::Trace && self.must_be_an_event(fault))
    }

    /// If it is gone and was not told, it must be within `unmapped_uncounted`; tracing has events of all such pages.
    fn must_be_bounded(&self, fault: &Fault) -> bool {
        let was_empty = fault.kernel == Class::ZeroPage && fault.empty_at_fork;
        !(fault.late || was_empty || fault.kernel == Class::FirstTouch)
    }

    fn may_be_called(&self, fault: &Fault, class: Class) -> bool {
        let frames = self.log.zero & FRAME != 0;
        let either = class == Class::CopyOrReuse && !frames && matches!(fault.kernel, Class::Copy | Class::Reuse);
        either || fault.classes.contains(&class)
    }

    /// Tracing: the first write of what was inherited is an event, with the thread and the instruction or the system
    /// call. Not of ordinary files, which the kernel does not let be watched so; nor of pages that were not there.
    fn must_be_an_event(&self, fault: &Fault) -> bool {
        let kind = self.case.regions[fault.place.0].kind;
        let is_plain_file = matches!(kind, Kind::File | Kind::Data | Kind::LateFile);
        let inherited = !fault.empty_at_fork || kind == Kind::Memfd && !fault.dropped;
        !fault.late && !is_plain_file && inherited && fault.kernel != Class::FirstTouch
    }

    fn check_events(&mut self) {
        let mut wrong = Vec::new();
        for (&actor, &pid) in &self.log.pids {
            let mut places = BTreeMap::new();
            self.log.places(self.case, actor, usize::MAX, &mut places);
            for (epoch, account) in self.capture.of(pid).enumerate() {
                let mut events = BTreeMap::new();
                for event in &account.events {
                    if let Some(&place) = places.get(&event.page) {
                        events.entry(place).or_insert(*event);
                    }
                }
                let mine = |f: &&Fault| f.actor == actor && f.epoch == epoch && self.must_be_an_event(f);
                for fault in self.truth.faults.iter().filter(mine) {
                    let (op, event) = (self.case.steps[fault.step].op, events.get(&fault.place));
                    let right = event.is_some_and(|event| {
                        let by_kernel = event.syscall.is_some() == (op == Op::Kwrite);
                        by_kernel && event.pc != 0 && event.tid != 0 && (op != Op::Write || event.tid == pid)
                    });
                    if !right {
                        wrong.push(format!("{op:?} of pid {pid} as {event:?}: {fault:?}"));
                    }
                }
            }
        }
        self.wrong.extend(wrong);
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

/// So many wrong cases say enough.
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
        // Asked before its last step, the kernel has not counted what leaving copies: names bound by then, the stack.
        let agree = (least - 2..=least + files).contains(after);
        assert!(agree, "seed {seed}, {mode:?}: {least} copies and {files} of files, and the kernel counts {after}");
    }
}
