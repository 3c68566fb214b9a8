//! Counting what a child has copied, now.

use crate::arena::Image;
use crate::error::{Error, Result};
use crate::page::PageSet;
use crate::sys::pagemap::Pagemap;
use crate::watch::{self, Bitmap, Evidence};
use std::sync::Arc;

/// The pages of one frozen arena that a process has copied.
#[derive(Clone, Debug)]
pub struct ArenaCensus {
    /// The arena.
    pub image: Arc<Image>,
    /// The copied pages.
    pub copied: PageSet,
}

/// A census of all arenas in `evidence`, by whoever may read the page tables.
pub(super) fn census_of(evidence: &Evidence, pagemap: &Pagemap) -> Result<Vec<ArenaCensus>> {
    let mut all = Vec::new();
    for (at, image) in evidence.images.iter().enumerate() {
        let armed = evidence.watch.arms();
        // Copies that were armed again and swapped out look untouched: what was counted stays counted.
        let mut copied = if armed { evidence.pages(at, Bitmap::Copied) } else { PageSet::new() };
        let inherited = evidence.pages(at, Bitmap::Inherited);
        watch::census::scan(pagemap, image.range(), armed, |run| {
            for page in watch::census::pages_of(image.range(), run).filter(|&page| !inherited.contains(page)) {
                copied.insert(page);
            }
        })
        .map_err(|e| Error::os("ioctl(PAGEMAP_SCAN)", e))?;
        all.push(ArenaCensus { image: Arc::clone(image), copied });
    }
    Ok(all)
}
