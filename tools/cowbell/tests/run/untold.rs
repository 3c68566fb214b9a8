//! Copies that no page fault tells of.

use crate::exact::may_hear_faults;
use crate::lab::{Busy, Capture, Scratch, cowbell, is_root, run, skip};
use crate::record::{WatchReason, WriteClass};
use std::path::Path;

/// Writes into memory that its child inherited, from outside; and in another child moves what it has written to another place.
const PINS: &str = r#"
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
enum { PAGES = 300 };
int main(void) {
  long page = sysconf(_SC_PAGESIZE), all = PAGES * page;
  char *at = mmap(0, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char *from = mmap(0, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memset(at, 1, all);
  memset(from, 2, all);
  int done[2], status;
  char byte = 0;
  if (pipe(done)) return 1;
  pid_t child = fork();
  if (!child) _exit(read(done[0], &byte, 1) != 1);
  struct iovec local = {from, all}, remote = {at, all};
  if (process_vm_writev(child, &local, 1, &remote, 1, 0) != all) return 2;
  if (write(done[1], &byte, 1) != 1) return 3;
  if (wait(&status) != child || status) return 4;
  child = fork();
  if (!child) {
    for (int n = 0; n < PAGES; n++) at[n * page] = 3;
    char *to = mmap(0, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    _exit(mremap(at, all, all, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to);
  }
  return wait(&status) != child || status;
}
"#;

/// No page fault is told of memory that another process writes, and none of memory after it was moved.
#[test]
fn pages_that_are_written_from_outside_or_moved_are_copies_and_none_is_new() {
    if let Some(why) = may_hear_faults() {
        return skip(&why);
    }
    if !is_root() {
        return skip("only root sees page frames");
    }
    let scratch = Scratch::new();
    let program = scratch.compile("pins", PINS, &["-O1"]).expect("it compiles");
    tell_copies_from_new(&scratch, &program);
    // A thread that is interrupted for its stack does not stand at once where it must wait for a processor.
    let _busy = Busy::new(2);
    tell_copies_from_new(&scratch, &program);
}

fn tell_copies_from_new(scratch: &Scratch, program: &Path) {
    let file = scratch.path("capture");
    let options = ["-q", "--mode", "faults", "--force", "--capture", file.to_str().expect("text")];
    let outcome = run(scratch, &mut cowbell(&options, [program]));
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let capture = Capture::read(&file);
    let children: Vec<_> =
        capture.intervals.values().filter(|interval| interval.begin.role == WatchReason::Child).collect();
    assert_eq!(children.len(), 2);
    for child in children {
        let end = child.end.as_ref().expect("it is closed");
        let of = |class| end.pages.iter().filter(|run| run.class == class).map(|run| run.pages).sum::<u64>();
        let (copied, new) = (of(WriteClass::Copy), of(WriteClass::FirstTouch));
        assert!((300..340).contains(&copied) && new < 20, "{copied} copied, {new} new: {:?}", end.pages);
        assert!(end.unmapped_uncounted < 20, "{}", end.unmapped_uncounted);
    }
}
