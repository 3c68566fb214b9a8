//! The mappings that can be watched, and what becomes of a watch when mappings change.
//!
//! # Safety
//! Only memory of the case is moved and unmapped; the program's own mappings are registered, never armed.
#![expect(unsafe_code, reason = "claims about mremap and brk")]

use crate::child;
use crate::claim::{ADMIN, Claim, Need, Skip, Verdict, claim};
use crate::evidence::{self, pages};
use crate::memory::{self, Kind, Memory, last_errno};
use crate::watcher::{self, ASYNC, Monitor, SYNC};
use cowbell::sys::map::{self, Access, Range};
use cowbell::sys::pagemap::{Pagemap, WRITTEN};
use cowbell::sys::procfs::{SELF, maps, smaps};
use cowbell::sys::uffd::{Features, Uffd, UffdMessage};
use cowbell::sys::{Errno, page_size, pidfd, process};
use std::os::fd::AsFd;

pub const CLAIMS: &[Claim] = &[
    claim!(
        readonly_private_mappings_can_be_watched on [PrivateMemfd, Anonymous],
        "A read-only private mapping can be registered and armed, and stays armed when `mprotect` makes it writable."
    )
    .needs(&[Need::Uffd]),
    claim!(
        readonly_private_file_needs_an_asynchronous_watch,
        "Registering a read-only private mapping of an ordinary file is EINVAL synchronously; with `WP_ASYNC` it works, and stays armed when `mprotect` makes it writable."
    )
    .needs(&[Need::WpAsync, Need::Scan]),
    claim!(
        heap_and_stack_can_be_watched_and_kernel_pages_not,
        "`[heap]` and `[stack]` can be registered for a synchronous watch; `[vdso]` and `[vvar]` for none (EINVAL)."
    )
    .needs(&[Need::WpAsync]),
    claim!(
        private_huge_table_memory_can_be_watched,
        "A private anonymous mapping of the huge page table (`MAP_HUGETLB`) can be registered, and a write to it is a message that names the huge page."
    )
    .needs(&[Need::Uffd, ADMIN])
    .restores(&["/proc/sys/vm/nr_hugepages"]),
    claim!(
        grown_stack_is_registered_and_not_armed,
        "Where a `MAP_GROWSDOWN` mapping grows, the new part is registered and not armed: its first write is no message."
    )
    .needs(&[Need::Uffd]),
    claim!(
        grown_heap_is_not_registered,
        "What `brk` adds to a registered heap is a mapping of its own that is not registered."
    )
    .needs(&[Need::Uffd]),
    claim!(
        mapping_grown_in_place_is_registered_and_not_armed on [Anonymous, PrivateMemfd],
        "What `mremap` adds to a registered mapping in its place is registered and not armed."
    )
    .needs(&[Need::Uffd]),
    claim!(
        moved_mapping_stays_armed_with_its_event on [Anonymous, PrivateMemfd],
        "With `EVENT_REMAP` a moved mapping stays registered and armed, written pages stay written, and the move waits until its event is read; without it the new place is neither."
    )
    .needs(&[Need::WpAsync, Need::Scan]),
    claim!(
        mapping_over_a_watched_one_is_not_watched,
        "A mapping made over a registered one, or where one was unmapped, is not registered."
    )
    .needs(&[Need::Uffd]),
    claim!(
        dontneed_disarms_anonymous_pages,
        "`MADV_DONTNEED` of armed anonymous pages takes the protection with them: the next write is no message, with `WP_UNPOPULATED` or without."
    )
    .needs(&[Need::WpAsync]),
];

fn sync() -> Uffd {
    watcher::any(SYNC).expect("userfaultfd")
}

/// The flag of smaps for a range that must lie in one mapping.
fn registered(range: Range) -> bool {
    let parts = smaps::mappings(process::pid(), range).expect("smaps");
    assert_eq!(parts.len(), 1, "{parts:?}");
    parts.iter().all(|part| part.flags.iter().any(|flag| flag == "uw"))
}

pub fn mremap(from: Range, len: usize, to: Option<usize>) -> Result<usize, Errno> {
    let flags = if to.is_some() { libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED } else { 0 };
    let at = std::ptr::with_exposed_provenance_mut(from.start);
    let to = std::ptr::with_exposed_provenance_mut::<libc::c_void>(to.unwrap_or(0));
    // SAFETY: both places are the case's own, and nobody refers into them.
    let moved = unsafe { libc::mremap(at, from.len, len, flags, to) };
    if moved == libc::MAP_FAILED { Err(last_errno()) } else { Ok(moved.expose_provenance()) }
}

fn readonly_private_mappings_can_be_watched(kind: Kind) -> Verdict {
    let memory = Memory::marked(kind, 4)?;
    memory.protect(memory.range, Access::Read).expect("mprotect");
    memory.touch(1);
    let uffd = sync();
    watcher::arm(&uffd, &memory);
    memory.protect(memory.range, Access::ReadWrite).expect("mprotect");
    let monitor = Monitor::start(uffd);
    memory.store(1, 200);
    assert_eq!(monitor.stop(), [memory.at(1).start]);
    Ok(())
}

fn readonly_private_file_needs_an_asynchronous_watch() -> Verdict {
    let memory = Memory::marked(Kind::PrivateFile, 4)?;
    memory.protect(memory.range, Access::Read).expect("mprotect");
    memory.touch(1);
    assert_eq!(watcher::register(&sync(), memory.range), Err(Errno::INVAL));
    let _uffd = watcher::arm_async(&memory);
    memory.protect(memory.range, Access::ReadWrite).expect("mprotect");
    memory.store(1, 200);
    memory.store(2, 200);
    assert_eq!(evidence::written(&memory), pages([1, 2]));
    Ok(())
}

/// The mapping of this process with that name.
fn named(name: &str) -> Option<Range> {
    maps::read(SELF).expect("maps").into_iter().find(|mapping| mapping.name == name).map(|mapping| mapping.range)
}

fn heap_and_stack_can_be_watched_and_kernel_pages_not() -> Verdict {
    for name in ["[heap]", "[stack]"] {
        let range = named(name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(watcher::register(&sync(), range), Ok(()), "{name}");
    }
    for name in ["[vdso]", "[vvar]"] {
        let range = named(name).unwrap_or_else(|| panic!("no {name}"));
        for features in [SYNC, ASYNC] {
            let uffd = watcher::any(features).expect("userfaultfd");
            assert_eq!(watcher::register(&uffd, range), Err(Errno::INVAL), "{name}");
        }
    }
    Ok(())
}

fn private_huge_table_memory_can_be_watched() -> Verdict {
    let no = |what: &str| Skip(format!("no page for the huge page table: {what}"));
    std::fs::write("/proc/sys/vm/nr_hugepages", "1").map_err(|e| no(&e.to_string()))?;
    let info = std::fs::read_to_string("/proc/meminfo").expect("meminfo");
    let size = info.lines().find_map(|line| line.strip_prefix("Hugepagesize:")).ok_or_else(|| no("no such size"))?;
    let size = size.trim().trim_end_matches(" kB").parse::<usize>().expect("a size") * 1024;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
    // SAFETY: the kernel chooses an address that nobody uses.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(no(&last_errno().to_string()));
    }
    let range = Range { start: at.expose_provenance(), len: size };
    memory::store(range.start, 1);
    let uffd = sync();
    watcher::register(&uffd, range).expect("UFFDIO_REGISTER");
    watcher::protect(&uffd, range, true).expect("UFFDIO_WRITEPROTECT");
    std::thread::scope(|scope| {
        scope.spawn(|| memory::store(range.start + size / 2, 200));
        assert_eq!(watcher::next_fault(&uffd).address, range.start, "the huge page");
        watcher::protect(&uffd, range, false).expect("UFFDIO_WRITEPROTECT");
    });
    Ok(())
}

/// Stores there while a monitor watches; how many messages that was.
fn messages(uffd: Uffd, addresses: &[usize]) -> usize {
    let monitor = Monitor::start(uffd);
    addresses.iter().for_each(|&address| memory::store(address, 200));
    monitor.stop().len()
}

fn grown_stack_is_registered_and_not_armed() -> Verdict {
    let page = page_size().bytes();
    // Room below it to grow into, and the gap that the kernel demands.
    let room = map::reserve(1024 * page, page).expect("addresses");
    // SAFETY: the range is ours, and nobody refers into it.
    unsafe { map::unmap(room) }.expect("munmap");
    let top = Range { start: room.end() - 4 * page, len: 4 * page };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_GROWSDOWN | libc::MAP_FIXED_NOREPLACE;
    let at = std::ptr::with_exposed_provenance_mut(top.start);
    // SAFETY: nothing is replaced.
    let at = unsafe { libc::mmap(at, top.len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    assert_eq!(at.expose_provenance(), top.start, "mmap: {}", last_errno());
    (0..4).for_each(|at| memory::store(top.start + at * page, 1));
    let uffd = sync();
    watcher::register(&uffd, top).expect("UFFDIO_REGISTER");
    watcher::protect(&uffd, top, true).expect("UFFDIO_WRITEPROTECT");
    // Were this armed, nobody would answer. A thread that did would have its stack mapped right there.
    memory::store(top.start - page, 200);
    assert!(registered(Range { start: top.start - page, len: 2 * page }), "in one with the old part");
    assert_eq!(messages(uffd, &[top.start - page, top.start]), 1, "the old part only");
    Ok(())
}

fn grown_heap_is_not_registered() -> Verdict {
    child::spawn(|| {
        let page = page_size().bytes();
        let heap = named("[heap]").expect("a heap");
        let uffd = sync();
        watcher::register(&uffd, heap).expect("UFFDIO_REGISTER");
        // SAFETY: the heap grows, and what it has stays.
        let end = unsafe { libc::sbrk(8 * page as isize) };
        let new = Range { start: page_size().round_up(end.expose_provenance()).expect("an address"), len: 4 * page };
        assert!(!registered(new) && registered(heap), "the new part");
    })
    .finish();
    Ok(())
}

/// Memory with nothing behind its first half.
fn half(kind: Kind) -> Result<(Memory, Range), Skip> {
    let memory = Memory::marked(kind, 8)?;
    (0..4).for_each(|page| memory.store(page, 100));
    let kept = memory.span(0, 4);
    memory.unmap(memory.span(4, 4)).expect("munmap");
    Ok((memory, kept))
}

fn mapping_grown_in_place_is_registered_and_not_armed(kind: Kind) -> Verdict {
    let (memory, kept) = half(kind)?;
    let uffd = sync();
    watcher::register(&uffd, kept).expect("UFFDIO_REGISTER");
    watcher::protect(&uffd, kept, true).expect("UFFDIO_WRITEPROTECT");
    assert_eq!(mremap(kept, memory.range.len, None), Ok(kept.start));
    assert!(registered(memory.range), "all of it");
    assert_eq!(messages(uffd, &[memory.at(5).start, memory.at(1).start]), 1, "the old part only");
    Ok(())
}

/// Moves a memory elsewhere; the events that were read meanwhile.
fn moved(uffd: &Uffd, memory: &Memory, event: bool) -> Range {
    let page = page_size().bytes();
    let to = map::reserve(memory.range.len, page).expect("addresses");
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| mremap(memory.range, memory.range.len, Some(to.start)));
        if event {
            pidfd::readable(uffd.as_fd(), None).expect("poll");
            assert!(!mover.is_finished(), "it waits");
            match watcher::next_event(uffd) {
                UffdMessage::Remap { from, to: at, len } => {
                    assert_eq!((from, at, len), (memory.range.start, to.start, memory.range.len));
                }
                other => panic!("a move was expected: {other:?}"),
            }
        }
        assert_eq!(mover.join().expect("the mover"), Ok(to.start));
    });
    to
}

fn moved_mapping_stays_armed_with_its_event(kind: Kind) -> Verdict {
    let page = page_size().bytes();
    for event in [true, false] {
        let extra = if event { Features::EVENT_REMAP } else { Features::empty() };
        let memory = Memory::marked(kind, 4)?;
        memory.load_all();
        let uffd = watcher::any(SYNC | extra).expect("userfaultfd");
        watcher::arm(&uffd, &memory);
        let new = moved(&uffd, &memory, event);
        assert_eq!(registered(new), event, "synchronous");
        assert_eq!(messages(uffd, &[new.start + page]), usize::from(event));

        let memory = Memory::marked(kind, 4)?;
        memory.load_all();
        let uffd = watcher::any(ASYNC | extra).expect("userfaultfd");
        watcher::arm(&uffd, &memory);
        memory.store(1, 200);
        let new = moved(&uffd, &memory, event);
        let mut written = Vec::new();
        let scan = |found: &mut Vec<_>| {
            found.clear();
            Pagemap::open_self()
                .expect("pagemap")
                .scan(new, &WRITTEN, |run| found.push((run.start - new.start, run.len)))
        };
        scan(&mut written).expect("PAGEMAP_SCAN");
        assert_eq!(written, if event { vec![(page, page)] } else { vec![] }, "asynchronous");
        memory::store(new.start + 3 * page, 200);
        scan(&mut written).expect("PAGEMAP_SCAN");
        assert_eq!(written.len(), if event { 2 } else { 0 }, "asynchronous, written later");
    }
    Ok(())
}

fn mapping_over_a_watched_one_is_not_watched() -> Verdict {
    for unmapped in [false, true] {
        let memory = Memory::marked(Kind::Anonymous, 4)?;
        let uffd = sync();
        watcher::arm(&uffd, &memory);
        assert!(registered(memory.at(1)));
        if unmapped {
            memory.unmap(memory.at(1)).expect("munmap");
        }
        // SAFETY: the page is this memory's, and nobody refers into it.
        unsafe { map::blank(memory.at(1)) }.expect("mmap");
        memory.protect(memory.at(1), Access::ReadWrite).expect("mprotect");
        assert!(!registered(memory.at(1)) && registered(memory.at(2)));
        assert_eq!(messages(uffd, &[memory.at(1).start, memory.at(2).start]), 1);
    }
    Ok(())
}

fn dontneed_disarms_anonymous_pages() -> Verdict {
    for features in [SYNC, SYNC | Features::WP_UNPOPULATED] {
        let memory = Memory::marked(Kind::Anonymous, 4)?;
        let uffd = watcher::any(features).expect("userfaultfd");
        watcher::arm(&uffd, &memory);
        memory.drop_pages(memory.at(1));
        assert_eq!(messages(uffd, &[memory.at(1).start, memory.at(2).start]), 1, "{features:?}");
    }
    let memory = Memory::marked(Kind::Anonymous, 4)?;
    let _uffd = watcher::arm_async(&memory);
    memory.drop_pages(memory.at(1));
    memory.store(1, 1);
    assert_eq!(evidence::written(&memory), pages([1]), "recorded as WRITTEN, though it was not armed");
    Ok(())
}
