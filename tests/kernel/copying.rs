//! Copy, reuse, first touch, and giving a copy back.

use crate::child::{self, Gate};
use crate::claim::{ADMIN, Claim, Need, Verdict, claim};
use crate::evidence::{self, pages};
use crate::memory::{Kind, Memory, mark};
use crate::writers::kernel_write;
use cowbell::sys::pagemap::{Categories, Entry};
use cowbell::sys::{map, process, usage};

pub const CLAIMS: &[Claim] = &[
    claim!(
        one_byte_copies_one_page on [PrivateMemfd, PrivateFile],
        "A write of one byte to a private file mapping copies that page and no other; the file keeps its content."
    )
    .needs(&[Need::Scan]),
    claim!(
        page_given_up_by_the_other_side_is_reused on [PrivateMemfd, Anonymous],
        "After fork the first to write gets a new frame; the other, left alone with the old one, writes to it without a copy."
    )
    .needs(&[ADMIN]),
    claim!(
        exclusive_bit_tells_reuse_from_copy on [PrivateMemfd, Anonymous],
        "Bit 56 of pagemap is clear on an anonymous page that another process still maps (a write will copy) and set once it is alone (a write will reuse)."
    ),
    claim!(
        zero_page_is_not_a_copy,
        "Reading untouched anonymous memory maps the shared page of zeroes (PFNZERO); writing then gives a new page."
    )
    .needs(&[Need::Scan]),
    claim!(
        hole_in_a_memfd_is_filled_by_reading,
        "Reading a hole through a private memfd mapping allocates the page in the file: it is the file's (FILE), not a zero page and not a copy."
    )
    .needs(&[Need::Scan]),
    claim!(
        dontneed_gives_copies_back on [PrivateMemfd, PrivateFile],
        "`MADV_DONTNEED` on a private file mapping drops the copies (smaps Anonymous becomes 0) and the next read sees the file."
    ),
    claim!(
        dontneed_works_on_a_readonly_map,
        "`MADV_DONTNEED` drops copies also where the mapping has been made read-only since."
    ),
    claim!(
        dontneed_is_refused_on_locked_pages,
        "`MADV_DONTNEED` over locked pages is EINVAL and drops nothing; after `munlock` it works."
    ),
    claim!(
        copies_take_a_fault_each,
        "A child's `getrusage` counts its faults from the fork; each page it copies, by a store or by a system call of its own, adds one at least."
    )
    .needs(&[Need::Scan]),
    claim!(
        free_is_refused_on_a_private_memfd,
        "`MADV_FREE` on a private memfd mapping is EINVAL; on anonymous memory it is accepted."
    ),
    claim!(
        free_leaves_shared_pages_as_they_are,
        "`MADV_FREE` in a child frees no page that its parent still maps: the content stays, and the next write copies."
    ),
    claim!(
        identical_content_stays_a_copy,
        "A copied page whose content is written back to the original stays a copy until it is dropped."
    )
    .needs(&[Need::Scan]),
];

fn one_byte_copies_one_page(kind: Kind) -> Verdict {
    let memory = Memory::marked(kind, 64)?;
    memory.load_all();
    assert_eq!(evidence::copied(&memory), pages([]), "only read");
    memory.store(17, 255);
    assert_eq!(evidence::copied(&memory), pages([17]));
    assert_eq!(evidence::anonymous_pages(&memory), 1, "smaps agrees");
    assert_eq!((memory.load(17), memory.in_file(17)), (255, mark(17)));

    let shared = Memory::marked(Kind::SharedMemfd, 64)?;
    shared.store(17, 255);
    assert_eq!((evidence::copied(&shared), shared.in_file(17)), (pages([]), 255), "a shared mapping copies nothing");
    Ok(())
}

/// Memory whose pages are anonymous in this process, and held by nobody else.
pub fn own_pages(kind: Kind) -> Result<Memory, crate::claim::Skip> {
    // Each CPU keeps the pages that were made last in a batch, and holds them there: then a write copies.
    // The writer's own batch is looked through (not by 5.10), so there must be one CPU, and younger pages.
    let mut cpu = rustix::thread::CpuSet::new();
    cpu.set(rustix::thread::sched_getcpu());
    rustix::thread::sched_setaffinity(None, &cpu).expect("sched_setaffinity");
    let memory = Memory::marked(kind, 4)?;
    for page in 0..memory.pages() {
        memory.store(page, mark(page));
    }
    let younger = Memory::marked(Kind::Anonymous, 128)?;
    (0..younger.pages()).for_each(|page| younger.store(page, 1));
    Ok(memory)
}

fn page_given_up_by_the_other_side_is_reused(kind: Kind) -> Verdict {
    let memory = own_pages(kind)?;
    let frame = |page| evidence::entry(&memory, page).frame();
    let before: Vec<_> = (0..4).map(frame).collect();
    let (written, go, end) = (Gate::new(), Gate::new(), Gate::new());
    let child = child::spawn(|| {
        memory.store(0, 100);
        assert_ne!(frame(0), before[0], "the first to write copies");
        written.open();
        go.pass();
        memory.store(1, 100);
        assert_eq!(frame(1), before[1], "the child reuses what the parent has left");
        written.open();
        end.pass();
    });
    written.pass();
    memory.store(0, 50);
    assert_eq!(frame(0), before[0], "the parent reuses what the child has left");
    memory.store(1, 50);
    assert_ne!(frame(1), before[1], "shared still, so copied");
    go.open();
    written.pass();
    memory.store(2, 50);
    assert_ne!(frame(2), before[2], "shared still, so copied");
    end.open();
    child.finish();
    memory.store(3, 50);
    assert_eq!(frame(3), before[3], "after the child's end, reused");
    Ok(())
}

fn exclusive_bit_tells_reuse_from_copy(kind: Kind) -> Verdict {
    let memory = own_pages(kind)?;
    let exclusive = |page| evidence::entry(&memory, page).contains(Entry::EXCLUSIVE);
    assert!(exclusive(0), "before fork");
    let (written, end) = (Gate::new(), Gate::new());
    let child = child::spawn(|| {
        memory.store(0, 100);
        assert!(exclusive(0) && !exclusive(1), "in the child: its copy, and a shared page");
        written.open();
        end.pass();
    });
    written.pass();
    assert!(exclusive(0), "the child gave it up: a write will reuse");
    assert!(!exclusive(1), "the child has it: a write will copy");
    memory.store(1, 50);
    assert!(exclusive(1), "the copy is ours alone");
    assert!(!exclusive(2), "the child lives");
    end.open();
    child.finish();
    assert!(exclusive(2), "the child is gone");
    Ok(())
}

fn zero_page_is_not_a_copy() -> Verdict {
    let memory = Memory::new(Kind::Anonymous, 4)?;
    let zero = |page| evidence::categories(&memory, page).contains(Categories::PFN_ZERO);
    memory.touch(1);
    assert!(zero(1), "read");
    assert_eq!(evidence::categories(&memory, 2), evidence::categories(&memory, 3), "both untouched");
    assert_eq!(evidence::copied(&memory), pages([]), "the census does not count it");
    assert_eq!(evidence::anonymous_pages(&memory), 0, "nor does smaps");
    memory.store(1, 1);
    assert!(!zero(1), "written");
    assert_eq!((evidence::copied(&memory), evidence::anonymous_pages(&memory)), (pages([1]), 1));
    Ok(())
}

fn hole_in_a_memfd_is_filled_by_reading() -> Verdict {
    let memory = Memory::new(Kind::PrivateMemfd, 4)?;
    let blocks = || rustix::fs::fstat(memory.file()).expect("fstat").st_blocks;
    assert_eq!(blocks(), 0, "sparse");
    memory.touch(1);
    let read = evidence::categories(&memory, 1);
    assert!(read.contains(Categories::FILE | Categories::PRESENT) && !read.contains(Categories::PFN_ZERO), "{read:?}");
    assert_eq!(blocks() as usize * 512, memory.page.bytes(), "the file has the page now");
    assert_eq!(evidence::copied(&memory), pages([]));
    // Written without being read: the file gets the page, and the mapping a copy of it.
    memory.store(2, 1);
    assert_eq!(evidence::copied(&memory), pages([2]));
    assert_eq!(blocks() as usize * 512, 2 * memory.page.bytes());
    Ok(())
}

fn dontneed_gives_copies_back(kind: Kind) -> Verdict {
    let memory = Memory::marked(kind, 32)?;
    for page in 0..32 {
        memory.store(page, 255);
    }
    assert_eq!(evidence::anonymous_pages(&memory), 32);
    let before = evidence::smaps(process::pid(), &memory).private;
    memory.drop_pages(memory.span(0, 31));
    assert_eq!(evidence::anonymous_pages(&memory), 1, "one was left out");
    memory.drop_pages(memory.range);
    assert_eq!(evidence::anonymous_pages(&memory), 0);
    assert!((0..32).all(|page| memory.load(page) == mark(page)), "the file's content is back");
    assert_eq!(evidence::anonymous_pages(&memory), 0, "reading copies nothing");
    assert!(before >= memory.range.len as u64, "it was private: {before} bytes");
    Ok(())
}

fn dontneed_works_on_a_readonly_map() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    memory.store(1, 255);
    memory.protect(memory.range, map::Access::Read).expect("mprotect");
    assert_eq!((memory.load(1), evidence::anonymous_pages(&memory)), (255, 1));
    memory.drop_pages(memory.range);
    assert_eq!((memory.load(1), evidence::anonymous_pages(&memory)), (mark(1), 0));
    Ok(())
}

fn dontneed_is_refused_on_locked_pages() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    memory.store(0, 200);
    memory.store(1, 200);
    if let Err(e) = map::lock(memory.at(1)) {
        return Err(crate::claim::Skip(format!("mlock2: {e}")));
    }
    assert_eq!(memory.advise(memory.at(1), libc::MADV_DONTNEED), Err(cowbell::sys::Errno::INVAL));
    assert_eq!(memory.load(1), 200);
    map::unlock(memory.at(1)).expect("munlock");
    memory.drop_pages(memory.span(0, 2));
    assert_eq!((memory.load(0), memory.load(1)), (mark(0), mark(1)));
    Ok(())
}

fn copies_take_a_fault_each() -> Verdict {
    const PAGES: usize = 200;
    let memory = Memory::marked(Kind::PrivateMemfd, 2 * PAGES)?;
    // This process is to have had many more faults than the child will have.
    for page in 0..4 * PAGES {
        Memory::new(Kind::Anonymous, 1)?.store(0, page as u8);
    }
    let before = usage::page_faults();
    child::spawn(|| {
        let begun = usage::page_faults();
        assert!(begun < before.min(4 * PAGES as u64), "{begun} of {before}: from the fork on");
        memory.load_all();
        let read = usage::page_faults();
        for page in 0..PAGES {
            memory.store(page, 255);
        }
        let stored = usage::page_faults();
        assert!(stored - read >= PAGES as u64, "{}", stored - read);
        for page in PAGES..2 * PAGES {
            kernel_write(&memory, page).expect("pread");
        }
        let called = usage::page_faults();
        assert!(called - stored >= PAGES as u64, "{}", called - stored);
        assert_eq!(evidence::copied(&memory), pages(0..2 * PAGES));
    })
    .finish();
    Ok(())
}

fn free_is_refused_on_a_private_memfd() -> Verdict {
    let memory = own_pages(Kind::PrivateMemfd)?;
    assert_eq!(memory.advise(memory.range, libc::MADV_FREE), Err(cowbell::sys::Errno::INVAL));
    assert_eq!(memory.load(1), mark(1));
    let anonymous = own_pages(Kind::Anonymous)?;
    assert_eq!(anonymous.advise(anonymous.range, libc::MADV_FREE), Ok(()));
    Ok(())
}

fn free_leaves_shared_pages_as_they_are() -> Verdict {
    let memory = own_pages(Kind::Anonymous)?;
    let is_exclusive = |page| evidence::entry(&memory, page).contains(Entry::EXCLUSIVE);
    let (written, end) = (Gate::new(), Gate::new());
    let child = child::spawn(|| {
        memory.advise(memory.range, libc::MADV_FREE).expect("madvise");
        // Pages that were given up would go with this, if the kernel looks at them now.
        let _looked = memory.advise(memory.range, libc::MADV_PAGEOUT);
        assert_eq!((0..4).map(|page| memory.load(page)).collect::<Vec<_>>(), (0..4).map(mark).collect::<Vec<_>>());
        assert_eq!((0..4).map(is_exclusive).collect::<Vec<_>>(), [false; 4], "still the parent's, too");
        memory.store(1, 100);
        assert_eq!((0..4).map(is_exclusive).collect::<Vec<_>>(), [false, true, false, false], "a copy of its own");
        written.open();
        end.pass();
    });
    written.pass();
    assert_eq!(memory.load(1), mark(1), "the original");
    end.open();
    child.finish();
    Ok(())
}

fn identical_content_stays_a_copy() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    memory.store(1, 255);
    memory.store(1, mark(1));
    assert_eq!((memory.load(1), memory.in_file(1)), (mark(1), mark(1)), "identical");
    assert_eq!(evidence::copied(&memory), pages([1]), "and a copy");
    memory.drop_pages(memory.at(1));
    assert_eq!(evidence::copied(&memory), pages([]));
    Ok(())
}
