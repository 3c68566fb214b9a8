//! Files stay short: those of the library, of the tools, and of the tests.

use super::{code, files_below, root};

/// Lines of a source file without its tests.
const LINES_MAX: usize = 420;

#[test]
fn files_stay_short() {
    for path in files_below(&root().join("src"), "rs").into_iter().chain(files_below(&root().join("tools"), "rs")) {
        let lines = code(&path).len();
        assert!(lines <= LINES_MAX, "{} has {lines} lines", path.display());
    }
}

/// Files of tests that are longer still, and the lines they have: none may grow, and none may join them.
const LONG_TESTS: &[(&str, usize)] = &[("tests/api/pool.rs", 743)];

#[test]
fn files_of_tests_stay_short() {
    for path in files_below(&root().join("tests"), "rs") {
        let inside = path.strip_prefix(root()).expect("below").to_string_lossy().into_owned();
        let known = LONG_TESTS.iter().find(|(long, _)| *long == inside).map(|&(_, lines)| lines);
        let lines = code(&path).len();
        assert!(lines <= known.unwrap_or(LINES_MAX), "{inside} has {lines} lines");
        assert!(known.is_none() || lines > LINES_MAX, "{inside} is short now: take it out of the list");
    }
}
