//! Trap: the writer's own SIGBUS handler notes the write, lifts the protection and lets it happen.
//!
//! # Safety
//! The handler is *async-signal-safe*; it runs on the writing thread, between the fault and its repetition.
#![expect(unsafe_code, reason = "a signal handler is called by the kernel")]

use crate::sys::map::Range;
use crate::sys::signal::{self, Action, Info, MemoryFault};
use crate::sys::{self, Errno, process, stderr, uffd, unwind};
use crate::watch::evidence::{Evidence, Word};
use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// The time that a trap without descriptor may last.
const PATIENCE_NS: u64 = 10_000_000_000;

static EVIDENCE: AtomicPtr<Evidence> = AtomicPtr::new(null_mut());
static EARLIER: OnceLock<Action> = OnceLock::new();

/// Installs the handler in the child.
pub(in crate::watch) fn install(evidence: &'static Evidence) -> Result<(), Errno> {
    if evidence.callers {
        // The unwinder and the dynamic linker do here what they do only once, where there is room, and not on a signal stack.
        unwind::callers(&mut [0; 1]);
    }
    EVIDENCE.store(std::ptr::from_ref(evidence).cast_mut(), Ordering::Release);
    // In a child of a child the first one stays: what is there now is our own.
    let _first = EARLIER.set(signal::current(signal::BUS)?);
    // SAFETY: `handle` is async-signal-safe, see the module's contract.
    unsafe { signal::install(signal::BUS, handle) }
}

extern "C" fn handle(signal: i32, info: *mut Info, context: *mut c_void) {
    // SAFETY: these are a SA_SIGINFO handler's own arguments.
    let fault = unsafe { MemoryFault::read(info, context) };
    // SAFETY: `install` stored a reference that lives as long as this process.
    let evidence = unsafe { EVIDENCE.load(Ordering::Acquire).as_ref() };
    match evidence {
        Some(evidence) if is_ours(&fault) && evidence.place(fault.address).is_some() => trap(evidence, &fault),
        _ => match EARLIER.get() {
            // SAFETY: these are a SA_SIGINFO handler's own arguments.
            Some(earlier) => unsafe { earlier.pass_on(signal, info, context) },
            None => signal::restore_default(signal),
        },
    }
}

/// Could userfaultfd have sent it? Anything else, such as a page the hardware lost, would come again for ever.
fn is_ours(fault: &MemoryFault) -> bool {
    fault.from_access && fault.bus_address && fault.write != Some(false)
}

fn trap(evidence: &Evidence, fault: &MemoryFault) {
    let callers = |frames: &mut [u64]| {
        unwind::callers_of_interrupted(fault.registers.pc, frames);
    };
    // Two threads may trap on one page; the bitmap lets the first one note it.
    evidence.saw(fault.address, process::tid, fault.registers, callers);
    let page = sys::page_size();
    let range = Range { start: page.round_down(fault.address), len: page.bytes() };
    let number = evidence.number(Word::UffdNumber).unwrap_or(i32::MAX);
    // SAFETY: the number was our descriptor; if the program closed it, the call fails and harms nobody.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    // SAFETY: the page lies in an arena we armed.
    if unsafe { uffd::write_protect(descriptor, range, false) }.is_err() {
        give_up(evidence);
        return;
    }
    // An epoch may have ended between the two: it took the mark, and armed the page before we let it go.
    evidence.saw(fault.address, process::tid, fault.registers, callers);
}

/// The program closed our descriptor (or its number means another file now). The keeper holds the last one:
/// its death disarms everything, and the write goes on unwatched. The report says so.
///
/// Should somebody else still hold one (a process forked behind our back), the write would trap for ever:
/// after a while the program dies of it.
fn give_up(evidence: &Evidence) {
    static SINCE: AtomicU64 = AtomicU64::new(0);
    evidence.set(Word::TrapLost, 1);
    signal::kill(evidence.get(Word::KeeperTid) as i32);
    process::yield_now();
    let now = sys::monotonic_ns();
    let since = SINCE.compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire).unwrap_or_else(|since| since);
    if since != 0 && now.saturating_sub(since) > PATIENCE_NS {
        stderr::write_all(b"cowbell: the trap's descriptor was closed, and an arena is still armed\n");
        signal::restore_default(signal::BUS);
    }
}
