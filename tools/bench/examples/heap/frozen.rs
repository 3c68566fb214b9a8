//! Data that ordinary code of other crates builds, frozen: what workers that have read all of it have of their own.
//!
//! Run with how many MiB of JSON there are in memory (1024).

#[path = "workers.rs"]
mod workers;

use cowbell::heap::{self, Frozen, Heap};
use cowbell::page::Bytes;
use fst::Streamer;
use petgraph::graph::DiGraph;
use regex::RegexSet;
use serde_json::{Value, json};
use std::time::Instant;

#[global_allocator]
static HEAP: Heap = Heap;

/// The data, of crates that know of no allocator.
struct Data {
    document: Value,
    graph: DiGraph<String, u32>,
    patterns: RegexSet,
    words: fst::Map<Vec<u8>>,
}

/// Bytes that a row takes in memory, about.
const ROW_BYTES: usize = 1500;

fn row(n: usize) -> Value {
    json!({ "n": n, "name": format!("row {n}"), "list": [n, null, 1.5, "text"], "more": { "a": n, "b": "c" } })
}

fn build(bytes: usize) -> Result<Data, Box<dyn std::error::Error>> {
    let document = Value::Array((0..bytes / ROW_BYTES).map(row).collect());
    let mut graph = DiGraph::new();
    let nodes: Vec<_> = (0..100_000).map(|n| graph.add_node(format!("node {n}"))).collect();
    for (n, &node) in nodes.iter().enumerate() {
        (1..5).for_each(|k| {
            graph.add_edge(node, nodes[(n * 7 + k * 13) % nodes.len()], k as u32);
        });
    }
    let patterns = RegexSet::new((0..500).map(|n| format!("^[a-z]+ {n}$")))?;
    let words = fst::Map::from_iter((0..1_000_000u64).map(|n| (format!("{n:08}"), n)))?;
    Ok(Data { document, graph, patterns, words })
}

/// Looks at everything that there is.
fn read(value: &Value) -> u64 {
    match value {
        Value::Null => 1,
        Value::Bool(is) => u64::from(*is),
        Value::Number(number) => number.as_u64().unwrap_or(1),
        Value::String(text) => text.bytes().map(u64::from).sum(),
        Value::Array(list) => list.iter().map(read).fold(0, u64::wrapping_add),
        Value::Object(map) => map.iter().map(|(key, value)| key.len() as u64 + read(value)).fold(0, u64::wrapping_add),
    }
}

impl Data {
    fn sum(&self) -> u64 {
        let graph: u64 = self.graph.node_weights().map(|name| name.len() as u64).sum::<u64>()
            + self.graph.edge_weights().map(|&weight| u64::from(weight)).sum::<u64>();
        let (mut words, mut sum) = (self.words.stream(), 0);
        while let Some((word, value)) = words.next() {
            sum += value + word.len() as u64;
        }
        let patterns = (0..500).map(|n| self.patterns.matches(&format!("node {n}")).iter().count() as u64).sum::<u64>();
        read(&self.document).wrapping_add(graph).wrapping_add(sum).wrapping_add(patterns)
    }
}

/// This process's share of all memory that it has, in MiB.
fn pss_mib() -> u64 {
    workers::field_kib("/proc/self/smaps_rollup", &["Pss:"]) >> 10
}

fn freeze(bytes: usize) -> cowbell::Result<Frozen<Result<Data, String>>> {
    let begun = Instant::now();
    let frozen = heap::arena("data", || build(bytes).map_err(|e| e.to_string()))?;
    let pages = frozen.generation().pages().0 * cowbell::sys::page_size().bytes() as u64;
    println!(
        "built and frozen in {:.1} s: {}; this process has {} MiB",
        begun.elapsed().as_secs_f64(),
        Bytes(pages),
        pss_mib()
    );
    Ok(frozen)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mib: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1024);
    // The crate keeps something for the whole process as it makes its first set: that is not to be part of an arena.
    drop(heap::hot(|| RegexSet::new(["a"])));
    let before = pss_mib();
    let mut frozen = freeze(mib << 20)?;
    let data = frozen.as_ref().map_err(String::clone)?;
    let right = data.sum();
    workers::all_read("serde_json, petgraph, regex, fst", &|| assert_eq!(data.sum(), right))?;
    let old = std::mem::replace(&mut frozen, freeze(mib << 19)?).release();
    let (gone, images, live) = (old.gone(), old.images().len(), old.live_blocks());
    println!(
        "replaced by half as much: {gone} of {images} old images are gone, {live} blocks are in use; this process has {} MiB",
        pss_mib()
    );
    let generation = frozen.release();
    let (gone, images, live) = (generation.gone(), generation.images().len(), generation.live_blocks());
    println!(
        "released: {gone} of {images} images are gone, {live} blocks are in use; this process has {} MiB, {before} at the beginning",
        pss_mib()
    );
    Ok(())
}
