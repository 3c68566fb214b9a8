//! Allocators, whose code is told by its names, or by its file where it has none.

use crate::exact::may_trace;
use crate::lab::{Scratch, skip};
use crate::said::{report, share};
use std::process::Command;

const FREES: &str = "
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static char *all[300000];
int main(void) {
    for (int i = 0; i < 300000; i++) { all[i] = malloc(64); all[i][0] = 1; }
    if (!fork()) { for (int i = 0; i < 300000; i++) free(all[i]); _exit(0); }
    wait(0);
}
";

/// The file of jemalloc, where it is installed.
pub fn jemalloc() -> Option<String> {
    let told = Command::new("/sbin/ldconfig").arg("-p").output().map(|output| output.stdout).unwrap_or_default();
    let told = String::from_utf8_lossy(&told).into_owned();
    told.split_whitespace().find(|word| word.ends_with("/libjemalloc.so.2")).map(str::to_owned)
}

#[test]
fn a_child_that_only_frees_copies_for_the_allocator_also_where_that_has_no_symbols() {
    if let Some(why) = may_trace() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let program = scratch.compile("frees", FREES, &[]).expect("it compiles");
    let (of_glibc, text) = report(&scratch, &[], [&program]);
    assert!(share(&of_glibc, "allocator") > 0.95, "{text}");
    let Some(library) = jemalloc() else {
        return skip("jemalloc is not installed (Debian: libjemalloc2)");
    };
    let preload = format!("LD_PRELOAD={library}");
    let (of_jemalloc, text) = report(&scratch, &[], ["/usr/bin/env", &preload, program.to_str().expect("text")]);
    let shares = ["allocator", "real_write"].map(|cause| share(&of_jemalloc, cause));
    println!("jemalloc: {shares:?} of {}", of_jemalloc["totals"]["copied_pages"]);
    assert!(shares[0] > 0.75 && shares[1] < 0.08, "{shares:?}: {text}");
}
