//! The phases of workers: what they copied while they were set up, at work and on the way out, against the same program without the
//! way out.

use crate::exact::{may_hear_faults, may_trace};

use crate::lab::{Busy, Running, Scratch, cowbell, is_root, skip};
use crate::programs::{ask_both_and_end, gunicorn};
use crate::python::PYTHON;
use crate::said::{report, share};
use serde_json::Value;
use std::path::Path;

/// The MiB that workers copied at work, at least and at most, and on the way out.
fn phases(report: &Value) -> [f64; 3] {
    let mib = |name: &str| report["verdict"][name].as_f64().expect("bytes") / f64::from(1 << 20);
    ["copied_bytes_min", "copied_bytes", "ending_bytes"].map(mib)
}

/// The report on a script, once as it is and once with another last line.
fn both(interpreter: &str, source: &str, leaves: [&str; 2]) -> [(Value, String); 2] {
    leaves.map(|leave| {
        let scratch = Scratch::new();
        let script = scratch.file("leaves", &source.replace("LEAVE", leave));
        report(&scratch, &["--mode", "trace"], [Path::new(interpreter), &script])
    })
}

/// Demands that the work of two ways to leave is the same, and that only the first copies on its way out.
fn demand_the_same_work(of: &[(Value, String); 2]) {
    let [(leaving, text), (at_once, text_at_once)] = of;
    let ([least, most, ending], [_, truth, none]) = (phases(leaving), phases(at_once));
    assert!(none < 0.1 && ending > 4.0, "{ending} and {none} MiB on the way out: {text}\n{text_at_once}");
    // The copies between two sampled stacks are of the phase of the earlier one; those of files' pages have no time.
    let near = truth * 0.03 + 0.1;
    let is_within = least - near < truth && truth < most + near && most - least < 1.5;
    assert!(is_within, "{least} to {most} MiB at work, in truth {truth}: {text}\n{text_at_once}");
}

#[test]
fn what_python_copies_on_its_way_out_is_no_part_of_the_work() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let source = "
import os, sys
data = [str(i) for i in range(300_000)]
p = os.fork()
if p == 0:
    for x in data[:120_000]: pass
    LEAVE
os.waitpid(p, 0)
";
    let said = both(PYTHON, source, ["sys.exit(0)", "os._exit(0)"]);
    demand_the_same_work(&said);
    let [(leaving, text), _] = &said;
    assert!(leaving["verdict"]["places"][0]["line"] == 6, "{text}");
    assert!(text.contains("os._exit(0)") && text.contains("while they ended"), "{text}");
}

/// Since CPython 3.13 no function that takes the interpreter down is exported.
#[test]
fn newer_pythons_without_symbols_are_told_on_their_way_out() {
    if let Some(why) = may_hear_faults() {
        return skip(&why);
    }
    if !is_root() {
        return skip("the stacks of ordinary users' programs come by interrupts: a short way out may have none");
    }
    let Some(python) = gunicorn() else {
        return skip("they are below the target directory, which this user cannot read");
    };
    let folder = python.ancestors().nth(3).expect("the target directory").join("python-tests/cpython/root/usr/bin");
    let source = "import os, sys\ndata = [str(i) for i in range(300_000)]\np = os.fork()\nif p == 0: sys.exit(0)\nos.waitpid(p, 0)\nos._exit(0)\n";
    for version in ["3.14", "3.15"] {
        let python = folder.join(format!("python{version}"));
        if !python.exists() {
            skip(&format!("CPython {version} could not be had: tools/python/setup says why"));
            continue;
        }
        let scratch = Scratch::new();
        let script = scratch.file("exits.py", source);
        let (report, text) = report(&scratch, &["--mode", "faults"], [python.as_path(), &script]);
        let [_, most, ending] = phases(&report);
        assert!(most < 2.0 && ending > 8.0, "{version}: {most} MiB at work, {ending} on the way out: {text}");
    }
}

/// The first stack takes far longer than the next where the files of many libraries are read for it, and on a busy machine longer still.
#[test]
fn where_many_libraries_are_loaded_the_way_out_is_told_on_a_busy_machine_too() {
    if let Some(why) = may_hear_faults() {
        return skip(&why);
    }
    if !is_root() {
        return skip("the stacks of ordinary users' programs come by interrupts, which a busy machine delays");
    }
    let Some(python) = gunicorn() else {
        return skip("the packages are below the target directory, which this user cannot read");
    };
    let source = "
import networkx, numpy, os, sys
data = [str(i) for i in range(120_000)]
p = os.fork()
if p == 0:
    for x in data[:10_000]: pass
    sys.exit(0)
os.waitpid(p, 0)
os._exit(0)
";
    let scratch = Scratch::new();
    let script = scratch.file("leaves.py", source);
    let _busy = Busy::new(6);
    let (report, text) =
        report(&scratch, &["--mode", "faults", "--who", "child"], [python.as_path(), script.as_path()]);
    let [_, work, ending] = phases(&report);
    assert!(work < 4.0 && ending > 4.0, "{work} MiB at work, {ending} on the way out: {text}");
}

/// The report on two idle workers of uwsgi that were asked until both had answered, and then told to end.
fn uwsgi(options: &[&str]) -> String {
    let scratch = Scratch::new();
    let source = "
import os
DATA = [str(n) * 3 for n in range(120_000)]
def application(environ, start_response):
    body = b'%d' % os.getpid()
    start_response('200 OK', [('Content-Length', str(len(body)))])
    return [body]
";
    let script = scratch.file("app.py", source);
    let [socket, pid_file] = ["socket", "pid"].map(|name| scratch.path(name));
    let [script, socket_path, pid_path] = [&script, &socket, &pid_file].map(|path| path.to_str().expect("text"));
    let target =
        ["uwsgi", "--plugin", "python3", "--http-socket", socket_path, "--pidfile", pid_path, "--wsgi-file", script];
    let target =
        [&target[..], &["--master", "--processes", "2", "--die-on-term", "--disable-logging"], options].concat();
    let running = Running::start(&scratch, &mut cowbell(&["--mode", "faults", "--stacks", "1/16"], target));
    let outcome = ask_both_and_end(running, &socket, &pid_file);
    outcome.err.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn uwsgi_stopped_gracefully_copies_on_the_way_out_unless_it_leaves_the_teardown_out() {
    if let Some(why) = may_hear_faults() {
        return skip(&why);
    }
    if !is_root() {
        return skip("only root sees page frames");
    }
    let graceful = uwsgi(&[]);
    assert!(graceful.contains("SHARED: all is well: 2 children copied"), "{graceful}");
    assert!(graceful.contains("skip-atexit-teardown = true # in uwsgi.ini"), "{graceful}");
    // Each of two workers has 120,000 strings to free, of 64 bytes.
    let ended = |said: &str| {
        let before = said.split(" MiB while they ended").next().filter(|before| before.len() < said.len())?;
        before.rsplit(' ').next()?.parse::<f64>().ok()
    };
    assert!(ended(&graceful).is_some_and(|mib| mib > 12.0), "{graceful}");
    let at_once = uwsgi(&["--skip-atexit-teardown"]);
    assert!(at_once.contains("SHARED: all is well: 2 children copied"), "{at_once}");
    assert!(ended(&at_once).is_none_or(|mib| mib < 2.0) && !at_once.contains("atexit functions"), "{at_once}");
}

#[test]
fn what_perl_copies_on_its_way_out_is_no_part_of_the_work() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let source = "
use POSIX ();
my @data = map { { name => \"n$_\" } } 1..60_000;
my $p = fork();
if ($p == 0) {
    $data[$_]{name} = 'other' for 0..19_999;
    LEAVE
}
waitpid($p, 0);
POSIX::_exit(0);
";
    let said = both("/usr/bin/perl", source, ["exit(0);", "POSIX::_exit(0);"]);
    demand_the_same_work(&said);
    assert!(said[0].1.contains("POSIX::_exit()"), "{}", said[0].1);
}

#[test]
fn a_worker_of_a_program_that_was_shutting_down_when_it_forked_works() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let source = "
import atexit, os
data = [str(i) for i in range(200_000)]
def last():
    p = os.fork()
    if p == 0:
        for x in data: pass
        os._exit(0)
    os.waitpid(p, 0)
    os._exit(0)
atexit.register(last)
";
    let scratch = Scratch::new();
    let script = scratch.file("late.py", source);
    let (report, text) = report(&scratch, &["--mode", "trace"], [Path::new(PYTHON), &script]);
    let [work, _, ending] = phases(&report);
    assert!(work > 8.0 && ending < 0.1, "{work} at work, {ending} MiB on the way out: {text}");
    assert!(share(&report, "exit") < 0.01, "{text}");
}

#[test]
fn an_exit_handler_that_works_is_on_the_way_out() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let source = r#"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
static char *all;
__attribute__((noinline)) static void put(int from, int pages) {
    for (int i = from; i < from + pages; i++) all[i * 4096L] = 2;
}
static void last(void) { put(1000, 500); }
int main(void) {
    all = mmap(0, 4000 * 4096L, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(all, 1, 4000 * 4096L);
    if (!fork()) { atexit(last); put(0, 1000); exit(0); }
    wait(0);
    _exit(0);
}
"#;
    let scratch = Scratch::new();
    let program = scratch.compile("handles", source, &[]).expect("it compiles");
    let (report, text) = report(&scratch, &["--mode", "trace"], [program.as_os_str()]);
    let [_, work, ending] = phases(&report).map(|mib| (mib * 256.0).round() as u64);
    assert!((1000..1100).contains(&work) && (430..530).contains(&ending), "{work}, {ending} pages: {text}");
    assert!(!text.contains("_exit(2)"), "it would lose what the handler does: {text}");
}

#[test]
fn a_function_that_atexit_runs_is_not_advised_away() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let source = "
import atexit, os, sys
data = bytearray(b'x') * (16 << 20)
def last():
    for at in range(0, len(data), 4096): data[at] = 1
p = os.fork()
if p == 0:
    atexit.register(last)
    sys.exit(0)
os.waitpid(p, 0)
os._exit(0)
";
    let scratch = Scratch::new();
    let script = scratch.file("last.py", source);
    let (report, text) = report(&scratch, &["--mode", "trace"], [Path::new(PYTHON), &script]);
    let [_, _, ending] = phases(&report);
    assert!(ending > 12.0, "{ending} MiB on the way out: {text}");
    assert!(!text.contains("os._exit"), "it would lose what the function does: {text}");
}
