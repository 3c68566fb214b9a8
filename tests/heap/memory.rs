//! One allocation: as large, as aligned and as zero as asked; refused in order; given back.
#![expect(unsafe_code, reason = "an allocator's interface is unsafe")]

use crate::{Case, cases, status_kib};
use cowbell::heap::Heap;
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::hint::black_box;
use std::time::{Duration, Instant};

pub const CASES: &[Case] = cases![
    blocks_are_as_large_and_as_aligned_as_asked,
    zeroed_memory_is_zero_where_others_were_before,
    reallocating_keeps_what_was_there,
    what_cannot_be_had_is_null,
    a_limit_on_addresses_is_null_and_no_end,
    freed_memory_goes_back_to_the_kernel,
    memory_that_was_freed_a_moment_ago_is_used_again,
    memory_of_two_kinds_that_is_used_in_turns_stays,
    what_grows_by_pushing_takes_huge_pages,
    growing_a_large_vector_copies_nothing,
];

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).expect("a layout")
}

/// One allocation, filled with a byte of its own.
pub struct Block {
    pub at: *mut u8,
    pub layout: Layout,
    mark: u8,
}

// SAFETY: a block is memory that its owner alone uses.
unsafe impl Send for Block {}

impl Block {
    pub fn new(size: usize, align: usize, mark: u8) -> Self {
        let layout = layout(size, align);
        // SAFETY: the size is not 0.
        let at = unsafe { alloc(layout) };
        assert!(!at.is_null(), "{layout:?}");
        assert!(at.addr().is_multiple_of(align), "{layout:?} at {at:?}");
        let block = Self { at, layout, mark };
        block.fill(0);
        block
    }

    fn fill(&self, from: usize) {
        if let Some(count) = self.layout.size().checked_sub(from).filter(|&count| count > 0) {
            // SAFETY: below the block's end.
            let start = unsafe { self.at.add(from) };
            // SAFETY: the bytes are the block's.
            unsafe { start.write_bytes(self.mark, count) };
        }
    }

    pub fn check(&self, count: usize) {
        // SAFETY: the bytes are the block's, and written.
        let bytes = unsafe { std::slice::from_raw_parts(self.at, count) };
        assert!(
            bytes.iter().all(|&byte| byte == self.mark),
            "{:?} at {:?} was written by another",
            self.layout,
            self.at
        );
    }

    pub fn resize(&mut self, size: usize) {
        // SAFETY: the block is of this layout, and the size is not 0.
        let at = unsafe { realloc(self.at, self.layout, size) };
        assert!(!at.is_null() && at.addr().is_multiple_of(self.layout.align()), "{:?} to {size}", self.layout);
        let old = self.layout.size();
        (self.at, self.layout) = (at, layout(size, self.layout.align()));
        self.check(old.min(size));
        self.fill(old);
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.check(self.layout.size());
        // SAFETY: the block is of this layout and nobody's any more.
        unsafe { dealloc(self.at, self.layout) };
    }
}

const SIZES: &[usize] = &[
    1,
    7,
    8,
    9,
    16,
    17,
    24,
    100,
    128,
    129,
    250,
    1000,
    4095,
    4096,
    5000,
    8191,
    8192,
    8193,
    20_000,
    65_535,
    65_536,
    65_537,
    100_000,
    1 << 20,
    (1 << 20) + 1,
    5 << 20,
    31 << 20,
    32 << 20,
    40 << 20,
    (64 << 20) + 1,
];

fn blocks_are_as_large_and_as_aligned_as_asked() {
    for round in 0..2 {
        let mut blocks = Vec::new();
        for shift in 0..=21 {
            for &size in SIZES.iter().filter(|&&size| size <= 5 << 20 || shift % 7 == 0) {
                blocks.push(Block::new(size, 1 << shift, (blocks.len() + round) as u8));
            }
        }
        blocks.push(Block::new(1, 1 << 26, 1));
        blocks.push(Block::new(100, 1 << 28, 2));
        let mut places: Vec<_> = blocks.iter().map(|block| (block.at.addr(), block.layout.size())).collect();
        places.sort_unstable();
        assert!(places.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0), "two overlap");
    }
}

fn zeroed_memory_is_zero_where_others_were_before() {
    for _ in 0..4 {
        for &size in SIZES {
            drop(Block::new(size, 8, 0xa5));
            // SAFETY: the size is not 0.
            let at = black_box(unsafe { alloc_zeroed(layout(size, 8)) });
            // SAFETY: the bytes were just given, and are initialised.
            let bytes = unsafe { std::slice::from_raw_parts(at, size) };
            assert!(bytes.iter().all(|&byte| byte == 0), "{size}");
            // SAFETY: as it was given.
            unsafe { dealloc(at, layout(size, 8)) };
        }
    }
}

fn reallocating_keeps_what_was_there() {
    let pairs = |align: usize, sizes: &[usize]| {
        for &first in sizes {
            for &then in sizes {
                let mut block = Block::new(first, align, first as u8 | 1);
                block.resize(then);
                block.resize(first);
            }
        }
    };
    let ordinary: Vec<_> = SIZES.iter().copied().filter(|&size| size <= 100_000).collect();
    for align in [1, 8, 64, 4096, 1 << 17] {
        pairs(align, &ordinary);
    }
    pairs(8, &[100_000, 1 << 20, 5 << 20, 32 << 20, 70 << 20]);
}

fn what_cannot_be_had_is_null() {
    for size in [isize::MAX as usize - 4096, 1 << 46, 1 << 43] {
        // SAFETY: the size is not 0.
        assert!(unsafe { black_box(alloc(layout(size, 8))) }.is_null(), "{size}");
        // SAFETY: the size is not 0.
        assert!(unsafe { black_box(alloc_zeroed(layout(size, 1 << 12))) }.is_null(), "{size}");
        let mut block = Block::new(1000, 8, 3);
        // SAFETY: the block is of this layout; a null result leaves it as it is.
        assert!(unsafe { realloc(block.at, block.layout, size) }.is_null(), "{size}");
        block.resize(2000);
    }
    assert!(Vec::<u8>::new().try_reserve(1 << 46).is_err());
    assert!(Vec::<u8>::new().try_reserve(1000).is_ok());
}

fn a_limit_on_addresses_is_null_and_no_end() {
    let now = status_kib("VmSize") << 10;
    let limit = libc::rlimit { rlim_cur: now + (200 << 20), rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the struct is valid for the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
    for size in [40, 3000, 70_000, 1 << 20, 20 << 20] {
        let mut blocks: Vec<Block> = Vec::with_capacity(1 << 16);
        let mut bytes = 0;
        loop {
            // SAFETY: the size is not 0.
            let at = unsafe { black_box(alloc(layout(size, 8))) };
            if at.is_null() {
                break;
            }
            // SAFETY: as it was given.
            unsafe { dealloc(at, layout(size, 8)) };
            if blocks.len() == blocks.capacity() {
                break;
            }
            blocks.push(Block::new(size, 8, 7));
            bytes += size;
        }
        let enough = blocks.len() == blocks.capacity() || bytes > 90 << 20;
        drop(blocks);
        assert!(enough, "{bytes} bytes of {size}");
    }
    let again = Block::new(100 << 20, 8, 9);
    drop(again);
}

/// Page faults of this process that no disk was asked for.
fn faults() -> i64 {
    // SAFETY: a rusage may be all zero; the call fills it in.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the struct is valid for the call.
    assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) }, 0);
    usage.ru_minflt
}

fn freed_memory_goes_back_to_the_kernel() {
    let fill = |size: usize| (0..(200 << 20) / size).map(|_| Block::new(size, 8, 1)).collect::<Vec<_>>();
    Heap::trim();
    let before = status_kib("VmRSS");
    let left = || status_kib("VmRSS").saturating_sub(before);
    for size in [24, 500, 10_000, 100_000, 40 << 20] {
        let blocks = fill(size);
        assert!(left() > 190 << 10, "{size}");
        drop(blocks);
        Heap::trim();
        assert!(left() < 4 << 10, "{} KiB are left of blocks of {size}", left());

        // The same by itself: who takes more finds that nobody wanted it for a while.
        drop(fill(size));
        let begun = Instant::now();
        while left() > 40 << 10 {
            assert!(begun.elapsed() < Duration::from_secs(20), "{} KiB are left of blocks of {size}", left());
            drop(Block::new(100_000, 8, 2));
        }
        Heap::trim();
    }
}

fn memory_that_was_freed_a_moment_ago_is_used_again() {
    let fill = || drop((0..100_000).map(|_| Block::new(1000, 8, 1)).collect::<Vec<_>>());
    // Where the machine is slow, the moment may be over.
    for _ in 0..20 {
        Heap::trim();
        let (begun, before) = (Instant::now(), faults());
        fill();
        let between = faults();
        fill();
        let (first, second) = (between - before, faults() - between);
        if begun.elapsed() < Duration::from_millis(450) {
            assert!(first > 20_000 && second < 1000, "{first} page faults, and then {second}");
            return;
        }
    }
    panic!("this machine never had a moment for it");
}

fn memory_of_two_kinds_that_is_used_in_turns_stays() {
    let fill = || drop((0..100_000).map(|_| Block::new(500, 8, 1)).collect::<Vec<_>>());
    fill();
    cowbell::hot(fill);
    let (begun, before) = (Instant::now(), faults());
    let mut longest = Duration::ZERO;
    // Longer than it takes for what nobody wants to go.
    while begun.elapsed() < Duration::from_secs(2) {
        let turn = Instant::now();
        fill();
        cowbell::hot(fill);
        longest = longest.max(turn.elapsed());
    }
    let taken = faults() - before;
    assert!(
        taken < 6000 || longest > Duration::from_millis(300),
        "{taken} page faults, although 12,000 pages were there"
    );
}

fn what_grows_by_pushing_takes_huge_pages() {
    let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    if !setting.contains("[always]") && !setting.contains("[madvise]") {
        return println!("no huge pages here: {setting}");
    }
    let (before, peak) = (faults(), status_kib("VmHWM"));
    let mut list = Vec::new();
    (0..8_000_000u64).for_each(|n| list.push(n));
    assert!(list.iter().copied().eq(0..8_000_000));
    let taken = faults() - before;
    assert!(taken < 6000, "{taken} page faults for 15,625 pages");
    let more = status_kib("VmHWM").saturating_sub(peak);
    assert!(more < 70 << 10, "{more} KiB for 62,500");
}

fn growing_a_large_vector_copies_nothing() {
    let mut bytes = vec![1u8; 200 << 20];
    let mut middle = vec![2u8; 20 << 20];
    let (before, peak) = (faults(), status_kib("VmHWM"));
    bytes.reserve_exact(300 << 20);
    assert!(faults() - before < 100, "the pages moved");
    // From units among others to chunks of its own.
    middle.reserve_exact(30 << 20);
    assert!(faults() - before < 200, "the pages moved");
    assert!(status_kib("VmHWM").saturating_sub(peak) < 10 << 10);
    assert!(middle.iter().all(|&byte| byte == 2));
    assert!(bytes.iter().all(|&byte| byte == 1));
}
