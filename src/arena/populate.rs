//! Page tables for a frozen arena before its first read.

use super::frozen::Frozen;
use super::image::Image;
use crate::error::{Error, Result};
use crate::sys::Errno;
use crate::sys::map::{self, Harmless, Range};

impl<T: 'static> Frozen<T> {
    /// Maps all of the arena's pages in this process now (`MADV_POPULATE_READ`), as reading each would. In a forked worker the first
    /// read of every 16 pages, or of every huge page, is a page fault otherwise, because fork copies no page tables of an arena; done at a worker's start, the
    /// time is gone before its first job. Nothing is copied.
    ///
    /// The price is the page tables of what lies in ordinary pages, 2 MiB a GiB in each process that does so, and the time of this call, which `cowbell-bench forks` prints.
    /// [Huge pages](super::HugePages) need next to nothing of either.
    ///
    /// # Errors
    /// Unsupported before Linux 5.14. ENOMEM when there is no memory for page tables; EFAULT or EHWPOISON when a page cannot be read.
    pub fn populate(&self) -> Result<()> {
        populate(self.image().range())
    }
}

impl Image {
    /// Tells by its first page whether this kernel can do [`Frozen::populate`].
    ///
    /// # Errors
    /// Those of that.
    #[cfg(feature = "pool")]
    pub(crate) fn check_populate(&self) -> Result<()> {
        populate(Range { start: self.range().start, len: crate::sys::page_size().bytes() })
    }
}

fn populate(range: Range) -> Result<()> {
    loop {
        match map::advise(range, Harmless::PopulateRead) {
            Ok(()) => return Ok(()),
            // A signal came in between; what is mapped by now stays so.
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(Errno::INVAL) => {
                return Err(Error::unsupported("MADV_POPULATE_READ", "5.14", "the kernel does not know it"));
            }
            Err(e) => return Err(Error::os("madvise(MADV_POPULATE_READ)", e)),
        }
    }
}
