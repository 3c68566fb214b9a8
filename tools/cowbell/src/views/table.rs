//! Tables: one way to lay out rows of figures and names, for every command.
//!
//! A table is as wide as what is in it, and no wider than asked for. Figures are never shortened. Names are, where they
//! must be, by what tells least: a path's beginning, a function's end. What must not be lost with them, such as what a
//! name is the name of, is a column of its own.

use super::width;

/// The part that is kept of a cell that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// All of it: figures, and words of this program.
    All,
    /// The beginning.
    Head,
    /// The end.
    Tail,
}

/// A column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// The column's title, if it has one.
    pub title: &'static str,
    /// True if its cells are aligned at their ends.
    pub right: bool,
    /// The part that is kept of a cell where the table is too wide.
    pub keep: Keep,
    /// The column is not narrower.
    pub min: usize,
    /// Blanks before it.
    pub gap: usize,
}

/// A column of figures.
pub const fn figures(title: &'static str, min: usize, gap: usize) -> Column {
    Column { title, right: true, keep: Keep::All, min, gap }
}

/// A column of words of this program.
pub const fn words(title: &'static str, min: usize, gap: usize) -> Column {
    Column { title, right: false, keep: Keep::All, min, gap }
}

/// A column of names, which may be shortened.
pub const fn names(title: &'static str, keep: Keep, gap: usize) -> Column {
    Column { title, right: false, keep, min: 0, gap }
}

/// No column is wider, even where names are told in full: a width of more than 65,535 is refused by formatting.
const WIDEST: usize = 10_000;
/// Names are not shortened to less.
const SHORTENED_MIN: usize = 12;

/// The lines of a table, at most so wide if its figures allow: the titles, if there are any, then a line a row.
pub fn lines(columns: &[Column], rows: &[Vec<String>], width: Option<usize>) -> (Option<String>, Vec<String>) {
    let titled = columns.iter().any(|column| !column.title.is_empty());
    let longest = |nth: usize| rows.iter().filter_map(|row| row.get(nth)).map(|cell| width::width(cell)).max();
    let natural = |(nth, column): (usize, &Column)| {
        longest(nth).unwrap_or(0).max(width::width(column.title)).max(column.min).min(WIDEST)
    };
    let mut widths: Vec<usize> = columns.iter().enumerate().map(natural).collect();
    let gaps: usize = columns.iter().map(|column| column.gap).sum();
    while width.is_some_and(|width| widths.iter().sum::<usize>() + gaps > width) {
        // The widest gives first.
        let may_give = |(nth, at): &(usize, &mut usize)| {
            **at > SHORTENED_MIN && columns.get(*nth).is_some_and(|column| column.keep != Keep::All)
        };
        let Some((_, widest)) = widths.iter_mut().enumerate().filter(may_give).max_by_key(|(_, at)| **at) else {
            break;
        };
        *widest -= 1;
    }
    let line = |cells: &dyn Fn(usize) -> String| {
        let mut line = String::new();
        for (nth, (column, &width)) in columns.iter().zip(&widths).enumerate() {
            let cell = shorten(&cells(nth), column.keep, width);
            line += &" ".repeat(column.gap);
            line += &if column.right { width::aligned(&cell, width) } else { width::padded(&cell, width) };
        }
        line.trim_end().to_owned()
    };
    let titles = titled.then(|| line(&|nth| columns.get(nth).map_or(String::new(), |column| column.title.to_owned())));
    let rows = rows.iter().map(|row| line(&|nth| row.get(nth).cloned().unwrap_or_default())).collect();
    (titles, rows)
}

/// The least room for the names of a table in blocks.
const NAMES_MIN: usize = 24;

/// A table whose first column has names and all others figures, as blocks of lines: where the figures leave names too
/// little room, the columns that do not fit make a block of their own, with the names again. So nothing is left out. Each
/// line has the number of its row; the titles have none.
pub fn blocks(columns: &[Column], rows: &[Vec<String>], width: Option<usize>) -> Vec<Vec<(Option<usize>, String)>> {
    let Some((names, figures)) = columns.split_first() else { return Vec::new() };
    let cells = |nth: usize| rows.iter().filter_map(move |row| row.get(nth)).map(|cell| width::width(cell));
    let longest = |(nth, column): (usize, &Column)| {
        cells(nth).max().unwrap_or(0).max(width::width(column.title)).max(column.min) + column.gap
    };
    let room = longest((0, names)).min(NAMES_MIN);
    let mut parts: Vec<Vec<usize>> = vec![Vec::new()];
    let mut taken = room;
    for (nth, column) in figures.iter().enumerate() {
        let needed = longest((nth + 1, column));
        if width.is_some_and(|width| taken + needed > width) && parts.last().is_some_and(|part| !part.is_empty()) {
            parts.push(Vec::new());
            taken = room;
        }
        taken += needed;
        parts.last_mut().into_iter().for_each(|part| part.push(nth + 1));
    }
    let block = |(number, part): (usize, Vec<usize>)| {
        let take = |row: &Vec<String>| {
            std::iter::once(0)
                .chain(part.iter().copied())
                .map(|nth| row.get(nth).cloned().unwrap_or_default())
                .collect()
        };
        // A name without figures is not said again.
        let is_told = |(_, row): &(usize, &Vec<String>)| {
            number == 0 || part.iter().any(|&nth| row.get(nth).is_some_and(|cell| !cell.is_empty()))
        };
        let (numbers, rows): (Vec<usize>, Vec<Vec<String>>) =
            rows.iter().enumerate().filter(is_told).map(|(nth, row)| (nth, take(row))).unzip();
        let columns: Vec<Column> =
            std::iter::once(*names).chain(part.iter().filter_map(|&nth| columns.get(nth).copied())).collect();
        let (titles, lines) = lines(&columns, &rows, width);
        let titles = titles.into_iter().map(|titles| (None, titles));
        titles.chain(numbers.into_iter().map(Some).zip(lines)).collect()
    };
    parts.into_iter().enumerate().map(block).collect()
}

/// Terms, each with what is said of it: the terms in columns, the words beside them on as many lines as they take.
pub fn described(indent: usize, terms: &[(Vec<String>, String)], width: usize) -> Vec<String> {
    let columns = terms.iter().map(|(cells, _)| cells.len()).max().unwrap_or(0);
    let longest =
        |nth: usize| terms.iter().filter_map(|(cells, _)| cells.get(nth)).map(|cell| width::width(cell)).max();
    let widths: Vec<usize> = (0..columns).map(|nth| longest(nth).unwrap_or(0)).collect();
    let beside = indent + widths.iter().map(|width| width + 2).sum::<usize>();
    let mut lines = Vec::new();
    for (cells, words) in terms {
        let mut line = format!("{:indent$}", "");
        for (nth, width) in widths.iter().enumerate() {
            line += &(width::padded(cells.get(nth).map_or("", String::as_str), *width) + "  ");
        }
        let mut words = wrap(words, width.saturating_sub(beside).max(SHORTENED_MIN)).into_iter();
        line += &words.next().unwrap_or_default();
        lines.push(line.trim_end().to_owned());
        lines.extend(words.map(|rest| format!("{:beside$}{rest}", "")));
    }
    lines
}

/// A sentence as lines of at most `most` columns, broken between words.
pub fn wrap(sentence: &str, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in sentence.split_whitespace() {
        match lines.last_mut() {
            Some(line) if width::width(line) + 1 + width::width(word) <= most => {
                line.push(' ');
                line.push_str(word);
            }
            // A path that is longer than a line loses its beginning.
            _ => lines.push(shorten(word, Keep::Tail, most)),
        }
    }
    lines
}

/// A cell of at most so many columns, if it may be shortened.
fn shorten(cell: &str, keep: Keep, most: usize) -> String {
    match keep {
        Keep::Head => width::head(cell, most),
        Keep::Tail => width::tail(cell, most),
        Keep::All => cell.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|cell| (*cell).to_owned()).collect()
    }

    #[test]
    fn names_give_way_and_figures_and_words_do_not() {
        let columns = [figures("pages", 0, 0), words("", 0, 2), names("", Keep::Tail, 1), names("", Keep::Head, 2)];
        let long =
            row(&["12,345", "uninitialised data of", "/usr/lib/x86_64-linux-gnu/libc.so.6", "a_long_function_name"]);
        let (titles, lines) = lines(&columns, &[long.clone(), row(&["1", "", "x"])], Some(60));
        assert_eq!(titles.as_deref(), Some(" pages"));
        assert_eq!(lines[0], "12,345  uninitialised data of …gnu/libc.so.6  a_long_functi…");
        assert_eq!(lines[1], "     1                        x");
        let (_, lines) = super::lines(&columns, &[long], None);
        assert!(lines[0].ends_with("libc.so.6  a_long_function_name"));
    }

    #[test]
    fn columns_that_do_not_fit_stand_below_with_the_names_again() {
        let columns =
            [names("process", Keep::Head, 0), figures("rss", 6, 2), figures("pss", 6, 2), figures("swap", 6, 2)];
        let rows = [row(&["10 a_long_program --with many --arguments", "1.0M", "2.0M", "-"]), row(&["11 zombie"])];
        let told: Vec<Vec<String>> = blocks(&columns, &rows, Some(40))
            .into_iter()
            .map(|block| block.into_iter().map(|(_, line)| line).collect())
            .collect();
        assert_eq!(told.len(), 2);
        assert_eq!(
            told[0],
            ["process                      rss     pss", "10 a_long_program --wit…    1.0M    2.0M", "11 zombie"]
        );
        assert_eq!(told[1].len(), 2, "one without figures is not said again: {told:?}");
        assert!(told[1][0].ends_with("swap") && told[1][1].ends_with('-'), "{told:?}");
        assert_eq!(blocks(&columns, &rows, None).len(), 1);
    }

    #[test]
    fn words_beside_a_term_stay_in_their_column() {
        let terms = [
            (row(&["new", "x"]), "own, and its parent has nothing there".to_owned()),
            (row(&["either"]), "short".to_owned()),
        ];
        let lines = described(2, &terms, 34);
        assert_eq!(lines, ["  new     x  own, and its parent", "             has nothing there", "  either     short"]);
    }

    proptest! {
        #[test]
        fn a_table_is_no_wider_than_asked_for(names_of in proptest::collection::vec("\\PC{0,90}", 1..5), width in 40..100usize) {
            let columns = [figures("", 11, 0), names("", Keep::Head, 2), names("", Keep::Tail, 2)];
            let rows: Vec<_> = names_of.iter().map(|name| row(&["7", name, name])).collect();
            for line in lines(&columns, &rows, Some(width)).1 {
                prop_assert!(width::width(&line) <= width, "{line:?}");
            }
        }
    }
}
