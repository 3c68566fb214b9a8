//! A program whose every allocation is of `cowbell::heap::Heap`.
//!
//! Each case runs in a process of its own, in its main thread: the harness starts this program again with the case's name.

mod arena;
mod cgroup;
mod collections;
mod forking;
mod freezing;
mod hostile;
mod memory;
mod planted;
mod reclaim;
mod recording;
mod side_arcs;
mod storm;
mod threads;
mod writers;

use cowbell::heap::Heap;
use libtest_mimic::{Arguments, Failed, Trial};
use std::process::{Command, ExitCode};

#[global_allocator]
static HEAP: Heap = Heap;

/// Names the case that this process is to run.
const CASE: &str = "COWBELL_HEAP_CASE";

/// A case's name and what it does; it panics where what it claims is not so.
type Case = (&'static str, fn());

fn all() -> impl Iterator<Item = Case> {
    [
        memory::CASES,
        cgroup::CASES,
        storm::CASES,
        threads::CASES,
        collections::CASES,
        freezing::CASES,
        forking::CASES,
        side_arcs::CASES,
        hostile::CASES,
        reclaim::CASES,
        arena::CASES,
        planted::CASES,
        recording::CASES,
    ]
    .into_iter()
    .flatten()
    .copied()
}

fn main() -> ExitCode {
    if let Some(name) = std::env::var_os(CASE) {
        let case = all().find(|(each, _)| name == *each);
        case.expect("a case of this name").1();
        return ExitCode::SUCCESS;
    }
    let trials = all().map(|(name, _)| Trial::test(name, move || apart(name))).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Runs a case in a process of its own.
fn apart(name: &str) -> Result<(), Failed> {
    let program = std::env::current_exe()?;
    let output = Command::new(program).env(CASE, name).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}

/// `name!(function, …)`: cases by the names of their functions.
macro_rules! cases {
    ($($function:ident),+ $(,)?) => { &[$((stringify!($function), $function as fn())),+] };
}
pub(crate) use cases;

/// KiB of a field of `/proc/self/status`.
fn status_kib(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).expect("the field is there")
}

/// Numbers that look random, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}
