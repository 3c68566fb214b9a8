//! R: which of its memory its collector and its reference counts are. Its lines are not read.

mod objects;

use super::recognised::{NOTHING, Recognised};
use super::{Language, ObjectReader, PointerBudget, Spares, Work};

/// R.
#[derive(Debug)]
pub struct R;

/// The names of R's functions and files, and what they tell.
const NAMES: Recognised = Recognised {
    id: "r",
    name: "R",
    files: &["libR.so", "R"],
    functions: &[
        (Work::Collector, &["R_gc", "R_gc_internal", "RunGenCollect", "AgeNodeAndChildren"]),
        (Work::Exit, &["R_CleanUp", "Rf_CleanUp"]),
    ],
    runs: &["Rf_eval", "bcEval"],
    remedies: &[
        (
            Work::Collector,
            "in the parent, right before the fork, gc() twice; in the child no gc(), or gc(full = FALSE): what has survived twice is not \
             written by most of the child's own collections",
        ),
        (
            Work::References,
            "keep many short vectors as one long one (a matrix, the columns of a data frame, strings as a factor), and compute on it as a \
             whole: a vector has one count, however long it is",
        ),
    ],
    whys: &[
        (Work::Collector, "R's garbage collector marks each object and links it anew, so each collection writes"),
        (Work::References, "R counts references inside each object, so reading writes"),
    ],
    pastes: &[
        (Work::Collector, &["invisible(gc()); invisible(gc())    # in the parent, right before the fork"]),
        (
            Work::References,
            &[
                "m <- do.call(cbind, rows)    # in the parent, before the fork",
                "rowSums(m)                   # not: for (row in rows) s <- s + row",
            ],
        ),
    ],
    ..NOTHING
};

impl Language for R {
    fn table(&self) -> &Recognised {
        &NAMES
    }

    fn objects(&self) -> Option<fn(PointerBudget) -> Box<dyn ObjectReader>> {
        Some(|_| Box::new(objects::Nodes::default()))
    }

    fn spares(&self, work: Work) -> Spares {
        match work {
            Work::Collector => Spares::Part(
                "each collection that the child asks for by gc(), about every 120th of the others, and those for want of room visit all objects",
            ),
            _ => Spares::All,
        }
    }

    fn knows_all_writes(&self) -> bool {
        false
    }
}
