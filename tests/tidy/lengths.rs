//! Files stay short: those of the library, of the tools, and of the tests.

use super::{code, files_below, root};

/// Lines of a source file without its tests.
const LINES_MAX: usize = 420;

#[test]
fn files_stay_short() {
    for folder in ["src", "tools", "tests"] {
        for path in files_below(&root().join(folder), "rs") {
            let lines = code(&path).len();
            assert!(lines <= LINES_MAX, "{} has {lines} lines", path.display());
        }
    }
}
