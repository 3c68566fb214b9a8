//! The pages that a process has now, mapping by mapping, as its page tables show them.
//!
//! Nothing is stopped: a process that runs changes while it is read, so that what is read is of one moment only
//! page by page.

use cowbell::sys::Errno;
use cowbell::sys::map::Range;
use cowbell::sys::pagemap::{Categories, Entry, Pagemap, Query};
use cowbell::sys::procfs::{maps, smaps};

/// Pages that a scan is not told apart for: reading this many words over a hole costs less than another call.
const GAP_PAGES_MAX: usize = 64;

pub use cowbell::sys::pagemap::PageState;

/// One page, packed into a word: its frame in bits 0 to 54, [`PageEntry::EXCLUSIVE`], and its kind from bit 60 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageEntry(u64);

impl PageEntry {
    /// A page where there is none.
    pub const NOTHING: Self = Self(0);
    const EXCLUSIVE: u64 = 1 << 56;
    const KINDS: [PageState; 5] =
        [PageState::Nothing, PageState::Private, PageState::File, PageState::Zero, PageState::Swapped];

    /// A page of a kind, in this memory alone or not, in a frame (0 where it is not known).
    pub fn new(kind: PageState, exclusive: bool, frame: u64) -> Self {
        let kind = Self::KINDS.iter().position(|&known| known == kind).unwrap_or_default() as u64;
        Self(kind << 60 | if exclusive { Self::EXCLUSIVE } else { 0 } | frame & ((1 << 55) - 1))
    }

    /// The page that a word of `/proc/PID/pagemap` describes, in a mapping that is private or not.
    fn of(entry: Entry, private: bool) -> Self {
        // A write-protected entry that is not present is nearly always the marker of an untouched page.
        match (entry.state(true), private) {
            // A device's memory: no page that counts as anybody's.
            (PageState::Private, false) | (PageState::Nothing, _) => Self::NOTHING,
            (PageState::Swapped, _) => Self::new(PageState::Swapped, false, 0),
            (kind, _) if entry.contains(Entry::PRESENT) => {
                Self::new(kind, entry.contains(Entry::EXCLUSIVE), entry.frame())
            }
            _ => Self::NOTHING,
        }
    }

    /// The kind of the page.
    pub fn kind(self) -> PageState {
        Self::KINDS.get((self.0 >> 60) as usize).copied().unwrap_or(PageState::Nothing)
    }

    /// Tells whether it is mapped by this memory alone.
    pub fn is_exclusive(self) -> bool {
        self.0 & Self::EXCLUSIVE != 0
    }

    /// The page's frame, where the reader may know.
    pub fn frame(self) -> Option<u64> {
        Some(self.0 & ((1 << 55) - 1)).filter(|&frame| frame != 0)
    }
}

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpaceMapping {
    /// The mapping's addresses.
    pub range: Range,
    /// Not shared: what is written there is this process' own.
    pub private: bool,
    /// True if it maps a file, a memfd included.
    pub file: bool,
    /// The name in `/proc/PID/maps`; `[anonymous]` where that has none.
    pub name: String,
}

/// Neighbouring pages of one mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpaceRun {
    /// The mapping's place in [`ProcessPages::mappings`].
    pub mapping: usize,
    /// The first page's address.
    pub start: usize,
    /// The pages; not all need be there.
    pub pages: Vec<PageEntry>,
}

/// A process' pages.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ProcessPages {
    /// Ascending.
    pub mappings: Vec<SpaceMapping>,
    /// Ascending.
    pub runs: Vec<SpaceRun>,
}

impl ProcessPages {
    /// Every page with its address.
    pub fn pages(&self) -> impl DoubleEndedIterator<Item = (usize, PageEntry)> + '_ {
        let bytes = cowbell::sys::page_size().bytes();
        let of = move |run: &SpaceRun, nth: usize| run.start + nth * bytes;
        self.runs.iter().flat_map(move |run| run.pages.iter().enumerate().map(move |(nth, &page)| (of(run, nth), page)))
    }

    /// A reader of pages at ascending addresses.
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor { runs: &self.runs, page_bytes: cowbell::sys::page_size().bytes() }
    }
}

/// Looks pages up at ascending addresses.
pub struct Cursor<'a> {
    runs: &'a [SpaceRun],
    page_bytes: usize,
}

impl Cursor<'_> {
    /// The page at an address, which must not be below that of the call before.
    pub fn at(&mut self, address: usize) -> PageEntry {
        while let Some((run, rest)) = self.runs.split_first() {
            if address < run.start {
                break;
            }
            if let Some(&page) = run.pages.get((address - run.start) / self.page_bytes) {
                return page;
            }
            self.runs = rest;
        }
        PageEntry::NOTHING
    }
}

/// Reads page tables by `PAGEMAP_SCAN` where the kernel has it, else word by word.
pub struct PagemapReader {
    scan: bool,
}

impl PagemapReader {
    /// Asks the kernel what it has.
    pub fn new() -> Self {
        let nothing = Range { start: 0, len: cowbell::sys::page_size().bytes() };
        let scan = Pagemap::open_self().and_then(|pagemap| pagemap.scan(nothing, &PRESENT, |_| {}));
        Self { scan: scan.is_ok() }
    }

    /// Tells whether the page of zeroes can be told from a page that is shared.
    pub fn tells_zero_pages(&self) -> bool {
        self.scan
    }

    /// The pages of the process or thread `id`.
    ///
    /// # Errors
    /// ENOENT and ESRCH when it is gone or has no memory; EACCES and EPERM without ptrace read access.
    pub fn read(&self, id: i32) -> Result<ProcessPages, Errno> {
        let pagemap = Pagemap::open(id)?;
        let mut space = ProcessPages { mappings: mappings(id)?, runs: Vec::new() };
        let resident = if self.scan { None } else { resident(id) };
        for (mapping, SpaceMapping { range, private, .. }) in space.mappings.iter().enumerate() {
            if resident.as_ref().is_some_and(|resident| resident.binary_search(&range.start).is_err()) {
                continue;
            }
            let (present, zero) = if self.scan { scan(&pagemap, *range)? } else { (vec![*range], Vec::new()) };
            for range in present {
                let mut pages = Vec::with_capacity(range.len / cowbell::sys::page_size().bytes());
                pagemap.read(range, |_, entry| pages.push(PageEntry::of(entry, *private)))?;
                space.runs.push(SpaceRun { mapping, start: range.start, pages });
            }
            mark_zero(&mut space.runs, &zero);
        }
        Ok(space)
    }
}

/// Pages that are there, or are not because they were swapped out.
const PRESENT: Query = Query {
    all: Categories::empty(),
    none: Categories::empty(),
    any: Categories::PRESENT.union(Categories::SWAPPED),
    rearm: false,
};

/// Places where the page of zeroes is mapped.
const ZERO: Query =
    Query { all: Categories::PFN_ZERO, none: Categories::empty(), any: Categories::empty(), rearm: false };

/// The ranges in which a mapping has pages, small gaps closed; and those in which it has the page of zeroes.
fn scan(pagemap: &Pagemap, range: Range) -> Result<(Vec<Range>, Vec<Range>), Errno> {
    let gap_bytes_max = GAP_PAGES_MAX * cowbell::sys::page_size().bytes();
    let mut present: Vec<Range> = Vec::new();
    pagemap.scan(range, &PRESENT, |found| match present.last_mut() {
        Some(last) if found.start - last.end() <= gap_bytes_max => last.len = found.end() - last.start,
        _ => present.push(found),
    })?;
    let mut zero = Vec::new();
    if let (Some(first), Some(last)) = (present.first(), present.last()) {
        let within = Range { start: first.start, len: last.end() - first.start };
        pagemap.scan(within, &ZERO, |found| zero.push(found))?;
    }
    Ok((present, zero))
}

/// Corrects what the words of zero pages say: they look like shared pages.
fn mark_zero(runs: &mut [SpaceRun], zero: &[Range]) {
    let bytes = cowbell::sys::page_size().bytes();
    for range in zero {
        let first = runs.partition_point(|run| run.start + run.pages.len() * bytes <= range.start);
        for run in runs.iter_mut().skip(first).take_while(|run| run.start < range.end()) {
            let from = range.start.saturating_sub(run.start) / bytes;
            let to = (range.end() - run.start) / bytes;
            let there = |page: &&mut PageEntry| page.kind() != PageState::Nothing;
            for page in run.pages.iter_mut().take(to).skip(from).filter(there) {
                *page = PageEntry::new(PageState::Zero, false, 0);
            }
        }
    }
}

/// Starts of the mappings that have pages, ascending, for kernels without a scan; `None` where that cannot be read.
fn resident(id: i32) -> Option<Vec<usize>> {
    let all = smaps::mappings(id, Range { start: 0, len: usize::MAX }).ok()?;
    // Memory of huge page pools is in no figure of these; it is told by its flag.
    let has_pages = |m: &smaps::MappingFigures| m.rss > 0 || m.swap > 0 || m.flags.iter().any(|flag| flag == "ht");
    Some(all.into_iter().filter(has_pages).map(|m| m.mapping.range.start).collect())
}

fn mappings(id: i32) -> Result<Vec<SpaceMapping>, Errno> {
    // Pages of [vvar] are the kernel's; [vsyscall] is beyond what page tables of a process hold.
    let has_pages = |mapping: &SpaceMapping| !mapping.name.starts_with("[vvar") && mapping.name != "[vsyscall]";
    Ok(maps::read(id)?.into_iter().map(SpaceMapping::from).filter(has_pages).collect())
}

impl From<maps::Mapping> for SpaceMapping {
    fn from(found: maps::Mapping) -> Self {
        // Anonymous memory of a huge page pool has a file that nobody can name.
        let file = found.inode != 0 && found.name != "/anon_hugepage (deleted)";
        let private = found.is_private();
        let name = if found.name.is_empty() { "[anonymous]".to_owned() } else { found.name };
        Self { range: found.range, private, file, name }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_keeps_what_it_was_made_of() {
        for kind in PageEntry::KINDS {
            for (exclusive, frame) in [(false, 0), (true, 1), (false, (1 << 55) - 1), (true, 0)] {
                let page = PageEntry::new(kind, exclusive, frame);
                assert_eq!((page.kind(), page.is_exclusive(), page.frame().unwrap_or(0)), (kind, exclusive, frame));
            }
        }
    }

    #[test]
    fn words_are_read_for_what_they_are() {
        let kind = |bits: u64, private| PageEntry::of(Entry::from_bits_retain(bits), private).kind();
        assert_eq!(
            (kind(1 << 63 | 7, true), kind(1 << 63 | 7, false)),
            (PageState::Private, PageState::Nothing),
            "a device's page"
        );
        assert_eq!(kind(1 << 62 | 1 << 57, true), PageState::Nothing, "the marker of an armed range");
        assert_eq!((kind(1 << 62, true), kind(1 << 63 | 1 << 61 | 7, true)), (PageState::Swapped, PageState::File));
    }

    #[test]
    fn a_mapping_tells_whether_it_is_private_and_of_a_file() {
        let mapping = |line| maps::parse(line).map(SpaceMapping::from).expect("a mapping");
        let memfd = mapping("7f00-7f02 rw-p 00001000 00:01 1033   /memfd:a graph (deleted)");
        assert_eq!((memfd.private, memfd.file, memfd.name.as_str()), (true, true, "/memfd:a graph (deleted)"));
        let anonymous = mapping("7f00-7f02 ---s 00000000 00:00 0 ");
        assert_eq!((anonymous.private, anonymous.file, anonymous.name.as_str()), (false, false, "[anonymous]"));
        let huge = mapping("7f00-7f02 rw-p 00000000 00:11 924   /anon_hugepage (deleted)");
        assert_eq!((huge.private, huge.file), (true, false));
    }

    #[test]
    fn a_cursor_finds_each_page_and_nothing_between() {
        let bytes = cowbell::sys::page_size().bytes();
        let page = |frame| PageEntry::new(PageState::Private, false, frame);
        let run = |start: usize, pages: Vec<PageEntry>| SpaceRun { mapping: 0, start: start * bytes, pages };
        let runs = vec![run(2, vec![page(1), page(2)]), run(4, vec![page(3)]), run(9, vec![page(4)])];
        let mut space = ProcessPages { mappings: Vec::new(), runs };
        let mut cursor = space.cursor();
        let found: Vec<_> = (0..11).map(|at| cursor.at(at * bytes).frame().unwrap_or(0)).collect();
        assert_eq!(found, [0, 0, 1, 2, 3, 0, 0, 0, 0, 4, 0]);
        // Zeroes from page 3 to page 9.
        mark_zero(&mut space.runs, &[Range { start: 3 * bytes, len: 7 * bytes }]);
        let kinds: Vec<_> = space.pages().map(|(at, page)| (at / bytes, page.kind())).collect();
        assert_eq!(kinds, [(2, PageState::Private), (3, PageState::Zero), (4, PageState::Zero), (9, PageState::Zero)]);
    }

    #[test]
    fn word_by_word_and_by_scan_the_same_pages_are_found() {
        let data = vec![1u8; 64 * cowbell::sys::page_size().bytes()];
        let pages = |reader: PagemapReader| {
            let space = reader.read(cowbell::sys::process::pid()).expect("this process is readable");
            let within = data.as_ptr_range().start.addr()..data.as_ptr_range().end.addr();
            space.pages().filter(|(at, _)| within.contains(at)).collect::<Vec<_>>()
        };
        let by_word = pages(PagemapReader { scan: false });
        assert!(
            by_word.len() >= 63 && by_word.iter().all(|(_, page)| page.kind() == PageState::Private),
            "{by_word:?}"
        );
        let by_scan = PagemapReader::new();
        if by_scan.scan {
            assert_eq!(pages(by_scan), by_word);
        } else {
            println!("skipped: this kernel has no PAGEMAP_SCAN (Linux 6.7)");
        }
    }
}
