//! Memory is committed in steps, and only where the limits leave room for a step.

use crate::error::{Error, ErrorKind, Result};
use crate::sys::limits;

/// Memory is committed in steps of this many bytes: a system call per step, not per page.
pub(super) const COMMIT_STEP: usize = 4 << 20;

/// Checks that there is memory for so many bytes, and a step to spare for whatever else the process needs before the next check.
pub(super) fn check_headroom(asked: usize) -> Result<()> {
    let needed = asked.saturating_add(COMMIT_STEP) as u64;
    match limits::memory_headroom().filter(|headroom| headroom.bytes < needed) {
        Some(headroom) => Err(Error::new(ErrorKind::OutOfMemory { asked, limit: headroom.to_string() })),
        None => Ok(()),
    }
}
