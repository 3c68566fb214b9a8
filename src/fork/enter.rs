//! In the child: everything between the fork and the end.
//!
//! # Safety
//! Up to the closure this is *raw*. The evidence on the parent's (now our) stack lives as long as the
//! process, because [`run`] never returns.
#![expect(unsafe_code, reason = "protections of mappings change")]

use super::{Channels, ForkOptions, panics};
use crate::arena::{self, OnWrite, registry};
use crate::error::{Error, Result};
use crate::sys::map::{self, Access};
use crate::sys::signal::{self, Mask};
use crate::sys::{pagemap::Pagemap, process};
use crate::watch::{self, At, Evidence, Failure, Step, Watch, Word};
use std::io::Write;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The exit code of a child whose closure panicked, as Rust programs have it.
const PANICKED: i32 = 101;

/// What a child's closure may return: it becomes the exit code.
pub trait ExitCode {
    /// The exit code, 0 to 255.
    fn code(self) -> i32;
}

impl ExitCode for () {
    fn code(self) -> i32 {
        0
    }
}

impl ExitCode for i32 {
    fn code(self) -> i32 {
        self
    }
}

/// 0, or the error on standard error and 1.
impl<T: ExitCode, E: std::fmt::Display> ExitCode for Result<T, E> {
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

/// What a child knows of itself.
#[derive(Debug)]
pub struct Context {
    watch: Watch,
}

impl Context {
    /// This process's id.
    pub fn pid(&self) -> i32 {
        process::pid()
    }

    /// How this process is watched.
    pub fn watch(&self) -> Watch {
        self.watch
    }

    /// The pages of each frozen arena that this process has copied so far.
    ///
    /// # Errors
    /// ENOENT when `/proc` is not mounted.
    pub fn census(&self) -> Result<Vec<super::ArenaCensus>> {
        let pagemap = Pagemap::open_self().map_err(|e| Error::os("open(/proc/self/pagemap)", e))?;
        let evidence = panics::mine().ok_or_else(|| Error::invalid("this process was not spawned"))?;
        super::child::census_of(evidence, &pagemap)
    }
}

/// The child's life.
pub(super) fn run<R: ExitCode>(
    options: &ForkOptions<'_>,
    evidence: &Evidence,
    channels: Channels,
    mask: &Mask,
    body: impl FnOnce(&Context) -> R,
) -> ! {
    let evidence: *const Evidence = evidence;
    // SAFETY: this frame is never left, so the evidence lives as long as the process.
    let evidence: &'static Evidence = unsafe { &*evidence };
    let (parents_end, ready) = channels.ready;
    drop(parents_end);
    match set_up(options, evidence, &channels.command) {
        Ok(()) => {
            process::give_byte(&ready);
        }
        Err(failure) => {
            evidence.set(Word::Failure, failure.pack());
            process::exit(PANICKED);
        }
    }
    drop(ready);
    drop(channels.command);
    signal::restore(mask);

    let context = Context { watch: options.watch };
    let code = catch_unwind(AssertUnwindSafe(|| body(&context).code())).unwrap_or(PANICKED);
    let _unflushed = catch_unwind(|| {
        let _unflushed = std::io::stdout().flush();
        process::flush_c_streams();
    });
    process::exit(code)
}

fn set_up(options: &ForkOptions<'_>, evidence: &'static Evidence, command: &impl AsFd) -> Result<(), Failure> {
    process::die_with_parent().at(Step::DieWithParent)?;
    if process::parent_pid() != evidence.parent_pid {
        // The parent died before it could be followed.
        process::exit(PANICKED);
    }
    registry::entered_child();
    panics::this_is(evidence);
    if options.reset_handlers {
        arena::install_diagnosis().map_err(|_| Failure(Step::Handlers, crate::sys::Errno::INVAL))?;
    }
    for arena in registry::all() {
        match arena.image() {
            // MADV_DONTFORK left a hole; nothing else may ever be mapped there, because the parent's
            // references into the arena are still in this process's memory.
            None => match map::fence(arena.range) {
                Ok(()) | Err(crate::sys::Errno::EXIST) => {}
                Err(e) => return Err(Failure(Step::FenceGrowing, e)),
            },
            Some(image) if image.on_write() == OnWrite::Copy => {
                // SAFETY: rights are added, and this process's writes go to its own copies.
                unsafe { map::protect(image.range(), Access::ReadWrite) }.at(Step::AllowWriting)?;
            }
            Some(_) => {}
        }
    }
    watch::begin(evidence, command.as_fd())
}
