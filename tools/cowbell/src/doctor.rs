//! `cowbell doctor`: what works here for this user, and what would make the rest work.

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
        serde_json::to_writer_pretty(&mut out, support)?;
        writeln!(out)?;
    } else {
        write!(out, "{support}")?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_holds_its_version_four_watches_and_every_feature() {
        let json = serde_json::to_value(Support::probe()).expect("JSON");
        assert_eq!(json["version"], 1);
        for watch in ["census", "async", "trap", "monitor"] {
            assert!(json["watches"][watch]["verdict"].is_string(), "{watch} in {json}");
        }
        for feature in cowbell::support::Feature::ALL {
            assert!(json["features"][feature.name()]["verdict"].is_string(), "{feature:?} in {json}");
        }
    }
}
