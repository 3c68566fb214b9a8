//! Page faults told by perf events: one record each, and who is told about whom.
//!
//! # Safety
//! Stores go to a [`Memory`], in children that do nothing else; a child gives up its user for good.
#![expect(unsafe_code, reason = "claims about stores and system calls")]

use crate::case;
use crate::changes;
use crate::child::{self, Child, Gate};
use crate::claim::{ADMIN, Claim, Skip, Verdict, claim};
use crate::evidence;
use crate::memory::{Kind, Memory, last_errno};
use crate::processes::cowbell_claim_store;
use crate::tracee;
use cowbell::sys::perf::record::{Fault, Record};
use cowbell::sys::perf::rings::{Rings, Woken};
use cowbell::sys::perf::{Counts, Event, Follow, Options, Ring};
use cowbell::sys::{Errno, memfd, monotonic_ns, pidfd, process};
use rustix::fs::Mode;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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
    claim!(
        kernel_faults_need_permission,
        "Without CAP_PERFMON and with `kernel.perf_event_paranoid` at 2 an event without `exclude_kernel` is EACCES, and so is one that tells frames; others are accepted."
    )
    .needs(&[ADMIN])
    .restores(&["/proc/sys/kernel/perf_event_paranoid"]),
    claim!(
        rings_beyond_the_locked_limit_are_refused,
        "Without CAP_IPC_LOCK a ring is EPERM beyond `kernel.perf_event_mlock_kb` a CPU and `RLIMIT_MEMLOCK`, which count for all rings of a user; a smaller one is accepted."
    )
    .needs(&[ADMIN]),
    claim!(
        rings_beyond_the_address_space_are_enomem,
        "`mmap` of a ring for which `RLIMIT_AS` leaves no addresses is ENOMEM, not EPERM."
    ),
    claim!(
        exec_with_privilege_or_of_an_unreadable_program_ends_fault_events,
        "`exec` of a set-user-ID program, or of one that the user may not read, ends the events of the process: it hangs up and tells no more; after another exec it goes on. Opened anew it tells again."
    )
    .needs(&[ADMIN]),
    claim!(
        code_mapped_later_is_told_in_its_turn,
        "An event with `mmap2` has a record of each mapping of code (made executable or mapped so), with address, file and time, between the faults before and after it, and none of other mappings or of removals."
    ),
    claim!(
        fault_ring_is_not_inherited,
        "The mapping of a perf ring is not inherited over fork; a `CLONE_VM` process has it."
    ),
    claim!(
        fault_event_wakes_at_its_watermark_and_hangs_up_at_the_end,
        "Waiting for a perf event's descriptor ends once as many bytes as its watermark are in the ring, and in a hang-up when all that it counts have ended."
    ),
    claim!(
        fault_event_of_a_process_leaves_out_its_children_and_ends_at_exec,
        "An inherited `page-faults` event with `inherit_thread` and `remove_on_exec` tells the faults of threads made after it was opened, none of child processes, and none after the process has executed another program."
    ),
    claim!(
        fault_tells_the_programs_registers,
        "With `PERF_SAMPLE_REGS_USER` a fault's record has the program's registers: of a fault of its own the instruction of the record, of one in a system call the instruction behind that call and its arguments; it takes no permission beyond that of the fault."
    ),
    claim!(
        fault_is_told_before_its_page_is_a_copy on [PrivateMemfd],
        "A fault's record is in its ring before page tables show the copy that it made: of each page that a scan shows as a copy, the ring tells the fault when it is read after the scan, while the writer runs on."
    ),
    claim!(
        write_by_another_process_has_no_fault_record on [PrivateMemfd],
        "`process_vm_writev` from another process into a page that was not copied yet makes a copy, and no `page-faults` event of the process has a record of it; the kernel counts it with the faults of the writer (`getrusage`, `/proc/PID/stat`), whose events do not tell it either."
    ),
];

/// Enough for what a case makes, and small enough for an ordinary user.
const RING: usize = 128 << 10;

/// A user who may not open events at all here (Debian's `perf_event_paranoid` 3, a seccomp filter) can examine nothing.
fn refused(operation: &str, e: impl std::fmt::Display) -> Skip {
    Skip(format!("{operation}: {e} (kernel.perf_event_paranoid, or a seccomp filter)"))
}

/// An event of one process alone, with its ring.
fn alone(pid: i32, kernel: bool, bytes: usize) -> Result<Ring, Skip> {
    let options = Options {
        cpu: None,
        follow: Follow::Thread,
        kernel,
        frames: false,
        registers: false,
        code: false,
        wakeup_bytes: (bytes / 4) as u32,
    };
    let event = Event::open(pid, options).map_err(|e| refused("perf_event_open", e))?;
    Ring::new(event, bytes).map_err(|(_, e)| refused("mmap of a ring", e))
}

/// The faults in a memory that a ring tells, with the page of each.
fn faults(memory: &Memory, drain: impl FnOnce(&mut dyn FnMut(Record))) -> Vec<(usize, Fault)> {
    let mut found = Vec::new();
    drain(&mut |record| match record {
        Record::Fault(fault) => {
            let offset = (fault.address as usize).wrapping_sub(memory.range.start);
            if offset < memory.range.len {
                found.push((offset / memory.page.bytes(), fault));
            }
        }
        Record::Lost(count) => panic!("{count} records did not fit"),
        Record::Mapped(_) | Record::Other => {}
        Record::Broken => panic!("no record"),
    });
    found
}

/// A child that waits until its events are open.
fn waiting(body: impl FnOnce()) -> (Child, Gate) {
    let go = Gate::new();
    let child = child::spawn(|| {
        go.pass();
        body();
    });
    (child, go)
}

fn store(memory: &Memory, page: usize, offset: usize) {
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
    let by_store = |fault: &Fault| fault.ip == cowbell_claim_store as *const () as u64;
    let told: Vec<_> = found.iter().map(|(page, fault)| (*page, by_store(fault))).collect();
    assert_eq!(told, [(STEP, false), (STEP, true), (3 * STEP, true)]);
    Ok(())
}

/// The rings of a thread and all that come from it.
fn tree(tid: i32) -> Result<Rings, Skip> {
    Rings::open(tid, RING).map_err(|e| refused("rings", e))
}

fn fault_event_is_inherited_by_processes_and_threads() -> Verdict {
    let memory = Memory::marked(Kind::Anonymous, 4)?;
    let ids = cowbell::sys::map::SharedWords::new(8).expect("a shared page");
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
        let tid = cowbell::sys::map::SharedWords::new(1).expect("a shared page");
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
        Record::Fault(_) => seen += 1,
        Record::Lost(count) => told += count,
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
    let event = Event::open(child.pid, options).map_err(|e| refused("perf_event_open", e))?;
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

/// Makes the calling process an ordinary user's, without any capability.
fn become_nobody() {
    // SAFETY: the call takes three numbers and changes this process's user only.
    let changed = unsafe { libc::setresuid(65534, 65534, 65534) };
    assert_eq!(changed, 0, "setresuid: {}", last_errno());
}

fn kernel_faults_need_permission() -> Verdict {
    let setting = "/proc/sys/kernel/perf_event_paranoid";
    std::fs::write(setting, "2").map_err(|e| Skip(format!("{setting}: {e}")))?;
    child::spawn(|| {
        become_nobody();
        let options = Options {
            cpu: None,
            follow: Follow::Thread,
            kernel: true,
            frames: false,
            registers: false,
            code: false,
            wakeup_bytes: 0,
        };
        assert_eq!(Event::open(0, options).map(drop), Err(Errno::ACCESS));
        assert_eq!(Event::open(0, Options { kernel: false, ..options }).map(drop), Ok(()));
        assert_eq!(Event::open(0, Options { kernel: false, frames: true, ..options }).map(drop), Err(Errno::ACCESS));
    })
    .finish();
    Ok(())
}

fn rings_beyond_the_locked_limit_are_refused() -> Verdict {
    let kib = cowbell::sys::limits::sysctl("kernel/perf_event_mlock_kb");
    let kib = kib.ok_or_else(|| Skip("no kernel.perf_event_mlock_kb".to_owned()))?;
    child::spawn(|| {
        become_nobody();
        let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(rustix::process::Resource::Memlock, none).expect("setrlimit");
        let event = || {
            Event::open(
                0,
                Options {
                    cpu: None,
                    follow: Follow::Thread,
                    kernel: false,
                    frames: false,
                    registers: false,
                    code: false,
                    wakeup_bytes: 0,
                },
            )
        };
        let cpus = std::thread::available_parallelism().expect("a count").get();
        let most = (kib as usize) << 10;
        let too_large = Ring::new(event().expect("an event"), 4 * cpus * most);
        assert_eq!(too_large.map(drop).map_err(|(_, e)| e), Err(Errno::PERM));
        let rings = Rings::open(0, 16 * most).expect("smaller ones");
        assert!(rings.bytes() <= cpus * most, "{} of {}", rings.bytes(), cpus * most);
        assert!(rings.bytes() >= most / 4, "not smaller than needed: {}", rings.bytes());
    })
    .finish();
    Ok(())
}

fn rings_beyond_the_address_space_are_enomem() -> Verdict {
    if page_faults_are_refused() {
        return Err(Skip("kernel.perf_event_paranoid is 3 or more".to_owned()));
    }
    child::spawn(|| {
        let mut rings = Rings::prepare(Follow::Process);
        let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(rustix::process::Resource::As, none).expect("setrlimit");
        let refused = rings.open_prepared(0, 1 << 16).expect_err("there is no room");
        assert!(refused.call.starts_with("mmap") && refused.errno == Errno::NOMEM, "{refused:?}");
    })
    .finish();
    Ok(())
}

fn page_faults_are_refused() -> bool {
    cowbell::sys::probe::page_faults().is_err()
}

/// A copy of this machine's `true` for nobody.
fn program(name: &str, mode: u32) -> CString {
    let path = case::scratch().join(name);
    std::fs::copy("/bin/true", &path).expect("a copy of /bin/true");
    rustix::fs::chmod(&path, Mode::from_raw_mode(mode)).expect("chmod");
    rustix::fs::chmod(case::scratch(), Mode::from_raw_mode(0o755)).expect("chmod");
    CString::new(Path::new(&path).as_os_str().as_bytes()).expect("a path")
}

fn exec_with_privilege_or_of_an_unreadable_program_ends_fault_events() -> Verdict {
    if !cowbell::sys::tracing::may_give_privilege(&case::scratch().display().to_string()) {
        return Err(Skip("TMPDIR is on a nosuid mount".to_owned()));
    }
    for (name, mode, ends) in [("plain", 0o755, false), ("privileged", 0o4755, true), ("unreadable", 0o711, true)] {
        let path = program(name, mode);
        let (child, go) = waiting(|| {
            become_nobody();
            let arguments = [path.as_ptr(), std::ptr::null()];
            // SAFETY: the path and the list of arguments end with a null.
            unsafe { libc::execv(path.as_ptr(), arguments.as_ptr()) };
            panic!("exec: {}", last_errno());
        });
        let ring = alone(child.pid, false, RING)?;
        tracee::exec_stop(child.pid, &go);
        let hung_up = cowbell::sys::pidfd::readable(ring.as_fd(), Some(std::time::Duration::ZERO)).expect("poll");
        assert_eq!(hung_up, ends, "{name}: after the exec");
        let anew = alone(child.pid, false, RING)?;
        tracee::end(child.pid);
        let [old, new] = [&ring, &anew].map(|ring| ring.event().counts().expect("counts").faults);
        assert!(new > 20, "{name}: the program takes page faults: {new}");
        assert_eq!(old >= new, !ends, "{name}: {old} told by the event from before, {new} by the new one");
    }
    Ok(())
}

fn code_mapped_later_is_told_in_its_turn() -> Verdict {
    let memory = Memory::new(Kind::PrivateFile, 8)?;
    let (child, go) = waiting(|| {
        let executable = |page: usize, flags: i32| {
            let at = std::ptr::with_exposed_provenance_mut(memory.at(page).start);
            // SAFETY: the page is this child's, and nobody refers into it.
            unsafe { libc::mprotect(at, memory.page.bytes(), flags) }
        };
        store(&memory, 0, 0);
        assert_eq!(executable(1, libc::PROT_READ | libc::PROT_EXEC), 0, "mprotect: {}", last_errno());
        store(&memory, 2, 0);
        assert_eq!(executable(3, libc::PROT_READ), 0);
        memory.unmap(memory.at(4)).expect("munmap");
    });
    let mut rings = tree(child.pid)?;
    let pid = child.pid;
    go.open();
    child.finish();
    let mut found = Vec::new();
    rings.drain(|record| match record {
        Record::Fault(fault) => found.push((fault.time_ns, fault.address, None)),
        Record::Mapped(code) => {
            found.push((code.time_ns, code.start, Some((code.pid, code.len, code.offset, code.inode))))
        }
        // Processes and threads that come and go.
        Record::Other => {}
        record => panic!("{record:?}"),
    });
    found.sort_unstable();
    found.retain(|(_, address, _)| memory.range.start as u64 <= *address && *address < memory.range.end() as u64);
    let at = |page: usize| memory.at(page).start as u64;
    let inode = rustix::fs::fstat(memory.file()).expect("fstat").st_ino;
    let bytes = memory.page.bytes() as u64;
    let told: Vec<_> = found.into_iter().map(|(_, address, code)| (address, code)).collect();
    assert_eq!(told, [(at(0), None), (at(1), Some((pid, bytes, bytes, inode))), (at(2), None)]);
    Ok(())
}

fn fault_ring_is_not_inherited() -> Verdict {
    let mut ring = alone(0, false, RING)?;
    let maps = || std::fs::read_to_string("/proc/self/maps").expect("maps").matches("[perf_event]").count();
    assert_eq!(maps(), 1, "here");
    let found = child::compute(|| {
        // Before the memory is touched: a ring that came over the fork reads none.
        ring.drain(|record| panic!("{record:?}"));
        maps() as u64
    });
    assert_eq!(found, 0, "not in the child");
    let memory = Memory::new(Kind::Anonymous, 1)?;
    store(&memory, 0, 0);
    let mut in_thread = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| in_thread = faults(&memory, |seen| ring.drain(seen)));
    });
    assert_eq!(in_thread.len(), 1, "in a thread");
    drop(ring);
    assert_eq!(maps(), 0, "unmapped");
    Ok(())
}

fn fault_event_wakes_at_its_watermark_and_hangs_up_at_the_end() -> Verdict {
    const PAGES: usize = 2000;
    let memory = Memory::marked(Kind::Anonymous, PAGES)?;
    let (done, rest) = (Gate::new(), Gate::new());
    let (child, go) = waiting(|| {
        (0..PAGES).for_each(|page| store(&memory, page, 0));
        done.open();
        rest.pass();
    });
    let mut rings = tree(child.pid)?;
    let stop = Gate::new();
    go.open();
    let mut waiter = rings.waiter().expect("descriptors");
    assert_eq!(waiter.wait(stop.as_fd(), None), Ok(Woken::Records), "2,000 records are more than a quarter");
    done.pass();
    let mut told = 0;
    rings.drain(|_| told += 1);
    assert!(told >= PAGES, "{told}");
    rest.open();
    child.finish();
    stop.open();
    assert_eq!(waiter.wait(stop.as_fd(), None), Ok(Woken::Stop), "a hang-up is no record");
    Ok(())
}

/// The rings of a process and its threads, as they come.
fn of_process(pid: i32) -> Result<Rings, Skip> {
    let mut rings = Rings::prepare(Follow::Process);
    rings.open_prepared(pid, RING).map_err(|e| refused(e.call, e.errno))?;
    Ok(rings)
}

fn fault_event_of_a_process_leaves_out_its_children_and_ends_at_exec() -> Verdict {
    let memory = Memory::marked(Kind::Anonymous, 4)?;
    let (written, on) = (Gate::new(), Gate::new());
    let path = program("executed", 0o755);
    let (child, go) = waiting(|| {
        child::spawn(|| store(&memory, 1, 0)).finish();
        std::thread::scope(|scope| drop(scope.spawn(|| store(&memory, 2, 0))));
        store(&memory, 0, 0);
        written.open();
        on.pass();
        let arguments = [path.as_ptr(), std::ptr::null()];
        // SAFETY: the path and the list of arguments end with a null.
        unsafe { libc::execv(path.as_ptr(), arguments.as_ptr()) };
        panic!("exec: {}", last_errno());
    });
    let mut rings = of_process(child.pid)?;
    go.open();
    written.pass();
    let mut found: Vec<_> = faults(&memory, |seen| rings.drain(seen)).iter().map(|&(page, _)| page).collect();
    found.sort_unstable();
    assert_eq!(found, [0, 2], "the thread's and its own");
    tracee::exec_stop(child.pid, &on);
    rings.drain(|_| {});
    let anew = alone(child.pid, false, RING)?;
    tracee::end(child.pid);
    let executed = anew.event().counts().expect("counts").faults;
    assert!(executed > 20, "the program takes page faults: {executed}");
    rings.drain(|record| panic!("{record:?}"));
    Ok(())
}

fn fault_tells_the_programs_registers() -> Verdict {
    let memory = Memory::marked(Kind::Anonymous, 4)?;
    let file = memfd::create("registers-claim").expect("memfd_create");
    memfd::set_len(file.as_fd(), 8).expect("ftruncate");
    let (child, go) = waiting(|| {
        store(&memory, 1, 7);
        let at = std::ptr::with_exposed_provenance_mut::<u8>(memory.at(2).start);
        // SAFETY: the page is this child's, and nobody else refers into it.
        let page = unsafe { std::slice::from_raw_parts_mut(at, 8) };
        assert_eq!(memfd::read_at(&file, page, 0), Ok(8));
    });
    let mut rings = of_process(child.pid)?;
    let tell_kernel = rings.tell_kernel();
    go.open();
    child.finish();
    let found = faults(&memory, |seen| rings.drain(seen));
    assert_eq!(found.len(), if tell_kernel { 2 } else { 1 });
    for (page, fault) in found {
        let registers = fault.registers.expect("registers");
        assert_ne!(registers.sp, 0);
        if page == 1 {
            assert_eq!(registers.pc, fault.ip, "the instruction");
            #[cfg(target_arch = "x86_64")]
            assert_eq!((registers.destination, registers.source & 0xff), (memory.at(1).start as u64 + 7, 200));
        } else {
            assert_ne!(registers.pc, fault.ip, "the kernel's own");
            #[cfg(target_arch = "x86_64")]
            assert_eq!(registers.source, memory.at(2).start as u64, "pread's buffer");
        }
    }
    Ok(())
}

fn fault_is_told_before_its_page_is_a_copy(kind: Kind) -> Verdict {
    const PAGES: usize = 4000;
    let memory = Memory::new(kind, PAGES)?;
    memory.fill();
    let end = Gate::new();
    let (child, go) = waiting(|| {
        (0..PAGES).for_each(|page| store(&memory, page, 0));
        end.pass();
    });
    let mut rings = Rings::prepare(Follow::Process);
    rings.open_prepared(child.pid, 1 << 20).map_err(|e| refused(e.call, e.errno))?;
    if rings.bytes() < 2 * 88 * PAGES {
        return Err(Skip("rings for all faults may not be locked".to_owned()));
    }
    let pagemap = cowbell::sys::pagemap::Pagemap::open(child.pid).expect("pagemap");
    let mut told = std::collections::BTreeSet::new();
    let mut between = 0;
    go.open();
    loop {
        let mut copied = Vec::new();
        pagemap
            .read_copied(memory.range, false, |run| copied.push((run.start - memory.range.start) / memory.page.bytes()))
            .expect("pagemap");
        told.extend(faults(&memory, |seen| rings.drain(seen)).iter().map(|&(page, _)| page));
        let untold: Vec<_> = copied.iter().filter(|page| !told.contains(page)).collect();
        assert!(untold.is_empty(), "copies without a fault: {untold:?}");
        between += usize::from(!copied.is_empty() && copied.len() < PAGES);
        if copied.len() == PAGES {
            break;
        }
    }
    end.open();
    child.finish();
    // On a busy machine the child may write all pages between two looks; then this has shown the last look only.
    eprintln!("{between} looks while it wrote");
    assert_eq!(told.len(), PAGES);
    Ok(())
}

/// The faults that the kernel has counted for this thread.
fn faults_of_this_thread() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: it writes one rusage, and there is room for one.
    let done = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    assert_eq!(done, 0, "getrusage: {}", last_errno());
    // SAFETY: zeroes are a valid rusage, and the call has filled it.
    let usage = unsafe { usage.assume_init() };
    (usage.ru_minflt + usage.ru_majflt) as u64
}

fn write_by_another_process_has_no_fault_record(kind: Kind) -> Verdict {
    let memory = Memory::new(kind, 4)?;
    memory.fill();
    let (read, end) = (Gate::new(), Gate::new());
    let (child, go) = waiting(|| {
        memory.touch(1);
        read.open();
        end.pass();
        assert_eq!([1, 3].map(|page| memory.load(page)), [9, 9]);
    });
    let mut ring = alone(child.pid, false, RING)?;
    go.open();
    read.pass();
    let bytes = [9u8; 1];
    let of_writer = alone(process::tid(), false, RING)?;
    let of_writer = of_writer.event();
    let before = (faults_of_this_thread(), of_writer.counts().expect("its counts").faults);
    for page in [1, 3] {
        let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: 1 };
        let place = std::ptr::with_exposed_provenance_mut(memory.at(page).start);
        let remote = libc::iovec { iov_base: place, iov_len: 1 };
        // SAFETY: it reads a byte of ours and writes to the child's memory.
        let sent = unsafe { libc::process_vm_writev(child.pid, &raw const local, 1, &raw const remote, 1, 0) };
        assert_eq!(sent, 1, "process_vm_writev: {}", last_errno());
    }
    let (told, counted) = (of_writer.counts().expect("its counts").faults, faults_of_this_thread());
    assert_eq!(counted - before.0 - (told - before.1), 2, "the two, and what else was told");
    end.open();
    child.finish();
    let told: Vec<_> = faults(&memory, |seen| ring.drain(seen)).iter().map(|&(page, _)| page).collect();
    assert_eq!(told, [1], "the read, and nothing of the writes");
    Ok(())
}
