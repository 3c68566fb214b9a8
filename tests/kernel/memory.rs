//! The kinds of memory that claims are examined on.
//!
//! # Safety
//! A [`Memory`] owns its addresses, with a guard on either side, and is never unmapped: it lives as
//! long as the case's process. No reference into it exists; it is read and written by volatile
//! accesses only, so its content may change at any time.
#![expect(unsafe_code, reason = "claims are about mappings and stores")]

use crate::case;
use crate::claim::Skip;
use cowbell::page::PageSize;
use cowbell::sys::map::{self, Access, Range};
use cowbell::sys::{Errno, memfd, page_size};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A kind of mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `MAP_PRIVATE` of a memfd.
    PrivateMemfd,
    /// `MAP_SHARED` of a memfd.
    SharedMemfd,
    /// `MAP_PRIVATE | MAP_ANONYMOUS`.
    Anonymous,
    /// `MAP_PRIVATE` of a file on disk.
    PrivateFile,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PrivateMemfd => "private memfd",
            Self::SharedMemfd => "shared memfd",
            Self::Anonymous => "anonymous",
            Self::PrivateFile => "private file",
        })
    }
}

/// Some pages of one kind, mapped for reading and writing.
pub struct Memory {
    pub range: Range,
    pub kind: Kind,
    pub page: PageSize,
    file: Option<OwnedFd>,
}

/// The first byte of each page, as [`Memory::marked`] writes it.
pub fn mark(page: usize) -> u8 {
    (page % 251) as u8 + 1
}

impl Memory {
    /// Maps pages that hold nothing yet (the files are sparse) and that nobody has touched.
    pub fn new(kind: Kind, pages: usize) -> Result<Self, Skip> {
        Self::aligned(kind, pages, page_size().bytes())
    }

    /// Makes memory as [`Self::new`] does, at a multiple of `align` bytes.
    pub fn aligned(kind: Kind, pages: usize, align: usize) -> Result<Self, Skip> {
        let page = page_size();
        let len = pages * page.bytes();
        let file = match kind {
            Kind::Anonymous => None,
            Kind::PrivateMemfd | Kind::SharedMemfd => Some(memfd::create("kernel-claim").expect("memfd_create")),
            Kind::PrivateFile => Some(file_on_disk()?),
        };
        if let Some(file) = &file {
            memfd::set_len(file.as_fd(), len as u64).expect("ftruncate");
        }
        // The neighbours stay PROT_NONE, so that the kernel cannot merge this mapping with others.
        let around = map::reserve(len + 2 * align, align).expect("addresses");
        let memory = Self { range: Range { start: around.start + align, len }, kind, page, file };
        memory.map(memory.range, 0).expect("mmap");
        Ok(memory)
    }

    /// Maps pages whose first byte is [`mark`]. Pages of files stay untouched by this process;
    /// anonymous pages are there.
    pub fn marked(kind: Kind, pages: usize) -> Result<Self, Skip> {
        let memory = Self::new(kind, pages)?;
        memory.fill();
        Ok(memory)
    }

    /// Writes the marks, to the file where there is one.
    pub fn fill(&self) {
        for page in 0..self.pages() {
            match &self.file {
                Some(_) => self.write_file(page, mark(page)).expect("pwrite"),
                None => self.store(page, mark(page)),
            }
        }
    }

    /// Maps the memory's file (from page `first`) or fresh memory over `range`.
    pub fn map(&self, range: Range, first: usize) -> Result<(), Errno> {
        let offset = (first * self.page.bytes()) as u64;
        match (self.kind, &self.file) {
            (Kind::SharedMemfd, Some(file)) => {
                // SAFETY: the caller passes a range of its own or of this memory.
                unsafe { map::map_shared_at(range, Access::ReadWrite, file.as_fd(), offset) }
            }
            (_, Some(file)) => {
                // SAFETY: as above.
                unsafe { map::map_private_at(range, Access::ReadWrite, file.as_fd(), offset) }
            }
            (_, None) => self.protect(range, Access::ReadWrite),
        }
    }

    /// The file behind it.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_ref().expect("this kind has a file").as_fd()
    }

    pub fn pages(&self) -> usize {
        self.range.len / self.page.bytes()
    }

    /// The addresses of one page.
    pub fn at(&self, page: usize) -> Range {
        self.span(page, 1)
    }

    /// The addresses of some pages.
    pub fn span(&self, page: usize, count: usize) -> Range {
        assert!(page + count <= self.pages(), "within the memory");
        Range { start: self.range.start + page * self.page.bytes(), len: count * self.page.bytes() }
    }

    /// Reads a page's first byte.
    pub fn load(&self, page: usize) -> u8 {
        load(self.at(page).start)
    }

    /// Writes a page's first byte.
    pub fn store(&self, page: usize, byte: u8) {
        store(self.at(page).start, byte);
    }

    /// Reads a page for the effect that reading has.
    pub fn touch(&self, page: usize) {
        self.load(page);
    }

    /// Reads all pages.
    pub fn load_all(&self) {
        (0..self.pages()).for_each(|page| self.touch(page));
    }

    /// The first byte of a page in the file, whatever is mapped.
    pub fn in_file(&self, page: usize) -> u8 {
        let mut byte = [0];
        memfd::read_at(self.file(), &mut byte, (page * self.page.bytes()) as u64).expect("pread");
        byte[0]
    }

    /// Writes the first byte of a page in the file.
    pub fn write_file(&self, page: usize, byte: u8) -> Result<(), Errno> {
        rustix::io::pwrite(self.file(), &[byte], (page * self.page.bytes()) as u64).map(drop)
    }

    pub fn protect(&self, range: Range, access: Access) -> Result<(), Errno> {
        // SAFETY: the pages are this memory's, and nobody refers into them.
        unsafe { map::protect(range, access) }
    }

    /// `MADV_DONTNEED`.
    pub fn drop_pages(&self, range: Range) {
        // SAFETY: the pages are this memory's, and nobody refers into them.
        unsafe { map::drop_private_pages(range) }.expect("MADV_DONTNEED");
    }

    pub fn unmap(&self, range: Range) -> Result<(), Errno> {
        // SAFETY: the pages are this memory's, and nobody refers into them.
        unsafe { map::unmap(range) }
    }

    /// `MADV_DOFORK` or `MADV_DONTFORK`.
    pub fn inherit(&self, inherited: bool) {
        // SAFETY: a child that lacks it looks with mincore only, or dies of it on purpose.
        unsafe { map::inherit(self.range, inherited) }.expect("MADV_DONTFORK");
    }

    /// `madvise` with advice that the crate's own wrapper does not offer.
    pub fn advise(&self, range: Range, advice: i32) -> Result<(), Errno> {
        let at = std::ptr::with_exposed_provenance_mut(range.start);
        // SAFETY: the pages are this memory's, and nobody refers into them.
        let done = unsafe { libc::madvise(at, range.len, advice) };
        if done == 0 { Ok(()) } else { Err(last_errno()) }
    }
}

/// Maps a file privately and read-only over a range that the caller reserved.
pub fn map_readonly(range: Range, file: BorrowedFd<'_>, noreserve: bool) -> Result<(), Errno> {
    use rustix::mm::{MapFlags, ProtFlags};
    let flags = MapFlags::PRIVATE | MapFlags::FIXED;
    let flags = if noreserve { flags | MapFlags::NORESERVE } else { flags };
    let at = std::ptr::with_exposed_provenance_mut(range.start);
    // SAFETY: the caller reserved the range.
    unsafe { rustix::mm::mmap(at, range.len, ProtFlags::READ, flags, file, 0) }.map(drop)
}

/// `mprotect(PROT_READ | PROT_WRITE)` of a range that the caller reserved.
pub fn make_writable(range: Range) -> Result<(), Errno> {
    // SAFETY: the caller reserved the range; rights are added, none taken.
    unsafe { map::protect(range, Access::ReadWrite) }
}

/// Reads one byte.
pub fn load(address: usize) -> u8 {
    let at = std::ptr::with_exposed_provenance::<u8>(address);
    // SAFETY: the address lies in a memory of this process; if not, the case dies of it, on purpose.
    unsafe { at.read_volatile() }
}

/// Writes one byte.
pub fn store(address: usize, byte: u8) {
    let at = std::ptr::with_exposed_provenance_mut::<u8>(address);
    // SAFETY: as for `load`; no reference to it exists.
    unsafe { at.write_volatile(byte) }
}

/// The errno of the libc call just made.
pub fn last_errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

/// A nameless file on a disk, not in memory.
fn file_on_disk() -> Result<OwnedFd, Skip> {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    for directory in [case::scratch(), std::path::Path::new("/var/tmp")] {
        let path = directory.join(format!("file-{}", std::process::id()));
        let Ok(file) = std::fs::File::options().read(true).write(true).create_new(true).open(&path) else { continue };
        // The descriptor keeps the file.
        std::fs::remove_file(&path).expect("unlink");
        let kind = rustix::fs::fstatfs(&file).expect("fstatfs").f_type;
        if kind != TMPFS_MAGIC && kind != RAMFS_MAGIC {
            return Ok(file.into());
        }
    }
    Err(Skip("no directory on a disk: TMPDIR and /var/tmp are memory or not writable".to_owned()))
}
