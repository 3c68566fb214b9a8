//! `cowbell attach --control`: whoever starts it hears when the process is watched, and ends that; and nothing of it is left.

use crate::lab::{Scratch, skip, tool};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A process that is watched, and the socket to who watches it.
struct Watched {
    target: Child,
    socket: BufReader<UnixStream>,
    report: std::path::PathBuf,
    /// The process that watches.
    watcher: i32,
}

impl Watched {
    /// Starts both, up to the watcher's first line.
    fn start(scratch: &Scratch, name: &str, target: &mut Command) -> Self {
        let mut target = target.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the target");
        let told = target.stdout.take().expect("a pipe");
        BufReader::new(told).read_line(&mut String::new()).expect("it runs");
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_read_timeout(Some(Duration::from_secs(300))).expect("a limit");
        let report = scratch.path(name);
        let mut command = Command::new(tool());
        command.args(["attach", "--control", "0", "--mode", "count", "--json", "-o", "-", &target.id().to_string()]);
        command.stdin(OwnedFd::from(theirs)).stdout(File::create(&report).expect("a file"));
        let status = command.status().expect("it starts");
        // Else this process has the other end for as long as the command lives.
        drop(command);
        assert!(status.success(), "{status}");
        let mut socket = BufReader::new(ours);
        let mut line = String::new();
        socket.read_line(&mut line).expect("its number");
        Self { target, socket, report, watcher: line.trim().parse().expect("a number") }
    }

    /// Lets it attach; false where this user may not.
    fn attach(&mut self) -> bool {
        self.socket.get_mut().write_all(b"go\n").expect("it reads");
        let mut line = String::new();
        self.socket.read_line(&mut line).expect("a line or the end");
        assert!(line.is_empty() || line == "attached\n", "{line:?}");
        !line.is_empty()
    }

    /// Waits until the watcher has ended.
    fn wait(&mut self) {
        let mut rest = Vec::new();
        self.socket.read_to_end(&mut rest).expect("its end, in time");
    }

    fn kill(mut self) {
        self.target.kill().and_then(|()| self.target.wait()).expect("killed");
    }
}

fn tracer_of(pid: u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    status.lines().find_map(|line| line.strip_prefix("TracerPid:")).expect("a line").trim().to_owned()
}

fn echo() -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "echo started; read line"]);
    command
}

#[test]
fn a_program_hears_when_it_is_watched_and_ends_that() {
    let scratch = Scratch::new();
    let mut watched = Watched::start(&scratch, "report", &mut echo());
    let parent = std::fs::read_to_string(format!("/proc/{}/stat", watched.watcher)).expect("it lives");
    let parent = parent.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)).expect("a parent");
    assert_ne!(parent, std::process::id().to_string(), "it is not the child of who started it");
    assert_eq!(tracer_of(watched.target.id()), "0", "it waits for leave");
    if !watched.attach() {
        watched.kill();
        return skip("this user may not attach");
    }
    assert_ne!(tracer_of(watched.target.id()), "0");
    watched.socket.get_mut().shutdown(Shutdown::Write).expect("open");
    watched.wait();
    let report = std::fs::read_to_string(&watched.report).expect("a report");
    assert!(report.contains("\"format\": \"cowbell-report\""), "{report}");
    assert_eq!(tracer_of(watched.target.id()), "0");
    drop(watched.target.stdin.take());
    assert!(watched.target.wait().expect("it ends").code().is_some(), "it ran on");
}

#[test]
fn the_end_of_the_watched_process_ends_the_watch_whoever_else_lives() {
    let scratch = Scratch::new();
    let mut target = Command::new("sh");
    let mut watched = Watched::start(&scratch, "report", target.args(["-c", "sleep 1000 & echo $!; wait"]));
    let children = format!("/proc/{0}/task/{0}/children", watched.target.id());
    let child = std::fs::read_to_string(children).expect("its child").trim().to_owned();
    let attached = watched.attach();
    watched.target.kill().and_then(|()| watched.target.wait()).expect("killed");
    if attached {
        watched.wait();
        assert_eq!(tracer_of(child.parse().expect("a number")), "0");
    }
    assert!(Command::new("kill").args(["-KILL", &child]).status().expect("kill").success());
    if !attached {
        skip("this user may not attach");
    }
}

#[test]
fn who_gets_no_leave_to_watch_ends() {
    let scratch = Scratch::new();
    let mut watched = Watched::start(&scratch, "report", &mut echo());
    watched.socket.get_mut().shutdown(Shutdown::Write).expect("open");
    watched.wait();
    assert_eq!(std::fs::read(&watched.report).expect("a file"), b"");
    assert_eq!(tracer_of(watched.target.id()), "0");
    watched.kill();
    // The watched process' end is heard of as well.
    let mut watched = Watched::start(&scratch, "other", &mut echo());
    watched.target.kill().and_then(|()| watched.target.wait()).expect("killed");
    let mut rest = Vec::new();
    watched.socket.read_to_end(&mut rest).expect("its end, in time");
}
