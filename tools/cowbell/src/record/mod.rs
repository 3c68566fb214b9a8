//! Captures: what they hold, and how they are written and read.

mod code;
mod event;
mod fault;
mod gaps;
pub mod image;
mod kinds;
mod memory;
mod objects;
pub mod read;
mod types;

pub use read::Reader;
pub use types::*;
