//! Mappings: `mseal`, overcommit, the number of mappings.

use crate::child;
use crate::claim::{Claim, Need, Skip, Verdict, claim};
use crate::evidence;
use crate::memory::{self, Kind, Memory, load, mark};
use crate::watcher;
use cowbell::sys::map::{self, Access, Range};
use cowbell::sys::{Errno, executable, memfd, page_size, procfs};
use std::os::fd::AsFd;

pub const CLAIMS: &[Claim] = &[
    claim!(
        constants_of_the_program_are_read_only_and_the_same_in_forks,
        "Once a program runs, its segments without `PF_W` and its `PT_GNU_RELRO` are mapped without PROT_WRITE, and a fork has the same bytes there at the same addresses."
    ),
    claim!(
        mseal_stops_mprotect_and_munmap_and_is_inherited,
        "After `mseal` mprotect, munmap and mapping over it are EPERM, in forked children too; the pages can be read and written as before."
    )
    .needs(&[Need::Mseal]),
    claim!(
        mseal_leaves_userfaultfd_working,
        "A sealed mapping can be registered, armed and disarmed with userfaultfd."
    )
    .needs(&[Need::Mseal, Need::WpAsync, Need::Scan]),
    claim!(
        mseal_and_dropping_of_private_pages,
        "`MADV_DONTNEED` drops the copies of a sealed private memfd mapping, read-only or writable; on sealed read-only anonymous memory it is EPERM."
    )
    .needs(&[Need::Mseal]),
    claim!(
        noreserve_map_larger_than_memory_can_be_made_writable,
        "Under overcommit 0 a `MAP_NORESERVE` private memfd mapping larger than memory and swap can go from read-only to writable; without `MAP_NORESERVE` that is ENOMEM."
    ),
    claim!(
        mprotect_of_single_pages_runs_out_of_mappings,
        "`mprotect` of every second page makes a mapping of each, and is ENOMEM at `vm.max_map_count`."
    )
    .limit_s(60),
    claim!(
        addresses_apart_are_free_and_what_is_mapped_is_not_replaced,
        "`MAP_FIXED_NOREPLACE` takes addresses between 16 and 40 TiB (below 2^47) where nothing is mapped, and is refused (EEXIST) where something is."
    ),
    claim!(
        a_private_map_of_a_memfd_fills_a_hole_and_replaces_nothing,
        "`MAP_FIXED_NOREPLACE` maps a sealed memfd privately into a hole, and is EEXIST over a mapping, also of a single page, which stays."
    ),
];

fn mseal_stops_mprotect_and_munmap_and_is_inherited() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    let open = Memory::marked(Kind::PrivateMemfd, 4)?;
    map::seal(memory.range).expect("mseal");
    let check = || {
        assert_eq!(memory.protect(memory.at(1), Access::Read), Err(Errno::PERM), "mprotect");
        assert_eq!(memory.unmap(memory.at(1)), Err(Errno::PERM), "munmap");
        assert_eq!(memory.map(memory.at(1), 0), Err(Errno::PERM), "mmap over it");
        assert_eq!(memory.load(2), mark(2));
        assert_eq!(open.protect(open.at(1), Access::Read), Ok(()), "mprotect, not sealed");
        assert_eq!(open.unmap(open.at(1)), Ok(()), "munmap, not sealed");
        memory.store(2, 255);
        assert_eq!(memory.load(2), 255);
    };
    child::spawn(check).finish();
    check();
    Ok(())
}

fn mseal_leaves_userfaultfd_working() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    map::seal(memory.range).expect("mseal");
    let uffd = watcher::arm_async(&memory);
    memory.store(1, 255);
    assert_eq!(evidence::written(&memory), evidence::pages([1]));
    watcher::protect(&uffd, memory.range, false).expect("UFFDIO_WRITEPROTECT");
    memory.store(2, 255);
    Ok(())
}

fn mseal_and_dropping_of_private_pages() -> Verdict {
    for access in [Access::Read, Access::ReadWrite] {
        let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
        memory.store(1, 255);
        memory.protect(memory.range, access).expect("mprotect");
        map::seal(memory.range).expect("mseal");
        assert_eq!((memory.advise(memory.range, libc::MADV_DONTNEED), memory.load(1)), (Ok(()), mark(1)), "{access:?}");
    }
    let anonymous = Memory::marked(Kind::Anonymous, 4)?;
    anonymous.protect(anonymous.range, Access::Read).expect("mprotect");
    map::seal(anonymous.range).expect("mseal");
    assert_eq!(anonymous.advise(anonymous.range, libc::MADV_DONTNEED), Err(Errno::PERM), "anonymous");
    assert_eq!(anonymous.load(1), mark(1), "nothing was dropped");
    Ok(())
}

/// Memory and swap of this machine, in bytes.
fn memory_and_swap() -> usize {
    let text = std::fs::read_to_string("/proc/meminfo").expect("/proc/meminfo");
    let field = |key: &str| -> usize {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).expect("the key");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
    };
    field("MemTotal:") + field("SwapTotal:")
}

fn noreserve_map_larger_than_memory_can_be_made_writable() -> Verdict {
    let policy = std::fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap_or_default();
    if policy.trim() != "0" {
        return Err(Skip(format!("vm.overcommit_memory is `{}`, not 0", policy.trim())));
    }
    let page = cowbell::sys::page_size();
    let len = page.round_down(memory_and_swap() * 2);
    let file = memfd::create("larger than memory").expect("memfd_create");
    memfd::set_len(file.as_fd(), len as u64).expect("ftruncate");
    let range = map::reserve(len, page.bytes()).expect("addresses");
    assert_eq!(memory::map_readonly(range, file.as_fd(), true), Ok(()), "read-only");
    assert_eq!(memory::make_writable(range), Ok(()), "MAP_NORESERVE");
    memory::store(range.start + len / 2, 1);
    assert_eq!(memory::load(range.start + len / 2), 1);

    assert_eq!(memory::map_readonly(range, file.as_fd(), false), Ok(()), "read-only");
    assert_eq!(memory::make_writable(range), Err(Errno::NOMEM), "without MAP_NORESERVE");
    Ok(())
}

fn mappings() -> usize {
    procfs::maps::read(procfs::SELF).expect("/proc/self/maps").len()
}

fn mprotect_of_single_pages_runs_out_of_mappings() -> Verdict {
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").expect("vm.max_map_count");
    let limit: usize = text.trim().parse().expect("a number");
    if limit > 2_000_000 {
        return Err(Skip(format!("vm.max_map_count is {limit}: too many to make")));
    }
    let memory = Memory::new(Kind::PrivateMemfd, 2 * limit + 2)?;
    let before = mappings();
    memory.protect(memory.range, Access::Read).expect("mprotect of all of it");
    memory.protect(memory.range, Access::ReadWrite).expect("mprotect of all of it");
    assert_eq!(mappings(), before, "a whole mapping is one");
    memory.protect(memory.at(1), Access::Read).expect("mprotect of one page");
    assert_eq!(mappings(), before + 2, "one page splits it in three");
    let refused = (3..memory.pages())
        .step_by(2)
        .find_map(|page| memory.protect(memory.at(page), Access::Read).err().map(|errno| (page, errno)));
    let (page, errno) = refused.expect("the limit is met");
    assert_eq!(errno, Errno::NOMEM);
    // The kernel checks before it splits, and maps has a line or two for what is no mapping.
    let reached = before + page - 1;
    assert!(reached.abs_diff(limit) < 8, "{reached} mappings, limit {limit}");
    Ok(())
}

fn addresses_apart_are_free_and_what_is_mapped_is_not_replaced() -> Verdict {
    const UNIT: usize = 2 << 20;
    // One word for this process and its children.
    let family = cowbell::sys::shared_words::SharedWords::new(1).expect("memory");
    let reserve = |len| map::reserve_apart(&family.words()[0], len, UNIT).expect("addresses");
    let first = reserve(4 * UNIT);
    let second = reserve(UNIT);
    assert!((16 << 40..40 << 40).contains(&first.start), "{:#x}", first.start);
    assert_eq!(second.start, first.end() + UNIT, "the next hint");
    // A child's are others than its parent's, whatever else each has mapped.
    let here = reserve(UNIT).start;
    let there = child::compute(|| {
        map::anonymous(64 << 20).expect("memory");
        reserve(UNIT).start as u64
    });
    assert_eq!(there as usize, here + 2 * UNIT);
    // What is taken is passed over.
    map::fence(Range { start: here + 4 * UNIT, len: UNIT }).expect("free here");
    assert_eq!(reserve(UNIT).start, here + 6 * UNIT);
    Ok(())
}

fn a_private_map_of_a_memfd_fills_a_hole_and_replaces_nothing() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    let map = || map::map_private_new(memory.range, Access::Read, memory.file(), 0);
    assert_eq!(map(), Err(Errno::EXIST), "mapped");
    memory.unmap(memory.span(0, 3)).expect("munmap");
    assert_eq!(map(), Err(Errno::EXIST), "one page is mapped");
    assert_eq!(memory.load(3), mark(3), "which stays");
    memory.unmap(memory.at(3)).expect("munmap");
    assert_eq!(map(), Ok(()), "a hole");
    assert!((0..4).all(|page| memory.load(page) == mark(page)));
    Ok(())
}

fn constants_of_the_program_are_read_only_and_the_same_in_forks() -> Verdict {
    let constants = executable::constants();
    assert!(!constants.is_empty(), "the program's own headers are found");
    let maps = procfs::maps::read(procfs::SELF).expect("maps");
    let page = page_size().bytes();
    for range in &constants {
        // The loader protects whole pages.
        let end = range.end() / page * page;
        for mapping in maps.iter().filter(|m| m.range.start < end && m.range.end() > range.start) {
            assert!(!mapping.is_writable(), "{mapping:?} has {range:?}");
        }
        assert!(maps.iter().any(|mapping| mapping.range.contains(range.start)), "{range:?} is mapped");
    }
    let digest = || {
        let bytes = constants.iter().flat_map(|range| range.start..range.end() / page * page);
        bytes.fold(0u64, |sum, at| sum.wrapping_mul(31).wrapping_add(u64::from(load(at))))
    };
    let mine = digest();
    assert_eq!(child::compute(digest), mine);
    Ok(())
}
