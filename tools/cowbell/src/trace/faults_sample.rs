//! Stacks beside page faults: a thread that has just taken one is interrupted, and where it stands is taken for where it stood.
//!
//! Nothing waits for the tracer, so a tool that dies leaves nobody behind. The thread has gone on since its fault, by some
//! microseconds or some tens: what is told by these stacks is an estimate. A sample stands for the pages of its place since
//! the one before it.

use super::baseline::page_bytes;
use super::touched::PageFault;
use super::{Tracer, user_fault};
use crate::record::Record;
use cowbell::sys;
use cowbell::sys::procfs::{self, stat::Stat};
use cowbell::sys::ptrace::{self, Stop, WaitStatus};

/// Samples of a process come so far apart, at first and at last: twice as far each time.
const FIRST_NS: u64 = 500_000;
const LAST_NS: u64 = 5_000_000;
/// A stack that is read so long after the last fault of its thread is not taken for it.
const SKID_NS_MAX: u64 = 300_000;
/// The time that a thread may take to stand still: the one that is interrupted runs.
const STAND_NS_MAX: u64 = 2_000_000;

/// The pace at which a process is sampled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// The process' last fault.
    pub last: Option<PageFault>,
    /// The time of the fault of which a stack was taken last.
    taken_ns: u64,
    /// When the next is due, and how far the one after that.
    due_ns: u64,
    step_ns: u64,
}

impl Tracer {
    /// Takes a stack of each process that has had faults since its last one, if that is due.
    pub(super) fn sample_faults(&mut self) {
        if self.leaving || self.options.stacks_every == 0 {
            return;
        }
        let now_ns = self.now();
        let Some(faults) = &self.faults else { return };
        let is_due = |pace: &Pace| pace.due_ns <= now_ns && pace.last.is_some_and(|last| last.time_ns > pace.taken_ns);
        let due = faults.pace.iter().filter(|(_, pace)| is_due(pace));
        let due: Vec<(i32, i32)> = due.filter_map(|(&pid, pace)| Some((pid, pace.last?.tid))).collect();
        for (pid, tid) in due {
            self.sample_fault(pid, tid);
        }
    }

    fn sample_fault(&mut self, pid: i32, tid: i32) {
        let now_ns = self.now();
        if let Some(pace) = self.faults.as_mut().and_then(|faults| faults.pace.get_mut(&pid)) {
            pace.step_ns = (pace.step_ns * 2).clamp(FIRST_NS, LAST_NS);
            pace.due_ns = now_ns + pace.step_ns;
            pace.taken_ns = pace.last.map_or(0, |last| last.time_ns);
        }
        if self.has_better_stacks(pid) {
            return;
        }
        // One that sleeps has no faults, and is in a system call.
        if !runs(tid) || !user_fault::comes(tid) {
            return;
        }
        let interrupted_ns = self.now();
        if ptrace::interrupt(tid).is_err() {
            return;
        }
        let started = sys::monotonic_ns();
        let Some(status) = stand(tid) else { return };
        self.spent.stops += 1;
        if matches!(status, WaitStatus::Stopped(Stop::Trap)) {
            self.read_stack(pid, tid, interrupted_ns);
        }
        self.spent.stacks_ns += sys::monotonic_ns() - started;
        self.on_status(tid, status);
    }

    /// Tells whether the last fault of a process was of a page that it held, of which some are armed and tell their writers exactly.
    fn has_better_stacks(&self, pid: i32) -> bool {
        let last = self.faults.as_ref().and_then(|faults| faults.pace.get(&pid)?.last);
        let watch = self.tree.processes.get(&pid).and_then(|process| process.watch.as_ref());
        let (Some(last), Some(watch)) = (last, watch) else { return false };
        watch.samples(last.address / page_bytes() * page_bytes())
    }

    /// Reads the stack of a thread that stands still since about `interrupted_ns`, for its last fault. How much later that is
    /// seen here says nothing: it did not run any more.
    fn read_stack(&mut self, pid: i32, tid: i32, interrupted_ns: u64) {
        self.take_faults();
        let last = self.faults.as_ref().and_then(|faults| faults.pace.get(&pid)?.last);
        let Some(last) =
            last.filter(|last| last.tid == tid && interrupted_ns.saturating_sub(last.time_ns) < SKID_NS_MAX)
        else {
            return;
        };
        let Ok(registers) = ptrace::registers(tid) else { return };
        let Some(process) = self.tree.processes.get_mut(&pid) else { return };
        let parent = process.parent;
        let Some(watch) = process.watch.as_mut() else { return };
        let at = (if last.by_kernel { 0 } else { last.ip }, last.address);
        let (number, stack) = self.sampler.read(watch, (tid, &registers), at, parent);
        let page = last.address / page_bytes() * page_bytes();
        let touched = self.faults.as_mut().and_then(|faults| faults.of(watch.interval, page));
        if let Some(touched) = touched {
            for fault in [&mut touched.first, &mut touched.last] {
                if (fault.time_ns, fault.tid) == (last.time_ns, tid) {
                    fault.stack = Some(number);
                }
            }
        }
        if let Some(stack) = stack {
            self.say(Record::Stack(stack));
        }
    }
}

/// Tells whether a thread is neither asleep nor stopped.
fn runs(tid: i32) -> bool {
    procfs::read(tid, "stat").is_ok_and(|line| Stat::parse(&line).is_some_and(|stat| stat.state == b'R'))
}

/// Waits until an interrupted thread stands still. One that does not in time is met later, at its stop.
fn stand(tid: i32) -> Option<WaitStatus> {
    let started = sys::monotonic_ns();
    while sys::monotonic_ns() - started < STAND_NS_MAX {
        if let Some((_, status)) = ptrace::wait(Some(tid), false).ok()? {
            return Some(status);
        }
        sys::process::yield_now();
    }
    None
}
