//! Events of page faults over the life of a process: what is mapped later, forks, ends, and what a fault tells of its writer.
//!
//! # Safety
//! Stores go to a [`Memory`], in children that do nothing else; a child gives up its user for good.
#![expect(unsafe_code, reason = "claims about stores and system calls")]

use crate::child::{self, Gate};
use crate::claim::{Claim, Skip, Verdict, claim};
use crate::memory::{Kind, Memory, last_errno};
use crate::perf::{RING, alone, faults, refused, store, tree, waiting};
use crate::perf_rights::program;
use crate::tracee;
use cowbell::sys::perf::Follow;
use cowbell::sys::perf::record::RingRecord;
use cowbell::sys::perf::rings::{Rings, Woken};
use cowbell::sys::{memfd, process};
use std::os::fd::AsFd;

pub const CLAIMS: &[Claim] = &[
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
        RingRecord::Fault(fault) => found.push((fault.time_ns, fault.address, None)),
        RingRecord::Mapped(code) => {
            found.push((code.time_ns, code.start, Some((code.pid, code.len, code.offset, code.inode))))
        }
        // Processes and threads that come and go.
        RingRecord::Other => {}
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
