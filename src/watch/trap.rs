//! Trap: the writer's own SIGBUS handler notes the write, lifts the protection and lets it happen.
//!
//! # Safety
//! The handler is *raw*; it runs on the writing thread, between the fault and its repetition.
#![expect(unsafe_code, reason = "a signal handler is called by the kernel")]

use super::evidence::{Evidence, Word};
use crate::sys::map::Range;
use crate::sys::signal::{self, Action, Info, MemoryFault};
use crate::sys::{self, Errno, pidfd, process, uffd};
use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

static EVIDENCE: AtomicPtr<Evidence> = AtomicPtr::new(null_mut());
static EARLIER: OnceLock<Action> = OnceLock::new();

/// Installs the handler in the child.
pub(super) fn install(evidence: &'static Evidence) -> Result<(), Errno> {
    EVIDENCE.store(std::ptr::from_ref(evidence).cast_mut(), Ordering::Release);
    // SAFETY: `handle` is async-signal-safe, see the module's contract.
    let earlier = unsafe { signal::install(signal::BUS, handle) }?;
    let _first = EARLIER.set(earlier);
    Ok(())
}

extern "C" fn handle(signal: i32, info: *mut Info, context: *mut c_void) {
    // SAFETY: these are a SA_SIGINFO handler's own arguments.
    let fault = unsafe { MemoryFault::read(info, context) };
    // SAFETY: `install` stored a reference that lives as long as this process.
    let evidence = unsafe { EVIDENCE.load(Ordering::Acquire).as_ref() };
    match evidence {
        Some(evidence) if fault.from_access && evidence.place(fault.address).is_some() => trap(evidence, &fault),
        _ => match EARLIER.get() {
            // SAFETY: these are a SA_SIGINFO handler's own arguments.
            Some(earlier) => unsafe { earlier.pass_on(signal, info, context) },
            None => signal::restore_default(signal),
        },
    }
}

fn trap(evidence: &Evidence, fault: &MemoryFault) {
    // Two threads may trap on one page; the bitmap lets the first one note it.
    evidence.saw(fault.address, process::tid(), fault.registers);
    let page = sys::page_size();
    let range = Range { start: page.round_down(fault.address), len: page.bytes() };
    let number = evidence.number(Word::UffdNumber).unwrap_or(i32::MAX);
    // SAFETY: the number was our descriptor; if the program closed it, the call fails and harms nobody.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    // SAFETY: the page lies in an arena we armed.
    if unsafe { uffd::write_protect(descriptor, range, false) }.is_err() {
        give_up(evidence);
    }
}

/// The program closed our descriptor (or its number means another file now). The keeper holds the last one:
/// its death disarms everything, and the write goes on unwatched. The report says so.
fn give_up(evidence: &Evidence) {
    evidence.set(Word::TrapLost, 1);
    if let Ok(keeper) = pidfd::open(evidence.get(Word::KeeperTid) as i32) {
        let _gone = pidfd::signal(&keeper, signal::KILL);
    }
}
