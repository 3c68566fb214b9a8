//! Arenas of the heap: what a closure allocates is an image of its own, and goes with its value, whatever else was allocated meanwhile.

use crate::{Case, cases, status_kib};
use cowbell::fork::{self, ForkOptions};
use cowbell::heap::{self, Frozen, Scope, hot};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::OnceLock;

pub const CASES: &[Case] = cases![
    what_a_closure_builds_is_an_image_of_its_own,
    new_data_takes_the_place_of_old_data,
    what_is_allocated_for_others_stays_good_and_keeps_the_image_until_it_is_freed,
    threads_join_an_arena,
    arenas_are_built_inside_of_each_other,
    a_closure_that_panics_leaves_no_arena,
    an_arena_beside_a_thread_is_refused,
    a_scope_that_has_ended_is_none,
    what_the_standard_library_keeps_keeps_no_image,
    what_is_large_and_moves_stays_of_its_kind,
];

type Rows = HashMap<u64, serde_json::Value>;

fn rows(count: u64) -> Rows {
    (0..count).map(|n| (n, serde_json::json!({ "n": n, "name": format!("row {n}"), "list": [n, "text"] }))).collect()
}

fn check(rows: &Rows, count: u64) {
    assert!(rows.len() as u64 == count && rows.iter().all(|(n, row)| row["name"] == format!("row {n}")));
}

fn built(count: u64) -> Frozen<Rows> {
    heap::arena("rows", || rows(count)).expect("an arena")
}

fn what_a_closure_builds_is_an_image_of_its_own() {
    let before = vec![1u8; 5000];
    let data = built(20_000);
    let after = vec![1u8; 5000];
    let generation = data.generation();
    assert!(
        generation.holds(&*data) && data.values().all(|row| generation.holds(row) && generation.holds(&row["list"][1]))
    );
    assert!(!generation.holds(&before[0]) && !generation.holds(&after[0]));
    let mut child = fork::spawn(&ForkOptions::new(), |_| check(&data, 20_000)).expect("a child");
    let exit = child.wait().expect("its end");
    assert!(exit.success(), "{exit:?}");
    assert_eq!(exit.report.copied_pages().0, 0);
    assert!(exit.report.arenas.iter().all(|arena| arena.name == "rows") && !exit.report.arenas.is_empty());
    drop(exit);
    drop(child);
    // All of it is freed, by another thread, and nothing is copied for that.
    let generation = std::thread::spawn(move || data.release()).join().expect("it ends well");
    assert_eq!((generation.live_blocks(), generation.gone()), (0, generation.images().len()));
}

fn new_data_takes_the_place_of_old_data() {
    let mut data = built(30_000);
    check(&data, 30_000);
    let now = || status_kib("RssShmem") + status_kib("RssFile");
    let before = now();
    for round in 1..8 {
        data = built(30_000 + round);
        check(&data, 30_000 + round);
        let more = now().saturating_sub(before);
        assert!(more < 4 << 10, "{more} KiB more after {round} rounds");
    }
    let files = std::fs::read_dir("/proc/self/fd").expect("/proc").flatten();
    let open = files.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    assert_eq!(
        open.filter(|name| name.to_string_lossy().contains("cowbell:heap")).count(),
        data.generation().images().len()
    );
}

static LAZY: OnceLock<Vec<String>> = OnceLock::new();

thread_local! {
    static LOG: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn what_is_allocated_for_others_stays_good_and_keeps_the_image_until_it_is_freed() {
    let build = || {
        LOG.with_borrow_mut(|log| log.push(String::from("building")));
        let names = LAZY.get_or_init(|| (0..100).map(|n| n.to_string()).collect());
        // The first line that is printed makes a buffer.
        println!("{} rows", names.len());
        rows(5000)
    };
    let first = heap::arena("rows", build).expect("an arena").release();
    let others = first.live_blocks();
    assert!((103..110).contains(&others) && first.gone() == 0, "{others} blocks are others'");
    // The collections can be read, written, grown and freed; a child has them, too.
    let use_them = || {
        LOG.with_borrow_mut(|log| {
            log[0].push_str(" and on");
            log.extend((0..1000).map(|n| n.to_string()));
            assert!(log[0] == "building and on" && log[1000] == "999");
        });
        println!("{}", LAZY.get().expect("made")[99]);
    };
    let mut child = fork::spawn(&ForkOptions::new(), |_| use_them()).expect("a child");
    assert!(child.wait().expect("its end").success());
    use_them();
    assert_eq!(first.live_blocks(), others - 2, "the log and its first line have moved out");
    let second = heap::arena("rows", build).expect("an arena").release();
    // All that is made once is there now. The log is left, which grew, and its last line.
    assert_eq!((second.live_blocks(), second.gone()), (2, 0));
    LOG.with_borrow_mut(|log| drop(log.pop()));
    assert_eq!((second.live_blocks(), second.gone()), (1, 0));
    drop(LOG.take());
    assert_eq!((second.live_blocks(), second.gone()), (0, 1));
    assert_eq!(LAZY.get().expect("made")[99], "99");
}

fn threads_join_an_arena() {
    let lists = heap::arena("lists", || {
        let scope = Scope::current().expect("one is being built");
        std::thread::scope(|threads| {
            let list = move |from: u64| scope.join(|| (from..from + 5000).map(Box::new).collect::<Vec<_>>());
            let theirs: Vec<_> = (0..4).map(|at| threads.spawn(move || list(at * 5000))).collect();
            theirs.into_iter().map(|thread| thread.join().expect("it ends well")).collect::<Vec<_>>()
        })
    })
    .expect("an arena");
    let all = || lists.iter().flatten();
    assert!(all().all(|number| lists.generation().holds(&**number)) && all().map(|number| **number).eq(0..20_000));
    let generation = lists.release();
    // The things that std keeps of a thread that has ended may have been allocated by the one that started it.
    assert!(
        generation.gone() == generation.images().len() || generation.live_blocks() < 20,
        "{}",
        generation.live_blocks()
    );
}

fn arenas_are_built_inside_of_each_other() {
    let outer = heap::arena("outer", || {
        let before = vec![1u8; 100];
        let inner = heap::arena("inner", || vec![2u8; 100]).expect("an arena");
        let warm = hot(|| {
            assert_eq!(Scope::current(), None);
            vec![4u8; 100]
        });
        (before, inner, vec![3u8; 100], warm)
    })
    .expect("an arena");
    let (before, inner, after, warm) = &*outer;
    assert!(inner.generation().holds(&inner[0]) && !outer.generation().holds(&inner[0]));
    assert!(outer.generation().holds(&before[0]) && outer.generation().holds(&after[0]));
    assert!(!outer.generation().holds(&warm[0]));
    let outside = Box::new([0u8; 100]);
    assert!(!outer.generation().holds(&outside[0]));
    // More than there are kinds, one after the other, while all of them live.
    let many: Vec<_> = (0..40u64).map(|n| heap::arena("one of many", || vec![n; 100]).expect("an arena")).collect();
    assert!(many.iter().zip(0..).all(|(each, n)| each.iter().all(|&value| value == n)));
    let generation = outer.release();
    assert_eq!(generation.gone(), generation.images().len(), "{} blocks are left", generation.live_blocks());
}

fn a_closure_that_panics_leaves_no_arena() {
    for _ in 0..30 {
        let panicked = std::panic::catch_unwind(|| {
            heap::arena("none", || -> Vec<u8> {
                let _data = rows(100);
                std::panic::resume_unwind(Box::new(7))
            })
        });
        assert!(panicked.is_err() && Scope::current().is_none());
    }
    check(&built(1000), 1000);
}

fn an_arena_beside_a_thread_is_refused() {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let _closed = receiver.recv();
    });
    let error = heap::arena("rows", || -> Rows { panic!("it is not run") }).expect_err("there is a thread");
    assert_eq!(error.threads().map(<[_]>::len), Some(2), "{error}");
    drop(sender);
    thread.join().expect("it ends well");
    // And one that was started while it was built.
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let mut thread = None;
    let refused = heap::arena("rows", || {
        thread = Some(std::thread::spawn(move || {
            let _closed = receiver.recv();
        }));
        rows(1000)
    });
    assert_eq!(refused.expect_err("there is a thread").threads().map(<[_]>::len), Some(2));
    drop(sender);
    thread.expect("it was started").join().expect("it ends well");
    check(&built(1000), 1000);
}

fn a_scope_that_has_ended_is_none() {
    let mut scope = None;
    let data = heap::arena("rows", || {
        scope = Scope::current();
        vec![1u8; 100]
    })
    .expect("an arena");
    let scope = scope.expect("one was being built");
    let later = scope.join(|| vec![2u8; 100]);
    assert!(!data.generation().holds(&later[0]));
    let other = heap::arena("other", || scope.join(|| (Scope::current(), vec![3u8; 100]))).expect("an arena");
    assert!(other.generation().holds(&other.1[0]) && other.0 != Some(scope));
}

/// The type has a destructor, and no memory of its own.
struct Ends(u8);

impl Drop for Ends {
    fn drop(&mut self) {
        assert_eq!(self.0, 1);
    }
}

/// Thread-local storage with destructors: more than the list of them has room for at first.
macro_rules! locals {
    ($($name:ident)*) => {
        thread_local! {
            $(static $name: Ends = const { Ends(1) };)*
        }
        fn touch_locals() {
            $($name.with(|ends| assert_eq!(ends.0, 1));)*
        }
    };
}
locals!(A B C D E F G H I J K L M N O P Q R S T U V W X Y Z);

fn what_the_standard_library_keeps_keeps_no_image() {
    let data = heap::arena("rows", || {
        touch_locals();
        println!("the first line");
        assert!(std::thread::current().name().is_some());
        rows(1000)
    });
    let generation = data.expect("an arena").release();
    assert_eq!((generation.live_blocks(), generation.gone()), (0, generation.images().len()));
    let rows = rows(1000);
    let generation = heap::Heap::freeze().expect("one thread");
    println!("a line more");
    check(&rows, 1000);
    assert_eq!(generation.copied_here().expect("a census").0, 0, "a line was printed");
    // A vector stays where it was put.
    let mut list = hot(|| vec![1u64; 4]);
    list.extend(0..100_000);
    let generation = heap::Heap::freeze().expect("one thread");
    assert!(!generation.holds(&list[50_000]));
}

/// Smaller ones go where they grow, if they have to move.
fn what_is_large_and_moves_stays_of_its_kind() {
    let (mut large, mut small, _behind) = (vec![1u8; 2 << 20], vec![1u8; 2 << 20], vec![1u8; 2 << 20]);
    let grown = heap::arena("grown", || {
        large.reserve_exact(100 << 20);
        small.reserve_exact(1 << 20);
    });
    let grown = grown.expect("an arena");
    assert!(!grown.generation().holds(&large[0]) && grown.generation().holds(&small[0]));
    let (mut large, mut small, _behind) = (vec![1u8; 2 << 20], vec![1u8; 2 << 20], vec![1u8; 2 << 20]);
    hot(|| {
        large.reserve_exact(100 << 20);
        small.reserve_exact(1 << 20);
    });
    let frozen = heap::Heap::freeze().expect("one thread");
    assert!(frozen.holds(&large[0]) && !frozen.holds(&small[0]));
}
