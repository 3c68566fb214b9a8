//! The work of the workers: all search the same graph, each touches it in its own way.

use super::graph::{Graph, Paths, Vertex};
use cowbell::arena::{Frozen, Handle};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// The way in which a worker treats the graph it searches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerRole {
    /// Only reads.
    Reader,
    /// Clones and drops each visited vertex's attributes, as a reference-counting language does.
    Counter,
    /// Writes the cells of the sources.
    Writer,
}

impl WorkerRole {
    /// The roles in turn.
    pub fn of(nth: usize) -> Self {
        [Self::Reader, Self::Counter, Self::Writer][nth % 3]
    }

    /// The work of the role, in words for people.
    pub fn does(self) -> &'static str {
        match self {
            Self::Reader => "only reads",
            Self::Counter => "clones and drops reference-counted attributes while reading",
            Self::Writer => "reads, and writes a cell of each source",
        }
    }
}

impl fmt::Display for WorkerRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reader => "reader",
            Self::Counter => "counter",
            Self::Writer => "writer",
        })
    }
}

/// A worker's life: finds the sources by their handles, searches from each, and hands back the sums.
pub fn work(
    role: WorkerRole,
    frozen: &Frozen<Graph>,
    sources: &[Handle<Vertex>],
    results: &[AtomicU64],
) -> cowbell::Result<()> {
    let mut sum = Paths::default();
    for handle in sources {
        let source = handle.get()?;
        let paths = match role {
            WorkerRole::Reader => frozen.shortest_paths(source, read),
            WorkerRole::Counter => frozen.shortest_paths(source, count),
            WorkerRole::Writer => {
                mark(source);
                frozen.shortest_paths(source, read)
            }
        };
        sum.reached += paths.reached;
        sum.longest = sum.longest.max(paths.longest);
        sum.total += paths.total;
        sum.name_bytes += paths.name_bytes;
    }
    for (word, value) in results.iter().zip([sum.reached, sum.longest, sum.total, sum.name_bytes]) {
        word.store(value, Ordering::Release);
    }
    Ok(())
}

/// The result that a worker handed back.
pub fn result_in(words: &[AtomicU64]) -> Paths {
    let word = |at: usize| words.get(at).map_or(0, |word| word.load(Ordering::Acquire));
    Paths { reached: word(0), longest: word(1), total: word(2), name_bytes: word(3) }
}

fn read(vertex: &Vertex) -> u64 {
    vertex.attributes.name.len() as u64
}

// Not inlined, so that the reports name them.
#[inline(never)]
fn count(vertex: &Vertex) -> u64 {
    let attributes = vertex.attributes.clone();
    attributes.name.len() as u64
}

#[inline(never)]
fn mark(vertex: &Vertex) {
    vertex.mark.store(1, Ordering::Relaxed);
}
