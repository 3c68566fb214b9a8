//! The end of a process as it is seen by others, and what goes on before its end: forks by libc, `exec`.
//!
//! # Safety
//! The case has one thread when it forks; a thread that leaves by a bare `exit` owns nothing.
#![expect(unsafe_code, reason = "claims about fork, exit and signal dispositions")]

use crate::case;
use crate::child::{self, Child, Gate};
use crate::claim::{Claim, Need, PTRACE, Skip, Verdict, claim};
use crate::memory::last_errno;
use cowbell::sys::clone::{ForkArgs, Forked};
use cowbell::sys::pidfd::{self, Ended};
use cowbell::sys::{Errno, c_library, pipe, prctl, process, procfs};
use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, WaitId, WaitIdOptions};
use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub const CLAIMS: &[Claim] = &[
    claim!(
        exiting_process_has_its_flag_once_its_files_are_closed,
        "Who sees the end of a pipe that a process held while exiting finds PF_EXITING (4) in the flags of its `/proc/PID/stat`, and no `/proc/PID/auxv`: it is empty or ESRCH, for a reader without CAP_SYS_PTRACE also EACCES. While the process lives, neither is so."
    ),
    claim!(
        exec_closes_files_without_the_flag,
        "Who sees the end of a pipe that `exec` closed finds no PF_EXITING, and at once another `/proc/PID/auxv` that is not empty."
    ),
    claim!(
        exec_of_an_unreadable_program_hides_its_auxv,
        "After `exec` of a program that its user may not read `/proc/PID/auxv` is EACCES for that user, and `/proc/PID/stat` still tells: no PF_EXITING."
    ),
    claim!(
        pidfd_is_readable_at_the_end_of_the_last_thread,
        "A pidfd becomes readable when the last thread has ended, not when the first one has; polling reaps nothing, and `waitid(P_PIDFD)` says nothing before."
    ),
    claim!(
        pidfd_of_a_child_without_exit_signal_needs_wall,
        "`waitid(P_PIDFD)` of a child with exit signal 0 is ECHILD without `__WALL` and gives its status with it; with SIGCHLD both do."
    )
    .needs(&[Need::TidAddress]),
    claim!(
        ignored_sigchld_takes_the_status,
        "Where SIGCHLD is ignored a child with that exit signal is reaped by the kernel (ECHILD, its pidfd readable); one without exit signal keeps its status."
    )
    .needs(&[Need::TidAddress]),
    claim!(
        death_signal_is_lost_with_the_user,
        "`PR_SET_PDEATHSIG` is gone after a change of the effective user, and is not inherited over fork; lowering and raising effective capabilities keeps it."
    ),
    claim!(
        libc_fork_calls_atfork_handlers_and_clone3_does_not,
        "libc's `fork` runs the child handlers of `pthread_atfork` before it returns; a fork by clone3 runs none."
    )
    .needs(&[Need::TidAddress]),
    claim!(
        clone_into_cgroup_starts_the_child_there,
        "`CLONE_INTO_CGROUP` starts the child in the version 2 control group of the directory given, and leaves the parent where it is."
    )
    .needs(&[Need::TidAddress]),
    claim!(
        joined_thread_may_be_listed_and_is_exiting,
        "A thread just joined may still be in `/proc/self/task`; then it has PF_EXITING in its stat, which a living thread has not."
    )
    .limit_s(60),
];

/// PF_EXITING among the flags in a stat, its ninth field.
fn flag_in(stat: &str) -> bool {
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let flags: u64 = fields.split_ascii_whitespace().nth(6).and_then(|field| field.parse().ok()).expect("field 9");
    flags & 4 != 0
}

fn process_is_exiting(pid: i32) -> bool {
    flag_in(&std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it is not reaped"))
}

fn auxv(pid: i32) -> Result<Vec<u8>, Errno> {
    let mut buffer = [0; 1024];
    procfs::signal_safe::auxiliary_vector(pid, &mut buffer).map(<[u8]>::to_vec)
}

fn wait_for_end_of_file(pipe: &OwnedFd) {
    assert!(!pipe::take_byte(pipe), "nobody writes");
}

fn exiting_process_has_its_flag_once_its_files_are_closed() -> Verdict {
    let may_trace = PTRACE.check().is_ok();
    // Many times, as the interest is in the moment between the closing and the end.
    for round in 0..200 {
        let (read, held) = pipe::pair().expect("pipe");
        let go = Gate::new();
        let child = child::spawn(|| go.pass());
        drop(held);
        assert!(!process_is_exiting(child.pid), "it lives");
        assert!(auxv(child.pid).expect("auxv").len() > 16, "it has one");
        go.open();
        wait_for_end_of_file(&read);
        let seen = (process_is_exiting(child.pid), procfs::signal_safe::is_exiting(child.pid));
        let auxv = auxv(child.pid);
        assert_eq!(seen, (true, true), "round {round}");
        match auxv {
            Ok(auxv) => assert!(auxv.is_empty(), "round {round}: {auxv:?}"),
            // A user who may trace everybody is told that there is nothing, others that it is none of their business.
            Err(e) => assert!(e == Errno::SRCH || e == Errno::ACCESS && !may_trace, "round {round}: {e}"),
        }
        child.finish();
    }
    Ok(())
}

/// Another program to become, which waits for room in a pipe and so lives until it is killed.
pub struct Program {
    path: PathBuf,
    stdout: OwnedFd,
    _unread: OwnedFd,
    closed: OwnedFd,
    until_exec: RefCell<Option<OwnedFd>>,
}

impl Program {
    /// A program that is this test.
    pub fn new(path: PathBuf) -> Self {
        let (unread, stdout) = pipe::pair().expect("pipe");
        rustix::fs::fcntl_setfl(&stdout, OFlags::NONBLOCK).expect("F_SETFL");
        while rustix::io::write(&stdout, &[0]).is_ok() {}
        rustix::fs::fcntl_setfl(&stdout, OFlags::empty()).expect("F_SETFL");
        let (closed, until_exec) = pipe::pair().expect("pipe");
        Self { path, stdout, _unread: unread, closed, until_exec: RefCell::new(Some(until_exec)) }
    }

    /// `exec`, in a child.
    pub fn become_it(&self) {
        use std::os::unix::process::CommandExt;
        let stdout = self.stdout.try_clone().expect("dup");
        let failed = std::process::Command::new(&self.path).arg("--list").stdout(stdout).exec();
        panic!("exec: {failed}");
    }

    /// Waits until nobody holds what exec closes.
    pub fn wait_for_exec(&self) {
        self.until_exec.take();
        wait_for_end_of_file(&self.closed);
    }
}

fn exec_closes_files_without_the_flag() -> Verdict {
    let random = std::fs::read_to_string("/proc/sys/kernel/randomize_va_space").unwrap_or_default();
    if random.trim() == "0" {
        return Err(Skip("kernel.randomize_va_space is 0: every auxv is the same".to_owned()));
    }
    for round in 0..50 {
        let program = Program::new("/proc/self/exe".into());
        let go = Gate::new();
        let child = child::spawn(|| {
            go.pass();
            program.become_it();
        });
        let before = auxv(child.pid).expect("auxv");
        assert_eq!(auxv(child.pid).as_ref(), Ok(&before), "the same without exec");
        go.open();
        program.wait_for_exec();
        let after = auxv(child.pid).expect("auxv");
        assert!(!after.is_empty() && after != before, "round {round}: {after:?}");
        assert!(!process_is_exiting(child.pid), "round {round}");
        child.kill();
    }
    Ok(())
}

/// Becomes an ordinary user, if this process is root's.
fn become_ordinary() -> Result<(), Skip> {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    // SAFETY: the call takes three numbers and changes this process's user only.
    let changed = unsafe { libc::setresuid(NOBODY, NOBODY, NOBODY) };
    if changed != 0 {
        return Err(Skip(format!("root without CAP_SETUID: {}", last_errno())));
    }
    // The exec made the process unreadable even to itself.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).expect("PR_SET_DUMPABLE");
    Ok(())
}

fn exec_of_an_unreadable_program_hides_its_auxv() -> Verdict {
    let copy = |name: &str, mode: u32| {
        let path = case::scratch().join(name);
        std::fs::copy("/proc/self/exe", &path).expect("a copy of this test");
        rustix::fs::chmod(&path, Mode::from_raw_mode(mode)).expect("chmod");
        path
    };
    let (readable, unreadable) = (copy("readable", 0o555), copy("unreadable", 0o111));
    become_ordinary()?;
    if std::fs::File::open(&unreadable).is_ok() {
        return Err(Skip("this user may read everything (CAP_DAC_OVERRIDE)".to_owned()));
    }
    for (path, hidden) in [(readable, false), (unreadable, true)] {
        let program = Program::new(path);
        let child = child::spawn(|| program.become_it());
        program.wait_for_exec();
        match auxv(child.pid) {
            Err(e) => assert!(hidden && e == Errno::ACCESS, "{e}"),
            Ok(auxv) => assert!(!hidden && !auxv.is_empty()),
        }
        assert!(!process_is_exiting(child.pid), "it lives");
        child.kill();
    }
    Ok(())
}

fn pidfd_is_readable_at_the_end_of_the_last_thread() -> Verdict {
    let (started, go) = (Gate::new(), Gate::new());
    let child = child::spawn(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                started.open();
                go.pass();
                process::exit(3)
            });
            // SAFETY: ends this thread alone; the other one uses nothing on its stack but two gates, and
            // the stack of the first thread is never unmapped.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
        });
    });
    started.pass();
    // Until the first thread is gone.
    let state = || std::fs::read_to_string(format!("/proc/{}/stat", child.pid)).expect("stat");
    while !state().rsplit_once(')').expect("a name").1.starts_with(" Z") {
        process::yield_now();
    }
    let ended = |ms| pidfd::wait_end(child.pidfd.as_fd(), Some(Duration::from_millis(ms))).expect("poll");
    assert!(!ended(100), "a thread lives");
    assert_eq!(pidfd::reap(child.pidfd.as_fd()).expect("waitid"), None, "a thread lives");
    go.open();
    assert!(ended(10_000), "the last one ended");
    assert!(ended(0), "and still so: polling takes nothing");
    assert_eq!(pidfd::reap(child.pidfd.as_fd()).expect("waitid"), Some(Ended::Exited(3)));
    Ok(())
}

/// A child by the crate's fork that passes a gate and exits with 5.
fn fork_with(exit_signal: i32, gate: &Gate) -> Child {
    let args = ForkArgs { exit_signal, ..ForkArgs::default() };
    // SAFETY: this process has one thread; the child leaves by `exit`.
    match unsafe { cowbell::sys::clone::fork(&args) }.expect("clone3") {
        Forked::Parent { pid, pidfd } => Child { pid, pidfd },
        Forked::Child => {
            gate.pass();
            process::exit(5)
        }
    }
}

fn pidfd_of_a_child_without_exit_signal_needs_wall() -> Verdict {
    for (signal, found) in [(0, false), (libc::SIGCHLD, true)] {
        let go = Gate::new();
        let child = fork_with(signal, &go);
        let without_wall = || {
            // Peeks, so that the status stays.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            let seen = rustix::process::waitid(WaitId::PidFd(child.pidfd.as_fd()), options);
            seen.map(|status| status.and_then(|status| status.exit_status()))
        };
        assert_eq!(without_wall(), if found { Ok(None) } else { Err(Errno::CHILD) }, "signal {signal}, alive");
        assert_eq!(pidfd::reap(child.pidfd.as_fd()).expect("waitid"), None, "signal {signal}, alive, __WALL");
        go.open();
        assert!(pidfd::wait_end(child.pidfd.as_fd(), None).expect("poll"));
        assert_eq!(without_wall(), if found { Ok(Some(5)) } else { Err(Errno::CHILD) }, "signal {signal}");
        assert_eq!(pidfd::reap(child.pidfd.as_fd()).expect("waitid"), Some(Ended::Exited(5)), "__WALL");
    }
    Ok(())
}

fn ignored_sigchld_takes_the_status() -> Verdict {
    for (disposition, signal, ended) in [
        (libc::SIG_IGN, libc::SIGCHLD, Ended::Unknown),
        (libc::SIG_IGN, 0, Ended::Exited(5)),
        (libc::SIG_DFL, libc::SIGCHLD, Ended::Exited(5)),
    ] {
        // SAFETY: neither disposition runs code of ours.
        unsafe { libc::signal(libc::SIGCHLD, disposition) };
        let go = Gate::new();
        let child = fork_with(signal, &go);
        go.open();
        assert_eq!(child.wait(), ended, "signal {signal}");
    }
    Ok(())
}

/// `PR_GET_PDEATHSIG`.
fn death_signal() -> Option<i32> {
    rustix::process::parent_process_death_signal().expect("PR_GET_PDEATHSIG").map(|signal| signal.as_raw())
}

fn death_signal_is_lost_with_the_user() -> Verdict {
    prctl::die_with_parent().expect("PR_SET_PDEATHSIG");
    child::spawn(|| assert_eq!(death_signal(), None, "not inherited")).finish();
    let mut sets = rustix::thread::capabilities(None).expect("capget");
    let saved = sets;
    sets.effective = rustix::thread::CapabilitySet::empty();
    rustix::thread::set_capabilities(None, sets).expect("capset");
    assert_eq!(death_signal(), Some(libc::SIGKILL), "without capabilities");
    rustix::thread::set_capabilities(None, saved).expect("capset");
    assert_eq!(death_signal(), Some(libc::SIGKILL), "with them again");
    if !rustix::process::geteuid().is_root() {
        return Err(Skip("only root can become somebody else".to_owned()));
    }
    prctl::die_with_parent().expect("PR_SET_PDEATHSIG");
    assert_eq!(death_signal(), Some(libc::SIGKILL));
    become_ordinary()?;
    assert_eq!(death_signal(), None, "as another user");
    Ok(())
}

/// The number of times the handler ran in this process.
static ENTERED: AtomicU64 = AtomicU64::new(0);

extern "C" fn entered() {
    ENTERED.fetch_add(1, Ordering::SeqCst);
}

fn libc_fork_calls_atfork_handlers_and_clone3_does_not() -> Verdict {
    // SAFETY: it adds to an atomic.
    unsafe { c_library::after_fork_in_child(entered) }.expect("pthread_atfork");
    let count = || ENTERED.load(Ordering::SeqCst);
    assert_eq!(child::compute(count), 1, "fork()");
    assert_eq!(child::compute(|| child::compute(count)), 2, "fork() in a child of fork()");
    // SAFETY: this process has one thread; the child leaves by `exit`.
    match unsafe { cowbell::sys::clone::fork(&ForkArgs::default()) }.expect("clone3") {
        Forked::Child => process::exit(count() as i32),
        Forked::Parent { pid, pidfd } => assert_eq!(Child { pid, pidfd }.wait(), Ended::Exited(0), "clone3"),
    }
    assert_eq!(count(), 0, "not in the parent");
    Ok(())
}

/// This process's version 2 control group.
fn own_group() -> String {
    let groups = std::fs::read_to_string("/proc/self/cgroup").expect("/proc/self/cgroup");
    groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned()
}

fn clone_into_cgroup_starts_the_child_there() -> Verdict {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let version_two = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    let mount = version_two.and_then(|line| line.split(' ').nth(4));
    let mount = mount.ok_or_else(|| Skip("no control groups of version 2".to_owned()))?;
    let name = format!("cowbell-kernel-{}", process::pid());
    let path = PathBuf::from(mount).join(&name);
    std::fs::create_dir(&path).map_err(|e| Skip(format!("no control group can be made in {mount}: {e}")))?;
    let directory = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let before = own_group();
    let start = |cgroup| {
        let args = ForkArgs { cgroup, ..ForkArgs::default() };
        // SAFETY: this process has one thread; the child leaves by `exit`.
        match unsafe { cowbell::sys::clone::fork(&args) }.ok()? {
            Forked::Child => process::exit(i32::from(own_group().ends_with(&name))),
            Forked::Parent { pid, pidfd } => Some(Child { pid, pidfd }.wait()),
        }
    };
    let there = directory.as_ref().ok().and_then(|directory| start(Some(directory.as_fd())));
    let elsewhere = start(None);
    // Before anything can fail: the group must not stay.
    std::fs::remove_dir(&path).expect("the group is empty again");
    assert_eq!(there, Some(Ended::Exited(1)), "with the directory");
    assert_eq!(elsewhere, Some(Ended::Exited(0)), "without");
    assert_eq!(own_group(), before, "the parent");
    Ok(())
}

fn joined_thread_may_be_listed_and_is_exiting() -> Verdict {
    let since = Instant::now();
    let mut seen = 0;
    // The state is seen once in some thousand joins.
    while seen < 5 && since.elapsed() < Duration::from_secs(20) {
        let (started, go, id) = (Gate::new(), Gate::new(), AtomicI32::new(0));
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                id.store(process::tid(), Ordering::SeqCst);
                started.open();
                go.pass();
            });
            started.pass();
            let path = format!("/proc/self/task/{}/stat", id.load(Ordering::SeqCst));
            // Opened before, so that the look after the join is a quick one; ESRCH once it is gone.
            let stat = std::fs::File::open(&path).expect("stat");
            let exiting = || {
                let mut buffer = [0; 1024];
                let got = rustix::io::pread(&stat, &mut buffer, 0).ok()?;
                Some(flag_in(std::str::from_utf8(&buffer[..got]).expect("text")))
            };
            assert_eq!(exiting(), Some(false), "a living thread");
            go.open();
            thread.join().expect("no panic");
            if let Some(exiting) = exiting() {
                assert!(exiting, "a joined thread");
                seen += 1;
            }
        });
    }
    if seen == 0 { Err(Skip("no joined thread was there still in 20 s".to_owned())) } else { Ok(()) }
}
