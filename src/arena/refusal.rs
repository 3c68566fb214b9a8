//! Why an arena has no memory to give: as an error, and in front of people.

use super::inner::Inner;
use crate::error::{ArenaFrozen, ArenaFull, Error, ErrorKind};
use crate::sys::stderr::Stderr;
use std::cell::Cell;
use std::fmt::Write;

thread_local! {
    /// True while this thread allocates for a caller that gets the reason as an error.
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Why there is no memory. That the arena is frozen or full takes none to say.
pub(super) enum Refusal {
    Frozen,
    Full,
    Because(Error),
}

impl Refusal {
    /// Says on standard error why a collection gets no memory: it may tell its caller nothing but "memory allocation failed", and abort.
    pub(super) fn tell(&self, arena: &str, capacity: usize, asked: usize) {
        if is_quiet() {
            return;
        }
        let mut stderr = Stderr::new();
        let _written = match self {
            Self::Frozen => writeln!(stderr, "cowbell: {}: nothing can be allocated from it", ArenaFrozen(arena)),
            Self::Full => {
                let full = ArenaFull { arena, capacity, asked };
                writeln!(stderr, "cowbell: {full} ({})", ArenaFull::HINT)
            }
            Self::Because(e) => writeln!(stderr, "cowbell: no memory for a collection in arena `{arena}`: {e}"),
        };
    }
}

/// Is nothing told on this thread now?
pub(super) fn is_quiet() -> bool {
    IS_QUIET.get()
}

/// Calls `allocate`, whose caller gets the reason as an error: nothing is told meanwhile.
pub(super) fn quietly<R>(allocate: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            IS_QUIET.set(self.0);
        }
    }
    let _restored = Restore(IS_QUIET.replace(true));
    allocate()
}

impl Inner {
    /// The refusal of so many bytes as an error.
    pub(super) fn error(&self, refusal: Refusal, asked: usize) -> Error {
        let arena = || self.name.to_string();
        match refusal {
            Refusal::Frozen => Error::new(ErrorKind::Frozen { arena: arena() }),
            Refusal::Full => Error::new(ErrorKind::OutOfCapacity { arena: arena(), capacity: self.capacity, asked })
                .with_hint(ArenaFull::HINT),
            Refusal::Because(e) => e,
        }
    }
}
