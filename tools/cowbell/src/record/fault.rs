//! The record about page faults.

use serde::{Deserialize, Serialize};

/// A page fault of a page that was written in its interval: the first of a page that was there, the last of others (before it
/// they may have been read). A page without one was written by the kernel or by nobody known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "FaultRow", from = "FaultRow")]
pub struct Fault {
    /// When it began.
    pub time_ns: u64,
    /// The page's address.
    pub page: u64,
    /// The thread.
    pub tid: i32,
    /// The [`Place`](super::Place) of the instruction; 0 where not known, and for the kernel's.
    pub code: u32,
    /// The kernel wrote, in a system call of the thread.
    pub by_kernel: bool,
    /// The [`Stack`](super::Stack) sampled next after it.
    pub stack: Option<u32>,
    /// The byte that was touched, from the page's start; `None` where not known.
    pub byte: Option<u32>,
}

/// A [`Fault`] as an array: there are many.
#[derive(Serialize, Deserialize)]
struct FaultRow(
    u64,
    u64,
    i32,
    u32,
    bool,
    Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")] Option<u32>,
);

impl From<Fault> for FaultRow {
    fn from(f: Fault) -> Self {
        Self(f.time_ns, f.page, f.tid, f.code, f.by_kernel, f.stack, f.byte)
    }
}

impl From<FaultRow> for Fault {
    fn from(FaultRow(time_ns, page, tid, code, by_kernel, stack, byte): FaultRow) -> Self {
        Self { time_ns, page, tid, code, by_kernel, stack, byte }
    }
}
