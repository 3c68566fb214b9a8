//! `docs/KERNEL.md` and the claims say the same.

use crate::claim::Claim;
use libtest_mimic::Failed;
use std::fmt::Write;

const TEXT: &str = include_str!("../../docs/KERNEL.md");

/// The rows of the document's tables that are about a claim: its name, and the whole row.
fn rows() -> impl Iterator<Item = (&'static str, &'static str)> {
    TEXT.lines().filter_map(|line| {
        let (name, _) = line.strip_prefix("| `")?.split_once("` |")?;
        Some((name, line))
    })
}

/// Does the claim's row allow that it is skipped?
pub fn may_skip(claim: &Claim) -> bool {
    rows().any(|(name, row)| name == claim.name && row.contains("may skip"))
}

/// Every claim has exactly one row with its sentence, and every row has its claim.
pub fn check(topics: &[(&str, &[Claim])]) -> Result<(), Failed> {
    let mut wrong = String::new();
    let claims = || topics.iter().flat_map(|(_, claims)| *claims);
    for claim in claims() {
        let start = format!("| `{}` | {} |", claim.name, claim.says);
        let found = rows().filter(|(name, _)| *name == claim.name).count();
        let agrees = rows().any(|(_, row)| row.starts_with(&start));
        if found != 1 || !agrees {
            let _infallible = writeln!(wrong, "{found} rows; one should start: {start}");
        }
        if claims().filter(|other| other.name == claim.name).count() != 1 {
            let _infallible = writeln!(wrong, "two claims are named {}", claim.name);
        }
    }
    for (name, _) in rows() {
        if !claims().any(|claim| claim.name == name) {
            let _infallible = writeln!(wrong, "a row without a claim: {name}");
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(Failed::from(format!("docs/KERNEL.md disagrees:\n{wrong}"))) }
}
