//! The beginning of a report: the verdict, why, where and what helps, within ten lines of eighty columns.

use crate::exact::may_trace;
use crate::lab::{Scratch, cowbell, run, skip};
use crate::python::PYTHON;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The first ten lines of the report on a program, and all of it.
fn report<I: AsRef<OsStr>>(
    scratch: &Scratch,
    options: &[&str],
    target: impl IntoIterator<Item = I>,
) -> (String, String) {
    let outcome = run(scratch, &mut cowbell(options, target));
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let wide = outcome.err.lines().find(|line| line.chars().count() > 80);
    assert_eq!(wide, None, "{}", outcome.err);
    let first: Vec<&str> = outcome.err.lines().take(10).collect();
    (flat(&first.join("\n")), outcome.err)
}

/// On one line.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn python(name: &str, options: &[&str], source: &str) -> (String, String) {
    let scratch = Scratch::new();
    let script = scratch.file(name, source);
    report(&scratch, options, [PYTHON.as_ref(), script.as_os_str()])
}

/// Demands that each part is in the first ten lines.
fn demand((first, all): &(String, String), begins: &str, parts: &[&str]) {
    assert!(first.starts_with(begins), "{begins}: {all}");
    for part in parts {
        assert!(first.contains(part), "no {part:?} in the first ten lines of\n{all}");
    }
}

const PICKLED: &str = "\
import multiprocessing
from multiprocessing import Pool
class Data:
    def __init__(self):
        self.rows = [bytes(2000) + str(n).encode() for n in range(20_000)]
    def total(self, i):
        return len(self.rows) + i
def call(job):
    data, i = job
    return data.total(i)
if __name__ == '__main__':
    multiprocessing.set_start_method('fork')
    data = Data()
    with Pool(2) as pool:
        print(pool.map(call, [(data, i) for i in range(4)]))
";

const GLOBAL: &str = "\
import multiprocessing
from multiprocessing import Pool
rows = [str(n) * 5 for n in range(300_000)]
def call(i):
    total = 0
    for row in rows:
        total += len(row)
    return total + i
if __name__ == '__main__':
    multiprocessing.set_start_method('fork')
    with Pool(2) as pool:
        print(len(pool.map(call, range(4))))
";

#[test]
fn a_pool_that_is_sent_its_data_grows_by_unpickling_and_the_remedy_is_a_global() {
    for mode in ["count", "trace"] {
        if mode == "trace" && may_trace().is_some() {
            continue;
        }
        let said = python("sent.py", &["--mode", mode], PICKLED);
        let parts =
            ["2 children grew by at least", "unpickle what they are sent", "sent.py:14", "global", "index or key"];
        demand(&said, "NEW: ", &parts);
        assert!(!said.1.contains("numpy"), "{}", said.1);
    }
}

#[test]
fn a_pool_over_a_global_copies_by_counting_references_at_the_line_of_its_loop() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let said = python("shared.py", &["--mode", "trace"], GLOBAL);
    let parts = ["2 children copied", "Python counts references", "shared.py:6", "for row in rows:", "numpy"];
    demand(&said, "COPIED: ", &parts);
}

#[test]
fn a_childs_own_data_is_new_memory_at_its_line() {
    // Long enough to be looked at also where the tracer waits for a processor.
    let source =
        "import os\nif os.fork() == 0:\n    own = [str(i) * 9 for i in range(1_500_000)]\n    os._exit(0)\nos.wait()\n";
    for mode in ["count", "trace"] {
        if mode == "trace" && may_trace().is_some() {
            continue;
        }
        let said = python("own.py", &["--mode", mode], source);
        demand(&said, "NEW: 1 child grew by at least", &["Their own code allocated it", "own.py:3", "own = ["]);
    }
}

#[test]
fn native_code_that_allocates_is_named() {
    let source = r#"
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
__attribute__((noinline)) static void fill(void) {
    for (int i = 0; i < 20000; i++) for (char *p = malloc(4000), *q = p + 200; q > p; q--) { memset(p, i, 4000); __asm__ volatile("" : : "r"(p) : "memory"); }
}
int main(void) { if (!fork()) { fill(); _exit(0); } wait(0); }
"#;
    let scratch = Scratch::new();
    let program = scratch.compile("fills", source, &[]).expect("it compiles");
    let said = report(&scratch, &["--mode", "count"], [program.as_os_str()]);
    demand(&said, "NEW: 1 child grew by at least", &["fills.c:7", "fill"]);
}

#[test]
fn what_is_copied_on_the_way_out_does_not_hurt_the_first_line() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let source = "import os, sys\ndata = [str(i) for i in range(300_000)]\np = os.fork()\nif p == 0: sys.exit(0)\nos.waitpid(p, 0)\n";
    let said = python("leaves.py", &["--mode", "trace"], source);
    demand(&said, "SHARED: all is well: 1 child copied", &["os._exit(0)", "of copies)"]);
    let all = flat(&said.1);
    assert!(all.contains("Also copied, and left out above") && all.contains("while they ended"), "{all}");
}

#[test]
fn all_is_well_where_little_is_copied() {
    let source = "import os\ndata = bytearray(32 << 20)\nif os.fork() == 0:\n    print(sum(data[::4096]))\n    os._exit(0)\nos.wait()\n";
    let (first, all) = python("well.py", &["--mode", "count"], source);
    assert!(first.starts_with("SHARED: all is well: 1 child copied"), "{all}");
    assert!(!all.contains("What helps") && !all.contains("\nWhy"), "{all}");
}

#[test]
fn a_parent_that_writes_while_its_child_lives_is_who_pays() {
    let source = "\
import os
data = bytearray(24 << 20)
r, w = os.pipe()
if os.fork() == 0:
    os.close(w); os.read(r, 1); os._exit(0)
for i in range(0, len(data), 4096): data[i] = 1
os.close(w); os.wait()
";
    let said = python("parent.py", &["--mode", "count"], source);
    demand(&said, "THE PARENT PAYS: the parent copied 24.", &["the copies were not compared with their originals"]);
    assert!(said.0.contains("lived, the children copied "), "{}", said.1);
    // Nobody knows what children copied that were not watched.
    let said = python("parent.py", &["--mode", "count", "--who", "parent"], source);
    let parts = ["MiB while its children lived. ", "end the children sooner, or write less while they live"];
    demand(&said, "THE PARENT PAYS: the parent copied 24.", &parts);
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let said = python("parent.py", &["--mode", "trace"], source);
    demand(&said, "THE PARENT PAYS: the parent copied 24.", &["The data itself was changed", "parent.py:6"]);
}

#[test]
fn a_wrapper_that_asks_others_first_is_left_out() {
    let scratch = Scratch::new();
    let script = scratch.file(
        "work.py",
        "import os\ndata = bytearray(9 << 20)\nif os.fork() == 0:\n    \
        for i in range(0, len(data), 4096): data[i] = 1\n    os._exit(0)\nos.wait()\n",
    );
    // Some of them run programs, as pyenv's shims do.
    let shim = format!("for i in 1 2 3; do x=$(/bin/echo $i; true); done; exec {PYTHON} {}", script.display());
    let (first, all) = report(&scratch, &["--mode", "count"], ["bash", "-c", &shim]);
    assert!(first.starts_with("COPIED: 1 child copied 9."), "{all}");
    assert!(flat(&all).contains("6 processes of a wrapper"), "{all}");
    for of_wrapper in [" bash", "executed a program", "executed another program"] {
        assert!(!flat(&all).contains(of_wrapper), "{of_wrapper}: {all}");
    }
}

#[test]
fn a_shim_of_pyenv_is_left_out() {
    let pyenv = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
    let pyenv = pyenv.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".pyenv")));
    let Some(shim) = pyenv.map(|root| root.join("shims/python3")).filter(|shim| shim.exists()) else {
        return skip("there is no pyenv here");
    };
    let scratch = Scratch::new();
    let script = scratch.file(
        "work.py",
        "import os\ndata = [str(n) for n in range(300_000)]\nif os.fork() == 0:\n    for text in data: pass\n    os._exit(0)\nos.wait()\n",
    );
    let (first, all) = report(&scratch, &["--mode", "count"], [shim.as_os_str(), script.as_os_str()]);
    assert!(first.starts_with("COPIED: 1 child copied "), "{all}");
    let all = flat(&all);
    assert!(all.contains("of a wrapper, which had ended before it executed the program."), "{all}");
    for of_wrapper in ["bash", "executed a program", "executed another program"] {
        assert!(!all.contains(of_wrapper), "{of_wrapper}: {all}");
    }
}

#[test]
fn quiet_keeps_verdict_and_cause() {
    let source = "import os\ndata = bytearray(9 << 20)\nif os.fork() == 0:\n    \
        for i in range(0, len(data), 4096): data[i] = 1\n    os._exit(0)\nos.wait()\n";
    let (first, all) = python("quiet.py", &["--mode", "count", "-q"], source);
    assert!(
        first.starts_with("COPIED: 1 child copied")
            && first.contains("The data itself was changed (99 % of the copies)."),
        "{all}"
    );
}
