//! R: which of its memory its collector and its reference counts are. Its lines are not read.

mod objects;

use super::recognised::Recognised;
use super::{Language, Objects, Patience, Work};

/// R.
#[derive(Debug)]
pub struct R;

/// What its functions' and files' names tell.
const NAMES: Recognised = Recognised {
    id: "r",
    name: "R",
    files: &["libR.so", "R"],
    functions: &[
        (Work::Collector, &["R_gc", "R_gc_internal", "RunGenCollect", "AgeNodeAndChildren"]),
        (Work::Exit, &["R_CleanUp", "Rf_CleanUp"]),
    ],
    beginnings: &[],
    helpers: &[],
    runs: &["Rf_eval", "bcEval"],
    remedies: &[],
};

impl Language for R {
    fn id(&self) -> &'static str {
        NAMES.id
    }

    fn name(&self) -> &'static str {
        NAMES.name
    }

    fn is_run_by(&self, file: &str) -> bool {
        NAMES.is_run_by(file)
    }

    fn work_of_function(&self, function: &str) -> Option<Work> {
        NAMES.work_of_function(function)
    }

    fn runs_program(&self, function: &str) -> bool {
        NAMES.runs_program(function)
    }

    fn remedy(&self, work: Work) -> Option<&'static str> {
        NAMES.remedy(work)
    }

    fn why(&self, work: Work) -> Option<&'static str> {
        match work {
            Work::Collector => {
                Some("R's garbage collector marks each object and links it anew, so each collection writes")
            }
            Work::References => Some("R counts references inside each object, so reading writes"),
            _ => None,
        }
    }

    fn objects(&self) -> Option<fn(Patience) -> Box<dyn Objects>> {
        Some(|_| Box::new(objects::Nodes))
    }

    fn knows_all_writes(&self) -> bool {
        false
    }
}
