//! The target behaves the same, whatever happens to it or to the tool; and bad input is a clear error.

use crate::case::Random;
use crate::exact::{may_hear_faults, may_trace};
use crate::lab::{self, Capture, Outcome, Running, Scratch, cases, cowbell, is_root, run, skip, tool};
use crate::record::{GapKind, PageRun, Record, WatchReason, WriteClass};
use cowbell::sys::procfs;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const STORM: &str = include_str!("../targets/storm.c");

/// The modes that this user has.
fn modes() -> Vec<&'static str> {
    match may_trace() {
        None => with_faults(vec!["count", "trace"]),
        Some(why) => {
            skip(&why);
            with_faults(vec!["count"])
        }
    }
}

fn with_faults(mut modes: Vec<&'static str>) -> Vec<&'static str> {
    match may_hear_faults() {
        None => modes.push("faults"),
        Some(why) => skip(&why),
    }
    modes
}

fn sh(options: &[&str], script: &str) -> Outcome {
    run(&Scratch::new(), &mut cowbell(options, ["sh", "-c", script]))
}

#[test]
fn the_exit_status_is_the_targets() {
    for mode in modes() {
        let code = |script| sh(&["-q", "--mode", mode], script).code;
        assert_eq!(code("exit 0"), Some(0));
        assert_eq!(code("exit 7"), Some(7));
        assert_eq!(code("(exit 9); exit $?"), Some(9));
        assert_eq!(code("kill -KILL $$"), Some(128 + 9));
        assert_eq!(code("kill -TERM $$"), Some(128 + 15));
        assert_eq!(code("ulimit -c 0; kill -SEGV $$"), Some(128 + 11));
    }
}

#[test]
fn what_cannot_be_started_is_one_clear_line_and_its_code() {
    let scratch = Scratch::new();
    let plain = scratch.file("plain", "no program\n");
    let script = scratch.file("script", "#!/nowhere/interpreter\n");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, executable).expect("its owner");
    for (target, code, why) in [
        ("/nowhere/program", 127, "/nowhere/program: not found"),
        ("no-such-program-anywhere", 127, "no-such-program-anywhere: not found"),
        (plain.to_str().expect("text"), 126, "cannot be executed: Permission denied"),
        ("/", 126, "/: cannot be executed"),
        (
            script.to_str().expect("text"),
            126,
            "cannot be executed: the interpreter or loader that it names is not there",
        ),
    ] {
        let outcome = run(&scratch, &mut cowbell(&[], [target]));
        assert_eq!(outcome.code, Some(code), "{target}: {}", outcome.err);
        assert!(outcome.err.contains(why) && outcome.err.trim_end().lines().count() == 1, "{target}: {}", outcome.err);
        assert!(outcome.out.is_empty(), "{target}");
    }
    for arguments in [&["run"][..], &["run", "--mode", "telescope", "--", "true"], &["attach"], &["attach", "none"]] {
        let outcome = run(&scratch, Command::new(tool()).args(arguments));
        assert_eq!(outcome.code, Some(2), "{arguments:?}: {}", outcome.err);
    }
}

#[test]
fn attaching_to_a_process_that_is_gone_or_anothers_is_a_clear_error() {
    let scratch = Scratch::new();
    let mut gone = Command::new("true").spawn().expect("true");
    let pid = gone.id().to_string();
    assert!(gone.wait().expect("its status").success());
    let outcome = run(&scratch, Command::new(tool()).args(["attach", &pid]));
    assert_eq!(outcome.code, Some(125), "{}", outcome.err);
    assert!(outcome.err.contains(&pid) && outcome.err.trim_end().lines().count() == 1, "{}", outcome.err);
    if is_root() {
        return skip("root may attach to everybody's processes; as an ordinary user this is tested, too");
    }
    let outcome = run(&scratch, Command::new(tool()).args(["attach", "1"]));
    assert_eq!(outcome.code, Some(125), "{}", outcome.err);
    assert!(outcome.err.contains("may not be traced: run as"), "{}", outcome.err);
}

#[test]
fn the_targets_own_input_and_output_are_not_touched() {
    let scratch = Scratch::new();
    let mut random = Random::new(1);
    let bytes: Vec<u8> = (0..3 << 20).map(|_| random.below(256) as u8).collect();
    let input = scratch.path("input");
    std::fs::write(&input, &bytes).expect("a file");
    for mode in modes() {
        let mut command = cowbell(&["--mode", mode], ["sh", "-c", "cat; echo to stderr >&2; exit 3"]);
        let file = std::fs::File::open(&input).expect("the input");
        let outcome = Running::start(&scratch, command.stdin(file)).finish();
        assert_eq!(outcome.code, Some(3), "{}", outcome.err);
        assert!(outcome.out == bytes, "{mode}: {} bytes out of {}", outcome.out.len(), bytes.len());
        assert!(outcome.err.starts_with("to stderr\n"), "the report comes last: {}", outcome.err);

        let report = scratch.path("report");
        let mut command = cowbell(&["--mode", mode, "--force", "-o", report.to_str().expect("text")], ["cat"]);
        let outcome = Running::start(&scratch, command.stdin(Stdio::null())).finish();
        assert_eq!((outcome.code, outcome.err.as_str()), (Some(0), ""), "with -o nothing is said on stderr");
        assert!(!std::fs::read_to_string(&report).expect("the report").is_empty());
    }
}

#[test]
fn a_full_disk_spoils_the_capture_and_not_the_target() {
    let outcome = sh(&["--capture", "/dev/full", "--force"], "echo unharmed; (exit 0); exit 4");
    assert_eq!(outcome.out, b"unharmed\n", "{}", outcome.err);
    assert!(outcome.err.contains("/dev/full") && outcome.err.contains("No space left"), "{}", outcome.err);
    assert!([Some(4), Some(125)].contains(&outcome.code), "{outcome:?}");
}

#[test]
fn interrupting_reaches_the_target_and_its_report_is_still_written() {
    let scratch = Scratch::new();
    // The fifo tells when the target waits; SIGINT goes to the group, as a terminal sends it.
    let fifo = scratch.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    for (trap, code) in [("trap 'exit 5' INT", 5), (":", 130)] {
        let script = format!("{trap}; (exit 0); echo up > {}; while :; do sleep 0.05; done", fifo.display());
        let running = Running::start(&scratch, &mut cowbell(&["--mode", "count"], ["sh", "-c", &script]));
        let mut up = String::new();
        let read = std::fs::File::open(&fifo).and_then(|mut fifo| fifo.read_to_string(&mut up));
        assert!(read.is_ok() && up == "up\n", "{up:?}");
        lab::signal_group(running.pid(), "INT");
        let outcome = running.finish();
        assert_eq!(outcome.code, Some(code), "{trap}: {}", outcome.err);
        assert!(outcome.err.contains("cop"), "a report: {}", outcome.err);
    }
}

#[test]
fn job_control_and_timers_work_as_they_do_unwatched() {
    let scratch = Scratch::new();
    let control = scratch.compile("control", include_str!("../targets/control.c"), &[]).expect("it compiles");
    let control = control.to_str().expect("text");
    for what in ["stop", "timer"] {
        for mode in modes() {
            let outcome = run(&scratch, &mut cowbell(&["-q", "--mode", mode], [control, what]));
            let out = String::from_utf8_lossy(&outcome.out).into_owned();
            assert_eq!((outcome.code, out.as_str()), (Some(0), "right\n"), "{what} {mode}: {}", outcome.err);
        }
    }
}

/// A program whose child reads new memory full of /dev/zero, twenty times, and says how often it was given less than it asked for.
const READS: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
enum { BYTES = 64 << 20 };
int main(void) {
  if (fork()) { int status; wait(&status); return 0; }
  int less = 0, zero = open("/dev/zero", O_RDONLY);
  for (int n = 0; n < 20; n++) {
    char *at = mmap(0, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    less += read(zero, at, BYTES) != BYTES;
    munmap(at, BYTES);
  }
  printf("%d\n", less);
  return 0;
}
"#;

/// The kernel ends a read with what it has when its thread is interrupted; new memory is looked for all the same.
#[test]
fn reads_are_not_cut_short() {
    let scratch = Scratch::new();
    let program = scratch.compile("reads", READS, &["-O1"]).expect("it compiles");
    for mode in modes() {
        let outcome = run(&scratch, &mut cowbell(&["--mode", mode], [program.as_os_str()]));
        assert_eq!((outcome.code, outcome.out.as_slice()), (Some(0), &b"0\n"[..]), "{mode}: {}", outcome.err);
        assert!(outcome.err.starts_with("NEW: 1 child grew"), "{mode}: {}", outcome.err);
    }
}

#[test]
fn a_storm_of_forks_comes_out_right_and_each_child_has_an_interval() {
    let scratch = Scratch::new();
    let storm = scratch.compile("storm", STORM, &["-static"]).expect("libc6-dev has libc.a");
    let storm = storm.to_str().expect("text");
    for mode in modes() {
        let capture = scratch.path(mode);
        let options = ["-q", "--mode", mode, "--stacks", "0", "--capture", capture.to_str().expect("text")];
        let outcome = run(&scratch, &mut cowbell(&options, [storm, "5", "12"]));
        assert!(outcome.code == Some(0) && outcome.out.starts_with(b"started\nright "), "{mode}: {outcome:?}");
        let capture = Capture::read(&capture);
        // A child that forks has one more interval.
        let mut written: BTreeMap<i32, u64> = BTreeMap::new();
        for interval in capture.intervals.values().filter(|a| a.begin.role == WatchReason::Child) {
            let own =
                |run: &&PageRun| matches!(run.class, WriteClass::Copy | WriteClass::CopyOrReuse | WriteClass::Reuse);
            let runs = interval.end.as_ref().expect("each is closed").pages.iter().filter(own);
            *written.entry(interval.begin.pid).or_default() += runs.map(|run| run.pages).sum::<u64>();
        }
        // 12 children and four grandchildren in each of five waves.
        assert_eq!(written.len(), 5 * 16, "{mode}");
        for (pid, pages) in written {
            assert!(pages >= 200, "{mode}: {pid} wrote 200 pages, and {pages} are told");
        }
    }
}

#[test]
fn children_beyond_the_limit_run_unwatched_and_that_is_said() {
    let scratch = Scratch::new();
    let storm = scratch.compile("storm", STORM, &[]).expect("it compiles");
    let capture = scratch.path("capture");
    let options = ["--mode", "count", "--max-children", "2", "--capture", capture.to_str().expect("text")];
    let outcome = run(&scratch, &mut cowbell(&options, [storm.to_str().expect("text"), "3", "9"]));
    assert!(outcome.code == Some(0) && outcome.out.starts_with(b"started\nright "), "{outcome:?}");
    let capture = Capture::read(&capture);
    let beyond = |r: &&Record| matches!(r, Record::Gap(b) if b.what == GapKind::TooManyChildren);
    assert!(capture.records.iter().any(|r| beyond(&r)), "it is told");
    // A parent is one process, however often it forks without being watched.
    let outcome = sh(&["--mode", "count", "--max-children", "0"], "(true); (true); (true); exit 0");
    let text = outcome.err.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("4 processes beyond --max-children ran unwatched: no more than 0 were to be"), "{text}");
}

#[test]
fn a_32_bit_program_runs_right_and_is_watched_or_named_as_not() {
    let scratch = Scratch::new();
    let Some(storm) = scratch.compile("storm-32", STORM, &["-m32"]) else {
        return skip("this compiler makes no 32-bit programs");
    };
    for mode in modes() {
        let capture = scratch.path(mode);
        let options = ["--mode", mode, "--capture", capture.to_str().expect("text")];
        let outcome = run(&scratch, &mut cowbell(&options, [storm.to_str().expect("text"), "2", "3"]));
        assert!(outcome.code == Some(0) && outcome.out.starts_with(b"started\nright "), "{mode}: {outcome:?}");
        let capture = Capture::read(&capture);
        let told = |r: &&Record| matches!(r, Record::Gap(b) if b.what == GapKind::NotArmed);
        assert!(!capture.intervals.is_empty() || capture.records.iter().any(|r| told(&r)), "{mode}");
    }
}

/// The processes of a group that run the tool, the front first.
fn tool_processes(front: i32) -> Vec<i32> {
    let exe = |pid: i32| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    let Some(program) = exe(front) else { return Vec::new() };
    let descends = |pid: i32| {
        let stat = procfs::read(pid, "stat").unwrap_or_default();
        procfs::stat::Stat::parse(&stat).is_some_and(|stat| stat.parent == front)
    };
    let pids = procfs::processes().expect("/proc").into_iter();
    let mut found: Vec<i32> = pids.filter(|&pid| descends(pid) && exe(pid).as_ref() == Some(&program)).collect();
    found.insert(0, front);
    found
}

/// Kills one process of the tool at some time and demands that the target comes to its end, and to the right result.
fn kill_the_tool(
    scratch: &Scratch,
    storm: &Path,
    (mode, stacks): (&str, &str),
    random: &mut Random,
    victim: usize,
) -> bool {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut command =
        cowbell(&["-q", "--mode", mode, "--stacks", stacks], [storm.as_os_str(), "4".as_ref(), "9".as_ref()]);
    // The target's output: its end comes when the last process that has it has ended.
    let err = std::fs::File::create(scratch.path("err")).expect("a file");
    let mut front = {
        use std::os::unix::process::CommandExt;
        command.stdin(Stdio::null()).stdout(writer).stderr(err).process_group(0);
        command.spawn().expect("the tool")
    };
    drop(command);
    std::thread::sleep(Duration::from_micros(random.below(150_000) as u64));
    let group = front.id() as i32;
    let processes = tool_processes(group);
    let killed = processes.get(victim).copied();
    if let Some(pid) = killed {
        let _maybe_gone = Command::new("kill").args(["-KILL", &pid.to_string()]).output();
    }
    let read_all = std::thread::spawn(move || {
        let mut said = String::new();
        let mut reader = reader;
        reader.read_to_string(&mut said).map(|_| said)
    });
    let deadline = std::time::Instant::now() + Duration::from_secs(200);
    while !read_all.is_finished() {
        if std::time::Instant::now() > deadline {
            let states = lab::processes_of_group(group);
            lab::signal_group(group, "KILL");
            panic!("{mode} {stacks}, killed {killed:?} of {processes:?}: the target does not end:\n{states}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let said = read_all.join().expect("the reader").expect("text");
    let status = front.wait().expect("a status");
    // The tracer alone, and only in the middle of an injection, takes one process with it: better than a wrong result.
    // If that is the first process, there is nobody left to say how the others did.
    let injects = mode != "faults";
    let one_died_with_the_tracer =
        injects && victim == 1 && (said.starts_with("started\nkilled 1 of ") || said == "started\n");
    // Killed before the target ran, there is nobody to say a word.
    let never_started = killed.is_some() && said.is_empty();
    assert!(
        said.starts_with("started\nright ") || one_died_with_the_tracer || never_started,
        "{mode} {stacks}, killed {killed:?} of {processes:?} (the front is first): {said:?}, {status:?}"
    );
    killed.is_some() && !said.is_empty()
}

#[test]
fn killing_the_tool_at_any_time_leaves_the_target_running_to_its_right_result() {
    let scratch = Scratch::new();
    let storm: PathBuf = scratch.compile("storm", STORM, &["-static"]).expect("libc6-dev has libc.a");
    let mut random = Random::new(7);
    let mut killed = [0; 2];
    // Each process in each mode, at the usual number of stacks and at the largest: a hundred times each, if asked for.
    let modes = modes_once();
    let usual = if std::env::var_os("COWBELL_SOAK").is_some() { 400 * modes.len() as u64 } else { 100 };
    for nth in 0..cases(usual) as usize {
        let mode = (modes[nth / 2 % modes.len()], ["1/50", "1"][nth / 2 / modes.len() % 2]);
        killed[nth % 2] += usize::from(kill_the_tool(&scratch, &storm, mode, &mut random, nth % 2));
    }
    println!("killed: the front {} times, the tracer {} times while the target ran", killed[0], killed[1]);
    assert!(killed.iter().all(|times| *times > 0), "each was killed at work: {killed:?}");
}

/// The same as `modes`, asked once.
fn modes_once() -> &'static [&'static str] {
    static MODES: std::sync::OnceLock<Vec<&'static str>> = std::sync::OnceLock::new();
    MODES.get_or_init(modes)
}

#[test]
fn attaching_leaves_a_running_tree_unharmed() {
    let scratch = Scratch::new();
    let storm = scratch.compile("storm", STORM, &[]).expect("it compiles");
    for mode in modes() {
        let capture = scratch.path(&format!("attached-{mode}"));
        let target = Running::start(&scratch, Command::new(&storm).args(["300", "9"]).stdin(Stdio::null()));
        let mut command = Command::new(tool());
        command.args(["attach", &target.pid().to_string(), "--duration", "0.5", "--mode", mode, "--capture"]);
        let outcome = run(&scratch, command.arg(&capture));
        assert_eq!(outcome.code, Some(0), "{mode}: {}", outcome.err);
        let outcome = target.finish();
        assert!(outcome.code == Some(0) && outcome.out.starts_with(b"started\nright "), "{mode}: {outcome:?}");
        let capture = Capture::read(&capture);
        let forked = capture.intervals.values().filter(|a| a.begin.role == WatchReason::Child).count();
        assert!(forked > 0, "{mode}: it forked all the time");
    }
}
