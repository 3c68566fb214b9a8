//! The shares of lines in faults mode are estimates, with their error beside them: the truth lies within it.

use crate::exact::may_hear_faults;
use crate::lab::{Scratch, cases, cowbell, is_root, run, skip};
use crate::python::PYTHON;
use serde_json::Value;

/// A part of all copies that is at least so large is told right within its error.
const SHARE_MIN: f64 = 0.05;
/// A line copies so many pages in a row, on average: samples are draws where lines take turns, and tell more where they do not.
const RUNS: [u64; 3] = [1, 100, 4000];
/// The share of lines that must be right: one in twenty may lie outside, and chance lets some more.
const RIGHT_MIN: f64 = 0.95;

/// The copies, or the memory, that the planted lines make.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Copies,
    New,
}

/// The distance of each planted line's share from the truth, and the distance it may have, in points.
fn errors(kind: Kind, seed: u64, run_pages: u64) -> Vec<(f64, f64)> {
    let scratch = Scratch::new();
    let target = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/targets/planted.py");
    let [report, out] = ["report", "out"].map(|name| scratch.path(name).to_str().expect("text").to_owned());
    let options = ["--mode", "faults", "--who", "child", "--json", "-o", &report];
    let name = if kind == Kind::Copies { "copies" } else { "new" };
    let words = [PYTHON, target, name, &seed.to_string(), "20000", &run_pages.to_string(), &out];
    let outcome = run(&scratch, &mut cowbell(&options, words));
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let written = std::fs::read_to_string(&out).expect("the child's counts");
    let written: Vec<f64> = written.split_whitespace().map(|word| word.parse().expect("a number")).collect();
    let report: Value = serde_json::from_slice(&std::fs::read(&report).expect("the report")).expect("JSON");
    let lines = report[if kind == Kind::Copies { "script" } else { "growth" }]["lines"].as_array().expect("lines");
    let all = match kind {
        Kind::Copies => report["totals"]["copied_pages_max"].as_f64().expect("a number"),
        // Looks can find all that is written, but for some of the interpreter's own.
        Kind::New => written.iter().sum(),
    };
    // A line that no sample saw: as far as the others may be off.
    let largest = lines.iter().filter_map(|line| line["error_points"].as_f64()).reduce(f64::max);
    let unseen = (0.0, largest.expect("an error"));
    let told = ["# first", "# second", "# third"].map(|comment| {
        let is_it = |line: &&Value| line["source"].as_str().is_some_and(|source| source.ends_with(comment));
        let figure = |line: &Value, name: &str| line[name].as_f64().expect("a number");
        lines.iter().find(is_it).map_or(unseen, |line| (figure(line, "share"), figure(line, "error_points")))
    });
    let truth = written.iter().map(|pages| pages / all);
    truth
        .zip(told)
        .filter(|(truth, _)| *truth > SHARE_MIN)
        .map(|(t, (told, may_be))| (100.0 * (t - told).abs(), may_be))
        .collect()
}

#[test]
fn shares_of_lines_are_off_by_no_more_than_is_said() {
    are_off_by_no_more_than_is_said(Kind::Copies);
}

#[test]
fn shares_of_new_memory_are_off_by_no_more_than_is_said() {
    are_off_by_no_more_than_is_said(Kind::New);
}

fn are_off_by_no_more_than_is_said(kind: Kind) {
    if let Some(why) = may_hear_faults() {
        return skip(&why);
    }
    let usual = if std::env::var_os("COWBELL_SOAK").is_some() { 100 } else { 1 };
    let (mut all, mut means) = (Vec::<(f64, f64)>::new(), Vec::new());
    for run_pages in RUNS {
        let found: Vec<(f64, f64)> = (0..cases(usual)).flat_map(|seed| errors(kind, seed, run_pages)).collect();
        let right = found.iter().filter(|(off, may_be)| off <= may_be).count();
        let mean = found.iter().map(|(_, may_be)| may_be).sum::<f64>() / found.len() as f64;
        println!(
            "runs of {run_pages}: {right} of {} lines within the ±{mean:.1} that is said: {found:.1?}",
            found.len()
        );
        all.extend(found);
        means.push(mean);
    }
    if let (Kind::Copies, true, [turns, .., long]) = (kind, is_root(), means.as_slice()) {
        // Exact stacks tell that a line goes on for long.
        assert!(*long < 0.8 * turns, "{means:?}");
    }
    let right = all.iter().filter(|(off, may_be)| off <= may_be).count() as f64;
    // Few lines say little: two of a run are off together, where one is taken for the other.
    assert!(right >= (RIGHT_MIN * all.len() as f64).floor() - 2.0, "{right} of {}: {all:.1?}", all.len());
    assert!(all.iter().all(|(off, may_be)| *off <= 2.0 * may_be), "none is far off: {all:.1?}");
}
