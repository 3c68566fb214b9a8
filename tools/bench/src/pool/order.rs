//! Orders to the contenders, and who can do what.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A piece of work that pools are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Jobs that do nothing but give their number back.
    Empty,
    /// One empty job at a time, from handing it in to its result; the median.
    RoundTrip,
    /// Jobs that take 100 microseconds of processor time.
    Busy,
    /// Each job is a place in a large data set, its result the word there.
    Lookup,
    /// Large results: each job copies a block of the data set into its result.
    Large,
}

impl Work {
    /// All of them, in the order in which they are measured.
    pub const ALL: [Self; 5] = [Self::Empty, Self::RoundTrip, Self::Busy, Self::Lookup, Self::Large];

    /// A contender.
    pub fn peers(self) -> &'static [Peer] {
        use Peer::*;
        match self {
            Self::Empty | Self::Busy => &[
                Cowbell,
                CowbellChunk1,
                Rayon,
                RayonTasks,
                IpcChannel,
                PythonPool,
                PythonPoolChunk1,
                PythonExecutor,
                PythonExecutorChunk1,
            ],
            Self::RoundTrip => &[Cowbell, Rayon, IpcChannel, PythonPool, PythonExecutorChunk1],
            Self::Lookup => &[Cowbell, Rayon, IpcChannel, PythonPool, PythonManager],
            Self::Large => {
                &[Cowbell, Memcpy, MemcpyFresh, Rayon, IpcChannel, PythonPool, PythonPoolChunk1, PythonExecutorChunk1]
            }
        }
    }

    /// The number of jobs a contender gets. Slow ones get fewer: what is compared is the time a job.
    pub(super) fn jobs(self, peer: Peer, quick: bool) -> usize {
        use Peer::*;
        let jobs = match (self, peer) {
            (Self::Empty, PythonPoolChunk1) => 50_000,
            (Self::Empty, PythonExecutorChunk1) => 10_000,
            (Self::Empty | Self::Lookup, IpcChannel) => 200_000,
            (Self::Lookup, PythonManager) => 20_000,
            (Self::Empty | Self::Lookup, _) => 1_000_000,
            (Self::RoundTrip, PythonPool | PythonExecutorChunk1) => 4_000,
            (Self::RoundTrip, _) => 20_000,
            (Self::Busy, _) => 10_000,
            (Self::Large, PythonPool | PythonPoolChunk1 | PythonExecutorChunk1) => 400,
            (Self::Large, _) => 4_000,
        };
        if quick { (jobs / 500).max(20) } else { jobs }
    }

    /// The bytes of the data set, or of a result.
    pub(super) fn bytes(self, quick: bool) -> usize {
        match self {
            Self::Empty | Self::RoundTrip | Self::Busy => 0,
            Self::Lookup if quick => 1 << 20,
            Self::Lookup => 1 << 30,
            Self::Large if quick => 64 << 10,
            Self::Large => 1 << 20,
        }
    }
}

/// The kind of worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Peer {
    /// `cowbell::pool`, its own choice of chunks.
    Cowbell,
    /// The same, one job at a time.
    CowbellChunk1,
    /// rayon's parallel iterators: threads, no isolation. The bound.
    Rayon,
    /// rayon's scope, a task a job.
    RayonTasks,
    /// ipc-channel between this program and workers that it starts, 16 jobs on the way to each.
    IpcChannel,
    /// One thread that copies into the same buffer again and again.
    Memcpy,
    /// One thread that copies into a new allocation each time.
    MemcpyFresh,
    /// Python's `multiprocessing.Pool.map`, or its `apply` for one job.
    PythonPool,
    /// The same with `chunksize=1`.
    PythonPoolChunk1,
    /// Python's `ProcessPoolExecutor.map`, with the chunks that `Pool.map` would take.
    PythonExecutor,
    /// The same with its default, `chunksize=1`, or its `submit` for one job.
    PythonExecutorChunk1,
    /// Python's `Pool.map` over a `Manager().list()`.
    PythonManager,
}

impl Peer {
    /// Tells whether it is a Python program.
    pub(super) fn is_python(self) -> bool {
        use Peer::*;
        matches!(self, PythonPool | PythonPoolChunk1 | PythonExecutor | PythonExecutorChunk1 | PythonManager)
    }

    /// The name that it has in a table of that work.
    pub fn name(self, work: Work) -> &'static str {
        match (self, work) {
            (Self::Cowbell, Work::RoundTrip) => "cowbell submit and wait",
            (Self::Cowbell, Work::Lookup) => "cowbell map of handles",
            (Self::Cowbell, Work::Large) => "cowbell in place",
            (Self::Cowbell, _) => "cowbell map",
            (Self::CowbellChunk1, _) => "cowbell map, chunk 1",
            (Self::Rayon, Work::RoundTrip) => "rayon install",
            (Self::Rayon, _) => "rayon par_iter",
            (Self::RayonTasks, _) => "rayon scope, a task a job",
            (Self::IpcChannel, Work::Lookup | Work::Large) => "ipc-channel, shared memory",
            (Self::IpcChannel, _) => "ipc-channel",
            (Self::Memcpy, _) => "memcpy, one thread",
            (Self::MemcpyFresh, _) => "memcpy to new memory",
            (Self::PythonPool, Work::RoundTrip) => "python Pool.apply",
            (Self::PythonPool, Work::Lookup) => "python Pool.map, inherited",
            (Self::PythonPool, _) => "python Pool.map",
            (Self::PythonPoolChunk1, _) => "python Pool.map, chunk 1",
            (Self::PythonExecutor, _) => "python Executor.map, chunks",
            (Self::PythonExecutorChunk1, Work::RoundTrip) => "python Executor.submit",
            (Self::PythonExecutorChunk1, _) => "python Executor.map",
            (Self::PythonManager, _) => "python Manager().list()",
        }
    }
}

/// One contender's order for one run, in a process of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The contender.
    pub peer: Peer,
    /// The work.
    pub work: Work,
    /// The number of jobs.
    pub jobs: usize,
    /// Workers of the pool.
    pub workers: usize,
    /// Bytes of the data set that is looked into, or of a result.
    pub bytes: usize,
    /// The most items that `Manager().list()` gets: a Python object each.
    pub manager_items: usize,
}

/// The contender's answer, as one line of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The time of all jobs by their number; of a round trip, the median.
    pub ns_per_job: f64,
}

/// The number of different blocks that the large results are copies of: more than the caches hold.
pub(super) const BLOCKS: usize = 64;
/// The word at place `n` of the data set is `n` modulo this.
pub(super) const PATTERN: usize = 1 << 20;
/// The processor time of its thread that a busy job takes.
pub(super) const JOB_NS: u64 = 100_000;

/// The data set that is looked into.
pub(super) fn words(bytes: usize) -> impl ExactSizeIterator<Item = u64> {
    (0..bytes / size_of::<u64>()).map(|at| (at % PATTERN) as u64)
}

/// The place that job `number` looks at: the same in every contender.
pub(super) fn place(number: usize, words: usize) -> usize {
    (number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) as usize % words
}

/// The blocks that the large results are copies of, one after the other.
pub(super) fn block_bytes(bytes: usize) -> impl ExactSizeIterator<Item = u8> {
    (0..BLOCKS * bytes).map(move |at| (at / bytes) as u8)
}

/// Fails unless a large result has the right ends. Nobody reads all of it: that would cost everybody the same.
pub(super) fn check_block(number: usize, result: &[u8], bytes: usize) -> Result<()> {
    let mark = Some((number % BLOCKS) as u8);
    let right = result.len() == bytes && result.first().copied() == mark && result.last().copied() == mark;
    right.then_some(()).ok_or_else(wrong)
}

/// Fails unless a lookup gave the word at its place.
pub(super) fn check_word(number: usize, words: usize, result: u64) -> Result<()> {
    (result == (place(number, words) % PATTERN) as u64).then_some(()).ok_or_else(wrong)
}

/// Fails unless a job gave its number back.
pub(super) fn check_number(number: usize, result: u64) -> Result<()> {
    (result == number as u64).then_some(()).ok_or_else(wrong)
}

fn wrong() -> Error {
    Error::Failed("a result is wrong".into())
}
