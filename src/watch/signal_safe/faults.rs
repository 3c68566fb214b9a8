//! Faults: the kernel tells each page fault of the child through perf events, and nothing is armed.
//!
//! ```text
//!   child, its threads        keeper                                                 parent
//!   a fault: the kernel  -->  a ring for each CPU
//!   writes a record           the first write of each page so far, in shared memory
//!                             asked, or at the end: the pages that are copies   -->  an event for each
//! ```
//! A fault is not a copy: reading an untouched page faults as well. So page tables decide which pages were copied, and of the faults
//! of such a page the instruction tells which was a write ([`super::instruction`]). Faults of pages that were copies by then are left out, because the
//! first write is kept. Where no fault is known to be a write, the last that may be one is taken for it, if all are told: a page
//! that is read first is not copied by that, so it faults again.
//!
//! The keeper opens the events, after it was cloned and before the child runs its closure. So they are in no table of descriptors but its own, the child
//! cannot close them, and they tell neither of the keeper nor of the child's children, nor of the child once it executes another program.
//!
//! # Safety
//! The keeper runs *async-signal-safe* code only, here as elsewhere. So the rings were prepared before the fork, and are never dropped: that would free what
//! an allocator gave out, whose lock a thread of the child may have died with.

use super::census;
use super::instruction::{self, Does};
use crate::page::PageIndex;
use crate::sys::epoll::Poller;
use crate::sys::memfd;
use crate::sys::pagemap::Pagemap;
use crate::sys::perf::record::{FaultRecord, RingRecord};
use crate::sys::perf::rings::{Rings, RingsRefused};
use crate::watch::evidence::{Bitmap, CANDIDATE_WORDS, Evidence, Word};
use crate::watch::failure::{At, FailedStep, Step};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// The bytes of all rings of a child together, if each has at least [`RING_BYTES_MIN`]. A fault takes 88.
const RINGS_BYTES: usize = 1 << 20;
/// The least that a ring has where more than 16 CPUs share these: 744 faults, as many as one thread takes in a millisecond.
const RING_BYTES_MIN: usize = 64 << 10;

/// The faults of the keeper's child.
pub(in crate::watch) struct ChildFaults {
    rings: ManuallyDrop<Rings>,
    /// Readable when a ring is a quarter full.
    news: Poller,
}

/// In its word of the thread: the instruction is known to write.
const IS_STORE: u64 = 1 << 32;

/// A fault that may have been its page's first write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    time_ns: u64,
    tid: i32,
    /// The instruction is known to write.
    is_store: bool,
    address: u64,
    pc: u64,
    sp: u64,
    fp: u64,
}

impl Candidate {
    fn from_words(words: &[AtomicU64; CANDIDATE_WORDS]) -> Option<Self> {
        let [time_ns, thread, address, pc, sp, fp] = words.each_ref().map(|word| word.load(Ordering::Acquire));
        let (tid, is_store) = (thread as u32 as i32, thread & IS_STORE != 0);
        (time_ns != 0).then_some(Self { time_ns, tid, is_store, address, pc, sp, fp })
    }

    fn store(&self, words: &[AtomicU64; CANDIDATE_WORDS]) {
        let Self { time_ns, tid, is_store, address, pc, sp, fp } = *self;
        let thread = u64::from(tid as u32) | if is_store { IS_STORE } else { 0 };
        for (word, value) in words.iter().zip([time_ns, thread, address, pc, sp, fp]) {
            word.store(value, Ordering::Release);
        }
    }

    /// Tells whether it is taken for the write of a page that is a copy. Where faults of the kernel are not told, a system call may have written later.
    /// Other processors than x86-64 have nothing better.
    fn is_write(&self, evidence: &Evidence) -> bool {
        self.is_store || evidence.get(Word::FaultsTold) == 2 || cfg!(not(target_arch = "x86_64"))
    }

    /// Tells whether it is more likely the first write than another fault of the page: of stores the first is, of those that may be loads the last.
    fn beats(&self, other: &Self) -> bool {
        match (self.is_store, other.is_store) {
            (true, true) => self.time_ns < other.time_ns,
            (false, false) => self.time_ns > other.time_ns,
            (is_store, _) => is_store,
        }
    }
}

impl ChildFaults {
    /// Begins to hear of the faults of a process with one thread. *Async-signal-safe.*
    pub(in crate::watch) fn open(rings: Rings, evidence: &Evidence, child: i32) -> Result<Self, FailedStep> {
        let mut rings = ManuallyDrop::new(rings);
        let share = RINGS_BYTES / rings.prepared().max(1);
        // A ring is a power of two long, and would be made longer otherwise.
        let bytes = if share > RING_BYTES_MIN { 1 << share.ilog2() } else { RING_BYTES_MIN };
        let refused = |RingsRefused { call, errno }| {
            FailedStep(if call == Step::OpenFaults.operation() { Step::OpenFaults } else { Step::MapFaults }, errno)
        };
        rings.open_prepared(child, bytes).map_err(refused)?;
        let news = Poller::new().at(Step::AwaitFaults)?;
        rings.wake(&news).at(Step::AwaitFaults)?;
        evidence.set(Word::FaultsTold, if rings.tell_kernel() { 2 } else { 1 });
        Ok(Self { rings, news })
    }

    /// Takes over what the rings hold. *Async-signal-safe.*
    pub(in crate::watch) fn take(&mut self, evidence: &Evidence, memory: &OwnedFd) {
        self.news.take_news();
        let child = evidence.get(Word::ChildPid) as i32;
        let mut code = Code { memory, known: (0, Does::Unknown) };
        self.rings.drain(|record| match record {
            RingRecord::Fault(fault) if fault.pid == child => note(evidence, &fault, &mut code),
            _ => {}
        });
    }

    /// Adds the events of the pages that are copies by now, or were until they were given back. *Async-signal-safe.*
    ///
    /// The page tables are read first. The fault that made a copy was told before the copy was there, so it is in a ring by then.
    pub(in crate::watch) fn tell(
        &mut self,
        evidence: &Evidence,
        pagemap: &Pagemap,
        memory: &OwnedFd,
        progress: impl Fn(),
    ) -> Result<(), FailedStep> {
        for (at, image) in evidence.images.iter().enumerate() {
            for word in evidence.bitmap(at, Bitmap::Epoch) {
                word.store(0, Ordering::Release);
            }
            let scanned = census::scan(pagemap, image.range(), false, |run| {
                for page in census::pages_of(image.range(), run) {
                    evidence.mark(at, Bitmap::Epoch, page);
                }
                progress();
            });
            scanned.at(Step::KeeperScan)?;
        }
        self.take(evidence, memory);
        evidence.set(Word::FaultsLost, self.rings.lost().map_or(0, |lost| lost + 1));
        for at in 0..evidence.images.len() {
            let [copies, returned] = [Bitmap::Epoch, Bitmap::Returned].map(|which| evidence.bitmap(at, which));
            for word_at in 0..copies.len().max(returned.len()) {
                let load = |words: &[AtomicU64]| words.get(word_at).map_or(0, |word| word.load(Ordering::Acquire));
                let mut bits = load(copies) | load(returned);
                while bits != 0 {
                    let page = PageIndex(word_at as u64 * 64 + u64::from(bits.trailing_zeros()));
                    bits &= bits - 1;
                    tell(evidence, at, page);
                }
            }
            progress();
        }
        Ok(())
    }
}

impl AsFd for ChildFaults {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }
}

/// The child's instructions.
struct Code<'a> {
    /// The child's memory.
    memory: &'a OwnedFd,
    /// The instruction that was looked at last.
    known: (u64, Does),
}

impl Code<'_> {
    fn does(&mut self, ip: u64) -> Does {
        if self.known.0 != ip {
            let mut code = [0; instruction::BYTES_MAX];
            let page = crate::sys::page_size().bytes() as u64;
            // The next page may not be there.
            let here = code.len().min((page - ip % page) as usize);
            let mut read = |len| memfd::read_at(self.memory, code.get_mut(..len).unwrap_or_default(), ip);
            let len = read(instruction::BYTES_MAX).or_else(|_| read(here)).unwrap_or(0);
            self.known = (ip, instruction::does(code.get(..len).unwrap_or_default()));
        }
        self.known.1
    }
}

fn note(evidence: &Evidence, fault: &FaultRecord, code: &mut Code<'_>) {
    let Some((image, page)) = evidence.place(fault.address as usize) else { return };
    // The kernel does not tell whether a system call read or wrote.
    let does = if fault.by_kernel { Does::Unknown } else { code.does(fault.ip).at(fault.address, fault.registers) };
    if does == Does::Load || evidence.is_marked(image, Bitmap::Seen, page) {
        return;
    }
    let known = fault.registers;
    let (pc, sp, fp) = known.map_or((0, 0, 0), |registers| (registers.pc, registers.sp, registers.fp));
    let candidate = Candidate {
        time_ns: fault.time_ns,
        tid: fault.tid,
        is_store: does == Does::Store,
        address: fault.address,
        pc: if fault.by_kernel { pc } else { fault.ip },
        sp,
        fp,
    };
    if let Some(words) = evidence.candidate_words(image, page)
        && Candidate::from_words(words).is_none_or(|other| candidate.beats(&other))
    {
        candidate.store(words);
    }
}

/// Adds the event of a page, if a fault is known that wrote it first. What the parent had copied before the fork tells nothing of this process.
fn tell(evidence: &Evidence, image: usize, page: PageIndex) {
    let known = evidence.candidate_words(image, page).and_then(Candidate::from_words);
    let write = known.filter(|candidate| candidate.is_write(evidence));
    if let Some(write) = write.filter(|_| !evidence.is_marked(image, Bitmap::Inherited, page)) {
        let Candidate { time_ns, tid, address, pc, sp, fp, .. } = write;
        evidence.add(image, page, &[image as u64, address, time_ns, tid as u64, pc, sp, fp]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_store_wins_and_else_the_last_that_may_be_one() {
        let fault = |time_ns, is_store| Candidate { time_ns, is_store, tid: 1, address: 2, pc: 3, sp: 4, fp: 5 };
        let winner = |faults: &[(u64, bool)]| {
            let faults = faults.iter().map(|&(time_ns, is_store)| fault(time_ns, is_store));
            faults.reduce(|best, next| if next.beats(&best) { next } else { best }).map(|best| best.time_ns)
        };
        assert_eq!(winner(&[(1, false), (2, false), (3, false)]), Some(3));
        assert_eq!(winner(&[(1, false), (2, true), (3, true), (4, false)]), Some(2));
        // Rings are read one after another, so faults come in any order.
        assert_eq!(winner(&[(3, true), (4, false), (2, true), (1, false)]), Some(2));
        assert_eq!(winner(&[(3, false), (1, false)]), Some(3));
    }
}
