//! Page tables as the kernel shows them: `/proc/PID/pagemap` and its `PAGEMAP_SCAN` ioctl.
//!
//! `PAGEMAP_SCAN` (Linux 6.7) walks page tables inside the kernel and returns runs of pages of the
//! categories asked for; before it, [`Pagemap::read`] delivers one 64-bit word a page.
#![expect(unsafe_code, reason = "an ioctl passes pointers")]

use super::Errno;
use super::map::Range;
use linux_raw_sys::general as raw;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

bitflags::bitflags! {
    /// The kernel's statements about a page; the bits of `struct pm_scan_arg`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Categories: u64 {
        /// The mapping is under asynchronous write-protection, so that `WRITTEN` means something.
        const WP_ALLOWED = raw::PAGE_IS_WPALLOWED as u64;
        /// Not write-protected: written since it was armed, **or never armed**.
        const WRITTEN = raw::PAGE_IS_WRITTEN as u64;
        /// The page belongs to a file (or shared memory): nobody copied it.
        const FILE = raw::PAGE_IS_FILE as u64;
        /// There is a page.
        const PRESENT = raw::PAGE_IS_PRESENT as u64;
        /// The entry is not a page: swapped out, **or a marker that userfaultfd left**.
        const SWAPPED = raw::PAGE_IS_SWAPPED as u64;
        /// The page of zeroes that all share.
        const PFN_ZERO = raw::PAGE_IS_PFNZERO as u64;
        /// Mapped by a huge entry.
        const HUGE = raw::PAGE_IS_HUGE as u64;
        /// Written since soft-dirty bits were cleared.
        const SOFT_DIRTY = raw::PAGE_IS_SOFT_DIRTY as u64;
        /// A guard marker (since Linux 6.15; a query that names it is EINVAL before).
        const GUARD = raw::PAGE_IS_GUARD as u64;
    }
}

bitflags::bitflags! {
    /// One word of `/proc/PID/pagemap`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Entry: u64 {
        /// Bit 56: mapped by this process alone.
        const EXCLUSIVE = 1 << 56;
        /// Bit 57: write-protected through userfaultfd (since Linux 5.14).
        const UFFD_WP = 1 << 57;
        /// Bit 58: a guard marker, which also shows as swapped (since Linux 6.15).
        const GUARD = 1 << 58;
        /// Bit 61: a page of a file or of shared memory.
        const FILE = 1 << 61;
        /// Bit 62: swapped out, or a marker.
        const SWAPPED = 1 << 62;
        /// Bit 63: present.
        const PRESENT = 1 << 63;
        /// Bits 0 to 54: the frame number, 0 without CAP_SYS_ADMIN; 55: soft-dirty.
        const _ = !0;
    }
}

impl Entry {
    /// The page frame number; 0 when the reader lacks CAP_SYS_ADMIN.
    pub fn frame(self) -> u64 {
        self.bits() & ((1 << 55) - 1)
    }

    /// The state of the page there. `armed`: the range is under userfaultfd, where an untouched page holds a marker that looks swapped
    /// and is protected. (So does a private page that was armed and then swapped out: who arms keeps what it knew before.)
    /// The page of zeroes is a [`PageState::Private`] here; a scan tells it. *Async-signal-safe.*
    pub fn state(self, armed: bool) -> PageState {
        if self.contains(Self::PRESENT) {
            return if self.contains(Self::FILE) { PageState::File } else { PageState::Private };
        }
        let marker = self.contains(Self::GUARD) || armed && self.contains(Self::UFFD_WP);
        match (self.contains(Self::SWAPPED), self.contains(Self::FILE)) {
            (true, true) => PageState::File,
            (true, false) if !marker => PageState::Swapped,
            _ => PageState::Nothing,
        }
    }
}

impl Categories {
    /// The same of a run that a scan has found, which must have been asked for `PRESENT`, `SWAPPED`, `PFN_ZERO` and `FILE`
    /// or have excluded them. A marker is a [`PageState::Swapped`] here; a word tells it. *Async-signal-safe.*
    pub fn state(self) -> PageState {
        if self.contains(Self::FILE) {
            PageState::File
        } else if self.contains(Self::PFN_ZERO) {
            PageState::Zero
        } else if self.contains(Self::PRESENT) {
            PageState::Private
        } else if self.contains(Self::SWAPPED) {
            PageState::Swapped
        } else {
            PageState::Nothing
        }
    }
}

/// The state of a page of a private mapping, as page tables tell it: the one classification for censuses, for the
/// tool's baseline and for snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// No page.
    Nothing,
    /// A page of no file: written at some time by this process or by one that it was forked from.
    Private,
    /// A page of a file or of shared memory.
    File,
    /// The page of zeroes that all share.
    Zero,
    /// A private page, swapped out.
    Swapped,
}

impl PageState {
    /// In a mapping of a file: is it a copy of the file's page?
    pub fn is_copy(self) -> bool {
        matches!(self, Self::Private | Self::Swapped)
    }
}

/// A run of pages with the same categories, as `PAGEMAP_SCAN` returns it.
pub type PageRegion = raw::page_region;

const _: () = assert!(size_of::<PageRegion>() == 24 && size_of::<raw::pm_scan_arg>() == 96);

/// A query of a scan: pages with **all** categories of `all`, none of `none`, and, if it is not empty,
/// at least one of `any`.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// Categories a page must have.
    pub all: Categories,
    /// Categories a page must not have.
    pub none: Categories,
    /// Categories of which a page must have one, unless empty.
    pub any: Categories,
    /// Write-protect the pages found, in the same step (needs asynchronous write-protection).
    pub rearm: bool,
}

/// Pages that are copies, in a mapping of a memfd: there (or swapped out), and not the file's.
/// Only true in a range without userfaultfd markers; see [`COPIED_ARMED`].
pub const COPIED: [Query; 1] = [Query {
    all: Categories::empty(),
    none: Categories::FILE.union(Categories::PFN_ZERO),
    any: Categories::PRESENT.union(Categories::SWAPPED),
    rearm: false,
}];

/// Pages that are copies, in a mapping under userfaultfd: there and not the file's; or swapped out
/// and not protected. A marker on an untouched page shows as swapped **and protected**.
pub const COPIED_ARMED: [Query; 2] = [
    Query {
        all: Categories::PRESENT,
        none: Categories::FILE.union(Categories::PFN_ZERO),
        any: Categories::empty(),
        rearm: false,
    },
    Query {
        all: Categories::SWAPPED.union(Categories::WRITTEN),
        none: Categories::FILE,
        any: Categories::empty(),
        rearm: false,
    },
];

/// Pages that are there and a file's: mapped and not copied.
pub const MAPPED: Query = Query {
    all: Categories::PRESENT.union(Categories::FILE),
    none: Categories::empty(),
    any: Categories::empty(),
    rearm: false,
};

/// Pages written since they were armed, under asynchronous write-protection.
pub const WRITTEN: Query = Query {
    all: Categories::WP_ALLOWED.union(Categories::WRITTEN),
    none: Categories::empty(),
    any: Categories::empty(),
    rearm: false,
};

/// An open `/proc/PID/pagemap`. It means the address space the process had when it was opened.
#[derive(Debug)]
pub struct Pagemap {
    fd: OwnedFd,
}

impl Pagemap {
    /// Opens another process's pagemap.
    ///
    /// # Errors
    /// ENOENT when there is no such process; ESRCH when it has no memory, because it has ended or is a thread of the kernel's; EACCES or EPERM without
    /// ptrace read access to it.
    pub fn open(pid: i32) -> Result<Self, Errno> {
        let opened = Self::open_path(&super::procfs::signal_safe::path(pid, "pagemap"))?;
        // By the kernel's source, Linux 6.7 and some later ones open the pagemap of a process without memory, and PAGEMAP_SCAN goes through a null pointer there
        // ("proc: fix the issue of proc_mem_open returning NULL"); reading it gives 0 bytes. What is open keeps its address space, so one look is enough. Linux 6.18,
        // on which this is tested, refuses to open it, so the look itself was not tried on a kernel that needs it.
        opened.read(Range { start: 0, len: super::page_size().bytes() }, |_, _| {})?;
        Ok(opened)
    }

    /// Opens this process's own pagemap. *Async-signal-safe.*
    ///
    /// # Errors
    /// ENOENT when `/proc` is not mounted.
    pub fn open_self() -> Result<Self, Errno> {
        Self::open_path(c"/proc/self/pagemap")
    }

    /// The descriptor's number. *Async-signal-safe.*
    pub fn number(&self) -> i32 {
        super::descriptor::number(&self.fd)
    }

    fn open_path(path: &CStr) -> Result<Self, Errno> {
        use rustix::fs::{Mode, OFlags};
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd })
    }

    /// Calls `found` for each run of pages in `range` that fits the query, in order. *Async-signal-safe*, if `found` is.
    ///
    /// A call can stop early in two ways: the buffer is full, or the kernel stopped at a place it
    /// reports too low (a stale `walk_end`, seen on 6.18). So the next call starts at the larger
    /// of `walk_end` and the end of the last run.
    ///
    /// # Errors
    /// ENOTTY before Linux 6.7; EPERM when `rearm` is asked and the range is not under asynchronous
    /// write-protection; EINVAL for addresses off a page.
    pub fn scan(&self, range: Range, query: &Query, mut found: impl FnMut(Range)) -> Result<(), Errno> {
        self.scan_categories(range, query, |run, _| found(run))
    }

    /// As [`Self::scan`], and `found` is told which of the categories named in `all` and `any` the run has.
    ///
    /// # Errors
    /// Those of [`Self::scan`].
    pub fn scan_categories(
        &self,
        range: Range,
        query: &Query,
        mut found: impl FnMut(Range, Categories),
    ) -> Result<(), Errno> {
        const EMPTY: PageRegion = PageRegion { start: 0, end: 0, categories: 0 };
        let mut regions = [EMPTY; 128];
        let mut start = range.start as u64;
        let end = range.end() as u64;
        while start < end {
            let (walk_end, count) = self.scan_once(start, end, query, &mut regions)?;
            let mut next = walk_end;
            for region in regions.iter().take(count) {
                let run = Range { start: region.start as usize, len: (region.end - region.start) as usize };
                found(run, Categories::from_bits_retain(region.categories));
                next = next.max(region.end);
            }
            if next <= start {
                // No progress at all would loop for ever; the kernel never does this.
                return Err(Errno::IO);
            }
            start = next;
        }
        Ok(())
    }

    /// Arms every page of a range that is under asynchronous write-protection, without asking what it is: the fastest way
    /// to arm. Where there is no page it leaves a marker.
    ///
    /// # Errors
    /// ENOTTY before Linux 6.7; EPERM when the range is not under asynchronous write-protection.
    pub fn arm(&self, range: Range) -> Result<(), Errno> {
        let nothing = Categories::empty();
        let query = Query { all: nothing, none: nothing, any: nothing, rearm: true };
        let (mut start, end) = (range.start as u64, range.end() as u64);
        while start < end {
            let (walk_end, _) = self.scan_once(start, end, &query, &mut [])?;
            if walk_end <= start {
                return Err(Errno::IO);
            }
            start = walk_end;
        }
        Ok(())
    }

    /// One `ioctl(PAGEMAP_SCAN)`: where the walk ended, and how many of `regions` were filled. *Async-signal-safe.*
    ///
    /// # Errors
    /// Those of [`Self::scan`].
    pub fn scan_once(
        &self,
        start: u64,
        end: u64,
        query: &Query,
        regions: &mut [PageRegion],
    ) -> Result<(u64, usize), Errno> {
        let flags = if query.rearm { raw::PM_SCAN_WP_MATCHING | raw::PM_SCAN_CHECK_WPASYNC } else { 0 };
        let mut arg = raw::pm_scan_arg {
            size: size_of::<raw::pm_scan_arg>() as u64,
            flags: u64::from(flags),
            start,
            end,
            walk_end: 0,
            // An empty buffer is none: an address would be written to.
            vec: if regions.is_empty() { 0 } else { regions.as_mut_ptr().expose_provenance() as u64 },
            vec_len: regions.len() as u64,
            max_pages: 0,
            category_inverted: query.none.bits(),
            // An inverted category that is asked for in the mask means "not this one".
            category_mask: (query.all | query.none).bits(),
            category_anyof_mask: query.any.bits(),
            return_mask: (query.all | query.any).bits(),
        };
        // SAFETY: `arg` and the vector it names are valid for the call and their lengths are true.
        let count = unsafe { rustix::ioctl::ioctl(self.fd.as_fd(), Scan(&mut arg)) }?;
        Ok((arg.walk_end, count))
    }

    /// `pread` of one [`Entry`] a page, for kernels before 6.7 and for the bits a scan lacks.
    /// Calls `found` with each page's address and entry. *Async-signal-safe*, if `found` is.
    ///
    /// # Errors
    /// The errno of the read.
    pub fn read(&self, range: Range, mut found: impl FnMut(usize, Entry)) -> Result<(), Errno> {
        let page = super::page_size();
        let mut buffer = [0u8; 4096];
        let mut address = range.start;
        while address < range.end() {
            let left = (range.end() - address).div_ceil(page.bytes()) * 8;
            let take = left.min(buffer.len());
            let chunk = buffer.get_mut(..take).ok_or(Errno::INVAL)?;
            let got = super::memfd::read_at(&self.fd, chunk, (address / page.bytes() * 8) as u64)?;
            if got < 8 {
                return Err(Errno::SRCH);
            }
            for word in chunk.chunks_exact(8).take(got / 8) {
                let word = word.try_into().map_or(0, u64::from_ne_bytes);
                found(address, Entry::from_bits_retain(word));
                address += page.bytes();
            }
        }
        Ok(())
    }

    /// Calls `copied` for the pages of a private file mapping that are not the file's, from one word a page: what
    /// [`COPIED`] finds, or [`COPIED_ARMED`] where the range is under userfaultfd. *Async-signal-safe*, if `copied` is.
    ///
    /// # Errors
    /// Those of [`Self::read`].
    pub fn read_copied(&self, range: Range, armed: bool, mut copied: impl FnMut(Range)) -> Result<(), Errno> {
        let page = super::page_size().bytes();
        self.read(range, |address, entry| {
            if entry.state(armed).is_copy() {
                copied(Range { start: address, len: page });
            }
        })
    }
}

/// `PAGEMAP_SCAN`, whose result is the number of regions.
struct Scan<'a>(&'a mut raw::pm_scan_arg);

// SAFETY: the opcode is _IOWR('f', 16, struct pm_scan_arg) of linux/fs.h, the pointer is to such a
// struct, and the kernel writes within it and within its vector.
unsafe impl rustix::ioctl::Ioctl for Scan<'_> {
    type Output = usize;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> rustix::ioctl::Opcode {
        rustix::ioctl::opcode::read_write::<raw::pm_scan_arg>(b'f', 16)
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(
        out: rustix::ioctl::IoctlOutput,
        _: *mut std::ffi::c_void,
    ) -> rustix::io::Result<Self::Output> {
        usize::try_from(out).map_err(|_| Errno::IO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_told_for_what_they_are() {
        let state = |bits: u64, armed| Entry::from_bits_retain(bits).state(armed);
        for armed in [true, false] {
            assert_eq!(state(1 << 63 | 7, armed), PageState::Private);
            assert_eq!(state(1 << 63 | 1 << 57 | 7, armed), PageState::Private, "protected and there");
            assert_eq!(state(1 << 63 | 1 << 61 | 7, armed), PageState::File);
            assert_eq!(state(1 << 62, armed), PageState::Swapped);
            assert_eq!(state(1 << 62 | 1 << 61, armed), PageState::File, "a file's page that moves between frames");
            assert_eq!(state(1 << 62 | 1 << 58, armed), PageState::Nothing, "a guard");
            assert_eq!(state(0, armed), PageState::Nothing);
        }
        assert_eq!(state(1 << 62 | 1 << 57, true), PageState::Nothing, "the marker of an armed range");
        assert_eq!(state(1 << 62 | 1 << 57, false), PageState::Swapped);
    }

    #[test]
    fn runs_are_told_for_what_they_are() {
        let (present, swapped) = (Categories::PRESENT, Categories::SWAPPED);
        assert_eq!((present | Categories::HUGE).state(), PageState::Private);
        assert_eq!((present | Categories::PFN_ZERO).state(), PageState::Zero);
        assert_eq!((present | Categories::FILE).state(), PageState::File);
        assert_eq!((swapped.state(), Categories::empty().state()), (PageState::Swapped, PageState::Nothing));
    }
}
