//! Commands that look on while processes run: `top` on a terminal of tmux's, `exporter` asked over HTTP.

#[path = "captures/kit.rs"]
#[expect(dead_code, reason = "captures are made up elsewhere")]
mod kit;

use cowbell::sys::pidfd;
use kit::{Scratch, ran, tool};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A parent with 16 MiB and a child that has copied 4 MiB of them and waits, until both are killed.
const TREE: &str = "
import mmap, os, sys, time
data = mmap.mmap(-1, 16 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
data[:] = b'x' * len(data)
if os.fork() == 0:
    for at in range(0, 4 << 20, 4096): data[at] = 121
    print('ready', os.getpid(), flush=True)
while True: time.sleep(100)
";

/// The same with 1,000 children, each of which has copied a page. They end with their parent.
const THOUSAND: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>
int main(void) {
  static char data[1 << 20] = {1};
  for (int at = 0; at < 1 << 20; at += 4096) data[at] = 1;
  int there[2], child = 0;
  char byte;
  if (pipe(there)) return 1;
  for (int nth = 0; nth < 1000; nth++)
    if (!(child = fork())) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      data[4096 * (nth % 256)] = 2;
      if (write(there[1], "x", 1) != 1) _exit(1);
      for (;;) pause();
    }
  for (int nth = 0; nth < 1000; nth++)
    if (read(there[0], &byte, 1) != 1) return 1;
  printf("ready %d\n", child);
  fflush(stdout);
  for (;;) pause();
}
"#;

/// Processes of one test, ended with it.
struct Tree {
    parent: Child,
    child: i32,
}

impl Tree {
    fn start() -> Self {
        Self::of(Command::new("/usr/bin/python3").args(["-c", TREE]))
    }

    fn of_a_thousand(scratch: &Scratch) -> Self {
        let (source, program) = (scratch.file("thousand.c", THOUSAND), scratch.path("thousand"));
        let built = Command::new("cc").args(["-O1", "-o", &program, &source]).status().expect("a C compiler");
        assert!(built.success());
        Self::of(&mut Command::new(program))
    }

    fn of(program: &mut Command) -> Self {
        let mut parent = program.stdout(Stdio::piped()).spawn().expect("it can be started");
        let mut line = String::new();
        BufReader::new(parent.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let child = line.trim().strip_prefix("ready ").and_then(|pid| pid.parse().ok()).expect("its id");
        Self { parent, child }
    }

    fn pid(&self) -> String {
        self.parent.id().to_string()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _killed = Command::new("kill").args(["-KILL", &self.child.to_string()]).status();
        let _killed = self.parent.kill();
        let _ended = self.parent.wait();
    }
}

fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.write_all(request.as_bytes()).expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn the_exporter_tells_what_a_snapshot_finds_and_ends_with_the_process() {
    let tree = Tree::start();
    let mut exporter = tool();
    let exporter = exporter.args(["exporter", &tree.pid(), "--listen", "127.0.0.1:0", "--every", "0"]);
    let mut exporter = exporter.stderr(Stdio::piped()).spawn().expect("started");
    let mut said = BufReader::new(exporter.stderr.take().expect("a pipe"));
    let mut line = String::new();
    said.read_line(&mut line).expect("a line");
    let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next()).expect("an address").to_owned();
    let answer = ask(&address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, text) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("application/openmetrics-text"), "{head}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    kit::promtool_is_content(text);
    let child = format!("pid=\"{}\"", tree.child);
    let of = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(name) && line.contains(&child));
        line.and_then(|line| line.rsplit(' ').next()).and_then(|figure| figure.parse().ok()).unwrap_or(-1.0)
    };
    let mib = f64::from(1 << 20);
    let (differs, shared) = (of("cowbell_process_differs_bytes"), of("cowbell_process_shared_bytes"));
    assert!(differs >= 4.0 * mib && differs < 7.0 * mib, "{text}");
    assert!(shared >= 12.0 * mib && shared < 40.0 * mib, "{text}");
    assert!(
        ask(&address, "GET / HTTP/1.1\r\n\r\n").contains("404")
            && ask(&address, "PUT /metrics HTTP/1.1\r\n\r\n").contains("405")
    );
    drop(tree);
    let answer = ask(&address, "GET /metrics HTTP/1.1\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(exporter.wait().expect("an end").code(), Some(1));
    let (code, _, err) = ran(&["exporter", "2147483647"]);
    assert!(code == Some(1) && err.contains("there is no process"), "{err}");
}

/// A terminal of its own server, which ends with the test.
struct Terminal {
    scratch: Scratch,
}

impl Terminal {
    /// Runs the tool in a terminal of this size; `None`, and said, where there is no tmux.
    fn start(size: (u32, u32), arguments: &str) -> Option<Self> {
        if !Command::new("tmux").arg("-V").output().is_ok_and(|output| output.status.success()) {
            println!("skipped: no tmux, in whose terminal top would run");
            return None;
        }
        let terminal = Self { scratch: Scratch::new() };
        let tool = tool().get_program().to_string_lossy().into_owned();
        let command = format!("cd {}; {tool} {arguments}; echo ENDED $?; cat", terminal.scratch.path("."));
        let (width, height) = (size.0.to_string(), size.1.to_string());
        assert!(
            terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", &width, "-y", &height, &command]).1,
            "tmux starts"
        );
        Some(terminal)
    }

    fn tmux(&self, arguments: &[&str]) -> (String, bool) {
        let output =
            Command::new("tmux").args(["-S", &self.scratch.path("socket")]).args(arguments).output().expect("tmux");
        (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.success())
    }

    fn press(&self, keys: &[&str]) {
        assert!(self.tmux(&[&["send-keys"], keys].concat()).1);
    }

    /// The screen, as soon as it shows all that is wanted.
    fn shows(&self, wanted: &[&str]) -> String {
        let until = Instant::now() + Duration::from_secs(300);
        loop {
            let (screen, _) = self.tmux(&["capture-pane", "-p"]);
            if wanted.iter().all(|wanted| screen.contains(wanted)) {
                return screen;
            }
            assert!(Instant::now() < until, "no {wanted:?} in\n{screen}");
            // tmux tells nobody that a screen has changed.
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

#[test]
fn top_shows_sorts_filters_drills_resizes_and_leaves_nothing_behind() {
    let tree = Tree::start();
    let (parent, child) = (tree.pid(), tree.child.to_string());
    let Some(terminal) = Terminal::start((80, 24), &format!("top {parent} --every 0.2")) else { return };
    let screen = terminal.shows(&[&parent, &child, "SHARED", "DIFFERS", "NEW", "2 processes", "4.", "MiB"]);
    assert!(screen.lines().all(|line| line.chars().count() <= 80) && !screen.contains("EITHER"), "{screen}");
    terminal.press(&["s"]);
    terminal.shows(&["PIDv"]);
    terminal.press(&["r"]);
    terminal.shows(&["PID^"]);
    terminal.press(&["/", &child, "Enter"]);
    let screen = terminal.shows(&[&format!("/{child}")]);
    assert!(!screen.lines().any(|line| line.trim_start().starts_with(&parent)), "{screen}");
    terminal.press(&["Enter"]);
    terminal.shows(&["MAPPING", "[heap]"]);
    terminal.press(&["Escape"]);
    terminal.shows(&["PID^"]);
    terminal.press(&["p"]);
    terminal.shows(&["PAUSED"]);
    terminal.press(&["p", "?"]);
    terminal.shows(&["look into a process"]);
    terminal.press(&["Tab"]);
    terminal.shows(&["nothing is traced"]);
    terminal.press(&["w"]);
    terminal.shows(&["t begins"]);
    assert!(terminal.tmux(&["resize-window", "-x", "300", "-y", "80"]).1);
    terminal.press(&["Escape"]);
    terminal.shows(&["EITHER", "PSS", "COPIED"]);
    terminal.press(&["C-c"]);
    let screen = terminal.shows(&["ENDED 0"]);
    assert!(!screen.contains("SHARED"), "the screen from before is back: {screen}");
}

/// Lists the processes below a process, itself included.
fn below(pid: &str) -> Vec<String> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let mut all = vec![pid.to_owned()];
    children.split_whitespace().for_each(|child| all.extend(below(child)));
    all
}

/// The lines of a process' status that would show a tracer, a stop, or another program.
fn state(pid: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let told =
        |line: &&str| ["Name:", "State:", "TracerPid:", "SigIgn:", "SigCgt:"].iter().any(|name| line.starts_with(name));
    status.lines().filter(told).map(|line| format!("{line}\n")).collect()
}

#[test]
fn top_follows_a_thousand_processes_and_leaves_them_as_they_were() {
    let scratch = Scratch::new();
    let tree = Tree::of_a_thousand(&scratch);
    let states: Vec<(String, String)> = below(&tree.pid()).into_iter().map(|pid| (state(&pid), pid)).collect();
    assert_eq!(states.len(), 1001);
    let Some(terminal) = Terminal::start((80, 24), &format!("top {} --every 0.2", tree.pid())) else { return };
    let screen = terminal.shows(&["1001 processes", "SHARED", "DIFFERS"]);
    assert!(screen.lines().count() <= 24 && screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
    terminal.press(&["s"]);
    terminal.shows(&["PIDv"]);
    // The last of all rows, and back.
    let numbers = || states.iter().filter_map(|(_, pid)| pid.parse::<i32>().ok());
    let (first, last) = (numbers().min().expect("a number"), numbers().max().expect("a number"));
    terminal.press(&["End"]);
    terminal.shows(&[&format!(" {last} ")]);
    terminal.press(&["Home"]);
    terminal.shows(&[&format!(" {first} ")]);
    terminal.press(&["Home", "/", &tree.child.to_string(), "Enter"]);
    terminal.shows(&[&format!("/{}", tree.child)]);
    terminal.press(&["Enter"]);
    terminal.shows(&["MAPPING", "4.0 KiB"]);
    // A key right behind Escape would be another key to a terminal.
    terminal.press(&["Escape"]);
    terminal.shows(&["PIDv"]);
    terminal.press(&["/", "Escape"]);
    assert!(terminal.tmux(&["resize-window", "-x", "300", "-y", "80"]).1);
    // The terminal shows the larger screen while it is being drawn.
    let until = Instant::now() + Duration::from_secs(300);
    loop {
        let screen = terminal.shows(&["1001 processes", "EITHER", "PSS", &format!(" {first} ")]);
        let rows = screen.lines().filter(|line| line.contains("thousand")).count();
        if rows > 70 {
            break;
        }
        assert!(Instant::now() < until, "{rows} rows are shown: {screen}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let (shell, _) = terminal.tmux(&["display-message", "-p", "#{pane_pid}"]);
    terminal.press(&["C-c"]);
    terminal.shows(&["ENDED 0"]);
    let left: Vec<String> = below(shell.trim()).iter().map(|pid| state(pid)).collect();
    assert!(!left.iter().any(|state| state.contains("cowbell")), "{left:?}");
    for (before, pid) in states {
        assert_eq!(state(&pid), before);
    }
}

#[test]
fn top_that_traces_lets_go_at_ctrl_c() {
    let tree = Tree::start();
    let Some(terminal) = Terminal::start((300, 80), &format!("top {} --every 0.2", tree.pid())) else { return };
    terminal.shows(&["2 processes"]);
    terminal.press(&["t"]);
    // Where it may not attach, it says why, and nothing is left either.
    let until = Instant::now() + Duration::from_secs(300);
    while !["traced, mode trace", "traced, mode count", "cannot"].iter().any(|said| terminal.shows(&[]).contains(said))
    {
        assert!(Instant::now() < until, "{}", terminal.shows(&[]));
        std::thread::sleep(Duration::from_millis(50));
    }
    let (shell, _) = terminal.tmux(&["display-message", "-p", "#{pane_pid}"]);
    terminal.press(&["C-c"]);
    terminal.shows(&["ENDED 0"]);
    let left: Vec<String> = below(shell.trim()).iter().map(|pid| state(pid)).collect();
    assert!(!left.iter().any(|state| state.contains("cowbell")), "{left:?}");
    for pid in [tree.pid(), tree.child.to_string()] {
        let state = state(&pid);
        assert!(state.contains("TracerPid:\t0\n") && state.contains("(sleeping)"), "{state}");
        // A userfaultfd that arms a mapping shows in its flags.
        let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
        let armed = |line: &&str| line.starts_with("VmFlags:") && line.split_whitespace().any(|flag| flag == "uw");
        assert_eq!(maps.lines().find(armed), None);
    }
}

#[test]
fn top_ends_by_a_signal_and_with_its_terminal() {
    let tree = Tree::start();
    for signal in [true, false] {
        let Some(terminal) = Terminal::start((80, 24), &format!("top {} --every 0.2", tree.pid())) else { return };
        terminal.shows(&["2 processes"]);
        let (shell, _) = terminal.tmux(&["display-message", "-p", "#{pane_pid}"]);
        let shell = shell.trim();
        let top = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).expect("the shell's child");
        let top = top.trim();
        if signal {
            assert!(Command::new("kill").args(["-TERM", top]).status().expect("kill").success());
            terminal.shows(&["ENDED 0"]);
        } else {
            // Opened while it lives, for its number may be another's later.
            let process = pidfd::open(top.parse().expect("an id")).expect("top");
            terminal.tmux(&["kill-server"]);
            let ended = pidfd::readable(process.as_fd(), Some(Duration::from_secs(300)));
            assert_eq!(ended, Ok(true), "top stays without its terminal");
        }
    }
}

#[test]
fn top_tells_that_its_target_is_gone() {
    let scratch = Scratch::new();
    for (tree, processes) in [(Tree::start(), "2 processes"), (Tree::of_a_thousand(&scratch), "1001 processes")] {
        tells_that_its_target_is_gone(tree, processes);
    }
    let (code, _, err) = ran(&["top", &std::process::id().to_string()]);
    assert!(code == Some(1) && err.contains("it takes a terminal"), "{err}");
}

fn tells_that_its_target_is_gone(tree: Tree, processes: &str) {
    let Some(terminal) = Terminal::start((80, 24), &format!("top {} --every 0.2", tree.pid())) else { return };
    terminal.shows(&[processes]);
    drop(tree);
    terminal.shows(&["there is no process"]);
    terminal.press(&["q"]);
    terminal.shows(&["ENDED 0"]);
}

#[test]
fn the_dashboard_asks_for_metrics_that_there_are() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let text = std::fs::read_to_string(format!("{root}/grafana.json")).expect("the dashboard");
    let dashboard: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let source = std::fs::read_to_string(format!("{root}/cowbell/src/snapshot/metrics.rs")).expect("the metrics");
    let panels = dashboard["panels"].as_array().expect("panels");
    let expressions: Vec<&str> = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array())
        .flatten()
        .filter_map(|one| one["expr"].as_str())
        .collect();
    assert!(expressions.len() >= 7, "{expressions:?}");
    for expression in expressions {
        let name = expression.split("cowbell_").nth(1).and_then(|rest| rest.split('{').next()).expect("a metric");
        assert!(source.contains(&format!("\"cowbell_{name}\"")), "{expression}");
    }
}
