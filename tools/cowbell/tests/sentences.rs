//! The listing of sentences, docs/SENTENCES.md, held against the code.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Files and rooms whose sentences are listed: all of the tool, and what it shows of the library's.
const SAY: &[&str] = &[
    "src",
    // The doctor says what the library found.
    "../../src/support",
    // The demo shows reports of the library.
    "../../src/report/text.rs",
];

/// Texts of programs, by which they are recognised: nobody is told them.
const RECOGNISED: &[&str] = &[
    "<frozen importlib",
    "multiprocessing.forkserver import main; main(",
    "operator new",
    "operator new(",
    "operator new[](",
    "operator delete",
    "operator delete(",
    "operator delete[](",
    "/memfd:cowbell:heap (deleted)",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The sources of a file or a room.
fn sources(path: &Path) -> Vec<String> {
    if path.is_file() {
        return vec![fs::read_to_string(path).expect("text")];
    }
    let entries = fs::read_dir(path).expect("a room").map(|entry| entry.expect("an entry").path());
    let silent = ["css", "md", "py"];
    let says = |path: &PathBuf| {
        !path.ends_with("tests.rs")
            && path.extension().is_none_or(|extension| silent.iter().all(|other| extension != *other))
    };
    entries.filter(says).flat_map(|path| sources(&path)).collect()
}

/// The string literals of a source, without its comments and tests.
fn literals(source: &str) -> Vec<String> {
    let code = source.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    // Neither comments nor why a lint is set aside.
    let is_said = |line: &&str| !line.trim_start().starts_with("//") && !line.contains(" reason = \"");
    let code: Vec<&str> = code.lines().filter(is_said).collect();
    let code = code.join("\n");
    let mut found = Vec::new();
    let mut rest = code.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '\'' && rest.peek() == Some(&'"') {
            rest.next();
        }
        if c != '"' {
            continue;
        }
        let mut literal = String::new();
        while let Some(c) = rest.next().filter(|c| *c != '"') {
            match (c, rest.peek()) {
                // A line that goes on in the next one.
                ('\\', Some('\n')) => while rest.next_if(|c| c.is_whitespace()).is_some() {},
                ('\\', Some(_)) => literal.extend([Some('\\'), rest.next()].into_iter().flatten()),
                _ => literal.push(c),
            }
        }
        found.push(literal);
    }
    found
}

/// Tells whether it is said to people: two words or more, besides what is filled in, and no markup.
fn is_sentence(literal: &str) -> bool {
    if literal.contains("=\\\"") || literal.contains("</") {
        return false;
    }
    let mut depth = 0;
    let bare: String = literal
        .chars()
        .filter(|c| {
            depth += i32::from(*c == '{');
            let inside = depth > 0;
            depth -= i32::from(*c == '}');
            !inside
        })
        .collect();
    let is_word = |word: &&str| word.chars().count() >= 2;
    bare.trim().contains(' ') && bare.split(|c: char| !c.is_ascii_alphabetic()).filter(is_word).count() >= 2
}

/// The listed sentences, each with its fact.
fn listed() -> Vec<(String, String)> {
    let listing = fs::read_to_string(root().join("../../docs/SENTENCES.md")).expect("the listing");
    let entry = |line: &str| {
        let (sentence, fact) = line.strip_prefix("- \"")?.split_once("\": ")?;
        Some((sentence.to_owned(), fact.to_owned()))
    };
    listing.lines().filter_map(entry).collect()
}

#[test]
fn every_sentence_of_a_report_is_listed_with_its_fact_and_no_other_is() {
    let mut said: BTreeSet<String> =
        SAY.iter().flat_map(|path| sources(&root().join(path))).flat_map(|s| literals(&s)).collect();
    assert!(RECOGNISED.iter().all(|text| said.remove(*text)), "each is there");
    said.retain(|literal| is_sentence(literal));
    let listed = listed();
    let sentences: BTreeSet<String> = listed.iter().map(|(sentence, _)| sentence.clone()).collect();
    assert_eq!(sentences.len(), listed.len(), "a sentence is listed twice");
    let missing: Vec<_> = said.difference(&sentences).collect();
    assert!(missing.is_empty(), "docs/SENTENCES.md lacks, with the fact that licenses each: {missing:#?}");
    let stale: Vec<_> = sentences.difference(&said).collect();
    assert!(stale.is_empty(), "docs/SENTENCES.md has what nothing says any more: {stale:#?}");
    assert!(listed.iter().all(|(_, fact)| fact.trim().len() > 5), "each has its fact");
}

#[test]
fn sentences_are_found_in_sources() {
    let source =
        "let a = f(\"two words\", '\"', \"one\");\n// \"not this one\"\nlet b = \"it goes \\\n    on, {x y}\";\n";
    let found = literals(source);
    assert_eq!(found, ["two words", "one", "it goes on, {x y}"]);
    assert_eq!(found.iter().map(|l| is_sentence(l)).collect::<Vec<_>>(), [true, false, true]);
    assert!(!is_sentence("<a b=\\\"two words\\\">") && !is_sentence("two words</a>"));
    assert!(!is_sentence("{a} in {b}") && !is_sentence("snake_case") && is_sentence("real writes"));
}
