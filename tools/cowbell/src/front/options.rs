//! The options of `run` and `attach`.

use crate::output;
use crate::record::{Mode, Who};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// How to watch; the same for `run` and `attach`.
#[derive(clap::Args, Clone, Debug)]
pub struct Watching {
    /// count: which pages, in which mappings. faults: also when, by which thread and which code, from page faults,
    /// stopping few writers; where that is not allowed, count. trace: the same, stopping each writer; writes through
    /// /proc/PID/mem fail with EIO meanwhile. Default: faults where they tell all (as root), count elsewhere.
    #[arg(long, value_enum, env = "COWBELL_MODE")]
    pub mode: Option<Mode>,
    /// The processes whose copies are counted: forked children, the processes that forked them, or both.
    #[arg(long, value_enum, default_value = "both", env = "COWBELL_WHO")]
    pub who: Who,
    /// In trace: take a stack with every Nth page of an instruction, and always with its first; in faults: with up to
    /// 65,536/N of the pages that a process holds; 0 takes none.
    #[arg(long, value_name = "1/N", default_value = "1/64", value_parser = parse_stacks, env = "COWBELL_STACKS")]
    pub stacks: u32,
    /// Watch at most so many processes at a time; the others run unwatched and are counted.
    #[arg(long, value_name = "N", default_value_t = 1000, env = "COWBELL_MAX_CHILDREN")]
    pub max_children: u32,
    /// Stop watching after so many seconds, and report; the program runs on.
    #[arg(long, value_name = "SECONDS", value_parser = parse_duration, env = "COWBELL_DURATION")]
    pub duration: Option<Duration>,
    /// Keep what was seen in this file, for `cowbell report`; %p is this process' id, %t the time in seconds since 1970.
    #[arg(long, value_name = "FILE", env = "COWBELL_CAPTURE")]
    pub capture: Option<PathBuf>,
    #[command(flatten)]
    pub output: output::Options,
}

/// The program to run, and how to watch it.
#[derive(clap::Args, Clone, Debug)]
pub struct RunOptions {
    #[command(flatten)]
    pub watching: Watching,
    /// The program and its arguments.
    #[arg(value_name = "PROGRAM", required = true, trailing_var_arg = true)]
    pub command: Vec<OsString>,
}

/// The process to attach to, and how to watch it.
#[derive(clap::Args, Clone, Debug)]
pub struct AttachOptions {
    #[command(flatten)]
    pub watching: Watching,
    /// The process; all that it has forked is watched too.
    #[arg(value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: i32,
    /// A socket that whoever starts this has under this number, by which it hears that the process is watched, and ends that:
    /// `front/control.rs` has the words.
    #[arg(long, value_name = "NUMBER", hide = true)]
    pub control: Option<i32>,
    /// The socket's number in the process that takes the place of the one that was started with that.
    #[arg(long, value_name = "NUMBER", requires = "control", hide = true)]
    pub aside: Option<i32>,
}

fn parse_stacks(text: &str) -> Result<u32, String> {
    // The fraction 1 is every one.
    let every = text.strip_prefix("1/").unwrap_or(if matches!(text, "0" | "1") { text } else { "" });
    every.parse().map_err(|_| "it is 0, 1, or 1/N with a number N".to_owned())
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_a_fraction_or_none() {
        assert_eq!(["1/64", "1/1", "1", "0"].map(parse_stacks), [Ok(64), Ok(1), Ok(1), Ok(0)]);
        assert!(["64", "2/3", "1/", "", "1/x"].iter().all(|text| parse_stacks(text).is_err()));
    }

    #[test]
    fn a_duration_is_in_seconds() {
        assert_eq!(parse_duration("1.5"), Ok(Duration::from_millis(1500)));
        assert!(["-1", "x", "inf", "NaN"].iter().all(|text| parse_duration(text).is_err()));
    }
}
