//! The cases that people publish, on the packages that they use: each gets the right verdict, cause, line and remedy within ten
//! lines of eighty columns.

use crate::lab::{Running, Scratch, cowbell, is_root, run, skip};
use crate::programs::{ask_both_and_end, gunicorn};
use std::path::Path;

/// Python with the packages, which the setup puts below the target directory, and the mode: the tool's default for this user, or that
/// of `COWBELL_MODE`.
fn python() -> Option<(String, &'static str)> {
    let Some(python) = gunicorn() else {
        skip("the packages are below the target directory, which this user cannot read");
        return None;
    };
    let mode = match std::env::var("COWBELL_MODE").as_deref() {
        Ok("faults") => "faults",
        Ok("count") => "count",
        Ok("trace") => "trace",
        _ if is_root() => "faults",
        _ => "count",
    };
    Some((python.to_str().expect("text").to_owned(), mode))
}

/// Demands that the report begins with a verdict, that its first ten lines have each of the parts, and the report none of the others.
fn demand(report: &str, begins: &str, parts: &[&str], not: &[&str]) {
    assert!(report.lines().all(|line| line.chars().count() <= 80), "{report}");
    let first: Vec<&str> = report.lines().take(10).flat_map(str::split_whitespace).collect();
    let first = first.join(" ");
    assert!(first.starts_with(begins), "{begins}:\n{report}");
    for part in parts {
        assert!(first.contains(part), "no {part:?} in the first ten lines of\n{report}");
    }
    for part in not {
        assert!(!report.contains(part), "{part:?} in\n{report}");
    }
}

/// The report on a script, whose standard output does not count.
fn report(python: &str, mode: &str, name: &str, source: &str) -> String {
    let scratch = Scratch::new();
    let script = scratch.file(name, source);
    let outcome = run(&scratch, &mut cowbell(&["--mode", mode], [python, script.to_str().expect("text")]));
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    outcome.err
}

/// The parts of a report that only events tell.
fn with_events<'a>(mode: &str, parts: &[&'a str]) -> Vec<&'a str> {
    if mode == "count" { Vec::new() } else { parts.to_vec() }
}

const GRAPH: &str = "\
import concurrent.futures, multiprocessing, networkx
graph = networkx.gnm_random_graph(20_000, 200_000, seed=1)
def degrees(job):
    graph, start = job
    return sum(m for n in range(start, 20_000) for m, data in graph.adj[n].items())
def of_global(start):
    return degrees((graph, start))
if __name__ == '__main__':
    context = multiprocessing.get_context('fork')
    with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
        CALL
";

#[test]
fn an_executor_that_is_sent_a_graph_unpickles_it_and_one_over_a_global_counts_references() {
    let Some((python, mode)) = python() else { return };
    let sent = GRAPH.replace("CALL", "print(sum(pool.map(degrees, [(graph, 0), (graph, 1)])))");
    let sent = report(&python, mode, "sent.py", &sent);
    demand(&sent, "NEW: 2 children grew", &["unpickle what they are sent", "sent.py:", "global"], &["numpy"]);
    let shared = GRAPH.replace("CALL", "print(sum(pool.map(of_global, [0, 1])))");
    let shared = report(&python, mode, "shared.py", &shared);
    let parts = with_events(mode, &["Python counts references", "shared.py:5", "keep the data in few large objects"]);
    demand(&shared, "COPIED: 2 children copied", &parts, &["index or key"]);
}

/// A web application that loads data before its workers are forked, if they say so, and reads it when it is asked to.
const SITE: &str = "\
import joblib, mmap, numpy, os, tempfile
def load(kind):
    if kind in ('list', 'idle'):
        return [str(n) * 3 for n in range(120_000)]
    if kind == 'numpy':
        return numpy.ones(4_000_000)
    if kind == 'joblib':
        joblib.dump(numpy.ones(4_000_000), 'array')
        return joblib.load('array', mmap_mode='r')
    with open('bytes', 'wb') as file:
        file.write(bytes(32 << 20))
    with open('bytes', 'rb') as file:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
KIND = os.environ['KIND']
DATA = load(KIND)
def read():
    if KIND == 'list':
        return sum(len(row) for row in DATA)
    return len(DATA) + int(sum(DATA[::4096]))
def site(environ, start_response):
    if KIND != 'idle' and environ['PATH_INFO'] == '/':
        read()
    body = b'%d' % os.getpid()
    start_response('200 OK', [('Content-Length', str(len(body)))])
    return [body]
";

/// The report on two workers of gunicorn that were asked and then told to end.
fn site(python: &str, mode: &str, kind: &str, options: &[&str]) -> String {
    let scratch = Scratch::new();
    scratch.file("site_app.py", SITE);
    let home = scratch.path("");
    let (socket, pid_file) = (scratch.path("socket"), scratch.path("pid"));
    let bind = format!("unix:{}", socket.display());
    let path = |path: &Path| path.to_str().expect("text").to_owned();
    let (pid_path, home_path) = (path(&pid_file), path(&home));
    let target = [python, "-m", "gunicorn", "--workers", "2", "--bind", &bind, "--pid", &pid_path];
    // A busy machine is no reason to kill a worker.
    let patience = ["--timeout", "100", "--graceful-timeout", "100"];
    let place = ["--chdir", &home_path, "--log-level", "warning", "site_app:site"];
    let target = [&target[..], options, &patience, &place].concat();
    let mut command = cowbell(&["--mode", mode], target);
    let running = Running::start(&scratch, command.env("HOME", &home).env("KIND", kind));
    ask_both_and_end(running, &socket, &pid_file).err
}

#[test]
fn idle_workers_load_for_themselves_what_was_not_preloaded() {
    let Some((python, mode)) = python() else { return };
    let own = site(&python, mode, "idle", &[]);
    demand(&own, "NEW: 2 children grew", &["Modules were loaded after the fork", "--preload"], &["numpy arrays"]);
}

#[test]
fn gunicorn_stopped_gracefully_copies_on_the_way_out_unless_its_hook_leaves_at_once() {
    let Some((python, mode)) = python() else { return };
    if mode == "count" {
        return skip("phases are told by events");
    }
    let graceful = site(&python, mode, "idle", &["--preload"]);
    demand(&graceful, "SHARED: all is well: 2 children copied", &["def worker_exit(server, worker):"], &["\nWhy"]);
    let one_line = graceful.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(one_line.contains("while they ended"), "{graceful}");
    let scratch = Scratch::new();
    let hook = scratch.file("hook.py", "import os\ndef worker_exit(server, worker):\n    os._exit(0)\n");
    let hook = format!("--config={}", hook.display());
    let at_once = site(&python, mode, "idle", &["--preload", &hook]);
    demand(&at_once, "SHARED: all is well: 2 children copied", &[], &["\nWhy", "worker_exit"]);
}

#[test]
fn what_a_fork_server_did_not_preload_each_child_loads() {
    let Some((python, mode)) = python() else { return };
    let scratch = Scratch::new();
    scratch.file(
        "heavy.py",
        "import numpy\ndata = [str(n) * 3 for n in range(100_000)]\ndef size(n):\n    return len(data) + n\n\
         def loaded(all):\n    all.wait()\n",
    );
    let source = "\
import multiprocessing
if __name__ == '__main__':
    import heavy
    context = multiprocessing.get_context('forkserver')
    PRELOAD
    # Both have loaded the module before the pool ends, also where one of them does all the work.
    all = context.Barrier(3)
    with context.Pool(2, heavy.loaded, [all]) as pool:
        all.wait()
        print(pool.map(heavy.size, range(4)))
";
    let report = |preload: &str| {
        let script = scratch.file("serves.py", &source.replace("PRELOAD", preload));
        let mut command = cowbell(&["--mode", mode], [&python, script.to_str().expect("text")]);
        // The fork server of older versions does not look beside the script, and is silent of what it does not find.
        let outcome = run(&scratch, command.env("PYTHONPATH", scratch.path(".")));
        assert_eq!(outcome.code, Some(0), "{}", outcome.err);
        outcome.err
    };
    let missed = report("pass");
    demand(
        &missed,
        "NEW: 2 children grew",
        &["Modules were loaded after the fork", "heavy.py:1", "have the fork server load these modules"],
        &["--preload)"],
    );
    assert!(missed.contains("set_forkserver_preload([") && missed.contains("PYTHONPATH"), "{missed}");
    let preloaded = report("context.set_forkserver_preload(['heavy'])");
    demand(&preloaded, "SHARED: all is well: 2 children copied", &[], &["\nWhy"]);
}

#[test]
fn preloaded_workers_copy_a_list_that_they_read_and_share_arrays_and_maps() {
    let Some((python, mode)) = python() else { return };
    let list = site(&python, mode, "list", &["--preload"]);
    let parts =
        with_events(mode, &["Python counts references", "site_app.py:18", "keep the data in few large objects"]);
    demand(&list, "COPIED: 2 children copied", &parts, &["--preload"]);
    if mode == "count" {
        return skip("what workers copy as they end is told apart by events");
    }
    for kind in ["numpy", "joblib", "mmap"] {
        let said = site(&python, mode, kind, &["--preload"]);
        demand(&said, "SHARED: all is well: 2 children copied", &[], &["Why"]);
    }
}

#[test]
fn workers_that_load_for_themselves_grow_by_their_import() {
    let Some((python, mode)) = python() else { return };
    let said = site(&python, mode, "list", &[]);
    demand(&said, "NEW: 2 children grew", &["Modules were loaded after the fork", "before the fork", "--preload"], &[]);
}

#[test]
fn the_collector_is_told_with_its_remedy_which_helps() {
    let Some((python, mode)) = python() else { return };
    let source = "import gc, os\ndata = [[n] for n in range(200_000)]\nFREEZE\nif os.fork() == 0:\n    gc.collect()\n    os._exit(0)\nos.wait()\n";
    let plain = report(&python, mode, "collects.py", &source.replace("FREEZE", "pass"));
    let parts = with_events(mode, &["garbage collector writes", "collects.py:5", "gc.freeze()"]);
    let moved_parts = with_events(mode, &["garbage collector writes", "moves.py:6", "gc.freeze()"]);
    // Without events it may as well have been counting, which numpy would help.
    let unwanted: &[&str] = if mode == "count" { &[] } else { &["numpy"] };
    demand(&plain, "COPIED: 1 child copied", &parts, unwanted);
    // The collector comes to the lists before it comes to what leads to them: it moves all of them in its lists.
    let moved = source.replace("data = ", "table = {}\ntable['data'] = ").replace("FREEZE", "pass");
    demand(&report(&python, mode, "moves.py", &moved), "COPIED: 1 child copied", &moved_parts, unwanted);
    let frozen = report(&python, mode, "frozen.py", &source.replace("FREEZE", "gc.freeze()"));
    demand(&frozen, "SHARED: all is well: 1 child copied", &[], &["What helps"]);
}

#[test]
fn a_matrix_that_four_processes_read_is_shared_by_handle_and_new_memory_when_it_is_sent() {
    let Some((python, mode)) = python() else { return };
    let source = "\
import multiprocessing, numpy
matrix = numpy.ones((2000, 2000))
def rows(job):
    matrix, start = job
    return float(matrix[start::4].sum())
def by_handle(start):
    return rows((matrix, start))
if __name__ == '__main__':
    with multiprocessing.get_context('fork').Pool(4) as pool:
        CALL
";
    let shared =
        report(&python, mode, "handle.py", &source.replace("CALL", "print(sum(pool.map(by_handle, range(4), 1)))"));
    demand(&shared, "SHARED: all is well: 4 children copied", &[], &["Why"]);
    let sent = source.replace("CALL", "print(sum(pool.map(rows, [(matrix, n) for n in range(4)], 1)))");
    let sent = report(&python, mode, "sent.py", &sent);
    demand(&sent, "NEW: 4 children grew", &["unpickle what they are sent", "global"], &["numpy arrays"]);
}
