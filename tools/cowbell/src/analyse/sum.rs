//! From a profile to its summary: names given, causes judged, everything sorted by how much it copied.

use super::cause::{Cause, Difference};
use super::causes::{self, CauseSum, Causes};
use super::copied::SeenParts;
use super::detail::{self, CauseByKind, Detail};
use super::gaps;
use super::interval::{Interval, amplification};
use super::mapping::Group;
use super::name::{self, Caller, Named};
use super::phases::Phases;
use super::runtime::Runtime;
use super::script::{SampledCopies, ScriptSum, script};
use super::summary::{self, AtWork, ByClass, Contents, Run, Summary};
use super::unknown::{Unknown, Unknowns};
use super::verdict::{self, Verdict};
use super::{Profile, growth, kinds, objects, syscalls, totals};
use crate::record::{Mode, WatchReason, Who, Wrote};
use std::collections::{HashMap, HashSet};
use std::hash::Hash;

/// The summary of a profile whose intervals are all added up, and its detail, if that is asked for.
pub fn summary(profile: Profile) -> (Summary, Detail) {
    let run = run(&profile);
    let mut tables = Tables::default();
    let mut intervals = Vec::new();
    for interval in &profile.intervals {
        intervals.push(one(interval, &run, &profile, &mut tables));
    }
    let mut totals = totals::totals(&profile, &intervals, run.page_size);
    let copied = totals.copied_pages;
    for function in tables.functions.values() {
        tables.unnamed.add_all(&function.unnamed);
        tables.without_line.add_all(&function.without_line);
        tables.without_caller.add_all(&function.without_caller);
    }
    totals.unknown = summary::UnknownCode {
        code: tables.unseen.shares(),
        name: tables.unnamed.shares(),
        line: tables.without_line.shares(),
        caller: tables.without_caller.shares(),
    };
    let mut contents = Contents::default();
    for interval in &intervals {
        contents.compared_pages += interval.contents.compared_pages;
        contents.identical_pages += interval.contents.identical_pages;
        contents.count_pages += interval.contents.count_pages;
        contents.few_pages += interval.contents.few_pages;
        contents.changed_bytes += interval.contents.changed_bytes;
    }
    contents.amplification = amplification(&contents, run.page_size);
    let detail = if profile.detailed { detail::detail(&profile, &tables.judged) } else { Detail::default() };
    let overhead = totals::overhead(&profile, run.duration_ns);
    let gaps = gaps::all(&profile, &totals);
    let growth = growth::growth(&profile);
    let mut summary = Summary {
        cut: profile.cut.clone(),
        verdict: Verdict::default(),
        growth,
        totals,
        intervals,
        mappings: mappings(tables.mappings, copied),
        functions: functions(tables.functions, &profile, copied),
        script: script(tables.script, &profile, copied),
        syscalls: system_calls(tables.syscalls, copied),
        contents,
        causes: causes::causes(&tables.causes, copied),
        gaps,
        objects: objects::all(&profile),
        kinds: kinds::kinds(&profile),
        overhead,
        processes: profile.processes,
        run,
    };
    summary.verdict = verdict::verdict(&summary);
    (summary, detail)
}

/// The tables that all intervals add to.
#[derive(Default)]
struct Tables {
    mappings: HashMap<Group, (ByClass, u64)>,
    functions: HashMap<Name, FunctionSum>,
    script: ScriptSum,
    syscalls: HashMap<i32, u64>,
    causes: Causes,
    unseen: Unknowns,
    unnamed: Unknowns,
    without_line: Unknowns,
    without_caller: Unknowns,
    /// Processes that had an interval.
    begun: HashSet<(Option<usize>, i32)>,
    /// The judgements of each interval's copies, where every page is asked for.
    judged: Vec<CauseByKind>,
}

/// The name under which functions are counted.
#[derive(PartialEq, Eq, Hash)]
struct Name {
    function: String,
    inlined: Option<String>,
    caller: Option<(String, bool)>,
    module: String,
}

#[derive(Default)]
struct FunctionSum {
    pages: u64,
    /// Those of them in intervals of processes that forked.
    by_parents: u64,
    causes: HashMap<Cause, u64>,
    lines: HashMap<(String, u32), u64>,
    unnamed: Unknowns,
    without_line: Unknowns,
    without_caller: Unknowns,
    estimated: u64,
}

fn run(profile: &Profile) -> Run {
    let ended = profile.finish.as_ref().and_then(|finish| finish.ended);
    let mut run = Run {
        command: Vec::new(),
        cowbell: String::new(),
        kernel: String::new(),
        page_size: profile.page_size(),
        started_unix_ms: 0,
        duration_ns: profile.latest_ns,
        mode: Mode::Count,
        mode_reason: String::new(),
        who: Who::Both,
        stacks_every: 0,
        frames: false,
        ended,
    };
    if let Some(header) = &profile.header {
        run.command.clone_from(&header.command);
        run.cowbell.clone_from(&header.cowbell);
        run.kernel.clone_from(&header.kernel);
        run.mode_reason.clone_from(&header.mode_reason);
        (run.started_unix_ms, run.mode, run.who) = (header.started_unix_ms, header.mode, header.who);
        (run.stacks_every, run.frames) = (header.stacks_every, header.frames);
    }
    run
}

/// Tells whether the interpreter runs of which the process has files. One that a program may have loaded without running it shows
/// itself by its objects, its frames, or its code; where none of these can be known it is taken to run.
fn runs(interval: &Interval, profile: &Profile) -> bool {
    let Some(language) = interval.runtime.language().filter(|_| interval.is_only_loaded) else { return true };
    if interval.begin.mode == Mode::Count && language.objects().is_none() {
        return true;
    }
    let is_its = |code: u32| profile.codes.file(code, None).is_some_and(|file| language.is_run_by(file));
    let stacks = || interval.sums.samples.iter().filter_map(|stack| profile.stacks.get(stack));
    let in_script = |place: u32| profile.places.get(place as usize).is_some_and(|place| place.language.is_some());
    let wrote = || interval.sums.wrote.values().flat_map(|wrote| wrote.keys());
    interval.sums.copies.keys().any(|copied| copied.objects || is_its(copied.code) || is_its(copied.caller))
        || wrote().any(|wrote| matches!(wrote, Wrote::ReferenceCount | Wrote::ObjectCount | Wrote::CollectorHeader))
        || stacks().any(|stack| {
            stack.script.is_some_and(in_script)
                || stack.innermost.iter().chain(&stack.callers).any(|&code| is_its(code))
        })
}

/// Adds an interval to the tables, and says what it comes to by itself.
fn one(interval: &Interval, run: &Run, profile: &Profile, tables: &mut Tables) -> summary::Interval {
    let sums = &interval.sums;
    let mut own = HashMap::new();
    let mut own_causes = Causes::new();
    for area in interval.areas.all() {
        if let Some(pages) = sums.mappings.get(&area.group) {
            own.entry(area.group.clone()).or_insert((*pages, 0)).1 += area.end - area.start;
        }
    }
    if let Some(pages) = sums.mappings.get(&Group::unknown()) {
        own.insert(Group::unknown(), (*pages, 0));
    }
    for (group, (pages, bytes)) in &own {
        let (sum, largest) = tables.mappings.entry(group.clone()).or_default();
        sum.add_all(pages);
        *largest = (*largest).max(*bytes);
    }
    let names = name::all(interval, &profile.stacks, &profile.codes);
    let runtime = if runs(interval, profile) { interval.runtime } else { Runtime::Native };
    let mut sampled = SampledCopies::default();
    let mut judged = CauseByKind::new();
    let mut at_work = AtWork::default();
    let mut unseen = Unknowns::default();
    let is_first = tables.begun.insert((interval.process, interval.begin.pid));
    let phases = Phases::of(interval, is_first, &profile.stacks, &profile.codes);
    for (copied, &all) in &sums.copies {
        let named = names.get(&name::called(copied));
        let phase = (phases.at(copied.after, copied.code), phases.has_teardown());
        let (cause, reason) = causes::cause_of(interval, runtime, copied, named, phase);
        if !matches!(cause, Cause::Start | Cause::Exit) {
            at_work.compared_pages += if copied.change.is_compared() { all } else { 0 };
            at_work.identical_pages += if copied.change == Difference::Identical { all } else { 0 };
            at_work.file_pages += if copied.of_file { all } else { 0 };
            at_work.after_stacks_pages += if phases.may_be_end(copied.after) { all } else { 0 };
            at_work.undated_pages += if copied.after.is_none() && phases.has_end() { all } else { 0 };
        }
        if profile.detailed {
            judged.insert(*copied, cause);
        }
        let torn_down = phases.is_torn_down(copied.after);
        let work = match copied.seen {
            SeenParts::Script(place) => profile.places.get(place as usize).and_then(|place| place.work),
            _ => None,
        };
        let wrote = causes::first_wrote(interval, copied);
        let added = causes::cause_sum(copied, named, all, (cause, reason), runtime, (torn_down, work, wrote));
        for causes in [&mut own_causes, &mut tables.causes] {
            causes.entry((cause, runtime)).or_default().add(&added);
        }
        if let Some(named) = named {
            function(named, all, cause, interval.begin.role, &mut tables.functions);
        }
        sampled.add(copied, all, cause);
        if let Some(why) = copied.unknown {
            unseen.add(why, all);
        }
        if let Some(syscall) = copied.syscall {
            *tables.syscalls.entry(syscall).or_default() += all;
        }
    }
    let collected = (Cause::GarbageCollector, runtime);
    if let Some(pages) = own_causes.get(&collected).map(|sum| sum.pages) {
        let new = CauseSum::of_new(pages, interval.collector_new);
        for causes in [&mut own_causes, &mut tables.causes] {
            causes.entry(collected).or_default().add(&new);
        }
    }
    sampled.into_sum(sums, interval.begin.role, &mut tables.script);
    tables.judged.push(judged);
    tables.unseen.add_all(&unseen);
    let copied_pages = sums.pages.copied();
    summary::Interval {
        interval: interval.begin.interval,
        pid: interval.begin.pid,
        process: interval.process,
        role: interval.begin.role,
        language: runtime.language().map(|language| language.id()),
        mode: interval.begin.mode,
        begin_ns: interval.begin.time_ns,
        end_ns: interval.end.map(|(_, time_ns)| time_ns),
        closed: interval.end.map(|(closed, _)| closed),
        held: interval.begin.held,
        arm_ns: interval.begin.arm_ns,
        pages: sums.pages,
        copied_pages,
        copied_bytes: copied_pages.saturating_mul(run.page_size),
        contents: sums.contents,
        at_work,
        when: sums.when,
        causes: causes::causes(&own_causes, copied_pages),
        code_unknown: unseen.shares(),
        mappings: mappings(own, copied_pages),
        unmapped_uncounted_pages: interval.unmapped_uncounted,
    }
}

fn function(
    named: &Named<'_>,
    pages: u64,
    cause: Cause,
    role: WatchReason,
    functions: &mut HashMap<Name, FunctionSum>,
) {
    let (function, inlined) = match &named.place {
        Some(place) => (place.function.to_owned(), place.inlined.map(str::to_owned)),
        None => (named.bare.clone(), None),
    };
    let module = named.file.unwrap_or_default().to_owned();
    let caller = named.caller.as_ref().map(|Caller { function, is_indirect, .. }| (function.clone(), *is_indirect));
    let sum = functions.entry(Name { function, inlined, caller, module }).or_default();
    sum.pages = sum.pages.saturating_add(pages);
    sum.by_parents = sum.by_parents.saturating_add(if role == WatchReason::Parent { pages } else { 0 });
    *sum.causes.entry(cause).or_default() += pages;
    let line = named.place.as_ref().and_then(|place| place.line);
    match line {
        Some((file, line)) => *sum.lines.entry((file.to_owned(), line)).or_default() += pages,
        None => sum.without_line.add(named.nameless.unwrap_or(Unknown::NoLineInformation), pages),
    }
    if let Some(why) = named.nameless {
        sum.unnamed.add(why, pages);
    }
    if named.caller.as_ref().is_some_and(|caller| caller.is_estimated) {
        sum.estimated = sum.estimated.saturating_add(pages);
    }
    if named.lacks_caller {
        sum.without_caller.add(Unknown::NotSampled, pages);
    }
}

/// A part of a whole; nothing's part of nothing is nothing.
pub fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// The key that counts most; the first of equals in their order, so that a report is the same each time.
pub fn most<K: Copy + Ord + Hash>(counts: &HashMap<K, u64>) -> Option<K> {
    counts.iter().max_by_key(|(key, count)| (**count, std::cmp::Reverse(**key))).map(|(key, _)| *key)
}

fn mappings(table: HashMap<Group, (ByClass, u64)>, copied: u64) -> Vec<summary::MappingCopies> {
    let mut table: Vec<_> = table.into_iter().collect();
    table.sort_by(|(a, (a_pages, _)), (b, (b_pages, _))| {
        let size = |pages: &ByClass| (pages.copied(), pages.written());
        size(b_pages).cmp(&size(a_pages)).then_with(|| a.cmp(b))
    });
    let named = |(group, (pages, bytes)): (Group, (ByClass, u64))| {
        let copied_pages = pages.copied();
        let share = share(copied_pages, copied);
        summary::MappingCopies {
            kind: group.kind,
            name: group.name,
            start: group.start,
            bytes,
            pages,
            copied_pages,
            share,
        }
    };
    table.into_iter().map(named).collect()
}

fn functions(table: HashMap<Name, FunctionSum>, profile: &Profile, copied: u64) -> Vec<summary::Function> {
    let named = |(name, sum): (Name, FunctionSum)| {
        let text = |file: &String, line: u32| profile.sources.get(&(file.clone(), i32::try_from(line).ok()?)).cloned();
        let line = |((file, line), copied_pages): ((String, u32), u64)| {
            let source = text(&file, line);
            summary::Line { file, line, copied_pages, source }
        };
        let mut lines: Vec<_> = sum.lines.into_iter().map(line).collect();
        lines.sort_by(|a, b| b.copied_pages.cmp(&a.copied_pages).then_with(|| a.cmp(b)));
        summary::Function {
            function: name.function,
            inlined: name.inlined,
            called_indirectly: name.caller.as_ref().is_some_and(|(_, is_indirect)| *is_indirect),
            caller_estimated_pages: sum.estimated,
            called_from: name.caller.map(|(function, _)| function),
            name_unknown: sum.unnamed.most(),
            line_unknown: sum.without_line.most(),
            caller_unknown: sum.without_caller.most(),
            module: name.module,
            copied_pages: sum.pages,
            parents_copied_pages: sum.by_parents,
            share: share(sum.pages, copied),
            cause: most(&sum.causes).unwrap_or(Cause::Unknown),
            lines,
        }
    };
    let mut functions: Vec<_> = table.into_iter().map(named).collect();
    let name = |f: &summary::Function| {
        let called = (f.called_from.clone(), f.called_indirectly);
        (f.function.clone(), f.inlined.clone(), called, f.module.clone())
    };
    functions.sort_by(|a, b| b.copied_pages.cmp(&a.copied_pages).then_with(|| name(a).cmp(&name(b))));
    functions
}

fn system_calls(table: HashMap<i32, u64>, copied: u64) -> Vec<summary::Syscall> {
    let mut table: Vec<_> = table.into_iter().collect();
    table.sort_by_key(|(number, pages)| (std::cmp::Reverse(*pages), *number));
    let named = |(number, copied_pages)| {
        let share = share(copied_pages, copied);
        summary::Syscall { number, name: syscalls::name(number), copied_pages, share }
    };
    table.into_iter().map(named).collect()
}
