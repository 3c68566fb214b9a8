//! A fault in an arena becomes a sentence: which arena, page, object and instruction.
//!
//! A stack that overflows is told, too: whoever hears of that otherwise is no handler in a child whose handlers were reset.
//!
//! A SIGSEGV handler, installed when the first arena is built, looks the address up, writes the
//! sentence to standard error, and hands the signal to whoever handled it before; in the end the
//! process dies by SIGSEGV, as it would have, with its registers untouched.
//!
#![expect(unsafe_code, reason = "a signal handler is called by the kernel")]

use super::signal_safe::handler::{EARLIER, EXECUTABLE, OBSERVER, Observer, RESET, handle};
use crate::error::{Error, Result};
use crate::sys::signal;
use crate::sys::{Errno, executable};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

/// Installs the handler when the first arena is built, and never again: a handler that the program installs
/// later is its own business.
pub(super) fn install_once() -> Result<()> {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !*done {
        let error = |e| Error::os("sigaction(SIGSEGV)", e);
        let _known = EXECUTABLE.get_or_init(executable::executable);
        // Known before it is needed: a fault may come as soon as the handler is there.
        let _first = EARLIER.set(signal::current(signal::SEGV).map_err(error)?);
        install().map_err(error)?;
        *done = true;
    }
    Ok(())
}

/// Installs the handler again, in a child whose handlers were reset. *Async-signal-safe.*
///
/// # Errors
/// None known.
pub(crate) fn install_again() -> Result<(), Errno> {
    if EARLIER.get().is_some() {
        RESET.store(true, Ordering::Release);
        install()?;
    }
    Ok(())
}

fn install() -> Result<(), Errno> {
    // SAFETY: `handle` is async-signal-safe, see the contract of signal_safe/handler.rs.
    unsafe { signal::install(signal::SEGV, handle) }
}

/// Lets an observer know.
pub(crate) fn observe(observer: Observer) {
    let _first = OBSERVER.set(observer);
}
