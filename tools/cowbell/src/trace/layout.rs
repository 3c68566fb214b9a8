//! Words of a process' memory. How objects lie there, languages know (`stacks/languages`).

use super::address_space::AddressSpace;
use super::baseline;
use super::maps::{Backing, Map};
use cowbell::sys::pagemap::{Entry, Pagemap};
use cowbell::sys::remote::Memory;
use std::collections::HashMap;

/// So many pages are remembered.
const PAGES_MAX: usize = 64;

/// Reads words of a process, those of pages that are there: reading others would bring them in. What a file shows read-only may
/// be brought in, for it is the file's memory; a child has no page tables of it before it reads there itself, and the name of
/// CPython's type of types lies in such a page. Pages are read whole and remembered, because most pointers lead to few pages
/// and each read is a system call.
pub fn words<'a>(
    memory: &'a Memory,
    pagemap: &'a Pagemap,
    space: &'a AddressSpace,
) -> impl FnMut(u64) -> Option<u64> + 'a {
    let bytes = baseline::page_bytes();
    let mut pages: HashMap<u64, Option<Box<[u8]>>> = HashMap::new();
    move |address| {
        let page = address / bytes * bytes;
        if pages.len() >= PAGES_MAX && !pages.contains_key(&page) {
            pages.clear();
        }
        let read = || {
            let is_there = baseline::entry(pagemap, page).is_ok_and(|entry| {
                let is_nowhere = !entry.intersects(Entry::PRESENT | Entry::SWAPPED);
                entry.contains(Entry::PRESENT) || is_nowhere && space.find(page).is_some_and(shows_file)
            });
            let mut held = vec![0; bytes as usize];
            (is_there && memory.read(page, &mut held) == Ok(held.len())).then(|| held.into())
        };
        let held = pages.entry(page).or_insert_with(read).as_ref()?;
        let word = held.get((address - page) as usize..)?.first_chunk::<8>()?;
        Some(u64::from_le_bytes(*word))
    }
}

/// Does a mapping show what its file holds, to be read and not written?
fn shows_file(map: &Map) -> bool {
    map.backing == Backing::File && !map.gone && map.mapping.permissions.starts_with("r-")
}
