//! Advice and moves: what they do to the pages of a mapping, and what a child finds.
//!
//! # Safety
//! Only pages of a case's own memory are moved, and nobody refers into them. A child that is made by clone3 reads and exits.
#![expect(unsafe_code, reason = "pages are moved, and a process is made by clone3")]

use crate::child::{self, Gate};
use crate::claim::{ADMIN, Claim, Skip, Verdict, claim};
use crate::evidence;
use crate::memory::{Kind, Memory, mark};
use cowbell::sys::clone::{self, ForkArgs, Forked};
use cowbell::sys::map::{self, Access, Harmless};
use cowbell::sys::pidfd::{self, Ended};
use cowbell::sys::{Errno, process};
use std::os::fd::AsFd;

pub const OF_MAPPINGS: &[Claim] = &[
    claim!(
        populating_for_reading_copies_nothing on [PrivateMemfd, PrivateFile],
        "`MADV_POPULATE_READ` makes every page of a private file mapping present, a read-only one's, too, and copies none; a copy stays as it is."
    ),
    claim!(
        locking_on_fault_brings_no_page_in,
        "`mlock2(MLOCK_ONFAULT)` of a private writable mapping counts all of it (VmLck), brings no page in and copies none; reading brings in what is read."
    ),
    claim!(
        moved_pages_keep_their_frames,
        "`mremap` to another place (`MREMAP_FIXED`) moves anonymous pages with their frames, those that a forked child shares, too, and leaves nothing mapped where they were."
    )
    .needs(&[ADMIN]),
    claim!(
        several_mappings_are_moved_by_one_call_or_refused,
        "`mremap` to another place (`MREMAP_FIXED`) of a range of several mappings moves all of them (since 6.17), or is EFAULT and moves none."
    ),
];

pub const OF_FORK: &[Claim] = &[claim!(
    fork_wipes_what_is_advised_so,
    "An anonymous page under `MADV_WIPEONFORK` reads as zeroes in a forked child, whether made by fork or by clone3, and in a child of that child whatever the child wrote there; its parent keeps the content, and threads of the parent see it. On a file's mapping the advice is EINVAL."
)];

fn populating_for_reading_copies_nothing(kind: Kind) -> Verdict {
    let memory = Memory::marked(kind, 64)?;
    memory.store(3, 255);
    memory.protect(memory.span(32, 32), Access::Read).expect("mprotect");
    map::advise(memory.range, Harmless::PopulateRead).expect("MADV_POPULATE_READ");
    let figures = evidence::smaps(process::pid(), &memory);
    assert_eq!(figures.rss, memory.range.len as u64, "all are present");
    assert_eq!(evidence::anonymous_pages(&memory), 1, "one was a copy before");
    assert!((0..64).all(|page| memory.load(page) == if page == 3 { 255 } else { mark(page) }));
    Ok(())
}

fn locking_on_fault_brings_no_page_in() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 64)?;
    if let Err(e) = map::lock(memory.range) {
        return Err(Skip(format!("mlock2: {e}")));
    }
    assert_eq!(evidence::status_kib(process::pid(), "VmLck"), memory.range.len as u64 / 1024);
    let present = || evidence::smaps(process::pid(), &memory).rss;
    assert_eq!(present(), 0, "nothing was read");
    memory.touch(3);
    let there = present();
    assert!(there >= memory.page.bytes() as u64, "what was read is there: {there} bytes");
    assert_eq!(evidence::anonymous_pages(&memory), 0, "nothing is a copy");
    Ok(())
}

fn moved_pages_keep_their_frames() -> Verdict {
    let mut memory = Memory::marked(Kind::Anonymous, 8)?;
    let frames = |memory: &Memory| -> Vec<u64> {
        (0..memory.pages()).map(|page| evidence::entry(memory, page).frame()).collect()
    };
    let gate = Gate::new();
    let (sharer, before) = (child::spawn(|| gate.pass()), frames(&memory));
    assert!(before.iter().all(|frame| *frame != 0), "CAP_SYS_ADMIN shows frames");
    let from = memory.range;
    let to = map::reserve(from.len, memory.page.bytes()).expect("addresses");
    // SAFETY: both ranges are this case's.
    unsafe { map::move_pages(from, to.start) }.expect("mremap");
    memory.range = to;
    assert_eq!(frames(&memory), before, "nothing is copied");
    assert!((0..8).all(|page| memory.load(page) == mark(page)), "the content has come along");
    assert_eq!(evidence::mincore(from).err(), Some(Errno::NOMEM), "nothing is mapped there");
    gate.open();
    sharer.finish();
    Ok(())
}

fn several_mappings_are_moved_by_one_call_or_refused() -> Verdict {
    let mut memory = Memory::marked(Kind::Anonymous, 8)?;
    let from = memory.range;
    memory.protect(memory.span(4, 4), Access::Read).expect("mprotect");
    let to = map::reserve(from.len, memory.page.bytes()).expect("addresses");
    // SAFETY: both ranges are this case's.
    match unsafe { map::move_pages(from, to.start) } {
        Ok(()) => {
            memory.range = to;
            assert_eq!(evidence::mincore(from).err(), Some(Errno::NOMEM), "nothing is mapped there");
        }
        Err(errno) => assert_eq!(errno, Errno::FAULT),
    }
    assert!((0..8).all(|page| memory.load(page) == mark(page)), "all are in one place");
    Ok(())
}

fn fork_wipes_what_is_advised_so() -> Verdict {
    let file = Memory::marked(Kind::PrivateMemfd, 1)?;
    assert_eq!(file.advise(file.range, libc::MADV_WIPEONFORK), Err(Errno::INVAL));
    let memory = Memory::marked(Kind::Anonymous, 2)?;
    memory.advise(memory.at(0), libc::MADV_WIPEONFORK).expect("MADV_WIPEONFORK");
    let in_thread = || std::thread::scope(|scope| scope.spawn(|| memory.load(0)).join().expect("it reads"));
    assert_eq!(in_thread(), mark(0), "a thread shares the memory");
    child::spawn(|| {
        assert_eq!((memory.load(0), memory.load(1)), (0, mark(1)), "one page is wiped, its neighbour is not");
        memory.store(0, 7);
        child::spawn(|| assert_eq!(memory.load(0), 0, "the child's child")).finish();
        assert_eq!((memory.load(0), in_thread()), (7, 7), "the child's own");
    })
    .finish();
    // SAFETY: the child reads its memory and exits.
    match unsafe { clone::fork(&ForkArgs::default()) }.expect("clone3") {
        Forked::Child => process::exit(memory.load(0).into()),
        Forked::Parent { pidfd, .. } => {
            let ended = pidfd::wait_and_reap(pidfd.as_fd(), None).expect("waitid");
            assert_eq!(ended, Some(Ended::Exited(0)), "by clone3");
        }
    }
    assert_eq!(memory.load(0), mark(0), "the parent's");
    Ok(())
}
