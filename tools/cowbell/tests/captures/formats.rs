//! The promise of docs/FORMATS.md: what it lists is what is printed.

use crate::kit::{Scratch, capture, child, ran, shown};
use serde_json::Value;
use std::collections::BTreeSet;

fn listing() -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/FORMATS.md");
    std::fs::read_to_string(path).expect("docs/FORMATS.md")
}

/// A line of the table: the version, and the names of fields.
fn listed(format: &str) -> (u64, BTreeSet<String>) {
    let listing = listing();
    let row = listing.lines().find(|line| line.starts_with(&format!("| `{format}` |"))).expect("a row");
    let cells: Vec<&str> = row.split('|').map(str::trim).collect();
    let fields = cells[4].split('`').skip(1).step_by(2).map(str::to_owned).collect();
    (cells[2].parse().expect("a version"), fields)
}

#[test]
fn documents_have_the_fields_and_versions_that_are_promised() {
    let scratch = Scratch::new();
    let file = scratch.file("c", capture(&[child(101, 100)]));
    let own = std::process::id().to_string();
    for (format, arguments) in [
        ("cowbell-report", vec!["report", "--json", &file]),
        ("cowbell-diff", vec!["diff", "--json", &file, &file]),
        ("cowbell-check", vec!["check", "--format", "json", "--max-copied", "1G", &file]),
        ("cowbell-snapshot", vec!["snapshot", "--json", &own]),
    ] {
        let document: Value = serde_json::from_str(&shown(&arguments)).expect("JSON");
        let (version, fields) = listed(format);
        assert_eq!((&document["format"], document["version"].as_u64()), (&format.into(), Some(version)));
        let found: BTreeSet<String> = document.as_object().expect("an object").keys().cloned().collect();
        let found: BTreeSet<String> = found.into_iter().filter(|key| key != "format" && key != "version").collect();
        assert_eq!(found, fields, "{format}");
    }
}

#[test]
fn every_record_of_a_capture_is_listed() {
    let types =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/record/types.rs")).expect("the records");
    let all = types.split("pub enum Record {").nth(1).and_then(|rest| rest.split("\n}").next()).expect("the enum");
    let listing = listing();
    let captures =
        listing.split("## Captures").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("the section");
    for line in all.lines().map(str::trim).filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase())) {
        let name: String = line.chars().take_while(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
        assert!(captures.contains(&format!("`{name}`")), "{name} is not in docs/FORMATS.md");
    }
}

#[test]
fn man_pages_and_completions_know_every_subcommand_that_is_shown() {
    let help = shown(&["--help"]);
    let commands = help.split("Commands:").nth(1).and_then(|rest| rest.split("Options:").next()).expect("commands");
    let names: Vec<&str> =
        commands.lines().filter(|l| l.starts_with("  ")).filter_map(|l| l.split_whitespace().next()).collect();
    let names: Vec<&str> = names.into_iter().filter(|name| *name != "help").collect();
    assert!(names.contains(&"check") && names.contains(&"diff") && !names.contains(&"man"), "{help}");
    for shell in ["bash", "zsh", "fish"] {
        let script = shown(&["completions", shell]);
        assert!(names.iter().all(|name| script.contains(name)) && script.contains("max-copied"), "{shell}");
    }
    assert!(shown(&["man"]).contains(".TH cowbell 1"));
    let scratch = Scratch::new();
    shown(&["man", &scratch.path("man")]);
    for name in names {
        let page = std::fs::read_to_string(scratch.path(&format!("man/cowbell-{name}.1"))).expect("a page");
        assert!(page.contains("SYNOPSIS"), "{page}");
    }
    let (code, _, err) = ran(&["man", "/dev/null/x"]);
    assert!(code == Some(1) && err.contains("/dev/null/x"), "{err}");
}
