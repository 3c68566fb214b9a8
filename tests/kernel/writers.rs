//! Writes that no store instruction of the program makes: what each watch sees of them, and
//! whether a refused write leaves a copy behind.
//!
//! # Safety
//! The kernel is asked to write to pages of a [`Memory`], which nobody refers into.
#![expect(unsafe_code, reason = "system calls write through pointers")]

use crate::child;
use crate::claim::{Claim, Need, Verdict, claim};
use crate::evidence::{self, pages};
use crate::memory::{Kind, Memory, last_errno, mark};
use crate::watcher::{self, ASYNC, Monitor, SIGBUS, SYNC};
use cowbell::sys::map::{self, Access};
use cowbell::sys::memfd::{SEALS_FINAL, seal};
use cowbell::sys::pagemap::{COPIED_ARMED, Entry, PageRegion, Pagemap};
use cowbell::sys::pidfd::Ended;
use cowbell::sys::uffd::Uffd;
use cowbell::sys::{Errno, memfd, process, signal};
use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

pub const CLAIMS: &[Claim] = &[
    claim!(
        kernel_write_under_full_sync_is_a_message on [PrivateMemfd, SharedMemfd, Anonymous],
        "`read(2)` into an armed page under a full-privilege synchronous watch is one message, and then succeeds."
    )
    .needs(&[Need::FullUffd]),
    claim!(
        kernel_write_under_user_mode_sync_is_efault on [PrivateMemfd, SharedMemfd, Anonymous],
        "`read(2)` into an armed page under a user-mode-only synchronous watch is EFAULT without a message; content and protection stay."
    )
    .needs(&[Need::Uffd, Need::Scan]),
    claim!(
        kernel_write_under_sigbus_is_efault on [PrivateMemfd, SharedMemfd, Anonymous],
        "`read(2)` into an armed page under `UFFD_FEATURE_SIGBUS` is EFAULT without a signal, whichever the door; content and protection stay."
    )
    .needs(&[Need::Uffd, Need::Scan]),
    claim!(
        kernel_write_under_async_is_recorded on [PrivateMemfd, SharedMemfd, Anonymous, PrivateFile],
        "`read(2)` into an armed page under user-mode-only `WP_ASYNC` works and is recorded as WRITTEN."
    )
    .needs(&[Need::WpAsync, Need::Scan]),
    claim!(
        refused_write_copies_an_untouched_page,
        "A write refused with EFAULT still copies an armed private memfd page that was untouched (census and smaps count it, content unchanged), and does not copy one that was mapped by a read before."
    )
    .needs(&[Need::Uffd, Need::Scan]),
    claim!(
        untouched_page_is_copied_before_the_message,
        "Under a synchronous watch an untouched private memfd page is copied before the writer's message is sent; one that was read before is copied after the protection is lifted."
    )
    .needs(&[Need::Uffd, Need::Scan]),
    claim!(
        fresh_copy_looks_like_an_old_one_at_the_message,
        "While a synchronous writer waits, a private memfd page that was untouched and one copied long before and armed again show the same bits (exclusive, not FILE): only an earlier census tells copied from written again."
    )
    .needs(&[Need::Uffd, Need::Scan]),
    claim!(
        untouched_page_is_copied_before_the_signal,
        "Under `UFFD_FEATURE_SIGBUS` an untouched private memfd page is copied before the handler runs; one that was read before is not."
    )
    .needs(&[Need::Uffd, Need::Scan]),
    claim!(
        foreign_write_waits_for_the_monitor,
        "`process_vm_writev` into a page armed by a full-privilege synchronous watch is a message, and the caller waits for its answer."
    )
    .needs(&[Need::FullUffd]),
    claim!(
        populating_is_a_write,
        "`MADV_POPULATE_WRITE` of an armed page is a message; on a read-only mapping it is EINVAL."
    )
    .needs(&[Need::FullUffd]),
    claim!(
        proc_mem_write_into_an_armed_page_is_eio,
        "`/proc/self/mem` cannot write to a page under synchronous write-protection: EIO, no message, no write."
    )
    .needs(&[Need::Uffd]),
    claim!(
        proc_mem_writes_through_protection_and_seals,
        "`/proc/self/mem` writes to a `PROT_READ` private mapping of a sealed memfd: the page is copied, the file is not changed."
    ),
];

/// The page's state before it was armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Untouched,
    Read,
    Copied,
}

/// Memory whose page 1 has a past.
fn with_past(kind: Kind, before: Before) -> Result<Memory, crate::claim::Skip> {
    let memory = Memory::marked(kind, 4)?;
    match before {
        Before::Untouched => {}
        Before::Read => memory.touch(1),
        Before::Copied => memory.store(1, mark(1)),
    }
    Ok(memory)
}

/// A file with one byte to read.
fn source() -> OwnedFd {
    let fd = memfd::create("source").expect("memfd_create");
    rustix::io::pwrite(&fd, &[200], 0).expect("pwrite");
    fd
}

/// The kernel writes 200 into the first byte of a page: `pread(2)`.
pub fn kernel_write(memory: &Memory, page: usize) -> Result<(), Errno> {
    let source = source();
    let at = std::ptr::with_exposed_provenance_mut::<c_void>(memory.at(page).start);
    // SAFETY: the byte lies in the memory.
    let got = unsafe { libc::pread(source.as_raw_fd(), at, 1, 0) };
    if got == 1 { Ok(()) } else { Err(last_errno()) }
}

fn kernel_write_under_full_sync_is_a_message(kind: Kind) -> Verdict {
    for before in [Before::Untouched, Before::Read, Before::Copied] {
        let memory = with_past(kind, before)?;
        let uffd = watcher::full(SYNC).expect("userfaultfd");
        watcher::arm(&uffd, &memory);
        let monitor = Monitor::start(uffd);
        assert_eq!(kernel_write(&memory, 1), Ok(()), "{before:?}");
        assert_eq!(kernel_write(&memory, 1), Ok(()), "{before:?}, again");
        assert_eq!(monitor.stop(), [memory.at(1).start], "{before:?}: one message");
        assert_eq!(memory.load(1), 200, "{before:?}");
    }
    Ok(())
}

/// A refused write: EFAULT, and nothing changed that the program could see.
fn assert_refused(memory: &Memory, before: Before) {
    assert_eq!(kernel_write(memory, 1), Err(Errno::FAULT), "{before:?}");
    assert_eq!(memory.load(1), mark(1), "{before:?}: the content");
    assert!(evidence::entry(memory, 1).contains(evidence::WP_BIT), "{before:?}: armed still");
    assert_eq!(kernel_write(memory, 1), Err(Errno::FAULT), "{before:?}, again");
}

fn kernel_write_under_user_mode_sync_is_efault(kind: Kind) -> Verdict {
    for before in [Before::Untouched, Before::Read, Before::Copied] {
        let memory = with_past(kind, before)?;
        let uffd = watcher::user_mode(SYNC);
        watcher::arm(&uffd, &memory);
        assert_refused(&memory, before);
        assert_eq!(uffd.read(|event| panic!("{event:?}")), Ok(false), "no message");
        // The control: a store of the program's own is a message, and then the kernel may write, too.
        let monitor = Monitor::start(uffd);
        memory.store(1, 100);
        assert_eq!(monitor.stop(), [memory.at(1).start], "{before:?}: a store");
        assert_eq!(kernel_write(&memory, 1), Ok(()), "{before:?}, disarmed");
    }
    Ok(())
}

fn kernel_write_under_sigbus_is_efault(kind: Kind) -> Verdict {
    for open in [|| Some(watcher::user_mode(SIGBUS)), || watcher::full(SIGBUS).ok()] {
        for before in [Before::Untouched, Before::Read, Before::Copied] {
            let memory = with_past(kind, before)?;
            let Some(uffd) = open() else { continue };
            watcher::arm(&uffd, &memory);
            assert_refused(&memory, before);
            watcher::protect(&uffd, memory.at(1), false).expect("UFFDIO_WRITEPROTECT");
            assert_eq!(kernel_write(&memory, 1), Ok(()), "{before:?}, disarmed");
        }
    }
    Ok(())
}

fn kernel_write_under_async_is_recorded(kind: Kind) -> Verdict {
    for before in [Before::Untouched, Before::Read, Before::Copied] {
        let memory = with_past(kind, before)?;
        let uffd = watcher::user_mode(ASYNC);
        watcher::arm(&uffd, &memory);
        assert_eq!(evidence::written(&memory), pages([]), "{before:?}: armed");
        assert_eq!(kernel_write(&memory, 1), Ok(()), "{before:?}");
        assert_eq!(evidence::written(&memory), pages([1]), "{before:?}: recorded");
        assert_eq!(memory.load(1), 200, "{before:?}");
    }
    Ok(())
}

fn refused_write_copies_an_untouched_page() -> Verdict {
    let watches: [fn() -> Option<Uffd>; 3] =
        [|| Some(watcher::user_mode(SYNC)), || Some(watcher::user_mode(SIGBUS)), || watcher::full(SIGBUS).ok()];
    for open in watches {
        for (before, copied) in [(Before::Untouched, 1), (Before::Read, 0)] {
            let memory = with_past(Kind::PrivateMemfd, before)?;
            let Some(uffd) = open() else { continue };
            watcher::arm(&uffd, &memory);
            assert_eq!(kernel_write(&memory, 1), Err(Errno::FAULT), "{before:?}");
            let expected = pages([1].into_iter().take(copied));
            assert_eq!(evidence::copied_armed(&memory), expected, "{before:?}: the census");
            assert_eq!(evidence::anonymous_pages(&memory), copied as u64, "{before:?}: smaps");
            assert_eq!((memory.load(1), memory.in_file(1)), (mark(1), mark(1)), "{before:?}: nothing was written");
        }
    }
    Ok(())
}

fn untouched_page_is_copied_before_the_message() -> Verdict {
    for (before, copied) in [(Before::Untouched, 1), (Before::Read, 0)] {
        let memory = with_past(Kind::PrivateMemfd, before)?;
        let uffd = watcher::any(SYNC).expect("userfaultfd");
        watcher::arm(&uffd, &memory);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| memory.store(1, 200));
            watcher::next_fault(&uffd);
            assert_eq!(evidence::copied_armed(&memory), pages([1].into_iter().take(copied)), "{before:?}: waiting");
            assert_eq!(memory.load(1), mark(1), "{before:?}: nothing is written yet");
            watcher::protect(&uffd, memory.at(1), false).expect("UFFDIO_WRITEPROTECT");
            writer.join().expect("the writer");
        });
        assert_eq!((memory.load(1), evidence::copied_armed(&memory)), (200, pages([1])), "{before:?}: written");
    }
    Ok(())
}

/// The page's entry in pagemap while its writer waits.
fn bits_at_the_message(before: Before) -> Result<Entry, crate::claim::Skip> {
    let memory = with_past(Kind::PrivateMemfd, before)?;
    let uffd = watcher::any(SYNC).expect("userfaultfd");
    watcher::arm(&uffd, &memory);
    std::thread::scope(|scope| {
        scope.spawn(|| memory.store(1, 200));
        watcher::next_fault(&uffd);
        let bits = evidence::entry(&memory, 1);
        watcher::protect(&uffd, memory.at(1), false).expect("UFFDIO_WRITEPROTECT");
        Ok(bits & (Entry::PRESENT | Entry::FILE | Entry::EXCLUSIVE | Entry::UFFD_WP))
    })
}

fn fresh_copy_looks_like_an_old_one_at_the_message() -> Verdict {
    let own = Entry::PRESENT | Entry::EXCLUSIVE | Entry::UFFD_WP;
    assert_eq!(bits_at_the_message(Before::Untouched)?, own, "untouched");
    assert_eq!(bits_at_the_message(Before::Copied)?, own, "copied long before");
    assert!(bits_at_the_message(Before::Read)?.contains(Entry::FILE), "read before: the file's still");
    Ok(())
}

/// The range that the signal handler takes a census of.
static HANDLED: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

/// Exits with the number of copied pages of [`HANDLED`].
extern "C" fn exit_with_census(_: i32, _: *mut libc::siginfo_t, _: *mut c_void) {
    let [start, len] = HANDLED.each_ref().map(|word| word.load(Ordering::SeqCst));
    let range = map::Range { start, len };
    let mut bytes = 0;
    let Ok(pagemap) = Pagemap::open_self() else { process::exit(99) };
    for query in &COPIED_ARMED {
        // A few regions only: the alternate signal stack has little room.
        let mut regions = [PageRegion { start: 0, end: 0, categories: 0 }; 4];
        let Ok((_, found)) = pagemap.scan_once(range.start as u64, range.end() as u64, query, &mut regions) else {
            process::exit(98);
        };
        bytes += regions.iter().take(found).map(|region| region.end - region.start).sum::<u64>();
    }
    process::exit((bytes / cowbell::sys::page_size().bytes() as u64) as i32);
}

fn untouched_page_is_copied_before_the_signal() -> Verdict {
    for (before, copied) in [(Before::Untouched, 1), (Before::Read, 0)] {
        let ended = child::spawn(|| {
            let Ok(memory) = with_past(Kind::PrivateMemfd, before) else { process::exit(97) };
            let uffd = watcher::any(SIGBUS).expect("userfaultfd");
            watcher::arm(&uffd, &memory);
            HANDLED[0].store(memory.range.start, Ordering::SeqCst);
            HANDLED[1].store(memory.range.len, Ordering::SeqCst);
            // SAFETY: the handler makes system calls and ends the process.
            unsafe { signal::install(signal::BUS, exit_with_census) }.expect("sigaction");
            memory.store(1, 200);
            process::exit(96);
        });
        assert_eq!(ended.wait(), Ended::Exited(copied), "{before:?}");
    }
    Ok(())
}

fn foreign_write_waits_for_the_monitor() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    memory.load_all();
    let uffd = watcher::full(SYNC).expect("userfaultfd");
    watcher::arm(&uffd, &memory);
    let target = process::pid();
    let address = memory.at(1).start;
    let writer = child::spawn(|| {
        let mut byte = 200u8;
        let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let remote = libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(address), iov_len: 1 };
        // SAFETY: `local` is a byte of ours, the remote side is checked by the kernel.
        let sent = unsafe { libc::process_vm_writev(target, &raw const local, 1, &raw const remote, 1, 0) };
        assert_eq!(sent, 1, "process_vm_writev: {}", last_errno());
    });
    // No sleep: the message says that somebody waits.
    assert_eq!(watcher::next_fault(&uffd).address, address);
    let ended = cowbell::sys::pidfd::wait_end(writer.pidfd.as_fd(), Some(std::time::Duration::from_millis(50)));
    assert!(!ended.expect("poll"), "the caller waits");
    assert_eq!(memory.load(1), mark(1), "nothing is written yet");
    watcher::protect(&uffd, memory.at(1), false).expect("UFFDIO_WRITEPROTECT");
    writer.finish();
    assert_eq!(memory.load(1), 200);
    Ok(())
}

fn populating_is_a_write() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    let uffd = watcher::full(SYNC).expect("userfaultfd");
    watcher::arm(&uffd, &memory);
    let monitor = Monitor::start(uffd);
    assert_eq!(map::advise(memory.at(0), map::Harmless::PopulateRead), Ok(()));
    assert_eq!(map::advise(memory.at(1), map::Harmless::PopulateWrite), Ok(()));
    assert_eq!(monitor.stop(), [memory.at(1).start]);
    assert_eq!(evidence::anonymous_pages(&memory), 1, "populating for writing copies");
    memory.protect(memory.range, Access::Read).expect("mprotect");
    assert_eq!(map::advise(memory.at(2), map::Harmless::PopulateWrite), Err(Errno::INVAL), "read-only");
    Ok(())
}

fn proc_mem_write(memory: &Memory, page: usize) -> Result<(), Errno> {
    let mem = std::fs::File::options().write(true).open("/proc/self/mem").expect("/proc/self/mem");
    rustix::io::pwrite(&mem, &[200], memory.at(page).start as u64).map(drop)
}

fn proc_mem_write_into_an_armed_page_is_eio() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    memory.load_all();
    let uffd = watcher::any(SYNC).expect("userfaultfd");
    watcher::arm(&uffd, &memory);
    assert_eq!(proc_mem_write(&memory, 1), Err(Errno::IO), "armed");
    assert_eq!(uffd.read(|event| panic!("{event:?}")), Ok(false), "no message");
    assert_eq!(memory.load(1), mark(1), "no write");
    watcher::protect(&uffd, memory.at(2), false).expect("UFFDIO_WRITEPROTECT");
    assert_eq!((proc_mem_write(&memory, 2), memory.load(2)), (Ok(()), 200), "disarmed");
    Ok(())
}

fn proc_mem_writes_through_protection_and_seals() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    seal(memory.file(), SEALS_FINAL).expect("F_ADD_SEALS");
    memory.protect(memory.range, Access::Read).expect("mprotect");
    memory.load_all();
    assert_eq!(child::spawn(|| memory.store(1, 200)).wait(), Ended::Signaled(libc::SIGSEGV), "a store");
    if let Err(Errno::IO) = proc_mem_write(&memory, 1) {
        return Err(crate::claim::Skip("this kernel was told to refuse it (proc_mem.force_override)".to_owned()));
    }
    assert_eq!((memory.load(1), memory.in_file(1)), (200, mark(1)));
    assert_eq!(evidence::anonymous_pages(&memory), 1, "a copy");
    Ok(())
}
