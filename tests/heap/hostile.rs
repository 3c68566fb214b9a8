//! Faults that were found by trying to break the heap: alignments beyond reason, neighbours that take its addresses, a
//! freeze after one that failed, forks while threads begin and end.
#![expect(unsafe_code, reason = "an allocator's interface is unsafe, and a fork beside threads")]

use crate::freezing::Data;
use crate::memory::Block;
use crate::{Case, Numbers, cases};
use cowbell::fork::{self, ForkOptions};
use cowbell::heap::{Heap, hot};
use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeSet;
use std::hint::black_box;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

pub const CASES: &[Case] = cases![
    alignments_beyond_reason_are_met_or_null,
    addresses_that_others_have_are_passed_over,
    growth_beyond_reason_is_refused,
    a_pour_that_fails_half_way_leaves_the_heap_working,
    a_freeze_after_one_that_failed_holds_nothing_that_was_freed,
    children_forked_while_threads_begin_and_end_free_what_these_made,
    blocks_move_between_kinds,
];

fn alignments_beyond_reason_are_met_or_null() {
    for shift in 20..47 {
        for size in [1, 100_000, 70 << 20] {
            let layout = Layout::from_size_align(size, 1 << shift).expect("a layout");
            // SAFETY: the size is not 0.
            let at = unsafe { black_box(alloc(layout)) };
            if at.is_null() {
                assert!(shift > 38, "{layout:?}: the heap has room for this");
                continue;
            }
            assert!(at.addr().is_multiple_of(layout.align()), "{layout:?}");
            // SAFETY: it was just given.
            unsafe { at.write(1) };
            // SAFETY: as it was given.
            unsafe { dealloc(at, layout) };
            drop(Block::new(40, 8, 1));
        }
    }
}

/// Maps a page at an address where nothing is; false where something is.
fn settle_at(address: usize) -> bool {
    let at = std::ptr::without_provenance_mut(address);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: nothing is replaced.
    unsafe { libc::mmap(at, 1 << 16, libc::PROT_READ, flags, -1, 0) == at }
}

fn addresses_that_others_have_are_passed_over() {
    const CHUNK: usize = 64 << 20;
    let first = Block::new(16, 8, 1);
    let chunk = first.at.addr() / CHUNK * CHUNK;
    // In the middle of this chunk and at the start and in the middle of further ones; where the headers of two more are to be.
    assert!(settle_at(chunk + (40 << 20)) && settle_at(chunk + CHUNK) && settle_at(chunk + 3 * CHUNK + (8 << 20)));
    let header = |at: usize| chunk - (16 << 30) + (at << 16);
    assert!(settle_at(header(5)) && settle_at(header(8)));
    let mut numbers = Numbers(3);
    let mut blocks: Vec<_> = (0..6000).map(|at| Block::new(1 + numbers.below(200_000), 8, at as u8)).collect();
    blocks.push(Block::new(200 << 20, 8, 7));
    let generation = Heap::freeze().expect("a frozen heap");
    blocks.iter().for_each(|block| block.check(block.layout.size()));
    // SAFETY: the block is there, and nobody writes to it.
    assert!(generation.holds(unsafe { &*blocks[5999].at }));
    drop(blocks);
    // Free memory can still be given back.
    (0..20).for_each(|at| drop(Block::new(30 << 20, 8, at)));
    let before = crate::status_kib("VmRSS");
    drop((0..1000).map(|at| Block::new(150_000, 8, at as u8)).collect::<Vec<_>>());
    Heap::trim();
    let more = crate::status_kib("VmRSS").saturating_sub(before);
    assert!(more < 4 << 10, "{more} KiB are kept");
}

/// Sizes that wrap where units are counted: a vector believed that it had 256 TiB, and its neighbours' memory with them.
fn growth_beyond_reason_is_refused() {
    let mut numbers: Vec<Vec<u8>> = (0..40).map(|at| vec![at; 100_000]).collect();
    for units in (u64::from(u32::MAX) - 1100..=u64::from(u32::MAX) + 1100).chain([1 << 40, (1 << 47) - 1]) {
        let all = numbers.iter_mut().map(|each| each.try_reserve_exact((units << 16) as usize - each.len()));
        assert!(all.into_iter().all(|reserved| reserved.is_err()), "{units} units");
    }
    assert!(numbers.iter().zip(0..).all(|(each, at)| each.len() == 100_000 && each.iter().all(|&byte| byte == at)));
}

fn a_pour_that_fails_half_way_leaves_the_heap_working() {
    let data = Data::new(100_000);
    // Every other one is freed afterwards: their places are to be used again.
    let mut boxes: Vec<_> = (0..20_000u64).map(|n| Some(Box::new([n; 12]))).collect();
    let large: Vec<Vec<u8>> = (0..20).map(|n| vec![n + 1; 3 << 20]).collect();
    refuse_writes(32 << 20..48 << 20, 0);
    let error = Heap::freeze().expect_err("there is no room for all of it");
    assert_eq!(error.errno(), Some(libc::ENOSPC), "{error}");
    assert!(error.to_string().contains("pwrite(heap image)"), "{error}");
    data.check(100_000);
    let places: BTreeSet<_> = boxes.iter().flatten().map(|each| std::ptr::from_ref(&**each).addr()).collect();
    boxes.iter_mut().step_by(2).for_each(|each| *each = None);
    let again = (0..10_000u64).map(|n| Box::new([n; 12])).collect::<Vec<_>>();
    let reused = again.iter().filter(|each| places.contains(&std::ptr::from_ref(&***each).addr())).count();
    assert!(reused > 9_000, "{reused} of 10,000 places were used again");
    assert!(large.iter().enumerate().all(|(n, each)| each.iter().all(|&byte| byte == n as u8 + 1)));
    // If a file is behind it, memory that was given back is not zero of itself.
    drop(large);
    for size in [3 << 20, 100_000, 70_000_000] {
        let zeroed: Vec<Vec<u8>> = (0..5).map(|_| vec![0; size]).collect();
        assert!(zeroed.iter().flatten().all(|&byte| byte == 0), "{size}");
    }
    let more = Data::new(10_000);
    more.check(10_000);
    drop(data);
    let again = Data::new(50_000);
    again.check(50_000);
    let mut child = fork::spawn(&ForkOptions::new(), |_| again.check(50_000)).expect("a child");
    let report = child.wait().expect("its end").report;
    assert!(report.arenas.iter().all(|arena| arena.name != "heap"), "nothing was frozen: {report}");
}

fn a_freeze_after_one_that_failed_holds_nothing_that_was_freed() {
    const MARK: [u8; 8] = *b"secret..";
    let full = |len: usize| -> Vec<u8> { MARK.repeat(len / 8) };
    let kept: Vec<Vec<u8>> = (0..200).map(|_| vec![1u8; 100_000]).collect();
    let secret: Vec<Vec<u8>> = (0..100).map(|_| full(100_000)).collect();
    let few: Vec<Vec<u8>> = (0..10_000).map(|_| full(104)).collect();
    // The second file is longer than its limit and so fails; files with lower numbers have none.
    let held: Vec<_> = (0..40).map(|_| std::fs::File::open("/dev/null").expect("a file")).collect();
    refuse_writes(16 << 20..24 << 20, 30);
    let error = Heap::freeze().expect_err("there is no room for all of it");
    assert!(error.to_string().contains("pwrite(heap image)"), "{error}");
    drop(held);
    drop((secret, few));
    let generation = Heap::freeze().expect("there is room now");
    assert!(kept.iter().all(|each| generation.holds(&each[0]) && each.iter().all(|&byte| byte == 1)));
    for image in generation.images() {
        let file = std::fs::File::from(image.file().try_clone_to_owned().expect("dup"));
        let mut bytes = vec![0; file.metadata().expect("fstat").len() as usize];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).expect("pread");
        let marks = bytes.chunks_exact(MARK.len()).filter(|each| **each == MARK).count();
        assert!(marks < 40, "{marks} marks are in the image");
    }
}

/// From now on `pwrite` at one of these offsets to a file of this number or above fails with ENOSPC in this process.
///
/// The description of an image lies behind all data in its file and is written first, so offsets without an end would let no pour begin.
pub fn refuse_writes(offsets: std::ops::Range<u32>, file: u32) {
    let code = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let (load, equal, at_least, end) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    // struct seccomp_data: the number at 0, the arguments at 16, 8 bytes each, the lower half first.
    let mut filter = [
        code(load, 0, 0, 0),
        code(equal, 0, 6, libc::SYS_pwrite64 as u32),
        code(load, 0, 0, 16),
        code(at_least, 0, 4, file),
        code(load, 0, 0, 16 + 3 * 8),
        code(at_least, 0, 2, offsets.start),
        code(at_least, 1, 0, offsets.end),
        code(end, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSPC as u32),
        code(end, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the call takes four numbers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the program is valid for the call.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) }, 0);
}

/// Threads are born, hand blocks on, free each other's and end, all the time; children free what is on its way.
fn children_forked_while_threads_begin_and_end_free_what_these_made() {
    static PASSED: Mutex<Vec<Block>> = Mutex::new(Vec::new());
    let done = AtomicBool::new(false);
    let lane = |seed: u64| {
        let mut numbers = Numbers(seed);
        while !done.load(Ordering::Relaxed) {
            let work = |seed: u64| {
                let mut numbers = Numbers(seed);
                let blocks: Vec<_> = (0..200).map(|at| Block::new(1 + numbers.below(3000), 8, at as u8)).collect();
                let warm = hot(|| Block::new(100, 8, 9));
                let mut passed = PASSED.lock().expect("no panic");
                let from = passed.len().saturating_sub(numbers.below(500));
                let taken = passed.split_off(from);
                passed.extend(blocks);
                passed.push(warm);
                drop(passed);
                drop(taken);
            };
            let seed = numbers.next();
            std::thread::spawn(move || work(seed | 1)).join().expect("it ends well");
        }
    };
    std::thread::scope(|scope| {
        let lane = &lane;
        (1..4u64).for_each(|seed| {
            scope.spawn(move || lane(seed * 77));
        });
        for round in 0..150 {
            let mut passed = PASSED.lock().expect("no panic");
            // SAFETY: the child uses the heap, whose lock a fork takes, and a lock that this thread holds, and leaves by _exit.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                let more: Vec<_> = (0..500).map(|at| Block::new(1 + at * 13 % 5000, 8, at as u8)).collect();
                passed.clear();
                if round % 10 == 0 {
                    let generation = Heap::freeze().expect("the only thread of the child");
                    // SAFETY: the block is there, and nobody writes to it.
                    assert!(generation.holds(unsafe { &*more[7].at }));
                }
                drop(more);
                drop((0..500).map(|at| Block::new(1 + at * 13 % 5000, 8, at as u8)).collect::<Vec<_>>());
                // SAFETY: it ends this process.
                unsafe { libc::_exit(0) };
            }
            drop(passed);
            crate::threads::wait_for(pid);
        }
        done.store(true, Ordering::Relaxed);
    });
    PASSED.lock().expect("no panic").clear();
}

fn blocks_move_between_kinds() {
    let mut warm: Vec<Block> = hot(|| (0..2000).map(|at| Block::new(1 + at * 7 % 4000, 8, at as u8)).collect());
    let mut cold: Vec<Block> = (0..2000).map(|at| Block::new(1 + at * 11 % 100_000, 8, at as u8)).collect();
    hot(|| cold.iter_mut().step_by(2).for_each(|block| block.resize(block.layout.size() * 3)));
    warm.iter_mut().step_by(3).for_each(|block| block.resize(block.layout.size() * 3));
    let _generation = Heap::freeze().expect("a frozen heap");
    hot(|| cold.iter_mut().step_by(3).for_each(|block| block.resize(block.layout.size() / 2 + 1)));
    warm.iter_mut().for_each(|block| block.resize(block.layout.size() + 5));
    std::thread::spawn(move || drop((warm, cold))).join().expect("it ends well");
}
