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
//! All access is by atomics in bounds: nothing here is unsafe, and everything but [`Evidence::new`] is *raw*.

use super::failure::Failure;
use super::findings::{Changed, Event};
use super::ring::{self, CALLERS_MAX, Payload, Ring};
use super::way::Watch;
use crate::arena::{Image, registry};
use crate::error::Result;
use crate::facts::{Door, Registers};
use crate::page::{PageIndex, PageSet};
use crate::sys;
use crate::sys::map::SharedWords;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) const HEADER: usize = 64;
pub(super) const PANIC: usize = 256;
const TOUCHED: usize = HEADER + PANIC;

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
    /// The step that failed while the child was set up: see [`Failure`].
    Failure,
    /// The step that failed in the keeper.
    KeeperFailure,
    /// 1 when the last census is complete.
    LastCensus,
    /// Raised for each step of the keeper's work, so that a long census is told from a dead one.
    Progress,
    /// The number of the newest order to the keeper, and of the newest that is done.
    Order,
    Done,
    /// The step that failed in the order done last.
    OrderFailure,
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
struct Section {
    seen: usize,
    epoch: usize,
    copied: usize,
    inherited: usize,
    returned: usize,
    changed: usize,
    candidates: usize,
    bitmap_words: usize,
}

/// The shared region of one child.
pub(crate) struct Evidence {
    pub(super) shared: SharedWords,
    outside_at: usize,
    ring_at: usize,
    sections: Vec<Section>,
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
pub(crate) enum Pages {
    Seen,
    Epoch,
    Copied,
    Inherited,
    Returned,
}

/// The number of an image's bitmaps.
const BITMAPS: usize = 5;

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
            let candidate_words = if watch == Watch::Faults { CANDIDATE_WORDS } else { 0 };
            at = candidates.saturating_add(pages.saturating_mul(candidate_words));
        }
        let files = images.iter().map(|image| sys::process::number(&image.file())).collect();
        let parent_pid = sys::process::pid();
        let from_child = registry::process_number() > 0;
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

    /// A word of the header.
    pub(crate) fn word(&self, word: Word) -> &AtomicU64 {
        static NOWHERE: AtomicU64 = AtomicU64::new(0);
        self.shared.words().get(word as usize).unwrap_or(&NOWHERE)
    }

    pub(crate) fn get(&self, word: Word) -> u64 {
        self.word(word).load(Ordering::Acquire)
    }

    pub(crate) fn set(&self, word: Word, value: u64) {
        self.word(word).store(value, Ordering::Release);
    }

    /// Stores a descriptor's number.
    pub(super) fn set_number(&self, word: Word, number: i32) {
        self.set(word, number as u64 + 1);
    }

    /// A descriptor's number, if one was stored.
    pub(super) fn number(&self, word: Word) -> Option<i32> {
        self.get(word).checked_sub(1).map(|number| number as i32)
    }

    /// The words that say where memory lay at the fork.
    pub(super) fn outside_words(&self) -> &[AtomicU64] {
        self.shared.words().get(self.outside_at..self.ring_at).unwrap_or_default()
    }

    fn ring(&self) -> Ring<'_> {
        let end = self.sections.first().map_or(usize::MAX, |section| section.seen).min(self.shared.words().len());
        Ring::new(self.shared.words().get(self.ring_at..end).unwrap_or_default(), self.callers)
    }

    /// 1 once a bit of the bitmap was set.
    fn touched(&self, image: usize, which: Pages) -> Option<&AtomicU64> {
        self.shared.words().get(TOUCHED + image * BITMAPS + which as usize)
    }

    /// The words of one of an image's bitmaps, 64 pages each; none while no bit was ever set.
    pub(super) fn bitmap(&self, image: usize, which: Pages) -> &[AtomicU64] {
        let touched = self.touched(image, which).is_some_and(|touched| touched.load(Ordering::Acquire) != 0);
        if touched { self.all_words(image, which) } else { &[] }
    }

    /// The words of one of an image's bitmaps, to be written.
    pub(super) fn bitmap_to_write(&self, image: usize, which: Pages) -> &[AtomicU64] {
        // Before a bit is set, so that no writer killed in between leaves one that is not looked for.
        if let Some(touched) = self.touched(image, which).filter(|touched| touched.load(Ordering::Relaxed) == 0) {
            touched.store(1, Ordering::Release);
        }
        self.all_words(image, which)
    }

    fn all_words(&self, image: usize, which: Pages) -> &[AtomicU64] {
        let Some(section) = self.sections.get(image) else { return &[] };
        let start = match which {
            Pages::Seen => section.seen,
            Pages::Epoch => section.epoch,
            Pages::Copied => section.copied,
            Pages::Inherited => section.inherited,
            Pages::Returned => section.returned,
        };
        self.shared.words().get(start..start + section.bitmap_words).unwrap_or_default()
    }

    /// Sets a page's bit; true if it was not set.
    pub(super) fn mark(&self, image: usize, which: Pages, page: PageIndex) -> bool {
        let bit = 1 << (page.0 % 64);
        let word = self.bitmap_to_write(image, which).get((page.0 / 64) as usize);
        word.is_some_and(|word| word.fetch_or(bit, Ordering::AcqRel) & bit == 0)
    }

    /// Clears a page's bit.
    pub(super) fn unmark(&self, image: usize, which: Pages, page: PageIndex) {
        if let Some(word) = self.bitmap(image, which).get((page.0 / 64) as usize) {
            word.fetch_and(!(1 << (page.0 % 64)), Ordering::AcqRel);
        }
    }

    /// Tells whether a page's bit is set.
    pub(super) fn is_marked(&self, image: usize, which: Pages, page: PageIndex) -> bool {
        let word = self.bitmap(image, which).get((page.0 / 64) as usize);
        word.is_some_and(|word| word.load(Ordering::Acquire) & 1 << (page.0 % 64) != 0)
    }

    /// One of an image's bitmaps as a set.
    pub(crate) fn pages(&self, image: usize, which: Pages) -> PageSet {
        PageSet::from_words(self.bitmap(image, which).iter().map(|word| word.load(Ordering::Acquire)))
    }

    fn changed_word(&self, image: usize, page: PageIndex) -> Option<&AtomicU64> {
        let section = self.sections.get(image)?;
        let pages = self.images.get(image)?.pages().0;
        (page.0 < pages).then(|| self.shared.words().get(section.changed + page.0 as usize))?
    }

    /// Says how a copied page differs.
    pub(super) fn set_changed(&self, image: usize, page: PageIndex, changed: Option<Changed>) {
        if let Some(word) = self.changed_word(image, page) {
            word.store(changed.map_or(0, Changed::pack), Ordering::Release);
        }
    }

    /// The difference of a copied page at the last census.
    pub(crate) fn changed(&self, image: usize, page: PageIndex) -> Option<Changed> {
        Changed::unpack(self.changed_word(image, page)?.load(Ordering::Acquire))
    }

    /// The image an address lies in, and the page there.
    pub(super) fn place(&self, address: usize) -> Option<(usize, PageIndex)> {
        let image = self.images.iter().position(|image| image.range().contains(address))?;
        let start = self.images.get(image)?.range().start;
        Some((image, sys::page_size().index_of(address - start)))
    }

    /// Notes a write: always in the bitmap, and as an event if the page was not written before in this epoch.
    pub(super) fn saw(
        &self,
        address: usize,
        tid: impl FnOnce() -> i32,
        registers: Registers,
        callers: impl FnOnce(&mut [u64]),
    ) {
        let Some((image, page)) = self.place(address) else { return };
        if self.mark(image, Pages::Seen, page) {
            let Registers { pc, sp, fp } = registers;
            let time = sys::monotonic_ns();
            let mut led = [0; CALLERS_MAX];
            if self.callers {
                callers(&mut led);
            }
            self.ring().push(&[image as u64, address as u64, time, tid() as u64, pc, sp, fp], &led);
        }
    }

    /// The words for the fault that may have been a page's first write.
    pub(super) fn candidate_words(&self, image: usize, page: PageIndex) -> Option<&[AtomicU64; CANDIDATE_WORDS]> {
        let (section, pages) = (self.sections.get(image)?, self.images.get(image)?.pages().0);
        let at = section.candidates + page.0 as usize * CANDIDATE_WORDS;
        (page.0 < pages).then(|| self.shared.words().get(at..)?.first_chunk())?
    }

    /// Under faults: whether those are told that the kernel takes, and the number of those that had no place in a ring, if that is known.
    pub(crate) fn faults(&self) -> Option<(bool, Option<u64>)> {
        let lost = self.get(Word::FaultsLost).checked_sub(1);
        (self.watch == Watch::Faults).then(|| (self.get(Word::FaultsTold) == 2, lost))
    }

    /// Adds an event for a page that has none yet in this epoch.
    pub(super) fn add(&self, image: usize, page: PageIndex, event: &Payload) {
        if self.mark(image, Pages::Seen, page) {
            self.ring().push(event, &[0; CALLERS_MAX]);
        }
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
    pub(crate) fn failure(&self) -> Option<Failure> {
        Failure::unpack(self.get(Word::Failure)).or_else(|| Failure::unpack(self.get(Word::KeeperFailure)))
    }

    /// The door the userfaultfd came through.
    pub(crate) fn door(&self) -> Option<Door> {
        (self.get(Word::Door) as usize).checked_sub(1).and_then(|at| Door::ALL.get(at)).copied()
    }
}
