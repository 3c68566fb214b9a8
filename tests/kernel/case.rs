//! One case: a claim in a forked process of its own, under a time limit.
//!
//! The process leads a process group. Whatever happens, the whole group is killed and reaped at
//! the end (orphans come to us, see [`adopt_orphans`]), files in `/proc/sys` and `/sys` are put
//! back, and the scratch directory is removed. Its verdict comes back through a pipe, in records
//! that end with a NUL; a panic in the case, in a thread of it or in a child of it is a failure.
//!
//! # Safety
//! The harness has one thread, so a forked child may do whatever it could.
#![expect(unsafe_code, reason = "each case is a fork")]

use crate::claim::{Claim, Run, Skip, Verdict};
use crate::docs;
use crate::memory::Kind;
use cowbell::sys::pidfd::{self, Ended};
use cowbell::sys::{pipe, prctl, process};
use libtest_mimic::{Completion, Failed};
use rustix::process::{Pid, Signal, WaitOptions};
use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The page on which the process of this case and its children write their verdict.
static VERDICT: OnceLock<OwnedFd> = OnceLock::new();
/// The case's own directory, which need not exist yet.
static SCRATCH: OnceLock<PathBuf> = OnceLock::new();

/// Processes whose parent died become ours, so that they can be reaped.
pub fn adopt_orphans() {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("PR_SET_CHILD_SUBREAPER");
}

/// The directory of this case, made on first use.
pub fn scratch() -> &'static Path {
    let path = SCRATCH.get().expect("a case is running");
    std::fs::create_dir_all(path).expect("a directory in TMPDIR");
    path
}

/// The file that [`clean_up`] takes out of the swap space again.
pub fn swap_file() -> PathBuf {
    scratch().join("swap")
}

/// Runs a claim in a process of its own.
pub fn run(claim: &'static Claim, kind: Option<Kind>) -> Result<Completion, Failed> {
    let path = std::env::temp_dir().join(format!("cowbell-kernel-{}", process::pid()));
    let saved: Vec<_> = claim.restores.iter().map(|file| (*file, std::fs::read(file).ok())).collect();
    let (verdict, to_verdict) = pipe::pair().map_err(|e| Failed::from(format!("pipe: {e}")))?;
    // SAFETY: the harness has one thread; the child ends by `_exit` in `in_child`.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        in_child(claim, kind, to_verdict, path);
    }
    drop(to_verdict);
    let leader = Pid::from_raw(pid).ok_or_else(|| Failed::from("fork failed"))?;
    // Both sides do it, so that it is done whoever runs first.
    let _done_by_the_child = rustix::process::setpgid(Some(leader), Some(leader));
    let ended = end(leader, claim);
    clean_up(&path);
    for (file, content) in saved {
        // A case that may not write the file did not change it.
        if let Some(content) = content.filter(|content| std::fs::read(file).ok().as_ref() != Some(content)) {
            std::fs::write(file, content).map_err(|e| Failed::from(format!("cannot restore {file}: {e}")))?;
        }
    }
    conclude(claim, ended?, verdict)
}

/// Waits for the case, kills what is left of it and reaps everything; `None` if time ran out.
fn end(leader: Pid, claim: &Claim) -> Result<Option<Ended>, Failed> {
    let pidfd = pidfd::open(leader.as_raw_nonzero().get()).map_err(|e| Failed::from(format!("pidfd: {e}")))?;
    let in_time = pidfd::wait_end(pidfd.as_fd(), Some(claim.limit))?;
    // The group exists as long as its leader is a zombie, so this cannot hit a stranger.
    let _nobody_left = rustix::process::kill_process_group(leader, Signal::KILL);
    pidfd::wait_end(pidfd.as_fd(), None)?;
    let ended = pidfd::reap(pidfd.as_fd())?;
    // __WALL: children without a signal at their end, too.
    let wall = WaitOptions::from_bits_retain(libc::__WALL as u32);
    while rustix::process::waitpgid(leader, wall).is_ok() {}
    Ok(ended.filter(|_| in_time))
}

fn clean_up(path: &Path) {
    if !path.exists() {
        return;
    }
    if let Ok(file) = CString::new(path.join("swap").as_os_str().as_encoded_bytes()) {
        // SAFETY: the call takes a path; it fails where the file is no swap space.
        unsafe { libc::swapoff(file.as_ptr()) };
    }
    std::fs::remove_dir_all(path).expect("the scratch directory goes");
}

fn conclude(claim: &Claim, ended: Option<Ended>, verdict: OwnedFd) -> Result<Completion, Failed> {
    let mut text = String::new();
    std::fs::File::from(verdict).read_to_string(&mut text).map_err(|e| Failed::from(e.to_string()))?;
    let records = || text.split_terminator('\0');
    let told = |tag: char| records().filter_map(move |record| record.strip_prefix(tag)).collect::<Vec<_>>();
    let failures = told('F');
    if !failures.is_empty() {
        return Err(Failed::from(format!("{}\nIt claims: {}", failures.join("\n"), claim.says)));
    }
    match ended {
        None => Err(Failed::from(format!("not done within {} s", claim.limit.as_secs()))),
        Some(Ended::Exited(0)) => match (told('S').first(), told('P').len()) {
            (Some(reason), 0) if std::env::var_os("CI").is_some_and(|ci| ci == "true") && !docs::may_skip(claim) => {
                Err(Failed::from(format!("skipped, which its row in docs/KERNEL.md does not allow: {reason}")))
            }
            (Some(reason), 0) => Ok(Completion::ignored_with(reason)),
            (None, 1) => Ok(Completion::Completed),
            _ => Err(Failed::from("no verdict, or several")),
        },
        Some(ended) => Err(Failed::from(format!("the case's process ended early: {ended:?}"))),
    }
}

fn in_child(claim: &Claim, kind: Option<Kind>, to_verdict: OwnedFd, path: PathBuf) -> ! {
    let _done_by_the_parent = rustix::process::setpgid(None, None);
    let _dies_anyway = prctl::die_with_parent();
    VERDICT.set(to_verdict).expect("one case a process");
    SCRATCH.set(path).expect("one case a process");
    std::panic::set_hook(Box::new(report_panic));
    // Some claims kill their children by SIGSEGV, and that is no reason for a core dump.
    let maximum = rustix::process::getrlimit(rustix::process::Resource::Core).maximum;
    let none = rustix::process::Rlimit { current: Some(0), maximum };
    rustix::process::setrlimit(rustix::process::Resource::Core, none).expect("setrlimit");
    match claim.needs.iter().try_for_each(|need| need.check()).and_then(|()| examine(claim, kind)) {
        Ok(()) => tell('P', ""),
        Err(Skip(reason)) => tell('S', &reason),
    }
    process::exit(0)
}

fn examine(claim: &Claim, kind: Option<Kind>) -> Verdict {
    match (&claim.run, kind) {
        (Run::Once(run), _) => run(),
        (Run::On(_, run), Some(kind)) => run(kind),
        (Run::On(..), None) => unreachable!("a claim on memory is run with one"),
    }
}

/// Ends the process: a failure in a thread or a child must not go unseen.
fn report_panic(info: &PanicHookInfo<'_>) {
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic");
    let place = info.location().map_or_else(String::new, |at| format!(" ({}:{})", at.file(), at.line()));
    tell('F', &format!("{text}{place}"));
    process::exit(101);
}

fn tell(tag: char, text: &str) {
    // Far below a pipe's capacity, so that it is written at once and in one piece.
    let text: String = text.replace('\0', " ").chars().take(1000).collect();
    let verdict = VERDICT.get().expect("a case is running");
    rustix::io::write(verdict, format!("{tag}{text}\0").as_bytes()).expect("the harness reads");
}
