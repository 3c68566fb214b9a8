//! In the child, from the fork to its closure.
//!
//! # Safety
//! Everything here is *async-signal-safe*: other threads of the parent may have held any lock at the fork. tests/tidy/signal_safe.rs refuses
//! the types that allocate or lock; tests/signal_safe.rs runs it under an allocator that aborts.
#![expect(unsafe_code, reason = "protections of mappings change")]

use super::options::{Channels, ForkOptions};
use super::panics::{self, PANICKED};
use crate::arena::signal_safe::table;
use crate::arena::{self, OnWrite};
use crate::sys::map::{self, Access};
use crate::sys::perf::rings::Rings;
use crate::sys::signal::{self, Mask};
use crate::sys::{pipe, prctl, process};
use crate::watch::{self, At, Evidence, FailedStep, Step, Word};
use std::cell::Cell;
use std::os::fd::AsFd;

/// Ends the process instead of unwinding into the parent's frames.
pub(super) struct NeverLeave;

impl Drop for NeverLeave {
    fn drop(&mut self) {
        process::exit(PANICKED);
    }
}

/// Sets the child up and tells the parent so, or ends it with the step that failed. The caller's frame is never left, for which it holds
/// a [`NeverLeave`].
pub(super) fn begin(
    options: &ForkOptions<'_>,
    evidence: &Evidence,
    channels: Channels,
    mask: &Mask,
) -> &'static Evidence {
    let evidence: *const Evidence = evidence;
    // SAFETY: the parent's (now our) frames below are never left (`NeverLeave` sees to it, should anything panic), so the evidence lives as long as the process.
    let evidence: &'static Evidence = unsafe { &*evidence };
    let Channels { ready: (parents_end, ready), command, rings } = channels;
    drop(parents_end);
    match set_up(options, evidence, &command, &rings) {
        Ok(()) => {
            pipe::give_byte(&ready);
        }
        Err(failure) => {
            evidence.set(Word::Failure, failure.pack());
            process::exit(PANICKED);
        }
    }
    drop(ready);
    drop(command);
    signal::restore(mask);
    evidence
}

fn set_up(
    options: &ForkOptions<'_>,
    evidence: &'static Evidence,
    command: &impl AsFd,
    rings: &Cell<Option<Rings>>,
) -> Result<(), FailedStep> {
    prctl::die_with_parent().at(Step::DieWithParent)?;
    // 0 is a parent in another pid namespace, which this process cannot see.
    if ![evidence.parent_pid, 0].contains(&process::parent_pid()) {
        // The parent died before it could be followed.
        process::exit(PANICKED);
    }
    table::entered_child().at(Step::FenceGrowing)?;
    panics::this_is(evidence);
    if options.reset_handlers {
        arena::install_diagnosis_again().at(Step::Handlers)?;
    }
    for image in evidence.images.iter().filter(|image| image.on_write() == OnWrite::Copy) {
        // SAFETY: rights are added, and this process's writes go to its own copies.
        unsafe { map::protect(image.range(), Access::ReadWrite) }.at(Step::AllowWriting)?;
    }
    watch::begin(evidence, command.as_fd(), rings)
}
