//! A heap that was frozen: what forks, children and the process itself see of it.
#![expect(unsafe_code, reason = "a limit is set for the process")]

use crate::{Case, Numbers, cases, status_kib};
use cowbell::fork::{self, ForkOptions};
use cowbell::heap::{Generation, Heap, hot};
use cowbell::watch::Watch;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub const CASES: &[Case] = cases![
    workers_that_read_a_frozen_heap_copy_nothing,
    a_write_to_a_frozen_object_is_one_copied_page,
    freeing_frozen_objects_copies_nothing,
    later_allocations_fill_no_hole_of_a_frozen_page,
    what_was_freed_before_a_freeze_is_zero,
    generations_follow_each_other,
    pouring_takes_little_memory,
    a_freeze_that_fails_leaves_the_heap_as_it_was,
    vectors_that_grew_and_are_hardly_used_take_no_memory_in_their_image,
    a_freeze_beside_a_thread_is_refused,
    hot_memory_is_not_frozen,
    copies_that_are_the_original_again_are_given_back,
    huge_and_aligned_objects_are_frozen_too,
    a_child_of_busy_threads_may_freeze,
    an_images_file_tells_which_blocks_it_holds,
];

/// Runs `body` in a forked child and gives the pages it copied.
pub fn copied(body: impl FnOnce()) -> u64 {
    let mut child = fork::spawn(&ForkOptions::new(), |_| body()).expect("a child");
    let exit = child.wait().expect("its end");
    assert!(exit.success(), "{exit:?}");
    exit.report.copied_pages().0
}

pub fn freeze() -> Generation {
    Heap::freeze().expect("a frozen heap")
}

pub struct Data {
    map: HashMap<u64, String>,
    tree: BTreeMap<String, Vec<u32>>,
    document: serde_json::Value,
}

impl Data {
    pub fn new(count: u64) -> Self {
        let row = |n: u64| serde_json::json!({ "n": n, "name": format!("row {n}"), "list": [n, null, "text"] });
        Self {
            map: (0..count).map(|n| (n, format!("value {n}"))).collect(),
            tree: (0..count).map(|n| (format!("key {n}"), vec![n as u32; (n % 50) as usize])).collect(),
            document: serde_json::Value::Array((0..count).map(row).collect()),
        }
    }

    pub fn check(&self, count: u64) {
        for n in 0..count {
            assert_eq!(self.map[&n], format!("value {n}"));
            assert_eq!(self.tree[&format!("key {n}")], vec![n as u32; (n % 50) as usize]);
            assert_eq!(self.document[n as usize]["name"], format!("row {n}"));
        }
    }
}

fn workers_that_read_a_frozen_heap_copy_nothing() {
    let data = Data::new(50_000);
    let generation = freeze();
    assert!(
        generation.holds(&data.map[&7])
            && generation.holds(&data.document[9])
            && generation.holds(&data.tree["key 3"][0])
    );
    data.check(50_000);
    for watch in [Watch::Census, Watch::Trap] {
        let mut child = fork::spawn(&ForkOptions::new().watch(watch), |_| data.check(50_000)).expect("a child");
        let exit = child.wait().expect("its end");
        assert!(exit.success(), "{exit:?}");
        assert_eq!(exit.report.copied_pages().0, 0, "{watch}");
        let arena = exit.report.arenas.iter().find(|arena| arena.name == "heap").expect("the heap is in the report");
        assert_eq!(arena.pages, generation.pages());
    }
}

fn a_write_to_a_frozen_object_is_one_copied_page() {
    let numbers: Vec<Box<AtomicU64>> = (0..100_000).map(|n| Box::new(AtomicU64::new(n))).collect();
    let _generation = freeze();
    let mut child = fork::spawn(&ForkOptions::new(), |_| {
        numbers[50_000].store(u64::MAX, Ordering::Relaxed);
    })
    .expect("a child");
    let report = child.wait().expect("its end").report;
    let heap = report.arenas.iter().find(|arena| arena.copied_pages.0 > 0).expect("a copied page");
    let page = (std::ptr::from_ref(&*numbers[50_000]).addr() as u64 - heap.start) / report.page_size;
    assert_eq!(heap.copied.iter().map(|span| (span.start.0, span.count.0)).collect::<Vec<_>>(), [(page, 1)]);
    assert_eq!(heap.bytes_changed, Some(8), "compared with the image");
    let sites: Vec<_> = heap.sites.iter().map(|site| (site.type_name.as_str(), site.pages.0)).collect();
    assert_eq!(sites, [("a block of 8 bytes", 1)]);
    assert_eq!(numbers[50_000].load(Ordering::Relaxed), 50_000, "the parent's is as it was");
}

fn freeing_frozen_objects_copies_nothing() {
    let data = Data::new(30_000);
    let texts: Vec<String> = (0..100_000).map(|n| format!("text {n}")).collect();
    let generation = freeze();
    let (live, dead) = (generation.live_blocks(), generation.dead_bytes());
    assert!(live > 200_000 && dead < 1000, "{live} {dead}");
    let data = std::cell::Cell::new(Some(data));
    assert_eq!(copied(|| drop(data.take())), 0, "dropped in a child");
    assert_eq!(generation.live_blocks(), live, "the child counts for itself");
    drop(data);
    drop(texts);
    assert_eq!(generation.copied_here().expect("a census").0, 0, "dropped here");
    assert!(generation.live_blocks() < 200, "{} of {live} are left", generation.live_blocks());
    assert!(generation.dead_bytes() > 5 << 20);
}

fn later_allocations_fill_no_hole_of_a_frozen_page() {
    let mut boxes: Vec<Option<Box<[u8; 40]>>> = (0..100_000).map(|n| Some(Box::new([n as u8; 40]))).collect();
    boxes.iter_mut().step_by(3).for_each(|each| *each = None);
    let generation = freeze();
    boxes.iter_mut().step_by(2).for_each(|each| *each = None);
    let later: Vec<Box<[u8; 40]>> = (0..100_000).map(|n| Box::new([n as u8; 40])).collect();
    assert!(later.iter().all(|each| !generation.holds(&**each)));
    let mut grown = vec![1u8; 100];
    let _second = freeze();
    assert!(_second.holds(&grown[0]));
    grown.extend_from_slice(&[2; 5]);
    assert!(!generation.holds(&grown[0]) && !_second.holds(&grown[0]), "it moved to grow, although its block had room");
}

/// Reads the image's file, so that nothing here changes what it looks for.
fn what_was_freed_before_a_freeze_is_zero() {
    const MARK: [u8; 8] = *b"freed...";
    let sizes = [16, 24, 40, 100, 500, 3000, 9000, 60_000, 100_000, 1 << 20];
    let filled = |size: usize, with: [u8; 8]| with.repeat(size / 8);
    let mut made: Vec<Vec<u8>> = Vec::new();
    for size in sizes {
        made.extend((0..(4 << 20) / size).map(|_| filled(size, MARK)));
    }
    let mut numbers = Numbers(5);
    // One in ten stays, so that slabs stay, and holds something else.
    made.retain_mut(|each| {
        let stays = numbers.below(10) == 0;
        if stays {
            each.fill(1);
        }
        stays
    });
    // A thread that has ended freed some, too, and made slabs of memory that held something before.
    let others = std::thread::spawn(move || {
        let (mut stay, go): (Vec<_>, Vec<_>) = made.into_iter().enumerate().partition(|(at, _)| at % 2 == 0);
        let mut go: Vec<Vec<u8>> = go.into_iter().map(|(_, each)| each).collect();
        go.iter_mut().flat_map(|each| each.chunks_exact_mut(8)).for_each(|eight| eight.copy_from_slice(&MARK));
        drop(go);
        // The room for more is in use, too, and nobody has cleared it.
        stay.shrink_to_fit();
        stay
    })
    .join()
    .expect("it ends well");
    let again: Vec<Vec<u8>> = (0..20).map(|n| vec![7u8; 128 << (n % 8)]).collect();
    let generation = freeze();
    let mut marks = 0;
    for image in generation.images() {
        let file = std::fs::File::from(image.file().try_clone_to_owned().expect("dup"));
        let mut bytes = vec![0; file.metadata().expect("fstat").len() as usize];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).expect("pread");
        marks += bytes.chunks_exact(MARK.len()).filter(|each| **each == MARK).count();
        assert!(bytes.chunks_exact(8).filter(|each| **each == [1; 8]).count() > 100_000, "what stayed is there");
    }
    // A block in use may be a little larger than what was asked for, and hold there what others left.
    assert!(marks < 2000, "{marks} marks are in the image");
    assert!(others.len() + again.len() > 1000);
}

/// The number of boxes of 64 bytes that take 512 MiB.
pub const MANY: usize = 8 << 20;

#[expect(clippy::vec_box, reason = "each is an allocation")]
pub fn many_boxes() -> Vec<Box<[u64; 8]>> {
    (0..MANY as u64).map(|n| Box::new([n; 8])).collect()
}

pub fn read_all(boxes: &[Box<[u64; 8]>]) {
    assert!(boxes.iter().enumerate().all(|(n, each)| each[7] == n as u64));
}

fn generations_follow_each_other() {
    let mut kept = Vec::new();
    for round in 0..5u64 {
        let data = Data::new(2000 + round);
        let generation = freeze();
        assert!(generation.holds(&data.document[0]));
        kept.push((data, generation));
        for (at, (data, _)) in kept.iter().enumerate() {
            data.check(2000 + at as u64);
        }
    }
    assert_eq!(copied(|| kept.iter().enumerate().for_each(|(at, (data, _))| data.check(2000 + at as u64))), 0);
    let addresses: Vec<_> =
        kept.iter().flat_map(|(_, generation)| generation.images()).map(|image| image.range()).collect();
    assert!(addresses.iter().enumerate().all(|(at, one)| addresses[..at].iter().all(|other| !one.overlaps(*other))));
}

fn pouring_takes_little_memory() {
    let boxes = many_boxes();
    let before = status_kib("VmHWM");
    let _generation = freeze();
    let more = status_kib("VmHWM").saturating_sub(before);
    assert!(more < 64 << 10, "{more} KiB more");
    read_all(&boxes);
}

fn a_freeze_that_fails_leaves_the_heap_as_it_was() {
    // Growing the memfd beyond this is refused in the plan; writing beyond it, which no plan sees, in the pour.
    let mut data = Data::new(20_000);
    let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the struct is valid for the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
    let error = Heap::freeze().expect_err("the file may not be so long");
    assert!(error.to_string().contains("limit"), "{error}");
    data.check(20_000);
    data.map.extend((0..1000).map(|n| (n + 100_000, String::from("more"))));
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the struct is valid for the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
    let generation = freeze();
    data.check(20_000);
    assert!(generation.holds(&data.document[0]));
}

fn vectors_that_grew_and_are_hardly_used_take_no_memory_in_their_image() {
    let vectors: Vec<Vec<u8>> = (0..12u8)
        .map(|n| {
            let mut each = Vec::with_capacity(2 << 20);
            each.push(n);
            each.reserve_exact(20 << 20);
            each
        })
        .collect();
    let generation = freeze();
    assert!(vectors.iter().all(|each| generation.holds(&each[0])));
    let blocks = |image: &cowbell::arena::Image| {
        let file = File::from(image.file().try_clone_to_owned().expect("dup"));
        std::os::unix::fs::MetadataExt::blocks(&file.metadata().expect("fstat"))
    };
    let kib = generation.images().iter().map(|image| blocks(image)).sum::<u64>() / 2;
    assert!(kib < 40 << 10, "{kib} KiB for twelve pages and two MiB around each");
}

fn a_freeze_beside_a_thread_is_refused() {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let _closed = receiver.recv();
    });
    let error = Heap::freeze().expect_err("there is a thread");
    assert_eq!(error.threads().map(<[_]>::len), Some(2), "{error}");
    drop(sender);
    thread.join().expect("it ends well");
    freeze();
}

fn hot_memory_is_not_frozen() {
    let counters: Vec<AtomicU64> = hot(|| (0..10_000).map(AtomicU64::new).collect());
    let cold: Vec<u64> = (0..10_000).collect();
    let generation = freeze();
    assert!(generation.holds(&cold[5]) && !generation.holds(&counters[5]));
    let writes = || {
        counters.iter().for_each(|each| {
            each.fetch_add(1, Ordering::Relaxed);
        });
    };
    assert_eq!(copied(writes), 0);
    writes();
    assert_eq!(generation.copied_here().expect("a census").0, 0);
    assert!(counters.iter().enumerate().all(|(n, each)| each.load(Ordering::Relaxed) == n as u64 + 1));
}

fn copies_that_are_the_original_again_are_given_back() {
    let arcs: Vec<Arc<[u64; 6]>> = (0..50_000).map(|n| Arc::new([n; 6])).collect();
    let cells: Vec<AtomicU64> = (0..50_000).map(AtomicU64::new).collect();
    let generation = freeze();
    // A page that the parent has changed is its children's, and no original.
    cells[40_000].store(7, Ordering::Relaxed);
    assert_eq!(generation.reshare().expect("nothing to give back here").looked_at.0, 0);
    let mut child = fork::spawn(&ForkOptions::new(), |_| {
        arcs.iter().for_each(|each| drop(Arc::clone(each)));
        cells[9].store(8, Ordering::Relaxed);
        let given_back = generation.reshare().expect("one thread");
        assert!(given_back.reshared.0 > 700 && given_back.kept.0 == 2, "{given_back:?}");
        assert_eq!([9, 10, 40_000].map(|at: usize| cells[at].load(Ordering::Relaxed)), [8, 10, 7]);
        assert!(arcs.iter().enumerate().all(|(n, each)| each[5] == n as u64 && Arc::strong_count(each) == 1));
        // A second time there is nothing more.
        assert_eq!(generation.reshare().expect("one thread").reshared.0, 0);
    })
    .expect("a child");
    let exit = child.wait().expect("its end");
    assert!(exit.success(), "{exit:?}");
    assert_eq!(exit.report.copied_pages().0, 1, "{}", exit.report);
}

fn huge_and_aligned_objects_are_frozen_too() {
    #[repr(align(1048576))]
    struct Aligned([u8; 100]);
    let huge: Vec<u8> = (0..150_000_000u32).map(|n| n as u8).collect();
    let large: Vec<u8> = vec![3; 5 << 20];
    let aligned = Box::new(Aligned([4; 100]));
    let mut shrunk: Vec<u8> = vec![6; 190 << 20];
    shrunk.truncate(100 << 20);
    shrunk.shrink_to_fit();
    let more: Vec<u8> = vec![5; 70 << 20];
    let generation = freeze();
    assert!(generation.holds(&huge[149_999_999]) && generation.holds(&large[0]) && generation.holds(&aligned.0[99]));
    let check = || {
        assert!(huge.iter().enumerate().all(|(n, &byte)| byte == n as u8));
        assert!(large.iter().all(|&byte| byte == 3) && aligned.0 == [4; 100] && more.iter().all(|&byte| byte == 5));
    };
    check();
    assert_eq!(copied(check), 0);
    let mut child = fork::spawn(&ForkOptions::new(), |_| {
        let huge = huge.as_ptr().cast_mut().wrapping_add(100_000_000);
        let large = large.as_ptr().cast_mut().wrapping_add(1 << 20);
        // SAFETY: both are this process's own copies, and nobody has a reference into them now.
        unsafe { huge.write_volatile(9) };
        // SAFETY: as above.
        unsafe { large.write_volatile(9) };
    })
    .expect("a child");
    let report = child.wait().expect("its end").report;
    let mut sites: Vec<_> =
        report.arenas.iter().flat_map(|arena| &arena.sites).map(|site| site.type_name.clone()).collect();
    sites.sort_unstable();
    let page = cowbell::sys::page_size().bytes();
    let names = [5 << 20, 150_000_000usize.next_multiple_of(page)].map(|len| format!("a block of {len} bytes"));
    assert!(sites.contains(&names[0]) && sites.len() == 2, "{sites:?} is not {names:?}");
    let mut grown = huge;
    grown.push(1);
    assert!(!generation.holds(&grown[0]));
    assert!(shrunk.iter().all(|&byte| byte == 6));
    drop((large, aligned, more, shrunk));
    assert_eq!(generation.copied_here().expect("a census").0, 0);
}

fn a_child_of_busy_threads_may_freeze() {
    crate::threads::beside_busy_threads(|| {
        for _ in 0..10 {
            // SAFETY: the child uses the heap, whose lock a fork takes, and leaves by _exit.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                let data = Data::new(3000);
                let frozen = std::panic::catch_unwind(|| {
                    let generation = freeze();
                    assert!(generation.holds(&data.document[0]));
                    data.check(3000);
                });
                // SAFETY: it ends this process.
                unsafe { libc::_exit(i32::from(frozen.is_err())) };
            }
            crate::threads::wait_for(pid);
        }
    });
}

/// Words of a file.
fn words(file: &File, at: u64, count: usize) -> Vec<u64> {
    let mut bytes = vec![0; count * 8];
    file.read_exact_at(&mut bytes, at).expect("the file has them");
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)).collect()
}

/// Read as docs/FORMATS.md says, by nothing that wrote it.
fn an_images_file_tells_which_blocks_it_holds() {
    let mut numbers = Numbers(7);
    let sizes: Vec<usize> = (0..4000).map(|n| 1 + numbers.below([100, 3000, 60_000, 300_000][n % 4])).collect();
    let mut blocks: Vec<Vec<u8>> = sizes.iter().map(|&size| vec![1; size]).collect();
    (0..1000).for_each(|n| blocks[4 * n] = Vec::new());
    // Two that have chunks of their own, of which one ends within its last.
    blocks.extend([vec![1; 40 << 20], vec![1; 200 << 20]]);
    let generation = Heap::freeze().expect("one thread");
    let mut found = 0;
    for image in generation.images() {
        let file = File::from(image.file().try_clone_to_owned().expect("a descriptor"));
        let footer = words(&file, file.metadata().expect("a file").len() - 19 * 8, 19);
        assert_eq!((footer[0], footer[1]), (u64::from_ne_bytes(*b"cowbellh"), 1));
        assert_eq!((footer[2], footer[3]), (image.range().start as u64, image.range().len as u64));
        assert_eq!(footer[4], u64::from(image.generation()));
        let mut name = vec![0; footer[17] as usize];
        file.read_exact_at(&mut name, footer[16]).expect("a name");
        assert_eq!(name, image.name().as_bytes());
        for block in blocks.iter().filter(|block| block.capacity() > 0 && generation.holds(&block[0])) {
            let (address, len) = (block.as_ptr().addr() as u64, block.capacity() as u64);
            if !(footer[2]..footer[2] + footer[3]).contains(&address) {
                continue;
            }
            found += 1;
            for byte in [address, address + len - 1] {
                let unit = words(&file, footer[8] + (byte - footer[2]) / footer[7] * 24, 3);
                let nth = (byte - unit[0]) / unit[1];
                assert!(nth < unit[2], "{unit:?} {byte:#x}");
                assert_eq!(unit[0] + nth * unit[1], address, "{unit:?} {len}");
                let len_max = if len < 32 << 20 { len + len / 8 + 16 } else { len.next_multiple_of(64 << 20) };
                assert!((len..=len_max).contains(&unit[1]), "{unit:?} {len}");
            }
        }
    }
    assert_eq!(found, 3002);
}
