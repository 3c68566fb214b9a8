//! Images of memory that was not an arena's: what the heap has frozen.

use super::image::{Marks, Origin};
use super::site::Table;
use super::{Collapsed, HugePages, Image, OnWrite, registry};
use crate::error::Result;
use crate::sys::map::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

/// The layout of an image in its file: pieces of so many bytes, and so many bytes from the start of one to that of the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pieces {
    pub(crate) len: usize,
    pub(crate) stride: usize,
}

impl Pieces {
    /// The place in the file of a byte of the image, and the number of bytes that follow it there.
    pub(super) fn place(self, offset: usize) -> (u64, usize) {
        let (piece, inside) = (offset / self.len, offset % self.len);
        ((piece * self.stride + inside) as u64, self.len - inside)
    }
}

/// A function that knows the objects, and tells which block of memory holds an address of an image.
pub(crate) type Blocks = fn(usize) -> Option<Range>;

/// Enters an image before it is there, so that it is known from the moment on that it is. This process may write to it, and gets copies then.
///
/// # Errors
/// Invalid when there are too many arenas and images.
pub(crate) fn enter_poured(
    name: &str,
    range: Range,
    file: OwnedFd,
    pieces: Pieces,
    blocks: Blocks,
    allocations: Table,
) -> Result<Arc<Image>> {
    super::prepare()?;
    let marks = Marks { huge_pages: HugePages::Never, on_write: OnWrite::Copy, dump: true, lock: false };
    let inner = registry::enter(|slot, generation| {
        let image = Image {
            name: name.into(),
            slot,
            generation,
            range,
            used: range.len,
            plain: false,
            marks,
            for_good: false,
            collapsed: Collapsed::NotAsked,
            allocations,
            file,
            origin: Origin::Poured(pieces, blocks),
            given_back: Mutex::default(),
        };
        image.entry()
    })?;
    let image = inner.image().cloned().ok_or_else(|| crate::error::Error::invalid("the image is not frozen"))?;
    registry::frozen(&image, false);
    Ok(image)
}

/// Takes an image out that was entered and did not come to be.
pub(crate) fn leave_poured(image: &Image) {
    // Only a poured image is taken out: of any other there may still be an ArenaRef.
    if image.is_written_by_parents() {
        registry::leave_image(image);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_lie_apart_in_the_file() {
        let pieces = Pieces { len: 100, stride: 110 };
        assert_eq!(pieces.place(0), (0, 100));
        assert_eq!(pieces.place(99), (99, 1));
        assert_eq!(pieces.place(100), (110, 100));
        assert_eq!(pieces.place(250), (270, 50));
    }
}
