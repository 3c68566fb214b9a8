//! The parent's requests to a keeper.

/// A request to a keeper.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeeperRequest {
    /// Read the page tables and compare the copies.
    Census,
    /// Close the epoch: hand over what was seen, and arm again.
    Epoch,
    /// Hand over the events that can be known now.
    Events,
}

impl KeeperRequest {
    /// The request after `last`: its number, and what it asks in the lowest two bits.
    pub(crate) fn encode_after(self, last: u64) -> u64 {
        ((last >> 2) + 1) << 2 | self as u64
    }

    pub(super) fn of(request: u64) -> Self {
        match request & 3 {
            0 => Self::Census,
            1 => Self::Epoch,
            _ => Self::Events,
        }
    }
}
