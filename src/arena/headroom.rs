//! Memory is committed in steps, and only where the limits leave room for a step.

use crate::error::{Error, ErrorKind, Result};
use crate::sys::limits;

/// Memory is committed in steps of this many bytes: a system call per step, not per page.
pub(super) const COMMIT_STEP: usize = 4 << 20;

/// The largest step.
const COMMIT_STEP_MAX: usize = 64 << 20;

/// The length of the step that commits `missing` bytes behind so many: a sixteenth of what is there, so that large arenas ask the kernel less often, if `check`
/// lets it pass, else the least. Returns what `check` makes of it.
///
/// # Errors
/// The error is that of `check` about the least.
pub(super) fn step<T>(committed: usize, missing: usize, check: impl Fn(usize) -> Result<T>) -> Result<T> {
    let least = missing.next_multiple_of(COMMIT_STEP);
    let large = (committed / 16).min(COMMIT_STEP_MAX) / COMMIT_STEP * COMMIT_STEP;
    if large > least
        && let Ok(step) = check(large)
    {
        Ok(step)
    } else {
        check(least)
    }
}

/// Checks that there is memory for so many bytes, and a step to spare for whatever else the process needs before the next check.
pub(super) fn check_headroom(asked: usize) -> Result<()> {
    let needed = asked.saturating_add(COMMIT_STEP) as u64;
    match limits::memory_headroom().filter(|headroom| headroom.bytes < needed) {
        Some(headroom) => Err(Error::new(ErrorKind::OutOfMemory { asked, limit: headroom.to_string() })),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{COMMIT_STEP, COMMIT_STEP_MAX, step};
    use crate::error::{Error, Result};

    #[test]
    fn steps_grow_with_the_arena_where_the_limits_allow_it() {
        let of = |committed, missing| step(committed, missing, Ok).expect("nothing is refused");
        assert_eq!([of(0, 1), of(127 << 20, 1), of(128 << 20, 1)], [COMMIT_STEP, COMMIT_STEP, 2 * COMMIT_STEP]);
        assert_eq!(of(4 << 30, 1), COMMIT_STEP_MAX);
        assert_eq!(of(128 << 20, 100 << 20), 100 << 20, "what is asked for at once is committed at once");
        let limit = |step: usize| -> Result<usize> {
            if step > COMMIT_STEP { Err(Error::invalid("too large")) } else { Ok(step) }
        };
        assert_eq!(step(4 << 30, 1, limit).ok(), Some(COMMIT_STEP));
        assert!(step(4 << 30, COMMIT_STEP + 1, limit).is_err());
    }
}
