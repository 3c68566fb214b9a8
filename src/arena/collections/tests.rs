use super::{Arc, BTreeMap, BTreeSet, CollectIn, Cow, String, VecDeque};
use crate::arena::{Arena, ArenaRef};
use proptest::prelude::*;
use std::collections::{BTreeMap as StdMap, VecDeque as StdDeque};
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

fn arena(name: &str) -> Arena {
    Arena::builder(name).capacity(64 << 20).build().expect("an arena")
}

/// Steps at a map: a number to put in, to take out, or an end to take.
#[derive(Clone, Debug)]
enum Step {
    Insert(u16),
    Remove(u16),
    First,
    Last,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Phases that grow and phases that shrink, so that nodes split and join.
    let phase = (1u32..10, 1u32..10, 1u16..700).prop_flat_map(|(more, less, keys)| {
        let step = prop_oneof![
            more => (0..keys).prop_map(Step::Insert),
            less => (0..keys).prop_map(Step::Remove),
            1 => Just(Step::First),
            1 => Just(Step::Last),
        ];
        proptest::collection::vec(step, 1..400)
    });
    proptest::collection::vec(phase, 1..5).prop_map(|phases| phases.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 60 } else { 300 }))]

    #[test]
    fn a_map_is_what_the_standard_librarys_is(steps in steps(), bounds in proptest::collection::vec(0u16..750, 10)) {
        let arena = arena("map");
        let (mut ours, mut theirs) = (arena.btree_map(), StdMap::new());
        let counted = Rc::new(());
        for (number, step) in steps.into_iter().enumerate() {
            let value = (number, Rc::clone(&counted));
            match step {
                Step::Insert(key) => prop_assert_eq!(ours.insert(key, value.clone()), theirs.insert(key, value)),
                Step::Remove(key) => prop_assert_eq!(ours.remove(&key), theirs.remove(&key)),
                Step::First => prop_assert_eq!(ours.pop_first(), theirs.pop_first()),
                Step::Last => prop_assert_eq!(ours.pop_last(), theirs.pop_last()),
            }
            prop_assert_eq!(ours.len(), theirs.len());
        }
        prop_assert_eq!(Rc::strong_count(&counted), 1 + 2 * theirs.len());
        prop_assert!(ours.iter().eq(theirs.iter()));
        prop_assert!(ours.iter().rev().eq(theirs.iter().rev()));
        prop_assert!(ours.iter_mut().map(|(key, value)| (*key, value.0)).eq(theirs.iter().map(|(key, value)| (*key, value.0))));
        for key in (0..750).step_by(7) {
            prop_assert_eq!(ours.get(&key), theirs.get(&key));
        }
        for bounds in bounds.windows(2) {
            let (from, to) = (bounds[0].min(bounds[1]), bounds[0].max(bounds[1]));
            prop_assert!(ours.range(from..to).eq(theirs.range(from..to)));
            prop_assert!(ours.range(from..=to).rev().eq(theirs.range(from..=to).rev()));
            let (mut one, mut other) = (ours.range(from..=to), theirs.range(from..=to));
            // From both ends until they meet.
            for turn in 0.. {
                let (one, other) = if turn % 3 == 0 { (one.next_back(), other.next_back()) } else { (one.next(), other.next()) };
                prop_assert_eq!(one, other);
                if other.is_none() { break; }
            }
            prop_assert_eq!((one.next(), one.next_back()), (None, None));
            prop_assert_eq!(ours.range(to + 1..from).count(), 0);
        }
        let copy = ours.clone();
        prop_assert_eq!(&copy, &ours);
        prop_assert!(copy.into_iter().eq(theirs.clone()));
        drop((ours, theirs));
        prop_assert_eq!(Rc::strong_count(&counted), 1);
    }

    #[test]
    fn a_map_that_is_built_in_order_is_like_any_other(len in 0u32..3000, late in proptest::collection::vec(0u32..3000, 0..5), removed in 0u32..3000) {
        let arena = arena("built");
        let keys = || (0..len).chain(late.iter().copied()).map(|key| (key, key / 2));
        let mut built: BTreeMap<u32, u32> = keys().collect_in(*arena);
        let mut want: StdMap<u32, u32> = keys().collect();
        prop_assert!(built.len() == want.len() && built.iter().eq(want.iter()));
        prop_assert!(built.root().is_sound(true).is_some());
        for step in 0..removed {
            let key = step * 7 % 3001;
            prop_assert_eq!(built.remove(&key), want.remove(&key));
            prop_assert_eq!(built.insert(key / 3, step), want.insert(key / 3, step));
        }
        prop_assert!(built.iter().eq(want.iter()) && built.root().is_sound(true).is_some());
    }

    #[test]
    fn a_queue_is_what_the_standard_librarys_is(steps in proptest::collection::vec(0u8..8, 1..400)) {
        let arena = arena("queue");
        let (mut ours, mut theirs) = (arena.vec_deque(), StdDeque::new());
        let counted = Rc::new(());
        for (number, step) in steps.into_iter().enumerate() {
            let value = (number, Rc::clone(&counted));
            match step {
                0..3 => { ours.push_back(value.clone()); theirs.push_back(value); }
                3..5 => { ours.push_front(value.clone()); theirs.push_front(value); }
                5 => prop_assert_eq!(ours.pop_front(), theirs.pop_front()),
                6 => prop_assert_eq!(ours.pop_back(), theirs.pop_back()),
                _ => prop_assert!(ours.try_reserve(number).is_ok()),
            }
            prop_assert!(ours.iter().eq(theirs.iter()));
            prop_assert!(ours.as_slices().0.iter().chain(ours.as_slices().1).eq(theirs.iter()));
            prop_assert_eq!((ours.front(), ours.back()), (theirs.front(), theirs.back()));
            prop_assert!(ours.get(ours.len()).is_none());
        }
        ours.iter_mut().for_each(|value| value.0 += 1);
        theirs.iter_mut().for_each(|value| value.0 += 1);
        prop_assert_eq!(ours.clone(), (*theirs.make_contiguous()).iter().cloned().collect_in::<VecDeque<_>>(*arena));
        drop((ours, theirs));
        prop_assert_eq!(Rc::strong_count(&counted), 1);
    }
}

#[test]
fn a_map_that_is_built_in_order_takes_half_the_room() {
    let (one, other) = (arena("in order"), arena("one by one"));
    let built: BTreeMap<u64, u64> = (0..100_000).map(|key| (key, key)).collect_in(*one);
    let mut inserted: BTreeMap<u64, u64> = other.btree_map();
    inserted.extend((0..100_000).map(|key| (key, key)));
    assert_eq!(built, inserted);
    assert!(one.used() * 100 < other.used() * 60, "{} and {}", one.used(), other.used());
}

#[test]
fn values_without_size_are_counted() {
    let arena = arena("nothing");
    let mut queue = arena.vec_deque();
    for _ in 0..100 {
        queue.push_back(());
        queue.push_front(());
    }
    assert_eq!((queue.len(), queue.iter().count()), (200, 200));
    while queue.pop_back().is_some() {}
    let mut map = arena.btree_map();
    assert_eq!((map.insert((), ()), map.insert((), ()), map.len()), (None, Some(()), 1));
    assert_eq!(map.iter().count(), 1);
}

/// A key whose order panics where it is told to, and lies where it is told to.
#[derive(Clone)]
struct Hostile(u32, Rc<std::cell::Cell<u32>>);

impl PartialEq for Hostile {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Hostile {}
impl PartialOrd for Hostile {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Hostile {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let left = self.1.get();
        self.1.set(left.wrapping_sub(1));
        assert!(left != 0, "as it was told");
        if left % 7 == 3 { other.0.cmp(&self.0) } else { self.0.cmp(&other.0) }
    }
}

#[test]
fn an_order_that_lies_and_panics_loses_no_entry() {
    let arena = arena("hostile");
    let left = Rc::new(std::cell::Cell::new(u32::MAX));
    let mut map = arena.btree_map();
    let mut random = 1u32;
    let (mut inside, value) = (0usize, Rc::new(()));
    for _ in 0..20_000 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let key = Hostile(random >> 16 & 255, Rc::clone(&left));
        left.set(if random.is_multiple_of(5) { random >> 8 & 15 } else { u32::MAX });
        let _panicked = catch_unwind(AssertUnwindSafe(|| match random >> 28 {
            0..8 => inside += usize::from(map.insert(key, Rc::clone(&value)).is_none()),
            8..14 => inside -= usize::from(map.remove(&key).is_some()),
            14 => _ = map.range(..key).rev().count(),
            _ => inside -= usize::from(map.pop_last().is_some()),
        }));
        left.set(u32::MAX);
        assert_eq!((map.len(), map.iter().count(), map.iter().rev().count()), (inside, inside, inside));
    }
    assert_eq!(Rc::strong_count(&value), 1 + inside);
    drop(map);
    assert_eq!(Rc::strong_count(&value), 1);
}

#[test]
fn a_map_without_memory_holds_what_it_held() {
    let arena = Arena::builder("small").capacity(1 << 16).build().expect("an arena");
    let mut map: BTreeMap<u64, [u64; 16]> = arena.btree_map();
    let full = (0..).find(|&key| map.try_insert(key, [key; 16]).is_err()).expect("it is small");
    assert!(arena.take_failure().expect("a reason").is_out_of_capacity());
    assert!(full > 100 && map.len() as u64 == full, "{full} of {}", map.len());
    assert!(map.iter().map(|(&key, value)| (key, value[15])).eq((0..full).map(|key| (key, key))));
    assert!(map.try_insert(full, [0; 16]).is_err());
    assert_eq!(map.remove(&7).map(|value| value[0]), Some(7));
}

#[test]
fn an_entry_is_filled_once() {
    let arena = arena("entries");
    let mut words: BTreeMap<&str, u32> = arena.btree_map();
    for word in "to be or not to be".split(' ') {
        *words.entry(word).or_default() += 1;
    }
    words.entry("to").and_modify(|count| *count *= 10).or_insert(0);
    assert!(words.iter().eq([(&"be", &2), (&"not", &1), (&"or", &1), (&"to", &20)]));
    assert_eq!((words.first_key_value(), words.last_key_value()), (Some((&"be", &2)), Some((&"to", &20))));
    assert_eq!(words["not"], 1);
}

#[test]
fn text_is_that_of_the_standard_library() {
    let arena = arena("text");
    let (mut ours, mut theirs) = (arena.string(), std::string::String::new());
    for letter in "aß中🦀".chars().cycle().take(100) {
        ours.push(letter);
        theirs.push(letter);
        write!(ours, "{}", theirs.len()).expect("room");
        theirs = format!("{theirs}{}", theirs.len());
        assert_eq!(ours, theirs);
    }
    ours.truncate(ours.len() - 2);
    theirs.truncate(theirs.len() - 2);
    while let Some(last) = ours.pop() {
        assert_eq!(theirs.pop(), Some(last));
    }
    assert!(
        theirs.is_empty() && catch_unwind(AssertUnwindSafe(|| String::from_str_in("ß", *arena).truncate(1))).is_err()
    );
    assert!(String::from_utf8([0xff].iter().copied().collect_in(*arena)).is_err());
    let text = String::from_str_in("kept", *arena);
    assert_eq!((&*text.clone().into_boxed_str(), &*text.clone().leak()), ("kept", "kept"));
    let mut map = arena.hash_map();
    map.insert(text, 1);
    assert_eq!(map.get("kept"), Some(&1));
    let small = Arena::builder("small").capacity(1 << 12).build().expect("an arena");
    let mut text = small.string();
    assert!((0..1000).any(|n| write!(text, "{n:>20}").is_err()), "an error, and no abort");
}

#[test]
fn the_last_one_drops_the_value_while_the_arena_grows() {
    let arena = arena("counted");
    let value = Rc::new(());
    let mut one = arena.arc(Rc::clone(&value));
    assert!(Arc::get_mut(&mut one).is_some());
    let two = Arc::clone(&one);
    assert!(Arc::get_mut(&mut one).is_none() && Arc::ptr_eq(&one, &two));
    drop(one);
    assert_eq!(Rc::strong_count(&value), 2);
    let used = arena.used();
    drop(two);
    assert_eq!(Rc::strong_count(&value), 1);
    let again = arena.arc(Rc::clone(&value));
    assert_eq!(arena.used(), used, "value and count were given back");
    drop(again);
    let text: Arc<str> = String::from_str_in("shared", *arena).into_boxed_str().into();
    assert_eq!(&*Arc::clone(&text), "shared");
}

#[test]
fn values_without_size_are_told_apart() {
    let arena = arena("without size");
    let (one, other) = (arena.arc(()), arena.arc(()));
    assert!(!Arc::ptr_eq(&one, &other) && Arc::ptr_eq(&one, &Arc::clone(&one)));
    let text = || Arc::<str>::from(arena.string().into_boxed_str());
    assert!(!Arc::ptr_eq(&text(), &text()));
    let list = || Arc::<[u64]>::from(arena.vec().into_boxed_slice());
    assert!(!Arc::ptr_eq(&list(), &list()));
}

#[test]
fn a_queue_with_a_value_whose_end_panics_drops_the_others() {
    struct Panics(u8, #[expect(dead_code, reason = "held, not used")] Rc<()>);
    impl Drop for Panics {
        fn drop(&mut self) {
            assert_ne!(self.0, 0, "the end of a value");
        }
    }
    let arena = arena("panics at the end");
    // Each of five values panics, which lie round the end of the places.
    for panics in 0..5 {
        let value = Rc::new(());
        let mut queue = VecDeque::with_capacity_in(5, *arena);
        (0..3).for_each(|_| queue.push_back(Panics(1, Rc::clone(&value))));
        (0..3).for_each(|_| drop(queue.pop_front()));
        (0..5).for_each(|n| queue.push_back(Panics(u8::from(n != panics), Rc::clone(&value))));
        assert!(queue.as_slices().0.len() == 2 && queue.capacity() == 5);
        assert!(catch_unwind(AssertUnwindSafe(|| drop(queue))).is_err());
        assert_eq!(Rc::strong_count(&value), 1);
    }
}

#[test]
fn nothing_is_counted_once_the_arena_is_frozen() {
    let arena = arena("frozen");
    let value = std::sync::Arc::new(());
    let mut outside = arena.arc(std::sync::Arc::clone(&value));
    let frozen = arena.freeze_unchecked(Arc::clone(&outside)).expect("frozen");
    let copies: Vec<_> = (0..100).map(|_| Arc::clone(frozen.root())).collect();
    assert!(copies.iter().all(|copy| Arc::ptr_eq(copy, &outside)));
    assert!(Arc::get_mut(&mut outside).is_none());
    drop(copies);
    assert!(Arc::get_mut(&mut outside).is_none());
    drop(outside);
    assert_eq!(std::sync::Arc::strong_count(&value), 2, "frozen data is never dropped");
}

#[test]
fn a_value_whose_end_freezes_its_arena_is_dropped() {
    struct Freezes(Option<Arena>, Rc<std::cell::Cell<bool>>);
    impl Drop for Freezes {
        fn drop(&mut self) {
            let arena = self.0.take().expect("once");
            self.1.set(arena.freeze(1u8).is_ok());
        }
    }
    let frozen = Rc::new(std::cell::Cell::new(false));
    let arena = arena("frozen by its own value");
    let handle: ArenaRef = *arena;
    drop(handle.arc(Freezes(Some(arena), Rc::clone(&frozen))));
    assert!(frozen.get() && handle.is_frozen());
}

#[test]
fn what_lies_elsewhere_is_found_out() {
    let (here, there) = (arena("here"), arena("there"));
    let text = String::from_str_in("there", *there);
    assert!(here.freeze(text).is_err());
    let here = arena("here");
    assert!(here.freeze(there.arc(1u8)).is_err());
    let here = arena("here");
    let mut map = here.btree_map();
    map.extend((0..1000).map(|key| (key, String::from_str_in("x", if key == 700 { *there } else { *here }))));
    assert!(here.freeze(map).is_err());
    let here = arena("here");
    let mut queue = here.vec_deque();
    queue.push_back(there.arc(1u8));
    assert!(here.freeze(queue).is_err());
    let here = arena("here");
    let of_heap: Cow<str> = Cow::Borrowed(Box::leak(Box::<str>::from("on the heap")));
    assert!(here.freeze(of_heap).is_err());
    let here = arena("here");
    let set: BTreeSet<String> = [String::from_str_in("a", *here)].into_iter().collect_in(*here);
    let all = (set, here.arc([1u8; 3]), here.arc(()), String::from_str_in("", *there), here.vec_deque::<u8>());
    assert_eq!(here.freeze(all).expect("whole").0.first().expect("one"), &"a");
}
