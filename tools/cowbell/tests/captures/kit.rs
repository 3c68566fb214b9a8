//! Parts that the tests of captures share: the tool, a place of their own, and captures of made-up jobs.

use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes in a page of these captures.
pub const PAGE: u64 = 4096;
/// The address at which their heaps begin.
pub const HEAP: u64 = 0x5000_0000;

/// The tool that cargo built, or a copy of it where an ordinary user may run it.
pub fn tool() -> Command {
    let tool = std::env::var_os("COWBELL_TOOL").unwrap_or_else(|| env!("CARGO_BIN_EXE_cowbell").into());
    let mut command = Command::new(tool);
    for name in ["CLICOLOR_FORCE", "COWBELL_TOP", "COWBELL_COLOR", "COWBELL_JSON", "COWBELL_OUTPUT", "COWBELL_MODE"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// Runs the tool: its exit status, and what it said on both streams.
pub fn ran(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = tool().args(arguments).output().expect("the tool can be started");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (status.code(), text(&stdout), text(&stderr))
}

/// Runs the tool and demands success; what it said.
pub fn shown(arguments: &[&str]) -> String {
    let (code, out, err) = ran(arguments);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{arguments:?}");
    out
}

/// A program that reads what is exported, which tools/setup unpacks below the target directory; where it is not here, that is said.
pub fn reader(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?.join("readers").join(name);
    if !path.exists() {
        println!("skipped: no {name}, which would read what is exported");
        return None;
    }
    Some(path)
}

/// Prometheus' own check of metrics finds nothing to complain of.
pub fn promtool_is_content(metrics: &str) {
    let Some(promtool) = reader("promtool") else { return };
    let mut check = Command::new(&promtool);
    let check = check.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut check = check.spawn().expect("promtool can be started");
    check.stdin.take().expect("a pipe").write_all(metrics.as_bytes()).expect("written");
    let Output { status, stdout, stderr } = check.wait_with_output().expect("an end");
    let said = [stdout, stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    assert!(status.success() && said.iter().all(String::is_empty), "{said:?} of\n{metrics}");
}

/// A folder of one test alone, gone when the test is over.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new one.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cowbell-captures-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("a temporary folder");
        Self(path)
    }

    /// The path of a file in it.
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("text").to_owned()
    }

    /// A file in it.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
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

/// A made-up child.
#[derive(Clone, Debug)]
pub struct Child {
    /// The child's id; the program that was started is 100.
    pub pid: i32,
    /// The process that forked it.
    pub parent: i32,
    /// The child's program and script.
    pub script: String,
    /// Copies that are certain, from the heap's first page on.
    pub copied: u64,
    /// The first so many of its copies are the same as their originals again.
    pub identical: u64,
    /// Copies that may have been reused pages, behind the others.
    pub doubtful: u64,
    /// Pages that went before they could be counted.
    pub uncounted: u64,
    /// The line that wrote.
    pub line: i32,
    /// The text of the line.
    pub source: String,
    /// The function that the line stands in.
    pub function: String,
    /// Every page has an event, every tenth a stack.
    pub traced: bool,
}

/// A child of the first process that copied so many pages.
pub fn child(pid: i32, copied: u64) -> Child {
    Child {
        pid,
        parent: 100,
        script: "/srv/job.py".to_owned(),
        copied,
        identical: 0,
        doubtful: 0,
        uncounted: 0,
        line: 14,
        source: "for x in data:".to_owned(),
        function: "read".to_owned(),
        traced: true,
    }
}

/// The capture of a job with these children.
pub fn capture(children: &[Child]) -> String {
    with_records(children, &[])
}

/// The same with more records before the end.
pub fn with_records(children: &[Child], more: &[Value]) -> String {
    let mode = if children.iter().all(|child| child.traced) { "trace" } else { "count" };
    let script = children.first().map_or("/srv/job.py", |child| child.script.as_str());
    let mut records = vec![
        json!({"header": {"format": "cowbell-capture", "version": 2, "cowbell": "0.1.0", "kernel": "6.18",
            "page_size": PAGE, "command": ["python3", script], "started_unix_ms": 1, "mode": mode, "mode_reason": "",
            "who": "both", "stacks_every": 10, "frames": true}}),
        json!({"process": {"pid": 100, "parent": 0, "time_ns": 0, "origin": "started", "command": ["python3", script],
            "executable": null}}),
        json!({"module": {"module": 1, "path": "/usr/bin/python3.13", "device": "fe:00", "inode": 7, "build_id": null}}),
        json!({"place": {"code": 1, "module": 1, "offset": 0x1000, "pid": 0}}),
        json!({"place": {"code": 2, "module": 1, "offset": 0x2000, "pid": 0}}),
    ];
    for (number, child) in (1..).zip(children) {
        records.extend(interval(number, child));
    }
    let frame = |function: &str| json!({"function": function, "file": null, "line": null});
    records.push(json!({"symbols": {"codes": [{"code": 1, "frames": [frame("listiter_next")], "address": 0x1000},
        {"code": 2, "frames": [frame("_PyEval_EvalFrameDefault")], "address": 0x2000}]}}));
    records.extend_from_slice(more);
    records.push(json!({"finish": {"time_ns": 10_000_000, "ended": {"exited": 0}, "arming_ns": 50, "events_ns": 50,
        "stacks_ns": 0, "stops": 2}}));
    records.iter().map(|record| format!("{record}\n")).collect()
}

fn interval(number: u32, child: &Child) -> Vec<Value> {
    let Child { pid, parent, copied, identical, doubtful, .. } = *child;
    let written = copied + doubtful;
    let mapping = |start: u64, pages: u64, permissions: &str, name: &str| {
        json!({"start": start, "end": start + pages * PAGE, "permissions": permissions, "offset": 0, "name": name,
            "watched": if permissions == "rw-p" { "events" } else { "no" }})
    };
    let class = |nth: u64| if nth < copied { "copy" } else { "copy_or_reuse" };
    let event = |nth: u64| {
        let stack = nth.is_multiple_of(10).then_some(number);
        json!([200 + 1000 * nth, HEAP + nth * PAGE, pid, 0x40_1000, 1, class(nth), null, stack, 0])
    };
    let content = |nth: u64| match nth < identical {
        true => json!([HEAP + nth * PAGE, 0, 0, 0, true, 0, 0]),
        false => json!([HEAP + nth * PAGE, 2000, 300, 0, true, 0, 0]),
    };
    let events: Vec<Value> = if child.traced { (0..written).map(event).collect() } else { Vec::new() };
    let contents: Vec<Value> = (0..copied).map(content).collect();
    let mut runs = vec![json!([HEAP, copied, "copy"])];
    if doubtful > 0 {
        runs.push(json!([HEAP + copied * PAGE, doubtful, "copy_or_reuse"]));
    }
    vec![
        json!({"process": {"pid": pid, "parent": parent, "time_ns": 100, "origin": "forked",
            "command": ["python3", child.script], "executable": null}}),
        json!({"begin": {"interval": number, "pid": pid, "role": "child", "time_ns": 150, "mode": if child.traced { "trace" } else { "count" },
            "arm_ns": 10, "mappings": [mapping(0x40_0000, 256, "r-xp", "/usr/bin/python3.13"), mapping(HEAP, 1 << 20, "rw-p", "[heap]")],
            "held": {"shared": 1 << 20, "exclusive": 0, "zero": 0, "file": 0, "swapped": 0}}}),
        json!({"stack": {"stack": number, "interval": number, "native": [1, 2], "language": "python",
            "frames": [{"function": child.function, "file": child.script, "line": child.line},
                {"function": "<module>", "file": child.script, "line": 99}]}}),
        json!({"source": {"file": child.script, "line": child.line, "text": child.source}}),
        json!({"events": {"interval": number, "events": events}}),
        json!({"end": {"interval": number, "time_ns": 5_000_000, "closed": "exit", "pages": runs, "contents": contents,
            "unmapped_uncounted": child.uncounted}}),
        json!({"exit": {"pid": pid, "time_ns": 5_000_100, "ended": {"exited": 0}}}),
    ]
}

/// A report of the library as its JSON, of a child that copied so many pages.
pub fn library_report(pid: i32, copied: u64, census: &str) -> String {
    json!({"version": 1, "pid": pid, "watch": "census", "door": null, "ended": {"exited": 0}, "census": census,
        "page_size": PAGE, "arenas": [{"name": "graph", "generation": 1, "start": HEAP, "pages": 1 << 20,
        "on_write": "copy", "copied_pages": copied, "copied": [{"start": 0, "count": copied}], "inherited_pages": 0,
        "bytes_changed": 100, "identical_pages": 5, "observed": null, "copied_unobserved": 0, "sites": []}],
        "events": [], "events_lost": 0, "trap_lost": false, "reshared_pages": 0, "executable": {"start": 0, "len": 0}})
    .to_string()
}
