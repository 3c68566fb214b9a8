//! Memory outside of the arenas: what a child no longer shares with whom it was forked from, and what it has got since.
//!
//! ```text
//! at the fork     one scan of the child's page tables: runs of pages that are no file's, all of them shared
//! at a census     maps, and one word for each such page: is it this process's alone?
//!                   it is, and was there at the fork     unshared (in a file's mapping always)
//!                   it is, and was not                   new
//! ```
//! Both walk the tables that the fork had to copy, so they cost a part of what the fork did. A frozen arena's tables are not copied and
//! not walked here.

use crate::page::PageCount;
use crate::sys::map::Range;
use crate::sys::pagemap::{Entry, Pagemap};
use crate::sys::procfs::private::{self, Purpose};
use crate::sys::{self, Errno, procfs};
use crate::watch::evidence::{Evidence, RUNS_MAX, STACK_BYTES, Word};
use std::sync::atomic::{AtomicU64, Ordering};

/// Pages by what they are there for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct OutsidePages {
    /// On the heap and in other anonymous memory: large allocations, zeroed variables, stacks of threads.
    pub heap: PageCount,
    /// In private mappings of files: variables of the program and its libraries.
    pub data: PageCount,
    /// On the main thread's stack.
    pub stack: PageCount,
}

impl OutsidePages {
    /// All of them.
    pub fn total(&self) -> PageCount {
        PageCount(self.heap.0 + self.data.0 + self.stack.0)
    }
}

/// The findings of a census **outside** of the frozen arenas, in all private memory of a child that [`crate::fork::spawn`] made.
///
/// A page counts if no other process maps it (bit 56 of `/proc/PID/pagemap`). Pages that are swapped out are not counted, nor those that
/// a child shares with a process that it forked itself. A transparent huge page of which a part came apart is counted as the kernel says:
/// by its small pages where it is mapped so, whole otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Outside {
    /// The memory was counted.
    Counted {
        /// Pages that were shared at the fork, or are a file's, and that the child has alone now. Mostly it wrote to them, and the kernel
        /// copied them: to count a reference is to write. Page tables do not tell them from pages that the *parent* wrote to, or gave
        /// up, while the child lived. Even a child that does nothing has some: its stack, variables of libraries.
        unshared: OutsidePages,
        /// Pages that were not there at the fork: memory that the child got for itself.
        new: OutsidePages,
    },
    /// Nobody asked for it ([`crate::fork::ForkOptions::outside`], [`crate::fork::ForkOptions::last_census`]).
    #[default]
    NotAsked,
    /// The kernel is older than Linux 6.7 (`PAGEMAP_SCAN`), or `/proc` is not mounted.
    Unsupported,
    /// The memory lay in more than 65,536 separate pieces at the fork, and so many are not kept.
    Scattered,
    /// The census was lost, with its keeper or by the kernel's refusal (no descriptor left, say), or could not be prepared at the fork.
    Lost,
}

/// Values of [`Word::Outside`]; 0 is none.
const COUNTED: u64 = 1;
const UNSUPPORTED: u64 = 2;
const SCATTERED: u64 = 3;
const NOT_NOTED: u64 = 4;

/// The addresses at which user memory may end, the highest first: on x86-64 and on arm64 with its sizes of address space. The
/// kernel says EFAULT to what is too high. Memory above, which must be asked for by a hint, is not looked at.
const ADDRESSES_END: [usize; 4] = [1 << 48, 1 << 47, 1 << 42, 1 << 39];

/// In the child, before anything is armed: notes where there is memory. What cannot be had is said in the report. *Async-signal-safe.*
pub(in crate::watch) fn note_shared(evidence: &Evidence) {
    if evidence.outside {
        let noted = Pagemap::open_self().and_then(|pagemap| note_runs(evidence, &pagemap));
        match noted {
            Ok(()) => {}
            Err(Errno::NOTTY | Errno::NOENT) => evidence.set(Word::Outside, UNSUPPORTED),
            // No descriptor left, say.
            Err(_) => evidence.set(Word::Outside, NOT_NOTED),
        }
    }
}

fn note_runs(evidence: &Evidence, pagemap: &Pagemap) -> Result<(), Errno> {
    let mut count = 0;
    let runs = evidence.outside_words();
    let mut scanned = Err(Errno::FAULT);
    for end in ADDRESSES_END {
        let range = Range { start: 0, len: end - sys::page_size().bytes() };
        scanned = pagemap.scan(range, &private::THERE, |run| {
            if let Some([start, end]) = runs.get(2 * count..2 * count + 2) {
                start.store(run.start as u64, Ordering::Relaxed);
                end.store(run.end() as u64, Ordering::Relaxed);
            }
            count += 1;
        });
        if scanned != Err(Errno::FAULT) {
            break;
        }
    }
    scanned?;
    evidence.set(Word::OutsideRuns, count.min(RUNS_MAX) as u64);
    if count > RUNS_MAX {
        evidence.set(Word::Outside, SCATTERED);
    }
    Ok(())
}

/// In the keeper: counts, and notes what it counted. *Async-signal-safe*, if `progress` is.
///
/// # Errors
/// The errno of reading `/proc/self/maps` or the page tables.
pub(in crate::watch) fn take(evidence: &Evidence, pagemap: &Pagemap, progress: impl Fn()) -> Result<(), Errno> {
    if !evidence.outside || [UNSUPPORTED, SCATTERED, NOT_NOTED].contains(&evidence.get(Word::Outside)) {
        return Ok(());
    }
    evidence.set(Word::Outside, 0);
    let (unshared, new) = count(evidence, pagemap, procfs::SELF, progress)?;
    for (words, pages) in [(UNSHARED, unshared), (NEW, new)] {
        for (word, pages) in words.into_iter().zip([pages.heap, pages.data, pages.stack]) {
            evidence.set(word, pages.0);
        }
    }
    evidence.set(Word::Outside, COUNTED);
    Ok(())
}

const UNSHARED: [Word; 3] = [Word::UnsharedHeap, Word::UnsharedData, Word::UnsharedStack];
const NEW: [Word; 3] = [Word::NewHeap, Word::NewData, Word::NewStack];

/// The findings that the keeper noted last.
pub(crate) fn taken(evidence: &Evidence) -> Outside {
    let pages = |words: [Word; 3]| {
        let [heap, data, stack] = words.map(|word| PageCount(evidence.get(word)));
        OutsidePages { heap, data, stack }
    };
    match evidence.get(Word::Outside) {
        _ if !evidence.outside => Outside::NotAsked,
        COUNTED => Outside::Counted { unshared: pages(UNSHARED), new: pages(NEW) },
        UNSUPPORTED => Outside::Unsupported,
        SCATTERED => Outside::Scattered,
        _ => Outside::Lost,
    }
}

/// The same, read now by whoever may read the page tables.
///
/// # Errors
/// The errno of reading `maps` or the page tables.
pub(crate) fn now(evidence: &Evidence, pagemap: &Pagemap, pid: i32) -> Result<Outside, Errno> {
    match evidence.get(Word::Outside) {
        _ if !evidence.outside => return Ok(Outside::NotAsked),
        UNSUPPORTED => return Ok(Outside::Unsupported),
        SCATTERED => return Ok(Outside::Scattered),
        NOT_NOTED => return Ok(Outside::Lost),
        _ => {}
    }
    let (unshared, new) = count(evidence, pagemap, pid, || ())?;
    Ok(Outside::Counted { unshared, new })
}

/// Pages that are this process's alone: those that were there at the fork, and the others. *Async-signal-safe*, if `progress` is.
fn count(
    evidence: &Evidence,
    pagemap: &Pagemap,
    pid: i32,
    progress: impl Fn(),
) -> Result<(OutsidePages, OutsidePages), Errno> {
    let (mut unshared, mut new) = (OutsidePages::default(), OutsidePages::default());
    let mut inherited = Runs::new(evidence);
    let mut read = Ok(());
    let keepers = Range { start: evidence.get(Word::KeeperStack) as usize, len: STACK_BYTES };
    private::each(pid, |range, purpose| {
        if read.is_err() || evidence.images.iter().any(|image| image.range().contains(range.start)) {
            return;
        }
        let counted = |pages: &'_ mut OutsidePages| match purpose {
            Purpose::Heap => pages.heap.0 += 1,
            Purpose::Data => pages.data.0 += 1,
            Purpose::Stack => pages.stack.0 += 1,
        };
        let mut look = |run: Range| {
            progress();
            pagemap.read(run, |address, entry| {
                let own = entry.contains(Entry::PRESENT | Entry::EXCLUSIVE) && !entry.contains(Entry::FILE);
                if own && !keepers.contains(address) {
                    // A private page of a file's mapping is a copy of the file's page, whenever that was mapped.
                    let was_shared = purpose == Purpose::Data || inherited.has(address);
                    counted(if was_shared { &mut unshared } else { &mut new });
                }
            })
        };
        read = private::parts(pagemap, range, &mut look);
    })?;
    read.map(|()| (unshared, new))
}

/// The runs that were there at the fork, asked for ascending addresses.
struct Runs<'a> {
    words: &'a [AtomicU64],
    at: usize,
}

impl<'a> Runs<'a> {
    fn new(evidence: &'a Evidence) -> Self {
        let words = evidence.outside_words().get(..2 * evidence.get(Word::OutsideRuns) as usize);
        Self { words: words.unwrap_or_default(), at: 0 }
    }

    /// Tells whether there was memory at this address.
    fn has(&mut self, address: usize) -> bool {
        while let Some([start, end]) = self.words.get(self.at..self.at + 2) {
            if address < end.load(Ordering::Relaxed) as usize {
                return start.load(Ordering::Relaxed) as usize <= address;
            }
            self.at += 2;
        }
        false
    }
}
