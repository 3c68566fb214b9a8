//! The record about writes.

use crate::record::WriteClass;
use serde::{Deserialize, Serialize};

/// One first write of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "EventRow", from = "EventRow")]
pub struct Event {
    /// The time.
    pub time_ns: u64,
    /// The page's address.
    pub page: u64,
    /// The thread.
    pub tid: i32,
    /// The instruction's address; after the system call instruction where `syscall` is known. 0 where not known.
    pub pc: u64,
    /// The [`Place`] that this address meant at that time; 0 where not known.
    pub code: u32,
    /// The effect of the write.
    pub class: WriteClass,
    /// The kernel wrote, on behalf of this system call, or of what is not known ([`UNKNOWN_CALL`]).
    pub syscall: Option<i32>,
    /// The [`Stack`] sampled with it.
    pub stack: Option<u32>,
    /// The [`Place`] of the call by which that code was run, where the code says little of itself and its return address
    /// could be read; else 0.
    pub caller: u32,
    /// The first byte that was written, from the page's start; `None` where not known.
    pub byte: Option<u32>,
}

/// An [`Event`] as an array: there are many.
#[derive(Serialize, Deserialize)]
struct EventRow(
    u64,
    u64,
    i32,
    u64,
    u32,
    WriteClass,
    Option<i32>,
    Option<u32>,
    u32,
    #[serde(default, skip_serializing_if = "Option::is_none")] Option<u32>,
);

impl From<Event> for EventRow {
    fn from(e: Event) -> Self {
        Self(e.time_ns, e.page, e.tid, e.pc, e.code, e.class, e.syscall, e.stack, e.caller, e.byte)
    }
}

impl From<EventRow> for Event {
    fn from(row: EventRow) -> Self {
        let EventRow(time_ns, page, tid, pc, code, class, syscall, stack, caller, byte) = row;
        Self { time_ns, page, tid, pc, code, class, syscall, stack, caller, byte }
    }
}
