//! Parts that the tests of pools share: a small data set, jobs that end in every way, and looking for what stays behind.
#![expect(unsafe_code, reason = "a job faults on purpose")]

use crate::look::{Bytes, SOON, first_byte, frozen_pages, has_children, maps, until, write};
use cowbell::arena::{self, Arena, Frozen};
use cowbell::fork;
use cowbell::pool::{Death, Former, JobError, Pool, WorkerContext};
use cowbell::sys::pidfd::{self, Ended};
use cowbell::sys::shared_words::SharedWords;
use cowbell::sys::{process, procfs, signal};
use cowbell::watch::Watch;
use libtest_mimic::Failed;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A data set of a few pages.
pub fn data() -> cowbell::Result<Frozen<Bytes>> {
    frozen_pages("pool", 8)
}

/// A pool whose jobs are numbers that are doubled.
pub fn doubling(workers: usize) -> cowbell::Result<Pool<Bytes, u64, u64>> {
    Pool::builder().workers(workers).spawn(data()?, |_, job: u64| 2 * job)
}

/// The results of so many jobs of a pool that doubles.
pub fn doubles(jobs: u64) -> Vec<u64> {
    (0..jobs).map(|job| 2 * job).collect()
}

/// The way a worker comes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// `std::process::exit`.
    Exit(i32),
    /// SIGKILL.
    Kill,
    /// SIGTERM.
    Term,
    /// A write to the null page.
    Fault,
    /// `std::process::abort`.
    Abort,
    /// Recursion without end.
    Overflow,
    /// SIGSTOP: it does not end.
    Stop,
}

impl Way {
    /// Ends this process.
    pub fn go(self) {
        let raise = |signal| {
            signal::send(process::pid(), signal);
        };
        match self {
            Self::Exit(code) => std::process::exit(code),
            Self::Kill => raise(signal::KILL),
            Self::Term => raise(libc::SIGTERM),
            Self::Fault => {
                let address = std::ptr::with_exposed_provenance_mut::<u8>(std::hint::black_box(16));
                // SAFETY: none; the write is to fault.
                unsafe { address.write_volatile(1) };
            }
            Self::Abort => std::process::abort(),
            Self::Overflow => {
                std::hint::black_box(deep(1));
            }
            Self::Stop => raise(signal::STOP),
        }
    }

    /// Tells whether this is what a job that went this way ends with.
    pub fn explains(self, error: &JobError) -> bool {
        let ended = match self {
            Self::Exit(code) => Ended::Exited(code),
            Self::Kill => Ended::Signaled(libc::SIGKILL),
            Self::Term => Ended::Signaled(libc::SIGTERM),
            // The zygote's children have the handlers of a new process, so Rust's own message is not there.
            Self::Fault | Self::Overflow => Ended::Signaled(libc::SIGSEGV),
            Self::Abort => Ended::Signaled(libc::SIGABRT),
            Self::Stop => return matches!(error, JobError::TimedOut { .. }),
        };
        let overflow = self == Self::Overflow;
        let told = Death { ended, out_of_memory: false, stack_overflow: overflow };
        matches!(error, JobError::Died { death, .. } if *death == told)
            && error.to_string().contains("stack overflowed") == overflow
    }
}

#[expect(unconditional_recursion, reason = "it is to use up the stack")]
fn deep(n: u64) -> u64 {
    let block = std::hint::black_box([n; 512]);
    deep(n ^ block[0]) ^ block[511]
}

/// Words that all processes share, kept for the life of this one.
pub fn table(words: usize) -> cowbell::Result<&'static [AtomicU64]> {
    Ok(Box::leak(Box::new(SharedWords::new(words)?)).words())
}

/// Holds a job until it is let go, or for ever.
#[derive(Clone, Copy)]
pub struct Gate(&'static AtomicU64);

impl Gate {
    /// Closed.
    pub fn new() -> cowbell::Result<Self> {
        Ok(Self(&table(1)?[0]))
    }

    /// Says that somebody is here, and waits for [`Self::open`].
    pub fn pass(self) {
        self.0.fetch_or(1, Ordering::SeqCst);
        while self.0.load(Ordering::SeqCst) & 2 == 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Waits until somebody is there.
    pub fn reached(self) -> Result<(), Failed> {
        until("a job reaches the gate", || self.0.load(Ordering::SeqCst) & 1 == 1)
    }

    /// Lets all pass, now and later.
    pub fn open(self) {
        self.0.fetch_or(2, Ordering::SeqCst);
    }

    /// Closes the gate, which is as new then.
    pub fn close(self) {
        self.0.store(0, Ordering::SeqCst);
    }
}

/// A gate, and a pool whose jobs give their number back, of which this one waits at the gate.
pub fn gated(workers: usize, waits: u64) -> cowbell::Result<(Gate, Pool<Bytes, u64, u64>)> {
    let gate = Gate::new()?;
    let pool = Pool::builder().workers(workers).spawn(data()?, move |_, job: u64| {
        if job == waits {
            gate.pass();
        }
        job
    })?;
    Ok((gate, pool))
}

/// Runs `body` on another thread and fails if it takes too long: then the process, hung as it is, ends with the claim.
pub fn in_time<R: Send>(time: Duration, body: impl FnOnce() -> R + Send) -> Result<R, Failed> {
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let result = body();
            done.store(1, Ordering::SeqCst);
            result
        });
        let begun = Instant::now();
        while done.load(Ordering::SeqCst) == 0 && !worker.is_finished() {
            if begun.elapsed() > time {
                eprintln!("hung for {time:?}");
                // The scope would wait for the thread.
                process::exit(71);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        worker.join().map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default().into()
        })
    })
}

/// Descriptors of the workers of now.
pub fn worker_pidfds<T, J, R, D>(pool: &Pool<T, J, R, D>) -> Result<Vec<OwnedFd>, Failed> {
    pool.workers().into_iter().map(|pid| Ok(pidfd::open(pid)?)).collect()
}

/// The process id of the zygote of a pool that has workers: their parent.
pub fn zygote_of<T, J, R, D>(pool: &Pool<T, J, R, D>) -> Result<i32, Failed> {
    // One that was just replaced may stand there still.
    let begun = Instant::now();
    loop {
        match pool.workers().into_iter().find_map(parent_of) {
            Some(zygote) => return Ok(zygote),
            None if begun.elapsed() > SOON => return Err("no worker lives".into()),
            None => std::thread::yield_now(),
        }
    }
}

/// Waits until the threads that a scope has ended are gone for the kernel, too.
pub fn alone() -> Result<(), Failed> {
    until("this thread is alone", || procfs::signal_safe::thread_count() == Ok(1))
}

/// A process's parent, from `/proc`.
pub fn parent_of(pid: i32) -> Option<i32> {
    procfs::stat::Stat::parse(&procfs::read(pid, "stat").ok()?).map(|stat| stat.parent)
}

/// All processes below one, at the moment. Zombies count.
pub fn descendants(of: i32) -> Vec<i32> {
    let mut pairs = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        if let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
            && let Some(parent) = parent_of(pid)
        {
            pairs.push((pid, parent));
        }
    }
    let mut found = vec![of];
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        found.extend(pairs.iter().filter(|pair| pair.1 == parent).map(|pair| pair.0));
        at += 1;
    }
    found.split_off(1)
}

/// From now on this process inherits every orphan below it.
pub fn adopt_orphans() -> Result<(), Failed> {
    Ok(rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(process::pid()))?)
}

/// Reaps children and orphans until there is none; fails when one does not end.
pub fn all_end_soon() -> Result<(), Failed> {
    use rustix::process::{WaitId, WaitIdOptions};
    let wall = WaitIdOptions::from_bits_retain(libc::__WALL as u32);
    let begun = Instant::now();
    while has_children() {
        let _one = rustix::process::waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG | wall);
        if begun.elapsed() > SOON {
            return Err(format!("processes stay behind: {:?}", descendants(process::pid())).into());
        }
    }
    Ok(())
}

/// The number of mappings of pools in this process.
pub fn pool_mappings() -> usize {
    maps().iter().filter(|line| line.contains("cowbell-pool:")).count()
}

/// The workers of a pool that [`touching`] makes.
pub const TOUCHERS: usize = 3;

/// A job: writes so many pages from a page on, reads so many, and says what its worker says of itself then.
pub type Touch = (u64, u64, u64);
/// The worker's process, and the pages that it has copied by its own account.
pub type Own = (i32, u64);

/// Runs such a job.
pub fn touch(worker: &WorkerContext<Bytes>, (first, writes, reads): Touch) -> Own {
    let pages: Bytes = worker.root();
    (first..first + writes).for_each(|page| write(pages, page));
    let read = |page: u64| first_byte(pages, page).load(Ordering::Relaxed);
    std::hint::black_box((first..first + reads).map(read).map(u64::from).sum::<u64>());
    (worker.pid(), fork::copied_now().expect("/proc").0)
}

/// A pool of so many workers whose jobs touch pages.
pub fn touching(data: Frozen<Bytes>, watch: Watch) -> cowbell::Result<Pool<Bytes, Touch, Own>> {
    Pool::builder()
        .workers(TOUCHERS)
        .watch(watch)
        .spawn_with(data, |worker: &WorkerContext<Bytes>, job| touch(worker, job))
}

/// Runs these jobs, one at a time for each worker.
pub fn each(pool: &Pool<Bytes, Touch, Own>, jobs: &[Touch]) -> Result<Vec<Own>, Failed> {
    in_time(SOON, || pool.map(jobs.iter().copied()).chunk(1).collect::<Result<Vec<_>, _>>())?.map_err(Into::into)
}

/// Two equal answers, and the claim that was made between them: asked again until the two are equal.
pub fn still<A: PartialEq, B>(
    asked: impl Fn() -> A,
    claimed: impl Fn() -> cowbell::Result<B>,
) -> Result<(A, B), Failed> {
    for _ in 0..1000 {
        let before = asked();
        let claimed = claimed()?;
        if asked() == before {
            return Ok((before, claimed));
        }
    }
    Err("the memory never stood still".into())
}

/// A data set that loaders build: multiples of a number, of which jobs are asked.
pub type Words = arena::Vec<AtomicU64>;
/// How many there are.
pub const WORDS: usize = 1 << 16;

/// The words of a data set, computed by threads, and their arena.
pub fn words(of: u64) -> cowbell::Result<(Arena, Words)> {
    let arena = Arena::builder(format!("loaded-{of}")).capacity(1 << 20).build()?;
    let mut words = arena::Vec::new_in(*arena);
    std::thread::scope(|scope| {
        let part = |from: u64| move || (from..from + WORDS as u64 / 2).map(|n| n * of).collect::<std::vec::Vec<_>>();
        let parts = [0, WORDS as u64 / 2].map(|from| scope.spawn(part(from)));
        parts
            .into_iter()
            .for_each(|part| words.extend(part.join().expect("it does not panic").into_iter().map(AtomicU64::new)));
    });
    Ok((arena, words))
}

/// Multiples of a number.
pub fn multiples(of: u64) -> cowbell::Result<Frozen<Words>> {
    let (arena, words) = words(of)?;
    arena.freeze(words)
}

/// Waits until nobody has the data any more.
pub fn is_freed(former: &Former) -> Result<(), Failed> {
    if former.wait_timeout(SOON)? { Ok(()) } else { Err("the old data still has a user".into()) }
}

/// The mappings of a process that show data of this number.
pub fn data_mappings(pid: i32, of: u64) -> usize {
    let name = format!("loaded-{of}");
    let maps = procfs::read(pid, "maps").unwrap_or_default();
    String::from_utf8_lossy(&maps).lines().filter(|line| line.split([':', ' ']).any(|word| word == name)).count()
}
