//! A capture against the model: every interval, page, class and event.

use crate::case::{Case, Kind, Op};
use crate::lab::{Capture, Interval, is_root};
use crate::model::{Fault, Seen, Truth};
use crate::record::{Closed, Fault as Row, Mode, Origin, Record, WatchReason, WriteClass};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A page of a region.
type Place = (usize, usize);

/// All that writer.c wrote down of a run.
#[derive(Default)]
pub struct Log {
    /// Bytes a page.
    pub page_size: u64,
    zero: u64,
    /// The process of each actor.
    pub pids: BTreeMap<usize, i32>,
    /// Step (from 1), actor, region, address.
    bases: Vec<(usize, usize, usize, u64)>,
    /// Words of pagemap before and after a step, by step and page.
    seen: BTreeMap<(usize, usize), (u64, u64)>,
    /// The number that taskstats gave, by step; -1 where it cannot.
    pub stats: BTreeMap<usize, i64>,
}

impl Log {
    /// Reads the writer's file.
    pub fn read(path: &Path) -> Self {
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

    /// Collects the addresses of each page that an actor ever had, also those before it was moved.
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

/// Compares what the writer saw of its page tables with the model, and returns the differences.
pub fn check_frames(truth: &Truth, log: &Log) -> Vec<String> {
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
            Seen::Fault(WriteClass::FirstTouch) => !there && own_after,
            Seen::Fault(WriteClass::ZeroPage) => {
                there && own_after && (!frames || before & FRAME == log.zero & FRAME && !same)
            }
            Seen::Fault(WriteClass::PrivateFile) => (!there || before & FILE != 0) && own_after && (!frames || !same),
            Seen::Fault(_) => there && before & (FILE | EXCLUSIVE) == 0 && own_after && (!frames || !same),
        };
        if !right {
            wrong.push(format!("step {step} page {page}: {seen:?}, but pagemap went from {before:x} to {after:x}"));
        }
    }
    wrong
}

/// A comparison of the truth with what a capture says.
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

    /// The intervals of an actor in the order in which they opened.
    fn intervals(&self, actor: usize) -> Vec<&Interval> {
        self.capture.of(self.log.pids[&actor]).collect()
    }

    /// A child has an interval from its birth, one more from each fork of its own, and all of them are closed.
    fn check_intervals(&mut self) {
        for (&actor, &parent) in &self.truth.parents {
            let pid = self.log.pids[&actor];
            let forks = self.truth.parents.values().filter(|other| **other == actor).count();
            let mut due = vec![(WatchReason::Child, Closed::Forked); forks];
            let end = if self.truth.ends[&actor] == Op::Exec { Closed::Exec } else { Closed::Exit };
            due.push((WatchReason::Child, end));
            let closed = |interval: &&Interval| (interval.begin.role, interval.end.as_ref().map(|end| end.closed));
            let found: Vec<_> = self.intervals(actor).iter().map(closed).collect();
            if !found.iter().copied().eq(due.iter().map(|&(role, closed)| (role, Some(closed)))) {
                self.say(format!("intervals of actor {actor}: {found:?}, not {due:?}"));
            }
            let forked = self.capture.records.iter().any(
                |record| matches!(record, Record::Process(p) if p.pid == pid && p.parent == self.log.pids[&parent]),
            );
            if !forked {
                self.say(format!("nothing says that actor {parent} forked actor {actor}"));
            }
        }
        let forks = self.truth.parents.values().filter(|other| **other == 0).count();
        let first = self.intervals(0);
        if first.len() != forks || first.iter().any(|interval| interval.begin.role != WatchReason::Parent) {
            let found: Vec<_> = first.iter().map(|interval| interval.begin.role).collect();
            self.say(format!("the first process forked {forks} times, and has the intervals {found:?}"));
        }
        let is_sharing = |r: &&Record| matches!(r, Record::Process(p) if p.origin == Origin::Shares);
        let sharing = self.capture.records.iter().filter(is_sharing).count();
        if self.truth.sharing != sharing {
            self.say(format!("{sharing} processes share memory, not {}", self.truth.sharing));
        }
    }

    /// The pages of all intervals, by actor, interval and place.
    fn reported(&self) -> BTreeMap<(usize, usize, Place), Vec<WriteClass>> {
        let mut reported: BTreeMap<_, Vec<WriteClass>> = BTreeMap::new();
        for &actor in self.log.pids.keys() {
            let mut places = BTreeMap::new();
            self.log.places(self.case, actor, usize::MAX, &mut places);
            for (epoch, interval) in self.intervals(actor).into_iter().enumerate() {
                for run in interval.end.iter().flat_map(|end| &end.pages) {
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
            // Faults that the kernel takes in a system call are told to root only.
            let untold = self.mode == Mode::Faults && !is_root() && self.case.steps[fault.step].op == Op::Kwrite;
            // A page that was moved may be told at both its addresses.
            let classes = reported.remove(&(actor, epoch, place)).unwrap_or_default();
            match classes.first() {
                // The process' memory is gone with exec, and only events tell of it.
                None if fault.gone || self.is_lost_by_exec(fault) => {
                    // First touches are no copies, and what was mapped since the fork has none.
                    let counts = self.must_be_bounded(fault);
                    *missing.entry((actor, epoch)).or_default() += u64::from(counts);
                }
                None if untold => {}
                None => self.wrong.push(format!("{kind:?} missing: {fault:?}")),
                Some(_) if classes.iter().all(|&class| self.may_be_called(fault, class)) => {}
                // Nobody told of the move: the page is new where it is now, and the bound has room for it.
                Some(_) if self.may_have_moved(fault, &classes) => {
                    let counts = self.must_be_bounded(fault);
                    *missing.entry((actor, epoch)).or_default() += u64::from(counts);
                }
                Some(_) => self.wrong.push(format!("{kind:?} {classes:?}, but {fault:?}")),
            }
        }
        for ((actor, epoch, place), classes) in reported {
            let kind = self.case.regions[place.0].kind;
            self.say(format!(
                "actor {actor} interval {epoch} {kind:?} {place:?}: {classes:?}, and nothing was written"
            ));
        }
        for ((actor, epoch), pages) in missing {
            let end = self.intervals(actor).get(epoch).and_then(|interval| interval.end.as_ref());
            let bound = end.map_or(0, |end| end.unmapped_uncounted);
            if pages > bound {
                self.say(format!(
                    "actor {actor} interval {epoch}: {pages} pages gone and untold, said at most {bound}"
                ));
            }
        }
    }

    /// A page that was written before it was moved is new where it is now: there is no fault of it there.
    fn may_have_moved(&self, fault: &Fault, classes: &[WriteClass]) -> bool {
        let moves =
            |step: &crate::case::Step| (step.op, step.actor, step.region) == (Op::Move, fault.actor, fault.place.0);
        let later = self.case.steps.get(fault.step..).unwrap_or_default();
        self.mode == Mode::Faults
            && (later.iter().any(moves) || !is_root() && self.case.steps.iter().any(moves))
            && classes.iter().all(|class| {
                matches!(class, WriteClass::FirstTouch | WriteClass::PrivateFile) || self.may_be_called(fault, *class)
            })
    }

    fn is_lost_by_exec(&self, fault: &Fault) -> bool {
        let interval = self.intervals(fault.actor).into_iter().nth(fault.epoch);
        let closed = interval.and_then(|interval| interval.end.as_ref()).map(|end| end.closed);
        closed == Some(Closed::Exec) && !(self.mode == Mode::Trace && self.must_be_an_event(fault))
    }

    /// If it is gone and was not told, it must be within `unmapped_uncounted`; tracing has events of all such pages.
    fn must_be_bounded(&self, fault: &Fault) -> bool {
        let was_empty = fault.kernel == WriteClass::ZeroPage && (fault.empty_at_fork || fault.dropped);
        !(fault.late || was_empty || fault.kernel == WriteClass::FirstTouch)
    }

    fn may_be_called(&self, fault: &Fault, class: WriteClass) -> bool {
        // A page that was written, given back and taken again is a copy or a reuse, and no frame is left to tell which. Without
        // frames the faults do not tell it from what was given back before it was written.
        let open = matches!(class, WriteClass::Copy | WriteClass::CopyOrReuse);
        let written = matches!(fault.kernel, WriteClass::Copy | WriteClass::Reuse);
        if self.mode == Mode::Faults && fault.dropped && open && (written || !is_root()) {
            return true;
        }
        if self.mode == Mode::Faults && self.frames_cannot_tell(fault, class) {
            return true;
        }
        // A user who may not ask which call may have given the page back does not know whether the zeroes were still there.
        let was_zero = fault.kernel == WriteClass::FirstTouch && fault.dropped && !fault.empty_at_fork;
        if self.mode == Mode::Count && was_zero && class == WriteClass::ZeroPage && !is_root() {
            return true;
        }
        let frames = self.log.zero & FRAME != 0;
        let either =
            class == WriteClass::CopyOrReuse && !frames && matches!(fault.kernel, WriteClass::Copy | WriteClass::Reuse);
        either || fault.classes.contains(&class)
    }

    /// Even frames leave this open. A fault finds no frame where nothing is, and where the page of zeroes is (a claim about the kernel
    /// says so): if it was given back, only a thread that reads first and faults twice shows that nothing was there; and if it was moved,
    /// only frames of its neighbours show that it was. A frame that came back to its page is no other one.
    fn frames_cannot_tell(&self, fault: &Fault, class: WriteClass) -> bool {
        let is_read_first = self.case.steps[fault.step].op != Op::Kwrite;
        match (fault.kernel, class) {
            (WriteClass::FirstTouch, WriteClass::ZeroPage) => fault.dropped && fault.zero_at_fork && !is_read_first,
            // Written, given back, read and written once more looks like given back, read and written.
            (WriteClass::ZeroPage, WriteClass::FirstTouch) => {
                fault.zero_at_fork && (fault.dropped || self.truth.is_moved_without_a_trace(fault))
            }
            (_, WriteClass::CopyOrReuse) => fault.dropped && self.came_back(fault),
            _ => false,
        }
    }

    /// Tells whether a frame that the process had there since its write is one that was seen in that place before.
    fn came_back(&self, fault: &Fault) -> bool {
        let (mut before, mut since) = (BTreeSet::new(), BTreeSet::new());
        for (&(step, page), &(_, after)) in &self.log.seen {
            let of = self.case.steps[step];
            let is_own = after & FILE == 0 && after & FRAME != 0 && after & FRAME != self.log.zero & FRAME;
            if !is_own || (of.region, page) != fault.place {
                continue;
            }
            if step < fault.step {
                before.insert(after & FRAME);
            } else if of.actor == fault.actor {
                since.insert(after & FRAME);
            }
        }
        !since.is_disjoint(&before)
    }

    /// Tracing: the first write of what was inherited is an event, with the thread and the instruction or the system
    /// call. Not of ordinary files, which the kernel does not let be watched so; nor of pages that were not there.
    fn must_be_an_event(&self, fault: &Fault) -> bool {
        let kind = self.case.regions[fault.place.0].kind;
        let is_plain_file = matches!(kind, Kind::File | Kind::Data | Kind::LateFile);
        // Memory that was dropped lost its protection with its page, but for a memfd's.
        let inherited = match kind {
            Kind::Memfd => !fault.empty_at_fork || !fault.dropped,
            _ => !fault.empty_at_fork && !fault.dropped,
        };
        !fault.late && !is_plain_file && inherited && fault.kernel != WriteClass::FirstTouch
    }

    fn check_events(&mut self) {
        let mut wrong = Vec::new();
        for (&actor, &pid) in &self.log.pids {
            let mut places = BTreeMap::new();
            self.log.places(self.case, actor, usize::MAX, &mut places);
            for (epoch, interval) in self.capture.of(pid).enumerate() {
                let mut events = BTreeMap::new();
                for event in &interval.events {
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

    /// Page faults: each page of the verdict that the program itself wrote has one, of the thread that wrote it. What the
    /// kernel wrote has one where the user may see these, and then it says so. Of pages that were given back and taken again, or
    /// moved, the fault that counts is not known.
    fn check_faults(&mut self) {
        let mut wrong = Vec::new();
        let moved = |region: usize| self.case.steps.iter().any(|step| step.op == Op::Move && step.region == region);
        for (&actor, &pid) in &self.log.pids {
            let mut places = BTreeMap::new();
            self.log.places(self.case, actor, usize::MAX, &mut places);
            for (epoch, interval) in self.capture.of(pid).enumerate() {
                let written: BTreeMap<Place, &Fault> = self
                    .truth
                    .faults
                    .iter()
                    .filter(|f| f.actor == actor && f.epoch == epoch)
                    .map(|f| (f.place, f))
                    .collect();
                let rows: BTreeMap<u64, &Row> = interval.faults.iter().map(|row| (row.page, row)).collect();
                let pages = interval.end.iter().flat_map(|end| &end.pages);
                let pages = pages.flat_map(|run| (0..run.pages).map(|nth| run.start + nth * self.log.page_size));
                for page in pages {
                    let fault = places.get(&page).and_then(|place| written.get(place));
                    let Some(fault) = fault.filter(|fault| !fault.dropped && !moved(fault.place.0)) else { continue };
                    let op = self.case.steps[fault.step].op;
                    let right = match rows.get(&page) {
                        Some(row) => {
                            let by_kernel = op == Op::Kwrite;
                            let tid = if op == Op::Threads { row.tid != 0 } else { row.tid == pid };
                            row.by_kernel == by_kernel && tid && (row.code != 0) != by_kernel
                        }
                        None => op == Op::Kwrite && !is_root(),
                    };
                    if !right {
                        wrong.push(format!("{op:?} of pid {pid} as {:?}: {fault:?}", rows.get(&page)));
                    }
                }
            }
        }
        self.wrong.extend(wrong);
    }
}

/// All in which a capture differs from what must be.
pub fn differences(case: &Case, truth: &Truth, log: &Log, capture: &Capture, mode: Mode) -> Vec<String> {
    let wrong = check_frames(truth, log);
    let mut verdict = Verdict { case, truth, log, capture, mode, wrong };
    verdict.check_intervals();
    verdict.check_pages();
    match mode {
        Mode::Trace => verdict.check_events(),
        Mode::Faults => verdict.check_faults(),
        Mode::Count => {}
    }
    verdict.wrong
}
