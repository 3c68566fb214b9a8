//! The forks themselves: the page tables that they copied.

use super::summary::Process;
use serde::Serialize;

/// Page tables of one child that are worth a word: those of 512 MiB, in pages of 4 KiB.
const LARGE: u64 = 1 << 20;
/// And those of all children together.
const LARGE_IN_ALL: u64 = 16 << 20;
/// Smaller ones of one child are not told.
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

    fn add(&mut self, process: &Process) {
        let Some(bytes) = process.fork_page_tables_bytes.filter(|bytes| *bytes >= TABLES_MIN) else { return };
        self.children += 1;
        self.page_tables_bytes = self.page_tables_bytes.saturating_add(bytes);
        self.page_tables_most_bytes = self.page_tables_most_bytes.max(bytes);
    }
}

/// The page tables that were copied for these processes.
pub fn forks(processes: &[Process]) -> Forks {
    let mut forks = Forks::default();
    processes.iter().for_each(|process| forks.add(process));
    forks
}
