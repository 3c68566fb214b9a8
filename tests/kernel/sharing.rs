//! A process that shares another's memory (`CLONE_VM`): what it sees of it, what is its own, and when it ends.
//!
//! # Safety
//! The sharer runs on a stack of its own with its maker's thread-local storage, so it only makes raw
//! system calls; what it uses lies in memory that is never unmapped.
#![expect(unsafe_code, reason = "a process is made in shared memory")]

use crate::child::{self, Child, Gate};
use crate::claim::{Claim, Need, Skip, Verdict, claim};
use crate::ending::Program;
use crate::evidence::{self, pages};
use crate::memory::{Kind, Memory, last_errno, mark};
use cowbell::sys::map::Access;
use cowbell::sys::pagemap::{COPIED, Pagemap};
use cowbell::sys::pidfd::{self};
use cowbell::sys::shared_words::SharedWords;
use cowbell::sys::signal::{self, Mask};
use cowbell::sys::{Errno, clone, descriptor, memfd, pipe, process, procfs};
use std::cell::OnceCell;
use std::ffi::c_void;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub const CLAIMS: &[Claim] = &[
    claim!(
        sharer_finds_its_id_when_it_begins,
        "`CLONE_PARENT_SETTID` stores the id of a `CLONE_VM` sibling before the sibling runs: it finds its own there."
    ),
    claim!(
        sharer_reads_the_others_memory_through_its_own_proc_mem,
        "A `CLONE_VM` sibling reads the other's memory through its own `/proc/self/mem`: also pages that the other has made `PROT_NONE` since, and after the other's death."
    ),
    claim!(
        sharers_pagemap_is_the_others,
        "The pagemaps of a `CLONE_VM` sibling and of the other are the same, entry by entry, also after later writes of the other."
    ),
    claim!(
        sharer_keeps_the_memory_of_one_that_executed,
        "After `exec` of the other the `CLONE_VM` sibling has the memory from before: copies, content, and a pagemap opened before."
    )
    .needs(&[Need::Scan]),
    claim!(
        sharer_has_descriptors_and_a_signal_mask_of_its_own,
        "A `CLONE_VM` sibling has its own table of descriptors (what it closes stays open for the other, and what it keeps delays an end of file) and starts with its maker's signal mask, which then is its own."
    ),
];

pub type Job = Box<dyn Fn(&[AtomicU64]) -> i32>;

struct Task {
    job: Job,
    words: &'static SharedWords,
}

extern "C" fn enter(task: *mut c_void) -> i32 {
    // SAFETY: `pair` passes a task that is never dropped.
    let task = unsafe { &*task.cast::<Task>() };
    (task.job)(task.words.words())
}

pub fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// A child that has copied pages 1 and 2 of a memory, and a process that shares the child's memory.
pub struct Pair {
    pub maker: Child,
    pub sharer: i32,
    pub words: &'static SharedWords,
    /// Lets the maker go on.
    pub next: &'static Gate,
    /// Opened by the maker when it is done.
    pub did: &'static Gate,
    pub dialogue: Dialogue,
}

/// Harness and sharer talk through two gates: the sharer answers each question with words.
#[derive(Clone, Copy)]
pub struct Dialogue {
    pub question: &'static Gate,
    pub answer: &'static Gate,
}

impl Dialogue {
    pub fn new() -> Self {
        Self { question: leak(Gate::new()), answer: leak(Gate::new()) }
    }

    pub fn ask(self) {
        self.question.open();
        self.answer.pass();
    }
}

/// Forks the maker. It runs `before`, makes the sharer, and then runs `then` each time it is let go on.
pub fn pair(
    memory: &'static Memory,
    dialogue: Dialogue,
    before: impl FnOnce(),
    job: Job,
    mut then: impl FnMut(),
) -> Result<Pair, Skip> {
    let stack = Memory::new(Kind::Anonymous, 64)?.range;
    let (next, did) = (leak(Gate::new()), leak(Gate::new()));
    let words: &'static SharedWords = leak(SharedWords::new(512).expect("a shared page"));
    let tid: &'static SharedWords = leak(SharedWords::new(1).expect("a shared page"));
    let task: &'static Task = leak(Task { job, words });
    let maker = child::spawn(|| {
        memory.store(1, 201);
        memory.store(2, 202);
        before();
        let argument = std::ptr::from_ref(task).cast_mut().cast();
        // SAFETY: jobs make raw calls only; task and stack are never freed.
        unsafe { clone::share_memory(enter, argument, stack, &tid.words()[0]) }.expect("clone");
        loop {
            did.open();
            next.pass();
            then();
        }
    });
    did.pass();
    let sharer = tid.words()[0].load(Ordering::SeqCst) as u32 as i32;
    assert!(sharer > 0 && sharer != maker.pid, "the kernel stored the sharer's id");
    Ok(Pair { maker, sharer, words, next, did, dialogue })
}

impl Pair {
    /// Lets the maker do the next thing and waits until it is done.
    pub fn step(&self) {
        self.next.open();
        self.did.pass();
    }

    /// The sharer's answer now, in its first words.
    pub fn ask(&self, count: usize) -> Vec<u64> {
        self.dialogue.ask();
        self.words.words()[..count].iter().map(|word| word.load(Ordering::SeqCst)).collect()
    }
}

/// Reads the first byte of each page through a memory file; 1000 and the errno where that fails.
fn read_each(file: impl AsFd, memory: &Memory, words: &[AtomicU64]) {
    for (page, word) in (0..memory.pages()).zip(words) {
        let mut byte = [0];
        let read = memfd::read_at(file.as_fd(), &mut byte, memory.at(page).start as u64);
        let value = match read {
            Ok(1) => u64::from(byte[0]),
            Ok(_) => 999,
            Err(e) => 1000 + e.raw_os_error() as u64,
        };
        word.store(value, Ordering::SeqCst);
    }
}

/// A job that reads its own `/proc/self/mem`, opened at its beginning, each time it is asked. It holds nothing
/// else open, so that others see the ends of their pipes.
pub fn reader_of_memory(memory: &'static Memory, dialogue: Dialogue) -> Job {
    Box::new(move |words| {
        let Ok(file) = procfs::signal_safe::open_memory() else { return 1 };
        let kept =
            [descriptor::number(&file), descriptor::number(dialogue.question), descriptor::number(dialogue.answer)];
        // SAFETY: the sharer uses no other descriptors.
        if unsafe { descriptor::close_all_but(&[&kept]) }.is_err() {
            return 2;
        }
        loop {
            dialogue.question.pass();
            read_each(&file, memory, words);
            dialogue.answer.open();
        }
    })
}

/// `process_vm_readv` of one byte, which respects protections.
fn peek(pid: i32, address: usize) -> Result<u8, Errno> {
    let mut byte = 0u8;
    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(address), iov_len: 1 };
    // SAFETY: `local` is a byte of ours, the remote side is checked by the kernel.
    let got = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    if got == 1 { Ok(byte) } else { Err(last_errno()) }
}

fn sharer_reads_the_others_memory_through_its_own_proc_mem() -> Verdict {
    let memory: &'static Memory = leak(Memory::marked(Kind::PrivateMemfd, 4)?);
    let closed = Memory::marked(Kind::Anonymous, 1)?;
    closed.protect(closed.range, Access::None).expect("mprotect");
    let own = procfs::signal_safe::open_memory().expect("/proc/self/mem");
    if memfd::read_at(&own, &mut [0], closed.range.start as u64) == Err(Errno::IO) {
        return Err(Skip("this kernel was told to refuse it (proc_mem.force_override)".to_owned()));
    }
    let dialogue = Dialogue::new();
    let close = || memory.protect(memory.span(1, 3), Access::None).expect("mprotect");
    let pair = pair(memory, dialogue, || (), reader_of_memory(memory, dialogue), close)?;
    let theirs = [u64::from(mark(0)), 201, 202, u64::from(mark(3))];
    assert_eq!(pair.ask(4), theirs, "before");
    pair.step();
    assert_eq!(pair.ask(4), theirs, "PROT_NONE");
    // The protection is real for who asks politely, and the other's memory is not the harness's.
    assert_eq!(peek(pair.maker.pid, memory.at(0).start), Ok(mark(0)), "left readable");
    assert_eq!(peek(pair.maker.pid, memory.at(1).start), Err(Errno::FAULT), "PROT_NONE");
    let words = SharedWords::new(4).expect("a shared page");
    read_each(&own, memory, words.words());
    assert_eq!(words.words()[1].load(Ordering::SeqCst), u64::from(mark(1)), "one's own memory");
    let Pair { maker, words, .. } = pair;
    maker.kill();
    dialogue.ask();
    let after: Vec<_> = words.words()[..4].iter().map(|word| word.load(Ordering::SeqCst)).collect();
    assert_eq!(after, theirs, "the other is dead and reaped");
    Ok(())
}

/// Tells whether the first of two words is this process's id: 1 or 2, in the second.
extern "C" fn compare_id(words: *mut c_void) -> i32 {
    // SAFETY: they are never unmapped.
    let words = unsafe { &*words.cast::<SharedWords>() }.words();
    let is_own = words[0].load(Ordering::SeqCst) as u32 as i32 == process::tid();
    words[1].store(if is_own { 1 } else { 2 }, Ordering::SeqCst);
    0
}

fn sharer_finds_its_id_when_it_begins() -> Verdict {
    let words: &'static SharedWords = leak(SharedWords::new(2).expect("a shared page"));
    let [cell, verdict, ..] = words.words() else { unreachable!("a page holds two words") };
    let stacks = Memory::new(Kind::Anonymous, 100 * 16)?;
    child::spawn(|| {
        for n in 0..100 {
            cell.store(0, Ordering::SeqCst);
            verdict.store(0, Ordering::SeqCst);
            let argument = std::ptr::from_ref(words).cast_mut().cast();
            // SAFETY: it makes raw calls only, on a stack of its own; what it uses is never freed.
            unsafe { clone::share_memory(compare_id, argument, stacks.span(n * 16, 16), cell) }.expect("clone");
            while verdict.load(Ordering::SeqCst) == 0 {
                process::yield_now();
            }
            assert_eq!(verdict.load(Ordering::SeqCst), 1, "sharer {n}");
        }
    })
    .finish();
    Ok(())
}

/// All words of a pagemap for a memory.
fn entries(pid: i32, memory: &Memory) -> Vec<u64> {
    let mut all = Vec::new();
    let pagemap = Pagemap::open(pid).expect("pagemap");
    pagemap.read(memory.range, |_, entry| all.push(entry.bits())).expect("read of pagemap");
    all
}

fn sharers_pagemap_is_the_others() -> Verdict {
    let memory: &'static Memory = leak(Memory::marked(Kind::PrivateMemfd, 16)?);
    let dialogue = Dialogue::new();
    let write = || {
        memory.store(7, 207);
        memory.touch(9);
    };
    let pair = pair(memory, dialogue, || (), reader_of_memory(memory, dialogue), write)?;
    let before = entries(pair.maker.pid, memory);
    assert_eq!(entries(pair.sharer, memory), before, "the same");
    pair.step();
    let after = entries(pair.maker.pid, memory);
    assert_eq!(entries(pair.sharer, memory), after, "the same after a write");
    assert_ne!(after, before, "the write shows");
    assert_ne!(entries(process::pid(), memory), after, "a process that shares nothing has others");
    Ok(())
}

fn sharer_keeps_the_memory_of_one_that_executed() -> Verdict {
    let memory: &'static Memory = leak(Memory::marked(Kind::PrivateMemfd, 4)?);
    let program = Program::new("/proc/self/exe".into());
    let dialogue = Dialogue::new();
    let pair = pair(memory, dialogue, || (), reader_of_memory(memory, dialogue), || program.become_it())?;
    let copies = |pagemap: &Pagemap| evidence::scan(pagemap, memory, &COPIED);
    let before = Pagemap::open(pair.maker.pid).expect("pagemap");
    assert_eq!(copies(&before), pages([1, 2]), "before");
    pair.next.open();
    program.wait_for_exec();
    assert_eq!(copies(&Pagemap::open(pair.maker.pid).expect("pagemap")), pages([]), "the other has new memory");
    assert_eq!(copies(&Pagemap::open(pair.sharer).expect("pagemap")), pages([1, 2]), "the sharer has the old");
    assert_eq!(copies(&before), pages([1, 2]), "a pagemap opened before");
    assert_eq!(pair.ask(4), [u64::from(mark(0)), 201, 202, u64::from(mark(3))], "content");
    Ok(())
}

/// `SigBlk` of a process.
fn blocked_signals(pid: i32) -> u64 {
    cowbell::sys::procfs::status::Status::of(pid).expect("status").bits("SigBlk").expect("a mask")
}

fn sharer_has_descriptors_and_a_signal_mask_of_its_own() -> Verdict {
    for closes in [true, false] {
        let memory: &'static Memory = leak(Memory::marked(Kind::PrivateMemfd, 4)?);
        let dialogue = Dialogue::new();
        let (read, write) = pipe::pair().expect("pipe");
        let job: Job = Box::new(move |words| {
            let kept = [descriptor::number(dialogue.question), descriptor::number(dialogue.answer)];
            // SAFETY: the sharer uses no other descriptors.
            let closed = closes && unsafe { descriptor::close_all_but(&[&kept]) }.is_ok();
            loop {
                dialogue.question.pass();
                words[0].store(u64::from(closed), Ordering::SeqCst);
                dialogue.answer.open();
            }
        });
        let mask: &'static OnceCell<Mask> = leak(OnceCell::new());
        let block = || assert!(mask.set(signal::block_all()).is_ok(), "once");
        let mut first = true;
        let mut write = Some(write);
        let unblock_write_and_close = move || {
            if std::mem::take(&mut first) {
                signal::restore(mask.get().expect("set before"));
                pipe::give_byte(write.as_ref().expect("open still"));
            } else {
                write = None;
            }
        };
        let pair = pair(memory, dialogue, block, job, unblock_write_and_close)?;
        assert_eq!(pair.ask(1), [u64::from(closes)], "close_range in the sharer");
        assert_ne!(blocked_signals(pair.sharer), 0, "the mask came along");
        assert_eq!(blocked_signals(pair.sharer), blocked_signals(pair.maker.pid), "and is the maker's");
        pair.step();
        assert_eq!(blocked_signals(pair.maker.pid), 0, "the maker unblocked");
        assert_ne!(blocked_signals(pair.sharer), 0, "the sharer has its own mask");
        assert!(pipe::take_byte(&read), "the maker's descriptor is open");
        pair.step();
        // The harness gave its own writer to the closure, which is gone here.
        let ended = pidfd::readable(read.as_fd(), Some(Duration::from_millis(100))).expect("poll");
        assert_eq!(ended, closes, "end of file once nobody holds it");
    }
    Ok(())
}
