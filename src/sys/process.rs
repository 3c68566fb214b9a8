//! The calling process: its threads, exit, parent, limits, `/proc` files.
#![expect(unsafe_code, reason = "a few calls have no safe wrapper")]

use super::Errno;
pub use super::executable::{constants, executable};
use super::procfs::{self, stat::Stat};
use crate::error::{Error, Result, Thread};
use rustix::fs::{Mode, OFlags};
use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// `getpid()`. *Async-signal-safe.*
pub fn pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// `getppid()`, 0 when the parent is outside this pid namespace. *Async-signal-safe.*
pub fn parent_pid() -> i32 {
    rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get())
}

/// `gettid()`. *Async-signal-safe.*
pub fn tid() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// `exit_group(code)`: no destructor, no `atexit`, no flush. *Async-signal-safe.*
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit ends the process and touches nothing of it.
    unsafe { libc::_exit(code) }
}

/// `pthread_atfork(NULL, NULL, entered)`: has libc's `fork` call a function in the child.
///
/// # Safety
/// The function is *async-signal-safe*: it runs in a child that may have been forked while other threads held any lock.
///
/// # Errors
/// ENOMEM.
pub unsafe fn after_fork_in_child(entered: extern "C" fn()) -> Result<(), Errno> {
    // SAFETY: the function stays where it is; what it does is the caller's promise.
    match unsafe { libc::pthread_atfork(None, None, Some(entered_shim(entered))) } {
        0 => Ok(()),
        errno => Err(Errno::from_raw_os_error(errno)),
    }
}

/// The libc crate wants the function to be unsafe to call.
fn entered_shim(entered: extern "C" fn()) -> unsafe extern "C" fn() {
    entered
}

/// `pthread_atfork(before, parent, child)`: what a `fork()` of this process calls around it, in the thread that forks.
///
/// # Safety
/// The functions may run at any fork, whoever makes it; the child's must do only what a signal handler may.
///
/// # Errors
/// ENOMEM.
pub unsafe fn around_fork(
    before: extern "C" fn(),
    parent: extern "C" fn(),
    child: extern "C" fn(),
) -> Result<(), Errno> {
    // SAFETY: the functions stay where they are; what they do is the caller's promise.
    match unsafe {
        libc::pthread_atfork(Some(entered_shim(before)), Some(entered_shim(parent)), Some(entered_shim(child)))
    } {
        0 => Ok(()),
        errno => Err(Errno::from_raw_os_error(errno)),
    }
}

/// `pthread_key_create(3)` once, and `pthread_setspecific(3)`: has a function called when this thread ends, after the destructors of
/// thread-local storage. It is always the same function, the one of the first call.
///
/// # Safety
/// The function does not unwind, and stands at any thread's end what is left of the thread then.
///
/// # Errors
/// EAGAIN when there are no more keys, ENOMEM.
pub unsafe fn at_thread_end(ended: unsafe extern "C" fn(*mut std::ffi::c_void)) -> Result<(), Errno> {
    /// The key, plus 1.
    static KEY: AtomicU64 = AtomicU64::new(0);
    let as_errno = |code| if code == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(code)) };
    if KEY.load(Ordering::Acquire) == 0 {
        let mut key = 0;
        // SAFETY: it fills in the key; the function is the caller's promise.
        as_errno(unsafe { libc::pthread_key_create(&mut key, Some(ended)) })?;
        if KEY.compare_exchange(0, u64::from(key) + 1, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: this key was just made and is used by nobody.
            unsafe { libc::pthread_key_delete(key) };
        }
    }
    let key = (KEY.load(Ordering::Acquire) - 1) as libc::pthread_key_t;
    // A destructor is called for what is not null.
    let value = std::ptr::without_provenance::<std::ffi::c_void>(1);
    // SAFETY: the key was made and is never deleted; nobody follows the value.
    as_errno(unsafe { libc::pthread_setspecific(key, value) })
}

/// `fflush(NULL)`: what C code of this process has buffered is written, so that a forked child does
/// not write it again.
pub fn flush_c_streams() {
    // SAFETY: a null stream means all of them.
    unsafe { libc::fflush(std::ptr::null_mut()) };
}

/// The number of threads that the kernel counts in this process: `num_threads` of `/proc/self/stat`, which it reads under the lock
/// under which it counts. A thread is counted from before it first runs until it has been taken away, a while after it
/// was joined. *Async-signal-safe.*
///
/// # Errors
/// ENOENT when `/proc` is not mounted; EMFILE, ENFILE.
pub fn thread_count() -> Result<u32, Errno> {
    let mut buffer = [0; 1024];
    let line = read_small(c"/proc/self/stat", &mut buffer)?;
    Stat::parse(line).map(|stat| stat.threads).ok_or(Errno::IO)
}

/// The threads of this process as `/proc/self/task` lists them, which is not at one moment: one that is started while the list
/// is read may be missing, though it was always alive.
///
/// # Errors
/// ENOENT when `/proc` is not mounted.
pub fn threads() -> Result<Vec<Thread>> {
    let listed = procfs::threads(procfs::SELF).map_err(|e| Error::os("read(/proc/self/task)", e))?;
    // A thread that was taken away between the two reads is no longer there.
    let there = |tid: i32| {
        let line = procfs::read(tid, "stat").ok()?;
        let stat = Stat::parse(&line)?;
        Some(Thread { tid, name: String::from_utf8_lossy(stat.name).into_owned(), exiting: stat.is_exiting() })
    };
    Ok(listed.into_iter().filter_map(there).collect())
}

/// `prctl(PR_SET_PDEATHSIG, SIGKILL)`: this process dies when the **thread** that made it ends. *Async-signal-safe.*
///
/// # Errors
/// None known.
pub fn die_with_parent() -> Result<(), Errno> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
}

/// `kill(0, SIGKILL)`: ends every process of this one's group, and so this one. *Async-signal-safe.*
pub fn kill_group() {
    // One's own group can always be signalled.
    let _sent = rustix::process::kill_current_process_group(rustix::process::Signal::KILL);
}

/// `prctl(PR_SET_NAME, name)`: what `ps` shows, at most 15 bytes. *Async-signal-safe.*
pub fn set_name(name: &CStr) {
    // A name is a courtesy; a refusal changes nothing.
    let _refused = rustix::thread::set_name(name);
}

/// `setpriority(PRIO_PROCESS, 0, -20)`: lets the calling thread, and those that it starts from now on, run before others as soon as
/// they have something to do. Only root may. *Async-signal-safe.*
pub fn go_first() {
    // A process that may not do this waits for its turn.
    let _refused = rustix::process::setpriority_process(None, -20);
}

/// `close_range(2)` around the given descriptors: closes all others of this process. Since Linux 5.9. *Async-signal-safe.*
///
/// # Safety
/// Nobody in this process may use any other descriptor afterwards.
///
/// # Errors
/// ENOSYS before 5.9.
pub unsafe fn close_all_but(keep: &[&[i32]]) -> Result<(), Errno> {
    let kept_from = |first: i32| keep.iter().flat_map(|list| list.iter()).copied().filter(|&fd| fd >= first).min();
    let mut first = 0;
    loop {
        let kept = kept_from(first);
        let last = kept.map_or(u32::MAX, |kept| (kept as u32).wrapping_sub(1));
        if kept != Some(first) {
            // SAFETY: passed on to the caller.
            let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            if done != 0 {
                return Err(super::map::last_errno());
            }
        }
        match kept {
            Some(kept) => first = kept + 1,
            None => return Ok(()),
        }
    }
}

/// `/proc/PID/FILE` as a C string. *Async-signal-safe.*
pub(super) fn proc_path(pid: i32, file: &str) -> PathBuffer {
    let mut path = PathBuffer { bytes: [0; 64] };
    // The longest: /proc/ + 11 digits + /task/ + 11 digits + /syscall.
    let mut rest = path.bytes.split_at_mut(63).0;
    let _fits = write!(rest, "/proc/{pid}/{file}");
    path
}

/// A short path, made without allocation.
pub(super) struct PathBuffer {
    bytes: [u8; 64],
}

impl std::ops::Deref for PathBuffer {
    type Target = CStr;

    fn deref(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

/// Opens `/proc/PID/task/TID/syscall`, for [`blocked_at`]. *Async-signal-safe.*
///
/// # Errors
/// ENOENT when there is no such thread; EACCES without ptrace access.
pub fn open_syscall(pid: i32, tid: i32) -> Result<OwnedFd, Errno> {
    let mut path = PathBuffer { bytes: [0; 64] };
    let mut rest = path.bytes.split_at_mut(63).0;
    let _fits = write!(rest, "/proc/{pid}/task/{tid}/syscall");
    rustix::fs::open(&*path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Stack pointer and program counter of a thread that waits, from its [`open_syscall`]: in a page fault of its
/// own (`-1 SP PC`) or of a system call it made (`NR ARGS… SP PC`). `None` when it runs. *Async-signal-safe.*
pub fn blocked_at(syscall: impl AsFd) -> Option<(u64, u64)> {
    blocked_in(syscall).map(|blocked| (blocked.sp, blocked.pc))
}

/// The number of `exit`.
pub const EXIT_CALL: i32 = libc::SYS_exit as i32;

/// The place where a thread waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockedThread {
    /// In this system call; `None` in a page fault of its own.
    pub syscall: Option<i32>,
    /// The thread's stack pointer.
    pub sp: u64,
    /// The thread's next instruction: the faulting one, or the one after the system call.
    pub pc: u64,
}

/// The place where a thread waits, which [`blocked_at`] tells a part of. *Async-signal-safe.*
pub fn blocked_in(syscall: impl AsFd) -> Option<BlockedThread> {
    let mut buffer = [0; 256];
    let got = rustix::io::pread(syscall, &mut buffer, 0).ok()?;
    parse_blocked(buffer.get(..got)?)
}

fn parse_blocked(text: &[u8]) -> Option<BlockedThread> {
    let text = std::str::from_utf8(text).ok()?.trim_end();
    let number = text.split(' ').next()?.parse::<i32>().ok()?;
    let mut fields = text.rsplitn(3, ' ');
    let mut hex = || u64::from_str_radix(fields.next()?.strip_prefix("0x")?, 16).ok();
    let (pc, sp) = (hex()?, hex()?);
    Some(BlockedThread { syscall: (number >= 0).then_some(number), sp, pc })
}

/// Reads the start of a file into `buffer`, without allocation. *Async-signal-safe.*
///
/// # Errors
/// As `open(2)` and `read(2)`.
pub fn read_small<'a>(path: &CStr, buffer: &'a mut [u8]) -> Result<&'a [u8], Errno> {
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let got = super::memfd::read_at(&fd, buffer, 0);
    close(fd);
    buffer.get(..got?).ok_or(Errno::IO)
}

/// `close(fd)` without libc, whose `close` is a cancellation point and so touches thread-local storage. *Async-signal-safe.*
pub fn close(fd: OwnedFd) {
    // SAFETY: the descriptor was owned and is given up here.
    unsafe { rustix::io::close(fd.into_raw_fd()) };
}

/// `/proc/PID/auxv`, which differs from one `exec` to the next; `pid` 0 means this process. *Async-signal-safe.*
///
/// # Errors
/// ENOENT when the process is gone; EACCES without ptrace read access.
pub fn auxiliary_vector(pid: i32, buffer: &mut [u8]) -> Result<&[u8], Errno> {
    if pid == 0 { read_small(c"/proc/self/auxv", buffer) } else { read_small(&proc_path(pid, "auxv"), buffer) }
}

/// The page faults that all threads of a process have had. *Async-signal-safe.*
pub fn page_faults(pid: i32) -> Option<u64> {
    let mut buffer = [0; 512];
    let line = read_small(&proc_path(pid, "stat"), &mut buffer).ok()?;
    super::procfs::stat::Stat::parse(line).map(|stat| stat.faults)
}

/// Tells whether a process is on its way out, or gone: from the flags in `/proc/PID/stat` (`PF_EXITING`). *Async-signal-safe.*
pub fn is_exiting(pid: i32) -> bool {
    let mut buffer = [0; 512];
    let line = read_small(&proc_path(pid, "stat"), &mut buffer);
    line.map_or(true, |line| Stat::parse(line).is_none_or(|stat| stat.is_exiting()))
}

/// Opens `/proc/self/mem`, by which memory is read without the danger of a fault. *Async-signal-safe.*
///
/// # Errors
/// ENOENT when `/proc` is not mounted.
pub fn open_memory() -> Result<OwnedFd, Errno> {
    rustix::fs::open(c"/proc/self/mem", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// `eventfd(0, EFD_CLOEXEC)`.
///
/// # Errors
/// EMFILE, ENFILE.
pub fn event() -> Result<OwnedFd> {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).map_err(|e| Error::os("eventfd", e))
}

/// Adds one to an eventfd, waking who polls it. *Async-signal-safe.*
pub fn notify(event: impl AsFd) {
    // The counter never comes near its limit, so this neither blocks nor fails.
    let _written = rustix::io::write(event, &1u64.to_ne_bytes());
}

/// Takes an eventfd's count, waiting for it to be above 0. *Async-signal-safe.*
pub fn take_notice(event: impl AsFd) {
    let _read = rustix::io::read(event, &mut [0u8; 8]);
}

/// `pipe2(O_CLOEXEC)`: the end to read from, the end to write to. *Async-signal-safe.*
///
/// # Errors
/// EMFILE, ENFILE.
pub fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
}

/// Lets a descriptor pass through exec: [`pipe`] and the standard library make them close-on-exec.
///
/// # Errors
/// None that an open descriptor meets.
pub fn keep_on_exec(fd: impl AsFd) -> Result<(), Errno> {
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())
}

/// Writes one byte to a pipe. *Async-signal-safe.*
pub fn give_byte(pipe: impl AsFd) {
    // A reader that is gone does not want it.
    let _unread = rustix::io::write(pipe, &[1]);
}

/// Waits for one byte from a pipe; false when its writers are gone. *Async-signal-safe.*
pub fn take_byte(pipe: impl AsFd) -> bool {
    rustix::io::retry_on_intr(|| rustix::io::read(pipe.as_fd(), &mut [0u8; 1])) == Ok(1)
}

/// Lifts the restriction of the Yama module for one process: it may trace us. *Async-signal-safe.*
pub fn allow_tracing_by(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        // EINVAL where there is no Yama, and then there is nothing to lift.
        let _refused = rustix::process::set_ptracer(rustix::process::PTracer::ProcessID(pid));
    }
}

/// `kill(pid, SIGKILL)`; a process that is gone is no error. The caller knows that the id is still its own. *Async-signal-safe.*
pub fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// `kill(pid, signal)`; a process that is gone is no error. The caller knows that the id is still its own. *Async-signal-safe.*
pub fn send(pid: i32, signal: i32) {
    let signal = rustix::process::Signal::from_named_raw(signal);
    if let (Some(pid), Some(signal)) = (rustix::process::Pid::from_raw(pid), signal) {
        let _gone = rustix::process::kill_process(pid, signal);
    }
}

/// `sched_yield()`. *Async-signal-safe.*
pub fn yield_now() {
    rustix::thread::sched_yield();
}

/// Writes all of `bytes` to standard error. *Async-signal-safe.*
pub fn write_stderr(mut bytes: &[u8]) {
    // SAFETY: descriptor 2 may be closed; then the write fails and nothing else happens.
    let stderr = unsafe { BorrowedFd::borrow_raw(2) };
    while !bytes.is_empty() {
        match rustix::io::write(stderr, bytes) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// A descriptor's number, for the calls and the handlers that take one.
pub fn number(fd: &impl AsFd) -> i32 {
    fd.as_fd().as_raw_fd()
}

/// Writes the highest `/proc/self/oom_score_adj`: where memory runs out, the kernel ends this process before others.
/// Anybody may raise his own. Without `/proc` nothing happens.
pub fn die_first_of_memory() {
    let _without_proc = std::fs::write("/proc/self/oom_score_adj", "1000");
}

/// Sleeps until a signal ends this process.
pub fn wait_for_death() -> ! {
    loop {
        rustix::event::pause();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_blocked_thread_shows_sp_and_pc() {
        let at = |syscall, sp, pc| Some(super::BlockedThread { syscall, sp, pc });
        assert_eq!(super::parse_blocked(b"-1 0x7ffd10 0x55aa\n"), at(None, 0x7f_fd10, 0x55aa));
        assert_eq!(super::parse_blocked(b"running\n"), None);
        assert_eq!(super::parse_blocked(b"0 0x1 0x2 0x3 0x4 0x5 0x6 0x7ffe 0x7fff\n"), at(Some(0), 0x7ffe, 0x7fff));
    }
}
