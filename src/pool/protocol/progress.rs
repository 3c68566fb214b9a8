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

use super::queue::Word64;

/// The phase of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobPhase {
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
pub struct Progress(u64);

impl Progress {
    /// The current job; those before it are done.
    pub fn job(self) -> usize {
        (self.0 >> PHASE_BITS) as usize & ((1 << JOB_BITS) - 1)
    }

    /// The phase of the current job.
    pub fn phase(self) -> JobPhase {
        match self.0 & 3 {
            0 => JobPhase::Ahead,
            1 => JobPhase::Running,
            _ => JobPhase::Condemned,
        }
    }

    /// The same batch and job.
    fn at(self, phase: JobPhase) -> u64 {
        self.0 & !3 | phase as u64
    }
}

/// The current job, and its phase, for a decision about it.
pub fn look<L: Word64>(progress: &L) -> Progress {
    Progress(progress.load())
}

/// The current job, and its phase. Jobs before it are done.
pub fn read<L: Word64>(progress: &L) -> (usize, JobPhase) {
    let seen = look(progress);
    (seen.job(), seen.phase())
}

/// A new batch. The caller's is the slot, which is not queued.
pub fn reset<L: Word64>(progress: &L) {
    let filled = progress.load() >> FILLED_SHIFT;
    progress.store((filled + 1) << FILLED_SHIFT);
}

/// The worker begins a job; false if it was condemned.
pub fn begin<L: Word64>(progress: &L, job: usize) -> bool {
    let seen = look(progress);
    debug_assert_eq!(seen.job(), job, "jobs are begun in their order");
    progress.replace(seen.at(JobPhase::Ahead), seen.at(JobPhase::Running))
}

/// The worker has done a job; false if it was condemned.
pub fn finish<L: Word64>(progress: &L, job: usize) -> bool {
    let seen = look(progress);
    debug_assert_eq!(seen.job(), job, "a job is finished that was begun");
    progress.replace(seen.at(JobPhase::Running), seen.at(JobPhase::Ahead) + (1 << PHASE_BITS))
}

/// Condemns a job that was seen current, begun or not; false if it is not current any more. The caller holds the slot.
pub fn condemn<L: Word64>(progress: &L, seen: Progress) -> bool {
    let to = seen.at(JobPhase::Condemned);
    // In the worker's order, lest it slips through between the two.
    progress.replace(seen.at(JobPhase::Ahead), to) || progress.replace(seen.at(JobPhase::Running), to)
}
