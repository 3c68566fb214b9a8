//! The state of `cowbell top`, with what is chosen: pure, so that keys and looks can be tried without a terminal.

use crate::analyse::live::{Live, LiveLine, Sum};
use crate::snapshot::document::{Group, ProcessReport, Snapshot};
use crate::snapshot::{self, PageCounts};
use std::collections::{BTreeMap, VecDeque};

/// Rates are over about so long, in seconds.
const RATE_OVER: f64 = 3.0;

/// The order of the rows of figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Parents before their children.
    Tree,
    Pid,
    Pss,
    Shared,
    Differs,
    New,
    Rate,
    Copied,
}

impl Sort {
    /// In the order in which a key goes through them.
    pub const ALL: [Self; 8] =
        [Self::Tree, Self::Pid, Self::Pss, Self::Shared, Self::Differs, Self::New, Self::Rate, Self::Copied];
}

/// A process.
#[derive(Clone, Debug)]
pub struct ProcessRow {
    pub pid: i32,
    pub depth: usize,
    pub command: String,
    pub remark: String,
    /// `None` where it could not be read.
    pub figures: Option<ProcessFigures>,
    pub mappings: Vec<Group>,
    /// Bytes a second by which its own memory grows.
    pub rate: Option<f64>,
    /// Bytes copied, as traced; `None` while nothing is traced.
    pub copied: Option<u64>,
    /// True if its memory is that of another process, which was read before it and is in the sums there.
    pub is_in_anothers_memory: bool,
}

/// The memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessFigures {
    pub pss: u64,
    pub shared: u64,
    pub own: u64,
    pub differs: u64,
    pub new: u64,
    /// Own pages that are neither for certain.
    pub either: u64,
}

impl ProcessFigures {
    /// The figures of counted pages.
    pub fn of(pages: &PageCounts, page_size: u64, pss: u64) -> Self {
        let bytes = |pages: u64| pages.saturating_mul(page_size);
        Self {
            pss,
            shared: bytes(pages.shared_with_parent + pages.shared_unknown + pages.shared_with_others.pages),
            own: bytes(pages.own.pages),
            differs: bytes(pages.own.differs),
            new: bytes(pages.own.new),
            either: bytes(pages.own.copied_or_new + pages.own.file_copies + pages.own.unknown),
        }
    }
}

/// A line that copied or allocated, in all processes together.
#[derive(Clone, Debug)]
pub struct LineRow {
    pub line: LiveLine,
    pub sum: Sum,
    pub rate: Option<f64>,
    pub processes: usize,
}

/// The table that is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Processes,
    Lines,
    /// The mappings and lines of one process.
    One(i32),
    Help,
}

/// All of it.
#[derive(Debug)]
pub struct Model {
    pub view: View,
    pub sort: Sort,
    pub reverse: bool,
    pub filter: String,
    /// A filter is being typed.
    pub typing: bool,
    pub paused: bool,
    pub selected: usize,
    /// The message below the table.
    pub message: String,
    pub page_size: u64,
    pub rows: Vec<ProcessRow>,
    pub lines: Vec<LineRow>,
    of_process: BTreeMap<i32, Vec<LineRow>>,
    pub waiting_bytes: u64,
    pub frames: bool,
    pub look_ms: u64,
    own: History<i32>,
    copied: History<LiveLine>,
}

impl Model {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            view: View::Processes,
            sort: Sort::Tree,
            reverse: false,
            filter: String::new(),
            typing: false,
            paused: false,
            selected: 0,
            message: String::new(),
            page_size: 0,
            rows: Vec::new(),
            lines: Vec::new(),
            of_process: BTreeMap::new(),
            waiting_bytes: 0,
            frames: true,
            look_ms: 0,
            own: History::default(),
            copied: History::default(),
        }
    }

    /// Takes a look over; `seconds` since anything.
    pub fn look(&mut self, snapshots: &[Snapshot], seconds: f64, look_ms: u64) {
        if self.paused {
            return;
        }
        self.look_ms = look_ms;
        self.rows.clear();
        for snapshot in snapshots {
            self.page_size = snapshot.page_size;
            self.frames = snapshot.evidence.frames;
            for process in &snapshot.processes {
                // Trees may lie in one another.
                if !self.rows.iter().any(|row| row.pid == process.pid) {
                    let row = self.row(process, seconds);
                    self.rows.push(row);
                }
            }
        }
        let there: std::collections::BTreeSet<i32> = self.rows.iter().map(|row| row.pid).collect();
        self.own.0.retain(|pid, _| there.contains(pid));
        self.clamp();
    }

    fn row(&mut self, process: &ProcessReport, seconds: f64) -> ProcessRow {
        let memory = process.memory.as_ref();
        let figures = memory.map(|memory| ProcessFigures::of(&memory.pages, self.page_size, memory.pss_bytes));
        ProcessRow {
            pid: process.pid,
            depth: process.depth,
            command: snapshot::command(process),
            remark: snapshot::remark(process),
            figures,
            mappings: memory.map(|memory| memory.mappings.clone()).unwrap_or_default(),
            rate: figures.and_then(|figures| self.own.rate(process.pid, seconds, figures.own)),
            copied: None,
            is_in_anothers_memory: memory.is_some_and(|memory| memory.adds_nothing(process.depth)),
        }
    }

    /// Takes over what is traced; `None`: nothing is.
    pub fn trace(&mut self, live: Option<&Live>, seconds: f64) {
        if self.paused {
            return;
        }
        let Some(live) = live else { return };
        let copied = live.copied();
        for row in &mut self.rows {
            row.copied = copied.get(&row.pid).copied();
        }
        self.waiting_bytes = live.waiting_bytes();
        self.lines.clear();
        self.of_process.clear();
        for (line, by_process) in live.lines() {
            let mut all = Sum::default();
            for (pid, sum) in by_process {
                all.copied_bytes += sum.copied_bytes;
                all.new_bytes += sum.new_bytes;
                let of_one = LineRow { line: line.clone(), sum: *sum, rate: None, processes: 1 };
                self.of_process.entry(*pid).or_default().push(of_one);
            }
            let rate = self.copied.rate(line.clone(), seconds, all.copied_bytes);
            self.lines.push(LineRow { line: line.clone(), sum: all, rate, processes: by_process.len() });
        }
        let most = |row: &LineRow| std::cmp::Reverse(row.sum.copied_bytes + row.sum.new_bytes);
        self.lines.sort_by_key(most);
        self.of_process.values_mut().for_each(|lines| lines.sort_by_key(most));
        self.clamp();
    }

    /// The processes that are shown, in order.
    pub fn shown(&self) -> Vec<&ProcessRow> {
        let wanted = self.filter.to_lowercase();
        let hit =
            |row: &&ProcessRow| row.command.to_lowercase().contains(&wanted) || row.pid.to_string().contains(&wanted);
        let mut rows: Vec<&ProcessRow> = self.rows.iter().filter(hit).collect();
        let of = |row: &ProcessRow, figure: fn(&ProcessFigures) -> u64| row.figures.as_ref().map_or(0, figure);
        let most = |a: u64, b: u64| b.cmp(&a);
        match self.sort {
            Sort::Tree => {}
            Sort::Pid => rows.sort_by_key(|row| row.pid),
            Sort::Pss => rows.sort_by(|a, b| most(of(a, |f| f.pss), of(b, |f| f.pss))),
            Sort::Shared => rows.sort_by(|a, b| most(of(a, |f| f.shared), of(b, |f| f.shared))),
            Sort::Differs => rows.sort_by(|a, b| most(of(a, |f| f.differs), of(b, |f| f.differs))),
            Sort::New => rows.sort_by(|a, b| most(of(a, |f| f.new), of(b, |f| f.new))),
            Sort::Rate => rows.sort_by(|a, b| b.rate.unwrap_or(0.0).total_cmp(&a.rate.unwrap_or(0.0))),
            Sort::Copied => rows.sort_by_key(|row| std::cmp::Reverse(row.copied)),
        }
        if self.reverse {
            rows.reverse();
        }
        rows
    }

    /// The lines that are shown.
    pub fn shown_lines(&self) -> Vec<&LineRow> {
        let wanted = self.filter.to_lowercase();
        let hit = |row: &&LineRow| format!("{} {}", row.line.place, row.line.function).to_lowercase().contains(&wanted);
        let mut lines: Vec<&LineRow> = self.lines.iter().filter(hit).collect();
        if self.sort == Sort::Rate {
            lines.sort_by(|a, b| b.rate.unwrap_or(0.0).total_cmp(&a.rate.unwrap_or(0.0)));
        }
        if self.reverse {
            lines.reverse();
        }
        lines
    }

    /// The lines of one process.
    pub fn lines_of(&self, pid: i32) -> &[LineRow] {
        self.of_process.get(&pid).map_or(&[], Vec::as_slice)
    }

    /// The number of rows that the cursor may stand on.
    fn choices(&self) -> usize {
        match self.view {
            View::Processes => self.shown().len(),
            View::Lines => self.shown_lines().len(),
            View::One(pid) => self.rows.iter().find(|row| row.pid == pid).map_or(0, |row| row.mappings.len()),
            View::Help => 0,
        }
    }

    /// Moves the cursor.
    pub fn go(&mut self, rows: isize) {
        self.selected = self.selected.saturating_add_signed(rows);
        self.clamp();
    }

    /// Shows another table.
    pub fn turn_to(&mut self, view: View) {
        (self.view, self.selected) = (view, 0);
    }

    /// Looks into the process under the cursor.
    pub fn enter(&mut self) {
        let chosen = self.shown().get(self.selected).map(|row| row.pid);
        if let (View::Processes, Some(pid)) = (self.view, chosen) {
            self.turn_to(View::One(pid));
        }
    }

    /// Goes on to the next order of rows.
    pub fn sort_next(&mut self, back: bool) {
        let at = Sort::ALL.iter().position(|sort| *sort == self.sort).unwrap_or_default();
        let next = if back { at + Sort::ALL.len() - 1 } else { at + 1 };
        self.sort = Sort::ALL.get(next % Sort::ALL.len()).copied().unwrap_or(Sort::Tree);
        self.selected = 0;
    }

    fn clamp(&mut self) {
        self.selected = self.selected.min(self.choices().saturating_sub(1));
    }
}

/// The figures of some moments ago.
#[derive(Debug)]
struct History<K>(BTreeMap<K, VecDeque<(f64, u64)>>);

impl<K> Default for History<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> History<K> {
    /// Notes a figure; by how much it changes a second, once there is one to compare with.
    fn rate(&mut self, of: K, seconds: f64, now: u64) -> Option<f64> {
        let past = self.0.entry(of).or_default();
        while past.len() > 1 && past.get(1).is_some_and(|(then, _)| seconds - then >= RATE_OVER) {
            past.pop_front();
        }
        past.push_back((seconds, now));
        let (then, before) = *past.front()?;
        (seconds > then).then(|| (now as f64 - before as f64) / (seconds - then))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pid: i32, command: &str, shared: u64, differs: u64) -> ProcessRow {
        let figures = ProcessFigures { shared, differs, ..ProcessFigures::default() };
        ProcessRow {
            pid,
            depth: 0,
            command: command.to_owned(),
            remark: String::new(),
            figures: Some(figures),
            mappings: Vec::new(),
            rate: None,
            copied: None,
            is_in_anothers_memory: false,
        }
    }

    fn model() -> Model {
        Model {
            rows: vec![row(10, "server", 5, 1), row(12, "worker a", 1, 7), row(11, "worker b", 3, 3)],
            ..Model::new()
        }
    }

    fn pids(model: &Model) -> Vec<i32> {
        model.shown().iter().map(|row| row.pid).collect()
    }

    #[test]
    fn rows_are_sorted_filtered_and_turned_round() {
        let mut model = model();
        assert_eq!(pids(&model), [10, 12, 11]);
        model.sort_next(false);
        assert_eq!((model.sort, pids(&model)), (Sort::Pid, vec![10, 11, 12]));
        model.sort = Sort::Differs;
        assert_eq!(pids(&model), [12, 11, 10]);
        model.reverse = true;
        assert_eq!(pids(&model), [10, 11, 12]);
        model.filter = "WORKER".to_owned();
        assert_eq!(pids(&model), [11, 12]);
        model.sort_next(true);
        assert_eq!(model.sort, Sort::Shared);
    }

    #[test]
    fn the_cursor_stays_on_rows_and_leads_into_a_process() {
        let mut model = model();
        model.go(100);
        assert_eq!(model.selected, 2);
        model.go(-1);
        model.enter();
        assert_eq!((model.view, model.selected), (View::One(12), 0));
        model.go(1);
        assert_eq!(model.selected, 0, "it has no mappings");
    }

    #[test]
    fn rates_are_over_some_seconds_and_unknown_at_first() {
        let mut history = History::default();
        assert_eq!(history.rate(1, 10.0, 100), None);
        assert_eq!(history.rate(1, 11.0, 300), Some(200.0));
        assert_eq!(history.rate(1, 12.0, 300), Some(100.0));
        // A figure that is longer ago than that is forgotten, but for one.
        assert_eq!(history.rate(1, 100.0, 300), Some(0.0));
    }
}
