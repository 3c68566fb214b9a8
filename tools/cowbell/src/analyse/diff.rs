//! Two sides of runs held against each other: what changed, and what is only noise.
//!
//! Noise is what runs of one side differ by. A change is told where the sides lie apart by more than both sides' runs do
//! among themselves, and where what could not be seen would not close the gap. With one run on a side noise is not known,
//! and a difference is only called one.

mod gone;
mod judge;
mod pairs;

use super::cause::Cause;
use super::mapping::MappingKind;
use super::roles::{self, Bounds, Role};
use super::summary::{ScriptLine, Summary};
use crate::record::Mode;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

pub use judge::{DiffVerdict, FigureChange, Side};

/// The document of `diff --json`.
#[derive(Clone, Debug, Serialize)]
pub struct Diff {
    /// The number of runs of each side.
    pub before_runs: u64,
    pub after_runs: u64,
    /// True if it is known how much runs of one side differ: only with two or more on each.
    pub noise_known: bool,
    /// The copies of all processes of a run.
    pub total: FigureChange,
    /// The copies of one process of each role, on the average of its run; those with the largest difference first.
    pub roles: Vec<RoleChange>,
    /// The copies of all processes, by cause, mapping, and the line or function that wrote; largest differences first.
    pub causes: Vec<CauseChange>,
    pub mappings: Vec<MappingChange>,
    pub lines: Vec<LineChange>,
    pub functions: Vec<FunctionChange>,
    /// Why causes, lines or figures cannot be held against each other in part.
    pub notes: Vec<String>,
}

/// The copies of one process of a role.
#[derive(Clone, Debug, Serialize)]
pub struct RoleChange {
    /// The role before, or after where it was not there before.
    pub role: Role,
    /// The role after, where that is another.
    pub became: Option<Role>,
    /// The number of processes that played it: in the run that stands in the middle.
    pub processes_before: u64,
    pub processes_after: u64,
    pub change: FigureChange,
}

/// Copies of one cause.
#[derive(Clone, Debug, Serialize)]
pub struct CauseChange {
    pub cause: Cause,
    pub name: &'static str,
    pub change: FigureChange,
}

/// Copies in one mapping; all anonymous memory is one, for its addresses are others in each run.
#[derive(Clone, Debug, Serialize)]
pub struct MappingChange {
    pub kind: MappingKind,
    pub name: String,
    pub change: FigureChange,
}

/// Copies by one line of a script, estimated from samples. Lines are the same by their text, or without it by their number.
#[derive(Clone, Debug, Serialize)]
pub struct LineChange {
    pub file: String,
    pub line: i32,
    pub function: String,
    pub source: Option<String>,
    /// No sampled copy of the side after has it, and it had a part of those before; nor is a line of its file or function new
    /// that has half as much.
    pub gone: bool,
    /// The new line that it may have become, as `FILE:LINE`, where no sampled copy of the side after has it.
    pub perhaps_now: Option<String>,
    pub change: FigureChange,
}

/// Copies by one native function.
#[derive(Clone, Debug, Serialize)]
pub struct FunctionChange {
    pub function: String,
    pub module: String,
    pub change: FigureChange,
}

/// Holds runs against each other.
///
/// # Errors
/// The runs have different page sizes, or a side has none.
pub fn diff(before: &[Summary], after: &[Summary]) -> Result<Diff, String> {
    let mut all = before.iter().chain(after);
    let page_size = before.first().map(|first| first.run.page_size).ok_or("there is no run before")?;
    if after.is_empty() {
        return Err("there is no run after".to_owned());
    }
    if all.any(|summary| summary.run.page_size != page_size) {
        return Err("the captures have different page sizes".to_owned());
    }
    let pair = Pair { before, after, page_size };
    let is_traced = |side: &[Summary]| side.iter().all(|summary| summary.run.mode != Mode::Count);
    let are_traced = is_traced(before) && is_traced(after);
    let are_sampled = are_traced && before.iter().chain(after).all(|summary| summary.run.stacks_every > 0);
    Ok(Diff {
        before_runs: before.len() as u64,
        after_runs: after.len() as u64,
        noise_known: before.len() > 1 && after.len() > 1,
        total: pair.total(),
        roles: pairs::roles(&pair),
        causes: pair.causes(),
        mappings: pair.mappings(),
        lines: if are_sampled { pair.lines() } else { Vec::new() },
        functions: if are_traced { pair.functions() } else { Vec::new() },
        notes: notes(before, after),
    })
}

/// The two sides.
struct Pair<'a> {
    before: &'a [Summary],
    after: &'a [Summary],
    page_size: u64,
}

impl Pair<'_> {
    fn total(&self) -> FigureChange {
        let side = |summaries: &[Summary]| Side::new(summaries.iter().map(all_processes).collect());
        FigureChange::new(side(self.before), side(self.after), self.page_size)
    }

    /// A change for each key that any run has; a run that lacks it copied nothing there.
    fn keyed<K: Ord + Clone>(&self, of: impl Fn(&Summary) -> BTreeMap<K, u64>) -> Vec<(K, FigureChange)> {
        let tables = |side: &[Summary]| side.iter().map(&of).collect::<Vec<_>>();
        let (before, after) = (tables(self.before), tables(self.after));
        let mut keys: Vec<K> = before.iter().chain(&after).flat_map(|table| table.keys().cloned()).collect();
        keys.sort();
        keys.dedup();
        let wholes = |side: &[Summary]| side.iter().map(all_processes).collect::<Vec<_>>();
        let (wholes_before, wholes_after) = (wholes(self.before), wholes(self.after));
        let side = |wholes: &[judge::RunFigure], tables: &[BTreeMap<K, u64>], key: &K| {
            let bytes =
                |table: &BTreeMap<K, u64>| table.get(key).map_or(0, |pages| pages.saturating_mul(self.page_size));
            Side::new(wholes.iter().zip(tables).map(|(whole, table)| whole.part(bytes(table))).collect())
        };
        let change = |key: K| {
            let (before, after) = (side(&wholes_before, &before, &key), side(&wholes_after, &after, &key));
            let change = FigureChange::new(before, after, self.page_size);
            (key, change)
        };
        let mut changes: Vec<(K, FigureChange)> = keys.into_iter().map(change).collect();
        changes.sort_by_key(|(_, change)| std::cmp::Reverse(change.difference_bytes.unsigned_abs()));
        changes
    }

    fn causes(&self) -> Vec<CauseChange> {
        let of = |summary: &Summary| sums(summary.causes.iter().map(|cause| (cause.cause, cause.copied_pages)));
        let change = |(cause, change): (Cause, FigureChange)| CauseChange { cause, name: cause.name(), change };
        self.keyed(of).into_iter().map(change).collect()
    }

    fn mappings(&self) -> Vec<MappingChange> {
        let of = |summary: &Summary| {
            let mappings = summary.mappings.iter().filter(|mapping| mapping.copied_pages > 0);
            sums(mappings.map(|mapping| ((mapping.kind, mapping.name.clone()), mapping.copied_pages)))
        };
        let change = |((kind, name), change)| MappingChange { kind, name, change };
        self.keyed(of).into_iter().map(change).collect()
    }

    fn lines(&self) -> Vec<LineChange> {
        let files = |side: &[Summary]| -> BTreeSet<String> {
            let lines = side.iter().flat_map(|summary| &summary.script.lines);
            lines.map(|line| base(&line.file).to_owned()).collect()
        };
        // A file of one side only may have been renamed: its lines are known by function and text.
        let both = &files(self.before) & &files(self.after);
        let of = |summary: &Summary| {
            sums(summary.script.lines.iter().map(|line| (LineKey::of(line, &both), line.copied_pages_estimated)))
        };
        let known = self.before.iter().chain(self.after).flat_map(|summary| &summary.script.lines);
        let known: BTreeMap<LineKey, &ScriptLine> = known.map(|line| (LineKey::of(line, &both), line)).collect();
        let change = |(key, change): (LineKey, FigureChange)| {
            let line = known.get(&key)?;
            Some(LineChange {
                file: line.file.clone(),
                line: line.line,
                function: line.function.clone(),
                source: line.source.clone(),
                gone: false,
                perhaps_now: None,
                change,
            })
        };
        let mut lines: Vec<LineChange> = self.keyed(of).into_iter().filter_map(change).collect();
        gone::tell(&mut lines, self);
        lines
    }

    fn functions(&self) -> Vec<FunctionChange> {
        let of = |summary: &Summary| {
            let functions = summary.functions.iter();
            sums(functions.map(|f| ((f.function.clone(), base(&f.module).to_owned()), f.copied_pages)))
        };
        let change = |((function, module), change)| FunctionChange { function, module, change };
        self.keyed(of).into_iter().map(change).collect()
    }
}

/// By what a line is known again after an edit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct LineKey {
    /// The line's file; empty where that is of one side only, and the line has a text.
    file: String,
    function: String,
    /// The line's text; where that is not known its number.
    text: Result<String, i32>,
}

impl LineKey {
    fn of(line: &ScriptLine, both: &BTreeSet<String>) -> Self {
        let text = line.source.clone().ok_or(line.line);
        let file = base(&line.file).to_owned();
        let is_renamed = text.is_ok() && !both.contains(&file);
        Self { file: if is_renamed { String::new() } else { file }, function: line.function.clone(), text }
    }
}

/// A path's last part: the same program may lie elsewhere on the other side.
fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn sums<K: Ord>(parts: impl Iterator<Item = (K, u64)>) -> BTreeMap<K, u64> {
    let mut sums = BTreeMap::new();
    for (key, pages) in parts {
        let sum: &mut u64 = sums.entry(key).or_default();
        *sum = sum.saturating_add(pages);
    }
    sums
}

/// The copies of all processes of a run.
fn all_processes(summary: &Summary) -> judge::RunFigure {
    let (mut bounds, mut bytes) = (Bounds::NOTHING, 0u64);
    for process in roles::watched(summary) {
        bounds += process.figures.copied;
        bytes = bytes.saturating_add(process.copied_bytes);
    }
    if !roles::is_all_watched(summary) {
        bounds.most = None;
    }
    judge::RunFigure { bytes, bounds }
}

/// Sentences on what stands in the way of holding the sides against each other.
fn notes(before: &[Summary], after: &[Summary]) -> Vec<String> {
    let mut notes = Vec::new();
    let all = || before.iter().chain(after);
    let differ = |of: &dyn Fn(&Summary) -> String| {
        // A report of the library does not say its kernel.
        let mut values: Vec<String> = all().map(of).filter(|value| !value.is_empty()).collect();
        values.sort();
        values.dedup();
        values.len() > 1
    };
    if differ(&|summary| format!("{:?}", summary.run.mode)) {
        notes.push(
            "the runs were watched in different modes: lines, functions and causes are not told alike".to_owned(),
        );
    }
    if differ(&|summary| format!("{:?}", summary.run.who)) {
        notes.push("the runs were asked for different processes (--who)".to_owned());
    }
    if differ(&|summary| summary.run.kernel.clone()) {
        notes.push("the runs were made on different kernels".to_owned());
    }
    let open = all().filter(|summary| all_processes(summary).bounds.most.is_none()).count();
    if open > 0 {
        notes.push(format!("{open} of the runs have no upper bound: not all was watched, or not to its end"));
    }
    notes
}
