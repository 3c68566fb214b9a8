//! The memory behind a memfd: when it is taken and given back, what keeps the file open to writers, and
//! what keeps a mapping of it closed to them.
#![expect(unsafe_code, reason = "mappings are replaced")]

use crate::child;
use crate::claim::{Claim, Need, Verdict, claim};
use crate::evidence;
use crate::memory::{self, Kind, Memory, mark};
use cowbell::sys::map::{self, Access};
use cowbell::sys::memfd::{SEALS_FINAL, allocate, create, seal, set_len};
use cowbell::sys::pagemap::Entry;
use cowbell::sys::pidfd::Ended;
use cowbell::sys::procfs;
use cowbell::sys::{Errno, page_size};
use rustix::fs::{MemfdFlags, SealFlags};
use std::os::fd::{AsFd, BorrowedFd};

pub const CLAIMS: &[Claim] = &[
    claim!(
        fallocate_puts_memory_behind_a_memfd,
        "`fallocate` puts zeroed memory behind each page of a memfd at once (fstat's blocks) and maps none; a later touch takes none, and content that was there stays."
    ),
    claim!(
        cutting_a_memfd_gives_memory_back,
        "`ftruncate` to a shorter length gives back the memory behind the cut, also while it is mapped; grown again, the file has zeroes there."
    ),
    claim!(
        madv_remove_gives_memory_back,
        "`MADV_REMOVE` on a shared mapping of a memfd takes the memory of those pages out of the file, in a forked process as well: they read as zeroes, the others stay, and a write puts memory there again."
    ),
    claim!(
        fallocate_after_the_final_seals_changes_no_content,
        "After the final seals `fallocate` behind the file's end is EPERM; inside it still works: it puts memory behind holes and changes no content."
    ),
    claim!(
        reading_shared_memory_takes_memory,
        "Reading a hole through a shared mapping puts a page behind it, each read of another page one more; `pread` of a hole puts none."
    ),
    claim!(
        write_seal_is_busy_for_a_mapping_behind_the_end,
        "`F_SEAL_WRITE` is EBUSY while a shared writable mapping is left only of pages behind the file's end; mapping something else over it ends that as munmap does."
    ),
    claim!(
        memfd_name_has_249_bytes,
        "`memfd_create` takes a name of 249 bytes, which the maps show as `/memfd:NAME (deleted)`, and not one of 250 (EINVAL)."
    ),
];

pub const OF_MAPPINGS: &[Claim] = &[
    claim!(
        mseal_keeps_a_readonly_mapping_readonly_in_children,
        "After `mseal` of a read-only private mapping making it writable is EPERM in a forked child, too, and a write there is a SIGSEGV; without `mseal` the child may."
    )
    .needs(&[Need::Mseal]),
];

/// The number of pages of memory a file has behind it.
fn blocks(fd: BorrowedFd<'_>) -> u64 {
    rustix::fs::fstat(fd).expect("fstat").st_blocks as u64 * 512 / page_size().bytes() as u64
}

fn fallocate_puts_memory_behind_a_memfd() -> Verdict {
    for kind in [Kind::SharedMemfd, Kind::PrivateMemfd] {
        let memory = Memory::new(kind, 16)?;
        let page = memory.page.bytes() as u64;
        assert_eq!(blocks(memory.file()), 0, "sparse");
        memory.write_file(5, 55).expect("pwrite");
        assert_eq!(blocks(memory.file()), 1, "one page written");
        allocate(memory.file(), 0, 8 * page).expect("fallocate");
        assert_eq!(blocks(memory.file()), 8, "as much as was asked for");
        assert_eq!((memory.in_file(4), memory.in_file(5)), (0, 55), "zeroes, and what was there");
        assert!((0..8).all(|page| !evidence::entry(&memory, page).contains(Entry::PRESENT)), "nothing is mapped");
        assert_eq!(evidence::smaps(cowbell::sys::process::pid(), &memory).rss, 0, "smaps agrees");
        (0..8).for_each(|page| memory.touch(page));
        assert_eq!(blocks(memory.file()), 8, "{kind}: touched, and there was no need for more");
        if kind == Kind::SharedMemfd {
            (0..8).for_each(|page| memory.store(page, 7));
            assert_eq!(blocks(memory.file()), 8, "written");
        }
        memory.touch(8);
        assert_eq!(blocks(memory.file()), 9, "{kind}: where nothing was put, a touch takes a page");
    }
    Ok(())
}

fn cutting_a_memfd_gives_memory_back() -> Verdict {
    let memory = Memory::marked(Kind::SharedMemfd, 16)?;
    let page = memory.page.bytes() as u64;
    memory.load_all();
    assert_eq!(blocks(memory.file()), 16);
    set_len(memory.file(), 4 * page).expect("ftruncate");
    assert_eq!(blocks(memory.file()), 4, "cut");
    assert_eq!(memory.load(3), mark(3), "before the cut");
    assert_eq!(child::spawn(|| memory.touch(4)).wait(), Ended::Signaled(libc::SIGBUS), "behind it");
    set_len(memory.file(), 16 * page).expect("ftruncate");
    assert_eq!((blocks(memory.file()), memory.in_file(4), memory.load(4)), (4, 0, 0), "grown again");
    Ok(())
}

fn fallocate_after_the_final_seals_changes_no_content() -> Verdict {
    let memory = Memory::new(Kind::PrivateMemfd, 4)?;
    let page = memory.page.bytes() as u64;
    memory.write_file(1, mark(1)).expect("pwrite");
    assert_eq!(allocate(memory.file(), 4 * page, page), Ok(()), "behind the end, before");
    set_len(memory.file(), 4 * page).expect("ftruncate");
    seal(memory.file(), SEALS_FINAL).expect("F_ADD_SEALS");
    assert_eq!(allocate(memory.file(), 4 * page, page), Err(Errno::PERM), "behind the end");
    assert_eq!(allocate(memory.file(), 3 * page, 2 * page), Err(Errno::PERM), "across it");
    assert_eq!(blocks(memory.file()), 1, "nothing was taken");
    assert_eq!(allocate(memory.file(), 0, 4 * page), Ok(()), "inside");
    assert_eq!(blocks(memory.file()), 4, "the holes have memory");
    assert_eq!([0, 1, 2, 3].map(|page| memory.in_file(page)), [0, mark(1), 0, 0], "the content is what it was");
    Ok(())
}

fn reading_shared_memory_takes_memory() -> Verdict {
    let memory = Memory::new(Kind::SharedMemfd, 8)?;
    assert_eq!((memory.in_file(1), blocks(memory.file())), (0, 0), "pread");
    assert_eq!((memory.load(1), blocks(memory.file())), (0, 1), "a load");
    assert_eq!((memory.load(1), blocks(memory.file())), (0, 1), "the same again");
    assert_eq!((memory.load(6), blocks(memory.file())), (0, 2), "another");
    Ok(())
}

fn write_seal_is_busy_for_a_mapping_behind_the_end() -> Verdict {
    let busy = |memory: &Memory| seal(memory.file(), SealFlags::WRITE).err().and_then(|e| e.errno());
    for over in [false, true] {
        let memory = Memory::marked(Kind::SharedMemfd, 4)?;
        set_len(memory.file(), 2 * memory.page.bytes() as u64).expect("ftruncate");
        // The content is mapped privately in place, as freezing does.
        // SAFETY: the range is the memory's own.
        unsafe { map::map_private_at(memory.span(0, 2), Access::Read, memory.file(), 0) }.expect("mmap");
        assert_eq!(busy(&memory), Some(libc::EBUSY), "what is left lies behind the end");
        let rest = memory.span(2, 2);
        if over {
            // SAFETY: the range is the memory's own.
            unsafe { map::blank(rest) }.expect("mmap over it");
        } else {
            memory.unmap(rest).expect("munmap");
        }
        assert_eq!(busy(&memory), None, "mapped over: {over}");
        assert_eq!(memory.load(1), mark(1));
    }
    Ok(())
}

fn madv_remove_gives_memory_back() -> Verdict {
    let memory = Memory::marked(Kind::SharedMemfd, 8)?;
    assert_eq!(blocks(memory.file()), 8);
    let child = child::spawn(|| {
        // SAFETY: nobody has a reference into the range.
        unsafe { map::punch(memory.span(2, 3)) }.expect("madvise");
    });
    assert_eq!(child.wait(), Ended::Exited(0));
    assert_eq!(blocks(memory.file()), 5, "three are gone");
    memory.store(3, 7);
    let there: Vec<_> = (0..8).map(|page| memory.load(page)).collect();
    assert_eq!(there, [mark(0), mark(1), 0, 7, 0, mark(5), mark(6), mark(7)]);
    Ok(())
}

fn mseal_keeps_a_readonly_mapping_readonly_in_children() -> Verdict {
    for sealed in [true, false] {
        let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
        memory.protect(memory.range, Access::Read).expect("mprotect");
        if sealed {
            map::seal(memory.range).expect("mseal");
        }
        let child = child::spawn(|| {
            let done = memory.protect(memory.range, Access::ReadWrite);
            assert_eq!(done, if sealed { Err(Errno::PERM) } else { Ok(()) }, "mprotect");
            memory.store(1, 200);
        });
        let expected = if sealed { Ended::Signaled(libc::SIGSEGV) } else { Ended::Exited(0) };
        assert_eq!(child.wait(), expected, "sealed: {sealed}");
        assert_eq!(memory.load(1), mark(1), "the parent's");
    }
    Ok(())
}

fn memfd_name_has_249_bytes() -> Verdict {
    let make = |len: usize| rustix::fs::memfd_create("n".repeat(len), MemfdFlags::CLOEXEC).map(drop);
    assert_eq!(make(249), Ok(()));
    assert_eq!(make(250), Err(Errno::INVAL));
    let name = "n".repeat(249);
    let file = create(&name).expect("memfd_create");
    let page = page_size().bytes();
    set_len(file.as_fd(), page as u64).expect("ftruncate");
    let range = map::reserve(page, page).expect("addresses");
    memory::map_readonly(range, file.as_fd(), true).expect("mmap");
    let maps = procfs::maps::read(procfs::SELF).expect("maps");
    assert!(maps.iter().any(|mapping| mapping.name == format!("/memfd:{name} (deleted)")), "{maps:?}");
    Ok(())
}
