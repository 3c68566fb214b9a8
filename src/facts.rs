//! Promised types that the door to the kernel fills in.
//!
//! `sys` is not promised, so what the promised interface shows of a process' end, of memory and of userfaultfd is
//! defined here. Each is shown by the room that hands it out.

use crate::page::Bytes;
use std::fmt;

/// The end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Ended {
    /// By exiting, with this code.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
    /// The child is gone, but somebody else took its status (a foreign `wait()`, or ignored SIGCHLD).
    Unknown,
}

/// A stack that overflowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct StackOverflow {
    /// The thread whose stack it was.
    pub tid: i32,
    /// The instruction that touched what lies beyond.
    pub pc: u64,
}

/// The ways to get a userfaultfd, the most powerful first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Door {
    /// `ioctl(USERFAULTFD_IOC_NEW)` on `/dev/userfaultfd` (6.1): whoever may open the file.
    Device,
    /// `userfaultfd(0)`: CAP_SYS_PTRACE, or everyone where `vm.unprivileged_userfaultfd` is 1.
    SystemCall,
    /// `userfaultfd(UFFD_USER_MODE_ONLY)` (5.11): everyone. Faults the kernel takes on a program's
    /// behalf are not handled: a `read(2)` into a protected page fails with EFAULT.
    UserModeOnly,
}

impl Door {
    /// All doors, the most powerful first.
    pub const ALL: [Self; 3] = [Self::Device, Self::SystemCall, Self::UserModeOnly];

    /// Tells whether faults are handled that the kernel takes on a program's behalf.
    pub fn sees_kernel_writes(self) -> bool {
        self != Self::UserModeOnly
    }
}

/// The place where a thread was when a signal hit it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// Program counter.
    pub pc: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer, if the code keeps one.
    pub fp: u64,
}

/// The memory this process may still take, and what ends it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Headroom {
    /// Bytes until the limit.
    pub bytes: u64,
    /// The limit that comes first.
    pub limit: Limit,
}

/// A limit that memory runs into.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Limit {
    /// The machine's memory and swap.
    Machine,
    /// A control group this process is in, itself or by its parents.
    ControlGroup {
        /// The group's path in its hierarchy, as in `/proc/self/cgroup`.
        path: String,
        /// The bytes it allows (`memory.max`; version 1: `memory.limit_in_bytes`).
        max: u64,
    },
}

impl fmt::Display for Headroom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.limit {
            Limit::Machine => write!(f, "this machine has {} of memory and swap left", Bytes(self.bytes)),
            Limit::ControlGroup { path, max } => {
                write!(
                    f,
                    "control group {path} allows {}, {} in use",
                    Bytes(*max),
                    Bytes(max.saturating_sub(self.bytes))
                )
            }
        }
    }
}
