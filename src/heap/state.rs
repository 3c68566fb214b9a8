//! The states of a chunk. Pure.

/// Kinds of allocations: units of one chunk are of one kind. Ordinary, hot, and those of arenas that are being built.
pub(super) const KINDS: usize = 16;

/// The state of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum ChunkState {
    /// Nothing is mapped there.
    Absent,
    /// Somebody else's addresses.
    Foreign,
    /// Units are taken from it.
    Open,
    /// The first of the chunks of one allocation.
    Huge,
    /// A further one.
    Rest,
    /// Part of an image: nothing is taken from it any more.
    Frozen,
    /// Part of an image whose blocks were all freed. Nothing is mapped; the addresses are kept while somebody knows the image.
    Gone,
}

const STATES: [ChunkState; 7] = [
    ChunkState::Absent,
    ChunkState::Foreign,
    ChunkState::Open,
    ChunkState::Huge,
    ChunkState::Rest,
    ChunkState::Frozen,
    ChunkState::Gone,
];

impl ChunkState {
    /// The state of this number; one of no state is of nobody here.
    pub(super) fn numbered(number: u8) -> Self {
        STATES.get(usize::from(number)).copied().unwrap_or(Self::Foreign)
    }
}
