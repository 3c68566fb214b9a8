//! What this kernel and this user let the tracer do.

use super::baseline;
use super::watch::{BIT_FEATURES, EVENT_FEATURES};
use cowbell::sys::pagemap::Pagemap;
use cowbell::sys::uffd::{Door, Uffd};
use std::fs;

/// Can pages be counted?
///
/// # Errors
/// Why not, and what would help.
pub fn count() -> Result<(), String> {
    Uffd::open(Door::UserModeOnly, BIT_FEATURES).map(drop).map_err(|e| {
        format!("this kernel cannot note writes without stopping the writer ({e}): it takes Linux 6.7 with userfaultfd")
    })
}

/// Can each first write be an event?
///
/// # Errors
/// Why not, and what would help.
pub fn trace() -> Result<(), String> {
    Uffd::open(Door::SystemCall, EVENT_FEATURES)
        .map(drop)
        .map_err(|e| format!("trace needs root (CAP_SYS_PTRACE) or `sysctl vm.unprivileged_userfaultfd=1` ({e})"))
}

/// May page frames be read? They are all 0 without CAP_SYS_ADMIN.
pub fn frames() -> bool {
    let local = 0u8;
    let page = std::ptr::from_ref(&local).addr() as u64 / baseline::page_bytes() * baseline::page_bytes();
    let entry = Pagemap::open_self().and_then(|pagemap| baseline::entry(&pagemap, page));
    entry.is_ok_and(|entry| entry.frame() != 0)
}

/// May processes be attached to that this one has not started?
///
/// # Errors
/// Why not, and what would help.
pub fn attach() -> Result<(), String> {
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let may_all = cowbell::sys::limits::user().may_trace;
    match scope.trim() {
        "" | "0" => Ok(()),
        "1" | "2" if may_all => Ok(()),
        "3" => Err("kernel.yama.ptrace_scope is 3: nobody may trace until the next boot".to_owned()),
        scope => {
            Err(format!("kernel.yama.ptrace_scope is {scope}: attach as root, or `sysctl kernel.yama.ptrace_scope=0`"))
        }
    }
}
