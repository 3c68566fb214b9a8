//! The kind of a new task, and the injection of userfaultfds into a process.

use super::lender::{Lender, Lenders};
use super::watch::{BIT_FEATURES, Doors, EVENT_FEATURES, SAMPLE_FEATURES};
use crate::record::Mode;
use cowbell::sys::inject::{Call, Injection, Interrupted};
use cowbell::sys::ptrace::{self, EventStop, Options, Stop, WaitStatus};
use cowbell::sys::remote::RemoteUffd;
use cowbell::sys::uffd::Features;
use cowbell::sys::{Errno, process, procfs, tracing};
use std::sync::Arc;

/// The kind of a new task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskKind {
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
    /// The process ends: it stands in this state.
    Ending(WaitStatus),
}

/// The kind of the task that a thread of `pid` has just made.
pub fn kind(pid: i32, task: i32, event: EventStop) -> TaskKind {
    if procfs::is_thread_of(pid, task) {
        return TaskKind::Thread;
    }
    match tracing::same_memory(pid, task) {
        Ok(true) => TaskKind::Shares,
        Ok(false) => TaskKind::Copy,
        Err(Errno::SRCH) => TaskKind::Gone,
        // A kernel that cannot compare: what vfork makes shares, as a rule.
        Err(_) if event == EventStop::VFork => TaskKind::Shares,
        Err(_) => TaskKind::Copy,
    }
}

/// The events for which every tracee stops.
pub fn traced() -> Options {
    Options::SYSGOOD | Options::FORK | Options::VFORK | Options::CLONE | Options::EXEC | Options::EXIT
}

/// Makes userfaultfds in a process, by its thread `tid` that stands in a [`Stop::Trap`], and takes them over. Returns the
/// stop that the thread is left in. `wait` waits for the thread's next stop. `descends`: the tracer started it, or an
/// ancestor of it.
///
/// Meanwhile its registers are not its own. Should the tracer die now, the process is better dead than going on with a
/// wrong result of its fork.
pub fn open_doors(
    tid: i32,
    pid: i32,
    mode: Mode,
    descends: bool,
    lenders: &mut Lenders,
    wait: &mut Wait<'_>,
) -> Result<(Doors, Stop), Unarmed> {
    if let Some(filter) = seccomp(tid, descends) {
        return Err(Unarmed::Because(filter));
    }
    let _gone = ptrace::set_options(tid, traced() | Options::KILL_WITH_TRACER);
    let opened = inject(tid, pid, mode, lenders, wait);
    let _gone = ptrace::set_options(tid, traced());
    opened
}

/// Waits for a thread's next stop.
pub type Wait<'a> = dyn FnMut(i32) -> Result<WaitStatus, Errno> + 'a;

fn inject(
    tid: i32,
    pid: i32,
    mode: Mode,
    lenders: &mut Lenders,
    wait: &mut Wait<'_>,
) -> Result<(Doors, Stop), Unarmed> {
    let mut injection = Injection::begin(tid, wait).map_err(|e| match e {
        Errno::IO => Unarmed::Because("it runs 32-bit code".to_owned()),
        e => Unarmed::Because(format!("no system call could be injected: {e}")),
    })?;
    let mut doors = Doors::default();
    let synchronous = match mode {
        Mode::Trace => Some(EVENT_FEATURES),
        Mode::Faults => Some(SAMPLE_FEATURES),
        Mode::Count => None,
    };
    if let Some(features) = synchronous {
        let own = optional(open_door(&mut injection, pid, false, features))?;
        let opened = match own {
            // The traced process has fewer rights than this one.
            Err(Errno::PERM) => match lenders.of(pid) {
                Ok(lender) => optional(borrow_door(&mut injection, pid, lender, features))?.map_err(|e| e.to_string()),
                Err(why) => Err(why),
            },
            own => own.map_err(|e| e.to_string()),
        };
        match opened {
            Ok(events) => doors.events = Some(Arc::new(events)),
            Err(why) => doors.without_events = Some(format!("it cannot make a userfaultfd that stops writers: {why}")),
        }
    }
    // Asynchronous bits are set for the kernel's writes too, so this does for all. Page faults tell what they would.
    let bits = match mode {
        Mode::Faults => None,
        Mode::Trace | Mode::Count => Some(optional(open_door(&mut injection, pid, true, BIT_FEATURES))?),
    };
    let stop = injection.finish().map_err(|interrupted| match interrupted {
        Interrupted::Refused(e) => Unarmed::Because(format!("its registers could not be put back: {e}")),
        Interrupted::Ending(status) => Unarmed::Ending(status),
    })?;
    match bits {
        None => {}
        Some(Ok(bits)) => doors.asynchronous = Some(bits),
        Some(Err(e)) => return Err(Unarmed::Because(format!("it cannot make a userfaultfd: {e}"))),
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
    features: Features,
) -> Result<RemoteUffd, Interrupted> {
    let number = descriptor(injection, Call::Userfaultfd { user_mode_only })?;
    let taken = RemoteUffd::adopt(pid, number, features);
    injection.call(Call::Close(number))?;
    Ok(taken?)
}

/// A synchronous userfaultfd for a process that may not make one by itself: from a device that is lent to it.
fn borrow_door(
    injection: &mut Injection<'_>,
    pid: i32,
    lender: &Lender,
    features: Features,
) -> Result<RemoteUffd, Interrupted> {
    let process = descriptor(injection, Call::OpenProcess(lender.pid()))?;
    let device = descriptor(injection, Call::TakeDescriptor { process, number: lender.number() });
    injection.call(Call::Close(process))?;
    let device = device?;
    let number = descriptor(injection, Call::NewUserfaultfd(device));
    injection.call(Call::Close(device))?;
    let number = number?;
    let taken = RemoteUffd::adopt(pid, number, features);
    injection.call(Call::Close(number))?;
    Ok(taken?)
}

/// Makes a call that returns a descriptor.
fn descriptor(injection: &mut Injection<'_>, call: Call) -> Result<i32, Interrupted> {
    let number = i32::try_from(injection.call(call)?).map_err(|_| Errno::IO)?;
    if number < 0 { Err(Errno::from_raw_os_error(-number).into()) } else { Ok(number) }
}

/// A filter that could kill the process for a system call it does not expect. A descendant of the tracer that has no more
/// filters than the tracer has the very same ones, and these let the tracer make a userfaultfd of its own.
fn seccomp(tid: i32, descends: bool) -> Option<String> {
    let (filtered, filters) = filters(tid)?;
    if !filtered || descends && filters.is_some() && filters == self::filters(process::pid())?.1 {
        return None;
    }
    Some(
        "a seccomp filter is on (its own, or a container's), which might kill it for the userfaultfd it would have to make; \
         in a container `docker run --security-opt seccomp=unconfined` leaves it out"
            .to_owned(),
    )
}

/// Tells whether a thread is under seccomp, and under how many filters, where the kernel says (5.9).
fn filters(tid: i32) -> Option<(bool, Option<i32>)> {
    let status = procfs::status::Status::of(tid).ok()?;
    Some((status.number("Seccomp")? != 0, status.number("Seccomp_filters")))
}
