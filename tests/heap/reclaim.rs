//! Frozen memory goes back when the last object in it is freed.

use crate::{Case, cases};
use cowbell::fork::{self, ForkOptions};
use cowbell::heap::{Heap, hot};
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};

pub const CASES: &[Case] = cases![
    an_image_goes_with_its_last_object,
    one_object_keeps_its_image,
    a_child_that_lives_on_keeps_what_it_reads_and_its_report_names_it,
    a_child_gives_nothing_up_and_copies_nothing,
    addresses_are_used_again,
];

#[expect(clippy::vec_box, reason = "each is an allocation")]
fn numbers(count: u64) -> Vec<Box<AtomicU64>> {
    (0..count).map(|n| Box::new(AtomicU64::new(n))).collect()
}

fn sum(numbers: &[Box<AtomicU64>]) -> u64 {
    numbers.iter().map(|each| each.load(Ordering::Relaxed)).sum()
}

/// Images of the heap that this process has mapped, by their mappings, and those that it has open.
fn images() -> (usize, usize) {
    let mut maps = String::new();
    std::fs::File::open("/proc/self/maps").expect("/proc").read_to_string(&mut maps).expect("text");
    let mapped = maps.lines().filter(|line| line.ends_with("/memfd:cowbell:heap (deleted)")).count();
    let names = std::fs::read_dir("/proc/self/fd").expect("/proc").flatten();
    let open = names.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    (mapped, open.filter(|name| name.as_os_str() == "/memfd:cowbell:heap (deleted)").count())
}

fn an_image_goes_with_its_last_object() {
    // The runtime and this test keep this for good.
    let _first = Heap::freeze().expect("a frozen heap");
    let (mapped, open) = images();
    let data = numbers(1_000_000);
    let generation = Heap::freeze().expect("a frozen heap");
    assert!(generation.holds(&*data[7]) && images().0 > mapped && images().1 > open);
    let live = generation.live_blocks();
    let right = sum(&data);
    let thread = std::thread::spawn(move || {
        assert_eq!(sum(&data), right);
        drop(data);
    });
    thread.join().expect("it ends well");
    assert_eq!((generation.live_blocks(), generation.gone()), (0, generation.images().len()), "{live} at first");
    assert_eq!(images().0, mapped, "it is mapped no more");
    assert!(generation.dead_bytes() >= 16_000_000);
    drop(generation);
    assert_eq!(images(), (mapped, open), "and its file is closed");
}

fn one_object_keeps_its_image() {
    let _first = Heap::freeze().expect("a frozen heap");
    let mut data = numbers(100_000);
    let generation = Heap::freeze().expect("a frozen heap");
    let last = data.swap_remove(50_000);
    drop(data);
    assert_eq!((generation.live_blocks(), generation.gone()), (1, 0));
    assert_eq!(last.load(Ordering::Relaxed), 50_000);
    drop(last);
    assert_eq!((generation.live_blocks(), generation.gone()), (0, 1));
}

fn a_child_that_lives_on_keeps_what_it_reads_and_its_report_names_it() {
    let _first = Heap::freeze().expect("a frozen heap");
    let data = numbers(100_000);
    let right = sum(&data);
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let generation = Heap::freeze().expect("a frozen heap");
    let mut child = fork::spawn(&ForkOptions::new(), |_| {
        // The child is told by a byte to read on, when its parent's memory is gone.
        let mut reader = reader.try_clone().expect("dup");
        data[70_000].fetch_add(5, Ordering::Relaxed);
        let mut byte = [0];
        assert_eq!(reader.read(&mut byte).expect("a pipe"), 1);
        i32::from(sum(&data) != right + 5)
    })
    .expect("a child");
    drop(data);
    assert_eq!(generation.gone(), 1);
    drop(generation);
    // Others take the place, if anybody may.
    let others: Vec<Vec<u8>> = (0..50).map(|n| vec![n; 1 << 20]).collect();
    let _third = Heap::freeze().expect("a frozen heap");
    std::io::Write::write_all(&mut { writer }, &[1]).expect("a pipe");
    let exit = child.wait().expect("its end");
    assert!(exit.success(), "{exit:?}");
    let heap = exit.report.arenas.iter().find(|arena| arena.copied_pages.0 > 0).expect("a copied page");
    assert_eq!((heap.copied_pages.0, heap.bytes_changed), (1, Some(1)), "{}", exit.report);
    let names: Vec<_> = heap.sites.iter().map(|site| site.type_name.as_str()).collect();
    assert_eq!(names, ["a block of 8 bytes"]);
    assert!(others.iter().zip(0..).all(|(each, n)| each.iter().all(|&byte| byte == n)));
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).expect("a pipe");
}

fn a_child_gives_nothing_up_and_copies_nothing() {
    let _first = Heap::freeze().expect("a frozen heap");
    let data = numbers(200_000);
    let generation = Heap::freeze().expect("a frozen heap");
    let (mapped, _) = images();
    let right = sum(&data);
    let data = std::cell::Cell::new(Some(data));
    let mut child = fork::spawn(&ForkOptions::new(), |_| {
        let data = data.take().expect("the data");
        data[9].store(1, Ordering::Relaxed);
        drop(data);
        i32::from(images().0 != mapped || generation.live_blocks() != 0 || generation.gone() != 0)
    })
    .expect("a child");
    let exit = child.wait().expect("its end");
    assert!(exit.success(), "{exit:?}");
    assert_eq!(exit.report.copied_pages().0, 1, "the page that it wrote, and none for the frees: {}", exit.report);
    let data = data.take().expect("the data");
    assert_eq!((sum(&data), generation.gone()), (right, 0));
    drop(data);
    assert_eq!(generation.gone(), 1);
}

fn addresses_are_used_again() {
    let _first = Heap::freeze().expect("a frozen heap");
    let mut places = std::collections::BTreeSet::new();
    for round in 0..12u64 {
        // Sizes of blocks, of units and of more than a chunk.
        let data = (numbers(50_000), vec![round; 100_000], vec![round; 9_000_000]);
        let generation = Heap::freeze().expect("a frozen heap");
        hot(|| places.extend(generation.images().iter().map(|image| image.range().start)));
        assert_eq!((sum(&data.0), data.1[99_999], data.2[8_999_999]), (1_249_975_000, round, round));
        drop(data);
        assert_eq!(generation.gone(), generation.images().len(), "{round}");
    }
    assert!(places.len() < 6, "{places:x?}");
}
