//! The region that child, keeper and parent share: atomic words that stay shared over fork.
//!
//! ```text
//! header   64 words: states, descriptors, a refused write, the ring's counters
//! panic    256 words: the text of the child's panic
//! touched  for each image and bitmap: 1 once a bit was set, because reading an empty bitmap gives it memory
//! outside  where memory lay at the fork, of which no arena is the owner
//! ring     events
//! images   for each frozen arena:  seen    a bit a page: observed by the watch since the last epoch
//!                                  epoch   a bit a page: observed in the epoch that was closed last; under faults, which closes none, a copy
//!                                          when events were told last
//!                                  copied  a bit a page: in the last census
//!                                  inherited a bit a page: was a private copy of the parent's at the fork
//!                                  returned a bit a page: under faults, was a copy and was given back
//!                                  changed a word a page: how it differed from the original then
//!                                  candidates six words a page, under faults: what may have been its first write
//! ```
//! All access is by atomics in bounds, so that nothing here is unsafe. Here the parent makes the region and reads it, and may allocate for that;
//! what child and keeper do with it stands in signal_safe/marks.rs.

use super::failure::FailedStep;
use super::findings::{Changed, Event, PanicMessage};
use super::kind::Watch;
use super::signal_safe::ring;
use crate::arena::Image;
use crate::arena::signal_safe::table;
use crate::error::Result;
use crate::facts::{Door, Registers};
use crate::page::{PageIndex, PageSet};
use crate::sys;
use crate::sys::shared_words::SharedWords;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(super) const HEADER: usize = 64;
pub(super) const PANIC: usize = 256;
pub(super) const TOUCHED: usize = HEADER + PANIC;

/// The keeper's stack; its deepest frame holds a few buffers of 4 KiB.
pub(super) const STACK_BYTES: usize = 256 << 10;

/// The words in which a [`Candidate`] is noted.
pub(super) const CANDIDATE_WORDS: usize = 6;

/// The number of runs of memory outside of the arenas that are kept, of two words each.
pub(super) const RUNS_MAX: usize = 1 << 16;

/// Words for the runs, if they are to be kept.
fn outside_words_of(wanted: bool) -> usize {
    if wanted { 2 * RUNS_MAX } else { 0 }
}

/// Words of the header, by name.
#[derive(Clone, Copy)]
pub(crate) enum Word {
    /// The keeper's thread id, stored by the kernel.
    KeeperTid,
    /// The step that failed while the child was set up: see [`FailedStep`].
    Failure,
    /// The step that failed in the keeper.
    KeeperFailure,
    /// 1 when the last census is complete.
    LastCensus,
    /// Raised for each step of the keeper's work, so that a long census is told from a dead one.
    Progress,
    /// The number of the newest request to the keeper, and of the newest that is done.
    Request,
    Done,
    /// The step that failed in the request done last.
    RequestFailure,
    /// The door the userfaultfd came through, plus 1.
    Door,
    /// 1 when the child closed the trap's descriptor.
    TrapLost,
    /// 1 when the child executed another program.
    Executed,
    /// A refused write: the arena's generation and slot plus 1, address, thread, program counter.
    RefusedArena,
    RefusedAddress,
    RefusedTid,
    RefusedPc,
    /// A stack that overflowed: the thread, program counter.
    OverflowTid,
    OverflowPc,
    /// Bytes of panic text.
    PanicLen,
    /// Descriptors in the child, plus 1.
    UffdNumber,
    LifelineNumber,
    CommandNumber,
    BegunNumber,
    /// Process ids.
    ChildPid,
    /// The number of times that a page was given back.
    Reshared,
    /// Under faults: 1 when the program's are told, 2 when the kernel's are, too; and the number of those that had no place in a ring, plus 1,
    /// if that is known.
    FaultsTold,
    FaultsLost,
    /// The start of the keeper's stack, which is not the program's memory.
    KeeperStack,
    /// Memory outside of the arenas (see `outside`): what is known, how many runs there were at the fork, pages.
    Outside,
    OutsideRuns,
    UnsharedHeap,
    UnsharedData,
    UnsharedStack,
    NewHeap,
    NewData,
    NewStack,
}

/// One image's place in the region.
#[derive(Clone, Copy)]
pub(super) struct Section {
    pub(super) seen: usize,
    pub(super) epoch: usize,
    pub(super) copied: usize,
    pub(super) inherited: usize,
    pub(super) returned: usize,
    pub(super) changed: usize,
    pub(super) candidates: usize,
    pub(super) bitmap_words: usize,
}

/// The shared region of one child.
pub(crate) struct Evidence {
    pub(super) shared: SharedWords,
    pub(super) outside_at: usize,
    pub(super) ring_at: usize,
    pub(super) sections: Vec<Section>,
    pub(crate) images: Vec<Arc<Image>>,
    /// Descriptor numbers of the images' files, which the keeper needs.
    pub(crate) files: Vec<i32>,
    pub(crate) watch: Watch,
    pub(crate) parent_pid: i32,
    /// True where the child is forked from a process that is a child itself. Only such a one passes copies on.
    pub(crate) from_child: bool,
    /// The number of events that are kept until they are read.
    pub(crate) events_max: usize,
    /// True where there is to be a keeper.
    pub(crate) keep: bool,
    /// True where memory outside of the arenas is counted, too.
    pub(crate) outside: bool,
    /// True where events have their callers.
    pub(crate) callers: bool,
}

/// The images whose copies are counted at a child's end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum LastCensus {
    /// There is no keeper.
    None,
    /// The frozen arenas'.
    OfArenas,
    /// All private memory's.
    OfAll,
}

/// The bitmaps of an image.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bitmap {
    Seen,
    Epoch,
    Copied,
    Inherited,
    Returned,
}

/// The number of an image's bitmaps.
pub(super) const BITMAPS: usize = 5;

impl Evidence {
    /// Makes the region, before the fork.
    pub(crate) fn new(
        watch: Watch,
        images: Vec<Arc<Image>>,
        (events_max, callers): (usize, bool),
        census: LastCensus,
    ) -> Result<Self> {
        let (keep, outside) = (census != LastCensus::None, census == LastCensus::OfAll);
        let outside_at = TOUCHED + BITMAPS * images.len();
        let ring_at = outside_at + outside_words_of(outside);
        let slots = if watch.has_events() { events_max.max(1) } else { 0 };
        let mut at = slots.saturating_mul(ring::slot_words(callers)).saturating_add(ring_at + ring::HEADER_WORDS);
        let mut sections = Vec::new();
        for image in &images {
            let pages = image.pages().0 as usize;
            let bitmap_words = pages.div_ceil(64);
            let [seen, epoch, copied, inherited, returned, changed] =
                [0, 1, 2, 3, 4, 5].map(|n| at.saturating_add(n * bitmap_words));
            let candidates = changed.saturating_add(pages);
            sections.push(Section { seen, epoch, copied, inherited, returned, changed, candidates, bitmap_words });
            let candidate_words = if watch.reads_page_faults() { CANDIDATE_WORDS } else { 0 };
            at = candidates.saturating_add(pages.saturating_mul(candidate_words));
        }
        let files = images.iter().map(|image| sys::descriptor::number(&image.file())).collect();
        let parent_pid = sys::process::pid();
        let from_child = table::process_number() > 0;
        let shared = SharedWords::new(at)?;
        // The ring ends where the first image begins.
        Ok(Self {
            shared,
            outside_at,
            ring_at,
            sections,
            images,
            files,
            watch,
            parent_pid,
            from_child,
            events_max,
            keep,
            outside,
            callers,
        })
    }

    /// One of an image's bitmaps as a set.
    pub(crate) fn pages(&self, image: usize, which: Bitmap) -> PageSet {
        PageSet::from_words(self.bitmap(image, which).iter().map(|word| word.load(Ordering::Acquire)))
    }

    /// The difference of a copied page at the last census.
    pub(crate) fn changed(&self, image: usize, page: PageIndex) -> Option<Changed> {
        Changed::unpack(self.changed_word(image, page)?.load(Ordering::Acquire))
    }

    /// Under faults: whether those are told that the kernel takes, and the number of those that had no place in a ring, if that is known.
    pub(crate) fn faults(&self) -> Option<(bool, Option<u64>)> {
        let lost = self.get(Word::FaultsLost).checked_sub(1);
        self.watch.reads_page_faults().then(|| (self.get(Word::FaultsTold) == 2, lost))
    }

    /// Takes the oldest event.
    pub(crate) fn take_event(&self, writers_gone: bool) -> Option<Event> {
        let ([image, address, time_ns, tid, pc, sp, fp], callers) = self.ring().pop(writers_gone)?;
        let address = address as usize;
        let (arena, page) = self.place(address).unwrap_or((image as usize, PageIndex(0)));
        Some(Event { arena, page, address, time_ns, tid: tid as i32, registers: Registers { pc, sp, fp }, callers })
    }

    /// The number of events that were lost for want of room, or with their writer.
    pub(crate) fn events_lost(&self) -> u64 {
        self.ring().dropped()
    }

    /// The step that failed while the child (or its keeper) was set up.
    pub(crate) fn failure(&self) -> Option<FailedStep> {
        FailedStep::unpack(self.get(Word::Failure)).or_else(|| FailedStep::unpack(self.get(Word::KeeperFailure)))
    }

    /// The door the userfaultfd came through.
    pub(crate) fn door(&self) -> Option<Door> {
        (self.get(Word::Door) as usize).checked_sub(1).and_then(|at| Door::ALL.get(at)).copied()
    }

    /// The message of the child's panic, if it panicked.
    pub(crate) fn panic_text(&self) -> Option<PanicMessage> {
        let len = self.get(Word::PanicLen) as usize;
        let words = self.shared.words().get(HEADER..HEADER + PANIC).unwrap_or_default();
        let bytes = words.iter().flat_map(|word| word.load(Ordering::Acquire).to_le_bytes()).take(len);
        (len > 0).then(|| PanicMessage(String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()))
    }
}
