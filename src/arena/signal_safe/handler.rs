//! The handler of SIGSEGV: it says which arena, page, object and instruction, and hands the signal on. Of a stack that overflowed it says so, too.
//!
//! # Safety
//! The handler runs on the faulting thread, wherever that is: it allocates nothing, takes no lock, and formats through a small buffer on the stack (`sys::stderr`).
#![expect(unsafe_code, reason = "a signal handler is called by the kernel")]

use super::table;
use crate::arena::inner::Inner;
use crate::arena::options::OnWrite;
use crate::facts::StackOverflow;
use crate::sys::map::Range;
use crate::sys::signal::{self, Action, Info, MemoryFault};
use crate::sys::stderr::Stderr;
use crate::sys::{self, process};
use std::ffi::c_void;
use std::fmt::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

pub(in crate::arena) static EARLIER: OnceLock<Action> = OnceLock::new();
pub(in crate::arena) static OBSERVER: OnceLock<Observer> = OnceLock::new();
pub(in crate::arena) static EXECUTABLE: OnceLock<Range> = OnceLock::new();

/// In a child whose handlers were reset, the earlier one is not called.
pub(in crate::arena) static RESET: AtomicBool = AtomicBool::new(false);

/// Functions that hear of what a process dies of, before it does. They must be *async-signal-safe*.
#[derive(Clone, Copy)]
pub(crate) struct Observer {
    /// Hears of every refused access.
    pub(crate) refused: fn(&RefusedAccess),
    /// Hears of a stack's end: by which thread, at which instruction.
    pub(crate) overflowed: fn(&StackOverflow),
}

/// An access to an arena that was refused.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RefusedAccess {
    pub(crate) slot: u16,
    pub(crate) generation: u16,
    pub(crate) address: usize,
    pub(crate) tid: i32,
    pub(crate) pc: u64,
}

pub(in crate::arena) extern "C" fn handle(signal: i32, info: *mut Info, context: *mut c_void) {
    // SAFETY: these are a SA_SIGINFO handler's own arguments.
    let fault = unsafe { MemoryFault::read(info, context) };
    if fault.from_access && !explain(&fault) && fault.is_at_stack_pointer() {
        overflowed(&fault);
    }
    match EARLIER.get().filter(|_| !RESET.load(Ordering::Acquire)) {
        // SAFETY: these are a SA_SIGINFO handler's own arguments.
        Some(earlier) => unsafe { earlier.pass_on(signal, info, context) },
        None => signal::restore_default(signal),
    }
}

/// Explains a fault in an arena; false where it was elsewhere.
fn explain(fault: &MemoryFault) -> bool {
    let mut is_arenas = false;
    table::visit(|mut arenas| {
        let Some(inner) = arenas.find(|inner| inner.addresses().contains(fault.address)) else { return };
        is_arenas = true;
        let refused = RefusedAccess {
            slot: inner.slot,
            generation: inner.generation,
            address: fault.address,
            tid: process::tid(),
            pc: fault.registers.pc,
        };
        if let Some(observer) = OBSERVER.get() {
            (observer.refused)(&refused);
        }
        let _written = sentence(&mut Stderr::new(), inner, fault);
    });
    is_arenas
}

/// A stack has overflowed. Rust's own handler would say so, where it was not reset.
fn overflowed(fault: &MemoryFault) {
    let overflow = StackOverflow { tid: process::tid(), pc: fault.registers.pc };
    if let Some(observer) = OBSERVER.get() {
        (observer.overflowed)(&overflow);
    }
    if RESET.load(Ordering::Acquire) {
        let mut text = Stderr::new();
        let _written = write!(text, "cowbell: the stack of thread {} has overflowed; ", overflow.tid)
            .and_then(|()| instruction(&mut text, fault))
            .and_then(|()| writeln!(text));
    }
}

/// The instruction, and where that is in the executable.
fn instruction(text: &mut Stderr, fault: &MemoryFault) -> std::fmt::Result {
    write!(text, "instruction {:#x}", fault.registers.pc)?;
    let pc = fault.registers.pc as usize;
    match EXECUTABLE.get().filter(|executable| executable.contains(pc)) {
        Some(executable) => write!(text, " (the executable's {:#x}, for addr2line)", pc - executable.start),
        None => Ok(()),
    }
}

fn sentence(text: &mut Stderr, inner: &Inner, fault: &MemoryFault) -> std::fmt::Result {
    let offset = fault.address - inner.range.start;
    let page = sys::page_size();
    let what = if fault.write == Some(false) { "read of" } else { "write to" };
    // This process may write here while the arena grows; only a freeze takes that away.
    let here = inner.process == table::process_number();
    let state = match inner.image() {
        Some(_) => "frozen",
        None if here => "now freezing",
        None => "growing",
    };
    write!(text, "cowbell: {what} {state} arena `{}` (generation {})", inner.name, inner.generation)?;
    write!(text, ": page {}, byte {offset}, address {:#x}", page.index_of(offset), fault.address)?;
    write!(text, "; thread {}, ", process::tid())?;
    instruction(text, fault)?;
    let Some(image) = inner.image() else {
        return writeln!(
            text,
            "\ncowbell: {}",
            if here {
                "another thread freezes the arena: nobody may write to it any more, neither through a reference nor by a collection in it"
            } else {
                "a growing arena is not passed on to children: freeze it before the fork"
            }
        );
    };
    for allocation in image.table().overlapping(offset, offset + 1) {
        if let Some(site) = allocation.site {
            let (file, line) = (site.location.file(), site.location.line());
            write!(text, "\ncowbell: object: {} allocated at {file}:{line}", site.type_name)?;
        }
    }
    writeln!(
        text,
        "\ncowbell: frozen data is read-only here: a Cell, Mutex or reference count in it cannot be changed{}",
        match image.on_write() {
            OnWrite::Copy => "; a child forked from this process may (and gets a copy of the page)",
            OnWrite::Deny => ", nor in children: it was frozen with OnWrite::Deny",
        }
    )
}
