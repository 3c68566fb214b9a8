//! Workers that have all read everything, and what each has of its own then.

use cowbell::Result;
use cowbell::fork::{self, ForkOptions};
use cowbell::sys::shared_words::SharedWords;
use std::sync::atomic::Ordering;

/// The number of workers.
const WORKERS: usize = 8;

/// The sum of some fields of a file under `/proc`, in KiB.
pub fn field_kib(path: &str, names: &[&str]) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let of = |line: &str| {
        names.iter().any(|name| line.starts_with(name)).then(|| line.split_whitespace().nth(1)?.parse::<u64>().ok())
    };
    text.lines().filter_map(of).flatten().sum::<u64>()
}

/// Forks workers that read, and prints what each has of its own (USS: `Private_Clean` and `Private_Dirty` of `smaps_rollup`) while all others live, and how many
/// frozen pages it copied. The largest USS in KiB.
///
/// # Errors
/// What the runtime refuses.
pub fn all_read(what: &str, read: &dyn Fn()) -> Result<u64> {
    // The first word counts those that have read; when all have, each looks.
    let words = SharedWords::new(1 + WORKERS)?;
    let (done, own) = words.words().split_at(1);
    let mut workers = Vec::new();
    for word in &own[..WORKERS] {
        workers.push(fork::spawn(&ForkOptions::new(), |_| {
            read();
            done[0].fetch_add(1, Ordering::AcqRel);
            while done[0].load(Ordering::Acquire) < WORKERS as u64 {
                std::thread::yield_now();
            }
            word.store(field_kib("/proc/self/smaps_rollup", &["Private_Clean:", "Private_Dirty:"]), Ordering::Release);
        })?);
    }
    let mut copied = 0;
    for worker in &mut workers {
        let exit = worker.wait()?;
        assert!(exit.success(), "{exit:?}");
        copied += exit.report.copied_pages().0;
    }
    let own: Vec<u64> = own[..WORKERS].iter().map(|word| word.load(Ordering::Acquire)).collect();
    let largest = own.iter().copied().max().unwrap_or(0);
    println!(
        "{what}: {WORKERS} workers that have read everything have at most {largest} KiB of their own, and copied {copied} frozen pages"
    );
    Ok(largest)
}
