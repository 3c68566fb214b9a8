//! System calls made by another process on the tracer's order.
//!
//! A stopped thread's registers are set to a system call, one is made, and the registers are put back. Only calls that
//! leave memory alone are offered, so nothing here can make memory unsafe, in the target or (if it shares ours) here.
//!
//! A seccomp filter of the target decides about the call as about any other: it may refuse it, and may kill the process.
//! So a careful caller looks first whether `/proc/PID/status` says `Seccomp: 2`.
//!
//! A system call that the thread was in goes on afterwards as after any stop. On aarch64 a sleep with a relative time
//! begins anew: there the kernel decides how to go on before the stop, and forgets it for the calls made meanwhile.
//!
//! While this runs the thread must not be let go: if the tracer dies in between, the target goes on with wrong registers.
//! So the tracer is a process of its own that nobody has a reason to kill, and the time is kept short.

use super::Errno;
use super::procfs::maps;
use super::ptrace::{self, CallSide, Stop, Until, WaitStatus};
use super::registers::{CALL, UserRegs};
use super::remote;

/// A call that may be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `userfaultfd`, close-on-exec and non-blocking, with or without `UFFD_USER_MODE_ONLY`.
    Userfaultfd {
        /// See [`super::uffd::Door::UserModeOnly`].
        user_mode_only: bool,
    },
    /// `pidfd_open` of a process, by its number in the namespace of the one that calls.
    OpenProcess(i32),
    /// `pidfd_getfd`: a copy of a descriptor of another process, which the caller must be allowed to trace.
    TakeDescriptor {
        /// The other process, from [`Self::OpenProcess`].
        process: i32,
        /// The descriptor in the other process.
        number: i32,
    },
    /// `ioctl(USERFAULTFD_IOC_NEW)` on this open `/dev/userfaultfd`, close-on-exec and non-blocking: asks for no privilege.
    NewUserfaultfd(i32),
    /// `close` of a descriptor that an injected call has opened.
    Close(i32),
}

impl Call {
    fn encode(self) -> (i64, [u64; 3]) {
        match self {
            Self::Userfaultfd { user_mode_only } => {
                let only = if user_mode_only { linux_raw_sys::general::UFFD_USER_MODE_ONLY } else { 0 };
                let flags = only | (libc::O_CLOEXEC | libc::O_NONBLOCK) as u32;
                (libc::SYS_userfaultfd, [u64::from(flags), 0, 0])
            }
            Self::OpenProcess(pid) => (libc::SYS_pidfd_open, [pid as u64, 0, 0]),
            Self::TakeDescriptor { process, number } => (libc::SYS_pidfd_getfd, [process as u64, number as u64, 0]),
            Self::NewUserfaultfd(device) => {
                let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
                (libc::SYS_ioctl, [device as u64, u64::from(super::uffd::NEW), flags])
            }
            Self::Close(fd) => (libc::SYS_close, [fd as u64, 0, 0]),
        }
    }
}

/// Why an injection did not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupted {
    /// No call was made. `EPERM`: a seccomp filter sent SIGSYS instead; `EFAULT`: the thread ran into another signal.
    /// [`Injection::finish`] still puts everything back.
    Refused(Errno),
    /// The thread ends (it was killed): it stands in this state and must be handled accordingly.
    Ending(WaitStatus),
}

impl From<Errno> for Interrupted {
    fn from(e: Errno) -> Self {
        Self::Refused(e)
    }
}

/// A stopped thread that makes system calls for us.
///
/// [`Injection::begin`] on a thread that stands in a [`Stop::Trap`]; any number of [`Injection::call`]; then
/// [`Injection::finish`].
pub struct Injection<'a> {
    tid: i32,
    saved: UserRegs,
    mask: u64,
    at: u64,
    stop_signal: bool,
    wait: &'a mut dyn FnMut(i32) -> Result<WaitStatus, Errno>,
}

impl<'a> Injection<'a> {
    /// Prepares a thread in a [`Stop::Trap`] that was seized with [`ptrace::Options::SYSGOOD`]: blocks its signals and
    /// finds a system call instruction. `wait` waits for the next stop of a thread; it may do other work meanwhile, such
    /// as answering page events.
    ///
    /// # Errors
    /// `ESRCH`: gone; `EIO`: a 32-bit program; `ENOENT`: no system call instruction was found.
    pub fn begin(tid: i32, wait: &'a mut dyn FnMut(i32) -> Result<WaitStatus, Errno>) -> Result<Self, Errno> {
        let saved = ptrace::registers(tid)?;
        if !saved.is_native() {
            return Err(Errno::IO);
        }
        let at = instruction(tid, &saved).ok_or(Errno::NOENT)?;
        let mask = ptrace::signal_mask(tid)?;
        // If a seccomp filter sends SIGSYS and that is blocked, the kernel takes the program's handler away.
        ptrace::set_signal_mask(tid, !(1 << (libc::SIGSYS - 1)))?;
        Ok(Self { tid, saved, mask, at, stop_signal: false, wait })
    }

    /// Makes the call and returns its result, minus errno if negative.
    ///
    /// # Errors
    /// [`Interrupted::Ending`]: the thread was killed; nothing more can be called, nor finished.
    pub fn call(&mut self, call: Call) -> Result<i64, Interrupted> {
        let (number, arguments) = call.encode();
        let result = self.make(number, arguments)?;
        // A seccomp filter that sends SIGSYS leaves the registers like this, too; then the signal comes before the next
        // call is made.
        if result == number || arguments.first() == Some(&(result as u64)) {
            self.make(libc::SYS_close, [u64::MAX, 0, 0])?;
        }
        Ok(result)
    }

    fn make(&mut self, number: i64, arguments: [u64; 3]) -> Result<i64, Interrupted> {
        let set = ptrace::set_registers(self.tid, &self.saved.calling(self.at, number, arguments));
        self.unless_killed(set)?;
        let mut entered = false;
        loop {
            let resumed = ptrace::resume(self.tid, Until::SystemCall, 0);
            self.unless_killed(resumed)?;
            match self.next_stop()? {
                Stop::SystemCall => {}
                Stop::Signal(libc::SIGSYS) => return Err(Errno::PERM.into()),
                // All other signals are blocked: the thread ran into this one, and would for ever.
                Stop::Signal(signal) if signal != libc::SIGSTOP => return Err(Errno::FAULT.into()),
                _ => continue,
            }
            let side = ptrace::call_side(self.tid);
            match self.unless_killed(side)? {
                CallSide::Entry => entered = true,
                CallSide::Exit if entered => {
                    let registers = ptrace::registers(self.tid);
                    return self.unless_killed(registers).map(|registers| registers.result());
                }
                CallSide::Exit | CallSide::Neither => {}
            }
        }
    }

    /// Puts everything back. The thread stands in a [`Stop::Trap`] again, or in the group stop that came meanwhile: the
    /// stop is returned.
    ///
    /// # Errors
    /// [`Interrupted::Ending`]: the thread was killed.
    pub fn finish(mut self) -> Result<Stop, Interrupted> {
        // Restored where signals are handled, not after the system call: only there the kernel looks again whether a
        // system call is to be restarted.
        let interrupted = ptrace::interrupt(self.tid);
        self.unless_killed(interrupted)?;
        let stop = loop {
            let resumed = ptrace::resume(self.tid, Until::Event, 0);
            self.unless_killed(resumed)?;
            if let stop @ (Stop::Trap | Stop::Group(_)) = self.next_stop()? {
                break stop;
            }
        };
        let set = ptrace::set_registers(self.tid, &self.saved);
        self.unless_killed(set)?;
        let set = ptrace::set_signal_mask(self.tid, self.mask);
        self.unless_killed(set)?;
        if self.stop_signal {
            super::signal::send(self.tid, libc::SIGSTOP);
        }
        Ok(stop)
    }

    /// A thread that is killed while it stands still leaves its stop, and requests to it fail until its next one.
    fn unless_killed<T>(&mut self, done: Result<T, Errno>) -> Result<T, Interrupted> {
        match done {
            Err(Errno::SRCH) => self.next_stop().and(Err(Errno::SRCH.into())),
            done => Ok(done?),
        }
    }

    fn next_stop(&mut self) -> Result<Stop, Interrupted> {
        match (self.wait)(self.tid)? {
            ending @ (WaitStatus::Stopped(Stop::Event(ptrace::EventStop::Exit))
            | WaitStatus::Exited(_)
            | WaitStatus::Signaled(_)) => Err(Interrupted::Ending(ending)),
            WaitStatus::Stopped(stop) => {
                // The one signal that cannot be blocked and does not end the thread: kept for later.
                self.stop_signal |= stop == Stop::Signal(libc::SIGSTOP);
                Ok(stop)
            }
        }
    }
}

/// The address of a system call instruction in the target: the one that it came here by, or one of the vDSO.
fn instruction(tid: i32, registers: &UserRegs) -> Option<u64> {
    let memory = remote::RemoteMemory::open(tid).ok()?;
    let behind = registers.pc().wrapping_sub(CALL.len() as u64);
    let page = !(super::page_size().bytes() as u64 - 1);
    let mut bytes = CALL;
    bytes.fill(0);
    // Only in the page that the thread executes: the one before it may be data.
    if behind & page == registers.pc() & page && memory.read(behind, &mut bytes) == Ok(CALL.len()) && bytes == CALL {
        return Some(behind);
    }
    let vdso = maps::vdso(tid)?;
    let mut code = vec![0; vdso.len];
    let got = memory.read(vdso.start as u64, &mut code).ok()?;
    let at = code.get(..got)?.windows(CALL.len()).position(|window| window == CALL)?;
    Some((vdso.start + at) as u64)
}
