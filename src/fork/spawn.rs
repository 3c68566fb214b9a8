//! Forking: what the parent checks and prepares, and how it waits for the child to be ready.

use super::child::Child;
use super::child_main::{Context, IntoExitCode};
use super::options::{Channels, ForkOptions};
use super::{child_main, panics, single_thread};
use crate::arena::signal_safe::table;
use crate::arena::{Image, registry};
use crate::error::{Error, ErrorKind, Result};
use crate::shared;
use crate::sys::clone::{self, ForkArgs, Forked};
use crate::sys::perf::Follow;
use crate::sys::perf::rings::Rings;
use crate::sys::{Errno, c_library, eventfd, pidfd, pipe, procfs, signal};
use crate::watch::{Evidence, FailedStep, LastCensus, Step, Watch};
use std::cell::Cell;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// The highest signal number (`_NSIG`).
const SIGNAL_MAX: i32 = 64;

/// The time that a child may take from fork to its closure. Microseconds are the rule; only a
/// child that is stopped or starved of its processor takes longer.
const SET_UP_TIME_MAX: Duration = Duration::from_secs(60);

/// Forks a child that runs `body` and exits with what it returns. Returns once the child is about to
/// run it: whatever the child needs is set up, or this is an error.
///
/// The child has this process's memory as it is now, and one thread. It sees all frozen arenas; growing
/// ones are fenced off. It dies (SIGKILL) when **the thread** that called this ends, unless it changes its
/// user. Handlers registered with `pthread_atfork` do not run: a generator of random numbers that
/// relies on them repeats itself in every child, so seed it anew. What the closure prints is flushed at its end,
/// unless it leaves threads behind. What it captured by value is dropped in the child as well as here.
///
/// # Errors
/// [`Error::threads`] when there are other threads after [`ForkOptions::wait_for_threads`]: they may hold locks that nobody
/// would release in the child. The kernel's count of threads decides. Its own threads for an io_uring of this process count too,
/// and so does, for ever, a main thread that left by `pthread_exit`. Invalid while this thread holds a lock of [`crate::shared`] memory. EAGAIN, ENOMEM when there can be no further process. Unsupported when the kernel or the user
/// lacks what the watch needs: see [`crate::support`].
///
/// # Example
/// ```no_run
/// use cowbell::arena::Arena;
/// use cowbell::fork::{self, ForkOptions};
///
/// let arena = Arena::builder("counters").capacity(1 << 20).build()?;
/// let counters = arena.alloc_iter((0..1000).map(std::sync::atomic::AtomicU64::new))?;
/// let frozen = arena.freeze(&*counters)?;
/// let mut child = fork::spawn(&ForkOptions::new(), |_| {
///     frozen[3].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
/// })?;
/// let exit = child.wait()?;
/// assert_eq!(exit.report.arenas[0].copied_pages.0, 1);
/// # Ok::<(), cowbell::Error>(())
/// ```
pub fn spawn<R: IntoExitCode>(options: &ForkOptions<'_>, body: impl FnOnce(&Context) -> R) -> Result<Child> {
    single_thread::wait_until_alone(options.wait_for_threads)?;
    fork(options, Threads::One, body)
}

/// The threads that there may be at a fork.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Threads {
    One,
    Any,
}

/// [`spawn`] without the check for other threads.
///
/// # Safety
/// In the child, `body` must not use anything that another thread of this process may have held at the
/// moment of the fork: no allocator, no std I/O, no lock. In short, only what signal-safety(7) allows;
/// the allocators of glibc and its stdio are *not* made safe, as `fork()` would.
///
/// # Errors
/// Those of [`spawn`], but for the threads.
#[expect(unsafe_code, reason = "declares an unsafe function")]
pub unsafe fn spawn_unchecked<R: IntoExitCode>(
    options: &ForkOptions<'_>,
    body: impl FnOnce(&Context) -> R,
) -> Result<Child> {
    fork(options, Threads::Any, body)
}

fn fork<R: IntoExitCode>(
    options: &ForkOptions<'_>,
    threads: Threads,
    body: impl FnOnce(&Context) -> R,
) -> Result<Child> {
    if options.watch.observes() && !options.last_census {
        return Err(Error::invalid(format!("watch `{}` cannot do without the last census", options.watch)));
    }
    if options.callers && !options.watch.is_answered_by_writer() {
        return Err(Error::invalid(format!("watch `{}` does not see which calls led to a write", options.watch))
            .with_hint("use Watch::Trap"));
    }
    if !(0..=SIGNAL_MAX).contains(&options.exit_signal) {
        return Err(Error::invalid(format!("exit signal {} is no signal", options.exit_signal)));
    }
    if shared::is_held_by_this_thread() {
        // The child would have the same exclusive reference to the same memory.
        return Err(
            Error::invalid("this thread holds a lock of shared memory").with_hint("give it back before the fork")
        );
    }
    panics::install_hooks();
    registry::prepare()?;
    let images: Vec<Arc<Image>> = table::visit(|arenas| arenas.filter_map(|arena| arena.image().cloned()).collect());
    let census = match (options.last_census, options.outside) {
        (false, _) => LastCensus::None,
        (true, false) => LastCensus::OfArenas,
        (true, true) => LastCensus::OfAll,
    };
    let evidence = Evidence::new(options.watch, images, (options.events_max, options.callers), census)?;
    let pipe = pipe::pair().map_err(|e| Error::os("pipe2", e))?;
    let rings = Cell::new(options.watch.reads_page_faults().then(|| Rings::prepare(Follow::Process)));
    let channels = Channels { ready: pipe, command: eventfd::new()?, rings };
    let _unflushed = std::io::stdout().flush();
    let _unflushed = std::io::stderr().flush();
    c_library::flush_c_streams();

    let args =
        ForkArgs { exit_signal: options.exit_signal, reset_handlers: options.reset_handlers, cgroup: options.cgroup };
    let mask = signal::block_all();
    // A handler, or the program's logger, may have started a thread since the first look.
    if threads == Threads::One && !single_thread::is_alone() {
        signal::restore(&mask);
        return Err(Error::new(ErrorKind::Threads(procfs::own_threads()?))
            .with_hint("a thread was started by a signal handler or a logger while the fork was prepared"));
    }
    match clone3(&args) {
        Ok(Forked::Child) => child_main::run(options, &evidence, channels, &mask, body),
        Ok(Forked::Parent { pid, pidfd }) => {
            signal::restore(&mask);
            wait_for_set_up(pid, pidfd, evidence, channels, options)
        }
        Err(e) => {
            signal::restore(&mask);
            Err(e)
        }
    }
}

#[expect(unsafe_code, reason = "a fork duplicates the process")]
fn clone3(args: &ForkArgs<'_>) -> Result<Forked> {
    // SAFETY: the child runs `child_main::run`, which is async-signal-safe until the closure and never returns; what the
    // closure may do was settled by counting threads, or by the caller of `spawn_unchecked`.
    unsafe { clone::fork(args) }
}

/// In the parent: waits until the child has said that it is ready, or takes the failed child away.
fn wait_for_set_up(
    pid: i32,
    pidfd: OwnedFd,
    evidence: Evidence,
    channels: Channels,
    options: &ForkOptions<'_>,
) -> Result<Child> {
    let (ready, others_end) = channels.ready;
    drop(others_end);
    let mut child = Child::new(pid, pidfd, evidence, channels.command);
    let answered = pidfd::readable(ready.as_fd(), Some(SET_UP_TIME_MAX)).map_err(|e| Error::os("ppoll", e))?;
    if answered && pipe::take_byte(&ready) {
        child.find_keeper(options.last_census)?;
        return Ok(child);
    }
    let failure = child.evidence().failure();
    // The half-made child is killed and reaped when it is dropped.
    child.find_keeper(false)?;
    let ended = child.end_now()?;
    Err(failure.map_or_else(
        || Error::new(ErrorKind::Child(format!("ended before its closure began: {ended:?}").into())),
        |failure| explain(failure, options.watch),
    ))
}

/// Says what a failed step means to the user.
fn explain(FailedStep(step, errno): FailedStep, watch: Watch) -> Error {
    let error = Error::os(step.operation(), errno);
    match (step, errno) {
        (Step::OpenUserfaultfd, Errno::PERM | Errno::ACCESS) => {
            // The system call for user mode only is everybody's, so this was not the usual sysctl.
            error.with_hint("a sandbox (seccomp, as in containers, or a security module) forbids userfaultfd")
        }
        (Step::OpenUserfaultfd, Errno::INVAL) => {
            let (feature, since) = if watch.leaves_marks() {
                ("UFFD_FEATURE_WP_ASYNC", "6.7")
            } else {
                ("UFFD_FEATURE_WP_HUGETLBFS_SHMEM", "5.19")
            };
            Error::unsupported(feature, since, format!("watch `{watch}` needs it"))
                .with_hint("use Watch::Census, which needs nothing")
        }
        (Step::OpenUserfaultfd, Errno::NOSYS) => {
            Error::unsupported("userfaultfd", "4.3", "the kernel was built without it, or a sandbox forbids it")
                .with_hint("use Watch::Census, which needs nothing")
        }
        (Step::OpenFaults, Errno::PERM | Errno::ACCESS) => error.with_hint(
            "page faults are told with CAP_PERFMON, or after `sysctl kernel.perf_event_paranoid=2` to a process that is dumpable; a sandbox \
             (seccomp, as in containers) may forbid perf_event_open besides",
        ),
        (Step::OpenFaults, Errno::INVAL) => {
            Error::unsupported("perf events of one process", "5.13", format!("watch `{watch}` needs them"))
                .with_hint("use Watch::Census, which needs nothing")
        }
        (Step::OpenFaults, Errno::NOSYS) => {
            Error::unsupported("perf events", "2.6.31", "the kernel was built without them, or a sandbox forbids them")
                .with_hint("use Watch::Census, which needs nothing")
        }
        (Step::OpenFaults | Step::AwaitFaults, Errno::MFILE) => {
            error.with_hint("a child's keeper opens a descriptor for each processor: raise `ulimit -n`")
        }
        (Step::MapFaults, Errno::PERM) => {
            error.with_hint("raise the limit of locked memory: `ulimit -l`, or `sysctl kernel.perf_event_mlock_kb`")
        }
        (Step::Register, Errno::INVAL) => error.with_hint(format!(
            "an image that was opened in place cannot be under watch `{watch}`: load it, or use Watch::Census"
        )),
        (Step::AllowWriting, Errno::NOMEM) => {
            error.with_hint("the overcommit limit forbids private copies of the arena: sysctl vm.overcommit_memory=1")
        }
        _ => error,
    }
}
