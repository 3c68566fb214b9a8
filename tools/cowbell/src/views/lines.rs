//! Lines of text: numbers, columns and widths.

use super::table::{self, Column};
use super::width;
use anstyle::Style;
use std::fmt::Write;

/// A line is not longer, unless names are shown in full.
pub const WIDTH: usize = 80;
/// Entries that are less than this of a whole, all told, are not listed one by one.
const REST_MAX: f64 = 0.01;
/// The fewest entries of a list that are shown, however small they are.
const SHOWN_MIN: usize = 3;

const HEADING: Style = Style::new().bold();
const FAINT: Style = Style::new().dimmed();
const LOUD: Style = Style::new().bold().fg_color(Some(anstyle::Color::Ansi(anstyle::AnsiColor::Yellow)));

/// Text in the making.
#[derive(Debug, Default)]
pub struct Text(String);

impl Text {
    /// The text, with colours.
    pub fn finish(self) -> String {
        self.0
    }

    /// The number of lines up to now.
    pub fn lines(&self) -> usize {
        self.0.lines().count()
    }

    fn styled(&mut self, style: Style, line: &str) {
        // Writing to a string cannot fail.
        let _written = writeln!(self.0, "{style}{line}{style:#}");
    }

    /// A line.
    pub fn line(&mut self, line: &str) {
        self.0.push_str(line.trim_end());
        self.0.push('\n');
    }

    /// A line that must not be missed.
    pub fn loud(&mut self, line: &str) {
        self.styled(LOUD, line);
    }

    /// A sentence that must not be missed, on as many lines as it takes.
    pub fn loud_sentence(&mut self, sentence: &str) {
        for line in table::wrap(sentence, WIDTH) {
            self.loud(&line);
        }
    }

    /// The heading of a section.
    pub fn heading(&mut self, line: &str) {
        self.0.push('\n');
        self.styled(HEADING, line);
    }

    /// A line of secondary interest.
    pub fn faint(&mut self, line: &str) {
        self.styled(FAINT, line.trim_end());
    }

    /// A sentence of secondary interest, on as many lines as it takes.
    pub fn faint_sentence(&mut self, indent: usize, sentence: &str) {
        for line in table::wrap(sentence, WIDTH - indent) {
            self.faint(&format!("{:indent$}{line}", ""));
        }
    }

    /// A table of entries, whose share of the whole `share` tells; `row` makes the cells of each. Entries come largest
    /// first; those beyond `top` and those that hardly count are only told by number.
    pub fn table<T>(&mut self, list: &List<'_, T>, share: impl Fn(&T) -> f64, row: impl Fn(&T) -> Row) {
        let mut rest: f64 = list.entries.iter().map(&share).sum();
        let mut shown = 0;
        for entry in list.entries {
            if shown >= list.top || (shown >= SHOWN_MIN && rest < REST_MAX) {
                break;
            }
            shown += 1;
            rest -= share(entry);
        }
        self.rows(list, shown, &percent(rest), row);
    }

    /// The same of entries that are no parts of a whole: none is left out for being small.
    pub fn listing<T>(&mut self, list: &List<'_, T>, row: impl Fn(&T) -> Row) {
        self.rows(list, list.top, "", row);
    }

    /// The first `shown` entries, and the number of the others with their share. One more line is as long as saying that one is left out.
    fn rows<T>(&mut self, list: &List<'_, T>, shown: usize, share_of_rest: &str, row: impl Fn(&T) -> Row) {
        let shown = if list.entries.len() <= shown + 1 { list.entries.len() } else { shown };
        let mut rows: Vec<Row> = list.entries.iter().take(shown).map(row).collect();
        let cells: Vec<Vec<String>> = rows.iter_mut().map(|row| std::mem::take(&mut row.cells)).collect();
        let (titles, lines) = table::lines(list.columns, &cells, (!list.in_full).then_some(WIDTH));
        if let Some(titles) = titles {
            self.faint(&titles);
        }
        for (line, row) in lines.iter().zip(&rows) {
            self.line(line);
            for (indent, sentence) in &row.below {
                self.faint_sentence(*indent, sentence);
            }
        }
        let left_out = list.entries.len() - shown;
        if left_out > 0 {
            self.faint(&format!("{:>11} {share_of_rest:>7}  {} more", "", count(left_out as u64)));
        }
    }
}

/// The parts of a table.
pub struct List<'a, T> {
    /// The list's rows, largest first.
    pub entries: &'a [T],
    /// The list's columns.
    pub columns: &'a [Column],
    /// The most rows that are shown.
    pub top: usize,
    /// Names are shown in full, however long.
    pub in_full: bool,
}

/// A row of a table, and sentences below it with their indents.
#[derive(Default)]
pub struct Row {
    pub cells: Vec<String>,
    pub below: Vec<(usize, String)>,
}

/// The first two columns of tables: pages, and their share of the whole.
pub const PAGES: Column = table::figures("", 11, 0);
/// See [`PAGES`].
pub const SHARE: Column = table::figures("", 7, 1);

/// A number with its thousands apart.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut apart = String::new();
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            apart.push(',');
        }
        apart.push(digit);
    }
    apart
}

/// A number of things, in the singular where it is one.
pub fn some(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// A share.
pub fn percent(share: f64) -> String {
    let percent = share.max(0.0) * 100.0;
    match percent {
        p if p > 0.0 && p < 0.05 => "<0.1 %".into(),
        // A part is never told as all.
        p if p < 100.0 => format!("{:.1} %", p.min(99.9)),
        p => format!("{p:.0} %"),
    }
}

/// A time.
pub fn time(ns: u64) -> String {
    let ns = ns as f64;
    match ns {
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        ns if ns < 1e6 => format!("{:.0} us", ns / 1e3),
        ns if ns < 1e7 => format!("{:.1} ms", ns / 1e6),
        ns if ns < 1e9 => format!("{:.0} ms", ns / 1e6),
        ns if ns < 1e11 => format!("{:.2} s", ns / 1e9),
        ns => format!("{:.0} s", ns / 1e9),
    }
}

/// A foreign string without what a terminal would obey, and without what would show it in another order than it has.
pub fn clean(foreign: &str) -> String {
    let is_bidi =
        |c: char| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let is_break = |c: char| matches!(c, '\u{2028}' | '\u{2029}');
    foreign.chars().map(|c| if c.is_control() || is_bidi(c) || is_break(c) { '?' } else { c }).collect()
}

/// The beginning of a text where all of it is too wide; padded to the width where it is narrower.
pub fn head(text: &str, most: usize) -> String {
    width::padded(&width::head(&clean(text), most), most)
}

/// The end of a text where all of it is too wide; padded to the width where it is narrower. Of paths the end tells more.
pub fn tail(text: &str, most: usize) -> String {
    width::padded(&width::tail(&clean(text), most), most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1000, 1234567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.0, 0.0001, 0.123, 0.9999, 1.0].map(percent), ["0.0 %", "<0.1 %", "12.3 %", "99.9 %", "100 %"]);
        let times = [999, 5_000, 1_500_000, 50_000_000, 1_500_000_000, 200_000_000_000].map(time);
        assert_eq!(times, ["999 ns", "5 us", "1.5 ms", "50 ms", "1.50 s", "200 s"]);
    }

    #[test]
    fn long_names_lose_what_tells_less_and_keep_their_width() {
        assert_eq!(tail("/a/long/path.py:12", 10), "…ath.py:12");
        assert_eq!(head("a_long_function", 6), "a_lon…");
        assert_eq!(head("ab", 4), "ab  ");
        assert_eq!(head("\u{1b}[31mred", 9), "?[31mred ");
    }

    #[test]
    fn a_list_tells_the_number_of_what_it_leaves_out() {
        let table = |text: &mut Text, entries: &[f64], top| {
            let columns = [table::figures("", 0, 0)];
            let list = List { entries, columns: &columns, top, in_full: false };
            text.table(&list, |share| *share, |share| Row { cells: vec![percent(*share)], ..Row::default() });
        };
        let mut text = Text::default();
        table(&mut text, &[0.5, 0.3, 0.1, 0.05, 0.05], 3);
        let shown = anstream::adapter::strip_str(&text.finish()).to_string();
        assert!(shown.contains("10.0 %\n") && shown.contains("2 more") && !shown.contains("\n 5.0 %"), "{shown}");
        // One that is left would take the line that tells of it.
        let mut text = Text::default();
        table(&mut text, &[0.5, 0.5], 1);
        assert_eq!(text.finish(), "50.0 %\n50.0 %\n");
        // Those that are no parts of a whole have no share.
        let mut text = Text::default();
        let list = List { entries: &[1, 2, 3, 4, 5], columns: &[table::figures("", 0, 0)], top: 3, in_full: false };
        text.listing(&list, |number| Row { cells: vec![number.to_string()], ..Row::default() });
        let shown = anstream::adapter::strip_str(&text.finish()).to_string();
        assert_eq!(shown.split_whitespace().collect::<Vec<_>>(), ["1", "2", "3", "2", "more"], "{shown}");
    }
}
