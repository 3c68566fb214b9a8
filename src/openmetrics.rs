//! The text format of OpenMetrics 1.0, which Prometheus reads: <https://prometheus.io/docs/specs/om/open_metrics_spec/>.
//!
//! Hidden, because it is no part of the promise: the tool and [`crate::pool`] write through it. A writer and nothing else: whoever has figures states a family of metrics, then its samples, and gets text. Names and units
//! are the program's own, and are checked when they are stated; the values of labels come from anywhere, and are escaped.
//!
//! ```
//! use cowbell::openmetrics::{Exposition, MetricKind};
//!
//! let mut out = Exposition::new();
//! let mut family = out.family("job_copied_bytes", MetricKind::Gauge, "Memory copied after fork.", "bytes");
//! family.sample(&[("pid", "17".to_owned())], 4096.0);
//! let text = out.finish();
//! assert!(text.starts_with("# TYPE job_copied_bytes gauge\n# UNIT job_copied_bytes bytes\n"));
//! assert!(text.ends_with("\njob_copied_bytes{pid=\"17\"} 4096\n# EOF\n"));
//! ```

use std::fmt::Write;

/// The media type of the text.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Kinds of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// A value that rises and falls.
    Gauge,
    /// A value that only rises; its samples' names end with `_total`, which is added here.
    Counter,
}

/// A text in the making.
#[derive(Debug, Default)]
pub struct Exposition(String);

/// A family of metrics, to which samples are added.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
    kind: MetricKind,
}

impl Exposition {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a family. A unit that is not empty is the last part of the name, as the format demands.
    ///
    /// # Panics
    /// The name has other characters than letters, digits and `_`, or does not end with the unit: a mistake of the program's.
    pub fn family(&mut self, name: &'static str, kind: MetricKind, help: &str, unit: &'static str) -> Family<'_> {
        let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(is_of_a_name);
        assert!(is_name, "{name} is no name of a metric");
        let has_unit = unit.is_empty() || name.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_'));
        assert!(has_unit, "{name} does not end with its unit, {unit}");
        let word = match kind {
            MetricKind::Gauge => "gauge",
            MetricKind::Counter => "counter",
        };
        let text = &mut self.0;
        // Writing to a string cannot fail.
        let _written = writeln!(text, "# TYPE {name} {word}");
        if !unit.is_empty() {
            let _written = writeln!(text, "# UNIT {name} {unit}");
        }
        let _written = writeln!(text, "# HELP {name} {}", escaped(help));
        Family { text, name, kind }
    }

    /// The whole text, with the line that ends it.
    pub fn finish(mut self) -> String {
        self.0.push_str("# EOF\n");
        self.0
    }
}

impl Family<'_> {
    /// Adds a sample.
    ///
    /// # Panics
    /// A label's name has other characters than letters, digits and `_`.
    pub fn sample(&mut self, labels: &[(&'static str, String)], value: f64) {
        let total = if self.kind == MetricKind::Counter { "_total" } else { "" };
        let _written = write!(self.text, "{}{total}", self.name);
        for (nth, (label, text)) in labels.iter().enumerate() {
            assert!(label.chars().all(is_of_a_name), "{label} is no name of a label");
            let open = if nth == 0 { '{' } else { ',' };
            let _written = write!(self.text, "{open}{label}=\"{}\"", escaped(text));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _written = writeln!(self.text, "{close} {}", number(value));
    }
}

fn is_of_a_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// A text as it may stand between quotes, and in a help text.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn number(value: f64) -> String {
    match value {
        v if v.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        v => v.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_labels_stay_within_their_quotes() {
        let mut out = Exposition::new();
        out.family("a", MetricKind::Gauge, "x", "").sample(&[("l", "q\"} 1\nb 2\\".to_owned())], f64::INFINITY);
        assert_eq!(out.finish(), "# TYPE a gauge\n# HELP a x\na{l=\"q\\\"} 1\\nb 2\\\\\"} +Inf\n# EOF\n");
    }

    #[test]
    fn counters_end_with_total() {
        let mut out = Exposition::new();
        let mut family = out.family("copies", MetricKind::Counter, "", "");
        family.sample(&[], 1e15);
        family.sample(&[("a", String::new()), ("b", "2".to_owned())], 0.5);
        assert!(out.finish().contains("copies_total 1000000000000000\ncopies_total{a=\"\",b=\"2\"} 0.5\n"));
    }
}
