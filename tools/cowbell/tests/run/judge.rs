//! The exact judge: 200 writers whose page, module, function, line and cause are known, in libraries that come and go,
//! threads, forks, moves and frees; and each statement of the report about them.

use crate::exact::may_trace;
use crate::judged::{Judged, Row, Said, path_of, rows, shared_addresses};
use crate::lab::{cases, skip};
use crate::plan::{Symbols, WRITERS};
use crate::writing::{Kind, Writer};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The statements that are false, by statement and by what makes its writer hard.
type Falsehoods = BTreeMap<(&'static str, &'static str), Vec<String>>;

struct Judge<'a> {
    judged: &'a Judged,
    said: &'a Said,
    rows: Vec<Row<'a>>,
    wrong: Falsehoods,
    /// The number of each writer's copies that are told at all: the statements about code are about these.
    told: Vec<u64>,
    /// Statements that were judged, so that one that never comes up is not taken for true.
    judged_kinds: BTreeMap<(&'static str, &'static str), u64>,
}

impl<'a> Judge<'a> {
    fn new(judged: &'a Judged, said: &'a Said) -> Self {
        Self {
            judged,
            said,
            rows: rows(&said.report),
            wrong: BTreeMap::new(),
            told: vec![0; WRITERS],
            judged_kinds: BTreeMap::new(),
        }
    }

    /// One statement, true or not.
    fn hold(&mut self, statement: &'static str, tag: &'static str, holds: bool, what: impl FnOnce(&Self) -> String) {
        *self.judged_kinds.entry((statement, tag)).or_default() += 1;
        if !holds {
            let what = what(self);
            self.wrong.entry((statement, tag)).or_default().push(what);
        }
    }

    fn writers(&self) -> impl Iterator<Item = (usize, &'a Writer)> + Clone + use<'a> {
        self.judged.plan.writers.iter().enumerate()
    }

    /// Judges the pages that were copied, in every mode: all of the plan's, and no other page of its regions.
    fn pages(&mut self) {
        for (id, writer) in self.writers() {
            let puts = &self.said.puts[&id];
            let (pid, page) = (puts[0].pid, puts[0].page);
            let found = self.said.copied(pid);
            let base = puts[puts.len() - 1].base;
            let mut due = BTreeSet::new();
            for put in puts {
                for i in put.from.max(writer.dropped as u64)..put.to {
                    let offset = (writer.first as u64 + i * writer.step as u64) * page;
                    due.insert(base + offset);
                    // A page that was moved after the write may be told where it was written.
                    let is_there = found.contains(&(base + offset)) || found.contains(&(put.base + offset));
                    let lost = writer.unmapped && self.said.mode == "count";
                    self.told[id] += u64::from(is_there);
                    self.hold("a copied page is told", writer.fate, is_there || lost, |_| {
                        format!("w{id} {writer:?} page {i}")
                    });
                }
            }
            let region = base..base + writer.pages as u64 * page;
            let extra = found.range(region).filter(|at| !due.contains(at)).count();
            self.hold("what is told was copied", writer.fate, extra == 0, |_| {
                format!("w{id} {writer:?}: {extra} pages of its region besides")
            });
        }
    }

    /// The unmapped pages are within the bounds that are said, for each process.
    fn bounds(&mut self) {
        let mut lost: BTreeMap<i32, u64> = BTreeMap::new();
        for (id, writer) in self.writers().filter(|(_, writer)| writer.unmapped) {
            let put = &self.said.puts[&id][0];
            // A fork between write and unmap closes an interval, which tells them.
            *lost.entry(put.pid).or_default() += writer.copies() - self.told[id];
        }
        for (pid, pages) in lost {
            let bound: u64 = self.said.ends(pid).iter().filter_map(|end| end["unmapped_uncounted"].as_u64()).sum();
            let in_trace = self.said.mode == "trace";
            self.hold("at most so many more", "unmapped", in_trace || bound >= pages, |_| {
                format!("process {pid} copied and unmapped {pages} pages, the bound is {bound}")
            });
        }
    }

    /// Static data of libraries, in every mode.
    fn mappings(&mut self) {
        let plan = &self.judged.plan;
        for lib in 1..plan.libs.len() {
            let areas = plan.writers.iter().filter(|writer| writer.lib == lib && writer.is_static());
            let due: u64 = areas.clone().map(Writer::copies).sum();
            if due == 0 {
                continue;
            }
            let path = self.judged.library(lib);
            let mappings = self.said.report["mappings"].as_array().expect("mappings").iter();
            let of_lib = mappings.filter(|m| m["name"].as_str().is_some_and(|name| path_of(name) == path));
            let found: u64 = of_lib.map(|m| m["copied_pages"].as_u64().expect("pages")).sum();
            self.hold("pages of a library's data", "resident", found == due, |_| {
                format!("{}: {found} pages, not {due}", path.display())
            });
        }
        let bss = self.said.report["mappings"].as_array().expect("mappings").iter().filter(|m| m["kind"] == "bss");
        // The plan's other libraries have less than a page of it.
        let has_none = |path: &Path| {
            let lib = (1..plan.libs.len()).find(|lib| self.judged.library(*lib) == path);
            lib.is_some_and(|lib| !plan.writers.iter().any(|writer| writer.lib == lib && writer.is_static()))
        };
        let is_false = |m: &&Value| {
            let path = path_of(m["name"].as_str().expect("a path"));
            path.starts_with("/dev") || (has_none(path) && m["copied_pages"].as_u64() > Some(1))
        };
        let found: Vec<&Value> = bss.filter(is_false).collect();
        self.hold("uninitialised data", "anonymous", found.is_empty(), |_| format!("{found:?}"));
    }

    /// Each page that was copied by code of a library is told of that library.
    fn modules(&mut self) {
        let plan = &self.judged.plan;
        for lib in 0..plan.libs.len() {
            let mine = self.writers().filter(|(_, writer)| writer.lib == lib && !writer.kind.is_elsewhere());
            let tag = mine.clone().map(|(_, writer)| writer.tag).next();
            // Code that writes into private mappings of files is not seen, and nothing is said of it.
            let most: u64 = mine.clone().map(|(id, _)| self.told[id]).sum();
            let due: u64 = mine.filter(|(_, writer)| !writer.is_in_file()).map(|(id, _)| self.told[id]).sum();
            let path = self.judged.library(lib);
            let found: u64 = self.rows.iter().filter(|row| path_of(row.module) == path).map(|row| row.pages).sum();
            // The program has code of its own besides.
            let holds = found >= due && (lib == 0 || found <= most);
            self.hold("module", tag.unwrap_or("resident"), holds, |_| {
                format!("{}: {found} pages, not {due}", path.display())
            });
        }
    }

    /// Functions, lines and causes of what the plan's own code wrote.
    fn functions(&mut self) {
        for (id, writer) in self.writers().filter(|(_, writer)| !writer.kind.is_elsewhere()) {
            let plan = &self.judged.plan;
            let Some(function) = plan.function(id) else { continue };
            let due = self.told[id];
            let path = self.judged.library(writer.lib);
            let mine: Vec<usize> = (0..self.rows.len()).filter(|&n| self.rows[n].function == function).collect();
            let pages: u64 = mine.iter().map(|&n| self.rows[n].pages).sum();
            let say = |judge: &Self| {
                let rows: Vec<_> = mine.iter().map(|&n| &judge.rows[n]).collect();
                format!("{function}, {due} pages, {:?}: {rows:?}", writer.kind)
            };
            let is_unseen = writer.is_in_file() && pages == 0;
            self.hold("function", writer.tag, pages == due || is_unseen, say);
            let in_module = mine.iter().all(|&n| path_of(self.rows[n].module) == path);
            self.hold("module of a function", writer.tag, in_module, say);
            if plan.libs[writer.lib].symbols == Symbols::Lines {
                let file = format!("j{}.c", writer.lib);
                let line = plan.line(id).expect("a line");
                let lines = mine.iter().flat_map(|&n| &self.rows[n].lines);
                let right: u64 = lines.clone().filter(|l| l.0.ends_with(&file) && l.1 == line).map(|l| l.2).sum();
                let all: u64 = lines.clone().map(|l| l.2).sum();
                // The paths in a file that is no longer what its name leads to may mean other files.
                let is_there = !["unlinked", "replaced"].contains(&writer.tag);
                let marker = format!("/*{id}*/");
                let has_text = |l: &&(&str, u64, u64, Option<&str>)| l.3.is_some_and(|text| text.contains(&marker));
                let texts = lines.filter(has_text).map(|l| l.2).sum::<u64>();
                self.hold("line", writer.tag, all == pages && (right == due || is_unseen), say);
                self.hold("text of a line", writer.tag, texts == all || !is_there, say);
            }
            let lacks_line = mine.iter().any(|&n| self.rows[n].lines.is_empty() != self.rows[n].line_unknown.is_some());
            self.hold("why there is no line", writer.tag, !lacks_line, say);
            self.cause(writer, &mine, say);
        }
        // No name but of those who wrote.
        let known: BTreeSet<String> = (0..WRITERS).filter_map(|id| self.judged.plan.function(id)).collect();
        let strangers = |row: &&Row<'_>| {
            let of_plan = ["w", "hidden", "other", "wrong"].iter().any(|head| {
                row.function
                    .strip_prefix(head)
                    .is_some_and(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit()))
            });
            of_plan && !known.contains(row.function)
        };
        let found: Vec<String> = self.rows.iter().filter(strangers).map(|row| format!("{row:?}")).collect();
        self.hold("a function that never wrote", "any", found.is_empty(), |_| found.join("; "));
    }

    fn cause(&mut self, writer: &Writer, mine: &[usize], say: impl Fn(&Self) -> String) {
        let causes = writer.kind.causes(self.judged.plan.libs[writer.lib].symbols == Symbols::Lines);
        // A page that is gone cannot be compared with its original.
        let may_be_unknown = !causes.must_be_known || writer.unmapped;
        let said: Vec<&str> = mine.iter().map(|&n| self.rows[n].cause).collect();
        let is_false = |cause: &&str| *cause != "unknown" && !causes.true_ones.contains(cause);
        let is_unknown = said.contains(&"unknown") && !may_be_unknown;
        let kind = tag_of_cause(writer.kind);
        let no_lie = !said.iter().any(is_false);
        self.hold("cause", kind, no_lie, &say);
        self.hold("cause is known", kind, !is_unknown, &say);
    }

    /// Judges the kernel's writes, by system call; the C library's, by caller; and those of generated code.
    fn elsewhere(&mut self) {
        for kind in [Kind::Preadv, Kind::Uname, Kind::Getrusage, Kind::Read] {
            let name = kind.syscall().expect("it is one");
            let due: u64 = self.writers().filter(|(_, writer)| writer.kind == kind).map(|(id, _)| self.told[id]).sum();
            let rows = self.said.report["syscalls"].as_array().expect("system calls").iter();
            let found: u64 =
                rows.filter(|row| row["name"] == name).filter_map(|row| row["copied_pages"].as_u64()).sum();
            // Loading a library reads it to the stack.
            let holds = if kind == Kind::Read { found >= due } else { found == due };
            self.hold("system call", "any", holds, |_| format!("{name}: {found} pages, not {due}"));
        }
        for (id, _) in self.writers().filter(|(_, writer)| writer.kind == Kind::Memset) {
            let (caller, due) = (format!("w{id}"), self.told[id]);
            let rows =
                self.rows.iter().filter(|row| row.called_from == Some(&caller) && row.function.contains("memset"));
            let found: u64 = rows.filter(|row| row.estimated == 0).map(|row| row.pages).sum();
            let is_unseen = self.judged.plan.writers[id].is_in_file() && found == 0;
            self.hold("caller", "any", found == due || is_unseen, |_| format!("{caller}, {due} pages, has {found}"));
        }
        let mut unnamed = 0;
        for (id, writer) in self.writers().filter(|(_, writer)| writer.kind.is_generated()) {
            if writer.kind == Kind::Generated {
                unnamed += self.told[id];
                continue;
            }
            let (function, due) = (format!("w{id}"), self.told[id]);
            let found: u64 = self.rows.iter().filter(|row| row.function == function).map(|row| row.pages).sum();
            self.hold("function", "generated", found == due, |_| format!("{function}, {due} pages, has {found}"));
        }
        let of_no_file = |row: &&Row<'_>| !row.module.starts_with('/') && !row.function.starts_with('w');
        let found: u64 = self.rows.iter().filter(of_no_file).map(|row| row.pages).sum();
        self.hold("code of no file", "generated", found == unnamed, |judge| {
            let rows: Vec<_> = judge.rows.iter().filter(of_no_file).collect();
            format!("{found} pages, not {unnamed}: {rows:?}")
        });
    }

    /// Each copy is told with its code, or with the reason why that is not known; each name and line, too.
    fn reasons(&mut self) {
        let mode = self.said.mode;
        let [code, name, line] = ["code", "name", "line"].map(|what| self.said.unknown(what));
        let listed =
            [&code, &name, &line].into_iter().flat_map(|of| of.keys()).all(|why| UNKNOWN.contains(&why.as_str()));
        let copied = self.said.report["totals"]["copied_pages"].as_u64().expect("pages");
        let named: u64 = self.rows.iter().map(|row| row.pages).sum();
        let unseen: u64 = code.values().sum();
        let said = format!("{copied} copied, {named} told, {code:?}, {name:?}, {line:?}");
        let pages = |of: &BTreeMap<String, u64>, why: &str| of.get(why).copied().unwrap_or(0);
        let told = |is: &dyn Fn(&Writer) -> bool| -> u64 {
            self.writers().filter(|(_, writer)| is(writer)).map(|(id, _)| self.told[id]).sum()
        };
        let stripped = |writer: &Writer| self.judged.plan.libs[writer.lib].symbols == Symbols::Exported;
        let generated = told(&|writer| writer.kind == Kind::Generated);
        let hidden = told(&|writer| writer.kind == Kind::Hidden && stripped(writer) && !writer.is_in_file());
        let in_files = told(&|writer| writer.is_in_file());
        let is_right = if mode == "count" {
            pages(&code, "not_traced") == copied
        } else {
            // Nobody writes from outside.
            let outside = pages(&code, "not_traced") + pages(&code, "no_event");
            outside == 0 && pages(&code, "private_file_mapping") >= in_files
        };
        let names =
            mode == "count" || (pages(&name, "generated_code") == generated && pages(&name, "no_symbols") >= hidden);
        for (statement, holds) in [
            ("a reason from the list", listed),
            ("code or a reason for each copy", named + unseen == copied),
            ("why the code is not known", is_right),
            ("why there is no name", names),
        ] {
            self.hold(statement, mode, holds, |_| said.clone());
        }
    }

    /// Reference counts are told of nothing else than reference counts.
    fn totals(&mut self) {
        let references = |writer: &&Writer| matches!(writer.kind, Kind::Reference | Kind::ReferenceUpDown);
        let due: u64 = self.judged.plan.writers.iter().filter(references).map(Writer::copies).sum();
        let causes = self.said.report["causes"].as_array().expect("causes").iter();
        let found: u64 = causes
            .filter(|cause| cause["cause"] == "reference_count")
            .filter_map(|cause| cause["copied_pages"].as_u64())
            .sum();
        let causes = self.said.report["causes"].as_array().expect("causes").iter();
        for cause in causes.filter(|cause| cause["cause"] == "unknown") {
            let reasons = cause["reasons"].as_array().map_or(&[][..], Vec::as_slice);
            let listed = |reason: &&Value| REASONS.iter().any(|known| reason["reason"] == *known);
            let pages = reasons.iter().filter(listed).filter_map(|reason| reason["copied_pages"].as_u64());
            let pages: u64 = pages.sum();
            self.hold("a reason where the cause is unknown", self.said.mode, cause["copied_pages"] == pages, |_| {
                format!("{cause}")
            });
        }
        self.hold("reference counts in all", self.said.mode, found <= due, |_| format!("{found} pages, not {due}"));
    }

    fn all(mut self) -> (Falsehoods, BTreeMap<(&'static str, &'static str), u64>) {
        self.pages();
        self.bounds();
        self.mappings();
        self.totals();
        self.reasons();
        if self.said.mode == "trace" {
            self.modules();
            self.functions();
            self.elsewhere();
        }
        (self.wrong, self.judged_kinds)
    }
}

fn tag_of_cause(kind: Kind) -> &'static str {
    match kind {
        Kind::Same | Kind::UpDown => "rewritten",
        Kind::Atomic | Kind::Atomics | Kind::AtomicUpDown => "atomic",
        Kind::Reference | Kind::ReferenceUpDown => "reference",
        Kind::States | Kind::Texts | Kind::Pointers | Kind::Numbers | Kind::Additions => "field of each record",
        Kind::State | Kind::Text | Kind::Pointer | Kind::Byte | Kind::Hidden => "one field a page",
        Kind::Whole => "whole page",
        _ => "elsewhere",
    }
}

/// The first place at which two reports differ.
fn first_difference(one: &Value, other: &Value) -> String {
    let parts = |value: &Value| -> Vec<(String, Value)> {
        match value {
            Value::Object(fields) => fields.iter().map(|(name, part)| (name.clone(), part.clone())).collect(),
            Value::Array(parts) => parts.iter().enumerate().map(|(n, part)| (n.to_string(), part.clone())).collect(),
            _ => Vec::new(),
        }
    };
    let (mine, theirs) = (parts(one), parts(other));
    let same = mine.len() == theirs.len() && !mine.is_empty();
    let differing = same.then(|| mine.iter().zip(&theirs).find(|(a, b)| a != b)).flatten();
    differing
        .map_or_else(|| format!(": {one} and {other}"), |(a, b)| format!("/{}{}", a.0, first_difference(&a.1, &b.1)))
}

/// Why code, a name or a line may be unknown: no other reason is one.
const UNKNOWN: &[&str] = &[
    "not_traced",
    "private_file_mapping",
    "mapped_later",
    "not_armed",
    "written_by_kernel",
    "thread_not_seen",
    "no_event",
    "generated_code",
    "no_symbols",
    "file_gone",
    "file_replaced",
    "file_unreadable",
    "cut_off",
    "no_line_information",
];

/// Why a cause may be unknown: no other reason is one.
const REASONS: &[&str] = &["no_evidence", "no_name", "not_compared", "beside_objects", "interpreter", "freed"];

#[test]
fn each_statement_about_two_hundred_known_writers_is_true() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let usual = if std::env::var_os("COWBELL_SOAK").is_some() { 40 } else { 2 };
    let (mut wrong, mut judged_kinds) = (Falsehoods::new(), BTreeMap::<_, u64>::new());
    for seed in 1..=cases(usual) {
        let judged = Judged::new(seed);
        for mode in ["trace", "count"] {
            let said = judged.watch(mode);
            assert!(shared_addresses(&said.puts, &judged.plan) > 0, "no two libraries lay at one address");
            assert!(said.verdicts.values().flatten().all(|end| end["closed"] != "lost"), "an interval was lost");
            let (found, kinds) = Judge::new(&judged, &said).all();
            for (key, what) in found {
                let what = what.into_iter().map(|what| format!("seed {seed}, {mode}: {what}"));
                wrong.entry(key).or_default().extend(what);
            }
            for (key, times) in kinds {
                *judged_kinds.entry(key).or_default() += times;
            }
            let elsewhere = judged.rendered_elsewhere();
            let key = ("the capture alone", mode);
            *judged_kinds.entry(key).or_default() += 1;
            if elsewhere != said.report {
                let what = format!("seed {seed}: another report, {}", first_difference(&said.report, &elsewhere));
                wrong.entry(key).or_default().push(what);
            }
        }
    }
    let told: String = wrong
        .iter()
        .map(|(key, what)| {
            let shown: String = what.iter().take(3).map(|what| format!("    {what}\n")).collect();
            format!("{key:?}: {} of {} are false\n{shown}", what.len(), judged_kinds[key])
        })
        .collect();
    assert!(wrong.is_empty(), "{told}");
}
