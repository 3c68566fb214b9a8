//! Whether the zygote has taken new data over: settled by one word, because the parent may give up waiting for the answer. Either it is
//! revoked, and the zygote goes on with the data it has, or it is taken, and the parent waits for what comes of it.

use std::sync::atomic::{AtomicU64, Ordering};

const OFFERED: u64 = 0;
const TAKEN: u64 = 1;
const REVOKED: u64 = 2;
const STATES: u64 = 4;

/// In the parent, one at a time: offers new data. Returns its number, which goes with the request.
pub(crate) fn offer(word: &AtomicU64) -> u64 {
    let number = word.load(Ordering::Acquire) / STATES + 1;
    word.store(number * STATES + OFFERED, Ordering::Release);
    number
}

/// In the zygote: takes it; false if it was revoked, or is not the one that is offered now.
pub(crate) fn take(word: &AtomicU64, number: u64) -> bool {
    settle(word, number, TAKEN)
}

/// In the parent: revokes it; false if it was taken.
pub(crate) fn revoke(word: &AtomicU64, number: u64) -> bool {
    settle(word, number, REVOKED)
}

fn settle(word: &AtomicU64, number: u64, state: u64) -> bool {
    let offered = number * STATES + OFFERED;
    word.compare_exchange(offered, number * STATES + state, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_offer_is_either_taken_or_revoked() {
        let word = AtomicU64::new(0);
        let first = offer(&word);
        assert!(take(&word, first) && !revoke(&word, first) && !take(&word, first));
        let second = offer(&word);
        assert!(!take(&word, first), "an old request");
        assert!(revoke(&word, second) && !take(&word, second));
    }
}
