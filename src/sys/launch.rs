//! Starting a program that stands still before its first instruction until the tracer is ready.
#![expect(unsafe_code, reason = "code between fork and exec")]

use super::{Errno, process};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::thread::JoinHandle;

/// A process forked for a program and waiting to execute it.
pub struct Launch {
    pid: i32,
    go: OwnedFd,
    starter: JoinHandle<io::Result<Child>>,
}

impl Launch {
    /// Forks. The child waits for [`Launch::go`]; without it, it ends.
    ///
    /// # Errors
    /// No process or no descriptor to be had.
    pub fn prepare(mut command: Command) -> io::Result<Self> {
        let (told, tell) = process::pipe()?;
        let (gate, go) = process::pipe()?;
        let held = process::number(&go);
        let before_exec = move || {
            // Else the child would hold its own gate open, and wait for ever for a tracer that died.
            // SAFETY: this is the forked child, which runs nothing that owns its copy of the descriptor.
            unsafe { libc::close(held) };
            process::give_pid(&tell);
            if process::take_byte(&gate) { Ok(()) } else { Err(io::Error::from(Errno::CANCELED)) }
        };
        // SAFETY: between fork and exec only write and read are called, on descriptors that the closure owns.
        unsafe { command.pre_exec(before_exec) };
        // `spawn` returns once the program runs, so it waits in a thread of its own. The command goes with it, and with
        // the command the descriptors of the closure: a child that failed is then noticed at `told`.
        let starter = std::thread::spawn(move || command.spawn());
        match process::take_pid(&told) {
            Some(pid) => Ok(Self { pid, go, starter }),
            None => {
                drop(go);
                match starter.join() {
                    Ok(Err(e)) => Err(e),
                    _ => Err(io::Error::from(Errno::CHILD)),
                }
            }
        }
    }

    /// The process that will be the program.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Lets it execute the program. The result is in [`Launched::result`]: a tracer must serve the stops on the way there.
    pub fn go(self) -> Launched {
        process::give_byte(&self.go);
        Launched { starter: self.starter }
    }
}

/// A process on its way into a program.
pub struct Launched {
    starter: JoinHandle<io::Result<Child>>,
}

impl Launched {
    /// Waits until the program runs or has failed to. The process of a failed one is reaped here.
    ///
    /// # Errors
    /// Why the program could not be executed: `NotFound`, `PermissionDenied`, …
    pub fn result(self) -> io::Result<()> {
        match self.starter.join() {
            Ok(started) => started.map(drop),
            Err(_) => Err(io::Error::from(Errno::CHILD)),
        }
    }
}
