//! Images of a heap whose files say something else than this tool reads.

use crate::lab::{Scratch, cowbell, is_root, run};
use std::process::Command;

/// Maps a file privately that is called as an image of the library's heap is, with a footer of this version at its end, or with none; a child
/// writes a page. Closes the file if told so.
const IMAGE: &str = r#"
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int count, char **args) {
  long page = sysconf(_SC_PAGESIZE);
  uint64_t words[19] = {0}, version = strtoul(args[1], 0, 10);
  int file = memfd_create("cowbell:heap", 0), status;
  if (ftruncate(file, page)) return 1;
  if (version) {
    memcpy(words, "cowbellh", 8);
    words[1] = version;
    if (version == 1) words[5] = words[6] = words[7] = page, words[9] = 1 << 20;
    if (pwrite(file, words, sizeof words, page) != sizeof words) return 2;
  }
  char *at = mmap(0, page, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
  if (count > 2) close(file);
  pid_t child = fork();
  if (!child) {
    at[5] = 1;
    _exit(0);
  }
  return waitpid(child, &status, 0) != child || status;
}
"#;

#[test]
fn a_file_that_says_something_else_is_named_and_nothing_is_told_of_it() {
    let scratch = Scratch::new();
    let program = scratch.compile("image", IMAGE, &[]).expect("it compiles");
    let mut cases = vec![
        (vec!["9"], "its file says what it holds in version 9, which this cowbell does not read"),
        (vec!["0"], "its file does not say what it holds: the library is older than this cowbell"),
        (vec!["1"], "its file contradicts itself"),
    ];
    // The mapping itself leads to the file only for who may look at it.
    if !is_root() {
        cases.push((vec!["9", "closed"], "its file could not be opened"));
    }
    for (arguments, why) in cases {
        let capture = scratch.path("capture");
        let options = ["--mode", "count", "--force", "--capture", capture.to_str().expect("text")];
        let target = [program.to_str().expect("text")].into_iter().chain(arguments.iter().copied());
        let outcome = run(&scratch, &mut cowbell(&options, target));
        assert_eq!(outcome.code, Some(0), "{}", outcome.err);
        let unwrapped = outcome.err.split_whitespace().collect::<Vec<_>>().join(" ");
        let told = format!("what lies on copied pages of a frozen heap is not known: {why}");
        assert!(unwrapped.contains(&told), "{arguments:?}: {}", outcome.err);
        let again = Command::new(crate::lab::tool()).arg("report").arg(&capture).arg("--json").output();
        let again = String::from_utf8(again.expect("the tool starts").stdout).expect("text");
        assert!(again.contains(&told) && again.contains("\"objects\": []"), "{again}");
    }
}
