//! All that runs in a child before its closure, in its signal handler, and in the keeper.
//!
//! Code here may run while another thread of the parent held any lock at the fork, between any two instructions of the program, or on
//! the thread-local storage of another thread. So it is *async-signal-safe* (signal-safety(7)): it neither allocates nor frees, takes no lock,
//! and panics nowhere. tests/tidy/signal_safe.rs refuses the types that would; tests/signal_safe.rs runs it under an allocator that
//! aborts.

pub(super) mod arm;
pub(crate) mod census;
pub(super) mod faults;
pub(super) mod instruction;
pub(super) mod keeper;
pub(super) mod marks;
pub(crate) mod outside;
pub(super) mod ring;
pub(super) mod trap;
