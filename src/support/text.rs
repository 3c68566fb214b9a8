//! A [`Support`] as people read it: the text of `cowbell doctor`.

use super::features::{Availability, Feature, Missing, Support};
use crate::page::Bytes;
use crate::sys::limits::Limit;
use crate::watch::Watch;
use std::fmt;

/// The column at which lines are broken.
const COLUMNS: usize = 80;
/// The columns of the phrases.
const WATCH_COLUMN: usize = 20;
const FEATURE_COLUMN: usize = 44;
/// The column of a feature's reason: further left, because reasons are long.
const REASON_COLUMN: usize = 8;

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_machine(f)?;
        writeln!(f, "\nWatches: ways to see which pages a forked process copied")?;
        for watch in Watch::ALL {
            let verdict = self.watch(watch);
            write_entry(f, WATCH_COLUMN, watch.title(), &verdict, watch.tells())?;
            write_wrapped(f, WATCH_COLUMN, "", watch.costs())?;
            if let Some(note) = watch.note().filter(|_| verdict.is_available()) {
                write_wrapped(f, WATCH_COLUMN, "note  ", note)?;
            }
            write_reason(f, WATCH_COLUMN, &verdict)?;
        }
        writeln!(f, "\nFeatures: what the watches and the arenas rest on")?;
        for &feature in Feature::ALL {
            let verdict = self.verdict(feature);
            write_entry(f, FEATURE_COLUMN, feature.title(), verdict, feature.purpose())?;
            write_reason(f, REASON_COLUMN, verdict)?;
        }
        if self.is_whole() {
            return Ok(());
        }
        writeln!(f, "\nCommands behind `try` are for root; in a container, for root of its host.")
    }
}

impl Support {
    fn write_machine(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        let with = |held| if held { "with" } else { "without" };
        writeln!(f, "kernel  Linux {}, {}, pages of {} bytes", machine.kernel, machine.arch, machine.page_size)?;
        writeln!(
            f,
            "user    uid {}, {} CAP_SYS_PTRACE, {} CAP_SYS_ADMIN{}",
            machine.uid,
            with(machine.may_trace),
            with(machine.may_administer),
            if machine.has_seccomp_filter { ", under a seccomp filter" } else { "" }
        )?;
        if let Some(memory) = &machine.memory {
            let left = Bytes(memory.bytes);
            match &memory.limit {
                Limit::Machine => writeln!(f, "memory  {left} left on this machine, swap included")?,
                Limit::ControlGroup { path, max } => {
                    writeln!(f, "memory  {left} left of {} that control group {path} allows", Bytes(*max))?;
                }
            }
        }
        match machine.mappings_max {
            Some(max) => writeln!(f, "        {max} mappings at most in a process (vm.max_map_count)"),
            None => Ok(()),
        }
    }

    fn is_whole(&self) -> bool {
        Feature::ALL.iter().all(|&feature| *self.verdict(feature) == Availability::Works)
    }
}

/// Name, verdict and phrase, from the columns they stand in.
fn write_entry(
    f: &mut fmt::Formatter<'_>,
    column: usize,
    name: &str,
    verdict: &Availability,
    phrase: &str,
) -> fmt::Result {
    let word = match verdict {
        Availability::Works => "works",
        Availability::Limited { .. } => "LIMITED",
        Availability::Missing(_) => "MISSING",
    };
    let before = format!("  {name:<name_width$}{word:<9}", name_width = column - 11);
    write_behind(f, &before, column, "", phrase)
}

/// Why something does not fully work, and what helps.
fn write_reason(f: &mut fmt::Formatter<'_>, column: usize, verdict: &Availability) -> fmt::Result {
    let (why, fix) = match verdict {
        Availability::Works => return Ok(()),
        Availability::Limited { why, fix } | Availability::Missing(Missing { why, fix, .. }) => (why, fix),
    };
    write_wrapped(f, column, "why   ", why)?;
    match fix {
        Some(fix) => writeln!(f, "{:column$}try   {fix}", ""),
        None => Ok(()),
    }
}

/// Text behind a label, broken at blanks; a command is never broken, so that it can be copied.
fn write_wrapped(f: &mut fmt::Formatter<'_>, column: usize, label: &str, text: &str) -> fmt::Result {
    write_behind(f, "", column, label, text)
}

/// The same, with something before its first line.
fn write_behind(f: &mut fmt::Formatter<'_>, before: &str, column: usize, label: &str, text: &str) -> fmt::Result {
    let width = COLUMNS - column - label.len();
    let (mut before, mut label) = (before, label);
    let indent = label.len();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.len() + 1 + word.len() > width {
            writeln!(f, "{before:column$}{label:indent$}{line}")?;
            (before, label) = ("", "");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    writeln!(f, "{before:column$}{label:indent$}{line}")
}
