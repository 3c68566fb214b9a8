//! Measurements of what forking, copying and watching cost, each beside its native counterpart.
//!
//! ```text
//! writes(pages: usize, repeats: usize) -> Result<Writes>   the first write to a page, under each watch
//! ```
//! Every result is a plain struct that serde writes as JSON; field names carry the units. Nothing here
//! asserts a time: contenders take turns within one run, so that a busy machine disturbs all of them
//! alike, and what counts is the median of the ratios of each round.
//!
//! The calling process must have one thread, as for every fork.

mod error;
mod spread;
mod writes;

pub use error::{Error, Result};
pub use spread::Spread;
pub use writes::{Cost, Pair, WatchCost, Writes, writes};
