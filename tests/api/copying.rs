//! Deep copies of values of the heap.

use crate::case::{Outcome, passed};
use crate::look::wait;
use cowbell::arena::{Arc, Arena, ArenaRef, Contained, CopyIn, Copying};
use cowbell::fork::{self, ForkOptions};
use libtest_mimic::Trial;
use std::borrow::Cow;
use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::{Arc as StdArc, Barrier};

/// Constants with the names that fields have.
mod named_like_constants {
    #![expect(non_upper_case_globals, dead_code, reason = "names that a pattern could mistake")]

    pub const text: &str = "x";
    pub const to: &str = "x";
    pub static value: u8 = 0;

    cowbell::twin! {
        pub enum Each as #[derive(Debug, PartialEq)] EachTwin {
            Nothing,
            A { text: String, value: Box<u8> },
            B(String, Option<Box<Each>>),
            C(#[allow(unused, reason = "an attribute of a field")] u8),
        }
        pub enum Number as #[derive(Clone, Copy)] NumberTwin { One = 1, Seven = 7 }
        pub struct Unit as UnitTwin;
        pub struct Pair as #[derive(Debug, PartialEq)] PairTwin(pub Vec<Pair>, pub &'static str);
        pub enum Never as NeverTwin {}
        pub struct Many as ManyTwin { pub a: u8, pub aa: String, pub b: u8, pub bb: String, pub c: u8, pub cc: String, pub d: u8, pub dd: String, pub e: u8, pub ee: String, pub f: u8, pub ff: String, pub g: u8, pub gg: String, pub h: u8, pub hh: String, pub i: u8, pub ii: String, pub j: u8, pub jj: String, pub k: u8, pub kk: String, pub l: u8, pub ll: String, pub m: u8, pub mm: String, pub n: u8, pub nn: String, pub o: u8, pub oo: String, pub p: u8, pub pp: String, pub q: u8, pub qq: String, pub r: u8, pub rr: String, pub s: u8, pub ss: String, pub t: u8, pub tt: String, pub u: u8, pub uu: String, pub v: u8, pub vv: String, pub w: u8, pub ww: String, pub x: u8, pub xx: String, pub y: u8, pub yy: String, pub z: u8, pub zz: String }
    }
}
use named_like_constants::{
    Each, EachTwin, Many, ManyTwin, Never, NeverTwin, Number, NumberTwin, Pair, Unit, UnitTwin,
};

type Everything<'a> = (
    (String, &'a str, Cow<'a, str>, Box<str>, char),
    (Vec<u8>, &'a [u16], Box<[String]>, [Vec<u32>; 3], VecDeque<String>),
    (HashMap<String, Option<f64>>, HashSet<u8>, BTreeMap<(u8, String), ()>, BTreeSet<String>),
    (Result<u8, String>, std::ops::Range<u64>, std::time::Duration, &'a String),
);

fn everything(text: &str) -> Everything<'_> {
    let own = || text.to_owned();
    let leaked: &'static String = Box::leak(Box::new(own()));
    (
        (own(), text, Cow::Owned(own()), own().into(), 'ß'),
        (
            vec![1; 1000],
            &[1, 2],
            Box::new([own(), own()]),
            [vec![1], vec![], vec![2, 3]],
            (0..50).map(|n| n.to_string()).collect(),
        ),
        (
            (0..500).map(|n| (n.to_string(), (n % 2 == 0).then_some(f64::from(n)))).collect(),
            (0..100).collect(),
            (0..=255).map(|n| ((n, own()), ())).collect(),
            (0..300).map(|n| n.to_string()).collect(),
        ),
        (Err(own()), 3..9, std::time::Duration::from_secs(1), leaked),
    )
}

fn each_value_has_an_equal_twin_whole_in_the_arena() -> Outcome {
    fn is_contained<T: Contained>() {}
    is_contained::<<Everything<'static> as CopyIn>::Twin>();
    let text = String::from("made at run time");
    let arena = Arena::builder("everything").capacity(1 << 24).build()?;
    let twin = arena.copy_in(&everything(&text))?;
    drop(text);
    let frozen = arena.freeze(twin)?;
    let root = frozen.root();
    let text = "made at run time";
    let mut child = fork::spawn(&ForkOptions::new(), move |_| {
        let want = everything(text);
        let (one, two, three, four) = root;
        assert!(one.0 == text && one.1 == text && one.2 == text && *one.3 == *text && one.4 == 'ß');
        assert!(*two.0 == *want.1.0 && *two.1 == *want.1.1 && two.2.iter().all(|each| each == text));
        assert!(two.3.iter().map(|list| list.as_slice()).eq(want.1.3.iter().map(Vec::as_slice)));
        assert!(two.4.iter().map(|each| each.as_str()).eq(want.1.4.iter().map(String::as_str)));
        assert!(want.2.0.iter().all(|(key, value)| three.0.get(key.as_str()) == Some(value)) && three.0.len() == 500);
        assert!(want.2.1.iter().all(|value| three.1.contains(value)) && three.1.len() == 100);
        assert!(three.2.keys().map(|(n, key)| (*n, key.to_string())).eq(want.2.2.keys().cloned()));
        assert!(three.3.iter().map(|each| each.as_str()).eq(want.2.3.iter().map(String::as_str)));
        assert!(
            four.0.as_ref().is_err_and(|each| each == text)
                && (four.1.clone(), four.2) == (3..9, want.3.2)
                && four.3 == text
        );
    })?;
    let exit = wait(&mut child)?;
    assert_eq!((exit.ended, exit.report.copied_pages().0), (fork::Ended::Exited(0), 0));
    passed()
}

fn types_of_all_shapes_have_twins() -> Outcome {
    let arena = Arena::builder("shapes").capacity(1 << 20).build()?;
    let inner = Each::A { text: "in".into(), value: Box::new(9) };
    let all = [Each::Nothing, Each::B("b".into(), Some(Box::new(inner))), Each::C(3)];
    let [nothing, b, c] = arena.copy_in(&all)?;
    assert!(nothing == EachTwin::Nothing && c == EachTwin::C(3));
    let EachTwin::B(text, Some(inner)) = b else { panic!("another") };
    let EachTwin::A { text: other, value } = &*inner else { panic!("another") };
    assert_eq!((&*text, &**other, **value), ("b", "in", 9));
    assert_eq!((arena.copy_in(&Number::Seven)? as u8, NumberTwin::One as u8, Number::One as u8), (7, 1, 1));
    let UnitTwin = arena.copy_in(&Unit)?;
    assert!(arena.copy_in(&None::<Never>)?.is_none() && size_of::<NeverTwin>() == 0);
    let pair = arena.copy_in(&Pair(vec![Pair(vec![], "leaf")], "root"))?;
    assert_eq!((pair.0[0].1, pair.1, pair.0[0].0.len()), ("leaf", "root", 0));
    let many = Many {
        a: 0,
        aa: "a".into(),
        b: 1,
        bb: "b".into(),
        c: 2,
        cc: "c".into(),
        d: 3,
        dd: "d".into(),
        e: 4,
        ee: "e".into(),
        f: 5,
        ff: "f".into(),
        g: 6,
        gg: "g".into(),
        h: 7,
        hh: "h".into(),
        i: 8,
        ii: "i".into(),
        j: 9,
        jj: "j".into(),
        k: 10,
        kk: "k".into(),
        l: 11,
        ll: "l".into(),
        m: 12,
        mm: "m".into(),
        n: 13,
        nn: "n".into(),
        o: 14,
        oo: "o".into(),
        p: 15,
        pp: "p".into(),
        q: 16,
        qq: "q".into(),
        r: 17,
        rr: "r".into(),
        s: 18,
        ss: "s".into(),
        t: 19,
        tt: "t".into(),
        u: 20,
        uu: "u".into(),
        v: 21,
        vv: "v".into(),
        w: 22,
        ww: "w".into(),
        x: 23,
        xx: "x".into(),
        y: 24,
        yy: "y".into(),
        z: 25,
        zz: "z".into(),
    };
    let many: ManyTwin = arena.copy_in(&many)?;
    assert_eq!((many.a, &*many.aa, many.z, &*many.zz), (0, "a", 25, "z"));
    arena.freeze((many, pair, inner))?;
    passed()
}

fn what_is_shared_is_copied_once() -> Outcome {
    let arena = Arena::builder("shared").capacity(1 << 20).build()?;
    let (name, list, count) = (Rc::<str>::from("name"), StdArc::<[String]>::from(["a".into()]), Rc::new(7u64));
    let of_zero = (Rc::new(()), Rc::new(()));
    let all: Vec<_> = (0..1000).map(|_| (Rc::clone(&name), StdArc::clone(&list), Rc::clone(&count))).collect();
    let twins = arena.copy_in(&(all, &of_zero))?;
    let (first, last) = (&twins.0[0], &twins.0[999]);
    assert!(Arc::ptr_eq(&first.0, &last.0) && Arc::ptr_eq(&first.1, &last.1) && Arc::ptr_eq(&first.2, &last.2));
    assert_eq!((&*first.0, &*first.1[0], *first.2), ("name", "a", 7));
    assert_eq!((Rc::strong_count(&name), Rc::strong_count(&count)), (1, 1), "the copy is over");
    let again = arena.copy_in(&name)?;
    assert!(!Arc::ptr_eq(&again, &first.0), "another copy");
    arena.freeze(twins)?;
    passed()
}

/// A value whose twin is made of counted values that are gone at once, so that others lie where they did.
struct Passing(u64);

impl CopyIn for Passing {
    type Twin = Arc<u64>;
    fn copy_in(&self, to: &mut Copying) -> cowbell::Result<Arc<u64>> {
        Rc::new(self.0).copy_in(to)
    }
}

fn a_counted_value_that_is_gone_is_not_taken_for_another() -> Outcome {
    let arena = Arena::builder("passing").capacity(1 << 20).build()?;
    let all: Vec<Passing> = (0..1000).map(Passing).collect();
    assert!(arena.copy_in(&all)?.iter().zip(0..).all(|(twin, n)| **twin == n));
    passed()
}

fn a_copy_that_finds_no_room_is_an_error_and_leaves_the_room_to_others() -> Outcome {
    let arena = Arena::builder("small").capacity(1 << 16).build()?;
    let large: Vec<String> = (0..10_000).map(|n| n.to_string()).collect();
    let as_map: BTreeMap<String, Rc<u64>> = (0..10_000).map(|n: u64| (n.to_string(), Rc::new(n))).collect();
    for _ in 0..20 {
        let error = arena.copy_in(&large).expect_err("it is small");
        assert!(error.is_out_of_capacity(), "{error}");
        let error = arena.copy_in(&as_map).expect_err("it is small");
        assert!(error.is_out_of_capacity(), "{error}");
    }
    // Blocks that were given back are used again.
    let twin = arena.copy_in("short")?;
    let handle = *arena;
    assert_eq!(*arena.freeze(twin)?, "short");
    assert!(handle.copy_in(&7u8).is_ok() && handle.copy_in("text").expect_err("frozen").is_frozen());
    passed()
}

thread_local! {
    static TO_FREEZE: Cell<Option<Arena>> = const { Cell::new(None) };
}

/// A number; the copy of the 90th freezes the arena.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Freezes(u64);

impl CopyIn for Freezes {
    type Twin = u64;
    fn copy_in(&self, _: &mut Copying) -> cowbell::Result<u64> {
        if self.0 == 90 {
            TO_FREEZE.take().expect("once").freeze(1u8)?;
        }
        Ok(self.0)
    }
}

/// The same, and the twins stand in another order.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Turned(Freezes);

impl CopyIn for Turned {
    type Twin = Reverse<u64>;
    fn copy_in(&self, to: &mut Copying) -> cowbell::Result<Reverse<u64>> {
        self.0.copy_in(to).map(Reverse)
    }
}

fn is_frozen_within(value: &impl CopyIn) {
    let arena = Arena::builder("frozen within").capacity(1 << 22).build().expect("an arena");
    let handle = *arena;
    TO_FREEZE.set(Some(arena));
    let error = handle.copy_in(value).err().expect("an error");
    assert!(error.is_frozen() && TO_FREEZE.take().is_none(), "{error}");
}

fn a_copy_that_freezes_its_arena_is_an_error() -> Outcome {
    let numbers = || (0..200).map(Freezes);
    let list: Vec<_> = numbers().collect();
    is_frozen_within(&list);
    is_frozen_within(&list.as_slice());
    is_frozen_within(&list.clone().into_boxed_slice());
    is_frozen_within(&(Freezes(90), "a text"));
    is_frozen_within(&(Freezes(90), String::from("a text"), vec![1u64]));
    is_frozen_within(&Box::new(Freezes(90)));
    is_frozen_within(&&Freezes(90));
    is_frozen_within(&[Rc::new(Freezes(89)), Rc::new(Freezes(90))]);
    is_frozen_within(&StdArc::<[Freezes]>::from(list));
    is_frozen_within(&numbers().collect::<VecDeque<_>>());
    is_frozen_within(&numbers().map(|number| (number, number.0)).collect::<HashMap<_, _>>());
    is_frozen_within(&numbers().map(|number| (number.0, number)).collect::<HashMap<_, _>>());
    is_frozen_within(&numbers().collect::<HashSet<_>>());
    is_frozen_within(&numbers().map(|number| (number, number.0)).collect::<BTreeMap<_, _>>());
    is_frozen_within(&numbers().map(|number| (number.0, number)).collect::<BTreeMap<_, _>>());
    is_frozen_within(&numbers().collect::<BTreeSet<_>>());
    // The copy of the last value freezes: what is left is to give nodes the entries that they must have.
    is_frozen_within(&numbers().take(91).collect::<BTreeSet<_>>());
    for most in [91, 100, 200] {
        is_frozen_within(&numbers().take(most).map(Turned).collect::<BTreeSet<_>>());
        is_frozen_within(&numbers().take(most).map(|number| (Turned(number), 1u8)).collect::<BTreeMap<_, _>>());
    }
    passed()
}

/// Threads copy again and again, each a value of another kind, until the arena is frozen.
fn a_copy_while_another_thread_freezes_is_an_error() -> Outcome {
    fn until_frozen(arena: ArenaRef, value: &impl CopyIn, begun: &Barrier) -> u64 {
        begun.wait();
        let mut copies = 0;
        loop {
            match arena.copy_in(value) {
                Ok(twin) => drop(twin),
                Err(error) if error.is_frozen() => return copies,
                Err(error) => panic!("{error}"),
            }
            copies += 1;
        }
    }
    let texts: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let pairs: Vec<(u64, String)> = texts.iter().map(|text| (text.len() as u64, text.clone())).collect();
    let table: HashMap<String, u64> = texts.iter().cloned().zip(0..).collect();
    let tree: BTreeMap<String, u64> = texts.iter().cloned().zip(0..).collect();
    let turned: BTreeSet<Turned> = (100..140).map(|n| Turned(Freezes(n))).collect();
    let queue: VecDeque<u64> = (0..100).collect();
    let small: (Box<u64>, HashSet<u8>, Vec<u8>) = (Box::new(1), [1].into(), vec![1; 100]);
    let mut all = 0;
    for round in 0..400u64 {
        let arena = Arena::builder(format!("raced {round}")).capacity(1 << 22).build()?;
        let (handle, begun) = (*arena, Barrier::new(3));
        all += std::thread::scope(|scope| {
            let begun = &begun;
            let one = match round % 4 {
                0 => scope.spawn(|| until_frozen(handle, &texts, begun)),
                1 => scope.spawn(|| until_frozen(handle, &table, begun)),
                2 => scope.spawn(|| until_frozen(handle, &tree, begun)),
                _ => scope.spawn(|| until_frozen(handle, &queue, begun)),
            };
            let other = match round / 4 % 4 {
                0 => scope.spawn(|| until_frozen(handle, &pairs, begun)),
                1 => scope.spawn(|| until_frozen(handle, &turned, begun)),
                2 => scope.spawn(|| until_frozen(handle, &small, begun)),
                _ => scope.spawn(|| until_frozen(handle, &Rc::<[String]>::from(&*texts), begun)),
            };
            begun.wait();
            (0..round * 25).for_each(|_| std::hint::spin_loop());
            let frozen = arena.freeze(1u8);
            let copies = one.join().expect("frozen") + other.join().expect("frozen");
            frozen.map(|frozen| (frozen, copies).1)
        })?;
    }
    assert!(all > 400, "{all} copies in all");
    passed()
}

fn a_copy_that_fails_keeps_the_twins_of_references() -> Outcome {
    let arena = Arena::builder("kept").capacity(1 << 16).build()?;
    let texts: Vec<String> = (0..10_000).map(|n| n.to_string()).collect();
    let references: Vec<(&str, &String)> = texts.iter().map(|text| (text.as_str(), text)).collect();
    // The list itself has room; the twins of references do not have.
    let some = &references[..1000];
    assert!(arena.copy_in(some).expect_err("it is small").is_out_of_capacity());
    assert!(arena.used() > 60_000 && arena.copy_in(&[1u8; 10_000].to_vec()).is_ok(), "the list was given back");
    assert!(arena.copy_in(&[1u8; 40_000].to_vec()).is_err(), "the twins of references are kept");
    passed()
}

pub fn trials() -> Vec<Trial> {
    claims![
        a_copy_that_freezes_its_arena_is_an_error,
        a_copy_while_another_thread_freezes_is_an_error,
        a_copy_that_fails_keeps_the_twins_of_references,
        each_value_has_an_equal_twin_whole_in_the_arena,
        types_of_all_shapes_have_twins,
        what_is_shared_is_copied_once,
        a_counted_value_that_is_gone_is_not_taken_for_another,
        a_copy_that_finds_no_room_is_an_error_and_leaves_the_room_to_others,
    ]
}
