//! Settling: how a page looks while its writer waits, and what comes of it then: a copy, or the same page.

use crate::child::{self, Gate};
use crate::claim::{ADMIN, Claim, Need, Skip, Verdict, claim};
use crate::copying::own_pages;
use crate::evidence;
use crate::memory::{Kind, Memory, store};
use crate::watcher::{self, SYNC};
use cowbell::sys::map::{self, Harmless};
use cowbell::sys::pagemap::{Categories, Entry};
use cowbell::sys::uffd::{Features, UffdMessage};
use std::os::fd::AsFd;

pub const CLAIMS: &[Claim] = &[
    claim!(
        copy_follows_the_message_where_a_page_is_shared on [Anonymous, PrivateMemfd],
        "While a synchronous writer waits, an anonymous page that a forked process shares has bit 56 clear; once the writer goes on it has another frame."
    )
    .needs(&[Need::Uffd, ADMIN]),
    claim!(
        reuse_follows_the_message_where_a_page_was_given_up on [Anonymous, PrivateMemfd],
        "The same page, given up by the other side, has bit 56 set while the writer waits, and keeps its frame."
    )
    .needs(&[Need::Uffd, ADMIN]),
    claim!(
        zero_page_shows_at_the_message,
        "While a synchronous writer waits, an anonymous page that was only read is PFNZERO; once the writer goes on it is a page of its own."
    )
    .needs(&[Need::Uffd, Need::Scan]),
    claim!(
        two_writers_of_one_page_are_two_messages,
        "Two threads that write to an armed page at once are two messages, and one answer lets both go on."
    )
    .needs(&[Need::Uffd]),
    claim!(
        one_message_arms_the_rest_of_an_anonymous_huge_page,
        "A write to an armed anonymous huge page is a message; disarming that base page leaves the others armed, and the write copies it alone."
    )
    .needs(&[Need::Uffd, ADMIN]),
    claim!(
        exclusive_bit_of_a_part_of_a_shared_huge_page,
        "A base page of an anonymous huge page that the other side has copied is copied here, too, while the rest is shared; bit 56 is clear there if the huge page is mapped in one piece, and set if not. Once the other side is gone, it is set, and a writer keeps the frame."
    )
    .needs(&[Need::Uffd, ADMIN]),
];

/// Stores to an armed page; what pagemap said while the writer waited, and then.
fn settle(memory: &Memory, page: usize) -> (Entry, Entry) {
    let uffd = watcher::any(SYNC).expect("userfaultfd");
    watcher::arm(&uffd, memory);
    let waiting = std::thread::scope(|scope| {
        scope.spawn(|| memory.store(page, 200));
        assert_eq!(watcher::next_fault(&uffd).address, memory.at(page).start);
        let waiting = evidence::entry(memory, page);
        watcher::protect(&uffd, memory.at(page), false).expect("UFFDIO_WRITEPROTECT");
        waiting
    });
    assert_eq!(memory.load(page), 200);
    (waiting, evidence::entry(memory, page))
}

fn copy_follows_the_message_where_a_page_is_shared(kind: Kind) -> Verdict {
    let memory = own_pages(kind)?;
    let before = evidence::entry(&memory, 1).frame();
    let child = child::spawn(|| Gate::new().pass());
    let (waiting, after) = settle(&memory, 1);
    assert_eq!((waiting.frame(), waiting.contains(Entry::EXCLUSIVE)), (before, false), "at the message");
    assert!(after.frame() != before && after.contains(Entry::EXCLUSIVE), "copied");
    child.kill();
    Ok(())
}

fn reuse_follows_the_message_where_a_page_was_given_up(kind: Kind) -> Verdict {
    let memory = own_pages(kind)?;
    let before = evidence::entry(&memory, 1).frame();
    let (written, end) = (Gate::new(), Gate::new());
    let child = child::spawn(|| {
        memory.store(1, 100);
        written.open();
        end.pass();
    });
    written.pass();
    let (waiting, after) = settle(&memory, 1);
    assert_eq!((waiting.frame(), waiting.contains(Entry::EXCLUSIVE)), (before, true), "at the message");
    assert_eq!(after.frame(), before, "reused");
    end.open();
    child.finish();
    Ok(())
}

fn zero_page_shows_at_the_message() -> Verdict {
    let memory = Memory::new(Kind::Anonymous, 4)?;
    memory.touch(1);
    let uffd = watcher::any(SYNC).expect("userfaultfd");
    watcher::arm(&uffd, &memory);
    let zero = || evidence::categories(&memory, 1).contains(Categories::PFN_ZERO);
    std::thread::scope(|scope| {
        scope.spawn(|| memory.store(1, 200));
        watcher::next_fault(&uffd);
        assert!(zero(), "at the message");
        watcher::protect(&uffd, memory.at(1), false).expect("UFFDIO_WRITEPROTECT");
    });
    assert!(!zero() && evidence::anonymous_pages(&memory) == 1, "a new page");
    Ok(())
}

fn two_writers_of_one_page_are_two_messages() -> Verdict {
    let memory = own_pages(Kind::Anonymous)?;
    let address = memory.at(1).start;
    let uffd = watcher::any(SYNC | Features::THREAD_ID).expect("userfaultfd");
    watcher::arm(&uffd, &memory);
    std::thread::scope(|scope| {
        for byte in [100, 200] {
            scope.spawn(move || store(address, byte));
        }
        // The second comes while the first still waits.
        let mut writers = std::collections::BTreeSet::new();
        while writers.len() < 2 {
            cowbell::sys::pidfd::readable(uffd.as_fd(), None).expect("poll");
            let seen = |event| match event {
                UffdMessage::Fault(fault) => {
                    assert_eq!(fault.address, address);
                    assert!(writers.insert(fault.tid), "one message each");
                }
                other => panic!("a fault was expected: {other:?}"),
            };
            uffd.read(seen).expect("read");
        }
        watcher::protect(&uffd, memory.at(1), false).expect("UFFDIO_WRITEPROTECT");
    });
    assert_eq!(uffd.read(|event| panic!("{event:?}")), Ok(false), "no third message");
    Ok(())
}

/// An anonymous huge page, all its base pages written.
fn huge() -> Result<Memory, Skip> {
    let none = || Skip("no transparent huge pages".to_owned());
    let size = map::huge_page_size().ok_or_else(none)?;
    let memory = Memory::aligned(Kind::Anonymous, size / cowbell::sys::page_size().bytes(), size)?;
    map::advise(memory.range, Harmless::HugePage).map_err(|e| Skip(format!("MADV_HUGEPAGE: {e}")))?;
    (0..memory.pages()).for_each(|page| memory.store(page, 1));
    let is_huge = evidence::categories(&memory, 1).contains(Categories::HUGE);
    if is_huge { Ok(memory) } else { Err(Skip("no huge page was to be had".to_owned())) }
}

fn one_message_arms_the_rest_of_an_anonymous_huge_page() -> Verdict {
    let memory = huge()?;
    let frames = |page| evidence::entry(&memory, page).frame();
    let before = [1, 2].map(frames);
    let child = child::spawn(|| Gate::new().pass());
    let uffd = watcher::any(SYNC).expect("userfaultfd");
    watcher::arm(&uffd, &memory);
    assert!(evidence::categories(&memory, 1).contains(Categories::HUGE), "armed in one piece");
    for page in [1, 2] {
        std::thread::scope(|scope| {
            scope.spawn(|| memory.store(page, 200));
            assert_eq!(watcher::next_fault(&uffd).address, memory.at(page).start);
            let waiting = evidence::entry(&memory, page);
            assert!(!waiting.contains(Entry::EXCLUSIVE) && before.contains(&waiting.frame()), "at the message {page}");
            watcher::protect(&uffd, memory.at(page), false).expect("UFFDIO_WRITEPROTECT");
        });
        assert!(evidence::entry(&memory, 3).contains(evidence::WP_BIT), "the others");
        assert!(!before.contains(&frames(page)), "copied");
    }
    assert!(!evidence::entry(&memory, 3).contains(Entry::EXCLUSIVE), "not copied");
    child.kill();
    Ok(())
}

fn exclusive_bit_of_a_part_of_a_shared_huge_page() -> Verdict {
    for split in [false, true] {
        let memory = huge()?;
        if split {
            memory.protect(memory.at(100), map::Access::Read).expect("mprotect");
        }
        let before = [1, 2].map(|page| evidence::entry(&memory, page).frame());
        let (written, end) = (Gate::new(), Gate::new());
        let child = child::spawn(|| {
            memory.store(1, 100);
            written.open();
            end.pass();
        });
        written.pass();
        let (waiting, after) = settle(&memory, 1);
        assert_eq!(waiting.contains(Entry::EXCLUSIVE), split, "the other side copied it");
        assert_eq!((waiting.frame() == before[0], after.frame() == before[0]), (true, false), "and so does this one");
        end.open();
        child.finish();
        let (waiting, after) = settle(&memory, 2);
        assert!(waiting.contains(Entry::EXCLUSIVE), "alone");
        assert_eq!((waiting.frame(), after.frame()), (before[1], before[1]), "reused");
    }
    Ok(())
}
