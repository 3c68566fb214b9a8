//! One interval: its events as they come, added up when its verdict is known.

use super::Stacks;
use super::cause::Difference;
use super::codes::called;
use super::copied::{Copied, SeenParts};
use super::detail::Trail;
use super::evidence::{IntervalEvidence, between};
use super::faults;
use super::mapping::{Area, Areas, Group, MappingKind};
use super::objects::FirstWrites;
use super::runtime::Runtime;
use super::spread::{Spread, Timed, spread};
use super::summary::{ByClass, Contents, When, is_copied};
use super::unknown::Unknown;
use crate::record::{
    Begin, Closed, Content, End, Event, Executable, Fault, Mapping, Mode, PageRun, Uninitialised, Watched, WriteClass,
    Wrote,
};
use std::collections::{BTreeSet, HashMap};

/// An interval, open or closed.
#[derive(Debug)]
pub struct Interval {
    /// The record that opened it; its mappings are in `areas`.
    pub begin: Begin,
    /// The number of its process.
    pub process: Option<usize>,
    /// The interpreter or program that runs in it, as its files and its command tell.
    pub runtime: Runtime,
    /// Only a library tells so, which a program may have loaded without ever running what is in it.
    pub is_only_loaded: bool,
    /// The interval's mappings.
    pub areas: Areas,
    /// Mappings that should have been watched and could not be, with the reason.
    pub refused: Vec<(String, String)>,
    /// The files whose private mappings have no events, though others have.
    pub without_events: BTreeSet<String>,
    /// The interval's events until it closes; then none.
    events: Vec<Event>,
    /// The interval's faults, where these are told, until it closes.
    faults: Vec<Fault>,
    /// The reason of its close, and the time; `None` while it is open, and for ever if it was cut off.
    pub end: Option<(Closed, u64)>,
    /// See [`End::unmapped_uncounted`].
    pub unmapped_uncounted: u64,
    /// See [`End::collector_new`].
    pub collector_new: Option<u64>,
    /// The sums of its pages; empty while it is open.
    pub sums: Sums,
    /// The file that its process executes.
    pub executable: Option<Executable>,
    /// True if its copied pages are asked for one by one.
    pub detailed: bool,
}

/// The sums of the pages of an interval.
#[derive(Debug, Default)]
pub struct Sums {
    /// All written pages.
    pub pages: ByClass,
    /// The same by mapping.
    pub mappings: HashMap<Group, ByClass>,
    /// Copied pages by what is known of each.
    pub copies: HashMap<Copied, u64>,
    /// The stacks sampled with each place, and how often.
    pub stacks: HashMap<u32, HashMap<u32, u64>>,
    /// All sampled stacks, in the order in which they were taken.
    pub samples: Vec<u32>,
    /// Copied pages by what samples saw of their places.
    pub sampled: Spread,
    /// The kinds of data that each place was seen to write, and how often.
    pub wrote: HashMap<u32, HashMap<Wrote, u64>>,
    /// The differences from their originals.
    pub contents: Contents,
    /// When they were copied.
    pub when: Option<When>,
    /// All copied pages, if they are asked for one by one.
    pub trail: Vec<Trail>,
}

impl Interval {
    /// Opens an interval.
    pub fn new(mut begin: Begin, process: Option<usize>, command: &[String], executable: Option<Executable>) -> Self {
        let mappings = std::mem::take(&mut begin.mappings);
        let program = command.first().map(String::as_str);
        let called = executable.as_ref().map(|executable| executable.called.as_str());
        // A file of data may be called as an interpreter is.
        let code = mappings.iter().filter(|mapping| mapping.permissions.contains('x'));
        let names: Vec<&str> = code.map(|mapping| mapping.name.as_str()).chain(program).chain(called).collect();
        let runtime = Runtime::of(names.iter().copied());
        let is_only_loaded = runtime.is_only_loaded(names.iter().copied());
        let mut interval = Self {
            begin,
            process,
            runtime,
            is_only_loaded,
            areas: Areas::default(),
            refused: Vec::new(),
            without_events: BTreeSet::new(),
            events: Vec::new(),
            faults: Vec::new(),
            end: None,
            unmapped_uncounted: 0,
            collector_new: None,
            sums: Sums::default(),
            executable,
            detailed: false,
        };
        interval.mapped(mappings);
        interval
    }

    /// Adds mappings.
    pub fn mapped(&mut self, mut mappings: Vec<Mapping>) {
        for mapping in &mut mappings {
            let called = called(&mapping.name, self.executable.as_ref());
            if called != mapping.name {
                mapping.name = called.to_owned();
            }
        }
        self.areas.add(&mappings);
        let bits = mappings.iter().filter(|mapping| mapping.watched == Watched::Async);
        self.without_events.extend(bits.map(|mapping| mapping.name.clone()));
        let refused = mappings.into_iter().filter_map(|mapping| match mapping.watched {
            Watched::Refused(why) => Some((mapping.name, why)),
            _ => None,
        });
        self.refused.extend(refused);
    }

    /// Tells which anonymous memory is a file's uninitialised data.
    pub fn uninitialised(&mut self, mut data: Vec<Uninitialised>) {
        for data in &mut data {
            data.name = called(&data.name, self.executable.as_ref()).to_owned();
        }
        self.areas.uninitialised(&data);
    }

    /// Adds events.
    pub fn events(&mut self, events: &[Event]) {
        self.events.extend(events);
    }

    /// Adds faults.
    pub fn faults(&mut self, rows: &[Fault]) {
        self.faults.extend(rows);
    }

    /// The first writes to its pages, which `end` is about to be the verdict on.
    pub fn first_writes(&self, end: &End, page_size: u64) -> FirstWrites {
        let told = faults::events(self.faults.clone(), &end.pages, page_size);
        FirstWrites::of(self.events.iter().copied().chain(told).collect(), &self.begin, &end.pages, page_size)
    }

    /// Closes the interval with its verdict.
    pub fn close(&mut self, mut end: End, page_size: u64, stacks: &Stacks) {
        self.end = Some((end.closed, end.time_ns));
        self.unmapped_uncounted = end.unmapped_uncounted;
        self.collector_new = end.collector_new;
        if end.closed == Closed::Lost && end.pages.is_empty() {
            self.cut_off(page_size, stacks);
            return;
        }
        self.events.extend(faults::events(std::mem::take(&mut self.faults), &end.pages, page_size));
        end.contents.sort_by_key(|content| content.page);
        let mut evidence = IntervalEvidence::new(std::mem::take(&mut self.events), &end.contents, page_size, stacks);
        evidence.gone = &end.gone;
        self.sums = Adding::new(&self.areas, &evidence, &self.begin).following(self.detailed).all(&end.pages);
    }

    /// Closes an interval that has no verdict: its pages are those of its events.
    pub fn cut_off(&mut self, page_size: u64, stacks: &Stacks) {
        let evidence = IntervalEvidence::new(std::mem::take(&mut self.events), &[], page_size, stacks);
        let first = |same: &[Event]| same.first().map(|e| PageRun { start: e.page, pages: 1, class: e.class });
        let runs: Vec<PageRun> = evidence.events.chunk_by(|a, b| a.page == b.page).filter_map(first).collect();
        self.sums = Adding::new(&self.areas, &evidence, &self.begin).following(self.detailed).all(&runs);
    }
}

/// An interval's sums in the making.
struct Adding<'a> {
    areas: &'a Areas,
    evidence: &'a IntervalEvidence<'a>,
    begin_ns: u64,
    mode: Mode,
    /// True if stacks are those of the writes themselves.
    exact_stacks: bool,
    sums: Sums,
    /// When copies were made.
    times: Vec<u64>,
    /// Copies by place and time, and what a sample saw of each.
    timed: Vec<Timed>,
    /// True if each page is to be kept.
    detailed: bool,
    /// The copied page that was counted last.
    last: Option<Copied>,
}

impl<'a> Adding<'a> {
    fn new(areas: &'a Areas, evidence: &'a IntervalEvidence<'a>, begin: &Begin) -> Self {
        let (begin_ns, mode) = (begin.time_ns, begin.mode);
        let exact_stacks = begin.exact_stacks || mode == Mode::Trace;
        Self {
            areas,
            evidence,
            begin_ns,
            mode,
            exact_stacks,
            sums: Sums::default(),
            times: Vec::new(),
            timed: Vec::new(),
            detailed: false,
            last: None,
        }
    }

    /// Sets whether each page is kept.
    fn following(self, detailed: bool) -> Self {
        Self { detailed, ..self }
    }

    fn all(mut self, runs: &[PageRun]) -> Sums {
        for run in runs {
            self.run(run);
        }
        self.times.sort_unstable();
        let since = |time: &u64| time.saturating_sub(self.begin_ns);
        let half = self.times.len().saturating_sub(1) / 2;
        let (first, half, last) = (self.times.first(), self.times.get(half), self.times.last());
        if let (Some(first), Some(half), Some(last)) = (first, half, last) {
            self.sums.when = Some(When { first_ns: since(first), half_ns: since(half), last_ns: since(last) });
        }
        self.sums.samples = self.evidence.samples.iter().map(|&(_, stack)| stack).collect();
        self.sums.sampled = spread(&mut self.timed);
        let contents = &mut self.sums.contents;
        contents.amplification = amplification(contents, self.evidence.page_size);
        self.sums
    }

    /// Adds a run, by the mappings that it lies in. Never page by page: a run may be as long as the address space.
    fn run(&mut self, run: &PageRun) {
        self.sums.pages.add(run.class, run.pages);
        let page_size = self.evidence.page_size;
        let mut from = run.start;
        let mut left = run.pages;
        while left > 0 {
            let area = self.areas.from(from);
            let inside = area.filter(|area| area.start <= from);
            // Up to where this area ends, or the next begins.
            let until = inside.map_or(area.map(|next| next.start), |area| Some(area.end));
            let pages = until.map_or(left, |until| ((until - from) / page_size).clamp(1, left));
            self.part(from, pages, run.class, inside);
            left -= pages;
            from = from.saturating_add(pages.saturating_mul(page_size));
        }
    }

    /// Adds neighbouring pages of one class in one mapping.
    fn part(&mut self, start: u64, pages: u64, class: WriteClass, area: Option<&Area>) {
        let group = area.map_or_else(Group::unknown, |area| area.group.clone());
        let in_stack = group.kind == MappingKind::Stack;
        // The reason why code is unknown, for a page without an event.
        let unknown = match self.mode {
            Mode::Count => Unknown::NotTraced,
            Mode::Faults => Unknown::NoFault,
            Mode::Trace => {
                area.map_or(Some(Unknown::MappedLater), |area| area.without_events).unwrap_or(Unknown::NoEvent)
            }
        };
        self.sums.mappings.entry(group).or_default().add(class, pages);
        if !is_copied(class) {
            return;
        }
        let end = start.saturating_add(pages.saturating_mul(self.evidence.page_size));
        let mut events = between(&self.evidence.events, start, end, |event| event.page);
        let mut contents = between(self.evidence.contents, start, end, |content| content.page);
        let mut known = 0u64;
        let (mut without, mut next) = (Vec::new(), start);
        while let Some(page) = events.first().map(|e| e.page).into_iter().chain(contents.first().map(|c| c.page)).min()
        {
            let (same, later) = events.split_at(events.partition_point(|event| event.page <= page));
            let (content, others) = contents.split_at(contents.partition_point(|content| content.page <= page));
            (events, contents) = (later, others);
            // The first that did what the verdict says; an earlier one may be of a mapping that is gone.
            let event = same.iter().find(|event| event.class == class).or(same.first());
            self.page((page, class), event, content.first(), in_stack, unknown);
            self.follow(page, 1, event, class);
            known += 1;
            if self.detailed {
                without.push((next, page));
                next = page.saturating_add(self.evidence.page_size);
            }
        }
        without.push((next, end));
        let (change, seen, wrote) = (Difference::Unknown, SeenParts::Nothing, Wrote::Unknown);
        let (code, caller, unknown) = (0, 0, Some(unknown));
        let (syscall, objects, after) = (None, false, None);
        let of_file = class == WriteClass::PrivateFile;
        let unseen = Copied { code, syscall, change, objects, wrote, in_stack, of_file, seen, caller, unknown, after };
        self.count(unseen, pages.saturating_sub(known));
        for (from, to) in without {
            self.follow(from, to.saturating_sub(from) / self.evidence.page_size, None, class);
        }
    }

    /// Adds a copied page.
    fn page(
        &mut self,
        (page, class): (u64, WriteClass),
        event: Option<&Event>,
        content: Option<&Content>,
        in_stack: bool,
        without_event: Unknown,
    ) {
        self.times.extend(event.map(|event| event.time_ns));
        let without = || if self.evidence.is_gone(page) { Difference::Gone } else { Difference::Unknown };
        let change = content.map_or_else(without, |content| Difference::of(content, self.evidence.page_size));
        if let Some(content) = content {
            let contents = &mut self.sums.contents;
            contents.compared_pages += 1;
            contents.identical_pages += u64::from(change == Difference::Identical);
            contents.count_pages += u64::from(change == Difference::Counts);
            contents.few_pages += u64::from(change == Difference::Few);
            contents.changed_bytes += u64::from(content.bytes);
        }
        let (code, syscall) = event.map_or((0, None), |event| (event.code, event.syscall));
        let number = event.and_then(|event| event.stack);
        let stack = number.and_then(|number| self.evidence.stacks.get(&number));
        let seen = match (event, stack.map(|stack| stack.script)) {
            (None, _) => SeenParts::Nothing,
            (_, None) => SeenParts::Event,
            (_, Some(None)) => SeenParts::Native,
            (_, Some(Some(place))) => SeenParts::Script(place),
        };
        // Pages of files are not armed.
        let is_exact = self.exact_stacks && class != WriteClass::PrivateFile;
        self.timed.extend(event.map(|event| Timed { code, time_ns: event.time_ns, seen, is_exact }));
        if let Some(number) = number.filter(|_| stack.is_some_and(|stack| !stack.callers.is_empty())) {
            *self.sums.stacks.entry(code).or_default().entry(number).or_default() += 1;
        }
        let wrote = stack.map_or(Wrote::Unknown, |stack| stack.wrote);
        if wrote != Wrote::Unknown {
            *self.sums.wrote.entry(code).or_default().entry(wrote).or_default() += 1;
        }
        let objects = content.is_some_and(|content| content.objects);
        let by_stack = stack.and_then(|stack| stack.callers.first()).copied();
        let by_itself = event.map(|event| event.caller).filter(|caller| *caller != 0);
        let caller = by_itself.or(by_stack).unwrap_or(0);
        let unknown = match (event, syscall) {
            (Some(event), _) if event.code != 0 => None,
            (Some(_), Some(_)) => Some(Unknown::WrittenByKernel),
            (Some(_), None) => Some(Unknown::ThreadNotSeen),
            (None, _) => Some(without_event),
        };
        let samples = &self.evidence.samples;
        let after = event.map(|event| samples.partition_point(|&(time_ns, _)| time_ns <= event.time_ns) as u32);
        let of_file = class == WriteClass::PrivateFile;
        let copied = Copied { code, syscall, change, objects, wrote, in_stack, of_file, seen, caller, unknown, after };
        self.count(copied, 1);
    }

    /// Keeps pages that were counted last, if each is asked for.
    fn follow(&mut self, start: u64, pages: u64, event: Option<&Event>, class: WriteClass) {
        if let Some(copied) = self.last.filter(|_| self.detailed && pages > 0) {
            let (stack, time_ns) = event.map_or((None, 0), |event| (event.stack, event.time_ns));
            let of_file = class == WriteClass::PrivateFile;
            self.sums.trail.push(Trail { start, pages, copied, stack, time_ns, of_file });
        }
    }

    fn count(&mut self, copied: Copied, pages: u64) {
        self.last = Some(copied);
        if pages > 0 {
            let count = self.sums.copies.entry(copied).or_default();
            *count = count.saturating_add(pages);
        }
    }
}

/// Bytes copied for each byte changed.
pub fn amplification(contents: &Contents, page_size: u64) -> Option<f64> {
    let copied = contents.compared_pages as f64 * page_size as f64;
    (contents.changed_bytes > 0).then(|| copied / contents.changed_bytes as f64)
}
