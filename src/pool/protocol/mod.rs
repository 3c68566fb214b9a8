//! The agreement of parent, zygote and workers: the words in shared memory, who may change them when, and the messages of the channel.

pub(super) mod adoption;
pub(super) mod batch;
pub(super) mod board;
pub(super) mod event_count;
pub(super) mod failure;
pub(super) mod messages;
pub(super) mod progress;
pub(super) mod queue;
pub(super) mod spin;
