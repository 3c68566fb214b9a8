//! Signals: `sigaction(2)`, `rt_sigprocmask(2)`, and what a fault's signal frame says.
//!
//! # Safety
//! A handler may run at any instruction of any thread, so it only does what is *async-signal-safe*.
#![expect(unsafe_code, reason = "signal handlers are called by the kernel")]

use super::Errno;
use super::map::last_errno;
pub use crate::facts::Registers;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

/// SIGSEGV.
pub const SEGV: i32 = libc::SIGSEGV;
/// SIGABRT.
pub const ABRT: i32 = libc::SIGABRT;
/// SIGBUS.
pub const BUS: i32 = libc::SIGBUS;
/// SIGCHLD.
pub const CHLD: i32 = libc::SIGCHLD;
/// SIGINT.
pub const INT: i32 = libc::SIGINT;
/// SIGQUIT.
pub const QUIT: i32 = libc::SIGQUIT;
/// SIGTERM.
pub const TERM: i32 = libc::SIGTERM;
/// SIGHUP.
pub const HUP: i32 = libc::SIGHUP;
/// SIGUSR1.
pub const USR1: i32 = libc::SIGUSR1;
/// SIGUSR2.
pub const USR2: i32 = libc::SIGUSR2;
/// SIGTSTP.
pub const TSTP: i32 = libc::SIGTSTP;
/// SIGTTIN.
pub const TTIN: i32 = libc::SIGTTIN;
/// SIGTTOU.
pub const TTOU: i32 = libc::SIGTTOU;
/// SIGPIPE.
pub const PIPE: i32 = libc::SIGPIPE;
/// SIGSTOP.
pub const STOP: i32 = libc::SIGSTOP;
/// SIGKILL.
pub const KILL: i32 = libc::SIGKILL;

/// `siginfo_t`: what a signal says of itself.
pub type Info = libc::siginfo_t;

/// A handler that gets the frame.
pub type Handler = extern "C" fn(i32, *mut Info, *mut c_void);

/// The disposition that was installed for a signal before.
#[derive(Clone, Copy)]
pub struct Action(libc::sigaction);

/// `sigaction(signal, NULL, old)`: what is installed. *Async-signal-safe.*
///
/// # Errors
/// EINVAL for a number that is no signal.
pub fn current(signal: i32) -> Result<Action, Errno> {
    let mut old = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: the struct is valid for the call.
    let done = unsafe { libc::sigaction(signal, std::ptr::null(), old.as_mut_ptr()) };
    if done != 0 {
        return Err(last_errno());
    }
    // SAFETY: the call succeeded, so the kernel filled it.
    Ok(Action(unsafe { old.assume_init() }))
}

/// `sigaction(signal, SA_SIGINFO | SA_ONSTACK)` with all signals blocked in the handler: installs a
/// handler. *Async-signal-safe.*
///
/// # Safety
/// The handler does only what is async-signal-safe (signal-safety(7)).
///
/// # Errors
/// EINVAL for a signal that cannot be handled.
pub unsafe fn install(signal: i32, handler: Handler) -> Result<(), Errno> {
    // SAFETY: a sigaction of zeroes is a valid value (SIG_DFL, no flags).
    let mut new: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    new.sa_sigaction = handler as *const () as usize;
    new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the set is ours.
    unsafe { libc::sigfillset(&raw mut new.sa_mask) };
    // SAFETY: the struct is valid for the call; the handler is the caller's promise.
    let done = unsafe { libc::sigaction(signal, &raw const new, std::ptr::null_mut()) };
    if done == 0 { Ok(()) } else { Err(last_errno()) }
}

impl Action {
    /// Is it the kernel's default? *Async-signal-safe.*
    pub fn is_default(&self) -> bool {
        self.0.sa_sigaction == libc::SIG_DFL
    }

    /// Is the signal ignored? *Async-signal-safe.*
    pub fn is_ignored(&self) -> bool {
        self.0.sa_sigaction == libc::SIG_IGN
    }

    /// Hands a signal that is not ours to whom it was meant for: calls the earlier handler, or puts
    /// the default back so that the repeated fault has its default effect. *Async-signal-safe.*
    ///
    /// # Safety
    /// To be called from a handler with that handler's own arguments.
    pub unsafe fn pass_on(&self, signal: i32, info: *mut Info, context: *mut c_void) {
        match self.0.sa_sigaction {
            // A fault cannot be ignored, a signal sent by a process can.
            // SAFETY: as this function's own contract.
            libc::SIG_IGN if !unsafe { MemoryFault::read(info, context) }.from_access => {}
            libc::SIG_DFL | libc::SIG_IGN => restore_default(signal),
            handler if self.0.sa_flags & libc::SA_SIGINFO != 0 => {
                // SAFETY: with SA_SIGINFO the field holds a function of this type (sigaction(2)).
                let handler: Handler = unsafe { std::mem::transmute(handler) };
                handler(signal, info, context);
            }
            handler => {
                // SAFETY: without SA_SIGINFO the field holds a function of this type (sigaction(2)).
                let handler: extern "C" fn(i32) = unsafe { std::mem::transmute(handler) };
                handler(signal);
            }
        }
    }
}

/// `sigaction(signal, SIG_DFL)`: the next one has its default effect. *Async-signal-safe.*
pub fn restore_default(signal: i32) {
    // SAFETY: installing the default has no precondition.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// `sigaction(signal, SIG_IGN)`: it has no effect any more, here and in processes forked from here. *Async-signal-safe.*
pub fn ignore(signal: i32) {
    // SAFETY: ignoring has no precondition.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// `sigaction(signal, SA_RESTART | SA_ONSTACK)` with a handler that does nothing: like [`ignore`], but a program that is executed has the default
/// again, and a system call that waits is begun anew where that can be. A process that is forked has the handler, too. *Async-signal-safe.*
pub fn take_no_notice(signal: i32) {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: a sigaction of zeroes is a valid value (SIG_DFL, no flags, nothing blocked).
    let mut new: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    new.sa_sigaction = nothing as *const () as usize;
    new.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
    // Frames of several signals at once would not fit on the stack for signals, which may be 8 KiB: that is a SIGSEGV.
    // SAFETY: the set is ours.
    unsafe { libc::sigfillset(&raw mut new.sa_mask) };
    // SAFETY: the struct is valid for the call, and a handler that does nothing may run anywhere.
    unsafe { libc::sigaction(signal, &raw const new, std::ptr::null_mut()) };
}

/// Signals that are held from this thread as long as this lives.
#[derive(Debug)]
pub struct HeldSignals {
    before: u64,
    /// A mask is a thread's own.
    _of_this_thread: PhantomData<*const ()>,
}

impl HeldSignals {
    /// Holds these, bit `n - 1` for signal `n`, besides those that are blocked already.
    pub fn new(signals: u64) -> Self {
        let before = mask();
        set_mask(before | signals);
        Self { before, _of_this_thread: PhantomData }
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        set_mask(self.before);
    }
}

/// A set of blocked signals.
#[derive(Clone, Copy)]
pub struct Mask(libc::sigset_t);

/// Blocks all signals of this thread that can be blocked and returns the mask from before. *Async-signal-safe.*
pub fn block_all() -> Mask {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut old = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is ours; the call fills it.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: both sets are valid for the call, which cannot fail with a valid first argument.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr()) };
    // SAFETY: the call filled it.
    Mask(unsafe { old.assume_init() })
}

/// Puts a mask back. *Async-signal-safe.*
pub fn restore(mask: &Mask) {
    // SAFETY: the set is valid for the call.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask.0, std::ptr::null_mut()) };
}

/// A memory fault as its signal frame tells it.
#[derive(Clone, Copy, Debug)]
pub struct MemoryFault {
    /// The address touched.
    pub address: usize,
    /// Did the kernel raise the signal because of a memory access (rather than a process by `kill`)?
    pub from_access: bool,
    /// For a SIGBUS: is the address the matter (`BUS_ADRERR`), and not the hardware or the disk?
    pub bus_address: bool,
    /// Tells whether the access was a write; `None` where the frame does not say.
    pub write: Option<bool>,
    /// The thread's registers.
    pub registers: Registers,
}

impl MemoryFault {
    /// Did a stack overflow, by all signs? The access was within a page of the stack pointer: so it is where a call stores its return
    /// address, and where a function's large frame is touched page by page, as compilers do it. *Async-signal-safe.*
    pub fn is_at_stack_pointer(&self) -> bool {
        self.from_access && self.address.abs_diff(self.registers.sp as usize) < super::page_size().bytes()
    }

    /// Reads a SIGSEGV's or SIGBUS's frame. *Async-signal-safe.*
    ///
    /// # Safety
    /// To be called from a handler installed with `SA_SIGINFO` with that handler's own arguments.
    pub unsafe fn read(info: *const Info, context: *const c_void) -> Self {
        // SAFETY: the kernel passes a valid siginfo to a SA_SIGINFO handler.
        let info = unsafe { &*info };
        // SAFETY: for these signals the kernel fills the address.
        let address = unsafe { info.si_addr() };
        // SAFETY: the third argument of a SA_SIGINFO handler is a ucontext_t.
        let context = unsafe { &*context.cast::<libc::ucontext_t>() };
        let (registers, write) = decode(context);
        let code = info.si_code;
        let bus_address = code == libc::BUS_ADRERR;
        Self { address: address.addr(), from_access: code > 0, bus_address, write, registers }
    }
}

#[cfg(target_arch = "x86_64")]
fn decode(context: &libc::ucontext_t) -> (Registers, Option<bool>) {
    let register = |index: i32| context.uc_mcontext.gregs.get(index as usize).map_or(0, |&value| value as u64);
    let registers = Registers { pc: register(libc::REG_RIP), sp: register(libc::REG_RSP), fp: register(libc::REG_RBP) };
    // Bit 1 of the page fault's error code: the access was a write (Intel SDM 4.7).
    (registers, Some(register(libc::REG_ERR) & 2 != 0))
}

#[cfg(target_arch = "aarch64")]
fn decode(context: &libc::ucontext_t) -> (Registers, Option<bool>) {
    let machine = &context.uc_mcontext;
    let fp = machine.regs.get(29).copied().unwrap_or(0);
    (Registers { pc: machine.pc, sp: machine.sp, fp }, None)
}

/// The signals this thread blocks, bit `n - 1` for signal `n`. *Async-signal-safe.*
pub fn mask() -> u64 {
    let mut mask = 0u64;
    let (none, size) = (std::ptr::null::<u64>(), size_of::<u64>());
    // SAFETY: the kernel writes `size` bytes to `mask`, which lives until the call returns.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, none, &raw mut mask, size) };
    mask
}

/// Blocks exactly these signals in this thread. *Async-signal-safe.*
pub fn set_mask(mask: u64) {
    let (old, size) = (std::ptr::null_mut::<u64>(), size_of::<u64>());
    // SAFETY: the kernel reads `size` bytes from `mask`, which lives until the call returns.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, old, size) };
}

/// Blocks signals in this thread and delivers them through a descriptor instead: `signalfd(2)`, non-blocking.
///
/// # Errors
/// `EMFILE`, `ENOMEM`; `EINVAL` for a number that is no signal.
pub fn receive(signals: &[i32]) -> Result<OwnedFd, Errno> {
    // SAFETY: a set of zeroes is valid storage for sigemptyset to fill.
    let mut set: libc::sigset_t = unsafe { MaybeUninit::zeroed().assume_init() };
    for &signal in signals {
        // SAFETY: the set is ours, and was initialised (an empty set is zeroes in glibc).
        let added = unsafe { libc::sigaddset(&raw mut set, signal) };
        if added != 0 {
            return Err(last_errno());
        }
    }
    // SAFETY: the set is valid for the call.
    let done = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if done != 0 {
        return Err(Errno::from_raw_os_error(done));
    }
    // SAFETY: the set is valid for the call.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: the call has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The next signal that [`receive`] caught; `None` when there is none now. Signals of one number merge.
pub fn received(signals: impl AsFd) -> Option<i32> {
    const SIZE: usize = size_of::<libc::signalfd_siginfo>();
    let mut buffer = [0u8; SIZE];
    let got = rustix::io::read(signals, &mut buffer).ok()?;
    // `struct signalfd_siginfo` begins with `uint32_t ssi_signo`.
    let number = buffer.first_chunk::<4>().filter(|_| got == SIZE)?;
    i32::try_from(u32::from_ne_bytes(*number)).ok()
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

/// `kill(0, SIGKILL)`: ends every process of this one's group, and so this one. *Async-signal-safe.*
pub fn kill_group() {
    // One's own group can always be signalled.
    let _sent = rustix::process::kill_current_process_group(rustix::process::Signal::KILL);
}
