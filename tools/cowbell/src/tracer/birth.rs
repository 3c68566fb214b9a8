//! What a fork made, and the injection of userfaultfds into a process.

use super::watch::{BIT_FEATURES, Doors, EVENT_FEATURES};
use crate::capture::record::Mode;
use cowbell::sys::Errno;
use cowbell::sys::inject::{Call, Injection, Interrupted};
use cowbell::sys::ptrace::{self, Status, Stop};
use cowbell::sys::registers::Registers;
use cowbell::sys::remote::{Memory, RemoteUffd};
use std::fs;

/// What a new task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A thread of its maker's process.
    Thread,
    /// A process that shares its maker's memory.
    Shares,
    /// A process with a copy of its maker's memory.
    Copy,
}

/// Why a process is not watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unarmed {
    /// For this reason.
    Because(String),
    /// It ends: it stands in this state.
    Ending(Status),
}

/// What the task that this thread has just made is, from the system call it stands in.
pub fn kind(maker: i32, registers: &Registers) -> Kind {
    const THREAD: u64 = 0x0001_0000;
    const MEMORY: u64 = 0x0000_0100;
    let flags = match registers.call_number() {
        number if number == cowbell::sys::ptrace::CLONE => registers.call_argument(),
        number if number == cowbell::sys::ptrace::CLONE3 => {
            // `struct clone_args` begins with the flags.
            let mut flags = [0; 8];
            let read = Memory::open(maker).and_then(|memory| memory.read(registers.call_argument(), &mut flags));
            if read == Ok(flags.len()) { u64::from_ne_bytes(flags) } else { 0 }
        }
        number if Some(number) == cowbell::sys::ptrace::VFORK => MEMORY,
        _ => 0,
    };
    match (flags & THREAD != 0, flags & MEMORY != 0) {
        (true, _) => Kind::Thread,
        (false, true) => Kind::Shares,
        (false, false) => Kind::Copy,
    }
}

/// Makes userfaultfds in a process, by its thread `tid` that stands in a [`Stop::Trap`], and takes them over. Returns the
/// stop that the thread is left in.
pub fn open_doors(tid: i32, pid: i32, mode: Mode) -> Result<(Doors, Stop), Unarmed> {
    if let Some(filter) = seccomp(tid) {
        return Err(Unarmed::Because(filter));
    }
    let mut wait =
        |tid| ptrace::wait(Some(tid), true).and_then(|found| found.map(|(_, status)| status).ok_or(Errno::CHILD));
    let mut injection = Injection::begin(tid, &mut wait).map_err(|e| match e {
        Errno::IO => Unarmed::Because("it runs 32-bit code".to_owned()),
        e => Unarmed::Because(format!("no system call could be injected: {e}")),
    })?;
    let mut doors = Doors { events: None, bits: None };
    if mode == Mode::Trace {
        // Refused where the process has fewer rights than this one: then its pages are counted without events.
        doors.events = optional(open_door(&mut injection, pid, false, EVENT_FEATURES))?.ok();
    }
    // Asynchronous bits are set for the kernel's writes too, so this does for all.
    let bits = optional(open_door(&mut injection, pid, true, BIT_FEATURES))?;
    let stop = injection.finish().map_err(|interrupted| match interrupted {
        Interrupted::Refused(e) => Unarmed::Because(format!("its registers could not be put back: {e}")),
        Interrupted::Ending(status) => Unarmed::Ending(status),
    })?;
    match bits {
        Ok(bits) => doors.bits = Some(bits),
        Err(e) => return Err(Unarmed::Because(format!("it may not make a userfaultfd: {e}"))),
    }
    Ok((doors, stop))
}

/// A refusal is an answer; the end of the process is not.
fn optional<T>(opened: Result<T, Interrupted>) -> Result<Result<T, Errno>, Unarmed> {
    match opened {
        Ok(door) => Ok(Ok(door)),
        Err(Interrupted::Refused(e)) => Ok(Err(e)),
        Err(Interrupted::Ending(status)) => Err(Unarmed::Ending(status)),
    }
}

fn open_door(
    injection: &mut Injection<'_>,
    pid: i32,
    user_mode_only: bool,
    features: cowbell::sys::uffd::Features,
) -> Result<RemoteUffd, Interrupted> {
    let number = injection.call(Call::Userfaultfd { user_mode_only })?;
    let number = i32::try_from(number).map_err(|_| Errno::IO)?;
    if number < 0 {
        return Err(Errno::from_raw_os_error(-number).into());
    }
    let taken = RemoteUffd::adopt(pid, number, features);
    injection.call(Call::Close(number))?;
    Ok(taken?)
}

/// A filter that could kill the process for a system call it does not expect.
fn seccomp(tid: i32) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:"))?.trim();
    (mode != "0")
        .then(|| "a seccomp filter is on, which might kill it for the userfaultfd it would have to make".to_owned())
}
