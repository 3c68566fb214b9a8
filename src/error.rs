//! One opaque [`Error`]: what was tried, what the kernel said, and what the user can do.

use crate::page::Bytes;
use crate::sys::Errno;
use std::borrow::Cow;
use std::fmt;

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed. Ask with the `is_*` predicates; print it for people.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    hint: Option<Cow<'static, str>>,
}

/// The kinds of failure. Not public: the predicates are the interface.
#[derive(Debug)]
pub(crate) enum ErrorKind {
    /// A system call failed.
    Os { operation: &'static str, errno: i32 },
    /// This kernel or this user cannot do it.
    Unsupported { feature: &'static str, since: &'static str, why: Cow<'static, str> },
    /// The arena's reserved address range is used up.
    OutOfCapacity { arena: String, capacity: usize, asked: usize },
    /// There is room in the arena, but no memory to put there.
    OutOfMemory { asked: usize, limit: String },
    /// A container of fixed capacity in shared memory has no room: elements.
    Full { capacity: usize, asked: usize },
    /// Data in shared memory may be half changed: who held its lock died or panicked.
    OwnerDied,
    /// The arena is frozen: nothing can be allocated from it any more.
    Frozen { arena: String },
    /// There is more than one thread, so fork would leave the child with locks nobody releases.
    Threads(Vec<Thread>),
    /// A handle does not fit what it is used on.
    Handle(&'static str),
    /// An argument makes no sense.
    Invalid(Cow<'static, str>),
    /// A child could not be set up or did not answer.
    Child(Cow<'static, str>),
}

/// A thread of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// The kernel's id of the thread.
    pub tid: i32,
    /// The thread's name, as in `/proc/self/task/TID/comm`.
    pub name: String,
    /// The thread has ended, and the kernel has not taken it away: for a moment, or for good where it is a main thread that left by
    /// `pthread_exit`.
    pub exiting: bool,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind) -> Self {
        Self(Box::new(Inner { kind, hint: None }))
    }

    /// A system call's failure.
    pub(crate) fn os(operation: &'static str, errno: Errno) -> Self {
        let error = Self::new(ErrorKind::Os { operation, errno: errno.raw_os_error() });
        match remedy(operation, errno) {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }

    /// Tells whether it is the failure of this operation.
    pub(crate) fn is_of(&self, wanted: &str) -> bool {
        matches!(self.0.kind, ErrorKind::Os { operation, .. } if operation == wanted)
    }

    pub(crate) fn unsupported(feature: &'static str, since: &'static str, why: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Unsupported { feature, since, why: why.into() })
    }

    pub(crate) fn invalid(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Invalid(what.into()))
    }

    /// The one thing the user can do about it.
    pub(crate) fn with_hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// The kernel's errno, where the failure came from a system call.
    pub fn errno(&self) -> Option<i32> {
        match self.0.kind {
            ErrorKind::Os { errno, .. } => Some(errno),
            _ => None,
        }
    }

    /// The remedy, where there is one thing that the user can do.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// This kernel, or this user on it, cannot do what was asked.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Unsupported { .. })
    }

    /// The kernel refused for want of a permission (`EPERM` or `EACCES`).
    pub fn is_permission(&self) -> bool {
        [Errno::PERM, Errno::ACCESS].iter().any(|errno| self.errno() == Some(errno.raw_os_error()))
    }

    /// The arena's reserved range, or a shared vector, is used up; a larger capacity would have helped.
    pub fn is_out_of_capacity(&self) -> bool {
        matches!(self.0.kind, ErrorKind::OutOfCapacity { .. } | ErrorKind::Full { .. })
    }

    /// Memory ran out: the machine's, the control group's or the overcommit limit's.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self.0.kind, ErrorKind::OutOfMemory { .. }) || self.errno() == Some(Errno::NOMEM.raw_os_error())
    }

    /// Data in shared memory may be half changed: who held its lock died or panicked.
    pub fn is_owner_died(&self) -> bool {
        matches!(self.0.kind, ErrorKind::OwnerDied)
    }

    /// The arena is frozen already.
    pub fn is_frozen(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Frozen { .. })
    }

    /// A handle was used on another arena or generation, out of bounds, misaligned or as another type.
    pub fn is_bad_handle(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Handle(_))
    }

    /// An argument made no sense.
    pub fn is_invalid(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Invalid(_))
    }

    /// The threads that were found when fork needs there to be one, the caller among them. The kernel's count decides, not
    /// this list, in which threads may be missing that were started while it was read.
    pub fn threads(&self) -> Option<&[Thread]> {
        match &self.0.kind {
            ErrorKind::Threads(threads) => Some(threads),
            _ => None,
        }
    }
}

/// The usual remedy against an errno.
fn remedy(operation: &str, errno: Errno) -> Option<&'static str> {
    match errno {
        Errno::MFILE => Some("raise the limit on open files: ulimit -n"),
        Errno::NFILE => Some("raise the machine's limit on open files: sysctl fs.file-max"),
        Errno::AGAIN if operation.starts_with("clone") => {
            Some("raise the limit on processes: ulimit -u, or pids.max of the control group")
        }
        Errno::NOMEM if operation.starts_with("mmap") => {
            Some("raise the limit on address space: ulimit -v, or choose a smaller capacity")
        }
        Errno::ACCESS | Errno::PERM if operation == "perf_event_open" => Some(
            "let users see their own page faults: sysctl kernel.perf_event_paranoid=2; in a container allow perf_event_open in its seccomp profile",
        ),
        Errno::PERM if operation == "mmap(perf event)" => {
            Some("let users lock more memory: sysctl kernel.perf_event_mlock_kb, or ulimit -l")
        }
        _ => None,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.kind {
            ErrorKind::Os { operation, errno } => {
                write!(f, "{operation}: {}", std::io::Error::from_raw_os_error(*errno))?;
            }
            ErrorKind::Unsupported { feature, since, why } => {
                write!(f, "{feature} is not available (Linux {since} and later have it): {why}")?;
            }
            ErrorKind::OutOfCapacity { arena, capacity, asked } => {
                ArenaFull { arena, capacity: *capacity, asked: *asked }.fmt(f)?
            }
            ErrorKind::OutOfMemory { asked, limit } => {
                write!(f, "out of memory: {} asked, {limit}", Bytes(*asked as u64))?;
            }
            ErrorKind::Full { capacity, asked } => {
                write!(f, "no room for {asked} more elements: the capacity is {capacity}")?;
            }
            ErrorKind::OwnerDied => {
                f.write_str("the last holder of the lock died or panicked with it: its data may be half changed")?
            }
            ErrorKind::Frozen { arena } => ArenaFrozen(arena).fmt(f)?,
            ErrorKind::Threads(threads) => {
                f.write_str("a single thread is needed, and there are others; found:")?;
                for thread in threads {
                    let ended = if thread.exiting { ", has ended" } else { "" };
                    write!(f, " {} ({}{ended})", thread.tid, thread.name)?;
                }
            }
            ErrorKind::Handle(why) => write!(f, "handle refused: {why}")?,
            ErrorKind::Invalid(what) => f.write_str(what)?,
            ErrorKind::Child(what) => write!(f, "child process: {what}")?,
        }
        match &self.0.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

/// The sentence about an arena without room; it can be told before there is an [`Error`], which takes memory.
pub(crate) struct ArenaFull<'a> {
    pub(crate) arena: &'a str,
    pub(crate) capacity: usize,
    pub(crate) asked: usize,
}

impl ArenaFull<'_> {
    /// The remedy.
    pub(crate) const HINT: &'static str = "give the arena a larger capacity: only addresses are taken up front";
}

impl fmt::Display for ArenaFull<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { arena, capacity, asked } = self;
        write!(f, "arena `{arena}` is full: {asked} bytes asked, capacity {capacity} bytes")
    }
}

/// The sentence about an arena, by its name, that is frozen.
pub(crate) struct ArenaFrozen<'a>(pub(crate) &'a str);

impl fmt::Display for ArenaFrozen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "arena `{}` is frozen", self.0)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error").field("kind", &self.0.kind).field("hint", &self.0.hint).finish()
    }
}

impl std::error::Error for Error {}
