//! The page faults of one page in one interval, and what their order says of it. Pure.
//!
//! If the kernel tells which page frame was mapped before each fault, a write to a page that was there is told from one to a page
//! that was not: `found` below. A page that is there takes no fault for reading.
//!
//! | found, in order | what happened |
//! |---|---|
//! | a page | it was written: copied, or reused |
//! | none | it was filled: nothing had been there, or it had been given back (or it is in swap) |
//! | a page, then none | it was written, given back, and filled |
//! | none, then a page | it could not be read at first (`mprotect`, NUMA balancing), or was filled by reading |

use std::collections::HashMap;

/// A fault of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When, since the header.
    pub time_ns: u64,
    /// The address that was touched.
    pub address: u64,
    /// The instruction's address; the kernel's own if `by_kernel`.
    pub ip: u64,
    /// The thread.
    pub tid: i32,
    /// The number of the place of the instruction; 0 where not known, and for the kernel's.
    pub code: u32,
    /// The kernel touched it for the thread.
    pub by_kernel: bool,
    /// The page frame that it found there, 0 for none; `None` where that is not told.
    pub found: Option<u64>,
    /// The stack sampled with it.
    pub stack: Option<u32>,
}

/// The faults of a page in one interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touched {
    /// The earliest, or the first that found a page after some that found none.
    pub first: Fault,
    /// The latest.
    pub last: Fault,
    /// One found a page, and a later one found none.
    pub went: bool,
    /// One found none, and a later one found a page.
    pub came: bool,
    /// Two found different pages.
    pub changed: bool,
}

/// The pages of one interval that had faults.
pub type Pages = HashMap<u64, Touched>;

impl Touched {
    /// By one fault.
    pub fn new(fault: Fault) -> Self {
        Self { first: fault, last: fault, went: false, came: false, changed: false }
    }

    /// One more fault. They come in the order of their times; one that two processors told of the other way round may count for
    /// the first, and says nothing of what was there.
    pub fn add(&mut self, fault: Fault) {
        if fault.time_ns < self.last.time_ns {
            if fault.time_ns < self.first.time_ns && !self.came {
                self.first = fault;
            }
            return;
        }
        match (self.last.found, fault.found) {
            (Some(0), Some(found)) if found != 0 => {
                self.came = true;
                self.first = fault;
            }
            (Some(before), Some(0)) if before != 0 => self.went = true,
            (Some(before), Some(found)) if before != found => self.changed = true,
            _ => {}
        }
        self.last = fault;
    }

    /// Tells whether no fault found a page. False where that is not told.
    pub fn found_none(&self) -> bool {
        self.last.found == Some(0) && !self.went && !self.came
    }

    /// The page that its first fault found, if no fault found none.
    pub fn found_at_once(&self) -> Option<u64> {
        self.first.found.filter(|&found| found != 0 && !self.came && !self.went)
    }

    /// Tells whether another page is here now than the last fault found. `None` where that cannot be told: the faults do not
    /// say, a page came and went meanwhile, or `now`, its frame, is not known (0).
    pub fn is_another(&self, held: Option<u64>, now: u64) -> Option<bool> {
        let found = self.last.found.filter(|&found| found != 0 && now != 0 && !self.went)?;
        // One that came meanwhile was there all along if it is what the process held.
        let is_held = !self.came || held == self.first.found;
        is_held.then_some(self.changed || found != now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(time_ns: u64, found: Option<u64>) -> Fault {
        Fault { time_ns, address: 0x7000, ip: 0x4000, tid: 7, code: 1, by_kernel: false, found, stack: None }
    }

    fn touched(found: &[u64]) -> Touched {
        let mut faults = found.iter().zip(1..).map(|(&found, at)| fault(at, Some(found)));
        let mut touched = Touched::new(faults.next().expect("one at least"));
        faults.for_each(|fault| touched.add(fault));
        touched
    }

    #[test]
    fn a_page_that_was_there_was_copied_if_another_is_there_now() {
        assert_eq!(touched(&[5]).is_another(Some(5), 6), Some(true));
        assert_eq!(touched(&[5]).is_another(Some(5), 5), Some(false));
        assert_eq!(touched(&[5, 5]).is_another(Some(5), 6), Some(true), "two threads at once");
        assert_eq!(touched(&[5, 6]).is_another(Some(5), 6), Some(true), "the second found the copy");
        assert_eq!(touched(&[4]).is_another(Some(5), 6), Some(true), "the kernel had moved it");
        assert_eq!(touched(&[5]).is_another(Some(5), 0), None, "frames are not readable");
    }

    #[test]
    fn a_page_that_no_fault_found_is_new() {
        assert!(touched(&[0]).found_none() && touched(&[0, 0]).found_none());
        assert!(!touched(&[5]).found_none() && !touched(&[5, 0]).found_none() && !touched(&[0, 5]).found_none());
        assert!(!Touched::new(fault(1, None)).found_none());
        assert_eq!(touched(&[5, 5]).found_at_once(), Some(5));
        assert_eq!([touched(&[0, 5]), touched(&[5, 0]), touched(&[0])].map(|page| page.found_at_once()), [None; 3]);
    }

    #[test]
    fn what_came_and_went_is_told_only_if_it_was_held() {
        // A page that could not be read for a while: its writer is the one who found it.
        let protected = touched(&[0, 5]);
        assert_eq!((protected.is_another(Some(5), 6), protected.first.time_ns), (Some(true), 2));
        assert_eq!(touched(&[0, 5]).is_another(Some(4), 6), None, "filled by reading, perhaps");
        // Copied, given back, filled: the first fault wrote the copy.
        let again = touched(&[5, 0]);
        assert_eq!((again.is_another(Some(5), 6), again.went, again.first.time_ns), (None, true, 1));
    }

    #[test]
    fn a_fault_that_is_told_late_may_still_be_the_first() {
        let mut page = Touched::new(fault(5, None));
        page.add(fault(9, None));
        page.add(fault(3, None));
        assert_eq!((page.first.time_ns, page.last.time_ns), (3, 9));
    }
}
