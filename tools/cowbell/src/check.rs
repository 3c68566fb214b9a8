//! `cowbell check`: are a capture's copies within a budget?

use crate::analyse::check::{self, Budget, BudgetOutcome, Per, Quantity};
use crate::failure::Failure;
use crate::input;
use crate::views;
use serde::Deserialize;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A budget is broken.
const BROKEN: u8 = 1;
/// No budget is broken for certain, and one is not kept for certain.
const CANNOT_TELL: u8 = 3;
/// The capture or the budgets cannot be read.
const FAILED: u8 = 4;

/// The capture to check, and the budgets to hold it against.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("budget").required(true).multiple(true)))]
pub struct Options {
    /// The capture, or reports of the library as JSON; - is standard input.
    #[arg(value_name = "FILE")]
    capture: PathBuf,
    /// Nobody copies more than this: bytes, or with K, M, G for units of 1024: 10M.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, group = "budget")]
    max_copied: Option<u64>,
    /// Nobody copies more than this for nothing: pages that are the same as their originals again.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, group = "budget")]
    max_for_nothing: Option<u64>,
    /// No forked process has more than this at its end of memory that it allocated itself.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, group = "budget")]
    max_new: Option<u64>,
    /// Budgets from a TOML or JSON file: a list `budget` of tables with max_copied, max_for_nothing, max_new, and, if wanted, per
    /// and command (only processes whose command contains it).
    #[arg(long, value_name = "FILE", group = "budget")]
    budgets: Option<PathBuf>,
    /// Whom the sizes of the command line are for.
    #[arg(long, value_enum, default_value = "process")]
    per: Per,
    /// How to print the outcome.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// A line for each budget and process, and not only the worst.
    #[arg(short, long)]
    verbose: bool,
}

/// The form in which an outcome is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// One line.
    Text,
    /// Annotations of GitHub Actions, then one line.
    Github,
    /// JUnit's XML.
    Junit,
    /// JSON.
    Json,
}

/// A file of budgets.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Budgets {
    budget: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    max_copied: Option<Size>,
    max_for_nothing: Option<Size>,
    max_new: Option<Size>,
    #[serde(default)]
    per: Per,
    command: Option<String>,
}

/// A size, as bytes or as on the command line.
#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Bytes(u64),
    Text(String),
}

/// Checks a capture and prints the outcome.
pub fn run(options: &Options) -> ExitCode {
    match checked(options) {
        Ok(BudgetOutcome::Kept) => ExitCode::SUCCESS,
        Ok(BudgetOutcome::Broken) => ExitCode::from(BROKEN),
        Ok(BudgetOutcome::CannotTell) => ExitCode::from(CANNOT_TELL),
        Err(e) => {
            eprintln!("cowbell check: {e}");
            ExitCode::from(FAILED)
        }
    }
}

fn checked(options: &Options) -> Result<BudgetOutcome, Failure> {
    let limits = [
        (Quantity::Copied, options.max_copied),
        (Quantity::ForNothing, options.max_for_nothing),
        (Quantity::New, options.max_new),
    ];
    let mut budgets = budgets(limits, options.per, None);
    if let Some(path) = &options.budgets {
        let from_file = read(path).map_err(|why| Failure::new(format!("{}: {why}", path.display())))?;
        budgets.extend(from_file);
    }
    let check = check::check(&input::summary(&options.capture)?, &budgets);
    let shown = match options.format {
        Format::Text => views::check::text(&check, options.verbose).into_bytes(),
        Format::Github => views::check::github(&check).into_bytes(),
        Format::Junit => views::check::junit(&check).into_bytes(),
        Format::Json => views::json(&check).map_err(|e| Failure::new(format!("no JSON: {e}")))?,
    };
    let mut out = io::stdout().lock();
    match out.write_all(&shown).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to standard output: {e}")))
        }
        _ => Ok(check.outcome),
    }
}

fn budgets(limits: [(Quantity, Option<u64>); 3], per: Per, command: Option<&String>) -> Vec<Budget> {
    let budget = |(quantity, most): (Quantity, Option<u64>)| {
        let command = command.cloned();
        most.map(|most_bytes| Budget { per, quantity, most_bytes, command })
    };
    limits.into_iter().filter_map(budget).collect()
}

/// The budgets of a file: JSON by its ending, else TOML.
fn read(path: &Path) -> Result<Vec<Budget>, String> {
    let text = fs::read_to_string(path).map_err(|e| e.to_string())?;
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    let Budgets { budget: entries } = if is_json {
        serde_json::from_str(&text).map_err(|e| e.to_string())?
    } else {
        toml::from_str(&text).map_err(|e| e.to_string().trim_end().replace('\n', " "))?
    };
    if entries.is_empty() {
        return Err("it has no budget".to_owned());
    }
    let mut all = Vec::new();
    for (nth, entry) in entries.iter().enumerate() {
        let bytes = |size: &Option<Size>| match size {
            None => Ok(None),
            Some(Size::Bytes(bytes)) => Ok(Some(*bytes)),
            Some(Size::Text(text)) => parse_size(text).map(Some),
        };
        let failure = |why: String| format!("budget {}: {why}", nth + 1);
        let limits = [
            (Quantity::Copied, bytes(&entry.max_copied).map_err(failure)?),
            (Quantity::ForNothing, bytes(&entry.max_for_nothing).map_err(failure)?),
            (Quantity::New, bytes(&entry.max_new).map_err(failure)?),
        ];
        let budgets = budgets(limits, entry.per, entry.command.as_ref());
        if budgets.is_empty() {
            return Err(failure("it has none of max_copied, max_for_nothing and max_new".to_owned()));
        }
        all.extend(budgets);
    }
    Ok(all)
}

/// A size in bytes.
fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || {
        "a size is a number with K, M, G or T behind it, or none for bytes: 10M is 10 times 1024 times 1024".to_owned()
    };
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..).unwrap_or_default();
    let shift = match unit {
        "" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return Err(wrong()),
    };
    if let Ok(whole) = digits.parse::<u64>() {
        return whole.checked_mul(1 << shift).ok_or_else(wrong);
    }
    let is_decimal = digits.chars().all(|c| c.is_ascii_digit() || c == '.') && shift > 0;
    let number: f64 = digits.parse().map_err(|_| wrong())?;
    let bytes = number * (1u64 << shift) as f64;
    // A limit is not exceeded for being rounded.
    if is_decimal && bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024() {
        let sizes = ["0", "10", "4K", "10M", "10MiB", "1.5G", "2T"].map(parse_size);
        let bytes = [0, 10, 4 << 10, 10 << 20, 10 << 20, 3 << 29, 2 << 40].map(Ok);
        assert_eq!(sizes, bytes);
        let wrong = ["", "M", "10MB", "10m", "-1", "1e3", "1.5", "NaN", "inf", "18446744073709551615K", "99999999999T"];
        assert!(wrong.iter().all(|text| parse_size(text).is_err()));
    }
}
