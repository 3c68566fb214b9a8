//! `cowbell attach --control SOCKET`: a program has itself, or one it knows, watched for a time.
//!
//! ```text
//! program                         cowbell
//!   starts it             ->        starts itself anew, and ends: no child of the program watches it, or is watched
//!                         <-        its number, as a line: the program may have to allow it (Yama)
//!   any byte              ->        attaches
//!                         <-        `attached`, once the process is watched
//!   shuts the socket down ->        lets go, and reports
//! ```
//!
//! The end of the watched process ends the watch as well, whoever else it has forked: nothing is left of either.

use super::{CONTROL, ENDED, Session};
use crate::failure::Failure;
use crate::trace::link::TracerCommand;
use cowbell::sys::epoll::Poller;
use cowbell::sys::{descriptor, pidfd, process};
use std::env;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Starts this program anew with the same arguments, in a process group of its own: signals of a terminal are for the program.
///
/// # Errors
/// It cannot be started.
pub fn step_aside(socket: &OwnedFd) -> Result<(), Failure> {
    descriptor::keep_on_exec(socket).map_err(|e| Failure::new(format!("cannot pass the socket on: {e}")))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("cowbell").args(env::args_os().skip(1));
    command.args(["--aside", &descriptor::number(socket).to_string()]).process_group(0);
    // Nobody waits for it: it is its own.
    command.spawn().map(drop).map_err(|e| Failure::new(format!("cannot start: {e}")))
}

/// The socket, and the watched process' end.
pub struct Control {
    socket: UnixStream,
    end: OwnedFd,
    pid: i32,
    is_told: bool,
}

impl Control {
    /// Says who will attach, and waits for leave; nothing where the other side is gone.
    ///
    /// # Errors
    /// There is no such process.
    pub fn open(socket: OwnedFd, pid: i32) -> Result<Option<Self>, Failure> {
        let end = pidfd::open(pid).map_err(|e| Failure::new(format!("process {pid} cannot be watched: {e}")))?;
        let mut socket = UnixStream::from(socket);
        let _gone = writeln!(socket, "{}", process::pid());
        let has_ended = |[_, ended]: [bool; 2]| ended;
        let is_over = pidfd::wait_any([socket.as_fd(), end.as_fd()]).map_or(true, has_ended);
        let is_allowed = !is_over && socket.read(&mut [0; 16]).is_ok_and(|got| got > 0);
        Ok(is_allowed.then_some(Self { socket, end, pid, is_told: false }))
    }

    /// Has a poller wait for either.
    pub fn add_to(&self, poller: &Poller) -> Result<(), cowbell::sys::Errno> {
        poller.add(&self.socket, CONTROL)?;
        poller.add(&self.end, ENDED)
    }
}

impl Session {
    /// Tells the program once it is watched, and lets go where it says so, ends, or cannot be watched.
    pub(super) fn obey(&mut self, found: &[u64]) {
        let Some(control) = &mut self.control else { return };
        if !control.is_told && self.kept.watches(control.pid) {
            control.is_told = true;
            let _gone = control.socket.write_all(b"attached\n");
        }
        let is_refused = !control.is_told && self.kept.is_refused(control.pid);
        if is_refused || found.contains(&CONTROL) || found.contains(&ENDED) {
            // Both are said once.
            let _removed = (self.poller.remove(&control.socket), self.poller.remove(&control.end));
            self.control = None;
            self.order(TracerCommand::Detach);
        }
    }
}
