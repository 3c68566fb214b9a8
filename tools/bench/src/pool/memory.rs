//! The memory that a pool's workers have of their own, when each has read all of the data.

use super::{cowbell, launch};
use crate::error::{Error, Result};
use ::cowbell::sys::limits;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The memory that a worker may have of its own, besides its stack.
const GOAL_BYTES_PER_WORKER: u64 = 1 << 20;

/// The share that page tables take of the data they map by ordinary pages: an entry of 8 bytes for each 4 KiB.
const PAGE_TABLES_SHARE: u64 = 512;

/// Room to live, and for what a worker may have of its own.
const HEADROOM_BYTES: u64 = 512 << 20;

/// The result of [`pool_memory`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolMemory {
    /// The size of the frozen data.
    pub bytes: u64,
    /// The memory that a worker may have of its own, besides its stack.
    pub goal_bytes_per_worker: u64,
    /// One for each number of workers and kind of pages.
    pub costs: Vec<PoolMemoryCost>,
}

/// The memory that the workers of one pool have of their own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolMemoryCost {
    /// The number of workers.
    pub workers: usize,
    /// True if the data was collapsed to huge pages.
    pub huge_pages: bool,
    /// The sum of what each has alone (`Private_Clean` and `Private_Dirty` of `smaps_rollup`).
    pub uss_bytes: u64,
    /// The largest of them.
    pub uss_bytes_max: u64,
    /// The sum of what each has alone of its stack, which is part of `uss_bytes`.
    pub stack_bytes: u64,
    /// The largest of them.
    pub stack_bytes_max: u64,
    /// The largest page tables (`VmPTE`), which are no part of `uss_bytes`.
    pub page_tables_bytes_max: u64,
    /// From the first job to the last worker's having read everything.
    pub seconds: f64,
    /// Why it could not be measured.
    pub error: Option<String>,
}

impl PoolMemoryCost {
    /// Tells whether the workers have at most what is aimed at.
    pub fn met(&self) -> bool {
        self.error.is_none() && self.uss_bytes <= self.workers as u64 * GOAL_BYTES_PER_WORKER + self.stack_bytes
    }
}

/// The settings of one pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hold {
    pub(super) workers: usize,
    pub(super) bytes: usize,
    pub(super) huge_pages: bool,
}

/// Measures what the workers have of their own, when each has read all of a frozen arena of `bytes`: for each number
/// of workers, with ordinary pages and collapsed to huge ones. `program` is the command that this library comes with.
///
/// # Errors
/// Input: no bytes, no workers, or more than this machine's memory.
pub fn pool_memory(program: &Path, bytes: u64, workers: &[usize]) -> Result<PoolMemory> {
    let most = workers.iter().copied().max().unwrap_or(0);
    if bytes == 0 || workers.contains(&0) || most == 0 {
        return Err(Error::Input("size and workers must be at least 1".into()));
    }
    let tables = (bytes / PAGE_TABLES_SHARE + GOAL_BYTES_PER_WORKER).saturating_mul(most as u64);
    let needed = bytes.saturating_add(tables).saturating_add(HEADROOM_BYTES);
    if let Some(headroom) = limits::memory_headroom().filter(|headroom| headroom.bytes < needed) {
        return Err(Error::Input(format!(
            "{most} workers over {bytes} bytes need {needed} bytes of memory, page tables and all: {headroom}"
        )));
    }
    let size = usize::try_from(bytes).map_err(|e| Error::Input(e.to_string()))?;
    let pools = workers.iter().flat_map(|&workers| [false, true].map(|huge_pages| (workers, huge_pages)));
    let cost = |(workers, huge_pages)| {
        let hold = Hold { workers, bytes: size, huge_pages };
        launch::holder(program, &hold).unwrap_or_else(|e: Error| PoolMemoryCost {
            workers,
            huge_pages,
            error: Some(e.to_string()),
            ..PoolMemoryCost::default()
        })
    };
    Ok(PoolMemory { bytes, goal_bytes_per_worker: GOAL_BYTES_PER_WORKER, costs: pools.map(cost).collect() })
}

/// Makes one pool in this process, as `order` says, and looks at its workers.
///
/// # Errors
/// Input: an order that is none. Failed: no memory, or a worker died.
pub fn hold_pool(order: &str) -> Result<PoolMemoryCost> {
    let hold: Hold = serde_json::from_str(order).map_err(|e| Error::Input(e.to_string()))?;
    cowbell::hold(hold)
}
