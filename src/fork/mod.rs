//! Forking workers: raw `clone3`, what runs in the child before user code, and how a child ends.
//!
//! ```text
//! parent                                         child
//! is this the only thread? flush stdio
//! shared region, pipe; block signals; clone3 --> dies with its parent; growing arenas fenced off;
//! waits for the set-up                           frozen arenas made writable (or left read-only);
//!                          <-- pipe: done ------ arenas armed, keeper started; signals unblocked
//! spawn returns a Child                          the closure; stdio flushed; _exit
//! ```
//! Up to the closure the child neither allocates nor takes a lock. It never unwinds into the parent's
//! frames, runs no destructor of theirs and no `atexit`.

mod census;
mod child;
mod child_main;
mod options;
pub(crate) mod panics;
mod requests;
mod reshare;
mod signal_safe;
mod single_thread;
mod spawn;

pub use crate::facts::{Ended, StackOverflow};
pub use census::ArenaCensus;
pub use child::{Child, Exit};
pub use child_main::{Context, IntoExitCode};
pub use requests::ArenaEpoch;
pub(crate) use reshare::reshare_image;
pub use reshare::{Reshared, copied_now, page_faults};

pub use options::ForkOptions;
pub use spawn::{spawn, spawn_unchecked};

pub(crate) use single_thread::{PATIENCE, is_alone, wait_until_alone, wait_until_alone_beside_main};
