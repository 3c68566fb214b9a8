//! R: which of its memory its collector and its reference counts are, which calls a process is in, and what helps. Its lines are not read.

mod objects;
mod reader;

use super::recognised::{NOTHING, Recognised};
use super::{InterpreterReader, Language, ObjectReader, PointerBudget, Spares, Work, main_thread};
use crate::record::Frame;

/// R.
#[derive(Debug)]
pub struct R;

/// The file of frames of R's own functions, and the one by which a program itself asks for a collection.
const BASE: &str = "<base>";
const COLLECT: (&str, &str) = (BASE, "gc");

const COLLECTS: &str = "R's garbage collector marks each object and links it anew, so each collection writes";

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
            "in the parent, right before the fork, gc() twice, and no gc() in the child: what has survived twice is not written by most of the \
             child's own collections",
        ),
        (
            Work::AskedCollector,
            "no gc() in the child: gc() visits all objects, whatever the parent has collected, and gc(full = FALSE) the younger ones",
        ),
        (
            Work::References,
            "keep many short vectors as one long one (a matrix, the columns of a data frame, strings as a factor), and compute on it as a \
             whole: a vector has one count, however long it is",
        ),
    ],
    whys: &[
        (Work::Collector, COLLECTS),
        (Work::AskedCollector, COLLECTS),
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

    fn work_of_frames(&self, frames: &[Frame]) -> Option<Work> {
        let asks = |frame: &&Frame| (frame.file.as_str(), frame.function.as_str()) == COLLECT;
        frames.first().filter(asks).map(|_| Work::AskedCollector)
    }

    fn has_no_lines(&self) -> Option<&'static str> {
        Some(
            "R keeps no file and line of the script that it was started with, and those of files that source() and packages load are not \
             read here",
        )
    }

    fn reader(&self, pid: i32) -> Result<Option<Box<dyn InterpreterReader>>, String> {
        main_thread::reader::<reader::Interpreter>(pid)
    }

    fn objects(&self) -> Option<fn(PointerBudget) -> Box<dyn ObjectReader>> {
        Some(|_| Box::new(objects::Nodes::default()))
    }

    fn spares(&self, work: Work) -> Spares {
        match work {
            Work::Collector => Spares::Part(
                "about every 120th of the child's collections, and each for want of room, visits all objects",
            ),
            _ => Spares::All,
        }
    }

    fn knows_all_writes(&self) -> bool {
        false
    }
}
