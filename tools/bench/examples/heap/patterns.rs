//! Patterns of what programs do with an allocator: the same code under each of them.
//!
//! Run with a pattern's name; prints its time on the processor in milliseconds and the most memory it had in KiB.

use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::sync::mpsc;
use std::time::Instant;

/// A pattern's name and its work.
type Pattern = (&'static str, fn());

const PATTERNS: &[Pattern] = &[
    ("churn", churn),
    ("larson", larson),
    ("producer-consumer", producer_consumer),
    ("maps-and-strings", maps_and_strings),
    ("growth", growth),
    ("json", json),
];

/// Runs the pattern of this name; lists them without one.
pub fn main(name: Option<&str>) {
    let Some(name) = name else {
        PATTERNS.iter().for_each(|(name, _)| println!("{name}"));
        return;
    };
    let Some((_, work)) = PATTERNS.iter().find(|(each, _)| *each == name) else {
        eprintln!("there is no pattern {name}");
        std::process::exit(2);
    };
    let begun = Instant::now();
    work();
    let wall = begun.elapsed();
    println!("{:.1} {:.1} {}", cpu_ms(), wall.as_secs_f64() * 1e3, peak_kib());
}

fn cpu_ms() -> f64 {
    let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    usage.tv_sec as f64 * 1e3 + usage.tv_nsec as f64 / 1e6
}

fn peak_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// A size as programs have them: most are small.
fn size(numbers: &mut Numbers) -> usize {
    let shift = [4, 5, 5, 6, 6, 7, 8, 10][numbers.below(8)];
    1 + numbers.below(1 << shift)
}

fn block(numbers: &mut Numbers) -> Vec<u8> {
    let mut block = Vec::with_capacity(size(numbers));
    block.push(1);
    black_box(block)
}

/// One thread, 20,000 live blocks, one replaced at a time.
fn churn() {
    let mut numbers = Numbers(7);
    let mut blocks: Vec<Vec<u8>> = (0..20_000).map(|_| block(&mut numbers)).collect();
    for _ in 0..8_000_000 {
        let at = numbers.below(blocks.len());
        blocks[at] = block(&mut numbers);
    }
}

/// A server's pattern: each thread replaces blocks of a set at random, and hands the set to the thread that follows it.
fn larson() {
    const SET: usize = 5000;
    const ROUNDS: u64 = 12;
    std::thread::scope(|scope| {
        for lane in 0..4u64 {
            scope.spawn(move || {
                let mut numbers = Numbers(lane + 1);
                let mut blocks: Vec<Vec<u8>> = (0..SET).map(|_| block(&mut numbers)).collect();
                for round in 0..ROUNDS {
                    let next = std::thread::spawn(move || {
                        let mut numbers = Numbers(100 * lane + round + 1);
                        for _ in 0..150_000 {
                            let at = numbers.below(SET);
                            blocks[at] = block(&mut numbers);
                        }
                        blocks
                    });
                    blocks = next.join().unwrap_or_default();
                }
            });
        }
    });
}

/// One thread makes, another drops.
fn producer_consumer() {
    std::thread::scope(|scope| {
        for lane in 0..2u64 {
            let (sender, receiver) = mpsc::sync_channel::<Vec<Vec<u8>>>(64);
            scope.spawn(move || receiver.into_iter().for_each(drop));
            scope.spawn(move || {
                let mut numbers = Numbers(lane + 1);
                for _ in 0..20_000 {
                    let batch = (0..100).map(|_| block(&mut numbers)).collect();
                    if sender.send(batch).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// Maps of strings and lists are built, searched and dropped.
fn maps_and_strings() {
    for round in 0..4u64 {
        let mut numbers = Numbers(round + 1);
        let mut table: HashMap<String, Vec<u64>> = HashMap::new();
        let mut tree: BTreeMap<String, String> = BTreeMap::new();
        for n in 0..150_000u64 {
            let key = format!("key {}", numbers.below(100_000));
            tree.insert(key.clone(), format!("the value of {key}"));
            table.entry(key).or_default().push(n);
        }
        black_box((&table, &tree));
    }
}

/// Vectors and strings that grow by pushing, many small ones and a few large ones.
fn growth() {
    for _ in 0..200_000 {
        let mut text = String::new();
        (0..10).for_each(|_| text.push_str("a few more bytes "));
        black_box(text);
    }
    for _ in 0..6 {
        let mut list = Vec::new();
        (0..8_000_000u64).for_each(|n| list.push(n));
        black_box(list);
    }
    let mut lists: Vec<Vec<u32>> = vec![Vec::new(); 1000];
    (0..3_000_000u32).for_each(|n| lists[n as usize % 1000].push(n));
    black_box(lists);
}

/// A document of small objects is parsed, copied and dropped.
fn json() {
    let row = |n: u64| serde_json::json!({ "n": n, "name": format!("row {n}"), "list": [n, null, 1.5, "text"], "more": { "a": n, "b": "c" } });
    let text = serde_json::Value::Array((0..40_000).map(row).collect()).to_string();
    for _ in 0..4 {
        let document: Result<serde_json::Value, _> = serde_json::from_str(&text);
        black_box(document.as_ref().ok().cloned());
    }
}
