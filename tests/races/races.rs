//! Threads of one process at the library, without a fork: what ThreadSanitizer can follow (`tools/run-sanitizers`). Without it these
//! are ordinary tests.
#![cfg(test)]

// The very file of the watches' ring of events, with its tests, of which one has three writers and a reader at once.
#[path = "../../src/watch/signal_safe/ring.rs"]
mod ring;

use cowbell::SideArc;
use cowbell::arena::{Arc as AArc, Arena, Frozen, Handle, HashMap, Vec as AVec};
use cowbell::heap::Heap;
use cowbell::shared::SharedArena;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

const THREADS: u64 = 4;
/// Under ThreadSanitizer all that these tests and the harness allocate is of the heap. AddressSanitizer knows the blocks of the ordinary one.
#[cfg(cowbell_low_arenas)]
#[global_allocator]
static HEAP: Heap = Heap;

/// Under a sanitizer each step takes some ten times as long.
const STEPS: u64 = 2_000;

/// Runs `work` in some threads at once, each with its number, and joins them.
fn at_once<R: Send + 'static>(work: impl Fn(u64) -> R + Send + Sync + 'static) -> Vec<R> {
    let work = Arc::new(work);
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let work = Arc::clone(&work);
            thread::spawn(move || work(number))
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
}

fn arena(name: &str) -> Arena {
    Arena::builder(name).capacity(256 << 20).record_sites(true).build().expect("an arena")
}

#[test]
fn threads_build_in_one_arena() {
    let arena = arena("build");
    let handle = *arena;
    let built = at_once(move |number| {
        let mut list = AVec::new_in(handle.site::<u64>());
        let mut map = HashMap::with_hasher_in(Default::default(), handle.site::<(u64, u64)>());
        for step in 0..STEPS {
            list.push(step * number);
            map.insert(step, number);
            // Memory that one thread gives up is another's next.
            let mut passing: AVec<u64> = AVec::with_capacity_in(step as usize % 300 + 1, handle);
            assert!(passing.spare_capacity_mut().len() > step as usize % 300);
            passing.push(step);
            if step % 50 == 0 {
                list.shrink_to_fit();
                map.remove(&(step / 2));
            }
        }
        (list, map)
    });
    for (number, (list, map)) in built.iter().enumerate() {
        assert!(list.iter().zip(0..).all(|(&value, step)| value == step * number as u64));
        assert!(map.values().all(|&value| value == number as u64));
    }
    let mut all = AVec::new_in(*arena);
    all.extend(built);
    let frozen = arena.freeze(all).expect("frozen");
    assert_eq!(frozen.len() as u64, THREADS);
}

#[test]
fn threads_put_values_in_until_one_freezes() {
    static PUT: AtomicU64 = AtomicU64::new(0);
    for _ in 0..10 {
        PUT.store(0, Ordering::Relaxed);
        let arena = arena("frozen beside");
        let handle = *arena;
        let putting: Vec<_> = (0..THREADS)
            .map(|number| {
                thread::spawn(move || {
                    loop {
                        let put = handle.alloc([number; 9]).map(|value| assert_eq!(*value, [number; 9]));
                        let put = put.and_then(|()| handle.alloc_iter((0..50).map(|n| n ^ number)).map(drop));
                        let put = put.and_then(|()| handle.alloc_str("text").map(drop));
                        PUT.fetch_add(1, Ordering::Relaxed);
                        if let Err(error) = put {
                            return error;
                        }
                    }
                })
            })
            .collect();
        while PUT.load(Ordering::Relaxed) < 20 {
            thread::yield_now();
        }
        let frozen = arena.freeze(7u64).expect("frozen");
        for thread in putting {
            let error = thread.join().expect("no panic");
            assert!(error.is_frozen(), "{error}");
        }
        assert_eq!(*frozen, 7);
    }
}

#[test]
fn handles_are_followed_while_arenas_come() {
    let frozen = |name: String| -> Frozen<&'static [u64]> {
        let arena = arena(&name);
        let values = &*arena.alloc_iter(0..1000u64).expect("room");
        arena.freeze(values).expect("frozen")
    };
    let first = frozen("first".to_owned());
    let handles: Vec<Handle<u64>> = first.iter().map(|value| first.handle(value).expect("inside")).collect();
    let sums = at_once(move |number| {
        let mut sum = 0;
        for step in 0..STEPS / 10 {
            if number == 0 && step % 20 == 0 {
                let next = frozen(format!("next {step}"));
                assert_eq!(*next.handle(&next[3]).and_then(Handle::get).expect("it lies there"), 3);
            }
            sum = handles.iter().map(|handle| *handle.get().expect("it lies there")).sum::<u64>();
        }
        sum
    });
    assert_eq!(sums, vec![499_500; THREADS as usize]);
}

#[test]
fn threads_share_memory_behind_locks() {
    let arena = SharedArena::new("shared", 8 << 20).expect("shared memory");
    let sum = arena.mutex([0u64; 4]).expect("room");
    let list = arena.vec::<u64>((THREADS * STEPS) as usize).expect("room");
    let queue = arena.queue::<u64>(16).expect("room");
    let count = arena.alloc(AtomicU64::new(0)).expect("room");
    let (seen, pushed, passed) = (sum.clone(), list.clone(), queue.clone());
    let taken = at_once(move |number| {
        let mut taken = 0;
        for step in 0..STEPS / 4 {
            sum.with(|sum| sum.iter_mut().for_each(|part| *part += 1)).expect("nobody dies");
            list.push(step).expect("there is room");
            count.fetch_add(1, Ordering::Relaxed);
            if number % 2 == 0 {
                queue.push(step).expect("open");
            } else {
                taken += queue.pop().expect("open");
            }
        }
        taken
    });
    let each: u64 = (0..STEPS / 4).sum();
    assert_eq!(taken.iter().sum::<u64>(), 2 * each);
    assert_eq!(seen.with(|sum| *sum).expect("nobody died"), [THREADS * STEPS / 4; 4]);
    assert_eq!((pushed.len() as u64, passed.len()), (THREADS * STEPS / 4, 0));
    assert_eq!(pushed.to_vec().expect("nobody died").iter().sum::<u64>(), THREADS * each);
}

/// Blocks of all sizes go from thread to thread, are grown there, checked, and freed by whoever has them last; threads end while others have their blocks.
#[test]
fn threads_allocate_grow_and_free_what_others_made() {
    const THREADS: u64 = 4;
    assert_eq!(Heap::is_in_use(), cfg!(cowbell_low_arenas));
    for round in 0..3 {
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| mpsc::channel::<Vec<u8>>()).unzip();
        let threads = receivers.into_iter().zip(0u64..).map(|(mine, at)| {
            let others = senders.clone();
            thread::spawn(move || {
                let mut random = at * 7919 + round + 1;
                let mut kept: Vec<Vec<u8>> = Vec::new();
                for step in 0..STEPS {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let shift = if step % 300 == 0 { 20 } else { 5 + random % 8 };
                    let mark = random as u8;
                    let mut block = vec![mark; 1 + (random >> 20) as usize % (1 << shift)];
                    if random.is_multiple_of(5) {
                        block.resize(block.len() * 2, mark);
                    }
                    match random % 3 {
                        0 => kept.push(block),
                        // A thread that has ended takes nothing.
                        _ => _ = others[(random >> 8) as usize % others.len()].send(block),
                    }
                    kept.extend(mine.try_recv());
                    if kept.len() > 40 {
                        let gone = kept.swap_remove((random >> 30) as usize % 40);
                        assert!(gone.iter().all(|byte| *byte == gone[0]));
                    }
                }
                kept
            })
        });
        let threads: Vec<_> = threads.collect();
        drop(senders);
        let left: Vec<Vec<u8>> = threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect();
        assert!(left.iter().all(|block| block.iter().all(|byte| *byte == block[0])));
    }
}

#[test]
fn threads_count_pointers_whose_counts_lie_apart() {
    let all: Vec<SideArc<u64>> = (0..20).map(SideArc::new).collect();
    let theirs = all.clone();
    at_once(move |at| {
        let mut kept = Vec::new();
        for step in 0..STEPS {
            let one = &theirs[((step + at) % 20) as usize];
            kept.push(SideArc::clone(one));
            if kept.len() > 10 {
                kept.swap_remove(3);
            }
        }
        assert!(kept.iter().all(|each| **each < 20));
    });
    assert!(all.iter().all(|each| SideArc::strong_count(each) == 1));
}

#[test]
fn threads_count_values_of_an_arena_until_one_freezes_it() {
    static COUNTED: AtomicU64 = AtomicU64::new(0);
    for _ in 0..10 {
        COUNTED.store(0, Ordering::Relaxed);
        let arena = arena("counted");
        let all: Vec<AArc<[u64; 4]>> = (0..20).map(|n| arena.arc([n; 4])).collect();
        let counting: Vec<_> = (0..THREADS)
            .map(|number| {
                // This thread has the last one of some values in the end.
                let own: Vec<_> = (0..STEPS).map(|n| arena.arc([n ^ number; 4])).collect();
                let theirs = all.clone();
                thread::spawn(move || {
                    let mut kept = Vec::new();
                    for (step, own) in own.into_iter().enumerate() {
                        kept.push(AArc::clone(&theirs[(step + number as usize) % 20]));
                        kept.push(AArc::clone(&own));
                        drop(own);
                        if kept.len() > 10 {
                            kept.swap_remove(step % 10);
                        }
                        COUNTED.fetch_add(1, Ordering::Relaxed);
                    }
                    kept.iter().map(|value| value[0].wrapping_sub(value[3])).sum::<u64>()
                })
            })
            .collect();
        while COUNTED.load(Ordering::Relaxed) < 200 {
            thread::yield_now();
        }
        let list = all.first().cloned().expect("twenty");
        let frozen = arena.freeze(list).expect("frozen");
        for thread in counting {
            assert_eq!(thread.join().expect("no panic"), 0);
        }
        assert_eq!(AArc::clone(&frozen)[3], 0);
        assert!(all.iter().zip(0..).all(|(value, n)| value[2] == n));
    }
}
