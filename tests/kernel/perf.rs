//! Page faults told by perf events: one record each, and who is told about whom.
//!
//! # Safety
//! Stores go to a [`Memory`], in children that do nothing else; a child gives up its user for good.
#![expect(unsafe_code, reason = "claims about stores and system calls")]

use crate::changes;
use crate::child::{self, Child, Gate};
use crate::claim::{ADMIN, Claim, Skip, Verdict, claim};
use crate::evidence;
use crate::memory::{Kind, Memory};
use crate::processes::cowbell_claim_store;
use cowbell::sys::perf::record::{FaultRecord, RingRecord};
use cowbell::sys::perf::rings::Rings;
use cowbell::sys::perf::{Counts, Follow, Options, PerfEvent, Ring};
use cowbell::sys::{memfd, monotonic_ns, pidfd, process};
use std::os::fd::AsFd;

pub const CLAIMS: &[Claim] = &[
    claim!(
        write_to_a_page_shared_by_fork_is_one_fault_record,
        "A `page-faults` event of period 1 has exactly one record of the first write to an anonymous page that fork shared, with address, instruction, thread and time; further writes and all reads of present pages have none."
    ),
    claim!(
        last_fault_of_an_absent_page_is_its_write on [PrivateMemfd, PrivateFile, Anonymous],
        "Reading and then writing a page that was not there is two fault records, of which the last is the write's; writing it at once is one."
    ),
    claim!(
        fault_event_is_inherited_by_processes_and_threads,
        "An inherited `page-faults` event on each CPU tells the faults of children, grandchildren and threads made after it was opened, each with its own ids."
    ),
    claim!(
        fault_event_of_a_thread_leaves_out_the_others,
        "A `page-faults` event of a thread does not tell the faults of its process' other threads that were there before; an event of each can write into the same ring (`PERF_EVENT_IOC_SET_OUTPUT`)."
    ),
    claim!(
        fault_records_lost_are_counted,
        "Faults beyond what a ring holds are counted by `PERF_FORMAT_LOST`: with the records read they are all faults of the event, while `PERF_RECORD_LOST` may not tell of the last."
    ),
    claim!(
        faults_by_the_kernel_are_told_if_asked_for,
        "A write by `read(2)` into a page shared by fork is a fault record of the kernel's only without `exclude_kernel`, and then with the thread and the address."
    ),
    claim!(
        fault_tells_the_frame_before_it,
        "With `PERF_SAMPLE_PHYS_ADDR` a fault's record has the page frame that was mapped at its address when it began: that of a page shared by fork, also after it was moved by `mremap`; none where no page was, after `MADV_DONTNEED`, and for the page of zeroes."
    )
    .needs(&[ADMIN]),
];

/// Enough for what a case makes, and small enough for an ordinary user.
pub const RING: usize = 128 << 10;

/// A user who may not open events at all here (Debian's `perf_event_paranoid` 3, a seccomp filter) can examine nothing.
pub fn refused(operation: &str, e: impl std::fmt::Display) -> Skip {
    Skip(format!("{operation}: {e} (kernel.perf_event_paranoid, or a seccomp filter)"))
}

/// An event of one process alone, with its ring.
pub fn alone(pid: i32, kernel: bool, bytes: usize) -> Result<Ring, Skip> {
    let options = Options {
        cpu: None,
        follow: Follow::Thread,
        kernel,
        frames: false,
        registers: false,
        code: false,
        wakeup_bytes: (bytes / 4) as u32,
    };
    let event = PerfEvent::open(pid, options).map_err(|e| refused("perf_event_open", e))?;
    Ring::new(event, bytes).map_err(|(_, e)| refused("mmap of a ring", e))
}

/// The faults in a memory that a ring tells, with the page of each.
pub fn faults(memory: &Memory, drain: impl FnOnce(&mut dyn FnMut(RingRecord))) -> Vec<(usize, FaultRecord)> {
    let mut found = Vec::new();
    drain(&mut |record| match record {
        RingRecord::Fault(fault) => {
            let offset = (fault.address as usize).wrapping_sub(memory.range.start);
            if offset < memory.range.len {
                found.push((offset / memory.page.bytes(), fault));
            }
        }
        RingRecord::Lost(count) => panic!("{count} records did not fit"),
        RingRecord::Mapped(_) | RingRecord::Other => {}
        RingRecord::Broken => panic!("no record"),
    });
    found
}

/// A child that waits until its events are open.
pub fn waiting(body: impl FnOnce()) -> (Child, Gate) {
    let go = Gate::new();
    let child = child::spawn(|| {
        go.pass();
        body();
    });
    (child, go)
}

pub fn store(memory: &Memory, page: usize, offset: usize) {
    // SAFETY: the address lies in the memory.
    unsafe { cowbell_claim_store(memory.at(page).start + offset, 200) };
}

fn write_to_a_page_shared_by_fork_is_one_fault_record() -> Verdict {
    const PAGES: usize = 100;
    let memory = Memory::marked(Kind::Anonymous, 2 * PAGES)?;
    let (child, go) = waiting(|| {
        memory.load_all();
        for round in 0..2 {
            (0..PAGES).for_each(|page| store(&memory, page, 100 + page + round));
        }
        memory.load_all();
    });
    let mut ring = alone(child.pid, false, RING)?;
    let pid = child.pid;
    let begin = monotonic_ns();
    go.open();
    child.finish();
    let end = monotonic_ns();
    let found = faults(&memory, |seen| ring.drain(seen));
    assert_eq!(found.len(), PAGES, "a record for each page that was written");
    let mut before = begin;
    for (at, (page, fault)) in found.into_iter().enumerate() {
        assert_eq!(page, at, "in order");
        assert_eq!(fault.address as usize, memory.at(page).start + 100 + page, "the byte");
        assert_eq!(fault.ip, cowbell_claim_store as *const () as u64, "the store");
        assert_eq!((fault.pid, fault.tid, fault.by_kernel), (pid, pid, false));
        assert!((before..=end).contains(&fault.time_ns), "{before} {} {end}", fault.time_ns);
        before = fault.time_ns;
    }
    Ok(())
}

fn last_fault_of_an_absent_page_is_its_write(kind: Kind) -> Verdict {
    // Reading maps neighbours as well, so the pages lie far apart.
    const STEP: usize = 64;
    let memory = Memory::new(kind, 4 * STEP)?;
    if kind != Kind::Anonymous {
        memory.fill();
    }
    let (child, go) = waiting(|| {
        memory.touch(STEP);
        store(&memory, STEP, 0);
        store(&memory, 3 * STEP, 0);
        memory.touch(3 * STEP);
    });
    let mut ring = alone(child.pid, false, RING)?;
    go.open();
    child.finish();
    let found = faults(&memory, |seen| ring.drain(seen));
    let by_store = |fault: &FaultRecord| fault.ip == cowbell_claim_store as *const () as u64;
    let told: Vec<_> = found.iter().map(|(page, fault)| (*page, by_store(fault))).collect();
    assert_eq!(told, [(STEP, false), (STEP, true), (3 * STEP, true)]);
    Ok(())
}

/// The rings of a thread and all that come from it.
pub fn tree(tid: i32) -> Result<Rings, Skip> {
    Rings::open(tid, RING).map_err(|e| refused("rings", e))
}

fn fault_event_is_inherited_by_processes_and_threads() -> Verdict {
    let memory = Memory::marked(Kind::Anonymous, 4)?;
    let ids = cowbell::sys::shared_words::SharedWords::new(8).expect("a shared page");
    let note = |at: usize| {
        let id = (process::pid() as u64) << 32 | process::tid() as u64;
        ids.words().get(at).expect("a word").store(id, std::sync::atomic::Ordering::SeqCst);
        store(&memory, at, 8);
    };
    let (child, go) = waiting(|| {
        let grandchild = child::spawn(|| {
            note(1);
            child::spawn(|| std::thread::scope(|scope| drop(scope.spawn(|| note(2))))).finish();
        });
        grandchild.finish();
        std::thread::scope(|scope| drop(scope.spawn(|| note(3))));
        note(0);
    });
    let mut rings = tree(child.pid)?;
    go.open();
    child.finish();
    let mut found = faults(&memory, |seen| rings.drain(seen));
    found.sort_unstable_by_key(|&(page, _)| page);
    assert_eq!(found.iter().map(|&(page, _)| page).collect::<Vec<_>>(), [0, 1, 2, 3]);
    for (page, fault) in found {
        let id = (fault.pid as u64) << 32 | fault.tid as u64;
        let expected = ids.words().get(page).expect("a word").load(std::sync::atomic::Ordering::SeqCst);
        assert_eq!(id, expected, "page {page}");
        assert_eq!(fault.pid == fault.tid, page < 2, "threads have ids of their own");
    }
    assert_eq!(rings.lost().unwrap_or(0), 0);
    Ok(())
}

fn fault_event_of_a_thread_leaves_out_the_others() -> Verdict {
    let memory = Memory::marked(Kind::Anonymous, 4)?;
    for added in [false, true] {
        let (ready, go) = (Gate::new(), [Gate::new(), Gate::new()]);
        let tid = cowbell::sys::shared_words::SharedWords::new(1).expect("a shared page");
        let [cell, ..] = tid.words() else { unreachable!("a page holds a word") };
        let child = child::spawn(|| {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    cell.store(process::tid() as u64, std::sync::atomic::Ordering::SeqCst);
                    ready.open();
                    go[0].pass();
                    store(&memory, 0, 0);
                });
                go[1].pass();
                store(&memory, 1, 0);
            });
        });
        ready.pass();
        let mut rings = tree(child.pid)?;
        if added {
            rings.add(cell.load(std::sync::atomic::Ordering::SeqCst) as i32).expect("an event of the thread");
        }
        go.iter().for_each(Gate::open);
        child.finish();
        let mut found: Vec<_> = faults(&memory, |seen| rings.drain(seen)).iter().map(|&(page, _)| page).collect();
        found.sort_unstable();
        assert_eq!(found, if added { vec![0, 1] } else { vec![1] });
    }
    Ok(())
}

fn fault_records_lost_are_counted() -> Verdict {
    const PAGES: usize = 3000;
    let memory = Memory::marked(Kind::Anonymous, PAGES)?;
    let (child, go) = waiting(|| (0..PAGES).for_each(|page| store(&memory, page, 0)));
    // A fault between the event's opening and the ring's mapping counts, has no record and is not lost: the child takes none meanwhile.
    child.stop();
    let mut ring = alone(child.pid, false, 1)?;
    pidfd::signal(&child.pidfd, libc::SIGCONT).expect("pidfd_send_signal");
    go.open();
    child.finish();
    let (mut seen, mut told) = (0u64, 0u64);
    ring.drain(|record| match record {
        RingRecord::Fault(_) => seen += 1,
        RingRecord::Lost(count) => told += count,
        record => panic!("{record:?}"),
    });
    let Counts { faults, lost } = ring.event().counts().expect("counts");
    let Some(lost) = lost else { return Err(Skip("needs PERF_FORMAT_LOST (6.0)".to_owned())) };
    assert!(seen > 0 && seen < PAGES as u64, "{seen} fit");
    assert!(faults >= PAGES as u64, "{faults} faults");
    assert_eq!(seen + lost, faults, "exact");
    assert!(told < lost, "the last loss is not told: {told} of {lost}");
    Ok(())
}

fn faults_by_the_kernel_are_told_if_asked_for() -> Verdict {
    let memory = Memory::marked(Kind::Anonymous, 4)?;
    let file = memfd::create("kernel-claim").expect("memfd_create");
    memfd::set_len(file.as_fd(), 8).expect("ftruncate");
    for kernel in [false, true] {
        let (child, go) = waiting(|| {
            let at = std::ptr::with_exposed_provenance_mut::<u8>(memory.at(2).start);
            // SAFETY: the page is this child's, and nobody else refers into it.
            let page = unsafe { std::slice::from_raw_parts_mut(at, 8) };
            assert_eq!(memfd::read_at(&file, page, 0), Ok(8));
        });
        let pid = child.pid;
        let mut ring = alone(pid, kernel, RING)?;
        go.open();
        child.finish();
        let found = faults(&memory, |seen| ring.drain(seen));
        let told: Vec<_> = found.iter().map(|(page, fault)| (*page, fault.tid, fault.by_kernel)).collect();
        assert_eq!(told, if kernel { vec![(2, pid, true)] } else { vec![] });
    }
    Ok(())
}

fn fault_tells_the_frame_before_it() -> Verdict {
    let memory = Memory::marked(Kind::Anonymous, 8)?;
    let frame = |page| evidence::entry(&memory, page).frame();
    let shared = [0, 3].map(frame);
    let (child, go) = waiting(|| {
        store(&memory, 0, 0);
        memory.drop_pages(memory.at(1));
        store(&memory, 1, 0);
        memory.drop_pages(memory.at(2));
        memory.touch(2);
        store(&memory, 2, 0);
        let moved = changes::mremap(memory.at(3), memory.page.bytes(), Some(memory.at(5).start));
        assert_eq!(moved, Ok(memory.at(5).start));
        store(&memory, 5, 0);
    });
    let options = Options {
        cpu: None,
        follow: Follow::Thread,
        kernel: false,
        frames: true,
        registers: false,
        code: false,
        wakeup_bytes: 0,
    };
    let event = PerfEvent::open(child.pid, options).map_err(|e| refused("perf_event_open", e))?;
    let mut ring = Ring::new(event, RING).map_err(|(_, e)| refused("mmap of a ring", e))?;
    go.open();
    child.finish();
    let found = faults(&memory, |seen| ring.drain(seen));
    let told: Vec<_> = found.iter().map(|(page, fault)| (*page, fault.frame)).collect();
    assert!(shared.iter().all(|&frame| frame != 0));
    let expected = [(0, shared[0]), (1, 0), (2, 0), (2, 0), (5, shared[1])];
    assert_eq!(told, expected.map(|(page, frame)| (page, Some(frame))));
    Ok(())
}
