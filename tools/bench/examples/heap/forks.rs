//! Forking over a heap of small objects, before and after it is frozen.
//!
//! Run with how many GiB (4). Times are of `fork::spawn` with no keeper, the least of 30; a worker's own memory is `Private_Clean` and
//! `Private_Dirty` of `smaps_rollup` once it has read everything.

use cowbell::fork::{self, ForkOptions};
use cowbell::heap::Heap;
use cowbell::sys::map::SharedWords;
use std::sync::atomic::Ordering;
use std::time::Instant;

#[global_allocator]
static HEAP: Heap = Heap;

/// 96 bytes with its box: small enough that nobody would put it on a page of its own.
type Object = [u64; 12];

fn fork_ms() -> f64 {
    let options = ForkOptions::new().last_census(false);
    let once = || {
        let begun = Instant::now();
        let child = fork::spawn(&options, |_| ());
        let taken = begun.elapsed().as_secs_f64() * 1e3;
        if let Err(e) = child.and_then(|mut child| child.wait()) {
            eprintln!("{e}");
        }
        taken
    };
    (0..30).map(|_| once()).fold(f64::MAX, f64::min)
}

fn field_kib(path: &str, names: &[&str]) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let of = |line: &str| {
        names.iter().any(|name| line.starts_with(name)).then(|| line.split_whitespace().nth(1)?.parse::<u64>().ok())
    };
    text.lines().filter_map(of).flatten().sum::<u64>()
}

fn main() -> cowbell::Result<()> {
    let gib: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(4);
    println!("nothing allocated: fork {:.3} ms", fork_ms());
    let count = (gib << 30) / size_of::<Object>();
    let objects: Vec<Box<Object>> = (0..count as u64).map(|n| Box::new([n; 12])).collect();
    let sum = || objects.iter().map(|object| object[11]).fold(0u64, u64::wrapping_add);
    let right = sum();
    println!("{count} objects of {gib} GiB grown: fork {:.3} ms", fork_ms());
    let (begun, peak) = (Instant::now(), field_kib("/proc/self/status", &["VmHWM:"]));
    let generation = Heap::freeze()?;
    let more = field_kib("/proc/self/status", &["VmHWM:"]).saturating_sub(peak);
    println!("frozen in {:.2} s, {} MiB more at the most", begun.elapsed().as_secs_f64(), more >> 10);
    println!("frozen: fork {:.3} ms", fork_ms());
    assert_eq!(sum(), right);
    println!("frozen, all read here: fork {:.3} ms", fork_ms());

    let own = SharedWords::new(8)?;
    let mut workers = Vec::new();
    for word in own.words() {
        workers.push(fork::spawn(&ForkOptions::new(), |_| {
            assert_eq!(sum(), right);
            word.store(field_kib("/proc/self/smaps_rollup", &["Private_Clean:", "Private_Dirty:"]), Ordering::Relaxed);
        })?);
    }
    for worker in &mut workers {
        let exit = worker.wait()?;
        assert!(exit.success(), "{exit:?}");
        assert_eq!(exit.report.copied_pages().0, 0);
    }
    let own: Vec<u64> = own.words().iter().map(|word| word.load(Ordering::Relaxed)).collect();
    println!("workers that have read everything have {own:?} KiB of their own");

    let mut objects = objects;
    objects[count / 2][0] += 1;
    println!("after one write of the parent: fork {:.3} ms", fork_ms());
    (0..10).for_each(|nth| objects[count / 11 * nth][0] += 1);
    println!("after ten more: fork {:.3} ms, {} pages copied here", fork_ms(), generation.copied_here()?);
    let begun = Instant::now();
    drop(objects);
    println!("all dropped in {:.2} s: {} pages copied here", begun.elapsed().as_secs_f64(), generation.copied_here()?);
    Ok(())
}
