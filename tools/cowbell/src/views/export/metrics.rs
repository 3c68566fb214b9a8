//! Copies as OpenMetrics, for Prometheus' textfile collector and the like.

use super::name;
use crate::analyse::roles;
use crate::analyse::summary::Summary;
use cowbell::openmetrics::{Exposition, MetricKind};

/// Metrics of copies, by process and by cause.
pub fn metrics(summary: &Summary) -> String {
    let mut out = Exposition::new();
    let page_size = summary.run.page_size;
    let of_process = |process: &roles::WatchedProcess| {
        [
            ("pid", process.pid.to_string()),
            ("depth", process.role.depth.to_string()),
            ("command", name(&process.role.command)),
        ]
    };
    let watched = roles::watched(summary);
    let mut family = out.family(
        "cowbell_copied_bytes",
        MetricKind::Gauge,
        "Memory copied after fork, as counted, by process.",
        "bytes",
    );
    for process in &watched {
        family.sample(&of_process(process), process.copied_bytes as f64);
    }
    let help = "Memory copied after fork, at least, by process.";
    let mut family = out.family("cowbell_copied_least_bytes", MetricKind::Gauge, help, "bytes");
    for process in &watched {
        family.sample(&of_process(process), process.figures.copied.least as f64);
    }
    let help = "Memory copied after fork, at most, by process; no sample where there is no bound.";
    let mut family = out.family("cowbell_copied_most_bytes", MetricKind::Gauge, help, "bytes");
    for process in &watched {
        if let Some(most) = process.figures.copied.most {
            family.sample(&of_process(process), most as f64);
        }
    }
    let help = "Memory copied after fork, by likely cause.";
    let mut family = out.family("cowbell_copied_by_cause_bytes", MetricKind::Gauge, help, "bytes");
    for cause in &summary.causes {
        family.sample(&[("cause", cause.name.to_owned())], cause.copied_pages.saturating_mul(page_size) as f64);
    }
    let help = "Compared copies that are the same as their originals again.";
    let mut family = out.family("cowbell_copied_for_nothing_bytes", MetricKind::Gauge, help, "bytes");
    family.sample(&[], summary.contents.identical_pages.saturating_mul(page_size) as f64);
    let mut family = out.family("cowbell_watched_seconds", MetricKind::Gauge, "How long was watched.", "seconds");
    family.sample(&[], summary.run.duration_ns as f64 / 1e9);
    let mut family =
        out.family("cowbell_watched_processes", MetricKind::Gauge, "How many processes were watched.", "processes");
    family.sample(&[], watched.len() as f64);
    out.finish()
}
