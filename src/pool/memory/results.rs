//! Reading what a batch left behind. By the parent, and by the zygote for a dead worker.

use super::heap;
use super::region::Region;
use crate::pool::protocol::batch::{self, Item};
use std::sync::atomic::Ordering;

/// The items in the blocks from `first` on, in the order of the jobs. The slot must be done, or its worker dead: then nobody
/// writes these blocks until they are freed.
#[expect(unsafe_code, reason = "shared memory is lent as bytes")]
pub(crate) fn items(region: &Region, first: usize) -> impl Iterator<Item = Item<'_>> {
    heap::chain(region, first).flat_map(move |block| {
        let room = heap::room(region, block);
        let used = heap::header(region, block).map_or(0, |header| header.used.load(Ordering::Acquire) as usize);
        // SAFETY: `used` is stored after the bytes; the writer is dead or has let go of the block, and it is not free
        // yet: that takes the reader's own word.
        let bytes = unsafe { region.read(block + heap::HEADER, used.min(room)) };
        batch::items(bytes.unwrap_or_default())
    })
}
