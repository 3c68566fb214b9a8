//! The reader of interpreters that run a program on the first thread of its process. All of them are found by names that a file of the
//! interpreter's exports, belong to children as they belong to their parents, and are read while that thread stands still. What a language
//! adds is in its [`Structures`].

use super::held::{StoppedMemory, exported};
use super::{InterpreterReader, Language};
use crate::record::Frame;

/// The structures of one interpreter, from which its frames are read.
pub trait Structures: Clone + 'static {
    /// The language.
    const LANGUAGE: &'static dyn Language;
    /// The exported names by which all is found. A file that does not export the first is none of the interpreter's.
    const EXPORTED: &'static [&'static str];

    /// The structures in a process, by the addresses of the exported names; `None` where too many of these are missing.
    ///
    /// # Errors
    /// The process may not be read, or its interpreter is one whose structures are not known here.
    fn find(pid: i32, addresses: &[Option<u64>]) -> Result<Option<Self>, String>;

    /// The frames of the thread, the innermost first; `None` if it runs none, or if what is there makes no sense. `pc`: the instruction that
    /// its processor is at, where that is known.
    fn frames(&self, held: StoppedMemory, pc: Option<u64>) -> Option<Vec<Frame>>;
}

/// The interpreter of one process.
struct MainThread<S> {
    pid: i32,
    structures: S,
}

/// The reader of the interpreter in a process; `None` if it runs none.
///
/// # Errors
/// The process may not be read, or its interpreter is one whose structures are not known here.
pub fn reader<S: Structures>(pid: i32) -> Result<Option<Box<dyn InterpreterReader>>, String> {
    let Some(addresses) = exported(pid, |file| S::LANGUAGE.is_run_by(file), S::EXPORTED)? else { return Ok(None) };
    let found = S::find(pid, &addresses)?;
    Ok(found.map(|structures| Box::new(MainThread { pid, structures }) as Box<dyn InterpreterReader>))
}

impl<S: Structures> InterpreterReader for MainThread<S> {
    fn language(&self) -> &'static dyn Language {
        S::LANGUAGE
    }

    fn for_child(&self, pid: i32) -> Box<dyn InterpreterReader> {
        Box::new(Self { pid, structures: self.structures.clone() })
    }

    fn frames(&mut self, tid: i32, pc: Option<u64>) -> Vec<Frame> {
        // Other threads are not the interpreter's.
        let held = if tid == self.pid { StoppedMemory::open(self.pid) } else { None };
        held.and_then(|held| self.structures.frames(held, pc)).unwrap_or_default()
    }
}
