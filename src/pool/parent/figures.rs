//! Figures of a pool at work: what each worker has done, and what memory its processes have.
//!
//! Looking is the looker's work: the zygote says which arenas each worker was forked with, and this process reads the kernel's tables of the
//! workers. They are neither asked nor stopped, and count nothing for it.

use super::core::{Core, lock};
use super::held::Held;
use super::pool::Pool;
use crate::error::{Error, Result};
use crate::fork::Child;
use crate::page::{PageCount, PageIndex, PageSet, PageSpan};
use crate::pool::protocol::messages::{ForkedArena, ForkedWorker, Reply, Request};
use crate::sys::map::Range;
use crate::sys::pagemap::Pagemap;
use crate::sys::procfs::stat::Stat;
use crate::sys::procfs::{self, private, smaps};
use crate::sys::{self, Errno};
use crate::watch::census;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A worker at work: see [`Pool::worker_stats`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Which of the pool's workers it is: see [`WorkerInfo::index`](crate::pool::WorkerInfo::index).
    pub index: usize,
    /// The worker's process id.
    pub pid: i32,
    /// The number of its data set: see [`WorkerInfo::generation`](crate::pool::WorkerInfo::generation).
    pub generation: u64,
    /// The time since its fork was begun.
    pub age: Duration,
    /// Jobs that it has run to their end.
    pub jobs: u64,
    /// The pages of frozen arenas that it has copied and still has: what [`crate::fork::copied_now`] says in the worker, and `Anonymous` and `Swap` in its
    /// `/proc/PID/smaps`. `None` where this process may not read the worker's tables: because a hook made the worker another user's, say.
    pub copied_pages: Option<PageCount>,
    /// Memory that it alone maps at the moment, of files too: the kernel's `Private_Clean` and `Private_Dirty` (its *unique set size*). Pages of the frozen data that
    /// no other process has mapped yet are part of it. `None` as above.
    pub uss_bytes: Option<u64>,
}

/// The memory of a pool's processes: see [`Pool::memory`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolMemory {
    /// The newest data. `None` for an image that was opened in place, whose pages are a file's on a disk, and lie in the kernel's cache.
    pub data: Option<DataMemory>,
    /// Memory of the parent's own: pages of no file that no other process maps. What it still shares with zygote and workers, because nobody has written it since
    /// they were forked, is nobody's own.
    pub parent_own_bytes: u64,
    /// The same of the zygote; `None` where this process may not read its tables.
    pub zygote_own_bytes: Option<u64>,
    /// Each worker.
    pub workers: Vec<WorkerMemory>,
}

/// The memory of a frozen data set, which is there once for all processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DataMemory {
    /// The bytes that its file takes, in memory or swapped out. Workers' copies of pages are not among them.
    pub shared_bytes: u64,
    /// Those of them that parent, zygote and workers do not map at the moment: nobody has read them yet, or whoever did has copied them or has ended.
    /// Other processes that the program has forked are not looked at. `None` where one of the pool's processes could not be read.
    pub unmapped_bytes: Option<u64>,
}

/// The memory of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerMemory {
    /// The worker's place in the pool.
    pub index: usize,
    /// The worker's process id.
    pub pid: i32,
    /// Pages of no file that no other process maps: its copies of frozen pages, and what it has written or allocated besides. This is what is free when it
    /// ends. A worker and its keeper have one memory, which is counted once; the keeper's stack is in it. Pages that are swapped out are not. `None` where this
    /// process may not read the worker's tables.
    pub own_bytes: Option<u64>,
}

/// A worker's words, read together.
struct RecordCopy {
    index: usize,
    pid: i32,
    generation: u64,
    age: Duration,
    jobs: u64,
}

impl<T, J, R, D> Pool<T, J, R, D> {
    /// The workers of now, by their indices: who each is, what it has done, and the memory that it has.
    ///
    /// A worker that ends while it is looked at is left out. The workers are neither asked nor stopped; this takes a message to the zygote and back, and what the
    /// kernel takes to walk the page tables of each worker: about 50 ns for each page that it maps.
    ///
    /// ```no_run
    /// # use cowbell::arena::Arena;
    /// # use cowbell::pool::Pool;
    /// # let frozen = Arena::builder("data").capacity(1 << 20).build()?.freeze(5u64)?;
    /// let pool = Pool::builder().workers(2).spawn(frozen, |data, job: u64| data * job)?;
    /// for worker in pool.worker_stats()? {
    ///     println!("worker {} (process {}): {} jobs in {:?}", worker.index, worker.pid, worker.jobs, worker.age);
    ///     println!("{:?} copied, {:?} bytes of its own", worker.copied_pages, worker.uss_bytes);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The pool is gone, or the zygote does not answer. The errno of a read that fails for a living worker: EMFILE.
    pub fn worker_stats(&self) -> Result<Vec<WorkerStats>> {
        let looked = self.core.look_at_workers(|worker| {
            let uss = smaps::rollup(worker.pid)?.private;
            Ok((copied(worker)?.count(), uss))
        })?;
        let stats = looked.into_iter().map(|(seen, figures)| WorkerStats {
            index: seen.index,
            pid: seen.pid,
            generation: seen.generation,
            age: seen.age,
            jobs: seen.jobs,
            copied_pages: figures.map(|(copied, _)| copied),
            uss_bytes: figures.map(|(_, uss)| uss),
        });
        Ok(stats.collect())
    }
}

impl<T, J, R, D: Held> Pool<T, J, R, D> {
    /// The memory of the newest data, and of each process of the pool.
    ///
    /// It is read while the processes go on, one after the other. What it takes is as with [`Self::worker_stats`], for parent and zygote, too; a
    /// [`Self::replace`](Pool::replace) waits for it, and so does [`Pool::reload`] once the data is there.
    ///
    /// ```no_run
    /// # use cowbell::arena::Arena;
    /// # use cowbell::pool::Pool;
    /// # let frozen = Arena::builder("data").capacity(1 << 20).build()?.freeze(5u64)?;
    /// let pool = Pool::builder().workers(2).spawn(frozen, |data, job: u64| data * job)?;
    /// let memory = pool.memory()?;
    /// let own: u64 = memory.workers.iter().filter_map(|worker| worker.own_bytes).sum();
    /// let shared = memory.data.map_or(0, |data| data.shared_bytes);
    /// println!("{shared} bytes once, {own} in the workers, {} in the parent", memory.parent_own_bytes);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Self::worker_stats`].
    pub fn memory(&self) -> Result<PoolMemory> {
        self.core.check_process().map_err(|e| Error::invalid(e.to_string()))?;
        // Nobody replaces the data meanwhile, so its addresses stay its own.
        let newest = self.newest();
        let data = newest.range();
        let generation = self.core.region.board().generation.0.load(Ordering::Acquire);
        let zygote = lock(&self.core.line).zygote.as_ref().map(Child::pid);
        let zygote = zygote.ok_or_else(|| Error::invalid("the pool is closed"))?;
        let look =
            |pid, has_data| Ok((private::own_pages(pid)?, if has_data { mapped(pid, data)? } else { PageSet::new() }));
        let (parent, mut all) = look(procfs::SELF, newest.is_mapped_here()).map_err(failed)?;
        let mut complete = true;
        let mut add = |looked: Option<(u64, PageSet)>| match looked {
            Some((own, mapped)) => {
                all.union_with(&mapped);
                Some(bytes_of(own))
            }
            None => {
                complete = false;
                None
            }
        };
        let zygote_own_bytes = add(permitted(look(zygote, true)).map_err(failed)?);
        // A worker of an older generation may have other memory there.
        let has_data = |worker: &ForkedWorker| {
            worker.generation == generation && worker.arenas.iter().any(|arena| arena.range() == data)
        };
        let looked = self.core.look_at_workers(|worker| look(worker.pid, has_data(worker)))?;
        let workers = looked.into_iter().map(|(seen, looked)| WorkerMemory {
            index: seen.index,
            pid: seen.pid,
            own_bytes: add(looked),
        });
        let workers = workers.collect();
        let shared_bytes = newest.held_bytes()?;
        let data = shared_bytes.map(|shared_bytes| DataMemory {
            shared_bytes,
            unmapped_bytes: complete.then(|| shared_bytes.saturating_sub(bytes_of(all.count().0))),
        });
        Ok(PoolMemory { data, parent_own_bytes: bytes_of(parent), zygote_own_bytes, workers })
    }
}

impl Core {
    /// Looks at each worker of now, and returns what was found of those that are there still: then their ids were theirs all the while. `None` for one that
    /// this process may not look at.
    fn look_at_workers<F>(
        &self,
        mut look: impl FnMut(&ForkedWorker) -> Result<F, Errno>,
    ) -> Result<Vec<(RecordCopy, Option<F>)>> {
        let Reply::Workers(workers) = self.request(&Request::Workers, None)? else {
            return Err(Error::invalid("the zygote answered something else"));
        };
        let mut all = Vec::new();
        for worker in &workers {
            let looked = permitted(look(worker));
            // A process keeps its id until the zygote has reaped it, and the worker's record loses it before.
            let Some(seen) = self.seen(worker) else { continue };
            match looked {
                // Files of a process without memory are root's, whoever it belonged to.
                Ok(None) if is_ending(worker.pid) => {}
                Ok(found) => all.push((seen, found)),
                // The worker has ended, and the zygote does not know yet.
                Err(Errno::NOENT | Errno::SRCH) => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Ok(all)
    }

    /// A copy of a worker's record, if the worker has not been replaced.
    fn seen(&self, worker: &ForkedWorker) -> Option<RecordCopy> {
        let index = worker.index as usize;
        let own = self.region.workers().get(index)?;
        let generation = own.generation.load(Ordering::Acquire);
        let jobs = own.jobs.load(Ordering::Acquire).saturating_sub(own.jobs_before.load(Ordering::Acquire));
        let age = Duration::from_nanos(sys::monotonic_ns().saturating_sub(worker.started));
        // Last: if these are the worker's still, all that was read before is.
        let started = own.started.load(Ordering::Acquire);
        let pid = own.pid.load(Ordering::Acquire) as i32;
        (pid == worker.pid && started == worker.started).then_some(RecordCopy { index, pid, generation, age, jobs })
    }
}

impl ForkedArena {
    fn range(&self) -> Range {
        Range { start: self.start as usize, len: self.bytes as usize }
    }
}

/// The pages of all its arenas that a worker has copied and its zygote had not.
fn copied(worker: &ForkedWorker) -> Result<PageSet, Errno> {
    let pagemap = Pagemap::open(worker.pid)?;
    let (size, mut all, mut before) = (sys::page_size(), PageSet::new(), 0);
    for arena in &worker.arenas {
        let range = arena.range();
        let mut copied = PageSet::new();
        census::scan(&pagemap, range, worker.armed, |run| copied.insert_span(span(range, run)))?;
        let inherited = arena.inherited.iter().fold(PageSet::new(), |mut set, &(start, count)| {
            set.insert_span(PageSpan { start: PageIndex(start), count: PageCount(count) });
            set
        });
        for run in copied.difference(&inherited).runs() {
            all.insert_span(PageSpan { start: PageIndex(before + run.start.0), count: run.count });
        }
        before += size.pages_for(range.len).0;
    }
    Ok(all)
}

/// The pages of the data that a process maps and has not copied.
fn mapped(pid: i32, data: Range) -> Result<PageSet, Errno> {
    let pagemap = if pid == procfs::SELF { Pagemap::open_self() } else { Pagemap::open(pid) }?;
    let mut mapped = PageSet::new();
    census::scan_mapped(&pagemap, data, |run| mapped.insert_span(span(data, run)))?;
    Ok(mapped)
}

/// A run of pages, counted from the start of its range.
fn span(range: Range, run: Range) -> PageSpan {
    let size = sys::page_size();
    PageSpan { start: size.index_of(run.start.saturating_sub(range.start)), count: size.pages_for(run.len) }
}

/// `None` for what the kernel does not let this process see.
fn permitted<F>(looked: Result<F, Errno>) -> Result<Option<F>, Errno> {
    match looked {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ACCESS | Errno::PERM) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Tells whether a process has ended or is on its way out, so that it has no memory any more.
fn is_ending(pid: i32) -> bool {
    let stat = procfs::read(pid, "stat");
    stat.map_or(true, |line| Stat::parse(&line).is_none_or(|stat| stat.has_ended() || stat.is_exiting()))
}

fn failed(e: Errno) -> Error {
    Error::os("read(/proc/PID/maps, smaps_rollup, pagemap)", e)
}

fn bytes_of(pages: u64) -> u64 {
    pages * sys::page_size().bytes() as u64
}
