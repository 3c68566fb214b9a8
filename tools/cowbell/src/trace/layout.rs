//! Words of a process' memory. How objects lie there, languages know (`stacks/languages`).

use super::baseline;
use super::entries;
use super::files::Files;
use super::watch::OpenInterval;
use cowbell::sys::pagemap::Entry;
use cowbell::sys::remote::RemoteMemory;
use std::collections::HashMap;
use std::rc::Rc;

/// The most pages that are remembered.
const PAGES_MAX: usize = 64;

/// Reads words of a process, those of pages that are there: reading others through it would bring them in. What a file shows
/// read-only is read from the file, for a child has no page tables of it before it reads there itself, and the name of CPython's
/// type of types lies in such a page. Pages are read whole and remembered, because most pointers lead to few pages and each read
/// is a system call.
pub fn words(watch: &OpenInterval) -> impl FnMut(u64) -> Option<u64> + '_ {
    let bytes = baseline::page_bytes();
    let mut files = Files::new(watch.pid);
    let mut pages: HashMap<u64, Option<Rc<[u8]>>> = HashMap::new();
    // Most words lie where the one before lay.
    let mut last: Option<(u64, Rc<[u8]>)> = None;
    move |address| {
        let page = address / bytes * bytes;
        let of = |held: &[u8]| Some(u64::from_le_bytes(*held.get((address - page) as usize..)?.first_chunk::<8>()?));
        if let Some((_, held)) = last.as_ref().filter(|(last, _)| *last == page) {
            return of(held);
        }
        if pages.len() >= PAGES_MAX && !pages.contains_key(&page) {
            pages.clear();
        }
        let read = || {
            let entry = entries::entry(&watch.pagemap, page).ok()?;
            let mut held = vec![0; bytes as usize];
            let is_read = if entry.contains(Entry::PRESENT) {
                watch.memory.read(page, &mut held) == Ok(held.len())
            } else {
                let map = watch.space.find(page).filter(|map| map.mapping.permissions.starts_with("r-"));
                !entry.contains(Entry::SWAPPED) && map.is_some_and(|map| files.page(map, page, &mut held))
            };
            is_read.then(|| held.into())
        };
        let held = pages.entry(page).or_insert_with(read).as_ref()?;
        last = Some((page, Rc::clone(held)));
        of(held)
    }
}

/// Reads aligned words of a stack. Pages are read whole and kept: a stack leads through few, and each read is a system call.
pub fn stack_words(memory: &RemoteMemory) -> impl FnMut(u64) -> Option<u64> + '_ {
    let mut pages: Vec<(u64, Option<Box<[u8]>>)> = Vec::new();
    move |address| {
        let page = address / baseline::page_bytes() * baseline::page_bytes();
        if !pages.iter().any(|(of, _)| *of == page) {
            let mut held = vec![0; baseline::page_bytes() as usize];
            let read = memory.read(page, &mut held) == Ok(held.len());
            pages.push((page, read.then(|| held.into())));
        }
        let held = pages.iter().find(|(of, _)| *of == page)?.1.as_ref()?;
        held.get((address - page) as usize..)?.first_chunk::<8>().map(|word| u64::from_ne_bytes(*word))
    }
}
