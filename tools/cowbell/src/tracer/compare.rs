//! Copies against their originals: what of a page did the writes change?

use super::baseline::{self, page_bytes};
use super::maps::{self, Backing};
use super::watch::Watch;
use crate::capture::record::{Class, Content, Event};
use cowbell::sys::pagemap::{Entry, Pagemap};
use cowbell::sys::remote::Memory;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// How much memory kept originals may take, over all accounts.
const KEPT_MAX: usize = 256 << 20;
/// Words that differ by less than this count as counters.
const COUNTER: u64 = 1 << 20;

/// Originals of pages that are about to be copied.
#[derive(Default)]
pub struct Originals {
    kept: HashMap<(u32, u64), Box<[u8]>>,
}

/// A process that had the same pages, and may have them still.
pub struct Donor {
    /// Its memory.
    memory: Memory,
    /// Its page tables.
    pagemap: Pagemap,
    /// When it last wrote each page, as far as it was seen; `None` if nobody looked.
    written: Option<HashMap<u64, u64>>,
}

impl Donor {
    /// The process `pid`, of which it is known when it wrote which page.
    pub fn new(pid: i32, written: Option<HashMap<u64, u64>>) -> Option<Self> {
        Some(Self { memory: Memory::open(pid).ok()?, pagemap: Pagemap::open(pid).ok()?, written })
    }

    /// Has it this page still, as it was when the account opened? Then whoever wrote it there was given a copy.
    pub fn still_has(&self, watch: &Watch, page: u64) -> bool {
        let present = baseline::entry(&self.pagemap, page).is_ok_and(|entry| entry.contains(Entry::PRESENT));
        let wrote = self.written.as_ref().map(|written| written.get(&page));
        present && wrote.is_some_and(|wrote| wrote.is_none_or(|&time| time < watch.begun_ns))
    }

    fn original(&self, watch: &Watch, page: u64, class: Class) -> Option<Box<[u8]>> {
        let there = match class {
            Class::PrivateFile => {
                let entry = baseline::entry(&self.pagemap, page).ok()?;
                !entry.contains(Entry::PRESENT) || entry.contains(Entry::FILE)
            }
            _ => self.still_has(watch, page),
        };
        there.then(|| read(&self.memory, page)).flatten()
    }
}

fn read(memory: &Memory, page: u64) -> Option<Box<[u8]>> {
    let mut bytes = vec![0; page_bytes() as usize];
    let got = memory.read(page, &mut bytes).ok()?;
    (got == bytes.len()).then(|| bytes.into())
}

impl Originals {
    /// Keeps the content of the page that this event's write will copy.
    pub fn keep_if_copied(&mut self, watch: &Watch, event: &Event) {
        let page = event.page;
        if !matches!(event.class, Class::Copy | Class::PrivateFile)
            || self.kept.len() * page_bytes() as usize >= KEPT_MAX
        {
            return;
        }
        if let Some(content) = watch.content(page) {
            self.kept.insert((watch.account, page), content);
        }
    }

    /// Compares what can be compared, and forgets the account's originals.
    pub fn compare(&mut self, watch: &Watch, pages: &BTreeMap<u64, Class>, donor: Option<&Donor>) -> Vec<Content> {
        let copied = |class| matches!(class, Class::Copy | Class::CopyOrReuse | Class::PrivateFile);
        let mut files = HashMap::new();
        let mut contents = Vec::new();
        for (&page, &class) in pages.iter().filter(|(_, class)| copied(**class)) {
            let kept = self.kept.remove(&(watch.account, page));
            let original = kept
                .or_else(|| (class == Class::PrivateFile).then(|| from_file(watch, page, &mut files)).flatten())
                .or_else(|| donor?.original(watch, page, class));
            if let (Some(original), Some(now)) = (original, watch.content(page)) {
                contents.push(difference(page, &original, &now));
            }
        }
        contents
    }

    /// Forgets an account's originals.
    pub fn forget(&mut self, account: u32) {
        self.kept.retain(|&(of, _), _| of != account);
    }
}

/// The page in the ordinary file behind its mapping.
fn from_file(watch: &Watch, page: u64, files: &mut HashMap<String, Option<File>>) -> Option<Box<[u8]>> {
    let map = maps::find(&watch.maps, page).filter(|map| map.backing == Backing::File)?;
    let mapping = &map.mapping;
    let root = format!("/proc/{}/root{}", watch.pid, mapping.name);
    let file = files.entry(mapping.name.clone()).or_insert_with(|| File::open(root).ok()).as_ref()?;
    let mut bytes = vec![0; page_bytes() as usize];
    let at = mapping.offset + (page - mapping.start);
    // Behind the file's end there are zeroes.
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + filled as u64).ok()? {
            0 => break,
            got => filled += got,
        }
    }
    Some(bytes.into())
}

fn difference(page: u64, original: &[u8], now: &[u8]) -> Content {
    let mut content = Content { page, bytes: 0, words: 0, counters: 0 };
    for (was, is) in original.chunks_exact(8).zip(now.chunks_exact(8)) {
        if was == is {
            continue;
        }
        let value = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        let apart = value(was).wrapping_sub(value(is));
        content.bytes += was.iter().zip(is).filter(|(was, is)| was != is).count() as u32;
        content.words += 1;
        content.counters += u32::from(apart.min(apart.wrapping_neg()) < COUNTER);
    }
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_moved_is_told_from_another_value() {
        let mut original = vec![0u8; page_bytes() as usize];
        original[8..16].copy_from_slice(&0x1_0000u64.to_le_bytes());
        let mut now = original.clone();
        assert_eq!(difference(7, &original, &now), Content { page: 7, bytes: 0, words: 0, counters: 0 });
        now[8..16].copy_from_slice(&0xffffu64.to_le_bytes());
        now[64..72].copy_from_slice(&u64::MAX.to_le_bytes());
        now[80] = 1;
        now[87] = 1;
        // 0x10000 → 0xffff differs in three bytes; 0 → -1 is one apart, too.
        assert_eq!(difference(7, &original, &now), Content { page: 7, bytes: 3 + 8 + 2, words: 3, counters: 2 });
    }
}
