//! Budgets: may a capture's processes have copied what they copied? Judged by what is certain only.

use super::roles::{self, Bounds, Figures, Role};
use super::summary::Summary;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The processes that a budget is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    /// Each process by itself.
    #[default]
    Process,
    /// Processes that run the same, as many forks below the first, together.
    Role,
    /// All processes together.
    All,
}

/// The quantity that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// Bytes that were copied.
    Copied,
    /// Copies that are the same as their originals again.
    ForNothing,
    /// Memory that forked processes allocated themselves, and had at their ends.
    New,
}

/// A limit that must not be exceeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    pub per: Per,
    pub quantity: Quantity,
    pub most_bytes: u64,
    /// Only for processes whose command contains this.
    pub command: Option<String>,
}

/// The outcome of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BudgetOutcome {
    /// The measured memory is at most the budget, for certain.
    Kept,
    /// The bounds of what was measured lie on both sides of the budget.
    CannotTell,
    /// The measured memory is more than the budget, for certain.
    Broken,
}

/// The processes that a budget is held against.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A process.
    Process { pid: i32, role: Role },
    /// Processes of one role.
    Role { processes: u64, role: Role },
    /// All of them, or of those that the budget is for.
    All { processes: u64 },
    /// Processes that ran and were not watched.
    Unwatched,
    /// The budget names a command that no process has.
    Nobody { command: String },
}

/// One budget, held against one subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Judged {
    pub subject: Subject,
    pub quantity: Quantity,
    pub budget_bytes: u64,
    pub measured_bytes: Bounds,
    pub outcome: BudgetOutcome,
    /// Why it cannot be told, besides the bounds.
    pub why: Option<String>,
}

/// The document of `check --format json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The worst of all.
    pub outcome: BudgetOutcome,
    /// In the order of the budgets; of one, the worst first, and then the largest.
    pub judged: Vec<Judged>,
}

/// Holds a summary against budgets.
pub fn check(summary: &Summary, budgets: &[Budget]) -> Check {
    let judged: Vec<Judged> = budgets.iter().flat_map(|budget| judge(summary, budget)).collect();
    let outcome = judged.iter().map(|judged| judged.outcome).max().unwrap_or(BudgetOutcome::Kept);
    Check { outcome, judged }
}

fn judge(summary: &Summary, budget: &Budget) -> Vec<Judged> {
    let unwatched = roles::unwatched(summary);
    let is_meant = |role: &Role| budget.command.as_ref().is_none_or(|part| role.command.contains(part.as_str()));
    let watched = roles::watched(summary);
    let anybody = watched.iter().any(|process| is_meant(&process.role));
    if let Some(command) = budget.command.as_ref().filter(|_| !anybody) {
        let subject = Subject::Nobody { command: command.clone() };
        let why = Some("no process that was watched has such a command".to_owned());
        return vec![Judged { outcome: BudgetOutcome::CannotTell, why, ..held(budget, subject, Figures::UNKNOWN) }];
    }
    let watched = watched.into_iter().filter(|process| is_meant(&process.role));
    let mut judged: Vec<Judged> = match budget.per {
        Per::Process => watched
            .map(|process| held(budget, Subject::Process { pid: process.pid, role: process.role }, process.figures))
            .collect(),
        Per::Role => {
            let mut sums: BTreeMap<Role, (u64, Figures)> = BTreeMap::new();
            for process in watched {
                let (processes, sum) = sums.entry(process.role).or_insert((0, Figures::NOTHING));
                *processes += 1;
                *sum += process.figures;
            }
            let one = |(role, (processes, sum))| held(budget, Subject::Role { processes, role }, sum);
            sums.into_iter().map(one).collect()
        }
        Per::All => {
            let (mut processes, mut sum) = (0, Figures::NOTHING);
            for process in watched {
                processes += 1;
                sum += process.figures;
            }
            if unwatched.is_some() {
                sum += Figures::UNKNOWN;
            }
            vec![held(budget, Subject::All { processes }, sum)]
        }
    };
    match unwatched {
        Some(why) if budget.per == Per::All => {
            let open = judged.iter_mut().filter(|judged| judged.outcome == BudgetOutcome::CannotTell);
            open.for_each(|judged| judged.why = Some(why.clone()));
        }
        Some(why) => {
            let unknown = held(budget, Subject::Unwatched, Figures::UNKNOWN);
            judged.push(Judged { why: Some(why), ..unknown });
        }
        None => {}
    }
    judged.sort_by_key(|judged| std::cmp::Reverse((judged.outcome, judged.measured_bytes.least)));
    judged
}

fn held(budget: &Budget, subject: Subject, figures: Figures) -> Judged {
    let measured_bytes = match budget.quantity {
        Quantity::Copied => figures.copied,
        Quantity::ForNothing => figures.for_nothing,
        Quantity::New => figures.new,
    };
    let outcome = if measured_bytes.least > budget.most_bytes {
        BudgetOutcome::Broken
    } else if measured_bytes.most.is_some_and(|most| most <= budget.most_bytes) {
        BudgetOutcome::Kept
    } else {
        BudgetOutcome::CannotTell
    };
    let (quantity, budget_bytes) = (budget.quantity, budget.most_bytes);
    Judged { subject, quantity, budget_bytes, measured_bytes, outcome, why: None }
}
