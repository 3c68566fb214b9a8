//! Prints what forking, copying, watching and pools cost on this machine.

use clap::{Parser, Subcommand};
use cowbell_bench::{Arming, Error, Forks, Order, Pool, PoolMemory, Result, Writes};
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measure what forking, copying, watching and pools cost on this machine.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    what: What,
    /// JSON instead of tables.
    #[arg(long, global = true)]
    json: bool,
    /// How many children are measured, for each contender.
    #[arg(long, global = true, default_value_t = 31)]
    repeats: usize,
}

#[derive(Subcommand)]
enum What {
    /// The first write to a page, under each watch.
    Writes {
        /// How many pages each child writes.
        #[arg(long, default_value_t = 4096)]
        pages: usize,
        /// Keep each processor busy meanwhile, by a process of its own.
        #[arg(long)]
        busy: bool,
    },
    /// Forks over an empty process, an anonymous heap and frozen arenas; the child's first read.
    Forks {
        /// The size of the data forked over, such as 4GiB.
        #[arg(long, default_value = "4GiB", value_parser = bytes)]
        size: u64,
    },
    /// Measure what a watch adds to a fork.
    Arming {
        /// The size of the arena that is armed.
        #[arg(long, default_value = "256MiB", value_parser = bytes)]
        size: u64,
    },
    /// Worker pools at the same work: cowbell, rayon, ipc-channel, Python's.
    Pool {
        /// Workers, or threads, of each.
        #[arg(long, default_value_t = 2)]
        workers: usize,
        /// How many times each does each work.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// A few jobs each: whether it works, in seconds.
        #[arg(long)]
        quick: bool,
    },
    /// Measure what a pool's workers have of their own, when each has read all of the data.
    PoolMemory {
        /// Numbers of workers.
        #[arg(long, value_delimiter = ',', default_value = "8,200")]
        workers: Vec<usize>,
        /// The size of the data.
        #[arg(long, default_value = "4GiB", value_parser = bytes)]
        size: u64,
    },
    /// One contender of `pool`.
    #[command(hide = true)]
    PoolPeer { order: String },
    /// A worker of `pool`'s ipc-channel.
    #[command(hide = true)]
    PoolIpcWorker { name: String },
    /// One pool of `pool-memory`.
    #[command(hide = true)]
    PoolHold { order: String },
    /// Writes, forks and arming.
    All {
        /// How many pages each child writes.
        #[arg(long, default_value_t = 4096)]
        pages: usize,
        /// The size of the data forked over; at most 256 MiB of it are armed.
        #[arg(long, default_value = "4GiB", value_parser = bytes)]
        size: u64,
    },
}

/// The measurements that were asked for.
#[derive(Default, Serialize)]
struct Results {
    #[serde(skip_serializing_if = "Option::is_none")]
    writes: Option<Writes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    forks: Option<Forks>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arming: Option<Arming>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<Pool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool_memory: Option<PoolMemory>,
}

/// The largest arena that `all` arms.
const ALL_ARMING_BYTES_MAX: u64 = 256 << 20;

/// The answer that was asked for: results to print, or one line for the process that started this one.
enum Outcome {
    Results(Box<Results>),
    Line(String),
}

fn measure(what: &What, repeats: usize) -> Result<Outcome> {
    let line = |line: serde_json::Result<String>| match line {
        Ok(line) => Ok(Outcome::Line(line)),
        Err(e) => Err(Error::Failed(e.to_string())),
    };
    let (pages, size, arming_size) = match what {
        What::Writes { pages, .. } => (Some(*pages), None, None),
        What::Forks { size } => (None, Some(*size), None),
        What::Arming { size } => (None, None, Some(*size)),
        What::All { pages, size } => (Some(*pages), Some(*size), Some(ALL_ARMING_BYTES_MAX.min(*size))),
        What::Pool { workers, rounds, quick } => {
            let pool = Some(cowbell_bench::pool(&program()?, *workers, *rounds, *quick)?);
            return Ok(Outcome::Results(Box::new(Results { pool, ..Results::default() })));
        }
        What::PoolMemory { workers, size } => {
            let pool_memory = Some(cowbell_bench::pool_memory(&program()?, *size, workers)?);
            return Ok(Outcome::Results(Box::new(Results { pool_memory, ..Results::default() })));
        }
        What::PoolPeer { order } => {
            let order: Order = serde_json::from_str(order).map_err(|e| Error::Input(e.to_string()))?;
            return line(serde_json::to_string(&cowbell_bench::pool_peer(&program()?, &order)?));
        }
        What::PoolIpcWorker { name } => {
            cowbell_bench::ipc_worker(name.clone())?;
            return Ok(Outcome::Line(String::new()));
        }
        What::PoolHold { order } => return line(serde_json::to_string(&cowbell_bench::hold_pool(order)?)),
    };
    // The forks first: they inherit what the process has, and it has nothing yet.
    let forks = size.map(|size| cowbell_bench::forks(size, repeats)).transpose()?;
    let busy = matches!(what, What::Writes { busy: true, .. });
    let _others = if busy { cowbell_bench::others()? } else { Vec::new() };
    let writes = pages.map(|pages| cowbell_bench::writes(pages, repeats)).transpose()?;
    let arming = arming_size.map(|size| cowbell_bench::arming(size, repeats)).transpose()?;
    Ok(Outcome::Results(Box::new(Results { writes, forks, arming, ..Results::default() })))
}

/// This program, to start once more.
fn program() -> Result<PathBuf> {
    std::env::current_exe().map_err(|e| Error::Failed(format!("this program's own path: {e}")))
}

fn print(outcome: &Outcome, json: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let results = match outcome {
        Outcome::Results(results) => results,
        Outcome::Line(line) => return writeln!(out, "{line}"),
    };
    if json {
        serde_json::to_writer_pretty(&mut out, results)?;
        return writeln!(out);
    }
    let parts = [
        results.writes.as_ref().map(ToString::to_string),
        results.forks.as_ref().map(ToString::to_string),
        results.arming.as_ref().map(ToString::to_string),
        results.pool.as_ref().map(ToString::to_string),
        results.pool_memory.as_ref().map(ToString::to_string),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    write!(out, "{}", parts.join("\n"))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match measure(&cli.what, cli.repeats) {
        Ok(outcome) => outcome,
        Err(e) => {
            eprintln!("cowbell-bench: {e}");
            return ExitCode::from(if matches!(e, Error::Input(_)) { 2 } else { 1 });
        }
    };
    match print(&outcome, cli.json) {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that closes the pipe has seen enough.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("cowbell-bench: stdout: {e}");
            ExitCode::from(1)
        }
    }
}

/// A number of bytes: digits, then nothing, B, KiB, MiB, GiB or TiB.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(format!("`{unit}` is no unit of bytes: use KiB, MiB, GiB or TiB")),
    };
    let number: u64 = number.parse().map_err(|_| "give a size as digits and a unit, such as 4GiB".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "that is more than 64 bits".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_digits_and_a_unit() {
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("4GiB"), Ok(4 << 30));
        assert_eq!(bytes("3 m"), Ok(3 << 20));
        for bad in ["", "GiB", "-1", "1.5GiB", "4 parsecs", "99999999TiB", "99999999999999999999"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
