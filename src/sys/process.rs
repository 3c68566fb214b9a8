//! The calling process and thread: their numbers, their turn to run, their end.
#![expect(unsafe_code, reason = "an exit without destructors has no safe wrapper")]

/// `getpid()`. *Async-signal-safe.*
pub fn pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// `getppid()`, 0 when the parent is outside this pid namespace. *Async-signal-safe.*
pub fn parent_pid() -> i32 {
    rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get())
}

/// `gettid()`. *Async-signal-safe.*
pub fn tid() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// `exit_group(code)`: no destructor, no `atexit`, no flush. *Async-signal-safe.*
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit ends the process and touches nothing of it.
    unsafe { libc::_exit(code) }
}

/// `setpriority(PRIO_PROCESS, 0, -20)`: lets the calling thread, and those that it starts from now on, run before others as soon as
/// they have something to do. Only root may. *Async-signal-safe.*
pub fn go_first() {
    // A process that may not do this waits for its turn.
    let _refused = rustix::process::setpriority_process(None, -20);
}

/// `sched_yield()`. *Async-signal-safe.*
pub fn yield_now() {
    rustix::thread::sched_yield();
}

/// Sleeps until a signal ends this process.
pub fn wait_for_death() -> ! {
    loop {
        rustix::event::pause();
    }
}
