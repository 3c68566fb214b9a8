//! The forks themselves: the page tables that they copied, and forks that only made room for another program.

use super::summary::{Interval, ProcessSummary, Summary};
use super::verdict::{Help, LITTLE};
use crate::record::{Closed, Origin, WatchReason};
use crate::stacks::languages;
use cowbell::page::Bytes;
use serde::Serialize;

/// Page tables of one child that are worth a word: those of 512 MiB, in pages of 4 KiB.
const LARGE: u64 = 1 << 20;
/// And those of all children together.
const LARGE_IN_ALL: u64 = 16 << 20;
/// A starter that has less memory to share, and smaller page tables, forks fast.
const SHARED_MIN: u64 = 16 << 20;
/// See [`SHARED_MIN`].
const TABLES_MIN: u64 = 256 << 10;

/// The page tables that forks copied for their children, as far as they are known. How long that took is not: the stops that tell of a
/// fork come after it, and take longer than many a fork.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Forks {
    /// Children for which at least 256 KiB of them were copied, as far as known; all figures are of these.
    pub children: u64,
    pub page_tables_bytes: u64,
    /// The most that one fork copied.
    pub page_tables_most_bytes: u64,
}

impl Forks {
    /// Tells whether they are worth a word.
    pub fn are_large(&self) -> bool {
        self.page_tables_most_bytes >= LARGE || self.page_tables_bytes >= LARGE_IN_ALL
    }

    fn add(&mut self, process: &ProcessSummary) {
        let Some(bytes) = process.fork_page_tables_bytes.filter(|bytes| *bytes >= TABLES_MIN) else { return };
        self.children += 1;
        self.page_tables_bytes = self.page_tables_bytes.saturating_add(bytes);
        self.page_tables_most_bytes = self.page_tables_most_bytes.max(bytes);
    }
}

/// The page tables that were copied for these processes.
pub fn forks(processes: &[ProcessSummary]) -> Forks {
    let mut forks = Forks::default();
    processes.iter().for_each(|process| forks.add(process));
    forks
}

/// A child that had much to share, wrote hardly a page of it, and executed a program: its fork was for nothing.
struct OnItsWay<'a> {
    interval: &'a Interval,
    process: &'a ProcessSummary,
    /// The bytes that it copied, at most.
    copied: u64,
}

/// The advice where children were forked only to execute a program. `whatever`: it is given even if little was copied for them.
pub fn to_programs(summary: &Summary, whatever: bool) -> Option<Help> {
    let page = summary.run.page_size;
    let on_its_way =
        |interval: &'_ Interval| interval.role == WatchReason::Child && interval.closed == Some(Closed::Exec);
    let found: Vec<OnItsWay<'_>> = summary
        .intervals
        .iter()
        .filter(|interval| on_its_way(interval))
        .filter_map(|interval| {
            let process = summary.processes.get(interval.process?)?;
            let copied = interval.copied_pages.saturating_add(interval.unmapped_uncounted_pages).saturating_mul(page);
            let large = process.fork_page_tables_bytes.is_some_and(|bytes| bytes >= TABLES_MIN);
            let large = large || interval.held.shared.saturating_mul(page) >= SHARED_MIN;
            let is_one = process.origin == Origin::Forked && large && copied < LITTLE;
            is_one.then_some(OnItsWay { interval, process, copied })
        })
        .collect();
    let mut forks = Forks::default();
    found.iter().for_each(|child| forks.add(child.process));
    if found.is_empty() || !(whatever || forks.are_large()) {
        return None;
    }
    let figures = if forks.children == found.len() as u64 {
        let copied = Bytes(found.iter().map(|child| child.copied).max().unwrap_or(0));
        let tables = Bytes(forks.page_tables_bytes);
        match found.len() {
            1 => format!(": {tables} for 1 child that copied at most {copied} and then executed a program"),
            many => {
                format!(": {tables} for {many} children that copied at most {copied} each and then executed a program")
            }
        }
    } else {
        String::new()
    };
    let language = found.iter().find_map(|child| languages::by_id(child.interval.language?));
    let how = language.and_then(|language| language.starting_programs());
    let how = how.map_or(String::new(), |how| format!(". {how}"));
    let text = format!("start programs by posix_spawn or vfork; fork copies page tables first{figures}{how}");
    Some(Help { text: text.into(), paste: Vec::new(), saves_bytes: None, saves_a_part: None })
}
