//! Ruby: which lines a process of another ruby is in, what its collector marked, and what helps.

mod objects;
mod reader;

use super::recognised::{NOTHING, Recognised};
use super::{InterpreterReader, Language, ObjectReader, PointerBudget, Spares, Work, main_thread};
use crate::record::Frame;

/// Ruby.
#[derive(Debug)]
pub struct Ruby;

/// The file in which Ruby keeps `GC`, and its function by which a program itself asks for a collection.
const COLLECT: (&str, &str) = ("<internal:gc>", "start");

const SPARES: &str = "in the parent, right before the fork, four times GC.start, then GC.compact (Ruby 3.3 and later: Process.warmup): objects \
                      that survived so often are not written when they are marked, garbage is gone, and free places lie together";

const COLLECTS: &str = "Ruby's garbage collector writes into each object that is young or dead when it visits it";
const PASTE: &[&str] = &["4.times { GC.start }; GC.compact    # in the parent, right before the fork"];

/// The names of Ruby's functions and files, and what they tell.
const NAMES: Recognised = Recognised {
    id: "ruby",
    name: "Ruby",
    files: &["libruby", "ruby"],
    functions: &[
        (
            Work::Collector,
            &[
                "gc_mark",
                "gc_mark_ptr",
                "gc_mark_children",
                "gc_mark_set",
                "gc_mark_and_pin",
                "gc_mark_roots",
                "gc_sweep_page",
                "gc_sweep_step",
                "gc_sweep",
                "rgengc_remember",
            ],
        ),
        (Work::Exit, &["ruby_cleanup", "ruby_finalize"]),
    ],
    beginnings: &[(
        Work::Collector,
        &["gc_marks_", "gc_mark_", "gc_compact", "gc_move", "gc_ref_update", "gc_sweep_compact"],
    )],
    runs: &["rb_vm_exec", "vm_exec", "vm_exec_core", "rb_ec_exec_end_proc"],
    remedies: &[
        (Work::Collector, SPARES),
        (Work::AskedCollector, SPARES),
        (
            Work::Remembered,
            "use it all in the same way once in the parent, before the fork: a string whose characters were looked at, and an object that has \
             its id, are only read then",
        ),
        (
            Work::Iterators,
            "freeze the hashes that are gone through, and those in them, before the fork, if nobody changes them afterwards: iterations over a \
             frozen hash are not counted",
        ),
    ],
    whys: &[
        (Work::Collector, COLLECTS),
        (Work::AskedCollector, COLLECTS),
        (Work::CollectorTables, "Ruby's garbage collector keeps its tables between the data"),
        (
            Work::Remembered,
            "Ruby writes into a string what characters it has when it is first looked at, and into an object that it was asked for its id",
        ),
        (Work::Iterators, "Ruby counts in each hash the iterations that go on over it, so iterating writes"),
        (
            Work::TextCopies,
            "Ruby writes into a string or an array that is copied that it shares its body with the copy",
        ),
    ],
    pastes: &[
        (Work::Collector, PASTE),
        (Work::AskedCollector, PASTE),
        (
            Work::Remembered,
            &["DATA.each { |one| one.valid_encoding? }    # strings, before the fork; of other objects: one.object_id"],
        ),
        (
            Work::Iterators,
            &[
                "rows.each { |row| row.freeze }           # an array of hashes; in the parent, before the fork",
                "table.each_value { |row| row.freeze }    # a hash of hashes",
            ],
        ),
    ],
    ..NOTHING
};

impl Language for Ruby {
    fn table(&self) -> &Recognised {
        &NAMES
    }

    fn work_of_frames(&self, frames: &[Frame]) -> Option<Work> {
        let asks = |frame: &&Frame| (frame.file.as_str(), frame.function.as_str()) == COLLECT;
        frames.first().filter(asks).map(|_| Work::AskedCollector)
    }

    fn is_own(&self, file: &str) -> bool {
        let is_library = |part: &str| matches!(part, "gems" | "rubygems-integration" | "vendor_ruby");
        let parts: Vec<&str> = file.split('/').collect();
        let version = |part: &str| part.starts_with(|c: char| c.is_ascii_digit());
        let of_ruby = parts.windows(3).any(|three| matches!(three, ["lib", "ruby", last] if version(last)));
        !(of_ruby || file.starts_with('<') || parts.iter().any(|part| is_library(part)))
    }

    fn spares(&self, work: Work) -> Spares {
        match work {
            // The tables and the stack of the collector, which lie elsewhere, are written all the same.
            Work::AskedCollector => Spares::Objects,
            Work::Collector => Spares::Part(
                "the child does not only collect: what else it writes, and what malloc tidies up then, is copied all the same",
            ),
            _ => Spares::All,
        }
    }

    fn reader(&self, pid: i32) -> Result<Option<Box<dyn InterpreterReader>>, String> {
        main_thread::reader::<reader::Interpreter>(pid)
    }

    fn objects(&self) -> Option<fn(PointerBudget) -> Box<dyn ObjectReader>> {
        Some(|_| Box::new(objects::Places::default()))
    }

    fn knows_all_writes(&self) -> bool {
        false
    }

    fn collector_has_tables(&self) -> bool {
        true
    }

    fn counts_references(&self) -> bool {
        false
    }
}
