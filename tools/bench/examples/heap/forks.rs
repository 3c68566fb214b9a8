//! Forking over a heap of small objects, before and after it is frozen, beside a process that has nothing.
//!
//! Run with how many GiB (4) and how many rounds (31). In each round this process and one that was forked before anything was allocated fork in turns, by the
//! bare system call; printed are medians, and of the ratios also the smallest and the largest.

#[path = "workers.rs"]
mod workers;

use cowbell::fork::{self, Child, ForkOptions};
use cowbell::heap::Heap;
use cowbell_bench::{Result, Spread, fork_ns};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::time::Instant;

#[global_allocator]
static HEAP: Heap = Heap;

/// 96 bytes: small enough that nobody would put it on a page of its own.
type Object = [u64; 12];

/// A process that has nothing, and forks when it is asked.
struct Empty {
    requests: PipeWriter,
    replies: PipeReader,
    // Killed and reaped when dropped.
    _process: Child,
}

impl Empty {
    fn start() -> std::io::Result<Self> {
        let ((mut their_requests, requests), (replies, mut their_replies)) = (std::io::pipe()?, std::io::pipe()?);
        let process = fork::spawn(&ForkOptions::new().last_census(false), move |_| -> i32 {
            while their_requests.read_exact(&mut [0]).is_ok() {
                let taken = fork_ns().unwrap_or(0);
                if their_replies.write_all(&taken.to_ne_bytes()).is_err() {
                    break;
                }
            }
            0
        });
        Ok(Self { requests, replies, _process: process.map_err(std::io::Error::other)? })
    }

    fn fork_ns(&mut self) -> std::io::Result<u64> {
        let mut taken = [0; 8];
        self.requests.write_all(&[1])?;
        self.replies.read_exact(&mut taken)?;
        Ok(u64::from_ne_bytes(taken))
    }
}

/// Forks here and there in turns, and prints what it took.
fn measure(what: &str, empty: &mut Empty, rounds: usize) -> Result<()> {
    let (mut ours, mut ratios) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let theirs = empty.fork_ns().map_err(|e| cowbell_bench::Error::Failed(e.to_string()))?;
        let own = fork_ns()?;
        // The first round only warms up.
        if round > 0 && theirs > 0 {
            ours.push(own as f64 / 1e6);
            ratios.push(own as f64 / theirs as f64);
        }
    }
    if let (Some(ours), Some(ratio)) = (Spread::of(ours), Spread::of(ratios)) {
        let Spread { min, median, max } = ratio;
        println!("{what:44} {:9.3} ms, {median:8.2} times an empty process' ({min:.2} to {max:.2})", ours.median);
    }
    Ok(())
}

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1).map(|word| word.parse::<f64>().unwrap_or(0.0));
    let (gib, rounds) = (words.next().unwrap_or(4.0), words.next().unwrap_or(31.0) as usize);
    // The buffer of standard output is to be on no page that is frozen, because it is written to afterwards.
    cowbell::hot(|| println!("a fork's time in this process, and its ratio to that in one that has nothing:"));
    let mut empty = Empty::start().map_err(|e| cowbell_bench::Error::Failed(e.to_string()))?;
    measure("nothing allocated", &mut empty, rounds)?;
    let count = (gib * (1u64 << 30) as f64) as usize / size_of::<Object>();
    let mut objects: Vec<Box<Object>> = (0..count as u64).map(|n| Box::new([n; 12])).collect();
    let sum = |objects: &[Box<Object>]| objects.iter().map(|object| object[11]).fold(0u64, u64::wrapping_add);
    let right = sum(&objects);
    measure(&format!("{count} objects of {gib} GiB, growing"), &mut empty, rounds)?;
    let (begun, peak) = (Instant::now(), workers::field_kib("/proc/self/status", &["VmHWM:"]));
    let generation = Heap::freeze()?;
    let more = workers::field_kib("/proc/self/status", &["VmHWM:"]).saturating_sub(peak);
    println!("frozen in {:.2} s, {} MiB more at the most", begun.elapsed().as_secs_f64(), more >> 10);
    measure("frozen", &mut empty, rounds)?;
    assert_eq!(sum(&objects), right);
    measure("frozen, all read here", &mut empty, rounds)?;
    workers::all_read("objects", &|| assert_eq!(sum(&objects), right))?;

    let begun = Instant::now();
    objects[count / 2][0] += 1;
    println!("the first write of the parent took {:.1} us", begun.elapsed().as_secs_f64() * 1e6);
    measure("after one write of the parent", &mut empty, rounds)?;
    (0..10).for_each(|nth| objects[count / 11 * nth][0] += 1);
    measure("after ten more", &mut empty, rounds)?;
    println!("{} pages copied here", generation.copied_here()?);
    let begun = Instant::now();
    drop(objects);
    let (gone, images) = (generation.gone(), generation.images().len());
    println!("all dropped in {:.2} s: {gone} of {images} images are gone", begun.elapsed().as_secs_f64());
    Ok(())
}
