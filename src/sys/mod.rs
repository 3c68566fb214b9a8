//! The only door to the kernel: one file an interface, thin and without policy.
//!
//! Every system call of this crate is made below here. The functions say which call they make,
//! what it demands of the caller, and which errno means what. They are public so that the
//! command-line tool and the tests of kernel behaviour use the same wrappers as the runtime. The module is hidden from
//! the documentation because it is **not** covered by the crate's version promise, and for no other reason: each function
//! here is sound, or `unsafe` and says what it demands.
//!
//! Functions marked *async-signal-safe* neither allocate, nor take a lock, nor touch thread-local storage:
//! they may run in a forked child before user code, in a signal handler, and in the keeper.

pub mod c_library;
pub mod change;
pub mod channel;
pub mod clone;
pub mod descriptor;
pub mod epoll;
pub mod eventfd;
pub mod executable;
pub mod file;
pub mod futex;
pub mod inject;
pub mod launch;
pub mod limits;
pub mod map;
pub mod memfd;
pub mod pagemap;
pub mod perf;
pub mod pidfd;
pub mod pipe;
pub mod prctl;
pub mod probe;
pub mod process;
pub mod procfs;
pub mod ptrace;
pub mod random;
pub mod registers;
pub mod remote;
pub mod robust;
pub mod shared_words;
pub mod signal;
pub mod stderr;
pub mod timer;
pub mod tracing;
pub mod uffd;
pub mod unwind;
pub mod usage;
pub mod wipe_on_fork;

use crate::page::PageSize;

// In the keeper, which shares the child's thread-local storage, and in signal handlers, no call may touch `errno`. The crate rustix
// makes calls itself unless somebody turns its feature `use-libc` on, which Cargo does for all who depend on it. Then its
// errors are ints, as C's are; its own have two bytes.
const _: () = assert!(
    size_of::<rustix::io::Errno>() == 2,
    "cowbell needs rustix's own system calls, and something in this build turns its libc backend on (the feature `use-libc`, or --cfg rustix_use_libc): `cargo tree -e features -i rustix` shows which crate does"
);

/// A system call's failure as the kernel gave it. *Async-signal-safe.*
pub use rustix::io::Errno;

/// This machine's page size. *Async-signal-safe.*
pub fn page_size() -> PageSize {
    PageSize::new(rustix::param::page_size()).expect("the kernel's page size is a power of two")
}

/// `CLOCK_MONOTONIC` in nanoseconds. *Async-signal-safe.*
pub fn monotonic_ns() -> u64 {
    nanoseconds(rustix::time::ClockId::Monotonic)
}

/// `CLOCK_THREAD_CPUTIME_ID` in nanoseconds: the time that this thread has run. *Async-signal-safe.*
pub fn ran_ns() -> u64 {
    nanoseconds(rustix::time::ClockId::ThreadCPUTime)
}

fn nanoseconds(clock: rustix::time::ClockId) -> u64 {
    let now = rustix::time::clock_gettime(clock);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
