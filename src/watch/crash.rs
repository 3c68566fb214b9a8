//! The cause of a child's death, as its handler of faults notes it: a refused write, a stack that overflowed. Here the parent reads it.

use super::evidence::{Evidence, Word};
use super::findings::DeniedWrite;
use crate::facts::StackOverflow;
use crate::sys;

impl Evidence {
    /// The stack that overflowed, if one did.
    pub(crate) fn stack_overflow(&self) -> Option<StackOverflow> {
        let tid = self.get(Word::OverflowTid) as i32;
        (tid != 0).then(|| StackOverflow { tid, pc: self.get(Word::OverflowPc) })
    }

    /// The refused write, if there was one.
    pub(crate) fn denied(&self) -> Option<DeniedWrite> {
        let which = self.get(Word::RefusedArena).checked_sub(1)?;
        let (slot, generation) = (which as u16, (which >> 16) as u16);
        let address = self.get(Word::RefusedAddress) as usize;
        let image = self.images.iter().find(|image| (image.slot(), image.generation()) == (slot, generation));
        let offset = image.map(|image| address.saturating_sub(image.range().start));
        Some(DeniedWrite {
            arena: image.map_or_else(String::new, |image| image.name().to_owned()),
            page: offset.map(|offset| sys::page_size().index_of(offset)),
            address,
            tid: self.get(Word::RefusedTid) as i32,
            pc: self.get(Word::RefusedPc),
        })
    }
}
