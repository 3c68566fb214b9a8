//! Images of memory that was not an arena's: what the heap has frozen.

use super::collapse::Collapsed;
use super::image::Image;
use super::image::{Marks, OriginalsLocation};
use super::options::{HugePages, OnWrite};
use super::pieces::{Blocks, Pieces};
use super::registry;
use super::site::AllocationTable;
use crate::error::Result;
use crate::sys::map::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

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
    allocations: AllocationTable,
) -> Result<Arc<Image>> {
    super::prepare::prepare()?;
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
            origin: OriginalsLocation::Poured(pieces, blocks),
            given_back: Mutex::default(),
        };
        registry::entry(image)
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
