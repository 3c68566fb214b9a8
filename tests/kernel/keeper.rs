//! A process that shares another's memory, and so keeps it readable after the other's death.
//!
//! # Safety
//! The keeper runs on its own stack with the other's thread-local storage, so it only makes raw
//! system calls; what it uses lies in memory that is never unmapped.
#![expect(unsafe_code, reason = "the keeper is made by clone(CLONE_VM)")]

use crate::child::{self, Gate};
use crate::claim::{Claim, Need, Verdict, claim};
use crate::evidence::{self, pages};
use crate::memory::{Kind, Memory, mark};
use cowbell::sys::map::Range;
use cowbell::sys::pagemap::{COPIED, Entry, Pagemap};
use cowbell::sys::pidfd::{self, Ended};
use cowbell::sys::procfs::status::Status;
use cowbell::sys::shared_words::SharedWords;
use cowbell::sys::{Errno, process};
use rustix::process::WaitOptions;
use std::ffi::c_void;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

pub const CLAIMS: &[Claim] = &[
    claim!(
        keeper_keeps_the_memory_of_a_killed_process,
        "After SIGKILL of a process its address space stays readable through a `CLONE_VM` sibling: pagemap, smaps and memory, from outside and from the sibling itself; without one it is gone at once."
    )
    .needs(&[Need::Scan]),
    claim!(
        keeper_leaves_pages_exclusive,
        "Bit 56 of pagemap counts memories, not processes: a page that only one memory maps is exclusive also while a `CLONE_VM` sibling shares that memory, and when the other is dead."
    ),
    claim!(
        keeper_is_a_child_of_the_parent,
        "A `CLONE_PARENT` sibling is the parent's child and ends with the signal that its maker would send."
    ),
];

/// The keeper's argument.
struct Job {
    range: Range,
    go: &'static Gate,
    done: &'static Gate,
    /// The number of bytes of copied pages it found; `u64::MAX` for a failure.
    found: &'static AtomicU64,
}

/// Waits for [`Job::go`], takes a census of the memory it lives in, and ends.
extern "C" fn keep(job: *mut c_void) -> i32 {
    // SAFETY: the maker passes a job that is never dropped.
    let job = unsafe { &*job.cast::<Job>() };
    job.go.pass();
    let mut bytes = 0;
    let found = Pagemap::open_self().and_then(|own| own.scan(job.range, &COPIED[0], |run| bytes += run.len as u64));
    job.found.store(if found.is_ok() { bytes } else { u64::MAX }, Ordering::SeqCst);
    job.done.open();
    7
}

/// Makes a keeper in this process. The job and the stack live as long as the memory does.
fn make_keeper(job: Job, stack: Range, tid: &AtomicU64) {
    let job = Box::into_raw(Box::new(job)).cast::<c_void>();
    // SAFETY: `keep` makes raw calls only; job and stack are never freed.
    unsafe { cowbell::sys::clone::share_memory(keep, job, stack, tid) }.expect("clone");
}

struct Kept {
    memory: Memory,
    victim: child::Child,
    keeper: i32,
    go: &'static Gate,
    done: &'static Gate,
    found: &'static AtomicU64,
}

/// A child that has copied pages 1 and 2 and made a keeper.
fn kept() -> Result<Kept, crate::claim::Skip> {
    let memory = Memory::marked(Kind::PrivateMemfd, 8)?;
    let stack = Memory::new(Kind::Anonymous, 64)?.range;
    let ready = Gate::new();
    let (go, done): (&'static Gate, &'static Gate) =
        (Box::leak(Box::new(Gate::new())), Box::leak(Box::new(Gate::new())));
    let shared: &'static SharedWords = Box::leak(Box::new(SharedWords::new(2).expect("a shared page")));
    let [found, tid, ..] = shared.words() else { unreachable!("a page holds two words") };
    let victim = child::spawn(|| {
        memory.store(1, 201);
        memory.store(2, 202);
        make_keeper(Job { range: memory.range, go, done, found }, stack, tid);
        ready.open();
        Gate::new().pass();
    });
    ready.pass();
    let keeper = tid.load(Ordering::SeqCst) as u32 as i32;
    assert!(keeper > 0 && keeper != victim.pid, "the kernel stored the keeper's id");
    Ok(Kept { memory, victim, keeper, go, done, found })
}

fn keeper_keeps_the_memory_of_a_killed_process() -> Verdict {
    let Kept { memory, victim, keeper, go, done, found } = kept()?;
    let (before, pid) = (Pagemap::open(victim.pid).expect("pagemap"), victim.pid);
    victim.kill();
    assert_eq!(pidfd::open(pid).err(), Some(Errno::SRCH), "killed and reaped");

    // From outside, through the keeper.
    let pagemap = Pagemap::open(keeper).expect("the keeper's pagemap");
    assert_eq!(evidence::scan(&pagemap, &memory, &COPIED), pages([1, 2]), "PAGEMAP_SCAN");
    assert_eq!(evidence::scan(&before, &memory, &COPIED), pages([1, 2]), "a descriptor opened before");
    let page = memory.page.bytes() as u64;
    assert_eq!(evidence::smaps(keeper, &memory).anonymous, 2 * page, "smaps");
    for (index, expected) in [(1, 201), (2, 202), (3, mark(3))] {
        let mut byte = [0];
        let file = std::fs::File::open(format!("/proc/{keeper}/mem")).expect("its memory");
        file.read_exact_at(&mut byte, memory.at(index).start as u64).expect("a byte");
        assert_eq!(byte, [expected], "page {index}");
    }
    // And by the keeper itself.
    go.open();
    done.pass();
    assert_eq!(found.load(Ordering::SeqCst), 2 * page, "the keeper's own census");
    let pidfd = pidfd::open(keeper).expect("pidfd_open");
    pidfd::wait_end(pidfd.as_fd(), None).expect("poll");
    assert_eq!(pidfd::reap(pidfd.as_fd()).expect("waitid"), Some(Ended::Exited(7)));
    assert!(evidence::shows_nothing(&before, &memory), "gone with the last of them");
    Ok(())
}

fn keeper_leaves_pages_exclusive() -> Verdict {
    let Kept { memory, victim, keeper, go, .. } = kept()?;
    let exclusive = |pid: i32| {
        let mut found = Vec::new();
        let pagemap = Pagemap::open(pid).expect("pagemap");
        let read = pagemap.read(memory.range, |_, entry| found.push(entry.contains(Entry::PRESENT | Entry::EXCLUSIVE)));
        read.expect("pagemap");
        found
    };
    let expected = [false, true, true, false, false, false, false, false];
    assert_eq!((exclusive(victim.pid), exclusive(keeper)), (expected.to_vec(), expected.to_vec()));
    victim.kill();
    assert_eq!(exclusive(keeper), expected);
    go.open();
    Ok(())
}

fn keeper_is_a_child_of_the_parent() -> Verdict {
    let Kept { victim, keeper, go, .. } = kept()?;
    let status = Status::of(keeper).expect("status");
    assert_eq!(status.number("PPid"), Some(process::pid()), "{status:?}");
    assert_eq!(status.number("Tgid"), Some(keeper), "a process, not a thread: {status:?}");
    victim.kill();
    go.open();
    // The keeper's maker was forked with SIGCHLD, so it needs no __WALL either.
    let (pid, status) = rustix::process::wait(WaitOptions::empty()).expect("wait").expect("a child");
    assert_eq!((pid.as_raw_nonzero().get(), status.exit_status()), (keeper, Some(7)));
    Ok(())
}
