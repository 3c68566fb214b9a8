//! Copies against their originals: what of a page did the writes change?

use super::baseline::page_bytes;
use super::entries::Entries;
use super::files::Files;
use super::layout;
use super::tree::Tracee;
use super::watch::OpenInterval;
use crate::record::{Content, End, Event, Kinds, WatchReason, WriteClass};
use crate::stacks::languages::{ChangedWord, ObjectReader, ReadWord};
use cowbell::page::differing_words;
use cowbell::sys::pagemap::{Entry, Pagemap};
use cowbell::sys::procfs;
use cowbell::sys::remote::RemoteMemory;
use std::collections::{BTreeMap, HashMap};

/// The memory that kept originals may take, over all intervals.
const KEPT_MAX: usize = 256 << 20;

/// The kinds of objects are told of so many copied pages of an interval, the first ones: while it is closed its process stands still.
const KINDS_MAX: usize = 1 << 17;

/// So many new pages are looked at for what a collector took. One that only collects takes less.
const NEW_MAX: u64 = 1 << 13;

/// A time, and the content that a page held until then.
type Kept = (u64, Box<[u8]>);

/// Originals of pages that were about to be written, by process and page, with the time: what the page held then, and at
/// the process' last fork before.
#[derive(Default)]
pub struct Originals {
    kept: HashMap<(i32, u64), Vec<Kept>>,
    pages: usize,
}

/// The result of comparing copies.
#[derive(Debug, Default)]
pub struct Compared {
    /// The differences of those that could be compared.
    pub contents: Vec<Content>,
    /// The copies that are there no more.
    pub gone: BTreeMap<u64, WriteClass>,
}

/// A process that had the same pages, and may have them still.
pub struct Donor<'a> {
    pid: i32,
    memory: RemoteMemory,
    pagemap: Pagemap,
    process: &'a Tracee,
    /// The process that was forked from it.
    child: &'a Tracee,
}

impl<'a> Donor<'a> {
    /// The process `pid`, for one that was forked from it.
    pub fn new(pid: i32, process: &'a Tracee, child: &'a Tracee) -> Option<Self> {
        let living = procfs::living(pid);
        let (memory, pagemap) = (RemoteMemory::open(living).ok()?, Pagemap::open(living).ok()?);
        Some(Self { pid, memory, pagemap, process, child })
    }

    /// Tells whether it has this page still, as both had it when the child was born. Then whoever wrote it there was given a copy.
    /// Pages that the child wrote in intervals before are its own.
    pub fn still_has(&self, watch: &OpenInterval, entries: &Entries<'_>, page: u64) -> bool {
        let is_private = |entry: Entry| entry.contains(Entry::PRESENT) && !entry.contains(Entry::FILE);
        let present = || entries.at(page).is_ok_and(is_private);
        self.has_shared(watch, page)
            && self.process.watch.is_some()
            && !self.process.watch.as_ref().is_some_and(|watch| watch.dropped.contains(page))
            && self.process.wrote(page).is_none_or(|time_ns| time_ns < self.child.born_ns)
            && present()
    }

    /// Tells whether both had this page when the child was born. Of processes that were found running, only page frames tell, where
    /// they were the same when both began to be watched.
    fn has_shared(&self, watch: &OpenInterval, page: u64) -> bool {
        let begins_with = !self.child.history.contains_key(&page);
        let is_found = self.child.role == WatchReason::Attached && self.process.role == WatchReason::Attached;
        let same_frame = || {
            let theirs = self.process.watch.as_ref().and_then(|parent| parent.base.frame(page));
            theirs.is_some() && theirs == watch.base.frame(page)
        };
        begins_with && (self.child.born_ns > 0 || is_found && same_frame())
    }

    /// The donor's page tables, for one look at many pages.
    pub fn entries(&self) -> Entries<'_> {
        Entries::new(&self.pagemap)
    }

    /// Reads the page as both had it; false if it is not there any more.
    fn original(
        &self,
        watch: &OpenInterval,
        entries: &Entries<'_>,
        page: u64,
        class: WriteClass,
        into: &mut [u8],
    ) -> bool {
        let there = match class {
            // A mapping that the child made later has nothing to do with its parent's at that address, and to read there would map a page.
            WriteClass::PrivateFile => {
                let is_original = |entry: Entry| !entry.contains(Entry::PRESENT) || entry.contains(Entry::FILE);
                watch.space.find(page).is_some() && entries.at(page).is_ok_and(is_original)
            }
            _ => self.still_has(watch, entries, page),
        };
        there && read(&self.memory, page, into)
    }
}

/// Reads a page; false if it cannot be read whole.
fn read(memory: &RemoteMemory, page: u64, into: &mut [u8]) -> bool {
    memory.read(page, into) == Ok(into.len())
}

impl Originals {
    /// Keeps the content of the page that this event is about. True if it was read.
    pub fn keep(&mut self, watch: &OpenInterval, event: &Event) -> bool {
        if !matches!(
            event.class,
            WriteClass::Copy | WriteClass::Reuse | WriteClass::CopyOrReuse | WriteClass::PrivateFile
        ) || self.pages * page_bytes() as usize >= KEPT_MAX
        {
            return false;
        }
        let mut content = vec![0; page_bytes() as usize];
        if !read(&watch.memory, event.page, &mut content) {
            return false;
        }
        self.kept.entry((watch.pid, event.page)).or_default().push((event.time_ns, content.into()));
        self.pages += 1;
        true
    }

    /// The content that a process' page held since `since_ns`, until it wrote there.
    fn of(&self, pid: i32, page: u64, since_ns: u64) -> Option<&[u8]> {
        let (_, content) = self.kept.get(&(pid, page))?.iter().find(|(time_ns, _)| *time_ns >= since_ns)?;
        Some(content)
    }

    /// Compares what can be compared, and says which copies are gone.
    pub fn compare(
        &self,
        watch: &OpenInterval,
        pages: &BTreeMap<u64, WriteClass>,
        donor: Option<&Donor<'_>>,
    ) -> Compared {
        let mut files = Files::new(watch.pid);
        let (mut objects, mut word) = (watch.space.objects(), layout::words(watch));
        let mut compared = Compared::default();
        let (ours, theirs) = (Entries::new(&watch.pagemap), donor.map(Donor::entries));
        // For all pages the same two: each is as large as what makes an allocator tidy up.
        let (mut was, mut now) = (vec![0; page_bytes() as usize], vec![0; page_bytes() as usize]);
        for (&page, &class) in pages.iter().filter(|(_, class)| is_copy(**class)) {
            let own = self.of(watch.pid, page, watch.begun_ns);
            let of_donor = || {
                let donor = donor.filter(|donor| donor.has_shared(watch, page))?;
                self.of(donor.pid, page, donor.child.born_ns)
            };
            let (donor, theirs) = (donor.as_ref(), theirs.as_ref());
            let original = if own.is_some() {
                own
            } else if class == WriteClass::PrivateFile
                && watch.space.find(page).is_some_and(|map| files.page(map, page, &mut was))
            {
                Some(&*was)
            } else if let Some(kept) = of_donor() {
                Some(kept)
            } else if let (Some(donor), Some(theirs)) = (donor, theirs)
                && donor.original(watch, theirs, page, class, &mut was)
            {
                Some(&*was)
            } else {
                None
            };
            let entry = ours.at(page);
            if entry.is_ok_and(|entry| !entry.intersects(Entry::PRESENT | Entry::SWAPPED)) {
                compared.gone.insert(page, class);
            }
            // Reading where there is nothing would put the zero page there.
            let there = entry.is_ok_and(|entry| entry.contains(Entry::PRESENT));
            if let Some(original) = original.filter(|_| there && read(&watch.memory, page, &mut now)) {
                compared.contents.push(difference(page, original, &now, &mut *objects, &mut word));
            }
        }
        compared
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

/// The kinds of objects on copied pages, as they lie there now; `None` where the interpreter's types are not known.
pub fn kinds(watch: &OpenInterval, end: &End) -> Option<Kinds> {
    // Python may be part of a program of another name, and then shows itself by its objects.
    if watch.space.language().is_none() && !end.contents.iter().any(|content| content.objects) {
        return None;
    }
    let runs = end.pages.iter().filter(|run| is_copy(run.class));
    let pages: Vec<u64> =
        runs.flat_map(|run| (0..run.pages).map(|nth| run.start + nth * page_bytes())).take(KINDS_MAX).collect();
    watch.space.objects().kinds(&pages, page_bytes(), &mut layout::words(watch)).filter(|kinds| !kinds.types.is_empty())
}

/// The new pages of which the collector took a part for itself; `None` where its language does not tell, and where there are many.
pub fn collector_new(watch: &OpenInterval, end: &End) -> Option<u64> {
    watch.space.language()?.objects()?;
    let runs = || end.pages.iter().filter(|run| run.class == WriteClass::FirstTouch);
    if runs().map(|run| run.pages).sum::<u64>() > NEW_MAX {
        return None;
    }
    let mut pages = runs().flat_map(|run| (0..run.pages).map(|nth| run.start + nth * page_bytes()));
    let (mut objects, mut word) = (watch.space.objects(), layout::words(watch));
    pages.try_fold(0, |sum, page| Some(sum + u64::from(objects.is_of_collector(page, &mut word)?)))
}

fn is_copy(class: WriteClass) -> bool {
    matches!(class, WriteClass::Copy | WriteClass::CopyOrReuse | WriteClass::PrivateFile)
}

fn difference(
    page: u64,
    original: &[u8],
    now: &[u8],
    objects: &mut dyn ObjectReader,
    word: &mut ReadWord<'_>,
) -> Content {
    let mut content = Content { page, objects: objects.any_at(page, original, word), ..Content::default() };
    for (at, was, is) in differing_words(original, now) {
        content.bytes += was.iter().zip(is).filter(|(was, is)| *was != is).count() as u32;
        let differs = || (0..8usize).filter(|&byte| was.get(byte) != is.get(byte)).map(|byte| (at + byte) as u32);
        if let (Some(first), Some(last)) = (differs().next(), differs().next_back()) {
            content.ends = Some((content.ends.map_or(first, |(first, _)| first), last));
        }
        content.words += 1;
        if !content.objects {
            continue;
        }
        match objects.changed(original, now, (page, at), word) {
            Some(ChangedWord::Count) => content.counts += 1,
            Some(ChangedWord::Number) => content.numbers += 1,
            Some(ChangedWord::Text) => content.texts += 1,
            Some(ChangedWord::Remembered) => content.remembered += 1,
            Some(ChangedWord::Iterator) => content.iterators += 1,
            Some(ChangedWord::Copies) => content.copies += 1,
            Some(ChangedWord::Mark) => content.marks += 1,
            Some(ChangedWord::Made) => content.made += 1,
            None => {}
        }
        if let Some(is_immortal) = objects.kept_hash(original, now, at, word) {
            content.hashes += 1;
            content.immortal += u32::from(is_immortal);
        }
        let next = |page: &[u8]| page.get(at + 8..)?.first_chunk::<8>().map(|word| u64::from_le_bytes(*word));
        let of = next(original).filter(|of| next(now) == Some(*of));
        let Some(of) = of else { continue };
        let (was_word, is_word) = (u64::from_le_bytes(was), u64::from_le_bytes(is));
        content.counts += u32::from(objects.is_count(was_word, is_word, of, word));
    }
    content
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stacks::languages::{self, PointerBudget};

    /// A type object of the one language whose objects are known: the type of types is its own type.
    const TYPE: u64 = 0x10_0000;

    fn word(address: u64) -> Option<u64> {
        const NAME: u64 = 0x10_1000;
        match address.wrapping_sub(TYPE) {
            8 => Some(TYPE),
            24 => Some(NAME),
            168 => Some(1 << 31 | 1 << 28),
            0x1000 => Some(u64::from_le_bytes(*b"type\0\0\0\0")),
            _ => None,
        }
    }

    fn page(words: &[(usize, u64)]) -> Vec<u8> {
        let mut page = vec![0; page_bytes() as usize];
        for &(nth, word) in words {
            page[8 * nth..8 * nth + 8].copy_from_slice(&word.to_le_bytes());
        }
        page
    }

    #[test]
    fn a_string_that_was_asked_for_its_hash_keeps_it() {
        let found = |was: &[(usize, u64)], is: &[(usize, u64)]| {
            let mut objects = languages::objects(None, PointerBudget::default());
            let found = difference(7, &page(was), &page(is), &mut *objects, &mut word);
            (found.hashes, found.immortal)
        };
        let string = [(1, 1), (2, TYPE), (4, u64::MAX)];
        assert_eq!(found(&string, &[(1, 1), (2, TYPE), (4, 0x1234_5678_9abc_def0)]), (1, 0));
        assert_eq!(found(&string, &[(1, 2), (2, TYPE), (4, 7)]), (1, 0), "counted, too");
        assert_eq!(found(&[(1, 1), (2, TYPE), (4, 5)], &[(1, 1), (2, TYPE), (4, 6)]), (0, 0), "a hash does not change");
        let other = [(0, 1), (1, TYPE), (2, u64::MAX)];
        assert_eq!(found(&other, &[(0, 1), (1, TYPE), (2, 7)]), (0, 0), "no string begins there");
        let immortal = [(1, 0xffff_ffff), (2, TYPE), (4, u64::MAX)];
        assert_eq!(found(&immortal, &[(1, 0xffff_ffff), (2, TYPE), (4, 9)]), (1, 1));
    }

    fn compare(was: &[(usize, u64)], is: &[(usize, u64)]) -> (u32, u32, u32, bool) {
        let mut objects = languages::objects(None, PointerBudget::default());
        let found = difference(7, &page(was), &page(is), &mut *objects, &mut word);
        (found.bytes, found.words, found.counts, found.objects)
    }

    #[test]
    fn a_count_is_a_word_before_a_type_and_nothing_else_is() {
        assert_eq!(compare(&[(1, 0x1_0000), (2, TYPE)], &[(1, 0x1_0000), (2, TYPE)]), (0, 0, 0, true));
        assert_eq!(compare(&[(1, 0x1_0000), (2, TYPE)], &[(1, 0xffff), (2, TYPE)]), (3, 1, 1, true));
        // A field that went from 1 to 7, a byte of a text, a pointer that moved a little: there is no object.
        assert_eq!(compare(&[(1, 1)], &[(1, 7)]), (1, 1, 0, false));
        let text = u64::from_le_bytes(*b"hello\0\0\0");
        assert_eq!(compare(&[(1, text)], &[(1, text + 2)]), (1, 1, 0, false));
        let pointer = 0x7f00_0000_1000;
        assert_eq!(compare(&[(1, pointer)], &[(1, pointer + 64)]), (1, 1, 0, false));
        // The same beside an object, and where its type changed with it: a new object took its place.
        assert_eq!(compare(&[(0, 1), (1, TYPE), (5, 1)], &[(0, 1), (1, TYPE), (5, 7)]), (1, 1, 0, true));
        assert_eq!(compare(&[(0, 1), (1, TYPE)], &[(0, 2), (1, TYPE + 64)]), (2, 2, 0, true));
        // The pointer to the type stands, but the count became the link of a free block.
        assert_eq!(compare(&[(0, 1), (1, TYPE)], &[(0, pointer), (1, TYPE)]).2, 0);
    }
}
