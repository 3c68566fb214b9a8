//! Evidence: what the kernel shows of memory, by several mechanisms that must agree.
//!
//! # Safety
//! Only calls that change no memory the caller did not pass.
#![expect(unsafe_code, reason = "mincore and a probe of mseal pass addresses")]

use crate::memory::{Memory, last_errno};
use cowbell::page::{PageIndex, PageSet};
use cowbell::sys::map::{self, Range};
use cowbell::sys::pagemap::{COPIED, COPIED_ARMED, Categories, Entry, PageRegion, Pagemap, Query, WRITTEN};
use cowbell::sys::procfs::{smaps, status::Status};
use cowbell::sys::{Errno, memfd, process, procfs};

/// All categories but the youngest, which a kernel before 6.15 refuses.
pub const ALL: Categories = Categories::all().difference(Categories::GUARD);

/// The mapping is under asynchronous write-protection.
pub const ALLOWED: Categories = Categories::WP_ALLOWED;
/// The page is write-protected through userfaultfd, or has a marker.
pub const WP_BIT: Entry = Entry::UFFD_WP;

/// The pages of `memory` that fit one of the queries.
pub fn scan(pagemap: &Pagemap, memory: &Memory, queries: &[Query]) -> PageSet {
    let mut set = PageSet::new();
    for query in queries {
        pagemap.scan(memory.range, query, |run| insert(&mut set, memory, run)).expect("PAGEMAP_SCAN");
    }
    set
}

/// Does a descriptor of memory that is gone show nothing? Some kernels say so by ESRCH.
pub fn shows_nothing(pagemap: &Pagemap, memory: &Memory) -> bool {
    let mut none = true;
    let all = Query { all: Categories::PRESENT, none: Categories::empty(), any: Categories::empty(), rearm: false };
    let scanned = pagemap.scan(memory.range, &all, |_| none = false);
    none && matches!(scanned, Ok(()) | Err(Errno::SRCH))
}

/// Adds a run of addresses as pages.
pub fn insert(set: &mut PageSet, memory: &Memory, run: Range) {
    assert!(run.start >= memory.range.start && run.end() <= memory.range.end(), "{run:?} is outside");
    let first = memory.page.index_of(run.start - memory.range.start);
    let count = memory.page.pages_for(run.len);
    set.insert_span(cowbell::page::PageSpan { start: first, count });
}

fn own() -> Pagemap {
    Pagemap::open_self().expect("/proc/self/pagemap")
}

/// The crate's census of this process, where nothing is armed.
pub fn copied(memory: &Memory) -> PageSet {
    scan(&own(), memory, &COPIED)
}

/// The crate's census of this process, in an armed range.
pub fn copied_armed(memory: &Memory) -> PageSet {
    scan(&own(), memory, &COPIED_ARMED)
}

/// Pages that were written since they were armed.
pub fn written(memory: &Memory) -> PageSet {
    scan(&own(), memory, &[WRITTEN])
}

/// A set from page numbers.
pub fn pages(numbers: impl IntoIterator<Item = usize>) -> PageSet {
    numbers.into_iter().map(|page| PageIndex(page as u64)).collect()
}

/// The categories of one page; empty for one that has none.
pub fn categories(memory: &Memory, page: usize) -> Categories {
    let query = Query { all: Categories::empty(), none: Categories::empty(), any: ALL, rearm: false };
    let range = memory.at(page);
    let mut regions = [PageRegion { start: 0, end: 0, categories: 0 }];
    let (_, count) = own()
        .scan_once(range.start as u64, range.end() as u64, &query, &mut regions)
        .expect("PAGEMAP_SCAN of one page");
    if count == 0 { Categories::empty() } else { Categories::from_bits_retain(regions[0].categories) }
}

/// The word of `/proc/self/pagemap` for one page.
pub fn entry(memory: &Memory, page: usize) -> Entry {
    let mut found = Entry::empty();
    own().read(memory.at(page), |_, entry| found = entry).expect("read of pagemap");
    found
}

/// The figures of smaps for a memory, all its mappings together.
pub fn smaps(pid: i32, memory: &Memory) -> smaps::MappingFigures {
    let mut sum = smaps::MappingFigures::default();
    for part in smaps::mappings(pid, memory.range).expect("smaps") {
        assert!(
            part.mapping.range.start >= memory.range.start && part.mapping.range.end() <= memory.range.end(),
            "guards keep the mapping apart"
        );
        sum.rss += part.rss;
        sum.private += part.private;
        sum.anonymous += part.anonymous;
        sum.swap += part.swap;
        sum.huge_file += part.huge_file;
        sum.flags.extend(part.flags);
    }
    sum
}

/// `Anonymous:` of this process's smaps, in pages.
pub fn anonymous_pages(memory: &Memory) -> u64 {
    smaps(process::pid(), memory).anonymous / memory.page.bytes() as u64
}

/// One line of `/proc/PID/status`, in KiB.
pub fn status_kib(pid: i32, key: &str) -> u64 {
    Status::of(pid).expect("status").bytes(key).expect("the key") / 1024
}

/// `mincore(2)`: ENOMEM where nothing is mapped.
pub fn mincore(range: Range) -> Result<Vec<u8>, Errno> {
    let mut states = vec![0u8; cowbell::sys::page_size().pages_for(range.len).0 as usize];
    let at = std::ptr::with_exposed_provenance_mut(range.start);
    // SAFETY: the kernel only looks at the range, and the vector has a byte a page.
    let done = unsafe { libc::mincore(at, range.len, states.as_mut_ptr()) };
    if done == 0 { Ok(states) } else { Err(last_errno()) }
}

/// Does this kernel have PAGEMAP_SCAN?
pub fn try_scan() -> Result<(), Errno> {
    let page = map::anonymous(cowbell::sys::page_size().bytes())?;
    Pagemap::open_self()?.scan(page, &COPIED[0], |_| ())
}

/// Does this kernel have mseal? Seals nothing.
pub fn try_mseal() -> Result<(), Errno> {
    // SAFETY: a length of 0 seals nothing.
    let done = unsafe { libc::syscall(libc::SYS_mseal, 0, 0, 0) };
    if done == 0 { Ok(()) } else { Err(last_errno()) }
}

/// The first byte of a page, by a read of `/proc/self/mem`.
pub fn read_mem(memory: &Memory, page: usize) -> u8 {
    let file = procfs::signal_safe::open_memory().expect("/proc/self/mem");
    let mut byte = [0];
    assert_eq!(memfd::read_at(&file, &mut byte, memory.at(page).start as u64), Ok(1));
    byte[0]
}
