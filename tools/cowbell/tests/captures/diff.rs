//! `cowbell diff`: the right sentence, and noise told from change.

use crate::kit::{Child, PAGE, Scratch, capture, child, library_report, ran, shown, tool};
use serde_json::Value;

fn document(arguments: &[&str]) -> Value {
    serde_json::from_str(&shown(&[&["diff", "--json"], arguments].concat())).expect("JSON")
}

#[test]
fn one_run_on_each_side_differs_and_noise_is_unknown() {
    let scratch = Scratch::new();
    let workers = |copied| [child(101, copied), child(102, copied), child(103, copied)];
    let before = scratch.file("before", capture(&workers(25_600)));
    let other = |one: Child| Child { line: 20, source: "total = 0".to_owned(), ..one };
    let after = scratch.file("after", capture(&workers(1024).map(other)));
    let text = shown(&["diff", &before, &after]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "DIFFERENT: each child of python3 /srv/job.py copied 96.0 MiB less: 100.0 MiB");
    assert_eq!(lines[1], "before, 4.0 MiB after");
    assert_eq!(lines[2], "GONE: line 14 of job.py copies nothing that was sampled any more: for x in data:");
    assert!(text.contains("noise is unknown"), "{text}");
    assert!(text.contains("-96.0 %"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let json = document(&[&before, &after]);
    assert_eq!((&json["format"], &json["version"]), (&"cowbell-diff".into(), &1.into()));
    assert_eq!(json["roles"][0]["change"]["difference_bytes"], -(24_576 * PAGE as i64));
    assert_eq!(json["roles"][0]["change"]["verdict"], "noise_unknown");
    assert_eq!(json["roles"][0]["processes_before"], 3);
    assert_eq!(json["lines"][0]["gone"], true);
}

#[test]
fn a_line_is_known_again_where_it_moved_and_where_its_file_was_renamed() {
    let scratch = Scratch::new();
    let before = scratch.file("before", capture(&[child(101, 1000)]));
    for script in ["/srv/job.py", "/srv/faster.py"] {
        let moved = Child { line: 40, script: script.to_owned(), ..child(101, 100) };
        let after = scratch.file("after", capture(&[moved]));
        let text = shown(&["diff", &before, &after]);
        assert!(!text.contains("GONE"), "{text}");
        let json = document(&[&before, &after]);
        let lines = json["lines"].as_array().expect("lines");
        assert_eq!(lines.len(), 1, "{json}");
        assert_eq!(
            (&lines[0]["line"], &lines[0]["change"]["difference_bytes"]),
            (&40.into(), &(-900 * PAGE as i64).into())
        );
    }
}

#[test]
fn several_runs_of_each_side_tell_change_from_noise_by_role() {
    let scratch = Scratch::new();
    let run = |name: &str, children: u64, grandchild: u64| {
        let grandchild = Child { parent: 101, script: "/srv/sub.py".to_owned(), ..child(103, grandchild) };
        scratch.file(name, capture(&[child(101, children), child(102, children), grandchild]))
    };
    let before = [run("b1", 1000, 300), run("b2", 1010, 303), run("b3", 1005, 297)];
    let after = [run("a1", 1007, 330), run("a2", 1001, 332), run("a3", 1009, 328)];
    let arguments: Vec<&str> =
        before.iter().map(String::as_str).chain(["--"]).chain(after.iter().map(String::as_str)).collect();
    let text = shown(&[&["diff"][..], &arguments].concat());
    assert!(text.starts_with("MORE: 2 forks below python3 /srv/sub.py copied 120.0 KiB more"), "{text}");
    assert!(
        !text.contains("DIFFERENT") && text.contains("noise is told from change by 3 runs before and 3 runs after"),
        "{text}"
    );
    let json = document(&arguments);
    let verdicts: Vec<_> =
        json["roles"].as_array().expect("roles").iter().map(|role| role["change"]["verdict"].clone()).collect();
    assert_eq!(verdicts, ["more", "same"], "{json}");
    let same: Vec<&str> =
        before.iter().map(String::as_str).chain(["--"]).chain(before.iter().rev().map(String::as_str)).collect();
    let text = shown(&[&["diff", "-q"][..], &same].concat());
    assert!(text.starts_with("NO CHANGE: all together copied"), "{text}");
}

#[test]
fn what_cannot_be_compared_is_said() {
    let scratch = Scratch::new();
    let before = scratch.file("b", capture(&[child(101, 1000)]));
    let counted = scratch.file("a", capture(&[Child { traced: false, ..child(101, 100) }]));
    let text = shown(&["diff", &before, &counted]);
    assert!(text.contains("different modes") && !text.contains("GONE"), "{text}");
    // Pages that were not counted after may make up for what is less.
    let doubtful = scratch.file("d", capture(&[Child { uncounted: 2000, ..child(101, 100) }]));
    let text = shown(&["diff", &before, &before, "--", &doubtful, &doubtful]);
    assert!(text.starts_with("CANNOT TELL: child of python3 /srv/job.py copied"), "{text}");
    let pages = scratch.file("p", capture(&[child(101, 100)]).replace("\"page_size\":4096", "\"page_size\":16384"));
    let (code, _, err) = ran(&["diff", &before, &pages]);
    assert!(code == Some(1) && err.contains("different page sizes"), "{err}");
    let (code, _, err) = ran(&["diff", &before, &before, &before]);
    assert!(code == Some(1) && err.contains("behind --"), "{err}");
    let library =
        [scratch.file("l1", library_report(101, 1000, "last")), scratch.file("l2", library_report(7, 100, "last"))];
    let text = shown(&["diff", &library[0], &library[1]]);
    assert!(text.starts_with("DIFFERENT:") && text.contains("3.5 MiB less"), "{text}");
}

/// A parent of 16 MiB forks two children, which write to pages of it, one of which forks a grandchild that writes to others.
const JOB: &str = "
import os, sys
data = bytearray(16 << 20)
for at in range(0, len(data), 4096): data[at] = 1
def touch(first, pages):
    for at in range(first << 12, (first + pages) << 12, 4096): data[at] = 2
def fork(work):
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    os.waitpid(pid, 0)
def first():
    touch(0, 1000)
    fork(lambda: touch(2000, int(sys.argv[1])))
fork(first)
fork(first)
";

#[test]
fn ten_repeats_are_no_change_and_five_percent_more_in_one_role_is_found_ten_times() {
    let scratch = Scratch::new();
    let job = scratch.file("job.py", JOB);
    let repeat = |name: &str, pages: &str| -> Vec<String> {
        (0..10)
            .map(|nth| {
                let capture = scratch.path(&format!("{name}{nth}"));
                let watched =
                    ["run", "--mode", "count", "--who", "child", "-q", "-o", "/dev/null", "--capture", &capture];
                let ran = tool().args(watched).args(["--", "/usr/bin/python3", "-S", "-E", &job, pages]).output();
                let ran = ran.expect("started");
                assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
                capture
            })
            .collect()
    };
    let (plain, planted) = (repeat("plain", "1000"), repeat("planted", "1050"));
    for nth in 0..10 {
        // Three runs of each side, another three each time.
        let three = |of: &[String], from: usize| (0..3).map(|i| of[(nth + from + i) % 10].clone()).collect::<Vec<_>>();
        let diff = |before: Vec<String>, after: Vec<String>| {
            let mut arguments = before;
            arguments.push("--".to_owned());
            arguments.extend(after);
            document(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let same = diff(three(&plain, 0), three(&plain, 5));
        let verdicts = |json: &Value| -> Vec<(u64, String)> {
            let of = |role: &Value| {
                let depth = role["role"]["depth"].as_u64().expect("a depth");
                (depth, role["change"]["verdict"].as_str().expect("a verdict").to_owned())
            };
            json["roles"].as_array().expect("roles").iter().map(of).collect()
        };
        assert!(verdicts(&same).iter().all(|(_, verdict)| verdict == "same"), "{nth}: {same:#}");
        let more = diff(three(&plain, 0), three(&planted, 0));
        let mut found = verdicts(&more);
        found.sort();
        assert_eq!(found, [(1, "same".to_owned()), (2, "more".to_owned())], "{nth}: {more:#}");
    }
}
