//! Address ranges: `mmap(2)`, `mprotect(2)`, `madvise(2)`, `mlock(2)`, `mseal(2)`.
//!
//! # Safety
//! A mapping is memory, so whoever changes one answers for every reference into it. The unsafe
//! functions name what they demand; the safe ones make fresh ranges nobody refers to yet.
#![expect(unsafe_code, reason = "mapping calls change what addresses mean")]

use crate::error::{Error, Result};
pub use crate::page::Range;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MlockFlags, MprotectFlags, ProtFlags};
use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};

fn pointer(range: Range) -> *mut std::ffi::c_void {
    std::ptr::with_exposed_provenance_mut(range.start)
}

/// The accesses that a mapping allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `PROT_NONE`: addresses kept, every touch faults.
    None,
    /// `PROT_READ`.
    Read,
    /// `PROT_READ | PROT_WRITE`.
    ReadWrite,
}

impl Access {
    fn protection(self) -> ProtFlags {
        match self {
            Self::None => ProtFlags::empty(),
            Self::Read => ProtFlags::READ,
            Self::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        }
    }
}

/// `mmap(NULL, …, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)`: keeps `len` bytes of
/// addresses at a multiple of `align` (a power of two of at least a page), without memory.
///
/// # Errors
/// ENOMEM when the address space or `RLIMIT_AS` is used up.
pub fn reserve(len: usize, align: usize) -> Result<Range> {
    let padded = len.checked_add(align).ok_or_else(|| Error::invalid("range too large"))?;
    // SAFETY: without MAP_FIXED the kernel chooses addresses nobody uses (mmap(2)).
    let base = unsafe {
        rustix::mm::mmap_anonymous(null_mut(), padded, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE)
    };
    let base = base.map_err(|e| Error::os("mmap(reserve)", e))?.expose_provenance();
    let start = base.next_multiple_of(align);
    let (head, tail) = (start - base, padded - (start - base) - len);
    for extra in [Range { start: base, len: head }, Range { start: start + len, len: tail }] {
        if extra.len > 0 {
            // SAFETY: the piece is ours, fresh, and nobody was given its address.
            unsafe { unmap(extra) }.map_err(|e| Error::os("munmap", e))?;
        }
    }
    Ok(Range { start, len })
}

/// The address at which [`reserve_apart`] looks first: far above what the heap grows into and below where the kernel puts
/// libraries, stacks and mappings of its own choice, in either of its layouts (x86-64 and arm64, 48 bits). ThreadSanitizer, for which
/// there is the other pair, has its shadow there.
const APART: (u64, u64) = if cfg!(cowbell_low_arenas) { (1 << 40, 2 << 40) } else { (16 << 40, 40 << 40) };

/// The number of addresses that [`reserve_apart`] tries, one behind the other.
const APART_TRIES: usize = 1024;

/// [`reserve`], at addresses that the kernel chooses for nothing else, and, until all of those (24 TiB) have been given out once, at such as no process has been given which counts by
/// the same word: one that stays shared over fork ([`SharedWords`](super::shared_words::SharedWords)) and was 0 at first. So two processes that came from one find the addresses of both free. From then on it is given what is
/// free in this process, and where there are none such, any other.
///
/// # Errors
/// Those of [`reserve`].
pub fn reserve_apart(next: &AtomicU64, len: usize, align: usize) -> Result<Range> {
    let (first, last) = APART;
    // One more unit stays free behind each, so that no range touches the next.
    let step = len.checked_next_multiple_of(align).and_then(|len| len.checked_add(align));
    let step = step.map(|step| step as u64).filter(|&step| step <= last - first);
    let Some(step) = step else { return reserve(len, align) };
    // Behind the end it begins anew: what was reserved there first is given back by then, or is seen to be taken.
    let begin = |now: u64| if now >= first && now + step <= last { now } else { first };
    for _ in 0..APART_TRIES {
        let taken = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| Some(begin(now) + step));
        let at = usize::try_from(begin(taken.unwrap_or(first))).unwrap_or(0).next_multiple_of(align);
        let range = Range { start: at, len };
        match fence(range) {
            Ok(()) => return Ok(range),
            Err(Errno::EXIST) => {}
            // There are no such addresses in this address space, or none are allowed.
            Err(_) => break,
        }
    }
    reserve(len, align)
}

/// `mmap(range, PROT_NONE, MAP_FIXED_NOREPLACE)`: keeps addresses that should be free, so that
/// nothing else is ever mapped there. *Async-signal-safe.*
///
/// # Errors
/// EEXIST when something is mapped there.
pub fn fence(range: Range) -> Result<(), Errno> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
    // SAFETY: MAP_FIXED_NOREPLACE never replaces a mapping (since Linux 4.17, mmap(2)).
    let at = unsafe { rustix::mm::mmap_anonymous(pointer(range), range.len, ProtFlags::empty(), flags) }?;
    if at == pointer(range) { Ok(()) } else { Err(Errno::EXIST) }
}

/// `mmap(range, PROT_NONE, MAP_FIXED)`: replaces what is mapped there by addresses kept for nothing. *Async-signal-safe.*
///
/// # Safety
/// The caller owns the range and nobody refers into it.
///
/// # Errors
/// ENOMEM; EPERM when the range is sealed by [`seal`].
pub unsafe fn blank(range: Range) -> Result<(), Errno> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
    // SAFETY: passed on to the caller.
    unsafe { rustix::mm::mmap_anonymous(pointer(range), range.len, ProtFlags::empty(), flags) }.map(drop)
}

/// `mmap(range, access, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, offset)`. *Async-signal-safe.*
///
/// # Safety
/// The caller owns the range; whatever is mapped there is replaced.
///
/// # Errors
/// EPERM when the file is write-sealed and `access` writes; ENOMEM.
pub unsafe fn map_shared_at(range: Range, access: Access, fd: BorrowedFd<'_>, offset: u64) -> Result<(), Errno> {
    let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
    // SAFETY: the caller owns the range.
    unsafe { rustix::mm::mmap(pointer(range), range.len, access.protection(), flags, fd, offset) }.map(drop)
}

/// `mmap(range, access, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd, offset)`: readers share the
/// file's pages, a writer gets copies. *Async-signal-safe.*
///
/// # Safety
/// The caller owns the range; whatever is mapped there is replaced.
///
/// # Errors
/// ENOMEM.
pub unsafe fn map_private_at(range: Range, access: Access, fd: BorrowedFd<'_>, offset: u64) -> Result<(), Errno> {
    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
    // SAFETY: the caller owns the range.
    unsafe { rustix::mm::mmap(pointer(range), range.len, access.protection(), flags, fd, offset) }.map(drop)
}

/// `mmap(range, access, MAP_PRIVATE | MAP_FIXED_NOREPLACE | MAP_NORESERVE, fd, offset)`: as [`map_private_at`], but
/// only where nothing is mapped. *Async-signal-safe.*
///
/// # Errors
/// EEXIST when something is mapped there; ENOMEM.
pub fn map_private_new(range: Range, access: Access, fd: BorrowedFd<'_>, offset: u64) -> Result<(), Errno> {
    let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE | MapFlags::NORESERVE;
    // SAFETY: MAP_FIXED_NOREPLACE never replaces a mapping (since Linux 4.17, mmap(2)).
    let at = unsafe { rustix::mm::mmap(pointer(range), range.len, access.protection(), flags, fd, offset) }?;
    if at.expose_provenance() == range.start {
        return Ok(());
    }
    // An older kernel takes the address for a hint.
    // SAFETY: the mapping is fresh, and nobody was given its address.
    unsafe { unmap(Range { start: at.addr(), len: range.len }) }?;
    Err(Errno::EXIST)
}

/// `mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)`: fresh
/// zeroed private memory. *Async-signal-safe.*
///
/// # Errors
/// ENOMEM.
pub fn anonymous(len: usize) -> Result<Range, Errno> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: without MAP_FIXED the kernel chooses addresses nobody uses (mmap(2)).
    let at = unsafe { rustix::mm::mmap_anonymous(null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags) }?;
    Ok(Range { start: at.expose_provenance(), len })
}

/// `mmap(range, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE)`: fresh zeroed private memory at these
/// addresses, which counts as promised (no `MAP_NORESERVE`). *Async-signal-safe.*
///
/// # Errors
/// EEXIST when something is mapped there; ENOMEM.
pub fn anonymous_at(range: Range) -> Result<(), Errno> {
    let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
    // SAFETY: MAP_FIXED_NOREPLACE never replaces a mapping (since Linux 4.17, mmap(2)).
    let at =
        unsafe { rustix::mm::mmap_anonymous(pointer(range), range.len, ProtFlags::READ | ProtFlags::WRITE, flags) }?;
    if at.expose_provenance() == range.start {
        return Ok(());
    }
    // An older kernel takes the address for a hint.
    // SAFETY: the mapping is fresh, and nobody was given its address.
    unsafe { unmap(Range { start: at.addr(), len: range.len }) }?;
    Err(Errno::EXIST)
}

/// `mremap(range, range.len, MREMAP_MAYMOVE | MREMAP_FIXED, to)`: the pages are at `to` then, and nothing is mapped where they were. *Async-signal-safe.*
///
/// # Safety
/// The caller owns the range and as much from `to` on, which is replaced; nobody refers into either.
///
/// # Errors
/// ENOMEM; EFAULT before Linux 6.17 where the range is several mappings, of which none is moved then. Since then they are moved one after the
/// other, so that the first of them may have been moved: see [`is_mapped`].
pub unsafe fn move_pages(range: Range, to: usize) -> Result<(), Errno> {
    let to = std::ptr::with_exposed_provenance_mut(to);
    // SAFETY: passed on to the caller.
    unsafe { rustix::mm::mremap_fixed(pointer(range), range.len, range.len, rustix::mm::MremapFlags::MAYMOVE, to) }
        .map(drop)
}

/// Tells whether something is mapped at a page (`mincore(page, 1)`, which is ENOMEM where nothing is). *Async-signal-safe.*
pub fn is_mapped(page: usize) -> bool {
    let mut one = 0u8;
    let page = std::ptr::with_exposed_provenance_mut(page);
    // SAFETY: the call reads no memory and writes one byte, for one page, to `one`, which lives (mincore(2)).
    let done = unsafe { libc::mincore(page, 1, &raw mut one) };
    // Any other error, such as EAGAIN, says nothing of the mapping.
    done == 0 || last_errno() != Errno::NOMEM
}

/// `munmap(range)`. *Async-signal-safe.*
///
/// # Safety
/// The caller owns the range and nobody refers into it.
///
/// # Errors
/// EPERM when the range is sealed by [`seal`].
pub unsafe fn unmap(range: Range) -> Result<(), Errno> {
    // SAFETY: passed on to the caller.
    unsafe { rustix::mm::munmap(pointer(range), range.len) }
}

/// `mprotect(range, access)`. *Async-signal-safe.*
///
/// # Safety
/// The caller owns the range; taking rights away breaks references that use them.
///
/// # Errors
/// ENOMEM when making private memory writable would exceed the overcommit limit, or VMAs run out;
/// EACCES when the mapping's file forbids it; EPERM when sealed by [`seal`].
pub unsafe fn protect(range: Range, access: Access) -> Result<(), Errno> {
    let flags = match access {
        Access::None => MprotectFlags::empty(),
        Access::Read => MprotectFlags::READ,
        Access::ReadWrite => MprotectFlags::READ | MprotectFlags::WRITE,
    };
    // SAFETY: passed on to the caller.
    unsafe { rustix::mm::mprotect(pointer(range), range.len, flags) }
}

/// Advice that never changes what a reader of the range sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harmless {
    /// `MADV_DONTDUMP` (3.4): left out of core dumps.
    DontDump,
    /// `MADV_HUGEPAGE`: huge pages wanted.
    HugePage,
    /// `MADV_COLLAPSE` (6.1): put huge pages behind the range now. EINVAL where it cannot be.
    Collapse,
    /// `MADV_POPULATE_READ` (5.14): map all pages now, as reads would.
    PopulateRead,
    /// `MADV_POPULATE_WRITE` (5.14): map all pages now, as writes would.
    PopulateWrite,
}

/// `madvise(range, advice)` with advice that changes no content. *Async-signal-safe.*
///
/// # Errors
/// EINVAL when this kernel does not know the advice or the mapping does not take it.
pub fn advise(range: Range, advice: Harmless) -> Result<(), Errno> {
    let number = match advice {
        Harmless::DontDump => libc::MADV_DONTDUMP,
        Harmless::HugePage => libc::MADV_HUGEPAGE,
        Harmless::Collapse => libc::MADV_COLLAPSE,
        Harmless::PopulateRead => libc::MADV_POPULATE_READ,
        Harmless::PopulateWrite => libc::MADV_POPULATE_WRITE,
    };
    // SAFETY: none of these changes what the pages hold in this process (madvise(2)).
    let done = unsafe { libc::madvise(pointer(range), range.len, number) };
    if done == 0 { Ok(()) } else { Err(last_errno()) }
}

/// `madvise(range, MADV_DOFORK)` or `MADV_DONTFORK`: does a forked child get the range? *Async-signal-safe.*
///
/// # Safety
/// A child that lacks the range must never use an address in it: something else may be mapped
/// there (unless it is fenced, see [`fence`]).
///
/// # Errors
/// EINVAL on special mappings.
pub unsafe fn inherit(range: Range, inherited: bool) -> Result<(), Errno> {
    let advice = if inherited { Advice::LinuxDoFork } else { Advice::LinuxDontFork };
    // SAFETY: passed on to the caller.
    unsafe { rustix::mm::madvise(pointer(range), range.len, advice) }
}

/// `madvise(range, MADV_DONTNEED)`: private pages are dropped; the next read sees the file again
/// (or zeroes, where there is no file). *Async-signal-safe.*
///
/// # Safety
/// The caller answers for every reference into the range: its content changes.
///
/// # Errors
/// EINVAL for locked or huge-table pages.
pub unsafe fn drop_private_pages(range: Range) -> Result<(), Errno> {
    // SAFETY: passed on to the caller.
    unsafe { rustix::mm::madvise(pointer(range), range.len, Advice::LinuxDontNeed) }
}

/// `madvise(range, MADV_REMOVE)`: takes the memory out of a shared mapping's file; it reads as zeroes, in every process.
/// *Async-signal-safe.*
///
/// # Safety
/// The caller answers for every reference into the range, and into its file: the content changes.
///
/// # Errors
/// EINVAL for private or locked mappings; EPERM when the file is sealed against writing.
pub unsafe fn punch(range: Range) -> Result<(), Errno> {
    // SAFETY: passed on to the caller.
    unsafe { rustix::mm::madvise(pointer(range), range.len, Advice::LinuxRemove) }
}

/// `mlock2(range, MLOCK_ONFAULT)`: pages stay in memory once touched. *Async-signal-safe.*
///
/// # Errors
/// ENOMEM above `RLIMIT_MEMLOCK`, EPERM when that is 0.
pub fn lock(range: Range) -> Result<(), Errno> {
    // SAFETY: locking pages in memory changes no content.
    unsafe { rustix::mm::mlock_with(pointer(range), range.len, MlockFlags::ONFAULT) }
}

/// `munlock(range)`. *Async-signal-safe.*
///
/// # Errors
/// ENOMEM when part of it is not mapped.
pub fn unlock(range: Range) -> Result<(), Errno> {
    // SAFETY: unlocking pages changes no content.
    unsafe { rustix::mm::munlock(pointer(range), range.len) }
}

/// `mseal(range, 0)`: no protection change and no unmapping any more, for good. Since Linux 6.10,
/// 64-bit only. *Async-signal-safe.*
///
/// The seal takes nothing away from memory, only from later calls: safe, though not to be undone.
///
/// # Errors
/// ENOSYS before 6.10.
pub fn seal(range: Range) -> Result<(), Errno> {
    // SAFETY: the call takes three integers and changes no content.
    let done = unsafe { libc::syscall(libc::SYS_mseal, range.start, range.len, 0) };
    if done == 0 { Ok(()) } else { Err(last_errno()) }
}

/// The size of this machine's huge pages for ordinary mappings, in bytes; `None` without them.
pub fn huge_page_size() -> Option<usize> {
    let text = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").ok()?;
    text.trim().parse().ok().filter(|size: &usize| size.is_power_of_two())
}

/// The errno of the libc call just made on this thread.
pub(super) fn last_errno() -> Errno {
    // SAFETY: glibc returns this thread's errno cell.
    let cell = unsafe { libc::__errno_location() };
    // SAFETY: the cell is valid for this thread's life.
    Errno::from_raw_os_error(unsafe { *cell })
}

/// `mmap(MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE)`: zeroed memory that stays shared over fork. *Async-signal-safe.*
///
/// # Errors
/// ENOMEM.
pub fn shared(len: usize) -> Result<Range, Errno> {
    let flags = MapFlags::SHARED | MapFlags::NORESERVE;
    // SAFETY: without MAP_FIXED the kernel chooses addresses nobody uses (mmap(2)).
    let at = unsafe { rustix::mm::mmap_anonymous(null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags) }?;
    Ok(Range { start: at.expose_provenance(), len })
}

/// The non-null pointer at an address of a range this process mapped.
pub fn pointer_at(address: usize) -> Option<NonNull<u8>> {
    NonNull::new(std::ptr::with_exposed_provenance_mut(address))
}
