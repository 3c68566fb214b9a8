//! Programs of interpreters whose lines cannot be told: the report says so, and why. Each reason was planted.

use crate::exact::may_trace;
use crate::lab::{Scratch, is_root, skip};
use crate::said::{NATIVE, R_COLLECTS, report};
use std::ffi::OsStr;
use std::path::Path;

/// Demands that a program's report has no line, and this reason.
fn demand<I: AsRef<OsStr>>(
    scratch: &Scratch,
    options: &[&str],
    target: impl IntoIterator<Item = I>,
    demanded: &dyn Fn(&str) -> bool,
) {
    let (report, text) = report(scratch, options, target);
    let why = report["verdict"]["no_line"].as_str().unwrap_or_default();
    assert!(demanded(why), "{why}: {text}");
    assert!(text.contains(&format!("no line: {why}")), "{text}");
    let lines = report["script"]["lines"].as_array().expect("lines").iter();
    let told: f64 = lines.filter_map(|line| line["share"].as_f64()).sum();
    assert!(told < 0.05, "{told}: {text}");
}

const PERL: &str = r#"
use POSIX ();
my @rows = map { "$_" } (1 .. 200_000);
my $pid = fork;
if ($pid == 0) { my $sum = 0; $sum += $rows[$_] for 0 .. $#rows; POSIX::_exit(0) }
waitpid $pid, 0;
"#;

#[test]
fn a_perl_that_has_threads_or_was_not_asked_for_stacks_says_why_it_has_no_line() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let script = scratch.file("sum.pl", PERL);
    let perl = Path::new("/usr/bin/perl");
    demand(&scratch, &["--stacks", "0"], [perl, &script], &|why| why == "no stacks were taken (--stacks 0)");
    let count = "--mode count takes no stacks; --mode faults does, and tells lines where Perl can be read";
    demand(&scratch, &["--mode", "count"], [perl, &script], &|why| why == count);
    let threads = scratch.file("threads.pl", &format!("use threads;{PERL}"));
    let has_threads = |why: &str| why.contains("Perl's threads, each of which has an interpreter of its own");
    demand(&scratch, &[], [perl, &threads], &has_threads);
    let (report, text) = report(&scratch, &[], [perl, &script]);
    assert!(report["verdict"]["no_line"].is_null() && !text.contains("no line:"), "a line is known: {text}");
}

#[test]
fn an_interpreter_that_exports_none_of_its_names_or_whose_lines_are_not_read_says_so() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    for (name, reason) in [
        ("php", "no interpreter of PHP that can be read was found in the process"),
        ("lua", "the lines that another interpreter runs are not read"),
    ] {
        let program = scratch.compile(name, NATIVE, &[]).expect("it compiles");
        demand(&scratch, &[], [&program], &|why| why == reason);
    }
    let native = scratch.compile("native", NATIVE, &[]).expect("it compiles");
    let (report, text) = report(&scratch, &[], [&native]);
    assert!(report["verdict"]["no_line"].is_null() && !text.contains("no line:"), "no interpreter: {text}");
}

#[test]
fn a_ruby_of_an_unknown_version_and_one_whose_copies_another_thread_made_say_why_they_have_no_line() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let ruby = Path::new("/usr/bin/ruby");
    if !ruby.exists() {
        assert!(!is_root(), "tools/setup --tests installs ruby");
        return skip("ruby is not installed");
    }
    let source = "
DATA_OF_ALL = Array.new(300_000) { |i| \"string number #{i} with some padding to be off the embed\" }
pid = fork { Thread.new { GC.start }.join; exit!(0) }
Process.wait pid
";
    let scratch = Scratch::new();
    let script = scratch.file("thread.rb", source);
    let is_other_thread = |why: &str| why.ends_with("in all, had a frame of a script that could be read");
    demand(&scratch, &[], [ruby, &script], &is_other_thread);
    let Some(library) = library_of(ruby) else { return skip("ruby is no Ruby 3.1 of a library") };
    let mut bytes = std::fs::read(&library).expect("a library");
    let found = bytes.windows(7).position(|bytes| bytes == b"\x003.1.2\0").expect("its version");
    bytes[found..found + 7].copy_from_slice(b"\x003.9.7\0");
    std::fs::write(scratch.path("libruby-3.1.so.3.1"), bytes).expect("a library of another version");
    let folder = format!("LD_LIBRARY_PATH={}", scratch.path("").display());
    let script = script.to_str().expect("text");
    let is_unknown = |why: &str| why == "the structures of Ruby 3.9.7 are not known here";
    demand(&scratch, &[], ["/usr/bin/env", &folder, "/usr/bin/ruby", "--disable=gems", script], &is_unknown);
}

/// The library of a Ruby 3.1.2.
fn library_of(ruby: &Path) -> Option<String> {
    let told = std::process::Command::new("ldd").arg(ruby).output().ok()?.stdout;
    let told = String::from_utf8(told).ok()?;
    let path = told.split_whitespace().find(|word| word.ends_with("/libruby-3.1.so.3.1"))?.to_owned();
    std::fs::read(&path).ok()?.windows(7).any(|bytes| bytes == b"\x003.1.2\0").then_some(path)
}

#[test]
fn r_keeps_no_lines_of_its_script_and_the_report_says_so() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let program = Path::new("/usr/bin/Rscript");
    if !program.exists() {
        return skip("R is not installed (Debian: r-base-core)");
    }
    let scratch = Scratch::new();
    let script = scratch.file("collects.R", R_COLLECTS);
    demand(&scratch, &[], [program, &script], &|why| why.starts_with("R keeps no file and line of the script that it"));
}
