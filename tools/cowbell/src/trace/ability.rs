//! The abilities that this kernel and this user give the tracer.

use super::baseline;
use super::entries;
use super::tables;
use super::watch::{BIT_FEATURES, EVENT_FEATURES};
use cowbell::sys::pagemap::Pagemap;
use cowbell::sys::perf::{Follow, Options, PerfEvent};
use cowbell::sys::uffd::{Door, Uffd};
use cowbell::sys::{Errno, limits, procfs, ptrace, tracing};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// Finds out whether pages can be counted.
///
/// # Errors
/// Why not, and what would help.
pub fn count() -> Result<(), String> {
    may_trace()?;
    Uffd::open(Door::UserModeOnly, BIT_FEATURES).map(drop).map_err(|e| match e {
        Errno::INVAL => format!("this kernel cannot note writes without stopping the writer ({e}): it takes Linux 6.7"),
        e => refused("userfaultfd", e),
    })
}

/// Finds out whether each first write can be an event.
///
/// # Errors
/// Why not, and what would help.
pub fn trace() -> Result<(), String> {
    Uffd::open(Door::SystemCall, EVENT_FEATURES).map(drop).map_err(|e| match e {
        // The call is refused for want of a right only to a process that does not have it.
        Errno::PERM if !limits::has_seccomp_filter() && (!limits::user().may_trace || !is_of_the_machine()) => {
            let of_first = of_first(limits::user().may_trace);
            format!("trace needs root (CAP_SYS_PTRACE{of_first}) or `sysctl vm.unprivileged_userfaultfd=1` ({e})")
        }
        e => refused("userfaultfd", e),
    })
}

/// Finds out whether page faults can be heard of through perf events.
///
/// # Errors
/// Why not, and what would help.
pub fn faults() -> Result<(), String> {
    may_trace()?;
    tables::ability().map_err(|e| match e {
        Errno::ACCESS | Errno::PERM => {
            let of_first = of_first(limits::user().may_administer);
            format!("page tables are read by root (CAP_SYS_ADMIN{of_first}), or by anybody from Linux 6.7 on ({e})")
        }
        e => format!("page tables cannot be scanned ({e})"),
    })?;
    open_faults(false).map_err(|e| match e {
        Errno::ACCESS | Errno::PERM | Errno::NOSYS if limits::has_seccomp_filter() => refused("perf_event_open", e),
        Errno::ACCESS | Errno::PERM => {
            let paranoid = limits::sysctl("kernel/perf_event_paranoid");
            let paranoid = paranoid.map_or_else(String::new, |value| format!(", it is {value}"));
            format!("page faults are told to root (CAP_PERFMON) or after `sysctl kernel.perf_event_paranoid=2`{paranoid} ({e})")
        }
        e => refused("perf_event_open", e),
    })
}

/// Finds out whether page faults tell all: those that the kernel takes, what each found, and by their frames which pages were
/// copied. Without that there are bounds of what was copied, and often wide ones.
///
/// # Errors
/// Why not, and what would help.
pub fn all_faults() -> Result<(), String> {
    faults()?;
    if open_faults(true).is_ok() && frames() {
        return Ok(());
    }
    let of_first = of_first(limits::user().may_administer);
    Err(format!(
        "root (CAP_SYS_ADMIN{of_first}) has lines at little cost; `--mode faults` tells them here with wider bounds"
    ))
}

/// Tells whether this process' capabilities are those that the kernel asks for where the whole machine is concerned.
fn is_of_the_machine() -> bool {
    limits::is_in_first_user_namespace()
}

/// The words that tell which capability of that name is meant, for a process that `holds` one which does not count.
fn of_first(holds: bool) -> &'static str {
    if holds && !is_of_the_machine() { " in the first user namespace" } else { "" }
}

/// Opens an event of page faults; `kernel`: also of those that the kernel takes.
fn open_faults(kernel: bool) -> Result<(), Errno> {
    let options = Options {
        cpu: None,
        follow: Follow::Tree,
        kernel,
        frames: kernel,
        registers: false,
        code: true,
        wakeup_bytes: 0,
    };
    PerfEvent::open(0, options).map(drop)
}

/// Finds out whether this process may use ptrace at all. It is asked of a process that cannot be, so that only a refusal of the
/// call itself shows.
fn may_trace() -> Result<(), String> {
    match ptrace::seize(i32::MAX, ptrace::Options::SYSGOOD) {
        Err(e @ (Errno::PERM | Errno::ACCESS | Errno::NOSYS)) => Err(refused("ptrace", e)),
        _ => Ok(()),
    }
}

/// Why a call that the kernel has is refused, and what would help.
fn refused(call: &str, e: Errno) -> String {
    if matches!(e, Errno::MFILE | Errno::NFILE) {
        return format!("the call {call} gets no descriptor ({e}): `ulimit -n` raises their number");
    }
    let option = match call {
        "ptrace" => "`docker run --cap-add SYS_PTRACE`",
        _ => "`docker run --security-opt seccomp=PROFILE`, with a profile that allows it,",
    };
    if limits::has_seccomp_filter() {
        return format!(
            "the call {call} is refused ({e}), and this process runs under a seccomp filter, as in a container; {option} \
             or `--security-opt seccomp=unconfined` lifts it"
        );
    }
    match e {
        Errno::NOSYS => format!("this kernel was built without {call} ({e})"),
        e => format!(
            "the call {call} is refused ({e}): a security module may forbid it; see `journalctl -k --grep=denied`"
        ),
    }
}

/// The privilege that the program has which a process has just executed and that the kernel withholds from it, because this
/// tracer has none itself. `None` where nothing is withheld, or something else than the tracer does it.
pub fn privilege_withheld(pid: i32) -> Option<String> {
    if limits::user().may_trace {
        return None;
    }
    let status = procfs::status::Status::of(pid).ok()?;
    let effective = |name| status.numbers(name).get(1).and_then(|&id| u32::try_from(id).ok());
    let path = format!("/proc/{pid}/exe");
    if status.number("NoNewPrivs")? != 0 || !tracing::may_give_privilege(&path) {
        return None;
    }
    let file = fs::metadata(&path).ok()?;
    let program = fs::read_link(&path).ok()?;
    let user = file.mode() & 0o4000 != 0 && Some(file.uid()) != effective("Uid");
    let group = file.mode() & 0o2010 == 0o2010 && Some(file.gid()) != effective("Gid");
    let bits = match (user, group) {
        (true, _) => format!("set-user-ID {}", file.uid()),
        (false, true) => format!("set-group-ID {}", file.gid()),
        (false, false) if tracing::has_file_capabilities(&path) => "given capabilities".to_owned(),
        (false, false) => return None,
    };
    Some(format!("{} is {bits}", program.display()))
}

/// Finds out whether page frames may be read.
///
/// # Errors
/// Why not.
pub fn page_frames() -> Result<(), String> {
    if frames() {
        return Ok(());
    }
    Err(format!("page frames need root (CAP_SYS_ADMIN{})", of_first(limits::user().may_administer)))
}

/// Tells whether page frames may be read. They are all 0 without CAP_SYS_ADMIN.
pub fn frames() -> bool {
    let local = 0u8;
    let page = std::ptr::from_ref(&local).addr() as u64 / baseline::page_bytes() * baseline::page_bytes();
    let entry = Pagemap::open_self().and_then(|pagemap| entries::entry(&pagemap, page));
    entry.is_ok_and(|entry| entry.frame() != 0)
}

/// Finds out whether processes may be attached to that this one has not started.
///
/// # Errors
/// Why not, and what would help.
pub fn attach() -> Result<(), String> {
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let may_all = cowbell::sys::limits::user().may_trace;
    match scope.trim() {
        "" | "0" => Ok(()),
        "1" | "2" if may_all => Ok(()),
        "3" => Err("kernel.yama.ptrace_scope is 3: nobody may trace until the next boot".to_owned()),
        scope => {
            Err(format!("kernel.yama.ptrace_scope is {scope}: attach as root, or `sysctl kernel.yama.ptrace_scope=0`"))
        }
    }
}
