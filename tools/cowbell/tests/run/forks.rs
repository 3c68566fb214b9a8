//! What workers do, each for itself, that the one who forked them could have done.

use crate::lab::{Scratch, cowbell, run};
use crate::python::PYTHON;

/// On one line.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn modules_that_workers_of_a_fork_server_loaded_are_named_where_a_line_names_them() {
    let scratch = Scratch::new();
    scratch.file("heavy.py", "data = [str(n) * 3 for n in range(200_000)]\n");
    let script = scratch.file(
        "serves.py",
        "import multiprocessing, sys\ndef load(all):\n    import heavy as data\n    all.wait()\nif __name__ == '__main__':\n    \
         context = multiprocessing.get_context(sys.argv[1])\n    all = context.Barrier(3)\n    \
         with context.Pool(2, load, [all]) as pool:\n        all.wait()\n        print(pool.map(abs, range(4)))\n",
    );
    for (how, line) in [
        ("forkserver", "multiprocessing.set_forkserver_preload(['heavy'])"),
        ("fork", "import heavy # in the parent, before the fork"),
    ] {
        let outcome =
            run(&scratch, &mut cowbell(&["--mode", "count"], [PYTHON.as_ref(), script.as_os_str(), how.as_ref()]));
        let text = flat(&outcome.err);
        assert!(text.starts_with("NEW: 2 children grew"), "{}", outcome.err);
        assert!(text.contains("Modules were loaded after the fork") && text.contains(line), "{}", outcome.err);
    }
}
