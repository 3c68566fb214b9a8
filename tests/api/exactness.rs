//! Every watch reports exactly the pages that were written.
//!
//! A child writes a random set of pages in random ways. Five counts must be equal to the page: what was
//! written (the test knows), the census from the parent, the last census, what the watch observed, and the
//! kernel's `Anonymous:` of the mapping in smaps.
#![expect(unsafe_code, reason = "raw writes of every kind, and arenas are released")]

use crate::case::{Outcome, child_that_waits, passed, skipped, trial};
use cowbell::arena::{Arena, FreezeOptions, Frozen, HugePages};
use cowbell::fork::{Ended, ForkOptions};
use cowbell::page::{PageIndex, PageSet, Range};
use cowbell::support::Feature;
use cowbell::sys::{self, pagemap::Pagemap, procfs::smaps};
use cowbell::watch::Watch;
use libtest_mimic::Trial;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use std::cell::OnceCell;
use std::io::IoSliceMut;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

pub type Bytes = &'static [AtomicU8];

/// A way to write `len` bytes at `offset`.
#[derive(Clone, Copy, Debug)]
enum How {
    Stores,
    Memcpy,
    Atomics,
    Read,
    Recvmsg,
}

#[derive(Clone, Debug)]
struct Write {
    how: How,
    /// The place, as a share of the arena.
    at: f64,
    /// The number of bytes, at most.
    len: usize,
    thread: u8,
}

/// A child's writes, and the circumstances that may make a difference.
#[derive(Clone, Debug)]
pub struct Case {
    pub bytes: usize,
    /// Pages read before anything is written, as shares of the arena.
    reads: Vec<f64>,
    writes: Vec<Write>,
    everything: bool,
    twice: bool,
    killed: bool,
}

/// Any case, with or without writes by system calls.
pub fn case(kernel_writes: bool, bytes_max: usize) -> impl Strategy<Value = Case> {
    let mut ways = vec![How::Stores, How::Memcpy, How::Atomics];
    if kernel_writes {
        ways.extend([How::Read, How::Recvmsg]);
    }
    let page = sys::page_size().bytes();
    let len = prop_oneof![4 => 1..16usize, 2 => 1..2 * page, 1 => 1..9 * page];
    let write = (proptest::sample::select(ways), 0.0..1.0, len, 0u8..4).prop_map(|(how, at, len, thread)| Write {
        how,
        at,
        len,
        thread,
    });
    let writes = prop_oneof![1 => Just(vec![]), 8 => proptest::collection::vec(write, 1..24)];
    let bytes = prop_oneof![6 => 1..200 * page, 1 => page..bytes_max];
    let reads = proptest::collection::vec(0.0..1.0, 0..12);
    (bytes, reads, writes, proptest::bool::weighted(0.05), any::<bool>(), any::<bool>()).prop_map(
        |(bytes, reads, writes, everything, twice, killed)| Case { bytes, reads, writes, everything, twice, killed },
    )
}

impl Write {
    fn place(&self, bytes: usize) -> (usize, usize) {
        let start = ((bytes as f64 * self.at) as usize).min(bytes - 1);
        (start, self.len.min(bytes - start))
    }

    /// Makes the write: every byte of the place gets a store.
    fn make(&self, data: Bytes) {
        let (start, len) = self.place(data.len());
        let target = &data[start..start + len];
        let raw = target[0].as_ptr();
        match self.how {
            How::Stores => target.iter().for_each(|byte| byte.store(7, Ordering::Relaxed)),
            How::Atomics => {
                // A page's word where one fits, else its bytes; both are read-modify-write.
                let words = raw.align_offset(align_of::<AtomicU64>());
                if len >= words + size_of::<AtomicU64>() {
                    // SAFETY: inside the target.
                    let place = unsafe { raw.add(words) };
                    // SAFETY: aligned, and inside the target, which is all atomics.
                    let word = unsafe { AtomicU64::from_ptr(place.cast()) };
                    word.fetch_add(1, Ordering::SeqCst);
                }
                for byte in target {
                    byte.fetch_add(1, Ordering::SeqCst);
                }
            }
            How::Memcpy => {
                // The source lies at one address in all children: which instructions copy depends on it.
                static SOURCE: [u8; 1 << 20] = [9; 1 << 20];
                let source = &SOURCE[..len];
                // SAFETY: the target is `len` bytes of atomics and nobody reads them meanwhile.
                unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), raw, len) };
            }
            How::Read => {
                // SAFETY: as above.
                let buffer = unsafe { std::slice::from_raw_parts_mut(raw, len) };
                let zero = std::fs::File::open("/dev/zero").expect("/dev/zero");
                assert_eq!(rustix::io::read(&zero, buffer), Ok(len));
            }
            How::Recvmsg => {
                // SAFETY: as above.
                let buffer = unsafe { std::slice::from_raw_parts_mut(raw, len) };
                use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
                let (from, to) =
                    socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).expect("socketpair");
                rustix::net::send(&from, &vec![3u8; len], SendFlags::empty()).expect("send");
                let mut control = rustix::net::RecvAncillaryBuffer::default();
                let got = rustix::net::recvmsg(&to, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::empty());
                assert_eq!(got.expect("recvmsg").bytes, len);
            }
        }
    }
}

impl Case {
    fn expected(&self) -> PageSet {
        let page = sys::page_size();
        let mut pages = PageSet::new();
        let mut add = |start: usize, len: usize| {
            for index in page.index_of(start).0..=page.index_of(start + len - 1).0 {
                pages.insert(PageIndex(index));
            }
        };
        if self.everything {
            add(0, self.bytes);
        }
        for write in &self.writes {
            let (start, len) = write.place(self.bytes);
            add(start, len);
        }
        pages
    }

    /// The same part, one write after the other, so that each page has one that is first. Each thread tells its write's number.
    pub fn act_in_turn(&self, data: Bytes, begins: impl Fn(usize) + Sync) {
        self.read(data);
        for (at, write) in self.writes.iter().enumerate() {
            let make = || {
                begins(at);
                write.make(data);
            };
            if write.thread == 0 {
                make();
            } else {
                std::thread::scope(|scope| drop(scope.spawn(make).join()));
            }
        }
    }

    fn read(&self, data: Bytes) {
        let mut sum = 0u64;
        for &at in &self.reads {
            sum += u64::from(data[((data.len() as f64 * at) as usize).min(data.len() - 1)].load(Ordering::Relaxed));
        }
        std::hint::black_box(sum);
    }

    /// The child's part.
    fn act(&self, data: Bytes) {
        self.read(data);
        for _ in 0..if self.twice { 2 } else { 1 } {
            if self.everything {
                data.iter().step_by(sys::page_size().bytes()).for_each(|byte| byte.store(1, Ordering::Relaxed));
                data[data.len() - 1].store(1, Ordering::Relaxed);
            }
            // Atomic writes from several threads at once; the others in turn, since they may overlap, but each by
            // its own thread as well.
            let at_once = |write: &&Write| write.thread > 0 && matches!(write.how, How::Atomics | How::Stores);
            std::thread::scope(|scope| {
                for thread in 1..4 {
                    let mine = self.writes.iter().filter(at_once).filter(move |write| write.thread == thread);
                    if mine.clone().next().is_some() {
                        scope.spawn(move || mine.for_each(|write| write.make(data)));
                    }
                }
            });
            for write in self.writes.iter().filter(|write| !at_once(write)) {
                if write.thread == 0 {
                    write.make(data);
                } else {
                    std::thread::scope(|scope| scope.spawn(|| write.make(data)).join()).expect("a write");
                }
            }
        }
    }
}

/// Frozen bytes that are none of them 0.
pub fn freeze(bytes: usize, huge_pages: HugePages) -> cowbell::Result<Frozen<Bytes>> {
    let arena = Arena::builder("exactness").capacity(bytes + (1 << 16)).build()?;
    let data: Bytes = arena.alloc_iter((0..bytes).map(|n| AtomicU8::new(n as u8 | 1)))?;
    arena.freeze_with(data, FreezeOptions::new().huge_pages(huge_pages))
}

fn check(case: &Case, watch: Watch, huge_pages: HugePages) -> Result<(), TestCaseError> {
    let fail = |e: String| TestCaseError::fail(e);
    let frozen = freeze(case.bytes, huge_pages).map_err(|e| fail(format!("the freeze: {e}")))?;
    let collapsed = frozen.image().collapsed();
    let result = check_frozen(case, watch, &frozen).map_err(|e| fail(format!("{e}; huge pages: {collapsed:?}")));
    // SAFETY: the child is gone and the data is used no more.
    unsafe { frozen.release() }.map_err(|e| fail(format!("the release: {e}")))?;
    result
}

fn check_frozen(case: &Case, watch: Watch, frozen: &Frozen<Bytes>) -> Result<(), TestCaseError> {
    let fail = |e: String| TestCaseError::fail(e);
    let data: Bytes = frozen.root();
    let expected = case.expected();
    let options = ForkOptions::new().watch(watch);
    let spawned = child_that_waits(&options, |_| case.act(data));
    let (mut child, turns) = spawned.map_err(|e| fail(format!("the fork: {}", e.message().unwrap_or_default())))?;

    let range = frozen.image().range();
    let living = child.census().map_err(|e| fail(format!("the census: {e}")))?;
    prop_assert_eq!(&living[0].copied, &expected, "the census of the living child");
    let mappings = smaps::mappings(child.pid(), range).map_err(|e| fail(format!("smaps: {e}")))?;
    let anonymous: u64 = mappings.iter().map(|mapping| mapping.anonymous).sum();
    prop_assert_eq!(anonymous, expected.count().bytes(sys::page_size()), "smaps");
    let pagemap = Pagemap::open(child.pid()).map_err(|e| fail(format!("pagemap: {e}")))?;
    let mut read = PageSet::new();
    let armed = watch.arms();
    let page = sys::page_size();
    let note = |run: Range| _ = read.insert(page.index_of(run.start - range.start));
    pagemap.read_copied(range, armed, note).map_err(|e| fail(format!("the page tables: {e}")))?;
    prop_assert_eq!(&read, &expected, "the page tables without PAGEMAP_SCAN");

    if case.killed {
        child.kill(libc::SIGKILL).map_err(|e| fail(format!("the kill: {e}")))?;
    } else {
        turns.give();
    }
    let exit = child.wait().map_err(|e| fail(format!("the wait: {e}")))?;
    let ended = if case.killed { Ended::Signaled(libc::SIGKILL) } else { Ended::Exited(0) };
    prop_assert_eq!(exit.ended, ended, "{:?}", exit.panic);
    let arena = &exit.report.arenas[0];
    prop_assert_eq!(exit.report.census, cowbell::report::Census::Last);
    prop_assert_eq!(arena.copied_set(), expected.clone(), "the last census");
    prop_assert_eq!(arena.copied_pages, expected.count());
    if watch != Watch::Census {
        prop_assert_eq!(arena.observed_set(), expected.clone(), "what the watch observed");
        prop_assert_eq!(arena.copied_unobserved.0, 0);
    }
    if watch.has_events() {
        let events: PageSet = exit.report.events.iter().map(|event| event.page).collect();
        prop_assert_eq!(events, expected.clone(), "the pages of the events");
        prop_assert_eq!(exit.report.events.len() as u64 + exit.report.events_lost, expected.count().0);
        prop_assert_eq!(exit.report.events_lost, 0);
    }
    Ok(())
}

fn property(watch: Watch, huge_pages: HugePages) -> Outcome {
    let support = cowbell::support::Support::get();
    if let (HugePages::Collapse, Some(missing)) = (huge_pages, support.verdict(Feature::Collapse).missing()) {
        return skipped(format!("{}: {}", missing.feature, missing.why));
    }
    if let Some(missing) = support.watch(watch).missing() {
        return skipped(format!("{}: {}", missing.feature, missing.why));
    }
    // System calls may write where the watch lets them: always, but under the trap, and under a
    // monitor that sees user mode only.
    let probe = cowbell::fork::spawn(&ForkOptions::new().watch(watch), |_| ())?.wait()?.report;
    let user_mode_only = probe.door == Some(sys::uffd::Door::UserModeOnly);
    let kernel_writes = match watch {
        Watch::Census | Watch::Async => true,
        Watch::Faults => probe.page_faults.is_some_and(|faults| faults.by_kernel),
        Watch::Trap => false,
        Watch::Monitor => !user_mode_only,
    };
    let cases = std::env::var("COWBELL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let bytes_max = if huge_pages == HugePages::Collapse { 7 << 20 } else { 3 << 20 };
    // A case that fails once may pass when it is made smaller: the first failure is the one to be explained.
    let first = OnceCell::new();
    runner
        .run(&case(kernel_writes, bytes_max), |case| {
            check(&case, watch, huge_pages).inspect_err(|e| {
                first.get_or_init(|| {
                    let text = format!("{watch}, {huge_pages:?}: {e}\n{case:?}");
                    // At once, should a time limit end the search for a smaller one.
                    eprintln!("{text}");
                    text
                });
            })
        })
        .map_err(|e| format!("first: {}\nsmallest: {e}", first.get().map_or("", String::as_str)))?;
    passed()
}

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for watch in Watch::ALL {
        for (huge_pages, pages) in [(HugePages::Never, "ordinary"), (HugePages::Collapse, "huge")] {
            let name = format!("{watch}_reports_every_written_page_and_no_other::{pages}_pages");
            trials.push(trial(name, move || property(watch, huge_pages)));
        }
    }
    trials
}
