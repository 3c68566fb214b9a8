//! Measurements of what forking, copying and watching cost, each beside its native counterpart.
//!
//! ```text
//! writes(pages: usize, repeats: usize) -> Result<Writes>   the first write to a page, under each watch
//! forks(bytes: u64, repeats: usize) -> Result<Forks>       forks over different memory, and first reads
//! arming(bytes: u64, repeats: usize) -> Result<Arming>     what a watch adds to a fork
//! ```
//! Every result is a plain struct that serde writes as JSON, and prints itself as a table; field names
//! carry the units. Nothing here asserts a time: contenders take turns within one run, so that a busy
//! machine disturbs all of them alike, and what counts is the median of the ratios of each round.
//!
//! The calling process must have one thread, as for every fork.

mod arming;
mod error;
mod forks;
mod server;
mod spread;
mod text;
mod writes;

pub use arming::{Arming, ArmingCost, arming};
pub use error::{Error, Result};
pub use forks::{ForkCost, Forks, forks};
pub use server::Memory;
pub use spread::Spread;
pub use writes::{Cost, Pair, WatchCost, Writes, writes};
