//! `cowbell diff`: the right sentence, and noise told from change.

use crate::kit::{Child, PAGE, Scratch, capture, child, library_report, ran, shown, tool, with_records};
use serde_json::{Value, json};

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
    assert_eq!(lines[0], "DIFFERENT: on average each child of python3 /srv/job.py copied 96.0 MiB less:");
    assert_eq!(lines[1], "100.0 MiB before, 4.0 MiB after");
    assert_eq!(lines[2], "GONE: no sample shows line 14 of job.py copying any more: for x in data:");
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
fn a_line_is_not_gone_where_it_may_be_another_now_or_could_not_be_seen() {
    let scratch = Scratch::new();
    let before = scratch.file("before", capture(&[child(101, 1000)]));
    // An edit that changed the line, and the file's name, too.
    for script in ["/srv/job.py", "/srv/faster.py"] {
        let edited =
            Child { line: 15, source: "for item in data:".to_owned(), script: script.to_owned(), ..child(101, 900) };
        let after = scratch.file("after", capture(&[edited]));
        let text = shown(&["diff", &before, &after]);
        assert!(
            !text.contains("\nGONE") && text.contains("\nPERHAPS GONE: no sample shows line 14 of job.py"),
            "{text}"
        );
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(&format!("may be {}:15 now", script.trim_start_matches("/srv/"))), "{text}");
        let json = document(&[&before, &after]);
        let lines = json["lines"].as_array().expect("lines");
        assert!(lines.iter().all(|line| line["gone"] == false), "{json}");
        assert!(lines.iter().any(|line| line["perhaps_now"].is_string()), "{json}");
    }
    // No stack of the run after has a line of a script, as where its interpreter is not known.
    let blind = capture(&[child(101, 900)])
        .lines()
        .filter(|line| !line.starts_with("{\"stack\""))
        .collect::<Vec<_>>()
        .join("\n");
    let text = shown(&["diff", &before, &scratch.file("blind", blind + "\n")]);
    assert!(!text.contains("GONE"), "{text}");
    let little = scratch.file("little", capture(&[Child { traced: true, ..child(101, 0) }]));
    let text = shown(&["diff", &before, &little]);
    assert!(
        text.contains("\nGONE: no sample shows line 14"),
        "nothing was copied that could have been sampled: {text}"
    );
}

#[test]
fn what_ran_unwatched_may_be_of_a_role_that_a_run_lacks_or_has() {
    let scratch = Scratch::new();
    let beyond = json!({"gap": {"time_ns": 5, "pid": 100, "what": "too_many_children", "detail": "no more"}});
    let both = capture(&[child(101, 1000), Child { parent: 101, ..child(102, 1000) }]);
    let before = scratch.file("before", &both);
    for (name, more, word) in [("whole", vec![], "LESS"), ("beyond", vec![beyond.clone()], "CANNOT TELL")] {
        let after = scratch.file(name, with_records(&[child(101, 1000)], &more));
        let text = shown(&["diff", &before, &before, "--", &after, &after]);
        let said = format!("{word}: 2 forks below python3 /srv/job.py copied 3.9 MiB before; none was");
        assert!(text.starts_with(&said), "{name}: {text}");
    }
    // A capture that was cut off.
    let cut: String = capture(&[child(101, 1000)])
        .lines()
        .filter(|line| !line.contains("\"finish\""))
        .map(|line| format!("{line}\n"))
        .collect();
    let cut = scratch.file("cut", cut);
    let text = shown(&["diff", &before, &before, "--", &cut, &cut]);
    assert!(text.starts_with("CANNOT TELL: 2 forks below"), "{text}");
    // Others of a role that was played may have copied less, or more.
    let after = scratch.file("more", with_records(&[child(101, 2000)], &[beyond.clone(), beyond]));
    let text = shown(&["diff", &before, &before, "--", &after, &after]);
    assert!(text.contains("CANNOT TELL: child of python3 /srv/job.py copied 3.9 MiB more"), "{text}");
}

#[test]
fn where_bounds_are_open_nothing_is_told_of_parts_and_no_change_is_one_as_counted() {
    let scratch = Scratch::new();
    let before = scratch.file("b", capture(&[child(101, 1000)]));
    // A tenth of it in doubt.
    let doubtful = scratch.file("d", capture(&[Child { uncounted: 100, ..child(101, 1000) }]));
    let text = shown(&["diff", &before, &before, "--", &doubtful, &doubtful]);
    assert!(text.starts_with("NO CHANGE as counted: all together copied 3.9 MiB before and"), "{text}");
    assert!(text.contains("; what could not be seen may\n") || text.contains("could not be seen may differ"), "{text}");
    let text = shown(&["diff", &before, &before, "--", &before, &before]);
    assert!(text.starts_with("NO CHANGE: all together"), "{text}");
    // One run of a side tells as little.
    let doubtful = scratch.file("e", capture(&[Child { uncounted: 2000, ..child(101, 100) }]));
    let text = shown(&["diff", &before, &doubtful]);
    assert!(text.starts_with("CANNOT TELL: child of"), "{text}");
    let json = document(&[&before, &before, "--", &doubtful, &doubtful]);
    for part in ["causes", "mappings", "lines", "functions"] {
        let verdicts: Vec<_> =
            json[part].as_array().expect("a table").iter().map(|row| &row["change"]["verdict"]).collect();
        assert!(
            !verdicts.is_empty() && verdicts.iter().all(|verdict| **verdict == "bounds_overlap"),
            "{part}: {verdicts:?}"
        );
    }
}

#[test]
fn a_report_of_the_library_tells_no_kernel() {
    let scratch = Scratch::new();
    let report = scratch.file("l", library_report(101, 1000, "last"));
    let counted = scratch.file("c", capture(&[Child { traced: false, ..child(101, 100) }]));
    let other = scratch.file("o", capture(&[Child { traced: false, ..child(101, 100) }]).replace("6.18", "6.12"));
    assert!(!shown(&["diff", &report, &counted]).contains("different kernels"));
    assert!(shown(&["diff", &other, &counted]).contains("different kernels"));
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
