//! What runs in a process, as far as it changes what can be told and what helps.

use crate::stacks::languages;

/// What runs in a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Runtime {
    /// CPython.
    Python,
    /// Ruby.
    Ruby,
    /// Perl.
    Perl,
    /// PHP.
    Php,
    /// Another language's interpreter or virtual machine.
    Other,
    /// Redis or a relative.
    Redis,
    /// None of these.
    #[default]
    Native,
}

/// Beginnings of the names of files that a process maps, or of its program's name, and what runs there.
const FILES: &[(&str, Runtime)] = &[
    ("libruby", Runtime::Ruby),
    ("ruby", Runtime::Ruby),
    ("libperl", Runtime::Perl),
    ("perl", Runtime::Perl),
    ("libphp", Runtime::Php),
    ("php", Runtime::Php),
    ("libjvm.so", Runtime::Other),
    ("libnode", Runtime::Other),
    ("node", Runtime::Other),
    ("lua", Runtime::Other),
    ("liblua", Runtime::Other),
    ("libmozjs", Runtime::Other),
    ("libR.so", Runtime::Other),
    ("libjulia", Runtime::Other),
    ("libmonosgen", Runtime::Other),
    ("libcoreclr.so", Runtime::Other),
    ("pypy", Runtime::Other),
    ("libpypy", Runtime::Other),
    ("redis-server", Runtime::Redis),
    ("valkey-server", Runtime::Redis),
    ("keydb-server", Runtime::Redis),
];

impl Runtime {
    /// From the names of what a process has mapped and the program that it runs.
    pub fn of<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let found = names.filter_map(|name| {
            let file = name.rsplit('/').next().unwrap_or(name);
            if languages::of_files(std::iter::once(name)).is_some() {
                return Some(Self::Python);
            }
            // `perl5.36`, `php8.2`, `libruby-3.1.so.3.1`, but neither `rubyist` nor `nodelist`.
            let is = |beginning: &str| {
                file.strip_prefix(beginning).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphabetic()))
            };
            FILES.iter().find(|(beginning, _)| is(beginning)).map(|(_, runtime)| *runtime)
        });
        // A program that embeds Python next to its own work is Python's here: that is what copies.
        found.min().unwrap_or_default()
    }

    /// Is memory managed by an interpreter whose objects' layout is not known here?
    pub fn has_unknown_objects(self) -> bool {
        matches!(self, Self::Ruby | Self::Perl | Self::Php | Self::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_are_known_by_their_files() {
        for (name, expected) in [
            ("/usr/bin/python3.13", Runtime::Python),
            ("/usr/lib/x86_64-linux-gnu/libpython3.11.so.1.0", Runtime::Python),
            ("python3", Runtime::Python),
            ("/home/x/python-tools/convert", Runtime::Native),
            ("/usr/bin/pythonista", Runtime::Native),
            ("/usr/bin/redis-server", Runtime::Redis),
            ("/usr/lib/libruby-3.3.so.3.3", Runtime::Ruby),
            ("/usr/lib/x86_64-linux-gnu/libperl.so.5.36", Runtime::Perl),
            ("perl", Runtime::Perl),
            ("/usr/bin/php8.2", Runtime::Php),
            ("/usr/lib/jvm/java-17/lib/server/libjvm.so", Runtime::Other),
            ("/home/x/perlite/rubyist", Runtime::Native),
            ("/bin/cat", Runtime::Native),
        ] {
            assert_eq!(Runtime::of(["/lib/libc.so.6", name].into_iter()), expected, "{name}");
        }
    }
}
