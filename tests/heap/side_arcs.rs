//! Values with counts of their own: children that count them up and down, and that each is dropped once.
#![expect(unsafe_code, reason = "a limit is set for the process")]

use crate::freezing::{copied, freeze};
use crate::{Case, Numbers, cases};
use cowbell::fork::{self, ForkOptions};
use cowbell::heap::SideArc;
use cowbell::sys::shared_words::SharedWords;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub const CASES: &[Case] = cases![
    cloning_side_arcs_copies_no_page_of_their_values,
    a_child_that_counts_side_arcs_up_and_down_copies_no_page_of_their_counts,
    side_arcs_are_dropped_once_in_children_of_children_and_threads,
    children_forked_while_threads_count_side_arcs_count_them_too,
];

fn cloning_side_arcs_copies_no_page_of_their_values() {
    let arcs: Vec<Arc<[u64; 6]>> = (0..50_000).map(|n| Arc::new([n; 6])).collect();
    let sides: Vec<SideArc<[u64; 6]>> = (0..50_000).map(|n| SideArc::new([n; 6])).collect();
    let generation = freeze();
    assert!(generation.holds(&*sides[7]));
    let with_arc = copied(|| arcs.iter().for_each(|each| drop(Arc::clone(each))));
    assert!(with_arc > 700, "{with_arc}");
    assert_eq!(copied(|| sides.iter().for_each(|each| drop(SideArc::clone(each)))), 0);
    let last = sides[3].clone();
    drop(sides);
    assert_eq!((SideArc::strong_count(&last), last[0]), (1, 3));
}

/// The number of page faults that a child takes for its work: of all that it copies and gets.
fn faults_of(work: impl FnOnce()) -> u64 {
    let found = SharedWords::new(1).expect("memory");
    let mut child = fork::spawn(&ForkOptions::new(), |_| {
        let before = fork::page_faults();
        work();
        found.words()[0].store(fork::page_faults() - before, Ordering::Release);
    })
    .expect("a child");
    assert!(child.wait().expect("its end").success());
    found.words()[0].load(Ordering::Acquire)
}

fn a_child_that_counts_side_arcs_up_and_down_copies_no_page_of_their_counts() {
    // The counts fill 300 pages, and the values many more.
    let sides: Vec<SideArc<[u64; 8]>> = (0..150_000).map(|n| SideArc::new([n; 8])).collect();
    let _generation = freeze();
    // The table has 16 pages, and some pages of the program and its stack are copied.
    let faults = faults_of(|| {
        for each in &sides {
            let same = SideArc::clone(each);
            assert_eq!((SideArc::strong_count(&same), same[7]), (2, each[0]));
        }
    });
    // Reading maps pages, too: the counts, whose page tables fork copied, are there.
    let reading = faults_of(|| assert!(sides.iter().all(|each| each[7] == each[0])));
    assert!(faults < reading + 40, "{faults}, {reading} for reading alone");
    // Those that are counted up and stay so have slots while there are some; the pages of others' counts are copied.
    let kept = faults_of(|| std::mem::forget(sides.iter().map(SideArc::clone).collect::<Vec<_>>()));
    assert!(kept > reading + 250, "{kept}");
    assert!(sides.iter().all(|each| SideArc::strong_count(each) == 1));
}

/// Counts how often values were dropped in this process.
struct Dropped(usize);

static DROPPED: [AtomicU64; 9000] = [const { AtomicU64::new(0) }; 9000];

impl Drop for Dropped {
    fn drop(&mut self) {
        DROPPED[self.0].fetch_add(1, Ordering::Relaxed);
    }
}

fn drops() -> [u64; 2] {
    let most = DROPPED.iter().map(|each| each.load(Ordering::Relaxed)).max().unwrap_or(0);
    [DROPPED.iter().map(|each| each.load(Ordering::Relaxed)).sum(), most]
}

/// Clones and drops in an order of its own, and then all that it has.
fn juggle(sides: &[SideArc<Dropped>], seed: u64) {
    let mut numbers = Numbers(seed);
    let mut own: Vec<SideArc<Dropped>> = sides.to_vec();
    for _ in 0..30_000 {
        let which = numbers.below(sides.len());
        match numbers.below(3) {
            0 => own.push(sides[which].clone()),
            1 if !own.is_empty() => drop(own.swap_remove(numbers.below(own.len()))),
            _ => assert!(SideArc::strong_count(&sides[which].clone()) >= 2),
        }
    }
}

fn side_arcs_are_dropped_once_in_children_of_children_and_threads() {
    fn go_on(mut sides: Vec<SideArc<Dropped>>, depth: usize) {
        // Each generation makes some of its own.
        let begin = sides.len();
        sides.extend((begin..begin + 1000).map(|n| SideArc::new(Dropped(n))));
        // Counted up over the fork, in slots and beside them.
        let more = sides.clone();
        if depth < 8 {
            let mut child = fork::spawn(&ForkOptions::new(), |_| go_on(sides.clone(), depth + 1)).expect("a child");
            assert!(child.wait().expect("its end").success(), "{depth}");
        }
        std::thread::scope(|scope| {
            for seed in 1..=4 {
                let sides = &sides;
                scope.spawn(move || juggle(sides, seed));
            }
        });
        drop(more);
        assert_eq!(drops(), [0, 0], "{depth}");
        drop(sides);
        // The frames in which this process was forked still hold some of those that earlier generations made.
        assert_eq!(drops(), [1000, 1], "{depth}");
    }
    go_on(Vec::new(), 0);
    DROPPED.iter().for_each(|each| each.store(0, Ordering::Relaxed));
    let sides: Vec<SideArc<Dropped>> = (0..9000).map(|n| SideArc::new(Dropped(n))).collect();
    let mut child = fork::spawn(&ForkOptions::new(), move |_| {
        std::thread::scope(|scope| {
            for seed in 1..=4 {
                let sides = &sides;
                scope.spawn(move || juggle(sides, seed));
            }
        });
        let later = sides[4000..].to_vec();
        assert_eq!(drops(), [0, 0]);
        drop(sides);
        assert_eq!(drops(), [4000, 1]);
        drop(later);
        assert_eq!(drops(), [9000, 1]);
        // The memory of these counts is others' now, here and in a child.
        let again: Vec<SideArc<u64>> = (0..9000).map(SideArc::new).collect();
        let is_one = || again.iter().all(|each| SideArc::strong_count(each) == 1);
        assert!(is_one());
        let mut child = fork::spawn(&ForkOptions::new(), |_| assert!(is_one())).expect("a child");
        assert!(child.wait().expect("its end").success());
    })
    .expect("a child");
    assert!(child.wait().expect("its end").success());
}

fn children_forked_while_threads_count_side_arcs_count_them_too() {
    let sides: Vec<SideArc<[u64; 4]>> = (0..20).map(|n| SideArc::new([n; 4])).collect();
    let mut child = fork::spawn(&ForkOptions::new(), |_| {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        sides.iter().for_each(|each| drop(each.clone()));
                    }
                });
            }
            for _ in 0..300 {
                // SAFETY: the child uses what is said to be good in it: the heap, and these pointers.
                let child = unsafe {
                    fork::spawn_unchecked(&ForkOptions::new(), |_| {
                        // A thread may have been in the middle of counting one up, and is not here.
                        let counted =
                            |each: &SideArc<[u64; 4]>| (2..=6).contains(&SideArc::strong_count(&each.clone()));
                        assert!(sides.iter().all(counted));
                    })
                };
                assert!(child.expect("a child").wait().expect("its end").success());
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(sides.iter().all(|each| SideArc::strong_count(each) == 1));
    })
    .expect("a child");
    assert!(child.wait().expect("its end").success());
}
