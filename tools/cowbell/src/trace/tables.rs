//! The page tables of a process, read in runs: by `PAGEMAP_SCAN` where the kernel has it (Linux 6.7), else by the words of
//! `/proc/PID/pagemap`, which is enough for page faults. The words lack two things that a scan tells. The page of zeroes is known
//! by its frame, of which there is one. A huge page is known by its frames, which follow each other, and by `/proc/kpageflags`.

use super::baseline::{huge_bytes, page_bytes};
use cowbell::sys::Errno;
use cowbell::sys::map::{self, Range};
use cowbell::sys::memfd;
use cowbell::sys::pagemap::{Categories, Entry, Pagemap, Query};
use cowbell::sys::procfs::{maps, smaps};
use std::fs::File;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

/// Bits of `/proc/kpageflags`: a page of a pool of huge pages, a part of a transparent one, and zeroes that all share.
const POOL: u64 = 1 << 17;
const TRANSPARENT: u64 = 1 << 22;
pub const ZEROES: u64 = 1 << 24;

/// From this size on, a mapping that cannot be touched is looked up in smaps first: allocators reserve tebibytes so.
const LARGE_BYTES: usize = 1 << 30;

/// The number of huge pages whose entries are read at once.
const BLOCKS: usize = 16;

/// A process' page tables, and the way to read them.
#[derive(Debug)]
pub struct PageTables {
    pagemap: Pagemap,
    id: i32,
}

/// The way in which this kernel shows page tables.
#[derive(Debug)]
enum Way {
    Scan,
    Words(Words),
}

/// The knowledge by which words are read like a scan.
#[derive(Debug)]
struct Words {
    /// The frame of the page of zeroes.
    zeroes: u64,
    flags: File,
}

/// The way, found out once per run: all readings of page tables are compared with each other.
fn way() -> Result<&'static Way, Errno> {
    static WAY: OnceLock<Result<Way, Errno>> = OnceLock::new();
    let find = || match nothing_found(&Pagemap::open_self()?) {
        Ok(()) => Ok(Way::Scan),
        // The kernel does not know the call.
        Err(Errno::NOTTY | Errno::INVAL) => Words::new().map(Way::Words),
        Err(e) => Err(e),
    };
    WAY.get_or_init(find).as_ref().map_err(|e| *e)
}

/// One scan of a page that nobody can map.
fn nothing_found(pagemap: &Pagemap) -> Result<(), Errno> {
    let range = Range { start: 0, len: page_bytes() as usize };
    let none = Categories::empty();
    pagemap.scan(range, &Query { all: Categories::PRESENT, none, any: none, rearm: false }, |_| {})
}

/// Finds out whether page tables can be read so that page faults can be settled.
///
/// # Errors
/// Neither by a scan nor by words: ENOTTY, or EACCES or EPERM where the kernel has no scan and page frames are not for this user.
pub fn ability() -> Result<(), Errno> {
    way().map(drop)
}

impl Deref for PageTables {
    type Target = Pagemap;

    fn deref(&self) -> &Pagemap {
        &self.pagemap
    }
}

impl PageTables {
    /// Opens the page tables of a process or thread.
    ///
    /// # Errors
    /// Those of [`Pagemap::open`].
    pub fn open(id: i32) -> Result<Self, Errno> {
        Ok(Self { pagemap: Pagemap::open(id)?, id })
    }

    /// Calls `found` for each run of pages in `range` that fits the query, with those of the categories in `all` and `any` that it
    /// has. The query may name PRESENT, SWAPPED, FILE, PFN_ZERO and HUGE.
    ///
    /// # Errors
    /// The process is gone, or its page tables cannot be read in either way.
    pub fn runs(&self, range: Range, query: &Query, found: impl FnMut(Range, Categories)) -> Result<(), Errno> {
        self.runs_of(&[range], query, found)
    }

    /// The same for several ranges, ascending and apart.
    ///
    /// # Errors
    /// Those of [`Self::runs`].
    pub fn runs_of(
        &self,
        ranges: &[Range],
        query: &Query,
        mut found: impl FnMut(Range, Categories),
    ) -> Result<(), Errno> {
        match way()? {
            Way::Scan => ranges.iter().try_for_each(|&range| self.pagemap.scan_categories(range, query, &mut found)),
            Way::Words(words) => words.runs(self, ranges, query, found),
        }
    }

    /// Tells whether a page has one of the categories that a query may name. Unlike [`Self::runs`], this asks for no mappings.
    ///
    /// # Errors
    /// Those of [`Self::runs`].
    pub fn is(&self, page: u64, category: Categories) -> Result<bool, Errno> {
        match way()? {
            Way::Scan => {
                let range = Range { start: page as usize, len: page_bytes() as usize };
                let none = Categories::empty();
                let mut found = false;
                self.scan_categories(range, &Query { all: category, none, any: none, rearm: false }, |_, _| {
                    found = true
                })?;
                Ok(found)
            }
            Way::Words(words) => Ok(words.page(self, page)?.contains(category)),
        }
    }
}

impl Words {
    /// Finds the page of zeroes: what memory shows that was only read.
    fn new() -> Result<Self, Errno> {
        let open = |path| File::open(path).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO));
        let (flags, memory, pagemap) = (open("/proc/kpageflags")?, open("/proc/self/mem")?, Pagemap::open_self()?);
        let words = Self { zeroes: 0, flags };
        // Not a whole huge page lies in it, or there would be zeroes of that size.
        let range = map::anonymous(page_bytes() as usize)?;
        let read = memfd::read_at(&memory, &mut [0], range.start as u64);
        let mut frame = 0;
        let entry = read.and_then(|_| pagemap.read(range, |_, entry| frame = entry.frame()));
        // SAFETY: the range was mapped above, and nobody else knows of it.
        #[expect(unsafe_code, reason = "what was mapped for one look is unmapped")]
        unsafe { map::unmap(range) }?;
        entry?;
        // Without CAP_SYS_ADMIN every frame is 0.
        let is_zeroes = frame != 0 && words.flags(frame)? & (ZEROES | TRANSPARENT) == ZEROES;
        if is_zeroes { Ok(Self { zeroes: frame, ..words }) } else { Err(Errno::PERM) }
    }

    fn flags(&self, frame: u64) -> Result<u64, Errno> {
        let mut word = [0; 8];
        let read = self.flags.read_exact_at(&mut word, frame * 8);
        read.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        Ok(u64::from_ne_bytes(word))
    }

    /// Does what [`PageTables::runs`] does. Page tables are read by mappings: over the holes between them the kernel would write words for days.
    fn runs(
        &self,
        tables: &PageTables,
        ranges: &[Range],
        query: &Query,
        mut found: impl FnMut(Range, Categories),
    ) -> Result<(), Errno> {
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else { return Ok(()) };
        let whole = Range { start: first.start, len: last.end() - first.start };
        let mut all = maps::read(tables.id)?;
        all.retain(|mapping| mapping.range.overlaps(whole) && mapping.name != "[vsyscall]");
        let is_reserve =
            |mapping: &maps::Mapping| mapping.range.len >= LARGE_BYTES && mapping.permissions.starts_with("---");
        if all.iter().any(is_reserve) {
            let figures = smaps::mappings(tables.id, whole)?;
            let is_empty = |figures: &&smaps::MappingFigures| figures.rss == 0 && figures.swap == 0;
            let empty: Vec<Range> = figures.iter().filter(is_empty).map(|figures| figures.mapping.range).collect();
            all.retain(|mapping| !is_reserve(mapping) || !empty.contains(&mapping.range));
        }
        let mut last: Option<(Range, Categories)> = None;
        let inside = all.iter().flat_map(|mapping| {
            let from = ranges.partition_point(|range| range.end() <= mapping.range.start);
            let reaching = ranges.iter().skip(from).take_while(|range| range.start < mapping.range.end());
            reaching.map(|&range| (mapping.range, range))
        });
        for (mapping, range) in inside {
            self.mapping(tables, mapping, range, |page, categories| {
                let fits = categories.contains(query.all)
                    && !categories.intersects(query.none)
                    && (query.any.is_empty() || categories.intersects(query.any));
                if !fits {
                    return;
                }
                let told = categories & (query.all | query.any);
                match &mut last {
                    Some((run, same)) if run.end() == page && *same == told => run.len += page_bytes() as usize,
                    _ => {
                        let next = (Range { start: page, len: page_bytes() as usize }, told);
                        if let Some((run, categories)) = last.replace(next) {
                            found(run, categories);
                        }
                    }
                }
            })?;
        }
        if let Some((run, categories)) = last {
            found(run, categories);
        }
        Ok(())
    }

    /// The categories of one page. Its mapping is not asked for: a huge page of which a part lies in another one is told as huge, too.
    fn page(&self, tables: &PageTables, page: u64) -> Result<Categories, Errno> {
        let start = page / huge_bytes() * huge_bytes();
        let mut block = Vec::with_capacity((huge_bytes() / page_bytes()) as usize);
        let whole = Range { start: start as usize, len: huge_bytes() as usize };
        let read = tables.pagemap.read(whole, |_, entry| block.push(entry));
        let nth = ((page - start) / page_bytes()) as usize;
        // At the end of what can be mapped a block is short.
        read.or_else(|e| if nth < block.len() { Ok(()) } else { Err(e) })?;
        let entry = block.get(nth).copied().ok_or(Errno::SRCH)?;
        Ok(self.categories(entry, self.flags_of_huge(&block)?))
    }

    /// Calls `each` for the pages of a mapping that lie in `within`. What is read begins and ends where huge pages do.
    fn mapping(
        &self,
        tables: &PageTables,
        mapping: Range,
        within: Range,
        mut each: impl FnMut(usize, Categories),
    ) -> Result<(), Errno> {
        let (page, huge) = (page_bytes() as usize, huge_bytes() as usize);
        let (first, stop) = (mapping.start.max(within.start), mapping.end().min(within.end()));
        let mut start = (first / huge * huge).max(mapping.start);
        let mut entries = Vec::with_capacity(BLOCKS * huge / page);
        while start < stop {
            let end = ((start / huge + BLOCKS) * huge).min(stop.next_multiple_of(huge)).min(mapping.end());
            entries.clear();
            tables.pagemap.read(Range { start, len: end - start }, |_, entry| entries.push(entry))?;
            let mut from = start;
            let mut rest = entries.as_slice();
            while !rest.is_empty() {
                let (block, others) = rest.split_at(((huge - from % huge) / page).min(rest.len()));
                let flags = self.flags_of_huge(block)?;
                for (nth, &entry) in block.iter().enumerate() {
                    let at = from + nth * page;
                    if (first..stop).contains(&at) {
                        each(at, self.categories(entry, flags));
                    }
                }
                from += block.len() * page;
                rest = others;
            }
            start = end;
        }
        Ok(())
    }

    /// The flags of the huge page that these entries show, if it is one: its frames are neighbours, and the first one is where a huge page
    /// can be. (Such a page may be mapped by its parts, all in their places.)
    fn flags_of_huge(&self, block: &[Entry]) -> Result<u64, Errno> {
        let pages = huge_bytes() / page_bytes();
        let Some(first) = block.first().map(|entry| entry.frame()) else { return Ok(0) };
        let is_whole = block.len() as u64 == pages && first != 0 && first % pages == 0;
        let is_in_place = |(entry, frame): (&Entry, u64)| entry.contains(Entry::PRESENT) && entry.frame() == frame;
        if !is_whole || !block.iter().zip(first..).all(is_in_place) {
            return Ok(0);
        }
        Ok(Some(self.flags(first)?).filter(|flags| flags & (TRANSPARENT | POOL) != 0).unwrap_or(0))
    }

    fn categories(&self, entry: Entry, flags_of_huge: u64) -> Categories {
        let mut categories = Categories::empty();
        categories.set(Categories::PRESENT, entry.contains(Entry::PRESENT));
        categories.set(Categories::SWAPPED, entry.contains(Entry::SWAPPED));
        categories.set(Categories::HUGE, flags_of_huge != 0);
        let is_zeroes = entry.frame() == self.zeroes || flags_of_huge & ZEROES != 0;
        categories.set(Categories::PFN_ZERO, entry.contains(Entry::PRESENT) && is_zeroes);
        // The words call the huge page of zeroes a file's.
        categories.set(Categories::FILE, entry.contains(Entry::FILE) && flags_of_huge & ZEROES == 0);
        categories
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowbell::sys::map::Harmless;
    use proptest::prelude::*;

    /// The query that names every category that one may name.
    const QUERY: Query = Query {
        all: Categories::empty(),
        none: Categories::empty(),
        any: Categories::PRESENT
            .union(Categories::SWAPPED)
            .union(Categories::FILE)
            .union(Categories::PFN_ZERO)
            .union(Categories::HUGE),
        rearm: false,
    };

    /// Both ways, run by run; `None` where this kernel or this user has only one.
    fn both(range: Range, query: &Query) -> Option<[Vec<(Range, Categories)>; 2]> {
        let tables = PageTables::open(cowbell::sys::process::pid()).expect("our own");
        let words = match Words::new() {
            Err(e @ (Errno::ACCESS | Errno::PERM)) => {
                println!("skipped: no page frames ({e})");
                return None;
            }
            found => found.expect("words"),
        };
        nothing_found(&tables).inspect_err(|e| println!("skipped: no PAGEMAP_SCAN ({e})")).ok()?;
        let (mut by_scan, mut by_words) = (Vec::new(), Vec::new());
        let add = |runs: &mut Vec<(Range, Categories)>, run: Range, categories| match runs.last_mut() {
            Some((last, same)) if last.end() == run.start && *same == categories => last.len += run.len,
            _ => runs.push((run, categories)),
        };
        tables.scan_categories(range, query, |run, is| add(&mut by_scan, run, is)).expect("a scan");
        words.runs(&tables, &[range], query, |run, is| add(&mut by_words, run, is)).expect("words");
        Some([by_scan, by_words])
    }

    /// Memory of two huge pages at least, whole, that ends with the test process.
    fn blocks() -> Range {
        let huge = huge_bytes() as usize;
        let range = map::anonymous(4 * huge).expect("mapped");
        map::advise(range, Harmless::HugePage).expect("advised");
        Range { start: range.start.next_multiple_of(huge), len: 2 * huge }
    }

    #[derive(Clone, Copy, Debug)]
    enum Touch {
        Read,
        Write,
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn words_and_scans_give_the_same_runs(
            touches in prop::collection::vec((0..64usize, prop_oneof![Just(Touch::Read), Just(Touch::Write)]), 0..40),
            is_huge: bool,
            cut in 0..64usize,
        ) {
            let memory = File::options().read(true).write(true).open("/proc/self/mem").expect("our own");
            let page = page_bytes() as usize;
            let range = if is_huge { blocks() } else { map::anonymous(64 * page).expect("mapped") };
            for (at, touch) in touches {
                // Every second one lies in the second half: of two huge pages, the other one.
                let at = (range.start + at / 2 * page + at % 2 * range.len / 2) as u64;
                match touch {
                    Touch::Read => memory.read_exact_at(&mut [0], at),
                    Touch::Write => memory.write_all_at(&[7], at),
                }
                .expect("there");
            }
            let cut = Range { start: range.start + cut * page, len: range.len - cut * page };
            for within in [range, cut] {
                for query in [QUERY, super::super::baseline::PRIVATE] {
                    if let Some([by_scan, by_words]) = both(within, &query) {
                        prop_assert_eq!(by_words, by_scan);
                    }
                }
            }
            if let (Some([by_scan, _]), Ok(words)) = (both(range, &QUERY), Words::new()) {
                let tables = PageTables::open(cowbell::sys::process::pid()).expect("our own");
                for address in (range.start..range.end()).step_by(page) {
                    let is_at = |(run, _): &&(Range, Categories)| run.start <= address && address < run.end();
                    let told = by_scan.iter().find(is_at).map_or(Categories::empty(), |(_, told)| *told);
                    prop_assert_eq!(words.page(&tables, address as u64).expect("read"), told);
                }
            }
            // SAFETY: this test has mapped it, and its name ends here.
            #[expect(unsafe_code, reason = "mappings of a test")]
            unsafe { map::unmap(range) }.expect("unmapped");
        }
    }

    #[test]
    fn memory_of_files_and_parts_of_huge_pages_are_told_alike() {
        let page = page_bytes() as usize;
        let memory = File::options().read(true).write(true).open("/proc/self/mem").expect("our own");
        let program = maps::read(cowbell::sys::process::pid()).expect("our own").into_iter();
        let file = program.clone().find(|mapping| mapping.inode != 0 && mapping.permissions == "r-xp").expect("code");
        // Two huge pages are written whole. The first keeps its entry; the second is mapped by its parts from then on.
        let range = blocks();
        for block in [range.start, range.start + range.len / 2] {
            memory.write_all_at(&vec![7; range.len / 2], block as u64).expect("written");
        }
        let (part, unreadable) = (
            Range { start: range.end() - 3 * page, len: page },
            Range { start: range.start + range.len / 2 + 5 * page, len: 4 * page },
        );
        // SAFETY: this test has mapped it, and no reference is to it.
        #[expect(unsafe_code, reason = "mappings of a test")]
        unsafe { map::unmap(part) }.expect("unmapped");
        // SAFETY: this test has mapped it, and no reference is to it.
        #[expect(unsafe_code, reason = "mappings of a test")]
        unsafe { map::protect(unreadable, map::Access::None) }.expect("protected");
        for range in [range, file.range] {
            if let Some([by_scan, by_words]) = both(range, &QUERY) {
                assert!(!by_scan.is_empty());
                assert_eq!(by_words, by_scan);
            }
        }
    }
}
