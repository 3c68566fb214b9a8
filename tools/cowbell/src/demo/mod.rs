//! `cowbell demo`: the main job. Build a graph in an arena, freeze it, fork workers that search it, and
//! show what each of them copied and why.

mod cost;
pub mod edges;
pub mod graph;
mod render;
mod roles;

use crate::failure::Failure;
use cowbell::arena::{Arena, Frozen, Handle, HugePages};
use cowbell::fork::{self, Child, ForkOptions};
use cowbell::page::Bytes;
use cowbell::sys::{limits, shared_words::SharedWords};
use cowbell::watch::Watch;
use graph::{Builder, Graph, Vertex};
use indicatif::{ProgressBar, ProgressStyle};
use render::{DemoOutcome, GraphSummary, WorkerOutcome};
use roles::WorkerRole;
use std::path::PathBuf;
use std::time::Instant;

/// The shape of the demo.
#[derive(clap::Args)]
pub struct Options {
    /// An edge list in SNAP form: `#` begins a comment line, other lines have two ids. Without it, a graph
    /// is made up.
    #[arg(long, value_name = "FILE")]
    edges: Option<PathBuf>,

    /// How many workers to fork. The first only reads, the second clones and drops reference-counted
    /// objects, the third writes a few cells; then again.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    workers: u16,

    /// How large a made-up graph is, in bytes; K, M, G, T and KiB, MiB … are understood.
    #[arg(long, value_name = "BYTES", value_parser = parse_size, conflicts_with = "edges")]
    size: Option<usize>,

    /// How copies are observed: census, async, faults, trap or monitor.
    #[arg(long, value_name = "WATCH", default_value = "trap", value_parser = parse_watch)]
    watch: Watch,

    /// Put huge pages behind the graph when it is frozen.
    #[arg(long)]
    huge_pages: bool,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The size of a made-up graph that nobody asked to be larger.
const SIZE_DEFAULT: usize = 64 << 20;

/// Room for tables that double, beside the graph itself.
const CAPACITY_FACTOR: usize = 4;

/// Sources that each worker searches from.
const SOURCES: usize = 4;

/// Words of results a worker hands back.
const RESULT_WORDS: usize = 4;

/// Runs the demo.
pub fn run(options: &Options) -> Result<(), Failure> {
    cowbell::support::Support::get().watch(options.watch).require()?;
    let progress = progress_bar(options);
    let begun = Instant::now();
    let (arena, graph) = build(options, &progress)?;
    progress.finish_and_clear();
    let built = begun.elapsed();

    let begun = Instant::now();
    let huge_pages = if options.huge_pages { HugePages::Collapse } else { HugePages::Never };
    let frozen = arena.freeze_unchecked_with(graph, cowbell::arena::FreezeOptions::new().huge_pages(huge_pages))?;
    let freezing = begun.elapsed();
    let graph: &'static Graph = frozen.root();
    let hubs = graph.hubs(SOURCES);
    let sources: Vec<Handle<Vertex>> = hubs.iter().map(|&hub| frozen.handle(hub)).collect::<Result<_, _>>()?;
    let summary = GraphSummary {
        input: options.edges.as_ref().map_or("made up".to_owned(), |path| path.display().to_string()),
        vertices: graph.vertices.len() as u64,
        edges: graph.edges,
        arena_bytes: frozen.image().used() as u64,
        pages: frozen.image().pages().0,
        build_seconds: built.as_secs_f64(),
        freeze_seconds: freezing.as_secs_f64(),
    };

    let workers = fork_workers(options, &frozen, &sources)?;
    let measured = cost::measure()?;
    let outcome = DemoOutcome { watch: options.watch, graph: summary, workers, measured };
    render::print(&outcome, options.json)?;
    failed(&outcome)
}

fn build(options: &Options, progress: &ProgressBar) -> Result<(Arena, Graph), Failure> {
    let too_large = |bytes: u64| Failure::new(format!("a graph of {} has no room in an address space", Bytes(bytes)));
    let size = options.size.unwrap_or(SIZE_DEFAULT);
    let capacity = match &options.edges {
        Some(path) => {
            let file = std::fs::metadata(path).map_err(|e| Failure::new(format!("{}: {e}", path.display())))?;
            // The length of what a pipe will bring is not known: addresses for what memory could hold cost nothing.
            let memory = limits::memory_headroom().map_or(1 << 40, |headroom| headroom.bytes);
            let length = if file.is_file() { file.len() } else { memory / edges::ARENA_BYTES_PER_FILE_BYTE as u64 };
            (length as usize).checked_mul(edges::ARENA_BYTES_PER_FILE_BYTE).ok_or_else(|| too_large(length))?
        }
        None => {
            if let Some(headroom) = limits::memory_headroom().filter(|headroom| headroom.bytes < size as u64) {
                return Err(Failure::new(format!("--size: {} is more than there is: {headroom}", Bytes(size as u64))));
            }
            size.checked_mul(CAPACITY_FACTOR).ok_or_else(|| too_large(size as u64))?
        }
    };
    let arena = Arena::builder("graph").capacity(capacity.saturating_add(64 << 20)).record_sites(true).build()?;
    let mut builder = Builder::new(&arena);
    match &options.edges {
        Some(path) => edges::read(path, &mut builder, progress)?,
        None => edges::generate(size, &mut builder, progress)?,
    }
    Ok((arena, builder.finish()))
}

fn fork_workers(
    options: &Options,
    frozen: &Frozen<Graph>,
    sources: &[Handle<Vertex>],
) -> Result<Vec<WorkerOutcome>, Failure> {
    let results = SharedWords::new(usize::from(options.workers) * RESULT_WORDS)?;
    let fork_options = ForkOptions::new().watch(options.watch);
    let mut running: Vec<(WorkerRole, Child, f64)> = Vec::new();
    for nth in 0..usize::from(options.workers) {
        let role = WorkerRole::of(nth);
        let begun = Instant::now();
        let child = fork::spawn(&fork_options, |_| {
            let results = results.words().get(nth * RESULT_WORDS..).unwrap_or_default();
            roles::work(role, frozen, sources, results)
        })?;
        running.push((role, child, begun.elapsed().as_secs_f64() * 1e6));
    }
    let mut workers = Vec::new();
    for (nth, (role, mut child, spawn_us)) in running.into_iter().enumerate() {
        let exit = child.wait()?;
        let words = results.words().get(nth * RESULT_WORDS..).unwrap_or_default();
        workers.push(WorkerOutcome::new(role, spawn_us, roles::result_in(words), exit));
    }
    Ok(workers)
}

/// The first worker that failed, if one did. What all of them copied was printed before.
fn failed(outcome: &DemoOutcome) -> Result<(), Failure> {
    let failed = outcome.workers.iter().enumerate().find_map(|(nth, worker)| Some((nth, worker.failure.as_ref()?)));
    match failed {
        Some((nth, why)) => Err(Failure::new(format!("worker {nth} {why}"))),
        None => Ok(()),
    }
}

/// On standard error, if that is a terminal.
fn progress_bar(options: &Options) -> ProgressBar {
    let what = if options.edges.is_some() { "reading edges" } else { "making up a graph" };
    let style = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes}");
    let bar = ProgressBar::new(0).with_message(what);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn parse_watch(name: &str) -> Result<Watch, String> {
    let known = || Watch::ALL.map(Watch::name).join(", ");
    Watch::ALL.into_iter().find(|watch| watch.name() == name).ok_or_else(|| format!("not one of {}", known()))
}

/// A number of bytes, with a unit or without: 4096, 64K, 64KiB, 1.5G.
fn parse_size(text: &str) -> Result<usize, String> {
    let wrong = || "a size is a number of bytes, such as 65536, 64K, 64MiB or 1.5G".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_uppercase();
    let unit = unit.strip_suffix("IB").or(unit.strip_suffix('B')).unwrap_or(&unit);
    let shift = match unit {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(wrong()),
    };
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * (1u64 << shift) as f64;
    if (1.0..usize::MAX as f64 / 16.0).contains(&bytes) { Ok(bytes as usize) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64k"), Ok(65536));
        assert_eq!(parse_size("1.5GiB"), Ok(3 << 29));
        for wrong in ["", "0", "-1", "G", "5 parsecs", "1e9", "99999999T"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
