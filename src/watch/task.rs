//! The orders that a keeper obeys.

/// The tasks that the parent can give to a keeper.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// Read the page tables and compare the copies.
    Census,
    /// Close the epoch: hand over what was seen, and arm again.
    Epoch,
    /// Hand over the events that can be known now.
    Events,
}

impl Task {
    /// The order after `last`: its number, and what it asks in the lowest two bits.
    pub(crate) fn order_after(self, last: u64) -> u64 {
        ((last >> 2) + 1) << 2 | self as u64
    }

    pub(super) fn of(order: u64) -> Self {
        match order & 3 {
            0 => Self::Census,
            1 => Self::Epoch,
            _ => Self::Events,
        }
    }
}
