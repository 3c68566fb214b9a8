//! An image's file describes itself behind its pages, for a program that has the file and not this process, as `cowbell run` has.
//!
//! ```text
//!  pages, in pieces │ units │ allocations │ ends of stacks │ calls │ name │ footer
//! ```
//! `docs/FORMATS.md` promises the layout. The blocks of a frozen image stay what they are, so the file never has to be written again, and is sealed with its pages.

use super::class::{Class, UNIT};
use super::metadata::{self, CHUNK, ChunkState, MARKS_END, SPAN, UNITS};
use super::plan::{self, ChunkRun};
use super::{central, sites};
use crate::arena::Image;
use crate::error::{Error, Result};
use crate::sys::{Errno, memfd};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

/// The footer's first word.
const MAGIC: u64 = u64::from_ne_bytes(*b"cowbellh");
/// The layout's version: raised when a reader of an older one would misread it.
const VERSION: u64 = 1;
/// Bytes of a word.
const WORD: usize = size_of::<u64>();
/// Words that tell what lies in a unit.
const UNIT_WORDS: usize = 3;
/// Bytes of the units of a chunk.
const CHUNK_BYTES: usize = UNITS as usize * UNIT_WORDS * WORD;
/// Words are written so many at a time.
const BATCH: usize = 1024;

/// Where the units are told of: right behind the pages.
fn units_at(run: &ChunkRun) -> u64 {
    run.count as u64 * plan::stride() as u64
}

/// Writes all that is known of an image before it is poured, and makes room for its units.
///
/// # Errors
/// ENOSPC, ENOMEM; invalid above the limit on file sizes.
pub(super) fn write(run: &ChunkRun, image: &Image) -> Result<()> {
    let (units, table) = (run.count as u64 * u64::from(UNITS), image.table());
    let (entries, stacks) = (table.entries(), table.stacks());
    let calls = || stacks.iter().flatten().copied();
    let allocations_at = units_at(run) + units * (UNIT_WORDS * WORD) as u64;
    let ends_at = allocations_at + (entries.len() * WORD) as u64;
    let calls_at = ends_at + (stacks.len() * WORD) as u64;
    let calls_len = calls().count() as u64;
    let name_at = calls_at + calls_len * WORD as u64;
    let name = image.name().as_bytes();
    let footer_at = (name_at + name.len() as u64).next_multiple_of(WORD as u64);
    let footer = [
        MAGIC,
        VERSION,
        run.range.start as u64,
        run.range.len as u64,
        u64::from(image.generation()),
        CHUNK as u64,
        plan::stride() as u64,
        UNIT as u64,
        units_at(run),
        units,
        allocations_at,
        entries.len() as u64 / 2,
        ends_at,
        stacks.len() as u64,
        calls_at,
        calls_len,
        name_at,
        name.len() as u64,
        u64::from(sites::every()),
    ];
    let file = run.file.as_fd();
    memfd::set_len(file, footer_at + size_of_val(&footer) as u64)?;
    let mut ended = 0;
    let ends = stacks.iter().map(|stack| {
        ended += stack.len() as u64;
        ended
    });
    let written = write_words(run, allocations_at, entries.iter().map(|word| word.load(Ordering::Relaxed)))
        .and_then(|()| write_words(run, ends_at, ends))
        .and_then(|()| write_words(run, calls_at, calls()))
        .and_then(|()| memfd::write_at(file, name, name_at))
        .and_then(|()| write_words(run, footer_at, footer.into_iter()));
    written.map_err(|e| Error::os("pwrite(what an image holds)", e))
}

fn write_words(run: &ChunkRun, at: u64, words: impl Iterator<Item = u64>) -> std::result::Result<(), Errno> {
    let mut words = words;
    let mut at = at;
    let mut batch = [0; BATCH * WORD];
    loop {
        let mut len = 0;
        for (place, word) in batch.chunks_exact_mut(WORD).zip(words.by_ref()) {
            place.copy_from_slice(&word.to_ne_bytes());
            len += WORD;
        }
        if len == 0 {
            return Ok(());
        }
        memfd::write_at(run.file.as_fd(), batch.get(..len).unwrap_or_default(), at)?;
        at += len as u64;
    }
}

/// Writes what lies in each unit, once nothing is allocated any more. *Async-signal-safe.*
///
/// # Errors
/// The errno of the write.
pub(super) fn write_units(run: &ChunkRun) -> std::result::Result<(), Errno> {
    for at in 0..run.count {
        let mut units = [0; CHUNK_BYTES];
        describe(run.first + at, |place, count, words| {
            let units = units.chunks_exact_mut(UNIT_WORDS * WORD).skip(place as usize).take(count as usize);
            for (told, word) in units.flat_map(|unit| unit.chunks_exact_mut(WORD).zip(words)) {
                told.copy_from_slice(&word.to_ne_bytes());
            }
        });
        memfd::write_at(run.file.as_fd(), &units, units_at(run) + at as u64 * CHUNK_BYTES as u64)?;
    }
    Ok(())
}

/// Calls `each` for all that lies in a chunk: the first of its units there, how many, and its start, the length of a block, and how many blocks there are.
fn describe(number: u32, mut each: impl FnMut(u32, u32, [u64; UNIT_WORDS])) {
    let chunk = metadata::chunk(number);
    match chunk.state() {
        ChunkState::Open => central::heads(number, |unit| {
            let slab = unit.slab();
            let (_, place) = unit.place();
            let start = unit.start() as u64;
            if slab.owner.load(Ordering::Relaxed) == SPAN {
                let count = slab.blocks.load(Ordering::Relaxed);
                let len = count as u64 * UNIT as u64 - u64::from(slab.fresh.load(Ordering::Relaxed));
                each(place, count, [start, len, 1]);
            } else if slab.owner.load(Ordering::Relaxed) >= MARKS_END {
                let class = Class::numbered(slab.class.load(Ordering::Relaxed).into());
                each(place, class.slab_units(), [start, class.size() as u64, u64::from(class.slab_blocks())]);
            }
        }),
        ChunkState::Huge | ChunkState::Rest => {
            let head = plan::huge_head(number);
            let bytes = metadata::chunk(head).bytes.load(Ordering::Relaxed);
            let inside = (bytes - (number - head) as usize * CHUNK).min(CHUNK);
            each(0, inside.div_ceil(UNIT) as u32, [metadata::addresses(head).start as u64, bytes as u64, 1]);
        }
        ChunkState::Absent | ChunkState::Foreign | ChunkState::Frozen | ChunkState::Gone => {}
    }
}
