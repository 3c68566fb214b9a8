//! A judged run: the plan compiled, carried out under the tool, and what the tool and the program itself said of it.

use crate::lab::{Scratch, cowbell, run, tool};
use crate::plan::{Lib, Plan, Symbols};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A plan, compiled.
pub struct Judged {
    pub scratch: Scratch,
    pub plan: Plan,
}

/// A stretch of writes, as judge.c noted it.
#[derive(Debug)]
pub struct Put {
    pub pid: i32,
    pub base: u64,
    pub from: u64,
    pub to: u64,
    pub page: u64,
    pub module: u64,
}

impl Judged {
    pub fn new(seed: u64) -> Self {
        let (scratch, plan) = (Scratch::new(), Plan::new(seed));
        for directory in ["sources", "built"] {
            std::fs::create_dir(scratch.path(directory)).expect("a directory");
        }
        let judged = Self { scratch, plan };
        judged.compile();
        judged
    }

    fn source(&self, lib: usize) -> PathBuf {
        self.scratch.path(&format!("sources/j{lib}.c"))
    }

    pub fn library(&self, lib: usize) -> PathBuf {
        if lib == 0 { self.scratch.path("libs/judge") } else { self.scratch.path(&format!("libs/libj{lib}.so")) }
    }

    /// Puts the files where they are loaded from: a run unlinks and replaces some of them.
    fn install(&self) {
        let (from, to) = (self.scratch.path("built"), self.scratch.path("libs"));
        let _none_yet = std::fs::remove_dir_all(&to);
        std::fs::create_dir(&to).expect("a directory");
        for file in std::fs::read_dir(from).expect("a directory") {
            let file = file.expect("an entry");
            std::fs::copy(file.path(), to.join(file.file_name())).expect("a copy");
        }
    }

    fn compile(&self) {
        let judge = self.scratch.file("judge.c", include_str!("../targets/judge.c"));
        let mut compilers = Vec::new();
        for (lib, Lib { symbols, source }) in self.plan.libs.iter().enumerate() {
            std::fs::write(self.source(lib), source).expect("a source");
            let mut cc = self.compiler(lib, *symbols);
            match lib {
                0 => cc.arg(&judge).args(["-rdynamic", "-pthread", "-ldl"]),
                _ => cc.args(["-shared", "-fPIC"]),
            };
            compilers.push(cc);
        }
        for &(lib, new) in &self.plan.replaced {
            std::fs::write(self.source(new), self.plan.replacement(lib)).expect("a source");
            let mut cc = self.compiler(new, self.plan.libs[lib].symbols);
            cc.args(["-shared", "-fPIC"]);
            compilers.push(cc);
        }
        let started = compilers.iter_mut().map(|cc| cc.spawn().expect("a C compiler: tools/setup --tests installs it"));
        for mut cc in started.collect::<Vec<_>>() {
            assert!(cc.wait().expect("its status").success(), "a library does not compile");
        }
    }

    fn compiler(&self, lib: usize, symbols: Symbols) -> Command {
        let mut cc = Command::new("cc");
        let page = cowbell::sys::page_size().bytes();
        let built = self.scratch.path("built").join(self.library(lib).file_name().expect("a name"));
        cc.args(["-O1", &format!("-DPAGE={page}"), "-Wl,-z,now", "-o"]).arg(built).arg(self.source(lib));
        match symbols {
            Symbols::Lines => cc.arg("-g"),
            Symbols::Functions => cc.arg("-g0"),
            Symbols::Exported => cc.args(["-g0", "-s"]),
        };
        cc
    }
}

/// The report of a run, in a mode.
pub struct Said {
    pub mode: &'static str,
    pub report: Value,
    pub verdicts: BTreeMap<i32, Vec<Value>>,
    pub puts: BTreeMap<usize, Vec<Put>>,
}

impl Judged {
    pub fn watch(&self, mode: &'static str) -> Said {
        self.install();
        let libs = (1..self.plan.libs.len()).chain(self.plan.replaced.iter().map(|(_, new)| *new));
        let paths: String = libs.map(|lib| format!("lib {lib} {}\n", self.library(lib).display())).collect();
        let plan = self.scratch.file("plan", &format!("{paths}{}", self.plan));
        let [truth, capture, report] = ["truth", "capture", "report"].map(|name| self.scratch.path(name));
        let [capture_text, report_text] = [&capture, &report].map(|path| path.to_str().expect("text"));
        let options =
            ["--mode", mode, "--json", "--force", "--stacks", "1/4", "--capture", capture_text, "-o", report_text];
        let outcome = run(&self.scratch, &mut cowbell(&options, [self.library(0), plan, truth.clone()]));
        assert_eq!(outcome.code, Some(0), "{}", outcome.err);
        let report = serde_json::from_slice(&std::fs::read(report).expect("a report")).expect("JSON");
        let puts = puts(&std::fs::read_to_string(truth).expect("the truth"));
        Said { mode, report, verdicts: verdicts(&capture), puts }
    }

    /// The same report from the capture alone, where neither libraries nor sources are.
    pub fn rendered_elsewhere(&self) -> Value {
        let moved =
            |name: &str, to: &str| std::fs::rename(self.scratch.path(name), self.scratch.path(to)).expect("moved");
        for name in ["sources", "libs"] {
            moved(name, &format!("{name}-elsewhere"));
        }
        let outcome =
            run(&self.scratch, Command::new(tool()).args(["report", "--json"]).arg(self.scratch.path("capture")));
        for name in ["sources", "libs"] {
            moved(&format!("{name}-elsewhere"), name);
        }
        assert_eq!(outcome.code, Some(0), "{}", outcome.err);
        serde_json::from_slice(&outcome.out).expect("JSON")
    }
}

pub fn puts(truth: &str) -> BTreeMap<usize, Vec<Put>> {
    let mut puts: BTreeMap<usize, Vec<Put>> = BTreeMap::new();
    for line in truth.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let n = |name: &str| line[name].as_u64();
        let (Some(writer), Some(pid), Some(base)) = (n("writer"), n("pid"), n("base")) else { continue };
        let n = |name: &str| line[name].as_u64().expect("a number");
        let (from, to, page, module) = (n("from"), n("to"), n("page"), n("module"));
        puts.entry(writer as usize).or_default().push(Put { pid: pid as i32, base, from, to, page, module });
    }
    puts
}

/// A row of the report's functions.
#[derive(Debug)]
pub struct Row<'a> {
    pub function: &'a str,
    pub module: &'a str,
    pub called_from: Option<&'a str>,
    /// The pages of which the caller is estimated from sampled stacks.
    pub estimated: u64,
    pub pages: u64,
    pub cause: &'a str,
    /// File, line, pages, and what stands there.
    pub lines: Vec<(&'a str, u64, u64, Option<&'a str>)>,
    /// Why it has no line.
    pub line_unknown: Option<&'a str>,
}

pub fn rows(report: &Value) -> Vec<Row<'_>> {
    let row = |row| {
        let row: &Value = row;
        let lines = row["lines"].as_array().expect("lines").iter().map(|line| {
            let n = |name: &str| line[name].as_u64().expect("a number");
            (line["file"].as_str().expect("a file"), n("line"), n("copied_pages"), line["source"].as_str())
        });
        Row {
            function: row["function"].as_str().expect("a name"),
            module: row["module"].as_str().expect("a path"),
            called_from: row["called_from"].as_str(),
            estimated: row["caller_estimated_pages"].as_u64().expect("pages"),
            line_unknown: row["line_unknown"].as_str(),
            pages: row["copied_pages"].as_u64().expect("pages"),
            cause: row["cause"].as_str().expect("a cause"),
            lines: lines.collect(),
        }
    };
    report["functions"].as_array().expect("functions").iter().map(row).collect()
}

/// A file's path without what the kernel appends when it was unlinked.
pub fn path_of(module: &str) -> &Path {
    Path::new(module.strip_suffix(" (deleted)").unwrap_or(module))
}

/// The ends of each process' intervals, by process. Read as plain JSON: a capture's other records are not for this judge.
fn verdicts(capture: &Path) -> BTreeMap<i32, Vec<Value>> {
    let text = std::fs::read_to_string(capture).expect("a capture");
    let (mut pids, mut ends) = (BTreeMap::new(), BTreeMap::<i32, Vec<Value>>::new());
    for line in text.lines() {
        let record: Value = serde_json::from_str(line).expect("JSON");
        if let Some(begin) = record.get("begin") {
            pids.insert(begin["interval"].as_u64(), begin["pid"].as_i64().expect("a process") as i32);
        } else if let Some(end) = record.get("end") {
            ends.entry(pids[&end["interval"].as_u64()]).or_default().push(end.clone());
        }
    }
    ends
}

impl Said {
    /// The intervals' ends of a process.
    pub fn ends(&self, pid: i32) -> &[Value] {
        self.verdicts.get(&pid).map_or(&[], Vec::as_slice)
    }

    /// Copies of which the code, the name or the line is not known, by reason.
    pub fn unknown(&self, what: &str) -> BTreeMap<String, u64> {
        let list = self.report["totals"]["unknown"][what].as_array().expect("a list");
        let share = |of: &Value| {
            let reason = of["reason"].as_str().expect("a reason").to_owned();
            (reason, of["copied_pages"].as_u64().expect("pages"))
        };
        list.iter().map(share).collect()
    }

    /// The pages that a process copied, by the verdicts of its intervals.
    pub fn copied(&self, pid: i32) -> BTreeSet<u64> {
        let page_size = self.report["run"]["page_size"].as_u64().expect("a page size");
        let runs = self.ends(pid).iter().flat_map(|end| end["pages"].as_array().expect("runs of pages"));
        let is_copy = |class: &Value| ["copy", "copy_or_reuse", "private_file"].iter().any(|copied| class == copied);
        let copied = runs.filter(|run| is_copy(&run[2])).flat_map(|run| {
            let [start, pages] = [0, 1].map(|nth| run[nth].as_u64().expect("a number"));
            (0..pages).map(move |n| start + n * page_size)
        });
        copied.collect()
    }
}

/// The number of times that two writers' modules lay at one address in one process: without it nothing is shown of stale names.
pub fn shared_addresses(puts: &BTreeMap<usize, Vec<Put>>, plan: &Plan) -> usize {
    let mut libs: BTreeMap<(i32, u64), BTreeSet<usize>> = BTreeMap::new();
    for (id, puts) in puts {
        let writer = &plan.writers[*id];
        for put in puts.iter().filter(|_| !writer.kind.is_generated()) {
            libs.entry((put.pid, put.module)).or_default().insert(writer.lib);
        }
    }
    libs.values().filter(|libs| libs.len() > 1).count()
}
