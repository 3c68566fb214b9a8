//! What only the C library knows: handlers around `fork`, at a thread's end, and the buffers of its streams.
#![expect(unsafe_code, reason = "the C library is called")]

use super::Errno;
use std::sync::atomic::{AtomicU64, Ordering};

/// `pthread_atfork(NULL, NULL, entered)`: has libc's `fork` call a function in the child.
///
/// # Safety
/// The function is *async-signal-safe*: it runs in a child that may have been forked while other threads held any lock.
///
/// # Errors
/// ENOMEM.
pub unsafe fn after_fork_in_child(entered: extern "C" fn()) -> Result<(), Errno> {
    // SAFETY: the function stays where it is; what it does is the caller's promise.
    match unsafe { libc::pthread_atfork(None, None, Some(entered_shim(entered))) } {
        0 => Ok(()),
        errno => Err(Errno::from_raw_os_error(errno)),
    }
}

/// The libc crate wants the function to be unsafe to call.
fn entered_shim(entered: extern "C" fn()) -> unsafe extern "C" fn() {
    entered
}

/// `pthread_atfork(before, parent, child)`: what a `fork()` of this process calls around it, in the thread that forks.
///
/// # Safety
/// The functions may run at any fork, whoever makes it; the child's must do only what a signal handler may.
///
/// # Errors
/// ENOMEM.
pub unsafe fn around_fork(
    before: extern "C" fn(),
    parent: extern "C" fn(),
    child: extern "C" fn(),
) -> Result<(), Errno> {
    // SAFETY: the functions stay where they are; what they do is the caller's promise.
    match unsafe {
        libc::pthread_atfork(Some(entered_shim(before)), Some(entered_shim(parent)), Some(entered_shim(child)))
    } {
        0 => Ok(()),
        errno => Err(Errno::from_raw_os_error(errno)),
    }
}

/// `pthread_key_create(3)` once, and `pthread_setspecific(3)`: has a function called when this thread ends, after the destructors of
/// thread-local storage. It is always the same function, the one of the first call.
///
/// # Safety
/// The function does not unwind, and stands at any thread's end what is left of the thread then.
///
/// # Errors
/// EAGAIN when there are no more keys, ENOMEM.
pub unsafe fn at_thread_end(ended: unsafe extern "C" fn(*mut std::ffi::c_void)) -> Result<(), Errno> {
    /// The key, plus 1.
    static KEY: AtomicU64 = AtomicU64::new(0);
    let as_errno = |code| if code == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(code)) };
    if KEY.load(Ordering::Acquire) == 0 {
        let mut key = 0;
        // SAFETY: it fills in the key; the function is the caller's promise.
        as_errno(unsafe { libc::pthread_key_create(&mut key, Some(ended)) })?;
        if KEY.compare_exchange(0, u64::from(key) + 1, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: this key was just made and is used by nobody.
            unsafe { libc::pthread_key_delete(key) };
        }
    }
    let key = (KEY.load(Ordering::Acquire) - 1) as libc::pthread_key_t;
    // A destructor is called for what is not null.
    let value = std::ptr::without_provenance::<std::ffi::c_void>(1);
    // SAFETY: the key was made and is never deleted; nobody follows the value.
    as_errno(unsafe { libc::pthread_setspecific(key, value) })
}

/// `fflush(NULL)`: what C code of this process has buffered is written, so that a forked child does
/// not write it again.
pub fn flush_c_streams() {
    // SAFETY: a null stream means all of them.
    unsafe { libc::fflush(std::ptr::null_mut()) };
}
