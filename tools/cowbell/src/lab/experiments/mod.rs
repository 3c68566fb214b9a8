//! The experiments: their ways, and what is expected of them.

mod arrays;
mod given;
mod servers;

use super::conclude::{Conclusion, bytes, own};
use super::needs::Need;
use super::way::{PlannedWay as WayPlan, Program, WorkDir};
use crate::failure::Failure;
use arrays::{matrix, of_matrix};
use given::{collector, executor, of_collector, of_executor, of_pool, pool, write_edges};
use servers::{gunicorn, of_gunicorn, of_servers, servers};

/// Makes what all ways of an experiment use.
pub type Prepare = fn(&Scale, &WorkDir) -> Result<(), Failure>;

/// An experiment.
#[derive(Debug)]
pub struct PlannedExperiment {
    /// The experiment's name.
    pub name: &'static str,
    /// The question that it answers.
    pub question: &'static str,
    /// The work that is done in each way.
    pub work: fn(&Scale) -> String,
    /// Makes what all ways need, before the first of them.
    pub prepare: Option<Prepare>,
    /// The ways.
    pub ways: fn(&Scale, &WorkDir) -> Vec<WayPlan>,
    /// Draws the conclusion.
    pub concludes: fn(&mut Conclusion<'_>, &Scale),
}

/// How large the data are.
#[derive(Debug)]
pub struct Scale {
    /// Numbers in a list: each is an object of 32 bytes, and 8 in the list.
    numbers: u64,
    vertices: u64,
    edges: u64,
    lists: u64,
    /// Rows, and columns, of a matrix of 8 bytes each.
    rows: u64,
    reads: u64,
    keys: u64,
    table_rows: u64,
    strings: u64,
    workers: u32,
    /// The numbers of workers of which memory is shown.
    steps: &'static [u32],
}

/// Rows of the matrix that people ask about.
const ROWS_MAX: u64 = 15_000;

impl Scale {
    /// For a machine with so much free memory.
    pub fn new(quick: bool, free_bytes: Option<u64>) -> Self {
        // A matrix takes its own size twice where all is written.
        let rows = free_bytes.map_or(4000, |bytes| (bytes / 4 / 8).isqrt()).min(ROWS_MAX);
        if quick {
            return Self {
                numbers: 1_500_000,
                vertices: 20_000,
                edges: 200_000,
                lists: 300_000,
                rows: rows.min(4000),
                reads: 5000,
                keys: 40_000,
                table_rows: 300_000,
                strings: 200_000,
                workers: 2,
                steps: &[2],
            };
        }
        Self {
            numbers: 4_000_000,
            vertices: 60_000,
            edges: 600_000,
            lists: 2_000_000,
            rows,
            reads: 50_000,
            keys: 200_000,
            table_rows: 2_000_000,
            strings: 1_000_000,
            workers: 4,
            steps: &[1, 2, 4, 8],
        }
    }

    /// The bytes of a list of numbers: that of a number is 28, which malloc rounds, and 8 are its place.
    fn list_bytes(&self) -> u64 {
        self.numbers * 40
    }

    /// The bytes of a list of lists of one number each, at least.
    fn lists_bytes(&self) -> u64 {
        self.lists * 72
    }

    fn matrix_bytes(&self) -> u64 {
        self.rows * self.rows * 8
    }
}

/// All experiments.
pub const ALL: [PlannedExperiment; 6] = [
    PlannedExperiment {
        name: "pool",
        question: "A multiprocessing.Pool over a large object: how is it given to the workers?",
        work: |scale| format!("{} workers each add up a list of {} numbers", scale.workers, thousands(scale.numbers)),
        prepare: None,
        ways: pool,
        concludes: of_pool,
    },
    PlannedExperiment {
        name: "executor",
        question: "A ProcessPoolExecutor over a graph: sent, inherited, or in a pool of this library?",
        work: |scale| {
            let (vertices, edges) = (thousands(scale.vertices), thousands(scale.edges));
            format!("{} workers walk a graph of {vertices} vertices and {edges} edges", scale.workers)
        },
        prepare: Some(write_edges),
        ways: executor,
        concludes: of_executor,
    },
    PlannedExperiment {
        name: "gunicorn",
        question: "gunicorn with a Flask application: what does each worker have of its own?",
        work: |scale| format!("each worker holds {} numbers and adds them up for a request", thousands(scale.numbers)),
        prepare: None,
        ways: gunicorn,
        concludes: of_gunicorn,
    },
    PlannedExperiment {
        name: "collector",
        question: "The garbage collector and what is sent: what do gc.freeze and handles avoid?",
        work: |scale| format!("a child inherits {} small lists", thousands(scale.lists)),
        prepare: None,
        ways: collector,
        concludes: of_collector,
    },
    PlannedExperiment {
        name: "matrix",
        question: "Does free memory fall by a copy a process? And what does a Manager().list() cost?",
        work: |scale| {
            let size = bytes(scale.matrix_bytes());
            format!("{} processes over a matrix of {} x {}, {size}", scale.workers, scale.rows, scale.rows)
        },
        prepare: None,
        ways: matrix,
        concludes: of_matrix,
    },
    PlannedExperiment {
        name: "servers",
        question: "Redis, PostgreSQL and Puma: who pays for a fork, and when?",
        work: |scale| {
            let (keys, rows) = (thousands(scale.keys), thousands(scale.table_rows));
            format!("{keys} keys, a table of {rows} rows, {} strings", thousands(scale.strings))
        },
        prepare: None,
        ways: servers,
        concludes: of_servers,
    },
];

const NUMPY: Need = Need::Module("numpy", "numpy");
const FREEZE: &[Need] = &[Need::Python(3, 12), Need::Module("cowbell_fork", "cowbell-fork")];
const PYTHON: &[Need] = &[Need::Python(3, 8)];

/// A way that a script goes, with these arguments.
fn script(
    name: &'static str,
    does: &'static str,
    needs: &'static [Need],
    workers: u32,
    file: &'static str,
    arguments: &[&dyn std::fmt::Display],
) -> WayPlan {
    let arguments = arguments.iter().map(ToString::to_string).collect();
    WayPlan { name, does, needs, workers, program: Program::Script(file, arguments) }
}

/// Says what each worker of a way has, and expects that it is little beside the data.
fn shared(found: &mut Conclusion<'_>, name: &str, says: &str, data: u64) {
    if let Some(way) = found.watched(name) {
        found.say(format!("{says} {} of its own.", bytes(own(way))));
        found.expect(own(way) < data / 4, &format!("{name}: each worker has little of its own"));
    }
}

/// A number with a comma between thousands.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = (0..digits.len())
        .rev()
        .step_by(3)
        .map(|end| digits.get(end.saturating_sub(2)..=end).unwrap_or_default())
        .collect();
    groups.into_iter().rev().collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_commas_between_thousands() {
        for (number, said) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(number), said);
        }
    }

    #[test]
    fn a_matrix_fits_into_the_free_memory_with_its_copies() {
        let small = Scale::new(false, Some(1 << 30));
        assert!(2 * small.matrix_bytes() <= 1 << 30, "{small:?}");
        assert_eq!(Scale::new(false, Some(1 << 40)).rows, ROWS_MAX);
    }
}
