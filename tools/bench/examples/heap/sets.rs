//! Sets of small objects, and workers that handle each of them: how many pages does that copy?
//!
//! Run with what the worker does and how many bytes the set has. Printed are the set's pages and how many of them the worker copied.

use cowbell::fork::{self, ForkOptions};
use cowbell::heap::Heap;
use cowbell::sys::{map::SharedWords, page_size};
use cowbell::{Result, SideArc};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// 64 bytes with the two counts of an `Arc`.
type Object = [u64; 6];

fn object(n: usize) -> Object {
    [n as u64; 6]
}

/// Runs the worker that the first argument names, over a set of as many bytes as the second says.
///
/// # Errors
/// No such worker; what the runtime refuses.
pub fn main(what: &str, bytes: usize) -> Result<()> {
    let count = bytes / 64;
    match what {
        "clone" => {
            let set: Vec<Arc<Object>> = (0..count).map(|n| Arc::new(object(n))).collect();
            worker(bytes, |_| set.iter().for_each(|each| drop(black_box(Arc::clone(each)))))
        }
        "clone-reshare" => {
            let set: Vec<Arc<Object>> = (0..count).map(|n| Arc::new(object(n))).collect();
            worker(bytes, |frozen| {
                set.iter().for_each(|each| drop(black_box(Arc::clone(each))));
                if let Some(generation) = frozen {
                    let given_back = generation.reshare();
                    assert!(given_back.is_ok_and(|given_back| given_back.kept.0 == 0), "counts go up and down again");
                }
            })
        }
        "clone-side" => {
            let set: Vec<SideArc<Object>> = (0..count).map(|n| SideArc::new(object(n))).collect();
            worker(bytes, |_| set.iter().for_each(|each| drop(black_box(SideArc::clone(each)))))
        }
        "drop" => {
            let set: Vec<Box<[u64; 8]>> = (0..count).map(|n| Box::new([n as u64; 8])).collect();
            worker(bytes, |_| drop(set))
        }
        _ => {
            eprintln!("no worker does {what}: clone, clone-reshare, clone-side, drop");
            std::process::exit(2);
        }
    }
}

/// Freezes, where there is a heap that can be, lets a worker work, and prints what it copied. Pages of a frozen heap are counted in the worker's page tables; of
/// another allocator's by the worker's page faults, because what it copied and then gave back is in no table any more.
fn worker(bytes: usize, work: impl FnOnce(Option<&cowbell::heap::Generation>)) -> Result<()> {
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
    let copied = if frozen.is_some() { exit.report.copied_pages().0 } else { faults };
    println!("{} {copied}", bytes / page_size().bytes());
    Ok(())
}
