//! Programs in Ruby whose children collect or make objects: of each the cause, the line, the remedy, and what it saves, which is measured by
//! applying it.

use crate::exact::may_trace;
use crate::lab::{Scratch, skip};
use crate::languages::{SAVING_POINTS, copied, installed, line_of};
use crate::said::{most, report};
use serde_json::Value;
use std::path::Path;

const RUBY: &str = r#"
DATA
BEFORE
def read_all
  READS
end
WORKERS.times.map {
  fork do
    read_all
    exit!(0)
  end
}.each { |pid| Process.wait pid }
"#;

const STRINGS: &str =
    r##"DATA_OF_ALL = Array.new(300_000) { |i| "string number #{i} with some padding to be off the embed" }"##;
/// A hash of hashes: its elements are pairs.
const TABLE: &str = r##"DATA_OF_ALL = {}; 100_000.times { |i| DATA_OF_ALL[i] = { id: i, name: "n#{i}" } }"##;
/// The lines that the report has to paste.
const FREEZE: &str = "DATA_OF_ALL.each { |row| row.freeze }";
const FREEZE_TABLE: &str = "DATA_OF_ALL.each_value { |row| row.freeze }";
const OBJECTS: &str = r##"
class Point
  def initialize(at) = (@at, @name, @list, @more = at, "n#{at}", [at], at)
end
DATA_OF_ALL = Array.new(150_000) { |i| Point.new(i) }"##;
const HASHES: &str = r##"DATA_OF_ALL = Array.new(100_000) { |i| { id: i, name: "n#{i}" } }"##;
const STRUCTS: &str =
    r##"Row = Struct.new(:a, :b, :c, :d); DATA_OF_ALL = Array.new(200_000) { |i| Row.new(i, "x#{i}", nil, i) }"##;

const REMEDY: &str = "4.times { GC.start }; GC.compact";

/// Runs a program with this data, whose workers read it so: its source, the report, and its text.
fn run(command: &[&str], (data, workers): (&str, u32), before: &str, reads: &str) -> (String, Value, String) {
    let scratch = Scratch::new();
    let source = RUBY.replace("WORKERS", &workers.to_string()).replace("DATA\n", &format!("{data}\n"));
    let source = source.replace("BEFORE", before).replace("READS", reads);
    let script = scratch.file("collects.rb", &source);
    let (report, text) = report(&scratch, &[], command.iter().copied().chain(script.to_str()));
    (source, report, text)
}

/// Demands that what a collection in each worker copies has its cause and its line, and that the remedy saves what is said.
fn demand(what: &str, command: &[&str], data: (&str, u32)) {
    let (source, plain, text) = run(command, data, "", "GC.start # HERE");
    let (cause, share, _) = most(&plain);
    assert!(cause == "garbage_collector" && share > 0.85, "{what}: {cause} {share}: {text}");
    let help = &plain["verdict"]["helps"][0];
    assert!(help["text"].as_str().is_some_and(|text| text.contains("then GC.compact")), "{what}: {help}: {text}");
    let (_, helped, _) = run(command, data, REMEDY, "GC.start # HERE");
    let measured = copied(&plain) - copied(&helped);
    let lines = plain["script"]["lines"].as_array().expect("lines");
    if !is_3_1() {
        assert!(lines.is_empty(), "structures that are not known tell no line: {text}");
        assert_eq!(help["saves_bytes"], Value::Null, "and then it is not known that nothing else was done: {text}");
        return;
    }
    let said = help["saves_bytes"].as_f64().expect("bytes") / plain["run"]["page_size"].as_f64().expect("bytes");
    println!("{what}: said {said}, measured {measured} of {}", copied(&plain));
    assert!((said - measured).abs() <= SAVING_POINTS * measured, "{what}: {said}, and {measured} measured: {text}");
    let at = |line: &Value| line["called_from"]["line"].as_u64().or(line["line"].as_u64());
    let here = lines.iter().filter(|line| at(line) == Some(line_of(&source, "HERE")));
    let share: f64 = here.filter_map(|line| line["share"].as_f64()).sum();
    assert!(share > 0.85, "{what}: {share}: {text}");
    let (cause, share, _) = most(&helped);
    assert!(cause == "garbage_collector" && share > 0.6, "{what}: what is left are its tables: {cause} {share}");
}

/// Tells whether Debian's Ruby is the one whose structures are known.
fn is_3_1() -> bool {
    let told = std::process::Command::new("/usr/bin/ruby").args(["-e", "print RUBY_VERSION"]).output();
    told.expect("ruby").stdout.starts_with(b"3.1.")
}

#[test]
fn what_a_collection_in_ruby_copies_has_its_cause_its_line_and_a_remedy_that_saves_what_is_said() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let Some(ruby) = installed("/usr/bin/ruby") else { return skip("ruby is not installed") };
    for (what, data) in [
        ("strings", (STRINGS, 1)),
        ("objects", (OBJECTS, 1)),
        ("hashes of two workers", (HASHES, 2)),
        ("structs", (STRUCTS, 1)),
    ] {
        demand(what, &[ruby], data);
    }
    let (_, read, text) = run(&[ruby], (STRINGS, 1), "", "DATA_OF_ALL.each { |one| one.length }");
    assert!(text.contains("SHARED: all is well") && copied(&read) < 200.0, "{text}");
}

#[test]
fn rubys_collector_is_known_by_its_tables_under_jemalloc_too() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let Some(ruby) = installed("/usr/bin/ruby") else { return skip("ruby is not installed") };
    let Some(jemalloc) = crate::allocators::jemalloc() else {
        return skip("jemalloc is not installed (Debian: libjemalloc2)");
    };
    demand("jemalloc", &["/usr/bin/env", &format!("LD_PRELOAD={jemalloc}"), ruby], (OBJECTS, 1));
}

/// The report of a program whose child reads so, when nothing is left for the collector to do and it is off.
fn read_only(data: &str, before: &str, reads: &str) -> (Value, String, u64) {
    let before = format!("{before}; {REMEDY}; GC.disable");
    let (source, report, text) = run(&["/usr/bin/ruby"], (data, 1), &before, &format!("{reads} # HERE"));
    (report, text, line_of(&source, "HERE"))
}

#[test]
fn what_ruby_writes_as_a_program_only_reads_has_its_cause_and_is_no_collectors() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    if installed("/usr/bin/ruby").is_none() {
        return skip("ruby is not installed");
    }
    let long = |end: &str| {
        format!(
            r##"DATA_OF_ALL = Array.new(200_000) {{ |i| "string number #{{i}} with some text to be off the embed"{end} }}"##
        )
    };
    let objects = "DATA_OF_ALL = Array.new(200_000) { Object.new }";
    let unknown_characters = long(".b.force_encoding('UTF-8')");
    for (what, data, reads, cause, remedy) in [
        (
            "hashes that are iterated over",
            HASHES,
            "DATA_OF_ALL.each { |one| one.each { |key, value| value } }",
            "iterator",
            FREEZE,
        ),
        (
            "hashes in a hash",
            TABLE,
            "DATA_OF_ALL.each { |_, one| one.each { |key, value| value } }",
            "iterator",
            FREEZE_TABLE,
        ),
        ("hashes that are stored", HASHES, "Marshal.dump(DATA_OF_ALL)", "iterator", FREEZE),
        (
            "characters of strings",
            &unknown_characters,
            "DATA_OF_ALL.each { |one| one =~ /zz/ }",
            "remembered",
            "DATA_OF_ALL.each { |one| one =~ /zz/ }",
        ),
        (
            "ids of objects",
            objects,
            "DATA_OF_ALL.each { |one| one.object_id }",
            "remembered",
            "DATA_OF_ALL.each { |one| one.object_id }",
        ),
        ("strings that are copied", &long(""), "DATA_OF_ALL.each { |one| one.dup }", "text_copies", ""),
    ] {
        let (plain, text, here) = read_only(data, "", reads);
        let copies = copied(&plain) * crate::said::share(&plain, cause);
        assert!(crate::said::share(&plain, cause) > 0.65, "{what}: {text}");
        let told = plain["causes"]
            .as_array()
            .expect("causes")
            .iter()
            .find(|told| told["cause"] == cause)
            .expect("it is there");
        assert_eq!(told["remedy"].is_null(), remedy.is_empty(), "{what}: {told}");
        let advised = plain["verdict"]["helps"].to_string();
        assert!(!advised.contains("GC.compact"), "{what}: the collector is off: {advised}");
        if is_3_1() {
            assert_eq!(plain["script"]["lines"][0]["line"], here, "{what}: {text}");
        }
        if !remedy.is_empty() {
            let (helped, _, _) = read_only(data, remedy, reads);
            let measured = copied(&plain) - copied(&helped);
            println!("{what}: said {copies}, measured {measured} of {}", copied(&plain));
            assert!((copies - measured).abs() <= SAVING_POINTS * measured, "{what}: {copies}, and {measured} measured");
        }
    }
}

const GARBAGE: &str = r#"
KEEP = Array.new(300_000) { |i| "object number #{i} with some text" }
TABLE = {}
60_000.times { |i| TABLE["k#{i}"] = [i, "v#{i}"] }
BEFORE
pid = fork do
  200_000.times { |i| "garbage #{i}" * 3 }
  GC.start
  exit!(0)
end
Process.wait(pid)
"#;

#[test]
fn a_ruby_child_that_makes_garbage_copies_for_the_collector_and_one_that_makes_objects_for_these() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let Some(ruby) = installed("/usr/bin/ruby") else { return skip("ruby is not installed") };
    let scratch = Scratch::new();
    let run = |source: &str| {
        let script = scratch.file("makes.rb", source);
        report(&scratch, &[], [Path::new(ruby), &script])
    };
    let (plain, text) = run(&GARBAGE.replace("BEFORE", ""));
    let (cause, share, remedy) = most(&plain);
    assert!(cause == "garbage_collector" && share > 0.85, "{cause} {share}: {text}");
    assert!(remedy.contains("then GC.compact"), "{remedy}: {text}");
    let (helped, _) = run(&GARBAGE.replace("BEFORE", "4.times { GC.start }; GC.compact"));
    println!("garbage: {share} of {} copied, {} with the remedy", copied(&plain), copied(&helped));
    assert!(copied(&helped) * 1.8 < copied(&plain), "{} {}", copied(&plain), copied(&helped));
    // Every other place is free, and the collector does not run.
    let source = "
all = Array.new(300_000) { Object.new }
KEEP = all.each_slice(2).map(&:first)
all = nil
4.times { GC.start }
GC.disable
ROOM = Array.new(60_000)
pid = fork do
  60_000.times { |i| ROOM[i] = Object.new }
  exit!(0)
end
Process.wait(pid)
";
    let (made, text) = run(source);
    let share = crate::said::share(&made, "new_object");
    println!("new objects: {share} of {}", copied(&made));
    assert!(share > 0.6 && crate::said::share(&made, "garbage_collector") < 0.1, "{share}: {text}");
}
