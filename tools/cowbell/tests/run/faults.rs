//! Page faults: who wrote each page, what is lost, and programs of which the kernel removes the events.

use crate::exact::may_hear_faults;
use crate::lab::{Capture, Running, Scratch, cowbell, is_root, run, skip, tool};
use crate::record::{Gap, GapKind, PageRun, Record, WatchReason, WriteClass};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// A child of three threads reads and writes pages of several kinds in a random order; standard output says which thread wrote
/// each page first.
const TRUTH: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
enum { PAGES = 600, KINDS = 4, STEPS = 3, THREADS = 3 };
static char *base[KINDS];
static unsigned char plan[KINDS][PAGES][STEPS];
static int *writer, tids[THREADS];
static long page;
static pthread_barrier_t barrier;
static unsigned seed;
static unsigned some(unsigned below) { seed = seed * 1103515245 + 12345; return (seed >> 12) % below; }
static void *work(void *x) {
  int me = (long)x;
  tids[me] = syscall(SYS_gettid);
  for (int s = 0; s < STEPS; s++) {
    pthread_barrier_wait(&barrier);
    for (int k = 0; k < KINDS; k++)
      for (int j = 0; j < PAGES; j++) {
        int i = (j * 7919) % PAGES, op = plan[k][i][s];
        if (!op || (op >> 2) != me) continue;
        volatile char *p = base[k] + i * page + i;
        if ((op & 3) == 1) { (void)*p; continue; }
        *p = 7;
        if (!writer[k * PAGES + i]) writer[k * PAGES + i] = tids[me];
      }
  }
  return 0;
}
int main(int count, char **words) {
  seed = atoi(words[1]);
  page = sysconf(_SC_PAGESIZE);
  long n = PAGES * page;
  writer = mmap(0, sizeof(int) * KINDS * PAGES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  for (int k = 0; k < KINDS; k++)
    for (int i = 0; i < PAGES; i++)
      for (int s = 0; s < STEPS; s++) plan[k][i][s] = some(3) ? some(THREADS) << 2 | (some(2) + 1) : 0;
  int file = open(words[2], O_RDWR | O_CREAT | O_TRUNC, 0600), memory = memfd_create("truth", 0);
  char *bytes = malloc(n);
  memset(bytes, 3, n);
  if (write(file, bytes, n) != n || write(memory, bytes, n) != n) return 9;
  int rw = PROT_READ | PROT_WRITE;
  base[0] = mmap(0, n, rw, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memset(base[0], 1, n);
  base[1] = mmap(0, n, rw, MAP_PRIVATE, file, 0);
  base[2] = mmap(0, n, rw, MAP_PRIVATE, memory, 0);
  base[3] = mmap(0, n, rw, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  pid_t child = fork();
  if (!child) {
    pthread_t threads[THREADS];
    pthread_barrier_init(&barrier, 0, THREADS);
    for (long i = 0; i < THREADS; i++) pthread_create(&threads[i], 0, work, (void *)i);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], 0);
    _exit(0);
  }
  int status;
  waitpid(child, &status, 0);
  for (int k = 0; k < KINDS; k++)
    for (int i = 0; i < PAGES; i++) printf("%lx %d %d\n", (long)(base[k] + i * page), k, writer[k * PAGES + i]);
  return status;
}
"#;

/// The report on the pages of a program of which the truth is known: the class, and the thread of those that have one.
fn said(capture: &Capture) -> BTreeMap<u64, (WriteClass, Option<i32>)> {
    let mut found = BTreeMap::new();
    for interval in capture.intervals.values().filter(|interval| interval.begin.role == WatchReason::Child) {
        for run in interval.end.iter().flat_map(|end| &end.pages) {
            for page in (0..run.pages).map(|nth| run.start + nth * capture.page_size()) {
                let mut events = interval.events.iter().filter(|event| event.page == page);
                found.insert(page, (run.class, events.next().map(|event| event.tid)));
            }
        }
    }
    found
}

#[test]
fn each_written_page_is_found_with_the_thread_that_wrote_it_first() {
    if let Some(why) = may_hear_faults() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let program = scratch.compile("truth", TRUTH, &[]).expect("it compiles");
    let [file, data] = ["capture", "data"].map(|name| scratch.path(name).to_str().expect("text").to_owned());
    for seed in 0..crate::lab::cases(6) {
        let options = ["-q", "--mode", "faults", "--who", "child", "--force", "--capture", &file];
        let words = [program.to_str().expect("text"), &seed.to_string(), &data];
        let outcome = run(&scratch, &mut cowbell(&options, words));
        assert_eq!(outcome.code, Some(0), "{}", outcome.err);
        let said = said(&Capture::read(Path::new(&file)));
        let text = String::from_utf8(outcome.out).expect("numbers");
        let mut wrong = Vec::new();
        for line in text.lines() {
            let words: Vec<_> = line.split(' ').collect();
            let page = u64::from_str_radix(words[0], 16).expect("an address");
            let [kind, writer] = [words[1], words[2]].map(|word| word.parse::<i32>().expect("a number"));
            let due = match kind {
                0 => [WriteClass::Copy, WriteClass::CopyOrReuse],
                1 | 2 => [WriteClass::PrivateFile; 2],
                _ => [WriteClass::FirstTouch; 2],
            };
            let right = match said.get(&page) {
                None => writer == 0,
                Some((class, tid)) => writer != 0 && due.contains(class) && *tid == Some(writer),
            };
            if !right {
                wrong.push(format!("{line}: {:?}", said.get(&page)));
            }
        }
        assert!(wrong.is_empty(), "seed {seed}: {} wrong: {:#?}", wrong.len(), &wrong[..wrong.len().min(9)]);
    }
}

/// A child writes 40 of 100 pages, each on its own, and unmaps all of them. It writes a page of its program's file, too, which nobody
/// had written before: that one was moved from nowhere.
const GIVES_BACK: &str = r#"
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
static volatile char own[40000] = {1};
int main(void) {
  long page = sysconf(_SC_PAGESIZE);
  char *p = mmap(0, 100 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memset(p, 1, 100 * page);
  if (!fork()) {
    own[20000] = 2;
    for (long i = 0; i < 80; i += 2) p[i * page]++;
    munmap(p, 100 * page);
    _exit(0);
  }
  int status;
  wait(&status);
  return status;
}
"#;

/// Pages that an interpreter frees on its way out are gone when page tables are read; the faults have told of them.
#[test]
fn what_was_written_and_unmapped_is_counted() {
    if let Some(why) = may_hear_faults() {
        return skip(&why);
    }
    if !is_root() {
        return skip("only root is told the page frame that a fault found");
    }
    let scratch = Scratch::new();
    let program = scratch.compile("back", GIVES_BACK, &["-O1"]).expect("it compiles");
    let file = scratch.path("capture");
    let options = ["-q", "--mode", "faults", "--who", "child", "--force", "--capture", file.to_str().expect("text")];
    let outcome = run(&scratch, &mut cowbell(&options, [program]));
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let capture = Capture::read(&file);
    let child = capture.intervals.values().find(|interval| interval.begin.role == WatchReason::Child).expect("a child");
    let mut by_line: BTreeMap<u32, u64> = BTreeMap::new();
    for event in child.events.iter().filter(|event| event.class == WriteClass::Copy) {
        *by_line.entry(event.code).or_default() += 1;
    }
    // The loop is one place; what else the child copies, its stack and the C library's data, are a few pages.
    assert!(by_line.values().any(|&pages| pages == 40), "{by_line:?}");
    // Another page of the file that took a fault may have been written and dropped, as far as faults tell.
    let gone = child.end.as_ref().map(|end| end.unmapped_uncounted);
    assert!(gone.is_some_and(|pages| pages <= 2), "{gone:?}");
}

/// Writes as many pages as it is told once it reads a line, in a child.
const MANY: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int count, char **words) {
  long n = atol(words[1]), page = sysconf(_SC_PAGESIZE);
  char *p = mmap(0, n * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (long i = 0; i < n; i++) p[i * page] = 1;
  if (!fork()) {
    char c;
    if (write(1, "ready\n", 6) != 6 || read(0, &c, 1) != 1) _exit(9);
    for (long i = 0; i < n; i++) p[i * page]++;
    if (write(1, "written\n", 8) != 8) _exit(9);
    _exit(0);
  }
  int status;
  wait(&status);
  return WEXITSTATUS(status);
}
"#;

#[test]
fn faults_beyond_the_rings_are_counted_and_their_pages_found_all_the_same() {
    use std::io::{BufRead, Write};
    if let Some(why) = may_hear_faults() {
        return skip(&why);
    }
    const PAGES: usize = 120_000;
    let scratch = Scratch::new();
    let program = scratch.compile("many", MANY, &[]).expect("it compiles");
    let file = scratch.path("capture");
    let options = ["-q", "--mode", "faults", "--stacks", "0", "--capture", file.to_str().expect("text")];
    let mut command = cowbell(&options, [program.to_str().expect("text"), &PAGES.to_string()]);
    let mut front = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the tool");
    let (mut go, told) = (front.stdin.take().expect("a pipe"), front.stdout.take().expect("a pipe"));
    let mut told = std::io::BufReader::new(told).lines().map(|line| line.expect("text"));
    assert_eq!(told.next().as_deref(), Some("ready"));
    // The tracer alone, and with it the thread that drains the rings.
    let tracer = tracer_of(front.id() as i32);
    let signal = |name: &str| Command::new("kill").args([name, &tracer.to_string()]).status().expect("kill");
    assert!(signal("-STOP").success());
    go.write_all(b"\n").expect("it reads");
    assert_eq!(told.next().as_deref(), Some("written"), "nobody waits for the tracer");
    assert!(signal("-CONT").success());
    assert!(front.wait().expect("its status").success());
    let capture = Capture::read(&file);
    let is_loss = |record: &&Record| matches!(record, Record::Gap(Gap { what: GapKind::EventsDropped, .. }));
    let Some(Record::Gap(loss)) = capture.records.iter().find(is_loss) else { panic!("nothing was lost") };
    let lost: u64 = loss.detail.split(' ').next().and_then(|word| word.parse().ok()).expect("a number first");
    let child = capture.intervals.values().find(|interval| interval.begin.role == WatchReason::Child).expect("a child");
    let is_copy = |run: &&PageRun| run.class == if is_root() { WriteClass::Copy } else { WriteClass::CopyOrReuse };
    let copies = child.end.iter().flat_map(|end| &end.pages).filter(is_copy);
    let copied: u64 = copies.map(|run| run.pages).sum();
    assert!(copied >= PAGES as u64, "{copied} copies of {PAGES}, and {lost} faults lost");
    let known = child.faults.len() as u64;
    // The page with the thread's number was copied by the fork itself.
    assert!(known < copied && known + lost + 8 >= copied, "{copied} copies, {known} with a fault, {lost} lost");
}

fn tracer_of(front: i32) -> i32 {
    let children = std::fs::read_to_string(format!("/proc/{front}/task/{front}/children")).expect("its children");
    children.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("a tracer")
}

#[test]
fn programs_with_privilege_or_that_may_not_be_read_are_heard_all_the_same() {
    use std::os::unix::fs::PermissionsExt;
    if let Some(why) = may_hear_faults() {
        return skip(&why);
    }
    if !is_root() {
        return skip("a set-user-ID program keeps its privilege under root's tracer only");
    }
    let scratch = Scratch::new();
    let set = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    };
    set(&scratch.path("."), 0o755);
    for (name, mode) in [("plain", 0o755), ("privileged", 0o4755), ("unreadable", 0o711)] {
        let program = scratch.compile(name, MANY, &["-static"]).expect("libc6-dev has libc.a");
        set(&program, mode);
        let file = scratch.path("capture");
        let options = ["-q", "--mode", "faults", "--stacks", "0", "--force", "--capture", file.to_str().expect("text")];
        let words = ["setpriv", "--reuid", "nobody", "--clear-groups", "sh", "-c"];
        let script = format!("echo | {} 500", program.display());
        let outcome = run(&scratch, &mut cowbell(&options, words.into_iter().chain([&script[..]])));
        assert_eq!(outcome.code, Some(0), "{name}: {}", outcome.err);
        let capture = Capture::read(&file);
        let written = |interval: &&crate::lab::Interval| {
            let copies = interval.events.iter().filter(|event| event.class == WriteClass::Copy && event.code != 0);
            interval.begin.role == WatchReason::Child && copies.count() >= 500
        };
        assert_eq!(capture.intervals.values().filter(written).count(), 1, "{name}: {:#?}", outcome.err);
    }
}

/// Waits until the tracer has the page tables of so many processes open.
fn wait_until_watched(front: i32, count: usize) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(200);
    let children = || std::fs::read_to_string(format!("/proc/{front}/task/{front}/children")).unwrap_or_default();
    let open = || {
        let tracer = children().split_whitespace().next().map(str::to_owned)?;
        let open = std::fs::read_dir(format!("/proc/{tracer}/fd")).ok()?.flatten();
        let path = |entry: std::fs::DirEntry| std::fs::read_link(entry.path()).unwrap_or_default();
        Some(open.map(path).filter(|path| path.ends_with("pagemap")).count())
    };
    while open() != Some(count) {
        assert!(std::time::Instant::now() < deadline, "{count} processes watched: {:?}", open());
        std::thread::yield_now();
    }
}

#[test]
fn attaching_hears_the_threads_that_are_there() {
    if let Some(why) = may_hear_faults() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let source = r#"
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
static char *p; static long page; static int go[2];
static void *work(void *x) { char c; if (read(go[0], &c, 1) == 1) for (long i = (long)x; i < 400; i += 2) p[i * page]++; return 0; }
int main(void) {
  page = sysconf(_SC_PAGESIZE);
  p = mmap(0, 400 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (long i = 0; i < 400; i++) p[i * page] = 1;
  if (!fork()) {
    pthread_t t[2];
    if (pipe(go)) _exit(9);
    for (long i = 0; i < 2; i++) pthread_create(&t[i], 0, work, (void *)i);
    char c;
    if (write(1, "r", 1) != 1 || read(0, &c, 1) != 1 || write(go[1], "xx", 2) != 2) _exit(9);
    for (int i = 0; i < 2; i++) pthread_join(t[i], 0);
    if (write(1, "w", 1) != 1) _exit(9);
    pause();
  }
  pause();
}
"#;
    let program = scratch.compile("threads", source, &[]).expect("it compiles");
    let mut target = Command::new(&program);
    let mut target = target.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the target");
    let mut byte = [0];
    let mut told = target.stdout.take().expect("a pipe");
    std::io::Read::read_exact(&mut told, &mut byte).expect("ready");
    let file = scratch.path("capture");
    let mut command = Command::new(tool());
    command.args(["attach", "-q", &target.id().to_string(), "--mode", "faults", "--duration", "3", "--capture"]);
    let attached = Running::start(&scratch, command.arg(&file).stdin(Stdio::null()));
    wait_until_watched(attached.pid(), 2);
    std::io::Write::write_all(&mut target.stdin.take().expect("a pipe"), b"g").expect("it reads");
    std::io::Read::read_exact(&mut told, &mut byte).expect("written");
    let outcome = attached.finish();
    let child: i32 = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", target.id()))
        .expect("its children")
        .trim()
        .parse()
        .expect("one");
    let _killed = Command::new("kill").args(["-KILL", &child.to_string()]).status();
    target.kill().and_then(|()| target.wait()).expect("killed");
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let capture = Capture::read(&file);
    let events = capture.of(child).flat_map(|interval| &interval.events);
    let mut by_thread: BTreeMap<i32, usize> = BTreeMap::new();
    // Without page frames it is open whether the parent had them still.
    let copies = events.filter(|event| matches!(event.class, WriteClass::Copy | WriteClass::CopyOrReuse));
    copies.for_each(|event| *by_thread.entry(event.tid).or_default() += 1);
    let many = by_thread.values().filter(|pages| **pages >= 200).count();
    assert_eq!((many, by_thread.contains_key(&child)), (2, false), "{by_thread:?} of {child}");
}

/// A child of vfork writes to its maker's pages, and the maker to others.
const VFORKS: &str = r#"
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
  long page = sysconf(_SC_PAGESIZE);
  char *volatile p = mmap(0, 300 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (long i = 0; i < 300; i++) p[i * page] = 1;
  if (!fork()) {
    for (long i = 0; i < 50; i++) p[i * page]++;
    if (!vfork()) {
      for (long i = 100; i < 200; i++) p[i * page]++;
      _exit(0);
    }
    _exit(0);
  }
  wait(0);
}
"#;

#[test]
fn what_a_child_of_vfork_writes_is_copied_by_its_maker() {
    if let Some(why) = may_hear_faults() {
        return skip(&why);
    }
    let scratch = Scratch::new();
    let program = scratch.compile("vforks", VFORKS, &[]).expect("it compiles");
    let file = scratch.path("capture");
    let options = ["-q", "--mode", "faults", "--stacks", "0", "--capture", file.to_str().expect("text")];
    let outcome = run(&scratch, &mut cowbell(&options, [program]));
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let capture = Capture::read(&file);
    let child = capture.intervals.values().find(|interval| interval.begin.role == WatchReason::Child).expect("a child");
    let is_copy = |run: &&PageRun| matches!(run.class, WriteClass::Copy | WriteClass::CopyOrReuse);
    let runs: Vec<u64> = child.end.iter().flat_map(|end| &end.pages).filter(is_copy).map(|run| run.pages).collect();
    assert!(runs.contains(&50) && runs.contains(&100), "{runs:?}");
    let by_another = child.faults.iter().filter(|fault| fault.tid != child.begin.pid).count();
    assert!((100..110).contains(&by_another), "{by_another} pages were written by the child of vfork");
}
