//! Perl: which lines a process of another perl is in, which of its memory are reference counts, and what helps.

mod objects;
mod reader;

use super::recognised::{NOTHING, Recognised};
use super::{InterpreterReader, Language, ObjectReader, PointerBudget, Work, main_thread};

/// Perl.
#[derive(Debug)]
pub struct Perl;

/// The names of Perl's functions and files, and what they tell.
const NAMES: Recognised = Recognised {
    id: "perl",
    name: "Perl",
    files: &["libperl", "perl"],
    functions: &[
        (Work::Exit, &["perl_destruct", "Perl_my_exit"]),
        (
            Work::Numbers,
            &["Perl_sv_2iv_flags", "Perl_sv_2uv_flags", "Perl_sv_2nv_flags", "Perl_sv_2num", "Perl_looks_like_number"],
        ),
    ],
    helpers: &["Perl_sv_upgrade", "Perl_more_bodies"],
    runs: &["Perl_runops_standard", "Perl_runops_debug", "Perl_call_list", "Perl_call_sv"],
    remedies: &[
        (
            Work::Exit,
            "if the child's END blocks and destructors need not run, flush its files and leave it by POSIX::_exit(), which frees nothing \
             and runs none of them",
        ),
        (
            Work::References,
            "go through arrays by index, and through hashes by an array of their keys that is there before the fork: what is fetched from \
             its place and used there is not counted",
        ),
        (Work::Numbers, "use the strings as numbers once before the fork: a string that has its number is only read"),
    ],
    whys: &[
        (Work::References, "Perl counts references inside each value and each key of a hash, so reading writes"),
        (Work::Numbers, "Perl writes the number into a string that is used as one, so reading writes"),
        (Work::Exit, "Perl frees its values when it ends"),
    ],
    pastes: &[
        (
            Work::References,
            &[
                "for my $i (0 .. $#a) { read_it($a[$i]) }     # not: for my $x (@a)",
                "my @k = keys %h;                             # in the parent",
                "for my $i (0 .. $#k) { read_it($h{$k[$i]}) } # not: each, values, keys",
            ],
        ),
        (Work::Numbers, &["{ my $sum = 0; $sum += $_ for @data }    # in the parent, before the fork"]),
        (Work::Exit, &["use POSIX (); $| = 1; POSIX::_exit(0);    # the child's last line"]),
    ],
    ..NOTHING
};

impl Language for Perl {
    fn table(&self) -> &Recognised {
        &NAMES
    }

    fn is_own(&self, file: &str) -> bool {
        // The directories of @INC that Perl and its packages are installed to.
        let parts: Vec<&str> = file.split('/').collect();
        !parts.windows(2).any(|pair| matches!(pair, ["lib" | "share" | "lib64", "perl" | "perl5" | "perl-base"]))
            && !parts.contains(&"perl-base")
    }

    fn reader(&self, pid: i32) -> Result<Option<Box<dyn InterpreterReader>>, String> {
        main_thread::reader::<reader::Interpreter>(pid)
    }

    fn objects(&self) -> Option<fn(PointerBudget) -> Box<dyn ObjectReader>> {
        Some(|_| Box::new(objects::Values))
    }

    fn has_collector(&self) -> bool {
        false
    }
}
