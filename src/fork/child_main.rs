//! In the child: everything between the fork and the end.

use super::census::{ArenaCensus, census_of};
use super::options::{Channels, ForkOptions};
use super::panics::PANICKED;
use super::signal_safe::{self, NeverLeave};
use super::{panics, single_thread};
use crate::error::{Error, Result};
use crate::sys::signal::Mask;
use crate::sys::{c_library, pagemap::Pagemap, process};
use crate::watch::{Evidence, Watch, Word};
use std::io::Write;
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
    let evidence = signal_safe::begin(options, evidence, channels, mask);
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
            // The payload's destructor might panic again.
            std::mem::forget(payload);
            PANICKED
        }
    };
    // A thread that the closure left behind may hold the streams' locks for ever; those of a scope need a moment to end.
    if single_thread::wait_until_alone(THREADS_END_MAX).is_ok() {
        let _unflushed = std::io::stdout().flush();
        c_library::flush_c_streams();
    }
    process::exit(u8::try_from(code).map_or(255, i32::from))
}
