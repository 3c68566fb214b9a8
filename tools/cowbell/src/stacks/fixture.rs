//! Programs that the tests compile and look at.

use crate::record::{Mapping, Watched};
use cowbell::sys::procfs::maps;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory that goes when the test ends.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cowbell-stacks-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Compiles C in here and returns the program.
    pub fn compile(&self, source: &str, flags: &[&str]) -> PathBuf {
        let (file, program) = (self.path("program.c"), self.path("program"));
        std::fs::write(&file, source).unwrap();
        run(Command::new("cc").args(["-o".as_ref(), program.as_path(), &file]).args(flags));
        program
    }
}

/// A program of Rust's that allocates one block after the other and prints, of each: what it is called here, its length, and the calls that led to it.
const TYPED: &str = include_str!("types/typed.rs");

/// A block that this program allocated.
pub struct Block {
    /// From the allocator outwards, as the file counts addresses.
    pub calls: Vec<u64>,
    pub len: u64,
}

impl Directory {
    /// The program that allocates, compiled with `flags`, and its blocks by name.
    pub fn typed(&self, flags: &[&str]) -> (PathBuf, HashMap<String, Block>) {
        let (source, program) = (self.path("typed.rs"), self.path("typed"));
        std::fs::write(&source, TYPED).unwrap();
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        run(Command::new(rustc).args(["--edition", "2024", "-o"]).arg(&program).arg(&source).args(flags));
        let output = Command::new(&program).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let block = |line: &str| {
            let [name, len, calls] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
            let calls = calls.split(',').map(|call| call.parse().unwrap()).collect();
            (name.to_owned(), Block { calls, len: len.parse().unwrap() })
        };
        let blocks = str::from_utf8(&output.stdout).unwrap().lines().map(block).collect();
        (program, blocks)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// Runs a tool to its end.
pub fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A running program with its input open. It ends with the test.
pub struct Program {
    pub process: Child,
    pub lines: Lines<BufReader<ChildStdout>>,
}

impl Program {
    pub fn start(command: &mut Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    pub fn pid(&self) -> i32 {
        self.process.id() as i32
    }

    pub fn line(&mut self) -> String {
        self.lines.next().unwrap().unwrap()
    }

    /// Waits until a thread waits for its input.
    pub fn wait_until_reading(&self, pid: i32, tid: i32) {
        let read = if cfg!(target_arch = "x86_64") { "0 " } else { "63 " };
        let path = format!("/proc/{pid}/task/{tid}/syscall");
        while !std::fs::read_to_string(&path).unwrap().starts_with(read) {
            std::thread::yield_now();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// A process' mappings.
pub fn mappings(pid: i32) -> Vec<Mapping> {
    let of = |found: maps::Mapping| {
        let (start, end) = (found.range.start as u64, found.range.end() as u64);
        let maps::Mapping { permissions, offset, name, .. } = found;
        Mapping { start, end, permissions, offset, name, watched: Watched::No }
    };
    maps::read(pid).unwrap().into_iter().map(of).collect()
}

/// A mapping of code in a file.
pub fn code_at(start: u64, offset: u64, length: u64, file: &Path) -> Mapping {
    let (name, permissions) = (file.display().to_string(), "r-xp".to_owned());
    Mapping { start, end: start + length, permissions, offset, name, watched: Watched::No }
}
