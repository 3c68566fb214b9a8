//! Following another process: ptrace(2), in the form that leaves the tracee alone (`PTRACE_SEIZE`, Linux 3.4).
//!
//! All calls must come from the thread that seized the tracee. When the tracer dies, the kernel lets every tracee go.
#![expect(unsafe_code, reason = "ptrace takes pointers and numbers in the same places")]

use super::Errno;
use super::registers::UserRegs;
use rustix::process::{Pid, WaitOptions};
use std::ffi::{c_ulong, c_void};

bitflags::bitflags! {
    /// The events that the tracee stops for, besides signals.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Options: u32 {
        /// Marks stops at system calls, so that they differ from a SIGTRAP.
        const SYSGOOD = libc::PTRACE_O_TRACESYSGOOD as u32;
        /// `fork`: the child is seized too and starts stopped.
        const FORK = libc::PTRACE_O_TRACEFORK as u32;
        /// `vfork`, the same.
        const VFORK = libc::PTRACE_O_TRACEVFORK as u32;
        /// Any other `clone`, the same.
        const CLONE = libc::PTRACE_O_TRACECLONE as u32;
        /// `execve`, once it succeeded.
        const EXEC = libc::PTRACE_O_TRACEEXEC as u32;
        /// The end of a thread, while its memory is still there; after SIGKILL too.
        const EXIT = libc::PTRACE_O_TRACEEXIT as u32;
        /// The tracee is killed should the tracer die.
        const KILL_WITH_TRACER = libc::PTRACE_O_EXITKILL as u32;
    }
}

/// The number of `clone`.
pub const CLONE: i32 = libc::SYS_clone as i32;

/// The finding of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitStatus {
    /// The thread is gone, by `exit` with this code.
    Exited(i32),
    /// The thread is gone, by this signal.
    Signaled(i32),
    /// The thread stands still and waits for the tracer.
    Stopped(Stop),
}

/// Why a tracee stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// This signal is about to be delivered: hand it on through [`resume`].
    Signal(i32),
    /// The whole process was stopped by this signal: [`listen`], so that SIGCONT is noticed.
    Group(i32),
    /// [`interrupt`] worked, or a new child stands at its first instruction, or SIGCONT came.
    Trap,
    /// Before or after a system call: [`call_side`] tells.
    SystemCall,
    /// One of [`Options`] happened.
    Event(EventStop),
}

/// A stop for one of [`Options`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventStop {
    /// In the parent; [`event_message`] is the child's id.
    Fork,
    /// In the parent; [`event_message`] is the child's id.
    VFork,
    /// In the parent; [`event_message`] is the new thread's or process' id.
    Clone,
    /// The new program is in place; [`event_message`] is the thread's id before.
    Exec,
    /// The thread ends; [`event_message`] is its wait status.
    Exit,
    /// One that was not asked for.
    Other(i32),
}

/// Seizes a thread without stopping it.
///
/// # Errors
/// `EPERM`: traced already, of another user, not dumpable, or forbidden by Yama or seccomp; `ESRCH`: gone.
pub fn seize(tid: i32, options: Options) -> Result<(), Errno> {
    call(libc::PTRACE_SEIZE, tid, 0, u64::from(options.bits()))
}

/// Changes the options of a stopped thread.
///
/// # Errors
/// `ESRCH`: gone, or not stopped.
pub fn set_options(tid: i32, options: Options) -> Result<(), Errno> {
    call(libc::PTRACE_SETOPTIONS, tid, 0, u64::from(options.bits()))
}

/// Stops a thread at the next return to user mode; the stop is a [`Stop::Trap`].
///
/// # Errors
/// `ESRCH`: gone.
pub fn interrupt(tid: i32) -> Result<(), Errno> {
    call(libc::PTRACE_INTERRUPT, tid, 0, 0)
}

/// The point up to which a tracee runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The next signal or event.
    Event,
    /// The next beginning or end of a system call as well.
    SystemCall,
}

/// Lets a stopped thread run, delivering `signal` if it is not 0 and the stop was a [`Stop::Signal`].
///
/// A SIGKILL moves a stopped thread on to its [`EventStop::Exit`] by itself. If it comes after the stop was waited for, this
/// call lets the thread pass that event unseen; the next [`wait`] then tells its end.
///
/// # Errors
/// `ESRCH`: gone, or not stopped.
pub fn resume(tid: i32, until: Until, signal: i32) -> Result<(), Errno> {
    let request = match until {
        Until::Event => libc::PTRACE_CONT,
        Until::SystemCall => libc::PTRACE_SYSCALL,
    };
    call(request, tid, 0, signal as u64)
}

/// Leaves a thread in its group stop, but tells when that ends.
///
/// # Errors
/// `ESRCH`: gone; `EIO`: in no group stop.
pub fn listen(tid: i32) -> Result<(), Errno> {
    call(libc::PTRACE_LISTEN, tid, 0, 0)
}

/// Lets a stopped thread go for good, delivering `signal` if not 0.
///
/// # Errors
/// `ESRCH`: gone, or not stopped.
pub fn detach(tid: i32, signal: i32) -> Result<(), Errno> {
    call(libc::PTRACE_DETACH, tid, 0, signal as u64)
}

/// The message that belongs to the last [`Stop::Event`].
///
/// # Errors
/// `ESRCH`: gone, or not stopped.
pub fn event_message(tid: i32) -> Result<u64, Errno> {
    let mut message: c_ulong = 0;
    // SAFETY: the kernel writes one long to `message`, which lives until the call returns.
    unsafe { pass(libc::PTRACE_GETEVENTMSG, tid, std::ptr::null_mut(), (&raw mut message).cast()) }?;
    Ok(message)
}

/// A stopped thread's registers.
///
/// # Errors
/// `ESRCH`: gone, or not stopped; `EIO`: a program of another word size.
pub fn registers(tid: i32) -> Result<UserRegs, Errno> {
    let mut registers = UserRegs::zeroed();
    let size = size_of::<UserRegs>();
    let mut vector = libc::iovec { iov_base: (&raw mut registers).cast(), iov_len: size };
    // SAFETY: the kernel writes at most `iov_len` bytes to `registers`, plain integers, and both live until the call
    // returns.
    unsafe { pass(libc::PTRACE_GETREGSET, tid, general(), (&raw mut vector).cast()) }?;
    // A 32-bit program has a shorter set.
    if vector.iov_len == size { Ok(registers) } else { Err(Errno::IO) }
}

/// Changes a stopped thread's registers.
pub(super) fn set_registers(tid: i32, registers: &UserRegs) -> Result<(), Errno> {
    let base = std::ptr::from_ref(registers).cast_mut().cast();
    let mut vector = libc::iovec { iov_base: base, iov_len: size_of::<UserRegs>() };
    // SAFETY: the kernel only reads `registers`, which lives until the call returns.
    unsafe { pass(libc::PTRACE_SETREGSET, tid, general(), (&raw mut vector).cast()) }
}

/// The register set asked for, as ptrace wants it: a number in a pointer's place.
fn general() -> *mut c_void {
    std::ptr::without_provenance_mut(libc::NT_PRSTATUS as usize)
}

/// A stopped thread's blocked signals, bit `n - 1` for signal `n`.
pub(super) fn signal_mask(tid: i32) -> Result<u64, Errno> {
    let mut mask = 0u64;
    let size = std::ptr::without_provenance_mut(size_of::<u64>());
    // SAFETY: the kernel writes the eight bytes that `size` says to `mask`, which lives until the call returns.
    unsafe { pass(libc::PTRACE_GETSIGMASK, tid, size, (&raw mut mask).cast()) }?;
    Ok(mask)
}

/// Changes a stopped thread's blocked signals.
pub(super) fn set_signal_mask(tid: i32, mut mask: u64) -> Result<(), Errno> {
    let size = std::ptr::without_provenance_mut(size_of::<u64>());
    // SAFETY: the kernel reads the eight bytes that `size` says from `mask`, which lives until the call returns.
    unsafe { pass(libc::PTRACE_SETSIGMASK, tid, size, (&raw mut mask).cast()) }
}

/// On which side of a system call a thread stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallSide {
    /// About to make it.
    Entry,
    /// The call was made.
    Exit,
    /// At no system call.
    Neither,
}

/// On which side of a system call a stopped thread stands (since Linux 5.3).
///
/// # Errors
/// `ESRCH`: gone, or not stopped; `EIO`: before Linux 5.3.
pub fn call_side(tid: i32) -> Result<CallSide, Errno> {
    // `struct ptrace_syscall_info` begins with `__u8 op`; the kernel copies no more than the size given.
    const ENTRY: u8 = 1;
    const EXIT: u8 = 2;
    let mut info = [0u8; 8];
    let size = std::ptr::without_provenance_mut(info.len());
    // SAFETY: the kernel writes at most `size` bytes to `info`, which lives until the call returns.
    unsafe { pass(libc::PTRACE_GET_SYSCALL_INFO, tid, size, info.as_mut_ptr().cast()) }?;
    Ok(match info.first() {
        Some(&ENTRY) => CallSide::Entry,
        Some(&EXIT) => CallSide::Exit,
        _ => CallSide::Neither,
    })
}

/// Waits for the thread `tid`, or with `None` for any tracee or child; `None` if nothing happened and `block` is false.
///
/// # Errors
/// `ECHILD`: there is none.
pub fn wait(tid: Option<i32>, block: bool) -> Result<Option<(i32, WaitStatus)>, Errno> {
    let which = tid.map(|tid| Pid::from_raw(tid).ok_or(Errno::INVAL)).transpose()?;
    // Threads are children that only __WALL sees.
    let wall = WaitOptions::from_bits_retain(libc::__WALL as u32);
    let options = if block { wall } else { wall | WaitOptions::NOHANG };
    let found = rustix::io::retry_on_intr(|| match which {
        Some(_) => rustix::process::waitpid(which, options),
        // Not `waitpid(None)`, which is the own process group: a tracee may be in any.
        None => rustix::process::wait(options),
    })?;
    Ok(found.map(|(pid, status)| (pid.as_raw_nonzero().get(), decode(status.as_raw()))))
}

fn decode(status: i32) -> WaitStatus {
    if libc::WIFEXITED(status) {
        return WaitStatus::Exited(libc::WEXITSTATUS(status));
    }
    if libc::WIFSIGNALED(status) {
        return WaitStatus::Signaled(libc::WTERMSIG(status));
    }
    let signal = libc::WSTOPSIG(status);
    WaitStatus::Stopped(match status >> 16 {
        0 if signal == libc::SIGTRAP | 0x80 => Stop::SystemCall,
        0 => Stop::Signal(signal),
        libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Trap,
        libc::PTRACE_EVENT_STOP => Stop::Group(signal),
        libc::PTRACE_EVENT_FORK => Stop::Event(EventStop::Fork),
        libc::PTRACE_EVENT_VFORK => Stop::Event(EventStop::VFork),
        libc::PTRACE_EVENT_CLONE => Stop::Event(EventStop::Clone),
        libc::PTRACE_EVENT_EXEC => Stop::Event(EventStop::Exec),
        libc::PTRACE_EVENT_EXIT => Stop::Event(EventStop::Exit),
        other => Stop::Event(EventStop::Other(other)),
    })
}

/// The end that a wait status will tell, from what [`event_message`] gives at [`EventStop::Exit`].
pub fn end_in(message: u64) -> super::pidfd::Ended {
    match decode(message as i32) {
        WaitStatus::Exited(code) => super::pidfd::Ended::Exited(code),
        WaitStatus::Signaled(signal) => super::pidfd::Ended::Signaled(signal),
        WaitStatus::Stopped(_) => super::pidfd::Ended::Unknown,
    }
}

/// A request whose arguments are numbers.
fn call(request: u32, tid: i32, address: u64, data: u64) -> Result<(), Errno> {
    let address = std::ptr::without_provenance_mut(address as usize);
    // SAFETY: the callers above use this for requests that take numbers only; the kernel follows no pointer.
    unsafe { pass(request, tid, address, std::ptr::without_provenance_mut(data as usize)) }
}

/// # Safety
/// The pointers are what the request demands.
unsafe fn pass(request: u32, tid: i32, address: *mut c_void, data: *mut c_void) -> Result<(), Errno> {
    // SAFETY: the caller's contract.
    let done = unsafe { libc::ptrace(request, tid, address, data) };
    if done == -1 { Err(super::map::last_errno()) } else { Ok(()) }
}
