//! The service as its supervisor sees it: a group of processes, two addresses, and what `/proc` tells.

use crate::http::{self, SOON};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A service at work. Dropping it kills its group.
pub struct Service {
    process: Child,
    said: BufReader<ChildStdout>,
    /// The address for clients.
    pub address: SocketAddr,
    /// The address for metrics and reloads.
    pub admin: Option<SocketAddr>,
}

impl Service {
    /// Starts it, in a group of its own, and waits until it is ready.
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cowbell-service"));
        command.args(arguments).stdout(Stdio::piped()).process_group(0).env("RUST_LOG", "warn");
        let mut process = command.spawn().expect("the service starts");
        let mut said = BufReader::new(process.stdout.take().expect("piped"));
        let mut line = String::new();
        said.read_line(&mut line).expect("the addresses");
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["serving", address, "admin", admin] = words[..] else { panic!("{line:?}") };
        let (address, admin) = (address.parse().expect("an address"), admin.parse().ok());
        let mut service = Self { process, said, address, admin };
        assert_eq!(service.line(), "ready\n");
        service
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("text");
        line
    }

    /// The parent's process id, which is its group's.
    pub fn pid(&self) -> i32 {
        self.process.id() as i32
    }

    /// Sends a signal to the parent alone, or to a whole group: `-PID`.
    pub fn signal(&self, signal: &str, whom: i32) {
        let sent = Command::new("kill").args([signal, "--", &whom.to_string()]).status();
        assert!(sent.expect("kill").success(), "{signal} to {whom}");
    }

    /// The processes of the service: parent, zygote, workers.
    pub fn processes(&self) -> Vec<i32> {
        let entries = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|&pid| group(pid) == Some(self.pid())).collect()
    }

    /// The workers, and who loads data: the children of the parent's one child.
    pub fn workers(&self) -> Vec<i32> {
        children(self.pid()).into_iter().flat_map(children).collect()
    }

    /// The process that loads data, if there is one.
    pub fn loader(&self) -> Option<i32> {
        let name =
            |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "cowbell-loader\n");
        self.workers().into_iter().find(name)
    }

    /// The generations whose memory some process has: by its mappings, or by a descriptor.
    pub fn generations(&self) -> BTreeSet<u64> {
        let mut found = BTreeSet::new();
        let generation = |text: &str| text.split_once("memfd:cowbell:packages-").map(|(_, rest)| rest.to_owned());
        for pid in self.processes() {
            let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
            found.extend(maps.lines().filter_map(generation));
            let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            let links = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
            found.extend(links.filter_map(|link| generation(link.to_str()?)));
        }
        let number = |name: &String| name.split_whitespace().next().and_then(|number| number.parse().ok());
        found.iter().map(|name| number(name).unwrap_or_else(|| panic!("{name:?}"))).collect()
    }

    /// The figures of now.
    pub fn metrics(&self) -> Metrics {
        let answer = http::ask(self.admin.expect("workers"), "GET", "/metrics").expect("metrics");
        assert_eq!(answer.status, 200, "{}", answer.body);
        Metrics(answer.body)
    }

    /// Waits for its end; within a time, and without a process that stays behind.
    pub fn end(mut self) -> ExitStatus {
        let status = until("the end", || self.process.try_wait().expect("a child"));
        assert_eq!(self.processes(), [] as [i32; 0], "nobody stays behind");
        assert_eq!(self.line(), "");
        status
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _gone =
            Command::new("kill").args(["-KILL", "--", &format!("-{}", self.pid())]).stderr(Stdio::null()).status();
        let _reaped = self.process.wait();
    }
}

/// A text of OpenMetrics.
pub struct Metrics(String);

impl Metrics {
    /// The values of a metric, one for each set of labels.
    pub fn values(&self, name: &str) -> Vec<f64> {
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once(' ')?.1.parse().ok();
        self.0.lines().filter_map(value).collect()
    }

    /// The one value of a metric.
    pub fn value(&self, name: &str) -> f64 {
        let values = self.values(name);
        assert_eq!(values.len(), 1, "{name}: {}", self.0);
        values[0]
    }
}

/// Asks until there is an answer.
pub fn until<A>(what: &str, mut ask: impl FnMut() -> Option<A>) -> A {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < SOON, "{what} does not come");
        thread::sleep(Duration::from_millis(5));
    }
}

fn children(of: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The process group of a process.
fn group(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(2)?.parse().ok()
}
