//! `cowbell doctor`: what works here for this user, and what would make the rest work.

use crate::trace::{ability, lender};
use crate::views::{self, Document, table};
use cowbell::support::{Availability, Feature, Support};
use std::io::Write;
use std::process::ExitCode;

/// Probes this machine and prints the outcome to standard output, as text or as JSON.
///
/// The exit code is 0 when copied pages can be counted, that is when the watch Census works, fully
/// or limited; 1 when not even that; 2 when the outcome could not be written.
pub fn run(json: bool) -> ExitCode {
    let support = Support::probe();
    match print(&support, json) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("cowbell doctor: cannot write to standard output: {e}");
            ExitCode::from(2)
        }
        _ if support.census().is_available() => ExitCode::SUCCESS,
        _ => ExitCode::from(1),
    }
}

fn print(support: &Support, json: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        out.write_all(&views::json(&document(support)?)?)?;
    } else {
        write!(out, "{support}")?;
        writeln!(out, "\nCommands: looking into programs that are not prepared")?;
        let term = |(command, ability, tells): (&str, Ability, &str)| {
            let (word, why) = match ability {
                Ability::Works => ("works", String::new()),
                Ability::Limited(why) => ("LIMITED", format!("; but {why}")),
                Ability::Missing(why) => ("MISSING", format!("; why not: {why}")),
            };
            (vec![command.to_owned(), word.to_owned()], format!("{tells}{why}"))
        };
        let terms: Vec<_> = commands(support).into_iter().map(term).collect();
        for line in table::described(2, &terms, views::WIDTH) {
            writeln!(out, "{line}")?;
        }
    }
    out.flush()
}

/// The library's answer, and the commands'.
#[derive(serde::Serialize)]
struct Answer(serde_json::Value);

impl Document for Answer {
    const FORMAT: &'static str = "cowbell-doctor";
    const VERSION: u32 = 1;
}

fn document(support: &Support) -> serde_json::Result<Answer> {
    let mut document = serde_json::to_value(support)?;
    if let Some(fields) = document.as_object_mut() {
        // The library's answer by itself has a version of its own.
        fields.remove("version");
    }
    let commands = commands(support).into_iter().map(|(command, ability, _)| {
        let answer = match ability {
            Ability::Works => serde_json::json!({ "verdict": "works" }),
            Ability::Limited(why) => serde_json::json!({ "verdict": "limited", "why": why }),
            Ability::Missing(why) => serde_json::json!({ "verdict": "missing", "why": why }),
        };
        (command.to_owned(), answer)
    });
    document["commands"] = serde_json::Value::Object(commands.collect());
    Ok(Answer(document))
}

/// Whether a command works, and why not, or not wholly.
#[derive(Debug)]
enum Ability {
    Works,
    Limited(String),
    Missing(String),
}

impl From<Result<(), String>> for Ability {
    fn from(found: Result<(), String>) -> Self {
        found.map_or_else(Self::Missing, |()| Self::Works)
    }
}

/// The commands that depend on rights, whether they work, and what they tell.
fn commands(support: &Support) -> [(&'static str, Ability, &'static str); 6] {
    let faults = match (ability::faults(), support.verdict(Feature::PageFaults)) {
        (Ok(()), Availability::Limited { why, .. }) => Ability::Limited(why.clone()),
        (found, _) => found.into(),
    };
    let counts = ability::count();
    let traces = counts.clone().and_then(|()| ability::trace());
    // Before Linux 6.7 there are faults only, for root.
    let watches = counts.clone().or_else(|why| ability::faults().map_err(|_| why));
    [
        ("run --mode count", counts.into(), "which pages a program and its children copy"),
        (
            "run --mode trace",
            traces.clone().into(),
            "and when, which thread, which code; writes through /proc/PID/mem fail with EIO meanwhile",
        ),
        (
            "run --mode faults",
            faults,
            "which pages, when, which thread, which code, from the page faults that perf events tell, stopping few writers",
        ),
        (
            "of other users",
            traces.and_then(|()| lender::may_lend()).into(),
            "--mode trace of programs that give up root's rights (setpriv, gunicorn -u)",
        ),
        ("attach", watches.and_then(|()| ability::attach()).into(), "the modes of run for a running process"),
        (
            "page frames",
            ability::page_frames().into(),
            "what was copied is told from what was written in place, but for pages that were swapped out",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_holds_its_version_five_watches_and_every_feature() {
        let json = views::json(&document(&Support::probe()).expect("an answer")).expect("JSON");
        let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
        for (command, _, _) in commands(&Support::probe()) {
            assert!(json["commands"][command]["verdict"].is_string(), "{command} in {json}");
        }
        assert_eq!((&json["format"], &json["version"]), (&"cowbell-doctor".into(), &1.into()));
        for watch in ["census", "async", "faults", "trap", "monitor"] {
            assert!(json["watches"][watch]["verdict"].is_string(), "{watch} in {json}");
        }
        for feature in cowbell::support::Feature::ALL {
            assert!(json["features"][feature.name()]["verdict"].is_string(), "{feature:?} in {json}");
        }
    }
}
