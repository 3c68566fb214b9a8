//! What a fork made, and the injection of userfaultfds into a process.

use super::watch::{BIT_FEATURES, Doors, EVENT_FEATURES};
use crate::record::Mode;
use cowbell::sys::inject::{Call, Injection, Interrupted};
use cowbell::sys::ptrace::{self, Event, Options, Status, Stop};
use cowbell::sys::remote::RemoteUffd;
use cowbell::sys::{Errno, procfs, tracing};

/// What a new task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A thread of its maker's process.
    Thread,
    /// A process that shares its maker's memory.
    Shares,
    /// A process with a copy of its maker's memory.
    Copy,
    /// Not there any more.
    Gone,
}

/// Why a process is not watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unarmed {
    /// For this reason.
    Because(String),
    /// It ends: it stands in this state.
    Ending(Status),
}

/// What the task is that a thread of `pid` has just made.
pub fn kind(pid: i32, task: i32, event: Event) -> Kind {
    if procfs::is_thread_of(pid, task) {
        return Kind::Thread;
    }
    match tracing::same_memory(pid, task) {
        Ok(true) => Kind::Shares,
        Ok(false) => Kind::Copy,
        Err(Errno::SRCH) => Kind::Gone,
        // A kernel that cannot compare: what vfork makes shares, as a rule.
        Err(_) if event == Event::VFork => Kind::Shares,
        Err(_) => Kind::Copy,
    }
}

/// What every tracee stops for.
pub fn traced() -> Options {
    Options::SYSGOOD | Options::FORK | Options::VFORK | Options::CLONE | Options::EXEC | Options::EXIT
}

/// Makes userfaultfds in a process, by its thread `tid` that stands in a [`Stop::Trap`], and takes them over. Returns the
/// stop that the thread is left in. `wait` waits for the thread's next stop.
///
/// Meanwhile its registers are not its own. Should the tracer die now, the process is better dead than going on with a
/// wrong result of its fork.
pub fn open_doors(tid: i32, pid: i32, mode: Mode, wait: &mut Wait<'_>) -> Result<(Doors, Stop), Unarmed> {
    if let Some(filter) = seccomp(tid) {
        return Err(Unarmed::Because(filter));
    }
    let _gone = ptrace::set_options(tid, traced() | Options::KILL_WITH_TRACER);
    let opened = inject(tid, pid, mode, wait);
    let _gone = ptrace::set_options(tid, traced());
    opened
}

/// Waits for a thread's next stop.
pub type Wait<'a> = dyn FnMut(i32) -> Result<Status, Errno> + 'a;

fn inject(tid: i32, pid: i32, mode: Mode, wait: &mut Wait<'_>) -> Result<(Doors, Stop), Unarmed> {
    let mut injection = Injection::begin(tid, wait).map_err(|e| match e {
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
    let mode = procfs::status::Status::of(tid).ok()?.number("Seccomp")?;
    (mode != 0)
        .then(|| "a seccomp filter is on, which might kill it for the userfaultfd it would have to make".to_owned())
}
