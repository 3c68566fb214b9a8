//! Programs of others: wrk loads the service, Prometheus reads its figures.

use crate::http;
use crate::running::until;
use serde_json::Value;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// `wrk` at work. Dropping it kills it.
pub struct Wrk(Option<Child>);

/// The account that `wrk` gives.
#[derive(Debug)]
pub struct Account {
    /// Requests a second.
    pub per_second: f64,
    /// Lines about errors: of sockets, and of answers that are not 200.
    pub errors: Vec<String>,
}

impl Wrk {
    /// Starts it, with so many connections, until it is stopped or so many seconds are over.
    pub fn start(address: SocketAddr, connections: u32, seconds: u32) -> Self {
        let mut command = Command::new("wrk");
        command.args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s")]);
        command.arg(format!("http://{address}/packages/package-000123"));
        Self(Some(command.stdout(Stdio::piped()).spawn().expect("tools/setup installs wrk")))
    }

    /// Ctrl-C: it tells what it has seen.
    pub fn stop(self) -> Account {
        let stopped = Command::new("kill").args(["-INT", &self.0.as_ref().expect("at work").id().to_string()]).status();
        assert!(stopped.expect("kill").success());
        self.end()
    }

    /// Waits for its end.
    pub fn end(mut self) -> Account {
        let output = self.0.take().expect("at work").wait_with_output().expect("wrk ends");
        let text = String::from_utf8(output.stdout).expect("text");
        let per_second = text.lines().find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse().ok());
        let is_error = |line: &&str| line.contains("Socket errors") || line.contains("Non-2xx");
        let errors = text.lines().filter(is_error).map(str::to_owned).collect();
        Account { per_second: per_second.unwrap_or_else(|| panic!("{text}")), errors }
    }
}

impl Drop for Wrk {
    fn drop(&mut self) {
        if let Some(mut process) = self.0.take() {
            let _gone = process.kill();
            let _reaped = process.wait();
        }
    }
}

/// A Prometheus that asks the service each second.
pub struct Prometheus {
    process: Child,
    address: SocketAddr,
}

impl Prometheus {
    /// Starts it; `None` where `tools/setup` could not have it.
    pub fn start(target: SocketAddr) -> Option<Self> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let program = folder.parent()?.join("readers/prometheus");
        if !program.exists() {
            assert!(std::env::var_os("CI").is_none(), "{} is not there, which tools/setup has", program.display());
            eprintln!("skipped: {} is not there", program.display());
            return None;
        }
        let folder = folder.join(format!("prometheus-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let settings = folder.join("settings.yml");
        let text = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s }}\n\
             scrape_configs: [ {{ job_name: service, static_configs: [ {{ targets: [ '{target}' ] }} ] }} ]\n"
        );
        fs::write(&settings, text).expect("settings");
        let mut command = Command::new(program);
        command.arg(format!("--config.file={}", settings.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
        command.args(["--web.listen-address=127.0.0.1:0", "--log.level=error"]);
        let process = command.spawn().expect("Prometheus starts");
        let address = until("Prometheus' port", || listens(process.id()));
        Some(Self { process, address })
    }

    /// The values of a query.
    pub fn values(&self, query: &str) -> Vec<f64> {
        let answer = http::ask(self.address, "GET", &format!("/api/v1/query?query={query}")).expect("an answer");
        let answer: Value = serde_json::from_str(&answer.body).expect("JSON");
        let results = answer["data"]["result"].as_array().unwrap_or_else(|| panic!("{answer}"));
        let value = |result: &Value| result["value"][1].as_str()?.parse().ok();
        results.iter().filter_map(value).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
        let _scratch = fs::remove_dir_all(folder_of(std::process::id()));
    }
}

fn folder_of(pid: u32) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("prometheus-{pid}"))
}

/// The address of IPv4 that a process listens on: that of a socket of its own, in the kernel's table.
fn listens(pid: u32) -> Option<SocketAddr> {
    const LISTEN: &str = "0A";
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let sockets: Vec<String> = descriptors
        .filter_map(|entry| fs::read_link(entry.path()).ok()?.to_str().map(str::to_owned))
        .filter_map(|link| Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let mut rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
    let row = rows.find(|row| {
        row.get(3) == Some(&LISTEN) && row.get(9).is_some_and(|inode| sockets.iter().any(|own| own == inode))
    })?;
    let port = row.get(1)?.split_once(':')?.1;
    Some(SocketAddr::from(([127, 0, 0, 1], u16::from_str_radix(port, 16).ok()?)))
}
