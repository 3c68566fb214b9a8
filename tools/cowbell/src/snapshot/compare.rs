//! A process' pages against its parent's: the verdict on each, and the sums. Pure: evidence in, counts out.

use super::space::{PageEntry, PageState, ProcessPages, SpaceRun};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// The pages against which a process' pages are held.
#[derive(Clone, Copy)]
pub enum Against<'a> {
    /// The parent's pages.
    Parent(&'a ProcessPages),
    /// Nothing: it was not forked from the program that its parent runs.
    Nobody,
    /// The parent's pages, which could not be read.
    Unreadable,
    /// Itself: it runs in another process' memory.
    Itself,
}

/// The origin of an anonymous page, as far as the parent's page at the same address tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The parent has another page there.
    Differs,
    /// The parent has nothing there, or the page of zeroes.
    New,
    /// In a private mapping of a file, where the parent has no private page.
    FileCopy,
    /// The parent's page is swapped out or could not be read.
    Unknown,
}

/// The verdict on one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageClass {
    Nothing,
    /// The same page frame as the parent's.
    Parent,
    /// Not this process' alone; without page frames the parent cannot be told from others.
    ParentOrOthers,
    /// This process' alone.
    Own(Origin),
    /// Not the parent's and not this process' alone: its children or siblings have it too.
    Others(Origin),
    File,
    FileExclusive,
    Zero,
    Swapped,
}

/// The verdict on one page; `theirs` is the parent's at the same address, `None` if that is not known.
fn classify(mine: PageEntry, theirs: Option<PageEntry>, file_mapping: bool) -> PageClass {
    match (mine.kind(), mine.is_exclusive()) {
        (PageState::Nothing, _) => PageClass::Nothing,
        (PageState::Zero, _) => PageClass::Zero,
        (PageState::Swapped, _) => PageClass::Swapped,
        (PageState::File, true) => PageClass::FileExclusive,
        (PageState::File, false) => PageClass::File,
        (PageState::Private, exclusive) => match is_same_page(mine, theirs) {
            Some(true) => PageClass::Parent,
            None => PageClass::ParentOrOthers,
            Some(false) if exclusive => PageClass::Own(origin(theirs, file_mapping)),
            Some(false) => PageClass::Others(origin(theirs, file_mapping)),
        },
    }
}

/// Tells whether the parent maps this very page. `None` where that cannot be told.
fn is_same_page(mine: PageEntry, theirs: Option<PageEntry>) -> Option<bool> {
    if let (Some(frame), Some(theirs)) = (mine.frame(), theirs) {
        return Some(theirs.kind() == PageState::Private && theirs.frame() == Some(frame));
    }
    let one_alone = mine.is_exclusive() || theirs.is_some_and(PageEntry::is_exclusive);
    let nothing_there = theirs.is_some_and(|theirs| theirs.kind() != PageState::Private);
    if one_alone || nothing_there { Some(false) } else { None }
}

fn origin(theirs: Option<PageEntry>, file_mapping: bool) -> Origin {
    match theirs.map(PageEntry::kind) {
        None | Some(PageState::Swapped) => Origin::Unknown,
        Some(PageState::Private) => Origin::Differs,
        Some(_) if file_mapping => Origin::FileCopy,
        Some(_) => Origin::New,
    }
}

/// Private pages by where they came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Origins {
    /// All of them.
    pub pages: u64,
    /// The parent has another page at the same address, in a mapping of which the two still share pages: one of them
    /// copied it, or it was not there yet at the fork and each wrote it first.
    pub differs: u64,
    /// The parent has another page at the same address, in a mapping of which the two share nothing: one of them copied
    /// it, or each mapped memory there after the fork. Page tables do not tell which.
    pub copied_or_new: u64,
    /// The parent has nothing there.
    pub new: u64,
    /// Private copies of a file's pages.
    pub file_copies: u64,
    /// Not told: the parent's page is swapped out, or its page tables were not readable.
    pub unknown: u64,
}

impl Origins {
    fn add(&mut self, origin: Origin) {
        self.pages += 1;
        *match origin {
            Origin::Differs => &mut self.differs,
            Origin::New => &mut self.new,
            Origin::FileCopy => &mut self.file_copies,
            Origin::Unknown => &mut self.unknown,
        } += 1;
    }

    fn merge(&mut self, other: &Self) {
        self.pages += other.pages;
        self.differs += other.differs;
        self.copied_or_new += other.copied_or_new;
        self.new += other.new;
        self.file_copies += other.file_copies;
        self.unknown += other.unknown;
    }

    /// Takes back that the pages lie in a mapping which both had at the fork.
    fn doubt(&mut self) {
        self.copied_or_new += std::mem::take(&mut self.differs);
    }
}

/// Pages of a process or of some of its mappings. Each page is counted once, but for `file_exclusive`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PageCounts {
    /// Private pages that are the parent's too: the same page frame at the same address.
    pub shared_with_parent: u64,
    /// Private pages that others have too; without page frames not told whether the parent does.
    pub shared_unknown: u64,
    /// Private pages that nobody else has.
    pub own: Origins,
    /// Private pages that others have, not the parent: the process' own children, or siblings.
    pub shared_with_others: Origins,
    /// Pages of files and of shared memory.
    pub file: u64,
    /// Those of them that no other process maps.
    pub file_exclusive: u64,
    /// Places where the page of zeroes is mapped; takes no memory.
    pub zero: u64,
    /// Swapped out.
    pub swapped: u64,
}

impl PageCounts {
    fn add(&mut self, class: PageClass) {
        match class {
            PageClass::Nothing => {}
            PageClass::Parent => self.shared_with_parent += 1,
            PageClass::ParentOrOthers => self.shared_unknown += 1,
            PageClass::Own(origin) => self.own.add(origin),
            PageClass::Others(origin) => self.shared_with_others.add(origin),
            PageClass::File => self.file += 1,
            PageClass::FileExclusive => {
                self.file += 1;
                self.file_exclusive += 1;
            }
            PageClass::Zero => self.zero += 1,
            PageClass::Swapped => self.swapped += 1,
        }
    }

    /// A mapping's counts when all its pages are in: where none of them is the parent's any more, nothing shows that the
    /// mapping is older than the fork. (With exclusive bits alone, a page that is shared may be the parent's.)
    fn settle(&mut self) {
        if self.shared_with_parent + self.shared_unknown == 0 {
            self.own.doubt();
            self.shared_with_others.doubt();
        }
    }

    /// Adds another's counts.
    pub fn merge(&mut self, other: &Self) {
        self.shared_with_parent += other.shared_with_parent;
        self.shared_unknown += other.shared_unknown;
        self.own.merge(&other.own);
        self.shared_with_others.merge(&other.shared_with_others);
        self.file += other.file;
        self.file_exclusive += other.file_exclusive;
        self.zero += other.zero;
        self.swapped += other.swapped;
    }

    /// Pages that are in memory, whoever has them.
    pub fn present(&self) -> u64 {
        self.shared_with_parent + self.shared_unknown + self.own.pages + self.shared_with_others.pages + self.file
    }
}

/// Counts a process' pages by the name of their mapping.
pub fn count(space: &ProcessPages, against: Against<'_>) -> BTreeMap<String, PageCounts> {
    let page_bytes = cowbell::sys::page_size().bytes();
    let nothing = ProcessPages::default();
    let mut parent = match against {
        Against::Parent(parent) => parent.cursor(),
        Against::Nobody | Against::Unreadable | Against::Itself => nothing.cursor(),
    };
    let mut groups: BTreeMap<String, PageCounts> = BTreeMap::new();
    for runs in space.runs.chunk_by(|one, next| one.mapping == next.mapping) {
        let Some(mapping) = runs.first().and_then(|run| space.mappings.get(run.mapping)) else { continue };
        let mut counts = PageCounts::default();
        let at = |run: &SpaceRun, nth| run.start + nth * page_bytes;
        let pages =
            runs.iter().flat_map(|run| run.pages.iter().enumerate().map(move |(nth, &page)| (at(run, nth), page)));
        for (address, page) in pages {
            counts.add(match against {
                Against::Itself if page.kind() == PageState::Private => PageClass::Parent,
                Against::Unreadable => classify(page, None, mapping.file),
                _ => classify(page, Some(parent.at(address)), mapping.file),
            });
        }
        counts.settle();
        match groups.get_mut(&mapping.name) {
            Some(group) => group.merge(&counts),
            None => drop(groups.insert(mapping.name.clone(), counts)),
        }
    }
    groups
}

/// The page frames that a tree uses: how much memory it takes, each page counted once.
#[derive(Default)]
pub struct Frames {
    /// The place of the bitmap of each chunk of [`Frames::CHUNK`] frames.
    places: HashMap<u64, usize>,
    bitmaps: Vec<[u64; 512]>,
    count: u64,
}

impl Frames {
    /// Frames in one bitmap.
    const CHUNK: u64 = 512 * 64;

    /// Adds the frames of a process' pages.
    pub fn add(&mut self, space: &ProcessPages) {
        let counts = |page: &&PageEntry| matches!(page.kind(), PageState::Private | PageState::File);
        // Neighbouring pages mostly have neighbouring frames.
        let (mut chunk, mut place) = (u64::MAX, 0);
        for frame in space.runs.iter().flat_map(|run| &run.pages).filter(counts).filter_map(|page| page.frame()) {
            if frame / Self::CHUNK != chunk {
                chunk = frame / Self::CHUNK;
                place = *self.places.entry(chunk).or_insert(self.bitmaps.len());
                self.bitmaps.resize(self.bitmaps.len().max(place + 1), [0; 512]);
            }
            let (word, bit) = ((frame % Self::CHUNK / 64) as usize, 1 << (frame % 64));
            let word = self.bitmaps.get_mut(place).and_then(|bitmap| bitmap.get_mut(word));
            if let Some(word) = word.filter(|word| **word & bit == 0) {
                *word |= bit;
                self.count += 1;
            }
        }
    }

    /// The number of different frames that were added.
    pub fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::super::space::SpaceMapping;
    use super::*;
    use cowbell::sys::map::Range;

    const FRAME: u64 = 7;

    fn own(frame: u64) -> PageEntry {
        PageEntry::new(PageState::Private, true, frame)
    }

    fn shared(frame: u64) -> PageEntry {
        PageEntry::new(PageState::Private, false, frame)
    }

    fn some(kind: PageState) -> PageEntry {
        PageEntry::new(kind, false, 99)
    }

    #[test]
    fn with_page_frames_each_page_is_told() {
        let at = |mine, theirs, file| classify(mine, Some(theirs), file);
        assert_eq!(at(shared(FRAME), shared(FRAME), false), PageClass::Parent);
        assert_eq!(at(shared(FRAME), shared(FRAME), true), PageClass::Parent);
        assert_eq!(at(own(FRAME), shared(8), false), PageClass::Own(Origin::Differs));
        assert_eq!(at(own(FRAME), own(8), true), PageClass::Own(Origin::Differs));
        assert_eq!(at(shared(FRAME), own(8), false), PageClass::Others(Origin::Differs));
        assert_eq!(at(shared(FRAME), shared(8), false), PageClass::Others(Origin::Differs));
        assert_eq!(at(shared(FRAME), PageEntry::NOTHING, false), PageClass::Others(Origin::New));
        assert_eq!(at(own(FRAME), some(PageState::Zero), false), PageClass::Own(Origin::New));
        assert_eq!(at(own(FRAME), some(PageState::File), true), PageClass::Own(Origin::FileCopy));
        assert_eq!(at(own(FRAME), PageEntry::NOTHING, true), PageClass::Own(Origin::FileCopy));
        assert_eq!(at(own(FRAME), some(PageState::Swapped), true), PageClass::Own(Origin::Unknown));
    }

    #[test]
    fn without_page_frames_only_what_is_certain_is_told() {
        let at = |mine, theirs| classify(mine, Some(theirs), false);
        assert_eq!(at(shared(0), shared(0)), PageClass::ParentOrOthers);
        assert_eq!(at(shared(0), own(0)), PageClass::Others(Origin::Differs));
        assert_eq!(at(shared(0), PageEntry::NOTHING), PageClass::Others(Origin::New));
        assert_eq!(at(own(0), shared(0)), PageClass::Own(Origin::Differs));
        assert_eq!(at(own(0), PageEntry::NOTHING), PageClass::Own(Origin::New));
    }

    #[test]
    fn an_unreadable_parent_leaves_the_origin_open() {
        assert_eq!(classify(own(FRAME), None, true), PageClass::Own(Origin::Unknown));
        assert_eq!(classify(shared(FRAME), None, true), PageClass::ParentOrOthers);
        assert_eq!(classify(some(PageState::File), None, true), PageClass::File);
    }

    fn space(name: &str, first: usize, pages: &[PageEntry]) -> ProcessPages {
        let bytes = cowbell::sys::page_size().bytes();
        let range = Range { start: first * bytes, len: pages.len() * bytes };
        let mapping = SpaceMapping { range, private: true, file: false, name: name.to_owned() };
        ProcessPages {
            mappings: vec![mapping],
            runs: vec![SpaceRun { mapping: 0, start: range.start, pages: pages.to_vec() }],
        }
    }

    #[test]
    fn pages_are_held_against_the_parent_at_the_same_address() {
        let parent = space("heap", 10, &[shared(1), shared(2), own(3)]);
        let child = space("heap", 11, &[shared(2), own(4), own(5), some(PageState::Zero), some(PageState::Swapped)]);
        let counts = count(&child, Against::Parent(&parent))["heap"];
        assert_eq!((counts.shared_with_parent, counts.own.differs, counts.own.new), (1, 1, 1));
        assert_eq!((counts.zero, counts.swapped, counts.present()), (1, 1, 3));
        let alone = count(&child, Against::Nobody)["heap"];
        assert_eq!((alone.own.new, alone.shared_with_others.new), (2, 1));
        assert_eq!(count(&child, Against::Itself)["heap"].shared_with_parent, 3);
    }

    #[test]
    fn pages_that_both_have_are_called_copies_only_in_a_mapping_that_is_older_than_the_fork() {
        // All pages differ: copied one by one, or both mapped anew.
        let counts =
            count(&space("x", 10, &[own(1), shared(2)]), Against::Parent(&space("x", 10, &[own(3), own(4)])))["x"];
        assert_eq!((counts.own.differs, counts.own.copied_or_new), (0, 1));
        assert_eq!((counts.shared_with_others.differs, counts.shared_with_others.copied_or_new), (0, 1));
        // One is still the parent's, in another run of the same mapping.
        let mut child = space("x", 10, &[own(1), shared(2)]);
        let far = 100 * cowbell::sys::page_size().bytes();
        child.runs.push(SpaceRun { mapping: 0, start: far, pages: vec![shared(7)] });
        let mut parent = space("x", 10, &[own(3), own(4)]);
        parent.runs.push(SpaceRun { mapping: 0, start: far, pages: vec![shared(7)] });
        let counts = count(&child, Against::Parent(&parent))["x"];
        assert_eq!((counts.own.differs, counts.own.copied_or_new, counts.shared_with_parent), (1, 0, 1));
        assert_eq!((counts.shared_with_others.differs, counts.shared_with_others.copied_or_new), (1, 0));
    }

    #[test]
    fn a_frame_counts_once_however_often_it_is_mapped() {
        let mut frames = Frames::default();
        frames.add(&space("a", 0, &[shared(1), shared(2), own(1 << 40), PageEntry::NOTHING, own(0)]));
        frames.add(&space("b", 7, &[shared(1), own(3), PageEntry::new(PageState::Zero, false, 0)]));
        assert_eq!(frames.count(), 4);
    }
}
