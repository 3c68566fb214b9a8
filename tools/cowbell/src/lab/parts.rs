//! Parts of this program that the lab runs beside others': a pool and a server on this library, and the start of a way.

use crate::demo::edges;
use crate::demo::graph::{Builder, Graph};
use crate::failure::Failure;
use cowbell::arena::{Arena, FreezeOptions};
use cowbell::fork::{self, ForkOptions};
use cowbell::pool::Pool;
use cowbell::sys::procfs::{self, smaps};
use cowbell::sys::signal;
use indicatif::ProgressBar;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Executes a command with these signals blocked: the lab blocks some that it receives otherwise.
///
/// # Errors
/// It cannot be executed.
pub fn start(mask: u64, command: &[OsString]) -> Failure {
    signal::set_mask(mask);
    let Some((program, arguments)) = command.split_first() else { return Failure::new("a command is missing") };
    let e = Command::new(program).args(arguments).exec();
    Failure::new(format!("{}: {e}", program.display()))
}

/// Waits until nobody holds the other end of standard input any more, and ends the group of processes that this one is in.
pub fn guard() {
    // An error is an end, too.
    let _ended = io::copy(&mut io::stdin().lock(), &mut io::sink());
    signal::kill_group();
}

/// Adds up the degrees of all vertices' neighbours, by workers of a pool over a graph that is read from a file.
///
/// # Errors
/// The graph cannot be read or held, or a worker failed.
pub fn pool(file: &Path, workers: u32) -> Result<(), Failure> {
    let length = std::fs::metadata(file).map_err(|e| Failure::new(format!("{}: {e}", file.display())))?.len();
    let capacity = length as usize * edges::ARENA_BYTES_PER_FILE_BYTE + (64 << 20);
    let arena = Arena::builder("graph").capacity(capacity).build()?;
    let mut builder = Builder::new(&arena);
    edges::read(file, &mut builder, &ProgressBar::hidden())?;
    let frozen = arena.freeze_unchecked_with(builder.finish(), FreezeOptions::new())?;
    let pool = Pool::<(), (), ()>::builder().workers(workers as usize);
    let pool = pool.spawn(frozen, move |graph: &'static Graph, part: u32| degrees(graph, part, workers))?;
    let mut sum = 0;
    for found in pool.map(0..workers).chunk(1) {
        sum += found.map_err(|e| Failure::new(format!("a worker failed: {e}")))?;
    }
    let pids = pool.workers().into_iter().chain([procfs::SELF]);
    let together: Option<u64> = pids.map(|pid| Some(smaps::rollup(pid).ok()?.pss)).sum();
    println!("{}", serde_json::json!({ "answer": sum.to_string(), "together_bytes": together }));
    Ok(())
}

/// The degrees of the neighbours of the vertices at `part`, `part + parts`, ….
fn degrees(graph: &Graph, part: u32, parts: u32) -> u64 {
    let degree = |index: &u32| graph.vertices.get(*index as usize).map_or(0, |vertex| vertex.edges.len() as u64);
    let vertices = graph.vertices.iter().skip(part as usize).step_by(parts as usize);
    vertices.flat_map(|vertex| &vertex.edges).map(degree).sum()
}

/// Serves HTTP at a listening socket by forked workers, which each add up the same frozen numbers for a request. Until it is killed.
///
/// # Errors
/// The numbers have no room, or a worker ended.
pub fn server(listener: OwnedFd, numbers: u64, workers: u32) -> Result<(), Failure> {
    let listener = UnixListener::from(listener);
    let arena = Arena::builder("numbers").capacity(numbers as usize * size_of::<u64>() + (4 << 20)).build()?;
    let data = &*arena.alloc_iter((0..numbers as usize).map(|n| n as u64 * 1000))?;
    let frozen = arena.freeze(data)?;
    let children: Result<Vec<_>, _> = (0..workers)
        .map(|_| {
            fork::spawn(&ForkOptions::new().last_census(false), |context| {
                let pid = context.pid();
                i32::from(serve(&listener, pid, &frozen).is_err())
            })
        })
        .collect();
    // The workers serve until this process is killed, and die with it.
    for mut child in children? {
        child.wait()?;
    }
    Err(Failure::new("the workers ended"))
}

fn serve(listener: &UnixListener, pid: i32, numbers: &[u64]) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        // A client that went away is no reason to end.
        let _gone = answer(stream, pid, numbers);
    }
}

fn answer(mut stream: UnixStream, pid: i32, numbers: &[u64]) -> io::Result<()> {
    let mut lines = BufReader::new(&stream);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 2 {
        line.clear();
    }
    let body = format!("{pid} {}", numbers.iter().sum::<u64>());
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}
