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
const LONG_TESTS: &[(&str, usize)] = &[
    ("tests/api/faults.rs", 447),
    ("tests/api/images.rs", 611),
    ("tests/api/pool.rs", 743),
    ("tests/api/pool_faults.rs", 584),
    ("tests/api/pool_futures.rs", 451),
    ("tests/api/pool_results.rs", 430),
    ("tests/api/pool_review.rs", 479),
    ("tests/api/shared.rs", 565),
    ("tests/api/transfer.rs", 529),
    ("tests/heap/freezing.rs", 649),
    ("tests/kernel/changes.rs", 440),
    ("tests/kernel/perf.rs", 720),
    ("tests/kernel/remote.rs", 544),
    ("tests/kernel/sharing.rs", 427),
    ("tests/kernel/tool.rs", 517),
];

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
