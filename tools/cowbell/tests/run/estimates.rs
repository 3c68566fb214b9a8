//! The shares of lines in faults mode are estimates, with their error beside them: the truth lies within it.

use crate::exact::may_hear_faults;
use crate::lab::{Scratch, cases, cowbell, run, skip};
use crate::python::PYTHON;
use serde_json::Value;

/// So large a part of all copies is told to be right within the error.
const SHARE_MIN: f64 = 0.05;
/// The share of lines that must be right: one in twenty may lie outside, and chance lets some more.
const RIGHT_MIN: f64 = 0.95;

/// The distance of each planted line's share from the truth, and the distance it may have, in points.
fn errors(seed: u64) -> Vec<(f64, f64)> {
    let scratch = Scratch::new();
    let target = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/targets/planted.py");
    let [report, out] = ["report", "out"].map(|name| scratch.path(name).to_str().expect("text").to_owned());
    let options = ["--mode", "faults", "--who", "child", "--json", "-o", &report];
    let words = [PYTHON, target, &seed.to_string(), "20000", &out];
    let outcome = run(&scratch, &mut cowbell(&options, words));
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let written = std::fs::read_to_string(&out).expect("the child's counts");
    let written: Vec<f64> = written.split_whitespace().map(|word| word.parse().expect("a number")).collect();
    let report: Value = serde_json::from_slice(&std::fs::read(&report).expect("the report")).expect("JSON");
    let script = &report["script"];
    let may_be = script["error_points"].as_f64().expect("an error");
    let lines = script["lines"].as_array().expect("lines");
    let copied = report["totals"]["copied_pages_max"].as_f64().expect("a number");
    let share = |comment: &str| {
        let is_it = |line: &&Value| line["source"].as_str().is_some_and(|source| source.ends_with(comment));
        lines.iter().filter(is_it).filter_map(|line| line["share"].as_f64()).sum::<f64>()
    };
    let truth = written.iter().map(|pages| pages / copied);
    let told = ["# first", "# second", "# third"].map(share);
    truth
        .zip(told)
        .filter(|(truth, _)| *truth > SHARE_MIN)
        .map(|(t, told)| (100.0 * (t - told).abs(), may_be))
        .collect()
}

#[test]
fn shares_of_lines_are_off_by_no_more_than_is_said() {
    if let Some(why) = may_hear_faults() {
        return skip(&why);
    }
    let usual = if std::env::var_os("COWBELL_SOAK").is_some() { 100 } else { 2 };
    let found: Vec<(f64, f64)> = (0..cases(usual)).flat_map(errors).collect();
    let right = found.iter().filter(|(off, may_be)| off <= may_be).count() as f64;
    println!("{right} of {} lines within what is said: {found:.1?}", found.len());
    // Few lines say little: one of them may be off.
    assert!(right >= (RIGHT_MIN * found.len() as f64).floor() - 1.0, "{right} of {}: {found:.1?}", found.len());
    assert!(found.iter().all(|(off, may_be)| *off <= 2.0 * may_be), "none is far off: {found:.1?}");
}
