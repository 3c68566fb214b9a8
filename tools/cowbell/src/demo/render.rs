//! The text and the JSON that the demo prints.

use super::cost::Costs;
use super::graph::Paths;
use super::roles::WorkerRole;
use crate::failure::Failure;
use crate::symbols::{self, Symbols};
use crate::views::{self, Document, table};
use cowbell::fork::Exit;
use cowbell::page::Bytes;
use cowbell::report::{Census, Report};
use cowbell::watch::Watch;
use std::collections::HashMap;
use std::io::Write;

/// All of a run, as `--json` prints it.
#[derive(serde::Serialize)]
pub struct DemoOutcome {
    /// The way in which the workers were watched.
    pub watch: Watch,
    /// The graph.
    pub graph: GraphSummary,
    /// The workers, in the order they were forked.
    pub workers: Vec<WorkerOutcome>,
    /// The cost of each watch to a writer on this machine.
    pub measured: Costs,
}

impl Document for DemoOutcome {
    const FORMAT: &'static str = "cowbell-demo";
    // 2: `measured` has medians.
    const VERSION: u32 = 2;
}

/// The graph and what building it took.
#[derive(serde::Serialize)]
pub struct GraphSummary {
    pub input: String,
    pub vertices: u64,
    pub edges: u64,
    pub arena_bytes: u64,
    pub pages: u64,
    pub build_seconds: f64,
    pub freeze_seconds: f64,
}

/// A worker: what it did, what it found, what it copied, and which code wrote.
#[derive(serde::Serialize)]
pub struct WorkerOutcome {
    pub role: WorkerRole,
    pub spawn_us: f64,
    pub paths: Paths,
    pub cause: &'static str,
    /// The way in which it failed, if it did.
    pub failure: Option<String>,
    /// Functions by how many pages they wrote first, most first.
    pub code: Vec<CodeShare>,
    pub report: Report,
}

/// A place in the code and how many pages it wrote first.
#[derive(serde::Serialize)]
pub struct CodeShare {
    #[serde(flatten)]
    pub code: Symbols,
    pub pages: u64,
}

impl WorkerOutcome {
    /// Puts a worker's evidence together.
    pub fn new(role: WorkerRole, spawn_us: f64, paths: Paths, exit: Exit) -> Self {
        let failure = (!exit.success()).then(|| {
            let panic = exit.panic.map_or(String::new(), |panic| format!(": {}", panic.0));
            format!("({role}) {}{panic}", exit.ended)
        });
        let report = exit.report;
        Self { role, spawn_us, paths, cause: cause(&report), failure, code: shares(&report), report }
    }
}

/// The likely cause of the copies, from the bytes that changed.
fn cause(report: &Report) -> &'static str {
    let copied = report.copied_pages().0;
    let identical: u64 = report.arenas.iter().map(|arena| arena.identical_pages.0).sum();
    if matches!(report.census, Census::Lost | Census::NotTaken) {
        "not known: the last census was lost"
    } else if copied == 0 {
        "nothing of the graph was written: all of it is still shared"
    } else if identical == copied {
        "every copy is the same as the original again: values went up and down, as reference counts do"
    } else if identical * 2 > copied {
        "most copies are the same as the original again, as after reference counting; the others hold real changes"
    } else {
        "the copies hold real changes"
    }
}

fn shares(report: &Report) -> Vec<CodeShare> {
    let mut pages: HashMap<u64, u64> = HashMap::new();
    for event in report.events.iter().filter(|event| event.pc != 0) {
        *pages.entry(event.pc).or_default() += 1;
    }
    let (addresses, counts): (Vec<u64>, Vec<u64>) = pages.into_iter().unzip();
    let mut by_code: HashMap<Symbols, u64> = HashMap::new();
    for (code, count) in symbols::resolve(&addresses).into_iter().zip(counts) {
        *by_code.entry(code).or_default() += count;
    }
    let mut shares: Vec<_> = by_code.into_iter().map(|(code, pages)| CodeShare { code, pages }).collect();
    shares.sort_by(|a, b| b.pages.cmp(&a.pages).then_with(|| a.code.cmp(&b.code)));
    shares
}

/// Prints to standard output.
pub fn print(outcome: &DemoOutcome, json: bool) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    let written = if json {
        views::json(outcome).map_err(std::io::Error::from).and_then(|bytes| out.write_all(&bytes))
    } else {
        text(&mut out, outcome)
    };
    match written.and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

fn text(out: &mut impl Write, outcome: &DemoOutcome) -> std::io::Result<()> {
    let GraphSummary { input, vertices, edges, arena_bytes, pages, build_seconds, freeze_seconds } = &outcome.graph;
    writeln!(out, "graph: {}, {vertices} vertices, {edges} edges", views::clean(input))?;
    writeln!(
        out,
        "arena: {}, {pages} pages; built in {build_seconds:.2} s, frozen in {:.1} ms",
        Bytes(*arena_bytes),
        freeze_seconds * 1e3
    )?;
    for (nth, worker) in outcome.workers.iter().enumerate() {
        writeln!(out, "\nworker {nth}, the {}: {}", worker.role, worker.role.does())?;
        for line in table::described(2, &told(worker), views::WIDTH) {
            writeln!(out, "{line}")?;
        }
        for line in worker.report.to_string().lines() {
            writeln!(out, "  {line}")?;
        }
    }
    costs(out, &outcome.measured)
}

/// The lines about a worker before its report.
fn told(worker: &WorkerOutcome) -> Vec<(Vec<String>, String)> {
    let Paths { reached, longest, .. } = worker.paths;
    let us = worker.spawn_us;
    // A worker that failed did not hand back its findings.
    let mut told = match &worker.failure {
        None => vec![("found", format!("{reached} shortest paths, the longest {longest} edges; forked in {us:.0} us"))],
        Some(failure) => vec![("FAILED", failure.clone())],
    };
    told.push(("why", worker.cause.to_owned()));
    for (at, share) in worker.code.iter().take(3).enumerate() {
        let line = share.code.line.as_deref().unwrap_or("line unknown");
        let pages = if share.pages == 1 { "page" } else { "pages" };
        let wrote = format!("{} {pages} first written by {} at {line}", share.pages, share.code.function);
        told.push((if at == 0 { "code" } else { "" }, wrote));
    }
    told.into_iter().map(|(term, words)| (vec![format!("{term:<7}")], words)).collect()
}

fn costs(out: &mut impl Write, measured: &Costs) -> std::io::Result<()> {
    let native = measured.native_ns_per_page;
    writeln!(out, "\ntime of a write that copies a page, by watch; without a watch {native:.0} ns")?;
    let Costs { pages, rounds, .. } = measured;
    let cost = |watch: &super::cost::WatchCost| match (watch.ratio_to_native, watch.ns_per_page) {
        (Some(ratio), Some(ns)) => format!("{ratio:.2} times ({ns:.0} ns; {pages} pages, {rounds} rounds)"),
        _ => watch.error.clone().unwrap_or_else(|| "not measured".to_owned()),
    };
    let terms: Vec<_> = measured.watches.iter().map(|watch| (vec![watch.watch.to_string()], cost(watch))).collect();
    for line in table::described(2, &terms, views::WIDTH) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}
