//! Languages whose programs an interpreter runs: how to find one in a process, where its threads are, what its
//! interpreter's code works at, and what helps.
//!
//! Each language is one file here and one line in [`ALL`]; no other room names any. What a [`Reader`] does belongs to the
//! tracer, while the thread stands still; all else is pure, and answers for captures of other machines too.

mod python;

use crate::record::Frame;
use serde::Serialize;
use std::fmt::Debug;

/// What a piece of code works at, as far as it explains why memory is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Counting references.
    References,
    /// Collecting garbage.
    Collector,
    /// Allocating and freeing memory.
    Allocator,
    /// Taking the program or its interpreter down.
    Exit,
    /// Making objects from bytes that another process sent or that were stored.
    Unpickling,
    /// Loading a module.
    Import,
    /// Anything else that has a name.
    Other,
}

/// A language and its interpreter.
pub trait Language: Debug + Sync {
    /// How captures and JSON call it.
    fn id(&self) -> &'static str;

    /// How people call it.
    fn name(&self) -> &'static str;

    /// Does a process that maps this file as code, or that was started by this name, run it?
    fn is_run_by(&self, file: &str) -> bool;

    /// What a function of the interpreter, by its bare name in the symbol table, works at; `None` for all that is not
    /// this language's alone.
    fn work_of_function(&self, function: &str) -> Option<Work>;

    /// What a stack of the program works at, by its frames, the innermost first; `None` for the program's own work.
    fn work_of_frames(&self, frames: &[Frame]) -> Option<Work>;

    /// Is a source file the user's own: neither the language's library nor a package's?
    fn is_own(&self, file: &str) -> bool;

    /// What is known to help where memory is copied for this work, in one sentence.
    fn remedy(&self, work: Work) -> Option<&'static str>;

    /// Finds the interpreter in a process; `None` if it runs none. May take milliseconds: ask once a family.
    ///
    /// # Errors
    /// The process has the looks of one and cannot be read: not initialised yet, of an unknown version, without
    /// permission, or gone.
    fn reader(&self, pid: i32) -> Result<Option<Box<dyn Reader>>, String>;
}

/// The interpreter of one process, read from outside.
pub trait Reader {
    /// Which language.
    fn language(&self) -> &'static dyn Language;

    /// The interpreter of a process that was forked from this one and has not executed another program.
    fn for_child(&self, pid: i32) -> Box<dyn Reader>;

    /// The frames of a thread that stands still, the innermost first. Empty if it runs none, or if what is there makes no
    /// sense.
    fn frames(&mut self, tid: i32) -> Vec<Frame>;
}

/// Every language that is known.
pub const ALL: &[&dyn Language] = &[&python::CPython];

/// The language that a capture calls so.
pub fn by_id(id: &str) -> Option<&'static dyn Language> {
    ALL.iter().copied().find(|language| language.id() == id)
}

/// The language of a process that maps these files as code.
pub fn of_files<'a>(files: impl Iterator<Item = &'a str>) -> Option<&'static dyn Language> {
    let mut files = files;
    files.find_map(|file| ALL.iter().copied().find(|language| language.is_run_by(file)))
}

/// What a function of any language's interpreter works at.
pub fn work_of_function(function: &str) -> Option<Work> {
    ALL.iter().find_map(|language| language.work_of_function(function))
}

/// Is a source file the user's own? Of a language that is not known any file is.
pub fn is_own(language: Option<&str>, file: &str) -> bool {
    language.and_then(by_id).is_none_or(|language| language.is_own(file))
}

/// What a stack of a program in a language works at; `None` for its own work, and where the language is not known.
pub fn work_of_frames(language: Option<&str>, frames: &[Frame]) -> Option<Work> {
    language.and_then(by_id)?.work_of_frames(frames)
}

/// Finds an interpreter in a process; `None` if it runs none that is known.
///
/// # Errors
/// Those of [`Language::reader`], if no language answers.
pub fn reader(pid: i32) -> Result<Option<Box<dyn Reader>>, String> {
    let mut failed = None;
    for language in ALL {
        match language.reader(pid) {
            Ok(Some(reader)) => return Ok(Some(reader)),
            Ok(None) => {}
            Err(e) => failed = Some(e),
        }
    }
    failed.map_or(Ok(None), Err)
}
