//! The interpreter or program that runs in a process, as far as it changes what can be told and what helps.

use crate::stacks::languages::{self, Language};

/// The interpreter or program that runs in a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Runtime {
    /// An interpreter or virtual machine: its language's place in [`languages::ALL`].
    Language(usize),
    /// Redis or a relative.
    Redis,
    /// None of these.
    #[default]
    Native,
}

/// Beginnings of the names of Redis' and its relatives' programs.
const REDIS: &[&str] = &["redis-server", "valkey-server", "keydb-server"];

impl Runtime {
    /// From the names of what a process has mapped and the program that it runs.
    pub fn of<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let found = names.filter_map(|name| {
            let file = name.rsplit('/').next().unwrap_or(name);
            let language = languages::ALL.iter().position(|language| language.is_run_by(name));
            let is = |redis: &&str| {
                file.strip_prefix(*redis).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphabetic()))
            };
            let is_redis = REDIS.iter().any(is).then_some(Self::Redis);
            language.map(Self::Language).or(is_redis)
        });
        // The interpreter is what copies in a program that embeds one next to its own work.
        found.min().unwrap_or_default()
    }

    /// Tells whether only files of an interpreter are mapped that any program may have loaded without ever running it. The interpreter's
    /// own program, and an extension of it, are there only where it runs.
    pub fn is_only_loaded<'a>(self, mut names: impl Iterator<Item = &'a str>) -> bool {
        let is_library = |name: &str| name.rsplit('/').next().unwrap_or(name).starts_with("lib");
        self.language().is_some_and(|language| names.all(|name| !language.is_run_by(name) || is_library(name)))
    }

    /// The language.
    pub fn language(self) -> Option<&'static dyn Language> {
        match self {
            Self::Language(place) => languages::ALL.get(place).copied(),
            Self::Redis | Self::Native => None,
        }
    }

    /// Tells whether memory is managed by an interpreter whose objects' layout is not known here.
    pub fn has_unknown_objects(self) -> bool {
        self.language().is_some_and(|language| !language.knows_all_writes())
    }

    /// Tells whether an interpreter runs there that has a collector of garbage.
    pub fn has_collector(self) -> bool {
        self.language().is_none_or(Language::has_collector)
    }

    /// Tells whether the interpreter there, if any, counts references.
    pub fn counts_references(self) -> bool {
        self.language().is_none_or(Language::counts_references)
    }

    /// The runtime of a language, by its id.
    #[cfg(test)]
    pub fn of_language(id: &str) -> Option<Self> {
        languages::ALL.iter().position(|language| language.id() == id).map(Self::Language)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn language(id: &str) -> Runtime {
        Runtime::of_language(id).expect("known")
    }

    #[test]
    fn a_library_that_any_program_may_load_is_no_proof_that_it_runs() {
        let libpython = "/usr/lib/x86_64-linux-gnu/libpython3.11.so.1.0";
        for (more, expected) in [
            ("/srv/host", true),
            ("/usr/bin/python3.11", false),
            ("/usr/lib/python3.11/lib-dynload/_json.cpython-311-x86_64-linux-gnu.so", false),
        ] {
            let names = || [libpython, "/lib/libc.so.6", more].into_iter();
            assert_eq!(Runtime::of(names()).is_only_loaded(names()), expected, "{more}");
        }
        assert!(!Runtime::Native.is_only_loaded(["/srv/host"].into_iter()));
    }

    #[test]
    fn runtimes_are_known_by_their_files() {
        for (name, expected) in [
            ("/usr/bin/python3.13", language("python")),
            ("/usr/lib/x86_64-linux-gnu/libpython3.11.so.1.0", language("python")),
            ("python3", language("python")),
            ("/home/x/python-tools/convert", Runtime::Native),
            ("/usr/bin/pythonista", Runtime::Native),
            ("/usr/bin/redis-server", Runtime::Redis),
            ("/usr/lib/libruby-3.3.so.3.3", language("ruby")),
            ("/usr/lib/x86_64-linux-gnu/libperl.so.5.36", language("perl")),
            ("perl", language("perl")),
            ("/usr/bin/php8.2", language("php")),
            ("/usr/lib/jvm/java-17/lib/server/libjvm.so", language("other")),
            ("/usr/lib/x86_64-linux-gnu/libluajit-5.1.so.2.1.0", language("other")),
            ("/usr/sbin/php-fpm8.2", language("php")),
            ("/usr/bin/node_exporter", Runtime::Native),
            ("/home/x/perlite/rubyist", Runtime::Native),
            ("/bin/cat", Runtime::Native),
        ] {
            assert_eq!(Runtime::of(["/lib/libc.so.6", name].into_iter()), expected, "{name}");
        }
    }
}
