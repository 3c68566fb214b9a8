//! Captures: what they hold, and how they are written and read.

mod code;
mod fault;
mod gaps;
mod memory;
pub mod read;
mod types;

pub use read::Reader;
pub use types::*;
