//! ipc-channel: this program started once more for each worker, and a thread here that serves it.
//!
//! The crate is kept up, and procspawn's pool stands on it: whatever a pool adds comes on top of this.

use super::native::{self, block, round_trips, time};
use super::order::{self, Answer, Order, Work};
use crate::error::{Error, Result};
use ipc_channel::ipc::{self, IpcOneShotServer, IpcReceiver, IpcSender, IpcSharedMemory};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Jobs on the way to each worker at once: enough that none waits for its next one.
const WINDOW: usize = 16;

#[derive(Serialize, Deserialize)]
enum ToWorker {
    Data(IpcSharedMemory),
    Empty(u64),
    Busy(u64),
    Word(usize),
    Block { number: usize, bytes: usize },
}

#[derive(Serialize, Deserialize)]
enum FromWorker {
    Ready(IpcSender<ToWorker>),
    Number(u64),
    Bytes(IpcSharedMemory),
}

/// A worker, seen from outside. It ends when its sender is dropped.
struct Worker {
    jobs: IpcSender<ToWorker>,
    results: IpcReceiver<FromWorker>,
    process: Child,
}

impl Worker {
    fn start(program: &Path) -> Result<Self> {
        let (server, name) = IpcOneShotServer::<FromWorker>::new().map_err(failed)?;
        let process = Command::new(program).args(["pool-ipc-worker", &name]).spawn().map_err(failed)?;
        let (results, first) = server.accept().map_err(failed)?;
        let FromWorker::Ready(jobs) = first else { return Err(failed("a result before any job")) };
        Ok(Self { jobs, results, process })
    }

    fn send(&self, job: ToWorker) -> Result<()> {
        self.jobs.send(job).map_err(failed)
    }

    /// Does jobs until there are no more of them.
    fn run(&mut self, order: &Order, next: &AtomicUsize, jobs: usize) -> Result<()> {
        let mut sent = std::collections::VecDeque::with_capacity(WINDOW);
        loop {
            while sent.len() < WINDOW {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= jobs {
                    break;
                }
                self.send(job(order, number))?;
                sent.push_back(number);
            }
            let Some(number) = sent.pop_front() else { return Ok(()) };
            check(order, number, self.results.recv().map_err(failed)?)?;
        }
    }
}

fn failed(why: impl std::fmt::Display) -> Error {
    Error::Failed(format!("ipc-channel: {why}"))
}

fn job(order: &Order, number: usize) -> ToWorker {
    match order.work {
        Work::Empty | Work::RoundTrip => ToWorker::Empty(number as u64),
        Work::Busy => ToWorker::Busy(number as u64),
        Work::Lookup => ToWorker::Word(order::place(number, order.bytes / size_of::<u64>())),
        Work::Large => ToWorker::Block { number, bytes: order.bytes },
    }
}

fn check(order: &Order, number: usize, result: FromWorker) -> Result<()> {
    match (order.work, result) {
        (Work::Large, FromWorker::Bytes(bytes)) => order::check_block(number, &bytes, order.bytes),
        (Work::Lookup, FromWorker::Number(word)) => order::check_word(number, order.bytes / size_of::<u64>(), word),
        (_, FromWorker::Number(result)) => order::check_number(number, result),
        _ => Err(failed("a result of another kind")),
    }
}

/// Does the work with workers that are `program`.
pub(super) fn perform(order: &Order, program: &Path) -> Result<Answer> {
    let workers: Result<Vec<Worker>> = (0..order.workers).map(|_| Worker::start(program)).collect();
    let mut workers = workers?;
    let data: Option<Vec<u8>> = match order.work {
        Work::Lookup => Some(order::words(order.bytes).flat_map(u64::to_ne_bytes).collect()),
        Work::Large => Some(order::block_bytes(order.bytes).collect()),
        _ => None,
    };
    if let Some(data) = data {
        // Shared once and for all: the workers map it.
        let shared = IpcSharedMemory::from_bytes(&data);
        workers.iter().try_for_each(|worker| worker.send(ToWorker::Data(shared.clone())))?;
    }
    let answer = match (order.work, workers.first()) {
        (Work::RoundTrip, Some(worker)) => round_trips(order.jobs, |number| {
            worker.send(job(order, number))?;
            check(order, number, worker.results.recv().map_err(failed)?)
        }),
        _ => time(order.jobs, |jobs| {
            let next = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                let next = &next;
                let serve = |worker: &mut Worker| worker.run(order, next, jobs);
                let threads: Vec<_> = workers.iter_mut().map(|worker| scope.spawn(move || serve(worker))).collect();
                threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| failed("a thread panicked"))?)
            })
        }),
    };
    for Worker { jobs, results, mut process } in workers {
        drop((jobs, results));
        process.wait().map_err(failed)?;
    }
    answer
}

/// A worker's loop, until nobody has jobs for it any more; `name` is where it is waited for.
///
/// # Errors
/// Failed: nobody waits there, or a result cannot be sent.
pub fn ipc_worker(name: String) -> Result<()> {
    let results = IpcSender::<FromWorker>::connect(name).map_err(failed)?;
    let (sender, jobs) = ipc::channel().map_err(failed)?;
    results.send(FromWorker::Ready(sender)).map_err(failed)?;
    let mut data = None;
    // An error is the end: the other side hung up.
    while let Ok(job) = jobs.recv() {
        let bytes = data.as_deref().unwrap_or_default();
        let result = match job {
            ToWorker::Data(shared) => {
                data = Some(shared);
                continue;
            }
            ToWorker::Empty(number) => FromWorker::Number(number),
            ToWorker::Busy(number) => {
                native::busy();
                FromWorker::Number(number)
            }
            ToWorker::Word(place) => {
                let start = place * size_of::<u64>();
                let word = bytes.get(start..start + size_of::<u64>()).and_then(|word| word.try_into().ok());
                FromWorker::Number(u64::from_ne_bytes(word.ok_or_else(|| failed("a place out of bounds"))?))
            }
            ToWorker::Block { number, bytes: len } => {
                FromWorker::Bytes(IpcSharedMemory::from_bytes(block(bytes, number, len)))
            }
        };
        results.send(result).map_err(failed)?;
    }
    Ok(())
}
