//! Measurements of what forking, copying, watching and worker pools cost, each beside its native counterpart.
//!
//! ```text
//! writes(pages: usize, repeats: usize) -> Result<Writes>   the first write to a page, under each watch
//! others() -> Result<Vec<Child>>                           that keep each processor busy while they live
//! forks(bytes: u64, repeats: usize) -> Result<Forks>       forks over different memory, and first reads
//! arming(bytes: u64, repeats: usize) -> Result<Arming>     what a watch adds to a fork
//! fork_ns() -> Result<u64>                                 one bare fork of this process
//! pool(program, workers, rounds, quick) -> Result<Pool>    worker pools at the same work
//! pool_memory(program, bytes, workers) -> Result<PoolMemory>   what their workers have of their own
//! ```
//! Every result is a plain struct that serde writes as JSON, and prints itself as a table; field names
//! carry the units. Nothing here asserts a time: contenders take turns within one run, so that a busy
//! machine disturbs all of them alike, and what counts is the median of the ratios of each round.
//!
//! The calling process must have one thread, as for every fork.

mod arming;
mod error;
mod forks;
mod pool;
mod server;
mod spread;
mod text;
mod writes;

pub use arming::{Arming, ArmingCost, arming};
pub use error::{Error, Result};
pub use forks::{ForkCost, Forks, forks};
pub use pool::{Answer, Contender, Goal, Order, Peer, Pool, PoolMemory, PoolMemoryCost, Race, Work};
pub use pool::{hold_pool, ipc_worker, pool, pool_memory, pool_peer};
pub use server::{Memory, fork_ns};
pub use spread::Spread;
pub use writes::{Cost, Pair, WatchCost, Writes, others, writes};
