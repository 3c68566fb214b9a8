//! The worker pool beside what people use for the same: Python's pools, rayon, ipc-channel, memcpy.
//!
//! ```text
//! us                                       a contender: a process of its own
//! program pool-peer ORDER|python3 -c ... -> makes its pool, warms up
//!         <-- a line: the time a job ------ does the jobs
//! ```
//! Contenders take turns, and each run's ratios are those of its round.

mod cowbell;
mod ipc;
mod launch;
mod memory;
mod native;
mod order;
mod text;

pub use ipc::ipc_worker;
pub use memory::{PoolMemory, PoolMemoryCost, hold_pool, pool_memory};
pub use order::{Answer, Order, Peer, Work};

use crate::error::{Error, Result};
use crate::spread::{self, Spread};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Empty jobs a second, at least.
const GOAL_EMPTY_JOBS_PER_S: f64 = 500_000.0;
/// From handing in one job to its result, at most.
const GOAL_ROUND_TRIP_US: f64 = 15.0;
/// Busy jobs: the time rayon takes, and 5 % more.
const GOAL_BUSY_TO_RAYON: f64 = 1.05;
/// Large results: the time of copying them in one thread, and 20 % more.
const GOAL_LARGE_TO_MEMCPY: f64 = 1.2;
/// `Manager().list()` gets at most so many items: it would take minutes to fill with more.
const MANAGER_ITEMS_MAX: usize = 200_000;

/// The result of [`pool`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    /// Workers, or threads, of each contender.
    pub workers: usize,
    /// Processors that are ours.
    pub processors: usize,
    /// Runs of each contender at each work.
    pub rounds: usize,
    /// One for each [`Work`].
    pub races: Vec<Race>,
}

/// One work, done by all who can.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Race {
    /// The work.
    pub work: Work,
    /// Bytes of the data set that is looked into, or of a result; 0 where there is none.
    pub bytes: usize,
    /// cowbell first.
    pub contenders: Vec<Contender>,
    /// The goal for cowbell, if there is one.
    pub goal: Option<Goal>,
}

impl Race {
    /// One of the contenders.
    pub fn contender(&self, peer: Peer) -> Option<&Contender> {
        self.contenders.iter().find(|contender| contender.peer == peer)
    }
}

/// One contender's time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contender {
    /// The contender.
    pub peer: Peer,
    /// Jobs of a run. Slow contenders get fewer.
    pub jobs: usize,
    /// The time of a run by its jobs; absent with `error`.
    pub ns_per_job: Option<Spread>,
    /// The same, to cowbell's of the round: above 1 is slower than cowbell.
    pub ratio_to_cowbell: Option<Spread>,
    /// Why it could not be measured.
    pub error: Option<String>,
}

/// The goal for cowbell at some work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    /// The figure that counts, with its unit.
    pub figure: String,
    /// True if it is to be at least, not at most, `bound`.
    pub at_least: bool,
    /// The contender that it is held against.
    pub bound: f64,
    /// The median that was measured; absent if cowbell or the other contender failed.
    pub measured: Option<f64>,
}

impl Goal {
    /// Tells whether it was reached; `None` if it was not measured.
    pub fn met(&self) -> Option<bool> {
        let measured = self.measured?;
        Some(if self.at_least { measured >= self.bound } else { measured <= self.bound })
    }
}

/// Lets pools of `workers` workers do the same work in turns, `rounds` times. `program` is the command that this
/// library comes with: the contenders are started as `program pool-peer`, and as `python3` from the PATH. With
/// `quick` everybody gets so few jobs that the figures mean nothing.
///
/// A contender that cannot be measured is in the result with the reason.
///
/// # Errors
/// Input: no workers or no rounds.
pub fn pool(program: &Path, workers: usize, rounds: usize, quick: bool) -> Result<Pool> {
    if workers == 0 || rounds == 0 {
        return Err(Error::Input("workers and rounds must be at least 1".into()));
    }
    let race = |work: Work| {
        let order = |&peer: &Peer| Order {
            peer,
            work,
            jobs: work.jobs(peer, quick),
            workers,
            bytes: work.bytes(quick),
            manager_items: if quick { MANAGER_ITEMS_MAX / 100 } else { MANAGER_ITEMS_MAX },
        };
        let mut series: Vec<Series> = work.peers().iter().map(|peer| (order(peer), Ok(Vec::new()))).collect();
        for round in 0..rounds {
            for at in spread::order(series.len(), round) {
                let Some((order, times)) = series.get_mut(at) else { continue };
                let Ok(sofar) = times else { continue };
                match launch::contender(program, order) {
                    Ok(answer) => sofar.push(answer.ns_per_job),
                    Err(e) => *times = Err(e.to_string()),
                }
            }
        }
        summary(work, work.bytes(quick), &series)
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(Pool { workers, processors, rounds, races: Work::ALL.map(race).into() })
}

/// Does what `order` says in this process; `program` is the command that this library comes with.
///
/// # Errors
/// Input: a contender that is no part of this program. Failed: it could not do the work, or a result was wrong.
pub fn pool_peer(program: &Path, order: &Order) -> Result<Answer> {
    match order.peer {
        Peer::Cowbell | Peer::CowbellChunk1 => cowbell::perform(order),
        Peer::Rayon | Peer::RayonTasks => native::rayon(order),
        Peer::Memcpy | Peer::MemcpyFresh => native::memcpy(order),
        Peer::IpcChannel => ipc::perform(order, program),
        _ => Err(Error::Input("a contender that is another program".into())),
    }
}

/// The nanoseconds a job of one contender, round by round, or why there are none.
type Series = (Order, Result<Vec<f64>, String>);

fn summary(work: Work, bytes: usize, series: &[Series]) -> Race {
    let times = |peer| {
        let found = series.iter().find(|(order, _)| order.peer == peer);
        found.and_then(|(_, times)| times.as_deref().ok()).unwrap_or_default()
    };
    let cowbell = times(Peer::Cowbell);
    let contender = |(order, times): &Series| Contender {
        peer: order.peer,
        jobs: order.jobs,
        ns_per_job: times.as_ref().ok().and_then(|times| Spread::of(times.iter().copied())),
        ratio_to_cowbell: times.as_ref().ok().and_then(|times| Spread::of_ratios(times, cowbell)),
        error: times.as_ref().err().cloned(),
    };
    let median = |numbers: Option<Spread>| numbers.map(|spread| spread.median);
    let ratio_to = |peer| median(Spread::of_ratios(cowbell, times(peer)));
    let middle = median(Spread::of(cowbell.iter().copied()));
    let goal =
        |figure: &str, at_least, bound, measured| Some(Goal { figure: figure.to_owned(), at_least, bound, measured });
    let goal = match work {
        Work::Empty => goal("jobs/s", true, GOAL_EMPTY_JOBS_PER_S, middle.map(|ns| 1e9 / ns)),
        Work::RoundTrip => goal("us", false, GOAL_ROUND_TRIP_US, middle.map(|ns| ns / 1e3)),
        Work::Busy => goal("x rayon", false, GOAL_BUSY_TO_RAYON, ratio_to(Peer::Rayon)),
        Work::Lookup => None,
        Work::Large => goal("x memcpy in one thread", false, GOAL_LARGE_TO_MEMCPY, ratio_to(Peer::Memcpy)),
    };
    Race { work, bytes, contenders: series.iter().map(contender).collect(), goal }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(peer: Peer, times: Result<&[f64], &str>) -> Series {
        let order = Order { peer, work: Work::Busy, jobs: 10, workers: 2, bytes: 0, manager_items: 0 };
        (order, times.map(<[f64]>::to_vec).map_err(str::to_owned))
    }

    #[test]
    fn ratios_and_goals_are_of_the_rounds_one_by_one() {
        let all = [series(Peer::Cowbell, Ok(&[104.0, 210.0])), series(Peer::Rayon, Ok(&[100.0, 200.0]))];
        let race = summary(Work::Busy, 0, &all);
        let goal = race.goal.clone().expect("busy jobs have a goal");
        assert!(goal.measured.is_some_and(|measured| (measured - 1.045).abs() < 1e-9), "{goal:?}");
        assert_eq!(goal.met(), Some(true));
        let rayon = race.contender(Peer::Rayon).and_then(|rayon| rayon.ratio_to_cowbell).expect("both ran");
        assert!(rayon.max < 1.0, "{rayon:?}");
    }

    #[test]
    fn who_failed_has_a_reason_and_no_goal_is_met_by_it() {
        let all = [series(Peer::Cowbell, Ok(&[104.0])), series(Peer::Rayon, Err("no threads"))];
        let race = summary(Work::Busy, 0, &all);
        assert_eq!(race.goal.as_ref().and_then(Goal::met), None);
        assert_eq!(race.contender(Peer::Rayon).and_then(|rayon| rayon.error.as_deref()), Some("no threads"));
        let slow = summary(Work::Empty, 0, &[series(Peer::Cowbell, Ok(&[3000.0]))]);
        assert_eq!(slow.goal.as_ref().and_then(Goal::met), Some(false), "333,333 jobs/s are not 500,000");
    }
}
