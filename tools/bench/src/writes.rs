//! The cost of a forked child's first write to a page, under each watch.

use crate::error::{Error, Result};
use crate::spread::{Spread, order};
use cowbell::arena::{Arena, Frozen};
use cowbell::fork::{self, Child, ForkOptions};
use cowbell::sys::{self, shared_words::SharedWords};
use cowbell::watch::Watch;
use serde::{Deserialize, Serialize};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

/// The number of pages written between two looks at the clock. Other processes on this machine interrupt
/// some of these batches, and the middle one tells what a write costs without them.
const BATCH_PAGES: usize = 64;

/// The result of [`writes`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Writes {
    /// The number of pages that each child wrote, one word in each.
    pub pages: usize,
    /// The number of children that wrote, for each contender.
    pub repeats: usize,
    /// Bytes in a page.
    pub page_size_bytes: usize,
    /// A child over the frozen arena that nothing of ours watches.
    pub native: Pair<Spread>,
    /// The watches, the cheapest first.
    pub watches: Vec<WatchCost>,
}

/// The same for the two ways a page can be before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair<T> {
    /// The child had never touched the page: the write both maps and copies it.
    pub untouched_ns_per_page: T,
    /// The child had read the page: the write copies it.
    pub read_before_ns_per_page: T,
}

/// The cost of one watch to the writer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WatchCost {
    /// The watch.
    pub watch: Watch,
    /// The ratio to native that is aimed at; 1 for [`Watch::Census`], which is to cost nothing.
    pub goal_ratio: f64,
    /// Pages the child had never touched; absent with `error`.
    pub untouched: Option<Cost>,
    /// Pages the child had read; absent with `error`.
    pub read_before: Option<Cost>,
    /// Why this watch could not be measured: this kernel or this user does not have it.
    pub error: Option<String>,
}

/// A time, and how it compares.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Nanoseconds a page.
    pub ns_per_page: Spread,
    /// The ratio to native, of the rounds one by one.
    pub ratio_to_native: Spread,
}

/// The state of the pages before they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Untouched,
    Read,
}

/// The watch that is measured: `None` is native.
type Contender = (Option<Watch>, Before);

/// Measures the first write to each of `pages` pages of a frozen arena in a forked child: natively, and
/// under each watch, `repeats` times in turns.
///
/// The time is taken in the child, around each 64 writes, and the middle one of these times counts. A watch that this kernel or this user does not
/// have is in the result with the reason.
///
/// # Errors
/// Input: no pages or no repeats. Failed: no memory, other threads alive, a child that dies.
pub fn writes(pages: usize, repeats: usize) -> Result<Writes> {
    if pages == 0 || repeats == 0 {
        return Err(Error::Input("pages and repeats must be at least 1".into()));
    }
    let page_bytes = sys::page_size().bytes();
    let bytes = pages.checked_mul(page_bytes).filter(|&bytes| bytes < isize::MAX as usize / 2);
    let bytes = bytes.ok_or_else(|| Error::Input(format!("{pages} pages are no arena's size")))?;
    // One more page, for the root.
    let arena = Arena::builder("bench-writes").capacity(bytes + page_bytes).build()?;
    let cells = &*arena.alloc_iter((0..bytes / size_of::<AtomicU64>()).map(|_| AtomicU64::new(0)))?;
    let frozen = arena.freeze(cells)?;
    let measured = Bench { frozen: &frozen, pages, clock: SharedWords::new(pages.div_ceil(BATCH_PAGES))? }.all(repeats);
    release(frozen)?;
    measured.map(|times| times.summary(pages, repeats, page_bytes))
}

/// Processes that do nothing for ever, one for each processor, until they are dropped.
///
/// # Errors
/// Failed: other threads alive, no further processes.
pub fn others() -> Result<Vec<Child>> {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let forever = |_: &fork::Context| -> () {
        loop {
            std::hint::spin_loop();
        }
    };
    (0..count).map(|_| Ok(fork::spawn(&ForkOptions::new().last_census(false), forever)?)).collect()
}

#[expect(unsafe_code, reason = "an arena is given back")]
fn release(frozen: Frozen<&'static [AtomicU64]>) -> Result<()> {
    // SAFETY: the caller's references into it are used no more, and its children are reaped.
    Ok(unsafe { frozen.release() }?)
}

struct Bench<'a> {
    frozen: &'a Frozen<&'static [AtomicU64]>,
    pages: usize,
    /// Nanoseconds each batch took, by which a child tells its time.
    clock: SharedWords,
}

/// The times of one contender, round by round, or why there are none.
type Series = Result<Vec<f64>, String>;

struct Times(Vec<(Contender, Series)>);

impl Bench<'_> {
    fn all(&self, repeats: usize) -> Result<Times> {
        let watches = std::iter::once(None).chain(Watch::ALL.map(Some));
        let contenders = watches.flat_map(|watch| [Before::Untouched, Before::Read].map(|before| (watch, before)));
        let mut times = Times(contenders.map(|contender| (contender, Ok(Vec::new()))).collect());
        // The first round only warms up.
        for round in 0..=repeats {
            for at in order(times.0.len(), round) {
                let Some((contender, series)) = times.0.get_mut(at) else { continue };
                let Ok(sofar) = series else { continue };
                match self.one(*contender) {
                    Ok(_) if round == 0 => {}
                    Ok(ns_per_page) => sofar.push(ns_per_page),
                    Err(e) if contender.0.is_none() => return Err(e),
                    Err(e) => *series = Err(e.to_string()),
                }
            }
        }
        Ok(times)
    }

    /// One child; the nanoseconds a page it took, in the middle of its batches.
    fn one(&self, (watch, before): Contender) -> Result<f64> {
        let options = ForkOptions::new().last_census(watch.is_some()).watch(watch.unwrap_or_default());
        let (cells, clock) = (*self.frozen.root(), self.clock.words());
        let mut child = fork::spawn(&options, |_| write_each(cells, before, clock))?;
        let exit = child.wait()?;
        let failed = |what| Err(Error::Failed(what));
        if !exit.success() {
            return failed(format!("a child that wrote pages ended with {:?}", exit.ended));
        }
        let here = exit.report.arenas.iter().find(|arena| arena.start == self.frozen.image().range().start as u64);
        let copied = here.map_or(0, |arena| arena.copied_pages.0);
        if watch.is_some() && copied != self.pages as u64 {
            return failed(format!("a child wrote {} pages, and {copied} are reported", self.pages));
        }
        // The last batch may be a smaller one.
        let batches = (0..self.pages).step_by(BATCH_PAGES).map(|start| BATCH_PAGES.min(self.pages - start));
        let times = batches.zip(clock).map(|(pages, ns)| ns.load(Ordering::Acquire) as f64 / pages as f64);
        Spread::of(times).map(|times| times.median).ok_or_else(|| Error::Failed("a child took no time".into()))
    }
}

/// In the child: writes one word of each page, and to `clock` the nanoseconds each batch took.
fn write_each(cells: &'static [AtomicU64], before: Before, clock: &[AtomicU64]) {
    let words = sys::page_size().bytes() / size_of::<AtomicU64>();
    let first_words = |part: &'static [AtomicU64]| part.iter().step_by(words);
    if before == Before::Read {
        black_box(first_words(cells).map(|cell| cell.load(Ordering::Relaxed)).sum::<u64>());
    }
    // The clock's own pages are touched before it runs.
    clock.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    for (batch, word) in cells.chunks(BATCH_PAGES * words).zip(clock) {
        let begun = sys::monotonic_ns();
        first_words(batch).for_each(|cell| cell.store(1, Ordering::Relaxed));
        word.store(sys::monotonic_ns() - begun, Ordering::Release);
    }
}

impl Times {
    fn series(&self, contender: Contender) -> Result<&[f64], String> {
        let found = self.0.iter().find(|(each, _)| *each == contender);
        found.map_or(Ok(&[][..]), |(_, series)| series.as_deref().map_err(Clone::clone))
    }

    fn summary(&self, pages: usize, repeats: usize, page_size_bytes: usize) -> Writes {
        let none = Spread { min: 0.0, median: 0.0, max: 0.0 };
        let native = |before| self.series((None, before)).unwrap_or_default();
        let spread = |before| Spread::of(native(before).iter().copied()).unwrap_or(none);
        let cost = |watch, before| -> Result<Option<Cost>, String> {
            let series = self.series((Some(watch), before))?;
            let ns_per_page = Spread::of(series.iter().copied());
            let ratio_to_native = Spread::of_ratios(series, native(before));
            Ok(ns_per_page
                .zip(ratio_to_native)
                .map(|(ns_per_page, ratio_to_native)| Cost { ns_per_page, ratio_to_native }))
        };
        let of = |watch| {
            let costs = cost(watch, Before::Untouched).and_then(|u| Ok((u, cost(watch, Before::Read)?)));
            let (untouched, read_before, error) = match costs {
                Ok((untouched, read_before)) => (untouched, read_before, None),
                Err(e) => (None, None, Some(e)),
            };
            WatchCost { watch, goal_ratio: goal(watch), untouched, read_before, error }
        };
        Writes {
            pages,
            repeats,
            page_size_bytes,
            native: Pair {
                untouched_ns_per_page: spread(Before::Untouched),
                read_before_ns_per_page: spread(Before::Read),
            },
            watches: Watch::ALL.map(of).into(),
        }
    }
}

/// The ratio to native that is aimed at.
fn goal(watch: Watch) -> f64 {
    match watch {
        Watch::Census => 1.0,
        Watch::Async => 1.4,
        Watch::Faults => 1.6,
        Watch::Trap => 3.5,
        Watch::Monitor => 6.0,
    }
}
