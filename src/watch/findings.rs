//! The findings that evidence comes to: a page that differs, a write, a refused write, a panic.

use super::signal_safe::ring::CALLERS_MAX;
use crate::facts::Registers;
use crate::page::PageIndex;

/// The difference of a copied page from the original.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Changed {
    /// The number of bytes that differ; 0 when the page is the same again.
    pub bytes: u32,
    /// The first byte that differs, from the page's start.
    pub first: u32,
    /// The last byte that differs, from the page's start.
    pub last: u32,
}

/// Bits of each of a [`Changed`]'s numbers in its word; pages of up to 1 MiB fit.
const CHANGED_BITS: u32 = 20;

impl Changed {
    pub(super) fn pack(self) -> u64 {
        let known = 1 << 63;
        known
            | u64::from(self.bytes)
            | u64::from(self.first) << (CHANGED_BITS + 1)
            | u64::from(self.last) << (2 * CHANGED_BITS + 1)
    }

    pub(super) fn unpack(word: u64) -> Option<Self> {
        let field = |shift: u32, bits: u32| (word >> shift) as u32 & ((1 << bits) - 1);
        (word >> 63 == 1).then(|| Self {
            bytes: field(0, CHANGED_BITS + 1),
            first: field(CHANGED_BITS + 1, CHANGED_BITS),
            last: field(2 * CHANGED_BITS + 1, CHANGED_BITS),
        })
    }
}

/// A write as a watch saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The arena, by its place in the report.
    pub arena: usize,
    /// The page written, from the arena's start.
    pub page: PageIndex,
    /// The address; to the byte where the kernel tells it, else the page's.
    pub address: usize,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub time_ns: u64,
    /// The writing thread.
    pub tid: i32,
    /// The writer's registers; all 0 where they could not be read. `fp` is known to [`Trap`](crate::watch::Watch::Trap) and
    /// [`Faults`](crate::watch::Watch::Faults) only. Of a write in a system call `pc` is the instruction behind the call.
    pub registers: Registers,
    /// The calls that led there, the innermost first, each an address inside of the calling instruction; 0 behind the last. All 0 unless
    /// [`ForkOptions::callers`](crate::fork::ForkOptions::callers) asked for them.
    pub callers: [u64; CALLERS_MAX],
}

/// A write that [`crate::arena::OnWrite::Deny`] (or a growing arena) refused, and of which the child died.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DeniedWrite {
    /// The arena's name; empty if it is not among those the child was forked over (a growing one, or the child's
    /// own).
    pub arena: String,
    /// The page, from the arena's start; `None` where `arena` is empty.
    pub page: Option<PageIndex>,
    /// The address.
    pub address: usize,
    /// The thread.
    pub tid: i32,
    /// The instruction.
    pub pc: u64,
}

/// The message of a child's panic.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PanicMessage(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_page_survives_packing() {
        for bytes in [0, 1, 4096, 65536, 1 << CHANGED_BITS] {
            let changed = Changed { bytes, first: 17.min(bytes), last: bytes.saturating_sub(1) };
            assert_eq!(Changed::unpack(changed.pack()), Some(changed));
        }
        assert_eq!(Changed::unpack(0), None);
    }
}
