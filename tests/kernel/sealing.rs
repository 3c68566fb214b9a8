//! Seals of a memfd: when they can be set and what they stop.
#![expect(unsafe_code, reason = "signal dispositions have no safe wrapper")]

use crate::child;
use crate::claim::{Claim, Need, Verdict, claim};
use crate::evidence::{self, pages};
use crate::memory::{Kind, Memory, mark};
use crate::watcher;
use cowbell::sys::map::Access;
use cowbell::sys::memfd::{SEALS_FINAL, seal, set_len};
use cowbell::sys::pidfd::Ended;
use cowbell::sys::{Errno, page_size};
use rustix::fs::{FallocateFlags, Mode, OFlags, SealFlags};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use rustix::process::{Resource, Rlimit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

pub const CLAIMS: &[Claim] = &[
    claim!(
        write_seal_is_busy_while_a_shared_map_of_a_writable_descriptor_lives,
        "`F_SEAL_WRITE` is EBUSY while any `MAP_SHARED` mapping of a writable descriptor lives, even a `PROT_READ` one."
    ),
    claim!(
        write_seal_waits_for_held_pages_and_is_busy_then,
        "While somebody holds a page of the file (a pipe it was spliced into; compaction and reclaim do so, too) `F_SEAL_WRITE` waits, more than 100 ms, and is EBUSY then; once the page is let go it is accepted."
    ),
    claim!(
        final_seals_stop_every_writer,
        "After the final seals write, truncate, grow, punch, a shared writable mapping and another seal are EPERM, also through a descriptor reopened from `/proc/self/fd`."
    ),
    claim!(
        private_writable_map_of_a_sealed_memfd_copies,
        "A private writable mapping of a sealed memfd works; its writes are copies and the file keeps its content."
    ),
    claim!(
        shared_readonly_map_of_a_sealed_memfd_works,
        "A write-sealed memfd can be mapped shared and read-only, and that mapping cannot be made writable."
    )
    .needs(&[Need::Scan]),
    claim!(
        userfaultfd_refuses_a_shared_map_of_a_sealed_memfd,
        "Registering a shared mapping of a write-sealed memfd is EPERM; a private one is accepted."
    )
    .needs(&[Need::Uffd]),
    claim!(
        future_write_seal_spares_the_living_map,
        "`F_SEAL_FUTURE_WRITE` is accepted while a writable shared mapping lives, which keeps writing; a new one is EPERM."
    ),
    claim!(
        unsealed_private_pages_follow_other_writers,
        "A clean private page shows a later write through another mapping (why a frozen arena is sealed), and `WP_ASYNC` does not see that write; a page already copied keeps its content."
    )
    .needs(&[Need::WpAsync, Need::Scan]),
    claim!(
        truncate_destroys_a_private_copy_and_punch_keeps_it,
        "`ftruncate` below a copied private page destroys the copy (SIGBUS); `FALLOC_FL_PUNCH_HOLE` under it keeps it."
    ),
    claim!(
        rlimit_fsize_limits_a_memfd,
        "`RLIMIT_FSIZE` limits `ftruncate` of a memfd: SIGXFSZ, and EFBIG where that is ignored."
    ),
];

fn seal_errno(fd: BorrowedFd<'_>, seals: SealFlags) -> Option<i32> {
    seal(fd, seals).err().and_then(|e| e.errno())
}

fn write_seal_is_busy_while_a_shared_map_of_a_writable_descriptor_lives() -> Verdict {
    let memory = Memory::marked(Kind::SharedMemfd, 4)?;
    let fd = memory.file();
    assert_eq!(seal_errno(fd, SealFlags::WRITE), Some(libc::EBUSY), "mapped read-write");
    memory.protect(memory.range, Access::Read).expect("mprotect");
    assert_eq!(seal_errno(fd, SealFlags::WRITE), Some(libc::EBUSY), "mapped read-only");
    memory.unmap(memory.range).expect("munmap");
    assert_eq!(seal_errno(fd, SealFlags::WRITE), None, "unmapped");

    // A private mapping, even a written one, does not count.
    let private = Memory::marked(Kind::PrivateMemfd, 4)?;
    private.store(0, 7);
    assert_eq!(seal_errno(private.file(), SealFlags::WRITE), None, "mapped privately");
    Ok(())
}

fn write_seal_waits_for_held_pages_and_is_busy_then() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    let page = memory.page.bytes();
    let (from, to) = pipe_with(PipeFlags::CLOEXEC).expect("pipe2");
    let spliced = splice(memory.file(), Some(&mut 0), &to, None, page, SpliceFlags::empty());
    assert_eq!(spliced, Ok(page), "splice");
    let begun = Instant::now();
    assert_eq!(seal_errno(memory.file(), SealFlags::WRITE), Some(libc::EBUSY), "held");
    assert!(begun.elapsed() > Duration::from_millis(100), "it waited: {:?}", begun.elapsed());
    assert_eq!(rustix::io::read(&from, &mut vec![0; page]), Ok(page));
    assert_eq!(seal_errno(memory.file(), SealFlags::WRITE), None, "let go");
    Ok(())
}

/// The answer of each way to change the file.
fn change(fd: BorrowedFd<'_>, len: u64) -> Vec<(&'static str, Option<i32>)> {
    let page = page_size().bytes() as u64;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let os = |done: Result<(), Errno>| done.err().map(Errno::raw_os_error);
    vec![
        ("pwrite", os(rustix::io::pwrite(fd, &[1], 0).map(drop))),
        ("punch", os(rustix::fs::fallocate(fd, punch, 0, page))),
        ("shrink", set_len(fd, len - page).err().and_then(|e| e.errno())),
        ("grow", set_len(fd, len + page).err().and_then(|e| e.errno())),
        ("seal again", seal_errno(fd, SealFlags::GROW)),
    ]
}

fn final_seals_stop_every_writer() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    let len = memory.range.len as u64;
    seal(memory.file(), SEALS_FINAL).expect("F_ADD_SEALS");
    let path = format!("/proc/self/fd/{}", memory.file().as_raw_fd());
    let reopened = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).expect("reopen read-write");
    for fd in [memory.file(), reopened.as_fd()] {
        for (how, errno) in change(fd, len) {
            assert_eq!(errno, Some(libc::EPERM), "{how}");
        }
    }
    let shared = Memory::new(Kind::Anonymous, 4)?;
    // SAFETY: the range is the anonymous memory's own.
    let mapped = unsafe { cowbell::sys::map::map_shared_at(shared.range, Access::ReadWrite, reopened.as_fd(), 0) };
    assert_eq!(mapped, Err(Errno::PERM), "a shared writable mapping");
    assert!((0..4).all(|page| memory.in_file(page) == mark(page)), "the content is what it was");

    let open = Memory::marked(Kind::PrivateMemfd, 4)?;
    for (how, errno) in change(open.file(), len) {
        assert_eq!(errno, None, "{how}, without seals");
    }
    Ok(())
}

fn private_writable_map_of_a_sealed_memfd_copies() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    seal(memory.file(), SEALS_FINAL).expect("F_ADD_SEALS");
    memory.load_all();
    assert_eq!(evidence::anonymous_pages(&memory), 0, "reading copies nothing");
    memory.store(2, 77);
    assert_eq!((memory.load(2), memory.in_file(2)), (77, mark(2)), "the mapping changes, the file does not");
    assert_eq!(evidence::anonymous_pages(&memory), 1);
    Ok(())
}

fn shared_readonly_map_of_a_sealed_memfd_works() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    seal(memory.file(), SEALS_FINAL).expect("F_ADD_SEALS");
    // SAFETY: the range is the memory's own.
    let mapped = unsafe { cowbell::sys::map::map_shared_at(memory.range, Access::Read, memory.file(), 0) };
    mapped.expect("a shared read-only mapping");
    assert_eq!(memory.load(3), mark(3));
    assert_eq!(memory.protect(memory.range, Access::ReadWrite), Err(Errno::ACCESS), "mprotect");
    Ok(())
}

fn userfaultfd_refuses_a_shared_map_of_a_sealed_memfd() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    seal(memory.file(), SEALS_FINAL).expect("F_ADD_SEALS");
    let uffd = watcher::any(watcher::SYNC).expect("userfaultfd");
    assert_eq!(watcher::register(&uffd, memory.range), Ok(()), "private");
    // SAFETY: the range is the memory's own.
    let mapped = unsafe { cowbell::sys::map::map_shared_at(memory.range, Access::Read, memory.file(), 0) };
    mapped.expect("a shared read-only mapping");
    assert_eq!(watcher::register(&uffd, memory.range), Err(Errno::PERM), "shared");
    let open = Memory::marked(Kind::SharedMemfd, 4)?;
    assert_eq!(watcher::register(&uffd, open.range), Ok(()), "shared, without seals");
    Ok(())
}

fn future_write_seal_spares_the_living_map() -> Verdict {
    let memory = Memory::marked(Kind::SharedMemfd, 4)?;
    seal(memory.file(), SealFlags::FUTURE_WRITE).expect("F_SEAL_FUTURE_WRITE");
    memory.store(1, 99);
    assert_eq!(memory.in_file(1), 99, "the living mapping writes on");
    assert_eq!(memory.write_file(0, 1), Err(Errno::PERM), "pwrite");
    let other = Memory::new(Kind::Anonymous, 4)?;
    // SAFETY: the range is the anonymous memory's own.
    let mapped = unsafe { cowbell::sys::map::map_shared_at(other.range, Access::ReadWrite, memory.file(), 0) };
    assert_eq!(mapped, Err(Errno::PERM), "a new mapping");
    Ok(())
}

fn unsealed_private_pages_follow_other_writers() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    memory.load_all();
    memory.store(1, 200);
    let _uffd = watcher::arm_async(&memory);
    memory.write_file(0, 100).expect("pwrite");
    memory.write_file(1, 100).expect("pwrite");
    assert_eq!(memory.load(0), 100, "a clean page is the file's");
    assert_eq!(memory.load(1), 200, "a copy is ours");
    assert_eq!(evidence::written(&memory), pages([]), "the watch saw nothing");
    assert_eq!(evidence::copied_armed(&memory), pages([1]));
    memory.store(2, 1);
    assert_eq!(evidence::written(&memory), pages([2]), "the watch does see a write of our own");
    Ok(())
}

fn truncate_destroys_a_private_copy_and_punch_keeps_it() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    memory.store(1, 200);
    memory.store(3, 201);
    let page = memory.page.bytes() as u64;
    rustix::fs::fallocate(memory.file(), FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, page, page)
        .expect("punch");
    assert_eq!((memory.load(1), memory.in_file(1)), (200, 0), "the copy outlives the hole");
    assert_eq!(evidence::anonymous_pages(&memory), 2);
    set_len(memory.file(), 3 * page).expect("ftruncate");
    assert_eq!(evidence::anonymous_pages(&memory), 1, "the copy behind the end is gone");
    let reader = child::spawn(|| memory.touch(3));
    assert_eq!(reader.wait(), Ended::Signaled(libc::SIGBUS));
    Ok(())
}

fn rlimit_fsize_limits_a_memfd() -> Verdict {
    let memory = Memory::new(Kind::PrivateMemfd, 1)?;
    let page = memory.page.bytes() as u64;
    let limited = |ignore: bool| {
        child::spawn(|| {
            let limit = Rlimit { current: Some(2 * page), maximum: Some(2 * page) };
            rustix::process::setrlimit(Resource::Fsize, limit).expect("setrlimit");
            let disposition = if ignore { libc::SIG_IGN } else { libc::SIG_DFL };
            // SAFETY: neither disposition runs code of ours.
            unsafe { libc::signal(libc::SIGXFSZ, disposition) };
            rustix::fs::ftruncate(memory.file(), 2 * page).expect("at the limit");
            assert_eq!(rustix::fs::ftruncate(memory.file(), 3 * page), Err(Errno::FBIG), "above the limit");
        })
    };
    assert_eq!(limited(false).wait(), Ended::Signaled(libc::SIGXFSZ));
    limited(true).finish();
    // The crate asks the limit first, so that its caller gets an error and lives.
    child::spawn(|| {
        let limit = Rlimit { current: Some(2 * page), maximum: Some(2 * page) };
        rustix::process::setrlimit(Resource::Fsize, limit).expect("setrlimit");
        assert!(set_len(memory.file(), 3 * page).is_err_and(|e| e.is_invalid()));
    })
    .finish();
    rustix::fs::ftruncate(memory.file(), 3 * page).expect("without the limit");
    Ok(())
}
