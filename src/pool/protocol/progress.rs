//! The progress of a batch: the number of its current job and that job's phase, in one word.
//!
//! ```text
//!  job 0 AHEAD -> job 0 RUNNING -> job 1 AHEAD -> job 1 RUNNING -> job 2 AHEAD      the worker's steps
//!           \________________\___________\______________\_____________\ CONDEMNED     the zygote's
//! ```
//! The worker moves it by compare-and-swap, and so does who condemns a job. Whoever is first wins, so a job has one
//! outcome: a job that is done before its time is over counts as done, and one that was condemned never does. Who condemns
//! keeps the slot in the worker's hands meanwhile (`hold` in queue.rs), so who is killed holds the batch, and nothing
//! else.
//!
//! The word also counts how often the slot was filled, so that a decision about one batch cannot hit the next.
//!
//! The word is behind a trait, so that loom checks this very code (tests/queue.rs).

use super::queue::Long;

/// The phase of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not begun.
    Ahead = 0,
    /// The worker runs it.
    Running = 1,
    /// The job is to end with its worker: its time is over, or it was cancelled.
    Condemned = 2,
}

const PHASE_BITS: u32 = 2;
const JOB_BITS: u32 = 30;
const FILLED_SHIFT: u32 = PHASE_BITS + JOB_BITS;

/// The progress of a batch when somebody looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen(u64);

impl Seen {
    /// The current job; those before it are done.
    pub fn job(self) -> usize {
        (self.0 >> PHASE_BITS) as usize & ((1 << JOB_BITS) - 1)
    }

    /// The phase of the current job.
    pub fn phase(self) -> Phase {
        match self.0 & 3 {
            0 => Phase::Ahead,
            1 => Phase::Running,
            _ => Phase::Condemned,
        }
    }

    /// The same batch and job.
    fn at(self, phase: Phase) -> u64 {
        self.0 & !3 | phase as u64
    }
}

/// The current job, and its phase, for a decision about it.
pub fn look<L: Long>(progress: &L) -> Seen {
    Seen(progress.load())
}

/// The current job, and its phase. Jobs before it are done.
pub fn read<L: Long>(progress: &L) -> (usize, Phase) {
    let seen = look(progress);
    (seen.job(), seen.phase())
}

/// A new batch. The caller's is the slot, which is not queued.
pub fn reset<L: Long>(progress: &L) {
    let filled = progress.load() >> FILLED_SHIFT;
    progress.store((filled + 1) << FILLED_SHIFT);
}

/// The worker begins a job; false if it was condemned.
pub fn begin<L: Long>(progress: &L, job: usize) -> bool {
    let seen = look(progress);
    debug_assert_eq!(seen.job(), job, "jobs are begun in their order");
    progress.replace(seen.at(Phase::Ahead), seen.at(Phase::Running))
}

/// The worker has done a job; false if it was condemned.
pub fn finish<L: Long>(progress: &L, job: usize) -> bool {
    let seen = look(progress);
    debug_assert_eq!(seen.job(), job, "a job is finished that was begun");
    progress.replace(seen.at(Phase::Running), seen.at(Phase::Ahead) + (1 << PHASE_BITS))
}

/// Condemns a job that was seen current, begun or not; false if it is not current any more. The caller holds the slot.
pub fn condemn<L: Long>(progress: &L, seen: Seen) -> bool {
    let to = seen.at(Phase::Condemned);
    // In the worker's order, lest it slips through between the two.
    progress.replace(seen.at(Phase::Ahead), to) || progress.replace(seen.at(Phase::Running), to)
}
