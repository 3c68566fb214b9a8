//! The plan of a judged run: libraries with functions that write, and what a family of processes does with them.
//!
//! Everything follows from the seed, and so does the truth: which function of which file stores to how many pages on
//! which line, and what its write is. `judge.c` carries the plan out.

use crate::case::Random;
use crate::writing::{KINDS, Kind, Writer};
use std::fmt::{self, Write as _};

/// Writers of one plan.
pub const WRITERS: usize = 200;
/// Libraries that are open from the beginning: 1 to this.
const RESIDENT: usize = 4;
/// Libraries that come and go: from the next on, up to this.
const LIBS: usize = 24;
/// The number of the library that replaces another on disk.
const REPLACEMENT: usize = 32;
/// Actor 1 does nothing but hold pages, so that what actor 0 writes is shared. These are children of actor 0 ...
const CHILDREN: std::ops::Range<usize> = 2..10;
/// ... and these are their children.
const GRANDCHILDREN: std::ops::Range<usize> = 10..14;

/// The symbols in a library's file, which tell of its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symbols {
    /// Functions and lines.
    Lines,
    /// Functions.
    Functions,
    /// Names that it exports.
    Exported,
}

/// A library.
#[derive(Clone, Debug)]
pub struct Lib {
    /// The symbols in its file.
    pub symbols: Symbols,
    /// The library's source.
    pub source: String,
}

/// Libraries, writers, and what happens.
#[derive(Default)]
pub struct Plan {
    /// By number; the first is the program itself.
    pub libs: Vec<Lib>,
    /// By number.
    pub writers: Vec<Writer>,
    /// The script of each actor.
    actors: Vec<Vec<String>>,
    /// Replacements on disk: which library by which.
    pub replaced: Vec<(usize, usize)>,
}

const HEAD: &str = "#define _GNU_SOURCE
#include <string.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <unistd.h>
#define SHARED __attribute__((noinline))
#pragma GCC diagnostic ignored \"-Wunused\"
static volatile long bytes = 200;
static inline __attribute__((always_inline)) void g_atomic_ref_count_inc(int *n) {
    __atomic_fetch_add(n, 1, __ATOMIC_RELAXED);
}
static inline __attribute__((always_inline)) void g_atomic_ref_count_dec(int *n) {
    __atomic_fetch_sub(n, 1, __ATOMIC_ACQ_REL);
}
";

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut plan = Self { actors: vec![Vec::new(); GRANDCHILDREN.end], ..Self::default() };
        for lib in 0..=LIBS {
            let symbols = match lib {
                0 | 1 => Symbols::Lines,
                _ => [Symbols::Lines, Symbols::Lines, Symbols::Lines, Symbols::Functions, Symbols::Exported]
                    [random.below(5)],
            };
            plan.libs.push(Lib { symbols, source: HEAD.to_owned() });
        }
        plan.sessions(&mut random);
        while plan.writers.len() < WRITERS {
            plan.visitor(&mut random);
        }
        plan.families(&mut random);
        plan.sources();
        plan
    }

    /// Each library that comes and goes belongs to one actor, which opens it, writes through it, and mostly closes it:
    /// the next lies where it lay.
    fn sessions(&mut self, random: &mut Random) {
        for lib in RESIDENT + 1..=LIBS {
            let actor = match random.below(8) {
                0 => 0,
                1 => GRANDCHILDREN.start + random.below(GRANDCHILDREN.len()),
                // Few have many rather than all one.
                _ => CHILDREN.start + random.below(CHILDREN.len() - 3),
            };
            let fate = ["", "", "", "", "unlink", "replace"][random.below(6)];
            let open = if random.below(6) == 0 { "apart" } else { "open" };
            self.say(actor, &format!("{open} {lib} 0 0"));
            let writers = 4 + random.below(5);
            for nth in 0..writers {
                let tag = match (fate, open, self.libs[lib].symbols) {
                    ("unlink", ..) => "unlinked",
                    ("replace", ..) => "replaced",
                    (_, _, Symbols::Exported) => "stripped",
                    (_, _, Symbols::Functions) => "no lines",
                    (_, "apart", _) => "apart",
                    _ => "late",
                };
                let kind = KINDS[random.below(KINDS.len())];
                self.writer(random, lib, kind, actor, tag, None);
                if nth == writers / 2 && fate == "unlink" {
                    self.say(actor, &format!("unlink {lib} 0 0"));
                }
                if nth == writers / 2 && fate == "replace" {
                    self.say(actor, &format!("replace {lib} {} 0", lib + REPLACEMENT));
                    self.replaced.push((lib, lib + REPLACEMENT));
                }
            }
            if random.below(5) > 0 {
                self.say(actor, &format!("close {lib} 0 0"));
            }
        }
    }

    /// A writer of the program, of a library that stays, or of generated code, at any time of any actor.
    fn visitor(&mut self, random: &mut Random) {
        let actor = match random.below(6) {
            0 => 0,
            1 => GRANDCHILDREN.start + random.below(GRANDCHILDREN.len()),
            _ => CHILDREN.start + random.below(CHILDREN.len()),
        };
        let at = Some(random.below(self.actors[actor].len() + 1));
        if random.below(12) == 0 && cfg!(target_arch = "x86_64") {
            let kind = if random.below(2) == 0 { Kind::Generated } else { Kind::Named };
            return self.writer(random, 0, kind, actor, "generated", at);
        }
        let lib = random.below(RESIDENT + 1);
        let tag = match self.libs[lib].symbols {
            Symbols::Exported => "stripped",
            Symbols::Functions => "no lines",
            Symbols::Lines => "resident",
        };
        let kind = KINDS[random.below(KINDS.len())];
        self.writer(random, lib, kind, actor, tag, at);
    }

    fn writer(
        &mut self,
        random: &mut Random,
        lib: usize,
        kind: Kind,
        actor: usize,
        tag: &'static str,
        at: Option<usize>,
    ) {
        let id = self.writers.len();
        let (count, step, first) = (4 + random.below(20), 1 + random.below(3), random.below(3));
        let resident = (1..=RESIDENT).contains(&lib) && kind.syscall().is_none();
        let backing = match random.below(8) {
            0 => "memfd",
            1 if resident => "data",
            2 if resident => "bss",
            _ => "anon",
        };
        let pages = first + step * count;
        let mut writer =
            Writer { lib, kind, backing, pages, first, step, count, dropped: 0, unmapped: false, tag, fate: "kept" };
        let put = match kind {
            Kind::Generated => "jit",
            Kind::Named => "named",
            _ if random.below(4) == 0 => "thread",
            _ => "put",
        };
        let half = count / 2;
        let plain = format!("{put} {id} 0 {count}");
        let mut lines = vec![plain.clone()];
        match (backing, random.below(12)) {
            ("anon" | "memfd", 0) => {
                writer.fate = "moved";
                lines = vec![
                    format!("{put} {id} 0 {half}"),
                    format!("move {id} 0 0"),
                    format!("{put} {id} {half} {count}"),
                ];
            }
            ("anon", 1) => {
                (writer.dropped, writer.fate) = (half, "dropped");
                lines = vec![format!("drop {id} 0 {half}"), plain];
            }
            ("anon", 2) => {
                writer.fate = "lazy";
                lines = vec![format!("lazy {id} 0 {half}"), plain];
            }
            ("anon", 3) => {
                (writer.unmapped, writer.fate) = (true, "unmapped");
                lines.push(format!("unmap {id} 0 0"));
            }
            (_, 4) => lines.push("spawn 0 0 0".to_owned()),
            _ => {}
        }
        self.writers.push(writer);
        let lines = lines.into_iter();
        match at {
            Some(at) => drop(self.actors[actor].splice(at..at, lines)),
            None => self.actors[actor].extend(lines),
        }
    }

    fn say(&mut self, actor: usize, line: &str) {
        self.actors[actor].push(line.to_owned());
    }

    /// Says who forks whom, and when.
    fn families(&mut self, random: &mut Random) {
        for actor in GRANDCHILDREN {
            let parent = CHILDREN.start + random.below(CHILDREN.len());
            let at = random.below(self.actors[parent].len() + 1);
            self.actors[parent].insert(at, format!("fork {actor} 0 0"));
        }
        for actor in CHILDREN {
            let at = random.below(self.actors[0].len() + 1);
            self.actors[0].insert(at, format!("fork {actor} 0 0"));
        }
        let first = (1..=RESIDENT).map(|lib| format!("open {lib} 0 0")).chain(["fork 1 0 0".to_owned()]);
        self.actors[0].splice(0..0, first);
        self.say(0, "release 0 0 0");
        self.say(1, "hold 0 0 0");
    }

    fn sources(&mut self) {
        for (id, writer) in self.writers.iter().enumerate() {
            let text = &mut self.libs[writer.lib].source;
            let statement = writer.kind.statement();
            if writer.kind.is_generated() {
                continue;
            }
            let arguments = "char *base, long first, long step, long from, long to, long page, int fd";
            let (store, is_hidden) = (statement.replacen(';', &format!("; /*{id}*/"), 1), writer.kind == Kind::Hidden);
            // The marker stands on the line of the first store, also behind the head of a loop.
            let store = if statement.starts_with("for") { format!("{statement} /*{id}*/") } else { store };
            let head = if is_hidden { format!("static SHARED void hidden{id}") } else { format!("SHARED void w{id}") };
            // Writing to a string cannot fail.
            let _written = write!(
                text,
                "{head}({arguments}) {{\n    for (long i = from; i < to; i++) {{\n        \
                 char *p = base + (first + i * step) * page;\n        {store}\n    }}\n}}\n"
            );
            if is_hidden {
                let _written = writeln!(
                    text,
                    "SHARED void w{id}({arguments}) {{ hidden{id}(base, first, step, from, to, page, fd); }}"
                );
            }
            if writer.is_static() {
                let pages = writer.pages;
                let initial = if writer.is_in_file() { " = {1}" } else { "" };
                let _written =
                    writeln!(text, "__attribute__((aligned(65536))) char w{id}_area[{pages} * PAGE]{initial};");
            }
        }
    }

    /// The source of what replaces a library: as many functions, none of which is called.
    pub fn replacement(&self, lib: usize) -> String {
        let ids = (0..self.writers.len()).filter(|&id| self.writers[id].lib == lib);
        ids.fold(self.libs[lib].source.clone(), |text, id| {
            text.replace(&format!("w{id}("), &format!("other{id}("))
                .replace(&format!("hidden{id}("), &format!("wrong{id}("))
        })
    }

    /// The line of a writer's first store, from 1.
    pub fn line(&self, id: usize) -> Option<u64> {
        let marker = format!("/*{id}*/");
        let source = &self.libs[self.writers[id].lib].source;
        source.lines().position(|line| line.contains(&marker)).map(|nth| nth as u64 + 1)
    }

    /// The function that stores, where a name of it exists.
    pub fn function(&self, id: usize) -> Option<String> {
        let writer = &self.writers[id];
        match (writer.kind, self.libs[writer.lib].symbols) {
            (Kind::Hidden, Symbols::Exported) | (Kind::Generated, _) => None,
            (Kind::Hidden, _) => Some(format!("hidden{id}")),
            _ => Some(format!("w{id}")),
        }
    }
}

/// The lines that judge.c reads, but for the libraries' paths.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (id, w) in self.writers.iter().enumerate() {
            writeln!(f, "writer {id} {} {} {} {} {}", w.lib, w.backing, w.pages, w.first, w.step)?;
        }
        for (actor, lines) in self.actors.iter().enumerate() {
            for line in lines {
                writeln!(f, "do {actor} {line}")?;
            }
        }
        Ok(())
    }
}
