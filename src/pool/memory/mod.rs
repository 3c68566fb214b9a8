//! The one mapping that parent, zygote and workers share, and the memory of jobs and results in it.

pub(super) mod buffer;
pub(super) mod heap;
pub(super) mod region;
pub(super) mod results;
