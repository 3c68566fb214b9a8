//! The cost of forking over different memory, and of the child's first read of all of it.
//!
//! Each kind of memory is held by a server process of its own, so that none weighs on another's forks;
//! the servers fork on request, in turns.

use crate::error::{Error, Result};
use crate::server::{Memory, Server};
use crate::spread::{Spread, order};
use cowbell::sys::limits;
use serde::{Deserialize, Serialize};

/// The number of times a child reads everything, at most: it takes some 0.1 s a GiB.
const READS_MAX: usize = 7;

/// The memory that is built to be timed, at most, and how often each kind is.
const BUILT_BYTES_MAX: u64 = 1 << 30;
const BUILDS_MAX: usize = 7;

/// The memory that the largest fork over anonymous memory needs for page tables, and some room to live.
const HEADROOM_BYTES: u64 = 512 << 20;

/// The result of [`forks`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forks {
    /// The size of the data forked over.
    pub bytes: u64,
    /// The number of forks: of each way and over each kind of memory.
    pub repeats: usize,
    /// The number of children that read all of it, for each kind of memory.
    pub reads: usize,
    /// The bytes of memory that were built to be timed.
    pub built_bytes: u64,
    /// The number of times that each kind was built.
    pub builds: usize,
    /// The ratio to an empty process that forks over a frozen arena may have at most.
    pub goal_ratio_to_empty_max: f64,
    /// One for each kind of memory.
    pub over: Vec<ForkCost>,
}

impl Forks {
    /// The costs over one kind of memory.
    pub fn over(&self, memory: Memory) -> Option<&ForkCost> {
        self.over.iter().find(|cost| cost.memory == memory)
    }
}

/// The cost of forks over one kind of memory. The ratios are of the rounds one by one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ForkCost {
    /// The kind of memory.
    pub memory: Memory,
    /// The bare system call in the parent: until `clone3` returns.
    pub clone3_us: Option<Spread>,
    /// The same, to an empty process.
    pub clone3_ratio_to_empty: Option<Spread>,
    /// `clone3`, and waiting for a child that exits at once.
    pub clone3_and_wait_us: Option<Spread>,
    /// The same, to an empty process.
    pub clone3_and_wait_ratio_to_empty: Option<Spread>,
    /// [`cowbell::fork::spawn`] with [`cowbell::watch::Watch::Census`]: until it returns.
    pub spawn_us: Option<Spread>,
    /// The same, to an empty process.
    pub spawn_ratio_to_empty: Option<Spread>,
    /// `spawn`, and waiting for the last census of a child that returns at once.
    pub spawn_and_wait_us: Option<Spread>,
    /// The same, to an empty process.
    pub spawn_and_wait_ratio_to_empty: Option<Spread>,
    /// The child's first read of one byte in each page.
    pub first_read_ms: Option<Spread>,
    /// The same, to the anonymous heap.
    pub first_read_ratio_to_anonymous: Option<Spread>,
    /// From just before the fork until the child has read everything: with the page tables that the fork copies.
    pub read_since_fork_ms: Option<Spread>,
    /// The same, to the anonymous heap.
    pub read_since_fork_ratio_to_anonymous: Option<Spread>,
    /// The time that [`cowbell::arena::Frozen::populate`] takes in a child, of a frozen arena in ordinary pages.
    pub populate_ms: Option<Spread>,
    /// The child's read behind that.
    pub populated_read_ms: Option<Spread>,
    /// The same, to the anonymous heap's first read.
    pub populated_read_ratio_to_anonymous: Option<Spread>,
    /// From just before the fork until the child has populated and read everything.
    pub populated_since_fork_ms: Option<Spread>,
    /// The same, to the anonymous heap's from the fork until everything is read.
    pub populated_since_fork_ratio_to_anonymous: Option<Spread>,
    /// The time that it takes to write [`Forks::built_bytes`] of such memory.
    pub fill_ms: Option<Spread>,
    /// The time that freezing it takes then.
    pub freeze_ms: Option<Spread>,
    /// Both together, to the anonymous heap.
    pub build_ratio_to_anonymous: Option<Spread>,
    /// The child's page tables (`VmPTE`) before it reads.
    pub page_tables_kib: Option<u64>,
    /// The child's page tables when it has read everything.
    pub page_tables_after_read_kib: Option<u64>,
    /// Why this kind of memory could not be measured.
    pub error: Option<String>,
}

/// Measures forks over an empty process, an anonymous heap of `bytes`, and frozen arenas of `bytes` in ordinary pages, as they are
/// by default, and collapsed to huge pages, in turns: the bare `clone3`, `spawn`, each with waiting for the child, and the
/// child's first read of everything. Then each kind is built again, some times.
///
/// Call it before the process has arenas of its own: the servers are forked off and inherit them.
///
/// # Errors
/// Input: no bytes, no repeats, or four times `bytes` and what is built are more than this machine has. Failed: a server died.
pub fn forks(bytes: u64, repeats: usize) -> Result<Forks> {
    if bytes == 0 || repeats == 0 {
        return Err(Error::Input("size and repeats must be at least 1".into()));
    }
    check_memory(bytes)?;
    let bytes_usize = usize::try_from(bytes).map_err(|e| Error::Input(e.to_string()))?;
    let mut contenders = Vec::new();
    for memory in Memory::ALL {
        contenders.push(Contender::new(memory, Server::start(memory, bytes_usize)));
    }
    let (reads, builds) = (repeats.min(READS_MAX), repeats.min(BUILDS_MAX));
    // The first round only warms up.
    for round in 0..=repeats {
        for at in order(contenders.len(), round) {
            if let Some(contender) = contenders.get_mut(at) {
                contender.run(round, round <= reads)?;
            }
        }
    }
    let built_bytes = bytes.min(BUILT_BYTES_MAX);
    build(built_bytes as usize, builds, &mut contenders)?;
    Ok(summary(&Asked { bytes, repeats, reads, built_bytes, builds }, &contenders))
}

/// Has memory of each kind built, in turns, by children of the empty process.
fn build(bytes: usize, builds: usize, contenders: &mut [Contender]) -> Result<()> {
    let empty = contenders.iter_mut().find(|contender| contender.memory == Memory::Empty);
    let Some(mut server) = empty.and_then(|contender| contender.server.take()) else { return Ok(()) };
    for round in 0..builds {
        for at in order(contenders.len(), round) {
            let Some(contender) = contenders.get_mut(at).filter(|contender| contender.server.is_some()) else {
                continue;
            };
            let times = server.build(contender.memory, bytes)?;
            contender.fill_ms.push(times.fill_ns as f64 / 1e6);
            contender.freeze_ms.push(times.freeze_ns as f64 / 1e6);
            contender.build_ms.push((times.fill_ns + times.freeze_ns) as f64 / 1e6);
        }
    }
    Ok(())
}

/// Refuses what would not fit: an anonymous heap and three arenas at once, and one more that is built.
fn check_memory(bytes: u64) -> Result<()> {
    let needed = bytes.saturating_mul(4).saturating_add(bytes.min(BUILT_BYTES_MAX)).saturating_add(HEADROOM_BYTES);
    match limits::memory_headroom() {
        Some(headroom) if headroom.bytes < needed => Err(Error::Input(format!(
            "a size of {bytes} bytes needs {needed} bytes of memory, for four of them at once, one that is built, and their page tables: {headroom}"
        ))),
        _ => Ok(()),
    }
}

/// A kind of memory with its server and its times, round by round.
struct Contender {
    memory: Memory,
    server: Option<Server>,
    clone3_us: Vec<f64>,
    clone3_and_wait_us: Vec<f64>,
    spawn_us: Vec<f64>,
    spawn_and_wait_us: Vec<f64>,
    first_read_ms: Vec<f64>,
    populate_ms: Vec<f64>,
    populated_read_ms: Vec<f64>,
    read_since_fork_ms: Vec<f64>,
    populated_since_fork_ms: Vec<f64>,
    fill_ms: Vec<f64>,
    freeze_ms: Vec<f64>,
    build_ms: Vec<f64>,
    page_tables_kib: Option<u64>,
    page_tables_after_read_kib: Option<u64>,
    error: Option<String>,
}

impl Contender {
    fn new(memory: Memory, server: Result<Server>) -> Self {
        let (server, error) = match server {
            Ok(server) => (Some(server), None),
            Err(e) => (None, Some(e.to_string())),
        };
        Self {
            memory,
            server,
            clone3_us: Vec::new(),
            clone3_and_wait_us: Vec::new(),
            spawn_us: Vec::new(),
            spawn_and_wait_us: Vec::new(),
            first_read_ms: Vec::new(),
            populate_ms: Vec::new(),
            populated_read_ms: Vec::new(),
            read_since_fork_ms: Vec::new(),
            populated_since_fork_ms: Vec::new(),
            fill_ms: Vec::new(),
            freeze_ms: Vec::new(),
            build_ms: Vec::new(),
            page_tables_kib: None,
            page_tables_after_read_kib: None,
            error,
        }
    }

    fn run(&mut self, round: usize, read: bool) -> Result<()> {
        let Some(server) = &mut self.server else { return Ok(()) };
        let fork = server.fork()?;
        let spawn = server.spawn()?;
        let us = |ns: u64| ns as f64 / 1e3;
        if round > 0 {
            self.clone3_us.push(us(fork.returned_ns));
            self.clone3_and_wait_us.push(us(fork.waited_ns));
            self.spawn_us.push(us(spawn.returned_ns));
            self.spawn_and_wait_us.push(us(spawn.waited_ns));
        }
        if read && round > 0 {
            let read = server.read()?;
            self.page_tables_kib = Some(read.page_tables_kib);
            self.page_tables_after_read_kib = Some(read.page_tables_after_kib);
            if self.memory != Memory::Empty {
                self.first_read_ms.push(us(read.read_ns) / 1e3);
                self.read_since_fork_ms.push(us(read.since_fork_ns) / 1e3);
            }
            if matches!(self.memory, Memory::Frozen | Memory::FrozenDefault) {
                let read = server.read_populated()?;
                self.populate_ms.push(us(read.populate_ns) / 1e3);
                self.populated_read_ms.push(us(read.read_ns) / 1e3);
                self.populated_since_fork_ms.push(us(read.since_fork_ns) / 1e3);
            }
        }
        Ok(())
    }
}

/// The sizes and numbers of a run, as in [`Forks`].
struct Asked {
    bytes: u64,
    repeats: usize,
    reads: usize,
    built_bytes: u64,
    builds: usize,
}

fn summary(asked: &Asked, contenders: &[Contender]) -> Forks {
    let of = |memory| contenders.iter().find(|contender| contender.memory == memory);
    let spread = |times: &[f64]| Spread::of(times.iter().copied());
    let ratio = |mine: &Contender, than: Memory, times: fn(&Contender) -> &[f64]| {
        of(than).and_then(|other| Spread::of_ratios(times(mine), times(other)))
    };
    let cost = |mine: &Contender| ForkCost {
        memory: mine.memory,
        clone3_us: spread(&mine.clone3_us),
        clone3_ratio_to_empty: ratio(mine, Memory::Empty, |c| &c.clone3_us),
        clone3_and_wait_us: spread(&mine.clone3_and_wait_us),
        clone3_and_wait_ratio_to_empty: ratio(mine, Memory::Empty, |c| &c.clone3_and_wait_us),
        spawn_us: spread(&mine.spawn_us),
        spawn_ratio_to_empty: ratio(mine, Memory::Empty, |c| &c.spawn_us),
        spawn_and_wait_us: spread(&mine.spawn_and_wait_us),
        spawn_and_wait_ratio_to_empty: ratio(mine, Memory::Empty, |c| &c.spawn_and_wait_us),
        first_read_ms: spread(&mine.first_read_ms),
        first_read_ratio_to_anonymous: ratio(mine, Memory::Anonymous, |c| &c.first_read_ms),
        populate_ms: spread(&mine.populate_ms),
        populated_read_ms: spread(&mine.populated_read_ms),
        populated_read_ratio_to_anonymous: of(Memory::Anonymous)
            .and_then(|other| Spread::of_ratios(&mine.populated_read_ms, &other.first_read_ms)),
        read_since_fork_ms: spread(&mine.read_since_fork_ms),
        read_since_fork_ratio_to_anonymous: ratio(mine, Memory::Anonymous, |c| &c.read_since_fork_ms),
        populated_since_fork_ms: spread(&mine.populated_since_fork_ms),
        populated_since_fork_ratio_to_anonymous: of(Memory::Anonymous)
            .and_then(|other| Spread::of_ratios(&mine.populated_since_fork_ms, &other.read_since_fork_ms)),
        fill_ms: spread(&mine.fill_ms),
        freeze_ms: spread(&mine.freeze_ms),
        build_ratio_to_anonymous: ratio(mine, Memory::Anonymous, |c| &c.build_ms),
        page_tables_kib: mine.page_tables_kib,
        page_tables_after_read_kib: mine.page_tables_after_read_kib,
        error: mine.error.clone(),
    };
    let &Asked { bytes, repeats, reads, built_bytes, builds } = asked;
    let over = contenders.iter().map(cost).collect();
    Forks { bytes, repeats, reads, built_bytes, builds, goal_ratio_to_empty_max: 1.5, over }
}
