//! Tries kernel interfaces on throwaway descriptors and mappings; nothing is left behind.
//!
//! No version is compared: backports, build options, seccomp filters and security modules make a
//! version a bad witness. Where a trial would cost the process something (a fork), a call that
//! cannot succeed tells by its errno whether the kernel knows it.
//!
//! # Safety
//! Every range here is made by the function that uses it, and nobody else knows its address.
#![expect(unsafe_code, reason = "a trial writes to its own mapping and makes calls that must fail")]

use super::map::{self, Access, Harmless, Range, last_errno};
use super::pagemap::{COPIED, Entry, Pagemap, Query, WRITTEN};
use super::perf::Follow;
use super::perf::rings::{Rings, RingsRefused};
use super::uffd::{Door, Features, Uffd};
use super::{Errno, memfd, page_size, pidfd, process, procfs};
use crate::error::{Error, Result};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// A private mapping of a fresh memfd, unmapped when dropped.
struct Sample {
    range: Range,
    file: OwnedFd,
}

impl Sample {
    /// Two pages, both in the file and neither touched yet. A failure has no errno: it says nothing
    /// about what was to be tried.
    fn new() -> Result<Self> {
        Self::make().map_err(|e| Error::invalid(format!("there was no memfd to try it on: {e}")))
    }

    fn make() -> Result<Self> {
        let bytes = page_size().bytes();
        let file = memfd::create("cowbell:probe")?;
        memfd::set_len(file.as_fd(), 2 * bytes as u64)?;
        memfd::allocate(file.as_fd(), 0, 2 * bytes as u64).map_err(|e| Error::os("fallocate(memfd)", e))?;
        let range = map::reserve(2 * bytes, bytes)?;
        let sample = Self { range, file };
        // SAFETY: the range was reserved above.
        unsafe { map::map_private_at(range, Access::ReadWrite, sample.file.as_fd(), 0) }
            .map_err(|e| Error::os("mmap(memfd)", e))?;
        Ok(sample)
    }

    /// Page 0 read, page 1 written: one shared with the file, one copied.
    fn read_and_written() -> Result<Self> {
        let sample = Self::new()?;
        sample.read(0);
        sample.write(1);
        Ok(sample)
    }

    fn page(&self, index: usize) -> Range {
        let len = page_size().bytes();
        Range { start: self.range.start + index * len, len }
    }

    fn pointer(&self, index: usize) -> *mut u8 {
        map::pointer_at(self.page(index).start).map_or(std::ptr::null_mut(), std::ptr::NonNull::as_ptr)
    }

    fn read(&self, index: usize) {
        // SAFETY: the page is mapped readable until `self` is dropped.
        let _touched = unsafe { self.pointer(index).read_volatile() };
    }

    fn write(&self, index: usize) {
        // SAFETY: the page is mapped writable until `self` is dropped, and nobody refers into it.
        unsafe { self.pointer(index).write_volatile(1) };
    }

    /// Lets the kernel write into a page, as a `read(2)` into a buffer there does.
    fn write_by_kernel(&self, index: usize) -> Result<(), Errno> {
        // SAFETY: the page is mapped until `self` is dropped, and nobody else refers into it.
        let page = unsafe { std::slice::from_raw_parts_mut(self.pointer(index), page_size().bytes()) };
        memfd::read_at(&self.file, page, 0).map(drop)
    }

    /// Registers the pages with a userfaultfd and arms them.
    fn arm(&self, uffd: &Uffd) -> Result<()> {
        // SAFETY: only this sample's methods write there, and they know.
        unsafe { uffd.register(self.range) }.map_err(|e| Error::os("ioctl(UFFDIO_REGISTER)", e))?;
        // SAFETY: as above.
        unsafe { uffd.write_protect(self.range, true) }.map_err(|e| Error::os("ioctl(UFFDIO_WRITEPROTECT)", e))
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        drop_mapping(self.range);
    }
}

fn drop_mapping(range: Range) {
    // SAFETY: the range was made in this module by the caller, and nobody refers into it.
    let unmapped = unsafe { map::unmap(range) };
    debug_assert!(unmapped.is_ok());
}

fn wrong(what: &'static str) -> Error {
    Error::invalid(what)
}

/// A memfd can be made, sealed for good, refuses writes then, and can still be mapped privately.
///
/// # Errors
/// The call that failed.
pub fn sealed_memfd() -> Result<()> {
    let sample = Sample::make()?;
    memfd::seal(sample.file.as_fd(), memfd::SEALS_FINAL)?;
    match rustix::io::pwrite(&sample.file, b"x", 0) {
        Err(Errno::PERM) => Ok(()),
        Err(e) => Err(Error::os("pwrite(sealed memfd)", e)),
        Ok(_) => Err(wrong("a sealed memfd could be written")),
    }
}

/// The kernel knows `clone3`, and where glibc keeps the thread id that a fork must correct.
///
/// # Errors
/// The call that failed.
pub fn fork() -> Result<()> {
    // SAFETY: arguments of size 0 are too short for any kernel, so nothing is read and nothing made.
    let made = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null_mut::<u8>(), 0) };
    match (made, last_errno()) {
        (-1, Errno::INVAL) => {}
        (_, errno) => return Err(Error::os("clone3", errno)),
    }
    match rustix::thread::get_clear_child_tid_address() {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(wrong("no cell for the thread id is registered, so this is no glibc process")),
        Err(e) => Err(Error::os("prctl(PR_GET_TID_ADDRESS)", e)),
    }
}

/// `pidfd_open`, `pidfd_send_signal` and `waitid(P_PIDFD)` are known.
///
/// # Errors
/// The call that failed.
pub fn process_descriptors() -> Result<()> {
    let own = pidfd::open(process::pid()).map_err(|e| Error::os("pidfd_open", e))?;
    let (fd, no_info) = (own.as_raw_fd(), std::ptr::null::<u8>());
    // SAFETY: signal 0 is none; the call only checks its arguments.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, 0, no_info, 0) };
    if sent != 0 {
        return Err(Error::os("pidfd_send_signal", last_errno()));
    }
    // A process is no child of its own: a kernel that knows P_PIDFD says ECHILD, which `reap` understands.
    pidfd::reap(own.as_fd()).map(drop)
}

/// `close_range` is known.
///
/// # Errors
/// The call that failed.
pub fn close_range() -> Result<()> {
    // SAFETY: no descriptor has this number, so none is closed.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, u32::MAX, u32::MAX, 0) };
    if closed == 0 { Ok(()) } else { Err(Error::os("close_range", last_errno())) }
}

/// `/proc/self/pagemap` tells a copied page from a shared one.
///
/// # Errors
/// The call that failed.
pub fn pagemap() -> Result<()> {
    let sample = Sample::read_and_written()?;
    let mut entries = Vec::new();
    open_pagemap()?
        .read(sample.range, |_, entry| entries.push(entry))
        .map_err(|e| Error::os("pread(/proc/self/pagemap)", e))?;
    match entries[..] {
        [shared, copied] if shared.contains(Entry::FILE) && !copied.contains(Entry::FILE) => Ok(()),
        _ => Err(wrong("/proc/self/pagemap does not tell a copied page from a shared one")),
    }
}

/// `PAGEMAP_SCAN` finds the copied page and not the shared one.
///
/// # Errors
/// The call that failed.
pub fn pagemap_scan() -> Result<()> {
    let sample = Sample::read_and_written()?;
    let [copied] = COPIED;
    scan_finds(&sample, &copied, 1)
}

fn scan_finds(sample: &Sample, query: &Query, index: usize) -> Result<()> {
    let mut found = Vec::new();
    open_pagemap()?
        .scan(sample.range, query, |run| found.push(run))
        .map_err(|e| Error::os("ioctl(PAGEMAP_SCAN)", e))?;
    if found == [sample.page(index)] { Ok(()) } else { Err(wrong("PAGEMAP_SCAN finds other pages than were written")) }
}

fn open_pagemap() -> Result<Pagemap> {
    Pagemap::open_self().map_err(|e| Error::os("open(/proc/self/pagemap)", e))
}

/// A userfaultfd can be had through this door, with these features.
///
/// # Errors
/// The call that failed.
pub fn userfaultfd(door: Door, features: Features) -> Result<Uffd> {
    let operation = match door {
        Door::Device => "open(/dev/userfaultfd)",
        Door::SystemCall => "userfaultfd(0)",
        Door::UserModeOnly => "userfaultfd(UFFD_USER_MODE_ONLY)",
    };
    // A feature that is refused leaves a dead descriptor, so the door is tried alone first: its
    // errno must not be taken for the feature's.
    let plain = Uffd::open(door, Features::empty()).map_err(|e| Error::os(operation, e))?;
    if features.is_empty() {
        return Ok(plain);
    }
    Uffd::open(door, features).map_err(|e| Error::os("ioctl(UFFDIO_API)", e))
}

/// Pages of a private mapping of a memfd can be write-protected.
///
/// # Errors
/// The call that failed.
pub fn write_protect_memfd(door: Door) -> Result<()> {
    let sample = Sample::new()?;
    sample.read(0);
    let uffd = userfaultfd(door, Features::PAGEFAULT_FLAG_WP | Features::WP_HUGETLBFS_SHMEM)?;
    sample.arm(&uffd)?;
    let mut armed = false;
    open_pagemap()?
        .read(sample.page(0), |_, entry| armed = entry.contains(Entry::UFFD_WP))
        .map_err(|e| Error::os("pread(/proc/self/pagemap)", e))?;
    if armed { Ok(()) } else { Err(wrong("an armed page does not show as write-protected")) }
}

/// Under `SIGBUS` a write to an armed page is refused and nobody waits.
///
/// # Errors
/// The call that failed.
pub fn write_is_refused(door: Door) -> Result<()> {
    let sample = Sample::new()?;
    sample.read(0);
    let features = Features::PAGEFAULT_FLAG_WP | Features::WP_HUGETLBFS_SHMEM | Features::SIGBUS;
    let uffd = userfaultfd(door, features)?;
    sample.arm(&uffd)?;
    // A write by the kernel gets EFAULT where one by the program would get the signal.
    match sample.write_by_kernel(0) {
        Err(Errno::FAULT) => Ok(()),
        Err(e) => Err(Error::os("pread(into an armed page)", e)),
        Ok(()) => Err(wrong("a write to an armed page went through")),
    }
}

/// Under `WP_ASYNC` a write to an armed page goes on, and a scan finds it and no other; so does a
/// write by the kernel, through every door.
///
/// # Errors
/// The call that failed.
pub fn write_is_recorded(door: Door) -> Result<()> {
    let sample = Sample::new()?;
    sample.read(0);
    sample.read(1);
    let features = Features::PAGEFAULT_FLAG_WP | Features::WP_HUGETLBFS_SHMEM | Features::WP_ASYNC;
    let uffd = userfaultfd(door, features)?;
    sample.arm(&uffd)?;
    sample.write(1);
    scan_finds(&sample, &WRITTEN, 1)?;
    sample.arm(&uffd)?;
    sample.write_by_kernel(0).map_err(|e| Error::os("pread(into an armed page)", e))?;
    scan_finds(&sample, &WRITTEN, 0)
}

/// `mseal` is known.
///
/// # Errors
/// The call that failed.
pub fn seal_mapping() -> Result<()> {
    // A sealed page could never be unmapped again, so none is.
    map::seal(Range { start: page_size().bytes(), len: 0 }).map_err(|e| Error::os("mseal", e))
}

/// `MADV_POPULATE_READ` and `MADV_POPULATE_WRITE` are known.
///
/// # Errors
/// The call that failed.
pub fn populate() -> Result<()> {
    let sample = Sample::new()?;
    map::advise(sample.range, Harmless::PopulateRead).map_err(|e| Error::os("madvise(MADV_POPULATE_READ)", e))?;
    map::advise(sample.range, Harmless::PopulateWrite).map_err(|e| Error::os("madvise(MADV_POPULATE_WRITE)", e))
}

/// A memfd's pages can be made one huge page of `bytes` bytes. Takes twice that memory for a moment.
///
/// # Errors
/// The call that failed.
pub fn collapse(bytes: usize) -> Result<()> {
    let file = memfd::create("cowbell:probe")?;
    memfd::set_len(file.as_fd(), bytes as u64)?;
    memfd::allocate(file.as_fd(), 0, bytes as u64).map_err(|e| Error::os("fallocate(memfd)", e))?;
    let range = map::reserve(bytes, bytes)?;
    // SAFETY: the range was reserved above.
    let mapped = unsafe { map::map_shared_at(range, Access::ReadWrite, file.as_fd(), 0) };
    let collapsed = mapped.map_err(|e| Error::os("mmap(memfd)", e)).and_then(|()| {
        // Linux 6.1 says EINVAL where there is no page table yet.
        if let Some(first) = map::pointer_at(range.start) {
            // SAFETY: the range is mapped readable, and the file is as long.
            let _touched = unsafe { first.read_volatile() };
        }
        map::advise(range, Harmless::Collapse).map_err(|e| Error::os("madvise(MADV_COLLAPSE)", e))
    });
    drop_mapping(range);
    collapsed
}

/// Opens events of this thread's page faults, with a ring of a page for each CPU; false where the kernel does not tell those that it takes for it.
///
/// # Errors
/// The call that was refused.
pub fn page_faults() -> std::result::Result<bool, RingsRefused> {
    let mut rings = Rings::prepare(Follow::Process);
    rings.open_prepared(0, page_size().bytes())?;
    Ok(rings.tell_kernel())
}

/// `/proc/PID/task/TID/syscall` shows where a thread is; tried on the caller.
///
/// # Errors
/// What is missing.
pub fn program_counter() -> Result<()> {
    let syscall = procfs::syscall::open(process::pid(), process::tid());
    match procfs::syscall::blocked_at(syscall.map_err(|e| Error::os("open(/proc/PID/task/TID/syscall)", e))?) {
        Some((_, pc)) if pc != 0 => Ok(()),
        _ => Err(wrong("/proc/PID/task/TID/syscall does not tell where a thread is")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_knows_read_from_written() {
        let sample = Sample::read_and_written().expect("a memfd");
        let mut entries = Vec::new();
        let pagemap = Pagemap::open_self().expect("own pagemap");
        pagemap.read(sample.range, |_, entry| entries.push(entry.contains(Entry::FILE))).expect("read");
        assert_eq!(entries, [true, false]);
    }
}
