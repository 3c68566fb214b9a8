//! The tracer's demands on the kernel: arming by a scan, comparing memories, reading without holding on to pages,
//! and starting programs.
//!
//! # Safety
//! What a bare clone runs makes raw system calls only, on its own stack, with what is never freed.
#![expect(unsafe_code, reason = "claims about clone and robust lists")]

use crate::child::{self, Gate};
use crate::claim::{ADMIN, Claim, Need, Skip, Verdict, claim};
use crate::copying::own_pages;
use crate::evidence::{self, pages};
use crate::memory::{Kind, Memory, last_errno};
use crate::remote::entry_of;
use crate::watcher::{self, ASYNC, SYNC};
use cowbell::page::PageIndex;
use cowbell::sys::map::{self, Harmless};
use cowbell::sys::pagemap::{Categories, Entry, Pagemap};
use cowbell::sys::pidfd::{self};
use cowbell::sys::shared_words::SharedWords;
use cowbell::sys::tracing::{memory_order, same_memory};
use cowbell::sys::{Errno, process, remote};
use std::ffi::c_void;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

pub const CLAIMS: &[Claim] = &[
    claim!(
        scan_without_a_query_arms_every_page on [Anonymous, PrivateMemfd],
        "PM_SCAN_WP_MATCHING without a query and a buffer arms every page of a range under `WP_ASYNC`, also one written since, and leaves a marker where there is none, with a page table or without; only later writes are WRITTEN."
    )
    .needs(&[Need::Scan, Need::WpAsync]),
    claim!(
        scan_without_a_query_needs_an_asynchronous_watch,
        "PM_SCAN_WP_MATCHING with PM_SCAN_CHECK_WPASYNC, without a query and a buffer, is EPERM and arms nothing where no userfaultfd or a synchronous one watches."
    )
    .needs(&[Need::Scan, Need::WpAsync]),
    claim!(
        kcmp_tells_shared_memory_from_equal_memory,
        "`kcmp(KCMP_VM)` says that a thread, a `CLONE_VM` child and a `CLONE_VM | CLONE_VFORK` child have their maker's memory, and that a forked child, or one that ended and was not waited for, has not; for a process that is gone it is ESRCH."
    ),
    claim!(
        kcmp_puts_memories_in_one_order,
        "`kcmp(KCMP_VM)` puts the memories of living processes in one order: the other way round it says the opposite, and sorting them by it twice, from different beginnings, gives the same."
    ),
    claim!(
        files_of_a_process_that_is_not_dumpable_are_roots,
        "`/proc/PID/stat` is the effective user's while the process is dumpable, and root's while it is not (`PR_SET_DUMPABLE`); the folder is the user's in both."
    ),
    claim!(
        first_user_namespace_has_its_number,
        "`/proc/self/ns/user` has inode 0xEFFFFFFD in the first user namespace, and another in one that was made since, also where that maps all users to themselves."
    ),
    claim!(
        locking_a_page_gives_back_what_reading_holds,
        "Reading a page that its owner has alone through `/proc/PID/mem` can make the owner's next write copy it; after `mlock` and `munlock` of a page of the reader's own on the same CPU the owner keeps the frame."
    )
    .needs(&[ADMIN]),
    claim!(
        huge_page_of_zeroes_is_told_by_its_frame,
        "Reading untouched anonymous memory under `MADV_HUGEPAGE` maps the huge page of zeroes, in forked children too: PAGEMAP_SCAN shows HUGE, and `/proc/kpageflags` has ZERO_PAGE (bit 24) for its frame as for the small one's, and not for a written page's."
    )
    .needs(&[Need::Scan, ADMIN]),
    claim!(
        frames_and_their_flags_tell_zeroes_and_huge_pages,
        "All small pages of zeroes that were only read have one frame; a huge page's frames follow each other from a multiple of their number on, and `/proc/kpageflags` has THP (bit 22) for the first of them, and not for a small page's."
    )
    .needs(&[ADMIN]),
];

fn scan_without_a_query_arms_every_page(kind: Kind) -> Verdict {
    // There are so many pages that reading one page of a file does not map the last one, too.
    let memory = Memory::new(kind, 64)?;
    if kind == Kind::PrivateMemfd {
        memory.fill();
    }
    memory.touch(1);
    memory.store(2, 255);
    // If nobody has touched anything, there is no page table.
    let empty = Memory::aligned(kind, 1024, 512 * memory.page.bytes())?;
    let uffd = watcher::any(ASYNC).expect("WP_ASYNC was there a moment ago");
    let pagemap = Pagemap::open_self().expect("pagemap");
    for memory in [&memory, &empty] {
        watcher::register(&uffd, memory.range).expect("UFFDIO_REGISTER");
    }
    let before = evidence::written(&memory);
    assert!(before.contains(PageIndex(1)) && before.contains(PageIndex(2)), "not armed yet: {before:?}");
    for round in 0..2 {
        for memory in [&memory, &empty] {
            pagemap.arm(memory.range).expect("PAGEMAP_SCAN");
            assert_eq!(evidence::written(memory), pages([]), "{round}: armed");
            let armed = |page| evidence::entry(memory, page).contains(evidence::WP_BIT);
            assert!((0..memory.pages()).all(armed), "{round}: every page");
            let none = memory.pages() - 1;
            let marker = evidence::entry(memory, none);
            assert!(marker.contains(Entry::SWAPPED) && !marker.contains(Entry::PRESENT), "{round}: {marker:?}");
            for page in [2, 3] {
                memory.store(page, 200);
            }
            assert_eq!(evidence::written(memory), pages([2, 3]), "{round}: written");
        }
        assert!(evidence::entry(&memory, 1).contains(Entry::PRESENT), "the page that was only read is there");
    }
    Ok(())
}

fn scan_without_a_query_needs_an_asynchronous_watch() -> Verdict {
    let memory = Memory::marked(Kind::Anonymous, 4)?;
    let pagemap = Pagemap::open_self().expect("pagemap");
    let refused = |why: &str| {
        assert_eq!(pagemap.arm(memory.range), Err(Errno::PERM), "{why}");
        assert!(
            (0..4).all(|page| !evidence::entry(&memory, page).contains(evidence::WP_BIT)),
            "{why}: nothing is armed"
        );
    };
    refused("not registered");
    let uffd = watcher::any(SYNC).expect("userfaultfd");
    watcher::register(&uffd, memory.range).expect("UFFDIO_REGISTER");
    refused("synchronous");
    drop(uffd);
    let uffd = watcher::any(ASYNC).expect("userfaultfd");
    watcher::register(&uffd, memory.range).expect("UFFDIO_REGISTER");
    assert_eq!(pagemap.arm(memory.range), Ok(()), "asynchronous");
    Ok(())
}

/// The argument of a bare clone.
struct Compared {
    pid: &'static AtomicU64,
    ready: &'static Gate,
    go: &'static Gate,
}

/// Tells its id and waits. It may share its maker's thread-local storage.
extern "C" fn wait_in_clone(job: *mut c_void) -> i32 {
    // SAFETY: the maker passes a job that is never dropped.
    let job = unsafe { &*job.cast::<Compared>() };
    job.pid.store(process::pid() as u64, Ordering::SeqCst);
    job.ready.open();
    job.go.pass();
    0
}

/// Tells whether a child made by `clone` with these flags has its maker's memory.
fn clone_has_makers_memory(flags: i32) -> Result<bool, Skip> {
    let stack = Memory::new(Kind::Anonymous, 64)?.range;
    let words: &'static SharedWords = Box::leak(Box::new(SharedWords::new(1).expect("a shared page")));
    let [pid, ..] = words.words() else { unreachable!("a page holds a word") };
    let leak = || -> &'static Gate { Box::leak(Box::new(Gate::new())) };
    let job: &'static Compared = Box::leak(Box::new(Compared { pid, ready: leak(), go: leak() }));
    // A process of its own makes it: with CLONE_VFORK it is stuck until the other ends.
    let maker = child::spawn(|| {
        let top = std::ptr::with_exposed_provenance_mut(stack.end() & !15);
        let argument = std::ptr::from_ref(job).cast_mut().cast();
        // SAFETY: the stack is unused, and what runs on it makes raw calls only.
        let made = unsafe { libc::clone(wait_in_clone, top, flags | libc::SIGCHLD, argument) };
        assert!(made > 0, "clone: {}", last_errno());
        pidfd::reap_by_id(made);
    });
    job.ready.pass();
    let made = job.pid.load(Ordering::SeqCst) as i32;
    let same = same_memory(maker.pid, made);
    assert_eq!(same, same_memory(made, maker.pid), "the other way round");
    job.go.open();
    maker.finish();
    Ok(same.expect("kcmp"))
}

fn kcmp_tells_shared_memory_from_equal_memory() -> Verdict {
    let own = process::pid();
    match same_memory(own, own) {
        Err(Errno::NOSYS) => return Err(Skip("kernel without CONFIG_KCMP".to_owned())),
        same => assert_eq!(same, Ok(true), "itself"),
    }
    assert!(clone_has_makers_memory(libc::CLONE_VM)?, "CLONE_VM");
    assert!(clone_has_makers_memory(libc::CLONE_VM | libc::CLONE_VFORK)?, "as vfork");
    assert!(!clone_has_makers_memory(libc::CLONE_VFORK)?, "that waits for its child, and shares nothing");
    assert!(!clone_has_makers_memory(0)?, "as fork");
    let child = child::spawn(|| ());
    pidfd::wait_end(child.pidfd.as_fd(), None).expect("poll");
    assert_eq!(same_memory(own, child.pid), Ok(false), "ended");
    let gone = child.pid;
    child.finish();
    assert_eq!(same_memory(own, gone), Err(Errno::SRCH), "gone");
    let thread = std::thread::spawn(move || same_memory(own, process::tid())).join().expect("the thread");
    assert_eq!(thread, Ok(true), "a thread");
    Ok(())
}

fn kcmp_puts_memories_in_one_order() -> Verdict {
    if memory_order(process::pid(), process::pid()) == Err(Errno::NOSYS) {
        return Err(Skip("kernel without CONFIG_KCMP".to_owned()));
    }
    let end = Gate::new();
    let children: Vec<_> = (0..6).map(|_| child::spawn(|| end.pass())).collect();
    let mut there: Vec<i32> = children.iter().map(|child| child.pid).chain([process::pid()]).collect();
    let order = |one: &i32, other: &i32| memory_order(*one, *other).expect("kcmp");
    let sorted = |mut list: Vec<i32>| {
        list.sort_by(order);
        list
    };
    for one in &there {
        for other in &there {
            assert_eq!(order(one, other), order(other, one).reverse(), "{one} and {other}");
            assert_eq!(order(one, other).is_eq(), one == other, "{one} and {other}");
        }
    }
    let first = sorted(there.clone());
    there.reverse();
    assert_eq!(sorted(there), first);
    children.into_iter().for_each(child::Child::kill);
    Ok(())
}

fn files_of_a_process_that_is_not_dumpable_are_roots() -> Verdict {
    use std::os::unix::fs::MetadataExt;
    const ORDINARY: u32 = 65534;
    let own = cowbell::sys::limits::user().uid;
    let owner = |path: &str| std::fs::metadata(path).expect("of this process").uid();
    let child = child::spawn(|| {
        let user = if own == 0 { ORDINARY } else { own };
        // SAFETY: the calls take numbers only, and this process has one thread.
        assert_eq!(unsafe { libc::setresuid(user, user, user) }, 0, "setresuid: {}", last_errno());
        for (dumpable, files) in [(1, user), (0, 0)] {
            // SAFETY: as before.
            assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, dumpable, 0, 0, 0) }, 0);
            assert_eq!((owner("/proc/self/stat"), owner("/proc/self/")), (files, user), "dumpable {dumpable}");
        }
    });
    child.finish();
    Ok(())
}

fn first_user_namespace_has_its_number() -> Verdict {
    use cowbell::sys::limits::is_in_first_user_namespace;
    let all_users = std::fs::read_to_string("/proc/self/uid_map").expect("proc(5)");
    if all_users.split_ascii_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"] {
        return Err(Skip("a container with a user namespace of its own".to_owned()));
    }
    assert!(is_in_first_user_namespace());
    let made = child::compute(|| {
        // SAFETY: the call takes a number only, and this process has one thread.
        match unsafe { libc::unshare(libc::CLONE_NEWUSER) } {
            0 => 1 + u64::from(is_in_first_user_namespace()),
            _ => 0,
        }
    });
    match made {
        0 => Err(Skip("no user namespace may be made here".to_owned())),
        made => {
            assert_eq!(made, 1, "a namespace that was made is not the first");
            Ok(())
        }
    }
}

/// The frames that a process keeps at its write to three pages that it has alone: one not read, one read by another process,
/// one read and then drained.
fn kept_frames(drain: &remote::Drain) -> Result<[bool; 3], Skip> {
    let memory = own_pages(Kind::Anonymous)?;
    let (go, written, end) = (Gate::new(), Gate::new(), Gate::new());
    let owner = child::spawn(|| {
        for page in 1..=3 {
            go.pass();
            memory.store(page, 200);
            written.open();
        }
        end.pass();
    });
    memory.drop_pages(memory.range);
    let there = remote::RemoteMemory::open(owner.pid).expect("its memory");
    let kept = [1, 2, 3].map(|page| {
        let before = entry_of(owner.pid, &memory, page);
        assert!(before.contains(Entry::PRESENT | Entry::EXCLUSIVE), "nobody else has it");
        if page > 1 {
            // Once would only note that it was used.
            for _ in 0..3 {
                assert_eq!(there.read(memory.at(page).start as u64, &mut [0]), Ok(1));
            }
        }
        if page == 3 {
            drain.run();
        }
        go.open();
        written.pass();
        entry_of(owner.pid, &memory, page).frame() == before.frame()
    });
    end.open();
    owner.finish();
    Ok(kept)
}

fn locking_a_page_gives_back_what_reading_holds() -> Verdict {
    let drain = remote::Drain::new().expect("a page");
    let mut copied = 0;
    for attempt in 0..20 {
        let [unread, read, drained] = kept_frames(&drain)?;
        assert!(unread && drained, "attempt {attempt}: kept if not read {unread}, if drained {drained}");
        copied += u32::from(!read);
    }
    assert_ne!(copied, 0, "reading copied nothing in 20 attempts");
    Ok(())
}

/// The flags that the kernel tells of the frames of pages.
struct FrameFlags(std::fs::File);

impl FrameFlags {
    const THP: u64 = 1 << 22;
    const ZERO_PAGE: u64 = 1 << 24;

    fn open() -> Result<Self, Skip> {
        std::fs::File::open("/proc/kpageflags").map(Self).map_err(|e| Skip(format!("/proc/kpageflags: {e}")))
    }

    fn of(&self, memory: &Memory, page: usize) -> u64 {
        let frame = evidence::entry(memory, page).frame();
        let mut word = [0; 8];
        assert_ne!(frame, 0, "a page is there");
        self.0.read_exact_at(&mut word, frame * 8).expect("the frame's flags");
        u64::from_ne_bytes(word)
    }
}

/// Memory for one huge page, under advice to use it.
fn room_for_huge() -> Result<Memory, Skip> {
    let size = map::huge_page_size().ok_or_else(|| Skip("no transparent huge pages".to_owned()))?;
    let huge = Memory::aligned(Kind::Anonymous, size / cowbell::sys::page_size().bytes(), size)?;
    map::advise(huge.range, Harmless::HugePage).map_err(|e| Skip(format!("MADV_HUGEPAGE: {e}")))?;
    Ok(huge)
}

fn frames_and_their_flags_tell_zeroes_and_huge_pages() -> Verdict {
    let flags = FrameFlags::open()?;
    let frame = |memory: &Memory, page| evidence::entry(memory, page).frame();
    let (small, other) = (Memory::new(Kind::Anonymous, 4)?, Memory::new(Kind::Anonymous, 4)?);
    small.touch(1);
    other.touch(3);
    small.store(2, 1);
    assert_eq!(frame(&small, 1), frame(&other, 3), "both are zeroes");
    assert_ne!(frame(&small, 1), frame(&small, 2), "written");
    let zeroes = frame(&small, 1);
    let in_child = || {
        other.touch(0);
        assert_eq!(frame(&other, 0), zeroes, "in a forked child");
    };
    child::spawn(in_child).finish();
    assert_eq!(flags.of(&small, 2) & FrameFlags::THP, 0, "a small page");

    let huge = room_for_huge()?;
    huge.store(0, 1);
    let first = frame(&huge, 0);
    if flags.of(&huge, 0) & FrameFlags::THP == 0 {
        return Err(Skip("no huge page: transparent huge pages are off, or none was free".to_owned()));
    }
    assert_eq!(first % huge.pages() as u64, 0, "where a huge page can be");
    for page in 0..huge.pages() {
        assert_eq!(frame(&huge, page), first + page as u64, "page {page}");
    }
    Ok(())
}

fn huge_page_of_zeroes_is_told_by_its_frame() -> Verdict {
    let flags = FrameFlags::open()?;
    let is_zero = |memory: &Memory, page| flags.of(memory, page) & FrameFlags::ZERO_PAGE != 0;
    let small = Memory::new(Kind::Anonymous, 4)?;
    small.touch(1);
    small.store(2, 1);
    assert!(evidence::categories(&small, 1).contains(Categories::PFN_ZERO), "the small page of zeroes");
    assert_eq!((is_zero(&small, 1), is_zero(&small, 2)), (true, false), "read, written");

    let used = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/use_zero_page").unwrap_or_default();
    if used.trim() == "0" {
        return Err(Skip("transparent huge pages are told to do without one of zeroes (use_zero_page)".to_owned()));
    }
    let huge = room_for_huge()?;
    huge.touch(1);
    let seen = evidence::categories(&huge, 1);
    if !seen.contains(Categories::HUGE) {
        return Err(Skip("no huge page of zeroes: transparent huge pages are off, or none was free".to_owned()));
    }
    // Some kernels show PFNZERO as well.
    let all_zero = || is_zero(&huge, 0) && is_zero(&huge, huge.pages() - 1);
    assert!(all_zero(), "the huge page of zeroes");
    child::spawn(|| assert!(all_zero(), "in a forked child")).finish();
    huge.store(1, 1);
    assert!(!is_zero(&huge, 1), "written");
    Ok(())
}
