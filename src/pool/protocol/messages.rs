//! The messages on the channel between parent and zygote.

use super::failure::Death;
use crate::report::Report;
use serde::{Deserialize, Serialize};

/// A request to the zygote.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Tell how workers ended since this was asked last.
    Exits,
    /// Tell with which arenas the workers of now were forked.
    Workers,
    /// Kill the worker that runs this job.
    Cancel { slot: u32, job: u32 },
    /// Take over a new generation, unless the offer of this number was revoked; its file comes along.
    Adopt { offer: u64, export: Vec<u8> },
    /// Have the data that these bytes ask for loaded by a process of its own. The end of the channel for [`Loading`] comes with the answer.
    Load(Vec<u8>),
    /// Kill the process that loads.
    StopLoading,
    /// End.
    Close { cancel: bool },
}

/// The zygote's answer to a request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done(bool),
    Refused(String),
    Exits { exits: Vec<WorkerExit>, lost: u64 },
    Workers(Vec<ForkedWorker>),
}

/// The end of a process that loads data. The channel's end is held by whoever has the data from then on.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Loading {
    /// The export; its file comes along.
    Done(Vec<u8>),
    /// There is no data: why.
    Failed(String),
}

/// A worker as it was forked: what one must know to read its page tables.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ForkedWorker {
    pub(crate) index: u32,
    pub(crate) pid: i32,
    /// When it was begun, as its record says.
    pub(crate) started: u64,
    /// The generation of the data that it was forked over.
    pub(crate) generation: u64,
    /// Its arenas are under userfaultfd, so that untouched pages hold markers.
    pub(crate) armed: bool,
    pub(crate) arenas: Vec<ForkedArena>,
}

/// A frozen arena that a worker was forked with.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ForkedArena {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    /// The pages that the zygote had copied before, in runs: the first, and how many.
    pub(crate) inherited: Vec<(u64, u64)>,
}

/// The way a worker ended, and what it copied.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerExit {
    /// The worker's process id.
    pub pid: i32,
    /// The way it ended.
    pub death: Death,
    /// The worker left of its own accord: its budget was used up, the data set was replaced, or the pool was closed.
    pub left_by_itself: bool,
    /// The pages that it copied.
    pub report: Report,
}
