//! The region that child and keeper share with the parent, as these two write and read it.

use super::ring::{CALLERS_MAX, EventRing, Payload};
use crate::arena::RefusedAccess;
use crate::facts::{Registers, StackOverflow};
use crate::page::PageIndex;
use crate::sys;
use crate::watch::evidence::{BITMAPS, Bitmap, CANDIDATE_WORDS, Evidence, HEADER, PANIC, TOUCHED, Word};
use crate::watch::findings::Changed;
use std::sync::atomic::{AtomicU64, Ordering};

impl Evidence {
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
    pub(in crate::watch) fn set_number(&self, word: Word, number: i32) {
        self.set(word, number as u64 + 1);
    }

    /// A descriptor's number, if one was stored.
    pub(in crate::watch) fn number(&self, word: Word) -> Option<i32> {
        self.get(word).checked_sub(1).map(|number| number as i32)
    }

    /// The words that say where memory lay at the fork.
    pub(in crate::watch) fn outside_words(&self) -> &[AtomicU64] {
        self.shared.words().get(self.outside_at..self.ring_at).unwrap_or_default()
    }

    pub(in crate::watch) fn ring(&self) -> EventRing<'_> {
        let end = self.sections.first().map_or(usize::MAX, |section| section.seen).min(self.shared.words().len());
        EventRing::new(self.shared.words().get(self.ring_at..end).unwrap_or_default(), self.callers)
    }

    /// 1 once a bit of the bitmap was set.
    fn touched(&self, image: usize, which: Bitmap) -> Option<&AtomicU64> {
        self.shared.words().get(TOUCHED + image * BITMAPS + which as usize)
    }

    /// The words of one of an image's bitmaps, 64 pages each; none while no bit was ever set.
    pub(in crate::watch) fn bitmap(&self, image: usize, which: Bitmap) -> &[AtomicU64] {
        let touched = self.touched(image, which).is_some_and(|touched| touched.load(Ordering::Acquire) != 0);
        if touched { self.all_words(image, which) } else { &[] }
    }

    /// The words of one of an image's bitmaps, to be written.
    pub(in crate::watch) fn bitmap_to_write(&self, image: usize, which: Bitmap) -> &[AtomicU64] {
        // Before a bit is set, so that no writer killed in between leaves one that is not looked for.
        if let Some(touched) = self.touched(image, which).filter(|touched| touched.load(Ordering::Relaxed) == 0) {
            touched.store(1, Ordering::Release);
        }
        self.all_words(image, which)
    }

    fn all_words(&self, image: usize, which: Bitmap) -> &[AtomicU64] {
        let Some(section) = self.sections.get(image) else { return &[] };
        let start = match which {
            Bitmap::Seen => section.seen,
            Bitmap::Epoch => section.epoch,
            Bitmap::Copied => section.copied,
            Bitmap::Inherited => section.inherited,
            Bitmap::Returned => section.returned,
        };
        self.shared.words().get(start..start + section.bitmap_words).unwrap_or_default()
    }

    /// Sets a page's bit; true if it was not set.
    pub(in crate::watch) fn mark(&self, image: usize, which: Bitmap, page: PageIndex) -> bool {
        let bit = 1 << (page.0 % 64);
        let word = self.bitmap_to_write(image, which).get((page.0 / 64) as usize);
        word.is_some_and(|word| word.fetch_or(bit, Ordering::AcqRel) & bit == 0)
    }

    /// Clears a page's bit.
    pub(in crate::watch) fn unmark(&self, image: usize, which: Bitmap, page: PageIndex) {
        if let Some(word) = self.bitmap(image, which).get((page.0 / 64) as usize) {
            word.fetch_and(!(1 << (page.0 % 64)), Ordering::AcqRel);
        }
    }

    /// Tells whether a page's bit is set.
    pub(in crate::watch) fn is_marked(&self, image: usize, which: Bitmap, page: PageIndex) -> bool {
        let word = self.bitmap(image, which).get((page.0 / 64) as usize);
        word.is_some_and(|word| word.load(Ordering::Acquire) & 1 << (page.0 % 64) != 0)
    }

    pub(in crate::watch) fn changed_word(&self, image: usize, page: PageIndex) -> Option<&AtomicU64> {
        let section = self.sections.get(image)?;
        let pages = self.images.get(image)?.pages().0;
        (page.0 < pages).then(|| self.shared.words().get(section.changed + page.0 as usize))?
    }

    /// Says how a copied page differs.
    pub(in crate::watch) fn set_changed(&self, image: usize, page: PageIndex, changed: Option<Changed>) {
        if let Some(word) = self.changed_word(image, page) {
            word.store(changed.map_or(0, Changed::pack), Ordering::Release);
        }
    }

    /// The image an address lies in, and the page there.
    pub(in crate::watch) fn place(&self, address: usize) -> Option<(usize, PageIndex)> {
        let image = self.images.iter().position(|image| image.range().contains(address))?;
        let start = self.images.get(image)?.range().start;
        Some((image, sys::page_size().index_of(address - start)))
    }

    /// Notes a write: always in the bitmap, and as an event if the page was not written before in this epoch.
    pub(in crate::watch) fn saw(
        &self,
        address: usize,
        tid: impl FnOnce() -> i32,
        registers: Registers,
        callers: impl FnOnce(&mut [u64]),
    ) {
        let Some((image, page)) = self.place(address) else { return };
        if self.mark(image, Bitmap::Seen, page) {
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
    pub(in crate::watch) fn candidate_words(
        &self,
        image: usize,
        page: PageIndex,
    ) -> Option<&[AtomicU64; CANDIDATE_WORDS]> {
        let (section, pages) = (self.sections.get(image)?, self.images.get(image)?.pages().0);
        let at = section.candidates + page.0 as usize * CANDIDATE_WORDS;
        (page.0 < pages).then(|| self.shared.words().get(at..)?.first_chunk())?
    }

    /// Adds an event for a page that has none yet in this epoch.
    pub(in crate::watch) fn add(&self, image: usize, page: PageIndex, event: &Payload) {
        if self.mark(image, Bitmap::Seen, page) {
            self.ring().push(event, &[0; CALLERS_MAX]);
        }
    }

    /// Notes a refused write.
    pub(crate) fn refused(&self, refused: &RefusedAccess) {
        self.set(Word::RefusedAddress, refused.address as u64);
        self.set(Word::RefusedTid, refused.tid as u64);
        self.set(Word::RefusedPc, refused.pc);
        let which = u64::from(refused.generation) << 16 | u64::from(refused.slot);
        self.set(Word::RefusedArena, which + 1);
    }

    /// Notes a stack that overflowed.
    pub(crate) fn overflowed(&self, overflow: &StackOverflow) {
        self.set(Word::OverflowPc, overflow.pc);
        self.set(Word::OverflowTid, overflow.tid as u64);
    }

    /// Begins a panic's text, in place of an earlier panic's that was caught.
    pub(crate) fn begin_panic_text(&self) {
        self.set(Word::PanicLen, 0);
        for word in self.shared.words().get(HEADER..HEADER + PANIC).unwrap_or_default() {
            word.store(0, Ordering::Release);
        }
    }

    /// Adds to the panic's text; what does not fit is cut off.
    pub(crate) fn add_panic_text(&self, text: &str) {
        let words = self.shared.words().get(HEADER..HEADER + PANIC).unwrap_or_default();
        let room = (words.len() * 8).saturating_sub(self.get(Word::PanicLen) as usize);
        let fits = text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|&end| end <= room).last();
        for byte in text.bytes().take(fits.unwrap_or(0)) {
            let at = self.get(Word::PanicLen) as usize;
            let Some(word) = words.get(at / 8) else { return };
            word.fetch_or(u64::from(byte) << (at % 8 * 8), Ordering::AcqRel);
            self.set(Word::PanicLen, at as u64 + 1);
        }
    }
}
