//! The programs that measure the heap, over little data; the times themselves do not matter here.

use std::path::PathBuf;
use std::process::Command;

/// Runs an example and returns what it prints. Cargo builds examples beside the tests.
fn run(example: &str, words: &[&str]) -> String {
    let test = std::env::current_exe().expect("a path");
    let program: PathBuf = test.ancestors().nth(2).expect("target/profile/deps/test").join("examples").join(example);
    let output = Command::new(program).args(words).output().expect("the example is built with the tests");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{example} {words:?}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

/// The first number behind some words.
fn number(text: &str, behind: &str) -> u64 {
    let (_, rest) = text.split_once(behind).unwrap_or_else(|| panic!("{behind:?} is not in {text}"));
    let digits: String = rest.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

/// The pages of a set of 8 MiB, how many of them a worker copied, and how many others.
fn set(what: &str, object: &str) -> (u64, u64, u64) {
    let text = run("heap-sets", &[what, object, "8388608"]);
    let mut numbers = text.split_whitespace().map(|word| word.parse().expect("a number"));
    let mut next = || numbers.next().expect("a number");
    (next(), next(), next())
}

#[test]
fn counting_references_copies_the_set_unless_the_counts_lie_apart_or_the_copies_are_given_back() {
    for (object, words) in [("64", 8), ("1024", 128)] {
        let (pages, arcs, _) = set("clone", object);
        assert!(arcs * 10 >= pages * 9, "{arcs} of {pages}");
        assert_eq!(set("clone-reshare", object).1, 0);
        let (_, values, counts) = set("clone-side", object);
        assert_eq!(values, 0, "no page of a value");
        // A word for each object, and what any worker has.
        assert!(counts <= pages / words + 30, "{counts} pages of counts");
    }
}

#[test]
fn dropping_a_frozen_set_copies_nothing() {
    let (_, copied, others) = set("drop", "64");
    assert!(copied == 0 && others < 30, "{copied} {others}");
}

#[test]
fn workers_that_have_read_everything_have_next_to_nothing_of_their_own() {
    let text = run("heap-frozen", &["16"]);
    assert!(number(&text, "have at most") <= 1024, "{text}");
    assert!(text.contains("1 of 1 old images are gone, 0 blocks"), "{text}");
}

#[test]
fn forks_over_a_growing_and_a_frozen_heap_are_measured() {
    let text = run("heap-forks", &["0.03", "3"]);
    for what in ["growing", "frozen, all read here", "after one write of the parent", "images are gone"] {
        assert!(text.contains(what), "{what} is not in {text}");
    }
}
