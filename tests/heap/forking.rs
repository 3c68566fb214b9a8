//! The price of a fork over a frozen heap, and what the parent's own copies add to it.

use crate::freezing::{MANY, freeze, many_boxes, read_all};
use crate::{Case, cases, status_kib};
use cowbell::fork::{self, ForkOptions};
use std::sync::atomic::{AtomicU64, Ordering};

pub const CASES: &[Case] = cases![
    a_frozen_heap_is_spared_by_fork,
    one_write_of_the_parent_makes_fork_dear_for_its_chunk,
    a_parents_copies_are_not_counted_as_the_childs,
];

/// KiB of page tables of this process that a child forked now does not have.
fn spared_kib() -> u64 {
    let (mine, theirs) = (status_kib("VmPTE"), AtomicShared::new());
    let mut child = fork::spawn(&ForkOptions::new().last_census(false), |_| {
        theirs.set(status_kib("VmPTE"));
    })
    .expect("a child");
    child.wait().expect("its end");
    mine.saturating_sub(theirs.get())
}

/// A number that a child tells its parent.
struct AtomicShared(cowbell::sys::shared_words::SharedWords);

impl AtomicShared {
    fn new() -> Self {
        Self(cowbell::sys::shared_words::SharedWords::new(1).expect("memory"))
    }

    fn set(&self, value: u64) {
        self.0.words()[0].store(value, Ordering::Release);
    }

    fn get(&self) -> u64 {
        self.0.words()[0].load(Ordering::Acquire)
    }
}

fn a_frozen_heap_is_spared_by_fork() {
    let boxes = many_boxes();
    let tables = status_kib("VmPTE");
    let before = spared_kib();
    assert!(before < tables / 5, "before the freeze: {before} of {tables} KiB spared");
    let _generation = freeze();
    read_all(&boxes);
    let (tables, spared) = (status_kib("VmPTE"), spared_kib());
    assert!(spared + 100 > tables * 9 / 10, "frozen and read: only {spared} of {tables} KiB spared");
}

fn one_write_of_the_parent_makes_fork_dear_for_its_chunk() {
    let mut boxes = many_boxes();
    let generation = freeze();
    read_all(&boxes);
    let spared = spared_kib();
    boxes[MANY / 2][3] = 1;
    assert_eq!(generation.copied_here().expect("a census").0, 1);
    let lost = spared.saturating_sub(spared_kib());
    // 64 MiB have 32 page tables of 4 KiB on most machines.
    assert!((100..=200).contains(&lost), "{lost} KiB more are copied");
}

fn a_parents_copies_are_not_counted_as_the_childs() {
    let boxes: Vec<Box<AtomicU64>> = (0..500_000).map(|n| Box::new(AtomicU64::new(n))).collect();
    let generation = freeze();
    boxes.iter().step_by(1000).for_each(|each| each.store(1, Ordering::Relaxed));
    let parents = generation.copied_here().expect("a census").0;
    assert!(parents >= 500, "{parents}");
    let mut child = fork::spawn(&ForkOptions::new(), |_| {
        boxes[499_500].store(2, Ordering::Relaxed);
        boxes[1000].store(3, Ordering::Relaxed);
    })
    .expect("a child");
    let report = child.wait().expect("its end").report;
    assert_eq!(report.copied_pages().0, 1, "{report}");
    assert_eq!(report.arenas.iter().map(|arena| arena.inherited_pages.0).sum::<u64>(), parents);
}
