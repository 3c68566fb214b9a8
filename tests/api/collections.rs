//! Collections of an arena in other processes.

use crate::case::{Outcome, passed};
use crate::look::wait;
use cowbell::arena::{
    Arc, Arena, BTreeMap, BTreeSet as ASet, CollectIn, Cow, Handle, HashMap, String as AString, Vec as AVec, VecDeque,
};
use cowbell::fork::{self, ForkOptions};
use libtest_mimic::Trial;
use std::collections::{BTreeSet, HashSet};

fn a_child_that_clones_and_drops_counted_values_copies_no_page() -> Outcome {
    let arena = Arena::builder("counted").capacity(64 << 20).build()?;
    let all: AVec<Arc<[u64; 8]>> = (0..10_000).map(|n| arena.arc([n; 8])).collect_in(*arena);
    let frozen = arena.freeze(all)?;
    let root = frozen.root();
    let mut child = fork::spawn(&ForkOptions::new(), move |_| {
        let copies: Vec<_> = root.iter().map(Arc::clone).collect();
        assert!(copies.iter().zip(0..).all(|(copy, n)| **copy == [n; 8]));
        drop(copies);
    })?;
    let exit = wait(&mut child)?;
    assert_eq!((exit.ended, exit.report.copied_pages().0), (fork::Ended::Exited(0), 0));
    assert!(frozen.iter().map(Arc::clone).zip(0..).all(|(copy, n)| copy[0] == n), "nor is this process stopped");
    passed()
}

fn a_child_of_a_growing_arena_counts_nothing() -> Outcome {
    let arena = Arena::builder("growing").capacity(1 << 20).build()?;
    let one = arena.arc(7u64);
    let mut child = fork::spawn(&ForkOptions::new(), |_| {
        drop(Arc::clone(&one));
        let mut more = Arc::clone(&one);
        assert!(Arc::get_mut(&mut more).is_none());
    })?;
    assert_eq!(wait(&mut child)?.ended, fork::Ended::Exited(0));
    assert_eq!(*one, 7);
    passed()
}

fn handles_are_told_apart_and_stand_in_order() -> Outcome {
    let numbers = |name| -> cowbell::Result<_> {
        let arena = Arena::builder(name).capacity(1 << 20).build()?;
        let numbers: AVec<u64> = (0..100).collect_in(*arena);
        arena.freeze(numbers)
    };
    let (one, other) = (numbers("one")?, numbers("other")?);
    let mut handles: Vec<Handle<u64>> = Vec::new();
    for frozen in [&other, &one] {
        for number in frozen.root().iter().rev() {
            handles.push(frozen.handle(number)?);
        }
    }
    assert_eq!(handles.iter().collect::<HashSet<_>>().len(), 200);
    let sorted: BTreeSet<_> = handles.iter().copied().collect();
    let values: Vec<u64> = sorted.iter().map(|handle| handle.get().copied()).collect::<Result<_, _>>()?;
    assert_eq!(values, (0..100).chain(0..100).collect::<Vec<_>>());
    passed()
}

cowbell::contained! {
    struct Shop {
        names: BTreeMap<AString, Arc<Vec2>>,
        queue: VecDeque<Arc<Vec2>>,
        labels: AVec<Cow<str>>,
    }

    #[derive(Debug, PartialEq)]
    struct Vec2 { x: u64, y: u64 }
}

fn shop(from: u64) -> cowbell::Result<cowbell::arena::Frozen<Shop>> {
    let arena = Arena::builder(format!("shop {from}")).capacity(1 << 20).build()?;
    let points: Vec<_> = (from..from + 50).map(|n| arena.arc(Vec2 { x: n, y: n * n })).collect();
    let name = |point: &Arc<Vec2>| AString::from_str_in(&format!("point {}", point.x), *arena);
    let names = points.iter().map(|point| (name(point), Arc::clone(point))).collect_in(*arena);
    let mut labels = arena.vec();
    labels.push(Cow::Borrowed("a constant"));
    labels.push(Cow::Owned(name(&points[7])));
    let queue = points.into_iter().rev().collect_in(*arena);
    arena.freeze(Shop { names, queue, labels })
}

/// Workers whose zygote is older than the data read it, and count nothing.
#[cfg(feature = "pool")]
fn data_that_replaces_other_is_read_by_a_pools_workers() -> Outcome {
    use cowbell::pool::Pool;
    let pool = Pool::builder().workers(2).spawn(shop(0)?, |shop: &'static Shop, name: String| {
        let found = shop.names.get(name.as_str()).map(|point| (Arc::clone(point).x, point.y));
        let same =
            shop.queue.iter().any(|point| shop.names.get(name.as_str()).is_some_and(|own| Arc::ptr_eq(own, point)));
        (
            found,
            same,
            shop.labels[1].to_string(),
            shop.names.range::<str, _>((std::ops::Bound::Included("point 13"), std::ops::Bound::Unbounded)).count(),
        )
    })?;
    assert_eq!(pool.submit("point 9".into())?.wait(), Ok((Some((9, 81)), true, "point 7".into(), 45)));
    drop(pool.replace(shop(100)?)?);
    let answers = pool.map((0..200).map(|n| format!("point {n}"))).collect::<Result<Vec<_>, _>>().expect("results");
    assert_eq!(answers.iter().filter(|answer| answer.0.is_some() && answer.1).count(), 50);
    assert_eq!((&answers[120].0, &*answers[120].2), (&Some((120, 14_400)), "point 107"));
    passed()
}

#[cfg(not(feature = "pool"))]
fn data_that_replaces_other_is_read_by_a_pools_workers() -> Outcome {
    assert_eq!(shop(3)?.names.len(), 50);
    passed()
}

/// Values in a frozen arena are dropped where they lie, and read only.
fn dropping_what_lies_in_a_frozen_arena_writes_nothing() -> Outcome {
    let arena = Arena::builder("dropped").capacity(1 << 22).build()?;
    let handle = *arena;
    let text = || AString::from_str_in("a text that owns memory", handle);
    // The values of each queue lie round the end of its places.
    let queue = || {
        let mut queue = VecDeque::with_capacity_in(4, handle);
        (0..4).for_each(|_| queue.push_back(text()));
        drop((queue.pop_front(), queue.pop_front()));
        queue.push_back(text());
        queue
    };
    let map = || (0..100u64).map(|n| (n, queue())).collect_in::<BTreeMap<_, _>>(handle);
    let set = || (0..100).map(|n| AString::from_str_in(&n.to_string(), handle)).collect_in::<ASet<_>>(handle);
    let queues: AVec<_> = (0..3).map(|_| queue()).collect_in(handle);
    let queues_of_queues: VecDeque<_> = (0..3).map(|_| queue()).collect_in(handle);
    let (boxed, counted) = (arena.boxed(queue()), arena.arc(queue()));
    let table: HashMap<u64, _> = (0..100).map(|n| (n, queue())).collect_in(handle);
    let maps: AVec<_> = (0..3).map(|_| (map(), set(), text(), Cow::<str>::Owned(text()))).collect_in(handle);
    let counts: AVec<_> = (0..3).map(|_| (arena.arc(queue()), arena.arc(map()))).collect_in(handle);
    let (refused, in_box) = (map(), arena.boxed(map()));
    arena.freeze(7u64)?;
    let error = handle.alloc(refused).expect_err("it is frozen");
    assert!(error.is_frozen(), "{error}");
    drop((queues, queues_of_queues, boxed, counted, table));
    drop((maps, counts, in_box));
    passed()
}

pub fn trials() -> Vec<Trial> {
    claims![
        dropping_what_lies_in_a_frozen_arena_writes_nothing,
        a_child_that_clones_and_drops_counted_values_copies_no_page,
        a_child_of_a_growing_arena_counts_nothing,
        handles_are_told_apart_and_stand_in_order,
        data_that_replaces_other_is_read_by_a_pools_workers,
    ]
}
