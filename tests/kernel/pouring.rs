//! Memory that is written to a memfd and mapped from there, and what fork copies of it then.

use crate::claim::{Claim, Verdict, claim};
use crate::evidence;
use crate::forking::{TABLES, stride, tables_kib, tables_spared_kib, with_tables};
use crate::memory::{Kind, Memory};
use cowbell::sys::{memfd, process};

pub const CLAIMS: &[Claim] = &[
    claim!(
        half_a_mapping_mapped_anew_merges_with_its_written_half,
        "Half of a private memfd mapping that was written to, mapped anew in place, is one mapping with the written half again, and fork copies the page tables of both."
    ),
    claim!(
        a_range_mapped_anew_in_one_call_is_as_if_never_written,
        "A private memfd mapping that was written to everywhere, mapped anew in place in one call, is spared by fork like one that was only read."
    ),
    claim!(
        pieces_apart_in_the_file_do_not_merge,
        "Private mappings side by side, of pieces of a memfd that do not follow each other in the file, stay apart: fork copies the page tables of the piece that was written to, and of no other."
    ),
    claim!(
        madv_dontdump_on_every_other_piece_keeps_pieces_apart,
        "`MADV_DONTDUMP` on every second piece of one mapping makes mappings of them: fork copies the page tables of the piece that was written to, and of no other."
    ),
    claim!(
        a_private_write_to_a_hole_takes_two_pages,
        "The first write through a private mapping of a sparse memfd puts a page into the file beside the private one."
    ),
];

/// Reads a page of each page table between two of them.
fn read_tables(memory: &Memory, tables: std::ops::Range<usize>) {
    tables.for_each(|table| memory.touch(table * stride(memory)));
}

fn half_a_mapping_mapped_anew_merges_with_its_written_half() -> Verdict {
    // No advice here: a mapping made anew has none, and mappings of different advice do not merge.
    let memory = Memory::new(Kind::PrivateMemfd, TABLES * cowbell::sys::page_size().bytes() / size_of::<u64>())?;
    memory.store(0, 1);
    let half = TABLES / 2 * stride(&memory);
    memory.map(memory.span(half, half), half).expect("mmap");
    read_tables(&memory, 0..TABLES);
    let (all, spared) = (tables_kib(&memory), tables_spared_kib());
    assert!(spared < all / 10, "{spared} KiB of {all} spared");
    assert!(evidence::status_kib(process::pid(), "VmPTE") >= all, "there are page tables");
    Ok(())
}

fn a_range_mapped_anew_in_one_call_is_as_if_never_written() -> Verdict {
    let memory = with_tables(Kind::PrivateMemfd)?;
    (0..TABLES).for_each(|table| memory.store(table * stride(&memory), 1));
    let (all, spared) = (tables_kib(&memory), tables_spared_kib());
    assert!(spared < all / 10, "written: {spared} KiB of {all} spared");
    memory.map(memory.range, 0).expect("mmap");
    read_tables(&memory, 0..TABLES);
    let spared = tables_spared_kib();
    assert!(spared > all * 9 / 10, "mapped anew: only {spared} KiB of {all} spared");
    Ok(())
}

/// The number of pieces of equal length a memory is cut into.
const PIECES: usize = 4;

/// Writes to one piece, and demands that fork copies the page tables of that one.
fn one_written_piece_is_copied(memory: &Memory) {
    read_tables(memory, 0..TABLES);
    let (all, spared) = (tables_kib(memory), tables_spared_kib());
    assert!(spared > all * 9 / 10, "only read: {spared} KiB of {all} spared");
    // The piece has a neighbour on either side.
    memory.store(memory.pages() / PIECES, 1);
    let (rest, spared) = (all - all / PIECES as u64, tables_spared_kib());
    assert!((rest * 9 / 10..rest * 11 / 10).contains(&spared), "one written: {spared} KiB of {all} spared");
}

fn pieces_apart_in_the_file_do_not_merge() -> Verdict {
    let memory = with_tables(Kind::PrivateMemfd)?;
    let piece = memory.pages() / PIECES;
    memfd::set_len(memory.file(), ((memory.pages() + PIECES) * memory.page.bytes()) as u64).expect("ftruncate");
    for at in 0..PIECES {
        // A page of the file lies between each two.
        memory.map(memory.span(at * piece, piece), at * (piece + 1)).expect("mmap");
    }
    one_written_piece_is_copied(&memory);
    Ok(())
}

fn madv_dontdump_on_every_other_piece_keeps_pieces_apart() -> Verdict {
    let memory = with_tables(Kind::PrivateMemfd)?;
    let piece = memory.pages() / PIECES;
    for at in (0..PIECES).step_by(2) {
        memory.advise(memory.span(at * piece, piece), libc::MADV_DONTDUMP).expect("MADV_DONTDUMP");
    }
    one_written_piece_is_copied(&memory);
    Ok(())
}

fn a_private_write_to_a_hole_takes_two_pages() -> Verdict {
    let memory = Memory::new(Kind::PrivateMemfd, 64)?;
    // fstat counts in units of 512 bytes.
    let in_file = || rustix::fs::fstat(memory.file()).expect("fstat").st_blocks as usize * 512 / memory.page.bytes();
    assert_eq!(in_file(), 0);
    (0..memory.pages()).for_each(|page| memory.store(page, 1));
    assert_eq!(in_file(), memory.pages(), "each page is in the file");
    assert!((0..memory.pages()).all(|page| memory.in_file(page) == 0), "as it was before the write");
    Ok(())
}
