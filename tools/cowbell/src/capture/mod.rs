//! Captures: what they hold, and how they are written and read.

mod code;
pub mod read;
pub mod record;
pub mod write;

pub use read::Reader;
pub use write::Writer;
