//! R: which of its memory its collector and its reference counts are. Its lines are not read.

mod objects;

use super::recognised::{NOTHING, Recognised};
use super::{Language, ObjectReader, PointerBudget, Work};

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
    whys: &[
        (Work::Collector, "R's garbage collector marks each object and links it anew, so each collection writes"),
        (Work::References, "R counts references inside each object, so reading writes"),
    ],
    ..NOTHING
};

impl Language for R {
    fn table(&self) -> &Recognised {
        &NAMES
    }

    fn objects(&self) -> Option<fn(PointerBudget) -> Box<dyn ObjectReader>> {
        Some(|_| Box::new(objects::Nodes))
    }

    fn knows_all_writes(&self) -> bool {
        false
    }
}
