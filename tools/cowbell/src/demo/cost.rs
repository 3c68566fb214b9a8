//! The cost of each watch to a writer on this machine: children write the same pages in turns, watched and unwatched.

use crate::failure::Failure;
use cowbell::arena::{Arena, Frozen};
use cowbell::fork::{self, ForkOptions};
use cowbell::sys::{self, shared_words::SharedWords};
use cowbell::watch::Watch;
use std::sync::atomic::{AtomicU64, Ordering};

/// Pages that each child writes, one word in each.
const PAGES: usize = 4096;
/// Children of each kind that count; one more of each warms up.
const ROUNDS: usize = 9;

/// The measurements.
#[derive(serde::Serialize)]
pub struct Costs {
    /// Pages that each child wrote.
    pub pages: usize,
    /// Children of each kind.
    pub rounds: usize,
    /// The median time of a copied page that nobody watches.
    pub native_ns_per_page: f64,
    /// The watches, the cheapest first.
    pub watches: Vec<WatchCost>,
}

/// The cost of one watch.
#[derive(serde::Serialize)]
pub struct WatchCost {
    /// The watch.
    pub watch: Watch,
    /// The median time of a copied page; absent with `error`.
    pub ns_per_page: Option<f64>,
    /// The median of each round's ratio to the unwatched child; absent with `error`.
    pub ratio_to_native: Option<f64>,
    /// Why this watch could not be measured: this kernel or this user does not have it.
    pub error: Option<String>,
}

type Cells = &'static [AtomicU64];

/// Measures.
///
/// # Errors
/// No memory, or a child that dies.
pub fn measure() -> Result<Costs, Failure> {
    let page = sys::page_size().bytes();
    // One more page, for the root.
    let arena = Arena::builder("demo-cost").capacity((PAGES + 1) * page).build()?;
    let words = PAGES * page / size_of::<AtomicU64>();
    let cells: Cells = arena.alloc_iter((0..words).map(|_| AtomicU64::new(0)))?;
    let frozen = arena.freeze(cells)?;
    let clock = SharedWords::new(1)?;
    let mut native = Vec::new();
    let mut series: Vec<(Watch, Result<Vec<f64>, String>)> = Watch::ALL.map(|watch| (watch, Ok(Vec::new()))).into();
    for round in 0..=ROUNDS {
        let unwatched = one(&frozen, None, &clock)?;
        native.extend((round > 0).then_some(unwatched));
        for (watch, times) in &mut series {
            let Ok(sofar) = times else { continue };
            match one(&frozen, Some(*watch), &clock) {
                Ok(time) => sofar.extend((round > 0).then_some(time)),
                Err(e) => *times = Err(e.to_string()),
            }
        }
    }
    let watches = series.into_iter().map(|(watch, times)| WatchCost::new(watch, times, &native)).collect();
    Ok(Costs { pages: PAGES, rounds: ROUNDS, native_ns_per_page: median(native).unwrap_or(0.0), watches })
}

impl WatchCost {
    fn new(watch: Watch, times: Result<Vec<f64>, String>, native: &[f64]) -> Self {
        match times {
            Ok(times) => {
                let ratios = times.iter().zip(native).map(|(time, native)| time / native).collect();
                Self { watch, ratio_to_native: median(ratios), ns_per_page: median(times), error: None }
            }
            Err(error) => Self { watch, ratio_to_native: None, ns_per_page: None, error: Some(error) },
        }
    }
}

/// One child, watched or not: its time for a page in nanoseconds.
fn one(frozen: &Frozen<Cells>, watch: Option<Watch>, clock: &SharedWords) -> Result<f64, Failure> {
    let options = ForkOptions::new().last_census(watch.is_some()).watch(watch.unwrap_or_default());
    let (cells, clock) = (*frozen.root(), clock.words());
    let mut child = fork::spawn(&options, |_| {
        let begun = sys::monotonic_ns();
        let words = sys::page_size().bytes() / size_of::<AtomicU64>();
        cells.iter().step_by(words).for_each(|cell| cell.store(1, Ordering::Relaxed));
        let taken = sys::monotonic_ns() - begun;
        clock.iter().for_each(|word| word.store(taken, Ordering::Release));
    })?;
    let exit = child.wait()?;
    if !exit.success() {
        return Err(Failure::new(format!("a child that wrote pages ended with {}", exit.ended)));
    }
    let taken = clock.first().map_or(0, |word| word.load(Ordering::Acquire));
    Ok(taken as f64 / PAGES as f64)
}

fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied()
}
