//! One page for browsers: a file of its own that loads nothing. It can be read without its script, which adds sorting, the flame
//! graph and the map of pages.
//!
//! Foreign text enters in two places only: through [`escaped`] into the page, and as JSON into the data of the script, which
//! shows it as text and never as markup.

mod compared;
mod profile;

pub use compared::compared;
pub use profile::profile;

use super::check::escape;
use super::lines::head;
use serde::Serialize;
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// A foreign text is not told at more length.
const TEXT_MAX: usize = 400;

/// A page in the making.
#[derive(Debug, Default)]
pub struct HtmlPage {
    title: String,
    verdict: Vec<String>,
    remarks: Vec<String>,
    brief: String,
    body: String,
    data: serde_json::Map<String, serde_json::Value>,
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// The column's title.
    pub title: &'static str,
    /// True if its cells are figures.
    pub figures: bool,
}

/// A cell of a table.
#[derive(Debug)]
pub struct Cell {
    /// The cell's text.
    shown: String,
    /// The number that it is sorted by, if it has one.
    number: Option<f64>,
    /// A bar behind it: a part of one.
    bar: Option<f64>,
}

/// A text.
pub fn words(shown: impl Into<String>) -> Cell {
    Cell { shown: shown.into(), number: None, bar: None }
}

/// A figure, and the number that it stands for.
pub fn figure(shown: impl Into<String>, number: f64) -> Cell {
    Cell { shown: shown.into(), number: Some(number), bar: None }
}

impl Cell {
    /// With a bar behind it.
    pub fn bar(self, share: f64) -> Self {
        Self { bar: Some(share.clamp(0.0, 1.0)), ..self }
    }
}

impl HtmlPage {
    /// A page: what the window is called, what must be read first, and what else there is to say of the whole.
    pub fn new(title: String, verdict: Vec<String>, remarks: Vec<String>) -> Self {
        Self { title, verdict, remarks, ..Self::default() }
    }

    /// Lines that are to be read right behind the verdict, as they are laid out.
    pub fn brief(&mut self, lines: &[&str]) {
        self.brief = lines.iter().map(|line| escaped(line) + "\n").collect();
    }

    /// Adds a table that can be sorted and searched; nothing if it has no rows.
    pub fn table(&mut self, id: &'static str, title: &str, columns: &[Column], rows: &[Vec<Cell>]) {
        if rows.is_empty() {
            return;
        }
        let _written = write!(
            self.body,
            "<section aria-labelledby=\"{id}\"><h2 id=\"{id}\">{}</h2><div class=\"wide\" role=\"region\" tabindex=\"0\" \
             aria-labelledby=\"{id}\"><table class=\"sorts\"><thead><tr>",
            escaped(title)
        );
        for column in columns {
            let class = if column.figures { " class=\"f\"" } else { "" };
            let _written = write!(self.body, "<th scope=\"col\"{class}>{}</th>", escaped(column.title));
        }
        self.body.push_str("</tr></thead><tbody>\n");
        for row in rows {
            self.body.push_str("<tr>");
            for (cell, column) in row.iter().zip(columns) {
                let class = if column.figures { " class=\"f\"" } else { "" };
                let sort = cell.number.map_or(String::new(), |number| format!(" data-sort=\"{number}\""));
                let bar = cell.bar.map_or(String::new(), |share| format!(" style=\"--bar:{:.1}%\"", share * 100.0));
                let _written = write!(self.body, "<td{class}{sort}{bar}>{}</td>", escaped(&cell.shown));
            }
            self.body.push_str("</tr>\n");
        }
        self.body.push_str("</tbody></table></div></section>\n");
    }

    /// Adds a list of sentences; nothing if there are none.
    pub fn list(&mut self, id: &str, title: &str, sentences: &[String]) {
        if sentences.is_empty() {
            return;
        }
        let _written = write!(self.body, "<section><h2 id=\"{id}\">{}</h2><ul>", escaped(title));
        for sentence in sentences {
            let _written = write!(self.body, "<li>{}</li>", escaped(sentence));
        }
        self.body.push_str("</ul></section>\n");
    }

    /// Adds a place that the script fills with what it is given as `data` under the same name.
    pub fn picture(&mut self, id: &'static str, title: &str, says: &str, data: &impl Serialize) {
        let Ok(data) = serde_json::to_value(data) else { return };
        self.data.insert(id.to_owned(), data);
        let _written = writeln!(
            self.body,
            "<section aria-labelledby=\"{id}-title\"><h2 id=\"{id}-title\">{}</h2><p class=\"quiet\">{}</p><div id=\"{id}\">\
             <noscript>This picture needs JavaScript; its figures are in the tables.</noscript></div></section>",
            escaped(title),
            escaped(says)
        );
    }

    /// Adds a text as it is, folded away.
    pub fn text(&mut self, title: &str, text: &str) {
        let lines: Vec<String> = text.lines().map(escaped).collect();
        let _written = writeln!(
            self.body,
            "<details><summary>{}</summary><pre tabindex=\"0\">{}</pre></details>",
            escaped(title),
            lines.join("\n")
        );
    }

    /// The page.
    pub fn finish(self) -> Vec<u8> {
        let mut page = String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
        page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
        // Nothing is loaded, whatever a name in the data may try.
        page.push_str(
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src \
             'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n<meta name=\"color-scheme\" content=\"light dark\">\n",
        );
        let _written = writeln!(
            page,
            "<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>",
            escaped(&self.title)
        );
        for (nth, sentence) in self.verdict.iter().enumerate() {
            let tag = if nth == 0 { "h1" } else { "p" };
            let _written = writeln!(page, "<{tag} class=\"verdict\">{}</{tag}>", escaped(sentence));
        }
        for remark in &self.remarks {
            let _written = writeln!(page, "<p class=\"quiet\">{}</p>", escaped(remark));
        }
        if !self.brief.is_empty() {
            let _written = writeln!(page, "<pre class=\"brief\" tabindex=\"0\">{}</pre>", self.brief);
        }
        page.push_str(&self.body);
        let data = serde_json::Value::Object(self.data).to_string();
        let _written = write!(
            page,
            "</main>\n<script type=\"application/json\" id=\"data\">{}</script>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
            in_script(&data)
        );
        page.into_bytes()
    }
}

/// A foreign text as markup that shows it: without what is no text, and of bounded length.
fn escaped(text: &str) -> String {
    escape(head(&text.chars().take(TEXT_MAX + 1).collect::<String>(), TEXT_MAX).trim_end())
}

/// JSON inside of a script element: nothing in it ends the element or begins a comment.
fn in_script(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            // Line separators end a statement in old readers; the others turn the direction of what stands beside them.
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                let _written = write!(safe, "\\u{:04x}", c as u32);
            }
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_foreign_is_markup_or_ends_a_script() {
        let evil = "</script><script>alert(1)</script><!--\u{202e}\u{2028}&\"'";
        let mut page = HtmlPage::new(evil.to_owned(), vec![evil.to_owned()], vec![evil.to_owned()]);
        let columns = [Column { title: "x", figures: false }];
        page.table("t", evil, &columns, &[vec![words(evil)], vec![words("x".repeat(1 << 20))]]);
        page.list("l", evil, &[evil.to_owned()]);
        page.text(evil, &format!("{evil}\n{evil}"));
        page.picture("p", evil, evil, &[evil]);
        let text = String::from_utf8(page.finish()).expect("text");
        assert_eq!(text.matches("</script").count(), 2, "{text}");
        assert_eq!(text.matches("<script").count(), 2);
        assert!(!text.contains("<!--") && !text.contains('\u{202e}') && !text.contains('\u{2028}'));
        assert!(text.len() < 100_000);
        let data = text.split("id=\"data\">").nth(1).and_then(|rest| rest.split("</script>").next()).expect("data");
        let data: serde_json::Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(data["p"][0], evil);
    }
}
