//! Watching a child: how copies are observed, and what was seen.
//!
//! ```text
//!   parent                       child                          keeper
//!   Evidence (shared memory) --- same ------------------------- same
//!   reads it                     Trap: its SIGBUS handler        a process that shares the child's memory:
//!                                writes events into it           Monitor: reads the faults, lets writers go on;
//!                                                                takes each census, and the last one when the
//!                                                                child is dead, by whatever signal
//! ```
//!
//! The **keeper** is what makes the last census possible: page tables vanish with the last process that
//! uses them, so one more process uses them (`clone(CLONE_VM)`), sleeps, and is woken by the child's end.
//! It costs one sleeping process a child, a few pages, and nothing per write. A child that executes another
//! program ends its accounting; the keeper takes the last census then. Grandchildren are not watched.
//!
//! Every watch agrees with the census to the page, with the exceptions that docs/DESIGN.md lists. The one that is
//! met in practice: where the kernel writes on the program's behalf and the watch makes that fail (`EFAULT`), the page
//! may be copied although nothing was written; the report counts it as copied and unobserved.

mod crash;
mod evidence;
mod failure;
mod findings;
mod kind;
mod request;
mod reshare;
mod signal_safe;

pub use crate::facts::{Door, Registers};
pub(crate) use evidence::{Bitmap, Evidence, LastCensus, Word};
pub(crate) use failure::{At, FailedStep, Step};
pub use findings::{Changed, DeniedWrite, Event, PanicMessage};
pub use kind::Watch;
pub(crate) use request::KeeperRequest;
pub(crate) use reshare::{copied_now, give_back};
pub(crate) use signal_safe::arm::begin;
pub use signal_safe::outside::{Outside, OutsidePages};
pub use signal_safe::ring::CALLERS_MAX;
pub(crate) use signal_safe::{census, outside};
