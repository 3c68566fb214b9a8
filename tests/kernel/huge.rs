//! Huge pages: collapsing a memfd, and what a write to a huge page copies.

use crate::child;
use crate::claim::{Claim, Need, Skip, Verdict, claim};
use crate::evidence::{self, pages};
use crate::memory::{Kind, Memory, mark};
use crate::watcher;
use cowbell::sys::limits::is_kept_from_huge_pages;
use cowbell::sys::map::{self, Access, Harmless};
use cowbell::sys::memfd::{SEALS_FINAL, held_bytes, seal, set_len};
use cowbell::sys::pagemap::{Categories, Entry};
use cowbell::sys::{Errno, process};

pub const CLAIMS: &[Claim] = &[
    claim!(
        collapse_makes_huge_pages_of_a_sealed_memfd,
        "`MADV_COLLAPSE` puts huge pages behind a read-only private mapping of a sealed memfd and maps them huge, also with shmem_enabled=never; content stays and nothing is copied."
    )
    .needs(&[Need::Scan]),
    claim!(
        child_reads_a_collapsed_memfd_by_huge_entries,
        "A forked child that reads one byte of a collapsed memfd maps it by a huge entry."
    )
    .needs(&[Need::Scan]),
    claim!(
        one_byte_in_a_private_huge_page_copies_one_base_page,
        "A write of one byte to a private mapping of a memfd's huge page copies one base page; the neighbours' entries become none."
    )
    .needs(&[Need::Scan]),
    claim!(
        one_byte_in_an_armed_huge_page_leaves_markers,
        "The same in an armed range copies and records one base page, and the neighbours stay armed."
    )
    .needs(&[Need::Scan, Need::WpAsync]),
    claim!(
        one_byte_in_an_anonymous_huge_page_copies_one_base_page,
        "A forked child's write of one byte to an anonymous huge page copies one base page."
    )
    .needs(&[Need::Scan]),
    claim!(
        first_write_to_advised_memory_takes_a_huge_page,
        "The first write to anonymous memory under `MADV_HUGEPAGE` makes all of its huge page present, and nothing of its neighbours."
    )
    .needs(&[Need::Scan]),
    claim!(
        collapse_of_one_page_makes_a_whole_huge_page_of_zeroes,
        "`MADV_COLLAPSE` of a shared memfd puts a huge page where one small page is, and zeroes where nothing was; where nothing is at all it is EINVAL."
    )
    .needs(&[Need::Scan]),
    claim!(
        a_memfd_cut_within_a_huge_page_gives_the_rest_back,
        "`ftruncate` of a memfd within a huge page keeps what is before, in small pages, and gives back the rest."
    )
    .needs(&[Need::Scan]),
    claim!(
        collapse_refuses_copies,
        "`MADV_COLLAPSE` of a range whose pages were all copied privately is EINVAL."
    )
    .needs(&[Need::Scan]),
    claim!(
        collapse_refuses_a_range_kept_from_huge_pages,
        "`MADV_COLLAPSE` of a range under `MADV_NOHUGEPAGE` is EINVAL, as on a kernel that does not know it, while it works elsewhere in the same file."
    ),
    claim!(
        collapse_refuses_a_process_kept_from_huge_pages,
        "Under `PR_SET_THP_DISABLE` `MADV_COLLAPSE` is EINVAL, as on a kernel that does not know it, and `PR_GET_THP_DISABLE` tells."
    ),
];

const HUGE_PAGES: usize = 2;

/// The size of a huge page.
fn huge_size() -> Result<usize, Skip> {
    let text = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
        .map_err(|e| Skip(format!("no transparent huge pages: {e}")))?;
    Ok(text.trim().parse().expect("a number"))
}

fn marked(kind: Kind) -> Result<Memory, Skip> {
    let size = huge_size()?;
    let memory = Memory::aligned(kind, HUGE_PAGES * size / cowbell::sys::page_size().bytes(), size)?;
    if kind == Kind::Anonymous {
        map::advise(memory.range, Harmless::HugePage).expect("MADV_HUGEPAGE");
    }
    memory.fill();
    Ok(memory)
}

/// A frozen memfd in huge pages.
fn collapsed() -> Result<Memory, Skip> {
    let memory = marked(Kind::PrivateMemfd)?;
    seal(memory.file(), SEALS_FINAL).expect("F_ADD_SEALS");
    memory.protect(memory.range, Access::Read).expect("mprotect");
    assert_eq!(huge_bytes(&memory), 0, "before");
    match map::advise(memory.range, Harmless::Collapse) {
        Ok(()) => Ok(memory),
        // EINVAL would be an answer about the mapping, and wrong.
        Err(e @ (Errno::NOMEM | Errno::AGAIN | Errno::BUSY)) => Err(Skip(format!("no free huge page: {e}"))),
        Err(e) => panic!("MADV_COLLAPSE: {e}"),
    }
}

fn huge_bytes(memory: &Memory) -> u64 {
    evidence::smaps(process::pid(), memory).huge_file
}

fn is_huge(memory: &Memory, page: usize) -> bool {
    evidence::categories(memory, page).contains(Categories::HUGE)
}

fn collapse_makes_huge_pages_of_a_sealed_memfd() -> Verdict {
    let memory = collapsed()?;
    assert_eq!(huge_bytes(&memory), memory.range.len as u64, "ShmemPmdMapped and FilePmdMapped");
    assert!(is_huge(&memory, 0) && is_huge(&memory, memory.pages() - 1), "PAGEMAP_SCAN agrees");
    assert_eq!(evidence::copied(&memory), pages([]), "nothing is copied");
    assert!((0..memory.pages()).all(|page| memory.load(page) == mark(page)), "the content stays");
    Ok(())
}

fn child_reads_a_collapsed_memfd_by_huge_entries() -> Verdict {
    let memory = collapsed()?;
    child::spawn(|| {
        assert_eq!(huge_bytes(&memory), 0, "fork copied no page tables");
        memory.touch(1);
        assert_eq!(huge_bytes(&memory), huge_size().expect("it was there") as u64, "one huge page");
        assert!(is_huge(&memory, 0));
    })
    .finish();
    Ok(())
}

fn one_byte_in_a_private_huge_page_copies_one_base_page() -> Verdict {
    let memory = collapsed()?;
    child::spawn(|| {
        memory.load_all();
        memory.protect(memory.range, Access::ReadWrite).expect("mprotect");
        memory.store(3, 255);
        assert_eq!(evidence::copied(&memory), pages([3]));
        assert_eq!(evidence::anonymous_pages(&memory), 1, "smaps agrees");
        assert!(!is_huge(&memory, 4) && is_huge(&memory, memory.pages() - 1), "only this huge entry is split");
        assert_eq!(evidence::entry(&memory, 4) & (Entry::PRESENT | Entry::SWAPPED), Entry::empty(), "a neighbour");
        assert_eq!((memory.load(4), memory.in_file(3)), (mark(4), mark(3)));
    })
    .finish();
    assert_eq!(huge_bytes(&memory), memory.range.len as u64, "the parent keeps its huge entries");
    Ok(())
}

fn one_byte_in_an_armed_huge_page_leaves_markers() -> Verdict {
    let memory = collapsed()?;
    child::spawn(|| {
        memory.load_all();
        memory.protect(memory.range, Access::ReadWrite).expect("mprotect");
        let _uffd = watcher::arm_async(&memory);
        memory.store(3, 255);
        assert_eq!(evidence::written(&memory), pages([3]), "recorded");
        assert_eq!(evidence::copied_armed(&memory), pages([3]), "copied");
        assert_eq!(evidence::anonymous_pages(&memory), 1, "smaps agrees");
        assert!(evidence::entry(&memory, 4).contains(evidence::WP_BIT), "a neighbour is armed");
        memory.store(4, 255);
        assert_eq!(evidence::written(&memory), pages([3, 4]), "and recorded when it is written");
    })
    .finish();
    Ok(())
}

fn one_byte_in_an_anonymous_huge_page_copies_one_base_page() -> Verdict {
    let memory = marked(Kind::Anonymous)?;
    if !is_huge(&memory, 0) {
        return Err(Skip("no huge page came: transparent huge pages are off, or none was free".to_owned()));
    }
    child::spawn(|| {
        let exclusive = |page| evidence::entry(&memory, page).contains(Entry::EXCLUSIVE);
        assert!((0..memory.pages()).all(|page| !exclusive(page)), "all shared after fork");
        memory.store(3, 255);
        let own: Vec<_> = (0..memory.pages()).filter(|&page| exclusive(page)).collect();
        assert_eq!(own, [3], "pages that the child has alone");
        assert_eq!((memory.load(3), memory.load(4)), (255, mark(4)));
    })
    .finish();
    assert_eq!(memory.load(3), mark(3), "the parent's");
    Ok(())
}

fn first_write_to_advised_memory_takes_a_huge_page() -> Verdict {
    let size = huge_size()? / cowbell::sys::page_size().bytes();
    let memory = Memory::aligned(Kind::Anonymous, HUGE_PAGES * size, huge_size()?)?;
    map::advise(memory.range, Harmless::HugePage).expect("MADV_HUGEPAGE");
    memory.store(size + 3, 255);
    if !is_huge(&memory, size) {
        return Err(Skip("no huge page came: transparent huge pages are off, or none was free".to_owned()));
    }
    let present: Vec<_> =
        (0..memory.pages()).filter(|&page| evidence::entry(&memory, page).contains(Entry::PRESENT)).collect();
    assert!(present.into_iter().eq(size..2 * size), "the second huge page, and nothing of the first");
    Ok(())
}

/// A shared memfd of two huge pages that grew from one small page each; the first page is marked.
fn grown() -> Result<Memory, Skip> {
    let size = huge_size()?;
    let page = cowbell::sys::page_size().bytes();
    let memory = Memory::aligned(Kind::SharedMemfd, HUGE_PAGES * size / page, size)?;
    assert_eq!(map::advise(memory.range, Harmless::Collapse), Err(Errno::INVAL), "there is nothing");
    memory.store(0, mark(0));
    memory.touch(size / page);
    match map::advise(memory.range, Harmless::Collapse) {
        Ok(()) => Ok(memory),
        Err(e @ (Errno::NOMEM | Errno::AGAIN | Errno::BUSY)) => Err(Skip(format!("no free huge page: {e}"))),
        Err(e) => panic!("MADV_COLLAPSE: {e}"),
    }
}

fn collapse_of_one_page_makes_a_whole_huge_page_of_zeroes() -> Verdict {
    let memory = grown()?;
    assert_eq!(memory.load(0), mark(0));
    assert!((1..memory.pages()).all(|page| memory.load(page) == 0));
    assert_eq!(huge_bytes(&memory), memory.range.len as u64);
    assert_eq!(held_bytes(memory.file()).expect("fstat"), memory.range.len as u64);
    Ok(())
}

fn a_memfd_cut_within_a_huge_page_gives_the_rest_back() -> Verdict {
    let memory = grown()?;
    let page = cowbell::sys::page_size().bytes();
    let kept = memory.pages() / HUGE_PAGES + 3;
    (0..kept).for_each(|page| memory.store(page, mark(page)));
    set_len(memory.file(), (kept * page) as u64).expect("ftruncate");
    assert_eq!(held_bytes(memory.file()).expect("fstat"), (kept * page) as u64);
    assert!((0..kept).all(|page| memory.load(page) == mark(page)));
    assert_eq!(huge_bytes(&memory), huge_size()? as u64, "the first stays huge");
    Ok(())
}

fn collapse_refuses_copies() -> Verdict {
    let memory = marked(Kind::PrivateMemfd)?;
    (0..memory.pages()).for_each(|page| memory.store(page, 255));
    assert_eq!(map::advise(memory.range, Harmless::Collapse), Err(Errno::INVAL));
    assert_eq!(evidence::anonymous_pages(&memory), memory.pages() as u64);
    Ok(())
}

fn collapse_refuses_a_process_kept_from_huge_pages() -> Verdict {
    let memory = marked(Kind::PrivateMemfd)?;
    child::spawn(|| {
        assert!(!is_kept_from_huge_pages(), "before");
        rustix::thread::disable_transparent_huge_pages(true).expect("PR_SET_THP_DISABLE");
        assert!(is_kept_from_huge_pages());
        // Collapsing takes page tables, or EINVAL would be for want of them.
        let _touched = memory.load(0);
        assert_eq!(map::advise(memory.range, Harmless::Collapse), Err(Errno::INVAL));
    })
    .finish();
    Ok(())
}

fn collapse_refuses_a_range_kept_from_huge_pages() -> Verdict {
    let memory = marked(Kind::PrivateMemfd)?;
    let half = memory.pages() / 2;
    let (first, second) = (memory.span(0, half), memory.span(half, half));
    memory.advise(second, libc::MADV_NOHUGEPAGE).expect("MADV_NOHUGEPAGE");
    assert_eq!(map::advise(second, Harmless::Collapse), Err(Errno::INVAL));
    match map::advise(first, Harmless::Collapse) {
        Ok(()) => Ok(()),
        Err(e @ (Errno::NOMEM | Errno::AGAIN | Errno::BUSY)) => Err(Skip(format!("no free huge page: {e}"))),
        Err(e) => panic!("MADV_COLLAPSE elsewhere: {e}"),
    }
}
