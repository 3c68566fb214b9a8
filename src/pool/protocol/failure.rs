//! Why a job has no result.

use super::board::BatchSlot;
use crate::facts::Ended;
use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Why a job has no result. The pool goes on in every case but [`JobError::PoolGone`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JobError {
    /// The job panicked. Its worker goes on.
    Panicked {
        /// The panic's message.
        message: String,
        /// The place, as `file:line:column`.
        location: Option<String>,
    },
    /// The worker died while it held the job, and was replaced.
    Died {
        /// The way the worker died.
        death: Death,
        /// The number of times the job was tried.
        attempts: u32,
    },
    /// The job took longer than its time limit; its worker was killed and replaced.
    TimedOut {
        /// The limit.
        limit: Duration,
        /// The number of times the job was tried.
        attempts: u32,
    },
    /// The job was cancelled: before it began, or by the end of the pool.
    Cancelled,
    /// The job or the result could not be encoded or decoded, or a result found no room: why.
    NotPassed(String),
    /// The pool ended: its zygote died, or no worker can be started. Why.
    PoolGone(String),
}

/// The way a worker died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Death {
    /// By exiting, or by which signal.
    pub ended: Ended,
    /// The control group counted a kill by the OOM killer meanwhile, so that is the likely reason.
    pub out_of_memory: bool,
    /// A stack of the worker had overflowed: see [`Exit::stack_overflow`](crate::fork::Exit::stack_overflow).
    pub stack_overflow: bool,
}

impl Death {
    /// A death of which nothing else is known.
    pub(in crate::pool) fn of(ended: Ended) -> Self {
        Self { ended, out_of_memory: false, stack_overflow: false }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ended {
            Ended::Exited(code) => write!(f, "exited with code {code}"),
            Ended::Signaled(signal) => write!(f, "was killed by signal {signal}"),
            Ended::Unknown => write!(f, "ended, nobody knows how"),
        }?;
        if self.out_of_memory {
            write!(f, ", probably by the OOM killer")?;
        }
        if self.stack_overflow {
            write!(f, ", because its stack overflowed")?;
        }
        Ok(())
    }
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked { message, location: Some(location) } => {
                write!(f, "the job panicked at {location}: {message}")
            }
            Self::Panicked { message, location: None } => write!(f, "the job panicked: {message}"),
            Self::Died { death, attempts } => write!(f, "the worker {death} (attempt {attempts})"),
            Self::TimedOut { limit, attempts } => {
                write!(f, "the job took longer than {limit:?} and was killed (attempt {attempts})")
            }
            Self::Cancelled => write!(f, "the job was cancelled"),
            Self::NotPassed(why) => write!(f, "the job or its result could not be passed: {why}"),
            Self::PoolGone(why) => write!(f, "the pool is gone: {why}"),
        }
    }
}

impl std::error::Error for JobError {}

/// The zygote's finding about a job whose worker is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobFailure {
    /// The worker died of it, or beside it.
    Died(Death),
    /// The job's time was over.
    TimedOut,
    /// The job was cancelled.
    Cancelled,
}

const EXITED: u32 = 1;
const SIGNALED: u32 = 2;
const UNKNOWN: u32 = 3;
const TIMED_OUT: u32 = 4;
const CANCELLED: u32 = 5;
const OUT_OF_MEMORY: u32 = 0x100;
const STACK_OVERFLOW: u32 = 0x200;

impl JobFailure {
    /// Writes it into the slot.
    pub(crate) fn write(self, slot: &BatchSlot) {
        let (kind, detail) = match self {
            Self::TimedOut => (TIMED_OUT, 0),
            Self::Cancelled => (CANCELLED, 0),
            Self::Died(death) => {
                let memory = if death.out_of_memory { OUT_OF_MEMORY } else { 0 };
                let why = memory | if death.stack_overflow { STACK_OVERFLOW } else { 0 };
                match death.ended {
                    Ended::Exited(code) => (EXITED | why, code),
                    Ended::Signaled(signal) => (SIGNALED | why, signal),
                    Ended::Unknown => (UNKNOWN | why, 0),
                }
            }
        };
        slot.failure_detail.store(detail as u32, Ordering::Release);
        slot.failure.store(kind, Ordering::Release);
    }

    /// Reads what stands in the slot.
    pub(crate) fn read(slot: &BatchSlot) -> Option<Self> {
        let (kind, detail) = (slot.failure.load(Ordering::Acquire), slot.failure_detail.load(Ordering::Acquire) as i32);
        let ended = match kind & 0xff {
            EXITED => Ended::Exited(detail),
            SIGNALED => Ended::Signaled(detail),
            UNKNOWN => Ended::Unknown,
            TIMED_OUT => return Some(Self::TimedOut),
            CANCELLED => return Some(Self::Cancelled),
            _ => return None,
        };
        let (out_of_memory, stack_overflow) = (kind & OUT_OF_MEMORY != 0, kind & STACK_OVERFLOW != 0);
        Some(Self::Died(Death { ended, out_of_memory, stack_overflow }))
    }
}
