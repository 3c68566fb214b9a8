//! Programs that fork in earnest: a web server with preloaded workers, a database that saves, this library's demo.

use crate::lab::{Capture, Interval, Outcome, Running, Scratch, cowbell, is_root, skip};
use crate::python::pages_of;
use crate::record::{Origin, Record, WatchReason, WriteClass};
use cowbell::sys::procfs;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Does something until it succeeds, for as long as a server may take to start.
pub fn eventually<T>(what: &str, running: &Running, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(Instant::now() < deadline, "{what}: not within a minute. {}", running.err_so_far());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn connect(socket: &Path, running: &Running) -> UnixStream {
    eventually("connecting", running, || UnixStream::connect(socket).ok())
}

/// A request over a connection of its own; the answer's body.
pub fn get(socket: &Path, running: &Running) -> String {
    let mut stream = connect(socket, running);
    stream.set_read_timeout(Some(Duration::from_secs(300))).expect("a time limit");
    stream.write_all(b"GET / HTTP/1.0\r\nHost: test\r\n\r\n").expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.contains(" 200 "), "{head}");
    body.to_owned()
}

/// Asks a server until two workers have answered (before that a worker may not hear that it shall stop), then tells its first process to end,
/// and waits for that.
pub fn ask_both_and_end(running: Running, socket: &Path, pid_file: &Path) -> Outcome {
    let mut answered = BTreeSet::new();
    eventually("both workers answer", &running, || {
        answered.insert(get(socket, &running));
        (answered.len() == 2).then_some(())
    });
    let first = std::fs::read_to_string(pid_file).expect("the server's pid file");
    assert!(Command::new("kill").arg(first.trim()).status().expect("kill").success());
    let outcome = running.finish();
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    outcome
}

/// The Python that has gunicorn; the setup makes it below the target directory.
pub fn gunicorn() -> Option<PathBuf> {
    let python = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?.join("python/bin/python3");
    let is_there = python.exists();
    assert!(is_there || !is_root(), "{}: tools/setup --tests makes it", python.display());
    is_there.then_some(python)
}

#[test]
fn preloaded_web_workers_copy_the_data_that_their_requests_read() {
    let Some(python) = gunicorn() else {
        return skip("gunicorn is below the target directory, which this user cannot read");
    };
    let scratch = Scratch::new();
    scratch.file("app.py", include_str!("../targets/app.py"));
    let (socket, capture, pid_file) = (scratch.path("socket"), scratch.path("capture"), scratch.path("pid"));
    let bind = format!("unix:{}", socket.display());
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let (python, pid_path, home) = (text(&python), text(&pid_file), text(&scratch.path("")));
    let target = [&python, "-m", "gunicorn", "--preload", "--workers", "2", "--bind", &bind, "--pid", &pid_path];
    let target = [&target[..], &["--chdir", &home, "--log-level", "warning", "app:application"]].concat();
    let mut command = cowbell(&["--mode", "count", "--capture", &text(&capture)], target);
    let running = Running::start(&scratch, command.env("HOME", &home));

    let mut asked = BTreeSet::new();
    for _ in 0..200 {
        let body = get(&socket, &running);
        let mut words = body.split_whitespace();
        assert_eq!(words.next(), Some("488890"), "{body}");
        asked.insert(words.next().expect("a process id").parse::<i32>().expect("a number"));
        if asked.len() == 2 {
            break;
        }
    }
    let master = std::fs::read_to_string(&pid_file).expect("gunicorn's pid file");
    let told = std::process::Command::new("kill").arg(master.trim()).status().expect("kill");
    assert!(told.success());
    let outcome = running.finish();
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let capture = Capture::read(&capture);
    let least = 100_000 * 54 / capture.page_size() * 9 / 10;
    for worker in asked {
        let intervals: Vec<&Interval> = capture.of(worker).filter(|a| a.begin.role == WatchReason::Child).collect();
        let [interval] = intervals[..] else { panic!("worker {worker} has not one interval of a child") };
        let copied = pages_of(interval, WriteClass::Copy) + pages_of(interval, WriteClass::CopyOrReuse);
        assert!(copied >= least, "worker {worker} copied {copied} pages, and its requests read {least} at least");
    }
}

/// One connection to Redis.
struct Redis(BufReader<UnixStream>);

impl Redis {
    fn send(&mut self, words: &[&[u8]]) {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend(format!("${}\r\n", word.len()).bytes().chain(word.iter().copied()).chain(*b"\r\n"));
        }
        self.0.get_mut().write_all(&request).expect("a request");
    }

    /// A reply of one line, or the text of a bulk reply.
    fn reply(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a reply");
        let Some(bytes) = line.strip_prefix('$') else { return line.trim_end().to_owned() };
        let mut text = vec![0; bytes.trim_end().parse::<usize>().expect("a length") + 2];
        self.0.read_exact(&mut text).expect("the reply's text");
        String::from_utf8_lossy(&text).into_owned()
    }

    fn ask(&mut self, words: &str) -> String {
        let words: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
        self.send(&words);
        self.reply()
    }

    /// Sets every `step`th key below `keys`.
    fn fill(&mut self, keys: usize, step: usize, fill: u8) {
        let value = [fill; 400];
        for batch in (0..keys).step_by(step).collect::<Vec<_>>().chunks(100) {
            batch.iter().for_each(|key| self.send(&[b"SET", format!("key:{key}").as_bytes(), &value]));
            batch.iter().for_each(|_| assert_eq!(self.reply(), "+OK"));
        }
    }

    /// A number of INFO.
    fn info(&mut self, name: &str) -> u64 {
        let info = self.ask("INFO persistence");
        let line = info.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.and_then(|n| n.trim().parse().ok()).unwrap_or_else(|| panic!("{name} in {info}"))
    }
}

/// Redis' name for its program: Debian's redis-tools has it as redis-check-rdb, and it looks at what it is called.
pub fn redis_server(scratch: &Scratch) -> PathBuf {
    let link = scratch.path("redis-server");
    std::os::unix::fs::symlink("/usr/bin/redis-check-rdb", &link).expect("a link");
    assert!(link.exists(), "redis-tools: tools/setup --tests installs it");
    link
}

/// The memory of a process that nobody shares, as smaps says, in bytes.
fn private_dirty(pid: i32) -> Option<u64> {
    procfs::smaps::rollup(pid).ok().map(|figures| figures.private_dirty)
}

/// The child that Redis forked to save.
fn saving_child(server: i32) -> Option<i32> {
    procfs::children(server).first().copied()
}

fn within_two_percent(what: &str, ours: u64, theirs: u64) {
    assert!(ours.abs_diff(theirs) * 50 <= theirs, "{what}: {ours} bytes, and the tool says {theirs}");
}

/// Redis saves while it is written to: the tool's copies, what Redis says, and what smaps says.
fn redis_under_writes(mode: &str) {
    let scratch = Scratch::new();
    let (socket, capture) = (scratch.path("socket"), scratch.path("capture"));
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let config = format!(
        "port 0\nunixsocket {}\nsave \"\"\ndir {}\nrdbcompression no\nrdb-key-save-delay 25\ndaemonize no\n",
        socket.display(),
        scratch.path("").display()
    );
    let config = scratch.file("redis.conf", &config);
    let options = ["--mode", mode, "--stacks", "0", "--capture", &text(&capture)];
    let running = Running::start(&scratch, &mut cowbell(&options, [redis_server(&scratch), config]));
    let mut redis = Redis(BufReader::new(connect(&socket, &running)));
    let keys = 100_000;
    redis.fill(keys, 1, b'a');
    let server: i32 = {
        let info = redis.ask("INFO server");
        let line = info.lines().find_map(|line| line.strip_prefix("process_id:")).expect("its process id");
        line.trim().parse().expect("a number")
    };
    assert_eq!(redis.ask("BGSAVE"), "+Background saving started");
    let saver = eventually("the saving child", &running, || saving_child(server));
    redis.fill(keys, 40, b'b');
    assert_eq!(redis.info("rdb_bgsave_in_progress"), 1, "the save is slow enough to be written under");
    let mut last_smaps = 0;
    while let Some(bytes) = private_dirty(saver).filter(|&bytes| bytes > 0) {
        last_smaps = bytes;
        std::thread::sleep(Duration::from_millis(50));
    }
    eventually("the end of the save", &running, || (redis.info("rdb_bgsave_in_progress") == 0).then_some(()));
    let own = redis.info("rdb_last_cow_size");
    redis.send(&[b"SHUTDOWN", b"NOSAVE"]);
    let outcome = running.finish();
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);

    let capture = Capture::read(&capture);
    let [child] = capture.of(saver).filter(|a| a.begin.role == WatchReason::Child).collect::<Vec<_>>()[..] else {
        panic!("the saving child has one interval")
    };
    // Pages that either side changed are private to the child then: its own new pages, and the old ones that the parent left.
    let mut private = BTreeSet::new();
    for interval in capture.of(server).filter(|a| a.begin.role == WatchReason::Parent).chain([child]) {
        let is_child = interval.begin.role == WatchReason::Child;
        for run in &interval.end.as_ref().expect("closed").pages {
            let makes_private = match run.class {
                WriteClass::Copy | WriteClass::CopyOrReuse => true,
                WriteClass::Reuse => false,
                WriteClass::FirstTouch | WriteClass::ZeroPage | WriteClass::PrivateFile => is_child,
            };
            if makes_private {
                private.extend((0..run.pages).map(|nth| run.start + nth * capture.page_size()));
            }
        }
    }
    let ours = private.len() as u64 * capture.page_size();
    println!("{mode}: the tool {ours} bytes, Redis {own}, smaps {last_smaps}");
    let parent = capture.of(server).find(|a| a.begin.role == WatchReason::Parent).expect("the server's interval");
    assert!(
        pages_of(parent, WriteClass::Copy) + pages_of(parent, WriteClass::CopyOrReuse) > 2000,
        "the server pays for the save"
    );
    within_two_percent("Redis", own, ours);
    within_two_percent("smaps", last_smaps, ours);
}

#[test]
fn counted_copies_under_a_save_of_redis_are_what_redis_and_smaps_say() {
    redis_under_writes("count");
}

#[test]
fn traced_copies_under_a_save_of_redis_are_what_redis_and_smaps_say() {
    match crate::exact::may_trace() {
        Some(why) => skip(&why),
        None => redis_under_writes("trace"),
    }
}

#[test]
fn the_tool_and_the_library_find_the_same_copies_of_an_arena_to_the_page() {
    let scratch = Scratch::new();
    let capture = scratch.path("capture");
    let mut demo = vec![crate::lab::tool()];
    demo.extend(["demo", "--size", "2M", "--watch", "census", "--json"].map(Into::into));
    let options = ["--mode", "count", "--capture", capture.to_str().expect("text")];
    let outcome = crate::lab::run(&scratch, &mut cowbell(&options, demo));
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let said: Value = serde_json::from_slice(&outcome.out).expect("the demo's JSON, and nothing else");
    let capture = Capture::read(&capture);
    let mut compared = 0;
    for worker in said["workers"].as_array().expect("workers") {
        let number = |value: &Value| value.as_u64().expect("a number");
        let report = &worker["report"];
        let pid = number(&report["pid"]) as i32;
        let arena = &report["arenas"][0];
        let (start, size) = (number(&arena["start"]), capture.page_size());
        let mut library = BTreeSet::new();
        for run in arena["copied"].as_array().expect("runs") {
            let first = number(&run["start"]);
            library.extend((first..first + number(&run["count"])).map(|page| start + page * size));
        }
        let inside = start..start + number(&arena["pages"]) * size;
        let mut tool = BTreeMap::new();
        assert!(
            capture.of(pid).any(|interval| interval.begin.role == WatchReason::Child),
            "an interval of {}",
            worker["role"]
        );
        for interval in capture.of(pid) {
            for run in &interval.end.as_ref().expect("closed").pages {
                let pages = (0..run.pages).map(|nth| run.start + nth * size);
                tool.extend(pages.filter(|page| inside.contains(page)).map(|page| (page, run.class)));
            }
        }
        assert!(tool.keys().eq(library.iter()), "{}: {} and {}", worker["role"], tool.len(), library.len());
        assert!(tool.values().all(|class| *class == WriteClass::PrivateFile), "{}", worker["role"]);
        compared += library.len();
    }
    assert!(compared > 100, "the demo's workers copy");
    let is_sharing = |r: &Record| matches!(r, Record::Process(p) if p.origin == Origin::Shares);
    assert!(capture.records.iter().any(is_sharing), "the keepers share memory, and that is said");
}
