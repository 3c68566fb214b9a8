//! The findings of the lab, as they are shown and told.

use crate::analyse::verdict::VerdictKind;
use serde::Serialize;

/// All that was done and seen.
#[derive(Clone, Debug, Serialize)]
pub struct Lab {
    /// The data were small.
    pub quick: bool,
    /// The machine that it ran on.
    pub machine: Machine,
    /// The experiments, in order.
    pub experiments: Vec<Experiment>,
}

/// A machine.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The kernel's release.
    pub kernel: String,
    /// Processors that are ours.
    pub processors: usize,
    /// The memory that could be had; `null` if the kernel does not say.
    pub free_bytes: Option<u64>,
    /// The interpreter that ran, with its version; `null` if there is none.
    pub interpreter: Option<String>,
}

/// An experiment.
#[derive(Clone, Debug, Serialize)]
pub struct Experiment {
    /// The experiment's name.
    pub name: &'static str,
    /// The question that it answers.
    pub question: &'static str,
    /// The work that is done in each way, with its size.
    pub work: String,
    /// The ways in which it is done.
    pub ways: Vec<Way>,
    /// The findings, in words.
    pub seen: Vec<String>,
    /// The expectations that are not met; ways that failed are no part of them.
    pub unexpected: Vec<String>,
}

impl Experiment {
    /// Tells whether nothing failed and all is as it was expected to be.
    pub fn is_as_expected(&self) -> bool {
        self.unexpected.is_empty() && !self.ways.iter().any(|way| matches!(way.outcome, Outcome::Failed { .. }))
    }
}

/// One way to do the work.
#[derive(Clone, Debug, Serialize)]
pub struct Way {
    /// The way's name.
    pub name: &'static str,
    /// The number of workers that it was asked for.
    pub workers: u32,
    /// The way's work, in words.
    pub does: &'static str,
    /// How it went.
    pub outcome: Outcome,
}

impl Way {
    /// The way's findings, if it ran to its end.
    pub fn finding(&self) -> Option<&Finding> {
        match &self.outcome {
            Outcome::Ran(finding) => Some(finding),
            _ => None,
        }
    }
}

/// How one way went.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// To its end.
    Ran(Box<Finding>),
    /// Something that it needs is not here.
    Skipped {
        /// The thing that is missing, and how to come by it.
        why: String,
    },
    /// The way failed.
    Failed {
        /// The last words of its program on standard error.
        why: String,
    },
}

/// The findings of one way.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The findings of `cowbell run`; `null` for a program that was not watched.
    pub watched: Option<WatchedRun>,
    /// The figures that the program itself told, by name.
    pub told: serde_json::Map<String, serde_json::Value>,
}

/// The findings of `cowbell run`.
#[derive(Clone, Debug, Serialize)]
pub struct WatchedRun {
    /// The report's verdict.
    pub verdict: VerdictKind,
    /// The workers that it found.
    pub workers: u64,
    /// The bytes that a worker copied on average, at work and as it was set up.
    pub copied_bytes: u64,
    /// The bytes that a worker copied on average on its way out; `null` if they cannot be told apart, and are among those above.
    pub ending_bytes: Option<u64>,
    /// The bytes of new memory that a worker had on average, at its most.
    pub new_bytes: u64,
    /// The bytes that processes which forked copied.
    pub parent_bytes: u64,
    /// The report's first words: its verdict, in one or two sentences.
    pub says: String,
    /// The first reason that it gives, where it sees a need for one.
    pub why: Option<String>,
    /// The first place that it names, a file's name and a line.
    pub place: Option<String>,
}
