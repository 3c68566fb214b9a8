//! Giving back copies that are the same as the original again.
//!
//! ```text
//! page tables -> copied pages -> compared with the file -> the same: noted, dropped, forgotten
//!                                                          others:   left alone
//! ```
//! Under a watch that arms, a dropped page is in one of two states, and both are right:
//!
//! - It was armed: the kernel leaves a marker where the copy was, and the next write is observed.
//! - Its protection was lifted by a write of this epoch, which is noted: its next write adds nothing to this epoch, and the
//!   epoch's end arms all pages noted. Asynchronously it is the page's own entry that notes the write, and kernels before
//!   6.12 forget that with the page; so it is taken over, and the page armed, before.
//!
//! # Safety
//! Dropping a page shows its readers the file's content, which is what the page held when it was compared. The caller
//! keeps everybody from writing in between.
#![expect(unsafe_code, reason = "copies are dropped under live references")]

use super::evidence::{Bitmap, Evidence, Word};
use super::signal_safe::census;
use crate::error::{Error, Result};
use crate::page::{PageCount, PageIndex, PageSet, PageSpan};
use crate::sys::map::{self, Range};
use crate::sys::pagemap::{Pagemap, Query, WRITTEN};
use crate::sys::{self, Errno, memfd, procfs};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

/// The number of pages that are compared at a time.
const WINDOW: u64 = 16;

/// An error of giving back, with the operation that the kernel was asked for.
fn failed(operation: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::os(operation, errno)
}

/// Gives back the copies of one image that are the same as the original; how many were looked at, and how many were
/// given back.
///
/// # Safety
/// Until it returns, no thread of this process runs but the caller's, no signal handler does, and nobody else writes into
/// this process's memory.
///
/// # Errors
/// EINVAL from `madvise` when the process has locked pages of the arena; EPERM under [`Watch::Async`](super::Watch::Async) when its keeper was
/// killed. Pages that were given back before stay so.
pub(crate) unsafe fn give_back(evidence: &Evidence, at: usize) -> Result<(PageCount, PageCount)> {
    let none = (PageCount(0), PageCount(0));
    let Some(image) = evidence.images.get(at) else { return Ok(none) };
    let range = image.range();
    let pagemap = Pagemap::open_self().map_err(failed("open(/proc/self/pagemap)"))?;
    let mut copied = PageSet::new();
    let scanned = census::scan(&pagemap, range, evidence.watch.arms(), |run| {
        census::pages_of(range, run).for_each(|page| {
            copied.insert(page);
        });
    });
    scanned.map_err(failed("ioctl(PAGEMAP_SCAN)"))?;
    if copied.is_empty() {
        return Ok(none);
    }
    let memory = procfs::signal_safe::open_memory().map_err(failed("open(/proc/self/mem)"))?;
    let size = sys::page_size();
    let mut mine = vec![0; size.bytes() * WINDOW as usize];
    let mut original = mine.clone();
    let mut given_back = 0;
    for window in copied.runs().flat_map(windows) {
        let (start, len) = (size.offset_of(window.start), size.bytes() * window.count.0 as usize);
        let (Some(mine), Some(original)) = (mine.get_mut(..len), original.get_mut(..len)) else { continue };
        read_all(&memory, mine, (range.start + start) as u64).map_err(failed("pread(/proc/self/mem)"))?;
        let read = image.read_original(start, original).map_err(failed("pread(frozen arena)"))?;
        if read < original.len() {
            return Err(failed("pread(frozen arena)")(Errno::IO));
        }
        let pages = mine.chunks_exact(size.bytes()).zip(original.chunks_exact(size.bytes()));
        let same: Vec<bool> = pages.map(|(mine, original)| mine == original).collect();
        let mut next = window.start.0;
        for run in same.chunk_by(|one, other| one == other) {
            let (start, count) = (next, run.len() as u64);
            next += count;
            if run.first() != Some(&true) {
                continue;
            }
            let start_byte = range.start + size.offset_of(PageIndex(start));
            let place = Range { start: start_byte, len: size.bytes() * run.len() };
            image.note_given_back(PageSpan { start: PageIndex(start), count: PageCount(count) });
            take_over(evidence, at, &pagemap, range, place).map_err(failed("ioctl(PAGEMAP_SCAN)"))?;
            if evidence.watch.reads_page_faults() {
                // The keeper finds no copy there any more when it looks for what a fault made.
                for page in (start..start + count).map(PageIndex) {
                    evidence.mark(at, Bitmap::Returned, page);
                }
            }
            // SAFETY: the pages hold what the file holds, and the caller keeps them so.
            let dropped = unsafe { map::drop_private_pages(place) };
            dropped.map_err(|e| {
                let error = Error::os("madvise(MADV_DONTNEED)", e);
                if e == Errno::INVAL {
                    error.with_hint("munlock the arena's pages in this process first")
                } else {
                    error
                }
            })?;
            given_back += count;
            evidence.word(Word::Reshared).fetch_add(count, Ordering::Relaxed);
            for page in (start..start + count).map(PageIndex) {
                evidence.unmark(at, Bitmap::Copied, page);
                // If this process copies it once more, that copy is its own.
                evidence.unmark(at, Bitmap::Inherited, page);
            }
        }
    }
    Ok((copied.count(), PageCount(given_back)))
}

/// A run in parts that fit the buffers.
fn windows(run: PageSpan) -> impl Iterator<Item = PageSpan> {
    let end = run.start.0 + run.count.0;
    (run.start.0..end)
        .step_by(WINDOW as usize)
        .map(move |start| PageSpan { start: PageIndex(start), count: PageCount(WINDOW.min(end - start)) })
}

fn read_all(file: impl AsFd, mut buffer: &mut [u8], mut offset: u64) -> Result<(), Errno> {
    while !buffer.is_empty() {
        let got = memfd::read_at(&file, buffer, offset)?;
        if got == 0 {
            return Err(Errno::IO);
        }
        buffer = buffer.get_mut(got..).unwrap_or_default();
        offset += got as u64;
    }
    Ok(())
}

/// Under asynchronous watch: notes which of these pages were written, as their entries say, and arms them.
fn take_over(evidence: &Evidence, at: usize, pagemap: &Pagemap, image: Range, place: Range) -> Result<(), Errno> {
    if !evidence.watch.leaves_marks() {
        return Ok(());
    }
    // In one step, so that the keeper, which may be ending an epoch, takes them or we do.
    pagemap.scan(place, &Query { rearm: true, ..WRITTEN }, |run| {
        census::pages_of(image, run).for_each(|page| {
            evidence.mark(at, Bitmap::Seen, page);
        });
    })
}

/// Counts the pages of the images that this process has copied now.
///
/// # Errors
/// The errno of reading the page tables.
pub(crate) fn copied_now(evidence: &Evidence) -> Result<PageCount, Errno> {
    let pagemap = Pagemap::open_self()?;
    let page = sys::page_size();
    let mut count = 0;
    for (at, image) in evidence.images.iter().enumerate() {
        let inherited = evidence.bitmap(at, Bitmap::Inherited);
        census::scan(&pagemap, image.range(), evidence.watch.arms(), |run| {
            count += if inherited.is_empty() {
                page.pages_for(run.len).0
            } else {
                let own = |page: &PageIndex| !evidence.is_marked(at, Bitmap::Inherited, *page);
                census::pages_of(image.range(), run).filter(own).count() as u64
            };
        })?;
    }
    Ok(PageCount(count))
}
