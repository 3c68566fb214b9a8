//! The records about what could not be seen.

use serde::{Deserialize, Serialize};

/// Something that could not be seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The process; 0 for the whole run.
    pub pid: i32,
    /// The time.
    pub time_ns: u64,
    /// The kind of gap.
    pub what: GapKind,
    /// The particulars, for people: one sentence without a full stop, or nothing.
    pub detail: String,
}

/// Kinds of what could not be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapKind {
    /// A child beyond `--max-children` ran unwatched.
    TooManyChildren,
    /// A child shares its parent's memory (vfork, posix_spawn): there is nothing to copy.
    SharesMemory,
    /// The kernel would not watch this process; `detail` says why.
    NotArmed,
    /// Events came too fast to be kept; `detail` says how many.
    EventsDropped,
    /// Pages that a process copied before it executed another program were gone before they could be counted.
    Executed,
    /// Each first write was to be an event, and the kernel allowed this process to be counted only; `detail` says why.
    CountedOnly,
    /// A program has privileges of its own (set-user-ID, file capabilities), which the kernel withholds from what an
    /// ordinary user traces.
    PrivilegeWithheld,
    /// Copies in this mapping have no events: which code made them is not known. `detail` names the mapping and says why.
    WithoutEvents,
    /// The tool stopped before the process ended.
    StillRunning,
    /// The memory of processes was not added up at their ends.
    NotWeighed,
    /// No stacks could be taken; `detail` says why.
    NoStacks,
    /// The lines that an interpreter ran are not known; `detail` says why.
    NoLines,
    /// Anything else; `detail` says it.
    Other,
}
