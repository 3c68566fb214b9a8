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
//!
//! The page that is there in the end decides with them ([`Touched::fate`]): a frame that was given back may come back to the very page that had
//! it, and then looks like one that could not be read for a while.

use std::collections::HashMap;

/// A fault of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
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
    /// The earliest, or the first that found a page after some that found none had come before all others.
    pub first: PageFault,
    /// The latest.
    pub last: PageFault,
    /// One found a page, and a later one found none.
    pub went: bool,
    /// One found none, and a later one found a page.
    pub came: bool,
    /// Two found different pages.
    pub changed: bool,
}

/// The pages of one interval that had faults.
pub type FaultedPages = HashMap<u64, Touched>;

impl Touched {
    /// By one fault.
    pub fn new(fault: PageFault) -> Self {
        Self { first: fault, last: fault, went: false, came: false, changed: false }
    }

    /// One more fault. They come in the order of their times; one that two processors told of the other way round may count for
    /// the first, and says nothing of what was there.
    pub fn add(&mut self, fault: PageFault) {
        if fault.time_ns < self.last.time_ns {
            if fault.time_ns < self.first.time_ns && !self.came {
                self.first = fault;
            }
            return;
        }
        match (self.last.found, fault.found) {
            (Some(0), Some(found)) if found != 0 => {
                self.came = true;
                // One that was written before it went has its first writer already.
                if !self.went {
                    self.first = fault;
                }
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

    /// The page that its first fault found.
    pub fn found_first(&self) -> Option<u64> {
        self.first.found.filter(|&found| found != 0 && !self.came)
    }

    /// Tells whether one thread faulted twice and found nothing: the first fault filled the page by reading, with zeroes.
    pub fn was_read_before(&self) -> bool {
        self.found_none() && self.first.tid == self.last.tid && self.first.time_ns < self.last.time_ns
    }

    /// These faults, and then those of the place to which the page was moved.
    pub fn followed_by(mut self, later: &Self) -> Self {
        let was_there = self.last.found.is_some_and(|found| found != 0);
        // Moved to and fro: nothing is said of the order.
        let is_mixed = later.first.time_ns < self.last.time_ns;
        self.add(later.first);
        self.add(later.last);
        // A page that comes where one was had gone before.
        self.went |= is_mixed || later.went || later.came && was_there;
        self.came |= later.came;
        self.changed |= later.changed;
        self
    }

    /// The fate of a page that was private at the beginning and is now, by its frames: `held` then and `now`, 0 where not known. `of_file`: a
    /// file's page comes to its place when it is given back.
    pub fn fate(&self, held: Option<u64>, now: u64, of_file: bool) -> Fate {
        let Some(last) = self.last.found.filter(|_| now != 0) else { return Fate::Unknown };
        // The first that any fault found, or 0.
        let first = self.first.found.unwrap_or(0);
        let is_of_file = of_file && first != 0 && held.is_some_and(|held| held != first);
        match (self.went, last) {
            (true, _) => Fate::Open,
            (false, 0) if held == Some(now) => Fate::Open,
            (false, 0) => Fate::New,
            _ if is_of_file => Fate::New,
            // One that came meanwhile was there all along if it is what the process held.
            _ if self.came && (held != Some(first) || first == now) => Fate::Open,
            _ if self.changed || last != now => Fate::Copied,
            _ => Fate::Reused,
        }
    }
}

/// The fate of a page, as far as its frames tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The page was written, and another page is here now.
    Copied,
    /// The page was written, and is here still.
    Reused,
    /// The page was given back, and filled again before anything was written to it.
    New,
    /// The page came and went meanwhile, or its frame did: whether it was copied cannot be told.
    Open,
    /// Frames are not told.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(time_ns: u64, found: Option<u64>) -> PageFault {
        PageFault { time_ns, address: 0x7000, ip: 0x4000, tid: 7, code: 1, by_kernel: false, found, stack: None }
    }

    fn touched(found: &[u64]) -> Touched {
        let mut faults = found.iter().zip(1..).map(|(&found, at)| fault(at, Some(found)));
        let mut touched = Touched::new(faults.next().expect("one at least"));
        faults.for_each(|fault| touched.add(fault));
        touched
    }

    /// The frame that the process held, that of a file's page, and two others.
    const HELD: u64 = 5;
    const FILE: u64 = 9;
    const OTHER: u64 = 4;
    const NOW: u64 = 6;

    #[test]
    fn the_frames_that_faults_found_tell_the_fate_of_a_page() {
        let table: [(&[u64], u64, Fate, &str); 17] = [
            (&[HELD], NOW, Fate::Copied, "written"),
            (&[HELD], HELD, Fate::Reused, "nobody else had it"),
            (&[HELD, HELD], NOW, Fate::Copied, "two threads at once"),
            (&[HELD, NOW], NOW, Fate::Copied, "the second found the copy"),
            (&[HELD, OTHER], NOW, Fate::Copied, "copied twice"),
            (&[OTHER], NOW, Fate::Copied, "the kernel had moved it"),
            (&[0], NOW, Fate::New, "given back, and written"),
            (&[0, 0], NOW, Fate::New, "given back, read, and written"),
            (&[0], HELD, Fate::Open, "its frame came back, or it could not be read for a while"),
            (&[0, 0], HELD, Fate::Open, "the same, read first"),
            (&[0, HELD], NOW, Fate::Copied, "it could not be read for a while: its writer is the one who found it"),
            (&[0, HELD], HELD, Fate::Open, "that, or its frame came back and two threads found it"),
            (&[0, OTHER], NOW, Fate::Open, "filled by reading, perhaps"),
            (&[HELD, 0], NOW, Fate::Open, "copied or reused, given back, filled"),
            (&[HELD, 0], HELD, Fate::Open, "the same, and its frame came back"),
            (&[HELD, 0, OTHER], NOW, Fate::Open, "the same, and something came"),
            (&[HELD], 0, Fate::Unknown, "frames are not readable"),
        ];
        for (found, now, fate, why) in table {
            assert_eq!(touched(found).fate(Some(HELD), now, false), fate, "{found:?}, then {now}: {why}");
        }
        assert_eq!(Touched::new(fault(1, None)).fate(Some(HELD), NOW, false), Fate::Unknown, "nothing is told");
    }

    #[test]
    fn what_was_given_back_in_a_file_is_the_files_page() {
        let fate = |found: &[u64], now| touched(found).fate(Some(HELD), now, true);
        assert_eq!([fate(&[FILE], NOW), fate(&[0, FILE], NOW), fate(&[0], NOW)], [Fate::New; 3]);
        assert_eq!([fate(&[HELD], NOW), fate(&[0, HELD], NOW)], [Fate::Copied; 2], "it had not been given back");
        assert_eq!([fate(&[HELD, 0, FILE], NOW), fate(&[HELD, 0], NOW)], [Fate::Open; 2], "written before it was");
        assert_eq!(fate(&[0], HELD), Fate::Open, "its frame came back");
    }

    #[test]
    fn faults_go_on_where_a_page_was_moved() {
        let fate = |before: &[u64], after: &[u64], now| {
            touched(before).followed_by(&touched(after)).fate(Some(HELD), now, false)
        };
        assert_eq!(fate(&[0], &[HELD], NOW), Fate::Copied, "it could not be read where it was before");
        assert_eq!(fate(&[HELD], &[OTHER], OTHER), Fate::Copied, "copied before, found after");
        assert_eq!(fate(&[HELD], &[0], NOW), Fate::Open, "copied or reused, given back, filled");
        assert_eq!(fate(&[HELD], &[0, NOW], NOW), Fate::Open, "the same, by two threads");
        assert_eq!(fate(&[0], &[0], NOW), Fate::New);
    }

    #[test]
    fn a_thread_that_finds_nothing_twice_has_read_first() {
        assert!(touched(&[0, 0]).was_read_before());
        assert!(!touched(&[0]).was_read_before() && !touched(&[5, 5]).was_read_before());
        let mut two = touched(&[0]);
        two.add(PageFault { tid: 8, ..fault(2, Some(0)) });
        assert!(!two.was_read_before(), "two threads at once");
    }

    #[test]
    fn a_page_that_no_fault_found_is_new() {
        assert!(touched(&[0]).found_none() && touched(&[0, 0]).found_none());
        assert!(!touched(&[5]).found_none() && !touched(&[5, 0]).found_none() && !touched(&[0, 5]).found_none());
        assert!(!Touched::new(fault(1, None)).found_none());
        assert_eq!(touched(&[5, 5]).found_at_once(), Some(5));
        assert_eq!([touched(&[5, 0]), touched(&[0, 5])].map(|page| page.found_first()), [Some(5), None]);
        assert_eq!([touched(&[0, 5]), touched(&[5, 0]), touched(&[0])].map(|page| page.found_at_once()), [None; 3]);
    }

    #[test]
    fn what_came_was_written_by_who_found_it() {
        assert_eq!(touched(&[0, 5]).first.time_ns, 2, "it could not be read for a while");
        let again = touched(&[5, 0]);
        assert_eq!((again.went, again.first.time_ns), (true, 1), "copied, given back, filled");
        assert_eq!(touched(&[5, 0, 6]).first.time_ns, 1, "the same, and found once more");
    }

    #[test]
    fn a_fault_that_is_told_late_may_still_be_the_first() {
        let mut page = Touched::new(fault(5, None));
        page.add(fault(9, None));
        page.add(fault(3, None));
        assert_eq!((page.first.time_ns, page.last.time_ns), (3, 9));
    }
}
