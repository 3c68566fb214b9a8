//! Parts that all tests share: a place of their own, targets built from source, the tool started under a time limit, and
//! captures read back.

use crate::record::{Begin, End, Event, Fault, Header, Record};
use cowbell::sys::pidfd;
use cowbell::sys::procfs;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// No target takes so long, in an emulated machine neither: what waits longer waits for ever.
const LIMIT: Duration = Duration::from_secs(400);

/// The tool that cargo built, or a copy of it where an ordinary user may run it.
pub fn tool() -> OsString {
    std::env::var_os("COWBELL_TOOL").unwrap_or_else(|| env!("CARGO_BIN_EXE_cowbell").into())
}

/// Tells whether this is root, with all that root may do.
pub fn is_root() -> bool {
    let status = procfs::status::Status::of(procfs::SELF).expect("a status");
    status.bits("CapEff").is_some_and(|held| held & 0xff == 0xff)
}

/// The number of times to repeat something random: `COWBELL_CASES`, or `usual`.
pub fn cases(usual: u64) -> u64 {
    std::env::var("COWBELL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// Says why something was not tested.
pub fn skip(why: &str) {
    println!("skipped: {why}");
}

/// A directory of one test, gone when the test is over.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new one.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("cowbell-run-{}-{nth}", std::process::id()));
        std::fs::create_dir(&path).expect("a temporary directory");
        Self(path)
    }

    /// The path of a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file in it with this content.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).expect("a file");
        path
    }

    /// A program in it, compiled from C. `None` where the compiler cannot (`-static`, `-m32` without libraries).
    pub fn compile(&self, name: &str, source: &str, flags: &[&str]) -> Option<PathBuf> {
        let file = self.file(&format!("{name}.c"), source);
        let path = self.path(name);
        let built = Command::new("cc").args(["-O1", "-g", "-pthread", "-o"]).arg(&path).arg(&file).args(flags).output();
        let built = built.expect("a C compiler: tools/setup --tests installs it");
        if !built.status.success() {
            println!("cc {name} {flags:?}: {}", String::from_utf8_lossy(&built.stderr));
        }
        built.status.success().then_some(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

/// The end of a program, and its output.
#[derive(Debug)]
pub struct Outcome {
    /// The program's exit code, or `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: Vec<u8>,
    /// Standard error.
    pub err: String,
}

/// A program under way, in a process group of its own, with its output in files.
pub struct Running {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    /// Starts it.
    pub fn start(scratch: &Scratch, command: &mut Command) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let [out, err] = ["out", "err"].map(|name| scratch.path(&format!("{name}-{nth}")));
        let file = |path: &Path| File::create(path).expect("a file for output");
        let child = command.stdout(file(&out)).stderr(file(&err)).process_group(0).spawn();
        let child = child.unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Self { child, out, err }
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The program's output on standard error so far.
    pub fn err_so_far(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.err).unwrap_or_default()).into_owned()
    }

    /// Waits for its end, and kills all that it started if that does not come in time.
    pub fn finish(mut self) -> Outcome {
        let pidfd = pidfd::open(self.pid()).expect("it is not reaped yet");
        let ended = pidfd::wait_end(pidfd.as_fd(), Some(LIMIT)).expect("poll");
        if !ended {
            let states = processes_of_group(self.pid());
            signal_group(self.pid(), "KILL");
            let err = self.err_so_far();
            panic!("not done within {LIMIT:?}; its processes were\n{states}it said: {err}");
        }
        let status = self.child.wait().expect("its status");
        Outcome { code: status.code(), out: std::fs::read(&self.out).expect("its output"), err: self.err_so_far() }
    }
}

/// Sends a signal by name to a process group.
pub fn signal_group(leader: i32, signal: &str) {
    let _sent = Command::new("kill").args([&format!("-{signal}"), "--", &format!("-{leader}")]).output();
}

/// The lines of ps about the processes of a group.
pub fn processes_of_group(leader: i32) -> String {
    let ps = Command::new("ps").args(["-eo", "pgid,ppid,pid,stat,wchan:20,args"]).output().expect("ps");
    let all = String::from_utf8_lossy(&ps.stdout).into_owned();
    let mine = |line: &&str| line.split_whitespace().next() == Some(&leader.to_string());
    all.lines().filter(mine).map(|line| format!("{line}\n")).collect()
}

/// Runs a command to its end.
pub fn run(scratch: &Scratch, command: &mut Command) -> Outcome {
    Running::start(scratch, command.stdin(Stdio::null())).finish()
}

/// A command line of the tool, for a target with arguments.
pub fn cowbell<I: AsRef<OsStr>>(options: &[&str], target: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(tool());
    command.arg("run").args(options).arg("--").args(target);
    command
}

/// Processes that keep every processor busy until this is dropped.
pub struct Busy(Vec<Child>);

impl Busy {
    /// Starts so many for each processor, in sessions of their own: the kernel may share its time out among these.
    pub fn new(each: usize) -> Self {
        let processors = std::thread::available_parallelism().expect("a number").get();
        // The processes end by themselves if this one is killed.
        let script = format!("while kill -0 {}; do :; done", std::process::id());
        let busy =
            |_| Command::new("setsid").args(["sh", "-c", &script]).stderr(Stdio::null()).spawn().expect("a shell");
        Self((0..each * processors).map(busy).collect())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for process in &mut self.0 {
            let _ended = process.kill();
            let _status = process.wait();
        }
    }
}

/// One interval of a capture.
#[derive(Debug)]
pub struct Interval {
    /// The record that opened it.
    pub begin: Begin,
    /// The interval's events.
    pub events: Vec<Event>,
    /// By which page faults, where these are told.
    pub faults: Vec<Fault>,
    /// The record that closed it.
    pub end: Option<End>,
}

/// A page fault as an event, which has the class that the verdict gives its page.
fn event_of(fault: &Fault, end: &End, page_size: u64) -> Option<Event> {
    let Fault { time_ns, page, tid, code, stack, .. } = *fault;
    let run = end.pages.iter().find(|run| (run.start..run.start + run.pages * page_size).contains(&page))?;
    Some(Event { time_ns, page, tid, pc: 0, code, class: run.class, syscall: None, stack, caller: 0, byte: None })
}

/// A capture, read back.
#[derive(Debug)]
pub struct Capture {
    /// Every record.
    pub records: Vec<Record>,
    /// The intervals by number.
    pub intervals: BTreeMap<u32, Interval>,
}

impl Capture {
    /// Reads a file; demands that it begins and ends as a whole capture does.
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let records: Vec<Record> = text.lines().map(parse).collect();
        assert!(matches!(records.first(), Some(Record::Header(_))), "a capture begins with its header");
        assert!(matches!(records.last(), Some(Record::Finish(_))), "a whole capture ends with a finish");
        let mut intervals: BTreeMap<u32, Interval> = BTreeMap::new();
        let Some(Record::Header(Header { page_size, .. })) = records.first() else { unreachable!("checked above") };
        let page_size = *page_size;
        for record in &records {
            match record {
                Record::Begin(begin) => {
                    let interval = Interval { begin: begin.clone(), events: Vec::new(), faults: Vec::new(), end: None };
                    let other = intervals.insert(begin.interval, interval);
                    assert!(other.is_none(), "the number {} was given twice", begin.interval);
                }
                Record::Events { interval, events } => {
                    intervals.get_mut(interval).expect("events of an open interval").events.extend(events);
                }
                Record::Faults { interval, rows } => {
                    intervals.get_mut(interval).expect("faults of an open interval").faults.extend(rows);
                }
                Record::End(end) => {
                    let interval = intervals.get_mut(&end.interval).expect("the end of an open interval");
                    assert!(interval.end.is_none(), "an interval ends once");
                    interval.events.extend(interval.faults.iter().filter_map(|fault| event_of(fault, end, page_size)));
                    interval.end = Some(end.clone());
                }
                _ => {}
            }
        }
        Self { records, intervals }
    }

    /// The capture's first record.
    pub fn header(&self) -> &Header {
        let Some(Record::Header(header)) = self.records.first() else { panic!("read() saw the header") };
        header
    }

    /// Bytes a page.
    pub fn page_size(&self) -> u64 {
        self.header().page_size
    }

    /// The intervals of one process.
    pub fn of(&self, pid: i32) -> impl Iterator<Item = &Interval> {
        self.intervals.values().filter(move |interval| interval.begin.pid == pid)
    }
}
