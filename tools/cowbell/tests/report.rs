//! `cowbell report` as a user runs it: captures rendered again, and what it says of files that are none.

use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The tool that cargo built, or a copy of it where an ordinary user may run it.
fn tool() -> std::ffi::OsString {
    std::env::var_os("COWBELL_TOOL").unwrap_or_else(|| env!("CARGO_BIN_EXE_cowbell").into())
}

/// `cowbell report` without the settings of whoever runs the tests.
fn report() -> Command {
    let mut command = Command::new(tool());
    for name in
        ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COWBELL_TOP", "COWBELL_COLOR", "COWBELL_JSON", "COWBELL_OUTPUT"]
    {
        command.env_remove(name);
    }
    command.arg("report").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    report().args(arguments).output().expect("the tool can be started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs the tool and demands that it succeeds and says nothing on standard error; what it says on standard output.
fn shown(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(text(&output.stderr), "", "{arguments:?}");
    assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    text(&output.stdout)
}

/// Runs the tool and demands that it fails with a code and says `why` in one line on standard error, and nothing else.
fn refused(arguments: &[&str], code: i32, why: &str) {
    let output = run(arguments);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {err}");
    assert!(err.contains(why), "{arguments:?}: {err:?} does not say {why:?}");
    assert!(code != 1 || err.lines().count() == 1, "{arguments:?}: {err:?}");
    assert_eq!(out, "", "{arguments:?}");
}

/// A folder of one test alone, gone when the test is over.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cowbell-report-{}-{name}", std::process::id()));
        fs::create_dir(&path).expect("a temporary folder");
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("text").to_owned()
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, content).expect("a temporary file");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

const HEAP: u64 = 0x5000_0000;
const PAGE: u64 = 4096;

/// A Python job whose children read a list: 90 pages by the list's iterator, 10 by malloc, each child.
fn capture(children: u32, script: &str) -> String {
    let mut records = vec![
        json!({"header": {"format": "cowbell-capture", "version": 2, "cowbell": "0.1.0", "kernel": "6.18",
            "page_size": PAGE, "command": ["python3", script], "started_unix_ms": 1, "mode": "trace",
            "mode_reason": "", "who": "child", "stacks_every": 10, "frames": true}}),
        json!({"process": {"pid": 100, "parent": 0, "time_ns": 0, "origin": "started", "command": ["python3", script],
            "executable": null}}),
    ];
    records.push(json!({"module": {"module": 1, "path": "/usr/bin/python3.13", "device": "fe:00", "inode": 7,
        "build_id": null}}));
    for (code, offset) in [(1, 0x1000), (2, 0x1100)] {
        records.push(json!({"place": {"code": code, "module": 1, "offset": offset, "pid": 0}}));
    }
    for child in 1..=children {
        records.extend(interval(child, script));
    }
    records.push(json!({"exit": {"pid": 100, "time_ns": 900, "ended": {"exited": 3}}}));
    records.push(json!({"finish": {"time_ns": 1000, "ended": {"exited": 3}, "arming_ns": 50, "events_ns": 50,
        "stacks_ns": 0, "stops": 2}}));
    records.iter().map(|record| format!("{record}\n")).collect()
}

fn interval(child: u32, script: &str) -> Vec<Value> {
    let pid = 100 + child;
    let mapping = |start: u64, pages: u64, permissions: &str, name: &str| {
        json!({"start": start, "end": start + pages * PAGE, "permissions": permissions, "offset": 0, "name": name,
            "watched": if permissions == "rw-p" { "events" } else { "no" }})
    };
    let event = |nth: u64| {
        let (pc, stack) = if nth < 90 { (0x401000, nth.is_multiple_of(10).then_some(child)) } else { (0x401100, None) };
        let code = if nth < 90 { 1 } else { 2 };
        json!([200 + nth, HEAP + nth * PAGE, pid, pc, code, "copy", null, stack, 0])
    };
    let content = |nth: u64| {
        if nth < 90 {
            json!([HEAP + nth * PAGE, 0, 0, 0, true, 0, 0])
        } else {
            json!([HEAP + nth * PAGE, 16, 2, 0, true, 0, 0])
        }
    };
    let frame = |function: &str| json!({"function": function, "file": null, "line": null});
    vec![
        json!({"process": {"pid": pid, "parent": 100, "time_ns": 100, "origin": "forked", "command": ["python3", script],
            "executable": null}}),
        json!({"begin": {"interval": child, "pid": pid, "role": "child", "time_ns": 150, "mode": "trace", "arm_ns": 10,
            "mappings": [mapping(0x40_0000, 256, "r-xp", "/usr/bin/python3.13"), mapping(HEAP, 200, "rw-p", "[heap]")],
            "held": {"shared": 200, "exclusive": 0, "zero": 0, "file": 0, "swapped": 0}}}),
        json!({"stack": {"stack": child, "interval": child, "native": [], "language": "python", "frames":
            [{"function": "work", "file": script, "line": 2}]}}),
        json!({"source": {"file": script, "line": 2, "text": "for x in data:"}}),
        json!({"events": {"interval": child, "events": (0..100).map(event).collect::<Vec<_>>()}}),
        json!({"end": {"interval": child, "time_ns": 400, "closed": "exit", "pages": [[HEAP, 100, "copy"],
            [HEAP + 100 * PAGE, 7, "first_touch"]], "contents": (0..100).map(content).collect::<Vec<_>>(),
            "unmapped_uncounted": 0}}),
        json!({"exit": {"pid": pid, "time_ns": 500, "ended": {"signaled": 9}}}),
        json!({"symbols": {"codes": [
            {"code": 1, "frames": [frame("Py_INCREF"), frame("listiter_next")], "address": 0x1000},
            {"code": 2, "frames": [frame("_int_malloc")], "address": 0x1100}]}}),
    ]
}

#[test]
fn the_report_answers_in_its_order_how_much_where_which_code_what_changed_and_why() {
    let scratch = Scratch::new("order");
    let script = scratch.file("job.py", "def work(data):\n    for x in data:\n        pass\n");
    let file = scratch.file("capture", capture(2, &script));
    let shown = shown(&["-v", &file]);
    let mut from = 0;
    for part in [
        "COPIED: 2 children copied 800.0 KiB of the 1.6 MiB that they shared with their",
        "90 % of the copies ended as they began: nothing written there",
        "Why   Python counts references inside each object, so reading writes (90 % of",
        "Where 90 ±",
        "job.py:2",
        "for x in data:",
        "What helps",
        "numpy",
        "(saves 720.0 KiB of copies)",
        "Memory in MiB",
        "101  python3 job.py",
        "Watched for",
        "exited with 3",
        "200 pages (800.0 KiB) copied by 2 children",
        "also written, without a copy: 14 new pages",
        "by process",
        "50.0 %      101 child",
        "killed by signal 9",
        "by mapping",
        "200   100 %  heap",
        "by the code",
        "180  90.0 %  listiter_next (Py_INCREF)",
        "20  10.0 %  _int_malloc",
        "by Python line, ± points, estimated from 18 sampled stacks",
        "job.py:2",
        "for x in data:",
        "reference counts",
        "What changed on copied pages",
        "180  90.0 %  the same as the original again",
        "likely causes",
        "180  90.0 %  reference counts",
        "numpy",
        "20  10.0 %  allocator metadata",
        "fail with EIO",
        "What watching cost",
        "10.0 % of the time watched",
    ] {
        let rest = shown.get(from..).unwrap_or_default();
        let at = rest.to_lowercase().find(&part.to_lowercase());
        from += at.unwrap_or_else(|| panic!("no {part:?} after byte {from} of\n{shown}")) + 1;
    }
    assert!(!shown.contains('\u{1b}'), "no colours in a file");
    let short = self::shown(&[&file]);
    assert!(short.lines().all(|line| line.chars().count() <= 80), "{short}");
    assert!(!short.contains("listiter_next"), "functions of C are for -v: {short}");
}

#[test]
fn many_like_workers_take_a_line_each_and_no_more_than_asked_for() {
    let scratch = Scratch::new("many");
    let file = scratch.file("capture", capture(8, "/job.py"));
    let all = shown(&["-v", &file]);
    assert_eq!(all.matches("killed by signal 9").count(), 8, "{all}");
    let some = shown(&["-v", "--top", "3", &file]);
    assert_eq!(some.matches("killed by signal 9").count(), 3, "{some}");
    assert!(some.contains("5 more"), "{some}");
    let output = report().env("COWBELL_TOP", "3").args(["-v", &file]).output().expect("started");
    assert_eq!(text(&output.stdout), some);
    // Eight alike are told by their median and extremes.
    let short = shown(&[&file]);
    assert!(short.contains(" median  8 × python3 job.py ") && short.contains("  least "), "{short}");
    assert!(short.lines().count() <= 40, "{short}");
    let quiet = shown(&["-q", &file]);
    assert!(quiet.starts_with("COPIED: 8 children copied 3.1 MiB of") && quiet.lines().count() <= 6, "{quiet}");
    assert!(quiet.contains("Python counts references") && !quiet.contains("numpy"), "{quiet}");
}

#[test]
fn json_holds_the_same_figures_under_stable_names() {
    let scratch = Scratch::new("json");
    let file = scratch.file("capture", capture(2, "/job.py"));
    let json: Value = serde_json::from_str(&shown(&["--json", &file])).expect("JSON");
    assert_eq!((&json["format"], &json["version"]), (&"cowbell-report".into(), &2.into()));
    assert_eq!(json["cut"], Value::Null);
    assert_eq!(json["totals"]["copied_pages"], 200);
    assert_eq!(json["totals"]["copied_bytes"], 200 * PAGE);
    assert_eq!(json["totals"]["pages"]["first_touch"], 14);
    assert_eq!(json["intervals"][1]["when"], json!({"first_ns": 50, "half_ns": 99, "last_ns": 149}));
    assert_eq!(json["processes"][2]["parent"], 100);
    assert_eq!(json["processes"][2]["ended"], json!({"signaled": 9}));
    assert_eq!(json["functions"][0]["function"], "listiter_next");
    assert_eq!(json["script"]["lines"][0]["copied_pages_estimated"], 180);
    assert_eq!(json["contents"]["identical_pages"], 180);
    assert_eq!(json["causes"][0]["cause"], "reference_count");
    assert_eq!(json["overhead"]["share"], 0.1);
}

#[test]
fn a_truncated_capture_renders_up_to_its_last_line_and_says_so() {
    let scratch = Scratch::new("cut");
    let whole = capture(2, "/job.py");
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    let cut = |lines: &[&str], more: &str| scratch.file("capture", lines.concat() + more);
    // In the second child's end: of it only the events are known.
    let file = cut(&lines[..18], "{\"end\":{\"acc");
    let text = shown(&["-v", &file]);
    assert!(text.starts_with("This capture was cut off: it ends within line 19."), "{text}");
    assert!(text.contains("200 pages (800.0 KiB) copied by 2 children"), "{text}");
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("whose first write was reported (process 102)"), "{text}");
    let json: Value = serde_json::from_str(&shown(&["--json", &file])).expect("JSON");
    assert_eq!(json["cut"], "it ends within line 19");
    assert_eq!(json["intervals"][1]["closed"], Value::Null);
    let text = shown(&["-v", &cut(&lines[..lines.len() - 1], "")]);
    assert!(text.contains("without its last record") && text.contains("200 pages"), "{text}");
    let text = shown(&[&cut(&lines[..1], "")]);
    assert!(text.contains("cut off") && text.contains("no process was watched"), "{text}");
}

#[test]
fn what_is_no_capture_is_one_clear_line_and_code_1() {
    let scratch = Scratch::new("bad");
    let whole = capture(1, "/job.py");
    for (name, content, why) in [
        ("empty", String::new(), "not a capture of cowbell's: it is empty"),
        ("text", "hello\n".into(), "not a capture of cowbell's"),
        ("foreign", whole.replace("cowbell-capture", "gumbo"), "its format is \"gumbo\""),
        (
            "newer",
            whole.replace("\"version\":2", "\"version\":9"),
            "capture's version is 9, this program reads version 2",
        ),
        ("damaged", whole.replace("\"pid\":101", "\"pid\":\"x\""), "damaged: line 6: invalid type"),
        ("half", whole.replace("{\"exit\"", "\"exit\""), "damaged: line 12: "),
        ("twice", whole.repeat(2), "a record after the last"),
    ] {
        let file = scratch.file(name, content);
        refused(&[&file], 1, &format!("cowbell report: {file}: "));
        refused(&[&file], 1, why);
        refused(&["--json", &file], 1, why);
    }
    let zeros = scratch.path("zeros");
    fs::File::create(&zeros).and_then(|file| file.set_len(10 << 30)).expect("a sparse file");
    refused(&[&zeros], 1, "not a capture of cowbell's: its first line has no end");
    refused(&["/nowhere/capture"], 1, "/nowhere/capture: No such file or directory");
    refused(&["/"], 1, "cannot be read: Is a directory");
}

#[test]
fn wrong_usage_is_code_2() {
    refused(&[], 2, "<FILE>");
    refused(&["--top", "0", "x"], 2, "0 is not in 1..");
    refused(&["--color", "mauve", "x"], 2, "auto, always, never");
    refused(&["-q", "-v", "x"], 2, "cannot be used with");
}

#[test]
fn the_output_file_is_new_or_replaced_by_force_and_its_name_expanded() {
    let scratch = Scratch::new("output");
    let file = scratch.file("capture", capture(1, "/job.py"));
    let out = scratch.path("report-%p-%%");
    assert_eq!(shown(&["-o", &out, &file]), "", "all of it is in the file");
    let names = fs::read_dir(&scratch.0).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    let names: Vec<_> = names.filter_map(|name| name.into_string().ok()).filter(|name| name != "capture").collect();
    let [name] = &names[..] else { panic!("{names:?}") };
    let id = name.strip_prefix("report-").and_then(|name| name.strip_suffix("-%"));
    assert!(id.is_some_and(|id| id.parse::<u32>().is_ok()), "{name}");
    let existing = scratch.path(name).replace('%', "%%");
    refused(&["-o", &existing, &file], 1, "File exists (os error 17); --force replaces it");
    assert_eq!(shown(&["-o", &existing, "--force", "--json", &file]), "");
    let written = fs::read_to_string(scratch.path(name)).expect("text");
    assert!(serde_json::from_str::<Value>(&written).is_ok(), "{written}");
    assert_eq!(shown(&["-o", "-", &file]), shown(&[&file]));
    refused(&["-o", "/nowhere/report", &file], 1, "/nowhere/report: No such file or directory");
    refused(&["-o", "/", &file], 1, "/: is a directory");
    refused(&["-o", "50%", &file], 1, "% in a file name is followed by");
    refused(&["-o", "/dev/full", &file], 1, "cannot write to /dev/full: No space left on device");
    // A capture that cannot be read leaves an earlier report alone.
    refused(&["-o", &existing, "--force", "/nowhere"], 1, "/nowhere");
    assert_eq!(fs::read_to_string(scratch.path(name)).expect("text"), written);
}

#[test]
fn colours_are_where_they_are_asked_for() {
    let scratch = Scratch::new("color");
    let file = scratch.file("capture", capture(1, "/job.py"));
    let coloured =
        |command: &mut Command| text(&command.arg(&file).output().expect("started").stdout).contains('\u{1b}');
    assert!(!coloured(&mut report()), "not in a pipe");
    assert!(coloured(report().args(["--color", "always"])));
    assert!(coloured(report().env("COWBELL_COLOR", "always")));
    assert!(!coloured(report().env("COWBELL_COLOR", "always").args(["--color", "never"])));
    assert!(coloured(report().env("CLICOLOR_FORCE", "1")));
    assert!(!coloured(report().env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1")));
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let scratch = Scratch::new("pipe");
    // More than a pipe holds.
    let file = scratch.file("capture", capture(300, "/job.py"));
    let mut child =
        report().args(["--json", &file]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    drop(child.stdout.take());
    let mut err = String::new();
    child.stderr.take().expect("standard error").read_to_string(&mut err).expect("text");
    assert_eq!(err, "");
    assert_eq!(child.wait().expect("ended").code(), Some(0));
}

#[test]
fn a_capture_is_read_from_standard_input_and_from_a_pipe() {
    let whole = capture(1, "/job.py");
    let mut child =
        report().arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the tool can be started");
    child.stdin.take().expect("standard input").write_all(whole.as_bytes()).expect("read");
    let output = child.wait_with_output().expect("ended");
    assert!(text(&output.stdout).starts_with("COPIED: 1 child copied 400.0 KiB"), "{}", text(&output.stdout));
}

#[test]
fn what_a_capture_says_commands_no_terminal() {
    let scratch = Scratch::new("escape");
    let file = scratch.file("capture", capture(1, "/job\u{1b}[31m\u{7}\nred.py"));
    let shown = shown(&["-v", &file]);
    assert!(shown.contains("/job?[31m??red.py") && !shown.contains('\u{1b}') && !shown.contains('\u{7}'), "{shown}");
}

#[test]
fn a_capture_that_may_not_be_read_is_refused() {
    let scratch = Scratch::new("shut");
    let file = scratch.file("capture", capture(1, "/job.py"));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).expect("shut");
    if fs::File::open(Path::new(&file)).is_ok() {
        println!("skipped: root reads all files");
        return;
    }
    refused(&[&file], 1, "Permission denied");
}
