//! Programs in R, as Debian has it, whose children collect, read and make objects: of each the cause, the remedy, and what it saves, which is
//! measured by applying it.

use crate::exact::may_trace;
use crate::lab::{Scratch, skip};
use crate::languages::SAVING_POINTS;
use crate::said::report;
use serde_json::Value;
use std::path::Path;

/// The parent's last line before the fork that spares what its children would write to mark it.
const COLLECTED: &str = "invisible(gc()); invisible(gc())";
const VECTORS: &str = "rows <- lapply(1:200000, function(i) as.numeric(i + 1:3))";
const STRINGS: &str = "x <- paste0('string number ', 1:300000, ' of these')";

/// The report on a program that has this data, and whose child runs these lines.
fn run(data: &[&str], reads: &str) -> (Value, String) {
    let scratch = Scratch::new();
    let data = data.join("\n");
    let source = format!(
        "{data}\nchild <- parallel::mcparallel({{ f <- function() {{ {reads}; 0 }}; f() }})\n\
         invisible(parallel::mccollect(child))\n"
    );
    let script = scratch.file("reads.R", &source);
    report(&scratch, &[], [Path::new("/usr/bin/Rscript"), &script])
}

/// The interval of the child. Those that Rscript forked before it executed R copied next to none, and what the parent copies meanwhile
/// depends on how long the child takes.
fn child(report: &Value) -> &Value {
    let intervals = report["intervals"].as_array().expect("intervals").iter();
    let children = intervals.filter(|interval| interval["role"] == "child");
    children.max_by_key(|child| child["copied_pages"].as_u64()).expect("a child")
}

fn copied(report: &Value) -> f64 {
    child(report)["copied_pages"].as_f64().expect("pages")
}

/// The cause of most of the child's copies, its share of these, and its remedy.
fn most(report: &Value) -> (&str, f64, &str) {
    let causes = child(report)["causes"].as_array().expect("causes").iter();
    let most = causes.max_by_key(|cause| cause["copied_pages"].as_u64()).expect("a cause");
    let text = |name: &str| most[name].as_str().unwrap_or_default();
    (text("cause"), most["copied_pages"].as_f64().expect("pages") / copied(report), text("remedy"))
}

/// The part of the child's copies that has this cause.
fn share(report: &Value, cause: &str) -> f64 {
    let causes = child(report)["causes"].as_array().expect("causes").iter();
    let pages = causes.filter(|known| known["cause"] == cause).filter_map(|known| known["copied_pages"].as_f64());
    pages.sum::<f64>() / copied(report)
}

/// The saving that is told of the remedy with this text, in pages; `None` where it has no figure.
fn saving(report: &Value, part: &str, text: &str) -> Option<f64> {
    let helps = report["verdict"]["helps"].as_array().expect("helps");
    let help = helps.iter().find(|help| help["text"].as_str().is_some_and(|text| text.contains(part)));
    let help = help.unwrap_or_else(|| panic!("no {part} in {text}"));
    Some(help["saves_bytes"].as_f64()? / report["run"]["page_size"].as_f64().expect("bytes"))
}

/// Why R's programs are not run here.
fn not_here() -> Option<String> {
    let has_r = Path::new("/usr/bin/Rscript").exists();
    may_trace().or_else(|| (!has_r).then(|| "R is not installed (Debian: r-base-core)".to_owned()))
}

/// The remedy against collections that the child does not ask for.
const TWICE: &str = "gc() twice, and no gc() in the child";

#[test]
fn what_a_collection_that_is_asked_for_copies_is_saved_by_not_asking_for_it() {
    if let Some(why) = not_here() {
        return skip(&why);
    }
    let part = "no gc() in the child";
    for asks in ["gc()", "base::gc()", "invisible(gc(verbose = FALSE))"] {
        let (asked, text) = run(&[VECTORS], asks);
        let (cause, of_all, remedy) = most(&asked);
        assert!(cause == "garbage_collector" && of_all > 0.85 && remedy.contains(part), "{cause} {remedy}: {text}");
        let said = saving(&asked, part, &text).expect("bytes");
        let measured = copied(&asked) - copied(&run(&[VECTORS], "0").0);
        println!("{asks}: said {said}, measured {measured} of {}", copied(&asked));
        assert!((said - measured).abs() <= SAVING_POINTS * measured, "{said}, {measured} measured: {text}");
    }
    let asked = copied(&run(&[VECTORS], "gc()").0);
    let (collected, younger) = (run(&[VECTORS, COLLECTED], "gc()").0, run(&[VECTORS], "gc(full = FALSE)").0);
    println!("{asked} copied, after gc() twice {}, by gc(full = FALSE) {}", copied(&collected), copied(&younger));
    assert!(copied(&collected) > asked * 0.6, "what the parent collects, gc() visits again: {}", copied(&collected));
    assert!(copied(&younger) < asked * 0.6, "{}", copied(&younger));
}

#[test]
fn what_rs_collector_copies_to_make_room_has_its_cause_and_a_remedy_that_helps() {
    if let Some(why) = not_here() {
        return skip(&why);
    }
    // A vector that is changed is copied first, and to make room for the copy R collects.
    let change = "x[1] <- 0; sum(x)";
    let (plain, text) = run(&["x <- runif(4e6)"], change);
    assert!(share(&plain, "garbage_collector") > 0.7 && most(&plain).2.contains(TWICE), "{text}");
    let (helped, _) = run(&["x <- runif(4e6)", COLLECTED], change);
    println!("copies of a vector: {} copied, {} with the remedy", copied(&plain), copied(&helped));
    assert!(copied(&helped) * 4.0 < copied(&plain), "{} {}", copied(&plain), copied(&helped));
}

#[test]
fn an_r_child_that_makes_garbage_copies_for_the_collector_and_then_for_what_it_makes() {
    if let Some(why) = not_here() {
        return skip(&why);
    }
    let makes = "s <- 0; for (i in 1:300000) { v <- list(i, i + 1); s <- s + v[[1]] }";
    let (plain, text) = run(&[VECTORS], makes);
    assert!(share(&plain, "garbage_collector") > 0.6, "{text}");
    assert!(share(&plain, "unknown") < 0.1 && most(&plain).2.contains(TWICE), "{text}");
    assert_eq!(saving(&plain, TWICE, &text), None, "{text}");
    assert!(text.contains("(saves a part, and how much is not known: about every 120th of the child's"), "{text}");
    let (helped, text) = run(&[VECTORS, COLLECTED], makes);
    println!("garbage: {} copied, {} with the remedy", copied(&plain), copied(&helped));
    assert!(copied(&helped) * 1.6 < copied(&plain), "{} {}", copied(&plain), copied(&helped));
    let (cause, of_all, remedy) = most(&helped);
    assert!(cause == "new_object" && of_all > 0.7 && remedy.is_empty(), "{cause} {of_all} {remedy}: {text}");
}

#[test]
fn what_r_copies_to_count_references_has_its_cause_and_a_remedy_that_saves_what_is_said() {
    if let Some(why) = not_here() {
        return skip(&why);
    }
    let part = "keep many short vectors as one long one";
    let matrix = "m <- do.call(cbind, rows); rm(rows)";
    let factor = "x <- factor(x)";
    for (what, data, child, helps, instead) in [
        ("vectors", VECTORS, "for (row in rows) NULL", matrix, "rowSums(m)"),
        ("strings", STRINGS, "for (s in x) NULL", factor, "tabulate(x, 10L)"),
    ] {
        let (plain, text) = run(&[data, COLLECTED], child);
        let (cause, of_all, _) = most(&plain);
        assert!(cause == "reference_count" && of_all > 0.8, "{what}: {cause} {of_all}: {text}");
        let said = saving(&plain, part, &text).expect("bytes");
        let (helped, text) = run(&[data, helps, COLLECTED], instead);
        let measured = copied(&plain) - copied(&helped);
        println!("{what}: said {said}, measured {measured} of {}", copied(&plain));
        assert!((said - measured).abs() <= SAVING_POINTS * measured, "{what}: {said}, {measured} measured: {text}");
    }
    // Where free places between the data are given to new objects, pages are copied for these all the same.
    let (both, text) = run(&[VECTORS, COLLECTED], "s <- 0; for (row in rows) s <- s + row[1]");
    assert!(share(&both, "new_object") > 0.2, "{text}");
    assert_eq!(saving(&both, part, &text), None, "{text}");
    assert!(text.contains("on some of these pages new objects are put, too"), "{text}");
}

#[test]
fn what_r_only_reads_copies_nothing() {
    if let Some(why) = not_here() {
        return skip(&why);
    }
    let (read, text) = run(&["x <- runif(5e6)"], "sum(x)");
    assert!(text.contains("SHARED: all is well") && copied(&read) < 1000.0, "{text}");
}
