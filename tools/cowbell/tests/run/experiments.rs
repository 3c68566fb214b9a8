//! `cowbell lab`: every experiment comes out as expected, in all forms in which it is shown, and nothing is left of it.

use crate::lab::{Running, Scratch, cowbell, is_root, run, skip, tool};
use crate::programs::{eventually, gunicorn, redis_server};
use cowbell::sys::pidfd;
use serde_json::Value;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The lab with these arguments, in a place of its own, where a server of Redis' is to be found.
fn lab(scratch: &Scratch, python: &Path, arguments: &[&str]) -> Command {
    if !scratch.path("redis-server").exists() {
        redis_server(scratch);
    }
    let path = std::env::var("PATH").expect("a PATH");
    let mut command = Command::new(tool());
    command.args(["lab", "--quick", "--python"]).arg(python).args(arguments);
    command.env("TMPDIR", scratch.path("")).env("PATH", format!("{}:{path}", scratch.path("").display()));
    command
}

fn python() -> Option<std::path::PathBuf> {
    let python = gunicorn();
    if python.is_none() {
        skip("the packages are below the target directory, which this user cannot read");
    }
    python
}

/// The names of the ways that ran, each experiment being as expected.
fn ran(told: &[u8]) -> Vec<String> {
    let told: Value = serde_json::from_slice(told).expect("JSON");
    assert_eq!(told["format"], "cowbell-lab");
    let experiments = told["experiments"].as_array().expect("experiments");
    let mut names = Vec::new();
    for experiment in experiments {
        assert_eq!(experiment["unexpected"].as_array().map(Vec::len), Some(0), "{experiment:#}");
        for way in experiment["ways"].as_array().expect("ways") {
            if let Some(why) = way["outcome"]["skipped"]["why"].as_str() {
                println!("skipped: {}: {why}", way["name"]);
            } else {
                names.push(way["name"].as_str().expect("a name").to_owned());
            }
        }
    }
    names
}

#[test]
fn what_people_do_with_python_comes_out_as_expected() {
    let Some(python) = python() else { return };
    let scratch = Scratch::new();
    let (page, chart) = (scratch.path("page.html"), scratch.path("chart.svg"));
    let [page_name, chart_name] = [&page, &chart].map(|path| path.to_str().expect("text"));
    let all = ["pool", "executor", "gunicorn", "collector", "matrix"];
    let forms = ["--json", "--html", page_name, "--chart", chart_name];
    let outcome = run(&scratch, &mut lab(&scratch, &python, &[&all[..], &forms].concat()));
    assert_eq!(outcome.code, Some(0), "{}\n{}", String::from_utf8_lossy(&outcome.out), outcome.err);
    let ran = ran(&outcome.out);
    for way in
        ["argument", "global", "sent", "dict", "cowbell", "each", "idle", "list", "joblib", "mmap", "write", "manager"]
    {
        assert!(ran.iter().any(|name| name == way), "{way} is not among {ran:?}");
    }
    let text = |path| std::fs::read_to_string(path).expect("text");
    let (page, chart) = (text(&page), text(&chart));
    assert!(page.ends_with("</html>\n") && page.contains("each came out as expected"), "{page}");
    assert!(
        chart.starts_with("<svg ") && chart.ends_with("</svg>\n") && chart.matches("<rect ").count() > 20,
        "{chart}"
    );
    nothing_is_left(&scratch);
}

#[test]
fn servers_come_out_as_expected() {
    let Some(python) = python() else { return };
    let scratch = Scratch::new();
    let outcome = run(&scratch, &mut lab(&scratch, &python, &["servers", "--json"]));
    assert_eq!(outcome.code, Some(0), "{}\n{}", String::from_utf8_lossy(&outcome.out), outcome.err);
    let ran = ran(&outcome.out);
    assert!(ran.iter().any(|name| name == "redis writes"), "{ran:?}");
    if is_root() {
        // The setup has installed them.
        for way in ["postgres sorts", "puma compact"] {
            assert!(ran.iter().any(|name| name == way), "{way} is not among {ran:?}");
        }
    }
    nothing_is_left(&scratch);
}

/// The lab's own places are gone.
fn nothing_is_left(scratch: &Scratch) {
    let left =
        std::fs::read_dir(scratch.path("")).expect("a directory").map(|entry| entry.expect("an entry").file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with("cowbell-lab-")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_lab_that_is_told_to_end_ends_what_it_started() {
    let Some(python) = python() else { return };
    let scratch = Scratch::new();
    let running = Running::start(&scratch, &mut lab(&scratch, &python, &["gunicorn"]));
    let started = || {
        let all = Command::new("pgrep").args(["-f", &format!("gunicorn.*{}", scratch.path("").display())]).output();
        let pids = String::from_utf8(all.expect("pgrep").stdout).expect("numbers");
        (pids.lines().count() >= 2).then_some(())
    };
    eventually("gunicorn runs", &running, started);
    let told = Command::new("kill").arg(running.pid().to_string()).status().expect("kill");
    assert!(told.success());
    let outcome = running.finish();
    assert_eq!(outcome.code, Some(1), "{}", outcome.err);
    assert!(outcome.err.contains("told to end by signal 15"), "{}", outcome.err);
    let left = Command::new("pgrep").args(["-f", &scratch.path("").display().to_string()]).output().expect("pgrep");
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
    nothing_is_left(&scratch);
}

#[test]
fn nothing_of_a_lab_outlives_it_when_it_is_killed() {
    let Some(python) = python() else { return };
    let scratch = Scratch::new();
    let running = Running::start(&scratch, &mut lab(&scratch, &python, &["gunicorn"]));
    // `cowbell run`, its tracer, the program, the server and its workers.
    let all = eventually("gunicorn runs", &running, || {
        let all = below(running.pid());
        let is_server = |pid: &&i32| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains("gunicorn\0--"))
        };
        (all.iter().filter(is_server).count() >= 2).then_some(all)
    });
    assert!(all.len() >= 6, "{all:?}");
    // Opened while they live, for their numbers may be others' later. Who has ended meanwhile needs no descriptor.
    let all: Vec<_> = all.into_iter().filter_map(|pid| pidfd::open(pid).ok()).collect();
    assert!(Command::new("kill").args(["-KILL", &running.pid().to_string()]).status().expect("kill").success());
    running.finish();
    for process in all {
        let ended = pidfd::readable(process.as_fd(), Some(Duration::from_secs(200)));
        assert_eq!(ended, Ok(true), "a process outlives the lab");
    }
    let left = Command::new("pgrep").args(["-f", &scratch.path("").display().to_string()]).output().expect("pgrep");
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}

/// Lists the processes below a process.
fn below(pid: i32) -> Vec<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    children.flat_map(|child| std::iter::once(child).chain(below(child))).collect()
}

/// One of the lab's programs with these words, watched twice, each time in a new folder of the same name: the captures. The server's command has the
/// name, and processes with other commands are others.
fn watched(scratch: &Scratch, python: &Path, words: &[&str]) -> [String; 2] {
    ["1", "2"].map(|nth| {
        let folder = scratch.path("watched");
        let _absent = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).expect("a folder");
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lab/programs")).expect("the programs")
        {
            let program = entry.expect("a program");
            std::fs::copy(program.path(), folder.join(program.file_name())).expect("a copy");
        }
        let capture = scratch.path(&format!("{}-{nth}", words.join("-"))).display().to_string();
        let target = [&[python.to_str().expect("text")], words].concat();
        let mut command = cowbell(&["-q", "-o", "/dev/null", "--capture", &capture], target);
        command.current_dir(&folder).env("COWBELL", tool());
        let outcome = run(scratch, &mut command);
        assert_eq!(outcome.code, Some(0), "{}", outcome.err);
        capture
    })
}

/// The tool's answer to these words: its status, and what it said.
fn asked(scratch: &Scratch, words: &[&str]) -> (Option<i32>, String) {
    let outcome = run(scratch, Command::new(tool()).args(words));
    (outcome.code, String::from_utf8_lossy(&outcome.out).into_owned() + &outcome.err)
}

#[test]
fn a_remedy_of_the_lab_is_told_by_diff_and_kept_by_check() {
    let Some(python) = python() else { return };
    let scratch = Scratch::new();
    // A list of 400,000 numbers takes 15 MiB; as an array, 3 MiB that nobody writes. Flask's workers copy on their way out, too.
    let pool = |way| watched(&scratch, &python, &["pool.py", way, "400000", "2"]);
    let [before, after] = ["global", "numpy"].map(pool);
    let site = |kind| watched(&scratch, &python, &["site.py", "preload", kind, "reads", "1000000", "2"]);
    let [list, array] = ["list", "numpy"].map(site);
    for ([a, b], [c, d], line, budget) in
        [(&before, &after, "pool.py:12", "8M"), (&list, &array, "site_app.py:44", "40M")]
    {
        let (code, text) = asked(&scratch, &["diff", a, b, "--", c, d]);
        let first = text.split_whitespace().take(40).collect::<Vec<_>>().join(" ");
        assert!(code == Some(0) && first.starts_with("LESS: ") && first.contains("MiB less: "), "{text}");
        // Lines are estimated from few samples where the kernel hands out none, and may be too uncertain to be less.
        let is_less = text.lines().any(|row| row.contains(line) && row.contains(" less "));
        assert!(is_less || !is_root(), "{line} in {text}");
        // The number of those left out is told, and no part of anything.
        let rests: Vec<&str> = text.lines().filter(|row| row.ends_with(" more")).map(str::trim).collect();
        assert!(rests.iter().all(|rest| rest.split_whitespace().count() == 2), "{rests:?}");
        for (capture, code, says) in [(a, 1, "BROKEN: "), (b, 1, "BROKEN: "), (c, 0, "KEPT: "), (d, 0, "KEPT: ")] {
            let (status, text) = asked(&scratch, &["check", capture, "--max-copied", budget]);
            assert!(status == Some(code) && text.starts_with(says) && text.lines().count() == 1, "{text}");
        }
    }
    // The same again is no change.
    let [a, b] = &before;
    let (code, text) = asked(&scratch, &["diff", a, b, "--", b, a]);
    assert!(code == Some(0) && text.starts_with("NO CHANGE"), "{text}");
}

#[test]
fn what_is_missing_is_skipped_by_name_and_a_name_that_is_none_is_refused() {
    let scratch = Scratch::new();
    let none = scratch.path("none");
    let outcome = run(&scratch, &mut lab(&scratch, &none, &["pool", "executor"]));
    let text = String::from_utf8_lossy(&outcome.out).into_owned();
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    assert!(text.contains("skipped: there is no ") && text.contains("8 ways were skipped"), "{text}");
    assert!(text.contains("In a frozen arena"), "what needs no Python runs: {text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let outcome = run(&scratch, &mut lab(&scratch, &none, &["pools"]));
    assert_eq!(outcome.code, Some(2), "{}", outcome.err);
}
