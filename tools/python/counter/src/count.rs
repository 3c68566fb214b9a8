//! Arming the memory of this process, which was just forked, and reading from its page tables what it wrote since.
//!
//! # Safety
//! Asynchronous write protection makes no writer wait and sends no signal: the kernel lifts it at the write and notes that.
#![expect(unsafe_code, reason = "arming a range of memory is answered for by whoever arms it")]

use cowbell::page::Range;
use cowbell::sys::pagemap::{Categories, Entry, Pagemap, Query};
use cowbell::sys::procfs::maps::{self, Mapping};
use cowbell::sys::uffd::{Door, Features, Uffd};
use cowbell::sys::{Errno, procfs, usage};
use std::fs;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};

use crate::held::{Held, Pages};

/// Why there is no count.
#[derive(Clone, Copy, Debug)]
pub enum Refusal {
    /// The kernel has no asynchronous write protection: it is older than 6.7.
    TooOld(Errno),
    /// The call is refused.
    Refused(Errno),
    /// Another userfaultfd has the memory, and is not asynchronous.
    Taken,
    /// `/proc/self` cannot be read.
    NoProc(Errno),
    /// The descriptor was closed, and the protection went with it.
    Closed,
    /// The tool that watches from outside has begun anew, since this process forked.
    Restarted,
}

const FEATURES: Features = Features::WP_ASYNC.union(Features::WP_HUGETLBFS_SHMEM);

fn open() -> Result<Uffd, Refusal> {
    // Writes by the kernel are noted through this door as well: nothing has to be handled.
    Uffd::open(Door::UserModeOnly, FEATURES).map_err(|e| match e {
        Errno::INVAL => Refusal::TooOld(e),
        e => Refusal::Refused(e),
    })
}

/// Tells whether this process may count at all.
///
/// # Errors
/// Why not.
pub fn check() -> Result<(), Refusal> {
    let uffd = open()?;
    let pagemap = Pagemap::open_self().map_err(Refusal::NoProc)?;
    let page = cowbell::sys::page_size().bytes();
    let nothing = Query { rearm: false, ..SHARED };
    drop(uffd);
    pagemap.scan(Range { start: page, len: page }, &nothing, |_| ()).map_err(Refusal::TooOld)
}

/// Pages of no file, in memory or swapped out, that are not the page of zeroes.
const SHARED: Query = Query {
    all: Categories::empty(),
    none: Categories::FILE.union(Categories::PFN_ZERO),
    any: Categories::PRESENT.union(Categories::SWAPPED),
    rearm: false,
};

/// The same where writes are noted.
const NOTED: Query = Query {
    all: Categories::WP_ALLOWED,
    none: Categories::FILE,
    any: Categories::PRESENT.union(Categories::SWAPPED).union(Categories::PFN_ZERO),
    rearm: false,
};

/// Those of them that were written.
const WRITTEN: Query = Query { all: Categories::WP_ALLOWED.union(Categories::WRITTEN), ..NOTED };

/// Pages whose writes are not noted: nothing was inherited there.
const ELSEWHERE: Query = Query {
    all: Categories::empty(),
    none: Categories::FILE.union(Categories::PFN_ZERO).union(Categories::WP_ALLOWED),
    any: Categories::PRESENT,
    rearm: false,
};

/// The user's half of the address space, from its second page on.
fn user_space() -> Range {
    let page = cowbell::sys::page_size().bytes();
    Range { start: page, len: (1 << 47) - 2 * page }
}

/// A child whose copies are counted.
#[derive(Debug)]
pub struct Counter {
    /// The number of the userfaultfd; none where somebody else's notes are read. No owner: whoever closes all descriptors of
    /// a process may have given the number to another file.
    uffd: Option<RawFd>,
    held: Held,
    /// Pages that were the child's alone when counting began, where page frames may be read.
    early: Pages,
    /// True if page frames may be read.
    has_frames: bool,
    /// The number of pages that the child can have copied before counting began.
    pub before_max: u64,
    /// Ranges whose writes are not noted.
    unwatched: Vec<Range>,
}

/// The state of the page tables at one moment.
#[derive(Debug, Default)]
pub struct Reading {
    /// Shared when counting began, and written since; pages of files that were copied, too.
    pub copied: Pages,
    /// Those of them that may have been reused instead.
    pub unsure: Pages,
    /// Shared when counting began, written when nobody else had them any more.
    pub reused: Pages,
    /// Memory that was not there when counting began.
    pub new: Pages,
    /// Bytes that were shared when counting began and are not there any more, copied or not.
    pub gone_bytes: u64,
    /// The mappings of the moment.
    pub mappings: Vec<Mapping>,
}

impl Counter {
    /// Arms what this process shares with others; to be called right after it was forked.
    ///
    /// # Errors
    /// Why that is not possible.
    pub fn arm() -> Result<Self, Refusal> {
        let uffd = open()?;
        let pagemap = Pagemap::open_self().map_err(Refusal::NoProc)?;
        let text = procfs::text(procfs::SELF, "maps").map_err(Refusal::NoProc)?;
        let mut runs = Vec::new();
        pagemap.scan(user_space(), &SHARED, |run| runs.push(run)).map_err(Refusal::TooOld)?;
        let mut counter = Self {
            uffd: None,
            held: Held::new(cowbell::sys::page_size().bytes()),
            early: Pages::default(),
            has_frames: false,
            before_max: 0,
            unwatched: Vec::new(),
        };
        let mut is_ours = false;
        // One by one: a list of them would be small pieces of memory all over the heap, and a copy of each such page.
        for mapping in text.lines().filter_map(maps::parse).filter(Mapping::is_private) {
            let mut inside = cut(&runs, mapping.range).peekable();
            if inside.peek().is_none() {
                continue;
            }
            match arm(&uffd, &pagemap, mapping.range, inside) {
                Ok(()) => is_ours = true,
                Err(Errno::BUSY) if is_noted(&pagemap, cut(&runs, mapping.range)) => {}
                Err(Errno::BUSY) => return Err(Refusal::Taken),
                Err(_) => counter.unwatched.push(mapping.range),
            }
        }
        let page = cowbell::sys::page_size().bytes() as u64;
        counter.has_frames = runs.first().is_some_and(|run| has_frames(&pagemap, *run));
        // After arming: what this function itself has written by then is the child's own.
        for run in runs {
            counter.look_at(&pagemap, run).map_err(Refusal::NoProc)?;
        }
        let early = if counter.has_frames { counter.early.bytes() / page } else { u64::MAX };
        counter.before_max = early.min(usage::page_faults());
        counter.uffd = is_ours.then(|| uffd.into_fd().into_raw_fd());
        Ok(counter)
    }

    fn look_at(&mut self, pagemap: &Pagemap, run: Range) -> Result<(), Errno> {
        if self.unwatched.iter().any(|range| range.overlaps(run)) {
            return Ok(());
        }
        if !self.has_frames {
            // Reading a word for each page would take as long as arming them, and tell little.
            self.held.push_run(run);
            return Ok(());
        }
        let page = cowbell::sys::page_size().bytes();
        pagemap.read(run, |address, entry| {
            if entry.contains(Entry::PRESENT) && entry.contains(Entry::EXCLUSIVE) {
                self.early.push(Range { start: address, len: page });
            } else {
                self.held.push(address, if entry.contains(Entry::PRESENT) { entry.frame() } else { 0 });
            }
        })
    }

    /// The number of pages that the child shared when counting began.
    pub fn shared_pages(&self) -> u64 {
        self.held.pages
    }

    /// Tells whether the notes are somebody else's: of `cowbell run --mode count`.
    pub fn is_foreign(&self) -> bool {
        self.uffd.is_none()
    }

    /// Bytes of mappings whose writes are not noted.
    pub fn unwatched_bytes(&self) -> u64 {
        self.unwatched.iter().map(|range| range.len as u64).sum()
    }

    /// Reads the page tables.
    ///
    /// # Errors
    /// They cannot be read, or the protection is gone.
    pub fn read(&self) -> Result<Reading, Refusal> {
        if self.uffd.is_some_and(|number| !is_userfaultfd(number)) {
            return Err(Refusal::Closed);
        }
        let pagemap = Pagemap::open_self().map_err(Refusal::NoProc)?;
        let mappings = maps::read(procfs::SELF).map_err(Refusal::NoProc)?;
        let mut sorted =
            Sorted { counter: self, pagemap: &pagemap, reading: Reading { mappings, ..Reading::default() } };
        // Both kinds of runs in one order, by address: the sets are built from front to back.
        let mut runs: Vec<(Range, Categories)> = Vec::new();
        for query in [&WRITTEN, &ELSEWHERE] {
            pagemap
                .scan_categories(user_space(), query, |run, categories| runs.push((run, categories)))
                .map_err(Refusal::NoProc)?;
        }
        runs.sort_unstable_by_key(|(run, _)| run.start);
        for (run, categories) in runs {
            sorted.sort(run, categories).map_err(Refusal::NoProc)?;
        }
        let mut there = 0;
        let count = |run: Range| there += self.held.inside(run).map(|inside| inside.len as u64).sum::<u64>();
        pagemap.scan(user_space(), &NOTED, count).map_err(Refusal::NoProc)?;
        let held = self.held.pages * cowbell::sys::page_size().bytes() as u64;
        if held > 0 && there == 0 {
            return Err(Refusal::Closed);
        }
        sorted.reading.gone_bytes = held.saturating_sub(there);
        Ok(sorted.reading)
    }

    /// Closes what this process inherited of its parent's counter.
    pub fn close(self) {
        if let Some(number) = self.uffd.filter(|&number| is_userfaultfd(number)) {
            // SAFETY: it is a userfaultfd under the number that this crate was given for its own, and nobody else has it.
            drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(number.as_raw_fd()) });
        }
    }
}

/// A reading under way.
struct Sorted<'a> {
    counter: &'a Counter,
    pagemap: &'a Pagemap,
    reading: Reading,
}

impl Sorted<'_> {
    fn sort(&mut self, run: Range, categories: Categories) -> Result<(), Errno> {
        let is_noted = categories.contains(Categories::WP_ALLOWED);
        if categories.contains(Categories::PFN_ZERO) || self.counter.unwatched.iter().any(|range| range.overlaps(run)) {
            return Ok(());
        }
        let page = cowbell::sys::page_size().bytes();
        let mut frames = Vec::new();
        if self.counter.has_frames && is_noted {
            self.pagemap.read(run, |_, entry| frames.push(entry.frame()))?;
        }
        for (nth, address) in (run.start..run.end()).step_by(page).enumerate() {
            let one = Range { start: address, len: page };
            match self.counter.held.at(address).filter(|_| is_noted) {
                Some(frame) => self.written(one, frame, frames.get(nth).copied()),
                None => self.unknown(one),
            }
        }
        Ok(())
    }

    /// A shared page that was written since; the frame it had, and the one it has.
    fn written(&mut self, page: Range, then: Option<u64>, now: Option<u64>) {
        match (then, now) {
            (Some(then), Some(now)) if then == now => self.reading.reused.push(page),
            (Some(_), Some(_)) => self.reading.copied.push(page),
            _ => {
                self.reading.copied.push(page);
                self.reading.unsure.push(page);
            }
        }
    }

    /// A page that the child did not share: new memory, or a copy of a file's page.
    fn unknown(&mut self, page: Range) {
        if self.counter.early.bytes_in(page) > 0 {
            return;
        }
        let mappings = &self.reading.mappings;
        let at = mappings.partition_point(|mapping| mapping.range.end() <= page.start);
        match mappings.get(at).filter(|mapping| mapping.range.contains(page.start)) {
            Some(mapping) if mapping.inode != 0 && mapping.is_private() => self.reading.copied.push(page),
            Some(mapping) if mapping.is_private() => self.reading.new.push(page),
            _ => {}
        }
    }
}

/// The parts of these runs that lie in a range.
fn cut(runs: &[Range], range: Range) -> impl Iterator<Item = Range> {
    let first = runs.partition_point(|run| run.end() <= range.start);
    let reaching = runs.iter().skip(first).take_while(move |run| run.start < range.end());
    reaching.map(move |run| {
        let start = run.start.max(range.start);
        Range { start, len: run.end().min(range.end()) - start }
    })
}

/// Asks the kernel to note writes to these pages of a mapping.
fn arm(uffd: &Uffd, pagemap: &Pagemap, mapping: Range, mut pages: impl Iterator<Item = Range>) -> Result<(), Errno> {
    // SAFETY: see the module: no writer waits.
    unsafe { uffd.register(mapping) }?;
    pages.try_for_each(|run| pagemap.arm(run))
}

/// Tells whether somebody else lets the kernel note writes to all of these pages.
fn is_noted(pagemap: &Pagemap, mut pages: impl Iterator<Item = Range>) -> bool {
    let noted = Query { all: Categories::WP_ALLOWED, ..SHARED };
    pages.all(|run| {
        let mut bytes = 0;
        pagemap.scan(run, &noted, |found| bytes += found.len).is_ok() && bytes == run.len
    })
}

/// Tells whether page frames may be read: they are all 0 without CAP_SYS_ADMIN.
fn has_frames(pagemap: &Pagemap, run: Range) -> bool {
    let (mut found, first) = (false, Range { len: cowbell::sys::page_size().bytes(), ..run });
    let read = pagemap.read(first, |_, entry| found = entry.contains(Entry::PRESENT) && entry.frame() != 0);
    read.is_ok() && found
}

fn is_userfaultfd(number: RawFd) -> bool {
    fs::read_link(format!("/proc/self/fd/{number}")).is_ok_and(|to| to.as_os_str() == "anon_inode:[userfaultfd]")
}
