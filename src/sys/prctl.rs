//! `prctl(2)`: what a process asks the kernel for itself.

use super::Errno;
use std::ffi::CStr;

/// `prctl(PR_SET_PDEATHSIG, SIGKILL)`: this process dies when the **thread** that made it ends. *Async-signal-safe.*
///
/// # Errors
/// None known.
pub fn die_with_parent() -> Result<(), Errno> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
}

/// `prctl(PR_SET_NAME, name)`: what `ps` shows, at most 15 bytes. *Async-signal-safe.*
pub fn set_name(name: &CStr) {
    // A name is a courtesy; a refusal changes nothing.
    let _refused = rustix::thread::set_name(name);
}

/// Lifts the restriction of the Yama module for one process: it may trace us. *Async-signal-safe.*
pub fn allow_tracing_by(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        // EINVAL where there is no Yama, and then there is nothing to lift.
        let _refused = rustix::process::set_ptracer(rustix::process::PTracer::ProcessID(pid));
    }
}
