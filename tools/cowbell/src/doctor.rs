//! `cowbell doctor`: what works here for this user, and what would make the rest work.

use crate::trace::{ability, lender};
use crate::views::{self, Document, table};
use cowbell::support::Support;
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
        let term = |(command, verdict, tells): (&str, Result<(), String>, &str)| {
            let word = if verdict.is_ok() { "works" } else { "MISSING" };
            let why = verdict.err().map_or(String::new(), |why| format!("; why not: {why}"));
            (vec![command.to_owned(), word.to_owned()], format!("{tells}{why}"))
        };
        let terms: Vec<_> = commands().into_iter().map(term).collect();
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
    let commands = commands().into_iter().map(|(command, verdict, _)| match verdict {
        Ok(()) => (command.to_owned(), serde_json::json!({ "verdict": "works" })),
        Err(why) => (command.to_owned(), serde_json::json!({ "verdict": "missing", "why": why })),
    });
    document["commands"] = serde_json::Value::Object(commands.collect());
    Ok(Answer(document))
}

/// The commands that depend on rights, whether they work, and what they tell.
fn commands() -> [(&'static str, Result<(), String>, &'static str); 6] {
    let frames = if ability::frames() { Ok(()) } else { Err("page frames need root (CAP_SYS_ADMIN)".to_owned()) };
    [
        ("run --mode count", ability::count(), "which pages a program and its children copy"),
        (
            "run --mode trace",
            ability::count().and_then(|()| ability::trace()),
            "and when, which thread, which code; writes through /proc/PID/mem fail with EIO meanwhile",
        ),
        (
            "run --mode faults",
            ability::faults(),
            "the same from the page faults that perf events tell, stopping few writers",
        ),
        (
            "of other users",
            ability::trace().and_then(|()| lender::may_lend()),
            "the same of programs that give up root's rights (setpriv, gunicorn -u)",
        ),
        ("attach", ability::count().and_then(|()| ability::attach()), "the same for a running process"),
        (
            "page frames",
            frames,
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
        for (command, _, _) in commands() {
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
