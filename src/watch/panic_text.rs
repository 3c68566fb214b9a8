//! The text of a child's panic, in the region that child and parent share. *Raw.*

use super::evidence::{Evidence, HEADER, PANIC, Word};
use super::findings::PanicMessage;
use std::sync::atomic::Ordering;

impl Evidence {
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

    /// The message of the child's panic, if it panicked.
    pub(crate) fn panic_text(&self) -> Option<PanicMessage> {
        let len = self.get(Word::PanicLen) as usize;
        let words = self.shared.words().get(HEADER..HEADER + PANIC).unwrap_or_default();
        let bytes = words.iter().flat_map(|word| word.load(Ordering::Acquire).to_le_bytes()).take(len);
        (len > 0).then(|| PanicMessage(String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()))
    }
}
