//! `cowbell check`: kept, broken, or not to be told.

use crate::kit::{PAGE, Scratch, capture, child, library_report, ran, with_records};
use serde_json::{Value, json};

/// Runs a check: its exit status and its one line.
fn check(file: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let (code, out, err) = ran(&[&["check", file], arguments].concat());
    assert_eq!(err, "", "{arguments:?}");
    (code, out)
}

#[test]
fn a_budget_is_kept_or_broken_by_process_by_role_and_in_all_with_one_line() {
    let scratch = Scratch::new();
    // 1 MiB and 2 MiB in children, 512 KiB in a grandchild.
    let grandchild = crate::kit::Child { parent: 101, ..child(103, 128) };
    let file = scratch.file("c", capture(&[child(101, 256), child(102, 512), grandchild]));
    for (limit, per, code, line) in [
        (
            "2M",
            "process",
            0,
            "KEPT: process 102 (child of python3 /srv/job.py) copied 2.0 MiB of at most 2.0 MiB; 2 more keep theirs\n",
        ),
        (
            "1M",
            "process",
            1,
            "BROKEN: process 102 (child of python3 /srv/job.py) copied 2.0 MiB, and the budget is 1.0 MiB\n",
        ),
        (
            "1",
            "process",
            1,
            "BROKEN: process 102 (child of python3 /srv/job.py) copied 2.0 MiB, and the budget is 1 bytes; so do 2 more\n",
        ),
        (
            "3M",
            "role",
            0,
            "KEPT: all 2 of child of python3 /srv/job.py copied 3.0 MiB of at most 3.0 MiB; 1 more keeps theirs\n",
        ),
        ("2M", "role", 1, "BROKEN: all 2 of child of python3 /srv/job.py copied 3.0 MiB, and the budget is 2.0 MiB\n"),
        ("3.5M", "all", 0, "KEPT: all 3 processes together copied 3.5 MiB of at most 3.5 MiB\n"),
        ("3M", "all", 1, "BROKEN: all 3 processes together copied 3.5 MiB, and the budget is 3.0 MiB\n"),
    ] {
        assert_eq!(
            check(&file, &["--max-copied", limit, "--per", per]),
            (Some(code), line.to_owned()),
            "{limit} {per}"
        );
    }
    let (_, all) = check(&file, &["--max-copied", "1M", "-v"]);
    assert_eq!(
        all.lines().map(|line| line.split(' ').next().expect("a word")).collect::<Vec<_>>(),
        ["BROKEN:", "KEPT:", "KEPT:"]
    );
}

#[test]
fn copies_for_nothing_have_a_budget_of_their_own() {
    let scratch = Scratch::new();
    let idle = crate::kit::Child { identical: 100, ..child(101, 256) };
    let file = scratch.file("c", capture(&[idle]));
    assert_eq!(check(&file, &["--max-for-nothing", "400K"]).0, Some(0));
    let (code, line) = check(&file, &["--max-for-nothing", "399K"]);
    assert_eq!(code, Some(1));
    assert!(line.starts_with("BROKEN: process 101") && line.contains("copied for nothing 400.0 KiB"), "{line}");
    assert_eq!(check(&file, &["--max-copied", "2M", "--max-for-nothing", "0"]).0, Some(1));
}

#[test]
fn what_a_child_allocated_has_a_budget_and_is_unknown_where_it_was_not_added_up() {
    let scratch = Scratch::new();
    let memory = |pid: i32, new: u64| {
        let pages = json!({"inherited": 1, "inherited_alone": 0, "copied": 0, "copied_or_reused": 0, "copied_of_file": 0,
            "new": new, "file": 0, "shared_mapping": 0});
        json!({"memory": {"pid": pid, "time_ns": 1, "name": "x", "command": ["x"], "pages": pages, "kernel": null,
            "page_tables": 0, "resident_max": 0}})
    };
    let children = [child(101, 10), child(102, 10)];
    // The first process loaded the data: that is no growth.
    let records = [memory(100, 100_000), memory(101, 256), memory(102, 512)];
    let file = scratch.file("c", with_records(&children, &records));
    assert_eq!(check(&file, &["--max-new", "2M"]).0, Some(0));
    let (code, line) = check(&file, &["--max-new", "1M"]);
    assert!(
        code == Some(1) && line.starts_with("BROKEN: process 102") && line.contains("ended with new memory of 2.0 MiB"),
        "{line}"
    );
    let file = scratch.file("d", with_records(&children, &records[..2]));
    let (code, all) = check(&file, &["--max-new", "1M", "-v"]);
    assert_eq!(code, Some(3), "{all}");
    assert!(all.contains("CANNOT TELL: process 102") && all.contains("KEPT: process 101"), "{all}");
}

#[test]
fn what_lies_between_the_bounds_cannot_be_told_and_has_its_own_status() {
    let scratch = Scratch::new();
    let of = |change: &dyn Fn(&mut crate::kit::Child)| {
        let mut one = child(101, 100);
        change(&mut one);
        scratch.file("c", capture(&[one]))
    };
    let kib = |pages: u64| format!("{}K", pages * PAGE / 1024);
    for file in [of(&|one| one.doubtful = 50), of(&|one| one.uncounted = 50)] {
        assert_eq!(check(&file, &["--max-copied", &kib(150)]).0, Some(0));
        assert_eq!(check(&file, &["--max-copied", &kib(99)]).0, Some(1));
        let (code, line) = check(&file, &["--max-copied", &kib(149)]);
        assert_eq!(code, Some(3), "{line}");
        assert!(line.starts_with("CANNOT TELL: process 101"), "{line}");
        assert!(line.contains("at least 400.0 KiB, at most 600.0 KiB, and the budget is 596.0 KiB"), "{line}");
    }
    // A capture that was cut off has no upper bound, but a lower one.
    let whole = capture(&[child(101, 100)]);
    let cut: String = whole.split_inclusive('\n').take(whole.lines().count() - 1).collect();
    let file = scratch.file("cut", cut);
    assert_eq!(check(&file, &["--max-copied", "1G"]).0, Some(3));
    assert_eq!(check(&file, &["--max-copied", "1K"]).0, Some(1));
    // A run in which some processes were not watched cannot be told either: of those that were, each is known.
    let gap = json!({"gap": {"time_ns": 1, "pid": 107, "what": "too_many_children", "detail": ""}});
    let file = scratch.file("many", with_records(&[child(101, 100)], &[gap]));
    let (code, line) = check(&file, &["--max-copied", "1G"]);
    assert_eq!(code, Some(3), "{line}");
    assert!(line.contains("processes that ran unwatched") && line.contains("beyond --max-children"), "{line}");
    let (code, line) = check(&file, &["--max-copied", "1G", "--per", "all"]);
    assert_eq!((code, line.contains("beyond --max-children")), (Some(3), true), "{line}");
    let refused = json!({"gap": {"time_ns": 1, "pid": 101, "what": "not_armed", "detail": "seccomp"}});
    let file = scratch.file("refused", with_records(&[child(101, 100), child(102, 100)], &[refused]));
    let (code, all) = check(&file, &["--max-copied", "1G", "-v"]);
    assert_eq!(code, Some(3));
    assert!(all.contains("CANNOT TELL: process 101") && all.contains("KEPT: process 102"), "{all}");
    // Nobody looked at that process at all.
    let never = json!({"gap": {"time_ns": 1, "pid": 107, "what": "not_armed", "detail": "traced already"}});
    let file = scratch.file("never", with_records(&[child(101, 100)], &[never]));
    for per in ["process", "all"] {
        let (code, line) = check(&file, &["--max-copied", "1G", "--per", per]);
        assert_eq!((code, line.contains("could not be watched")), (Some(3), true), "{per}: {line}");
    }
}

#[test]
fn budgets_come_from_a_file_and_what_is_wrong_with_it_is_said() {
    let scratch = Scratch::new();
    let file = scratch
        .file("c", capture(&[child(101, 256), crate::kit::Child { script: "/srv/b.py".into(), ..child(102, 512) }]));
    let toml = "[[budget]]\nmax_copied = \"1M\"\ncommand = \"job.py\"\n\n[[budget]]\nper = \"all\"\nmax_copied = 3145728\nmax_for_nothing = \"1M\"\n";
    let json = "{\"budget\": [{\"max_copied\": \"1M\", \"command\": \"job.py\"}, {\"per\": \"all\", \"max_copied\": 3145728}]}";
    for budgets in [scratch.file("b.toml", toml), scratch.file("b.json", json)] {
        assert_eq!(check(&file, &["--budgets", &budgets]).0, Some(0));
    }
    let tight = scratch.file("tight.toml", "[[budget]]\nmax_copied = \"1M\"\ncommand = \"b.py\"\n");
    let (code, line) = check(&file, &["--budgets", &tight]);
    assert!(code == Some(1) && line.starts_with("BROKEN: process 102 (child of python3 /srv/b.py)"), "{line}");
    // A name that is misspelt must not pass for a budget that is kept.
    let nobody = scratch.file("nobody.toml", "[[budget]]\nmax_copied = \"1M\"\ncommand = \"jobs.py\"\n");
    let (code, line) = check(&file, &["--budgets", &nobody]);
    assert!(code == Some(3) && line.contains("no process that was watched has such a command"), "{line}");
    for (content, why) in [
        ("[[budget]]\nmax_copid = 1\n", "unknown field `max_copid`"),
        ("[[budget]]\ncommand = \"x\"\n", "budget 1: it has none of max_copied, max_for_nothing and max_new"),
        ("[[budget]]\nmax_copied = \"10MB\"\n", "budget 1: a size is"),
        ("budget = []\n", "it has no budget"),
        ("[[budget]\n", "TOML parse error"),
    ] {
        let budgets = scratch.file("wrong.toml", content);
        let (code, out, err) = ran(&["check", &file, "--budgets", &budgets]);
        assert_eq!((code, out.as_str(), err.lines().count()), (Some(4), "", 1), "{err}");
        assert!(err.contains(why) && err.contains("wrong.toml"), "{err}");
    }
    let (code, _, err) = ran(&["check", "/nowhere", "--max-copied", "1M"]);
    assert_eq!((code, err.as_str()), (Some(4), "cowbell check: /nowhere: No such file or directory (os error 2)\n"));
    assert_eq!(ran(&["check", &file]).0, Some(2), "no budget");
    assert_eq!(ran(&["check", &file, "--max-copied", "10MB"]).0, Some(2));
}

#[test]
fn junit_github_and_json_say_the_same_and_hostile_names_do_no_harm() {
    let scratch = Scratch::new();
    let script = "</script>]]>\"'&\u{202e}evil\u{1b}[31m\n::error::x %0A".to_owned();
    let file =
        scratch.file("c", capture(&[crate::kit::Child { script, doubtful: 1, ..child(101, 256) }, child(102, 1)]));
    let run = |format: &str, limit: &str| check(&file, &["--max-copied", limit, "--format", format]);
    let (code, xml) = run("junit", "1M");
    assert_eq!(code, Some(3));
    assert!(xml.contains("<testsuites name=\"cowbell\" tests=\"2\" failures=\"0\" errors=\"1\">"), "{xml}");
    assert!(xml.contains("<error type=\"cannot_tell\" message=\"process 101"), "{xml}");
    assert!(xml.contains("&lt;/script&gt;]]&gt;&quot;&#39;&amp;?evil?[31m?::error::x %0A"), "{xml}");
    let (code, xml) = run("junit", "1K");
    assert_eq!(code, Some(1));
    assert_eq!(xml.matches("<failure type=\"broken\"").count(), 2, "{xml}");
    let (_, github) = run("github", "1K");
    let lines: Vec<&str> = github.lines().collect();
    assert_eq!(lines.len(), 3, "{github}");
    assert!(
        lines[0].starts_with("::error title=cowbell budget broken::process 101 (child of python3 </script>"),
        "{github}"
    );
    assert!(lines[0].contains("?::error::x %250A") && lines[2].starts_with("BROKEN: "), "{github}");
    assert!(!github.contains('\u{1b}') && !github.contains('\u{202e}'), "{github}");
    let (_, document) = run("json", "1M");
    let document: Value = serde_json::from_str(&document).expect("JSON");
    assert_eq!((&document["format"], &document["version"]), (&"cowbell-check".into(), &1.into()));
    assert_eq!(document["outcome"], "cannot_tell");
    assert_eq!(document["judged"][0]["measured_bytes"], json!({"least": 256 * PAGE, "most": 257 * PAGE}));
    // A command of a million characters is told by its beginning.
    let long = crate::kit::Child { script: "x".repeat(1 << 20), ..child(101, 256) };
    let file = scratch.file("long", capture(&[long]));
    assert!(check(&file, &["--max-copied", "1K"]).1.len() < 300);
}

#[test]
fn reports_of_the_library_are_checked_too() {
    let scratch = Scratch::new();
    let reports = library_report(101, 256, "last") + "\n" + &library_report(102, 10, "last");
    let file = scratch.file("r.json", &reports);
    assert_eq!(check(&file, &["--max-copied", "1M"]).0, Some(0));
    assert_eq!(check(&file, &["--max-copied", "1000K"]).0, Some(1));
    assert_eq!(check(&file, &["--max-for-nothing", "19K"]).0, Some(1));
    let file = scratch.file("l.json", library_report(101, 256, "living"));
    assert_eq!(check(&file, &["--max-copied", "1M"]).0, Some(3), "it may have copied more since");
    let file = scratch.file("v.json", reports.replace("\"version\":1", "\"version\":9"));
    let (code, _, err) = ran(&["check", &file, "--max-copied", "1M"]);
    assert!(code == Some(4) && err.contains("version 9"), "{err}");
}
