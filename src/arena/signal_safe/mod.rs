//! Questions that signal handlers and forked children ask of the arenas. All of this is *async-signal-safe*: it neither allocates nor frees, and takes no lock.
//!
//! tests/tidy/signal_safe.rs refuses the types that would; tests/signal_safe.rs runs it under an allocator that aborts.

pub(super) mod handler;
pub(crate) mod table;
