//! Captures that are kept, and the reports of them: what a capture says must not change unnoticed.
//!
//! A report is a function of its capture, so it is compared to the byte. `tools/cowbell/tests/golden/renew` makes the
//! reports anew, and with `captures` the captures too; what it changes is read before it is kept.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The reports that are kept of each capture: the ending of the kept report, and the arguments.
const VIEWS: [(&str, &[&str]); 3] = [("txt", &[]), ("verbose.txt", &["--verbose"]), ("json", &["--json"])];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn captures() -> Vec<PathBuf> {
    let entries = fs::read_dir(folder()).expect("the folder").map(|entry| entry.expect("an entry").path());
    let mut found: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|kind| kind == "capture")).collect();
    found.sort();
    found
}

fn report(capture: &Path, arguments: &[&str]) -> String {
    let tool = env::var_os("COWBELL_TOOL").unwrap_or_else(|| env!("CARGO_BIN_EXE_cowbell").into());
    let mut command = Command::new(tool);
    // Elsewhere than where the capture was made, and without anybody's settings.
    command.arg("report").arg(capture).args(arguments).current_dir("/").env_clear();
    let output = command.output().expect("the tool");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{}: {said}", capture.display());
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn kept_captures_are_reported_as_ever() {
    let captures = captures();
    assert!(captures.len() >= 5, "{captures:?}");
    for capture in captures {
        for (ending, arguments) in VIEWS {
            let kept = capture.with_extension(ending);
            let (due, shown) = (fs::read_to_string(&kept).expect("a kept report"), report(&capture, arguments));
            let differs = due.lines().zip(shown.lines()).find(|(due, shown)| due != shown);
            assert!(
                due == shown,
                "{} is reported otherwise ({differs:?}, {} and {} lines); if that is meant: tools/cowbell/tests/golden/renew",
                kept.display(),
                due.lines().count(),
                shown.lines().count()
            );
        }
    }
}

#[test]
fn no_capture_tells_of_the_machine_that_made_it() {
    let kept = captures().into_iter().flat_map(|capture| {
        let reports = VIEWS.map(|(ending, _)| capture.with_extension(ending));
        std::iter::once(capture).chain(reports)
    });
    for path in kept {
        let text = fs::read_to_string(&path).expect("text");
        for word in ["/home/", "/root/", "/work/", "/target/"] {
            assert!(!text.contains(word), "{word} in {}", path.display());
        }
        assert!(text.len() < 200 << 10, "{} has {} bytes", path.display(), text.len());
    }
}
