//! The record of allocations is one process's alone, whatever is forked from it.
#![expect(unsafe_code, reason = "a fork, and what libc calls in the child")]

use crate::cases;
use cowbell::fork::{self, ForkOptions};
use cowbell::heap::Heap;
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub const CASES: &[crate::Case] = cases![
    a_child_may_not_record_too,
    a_child_that_allocates_as_it_is_forked_leaves_the_record_alone,
    what_is_moved_beside_threads_is_recorded_where_it_is,
    a_freeze_without_memory_for_what_is_recorded_is_an_error,
    an_image_keeps_the_stacks_of_its_own_allocations,
];

const BLOCKS: usize = 20_000;

fn blocks() -> Vec<Vec<u64>> {
    (0..BLOCKS as u64).map(|n| vec![n; 8]).collect()
}

/// The allocations that are recorded in what a freeze makes now.
fn recorded() -> usize {
    let generation = Heap::freeze().expect("one thread");
    generation.images().iter().map(|image| image.allocations().count()).sum()
}

/// Parent and child would change one table, each by its own lock.
fn a_child_may_not_record_too() {
    Heap::record_sites(1).expect("this heap");
    let kept = blocks();
    let mut freed = Some(blocks());
    let mut child = fork::spawn(&ForkOptions::new(), |_| {
        let refused = Heap::record_sites(1).is_err_and(|e| e.is_invalid() && e.to_string().contains("forked from"));
        // The child goes on all the same, and so does what is forked from it.
        drop(freed.take());
        drop([blocks(), blocks()]);
        let of_grandchild = fork::spawn(&ForkOptions::new(), |_| i32::from(Heap::record_sites(1).is_ok()));
        i32::from(!refused || !of_grandchild.is_ok_and(|mut child| child.wait().is_ok_and(|exit| exit.success())))
    })
    .expect("a child");
    let exit = child.wait().expect("its end");
    assert!(exit.success(), "{exit:?}");
    Heap::record_sites(1).expect("again, in the process that records");
    let recorded = recorded();
    assert!(recorded >= 2 * BLOCKS, "{recorded}");
    drop((kept, freed));
}

/// The blocks that the handler frees.
static FREED: Mutex<Vec<Vec<u64>>> = Mutex::new(Vec::new());
static HANDLED: AtomicBool = AtomicBool::new(false);

/// The first that libc calls in a child, before any handler of the library's.
fn a_child_that_allocates_as_it_is_forked_leaves_the_record_alone() {
    extern "C" fn entered() {
        let freed = FREED.try_lock().map(|mut freed| std::mem::take(&mut *freed));
        // Blocks of its parent's first: for more of its own a table would move, and be nobody else's then.
        drop(freed.expect("nobody else has them"));
        drop(blocks());
        HANDLED.store(true, Ordering::Relaxed);
    }
    // SAFETY: the process has one thread, so its child may do what it likes.
    assert_eq!(unsafe { libc::pthread_atfork(None, None, Some(entered)) }, 0);
    Heap::record_sites(1).expect("this heap");
    *FREED.lock().expect("nobody panicked") = blocks();
    // SAFETY: as above; the child ends at once.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let code = if HANDLED.load(Ordering::Relaxed) { 0 } else { 1 };
        // SAFETY: it ends this process.
        unsafe { libc::_exit(code) };
    }
    crate::threads::wait_for(pid);
    let recorded = recorded();
    assert!(recorded >= BLOCKS, "{recorded}");
}

/// The address that an allocation leaves is another thread's at once, and what is recorded there is that thread's.
fn what_is_moved_beside_threads_is_recorded_where_it_is() {
    const LARGE: usize = 2 << 20;
    Heap::record_sites(1).expect("this heap");
    let ends = Instant::now() + Duration::from_secs(3);
    let mut kept: Vec<Vec<u8>> = Vec::new();
    std::thread::scope(|scope| {
        let lane = || {
            let mut own: Vec<Vec<u8>> = Vec::new();
            while Instant::now() < ends {
                let mut moved: Vec<u8> = Vec::with_capacity(LARGE);
                own.push(Vec::with_capacity(LARGE));
                moved.reserve_exact(40 << 20);
                own.push(Vec::with_capacity(LARGE));
                if own.len() > 100 {
                    own.clear();
                }
            }
            own
        };
        let lanes: Vec<_> = (0..6).map(|_| scope.spawn(lane)).collect();
        kept = lanes.into_iter().flat_map(|lane| lane.join().expect("it ends well")).collect();
    });
    let generation = Heap::freeze().expect("one thread");
    let large =
        |image: &std::sync::Arc<cowbell::arena::Image>| image.allocations().filter(|each| each.len == LARGE).count();
    let recorded: usize = generation.images().iter().map(large).sum();
    assert_eq!(recorded, kept.len());
}

fn limit_addresses(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the struct is valid for the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
}

fn a_freeze_without_memory_for_what_is_recorded_is_an_error() {
    Heap::record_sites(1).expect("this heap");
    let kept: Vec<_> = (0..10).map(|_| blocks()).collect();
    limit_addresses((crate::status_kib("VmSize") << 10) + (2 << 20));
    let refused = Heap::freeze().expect_err("no memory");
    limit_addresses(libc::RLIM_INFINITY);
    assert!(refused.is_out_of_memory(), "{refused}");
    let recorded = recorded();
    assert!(recorded >= kept.len() * BLOCKS, "{recorded}");
}

/// Allocates once below each of two to the power of `depth` ways of calls.
fn below_all_ways(depth: u32, all: &mut Vec<Vec<u64>>) {
    if depth == 0 {
        return all.push(vec![7]);
    }
    below_all_ways(black_box(depth - 1), all);
    below_all_ways(black_box(depth - 1), all);
}

fn an_image_keeps_the_stacks_of_its_own_allocations() {
    Heap::record_sites(1).expect("this heap");
    let mut all = Vec::new();
    below_all_ways(12, &mut all);
    all.truncate(3);
    let generation = Heap::freeze().expect("one thread");
    for image in generation.images() {
        let file = File::from(image.file().try_clone_to_owned().expect("a descriptor"));
        // The numbers of allocations and of stacks in the footer, as docs/FORMATS.md has it.
        let word = |nth: u64| {
            let mut word = [0; 8];
            let end = file.metadata().expect("a file").len();
            file.read_exact_at(&mut word, end - (19 - nth) * 8).expect("the file has it");
            u64::from_ne_bytes(word)
        };
        let (allocations, stacks) = (word(11), word(13));
        assert_eq!(allocations, image.allocations().count() as u64);
        assert!(stacks <= allocations, "{stacks} stacks of {allocations} allocations");
    }
    assert!(generation.images().iter().map(|image| image.allocations().count()).sum::<usize>() < 2000);
}
