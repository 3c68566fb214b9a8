//! Interpreters that are recognised, and some of whose functions are known. Neither their frames nor the layout of their
//! objects is read.

use super::{Language, Work};

/// One of them, or several that have nothing of their own to say.
#[derive(Debug)]
pub struct Recognised {
    pub id: &'static str,
    pub name: &'static str,
    /// Beginnings of the names of its files.
    pub files: &'static [&'static str],
    /// The work of functions of these names.
    pub functions: &'static [(Work, &'static [&'static str])],
    /// The work of functions whose names begin so.
    pub beginnings: &'static [(Work, &'static [&'static str])],
    /// Functions that do the work of those that call them.
    pub helpers: &'static [&'static str],
    /// Functions that run the program.
    pub runs: &'static [&'static str],
    /// A remedy that is known to help where memory is copied for this work, in one sentence.
    pub remedies: &'static [(Work, &'static str)],
    /// Why this work writes to memory that others share.
    pub whys: &'static [(Work, &'static str)],
    /// Lines to paste into a program that help there.
    pub pastes: &'static [(Work, &'static [&'static str])],
}

/// Nothing is known.
pub const NOTHING: Recognised = Recognised {
    id: "",
    name: "",
    files: &[],
    functions: &[],
    beginnings: &[],
    helpers: &[],
    runs: &[],
    remedies: &[],
    whys: &[],
    pastes: &[],
};

/// Others: Java, JavaScript, Lua, Julia, .NET, PyPy, Guile, Tcl, Erlang, OCaml's bytecode, Lisp, and the runtime of Go.
pub const OTHERS: Recognised = Recognised {
    id: "other",
    name: "another interpreter",
    files: &[
        "libjvm.so",
        "libnode",
        "node",
        "lua",
        "liblua",
        "libmozjs",
        "libjulia",
        "libmonosgen",
        "libcoreclr.so",
        "pypy",
        "libpypy",
        "luajit",
        "libluajit",
        "guile",
        "tclsh",
        "beam.smp",
        "ocamlrun",
        "sbcl",
    ],
    functions: &[(
        Work::Collector,
        &[
            "runtime.greyobject",
            "runtime.gcDrain",
            "runtime.markBits.setMarked",
            "runtime.scanobject",
            "propagatemark",
            "reallymarkobject",
        ],
    )],
    ..NOTHING
};

impl Recognised {
    /// Tells whether a process that maps this file as code, or that was started by this name, runs it.
    pub fn runs(&self, file: &str) -> bool {
        let name = file.rsplit('/').next().unwrap_or(file);
        // `perl5.36`, `php-fpm8.2`, `libruby-3.1.so.3.1`, but neither `rubyist` nor `node_exporter`.
        let goes_on = |c: char| c.is_ascii_alphabetic() || c == '_';
        let is = |beginning: &&str| name.strip_prefix(*beginning).is_some_and(|rest| !rest.starts_with(goes_on));
        self.files.iter().any(is)
    }

    /// The work of a function, by its bare name in the symbol table.
    pub fn work_of(&self, function: &str) -> Option<Work> {
        let exact = self.functions.iter().find(|(_, names)| names.contains(&function));
        let begins = |(_, names): &&(Work, &[&str])| names.iter().any(|beginning| function.starts_with(beginning));
        exact.or_else(|| self.beginnings.iter().find(begins)).map(|(work, _)| *work)
    }
}

impl Language for Recognised {
    fn table(&self) -> &Recognised {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::super::ALL;
    use super::*;

    #[test]
    fn no_name_of_a_table_tells_of_two_languages() {
        for language in ALL {
            let Recognised { files, functions, beginnings, helpers, runs, .. } = language.table();
            let works = functions.iter().chain(*beginnings);
            let functions: Vec<&str> =
                works.flat_map(|(_, names)| *names).chain(*helpers).chain(*runs).copied().collect();
            for other in ALL.iter().filter(|other| other.id() != language.id()) {
                let file = files.iter().find(|file| other.is_run_by(file));
                let known = |name: &&&str| {
                    other.work_of_function(name).is_some() || other.helps_caller(name) || other.runs_program(name)
                };
                let function = functions.iter().find(known);
                assert_eq!((file, function), (None, None), "of {} and {}", language.name(), other.name());
            }
        }
    }

    #[test]
    fn those_of_which_less_is_known_come_last() {
        assert_eq!(ALL.last().map(|language| language.id()), Some(OTHERS.id));
    }
}
