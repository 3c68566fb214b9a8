//! Perl: which lines a process of another perl is in, which of its memory are reference counts, and what helps.

mod objects;
mod reader;

use super::recognised::{NOTHING, Recognised};
use super::{InterpreterReader, Language, ObjectReader, PointerBudget, Work, main_thread};
use crate::record::Frame;
use reader::MAIN;

/// Perl.
#[derive(Debug)]
pub struct Perl;

/// The remedy against counting references, and against what going through a hash writes.
const IN_PLACE: &str = "go through arrays by index, and through hashes by an array of their keys that is there before the fork, whose number is \
                        scalar(%h), and use each value in its place: it is counted where it is copied to a variable, or given to a sub, \
                        map, grep or sort";

/// Lines to paste that show it.
const PASTE_IN_PLACE: &[&str] = &[
    "for my $i (0 .. $#a) { $sum += $a[$i]{n} }       # not: for my $x (@a)",
    "my @k = keys %h;                                 # in the parent",
    "for my $i (0 .. $#k) { $sum += $h{$k[$i]}{n} }   # not: each, values, keys",
];

/// The remedy against what copies and matches write into the string that they are of.
const OWN_TEXT: &str = "write \"$string\" where a string is copied, or matched: that makes a text of its own, and nothing is written to the one \
                        that is shared";

/// Lines to paste that show it.
const PASTE_OWN_TEXT: &[&str] = &[
    "my $copy = \"$s[$i]\";                  # not: my $copy = $s[$i]",
    "if (\"$s[$i]\" =~ /(\\d+)/) { }          # not: $s[$i] =~ /(\\d+)/",
    "while ($copy =~ /\\w+/g) { }            # not: $s[$i] =~ /\\w+/g",
];

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
        (Work::Texts, &["Perl_sv_2pv_flags"]),
        (
            Work::Remembered,
            &["Perl_sv_len_utf8", "Perl_sv_len_utf8_nomg", "Perl_sv_pos_u2b_flags", "Perl_sv_pos_b2u_flags"],
        ),
        (Work::Positions, &["Perl_sv_magicext_mglob"]),
        (
            Work::Iterators,
            &["Perl_hv_auxalloc", "Perl_hv_iterinit", "Perl_hv_iternext_flags", "Perl_hv_iterkeysv", "Perl_hv_pushkv"],
        ),
        (Work::ObjectReferences, &["Perl_pp_entersub", "Perl_pp_leavesub"]),
        (Work::Import, &["Perl_pp_require"]),
    ],
    helpers: &[
        "Perl_sv_upgrade",
        "Perl_more_bodies",
        "Perl_sv_magicext",
        "Perl_sv_magic",
        "Perl_sv_grow",
        "Perl_newSVhek",
    ],
    runs: &["Perl_runops_standard", "Perl_runops_debug", "Perl_call_list", "Perl_call_sv"],
    remedies: &[
        (
            Work::Exit,
            "if the child's END blocks and destructors need not run, flush its files and leave it by POSIX::_exit(), which frees nothing \
             and runs none of them",
        ),
        (Work::References, IN_PLACE),
        (Work::Iterators, IN_PLACE),
        (Work::Import, "load modules before the fork, by use or require in the parent"),
        (Work::Numbers, "use the strings as numbers once before the fork: a string that has its number is only read"),
        (Work::Texts, "use the numbers as strings once before the fork: a number that has its text is only read"),
        (Work::Remembered, "ask the strings for their length once before the fork: a string that has it is only read"),
        (Work::Positions, OWN_TEXT),
        (Work::TextCopies, OWN_TEXT),
    ],
    whys: &[
        (
            Work::References,
            "Perl keeps a count of references and flags inside each value, and a count inside each key of a hash, and writes them as it \
             hands values on, so reading writes",
        ),
        (Work::ObjectReferences, "Perl counts calls and references inside each sub, so calling writes"),
        (
            Work::Iterators,
            "Perl keeps in a hash where each, keys and values stand, and makes a new value of each key, so going through it writes",
        ),
        (Work::Import, "each child loads modules that its parent had not loaded"),
        (Work::Texts, "Perl writes the text into a number that is used as a string, so reading writes"),
        (
            Work::Remembered,
            "Perl keeps with a string of wide characters how many these are and where they lie, so asking writes",
        ),
        (Work::Positions, "Perl keeps with a string where //g goes on to search it, so searching writes"),
        (
            Work::TextCopies,
            "Perl counts the copies of a string, and the matches that still refer to it, behind its text, so copying it writes",
        ),
        (Work::Numbers, "Perl writes the number into a string that is used as one, so reading writes"),
        (Work::Exit, "Perl frees its values when it ends"),
    ],
    pastes: &[
        (Work::References, PASTE_IN_PLACE),
        (Work::Iterators, PASTE_IN_PLACE),
        (Work::Texts, &["{ my $text; $text = \"$_\" for @data }    # in the parent, before the fork"]),
        (Work::Remembered, &["{ my $sum = 0; $sum += length for @data }    # in the parent, before the fork"]),
        (Work::Positions, PASTE_OWN_TEXT),
        (Work::TextCopies, PASTE_OWN_TEXT),
        (Work::Numbers, &["{ my $sum = 0; $sum += $_ for @data }    # in the parent, before the fork"]),
        (Work::Exit, &["use POSIX (); $| = 1; POSIX::_exit(0);    # the child's last line"]),
    ],
    ..NOTHING
};

impl Language for Perl {
    fn table(&self) -> &Recognised {
        &NAMES
    }

    fn work_of_frames(&self, frames: &[Frame]) -> Option<Work> {
        // `use` runs in a block of this name; what stands in no function of a module runs once, when the module is loaded.
        let loads = |frame: &Frame| frame.function == "BEGIN" || frame.function == MAIN && frame.file.ends_with(".pm");
        frames.iter().any(loads).then_some(Work::Import)
    }

    fn is_own(&self, file: &str) -> bool {
        // The directories of @INC that Perl and its packages are installed to.
        let mut parts = file.split('/').skip_while(|part| !matches!(*part, "lib" | "lib64" | "share"));
        !parts.any(|part| matches!(part, "perl" | "perl5" | "perl-base"))
    }

    fn reader(&self, pid: i32) -> Result<Option<Box<dyn InterpreterReader>>, String> {
        main_thread::reader::<reader::Interpreter>(pid)
    }

    fn objects(&self) -> Option<fn(PointerBudget) -> Box<dyn ObjectReader>> {
        Some(|_| Box::new(objects::Values))
    }

    fn beside_object_references(&self) -> Option<&'static str> {
        Some("calls are counted inside subs all the same")
    }

    fn has_collector(&self) -> bool {
        false
    }
}
