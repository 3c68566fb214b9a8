//! In the child: everything between the fork and the end.
//!
//! # Safety
//! Up to the closure this is *raw*. The evidence on the parent's (now our) stack lives as long as the
//! process, because [`run`] never returns.
#![expect(unsafe_code, reason = "protections of mappings change")]

use super::census::{ArenaCensus, census_of};
use super::options::{Channels, ForkOptions};
use super::panics::PANICKED;
use super::{alone, panics};
use crate::arena::{self, OnWrite, registry};
use crate::error::{Error, Result};
use crate::sys::map::{self, Access};
use crate::sys::perf::rings::Rings;
use crate::sys::signal::{self, Mask};
use crate::sys::{pagemap::Pagemap, process};
use crate::watch::{self, At, Evidence, Failure, Step, Watch, Word};
use std::cell::Cell;
use std::io::Write;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// The time that a child at its end waits for threads that its closure left behind.
const THREADS_END_MAX: Duration = Duration::from_millis(20);

/// A value that a child's closure may return: it becomes the exit code. A closure that never returns says so:
/// `|_| -> () { panic!() }`.
pub trait IntoExitCode {
    /// The exit code, 0 to 255; what lies outside becomes 255, so that no failure looks like success.
    fn code(self) -> i32;
}

impl IntoExitCode for () {
    fn code(self) -> i32 {
        0
    }
}

impl IntoExitCode for i32 {
    fn code(self) -> i32 {
        self
    }
}

/// 0, or the error on standard error and 1.
impl<T: IntoExitCode, E: std::fmt::Display> IntoExitCode for Result<T, E> {
    fn code(self) -> i32 {
        match self {
            Ok(value) => value.code(),
            Err(e) => {
                eprintln!("{e}");
                1
            }
        }
    }
}

/// The facts that a child has about itself.
#[derive(Debug)]
pub struct Context {
    watch: Watch,
}

impl Context {
    /// This process's id.
    pub fn pid(&self) -> i32 {
        process::pid()
    }

    /// The watch of this process.
    pub fn watch(&self) -> Watch {
        self.watch
    }

    /// The pages of each frozen arena that this process has copied so far.
    ///
    /// # Errors
    /// ENOENT when `/proc` is not mounted.
    pub fn census(&self) -> Result<Vec<ArenaCensus>> {
        let pagemap = Pagemap::open_self().map_err(|e| Error::os("open(/proc/self/pagemap)", e))?;
        let evidence = panics::mine().ok_or_else(|| Error::invalid("this process was not spawned"))?;
        census_of(evidence, &pagemap)
    }
}

/// The child's life.
pub(super) fn run<R: IntoExitCode>(
    options: &ForkOptions<'_>,
    evidence: &Evidence,
    channels: Channels,
    mask: &Mask,
    body: impl FnOnce(&Context) -> R,
) -> ! {
    let _guard = NeverLeave;
    let evidence: *const Evidence = evidence;
    // SAFETY: this frame is never left (`NeverLeave` sees to it, should anything panic), so the evidence lives as long as the process.
    let evidence: &'static Evidence = unsafe { &*evidence };
    let Channels { ready: (parents_end, ready), command, rings } = channels;
    drop(parents_end);
    match set_up(options, evidence, &command, &rings) {
        Ok(()) => {
            process::give_byte(&ready);
        }
        Err(failure) => {
            evidence.set(Word::Failure, failure.pack());
            process::exit(PANICKED);
        }
    }
    drop(ready);
    drop(command);
    signal::restore(mask);

    let context = Context { watch: options.watch };
    let code = match catch_unwind(AssertUnwindSafe(|| body(&context).code())) {
        Ok(code) => {
            // A panic that was caught is not its end, whatever code it returns.
            if evidence.get(Word::PanicLen) > 0 {
                evidence.begin_panic_text();
            }
            code
        }
        Err(payload) => {
            panics::ended_by(evidence, &*payload);
            // Its destructor might panic again.
            std::mem::forget(payload);
            PANICKED
        }
    };
    // A thread that the closure left behind may hold the streams' locks for ever; those of a scope need a moment to end.
    if alone::wait_until_alone(THREADS_END_MAX).is_ok() {
        let _unflushed = std::io::stdout().flush();
        process::flush_c_streams();
    }
    process::exit(u8::try_from(code).map_or(255, i32::from))
}

/// Ends the process instead of unwinding into the parent's frames.
struct NeverLeave;

impl Drop for NeverLeave {
    fn drop(&mut self) {
        process::exit(PANICKED);
    }
}

fn set_up(
    options: &ForkOptions<'_>,
    evidence: &'static Evidence,
    command: &impl AsFd,
    rings: &Cell<Option<Rings>>,
) -> Result<(), Failure> {
    process::die_with_parent().at(Step::DieWithParent)?;
    // 0 is a parent in another pid namespace, which this process cannot see.
    if ![evidence.parent_pid, 0].contains(&process::parent_pid()) {
        // The parent died before it could be followed.
        process::exit(PANICKED);
    }
    registry::entered_child().at(Step::FenceGrowing)?;
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
