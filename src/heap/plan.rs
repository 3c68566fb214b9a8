//! The plan of a freeze: which chunks become images, and their files.

use super::class::UNIT;
use super::lock::{self, HeapGuard};
use super::metadata::{self, CHUNK, ChunkState};
use super::span;
use crate::error::Result;
use crate::sys::map::Range;
use crate::sys::{Errno, memfd, page_size};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

/// Neighbouring chunks that become one image.
#[derive(Debug)]
pub(super) struct ChunkRun {
    pub(super) first: u32,
    pub(super) count: u32,
    /// The addresses, to the end of what is mapped.
    pub(super) range: Range,
    pub(super) file: OwnedFd,
    pub(super) headers: OwnedFd,
}

/// The operation that failed, and the kernel's reason.
pub(super) type FailedCall = (&'static str, Errno);

/// Bytes of the file from one chunk to the next.
pub(super) fn stride() -> usize {
    CHUNK + page_size().bytes()
}

/// The number of a chunk's bytes that are mapped, if it is to be frozen with others of this kind.
fn to_freeze(number: u32, kind: u8) -> Option<usize> {
    let chunk = metadata::chunk(number);
    if chunk.kind.load(Ordering::Relaxed) != kind {
        return None;
    }
    match chunk.state() {
        ChunkState::Open => Some(chunk.mapped.load(Ordering::Relaxed) as usize * UNIT),
        ChunkState::Huge | ChunkState::Rest => {
            let head = huge_head(number);
            let bytes = metadata::chunk(head).bytes.load(Ordering::Relaxed);
            Some((bytes - (number - head) as usize * CHUNK).min(CHUNK))
        }
        ChunkState::Absent | ChunkState::Foreign | ChunkState::Frozen | ChunkState::Gone => None,
    }
}

/// The first chunk of a huge allocation.
pub(super) fn huge_head(number: u32) -> u32 {
    (0..=number).rev().find(|&at| metadata::chunk(at).state() == ChunkState::Huge).unwrap_or(number)
}

/// The first run at or behind a chunk: its first chunk, how many, and its length in bytes.
fn next_run(from: u32, kind: u8) -> Option<(u32, u32, usize)> {
    let first = (from..metadata::chunks()).find(|&number| to_freeze(number, kind).is_some())?;
    let (mut count, mut len) = (0, 0);
    let mapped_of = |number: u32| if number < metadata::chunks() { to_freeze(number, kind) } else { None };
    while let Some(mapped) = mapped_of(first + count) {
        (count, len) = (count + 1, len + mapped);
        if mapped < CHUNK {
            break;
        }
    }
    Some((first, count, len))
}

/// Maps the rest of chunks whose neighbour is in use, too, so that runs are long. Where that cannot be they are short.
fn fill_gaps(kind: u8, held: &HeapGuard) {
    for number in 0..metadata::chunks().saturating_sub(1) {
        let is_short = to_freeze(number, kind).is_some_and(|mapped| mapped < CHUNK);
        if is_short && to_freeze(number + 1, kind).is_some() {
            span::map_rest(number, held);
        }
    }
}

/// The runs to freeze.
///
/// # Errors
/// EMFILE, ENFILE; invalid above the limit on file sizes.
pub(super) fn plan(kind: u8) -> Result<Vec<ChunkRun>> {
    fill_gaps(kind, &lock::take());
    let mut runs = Vec::new();
    let mut from = 0;
    // An allocation here may open one more chunk, which is seen because it is the last one.
    while let Some((first, count, len)) = next_run(from, kind) {
        let file = memfd::create("cowbell:heap")?;
        let headers = memfd::create("cowbell:heap-headers")?;
        memfd::set_len(file.as_fd(), (count as usize * stride()) as u64)?;
        memfd::set_len(headers.as_fd(), metadata::headers_of(first, count).len as u64)?;
        let range = Range { start: metadata::addresses(first).start, len };
        runs.push(ChunkRun { first, count, range, file, headers });
        from = first + count;
    }
    Ok(runs)
}

/// Tells whether these are the runs to freeze still.
pub(super) fn is_valid(runs: &[ChunkRun], kind: u8) -> bool {
    let mut from = 0;
    for run in runs {
        if next_run(from, kind) != Some((run.first, run.count, run.range.len)) {
            return false;
        }
        from = run.first + run.count;
    }
    next_run(from, kind).is_none()
}
