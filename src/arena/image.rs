//! The facts that are known of a frozen arena.
//!
//! # Safety
//! An image holds facts; only `release` and the freezing change what is mapped.

use super::collapse::Collapsed;
use super::options::{HugePages, OnWrite};
use super::pieces::{Blocks, Pieces};
use super::site::Allocation;
use super::site::AllocationTable;
use crate::error::{Error, Result};
use crate::page::{PageCount, PageSet, PageSpan};
use crate::sys::map::{self, Harmless, Range};
#[cfg(feature = "pool")]
use crate::sys::pagemap::{Entry, Pagemap};
use crate::sys::{self, Errno, memfd};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

/// The place where the originals of an image's pages are.
#[derive(Clone, Copy, Debug)]
pub(super) enum OriginalsLocation {
    /// In a sealed memfd, from its start.
    Sealed,
    /// In an ordinary file, from this byte on.
    InPlace(u64),
    /// In a sealed memfd, in pieces, and which blocks it has.
    Poured(Pieces, Blocks),
}

/// The marks that the user asked for beyond sharing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) huge_pages: HugePages,
    pub(super) on_write: OnWrite,
    pub(super) dump: bool,
    pub(super) lock: bool,
}

impl Marks {
    /// All but what cannot be undone.
    pub(super) fn put_on(&self, range: Range) -> Result<()> {
        if self.huge_pages == HugePages::Advise {
            map::advise(range, Harmless::HugePage).map_err(|e| Error::os("madvise(MADV_HUGEPAGE)", e))?;
        }
        if !self.dump {
            map::advise(range, Harmless::DontDump).map_err(|e| Error::os("madvise(MADV_DONTDUMP)", e))?;
        }
        if self.lock {
            map::lock(range)
                .map_err(|e| Error::os("mlock2", e).with_hint("raise the limit on locked memory: ulimit -l"))?;
        }
        Ok(())
    }

    /// Holds [`OnWrite::Deny`] by `mseal`, where the kernel has it. Without, the range is read-only all the same;
    /// only deliberate code could lift that.
    pub(super) fn deny_for_good(&self, range: Range) -> bool {
        self.on_write == OnWrite::Deny && map::seal(range).is_ok()
    }
}

/// One generation of an arena: the frozen content and what is known of it.
pub struct Image {
    pub(super) name: Box<str>,
    pub(super) slot: u16,
    pub(super) generation: u16,
    pub(super) range: Range,
    pub(super) used: usize,
    /// Nothing but plain old data was ever put in.
    pub(super) plain: bool,
    pub(super) marks: Marks,
    pub(super) for_good: bool,
    pub(super) collapsed: Collapsed,
    pub(super) allocations: AllocationTable,
    pub(super) file: OwnedFd,
    pub(super) origin: OriginalsLocation,
    /// Pages that this process, or one it was forked from, wrote and gave back: their page tables do not tell any more.
    pub(super) given_back: Mutex<PageSet>,
}

impl Image {
    /// The arena's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The image's number: handles of an image that was released are told by it. It counts the images of one
    /// place in the table of arenas, in this process and all that came from the same one, so a new arena may
    /// begin above 1.
    pub fn generation(&self) -> u16 {
        self.generation
    }

    /// The addresses, whole pages.
    pub fn range(&self) -> Range {
        self.range
    }

    /// The number of the image's pages.
    pub fn pages(&self) -> PageCount {
        sys::page_size().pages_for(self.range.len)
    }

    /// Bytes from the start to the end of the last allocation.
    pub fn used(&self) -> usize {
        self.used
    }

    /// The effect of a child's write.
    pub fn on_write(&self) -> OnWrite {
        self.marks.on_write
    }

    /// Tells whether `mseal` (Linux 6.10) holds [`OnWrite::Deny`], so that nothing in any process can lift it.
    pub fn denied_for_good(&self) -> bool {
        self.for_good
    }

    /// Do pages stay in memory once the process that froze it has read them?
    #[cfg(feature = "pool")]
    pub(crate) fn is_locked(&self) -> bool {
        self.marks.lock
    }

    /// The outcome of the attempt to put huge pages behind it.
    pub fn collapsed(&self) -> &Collapsed {
        &self.collapsed
    }

    /// All allocations by offset, if the arena records sites and was frozen by this process or before it was
    /// forked; else none.
    pub fn allocations(&self) -> impl Iterator<Item = Allocation> + '_ {
        self.allocations.iter()
    }

    /// The same, to look an address up in. *Async-signal-safe.*
    pub(crate) fn table(&self) -> &AllocationTable {
        &self.allocations
    }

    /// The sealed memfd, which holds the original of every page for good; of an image that was
    /// [opened in place](super::Frozen::open) its file.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Does the image lie in an ordinary file, as [`super::Frozen::open`] maps it?
    pub fn is_in_place(&self) -> bool {
        matches!(self.origin, OriginalsLocation::InPlace(_))
    }

    /// Does it hold plain old data only, so that it can be [saved](super::Frozen::save)?
    pub fn is_plain(&self) -> bool {
        self.plain
    }

    /// The memory that the image's file takes, once for all processes, in bytes: in memory or swapped out. `None` where the file is a disk's, or holds
    /// more than the image.
    ///
    /// # Errors
    /// None known.
    #[cfg(feature = "pool")]
    pub(crate) fn held_bytes(&self) -> Result<Option<u64>> {
        match self.origin {
            OriginalsLocation::Sealed => memfd::held_bytes(self.file.as_fd()).map(Some),
            OriginalsLocation::InPlace(_) | OriginalsLocation::Poured(..) => Ok(None),
        }
    }

    /// Reads the original of the bytes at an offset from the arena's start, whatever a process has made of its
    /// copy; returns how many could be read. *Async-signal-safe.*
    ///
    /// # Errors
    /// The errno of the read.
    pub(crate) fn read_original(&self, offset: usize, buffer: &mut [u8]) -> Result<usize, Errno> {
        let pieces = match self.origin {
            OriginalsLocation::Sealed => return memfd::read_at(&self.file, buffer, offset as u64),
            OriginalsLocation::InPlace(begin) => return memfd::read_at(&self.file, buffer, begin + offset as u64),
            OriginalsLocation::Poured(pieces, _) => pieces,
        };
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let (at, follow) = pieces.place(offset + done);
            let len = rest.len().min(follow);
            let part = rest.get_mut(..len).unwrap_or_default();
            let read = memfd::read_at(&self.file, part, at)?;
            done += read;
            if read < len {
                break;
            }
        }
        Ok(done)
    }

    /// May the process that has frozen it write to it, so that copies of it are passed on to children?
    pub(crate) fn is_written_by_parents(&self) -> bool {
        matches!(self.origin, OriginalsLocation::Poured(..))
    }

    /// The block that holds an address, where blocks are known without a table.
    pub(crate) fn block_at(&self, address: usize) -> Option<Range> {
        match self.origin {
            OriginalsLocation::Poured(_, blocks) if self.range.contains(address) => blocks(address),
            _ => None,
        }
    }

    /// These pages were copies of this process, and are about to be the file's again.
    pub(crate) fn note_given_back(&self, pages: PageSpan) {
        self.given_back.lock().unwrap_or_else(PoisonError::into_inner).insert_span(pages);
    }

    /// Tells whether this process has written none of the pages that hold these bytes, since it was forked; `None` if that cannot be told
    /// because memory is moved right now. Pages that its parent had written before count, too: page tables do not tell
    /// one from the other. `memory` is [`sys::procfs::signal_safe::open_memory`].
    ///
    /// # Errors
    /// The errno of reading the page tables.
    #[cfg(feature = "pool")]
    pub(super) fn is_unwritten(
        &self,
        bytes: Range,
        pagemap: &Pagemap,
        memory: BorrowedFd<'_>,
    ) -> Result<Option<bool>, Errno> {
        const LOOKS: usize = 8;
        let size = sys::page_size();
        let (first, end) = (size.round_down(bytes.start), bytes.end());
        let given_back = self.given_back.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pages = (first..end).step_by(size.bytes()).map(|page| size.index_of(page - self.range.start));
        if !given_back.is_empty() && pages.any(|page| given_back.contains(page)) {
            return Ok(Some(false));
        }
        drop(given_back);
        let mut doubtful = vec![Range { start: first, len: end - first }];
        for _ in 0..LOOKS {
            let mut written = false;
            for range in std::mem::take(&mut doubtful) {
                pagemap.read(range, |address, entry| {
                    written |= entry.contains(Entry::PRESENT) && !entry.contains(Entry::FILE);
                    // A copy that is swapped out, or, in an armed range, the mark of an untouched page.
                    if !entry.contains(Entry::PRESENT) && entry.contains(Entry::SWAPPED) {
                        doubtful.push(Range { start: address, len: size.bytes() });
                    }
                })?;
            }
            if written || doubtful.is_empty() {
                return Ok(Some(!written));
            }
            for page in &doubtful {
                // Reading a page brings it in, and what it is then is seen.
                memfd::read_at(memory, &mut [0], page.start as u64)?;
            }
        }
        Ok(None)
    }

    pub(crate) fn slot(&self) -> u16 {
        self.slot
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({} generation {}, {} pages)", self.name, self.generation, self.pages())
    }
}
