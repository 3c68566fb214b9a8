//! A process that holds one kind of memory and forks on request.
//!
//! ```text
//! us                            server
//! spawn ----------------------> builds its memory
//!         <-- a line: Ready --- (or what went wrong)
//! a line: fork|spawn|read ----> forks a child, times it, reaps it
//!         <-- a line: times ---
//! drop: killed and reaped
//! ```
//! A line is JSON. A server that dies closes its pipe.

use crate::error::{Error, Result};
use cowbell::arena::{Arena, Collapsed, FreezeOptions, Frozen, HugePages};
use cowbell::fork::{self, Child, ForkOptions};
use cowbell::sys::clone::{self, ForkArgs, Forked};
use cowbell::sys::procfs::{SELF, status::Status};
use cowbell::sys::shared_words::SharedWords;
use cowbell::sys::{self, pidfd, process};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::hint::black_box;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

/// The memory that a fork is measured over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Memory {
    /// Nothing but the program.
    Empty,
    /// An anonymous heap, written in full.
    Anonymous,
    /// A frozen arena in ordinary pages, read in full by the parent, too.
    Frozen,
    /// A frozen arena as it is made if nobody says otherwise: from its first 16 MiB on it grows in huge pages.
    FrozenDefault,
    /// A frozen arena that grew in ordinary pages, and was collapsed to huge pages by the freeze.
    FrozenCollapsed,
}

impl Memory {
    /// All kinds, what they are compared with first.
    pub const ALL: [Self; 5] = [Self::Empty, Self::Anonymous, Self::Frozen, Self::FrozenDefault, Self::FrozenCollapsed];

    /// The name that it has in a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty process",
            Self::Anonymous => "anonymous heap",
            Self::Frozen => "frozen, ordinary",
            Self::FrozenDefault => "frozen, default",
            Self::FrozenCollapsed => "frozen, collapsed",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Request {
    Fork,
    Spawn,
    Read,
    /// Populates first.
    ReadPopulated,
    /// Builds so many bytes of memory of a kind.
    Build(Memory, usize),
}

/// The times that building some memory took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct BuildTimes {
    /// Until all of it was written.
    pub(crate) fill_ns: u64,
    /// Until it was frozen; 0 where nothing is.
    pub(crate) freeze_ns: u64,
}

type Reply<T> = Result<T, String>;

/// A fork's times.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct ForkTimes {
    /// Until the fork returned in the parent.
    pub(crate) returned_ns: u64,
    /// Until the child was waited for.
    pub(crate) waited_ns: u64,
}

/// The finding of a child that read everything.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct ReadTimes {
    /// Before the read, where the child populates; else 0.
    pub(crate) populate_ns: u64,
    pub(crate) read_ns: u64,
    /// From just before the child was spawned until it had read everything.
    pub(crate) since_fork_ns: u64,
    pub(crate) page_tables_kib: u64,
    pub(crate) page_tables_after_kib: u64,
}

/// A server, seen from outside.
pub(crate) struct Server {
    memory: Memory,
    requests: PipeWriter,
    replies: BufReader<PipeReader>,
    // Killed and reaped when dropped.
    _process: Child,
}

impl Server {
    /// Starts a server and waits until it has built its memory.
    pub(crate) fn start(memory: Memory, bytes: usize) -> Result<Self> {
        let pipe = || std::io::pipe().map_err(|e| Error::Failed(format!("pipe: {e}")));
        let ((their_requests, requests), (replies, mut their_replies)) = (pipe()?, pipe()?);
        let options = ForkOptions::new().last_census(false);
        let process = fork::spawn(&options, move |_| {
            let ready = match hold(memory, bytes) {
                Ok(held) => serve(&held, their_requests, &mut their_replies),
                Err(e) => answer(&mut their_replies, &Reply::<()>::Err(e.to_string())),
            };
            i32::from(ready.is_err())
        })?;
        let mut server = Self { memory, requests, replies: BufReader::new(replies), _process: process };
        server.reply::<()>()?;
        Ok(server)
    }

    pub(crate) fn fork(&mut self) -> Result<ForkTimes> {
        self.ask(Request::Fork)
    }

    pub(crate) fn spawn(&mut self) -> Result<ForkTimes> {
        self.ask(Request::Spawn)
    }

    pub(crate) fn read(&mut self) -> Result<ReadTimes> {
        self.ask(Request::Read)
    }

    /// The same by a child that maps all pages first.
    pub(crate) fn read_populated(&mut self) -> Result<ReadTimes> {
        self.ask(Request::ReadPopulated)
    }

    /// Builds memory of a kind in a child.
    pub(crate) fn build(&mut self, memory: Memory, bytes: usize) -> Result<BuildTimes> {
        self.ask(Request::Build(memory, bytes))
    }

    fn ask<T: DeserializeOwned>(&mut self, request: Request) -> Result<T> {
        let sent = to_line(&request).and_then(|line| self.requests.write_all(&line));
        sent.map_err(|e| self.failed(&e.to_string()))?;
        self.reply()
    }

    fn reply<T: DeserializeOwned>(&mut self) -> Result<T> {
        let reply: Option<Reply<T>> = from_line(&mut self.replies).map_err(|e| self.failed(&e.to_string()))?;
        match reply {
            Some(Ok(value)) => Ok(value),
            Some(Err(e)) => Err(self.failed(&e)),
            None => Err(self.failed("its process died (out of memory?)")),
        }
    }

    fn failed(&self, what: &str) -> Error {
        Error::Failed(format!("{}: {what}", self.memory.name()))
    }
}

fn to_line(value: &impl Serialize) -> std::io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

/// `None` at the end of the file.
fn from_line<T: DeserializeOwned>(from: &mut impl BufRead) -> std::io::Result<Option<T>> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&line)?))
}

fn answer(to: &mut PipeWriter, reply: &Reply<impl Serialize>) -> std::io::Result<()> {
    to.write_all(&to_line(reply)?)
}

/// The memory of a server, which stays for ever.
struct Held {
    /// The words that a child may read.
    words: &'static [u64],
    /// The arena that they lie in, if they do.
    frozen: Option<Frozen<&'static [u64]>>,
    times: BuildTimes,
}

/// Builds memory of a kind.
fn hold(memory: Memory, bytes: usize) -> Result<Held> {
    let words = bytes.div_ceil(size_of::<u64>());
    // The pages that the arena grows in, and those that it is frozen in.
    let (grows, freezes) = match memory {
        Memory::Empty => {
            return Ok(Held { words: &[], frozen: None, times: BuildTimes { fill_ns: 0, freeze_ns: 0 } });
        }
        Memory::Anonymous => {
            let begun = sys::monotonic_ns();
            let words = (0..words as u64).collect::<Vec<_>>().leak();
            let times = BuildTimes { fill_ns: sys::monotonic_ns() - begun, freeze_ns: 0 };
            return Ok(Held { words, frozen: None, times });
        }
        Memory::Frozen => (HugePages::Never, HugePages::Never),
        Memory::FrozenDefault => (HugePages::default(), HugePages::default()),
        Memory::FrozenCollapsed => (HugePages::Never, HugePages::Collapse),
    };
    // A page more for the root, and what rounding to huge pages adds.
    let arena = Arena::builder("bench-forks").capacity(bytes.saturating_add(4 << 20)).huge_pages(grows).build()?;
    let begun = sys::monotonic_ns();
    let data = &*arena.alloc_iter(0..words as u64)?;
    let filled = sys::monotonic_ns();
    let frozen = arena.freeze_with(data, FreezeOptions::new().huge_pages(freezes))?;
    let times = BuildTimes { fill_ns: filled - begun, freeze_ns: sys::monotonic_ns() - filled };
    if let Collapsed::Partly(why) = frozen.image().collapsed() {
        return Err(Error::Failed(format!("not all of it could be collapsed: {why}")));
    }
    // A parent that never looks at its data would have no page tables to copy.
    read_each_page(data);
    Ok(Held { words: data, frozen: Some(frozen), times })
}

fn read_each_page(data: &[u64]) {
    let words = sys::page_size().bytes() / size_of::<u64>();
    black_box(data.iter().step_by(words).fold(0, |sum: u64, word| sum.wrapping_add(*word)));
}

fn serve(held: &Held, requests: PipeReader, replies: &mut PipeWriter) -> std::io::Result<()> {
    answer(replies, &Reply::Ok(()))?;
    let mut requests = BufReader::new(requests);
    while let Some(request) = from_line(&mut requests)? {
        let text = |e: Error| e.to_string();
        match request {
            Request::Fork => answer(replies, &time_clone3().map_err(text))?,
            Request::Spawn => answer(replies, &time_spawn().map_err(text))?,
            Request::Read => answer(replies, &time_read(held, false).map_err(text))?,
            Request::ReadPopulated => answer(replies, &time_read(held, true).map_err(text))?,
            Request::Build(memory, bytes) => answer(replies, &time_build(memory, bytes).map_err(text))?,
        }
    }
    Ok(())
}

/// Forks this process once, by the bare system call: nanoseconds until it returned here. The child leaves at once.
///
/// # Errors
/// Failed: the kernel refused.
pub fn fork_ns() -> Result<u64> {
    time_clone3().map(|times| times.returned_ns)
}

#[expect(unsafe_code, reason = "a fork duplicates the process")]
fn time_clone3() -> Result<ForkTimes> {
    let begun = sys::monotonic_ns();
    // SAFETY: the child does nothing but leave by _exit.
    let forked = unsafe { clone::fork(&ForkArgs::default()) }?;
    let returned_ns = sys::monotonic_ns() - begun;
    match forked {
        Forked::Child => process::exit(0),
        Forked::Parent { pidfd, .. } => {
            pidfd::wait_end(pidfd.as_fd(), None)?;
            pidfd::reap(pidfd.as_fd())?;
            Ok(ForkTimes { returned_ns, waited_ns: sys::monotonic_ns() - begun })
        }
    }
}

fn time_spawn() -> Result<ForkTimes> {
    let begun = sys::monotonic_ns();
    let mut child = fork::spawn(&ForkOptions::new(), |_| ())?;
    let returned_ns = sys::monotonic_ns() - begun;
    child.wait()?;
    Ok(ForkTimes { returned_ns, waited_ns: sys::monotonic_ns() - begun })
}

fn time_read(held: &Held, populate: bool) -> Result<ReadTimes> {
    let shared = SharedWords::new(5)?;
    let spawned = sys::monotonic_ns();
    let mut child = fork::spawn(&ForkOptions::new().last_census(false), |_| {
        let since_fork = || sys::monotonic_ns() - spawned;
        let before = page_tables_kib();
        let mut begun = sys::monotonic_ns();
        let mut populate_ns = 0;
        if let Some(frozen) = held.frozen.as_ref().filter(|_| populate) {
            frozen.populate()?;
            let populated = sys::monotonic_ns();
            (begun, populate_ns) = (populated, populated - begun);
        }
        read_each_page(held.words);
        let (read_ns, since_fork_ns) = (sys::monotonic_ns() - begun, since_fork());
        let found = [read_ns, before, page_tables_kib(), populate_ns, since_fork_ns];
        for (word, value) in shared.words().iter().zip(found) {
            word.store(value, Ordering::Release);
        }
        Ok::<(), cowbell::Error>(())
    })?;
    let exit = child.wait()?;
    if !exit.success() {
        return Err(Error::Failed(format!("a child that read everything ended with {:?}", exit.ended)));
    }
    let word = |at: usize| shared.words().get(at).map_or(0, |word| word.load(Ordering::Acquire));
    Ok(ReadTimes {
        read_ns: word(0),
        page_tables_kib: word(1),
        page_tables_after_kib: word(2),
        populate_ns: word(3),
        since_fork_ns: word(4),
    })
}

fn time_build(memory: Memory, bytes: usize) -> Result<BuildTimes> {
    let shared = SharedWords::new(2)?;
    let mut child = fork::spawn(&ForkOptions::new().last_census(false), |_| {
        let held = hold(memory, bytes).map_err(|e| e.to_string())?;
        for (word, value) in shared.words().iter().zip([held.times.fill_ns, held.times.freeze_ns]) {
            word.store(value, Ordering::Release);
        }
        Ok::<(), String>(())
    })?;
    let exit = child.wait()?;
    if !exit.success() {
        return Err(Error::Failed(format!("a child that built {} ended with {:?}", memory.name(), exit.ended)));
    }
    let word = |at: usize| shared.words().get(at).map_or(0, |word| word.load(Ordering::Acquire));
    Ok(BuildTimes { fill_ns: word(0), freeze_ns: word(1) })
}

/// `VmPTE` of this process; 0 where `/proc` does not say.
fn page_tables_kib() -> u64 {
    Status::of(SELF).ok().and_then(|status| status.bytes("VmPTE")).unwrap_or(0) / 1024
}
