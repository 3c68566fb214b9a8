//! Growing arenas: what can be put in, how it is laid out, and how each limit is met.
#![expect(unsafe_code, reason = "arenas are released, allocators are called by hand")]

use crate::case::{Outcome, passed};
use crate::look::{descriptors, mapped_files, maps, wait};
use allocator_api2::alloc::{Allocator, Layout};
use cowbell::arena::{Arena, ArenaRef, Box, HashMap, HashSet, Vec};
use cowbell::fork::{self, ForkOptions};
use cowbell::sys::map::Range;
use libtest_mimic::Trial;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

fn arena(name: &str, capacity: usize) -> cowbell::Result<Arena> {
    Arena::builder(name).capacity(capacity).build()
}

/// The place of an arena, from `/proc/self/maps`.
pub fn place_of(name: &str) -> Option<Range> {
    let shown = format!("/memfd:cowbell:{name} (deleted)");
    let line = maps().into_iter().find(|line| line.ends_with(&shown))?;
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some(Range { start, len: end - start })
}

fn values_slices_strings_and_iterators_read_back_here_and_in_a_child() -> Outcome {
    let arena = arena("values", 1 << 20)?;
    let value: &u64 = arena.alloc(7)?;
    let slice: &[u16] = arena.alloc_slice(&[1, 2, 3])?;
    let text: &str = arena.alloc_str("grün")?;
    // A filter does not know how many it will yield, a range does.
    let odd: &[u32] = arena.alloc_iter((0..10_000).filter(|n| n % 2 == 1))?;
    let known: &[u8] = arena.alloc_iter(0..=255)?;
    let empty: &[u32] = arena.alloc_iter(std::iter::empty())?;
    let frozen = arena.freeze((value, slice, text, odd, known, empty))?;
    let right = move || {
        let (value, slice, text, odd, known, empty) = *frozen;
        assert_eq!((*value, slice, text, empty), (7, &[1, 2, 3][..], "grün", &[][..]));
        assert!(odd.iter().copied().eq((0..5000).map(|n| 2 * n + 1)));
        assert!(known.iter().copied().eq(0..=255));
    };
    right();
    let exit = wait(&mut fork::spawn(&ForkOptions::new(), |_| right())?)?;
    assert!(exit.success(), "{:?}", exit.panic);
    assert_eq!(exit.report.copied_pages().0, 0, "reading copies nothing");
    passed()
}

struct Collections {
    list: Vec<u64>,
    boxed: Box<[u64; 600]>,
    map: HashMap<u64, Vec<u32>>,
    set: HashSet<&'static str>,
}

fn collections_live_in_the_arena_and_are_read_in_a_child_without_a_copy() -> Outcome {
    let arena = arena("collections", 8 << 20)?;
    let mut list = Vec::new_in(*arena);
    list.extend(0..1000);
    let mut map = HashMap::with_hasher_in(Default::default(), *arena);
    for n in 0..1000u64 {
        let mut squares = Vec::new_in(*arena);
        squares.extend((0..n as u32 % 5).map(|k| k * k));
        map.insert(n, squares);
    }
    map.remove(&999);
    let mut set = HashSet::with_hasher_in(Default::default(), *arena);
    set.extend(["a", "b", "a"]);
    let boxed = Box::new_in([9; 600], *arena);
    let frozen = arena.freeze_unchecked(Collections { list, boxed, map, set })?;

    let range = frozen.image().range();
    let inside = |address: usize| range.contains(address);
    assert!(inside(std::ptr::from_ref(&*frozen).addr()), "the root");
    assert!(inside(frozen.list.as_ptr().addr()) && inside(frozen.boxed.as_ptr().addr()));
    assert!(frozen.map.iter().all(|(key, list)| {
        inside(std::ptr::from_ref(key).addr()) && (list.is_empty() || inside(list.as_ptr().addr()))
    }));
    assert!(frozen.set.iter().all(|text| inside(std::ptr::from_ref(text).addr())));

    let exit = wait(&mut fork::spawn(&ForkOptions::new(), |_| {
        assert_eq!(frozen.list.iter().sum::<u64>(), 499_500);
        assert_eq!((frozen.map.len(), frozen.set.len(), frozen.boxed[599]), (999, 2, 9));
        assert_eq!(&frozen.map[&4][..], [0, 1, 4, 9]);
        assert!(frozen.set.contains("b") && !frozen.map.contains_key(&999));
    })?)?;
    assert!(exit.success(), "{:?}", exit.panic);
    assert_eq!(exit.report.copied_pages().0, 0);
    passed()
}

fn threads_grow_one_arena_together_and_none_gets_anothers_memory() -> Outcome {
    const THREADS: usize = 8;
    let arena = arena("threads", 64 << 20)?;
    let handle: ArenaRef = *arena;
    let lists: std::vec::Vec<Vec<&'static [usize]>> = std::thread::scope(|scope| {
        let grow = |mine: usize| {
            let mut kept = Vec::new_in(handle);
            for n in 0..1500usize {
                kept.push(&*handle.alloc_slice(&vec![mine * 10_000 + n; n % 97]).expect("room"));
                // Something is given back all the time, too.
                drop(Box::new_in([mine; 100], handle));
            }
            kept
        };
        let threads: std::vec::Vec<_> = (0..THREADS).map(|mine| scope.spawn(move || grow(mine))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let mut taken = BTreeSet::new();
    for (mine, list) in lists.iter().enumerate() {
        for (n, values) in list.iter().enumerate() {
            assert!(values.len() == n % 97 && values.iter().all(|&v| v == mine * 10_000 + n), "{mine} {n}");
            assert!(values.is_empty() || taken.insert(values.as_ptr().addr()), "one place, once");
        }
    }
    let frozen = arena.freeze_unchecked(lists)?;
    let exit = wait(&mut fork::spawn(&ForkOptions::new(), |_| assert_eq!(frozen[3][96][95], 30_096))?)?;
    assert!(exit.success(), "{:?}", exit.panic);
    passed()
}

fn the_last_allocation_grows_and_shrinks_where_it_lies() -> Outcome {
    let arena = arena("in place", 64 << 20)?;
    let mut list: Vec<u64> = Vec::new_in(*arena);
    list.push(0);
    let place = list.as_ptr();
    list.extend(1..1_000_000);
    assert_eq!(list.as_ptr(), place, "nothing lies behind it, so it grows in place");
    assert!(list.iter().copied().eq(0..1_000_000));
    let grown = arena.used();
    list.truncate(10);
    list.shrink_to_fit();
    assert_eq!(list.as_ptr(), place);
    assert!(arena.used() < 200 && grown >= 8_000_000, "{} then {}", grown, arena.used());
    let behind = arena.alloc(1u8)?;
    list.extend(0..1000);
    assert_ne!(list.as_ptr(), place, "now its neighbour is in the way");
    assert_eq!((&list[..10], *behind), (&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9][..], 1));
    passed()
}

fn zero_sized_values_take_no_memory() -> Outcome {
    let arena = arena("nothing", 1 << 20)?;
    arena.alloc(())?;
    arena.alloc_slice(&[[0u64; 0]; 100])?;
    arena.alloc_iter((0..1000).map(|_| ()))?;
    arena.alloc_str("")?;
    let mut list: Vec<()> = Vec::new_in(*arena);
    list.extend((0..100).map(|_| ()));
    drop(Box::new_in((), *arena));
    assert_eq!(arena.used(), 0);
    drop(list);
    let frozen = arena.freeze(())?;
    assert_eq!((frozen.image().used(), frozen.image().pages().0 > 0), (0, true));
    let handle = frozen.handle(frozen.root())?;
    handle.get()?;
    passed()
}

#[repr(align(64))]
struct Line(u8);
#[repr(align(4096))]
struct Page(u8);
#[repr(align(2097152))]
struct Huge(());

fn alignment_of_any_power_of_two_is_kept() -> Outcome {
    let arena = arena("aligned", 256 << 20)?;
    for n in 0..5u8 {
        arena.alloc(n)?;
        let line = arena.alloc(Line(n))?;
        arena.alloc(n)?;
        let page = arena.alloc(Page(n))?;
        assert_eq!((line.0, page.0), (n, n));
        assert_eq!(std::ptr::from_ref(line).addr() % 64, 0);
        assert_eq!(std::ptr::from_ref(page).addr() % 4096, 0);
    }
    for shift in 0..=25 {
        let layout = Layout::from_size_align(24, 1 << shift)?;
        let place = (*arena).allocate(layout)?.cast::<u8>();
        assert_eq!(place.addr().get() % (1 << shift), 0, "2^{shift}");
        // SAFETY: 24 bytes were just given for this.
        unsafe { place.write_bytes(1, 24) };
    }
    let nothing = arena.alloc_slice::<Huge>(&[])?;
    assert_eq!(nothing.as_ptr().addr() % align_of::<Huge>(), 0);
    let e = (*arena).allocate(Layout::from_size_align(8, 1 << 40)?);
    assert!(
        e.is_err() && (*arena).take_failure().is_some_and(|e| e.is_out_of_capacity()),
        "an alignment that does not fit"
    );
    let frozen = arena.freeze_unchecked(Page(1))?;
    assert_eq!((std::ptr::from_ref(frozen.root()).addr() % 4096, frozen.0), (0, 1));
    passed()
}

impl Clone for Huge {
    fn clone(&self) -> Self {
        *self
    }
}
impl Copy for Huge {}

static DROPS: AtomicUsize = AtomicUsize::new(0);

struct Counted(u32);

impl Drop for Counted {
    fn drop(&mut self) {
        DROPS.fetch_add(self.0 as usize, Ordering::Relaxed);
    }
}

fn drops_since(before: usize) -> usize {
    DROPS.load(Ordering::Relaxed) - before
}

fn what_alloc_took_is_never_dropped_and_a_growing_vec_drops_as_usual() -> Outcome {
    let arena = arena("drops", 1 << 20)?;
    let before = DROPS.load(Ordering::Relaxed);
    arena.alloc(Counted(1))?;
    arena.alloc_iter((0..10).map(|_| Counted(1)))?;
    assert_eq!(drops_since(before), 0);
    let used = arena.used();
    let mut list = Vec::new_in(*arena);
    list.extend((0..100).map(|_| Counted(1)));
    drop(list);
    assert_eq!((drops_since(before), arena.used()), (100, used), "dropped, and its memory is free again");
    drop(Box::new_in(Counted(1), *arena));
    assert_eq!(drops_since(before), 101);
    let mut kept = Vec::new_in(*arena);
    kept.extend((0..5).map(|_| Counted(1)));
    let frozen = arena.freeze_unchecked(kept)?;
    // SAFETY: nothing in the arena is used any more.
    unsafe { frozen.release() }?;
    assert_eq!(drops_since(before), 101, "a frozen root is not dropped, not even by release");
    passed()
}

fn an_iterator_that_does_not_fit_has_its_values_dropped() -> Outcome {
    let arena = arena("too many", 4096)?;
    let before = DROPS.load(Ordering::Relaxed);
    let mut made = 0;
    let endless = std::iter::repeat_with(|| {
        made += 1;
        Counted(1)
    });
    let e = arena.alloc_iter(endless.filter(|_| true)).err().ok_or("there is no such room")?;
    assert!(e.is_out_of_capacity(), "{e}");
    assert!(made > 500, "it was filled first: {made}");
    assert_eq!((drops_since(before), arena.used()), (made, 0));
    passed()
}

fn a_vec_kept_across_the_freeze_shrinks_and_drops_but_does_not_grow() -> Outcome {
    let arena = arena("kept", 1 << 20)?;
    let handle = *arena;
    let before = DROPS.load(Ordering::Relaxed);
    let mut kept = Vec::new_in(handle);
    kept.extend((0..300).map(|_| Counted(1)));
    kept.reserve_exact(700);
    let mut second = Vec::new_in(handle);
    second.extend_from_slice(&[5u8; 100]);
    let place = kept.as_ptr();
    let frozen = arena.freeze(())?;
    assert!(handle.is_frozen());
    kept.shrink_to_fit();
    assert_eq!((kept.as_ptr(), kept.len()), (place, 300), "nothing moves");
    assert!(kept.try_reserve(10_000).is_err());
    assert!(handle.take_failure().is_some_and(|e| e.is_frozen()));
    assert!(handle.take_failure().is_none(), "it is said once");

    let exit = wait(&mut fork::spawn(&ForkOptions::new(), |_| {
        // The child's copy of the Vec is dropped: its values are, and nothing is written to free memory.
        drop(std::mem::replace(&mut second, Vec::new_in(handle)));
        second.shrink_to_fit();
        assert!(second.try_reserve(1).is_err());
    })?)?;
    assert!(exit.success(), "{:?}", exit.panic);
    assert_eq!(exit.report.copied_pages().0, 0);

    drop(kept);
    assert_eq!(drops_since(before), 300);
    assert_eq!((&second[..], frozen.image().used() > 0), (&[5; 100][..], true));
    passed()
}

fn a_full_arena_names_itself_the_size_asked_and_its_capacity() -> Outcome {
    let arena = arena("tiny", 8192)?;
    assert_eq!(arena.capacity(), 8192);
    let e = arena.alloc_slice(&[0u8; 10_000]).err().ok_or("10,000 bytes in 8,192")?;
    assert!(e.is_out_of_capacity() && !e.is_out_of_memory() && e.hint().is_some(), "{e}");
    let text = e.to_string();
    assert!(text.contains("`tiny`") && text.contains("10000 bytes") && text.contains("8192 bytes"), "{text}");
    let mut list: Vec<u64> = Vec::new_in(*arena);
    assert!(list.try_reserve(5000).is_err());
    assert!(arena.take_failure().is_some_and(|e| e.is_out_of_capacity()));
    // An object that fits still goes in, to the last byte.
    assert_eq!(arena.alloc_slice(&[1u8; 8192])?.len(), 8192);
    assert!(arena.alloc(1u8).is_err_and(|e| e.is_out_of_capacity()));
    assert!(arena.freeze(0u8).is_err_and(|e| e.is_out_of_capacity()), "no room for the root");
    passed()
}

fn an_arena_of_1_tib_is_built_and_frozen_without_that_memory() -> Outcome {
    let arena = arena("vast", 1 << 40)?;
    let data = arena.alloc_slice(&[3u8; 1 << 20])?;
    let frozen = arena.freeze(&*data)?;
    assert!(frozen.image().range().len < 8 << 20, "only what is used is kept");
    let exit = wait(&mut fork::spawn(&ForkOptions::new(), |_| assert_eq!(frozen[1 << 19], 3))?)?;
    assert!(exit.success(), "{:?}", exit.panic);
    passed()
}

fn the_arenas_name_shows_in_proc_maps_while_it_grows_and_when_it_is_frozen() -> Outcome {
    let line = |name: &str| maps().into_iter().find(|line| line.ends_with(&format!("/memfd:cowbell:{name} (deleted)")));
    let arena = arena("ein Name", 1 << 20)?;
    arena.alloc(1u8)?;
    assert!(line("ein Name").is_some_and(|line| line.contains(" rw-s ")));
    let frozen = arena.freeze(())?;
    assert!(line("ein Name").is_some_and(|line| line.contains(" r--p ")));
    assert_eq!((frozen.image().name(), place_of("ein Name")), ("ein Name", Some(frozen.image().range())));
    passed()
}

fn a_name_or_capacity_that_makes_no_sense_is_refused() -> Outcome {
    for name in ["", "a\nb", "nul\0", "\u{1b}[1m", &"x".repeat(201)] {
        assert!(Arena::builder(name).build().is_err_and(|e| e.is_invalid()), "{name:?}");
    }
    let longest = "é".repeat(100);
    assert_eq!(Arena::builder(longest.clone()).build()?.name(), longest);
    for capacity in [0, usize::MAX, usize::MAX - (4 << 20)] {
        let e = arena("capacity", capacity).err().ok_or("that is no capacity")?;
        assert!(e.is_invalid(), "{capacity}: {e}");
    }
    passed()
}

/// Also when every place in the table was used before.
fn a_released_arenas_number_never_comes_again() -> Outcome {
    let mut numbers = BTreeSet::new();
    const MANY: usize = 1100;
    for n in 0..MANY {
        let frozen = arena("slot", 1 << 20)?.freeze(n)?;
        // Slot, generation and offset, which is the same each time.
        numbers.insert(format!("{:?}", frozen.handle(frozen.root())?));
        assert_eq!(*frozen, n);
        // SAFETY: nothing in the arena is used any more.
        unsafe { frozen.release() }?;
        assert!(n % 100 != 0 || place_of("slot").is_none(), "released memory is unmapped");
    }
    assert_eq!(numbers.len(), MANY, "each has a number of its own");
    passed()
}

fn two_hundred_arenas_leave_no_descriptor_and_no_mapping() -> Outcome {
    let once = |n: usize| -> cowbell::Result<()> {
        let growing = arena("never frozen", 1 << 20)?;
        growing.alloc(n)?;
        // SAFETY: nothing in the arena is used any more.
        unsafe { growing.release() }?;
        let arena = Arena::builder("passing").capacity(1 << 22).record_sites(n.is_multiple_of(2)).build()?;
        let mut list = Vec::new_in(*arena);
        list.extend(0..n * 100);
        let frozen = arena.freeze(list)?;
        // SAFETY: as above.
        unsafe { frozen.release() }
    };
    once(1)?;
    let (before, mappings) = ((descriptors(), mapped_files()), maps().len());
    (0..200).try_for_each(once)?;
    assert_eq!((descriptors(), mapped_files()), before);
    // The ordinary allocator may have taken one for itself.
    assert!(maps().len() < mappings + 20, "{} of {mappings}", maps().len());
    passed()
}

/// The tests of this file.
pub fn trials() -> std::vec::Vec<Trial> {
    claims![
        values_slices_strings_and_iterators_read_back_here_and_in_a_child,
        collections_live_in_the_arena_and_are_read_in_a_child_without_a_copy,
        threads_grow_one_arena_together_and_none_gets_anothers_memory,
        the_last_allocation_grows_and_shrinks_where_it_lies,
        zero_sized_values_take_no_memory,
        alignment_of_any_power_of_two_is_kept,
        what_alloc_took_is_never_dropped_and_a_growing_vec_drops_as_usual,
        an_iterator_that_does_not_fit_has_its_values_dropped,
        a_vec_kept_across_the_freeze_shrinks_and_drops_but_does_not_grow,
        a_full_arena_names_itself_the_size_asked_and_its_capacity,
        an_arena_of_1_tib_is_built_and_frozen_without_that_memory,
        the_arenas_name_shows_in_proc_maps_while_it_grows_and_when_it_is_frozen,
        a_name_or_capacity_that_makes_no_sense_is_refused,
        a_released_arenas_number_never_comes_again,
        two_hundred_arenas_leave_no_descriptor_and_no_mapping,
    ]
}
