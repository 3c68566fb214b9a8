//! Languages whose programs an interpreter runs: how to find one in a process, where its threads are, what its
//! interpreter's code works at, and what helps.
//!
//! Each language is one file here and one line in [`ALL`]; no other room names any. What an [`InterpreterReader`] does belongs to the
//! tracer, while the thread stands still; all else is pure, and answers for captures of other machines too.

mod held;
mod main_thread;
mod objects;
mod perl;
mod php;
mod python;
mod r;
mod recognised;
mod ruby;

use crate::record::Frame;
use objects::word_at;
pub use objects::{ChangedWord, ObjectReader, PointerBudget, ReadWord};
use recognised::Recognised;
use serde::Serialize;
use std::fmt::Debug;

/// The work of a piece of code, as far as it explains why memory is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Counting references.
    References,
    /// Counting references to objects of classes, where the language has counted values of other kinds.
    ObjectReferences,
    /// Collecting garbage.
    Collector,
    /// Collecting garbage because the program asks for it.
    AskedCollector,
    /// Allocating and freeing memory.
    Allocator,
    /// Taking the program or its interpreter down.
    Exit,
    /// Making objects from bytes that another process sent or that were stored, or receiving such bytes.
    Unpickling,
    /// Making bytes from objects, to send them to another process, or sending such bytes.
    Pickling,
    /// Loading a module.
    Import,
    /// Starting a worker, between the fork and the worker's own work.
    Start,
    /// Keeping the hashes of immortal objects.
    Hashes,
    /// Keeping the numbers of strings that are used as numbers.
    Numbers,
    /// Keeping the texts of numbers that are used as strings.
    Texts,
    /// Keeping what a value was asked for: the length of a string and the places of characters in it, the id of an object.
    Remembered,
    /// Keeping the places at which a search of strings goes on.
    Positions,
    /// Going through hashes.
    Iterators,
    /// Counting or noting the copies that share the memory of a string or an array.
    TextCopies,
    /// Keeping what the collector of garbage has of objects, apart from them.
    CollectorTables,
    /// Anything else that has a name.
    Other,
}

impl Work {
    /// Tells whether a value is written so because it keeps what it was asked for.
    pub fn keeps(self) -> bool {
        matches!(self, Self::Numbers | Self::Texts | Self::Remembered | Self::Positions | Self::Iterators)
    }
}

/// An import of a module, by a line of the user's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Import {
    /// The line that asks for it.
    pub file: String,
    pub line: i32,
    /// True if the module is a part of the package that the line imports from.
    pub of_part: bool,
    /// The file that runs for it; empty where none does.
    pub module_file: String,
}

/// The part that a remedy spares of the pages that are copied for some work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spares {
    /// Nearly all.
    All,
    /// Those with objects. The collector goes on to write what it keeps for itself, and has then taken before the fork what it takes behind it
    /// without the remedy: that is copied, too.
    Objects,
    /// A part, and how much is not known, for this reason.
    Part(&'static str),
}

/// A language and its interpreter.
pub trait Language: Debug + Sync {
    /// The table of what is known of it by names: where a method that follows is not written anew, this table answers.
    fn table(&self) -> &Recognised;

    /// The name by which captures and JSON call it.
    fn id(&self) -> &'static str {
        self.table().id
    }

    /// The name by which people call it.
    fn name(&self) -> &'static str {
        self.table().name
    }

    /// Tells whether a process that maps this file as code, or that was started by this name, runs it.
    fn is_run_by(&self, file: &str) -> bool {
        self.table().runs(file)
    }

    /// The work of a function of the interpreter, by its bare name in the symbol table; `None` for all that is not
    /// this language's alone.
    fn work_of_function(&self, function: &str) -> Option<Work> {
        self.table().work_of(function)
    }

    /// Tells whether this function of the interpreter, by its bare name in the symbol table, does the work of those that call it: its own
    /// name does not tell what for.
    fn helps_caller(&self, function: &str) -> bool {
        self.table().helpers.contains(&function)
    }

    /// Tells whether this function of the interpreter, by its bare name in the symbol table, runs the program. The code that runs below
    /// it is the program's own, whatever called it.
    fn runs_program(&self, function: &str) -> bool {
        self.table().runs.contains(&function)
    }

    /// Tells whether a function runs the program and then takes the interpreter down: below it is the one or the other.
    fn outlives_program(&self, _function: &str) -> bool {
        false
    }

    /// The work of a stack of the program, by its frames, the innermost first; `None` for the program's own work.
    fn work_of_frames(&self, _frames: &[Frame]) -> Option<Work> {
        None
    }

    /// The work of a stack of the program that starts a worker that was forked, or takes the program down, by its frames, the
    /// innermost first;
    /// `None` for anything else.
    fn phase_of_frames(&self, _frames: &[Frame]) -> Option<Work> {
        None
    }

    /// The outermost import that a stack of the program is in, by its frames, the innermost first; `None` where no line of the user's own
    /// asks for one.
    fn import_of_frames(&self, _frames: &[Frame]) -> Option<Import> {
        None
    }

    /// The module that an import loads, by the text of its line; `None` where that does not tell.
    fn imported(&self, _import: &Import, _line: &str) -> Option<String> {
        None
    }

    /// Lines to paste that load these modules early enough, in a program that was started by this command.
    fn loading_early(&self, _modules: &[String], _command: &[String]) -> Vec<String> {
        Vec::new()
    }

    /// One sentence on those of these modules that a program was told by this command to load before its workers, who loaded them all the
    /// same; `None` where it was told of none.
    fn not_loaded_early(&self, _modules: &[String], _command: &[String]) -> Option<String> {
        None
    }

    /// Tells whether a source file is the user's own: neither the language's library nor a package's.
    fn is_own(&self, _file: &str) -> bool {
        true
    }

    /// A remedy that is known to help where memory is copied for this work, in one sentence.
    fn remedy(&self, work: Work) -> Option<&'static str> {
        of(self.table().remedies, work)
    }

    /// Why this work writes to memory that others share, or takes new memory, in one sentence.
    fn why(&self, work: Work) -> Option<&'static str> {
        of(self.table().whys, work)
    }

    /// Lines to paste into a program that help there.
    fn paste(&self, work: Work) -> &'static [&'static str] {
        of(self.table().pastes, work).unwrap_or_default()
    }

    /// The remedy for this work in a program that was started by this command, with lines to paste, where that is another one than
    /// in others.
    fn remedy_under(&self, _work: Work, _command: &[String]) -> Option<(&'static str, &'static [&'static str])> {
        None
    }

    /// A remedy that helps more under the version of the interpreter that this file belongs to, with lines to paste.
    fn newer_remedy(&self, _work: Work, _file: &str) -> Option<(&'static str, &'static [&'static str])> {
        None
    }

    /// One sentence on when a program in this language starts another one without a fork.
    fn starting_programs(&self) -> Option<&'static str> {
        None
    }

    /// Finds the interpreter in a process; `None` if it runs none. May take milliseconds: ask once a family.
    ///
    /// # Errors
    /// The process has the looks of one and cannot be read: not initialised yet, of an unknown version, without
    /// permission, or gone.
    fn reader(&self, _pid: i32) -> Result<Option<Box<dyn InterpreterReader>>, String> {
        Err(format!("the lines that {} runs are not read", self.name()))
    }

    /// Why frames of this language have no file and line, where none has: they tell which functions ran.
    fn has_no_lines(&self) -> Option<&'static str> {
        None
    }

    /// The reader of the interpreter's objects in memory; `None` if their layout is not known here.
    fn objects(&self) -> Option<fn(PointerBudget) -> Box<dyn ObjectReader>> {
        None
    }

    /// Tells whether the layout of the objects tells of each word whether the program itself wrote it.
    fn knows_all_writes(&self) -> bool {
        self.objects().is_some()
    }

    /// Tells whether references are counted inside objects.
    fn counts_references(&self) -> bool {
        true
    }

    /// The part that the remedy for this work spares of what is copied for it.
    fn spares(&self, _work: Work) -> Spares {
        Spares::All
    }

    /// Why the remedy against counting references spares a part only where a fair part of the counts are [`Work::ObjectReferences`].
    fn beside_object_references(&self) -> Option<&'static str> {
        None
    }

    /// Tells whether it is by counting references that the collector of garbage comes to run: without the one there is none of the other.
    fn collects_by_counting(&self) -> bool {
        false
    }

    /// Tells whether the interpreter has a collector of garbage that writes into what it visits.
    fn has_collector(&self) -> bool {
        true
    }

    /// Tells whether the collector keeps what it has of objects apart from them, between the data.
    fn collector_has_tables(&self) -> bool {
        false
    }

    /// Debian's package with the symbols of one of the interpreter's files, where that is certain.
    fn symbols_package(&self, _file: &str) -> Option<String> {
        None
    }
}

/// The entry of a table for some work.
fn of<T: Copy>(table: &[(Work, T)], work: Work) -> Option<T> {
    table.iter().find(|(known, _)| *known == work).map(|(_, entry)| *entry)
}

/// The interpreter of one process, read from outside.
pub trait InterpreterReader {
    /// The language.
    fn language(&self) -> &'static dyn Language;

    /// The interpreter of a process that was forked from this one and has not executed another program.
    fn for_child(&self, pid: i32) -> Box<dyn InterpreterReader>;

    /// The frames of a thread that stands still, the innermost first. Empty if it runs none, or if what is there makes no
    /// sense. `pc`: the instruction that its processor is at, where that is known.
    fn frames(&mut self, tid: i32, pc: Option<u64>) -> Vec<Frame>;
}

/// Every language that is known; those of which more is known come first.
pub const ALL: &[&dyn Language] = &[&python::CPython, &ruby::Ruby, &r::R, &perl::Perl, &php::Php, &recognised::OTHERS];

/// The language that a capture calls so.
pub fn by_id(id: &str) -> Option<&'static dyn Language> {
    ALL.iter().copied().find(|language| language.id() == id)
}

/// The language of a process that maps these files as code: of several the one that tells more.
pub fn of_files<'a>(files: impl Iterator<Item = &'a str>) -> Option<&'static dyn Language> {
    let places = files.filter_map(|file| ALL.iter().position(|language| language.is_run_by(file)));
    ALL.get(places.min()?).copied()
}

/// The work of a function of any language's interpreter.
pub fn work_of_function(function: &str) -> Option<Work> {
    ALL.iter().find_map(|language| language.work_of_function(function))
}

/// Tells whether this function of any language's interpreter does the work of those that call it.
pub fn helps_caller(function: &str) -> bool {
    ALL.iter().any(|language| language.helps_caller(function))
}

/// Tells whether this function of any language's interpreter runs the program.
pub fn runs_program(function: &str) -> bool {
    ALL.iter().any(|language| language.runs_program(function))
}

/// Tells whether this function of any language's interpreter runs the program and then takes the interpreter down.
pub fn outlives_program(function: &str) -> bool {
    ALL.iter().any(|language| language.outlives_program(function))
}

/// Tells whether a source file is the user's own. Any file is, in a language that is not known.
pub fn is_own(language: Option<&str>, file: &str) -> bool {
    language.and_then(by_id).is_none_or(|language| language.is_own(file))
}

/// Tells whether frames of a language have files and lines. Those of one that is not known do.
pub fn has_lines(language: Option<&str>) -> bool {
    language.and_then(by_id).is_none_or(|language| language.has_no_lines().is_none())
}

/// The work of a stack of a program in a language; `None` for its own work, and where the language is not known.
pub fn work_of_frames(language: Option<&str>, frames: &[Frame]) -> Option<Work> {
    language.and_then(by_id)?.work_of_frames(frames)
}

/// The outermost import that a stack of a program in a language is in.
pub fn import_of_frames(language: Option<&str>, frames: &[Frame]) -> Option<Import> {
    language.and_then(by_id)?.import_of_frames(frames)
}

/// One sentence on those of these modules that any language's program was told to load before its workers, who loaded them all the same.
pub fn not_loaded_early(modules: &[String], command: &[String]) -> Option<String> {
    ALL.iter().find_map(|language| language.not_loaded_early(modules, command))
}

/// The work of a stack of a program in a language that starts a worker, or takes the program down.
pub fn phase_of_frames(language: Option<&str>, frames: &[Frame]) -> Option<Work> {
    language.and_then(by_id)?.phase_of_frames(frames)
}

/// The reader of the objects of a process: those of its language, or where no language is known those of any.
pub fn objects(language: Option<&'static dyn Language>, patience: PointerBudget) -> Box<dyn ObjectReader> {
    let known = match language {
        Some(language) => language.objects(),
        // Python may be part of a program of another name.
        None => ALL.iter().find_map(|language| language.objects()),
    };
    known.map_or_else(|| Box::new(objects::NoObjects) as Box<dyn ObjectReader>, |objects| objects(patience))
}
