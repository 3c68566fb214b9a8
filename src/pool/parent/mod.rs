//! The program that made the pool: it queues jobs, waits for results and reads them, from any number of threads.

mod core;
pub(super) mod early;
pub(super) mod figures;
mod make;
pub(super) mod map;
mod metrics;
mod orders;
pub(super) mod pool;
mod reactor;
mod reclaim;
mod run;
pub(super) mod ticket;
mod waiting;
