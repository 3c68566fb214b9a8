//! Widths on a terminal: the characters of East Asian scripts and most emoji take two columns. Marks that take none count for one,
//! so that a name made of them has an end, too.

use unicode_width::UnicodeWidthChar;

/// Columns that a text takes.
pub fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

/// The beginning of a text where all of it is wider than so many columns.
pub fn head(text: &str, most: usize) -> String {
    if width(text) <= most {
        return text.to_owned();
    }
    fitting(text.chars(), most.saturating_sub(1)).into_iter().chain(['…']).collect()
}

/// The end of a text where all of it is wider than so many columns.
pub fn tail(text: &str, most: usize) -> String {
    if width(text) <= most {
        return text.to_owned();
    }
    let kept = fitting(text.chars().rev(), most.saturating_sub(1));
    std::iter::once('…').chain(kept.into_iter().rev()).collect()
}

/// A text with blanks behind it up to a width.
pub fn padded(text: &str, to: usize) -> String {
    format!("{text}{}", blanks(text, to))
}

/// A text with blanks before it up to a width.
pub fn aligned(text: &str, to: usize) -> String {
    format!("{}{text}", blanks(text, to))
}

fn blanks(text: &str, to: usize) -> String {
    " ".repeat(to.saturating_sub(width(text)))
}

fn columns(c: char) -> usize {
    c.width().unwrap_or(1).max(1)
}

/// The first characters, as many as fit.
fn fitting(text: impl Iterator<Item = char>, most: usize) -> Vec<char> {
    let mut taken = 0;
    text.take_while(|&c| {
        taken += columns(c);
        taken <= most
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_characters_take_two_columns() {
        assert_eq!((width("abc"), width("数据"), width("…")), (3, 4, 1));
        assert_eq!((head("数据列表", 6), tail("数据列表", 6)), ("数据…".to_owned(), "…列表".to_owned()));
        assert_eq!((head("数据列表", 8), head("数据", 1)), ("数据列表".to_owned(), "…".to_owned()));
        assert_eq!((padded("数据", 6), aligned("数据", 6)), ("数据  ".to_owned(), "  数据".to_owned()));
    }
}
