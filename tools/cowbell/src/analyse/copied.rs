//! The knowledge about one copied page: pages that are known alike are counted together.

use super::cause::Difference;
use super::unknown::Unknown;
use crate::record::Wrote;

/// The knowledge about a copied page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Copied {
    /// The place of the instruction that wrote it first; 0 where not known.
    pub code: u32,
    /// The system call on whose behalf the kernel wrote it first.
    pub syscall: Option<i32>,
    /// The difference from its original.
    pub change: Difference,
    /// True if it holds objects of an interpreter's.
    pub objects: bool,
    /// The kind of data that the instruction was seen to write, if it was sampled with this very page.
    pub wrote: Wrote,
    /// True if it lies in a stack.
    pub in_stack: bool,
    /// True if it was a page of a file before.
    pub of_file: bool,
    /// The parts of the write that were seen.
    pub seen: SeenParts,
    /// The place of the call by which the instruction was run; 0 where it was not read.
    pub caller: u32,
    /// Why the instruction is not known, where it is not.
    pub unknown: Option<Unknown>,
    /// The number of stacks that had been sampled by then, its own too; `None` where it is not known when it was written.
    pub after: Option<u32>,
}

/// The parts of a write that were seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SeenParts {
    /// Nothing but the page.
    Nothing,
    /// The instruction.
    Event,
    /// And a stack, without a script's frames.
    Native,
    /// And a stack with a script's frames, at this place.
    Script(u32),
}
