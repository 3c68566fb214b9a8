//! Signal frames and threads' `/proc` files: how they tell where a thread is.
//!
//! # Safety
//! Handlers read their arguments, store into atomics, and make system calls on memory of the case.
#![expect(unsafe_code, reason = "signal handlers are called by the kernel")]

use crate::child::{self, Gate};
use crate::claim::{Claim, Need, Verdict, claim};
use crate::memory::{self, Kind, Memory, mark};
use crate::watcher::{self, SIGBUS};
use cowbell::sys::map::{Access, Range};
use cowbell::sys::pidfd::Ended;
use cowbell::sys::signal::{self, Info, MemoryFault};
use cowbell::sys::{descriptor, memfd, pipe, process, procfs, uffd};
use rustix::io::Errno;
use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};

pub const CLAIMS: &[Claim] = &[
    claim!(
        sigbus_of_a_watch_says_where_and_that_it_was_a_write,
        "A SIGBUS by `UFFD_FEATURE_SIGBUS` has BUS_ADRERR, the address to the byte, the store's program counter and, on x86-64, bit 1 of the error code (a write); reading behind a file's end is the same without the bit, and one sent by `kill` is SI_USER."
    )
    .needs(&[Need::Uffd]),
    claim!(
        handler_lifts_the_protection_and_the_write_happens,
        "The SIGBUS handler can lift the protection of the page itself, on the writing thread; when it returns, the write happens, and one page is one signal."
    )
    .needs(&[Need::Uffd]),
    claim!(
        blocked_sigbus_kills_the_writer,
        "A thread that blocks SIGBUS dies of its write to a page armed with `UFFD_FEATURE_SIGBUS`, handler or not."
    )
    .needs(&[Need::Uffd]),
    claim!(
        sigsegv_says_where_and_whether_it_was_a_write,
        "A SIGSEGV on a mapping that forbids the access has SEGV_ACCERR, the address to the byte, the program counter of the access and, on x86-64, bit 1 of the error code for a write and not for a read; where nothing is mapped it is SEGV_MAPERR."
    ),
    claim!(
        state_of_a_thread_is_made_anew_by_each_read,
        "Each pread at offset 0 of one open `/proc/PID/task/TID/syscall` shows the thread's state at that moment (`running` while it runs), and fails once the thread has ended."
    ),
];

/// The values that the handler saw.
static SEEN: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];
const COUNT: usize = 0;
const CODE: usize = 1;
const ADDRESS: usize = 2;
const WRITE: usize = 3;
const PC: usize = 4;
const THREAD: usize = 5;

fn seen(what: usize) -> u64 {
    SEEN[what].load(Ordering::SeqCst)
}

/// Notes the frame as the kernel made it.
fn note(info: *mut Info, context: *mut c_void) {
    // SAFETY: these are a SA_SIGINFO handler's own arguments.
    let fault = unsafe { MemoryFault::read(info, context) };
    // SAFETY: as above.
    let code = unsafe { (*info).si_code };
    let write = fault.write.map_or(2, u64::from);
    for (at, value) in [
        (CODE, code as i64 as u64),
        (ADDRESS, fault.address as u64),
        (WRITE, write),
        (PC, fault.registers.pc),
        (THREAD, process::tid() as u64),
    ] {
        SEEN[at].store(value, Ordering::SeqCst);
    }
    SEEN[COUNT].fetch_add(1, Ordering::SeqCst);
}

/// The values that the frame should show: code, address and write of [`fault_in_child`], and the program counter.
static EXPECTED: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

unsafe extern "C" {
    /// Stores a byte; its first instruction is the store. It is the one of the claims about processes.
    fn cowbell_claim_store(address: usize, byte: u32);
}

/// A store at a known instruction, in a child that expects a fault there.
fn store_at_known_instruction(address: usize) {
    EXPECTED[3].store(cowbell_claim_store as *const () as u64, Ordering::SeqCst);
    // SAFETY: the address lies in a memory of the case.
    unsafe { cowbell_claim_store(address, 200) };
}

/// Exits with 0 if the frame is as expected, else with what is not.
extern "C" fn exit_with_comparison(_: i32, info: *mut Info, context: *mut c_void) {
    note(info, context);
    let [code, address, write, pc] = EXPECTED.each_ref().map(|word| word.load(Ordering::SeqCst));
    let differs = [
        seen(CODE) != code,
        address != 0 && seen(ADDRESS) != address,
        // 2: nothing is known, or nothing expected.
        write != 2 && seen(WRITE) != 2 && seen(WRITE) != write,
        pc != 0 && seen(PC) != pc,
    ];
    process::exit(differs.iter().position(|&differs| differs).map_or(0, |at| at as i32 + 1))
}

/// The exit status of a child that expects a fault: 0 as expected, 1 another code, 2 another address, 3 read for write,
/// 4 another instruction.
fn fault_in_child(signal: i32, (code, address, write): (i32, usize, u64), act: impl FnOnce()) -> Ended {
    child::spawn(|| {
        for (word, value) in EXPECTED.iter().zip([code as i64 as u64, address as u64, write]) {
            word.store(value, Ordering::SeqCst);
        }
        // SAFETY: the handler makes system calls and ends the process.
        unsafe { signal::install(signal, exit_with_comparison) }.expect("sigaction");
        act();
        process::exit(99);
    })
    .wait()
}

fn kill_oneself(signal: i32) {
    // SAFETY: sending oneself a signal touches no memory.
    unsafe { libc::kill(process::pid(), signal) };
}

fn sigbus_of_a_watch_says_where_and_that_it_was_a_write() -> Verdict {
    for kind in [Kind::PrivateMemfd, Kind::Anonymous] {
        for touched in [false, true] {
            let memory = Memory::marked(kind, 4)?;
            if touched {
                memory.load_all();
            }
            let at = memory.at(1).start + 123;
            let ended = fault_in_child(signal::BUS, (libc::BUS_ADRERR, at, 1), || {
                let uffd = watcher::any(SIGBUS).expect("userfaultfd");
                watcher::arm(&uffd, &memory);
                store_at_known_instruction(at);
            });
            assert_eq!(ended, Ended::Exited(0), "{kind}, touched: {touched}");
        }
    }
    // The controls: another SIGBUS by an access, which is a read, and one by a process.
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    memfd::set_len(memory.file(), memory.page.bytes() as u64).expect("ftruncate");
    let at = memory.at(1).start;
    let behind_the_end = |write| {
        fault_in_child(signal::BUS, (libc::BUS_ADRERR, at, write), || {
            memory.touch(1);
        })
    };
    assert_eq!(behind_the_end(0), Ended::Exited(0), "a read behind the end");
    if cfg!(target_arch = "x86_64") {
        assert_eq!(behind_the_end(1), Ended::Exited(3), "which is told from a write");
    }
    let sent = |code| fault_in_child(signal::BUS, (code, 0, 2), || kill_oneself(signal::BUS));
    assert_eq!(sent(libc::SI_USER), Ended::Exited(0), "sent by kill");
    assert_eq!(sent(libc::BUS_ADRERR), Ended::Exited(1), "which is told from an access");
    Ok(())
}

/// The userfaultfd that [`lift`] uses.
static LIFTER: AtomicI32 = AtomicI32::new(-1);

/// Notes the fault and lifts the protection of its page.
extern "C" fn lift(_: i32, info: *mut Info, context: *mut c_void) {
    note(info, context);
    let page = cowbell::sys::page_size();
    let range = Range { start: page.round_down(seen(ADDRESS) as usize), len: page.bytes() };
    // SAFETY: the case holds the userfaultfd open while its memory is armed.
    let fd = unsafe { BorrowedFd::borrow_raw(LIFTER.load(Ordering::SeqCst)) };
    // SAFETY: the page lies in the memory.
    if unsafe { uffd::write_protect(fd, range, false) }.is_err() {
        process::exit(98);
    }
}

fn handler_lifts_the_protection_and_the_write_happens() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    memory.touch(2);
    let uffd = watcher::any(SIGBUS).expect("userfaultfd");
    watcher::arm(&uffd, &memory);
    LIFTER.store(descriptor::number(&uffd), Ordering::SeqCst);
    // SAFETY: the handler makes system calls and stores into atomics.
    unsafe { signal::install(signal::BUS, lift) }.expect("sigaction");
    for (page, count) in [(1, 1), (2, 2)] {
        let thread = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                memory.store(page, 200);
                memory.store(page, 201);
                process::tid()
            });
            writer.join().expect("the writer")
        });
        assert_eq!((memory.load(page), memory.in_file(page)), (201, mark(page)), "the write happened");
        assert_eq!(seen(COUNT), count, "one signal a page");
        assert_eq!(seen(THREAD), thread as u64, "on the writing thread");
        assert_ne!(seen(PC), 0);
    }
    assert_eq!(memory.load(3), mark(3), "reading is no signal");
    assert_eq!(seen(COUNT), 2);
    Ok(())
}

fn blocked_sigbus_kills_the_writer() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    let writer = |blocks: bool| {
        child::spawn(|| {
            let uffd = watcher::any(SIGBUS).expect("userfaultfd");
            watcher::arm(&uffd, &memory);
            LIFTER.store(descriptor::number(&uffd), Ordering::SeqCst);
            // SAFETY: the handler makes system calls and stores into atomics.
            unsafe { signal::install(signal::BUS, lift) }.expect("sigaction");
            if blocks {
                signal::block_all();
            }
            memory.store(1, 200);
            assert_eq!((memory.load(1), seen(COUNT)), (200, 1));
        })
        .wait()
    };
    assert_eq!(writer(true), Ended::Signaled(libc::SIGBUS), "blocked");
    assert_eq!(writer(false), Ended::Exited(0), "not blocked");
    Ok(())
}

fn sigsegv_says_where_and_whether_it_was_a_write() -> Verdict {
    /// `SEGV_MAPERR` and `SEGV_ACCERR` of asm-generic/siginfo.h.
    const MAPERR: i32 = 1;
    const ACCERR: i32 = 2;
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    memory.load_all();
    memory.protect(memory.at(1), Access::Read).expect("mprotect");
    memory.protect(memory.at(2), Access::None).expect("mprotect");
    memory.unmap(memory.at(3)).expect("munmap");
    let segv = |expected, act: &dyn Fn()| fault_in_child(signal::SEGV, expected, act);
    let at = |page| memory.at(page).start;
    let write = || store_at_known_instruction(at(1) + 123);
    assert_eq!(segv((ACCERR, at(1) + 123, 1), &write), Ended::Exited(0), "a write where one may read");
    let other = || memory::store(at(1) + 123, 1);
    assert_eq!(segv((ACCERR, at(1) + 123, 1), &other), Ended::Exited(0), "the same from elsewhere");
    assert_eq!(segv((ACCERR, at(2), 0), &|| memory.touch(2)), Ended::Exited(0), "a read where one may not");
    assert_eq!(segv((ACCERR, at(2), 1), &|| memory.store(2, 1)), Ended::Exited(0), "a write there");
    assert_eq!(segv((MAPERR, at(3), 0), &|| memory.touch(3)), Ended::Exited(0), "nothing is mapped");
    // The comparison can fail, in each part.
    assert_eq!(segv((ACCERR, at(3), 0), &|| memory.touch(3)), Ended::Exited(1), "another code");
    assert_eq!(segv((ACCERR, at(1), 0), &|| memory.touch(2)), Ended::Exited(2), "another page");
    assert_eq!(segv((ACCERR, at(1), 1), &write), Ended::Exited(2), "another byte");
    let elsewhere = || {
        EXPECTED[3].store(cowbell_claim_store as *const () as u64, Ordering::SeqCst);
        memory.store(1, 1);
    };
    assert_eq!(segv((ACCERR, at(1), 1), &elsewhere), Ended::Exited(4), "another instruction");
    if cfg!(target_arch = "x86_64") {
        assert_eq!(segv((ACCERR, at(2), 1), &|| memory.touch(2)), Ended::Exited(3), "a read, not a write");
    }
    Ok(())
}

/// The word by which the spinning thread is told to stop.
static STOP: AtomicUsize = AtomicUsize::new(0);

fn state_of_a_thread_is_made_anew_by_each_read() -> Verdict {
    let (id, first, second, then) = (AtomicI32::new(0), Gate::new(), Gate::new(), Gate::new());
    let started = Gate::new();
    let (read, _held) = pipe::pair().expect("pipe");
    let syscall = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            id.store(process::tid(), Ordering::SeqCst);
            started.open();
            first.pass();
            while STOP.load(Ordering::SeqCst) == 0 {
                std::hint::spin_loop();
            }
            rustix::event::poll(
                &mut [
                    rustix::event::PollFd::from_borrowed_fd(second.as_fd(), rustix::event::PollFlags::IN),
                    rustix::event::PollFd::new(&read, rustix::event::PollFlags::IN),
                ],
                None,
            )
            .expect("poll");
            then.pass();
        });
        started.pass();
        let syscall = procfs::syscall::open(process::pid(), id.load(Ordering::SeqCst)).expect("its state");
        let now = || {
            let mut buffer = [0; 256];
            let got = rustix::io::pread(&syscall, &mut buffer, 0).expect("pread");
            String::from_utf8_lossy(&buffer[..got]).into_owned()
        };
        // The number of a system call, a state that the thread reaches soon, if the file follows it.
        let until = |state: &str| {
            while !now().starts_with(state) {
                process::yield_now();
            }
        };
        let number = |call: i64| format!("{call} 0x");
        until(&number(libc::SYS_read));
        assert!(procfs::syscall::blocked_at(&syscall).is_some_and(|(sp, pc)| sp != 0 && pc != 0), "{}", now());
        first.open();
        until("running");
        assert_eq!(procfs::syscall::blocked_at(&syscall), None, "it runs");
        STOP.store(1, Ordering::SeqCst);
        // rustix makes one or the other, by the architecture.
        while !now().starts_with(&number(libc::SYS_ppoll)) && !now().starts_with(&number(polling())) {
            process::yield_now();
        }
        second.open();
        until(&number(libc::SYS_read));
        then.open();
        thread.join().expect("the thread");
        syscall
    });
    // The thread is joined a little before it is gone.
    let gone = std::iter::repeat_with(|| rustix::io::pread(&syscall, &mut [0; 256], 0)).take(1_000_000);
    let errno = gone.filter_map(Result::err).next();
    assert_eq!(errno, Some(Errno::SRCH), "the thread has ended");
    assert_eq!(procfs::syscall::blocked_at(&syscall), None);
    Ok(())
}

#[cfg(target_arch = "x86_64")]
fn polling() -> i64 {
    libc::SYS_poll
}

#[cfg(not(target_arch = "x86_64"))]
fn polling() -> i64 {
    libc::SYS_ppoll
}
