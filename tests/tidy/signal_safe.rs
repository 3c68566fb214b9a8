//! Code that may run in a signal handler, in the keeper, or in a child before its closure names nothing that allocates or locks.
//!
//! Two kinds of code are held to it: all of a module that is called `signal_safe`, or lies in a folder of that name; and every function whose
//! documentation says that it is *async-signal-safe*. What such code calls is not followed here: `tests/signal_safe.rs` runs it.

use super::{code, files_below, root};
use std::fs;
use std::path::PathBuf;

/// Names that such code has no use for: they allocate, or take a lock.
const BANNED: &[&str] = &[
    "Vec",
    "String",
    "format!",
    "Box",
    "Mutex",
    "RwLock",
    "HashMap",
    "println!",
    "eprintln!",
    "panic!",
    "vec!",
    ".to_string()",
    ".to_owned()",
    ".to_vec()",
    ".collect()",
    ".lock()",
];

/// Says a function is async-signal-safe, always or if what it is given is.
const MARK: &str = "*Async-signal-safe";

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// The first banned name in a line, as a word of its own.
fn banned(line: &str) -> Option<&'static str> {
    let stands_alone = |at: usize, name: &str| {
        let before = line[..at].chars().next_back().is_some_and(is_word);
        let after = line[at + name.len()..].chars().next().is_some_and(is_word);
        !(before && name.starts_with(is_word) || after && name.ends_with(is_word))
    };
    // Not in texts, which come between quotes: those may speak of anything.
    let line: String = line.split('"').step_by(2).collect();
    BANNED.iter().copied().find(|name| line.match_indices(name).any(|(at, _)| stands_alone(at, name)))
}

fn modules() -> Vec<PathBuf> {
    let is_safe = |path: &PathBuf| path.with_extension("").iter().any(|part| part == "signal_safe");
    files_below(&root().join("src"), "rs").into_iter().filter(is_safe).collect()
}

#[test]
fn modules_of_signal_safe_code_name_nothing_that_allocates_or_locks() {
    let modules = modules();
    assert!(modules.len() >= 12, "they are found: {modules:?}");
    for path in modules {
        for line in code(&path) {
            assert_eq!(banned(&line), None, "{}: {line}", path.display());
        }
    }
}

/// The lines of a function, from its head to the brace that closes it.
fn body<'t>(lines: &[&'t str]) -> Vec<&'t str> {
    let mut depth = 0;
    let mut opened = false;
    let ends = lines.iter().position(|line| {
        let count = |brace| line.matches(brace).count() as i32;
        opened |= line.contains('{') || line.trim_end().ends_with(';');
        depth += count('{') - count('}');
        opened && depth <= 0
    });
    lines.iter().take(ends.map_or(lines.len(), |end| end + 1)).copied().collect()
}

/// The functions of a file that are marked, with their lines of code.
fn marked(text: &str) -> Vec<(String, Vec<String>)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let docs = lines[at..].iter().take_while(|line| line.trim_start().starts_with("///")).count();
        let says_so = lines[at..at + docs].iter().any(|line| line.contains(MARK));
        at += docs.max(1);
        if !says_so {
            continue;
        }
        let head = lines[at..].iter().position(|line| !line.trim_start().starts_with("#["));
        let function = body(&lines[at + head.unwrap_or(0)..]);
        if let Some(name) = function.first().and_then(|line| line.split("fn ").nth(1)) {
            let code = function.iter().map(|line| line.split("//").next().unwrap_or_default().to_owned()).collect();
            found.push((name.chars().take_while(|&letter| is_word(letter)).collect(), code));
        }
    }
    found
}

#[test]
fn functions_that_are_signal_safe_name_nothing_that_allocates_or_locks() {
    let mut count = 0;
    for path in files_below(&root().join("src"), "rs") {
        let text = fs::read_to_string(&path).expect("text");
        for (name, lines) in marked(&text) {
            count += 1;
            let line = lines.iter().find(|line| banned(line).is_some());
            assert_eq!(line, None, "{}: {name}", path.display());
        }
    }
    assert!(count > 100, "they are found: {count}");
}

#[test]
fn what_allocates_is_found() {
    let text = "/// Reads. *Async-signal-safe.*\n#[inline]\npub fn read() -> usize {\n    let all = Vec::new();\n    all.len()\n}\n\nfn other() { format!() }\n";
    let found = marked(text);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0, "read");
    assert_eq!(found[0].1.iter().find_map(|line| banned(line)), Some("Vec"));
    assert_eq!(banned("let all: Vector = to_vec();"), None);
}
