//! Page tables as shown: the census and its oracles, markers, other processes, resumed scans.

use crate::child::{self, Gate};
use crate::claim::{Claim, Need, Verdict, claim};
use crate::evidence::{self, pages};
use crate::memory::{Kind, Memory, mark};
use crate::watcher;
use cowbell::page::{PageIndex, PageSet};
use cowbell::sys::map::Range;
use cowbell::sys::pagemap::{COPIED, Categories, Entry, PageRegion, Pagemap, Query, WRITTEN};
use cowbell::sys::{Errno, pidfd, process};
use proptest::collection::btree_set;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::thread::CapabilitySet;
use std::collections::BTreeSet;
use std::os::fd::AsFd;

pub const CLAIMS: &[Claim] = &[
    claim!(
        census_is_smaps_anonymous_to_the_page on [PrivateMemfd, PrivateFile],
        "PAGEMAP_SCAN for pages that are present or swapped and not FILE finds exactly the pages written, as many as smaps counts as Anonymous."
    )
    .needs(&[Need::Scan]),
    claim!(
        reading_pagemap_agrees_with_the_scan on [PrivateMemfd, PrivateFile],
        "The words of pagemap (present, not file) give the same set as PAGEMAP_SCAN."
    )
    .needs(&[Need::Scan]),
    claim!(
        small_scans_resume_to_the_truth,
        "Scans with a small vector, resumed at the larger of `walk_end` and the last region's end, find every page once per pass and none else."
    )
    .needs(&[Need::Scan]),
    claim!(
        reading_maps_neighbours_unless_watched on [PrivateMemfd, PrivateFile],
        "Reading one page of a file that is in memory maps its neighbours, too (fault-around); in a mapping under userfaultfd it maps that page alone."
    )
    .needs(&[Need::Scan, Need::WpAsync]),
    claim!(
        written_without_wpallowed_means_nothing,
        "PAGE_IS_WRITTEN can show on pages that were never armed; only together with PAGE_IS_WPALLOWED does it mean written."
    )
    .needs(&[Need::Scan, Need::WpAsync]),
    claim!(
        markers_show_as_swapped_and_not_written on [PrivateMemfd, SharedMemfd, Anonymous],
        "An armed page that was never touched has a marker: SWAPPED (bit 62 and PAGE_IS_SWAPPED), protected (bit 57), not WRITTEN, not in smaps Swap."
    )
    .needs(&[Need::Scan, Need::WpAsync]),
    claim!(
        markers_go_with_the_userfaultfd,
        "Closing the userfaultfd takes the markers away: an untouched page no longer shows as SWAPPED."
    )
    .needs(&[Need::Scan, Need::WpAsync]),
    claim!(
        scan_works_on_another_process,
        "PAGEMAP_SCAN on a child's pagemap shows the child's copies, not the caller's."
    )
    .needs(&[Need::Scan]),
    claim!(
        scan_rearms_another_process,
        "PM_SCAN_WP_MATCHING on a child's pagemap re-arms the child's pages found, so that the next scan shows only newer writes."
    )
    .needs(&[Need::Scan, Need::WpAsync]),
    claim!(
        rearming_scan_needs_an_armed_range,
        "PM_SCAN_WP_MATCHING with PM_SCAN_CHECK_WPASYNC is EPERM on a range without asynchronous write-protection."
    )
    .needs(&[Need::Scan, Need::WpAsync]),
    claim!(
        pagemap_descriptor_keeps_its_address_space,
        "A pagemap descriptor opened before fork shows the parent's pages, also when the child uses it."
    )
    .needs(&[Need::Scan]),
    claim!(
        one_scan_sees_the_whole_address_space,
        "PAGEMAP_SCAN from 0 to the end of user addresses finds the pages of every mapping, whatever lies between; an end that is too high is EFAULT or the same as a lower one."
    )
    .needs(&[Need::Scan]),
    claim!(
        proc_mem_reads_through_markers on [PrivateMemfd],
        "A read of `/proc/self/mem` gives what a load would: of an armed page that was never touched, which has a marker, the file's content, and the page stays unwritten; of a copy its own."
    )
    .needs(&[Need::Scan, Need::WpAsync]),
    claim!(
        a_process_that_has_ended_has_no_page_tables,
        "A process that has ended and was not reaped has no page tables: opening them is ESRCH, or reading them gives 0 bytes; EACCES for an ordinary user."
    ),
    claim!(
        frames_are_hidden_from_ordinary_users,
        "Without CAP_SYS_ADMIN the frame number reads as 0 and the other bits stay true; with it, it shows."
    ),
];

const PAGES: usize = 1500;

/// Runs `check` for some dozens of random sets of pages.
fn for_random_sets(cases: u32, check: impl Fn(&BTreeSet<usize>)) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let sets =
        prop_oneof![btree_set(0..PAGES, 0..20), btree_set(0..PAGES, 0..PAGES / 2), btree_set(0..100usize, 0..90)];
    TestRunner::new(config)
        .run(&sets, |set| {
            check(&set);
            Ok(())
        })
        .expect("checks end the process by themselves");
}

fn census_is_smaps_anonymous_to_the_page(kind: Kind) -> Verdict {
    let memory = Memory::marked(kind, PAGES)?;
    for_random_sets(40, |set| {
        memory.drop_pages(memory.range);
        // Some pages are only read, some untouched: neither counts.
        (0..PAGES).step_by(3).for_each(|page| memory.touch(page));
        set.iter().for_each(|&page| memory.store(page, 255));
        assert_eq!(evidence::copied(&memory), pages(set.iter().copied()));
        assert_eq!(evidence::anonymous_pages(&memory), set.len() as u64);
    });
    Ok(())
}

fn one_scan_sees_the_whole_address_space() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    memory.store(2, 200);
    let heap = vec![1u8; 2 * memory.page.bytes()];
    let on_stack = 0u8;
    let pagemap = Pagemap::open_self().expect("pagemap");
    let there = Query {
        all: Categories::empty(),
        none: Categories::PFN_ZERO,
        any: Categories::PRESENT | Categories::SWAPPED,
        rearm: false,
    };
    let mut accepted = 0;
    for bits in [57, 48, 47, 42, 39] {
        let range = Range { start: 0, len: (1 << bits) - memory.page.bytes() };
        let mut runs = Vec::new();
        match pagemap.scan(range, &there, |run| runs.push(run)) {
            Ok(()) => {}
            Err(Errno::FAULT) => continue,
            Err(e) => panic!("{bits} bits: {e}"),
        }
        accepted += 1;
        if accepted > 1 {
            // Lower than what there is.
            break;
        }
        assert!(runs.is_sorted_by_key(|run| run.start), "{bits} bits");
        let has = |address: usize| runs.iter().any(|run| run.contains(address));
        let (heap, stack) = (heap.as_ptr().addr(), std::ptr::from_ref(&on_stack).addr());
        assert!(has(memory.at(2).start) && has(heap) && has(stack), "{bits} bits: {runs:?}");
        assert!(!has(memory.at(3).start), "nobody touched it");
    }
    assert!(accepted > 0, "some end is the right one");
    Ok(())
}

fn proc_mem_reads_through_markers(kind: Kind) -> Verdict {
    let memory = Memory::marked(kind, 8)?;
    let _uffd = watcher::arm_async(&memory);
    memory.store(5, 200);
    let marker = evidence::categories(&memory, 6);
    assert!(marker.contains(Categories::SWAPPED) && !marker.contains(Categories::WRITTEN), "{marker:?}");
    assert_eq!((evidence::read_mem(&memory, 5), evidence::read_mem(&memory, 6)), (200, mark(6)));
    assert_eq!(evidence::written(&memory), pages([5]), "reading is no write");
    Ok(())
}

fn reading_pagemap_agrees_with_the_scan(kind: Kind) -> Verdict {
    let memory = Memory::marked(kind, PAGES)?;
    let pagemap = Pagemap::open_self().expect("pagemap");
    for_random_sets(20, |set| {
        memory.drop_pages(memory.range);
        (0..PAGES).step_by(2).for_each(|page| memory.touch(page));
        set.iter().for_each(|&page| memory.store(page, 255));
        let mut read = PageSet::new();
        let present = |entry: Entry| entry.contains(Entry::PRESENT) && !entry.contains(Entry::FILE);
        let reading = pagemap.read(memory.range, |address, entry| {
            if present(entry) {
                evidence::insert(&mut read, &memory, Range { start: address, len: memory.page.bytes() });
            }
        });
        reading.expect("read of pagemap");
        assert_eq!(read, evidence::copied(&memory));
        assert_eq!(read, pages(set.iter().copied()));
    });
    Ok(())
}

fn small_scans_resume_to_the_truth() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, PAGES)?;
    let pagemap = Pagemap::open_self().expect("pagemap");
    let [query] = COPIED;
    for_random_sets(30, |set| {
        memory.drop_pages(memory.range);
        set.iter().for_each(|&page| memory.store(page, 255));
        let truth = pages(set.iter().copied());
        for vector in [1, 2, 7, 128] {
            let mut regions = vec![PageRegion { start: 0, end: 0, categories: 0 }; vector];
            let (mut start, end) = (memory.range.start as u64, memory.range.end() as u64);
            let mut found = PageSet::new();
            while start < end {
                let (walk_end, count) = pagemap.scan_once(start, end, &query, &mut regions).expect("PAGEMAP_SCAN");
                let mut next = walk_end;
                for region in &regions[..count] {
                    assert!(region.start >= start, "a region before the start asked for");
                    let len = (region.end - region.start) as usize;
                    evidence::insert(&mut found, &memory, Range { start: region.start as usize, len });
                    next = next.max(region.end);
                }
                assert!(next > start, "progress");
                start = next;
            }
            assert_eq!(found, truth, "with a vector of {vector}");
        }
        assert_eq!(evidence::copied(&memory), truth, "the crate's own loop");
    });
    Ok(())
}

fn reading_maps_neighbours_unless_watched(kind: Kind) -> Verdict {
    let memory = Memory::marked(kind, 256)?;
    let there = Query { all: Categories::PRESENT, none: Categories::empty(), any: Categories::empty(), rearm: false };
    let pagemap = Pagemap::open_self().expect("pagemap");
    memory.touch(100);
    let mapped = evidence::scan(&pagemap, &memory, &[there]);
    assert!(mapped.count().0 > 1 && mapped.contains(PageIndex(100)), "{mapped:?}");
    memory.drop_pages(memory.range);
    let _uffd = watcher::arm_async(&memory);
    memory.touch(100);
    assert_eq!(evidence::scan(&pagemap, &memory, &[there]), pages([100]), "under userfaultfd");
    Ok(())
}

fn written_without_wpallowed_means_nothing() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    memory.touch(0);
    let query = Query { all: Categories::WRITTEN, ..WRITTEN };
    let pagemap = Pagemap::open_self().expect("pagemap");
    // Some kernels show the page, though it was only read.
    let _shown = evidence::scan(&pagemap, &memory, &[query]);
    assert_eq!(evidence::written(&memory), pages([]), "with WPALLOWED");
    let _uffd = watcher::arm_async(&memory);
    assert_eq!(evidence::scan(&pagemap, &memory, &[query]), pages([]), "armed");
    memory.store(0, 1);
    assert_eq!(evidence::written(&memory), pages([0]), "written");
    Ok(())
}

fn markers_show_as_swapped_and_not_written(kind: Kind) -> Verdict {
    let memory = Memory::new(kind, 4)?;
    if kind != Kind::Anonymous {
        memory.fill();
    }
    assert_eq!(evidence::entry(&memory, 0) & (Entry::SWAPPED | Entry::PRESENT), Entry::empty(), "before");
    let uffd = watcher::arm_async(&memory);
    let seen = evidence::categories(&memory, 0);
    assert!(seen.contains(Categories::SWAPPED | Categories::WP_ALLOWED), "{seen:?}");
    assert!(!seen.intersects(Categories::WRITTEN | Categories::PRESENT), "{seen:?}");
    let bits = evidence::entry(&memory, 0);
    assert!(bits.contains(Entry::SWAPPED | Entry::UFFD_WP) && !bits.contains(Entry::PRESENT), "{bits:?}");
    assert_eq!(evidence::smaps(process::pid(), &memory).swap, 0, "smaps knows better");
    assert_eq!(evidence::copied(&memory).count().0, 4, "the census for unarmed ranges is fooled");
    assert_eq!(evidence::copied_armed(&memory), pages([]), "the one for armed ranges is not");
    memory.store(1, 1);
    let mine = kind != Kind::SharedMemfd;
    assert_eq!(evidence::copied_armed(&memory), if mine { pages([1]) } else { pages([]) });
    assert_eq!(evidence::written(&memory), pages([1]));
    drop(uffd);
    Ok(())
}

fn markers_go_with_the_userfaultfd() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    let uffd = watcher::arm_async(&memory);
    assert!(evidence::entry(&memory, 0).contains(Entry::SWAPPED), "armed");
    drop(uffd);
    assert!(!evidence::entry(&memory, 0).contains(Entry::SWAPPED), "closed");
    assert_eq!(evidence::copied(&memory), pages([]));
    Ok(())
}

fn scan_works_on_another_process() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 64)?;
    let (written, end) = (Gate::new(), Gate::new());
    memory.store(1, 255);
    let child = child::spawn(|| {
        memory.store(2, 255);
        memory.store(40, 255);
        written.open();
        end.pass();
    });
    written.pass();
    let pagemap = Pagemap::open(child.pid).expect("the child's pagemap");
    assert_eq!(evidence::scan(&pagemap, &memory, &COPIED), pages([1, 2, 40]), "the child's");
    assert_eq!(evidence::copied(&memory), pages([1]), "ours");
    assert_eq!(evidence::smaps(child.pid, &memory).anonymous, 3 * memory.page.bytes() as u64, "smaps of the child");
    end.open();
    child.finish();
    Ok(())
}

fn scan_rearms_another_process() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 64)?;
    let (step, go) = (Gate::new(), Gate::new());
    let child = child::spawn(|| {
        let _uffd = watcher::arm_async(&memory);
        for writes in [&[3usize, 4][..], &[4, 9]] {
            writes.iter().for_each(|&page| memory.store(page, 255));
            step.open();
            go.pass();
        }
    });
    let pagemap = Pagemap::open(child.pid).expect("the child's pagemap");
    let rearm = Query { rearm: true, ..WRITTEN };
    step.pass();
    assert_eq!(evidence::scan(&pagemap, &memory, &[rearm]), pages([3, 4]), "the first epoch");
    assert_eq!(evidence::scan(&pagemap, &memory, &[WRITTEN]), pages([]), "armed again");
    go.open();
    step.pass();
    assert_eq!(evidence::scan(&pagemap, &memory, &[WRITTEN]), pages([4, 9]), "the second epoch");
    go.open();
    child.finish();
    Ok(())
}

fn rearming_scan_needs_an_armed_range() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    memory.store(1, 255);
    let pagemap = Pagemap::open_self().expect("pagemap");
    let rearm = Query { all: Categories::WRITTEN, rearm: true, ..WRITTEN };
    assert_eq!(pagemap.scan(memory.range, &rearm, |_| ()), Err(Errno::PERM), "not registered");
    let _uffd = watcher::arm_async(&memory);
    assert_eq!(pagemap.scan(memory.range, &rearm, |_| ()), Ok(()), "armed");
    Ok(())
}

fn pagemap_descriptor_keeps_its_address_space() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 8)?;
    let before = Pagemap::open_self().expect("pagemap");
    memory.store(1, 255);
    child::spawn(|| {
        memory.store(2, 255);
        assert_eq!(evidence::scan(&before, &memory, &COPIED), pages([1]), "the parent's");
        assert_eq!(evidence::copied(&memory), pages([1, 2]), "opened in the child");
    })
    .finish();
    Ok(())
}

fn a_process_that_has_ended_has_no_page_tables() -> Verdict {
    let child = child::spawn(|| ());
    assert!(pidfd::wait_end(child.pidfd.as_fd(), None).expect("poll"));
    let refused = Pagemap::open(child.pid).map(|_| ());
    // The files of a process without memory are root's.
    assert!(matches!(refused, Err(Errno::SRCH | Errno::ACCESS)), "before it is reaped: {refused:?}");
    let pid = child.pid;
    child.finish();
    assert_eq!(Pagemap::open(pid).map(|_| ()), Err(Errno::NOENT), "and after");
    Ok(())
}

fn frames_are_hidden_from_ordinary_users() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    memory.store(1, 255);
    let bits = |entry: Entry| entry & (Entry::PRESENT | Entry::FILE | Entry::EXCLUSIVE);
    let mut sets = rustix::thread::capabilities(None).expect("capget");
    let (before, privileged) = (evidence::entry(&memory, 1), sets.effective.contains(CapabilitySet::SYS_ADMIN));
    assert_eq!(before.frame() != 0, privileged, "CAP_SYS_ADMIN: {privileged}");
    sets.effective.remove(CapabilitySet::SYS_ADMIN);
    rustix::thread::set_capabilities(None, sets).expect("capset");
    let after = evidence::entry(&memory, 1);
    assert_eq!((after.frame(), bits(after)), (0, bits(before)), "without CAP_SYS_ADMIN");
    assert_eq!(bits(after), Entry::PRESENT | Entry::EXCLUSIVE);
    Ok(())
}
