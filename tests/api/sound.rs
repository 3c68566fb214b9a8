//! Safe code reaches no undefined behaviour: programs that did, kept.

use crate::case::{Outcome, passed};
use cowbell::arena::{Arena, Contained, Vec as AVec};
use libtest_mimic::Trial;

/// Constants with the names that fields have, and with those that the macro binds fields to.
mod named_like_constants {
    #![expect(non_upper_case_globals, dead_code, reason = "names that a pattern could mistake")]

    pub const text: &str = "x";
    pub const only: &str = "x";
    pub const value: &str = "x";
    pub const field: &str = "x";
    pub static arena: u8 = 0;

    cowbell::contained! {
        pub enum Named { Nothing, A { text: &'static str } }
        pub enum Tuple { A(&'static str), B(u8, &'static str), C(u64, u64) }
        pub struct Struct { pub text: &'static str, pub only: u8 }
        pub struct Both(pub u8, pub &'static str);
        pub enum Generic<T, U: 'static> { Empty, One { value: T }, Two(U, T), Number(u8) }
        pub struct Pair<T, U>(pub T, pub U);
        pub struct Unit;
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub enum Number { One = 1, Seven = 7 }
        pub enum Never {}
        pub struct Many {
            pub a: u8, pub b: u8, pub c: u8, pub d: u8, pub e: u8, pub f: u8, pub g: u8, pub h: u8, pub i: u8, pub j: &'static str,
        }
    }
}
use named_like_constants::{Both, Generic, Many, Named, Never, Number, Pair, Struct, Tuple, Unit};

/// Does the check find that this root leads out of its arena?
fn leads_out<T: Contained>(root: T) -> cowbell::Result<bool> {
    let frozen = Arena::builder("root").capacity(1 << 20).build()?.freeze_unchecked(root)?;
    Ok(frozen.check_contained().is_err())
}

/// On the heap of this process.
fn leaked() -> &'static str {
    String::from("not in the arena").leak()
}

/// A constant's name alone in a pattern was the constant, and what it did not match passed unseen.
fn each_field_of_a_contained_type_is_asked_whatever_it_is_called() -> Outcome {
    assert!(leads_out(Named::A { text: leaked() })?);
    assert!(leads_out(Tuple::A(leaked()))? && leads_out(Tuple::B(1, leaked()))?);
    assert!(leads_out(Struct { text: leaked(), only: 1 })? && leads_out(Both(1, leaked()))?);
    assert!(leads_out(Generic::<_, u8>::One { value: leaked() })?);
    assert!(leads_out(Generic::Two(leaked(), 1u8))? && leads_out(Generic::Two(1u8, leaked()))?);
    assert!(leads_out(Pair(1u8, leaked()))? && leads_out(Pair(Pair(leaked(), 1u8), 2u8))?);
    let [a, b, c, d, e, f, g, h, i] = [0; 9];
    assert!(leads_out(Many { a, b, c, d, e, f, g, h, i, j: leaked() })?);

    assert!(!leads_out(Named::Nothing)? && !leads_out(Tuple::C(1, 2))? && !leads_out(Unit)?);
    assert!(!leads_out(Generic::<&'static str, &'static str>::Number(3))? && !leads_out(Generic::<u8, u8>::Empty)?);
    assert!(!leads_out(Number::Seven)? && Number::Seven as u8 == 7 && Number::One as u8 == 1);
    const { assert!(Named::POINTS && Tuple::POINTS && Struct::POINTS && Both::POINTS && Many::POINTS) };
    const { assert!(Generic::<u8, &'static str>::POINTS && !Generic::<u8, u8>::POINTS && !Pair::<u8, u8>::POINTS) };
    const { assert!(!Number::POINTS && !Unit::POINTS && !Never::POINTS) };
    passed()
}

/// When an attribute macro has changed a field's type, the macro was told another than there is.
fn a_field_is_asked_as_the_type_that_it_has() -> Outcome {
    struct Rewritten(&'static str);
    cowbell::__contained! { @type [Rewritten] [] [[Self] ([u64]);] }
    const { assert!(Rewritten::POINTS) };
    assert!(leads_out(Rewritten(leaked()))?);
    passed()
}

static VARIABLE: std::sync::OnceLock<&'static str> = std::sync::OnceLock::new();
static FIXED: &[&str] = &["a constant", "and another"];

/// A string literal is the same in every process of the program; a variable is not, wherever it lies.
fn references_to_constants_of_the_program_are_contained() -> Outcome {
    assert!(!leads_out("a literal")? && !leads_out(Named::A { text: "another" })?);
    assert!(!leads_out(FIXED)?);
    // A reference into a variable of this process.
    let inside: &'static &'static str = VARIABLE.get_or_init(|| "a literal");
    assert!(leads_out(inside)?);
    assert!(leads_out(leaked())?);
    let long: &'static [&'static str] = Vec::from(["a literal", leaked()]).leak();
    assert!(leads_out(long)?);
    passed()
}

/// A checked freeze sees a root that leads out of its arena.
fn a_checked_freeze_refuses_what_leads_out_of_the_arena() -> Outcome {
    let arena = || Arena::builder("checked").capacity(1 << 20).build();
    let other = arena()?;
    let own = arena()?;
    let mut texts = AVec::new_in(*own);
    texts.push("a constant");
    texts.push(&*own.alloc_str("in the arena")?);
    let texts = own.freeze(texts)?;
    assert_eq!((texts[0], texts[1]), ("a constant", "in the arena"));
    for text in [leaked(), &*other.alloc_str("in another arena")?] {
        let own = arena()?;
        let mut texts = AVec::new_in(*own);
        texts.push(text);
        let refused = own.freeze(texts).expect_err("it leads out");
        assert!(refused.is_invalid() && refused.to_string().contains("points out of it"), "{refused}");
    }
    passed()
}

/// Memory that was freed while the arena grew, and memory that nobody ever wrote, lies in the frozen arena as zeroes.
fn freed_and_unwritten_memory_is_zero_in_a_frozen_arena() -> Outcome {
    const STALE: u8 = 0xAB;
    let arena = Arena::builder("stale").capacity(16 << 20).build()?;
    let stale = |len: usize| {
        let mut bytes = AVec::new_in(*arena);
        bytes.resize(len, STALE);
        bytes
    };
    let (large, small, grown) = (stale(300_000), [stale(7), stale(100), stale(900)], stale(5_000));
    let mut kept = stale(50);
    kept.fill(0);
    drop((large, small));
    // Some of it is taken again, and not written; some was given up by making a block smaller.
    let unwritten: AVec<u8> = AVec::with_capacity_in(1_000, *arena);
    let mut cut = grown;
    cut.truncate(1);
    cut.shrink_to_fit();
    cut.fill(0);
    let mut moved = stale(200);
    moved.reserve(100_000);
    moved.fill(0);
    let frozen = arena.freeze((kept, unwritten, cut, moved))?;
    let image = frozen.image();
    let mut content = vec![0; image.range().len];
    cowbell::sys::memfd::read_at(image.file(), &mut content, 0)?;
    assert!(!content.windows(4).any(|bytes| bytes == [STALE; 4]));
    passed()
}

pub fn trials() -> Vec<Trial> {
    claims![
        each_field_of_a_contained_type_is_asked_whatever_it_is_called,
        a_field_is_asked_as_the_type_that_it_has,
        references_to_constants_of_the_program_are_contained,
        a_checked_freeze_refuses_what_leads_out_of_the_arena,
        freed_and_unwritten_memory_is_zero_in_a_frozen_arena,
    ]
}

/// Handles that a worker returns.
#[cfg(feature = "pool")]
pub mod pools {
    use crate::case::{Outcome, passed};
    use cowbell::arena::{Arena, Frozen, Handle, Vec as AVec};
    use cowbell::pool::{JobError, Pool};
    use cowbell::support::Support;
    use cowbell::watch::Watch;
    use libtest_mimic::Trial;
    use serde::{Deserialize, Serialize};
    use std::sync::atomic::{AtomicU64, Ordering};

    type Marks = AVec<AtomicU64>;

    /// The act of a job before it returns the handle of a mark.
    #[derive(Clone, Copy, Serialize, Deserialize)]
    enum Before {
        Read,
        /// Writes what is there already.
        WriteTheSame(usize),
        /// And gives the page back.
        GiveBack(usize),
    }

    /// Makes so many marks that they lie on several pages.
    fn marks() -> cowbell::Result<Frozen<Marks>> {
        let arena = Arena::builder("marks").capacity(1 << 20).build()?;
        let mut marks = AVec::new_in(*arena);
        marks.extend((0..32_768).map(AtomicU64::new));
        arena.freeze(marks)
    }

    fn pool(watch: Watch) -> cowbell::Result<Pool<Marks, (usize, Before), Handle<AtomicU64>>> {
        let frozen = marks()?;
        let inside = frozen.clone();
        Pool::builder().workers(1).watch(watch).spawn(
            frozen,
            move |marks: &'static Marks, (at, before): (usize, Before)| {
                let same = |at: usize| marks[at].store(at as u64, Ordering::Relaxed);
                match before {
                    Before::Read => {}
                    Before::WriteTheSame(at) => same(at),
                    Before::GiveBack(at) => {
                        same(at);
                        assert_eq!(inside.reshare().expect("one thread").reshared.0, 1);
                    }
                }
                assert_eq!(marks[at].load(Ordering::Relaxed), at as u64);
                inside.handle(&marks[at]).expect("it lies there")
            },
        )
    }

    pub fn trials() -> Vec<Trial> {
        claims![
            the_handle_of_an_object_that_was_found_is_returned,
            the_handle_of_an_object_on_a_page_that_was_written_stays,
            no_object_without_size_comes_from_a_worker,
            iterators_that_were_forgotten_are_an_error_and_no_wait_without_end,
            code_of_the_users_that_panics_or_calls_the_pool_breaks_nothing,
        ]
    }

    /// A value of this type proves that [`Only::new`] was called in this process, once.
    struct Only(());

    impl Only {
        fn new() -> &'static Self {
            Box::leak(Box::new(Self(())))
        }
    }

    /// Made in a worker, it was the parent's as well: out of nothing, and beside one that the parent makes.
    fn no_object_without_size_comes_from_a_worker() -> Outcome {
        let data = marks()?;
        let inside = data.clone();
        let pool = Pool::builder()
            .workers(1)
            .spawn(data, move |_: &Marks, _: ()| inside.handle(Only::new()).expect("any place will do"))?;
        let refused = pool.submit(())?.wait();
        assert!(matches!(&refused, Err(JobError::NotPassed(why)) if why.contains("does not travel")), "{refused:?}");
        passed()
    }

    /// Each keeps the places of its batches, and when all were kept a job waited for ever.
    fn iterators_that_were_forgotten_are_an_error_and_no_wait_without_end() -> Outcome {
        let pool = Pool::builder().workers(1).spawn(marks()?, |_: &Marks, job: u64| job)?;
        let error = loop {
            let mut results = pool.map(0..1000u64).chunk(1);
            let first = results.next();
            std::mem::forget(results);
            match first {
                Some(Ok(0)) => {}
                Some(Err(error)) => break error,
                other => return Err(format!("{other:?}").into()),
            }
        };
        assert!(matches!(&error, JobError::NotPassed(why) if why.contains("nobody reads")), "{error:?}");
        pool.shutdown(cowbell::pool::Shutdown::Cancel)?;
        passed()
    }

    /// A value that panics while it is written (1) or read (2), or asks the pool while it is read (3).
    #[derive(Debug, PartialEq)]
    struct Hostile(u8);

    static POOL: std::sync::OnceLock<Pool<Marks, Hostile, Hostile>> = std::sync::OnceLock::new();

    impl Serialize for Hostile {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            assert_ne!(self.0, 1, "while it is written");
            serializer.serialize_u8(self.0)
        }
    }

    impl<'de> Deserialize<'de> for Hostile {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let value = u8::deserialize(deserializer)?;
            assert_ne!(value, 2, "while it is read");
            if let (3, Some(pool)) = (value, POOL.get()) {
                let within: Result<Vec<_>, _> = pool.map([Hostile(0), Hostile(7)]).collect();
                assert_eq!(within, Ok(vec![Hostile(0), Hostile(7)]));
            }
            Ok(Self(value))
        }
    }

    /// The conversion may panic on either side, or call the pool again.
    fn code_of_the_users_that_panics_or_calls_the_pool_breaks_nothing() -> Outcome {
        let pool = Pool::builder().workers(2).spawn(marks()?, |_: &Marks, job: Hostile| job)?;
        let pool = POOL.get_or_init(|| pool);
        let caught = |work: &dyn Fn() -> usize| std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).ok();
        let jobs = |bad: u8| (0..100).map(move |at| Hostile(if at == 50 { bad } else { 0 }));
        let good = |bad: u8| pool.map(jobs(bad)).filter(Result::is_ok).count();
        assert_eq!((caught(&|| good(0)), caught(&|| good(1)), caught(&|| good(2))), (Some(100), None, Some(99)));
        assert_eq!(caught(&|| pool.map((0..9).map(|at| Hostile(8 / (4 - at)))).count()), None, "the iterator panicked");
        assert_eq!(pool.submit(Hostile(3))?.wait()?, Hostile(3));
        assert_eq!(pool.map_unordered([Hostile(3), Hostile(3)]).filter(|(_, result)| result.is_ok()).count(), 2);
        passed()
    }

    /// The main use of a handle in a result, whatever watches the worker's pages.
    fn the_handle_of_an_object_that_was_found_is_returned() -> Outcome {
        for watch in Watch::ALL {
            if !Support::get().watch(watch).is_available() {
                println!("skipped: {watch} is not available here");
                continue;
            }
            let pool = pool(watch)?;
            for at in [0, 1, 5_000, 32_767] {
                let handle = pool.submit((at, Before::Read))?.wait()?;
                assert_eq!(handle.get()?.load(Ordering::Relaxed), at as u64, "{watch}");
            }
            // The bytes that were written lie on another page.
            let handle = pool.submit((32_767, Before::WriteTheSame(0)))?.wait()?;
            assert_eq!(handle.get()?.load(Ordering::Relaxed), 32_767, "{watch}");
        }
        passed()
    }

    /// Equal bytes do not make it the original: a reference of the worker's own may be spelled like what lay there before.
    fn the_handle_of_an_object_on_a_page_that_was_written_stays() -> Outcome {
        for before in [Before::WriteTheSame(7), Before::WriteTheSame(8), Before::GiveBack(7)] {
            let pool = pool(Watch::Census)?;
            for again in [before, Before::Read] {
                let refused = pool.submit((7, again))?.wait();
                assert!(
                    matches!(&refused, Err(JobError::NotPassed(why)) if why.contains("was written")),
                    "{refused:?}"
                );
            }
        }
        passed()
    }
}
