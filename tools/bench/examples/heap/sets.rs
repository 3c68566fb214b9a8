//! Sets of objects, and workers that handle each of them: how many pages does that copy?
//!
//! Run with what the worker does, how many bytes an object takes (64 or 1024), and how many the set has. Printed are the pages that the objects fill (they begin somewhere on
//! a page, so that they may lie on one more), and how many pages the worker copied: those of the set where it is frozen, and all others.

use cowbell::fork::{self, ForkOptions};
use cowbell::heap::{Generation, Heap};
use cowbell::sys::{page_size, shared_words::SharedWords};
use cowbell::watch::Outside;
use cowbell::{Result, SideArc};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Runs the worker that the words name.
///
/// # Errors
/// What the runtime refuses.
pub fn main(words: &[&str]) -> Result<()> {
    match *words {
        [what, "64", bytes] => run::<6, 8>(what, 64, bytes.parse().unwrap_or(0)),
        [what, "1024", bytes] => run::<126, 128>(what, 1024, bytes.parse().unwrap_or(0)),
        _ => {
            eprintln!(
                "say what (clone, clone-reshare, clone-side, times, drop), how large an object is (64, 1024), and how many bytes the set has"
            );
            std::process::exit(2);
        }
    }
}

/// `COUNTED` words are as large as `BOXED` ones with the two counts of an `Arc`.
fn run<const COUNTED: usize, const BOXED: usize>(what: &str, size: usize, bytes: usize) -> Result<()> {
    let count = bytes / size;
    let object = |n: usize| [n as u64; COUNTED];
    match what {
        "clone" => {
            let set: Vec<Arc<[u64; COUNTED]>> = (0..count).map(|n| Arc::new(object(n))).collect();
            worker(bytes, |_| set.iter().for_each(|each| drop(black_box(Arc::clone(each)))))
        }
        "clone-reshare" => {
            let set: Vec<Arc<[u64; COUNTED]>> = (0..count).map(|n| Arc::new(object(n))).collect();
            worker(bytes, |frozen| {
                set.iter().for_each(|each| drop(black_box(Arc::clone(each))));
                if let Some(generation) = frozen {
                    let given_back = generation.reshare();
                    assert!(given_back.is_ok_and(|given_back| given_back.kept.0 == 0), "counts go up and down again");
                }
            })
        }
        "clone-side" => {
            let set: Vec<SideArc<[u64; COUNTED]>> = (0..count).map(|n| SideArc::new(object(n))).collect();
            worker(bytes, |_| set.iter().for_each(|each| drop(black_box(SideArc::clone(each)))))
        }
        "times" => {
            let arcs: Vec<Arc<[u64; COUNTED]>> = (0..count).map(|n| Arc::new(object(n))).collect();
            let sides: Vec<SideArc<[u64; COUNTED]>> = (0..count).map(|n| SideArc::new(object(n))).collect();
            times(&arcs, &sides)
        }
        "drop" => {
            let set: Vec<Box<[u64; BOXED]>> = (0..count).map(|n| Box::new([n as u64; BOXED])).collect();
            worker(bytes, |_| drop(set))
        }
        _ => {
            eprintln!("no worker does {what}");
            std::process::exit(2);
        }
    }
}

/// Nanoseconds for an object, as a pass over all clones and drops each.
fn pass<T: Clone>(all: &[T]) -> u64 {
    let begun = Instant::now();
    all.iter().for_each(|each| drop(black_box(each.clone())));
    begun.elapsed().as_nanos() as u64 * 100 / all.len().max(1) as u64
}

/// Prints in hundredths of nanoseconds what an object takes: by the process that made it, and in the first and the second pass of a worker, with an `Arc` and with a
/// `SideArc`.
fn times<T: Clone, S: Clone>(arcs: &[T], sides: &[S]) -> Result<()> {
    let by_maker = [(0..3).map(|_| pass(arcs)).min(), (0..3).map(|_| pass(sides)).min()].map(Option::unwrap_or_default);
    let _frozen = Heap::freeze()?;
    let found = SharedWords::new(4)?;
    let by_worker = |work: &dyn Fn() -> u64, at: usize| -> Result<()> {
        let mut child = fork::spawn(&ForkOptions::new(), |_| {
            found.words()[at].store(work(), Ordering::Relaxed);
            found.words()[at + 1].store(work(), Ordering::Relaxed);
        })?;
        let exit = child.wait()?;
        assert!(exit.success(), "{exit:?}");
        Ok(())
    };
    by_worker(&|| pass(arcs), 0)?;
    by_worker(&|| pass(sides), 2)?;
    let worker = found.words().iter().take(4).map(|word| word.load(Ordering::Relaxed).to_string());
    println!("{} {} {}", by_maker[0], by_maker[1], worker.collect::<Vec<_>>().join(" "));
    Ok(())
}

/// Freezes, where there is a heap that can be, lets a worker work, and prints what it copied. That is read from page tables where the heap is frozen; with
/// another allocator the worker's page faults are counted, because what it copied and then gave back is in no table any more.
fn worker(bytes: usize, work: impl FnOnce(Option<&Generation>)) -> Result<()> {
    let frozen = if Heap::is_in_use() { Some(Heap::freeze()?) } else { None };
    let found = SharedWords::new(1)?;
    let mut child = fork::spawn(&ForkOptions::new(), |_| {
        let before = fork::page_faults();
        work(frozen.as_ref());
        let faults = fork::page_faults() - before;
        found.words()[0].store(faults, Ordering::Release);
    })?;
    let exit = child.wait()?;
    assert!(exit.success(), "{exit:?}");
    let faults = found.words()[0].load(Ordering::Acquire);
    let (copied, others) = match (&frozen, exit.report.outside) {
        (Some(_), Outside::Counted { unshared, .. }) => (exit.report.copied_pages().0, unshared.total().0),
        (Some(_), outside) => panic!("memory outside of what is frozen was not counted: {outside:?}"),
        (None, _) => (0, faults),
    };
    println!("{} {copied} {others}", bytes / page_size().bytes());
    Ok(())
}
