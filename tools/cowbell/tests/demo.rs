//! `cowbell demo` and `cowbell doctor` as a user runs them: what they print, and how they fail.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn cowbell(arguments: &[&str]) -> Output {
    let output = Command::new(tool()).args(arguments).stdin(Stdio::null()).output();
    output.expect("the tool can be started")
}

/// The tool that cargo built, or a copy of it where an ordinary user may run it.
fn tool() -> std::ffi::OsString {
    std::env::var_os("COWBELL_TOOL").unwrap_or_else(|| env!("CARGO_BIN_EXE_cowbell").into())
}

/// A file of this test alone, gone when the test is over.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, content: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cowbell-{}-{name}", std::process::id()));
        std::fs::write(&path, content).expect("a temporary file");
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs the tool and demands that it fails with a code and says `why` on standard error, and nothing else.
fn refused(arguments: &[&str], code: i32, why: &str) {
    let output = cowbell(arguments);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {err}");
    assert!(err.contains(why), "{arguments:?}: {err:?} does not say {why:?}");
    assert_eq!(out, "", "{arguments:?}");
}

fn demo_json(arguments: &[&str]) -> Value {
    let output = cowbell(&[&["demo", "--json"], arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "", "no progress bar where there is no terminal");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The watches that this user and kernel have.
fn watches() -> Vec<String> {
    let doctor: Value = serde_json::from_slice(&cowbell(&["doctor", "--json"]).stdout).expect("JSON");
    let watches = doctor["watches"].as_object().expect("an object");
    let has = |name: &&String| watches[*name]["verdict"] != "missing";
    watches.keys().filter(has).cloned().collect()
}

#[test]
fn the_doctor_breaks_its_lines_but_for_commands() {
    let said = text(&cowbell(&["doctor"]).stdout);
    let is_command = |line: &&str| line.trim_start().starts_with("try ");
    let long: Vec<&str> = said.lines().filter(|line| line.chars().count() > 80 && !is_command(line)).collect();
    assert!(said.contains("Commands:") && long.is_empty(), "{long:#?}");
}

#[test]
fn the_name_of_a_file_commands_no_terminal() {
    let edges = Scratch::new("edges\u{1b}[31m\u{7}", "1 2\n2 1\n");
    let output = cowbell(&["demo", "--edges", edges.path().to_str().expect("text"), "--workers", "1"]);
    let out = text(&output.stdout);
    assert!(output.status.success() && out.starts_with("graph: /"), "{out}");
    assert!(!out.contains(['\u{1b}', '\u{7}']) && out.contains("edges?[31m?, 2 vertices, 2 edges"), "{out}");
}

#[test]
fn a_command_is_not_said_to_work_wholly_where_what_it_rests_on_does_not() {
    let doctor: Value = serde_json::from_slice(&cowbell(&["doctor", "--json"]).stdout).expect("JSON");
    let faults = &doctor["features"]["page_faults"];
    assert!(faults["verdict"].is_string(), "{doctor}");
    let command = &doctor["commands"]["run --mode faults"];
    assert!(command["verdict"] != "works" || faults["verdict"] == "works", "{command} and {faults}");
    let is_limited = faults["verdict"] == "limited" && command["verdict"] == "limited";
    assert!(!is_limited || command["why"] == faults["why"], "{command} and {faults}");
}

/// The doctor's words about a process that is started by a command; `None` where that cannot be.
fn doctor_under(command: &[&str], script: &str) -> Option<String> {
    let output = Command::new(command[0]).args(&command[1..]).args(["sh", "-c", script]).output().ok()?;
    let said = text(&output.stdout);
    if !said.starts_with("kernel ") {
        println!("skipped: {command:?}: {}", text(&output.stderr));
        return None;
    }
    Some(said.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[test]
fn the_doctor_takes_no_place_for_a_fault_of_the_kernel_or_a_security_module() {
    let copy = Scratch::new("doctor", "");
    std::fs::copy(tool(), copy.path()).expect("a copy of the tool");
    let doctor = format!("exec {} doctor", copy.path().display());
    if let Some(said) = doctor_under(&["unshare", "--user", "--map-root-user"], &doctor) {
        assert!(
            said.contains("EVENT_FORK MISSING a forked child stays armed why it takes CAP_SYS_PTRACE in the first"),
            "{said}"
        );
        assert!(said.contains("page frames need root (CAP_SYS_ADMIN in the first user namespace)"), "{said}");
        assert!(!said.contains("the call userfaultfd is refused"), "{said}");
    }
    if let Some(said) = doctor_under(&["unshare", "--mount"], &format!("umount -l /sys && {doctor}")) {
        assert!(said.contains("why not known: /sys is not mounted"), "{said}");
        assert!(!said.contains("this kernel has no huge pages"), "{said}");
    }
    // A process whose user may not read the program's file is root's.
    std::fs::set_permissions(copy.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).expect("its owner may");
    let nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"];
    if let Some(said) = doctor_under(&nobody, &doctor) {
        assert!(
            said.contains(
                "/proc/PID/pagemap MISSING which pages are copies, by a word for each page why this process is closed"
            ),
            "{said}"
        );
        assert!(!said.contains("security module"), "{said}");
    }
}

#[test]
fn a_reader_copies_nothing_a_counter_copies_in_vain_a_writer_copies_what_it_writes() {
    for watch in watches() {
        let demo = demo_json(&["--size", "2M", "--watch", &watch]);
        assert_eq!((&demo["format"], &demo["version"]), (&"cowbell-demo".into(), &2.into()));
        let workers = demo["workers"].as_array().expect("workers");
        let arena = |nth: usize| &workers[nth]["report"]["arenas"][0];
        assert_eq!(arena(0)["copied_pages"], 0, "{watch}: the reader");
        let (copied, identical) = (&arena(1)["copied_pages"], &arena(1)["identical_pages"]);
        assert!(copied.as_u64().expect("a number") > 50, "{watch}: the counter writes every count it uses");
        assert_eq!(copied, identical, "{watch}: the counter's copies are the same again");
        assert_eq!(arena(2)["bytes_changed"], 4, "{watch}: the writer sets one byte of each of four cells");
        assert_eq!(arena(2)["identical_pages"], 0);
        for nth in 1..3 {
            assert_eq!(workers[nth]["paths"], workers[0]["paths"], "{watch}: all find the same");
        }
        if ["faults", "trap", "monitor"].contains(&watch.as_str()) {
            let code = &workers[1]["code"][0];
            assert!(code["line"].as_str().is_some_and(|line| line.contains("demo/graph.rs:")), "{watch}: {code}");
            assert_eq!(&code["pages"], copied, "{watch}: all of it by one line");
            assert!(workers[2]["code"][0]["function"].as_str().is_some_and(|name| name.contains("mark")), "{watch}");
        }
        for measured in demo["measured"]["watches"].as_array().expect("measured") {
            assert!(measured["ns_per_page"].is_number() || measured["error"].is_string(), "{measured}");
        }
    }
}

#[test]
fn an_edge_list_is_read_and_searched() {
    // 1 -> 2 -> 3 -> 4, 1 -> 3; 9 stands alone but for its own edge.
    let edges = Scratch::new("edges", "# a comment\n1 2\n2\t3\n3 4\n1 3\n\n9 9\n");
    let file = edges.path().to_str().expect("text");
    let demo = demo_json(&["--edges", file, "--watch", "census", "--workers", "1"]);
    assert_eq!(demo["graph"]["vertices"], 5);
    assert_eq!(demo["graph"]["edges"], 5);
    // From 1: 4 reached, longest 2, total 1+1+2; from 2: 3, 2, 1+2; from 3: 2, 1, 1; from 9: 1, 0, 0.
    let paths = &demo["workers"][0]["paths"];
    assert_eq!((&paths["reached"], &paths["longest"], &paths["total"]), (&10.into(), &2.into(), &8.into()));
}

#[test]
fn text_shows_what_each_worker_copied_and_why() {
    let output = cowbell(&["demo", "--size", "2M", "--watch", "census"]);
    let shown = text(&output.stdout);
    for part in
        ["worker 0, the reader", "all of it is still shared", "as reference counts do", "a write that copies a page"]
    {
        assert!(shown.contains(part), "{part:?} in {shown}");
    }
}

#[test]
fn bad_input_is_one_clear_line_and_an_exit_code() {
    refused(&["demo", "--workers", "0"], 2, "0 is not in 1..=1000");
    refused(&["demo", "--watch", "telescope"], 2, "not one of census, async, faults, trap, monitor");
    refused(&["demo", "--size", "many"], 2, "a size is a number of bytes");
    refused(&["demo", "--size", "900G"], 1, "is more than there is: this machine has");
    refused(&["demo", "--edges", "/nowhere/edges"], 1, "/nowhere/edges: No such file or directory");
    refused(&["demo", "--edges", "/"], 1, "Is a directory");
    for (name, content, why) in [
        ("three", "1 2\n1 2 3\n", ":2: two ids expected, not \"1 2 3\""),
        ("words", "# ids\n\nalpha beta\n", ":3: \"alpha\" is no id"),
        ("empty", "# nothing\n", "no edges in it"),
    ] {
        let file = Scratch::new(name, content);
        refused(&["demo", "--edges", file.path().to_str().expect("text")], 1, why);
    }
    refused(&[], 2, "Usage: cowbell");
}

#[test]
fn a_limit_on_addresses_is_a_clear_error() {
    // 300 MiB of addresses: enough for the program, not for the arena.
    let limited = Command::new("sh")
        .args(["-c", "ulimit -v 307200; exec \"$0\" demo --size 200M"])
        .arg(tool())
        .output()
        .expect("sh");
    assert_eq!(limited.status.code(), Some(1), "{}", text(&limited.stderr));
    assert!(text(&limited.stderr).contains("Cannot allocate memory"), "{}", text(&limited.stderr));
}

#[test]
fn a_memory_limit_hit_while_building_is_a_clear_error_and_leaves_no_process() {
    // Read from a file, so that only building meets the limit, at one place after the other.
    let mut list = String::new();
    for vertex in 0..400_000u64 {
        list += &format!("{vertex} {}\n", vertex / 2);
    }
    let edges = Scratch::new("many", &list);
    for mebibytes in [30, 40, 64, 90, 120, 140, 160, 180] {
        let Some(group) = Group::new(mebibytes << 20) else {
            println!("skipped: this user may not make a control group with a memory limit");
            return;
        };
        let script = format!("echo $$ > {}/cgroup.procs; exec \"$0\" demo --edges \"$1\"", group.path.display());
        let limited = Command::new("sh").args(["-c", &script]).arg(tool()).arg(edges.path()).output().expect("sh");
        let err = text(&limited.stderr);
        assert_eq!(limited.status.code(), Some(1), "{mebibytes} MiB: {err}");
        assert!(err.contains("out of memory") && err.contains("control group"), "{mebibytes} MiB: {err}");
        let left = std::fs::read_to_string(group.path.join("cgroup.procs")).expect("cgroup.procs");
        assert_eq!(left, "", "{mebibytes} MiB: no process is left");
    }
}

/// A control group with a memory limit, version 1 or 2.
struct Group {
    path: PathBuf,
}

impl Group {
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("cowbell-demo-{}", std::process::id());
        for (root, file) in [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup/unified", "memory.max"),
            ("/sys/fs/cgroup", "memory.max"),
        ] {
            let path = Path::new(root).join(&name);
            if std::fs::create_dir(&path).is_ok() {
                let group = Self { path };
                if std::fs::write(group.path.join(file), bytes.to_string()).is_ok() {
                    return Some(group);
                }
            }
        }
        None
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir(&self.path);
    }
}
