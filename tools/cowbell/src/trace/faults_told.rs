//! Whether all faults by which pages may have been written were told.
//!
//! A page that is pinned (`O_DIRECT`, io_uring, `process_vm_writev`, `/proc/PID/mem`) is copied by a fault that the kernel counts for the
//! thread that asked for it, and that no perf event tells of (`mm_account_fault` in mm/memory.c). So the kernel's count is compared with what
//! was told. While they agree, only pages whose faults were told can have been written; if not, every page is looked at.

use super::Tracer;
use cowbell::sys::procfs;
use std::collections::HashMap;

/// With more processes than this their counts are not compared: every page is looked at.
const OTHERS_MAX: usize = 32;

/// The faults of each process.
#[derive(Debug, Default)]
pub struct FaultCounts(HashMap<i32, FaultCount>);

/// The faults of a process since the last look. A process that is forked begins with none.
#[derive(Clone, Copy, Debug, Default)]
struct FaultCount {
    /// Told, without those of threads that were interrupted in one: it comes again.
    told: i64,
    /// Counted by the kernel up to the last look.
    counted: i64,
}

/// The findings of a look at a process' faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Agreement {
    /// The kernel counted as many as were told.
    Agree,
    /// The kernel counted so many more, or fewer: none.
    Differ(u64),
}

impl FaultCounts {
    /// A fault was told.
    pub fn tell(&mut self, pid: i32) {
        self.0.entry(pid).or_default().told += 1;
    }

    /// A thread was interrupted in a fault, which comes again.
    pub fn interrupt(&mut self, pid: i32) {
        self.0.entry(pid).or_default().told -= 1;
    }

    /// A process is gone.
    pub fn forget(&mut self, pid: i32) {
        self.0.remove(&pid);
    }

    /// Looks at a process whose faults the kernel has counted, and begins anew.
    fn look(&mut self, pid: i32, counted: u64) -> Agreement {
        let count = self.0.entry(pid).or_default();
        let now = i64::try_from(counted).unwrap_or(i64::MAX);
        let untold = now - count.counted - count.told;
        *count = FaultCount { told: 0, counted: now };
        if untold == 0 { Agreement::Agree } else { Agreement::Differ(u64::try_from(untold).unwrap_or(0)) }
    }
}

impl Tracer {
    /// A process stands at the beginning of its program: its faults up to now are of no interest. The kernel pins pages itself, to hand the
    /// arguments on.
    pub(super) fn begin_to_compare(&mut self, pid: i32) {
        let counted = procfs::signal_safe::page_faults(pid);
        self.take_faults();
        if let (Some(faults), Some(counted)) = (&mut self.faults, counted) {
            faults.counts.look(pid, counted);
        }
    }

    /// A process' interval closes, or the process ends: faults that were not told may be copies of its own, or of pages of others that it
    /// wrote; and others may have written its pages.
    pub(super) fn compare_faults(&mut self, pid: i32) {
        if self.faults.is_none() {
            return;
        }
        let is_watched = self.tree.processes.get(&pid).is_some_and(|process| process.watch.is_some());
        let others = self.tree.processes.keys().filter(|&&other| other != pid && other > 0);
        let mut looked_at = vec![pid];
        let is_crowd = self.tree.processes.len() > OTHERS_MAX;
        if is_watched && !is_crowd {
            looked_at.extend(others);
        }
        // The kernel's counts are read first: faults that happen meanwhile must not hide those that were not told.
        let counted: Vec<(i32, Option<u64>)> =
            looked_at.iter().map(|&pid| (pid, procfs::signal_safe::page_faults(pid))).collect();
        self.take_faults();
        let Some(faults) = &mut self.faults else { return };
        let (mut differ, mut untold) = (is_watched && is_crowd, 0u64);
        for (pid, counted) in counted {
            // A count that cannot be read tells nothing: every page is looked at.
            if let Agreement::Differ(more) =
                counted.map_or(Agreement::Differ(0), |counted| faults.counts.look(pid, counted))
            {
                (differ, untold) = (true, untold.saturating_add(more));
            }
        }
        if differ {
            for watch in self.tree.processes.values_mut().filter_map(|process| process.watch.as_mut()) {
                watch.untold = Some(watch.untold.unwrap_or(0).saturating_add(untold));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_that_were_not_told_are_found_by_the_kernels_count() {
        let mut counts = FaultCounts::default();
        (0..5).for_each(|_| counts.tell(7));
        assert_eq!(counts.look(7, 5), Agreement::Agree, "a forked process begins with none");
        assert_eq!(counts.look(7, 5), Agreement::Agree, "nothing happened");
        counts.tell(7);
        assert_eq!(counts.look(7, 16), Agreement::Differ(10), "pages were pinned");
        assert_eq!(counts.look(7, 16), Agreement::Agree, "which was told");
        counts.tell(7);
        assert_eq!(counts.look(7, 16), Agreement::Differ(0), "one came to nothing: others may be hidden behind it");
        (0..2).for_each(|_| counts.tell(7));
        counts.interrupt(7);
        assert_eq!(counts.look(7, 17), Agreement::Agree, "one came twice");
        assert_eq!(counts.look(8, 3), Agreement::Differ(3), "faults before the first look");
    }
}
