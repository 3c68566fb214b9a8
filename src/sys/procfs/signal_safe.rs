//! Files of `/proc` without an allocation.
//!
//! # Safety
//! Everything here is *async-signal-safe*.

use super::stat::Stat;
use crate::sys::{Errno, descriptor, memfd};
use rustix::fs::{Mode, OFlags};
use std::ffi::CStr;
use std::io::Write;
use std::os::fd::OwnedFd;

/// `/proc/PID/FILE` as a C string. *Async-signal-safe.*
pub(in crate::sys) fn path(pid: i32, file: &str) -> PathBuffer {
    let mut path = PathBuffer { bytes: [0; 64] };
    let mut rest = path.bytes.split_at_mut(63).0;
    let _fits = write!(rest, "/proc/{pid}/{file}");
    path
}

/// `/proc/PID/task/TID/FILE` as a C string. *Async-signal-safe.*
pub(in crate::sys) fn thread_path(pid: i32, tid: i32, file: &str) -> PathBuffer {
    let mut path = PathBuffer { bytes: [0; 64] };
    // The longest: /proc/ + 11 digits + /task/ + 11 digits + /syscall.
    let mut rest = path.bytes.split_at_mut(63).0;
    let _fits = write!(rest, "/proc/{pid}/task/{tid}/{file}");
    path
}

/// A short path, made without allocation.
pub(in crate::sys) struct PathBuffer {
    bytes: [u8; 64],
}

impl std::ops::Deref for PathBuffer {
    type Target = CStr;

    fn deref(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

/// Reads the start of a file into `buffer`, without allocation. *Async-signal-safe.*
///
/// # Errors
/// As `open(2)` and `read(2)`.
pub fn read_small<'a>(path: &CStr, buffer: &'a mut [u8]) -> Result<&'a [u8], Errno> {
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let got = memfd::read_at(&fd, buffer, 0);
    descriptor::close(fd);
    buffer.get(..got?).ok_or(Errno::IO)
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

/// `/proc/PID/auxv`, which differs from one `exec` to the next; `pid` 0 means this process. *Async-signal-safe.*
///
/// # Errors
/// ENOENT when the process is gone; EACCES without ptrace read access.
pub fn auxiliary_vector(pid: i32, buffer: &mut [u8]) -> Result<&[u8], Errno> {
    if pid == 0 { read_small(c"/proc/self/auxv", buffer) } else { read_small(&path(pid, "auxv"), buffer) }
}

/// The page faults that all threads of a process have had. *Async-signal-safe.*
pub fn page_faults(pid: i32) -> Option<u64> {
    let mut buffer = [0; 512];
    let line = read_small(&path(pid, "stat"), &mut buffer).ok()?;
    Stat::parse(line).map(|stat| stat.faults)
}

/// Tells whether a process is on its way out, or gone: from the flags in `/proc/PID/stat` (`PF_EXITING`). *Async-signal-safe.*
pub fn is_exiting(pid: i32) -> bool {
    let mut buffer = [0; 512];
    let line = read_small(&path(pid, "stat"), &mut buffer);
    line.map_or(true, |line| Stat::parse(line).is_none_or(|stat| stat.is_exiting()))
}

/// Opens `/proc/self/mem`, by which memory is read without the danger of a fault. *Async-signal-safe.*
///
/// # Errors
/// ENOENT when `/proc` is not mounted.
pub fn open_memory() -> Result<OwnedFd, Errno> {
    rustix::fs::open(c"/proc/self/mem", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}
