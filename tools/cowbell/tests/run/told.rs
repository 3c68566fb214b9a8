//! Sentences that the tool says of itself, of this machine, and of programs that it can watch in part only.

use crate::exact::may_trace;
use crate::lab::{Outcome, Running, Scratch, cowbell, is_root, run, skip, tool};
use cowbell::sys::procfs;
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A report on one line, whatever its width.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Waits until something is so.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(300), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_option_that_does_not_exist_is_no_program() {
    let outcome = run(&Scratch::new(), Command::new(tool()).args(["run", "--mod", "count", "--", "true"]));
    assert_eq!(outcome.code, Some(2), "{}", outcome.err);
    assert!(outcome.err.contains("--mode"), "{}", outcome.err);
    // Words that follow the program are the program's.
    let outcome = run(&Scratch::new(), Command::new(tool()).args(["run", "-q", "sh", "-c", "exit $#", "-x", "--mod"]));
    assert_eq!(outcome.code, Some(1), "{}", outcome.err);
    let outcome = run(&Scratch::new(), &mut cowbell(&["-q", "--stacks", "1"], ["true"]));
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
}

#[test]
fn the_tools_own_processes_bear_its_name() {
    let scratch = Scratch::new();
    let running = Running::start(&scratch, cowbell(&["-q"], ["sleep", "30"]).stdin(Stdio::null()));
    let name = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let front = running.pid();
    wait_until("a target", || {
        procfs::children(front).iter().flat_map(|&pid| procfs::children(pid)).any(|pid| name(&pid) == "sleep\n")
    });
    let names: Vec<String> = procfs::children(front).iter().map(name).collect();
    crate::lab::signal_group(front, "TERM");
    running.finish();
    assert_eq!(names, ["cowbell\n"]);
}

#[test]
fn a_thread_of_the_kernel_is_called_so() {
    if std::fs::read_to_string("/proc/2/comm").unwrap_or_default() != "kthreadd\n" {
        return skip("no thread of the kernel is in sight");
    }
    let outcome = run(&Scratch::new(), Command::new(tool()).args(["attach", "2"]));
    assert_eq!(outcome.code, Some(125), "{}", outcome.err);
    assert!(outcome.err.contains("is a thread of the kernel"), "{}", outcome.err);
}

#[test]
fn a_program_that_leaves_processes_behind_is_no_riddle() {
    let scratch = Scratch::new();
    let script = "sleep 60 & echo $! >&2; exit 3";
    let running = Running::start(&scratch, cowbell(&["--mode", "count"], ["sh", "-c", script]).stdin(Stdio::null()));
    wait_until("told", || running.err_so_far().contains("the program has ended, but 1 process of it still runs"));
    let left = running.err_so_far().lines().next().and_then(|line| line.parse::<i32>().ok()).expect("its number");
    assert!(running.err_so_far().contains(&format!("({left})")), "{}", running.err_so_far());
    // To the tool alone, as from a terminal to which the processes that were left do not belong.
    let sent = Command::new("kill").args(["-INT", &running.pid().to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()));
    let outcome = running.finish();
    let state = std::fs::read_to_string(format!("/proc/{left}/comm"));
    let _killed = Command::new("kill").arg(left.to_string()).status();
    assert_eq!(outcome.code, Some(3), "{}", outcome.err);
    assert_eq!(state.ok().as_deref(), Some("sleep\n"), "it runs on");
}

#[test]
fn programs_that_were_spawned_are_counted_as_started_afresh() {
    let script = "import subprocess\nfor _ in range(3): subprocess.run(['true'])";
    let scratch = Scratch::new();
    let report = scratch.path("report");
    let options = ["--mode", "count", "--json", "-o", report.to_str().expect("text")];
    let python = ["/usr/bin/python3", "-c", script];
    assert_eq!(run(&scratch, &mut cowbell(&options, python)).code, Some(0));
    let report: Value = serde_json::from_slice(&std::fs::read(&report).expect("a report")).expect("JSON");
    assert_eq!(report["totals"]["started_afresh"], 3, "{}", report["totals"]);
    let outcome = run(&scratch, &mut cowbell(&["--mode", "count"], python));
    let text = flat(&outcome.err);
    assert!(
        text.starts_with("NOTHING TO SHARE: ") && text.contains("3 programs were started afresh by exec"),
        "{text}"
    );
}

/// A process that has a child which has written to what it inherited, once both stand still.
fn written_tree(scratch: &Scratch, before: &str, after: &str) -> Running {
    let script = format!(
        "import os, sys, time\ndata = [object() for _ in range(200_000)]\nr, w = os.pipe()\nif os.fork() == 0:\n    {before}\n    \
         os.write(w, b'x')\n    time.sleep(1.0)\n    {after}\n    time.sleep(60)\n    os._exit(0)\nos.read(r, 1)\n\
         print('up', file=sys.stderr, flush=True)\ntime.sleep(60)"
    );
    let running = Running::start(scratch, Command::new("/usr/bin/python3").args(["-c", &script]).stdin(Stdio::null()));
    wait_until("up", || running.err_so_far().contains("up"));
    running
}

fn attach(scratch: &Scratch, running: &Running, options: &[&str]) -> Outcome {
    run(scratch, Command::new(tool()).arg("attach").args(options).arg(running.pid().to_string()))
}

#[test]
fn who_attaches_late_is_told_what_was_before() {
    let scratch = Scratch::new();
    let running = written_tree(&scratch, "for x in data: pass", "pass");
    let outcome = attach(&scratch, &running, &["--mode", "count", "--duration", "0.3"]);
    crate::lab::signal_group(running.pid(), "KILL");
    let pid = running.pid();
    running.finish();
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let text = flat(&outcome.err);
    assert!(text.starts_with("BEFORE: the processes had "), "{text}");
    assert!(text.contains("Counted since cowbell attached"), "{text}");
    assert!(text.contains(&format!("`cowbell snapshot {pid}`")), "{text}");
}

#[test]
fn copies_of_an_attached_child_are_compared_with_what_its_parent_has() {
    let scratch = Scratch::new();
    let running = written_tree(&scratch, "pass", "for x in data: pass");
    if !is_root() {
        let outcome = attach(&scratch, &running, &["-v", "--mode", "count", "--duration", "3"]);
        crate::lab::signal_group(running.pid(), "KILL");
        running.finish();
        let text = flat(&outcome.err);
        assert!(text.contains("as root, cowbell compares copies of processes that it finds running"), "{text}");
        return skip("which pages two running processes share is known by their frames, which root reads");
    }
    let report = scratch.path("report");
    let options = ["--mode", "count", "--duration", "3", "--json", "-o", report.to_str().expect("text")];
    let outcome = attach(&scratch, &running, &options);
    crate::lab::signal_group(running.pid(), "KILL");
    running.finish();
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let report: Value = serde_json::from_slice(&std::fs::read(&report).expect("a report")).expect("JSON");
    let (copied, compared) = (&report["totals"]["copied_pages"], &report["contents"]["compared_pages"]);
    let (copied, compared) = (copied.as_u64().expect("a number"), compared.as_u64().expect("a number"));
    assert!(copied > 500 && compared * 10 > copied * 9, "{compared} of {copied} copies were compared");
}

/// A program that says which thread of it goes on when its first one ends, or waits. With `traced` that has forked a child, which is
/// traced by its parent.
const THREADS: &str = r#"
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>
static int traced;
static void *work(void *nothing)
{
	if (traced && fork() == 0) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		kill(getpid(), SIGSTOP);
		_exit(0);
	}
	fprintf(stderr, "up %d\n", (int)syscall(SYS_gettid));
	sleep(60);
	return nothing;
}
int main(int argc, char **argv)
{
	pthread_t thread;
	traced = !strcmp(argv[1], "traced");
	pthread_create(&thread, NULL, work, NULL);
	if (!strcmp(argv[1], "ends"))
		pthread_exit(NULL);
	pthread_join(thread, NULL);
}
"#;

/// Starts it; the number of the thread that goes on.
fn threads(scratch: &Scratch, how: &str) -> (Running, i32) {
    let program = scratch.compile("threads", THREADS, &[]).expect("it compiles");
    let running = Running::start(scratch, Command::new(program).arg(how).stdin(Stdio::null()));
    let told = || running.err_so_far().trim().strip_prefix("up ").and_then(|tid| tid.parse().ok());
    wait_until("up", || told().is_some());
    let thread = told().expect("a number");
    (running, thread)
}

#[test]
fn who_attaches_to_a_thread_attaches_to_its_process() {
    let scratch = Scratch::new();
    let (running, thread) = threads(&scratch, "waits");
    let options = ["attach", "--mode", "count", "--duration", "0.2"];
    let outcome = run(&scratch, Command::new(tool()).args(options).arg(thread.to_string()));
    let pid = running.pid();
    crate::lab::signal_group(pid, "KILL");
    running.finish();
    let text = flat(&outcome.err);
    assert_eq!(outcome.code, Some(0), "{text}");
    assert!(text.starts_with("NOTHING TO SHARE: 1 process shared no private memory"), "{text}");
    assert!(text.contains(&format!("{pid} threads")) && !text.contains(&thread.to_string()), "{text}");
}

#[test]
fn a_process_whose_first_thread_has_ended_is_not_said_to_have_ended() {
    let scratch = Scratch::new();
    let (running, _) = threads(&scratch, "ends");
    let pid = running.pid();
    wait_until("its end", || {
        procfs::read(pid, "stat").is_ok_and(|stat| String::from_utf8_lossy(&stat).contains(") Z "))
    });
    let outcome = run(&scratch, Command::new(tool()).arg("attach").arg(pid.to_string()));
    crate::lab::signal_group(pid, "KILL");
    running.finish();
    assert_eq!(outcome.code, Some(125), "{}", outcome.err);
    let why = format!("the first thread of process {pid} (threads) has ended and others run on");
    assert!(outcome.err.contains(&why), "{}", outcome.err);
}

#[test]
fn a_process_of_a_tree_that_cannot_be_attached_to_is_named() {
    let scratch = Scratch::new();
    let (running, _) = threads(&scratch, "traced");
    let pid = running.pid();
    wait_until("a traced child", || {
        procfs::children(pid).iter().any(|&child| {
            procfs::status::Status::of(child)
                .is_ok_and(|status| status.number("TracerPid").is_some_and(|tracer| tracer != 0))
        })
    });
    let child = *procfs::children(pid).first().expect("a child");
    let options = ["attach", "--mode", "count", "--duration", "0.2"];
    let outcome = run(&scratch, Command::new(tool()).args(options).arg(pid.to_string()));
    crate::lab::signal_group(pid, "KILL");
    running.finish();
    let text = flat(&outcome.err);
    assert_eq!(outcome.code, Some(0), "{text}");
    let why = format!("not everything could be watched: process {child} is traced already, by process {pid}");
    assert!(text.contains(&why) && !text.contains("all is well"), "{text}");
}

#[test]
fn a_refusal_by_a_seccomp_filter_is_named_as_one() {
    let scratch = Scratch::new();
    let filtered = scratch.compile("filtered", include_str!("../targets/filtered.c"), &[]).expect("it compiles");
    let under = |call: &str, arguments: &[&str]| {
        let outcome = run(&scratch, Command::new(&filtered).arg(call).arg(tool()).args(arguments));
        (outcome.code, flat(&format!("{}{}", outcome.err, String::from_utf8_lossy(&outcome.out))))
    };
    let (code, said) = under("userfaultfd", &["run", "--mode", "count", "--", "true"]);
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("seccomp filter") && said.contains("--security-opt seccomp"), "{said}");
    assert!(!said.contains("6.7"), "{said}");
    let (_, said) = under("ptrace", &["doctor"]);
    assert!(said.contains("run --mode count MISSING") && said.contains("--cap-add SYS_PTRACE"), "{said}");
    // A filter that lets userfaultfd through is no reason not to look.
    let (code, said) = under("nothing", &["run", "--mode", "count", "--", "sh", "-c", "(true); exit 0"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("1 child copied"), "{said}");
}

#[test]
fn a_program_of_another_user_is_traced_and_one_in_a_namespace_is_said_to_be_counted() {
    if !is_root() {
        return skip("only root runs programs of other users");
    }
    assert!(may_trace().is_none());
    let scratch = Scratch::new();
    let report = scratch.path("report");
    let options = ["--mode", "trace", "--json", "--force", "-o", report.to_str().expect("text")];
    let read = |command: &[&str]| -> Value {
        let outcome = run(&scratch, &mut cowbell(&options, command));
        assert_eq!(outcome.code, Some(0), "{}", outcome.err);
        serde_json::from_slice(&std::fs::read(&report).expect("a report")).expect("JSON")
    };
    let script = "import os\ndata = [object() for _ in range(100_000)]\nif os.fork() == 0:\n    for x in data: pass\n    os._exit(0)\nos.wait()";
    let python = ["/usr/bin/python3", "-c", script];
    let modes = |report: &Value| {
        let intervals = report["intervals"].as_array().expect("intervals").clone();
        intervals.iter().map(|interval| interval["mode"].as_str().expect("a mode").to_owned()).collect::<Vec<_>>()
    };
    let user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
    let traced = read(&[&user[..], &python].concat());
    assert_eq!(modes(&traced), ["trace", "trace"], "{}", traced["gaps"]);
    let lines = traced["script"]["lines"].as_array().expect("lines");
    assert!(lines.iter().any(|line| line["line"] == 4), "{lines:#?}");

    // The process' real user counts, whatever the effective and the saved one are.
    for ids in ["65534, 65534, 0", "0, 65534, 0", "65534, 1, 1"] {
        let gives_up = format!("import os\nos.setresgid({ids})\nos.setresuid({ids})\n{script}");
        let traced = read(&["/usr/bin/python3", "-c", &gives_up]);
        assert_eq!(modes(&traced), ["trace", "trace"], "{ids}: {}", traced["gaps"]);
    }

    let spaces = read(&[&["unshare", "--user", "--map-root-user", "--"][..], &python].concat());
    assert_eq!(modes(&spaces), ["count", "count"], "{}", spaces["gaps"]);
    let told = spaces["gaps"].as_array().expect("gaps").iter().find(|gap| gap["what"] == "counted_only");
    let told = told.unwrap_or_else(|| panic!("{}", spaces["gaps"]));
    assert!(told["details"].to_string().contains("user namespace"), "{told}");
    assert_eq!(told["pids"].as_array().map(Vec::len), Some(2), "{told}");
}

#[test]
fn a_privilege_that_is_withheld_is_said_to_be() {
    if is_root() {
        return skip("root's programs keep their privileges; as an ordinary user this is tested, too");
    }
    let outcome = run(&Scratch::new(), &mut cowbell(&["--mode", "count"], ["/usr/bin/passwd", "-S"]));
    let text = flat(&outcome.err);
    assert!(text.contains("without their privileges") && text.contains("/usr/bin/passwd is set-user-ID 0"), "{text}");
}

#[test]
fn private_mappings_of_files_are_said_to_have_no_code() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let data = scratch.path("data");
    std::fs::write(&data, vec![1u8; 1 << 20]).expect("a file");
    let script = format!(
        "import mmap, os\nf = open({:?}, 'rb')\nm = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)\nif os.fork() == 0:\n    \
         for at in range(0, len(m), 4096): m[at] = 2\n    os._exit(0)\nos.wait()",
        data.to_str().expect("text")
    );
    let outcome = run(&scratch, &mut cowbell(&["--mode", "trace", "-v"], ["/usr/bin/python3", "-c", &script]));
    let text = outcome.err.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("the kernel reports no writes there"), "{text}");
    assert!(text.contains(data.to_str().expect("text")), "{text}");
}
