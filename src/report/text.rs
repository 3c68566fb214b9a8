//! A report as text for people: how much, where, what for, and what could not be seen.

use super::{ArenaReport, Census, Report};
use crate::arena::OnWrite;
use crate::facts::Door;
use crate::facts::Ended;
use crate::page::{Bytes, PageSpan};
use crate::watch::{Outside, OutsidePages, Watch};
use std::fmt;

/// The number of runs, sites and events that are shown before the rest is only counted.
const SHOWN_MAX: usize = 5;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pages = self.arenas.iter().map(|arena| arena.pages.0).sum::<u64>();
        write!(f, "child {}", self.pid)?;
        match self.ended {
            None => f.write_str(" (running)")?,
            Some(ended) => write!(f, " ({ended})")?,
        }
        writeln!(
            f,
            ": copied {}{} of {}, {} of {}; watch {}",
            self.at_least(),
            self.copied_pages(),
            some(pages, "page"),
            Bytes(self.copied_bytes()),
            Bytes(pages * self.page_size),
            self.watch
        )?;
        for (at, arena) in self.arenas.iter().enumerate() {
            self.arena(f, at, arena)?;
        }
        self.outside(f)?;
        self.caveats(f)
    }
}

impl Report {
    fn arena(&self, f: &mut fmt::Formatter<'_>, at: usize, arena: &ArenaReport) -> fmt::Result {
        write!(
            f,
            "  arena `{}`: {}{} of {} copied",
            arena.name,
            self.at_least(),
            arena.copied_pages,
            some(arena.pages.0, "page")
        )?;
        if arena.on_write == OnWrite::Deny {
            f.write_str(" (writing is denied)")?;
        }
        writeln!(f)?;
        if arena.copied_pages.0 > 0 {
            writeln!(f, "    pages    {}", runs(&arena.copied))?;
            match (arena.bytes_changed, arena.amplification(self.page_size)) {
                (Some(changed), Some(factor)) => {
                    writeln!(
                        f,
                        "    changed  {} in them: {factor:.0} bytes copied for each byte changed",
                        some(changed, "byte")
                    )?;
                }
                (Some(_), None) => writeln!(f, "    changed  nothing: all copies are the same as the original again")?,
                (None, _) => writeln!(f, "    changed  unknown of some pages")?,
            }
            if arena.identical_pages.0 > 0 && arena.bytes_changed.is_some_and(|bytes| bytes > 0) {
                let (pages, are) = (arena.identical_pages.0, if arena.identical_pages.0 == 1 { "is" } else { "are" });
                writeln!(f, "    same     {} {are} the same as the original again", some(pages, "copied page"))?;
            }
        }
        for (nth, site) in arena.sites.iter().take(SHOWN_MAX).enumerate() {
            let name = if site.type_name.is_empty() { "(allocated without a site)" } else { &site.type_name };
            let heading = if nth == 0 { "objects" } else { "" };
            writeln!(f, "    {heading:<8} {name}, {} {}", some(site.pages.0, "page"), site.location)?;
        }
        more(f, arena.sites.len())?;
        let events: Vec<_> = self.events.iter().filter(|event| event.arena == at).collect();
        let begin = self.events.first().map_or(0, |event| event.time_ns);
        for (nth, event) in events.iter().take(SHOWN_MAX).enumerate() {
            let heading = if nth == 0 { "events" } else { "" };
            let time = event.time_ns.saturating_sub(begin) as f64 / 1e6;
            write!(
                f,
                "    {heading:<8} +{time:.3} ms page {} thread {} at {}",
                event.page,
                event.tid,
                self.instruction(event.pc)
            )?;
            match &event.object {
                Some(object) => writeln!(f, " in {object}")?,
                None => writeln!(f)?,
            }
        }
        more(f, events.len())?;
        if arena.inherited_pages.0 > 0 {
            writeln!(
                f,
                "    inherited {} that the parent had copied before the fork; copies of those are not counted",
                some(arena.inherited_pages.0, "page")
            )?;
        }
        if arena.copied_unobserved.0 > 0 {
            let why = match self.page_faults {
                None => {
                    "that the watch did not observe: copied for a system call that then failed (EFAULT), or after the watch was lost"
                }
                Some(_) => {
                    "without a page fault that is known to have written them: that fault was lost, is not told, or is none of the child's"
                }
            };
            writeln!(f, "    unseen   {} {why}", some(arena.copied_unobserved.0, "copied page"))?;
        }
        Ok(())
    }

    /// Shows the memory that is no arena's: data that was left on the heap is found out here.
    fn outside(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.outside {
            Outside::Counted { unshared, new } => {
                let OutsidePages { heap, data, stack } = unshared;
                return writeln!(
                    f,
                    "  outside the arenas: {} ({}) shared no longer: {heap} heap, {data} data, {stack} stack; {} new",
                    some(unshared.total().0, "page"),
                    Bytes(unshared.total().0 * self.page_size),
                    new.total()
                );
            }
            Outside::NotAsked => "not asked for",
            Outside::Unsupported => "it takes Linux 6.7 and /proc",
            Outside::Scattered => "the memory was in too many pieces at the fork",
            Outside::Lost => "the census was lost, or could not be prepared at the fork",
        };
        writeln!(f, "  outside the arenas: not counted, {why}")
    }

    /// Without a census the copied pages are only those that an earlier one found.
    fn at_least(&self) -> &'static str {
        if matches!(self.census, Census::Lost | Census::NotTaken) { "at least " } else { "" }
    }

    fn instruction(&self, pc: u64) -> String {
        match pc.checked_sub(self.executable.start) {
            _ if pc == 0 => "an unknown instruction".to_owned(),
            Some(offset) if offset < self.executable.len => format!("executable+{offset:#x}"),
            _ => format!("{pc:#x}"),
        }
    }

    fn caveats(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.census {
            Census::Last => {}
            Census::Living => writeln!(f, "  note: the child runs on; it may copy more")?,
            Census::AtExec => {
                writeln!(f, "  note: the child executed another program; what it did then is not counted")?
            }
            Census::NotTaken => writeln!(f, "  note: no last census was asked for")?,
            Census::Lost => writeln!(
                f,
                "  LOST: the last census, so how much was copied is not known: the keeper was killed, or the kernel refused"
            )?,
        }
        if self.reshared_pages.0 > 0 {
            writeln!(
                f,
                "  note: {} copies were given back, being the same as the original again",
                self.reshared_pages
            )?;
        }
        if self.events_lost > 0 {
            writeln!(f, "  LOST: {} events; their pages are counted all the same", self.events_lost)?;
        }
        if self.trap_lost {
            writeln!(f, "  LOST: the program closed the trap's descriptor; what it wrote then was not observed")?;
        }
        if let Some(faults) = self.page_faults {
            match faults.lost {
                Some(0) => {}
                Some(lost) => writeln!(
                    f,
                    "  LOST: {lost} page faults, of these and other pages; copies are counted all the same"
                )?,
                None if self.census == Census::Lost => {}
                None => writeln!(f, "  note: how many page faults were lost is not known (it takes Linux 6.0)")?,
            }
            if !faults.by_kernel {
                writeln!(
                    f,
                    "  note: page faults in system calls are not told to this user; they are with CAP_PERFMON, or after `sysctl kernel.perf_event_paranoid=1`"
                )?;
            }
        }
        let blind = match self.watch {
            Watch::Census | Watch::Async | Watch::Faults => false,
            Watch::Trap => true,
            Watch::Monitor => self.door == Some(Door::UserModeOnly),
        };
        if blind {
            writeln!(
                f,
                "  note: under this watch a system call that writes into a page that is armed fails with EFAULT"
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with {code}"),
            Self::Signaled(signal) => write!(f, "killed by signal {signal}"),
            Self::Unknown => f.write_str("ended, its status was taken by somebody else"),
        }
    }
}

/// The number with its noun.
fn some(number: u64, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}

fn more(f: &mut fmt::Formatter<'_>, count: usize) -> fmt::Result {
    match count.checked_sub(SHOWN_MAX) {
        Some(rest) if rest > 0 => writeln!(f, "             and {rest} more"),
        _ => Ok(()),
    }
}

fn runs(runs: &[PageSpan]) -> String {
    let mut text = String::new();
    for run in runs.iter().take(SHOWN_MAX) {
        let separator = if text.is_empty() { "" } else { ", " };
        text += &match run.count.0 {
            1 => format!("{separator}{}", run.start),
            count => format!("{separator}{}-{}", run.start, run.start.0.saturating_add(count.saturating_sub(1))),
        };
    }
    match runs.len().checked_sub(SHOWN_MAX) {
        Some(rest) if rest > 0 => text + &format!(" and {rest} more runs"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Executable, PageCount};
    use super::*;

    #[test]
    fn a_lost_census_is_not_told_as_no_copies() {
        let shown = |census, watch| {
            let executable = Executable { start: 0, len: 0 };
            let (version, pid, page_size, events_lost) = (super::super::VERSION, 7, 4096, 0);
            let (door, ended, trap_lost) = (None, Some(Ended::Signaled(9)), false);
            let (arenas, events) = (Vec::new(), Vec::new());
            Report {
                version,
                pid,
                watch,
                door,
                ended,
                census,
                page_size,
                arenas,
                events,
                events_lost,
                page_faults: None,
                trap_lost,
                reshared_pages: PageCount(0),
                outside: Outside::Lost,
                executable,
            }
            .to_string()
        };
        let lost = shown(Census::Lost, Watch::Census);
        assert!(lost.contains("copied at least 0 of") && lost.contains("LOST: the last census"), "{lost}");
        // One that could not be prepared looks the same.
        assert!(lost.contains("the census was lost, or could not be prepared at the fork"), "{lost}");
        let trap = shown(Census::Last, Watch::Trap);
        assert!(
            trap.contains("writes into a page that is armed fails with EFAULT"),
            "also what an epoch arms again: {trap}"
        );
        let last = shown(Census::Last, Watch::Census);
        assert!(last.contains("copied 0 of") && !last.contains("LOST"), "{last}");
    }
}
