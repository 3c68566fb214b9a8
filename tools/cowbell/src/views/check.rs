//! The outcomes of budgets: one line for people, annotations for GitHub, JUnit's XML, JSON.

use super::json::Document;
use super::lines::{clean, count, head, some};
use crate::analyse::check::{BudgetOutcome, Check, Judged, Quantity, Subject};
use crate::analyse::roles::Role;
use cowbell::page::Bytes;
use std::fmt::Write;

/// Commands are told by so much of their beginning.
const COMMAND_WIDTH: usize = 60;

impl Document for Check {
    const FORMAT: &'static str = "cowbell-check";
    const VERSION: u32 = 1;
}

/// One line: the worst, and how many more there are of its kind. With `verbose` a line for each.
pub fn text(check: &Check, verbose: bool) -> String {
    if verbose {
        let line = |judged: &Judged| format!("{}: {}\n", word(judged.outcome), sentence(judged));
        return check.judged.iter().map(line).collect();
    }
    let worst: Vec<&Judged> = check.judged.iter().filter(|judged| judged.outcome == check.outcome).collect();
    // The first of each budget is its worst; of those that are kept the one that comes nearest is of interest.
    let told = match check.outcome {
        BudgetOutcome::Kept => worst.iter().max_by(|a, b| used(a).total_cmp(&used(b))),
        BudgetOutcome::Broken | BudgetOutcome::CannotTell => worst.first(),
    };
    let Some(told) = told else { return format!("{}: nothing was to be held against a budget\n", word(check.outcome)) };
    let more = match (check.outcome, worst.len() - 1) {
        (_, 0) => String::new(),
        (BudgetOutcome::Kept, more) => {
            format!("; {} more {} theirs", count(more as u64), if more == 1 { "keeps" } else { "keep" })
        }
        (BudgetOutcome::CannotTell, more) => format!("; the same holds for {} more", count(more as u64)),
        (BudgetOutcome::Broken, more) => format!("; so do {} more", count(more as u64)),
    };
    format!("{}: {}{more}\n", word(check.outcome), sentence(told))
}

/// The part of its budget that is used; the bytes that are used of a budget of nothing.
fn used(judged: &Judged) -> f64 {
    judged.measured_bytes.most.unwrap_or(u64::MAX) as f64 / judged.budget_bytes.max(1) as f64
}

fn word(outcome: BudgetOutcome) -> &'static str {
    match outcome {
        BudgetOutcome::Kept => "KEPT",
        BudgetOutcome::CannotTell => "CANNOT TELL",
        BudgetOutcome::Broken => "BROKEN",
    }
}

/// The processes that a budget was held against.
fn subject(judged: &Judged) -> String {
    match &judged.subject {
        Subject::Process { pid, role } => format!("process {pid} ({})", role_name(role)),
        Subject::Role { processes, role } => format!("all {} of {}", count(*processes), role_name(role)),
        Subject::All { processes } => format!("all {} together", some(*processes, "process", "processes")),
        Subject::Unwatched => "processes that ran unwatched".to_owned(),
        Subject::Nobody { command } => {
            format!("processes whose command contains {}", head(command, COMMAND_WIDTH).trim_end())
        }
    }
}

/// A role, for people.
pub fn role_name(role: &Role) -> String {
    let command = head(&role.command, COMMAND_WIDTH).trim_end().to_owned();
    match role.depth {
        0 => command,
        1 => format!("child of {command}"),
        depth => format!("{depth} forks below {command}"),
    }
}

fn sentence(judged: &Judged) -> String {
    let who = subject(judged);
    let what = match judged.quantity {
        Quantity::Copied => "copied",
        Quantity::ForNothing => "copied for nothing",
        Quantity::New => "ended with new memory of",
    };
    let (budget, least) = (Bytes(judged.budget_bytes), Bytes(judged.measured_bytes.least));
    let why = judged.why.as_ref().map_or(String::new(), |why| format!(": {}", clean(why)));
    match (judged.outcome, judged.measured_bytes.most) {
        (BudgetOutcome::Broken, Some(most)) if most == judged.measured_bytes.least => {
            format!("{who} {what} {least}, and the budget is {budget}")
        }
        (BudgetOutcome::Broken, _) => format!("{who} {what} at least {least}, and the budget is {budget}"),
        (BudgetOutcome::Kept, most) => format!("{who} {what} {} of at most {budget}", Bytes(most.unwrap_or_default())),
        (BudgetOutcome::CannotTell, Some(most)) => {
            format!("{who} {what} at least {least}, at most {}, and the budget is {budget}{why}", Bytes(most))
        }
        (BudgetOutcome::CannotTell, None) => {
            format!("{who} {what} at least {least}, no upper bound is known, and the budget is {budget}{why}")
        }
    }
}

/// Workflow commands of GitHub Actions: an error for each budget that is broken, a warning for each that cannot be told.
pub fn github(check: &Check) -> String {
    let mut shown = String::new();
    for judged in &check.judged {
        let (command, title) = match judged.outcome {
            BudgetOutcome::Kept => continue,
            BudgetOutcome::CannotTell => ("warning", "cowbell cannot tell"),
            BudgetOutcome::Broken => ("error", "cowbell budget broken"),
        };
        let sentence = sentence(judged).replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
        let _written = writeln!(shown, "::{command} title={title}::{sentence}");
    }
    // A log that says nothing leaves open whether anything was checked.
    shown + &text(check, false)
}

/// JUnit's XML: one test suite, a test case for each budget and subject. What cannot be told is an error there.
pub fn junit(check: &Check) -> String {
    let number = |outcome| check.judged.iter().filter(|judged| judged.outcome == outcome).count();
    let (failures, errors) = (number(BudgetOutcome::Broken), number(BudgetOutcome::CannotTell));
    let tests = check.judged.len();
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let counts = format!("tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\"");
    let _written = writeln!(xml, "<testsuites name=\"cowbell\" {counts}>");
    let _written = writeln!(xml, "  <testsuite name=\"cowbell check\" {counts}>");
    for judged in &check.judged {
        let class = match judged.quantity {
            Quantity::Copied => "max-copied",
            Quantity::ForNothing => "max-for-nothing",
            Quantity::New => "max-new",
        };
        let name = escape(&subject(judged));
        let _written = write!(xml, "    <testcase classname=\"cowbell.{class}\" name=\"{name}\"");
        let message = escape(&sentence(judged));
        let _written = match judged.outcome {
            BudgetOutcome::Kept => writeln!(xml, "/>"),
            BudgetOutcome::CannotTell => {
                writeln!(xml, "><error type=\"cannot_tell\" message=\"{message}\"/></testcase>")
            }
            BudgetOutcome::Broken => writeln!(xml, "><failure type=\"broken\" message=\"{message}\"/></testcase>"),
        };
    }
    xml + "  </testsuite>\n</testsuites>\n"
}

/// A text as XML has it between quotes and elsewhere, without the characters that XML forbids.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\u{fffe}' | '\u{ffff}' => escaped.push('?'),
            c if c.is_control() => escaped.push('?'),
            c => escaped.push(c),
        }
    }
    escaped
}
