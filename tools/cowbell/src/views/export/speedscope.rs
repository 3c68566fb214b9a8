//! The file format of speedscope: one sampled profile for each process, with bytes for weights.
//! <https://github.com/jlfwong/speedscope/blob/main/src/lib/file-format-spec.ts>

use super::{name, process};
use crate::analyse::detail::Detail;
use crate::analyse::summary::Summary;
use serde_json::{Value, json};

/// Copies for speedscope.
pub fn speedscope(summary: &Summary, detail: &Detail) -> Value {
    let frame = |frame: &crate::analyse::detail::Frame| {
        let mut value = json!({ "name": name(&frame.function) });
        if let Some(fields) = value.as_object_mut() {
            if !frame.file.is_empty() {
                fields.insert("file".to_owned(), name(&frame.file).into());
            }
            if frame.line > 0 {
                fields.insert("line".to_owned(), frame.line.into());
            }
        }
        value
    };
    let mut profiles = Vec::new();
    for (at, interval) in summary.intervals.iter().enumerate() {
        let stacks = || detail.stacks.iter().filter(|stack| stack.interval == at);
        let weights: Vec<u64> = stacks().map(|stack| stack.pages.saturating_mul(summary.run.page_size)).collect();
        let samples: Vec<&[u32]> = stacks().map(|stack| &stack.frames[..]).collect();
        if weights.is_empty() {
            continue;
        }
        profiles.push(json!({
            "type": "sampled",
            "name": process(summary, interval),
            "unit": "bytes",
            "startValue": 0,
            "endValue": weights.iter().sum::<u64>(),
            "samples": samples,
            "weights": weights,
        }));
    }
    json!({
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "exporter": format!("cowbell {}", env!("CARGO_PKG_VERSION")),
        "name": name(&summary.run.command.join(" ")),
        "activeProfileIndex": 0,
        "shared": { "frames": detail.frames.iter().map(frame).collect::<Vec<_>>() },
        "profiles": profiles,
    })
}
