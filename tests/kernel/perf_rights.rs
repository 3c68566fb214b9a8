//! Page faults told by perf events: who may have them, and how much room there is for them.
//!
//! # Safety
//! Stores go to a [`Memory`], in children that do nothing else; a child gives up its user for good.
#![expect(unsafe_code, reason = "claims about stores and system calls")]

use crate::case;
use crate::child::{self};
use crate::claim::{ADMIN, Claim, Skip, Verdict, claim};
use crate::memory::last_errno;
use crate::perf::{RING, alone, waiting};
use crate::tracee;
use cowbell::sys::Errno;
use cowbell::sys::perf::rings::Rings;
use cowbell::sys::perf::{Follow, Options, PerfEvent, Ring};
use rustix::fs::Mode;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub const CLAIMS: &[Claim] = &[
    claim!(
        kernel_faults_need_permission,
        "Without CAP_PERFMON and with `kernel.perf_event_paranoid` at 2 an event without `exclude_kernel` is EACCES, and so is one that tells frames; others are accepted."
    )
    .needs(&[ADMIN])
    .restores(&["/proc/sys/kernel/perf_event_paranoid"]),
    claim!(
        rings_beyond_the_locked_limit_are_refused,
        "Without CAP_IPC_LOCK a ring is EPERM beyond `kernel.perf_event_mlock_kb` a CPU and `RLIMIT_MEMLOCK`, which count for all rings of a user; a smaller one is accepted."
    )
    .needs(&[ADMIN]),
    claim!(
        rings_beyond_the_address_space_are_enomem,
        "`mmap` of a ring for which `RLIMIT_AS` leaves no addresses is ENOMEM, not EPERM."
    ),
    claim!(
        exec_with_privilege_or_of_an_unreadable_program_ends_fault_events,
        "`exec` of a set-user-ID program, or of one that the user may not read, ends the events of the process: it hangs up and tells no more; after another exec it goes on. Opened anew it tells again."
    )
    .needs(&[ADMIN]),
];

/// Makes the calling process an ordinary user's, without any capability.
fn become_nobody() {
    // SAFETY: the call takes three numbers and changes this process's user only.
    let changed = unsafe { libc::setresuid(65534, 65534, 65534) };
    assert_eq!(changed, 0, "setresuid: {}", last_errno());
}

fn kernel_faults_need_permission() -> Verdict {
    let setting = "/proc/sys/kernel/perf_event_paranoid";
    std::fs::write(setting, "2").map_err(|e| Skip(format!("{setting}: {e}")))?;
    child::spawn(|| {
        become_nobody();
        let options = Options {
            cpu: None,
            follow: Follow::Thread,
            kernel: true,
            frames: false,
            registers: false,
            code: false,
            wakeup_bytes: 0,
        };
        assert_eq!(PerfEvent::open(0, options).map(drop), Err(Errno::ACCESS));
        assert_eq!(PerfEvent::open(0, Options { kernel: false, ..options }).map(drop), Ok(()));
        assert_eq!(
            PerfEvent::open(0, Options { kernel: false, frames: true, ..options }).map(drop),
            Err(Errno::ACCESS)
        );
    })
    .finish();
    Ok(())
}

fn rings_beyond_the_locked_limit_are_refused() -> Verdict {
    let kib = cowbell::sys::limits::sysctl("kernel/perf_event_mlock_kb");
    let kib = kib.ok_or_else(|| Skip("no kernel.perf_event_mlock_kb".to_owned()))?;
    child::spawn(|| {
        become_nobody();
        let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(rustix::process::Resource::Memlock, none).expect("setrlimit");
        let event = || {
            PerfEvent::open(
                0,
                Options {
                    cpu: None,
                    follow: Follow::Thread,
                    kernel: false,
                    frames: false,
                    registers: false,
                    code: false,
                    wakeup_bytes: 0,
                },
            )
        };
        let cpus = std::thread::available_parallelism().expect("a count").get();
        let most = (kib as usize) << 10;
        let too_large = Ring::new(event().expect("an event"), 4 * cpus * most);
        assert_eq!(too_large.map(drop).map_err(|(_, e)| e), Err(Errno::PERM));
        let rings = Rings::open(0, 16 * most).expect("smaller ones");
        assert!(rings.bytes() <= cpus * most, "{} of {}", rings.bytes(), cpus * most);
        assert!(rings.bytes() >= most / 4, "not smaller than needed: {}", rings.bytes());
    })
    .finish();
    Ok(())
}

fn rings_beyond_the_address_space_are_enomem() -> Verdict {
    if page_faults_are_refused() {
        return Err(Skip("kernel.perf_event_paranoid is 3 or more".to_owned()));
    }
    child::spawn(|| {
        let mut rings = Rings::prepare(Follow::Process);
        let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(rustix::process::Resource::As, none).expect("setrlimit");
        let refused = rings.open_prepared(0, 1 << 16).expect_err("there is no room");
        assert!(refused.call.starts_with("mmap") && refused.errno == Errno::NOMEM, "{refused:?}");
    })
    .finish();
    Ok(())
}

fn page_faults_are_refused() -> bool {
    cowbell::sys::probe::page_faults().is_err()
}

/// A copy of this machine's `true` for nobody.
pub fn program(name: &str, mode: u32) -> CString {
    let path = case::scratch().join(name);
    std::fs::copy("/bin/true", &path).expect("a copy of /bin/true");
    rustix::fs::chmod(&path, Mode::from_raw_mode(mode)).expect("chmod");
    rustix::fs::chmod(case::scratch(), Mode::from_raw_mode(0o755)).expect("chmod");
    CString::new(Path::new(&path).as_os_str().as_bytes()).expect("a path")
}

fn exec_with_privilege_or_of_an_unreadable_program_ends_fault_events() -> Verdict {
    if !cowbell::sys::tracing::may_give_privilege(&case::scratch().display().to_string()) {
        return Err(Skip("TMPDIR is on a nosuid mount".to_owned()));
    }
    for (name, mode, ends) in [("plain", 0o755, false), ("privileged", 0o4755, true), ("unreadable", 0o711, true)] {
        let path = program(name, mode);
        let (child, go) = waiting(|| {
            become_nobody();
            let arguments = [path.as_ptr(), std::ptr::null()];
            // SAFETY: the path and the list of arguments end with a null.
            unsafe { libc::execv(path.as_ptr(), arguments.as_ptr()) };
            panic!("exec: {}", last_errno());
        });
        let ring = alone(child.pid, false, RING)?;
        tracee::exec_stop(child.pid, &go);
        let hung_up = cowbell::sys::pidfd::readable(ring.as_fd(), Some(std::time::Duration::ZERO)).expect("poll");
        assert_eq!(hung_up, ends, "{name}: after the exec");
        let anew = alone(child.pid, false, RING)?;
        tracee::end(child.pid);
        let [old, new] = [&ring, &anew].map(|ring| ring.event().counts().expect("counts").faults);
        assert!(new > 20, "{name}: the program takes page faults: {new}");
        assert_eq!(old >= new, !ends, "{name}: {old} told by the event from before, {new} by the new one");
    }
    Ok(())
}
