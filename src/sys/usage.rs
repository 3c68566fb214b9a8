//! The resources that a process has used: `getrusage(2)`.
#![expect(unsafe_code, reason = "the call fills a struct")]

use std::mem::MaybeUninit;

/// `getrusage(RUSAGE_SELF)`: page faults of this process since it was forked, without and with I/O. *Async-signal-safe.*
pub fn page_faults() -> u64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the struct is valid for the call, which cannot fail with these arguments.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    // SAFETY: zeroes are valid numbers, and the call filled them.
    let usage = unsafe { usage.assume_init() };
    (usage.ru_minflt as u64).saturating_add(usage.ru_majflt as u64)
}
