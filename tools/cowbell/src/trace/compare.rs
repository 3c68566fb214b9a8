//! Copies against their originals: what of a page did the writes change?

use super::baseline::{self, page_bytes};
use super::maps::{self, Backing};
use super::tree::Process;
use super::watch::Watch;
use crate::record::{Class, Content, Event, Role};
use cowbell::sys::pagemap::{Entry, Pagemap};
use cowbell::sys::procfs;
use cowbell::sys::remote::Memory;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// How much memory kept originals may take, over all intervals.
const KEPT_MAX: usize = 256 << 20;
/// Words that differ by less than this count as counters.
const COUNTER: u64 = 1 << 20;

/// What a page held, and when.
type Kept = (u64, Box<[u8]>);

/// Originals of pages that were about to be written, by process and page, with the time: what the page held then, and at
/// the process' last fork before.
#[derive(Default)]
pub struct Originals {
    kept: HashMap<(i32, u64), Vec<Kept>>,
    pages: usize,
}

/// A process that had the same pages, and may have them still.
pub struct Donor<'a> {
    pid: i32,
    memory: Memory,
    pagemap: Pagemap,
    process: &'a Process,
    /// Who was forked from it.
    child: &'a Process,
}

impl<'a> Donor<'a> {
    /// The process `pid`, for one that was forked from it.
    pub fn new(pid: i32, process: &'a Process, child: &'a Process) -> Option<Self> {
        let living = procfs::living(pid);
        let (memory, pagemap) = (Memory::open(living).ok()?, Pagemap::open(living).ok()?);
        Some(Self { pid, memory, pagemap, process, child })
    }

    /// Has it this page still, as both had it when the child was born? Then whoever wrote it there was given a copy. Pages
    /// that the child wrote in intervals before are its own.
    pub fn still_has(&self, watch: &Watch, page: u64) -> bool {
        let is_private = |entry: Entry| entry.contains(Entry::PRESENT) && !entry.contains(Entry::FILE);
        let present = || baseline::entry(&self.pagemap, page).is_ok_and(is_private);
        self.has_shared(watch, page)
            && self.process.watch.is_some()
            && !self.process.watch.as_ref().is_some_and(|watch| watch.dropped.contains(page))
            && self.process.wrote(page).is_none_or(|time_ns| time_ns < self.child.born_ns)
            && present()
    }

    /// Did both have this page when the child was born? Of processes that were found running, only page frames tell, where they
    /// were the same when both began to be watched.
    fn has_shared(&self, watch: &Watch, page: u64) -> bool {
        let begins_with = !self.child.history.contains_key(&page);
        let is_found = self.child.role == Role::Attached && self.process.role == Role::Attached;
        let same_frame = || {
            let theirs = self.process.watch.as_ref().and_then(|parent| parent.base.frame(page));
            theirs.is_some() && theirs == watch.base.frame(page)
        };
        begins_with && (self.child.born_ns > 0 || is_found && same_frame())
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
    /// Keeps the content of the page that this event is about. True if it was read.
    pub fn keep(&mut self, watch: &Watch, event: &Event) -> bool {
        if !matches!(event.class, Class::Copy | Class::Reuse | Class::CopyOrReuse | Class::PrivateFile)
            || self.pages * page_bytes() as usize >= KEPT_MAX
        {
            return false;
        }
        let Some(content) = read(&watch.memory, event.page) else { return false };
        self.kept.entry((watch.pid, event.page)).or_default().push((event.time_ns, content));
        self.pages += 1;
        true
    }

    /// What a process' page held since `since_ns`, until it wrote there.
    fn of(&self, pid: i32, page: u64, since_ns: u64) -> Option<&[u8]> {
        let (_, content) = self.kept.get(&(pid, page))?.iter().find(|(time_ns, _)| *time_ns >= since_ns)?;
        Some(content)
    }

    /// Compares what can be compared.
    pub fn compare(&self, watch: &Watch, pages: &BTreeMap<u64, Class>, donor: Option<&Donor<'_>>) -> Vec<Content> {
        let copied = |class| matches!(class, Class::Copy | Class::CopyOrReuse | Class::PrivateFile);
        let mut files = HashMap::new();
        let mut contents = Vec::new();
        for (&page, &class) in pages.iter().filter(|(_, class)| copied(**class)) {
            let original = self.of(watch.pid, page, watch.begun_ns).map(Cow::Borrowed).or_else(|| match class {
                Class::PrivateFile => from_file(watch, page, &mut files).map(Cow::Owned),
                _ => None,
            });
            let original = original
                .or_else(|| {
                    let donor = donor.filter(|donor| donor.has_shared(watch, page))?;
                    self.of(donor.pid, page, donor.child.born_ns).map(Cow::Borrowed)
                })
                .or_else(|| donor?.original(watch, page, class).map(|read| Cow::Owned(read.into())));
            // Reading where there is nothing would put the zero page there.
            let there = baseline::entry(&watch.pagemap, page).is_ok_and(|entry| entry.contains(Entry::PRESENT));
            let now = there.then(|| read(&watch.memory, page)).flatten();
            if let (Some(original), Some(now)) = (original, now) {
                contents.push(difference(page, &original, &now));
            }
        }
        contents
    }

    /// Forgets a process: nobody that it made is left, or it is itself gone.
    pub fn forget(&mut self, pid: i32) {
        self.kept.retain(|&(of, _), contents| {
            if of == pid {
                self.pages -= contents.len();
            }
            of != pid
        });
    }
}

/// The page in the ordinary file behind its mapping.
fn from_file(watch: &Watch, page: u64, files: &mut HashMap<String, Option<File>>) -> Option<Vec<u8>> {
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
    Some(bytes)
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
