//! Userfaultfds for programs that may not make the full one themselves: those of other users, when the tracer is root.
//!
//! ```text
//!  tracer (root)      opens /dev/userfaultfd, and starts
//!    lender           a process of the target's user that holds the descriptor and does nothing
//!  target             pidfd_open(lender), pidfd_getfd(descriptor), ioctl(USERFAULTFD_IOC_NEW): calls injected
//! ```
//!
//! A userfaultfd is about the memory of whoever makes it, so the target must make it, with its own rights. An open
//! device asks for no right, and a descriptor can be taken from a process that one may trace: one of the same user
//! without capabilities. So nothing is written into the target's memory and none of its credentials change.

use cowbell::sys::{Errno, descriptor, pipe, prctl, procfs, tracing, uffd};
use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};

/// The lenders that there are, by user and group; of those that cannot be, why.
#[derive(Debug, Default)]
pub struct Lenders(HashMap<(u32, u32), Result<Lender, String>>);

/// A process that holds the device for others of its user. It ends when this is dropped, or the tracer is gone.
#[derive(Debug)]
pub struct Lender {
    process: Child,
    /// Open as long as the lender is to live.
    _stdin: Option<ChildStdin>,
    number: i32,
}

impl Lender {
    /// The lender's process.
    pub fn pid(&self) -> i32 {
        self.process.id() as i32
    }

    /// The number of the device's descriptor in the lender.
    pub fn number(&self) -> i32 {
        self.number
    }

    fn start(user: u32, group: u32) -> Result<Self, String> {
        let device = uffd::device().map_err(|e| format!("/dev/userfaultfd cannot be opened for it ({e})"))?;
        let failed = |e: &dyn std::fmt::Display| format!("nothing could hand it /dev/userfaultfd ({e})");
        descriptor::keep_on_exec(&device).map_err(|e| failed(&e))?;
        let number = device.as_raw_fd();
        let mut command = Command::new("/proc/self/exe");
        command.arg0("cowbell").args(["lender", &number.to_string()]).uid(user).gid(group);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().map_err(|e| failed(&e))?;
        let stdin = process.stdin.take();
        let mut ready = [0; 1];
        let said = process.stdout.take().map(|mut stdout| stdout.read_exact(&mut ready));
        let lender = Self { process, _stdin: stdin, number };
        match said {
            Some(Ok(())) => Ok(lender),
            _ => Err(failed(&"the process that should hold it did not start")),
        }
    }
}

impl Lenders {
    /// The lender for the process `pid`.
    ///
    /// # Errors
    /// Why nobody can.
    pub fn of(&mut self, pid: i32) -> Result<&Lender, String> {
        for space in ["user", "pid"] {
            let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{space}")).ok();
            if of("self") != of(&pid.to_string()) {
                return Err(format!("it is in a {space} namespace of its own, where it cannot be handed one"));
            }
        }
        let status = procfs::status::Status::of(pid).unwrap_or_default();
        // A process takes descriptors of those that run as its real user and group, whatever its effective ones are.
        let real = |name| status.numbers(name).first().and_then(|&id| u32::try_from(id).ok());
        let (user, group) = real("Uid").zip(real("Gid")).ok_or("its user is not known")?;
        match self.0.entry((user, group)).or_insert_with(|| Lender::start(user, group)) {
            Ok(lender) => Ok(lender),
            Err(why) => Err(why.clone()),
        }
    }
}

/// Finds out whether programs of other users can be handed a userfaultfd.
///
/// # Errors
/// Why not, and what would help.
pub fn may_lend() -> Result<(), String> {
    match uffd::device() {
        Ok(_) => Ok(()),
        Err(e @ Errno::NOENT) => {
            Err(format!("there is no /dev/userfaultfd ({e}): it takes Linux 6.1, in a container --device"))
        }
        Err(e) => Err(format!("/dev/userfaultfd is root's ({e}): so are programs of other users")),
    }
}

/// The lender's own process: it holds what it was started with until nobody holds the other end of its standard input.
pub fn run(_device: OwnedFd) -> ExitCode {
    prctl::set_name(c"cowbell");
    if tracing::open_to_tracers().is_err() {
        return ExitCode::FAILURE;
    }
    pipe::give_byte(std::io::stdout());
    let mut rest = Vec::new();
    let _end = std::io::stdin().read_to_end(&mut rest);
    ExitCode::SUCCESS
}
