//! A contender's run: a process of its own, so that nobody inherits another's threads, memory or caches of the
//! allocator; killed with all its workers when it takes too long.

use super::order::{Answer, Order};
use crate::error::{Error, Result};
use cowbell::sys::{Errno, pidfd};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The Python contenders.
const PYTHON: &str = include_str!("../../peers/pool.py");

/// The longest time that a contender's run may take. Most take a second or two.
const CONTENDER_MAX: Duration = Duration::from_secs(180);
/// The longest time for hundreds of workers that read all of the data.
const HOLDER_MAX: Duration = Duration::from_secs(900);

/// Runs one contender and gives its answer.
pub(super) fn contender(program: &Path, order: &Order) -> Result<Answer> {
    if order.peer.is_python() {
        let mut command = Command::new("python3");
        command.args(["-c", PYTHON, &json(order)?]);
        return run(command, CONTENDER_MAX);
    }
    ourselves(program, "pool-peer", order, CONTENDER_MAX)
}

/// Makes one pool, and gives what was found about its workers.
pub(super) fn holder<T: DeserializeOwned>(program: &Path, order: &impl Serialize) -> Result<T> {
    ourselves(program, "pool-hold", order, HOLDER_MAX)
}

/// Runs a hidden subcommand of this program that answers one line.
fn ourselves<T: DeserializeOwned>(program: &Path, what: &str, order: &impl Serialize, most: Duration) -> Result<T> {
    let mut command = Command::new(program);
    command.args([what, &json(order)?]);
    run(command, most)
}

fn json(order: &impl Serialize) -> Result<String> {
    serde_json::to_string(order).map_err(|e| Error::Failed(e.to_string()))
}

fn run<T: DeserializeOwned>(mut command: Command, most: Duration) -> Result<T> {
    let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let failed = |why: &dyn std::fmt::Display| Error::Failed(format!("{name}: {why}"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|e| match e.kind() {
        ErrorKind::NotFound => failed(&"not found on the PATH; skipped"),
        _ => failed(&e),
    })?;
    // The child's answer and its complaints are shorter than a pipe is long, so that nobody need read meanwhile.
    let pid = child.id() as i32;
    let ended =
        pidfd::open(pid).map_err(|e: Errno| failed(&e)).and_then(|fd| Ok(pidfd::wait_end(fd.as_fd(), Some(most))?));
    // The whole group is killed, and with it any worker that is left.
    if let Some(group) = Pid::from_raw(pid) {
        let _gone_already = kill_process_group(group, Signal::KILL);
    }
    let status = child.wait().map_err(|e| failed(&e))?;
    if !ended? {
        return Err(failed(&format_args!("killed after {} s", most.as_secs())));
    }
    let (mut answer, mut complaint) = (String::new(), String::new());
    let read = child.stdout.take().map_or(Ok(0), |mut out| out.read_to_string(&mut answer));
    read.map_err(|e| failed(&e))?;
    let _lossy = child.stderr.take().map_or(Ok(0), |mut out| out.read_to_string(&mut complaint));
    if !status.success() {
        let last = complaint.trim_end().lines().last().unwrap_or("no word of why");
        return Err(failed(&format_args!("{status}: {last}")));
    }
    serde_json::from_str(&answer).map_err(|e| failed(&format_args!("{e} in {answer:?}")))
}
