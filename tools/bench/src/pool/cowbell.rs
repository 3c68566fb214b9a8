//! `cowbell::pool` at work.

use super::memory::{Hold, PoolMemoryCost};
use super::native::{block, busy, round_trips, time};
use super::order::{self, Answer, Order, Peer, Work};
use crate::error::{Error, Result};
use cowbell::arena::{Arena, Collapsed, FreezeOptions, Frozen, Handle, HugePages};
use cowbell::pool::{Buffer, Pool, PoolBuilder};
use cowbell::sys;
use cowbell::sys::map::Range;
use cowbell::sys::procfs::{smaps, status::Status};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::hint::black_box;
use std::io::{Read, Write};

/// Does the work with a pool of its own.
pub(super) fn perform(order: &Order) -> Result<Answer> {
    match order.work {
        Work::Empty | Work::RoundTrip => empty(order),
        Work::Busy => {
            let pool = builder(order).spawn(nothing()?, |(), number: u64| {
                busy();
                number
            })?;
            time(order.jobs, |jobs| all(&pool, order, 0..jobs as u64, order::check_number))
        }
        Work::Lookup => lookup(order),
        Work::Large => large(order),
    }
}

fn empty(order: &Order) -> Result<Answer> {
    let pool = builder(order).spawn(nothing()?, |(), number: u64| number)?;
    if order.work == Work::RoundTrip {
        return round_trips(order.jobs, |n| {
            let result = pool.submit(n as u64)?.wait()?;
            order::check_number(n, result)
        });
    }
    time(order.jobs, |jobs| all(&pool, order, 0..jobs as u64, order::check_number))
}

fn lookup(order: &Order) -> Result<Answer> {
    let (frozen, data) = freeze(order::words(order.bytes), HugePages::default())?;
    let pool = builder(order).spawn(frozen, |_, place: Handle<u64>| place.get().copied().unwrap_or(u64::MAX))?;
    // Making the handles is part of the work.
    let handle = |number| pool.frozen().handle(&data[order::place(number, data.len())]).expect("it lies in the data");
    time(order.jobs, |jobs| {
        all(&pool, order, (0..jobs).map(handle), |n, result| order::check_word(n, data.len(), result))
    })
}

fn large(order: &Order) -> Result<Answer> {
    let (frozen, _) = freeze(order::block_bytes(order.bytes), HugePages::default())?;
    let bytes = order.bytes;
    let pool = builder(order).spawn(frozen, move |data: &'static &'static [u8], number: u64| {
        Buffer::copy_of(block(data, number as usize, bytes)).map_err(|e| e.to_string())
    })?;
    time(order.jobs, |jobs| {
        all(&pool, order, 0..jobs as u64, |n, result: Result<Buffer<u8>, String>| {
            order::check_block(n, &result.map_err(Error::Failed)?, bytes)
        })
    })
}

fn builder(order: &Order) -> PoolBuilder {
    Pool::<(), (), ()>::builder().workers(order.workers)
}

/// Data for jobs that need none.
fn nothing() -> Result<Frozen<()>> {
    Ok(Arena::builder("bench-pool").capacity(sys::page_size().bytes()).build()?.freeze(())?)
}

/// Items in a frozen arena.
fn freeze<T: 'static>(
    items: impl ExactSizeIterator<Item = T>,
    huge_pages: HugePages,
) -> Result<(Frozen<&'static [T]>, &'static [T])> {
    // Room for the root, and for what rounding to huge pages adds.
    let capacity = (items.len() * size_of::<T>()).saturating_add(4 << 20);
    let arena = Arena::builder("bench-pool").capacity(capacity).huge_pages(huge_pages).build()?;
    let data = &*arena.alloc_iter(items)?;
    let frozen = arena.freeze_unchecked_with(data, FreezeOptions::new().huge_pages(huge_pages))?;
    if let Collapsed::Partly(why) = frozen.image().collapsed() {
        return Err(Error::Failed(format!("not all of it could be collapsed: {why}")));
    }
    Ok((frozen, data))
}

/// Maps all jobs and checks each result with its number.
fn all<T, J, R>(
    pool: &Pool<T, J, R>,
    order: &Order,
    jobs: impl Iterator<Item = J>,
    check: impl Fn(usize, R) -> Result<()>,
) -> Result<()>
where
    J: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned + Send,
{
    let results = pool.map(jobs);
    let results = if order.peer == Peer::CowbellChunk1 { results.chunk(1) } else { results };
    results.enumerate().try_for_each(|(number, result)| check(number, result?))
}

/// Makes a pool over data of that size, has each worker read all of it, and looks at them before any goes on.
pub(super) fn hold(hold: Hold) -> Result<PoolMemoryCost> {
    let huge_pages = if hold.huge_pages { HugePages::Collapse } else { HugePages::Never };
    let (frozen, _) = freeze((0..hold.bytes.div_ceil(size_of::<u64>())).map(|at| at as u64), huge_pages)?;
    let io = |e: std::io::Error| Error::Failed(format!("pipe: {e}"));
    let (mut arrived, arrives) = std::io::pipe().map_err(io)?;
    let (goes, mut go) = std::io::pipe().map_err(io)?;
    let pool = Pool::<(), (), ()>::builder().workers(hold.workers).spawn(
        frozen,
        move |data: &'static &'static [u64], _: u64| {
            let words = sys::page_size().bytes() / size_of::<u64>();
            black_box(data.iter().step_by(words).fold(0, |sum: u64, word| sum.wrapping_add(*word)));
            // A worker that waits takes no other's job.
            (&arrives).write_all(&[1]).and_then(|()| (&goes).read_exact(&mut [0])).is_ok()
        },
    )?;
    let begun = sys::monotonic_ns();
    let tickets: Result<Vec<_>, _> = (0..hold.workers as u64).map(|number| pool.submit(number)).collect();
    let tickets = tickets?;
    arrived.read_exact(&mut vec![0; hold.workers]).map_err(io)?;
    let seconds = (sys::monotonic_ns() - begun) as f64 / 1e9;
    let mut cost =
        PoolMemoryCost { workers: hold.workers, huge_pages: hold.huge_pages, seconds, ..PoolMemoryCost::default() };
    for pid in pool.workers() {
        add(&mut cost, pid)?;
    }
    go.write_all(&vec![1; hold.workers]).map_err(io)?;
    for ticket in tickets {
        let waited = ticket.wait()?;
        if !waited {
            return Err(Error::Failed("a worker could not wait for the others".into()));
        }
    }
    Ok(cost)
}

fn unreadable(pid: i32, e: sys::Errno) -> Error {
    Error::Failed(format!("worker {pid}: {e}"))
}

/// Adds what one worker has of its own.
fn add(cost: &mut PoolMemoryCost, pid: i32) -> Result<()> {
    let uss = smaps::rollup(pid).map_err(|e| unreadable(pid, e))?.private;
    let everything = Range { start: 0, len: usize::MAX };
    let stack = smaps::mappings(pid, everything)
        .map_err(|e| unreadable(pid, e))?
        .iter()
        .filter(|figures| figures.mapping.name == "[stack]")
        .map(|m| m.private)
        .sum();
    cost.uss_bytes += uss;
    cost.uss_bytes_max = cost.uss_bytes_max.max(uss);
    cost.stack_bytes += stack;
    cost.stack_bytes_max = cost.stack_bytes_max.max(stack);
    cost.page_tables_bytes_max = cost.page_tables_bytes_max.max(page_tables(pid)?);
    Ok(())
}

/// `VmPTE` of a process, in bytes.
fn page_tables(pid: i32) -> Result<u64> {
    let status = Status::of(pid).map_err(|e| unreadable(pid, e))?;
    Ok(status.bytes("VmPTE").unwrap_or(0))
}
