//! The program that made the pool: it queues jobs, waits for results and reads them, from any number of threads.

mod builder;
mod core;
pub(super) mod figures;
pub(super) mod held;
mod in_flight;
pub(super) mod load;
pub(super) mod map;
mod metrics;
pub(super) mod pool;
pub(super) mod prepared;
mod reactor;
mod reclaim;
mod requests;
pub(super) mod ticket;
mod waiting;
