//! Words of a process' memory. How objects lie there, languages know (`stacks/languages`).

use super::baseline;
use cowbell::sys::pagemap::{Entry, Pagemap};
use cowbell::sys::remote::Memory;
use std::collections::HashMap;

/// So many pages are remembered.
const PAGES_MAX: usize = 64;

/// Reads words of a process, those of pages that are there: reading others would bring them in. Pages are read whole and
/// remembered, because most pointers lead to few pages and each read is a system call.
pub fn words<'a>(memory: &'a Memory, pagemap: &'a Pagemap) -> impl FnMut(u64) -> Option<u64> + 'a {
    let bytes = baseline::page_bytes();
    let mut pages: HashMap<u64, Option<Box<[u8]>>> = HashMap::new();
    move |address| {
        let page = address / bytes * bytes;
        if pages.len() >= PAGES_MAX && !pages.contains_key(&page) {
            pages.clear();
        }
        let read = || {
            let is_there = baseline::entry(pagemap, page).is_ok_and(|entry| entry.contains(Entry::PRESENT));
            let mut held = vec![0; bytes as usize];
            (is_there && memory.read(page, &mut held) == Ok(held.len())).then(|| held.into())
        };
        let held = pages.entry(page).or_insert_with(read).as_ref()?;
        let word = held.get((address - page) as usize..)?.first_chunk::<8>()?;
        Some(u64::from_le_bytes(*word))
    }
}
