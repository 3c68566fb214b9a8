//! The model as a picture of characters.

use super::model::{LineRow, Model, ProcessFigures, ProcessRow, Sort, View};
use crate::views::clean;
use cowbell::page::Bytes;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Table, Wrap};

/// Lines above and below the table, its heading included.
pub const AROUND: u16 = 4;
/// The width of a figure.
const FIGURE: u16 = 10;
/// Generations that are indented.
const INDENTED_MAX: usize = 6;

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const FAINT: Style = Style::new().add_modifier(Modifier::DIM);
const CHOSEN: Style = Style::new().add_modifier(Modifier::REVERSED);

const HELP: &[&str] = &[
    "Up, Down, PageUp, PageDown, Home, End   move",
    "Enter   look into a process              Esc     back",
    "Tab     processes or lines               /       show only what contains a text",
    "s, S    sort by next, previous column    r       reverse the order",
    "p       pause the picture                t       trace copies and their lines; again: stop",
    "w       write what was traced to a file  q       quit; so does Ctrl-C",
    "",
    "shared    private memory that the parent or others have too",
    "differs   own pages where the parent has others: copied since the fork, or each wrote first",
    "new       own pages where the parent has nothing, or runs another program",
    "either    own pages that may be one or the other, copies of file pages, and what could not be told",
    "+/s       by how much own pages become more, a second",
    "copied    counted while copies are traced",
];

/// A trace, which goes on or is over.
#[derive(Clone, Copy)]
pub struct Traced {
    /// The mode, in words.
    pub mode: &'static str,
    /// Nothing more will come.
    pub is_over: bool,
}

/// Draws everything.
pub fn draw(frame: &mut Frame, model: &Model, traces: Option<Traced>) {
    let [head, table, foot] =
        Layout::vertical([Constraint::Length(2), Constraint::Fill(1), Constraint::Length(1)]).areas(frame.area());
    frame.render_widget(Paragraph::new(Text::from(header(model, traces))), head);
    match model.view {
        View::Processes => processes(frame, model, table),
        View::Lines => lines(frame, model, table, traces),
        View::One(pid) => one(frame, model, pid, table),
        View::Help => frame.render_widget(wrapped(HELP.join("\n")), table),
    }
    frame.render_widget(Paragraph::new(Line::styled(footer(model), FAINT)), foot);
}

/// A text that may be wider than the terminal.
fn wrapped(text: String) -> Paragraph<'static> {
    Paragraph::new(text).wrap(Wrap { trim: false })
}

fn header(model: &Model, traces: Option<Traced>) -> Vec<Line<'static>> {
    // A memory is one, however many processes run in it.
    let figures = || model.rows.iter().filter(|row| !row.is_in_anothers_memory).filter_map(|row| row.figures);
    let sum = |of: fn(&ProcessFigures) -> u64| Bytes(figures().map(|figures| of(&figures)).sum()).to_string();
    let unread = model.rows.iter().filter(|row| row.figures.is_none()).count();
    let unread = if unread > 0 { format!(", {unread} not read") } else { String::new() };
    let processes = if model.rows.len() == 1 { "process" } else { "processes" };
    let paused = if model.paused { "PAUSED  " } else { "" };
    let first = format!(
        "{paused}{} {processes}{unread}; PSS {}, shared {}, differs {}, new {}",
        model.rows.len(),
        sum(|f| f.pss),
        sum(|f| f.shared),
        sum(|f| f.differs),
        sum(|f| f.new),
    );
    let second = match traces {
        Some(Traced { mode, is_over: false }) => {
            format!("traced, mode {mode}; without a line yet: {}", Bytes(model.waiting_bytes))
        }
        Some(Traced { mode, is_over: true }) => {
            format!("the trace is over, mode {mode}; without a line: {}", Bytes(model.waiting_bytes))
        }
        None => format!("page tables are read, nothing is stopped; a look takes {} ms", model.look_ms),
    };
    vec![Line::styled(first, BOLD), Line::styled(second, FAINT)]
}

fn footer(model: &Model) -> String {
    if model.typing {
        return format!("show what contains: {}_", clean(&model.filter));
    }
    if !model.message.is_empty() {
        return clean(&model.message);
    }
    let filter = if model.filter.is_empty() { String::new() } else { format!("  /{}", clean(&model.filter)) };
    format!("q quit  ? help  Enter into  Tab lines  t trace  s sort  / find  p pause{filter}")
}

/// The part of the rows that has room, so that the chosen one is in it.
fn window(selected: usize, count: usize, area: Rect) -> std::ops::Range<usize> {
    let room = usize::from(area.height.saturating_sub(1)).max(1);
    let first = selected.saturating_sub(room - 1);
    first..count.min(first + room)
}

fn table<'a>(head: Vec<String>, rows: impl Iterator<Item = Row<'a>>, widths: Vec<Constraint>) -> Table<'a> {
    Table::new(rows, widths).header(Row::new(head).style(BOLD)).column_spacing(1)
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Text::from(text).right_aligned())
}

fn bytes(bytes: u64) -> Cell<'static> {
    right(if bytes == 0 { "0".to_owned() } else { Bytes(bytes).to_string() })
}

fn rate(rate: Option<f64>) -> Cell<'static> {
    right(match rate {
        None => "-".to_owned(),
        Some(rate) if rate < 0.0 => format!("-{}", Bytes(-rate as u64)),
        Some(rate) if rate < 1.0 => "0".to_owned(),
        Some(rate) => Bytes(rate as u64).to_string(),
    })
}

fn titles(model: &Model, columns: &[(&str, Option<Sort>)]) -> Vec<String> {
    let mark = if model.reverse { "^" } else { "v" };
    let title = |(title, sort): &(&str, Option<Sort>)| match sort {
        Some(sort) if *sort == model.sort => format!("{title}{mark}"),
        _ => (*title).to_owned(),
    };
    columns.iter().map(title).collect()
}

fn widths(pid: bool, figures: usize) -> Vec<Constraint> {
    let first = pid.then_some(Constraint::Length(7));
    first.into_iter().chain(vec![Constraint::Length(FIGURE); figures]).chain([Constraint::Fill(1)]).collect()
}

fn processes(frame: &mut Frame, model: &Model, area: Rect) {
    let wide = area.width >= 100;
    let mut columns = vec![("PID", Some(Sort::Pid)), ("SHARED", Some(Sort::Shared)), ("DIFFERS", Some(Sort::Differs))];
    columns.extend([("NEW", Some(Sort::New)), ("+/S", Some(Sort::Rate))]);
    if wide {
        columns.extend([("EITHER", None), ("PSS", Some(Sort::Pss)), ("COPIED", Some(Sort::Copied))]);
    }
    columns.push(("PROCESS", Some(Sort::Tree)));
    let shown = model.shown();
    let range = window(model.selected, shown.len(), area);
    let rows = shown.get(range.clone()).unwrap_or_default().iter().zip(range).map(|(row, nth)| {
        let figures = row.figures.unwrap_or_default();
        let of = |figure: u64| if row.figures.is_some() { bytes(figure) } else { right("-".to_owned()) };
        let mut cells = vec![right(row.pid.to_string()), of(figures.shared), of(figures.differs)];
        cells.extend([of(figures.new), rate(row.rate)]);
        if wide {
            cells.extend([of(figures.either), of(figures.pss)]);
            cells.push(row.copied.map_or(right("-".to_owned()), bytes));
        }
        cells.push(Cell::from(name(row, model.sort == Sort::Tree)));
        styled(Row::new(cells), nth == model.selected)
    });
    let figures = columns.len() - 2;
    frame.render_widget(table(titles(model, &columns), rows, widths(true, figures)), area);
}

fn styled(row: Row<'_>, chosen: bool) -> Row<'_> {
    if chosen { row.style(CHOSEN) } else { row }
}

fn name(row: &ProcessRow, indented: bool) -> String {
    let indent = if indented { 2 * row.depth.min(INDENTED_MAX) } else { 0 };
    let remark = if row.remark.is_empty() { String::new() } else { format!(" ({})", row.remark) };
    // A command may be a megabyte long.
    let command: String = row.command.chars().take(400).collect();
    format!("{:indent$}{command}{remark}", "")
}

/// Lines as far as there is room; of which one is chosen, if one can be.
fn line_rows<'a>(lines: &'a [&LineRow], selected: Option<usize>, area: Rect) -> impl Iterator<Item = Row<'a>> {
    let range = window(selected.unwrap_or_default(), lines.len(), area);
    lines.get(range.clone()).unwrap_or_default().iter().zip(range).map(move |(row, nth)| {
        let function = if row.line.function.is_empty() { String::new() } else { format!(" {}", row.line.function) };
        let cells = [
            bytes(row.sum.copied_bytes),
            rate(row.rate),
            bytes(row.sum.new_bytes),
            right(row.processes.to_string()),
            Cell::from(clean(&format!("{}{function}", row.line.place).chars().take(400).collect::<String>())),
        ];
        styled(Row::new(cells), Some(nth) == selected)
    })
}

const LINES: [&str; 5] = ["COPIED", "COPIED/S", "NEW", "PROCESSES", "LINE, estimated from samples"];

/// Why no line is shown.
fn no_lines(model: &Model, traces: Option<Traced>) -> String {
    match (traces, model.rows.first()) {
        _ if !model.lines.is_empty() => format!("no line contains {}: / looks for another text", clean(&model.filter)),
        (Some(Traced { is_over: false, .. }), _) => "no copies have a line yet".to_owned(),
        (Some(Traced { is_over: true, .. }), _) => "no copies had a line".to_owned(),
        (None, Some(first)) => format!(
            "nothing is traced: t attaches to {} and what it forked; in mode trace each first write to a shared page \
             then waits for cowbell",
            first.pid
        ),
        (None, None) => "nothing is traced".to_owned(),
    }
}

fn lines(frame: &mut Frame, model: &Model, area: Rect, traces: Option<Traced>) {
    let shown = model.shown_lines();
    if shown.is_empty() {
        return frame.render_widget(wrapped(no_lines(model, traces)), area);
    }
    let head = LINES.map(str::to_owned).to_vec();
    frame.render_widget(table(head, line_rows(&shown, Some(model.selected), area), widths(false, 4)), area);
}

fn one(frame: &mut Frame, model: &Model, pid: i32, area: Rect) {
    let Some(row) = model.rows.iter().find(|row| row.pid == pid) else {
        return frame
            .render_widget(Paragraph::new(format!("process {pid} has ended, or is no longer in the tree")), area);
    };
    let lines: Vec<&LineRow> = model.lines_of(pid).iter().collect();
    let below = if lines.is_empty() { 0 } else { (lines.len() as u16 + 1).min(area.height / 2) };
    let [head, upper, lower] =
        Layout::vertical([Constraint::Length(1), Constraint::Fill(1), Constraint::Length(below)]).areas(area);
    frame.render_widget(Paragraph::new(format!("{} {}", row.pid, name(row, false))), head);
    let range = window(model.selected, row.mappings.len(), upper);
    let rows = row.mappings.get(range.clone()).unwrap_or_default().iter().zip(range).map(|(group, nth)| {
        let figures = ProcessFigures::of(&group.pages, model.page_size, 0);
        let cells = [figures.shared, figures.differs, figures.new, figures.either].map(bytes);
        let name: String = group.name.chars().take(400).collect();
        styled(Row::new(cells.into_iter().chain([Cell::from(clean(&name))])), nth == model.selected)
    });
    let head = ["SHARED", "DIFFERS", "NEW", "EITHER", "MAPPING"].map(str::to_owned).to_vec();
    frame.render_widget(table(head, rows, widths(false, 4)), upper);
    if below > 0 {
        let rows = line_rows(&lines, None, lower);
        frame.render_widget(table(LINES.map(str::to_owned).to_vec(), rows, widths(false, 4)), lower);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyse::live::{LiveLine as Place, Sum};

    fn row(pid: i32, pss: u64, is_in_anothers_memory: bool) -> ProcessRow {
        ProcessRow {
            pid,
            depth: 0,
            command: "worker".to_owned(),
            remark: String::new(),
            figures: Some(ProcessFigures { pss, ..ProcessFigures::default() }),
            mappings: Vec::new(),
            rate: None,
            copied: None,
            is_in_anothers_memory,
        }
    }

    fn shown(model: &Model, traces: Option<Traced>) -> String {
        header(model, traces).iter().map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn a_memory_is_added_once_and_who_has_none_is_not_said_to_be_closed() {
        let rows = vec![row(7, 4096, false), row(8, 4096, true), ProcessRow { figures: None, ..row(9, 0, false) }];
        let mut model = Model::new();
        model.rows = rows;
        assert!(shown(&model, None).starts_with("3 processes, 1 not read; PSS 4.0 KiB,"), "{}", shown(&model, None));
    }

    #[test]
    fn what_is_over_is_not_said_to_be_traced() {
        let traced = |is_over| Some(Traced { mode: "trace", is_over });
        assert!(shown(&Model::new(), traced(false)).contains("\ntraced, mode trace;"));
        let over = shown(&Model::new(), traced(true));
        assert!(over.contains("\nthe trace is over, mode trace;") && !over.contains("yet"), "{over}");
    }

    #[test]
    fn why_there_is_no_line_is_told_as_it_is() {
        let line = LineRow {
            line: Place { place: "job.py:5".to_owned(), function: String::new() },
            sum: Sum { copied_bytes: 1, new_bytes: 0 },
            rate: None,
            processes: 1,
        };
        let mut hidden = Model::new();
        (hidden.lines, hidden.filter) = (vec![line], "x".to_owned());
        let traced = Some(Traced { mode: "trace", is_over: false });
        assert!(hidden.shown_lines().is_empty());
        assert_eq!(no_lines(&hidden, traced), "no line contains x: / looks for another text");
        let mut none = Model::new();
        none.rows = vec![row(7, 0, false), row(8, 0, false)];
        assert_eq!(no_lines(&none, traced), "no copies have a line yet");
        let untraced = no_lines(&none, None);
        assert!(untraced.contains("t attaches to 7 and") && untraced.contains("in mode trace each"), "{untraced}");
    }
}
