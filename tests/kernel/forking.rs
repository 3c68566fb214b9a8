//! Forking: which pages fork copies, what a child inherits, and what userfaultfd does about it.

use crate::child::{self, Gate};
use crate::claim::{ADMIN, Claim, Need, PTRACE, Verdict, claim};
use crate::evidence::{self, pages};
use crate::memory::{Kind, Memory, mark};
use crate::watcher::{self, ASYNC};
use cowbell::sys::pidfd::{self, Ended};
use cowbell::sys::uffd::{Features, UffdMessage};
use cowbell::sys::{Errno, map, process};
use rustix::thread::CapabilitySet;
use std::os::fd::AsFd;
use std::time::Duration;

pub const CLAIMS: &[Claim] = &[
    claim!(
        fork_copies_page_tables_of_anonymous_memory_only on [PrivateMemfd, SharedMemfd, PrivateFile, Anonymous],
        "Fork copies the page tables of anonymous memory; of a shared mapping, or of a private file mapping that was only read, it copies none."
    ),
    claim!(
        one_private_write_makes_fork_copy_the_whole_mapping on [PrivateMemfd, PrivateFile],
        "One private write in a mapping makes fork copy that mapping's page tables whole; another mapping of the same file is spared."
    ),
    claim!(
        fork_without_event_disarms_child on [PrivateMemfd, SharedMemfd, Anonymous],
        "Without `EVENT_FORK` a forked child loses the registration and every write-protect bit; the parent stays armed."
    )
    .needs(&[Need::WpAsync, Need::Scan]),
    claim!(
        fork_with_event_keeps_child_armed on [PrivateMemfd, SharedMemfd, Anonymous],
        "With `EVENT_FORK` a forked child keeps registration, bits and markers, and its writes leave the parent's bits alone."
    )
    .needs(&[Need::FullUffd, Need::WpAsync, Need::Scan, PTRACE]),
    claim!(
        fork_event_needs_ptrace_capability,
        "`EVENT_FORK` without CAP_SYS_PTRACE is EPERM; the same descriptor without it opens."
    )
    .needs(&[Need::Uffd]),
    claim!(
        fork_waits_until_its_event_is_read,
        "With `EVENT_FORK` the forking thread does not return before somebody has read the event."
    )
    .needs(&[Need::FullUffd, PTRACE]),
    claim!(
        dontfork_leaves_a_hole_in_the_child on [PrivateMemfd, SharedMemfd, Anonymous],
        "A range under `MADV_DONTFORK` is not mapped in the child (ENOMEM from mincore, SIGSEGV on touch); `MADV_DOFORK` undoes it."
    ),
    claim!(
        fence_keeps_the_hole_closed,
        "`MAP_FIXED_NOREPLACE` fills a hole with `PROT_NONE` and is EEXIST where something is mapped."
    ),
    claim!(locked_memory_is_not_inherited, "`mlock` is not inherited over fork: the child's VmLck is 0."),
    claim!(
        fork_shares_frames_until_a_write on [PrivateMemfd, Anonymous],
        "Fork itself copies no page: parent and child have the same frame until one writes."
    )
    .needs(&[ADMIN]),
];

/// One touch in each page table: how many tables to fill, and pages from one to the next.
pub const TABLES: usize = 256;

pub fn stride(memory: &Memory) -> usize {
    memory.page.bytes() / size_of::<u64>()
}

/// A range with [`TABLES`] page tables, each with one page that was touched.
pub fn with_tables(kind: Kind) -> Result<Memory, crate::claim::Skip> {
    let entries = cowbell::sys::page_size().bytes() / size_of::<u64>();
    let memory = Memory::new(kind, TABLES * entries)?;
    // Big pages would need no tables.
    let _without_thp = memory.advise(memory.range, libc::MADV_NOHUGEPAGE);
    for table in 0..TABLES {
        match kind {
            Kind::Anonymous => memory.store(table * stride(&memory), 1),
            _ => memory.touch(table * stride(&memory)),
        }
    }
    Ok(memory)
}

/// KiB of page tables that this process has and a child forked now has not.
pub fn tables_spared_kib() -> u64 {
    let mine = evidence::status_kib(process::pid(), "VmPTE");
    let theirs = child::compute(|| evidence::status_kib(process::pid(), "VmPTE"));
    mine.saturating_sub(theirs)
}

pub fn tables_kib(memory: &Memory) -> u64 {
    (TABLES * memory.page.bytes() / 1024) as u64
}

fn fork_copies_page_tables_of_anonymous_memory_only(kind: Kind) -> Verdict {
    let memory = with_tables(kind)?;
    let (all, spared) = (tables_kib(&memory), tables_spared_kib());
    if kind == Kind::Anonymous {
        assert!(spared < all / 10, "anonymous: {spared} KiB of {all} spared");
    } else {
        // A child has a few tables of its own fewer or more.
        assert!(spared > all * 9 / 10, "{kind}: only {spared} KiB of {all} spared");
    }
    Ok(())
}

fn one_private_write_makes_fork_copy_the_whole_mapping(kind: Kind) -> Verdict {
    let memory = with_tables(kind)?;
    let all = tables_kib(&memory);
    let other = map::reserve(memory.range.len, memory.page.bytes()).expect("addresses");
    memory.map(other, 0).expect("mmap");
    for table in 0..TABLES {
        crate::memory::load(other.start + table * stride(&memory) * memory.page.bytes());
    }
    let spared = tables_spared_kib();
    assert!(spared > 2 * all * 9 / 10, "both only read: {spared} KiB of {} spared", 2 * all);
    memory.store(0, 1);
    let spared = tables_spared_kib();
    assert!((all * 9 / 10..all * 11 / 10).contains(&spared), "one written: {spared} KiB of {} spared", 2 * all);
    Ok(())
}

fn fork_without_event_disarms_child(kind: Kind) -> Verdict {
    let memory = Memory::marked(kind, 8)?;
    memory.touch(0);
    let uffd = watcher::arm_async(&memory);
    child::spawn(|| {
        assert!(!evidence::smaps(process::pid(), &memory).flags.iter().any(|flag| flag == "uw"), "VmFlags");
        for page in 0..memory.pages() {
            assert!(!evidence::categories(&memory, page).contains(evidence::ALLOWED), "page {page}");
            assert!(!evidence::entry(&memory, page).contains(evidence::WP_BIT), "page {page}");
        }
        memory.store(1, 0);
    })
    .finish();
    assert!(evidence::smaps(process::pid(), &memory).flags.iter().any(|flag| flag == "uw"), "VmFlags of the parent");
    assert_eq!(evidence::written(&memory), pages([]), "the parent is armed and unwritten");
    memory.store(2, 0);
    assert_eq!(evidence::written(&memory), pages([2]), "the parent's watch works");
    drop(uffd);
    Ok(())
}

fn fork_with_event_keeps_child_armed(kind: Kind) -> Verdict {
    let memory = Memory::marked(kind, 8)?;
    memory.touch(0);
    let uffd = watcher::full(ASYNC | Features::EVENT_FORK).expect("EVENT_FORK");
    // The reader is a process, as glibc's fork holds the allocator's locks while it waits, and it is
    // forked before anything is registered, as otherwise its own fork would wait for it.
    let end = Gate::new();
    let reader = child::spawn(|| match watcher::next_event(&uffd) {
        // The holder of this keeps the child armed.
        UffdMessage::Fork(_child) => end.pass(),
        other => panic!("a fork was expected: {other:?}"),
    });
    watcher::arm(&uffd, &memory);
    child::spawn(|| {
        assert!(evidence::smaps(process::pid(), &memory).flags.iter().any(|flag| flag == "uw"), "VmFlags");
        assert_eq!(evidence::written(&memory), pages([]), "armed and unwritten");
        for page in 0..memory.pages() {
            assert!(evidence::entry(&memory, page).contains(evidence::WP_BIT), "page {page}");
        }
        memory.store(0, 0);
        memory.store(5, 0);
        assert_eq!(evidence::written(&memory), pages([0, 5]), "the child's writes");
    })
    .finish();
    end.open();
    reader.finish();
    assert_eq!(evidence::written(&memory), pages([]), "the parent's bits are as they were");
    assert!((0..8).all(|page| evidence::entry(&memory, page).contains(evidence::WP_BIT)));
    Ok(())
}

fn fork_event_needs_ptrace_capability() -> Verdict {
    // A door that is open to this user without the capability.
    let with_event = watcher::SYNC | Features::EVENT_FORK;
    let held = rustix::thread::capabilities(None).expect("capget").effective.contains(CapabilitySet::SYS_PTRACE);
    if held {
        watcher::full(with_event).expect("with CAP_SYS_PTRACE");
    }
    child::spawn(|| {
        let mut sets = rustix::thread::capabilities(None).expect("capget");
        sets.effective.remove(CapabilitySet::SYS_PTRACE);
        rustix::thread::set_capabilities(None, sets).expect("capset");
        watcher::any(watcher::SYNC).expect("without EVENT_FORK");
        let refused = watcher::any(watcher::SYNC | Features::EVENT_FORK).expect_err("with EVENT_FORK");
        assert_eq!(refused, Errno::PERM);
    })
    .finish();
    Ok(())
}

fn fork_waits_until_its_event_is_read() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    let uffd = watcher::full(watcher::SYNC | Features::EVENT_FORK).expect("EVENT_FORK");
    let (returned, end) = (Gate::new(), Gate::new());
    // A process and forked first, for the reasons above.
    let reader = child::spawn(|| {
        let readable = |fd: &dyn AsFd, ms| pidfd::readable(fd.as_fd(), Some(Duration::from_millis(ms)));
        assert_eq!(readable(&uffd, 10_000), Ok(true), "the event is there");
        // Long for a fork and its return; a kernel that did not wait would be through.
        assert_eq!(readable(&returned, 100), Ok(false), "fork waits");
        let UffdMessage::Fork(_child) = watcher::next_event(&uffd) else { panic!("a fork was expected") };
        assert_eq!(readable(&returned, 10_000), Ok(true), "fork has returned");
        end.open();
    });
    watcher::arm(&uffd, &memory);
    let child = child::spawn(|| end.pass());
    returned.open();
    child.finish();
    reader.finish();
    Ok(())
}

fn dontfork_leaves_a_hole_in_the_child(kind: Kind) -> Verdict {
    let memory = Memory::marked(kind, 4)?;
    memory.load_all();
    memory.inherit(false);
    child::spawn(|| assert_eq!(evidence::mincore(memory.range), Err(Errno::NOMEM), "the hole")).finish();
    assert_eq!(child::spawn(|| memory.touch(1)).wait(), Ended::Signaled(libc::SIGSEGV));
    assert_eq!(memory.load(1), mark(1), "the parent keeps it");
    memory.inherit(true);
    child::spawn(|| {
        assert!(evidence::mincore(memory.range).is_ok());
        assert_eq!(memory.load(1), mark(1));
    })
    .finish();
    Ok(())
}

fn fence_keeps_the_hole_closed() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    assert_eq!(map::fence(memory.range), Err(Errno::EXIST), "mapped");
    memory.unmap(memory.range).expect("munmap");
    assert_eq!(evidence::mincore(memory.range), Err(Errno::NOMEM), "a hole");
    assert_eq!(map::fence(memory.range), Ok(()), "closed");
    assert!(evidence::mincore(memory.range).is_ok(), "mapped, without access");
    assert_eq!(child::spawn(|| memory.touch(0)).wait(), Ended::Signaled(libc::SIGSEGV));
    Ok(())
}

fn locked_memory_is_not_inherited() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    if let Err(e) = map::lock(memory.range) {
        return Err(crate::claim::Skip(format!("mlock2: {e}")));
    }
    let locked = (memory.range.len / 1024) as u64;
    assert_eq!(evidence::status_kib(process::pid(), "VmLck"), locked, "the parent");
    assert_eq!(child::compute(|| evidence::status_kib(process::pid(), "VmLck") + 1), 1, "the child");
    Ok(())
}

fn fork_shares_frames_until_a_write(kind: Kind) -> Verdict {
    let memory = Memory::marked(kind, 2)?;
    memory.load_all();
    let frame = |page| evidence::entry(&memory, page).frame();
    let before = (frame(0), frame(1));
    assert!(before.0 != 0 && before.1 != 0, "CAP_SYS_ADMIN shows frames");
    child::spawn(|| {
        memory.load_all();
        assert_eq!((frame(0), frame(1)), before, "shared with the parent");
        memory.store(1, 0);
        assert_eq!(frame(0), before.0, "not written");
        assert_ne!(frame(1), before.1, "written, so copied");
    })
    .finish();
    assert_eq!((frame(0), frame(1)), before, "the parent keeps its own");
    Ok(())
}
