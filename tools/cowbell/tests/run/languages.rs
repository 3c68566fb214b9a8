//! Programs in Perl and PHP, as Debian has them, whose children only read: of each the cause, the line, the remedy, and what it saves, which is
//! measured by applying it.

use crate::exact::may_trace;
use crate::lab::{Scratch, is_root, skip};
use crate::said::{most, report};
use serde_json::Value;
use std::path::Path;

/// The most by which a saving may be off, as a part of what is measured.
pub const SAVING_POINTS: f64 = 0.10;

/// A program whose child reads, and the same with the remedy applied.
pub struct Case {
    pub what: &'static str,
    /// The parent's last lines before the fork, without and with the remedy.
    pub before: [&'static str; 2],
    /// The child's lines, without and with the remedy. The line that copies ends with `HERE`.
    pub reads: [&'static str; 2],
    pub cause: &'static str,
    /// A part of the remedy's text.
    pub remedy: &'static str,
}

pub fn copied(report: &Value) -> f64 {
    report["totals"]["copied_pages"].as_f64().expect("pages")
}

/// The line of a source that holds a text, counted from one.
pub fn line_of(source: &str, text: &str) -> u64 {
    1 + source.lines().position(|line| line.contains(text)).unwrap_or_else(|| panic!("{text} in {source}")) as u64
}

/// Runs a case both ways, and demands that what is said of the first is what the second shows.
pub fn demand(case: &Case, command: &[&str], name: &str, source: &str) {
    let scratch = Scratch::new();
    let run = |way: usize| {
        let source = source.replace("BEFORE", case.before[way]).replace("READS", case.reads[way]);
        let script = scratch.file(name, &source);
        let target: Vec<&str> = command.iter().copied().chain(script.to_str()).collect();
        let (report, text) = report(&scratch, &[], target);
        (source, report, text)
    };
    let (source, plain, text) = run(0);
    let (cause, share, _) = most(&plain);
    assert!(cause == case.cause && share > 0.85, "{}: {cause} {share}: {text}", case.what);
    let line = &plain["script"]["lines"][0];
    assert!(line["line"] == line_of(&source, "HERE"), "{}: {line}: {text}", case.what);
    assert!(line["share"].as_f64().is_some_and(|share| share > 0.85), "{}: {line}: {text}", case.what);
    let helps = plain["verdict"]["helps"].as_array().expect("helps");
    let help = helps.iter().find(|help| help["text"].as_str().is_some_and(|text| text.contains(case.remedy)));
    let help = help.unwrap_or_else(|| panic!("{}: no {} in {text}", case.what, case.remedy));
    let said = help["saves_bytes"].as_f64().expect("bytes") / plain["run"]["page_size"].as_f64().expect("bytes");
    let (_, helped, _) = run(1);
    let measured = copied(&plain) - copied(&helped);
    println!("{}: said {said}, measured {measured} of {}", case.what, copied(&plain));
    assert!((said - measured).abs() <= SAVING_POINTS * measured, "{}: {said}, and {measured} measured", case.what);
}

/// All that helps, in one text.
pub fn helps(report: &Value) -> String {
    let helps = report["verdict"]["helps"].as_array().expect("helps").iter();
    helps.filter_map(|help| help["text"].as_str()).collect::<Vec<_>>().join("; ")
}

/// A program as Debian has it; `None` where it is not installed.
pub fn installed(program: &'static str) -> Option<&'static str> {
    let is_there = Path::new(program).exists();
    assert!(is_there || !is_root(), "{program}: tools/setup --tests installs it");
    is_there.then_some(program)
}

pub const PERL: &str = r"
use POSIX ();
my (@rows, %table, @list, @keys);
BEFORE
my $pid = fork;
if ($pid == 0) {
    my $sum = 0;
    READS
    POSIX::_exit(0);
}
waitpid $pid, 0;
";

#[test]
fn what_perl_copies_to_read_has_its_cause_its_line_and_a_remedy_that_saves_what_is_said() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let table = r#"for my $i (0 .. 99_999) { $table{"key$i"} = [$i, "v$i"]; }"#;
    let with_keys = r#"for my $i (0 .. 99_999) { $table{"key$i"} = [$i, "v$i"]; } @keys = keys %table;"#;
    let by_key = "for my $i (0 .. $#keys) {\n    $sum += $table{$keys[$i]}[0];\n}";
    let list = r#"for my $i (0 .. 99_999) { push @list, {id => $i, name => "n$i"}; }"#;
    let cases = [
        Case {
            what: "strings used as numbers",
            before: [
                r#"@rows = map { "$_" } (1 .. 200_000);"#,
                r#"@rows = map { "$_" } (1 .. 200_000); { my $all = 0; $all += $_ for @rows; }"#,
            ],
            reads: ["for my $i (0 .. $#rows) {\n    $sum += $rows[$i]; # HERE\n}"; 2],
            cause: "number",
            remedy: "use the strings as numbers once before the fork",
        },
        Case {
            what: "a list of hashes",
            before: [list; 2],
            reads: [
                "for my $row (@list) { # HERE\n    $sum += $row->{id};\n}",
                "for my $i (0 .. $#list) {\n    $sum += $list[$i]{id};\n}",
            ],
            cause: "reference_count",
            remedy: "go through arrays by index",
        },
        Case {
            what: "keys of a hash",
            before: [table, with_keys],
            reads: ["for my $key (keys %table) { # HERE\n    $sum += $table{$key}[0];\n}", by_key],
            cause: "reference_count",
            remedy: "an array of their keys that is there before the fork",
        },
        Case {
            what: "values of a hash",
            before: [table, with_keys],
            reads: ["for my $value (values %table) { # HERE\n    $sum += $value->[0];\n}", by_key],
            cause: "reference_count",
            remedy: "an array of their keys that is there before the fork",
        },
        Case {
            what: "each of a hash",
            before: [table, with_keys],
            reads: ["while (my ($key, $value) = each %table) { # HERE\n    $sum += $value->[0];\n}", by_key],
            cause: "reference_count",
            remedy: "an array of their keys that is there before the fork",
        },
    ];
    for case in &cases {
        demand(case, &["/usr/bin/perl"], "reads.pl", PERL);
    }
}

#[test]
fn the_line_of_a_perl_program_is_that_of_the_innermost_function_and_its_callers_are_told() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let source = r#"
use strict; use warnings; use POSIX ();
my @rows = map { { id => $_, name => "name $_" } } 1 .. 50_000;
sub inner {
    my ($list) = @_;
    my $sum = 0;
    if (@$list > 3) {
        for my $row (@$list) { $sum += $row->{id} } # HERE
    }
    return $sum;
}
sub outer { return inner(\@rows) }
my $pid = fork;
unless ($pid) {
    my $total = outer();
    POSIX::_exit($total > 0 ? 0 : 1);
}
waitpid $pid, 0;
"#;
    let scratch = Scratch::new();
    let script = scratch.file("calls.pl", source);
    let (report, text) = report(&scratch, &[], [Path::new("/usr/bin/perl"), &script]);
    let line = &report["script"]["lines"][0];
    assert_eq!(
        (&line["line"], &line["function"]),
        (&Value::from(line_of(source, "HERE")), &Value::from("inner")),
        "{text}"
    );
    assert!(line["share"].as_f64().is_some_and(|share| share > 0.85), "{text}");
}

pub const PHP: &str = r"<?php
gc_disable();
BEFORE
$pid = pcntl_fork();
if ($pid == 0) {
    $sum = 0;
    READS
    posix_kill(getmypid(), SIGKILL);
}
pcntl_waitpid($pid, $status);
";

pub const WITH_CONSTANTS: &[&str] =
    &["/usr/bin/php", "-d", "opcache.enable_cli=1", "-d", "opcache.file_update_protection=0"];

#[test]
fn what_php_copies_to_read_has_its_cause_its_line_and_a_remedy_that_saves_what_is_said() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    if installed("/usr/bin/php").is_none() {
        return skip("php is not installed");
    }
    let constants = "$file = tempnam(sys_get_temp_dir(), 'data'); \
                     file_put_contents($file, '<?php return ' . var_export($data, true) . ';'); \
                     $data = include $file; unlink($file);";
    let strings = "$data = []; for ($i = 0; $i < 200000; $i++) $data[] = \"value number $i of these\";";
    let table = "$data = []; for ($i = 0; $i < 100000; $i++) $data[\"key$i\"] = [$i, \"v$i\"]; gc_enable();";
    let objects = "$data = []; for ($i = 0; $i < 100000; $i++) { $one = new stdClass; $one->n = $i; $data[] = $one; }";
    let with = |data: &str, more: &str| -> &'static str { Box::leak(format!("{data} {more}").into_boxed_str()) };
    let cases = [
        Case {
            what: "strings of an array",
            before: [with(strings, ""), with(strings, constants)],
            reads: ["foreach ($data as $one) { // HERE\n    $sum += strlen($one);\n}"; 2],
            cause: "reference_count",
            remedy: "a file of constants that opcache has",
        },
        Case {
            what: "a collection that is asked for",
            before: [with(objects, ""), with(objects, "gc_collect_cycles();")],
            reads: ["gc_collect_cycles(); // HERE"; 2],
            cause: "garbage_collector",
            remedy: "gc_collect_cycles() in the parent, right before the fork",
        },
    ];
    for case in &cases {
        demand(case, WITH_CONSTANTS, "reads.php", PHP);
    }
    // Where the collector runs because references are counted, constants spare both, and what it spares alone is not known.
    let scratch = Scratch::new();
    let run = |before: &str| {
        let reads = "foreach ($data as $key => $one) { // HERE\n    $sum += $one[0]; // AND HERE\n}";
        let source = PHP.replace("BEFORE", before).replace("READS", reads);
        let script = scratch.file("table.php", &source);
        let target: Vec<&str> = WITH_CONSTANTS.iter().copied().chain(script.to_str()).collect();
        report(&scratch, &[], target)
    };
    let ((plain, text), (helped, _)) = (run(table), run(with(table, constants)));
    let help = |part: &str| {
        let helps = plain["verdict"]["helps"].as_array().expect("helps").iter();
        let mut found = helps.filter(|help| help["text"].as_str().is_some_and(|text| text.contains(part)));
        found.next().map(|help| help["saves_bytes"].as_f64()).unwrap_or_else(|| panic!("{part}: {text}"))
    };
    let page = plain["run"]["page_size"].as_f64().expect("bytes");
    let said = help("a file of constants that opcache has").expect("bytes") / page;
    let measured = copied(&plain) - copied(&helped);
    assert!((said - measured).abs() <= SAVING_POINTS * measured, "{said}, and {measured} measured: {text}");
    assert!(!helps(&plain).contains("gc_disable() in the child"), "it spares a part of what constants spare: {text}");
}

#[test]
fn nodes_children_execute_and_have_nothing_to_share() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let Some(node) = ["/usr/bin/node", "/usr/bin/nodejs"].into_iter().find(|program| Path::new(program).exists())
    else {
        return skip("Node is not installed");
    };
    let source = "
const all = [];
for (let i = 0; i < 300000; i++) all.push({ id: i });
const more = 'const all = []; for (let i = 0; i < 300000; i++) all.push({ id: i }); for (const one of all) one.id++';
require('child_process').spawnSync(process.execPath, ['-e', more]);
";
    let scratch = Scratch::new();
    let script = scratch.file("spawns.js", source);
    let (report, text) = report(&scratch, &[], [Path::new(node), &script]);
    assert_eq!(report["verdict"]["kind"], "nothing_to_share", "{text}");
    let helps = report["verdict"]["helps"].as_array().expect("helps");
    assert!(helps.is_empty(), "there is nothing to do: {text}");
}
