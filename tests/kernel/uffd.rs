//! userfaultfd: doors, features, messages, and what closing it does.
#![expect(unsafe_code, reason = "a descriptor is taken over")]

use crate::child::{self, Gate};
use crate::claim::{Claim, Need, Verdict, claim};
use crate::evidence::{self, pages};
use crate::memory::{self, Kind, Memory, mark};
use crate::watcher::{self, ASYNC, Monitor, SIGBUS, SYNC};
use cowbell::page::PageSet;
use cowbell::sys::pagemap::{Categories, Pagemap, Query, WRITTEN};
use cowbell::sys::pidfd::Ended;
use cowbell::sys::uffd::{Door, Features, Uffd};
use cowbell::sys::{Errno, process};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, Ordering};

pub const CLAIMS: &[Claim] = &[
    claim!(
        sync_watch_reports_each_write_once on [PrivateMemfd, SharedMemfd, Anonymous],
        "Under synchronous write-protection each armed page's first write is one message; reads and later writes are none."
    )
    .needs(&[Need::Uffd, Need::Scan]),
    claim!(
        async_watch_records_written_pages on [PrivateMemfd, SharedMemfd, Anonymous, PrivateFile],
        "Under `WP_ASYNC` written pages, and no others, become WRITTEN; nobody needs to answer."
    )
    .needs(&[Need::WpAsync, Need::Scan]),
    claim!(
        sigbus_watch_signals_the_writer,
        "Under `UFFD_FEATURE_SIGBUS` a write to an armed page is a SIGBUS in the writer; a read is not."
    )
    .needs(&[Need::Uffd]),
    claim!(
        sync_watch_refuses_private_files_and_async_takes_them,
        "Synchronous write-protection of a private mapping of an ordinary file is EINVAL; with `WP_ASYNC` it is accepted."
    )
    .needs(&[Need::Uffd, Need::WpAsync]),
    claim!(
        async_watch_sees_a_direct_write_to_an_untouched_private_file_page,
        "Under `WP_ASYNC` a write to a private file page that was never read is recorded as WRITTEN and counted as copied."
    )
    .needs(&[Need::WpAsync, Need::Scan]),
    claim!(
        unpopulated_anonymous_pages_need_their_feature,
        "A write to an anonymous page that was not there is trapped only with `WP_UNPOPULATED`."
    )
    .needs(&[Need::WpAsync, Need::Scan]),
    claim!(
        unknown_feature_is_einval_and_spoils_the_descriptor,
        "`UFFDIO_API` with an unknown feature is EINVAL, and that descriptor stays unusable."
    )
    .needs(&[Need::Uffd]),
    claim!(
        second_userfaultfd_on_a_range_is_busy,
        "A range under one userfaultfd cannot be registered with another (EBUSY) until the first is closed."
    )
    .needs(&[Need::Uffd]),
    claim!(
        fault_message_names_thread_and_address,
        "`THREAD_ID` gives the writing thread's id and `EXACT_ADDRESS` the address to the byte; without them 0 and the page."
    )
    .needs(&[Need::Uffd]),
    claim!(
        closing_the_userfaultfd_disarms on [PrivateMemfd, SharedMemfd, Anonymous],
        "Closing the last descriptor of a userfaultfd lifts every protection; the next write just happens."
    )
    .needs(&[Need::Uffd, Need::Scan]),
    claim!(
        writer_goes_on_when_its_monitor_is_killed,
        "When the process that holds the userfaultfd is killed, a waiting writer goes on and its write happens."
    )
    .needs(&[Need::Uffd]),
    claim!(
        dontneed_keeps_a_memfd_page_armed,
        "`MADV_DONTNEED` on an armed memfd page leaves a marker: the next write is reported again."
    )
    .needs(&[Need::Uffd]),
    claim!(
        stale_written_after_dontneed,
        "`WP_ASYNC`: a page written, dropped by `MADV_DONTNEED` and read again still shows WRITTEN, and is no copy."
    )
    .needs(&[Need::WpAsync, Need::Scan]),
    claim!(
        copy_armed_before_dontneed_stays_armed,
        "A copied page of a private memfd that is armed again and then dropped by `MADV_DONTNEED` leaves a marker and is no copy: the next write is reported."
    )
    .needs(&[Need::Uffd, Need::Scan]),
    claim!(
        copy_rearmed_by_scan_before_dontneed_stays_armed,
        "`WP_ASYNC`: a copied page that `PAGEMAP_SCAN` arms again and `MADV_DONTNEED` then drops is neither written nor a copy, read or not; the next write makes it both."
    )
    .needs(&[Need::WpAsync, Need::Scan]),
    claim!(
        system_call_without_privilege_is_user_mode_only,
        "Where `vm.unprivileged_userfaultfd` is 0, `userfaultfd(0)` without CAP_SYS_PTRACE is EPERM and `UFFD_USER_MODE_ONLY` works."
    ),
    claim!(
        open_device_asks_for_no_right,
        "`USERFAULTFD_IOC_NEW` on an open `/dev/userfaultfd` makes a userfaultfd, not of the user-mode-only kind, for a process without any capability, where `userfaultfd(0)` is EPERM."
    ),
];

fn sync_watch_reports_each_write_once(kind: Kind) -> Verdict {
    let memory = Memory::marked(kind, 64)?;
    let uffd = watcher::any(SYNC).expect("userfaultfd");
    watcher::arm(&uffd, &memory);
    let monitor = Monitor::start(uffd);
    memory.load_all();
    let order = [5, 63, 0, 17];
    for page in order.iter().chain(&order) {
        memory.store(*page, 255);
    }
    let addresses: Vec<_> = order.iter().map(|&page| memory.at(page).start).collect();
    assert_eq!(monitor.stop(), addresses, "in order, once each");
    assert!(order.iter().all(|&page| memory.load(page) == 255), "the writes happened");
    if kind == Kind::PrivateMemfd {
        assert_eq!(evidence::copied(&memory), pages(order), "the census agrees");
    }
    Ok(())
}

fn async_watch_records_written_pages(kind: Kind) -> Verdict {
    let memory = Memory::marked(kind, 64)?;
    // Half of them are there when it is armed.
    (0..32).for_each(|page| memory.touch(page));
    let _uffd = watcher::arm_async(&memory);
    assert_eq!(evidence::written(&memory), pages([]), "armed");
    memory.load_all();
    assert_eq!(evidence::written(&memory), pages([]), "read");
    for page in [5, 63, 0, 33] {
        memory.store(page, 255);
    }
    assert_eq!(evidence::written(&memory), pages([0, 5, 33, 63]));
    if matches!(kind, Kind::PrivateMemfd | Kind::PrivateFile) {
        assert_eq!(evidence::copied_armed(&memory), pages([0, 5, 33, 63]), "the census agrees");
        assert_eq!(evidence::anonymous_pages(&memory), 4, "smaps agrees");
    }
    Ok(())
}

fn sigbus_watch_signals_the_writer() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    let writer = |armed: bool, write: bool| {
        child::spawn(|| {
            let uffd = watcher::any(SIGBUS).expect("userfaultfd");
            watcher::arm(&uffd, &memory);
            watcher::protect(&uffd, memory.range, armed).expect("UFFDIO_WRITEPROTECT");
            if write { memory.store(1, 1) } else { memory.touch(1) }
        })
        .wait()
    };
    assert_eq!(writer(true, true), Ended::Signaled(libc::SIGBUS), "write");
    assert_eq!(writer(true, false), Ended::Exited(0), "read");
    assert_eq!(writer(false, true), Ended::Exited(0), "write after the protection was lifted");
    Ok(())
}

fn sync_watch_refuses_private_files_and_async_takes_them() -> Verdict {
    let memory = Memory::marked(Kind::PrivateFile, 4)?;
    let synchronous = watcher::any(SYNC).expect("userfaultfd");
    assert_eq!(watcher::register(&synchronous, memory.range), Err(Errno::INVAL), "synchronous");
    let asynchronous = watcher::any(ASYNC).expect("WP_ASYNC");
    assert_eq!(watcher::register(&asynchronous, memory.range), Ok(()), "asynchronous");
    Ok(())
}

fn async_watch_sees_a_direct_write_to_an_untouched_private_file_page() -> Verdict {
    let memory = Memory::marked(Kind::PrivateFile, 8)?;
    let _uffd = watcher::arm_async(&memory);
    memory.store(3, 255);
    assert_eq!(evidence::written(&memory), pages([3]));
    assert_eq!(evidence::copied_armed(&memory), pages([3]));
    assert_eq!((memory.load(4), memory.in_file(3)), (mark(4), mark(3)));
    assert_eq!(evidence::written(&memory), pages([3]), "reading is no writing");
    Ok(())
}

fn unpopulated_anonymous_pages_need_their_feature() -> Verdict {
    for (features, trapped) in [(SYNC | Features::WP_UNPOPULATED, true), (SYNC, false)] {
        let memory = Memory::new(Kind::Anonymous, 4)?;
        let uffd = watcher::any(features).expect("userfaultfd");
        watcher::arm(&uffd, &memory);
        let monitor = Monitor::start(uffd);
        memory.store(1, 1);
        assert_eq!(monitor.stop().len(), usize::from(trapped), "{features:?}");
    }
    Ok(())
}

fn unknown_feature_is_einval_and_spoils_the_descriptor() -> Verdict {
    let unknown = Features::from_bits_retain(1 << 63);
    assert_eq!(watcher::any(SYNC | unknown).err(), Some(Errno::INVAL));
    let known = watcher::any(SYNC).expect("a fresh one").kernel_features();
    assert!(!known.contains(unknown) && known.contains(SYNC), "{known:?}");

    // By hand, as the crate never reuses a refused descriptor.
    let fd = watcher::open_bare().expect("userfaultfd");
    assert_eq!(watcher::settle(&fd, 1 << 63), Err(Errno::INVAL), "refused");
    let range = Memory::new(Kind::Anonymous, 1)?.range;
    // SAFETY: the descriptor is a userfaultfd.
    let spoiled = unsafe { Uffd::from_fd(fd) };
    assert_eq!(watcher::register(&spoiled, range), Err(Errno::INVAL), "unusable without its features");
    Ok(())
}

fn second_userfaultfd_on_a_range_is_busy() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    let first = watcher::any(SYNC).expect("userfaultfd");
    let second = watcher::any(SYNC).expect("userfaultfd");
    assert_eq!(watcher::register(&first, memory.range), Ok(()));
    assert_eq!(watcher::register(&second, memory.at(2)), Err(Errno::BUSY), "even a part");
    drop(first);
    assert_eq!(watcher::register(&second, memory.at(2)), Ok(()), "after the first was closed");
    Ok(())
}

fn fault_message_names_thread_and_address() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    let address = memory.at(1).start + 123;
    for (features, exact) in [(SYNC, false), (SYNC | Features::THREAD_ID | Features::EXACT_ADDRESS, true)] {
        let uffd = watcher::any(features).expect("userfaultfd");
        watcher::arm(&uffd, &memory);
        let writer_id = AtomicI32::new(0);
        let fault = std::thread::scope(|scope| {
            scope.spawn(|| {
                writer_id.store(process::tid(), Ordering::SeqCst);
                memory::store(address, 1);
            });
            let fault = watcher::next_fault(&uffd);
            watcher::protect(&uffd, memory.range, false).expect("UFFDIO_WRITEPROTECT");
            fault
        });
        let writer_id = writer_id.into_inner();
        assert_ne!(writer_id, process::tid());
        let expected = if exact { (address, writer_id) } else { (memory.at(1).start, 0) };
        assert_eq!((fault.address, fault.tid), expected, "{features:?}");
        assert!(fault.write_protect);
    }
    Ok(())
}

fn closing_the_userfaultfd_disarms(kind: Kind) -> Verdict {
    let memory = Memory::marked(kind, 4)?;
    memory.touch(0);
    let uffd = watcher::any(SYNC).expect("userfaultfd");
    watcher::arm(&uffd, &memory);
    let armed = |page| evidence::entry(&memory, page).contains(evidence::WP_BIT);
    assert!(armed(0) && armed(1), "there, and untouched");
    drop(uffd);
    assert!(!armed(0) && !armed(1));
    // No process could answer: if the pages were still armed, these stores would wait for ever.
    memory.store(0, 7);
    memory.store(1, 7);
    assert_eq!((memory.load(0), memory.load(1)), (7, 7));
    Ok(())
}

fn writer_goes_on_when_its_monitor_is_killed() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    memory.load_all();
    let uffd = watcher::any(SYNC | Features::THREAD_ID).expect("userfaultfd");
    watcher::arm(&uffd, &memory);
    let (armed, waiting) = (Gate::new(), Gate::new());
    let monitor = child::spawn(|| {
        armed.open();
        let fault = watcher::next_fault(&uffd);
        assert_eq!(fault.address, memory.at(1).start);
        // The writer waits now, and nobody will answer.
        waiting.open();
        Gate::new().pass();
    });
    armed.pass();
    // Now only the monitor holds it.
    drop(uffd);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| memory.store(1, 200));
        waiting.pass();
        assert!(!writer.is_finished(), "the writer waits");
        assert_eq!(memory.load(1), mark(1), "nothing is written");
        monitor.kill();
        writer.join().expect("the writer");
    });
    assert_eq!((memory.load(1), memory.in_file(1)), (200, mark(1)));
    Ok(())
}

fn dontneed_keeps_a_memfd_page_armed() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    memory.load_all();
    let uffd = watcher::any(SYNC).expect("userfaultfd");
    watcher::arm(&uffd, &memory);
    watcher::protect(&uffd, memory.at(2), false).expect("UFFDIO_WRITEPROTECT");
    memory.drop_pages(memory.range);
    let monitor = Monitor::start(uffd);
    memory.store(1, 7);
    memory.store(2, 7);
    assert_eq!(monitor.stop(), [memory.at(1).start], "and one that was not armed stays so");
    Ok(())
}

fn stale_written_after_dontneed() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    let _uffd = watcher::arm_async(&memory);
    memory.store(1, 7);
    memory.drop_pages(memory.range);
    assert_eq!((memory.load(1), memory.load(2)), (mark(1), mark(2)));
    let seen = evidence::categories(&memory, 1);
    assert!(seen.contains(Categories::WRITTEN | Categories::FILE | Categories::PRESENT), "{seen:?}");
    assert_eq!(evidence::copied_armed(&memory), pages([]), "the census is right");
    assert_eq!(evidence::written(&memory), pages([1]), "and the page never written is not");
    Ok(())
}

fn copy_armed_before_dontneed_stays_armed() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    let uffd = watcher::any(SYNC).expect("userfaultfd");
    watcher::arm(&uffd, &memory);
    for page in 1..4 {
        watcher::protect(&uffd, memory.at(page), false).expect("UFFDIO_WRITEPROTECT");
        memory.store(page, 7);
    }
    assert_eq!(evidence::copied_armed(&memory), pages([1, 2, 3]));
    // The third is dropped as it is, for comparison.
    watcher::protect(&uffd, memory.span(1, 2), true).expect("UFFDIO_WRITEPROTECT");
    memory.drop_pages(memory.span(1, 3));
    assert_eq!(evidence::copied_armed(&memory), pages([]));
    assert_eq!(memory.load(1), mark(1), "one was read since, one was not");
    let monitor = Monitor::start(uffd);
    for page in 1..4 {
        memory.store(page, 9);
    }
    assert_eq!(evidence::copied_armed(&memory), pages([1, 2, 3]));
    assert_eq!(monitor.stop(), [memory.at(1).start, memory.at(2).start]);
    Ok(())
}

fn copy_rearmed_by_scan_before_dontneed_stays_armed() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    let _uffd = watcher::arm_async(&memory);
    memory.store(1, 7);
    memory.store(2, 7);
    let mut found = PageSet::new();
    let pagemap = Pagemap::open_self().expect("pagemap");
    let take = Query { rearm: true, ..WRITTEN };
    pagemap.scan(memory.range, &take, |run| evidence::insert(&mut found, &memory, run)).expect("PAGEMAP_SCAN");
    assert_eq!(found, pages([1, 2]));
    memory.drop_pages(memory.span(1, 2));
    assert_eq!(memory.load(1), mark(1), "one was read since, one was not");
    assert_eq!((evidence::written(&memory), evidence::copied_armed(&memory)), (pages([]), pages([])));
    memory.store(1, 9);
    memory.store(2, 9);
    assert_eq!((evidence::written(&memory), evidence::copied_armed(&memory)), (pages([1, 2]), pages([1, 2])));
    Ok(())
}

fn system_call_without_privilege_is_user_mode_only() -> Verdict {
    let setting = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap_or_default();
    if setting.trim() != "0" {
        return Err(crate::claim::Skip(format!("vm.unprivileged_userfaultfd is `{}`", setting.trim())));
    }
    child::spawn(|| {
        let mut sets = rustix::thread::capabilities(None).expect("capget");
        sets.effective = rustix::thread::CapabilitySet::empty();
        rustix::thread::set_capabilities(None, sets).expect("capset");
        assert_eq!(Uffd::open(Door::SystemCall, SYNC).err(), Some(Errno::PERM));
        Uffd::open(Door::UserModeOnly, SYNC).expect("UFFD_USER_MODE_ONLY");
    })
    .finish();
    if rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_PTRACE))
    {
        Uffd::open(Door::SystemCall, SYNC).expect("with CAP_SYS_PTRACE");
    }
    Ok(())
}

fn open_device_asks_for_no_right() -> Verdict {
    const IOC_NEW: libc::c_ulong = 0xaa00;
    let setting = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap_or_default();
    if setting.trim() != "0" {
        return Err(crate::claim::Skip(format!("vm.unprivileged_userfaultfd is `{}`", setting.trim())));
    }
    let device = cowbell::sys::uffd::device()
        .map_err(|e| crate::claim::Skip(format!("/dev/userfaultfd cannot be opened: {e}")))?;
    child::spawn(|| {
        let mut sets = rustix::thread::capabilities(None).expect("capget");
        sets.effective = rustix::thread::CapabilitySet::empty();
        rustix::thread::set_capabilities(None, sets).expect("capset");
        assert_eq!(Uffd::open(Door::SystemCall, SYNC).err(), Some(Errno::PERM), "it may not make one by itself");
        // SAFETY: the call takes flags, and opens a descriptor that the child's end closes.
        let made = unsafe { libc::ioctl(device.as_raw_fd(), IOC_NEW as _, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        assert!(made >= 0, "{}", std::io::Error::last_os_error());
    })
    .finish();
    Ok(())
}
