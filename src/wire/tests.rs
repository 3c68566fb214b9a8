use super::*;
use bytemuck::{Pod, Zeroable};
use proptest::prelude::*;
use serde::{Deserialize, Deserializer, Serializer};
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Stands for the types of other rooms that travel as passengers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Rider<const KIND: u64>(u64);

impl<const KIND: u64> Serialize for Rider<KIND> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let number = embark(Passenger { kind: [KIND, 0], words: [self.0, !self.0] });
        let number = number.ok_or_else(|| serde::ser::Error::custom(refuse("riders need a table")))?;
        serializer.serialize_u32(number)
    }
}

impl<'de, const KIND: u64> Deserialize<'de> for Rider<KIND> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let found = disembark(u32::deserialize(deserializer)?).filter(|passenger| passenger.kind == [KIND, 0]);
        let found = found.ok_or_else(|| serde::de::Error::custom(refuse("no such rider")))?;
        Ok(Self(found.words[0]))
    }
}

type Result<T, E = crate::error::Error> = std::result::Result<T, E>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Job {
    Nothing,
    Pair(u8, i64),
    Named { name: String, weights: Vec<f64>, nested: Option<Box<Job>> },
    Riders(HashMap<String, Rider<1>>, Option<Rider<2>>),
}

#[derive(Clone, Copy, Debug, PartialEq, Zeroable, Pod)]
#[repr(C)]
struct Record {
    key: u64,
    weight: f32,
    count: u32,
}

fn packed<T: Serialize + ?Sized>(value: &T) -> (Vec<u8>, Vec<Passenger>) {
    let (mut bytes, mut passengers) = (Vec::new(), Vec::new());
    encode(value, &mut bytes, &mut passengers).expect("it can be encoded");
    (bytes, passengers)
}

fn there_and_back<T: Serialize + DeserializeOwned>(value: &T) -> T {
    let (bytes, passengers) = packed(value);
    decode(&bytes, &passengers).expect("what was encoded can be decoded")
}

fn jobs() -> Vec<Job> {
    let named =
        Job::Named { name: "edge".into(), weights: vec![0.5, f64::MIN], nested: Some(Box::new(Job::Pair(7, -1))) };
    let riders = [("a".to_owned(), Rider(10)), ("b".to_owned(), Rider(20))];
    vec![Job::Nothing, Job::Pair(0, i64::MIN), named, Job::Riders(riders.into(), Some(Rider(30)))]
}

#[test]
fn what_is_encoded_is_decoded() {
    for job in jobs() {
        assert_eq!(there_and_back(&job), job);
    }
    assert_eq!(there_and_back(&jobs()), jobs());
    there_and_back(&());
    assert_eq!(packed(&()).0.len(), 0, "nothing takes nothing");
    assert_eq!(there_and_back(&(1u8, "text".to_owned(), BTreeMap::from([(1u64, 'x')]))).1, "text");
}

#[test]
fn one_table_may_serve_several_values() {
    let (mut bytes, mut passengers) = (vec![99], Vec::new());
    let mut ends = vec![1];
    for value in [Rider::<1>(5), Rider(6)] {
        encode(&value, &mut bytes, &mut passengers).expect("riders");
        ends.push(bytes.len());
    }
    assert_eq!(bytes[0], 99);
    assert_eq!(decode::<Rider<1>>(&bytes[ends[0]..ends[1]], &passengers).expect("the first").0, 5);
    assert_eq!(decode::<Rider<1>>(&bytes[ends[1]..ends[2]], &passengers).expect("the second").0, 6);
}

#[test]
fn passengers_are_told_apart_by_their_kind() {
    let (bytes, passengers) = packed(&Rider::<1>(5));
    let error = decode::<Rider<2>>(&bytes, &passengers).expect_err("another kind");
    assert!(error.is_invalid() && error.to_string().contains("no such rider"), "{error}");
    decode::<Rider<1>>(&bytes, &[]).expect_err("no passenger");
    decode::<Rider<1>>(&[1], &passengers).expect_err("a number that is none");
    decode::<Rider<1>>(&[255, 255, 255, 255, 15], &passengers).expect_err("the highest number");
    assert_ne!(kind_of::<u32>(), kind_of::<i32>());
    assert_ne!(kind_of::<Rider<1>>(), kind_of::<Rider<2>>());
    // More types than a thread remembers, and another thread, which remembers none.
    let kinds =
        || [kind_of::<Rider<1>>(), kind_of::<Rider<2>>(), kind_of::<Rider<3>>(), kind_of::<u8>(), kind_of::<u16>()];
    let first = kinds();
    assert_eq!([kinds(), kinds()], [first; 2]);
    assert_eq!(std::thread::spawn(kinds).join().expect("it does not panic"), first);
    assert!((0..5).all(|at| first.iter().filter(|kind| **kind == first[at]).count() == 1));
}

#[test]
fn there_is_no_table_outside() {
    let passenger = Passenger { kind: [1, 0], words: [0, 0] };
    assert_eq!((embark(passenger), disembark(0)), (None, None));
    let error = postcard::to_allocvec(&Rider::<1>(5)).expect_err("no table");
    assert_eq!(error, postcard::Error::SerdeSerCustom);
    postcard::from_bytes::<Rider<1>>(&[0]).expect_err("no table");

    /// Tries each way in the other.
    struct Crossed;
    impl Serialize for Crossed {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            assert_eq!(disembark(0), None);
            serializer.serialize_u32(0)
        }
    }
    impl<'de> Deserialize<'de> for Crossed {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            assert_eq!(embark(Passenger { kind: [1, 0], words: [0, 0] }), None);
            u32::deserialize(deserializer).map(|_| Self)
        }
    }
    there_and_back(&Crossed);
}

#[test]
fn a_value_within_a_value_has_its_own_table() {
    /// Encodes another value for itself, between two riders.
    struct Outer(bool);
    impl Serialize for Outer {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let (bytes, passengers) = packed(&(Rider::<1>(1), Rider::<1>(2)));
            assert_eq!(passengers.len(), 2);
            decode::<(Rider<1>, Rider<1>)>(&bytes, &passengers).expect("the inner value");
            if self.0 {
                encode(&Refuses, &mut Vec::new(), &mut Vec::new()).expect_err("it refuses");
            }
            (Rider::<1>(3), Rider::<1>(4)).serialize(serializer)
        }
    }
    for refuses in [false, true] {
        let (bytes, passengers) = packed(&Outer(refuses));
        assert_eq!(passengers.len(), 2);
        let riders = decode::<(Rider<1>, Rider<1>)>(&bytes, &passengers).expect("two riders");
        assert_eq!(riders, (Rider(3), Rider(4)));
    }
}

struct Refuses;

impl Serialize for Refuses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let _embarked = Rider::<1>(1).serialize(serializer)?;
        Err(serde::ser::Error::custom("no"))
    }
}

struct Panics;

impl Serialize for Panics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let _embarked = Rider::<1>(1).serialize(serializer)?;
        panic!("in the middle")
    }
}

#[test]
fn failing_leaves_what_was_there() {
    let (mut bytes, mut passengers) = packed(&Rider::<1>(5));
    let before = (bytes.clone(), passengers.clone());
    encode(&Refuses, &mut bytes, &mut passengers).expect_err("it refuses");
    assert_eq!((&bytes, &passengers), (&before.0, &before.1));
    catch_unwind(AssertUnwindSafe(|| encode(&Panics, &mut bytes, &mut passengers))).expect_err("it panics");
    assert_eq!((&bytes, &passengers), (&before.0, &before.1));
    assert_eq!(disembark(0), None);
    assert_eq!(embark(before.1[0]), None, "no table was left behind");
}

#[test]
fn too_few_and_too_many_bytes_are_errors() {
    let (mut bytes, passengers) = packed(&jobs());
    for len in 0..bytes.len() {
        decode::<Vec<Job>>(&bytes[..len], &passengers).expect_err("too few");
    }
    bytes.push(0);
    let error = decode::<Vec<Job>>(&bytes, &passengers).expect_err("too many");
    assert!(error.to_string().contains("1 bytes are left over"), "{error}");
}

#[test]
fn types_that_need_names_of_fields_are_named() {
    #[derive(Debug, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        Number(u64),
    }
    let (bytes, _) = packed(&Untagged::Number(1));
    let error = decode::<Untagged>(&bytes, &[]).expect_err("not self-describing");
    assert!(error.hint().is_some_and(|hint| hint.contains("untagged")), "{error}");
}

#[test]
fn plain_data_is_its_bytes() {
    let record = Record { key: 1, weight: 2.5, count: 3 };
    let (bytes, _) = packed(&Plain(record));
    assert_eq!(bytes[0] as usize, size_of::<Record>());
    assert_eq!(&bytes[1..], bytemuck::bytes_of(&record));
    assert_eq!(there_and_back(&Plain(record)), Plain(record));
    assert_eq!(there_and_back(&Plain(())), Plain(()), "no bytes at all");
    let nested =
        (7u8, Plain([1u16, 2, 3]), vec![Plain(record); 2], PlainVec(vec![record; 100]), Some(PlainVec(vec![1u8])));
    assert_eq!(there_and_back(&nested), nested);

    let error = decode::<Plain<u64>>(&packed(&Plain(1u32)).0, &[]).expect_err("another length");
    assert!(error.to_string().contains("length"), "{error}");
    decode::<PlainVec<u64>>(&packed(&PlainVec(vec![1u32; 3])).0, &[]).expect_err("not a whole number of them");
    decode::<Plain<u64>>(&packed(&Plain(1u64)).0[..8], &[]).expect_err("truncated");
}

#[test]
fn plain_vectors_may_lie_anywhere() {
    for shift in 0..9 {
        let (mut bytes, mut passengers) = (vec![0; shift], Vec::new());
        let values = PlainVec((0..100u64).collect());
        encode(&values, &mut bytes, &mut passengers).expect("plain");
        assert_eq!(decode::<PlainVec<u64>>(&bytes[shift..], &passengers).expect("plain"), values);
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), riders in 0usize..4) {
        let passengers = vec![Passenger { kind: [1, 0], words: [7, 7] }; riders];
        if let Ok(jobs) = decode::<Vec<Job>>(&bytes, &passengers) {
            for job in &jobs {
                if let Job::Riders(found, other) = job {
                    prop_assert!(other.is_none() && found.values().all(|rider| rider.0 == 7), "forged: {:?}", job);
                }
            }
        }
        let _any = decode::<Job>(&bytes, &passengers);
        let _any = decode::<(PlainVec<Record>, Plain<u32>)>(&bytes, &passengers);
        let _any = decode::<HashMap<String, Option<Rider<1>>>>(&bytes, &passengers);
    }

    #[test]
    fn random_values_come_back(
        text in ".{0,20}", numbers in proptest::collection::vec(any::<i64>(), 0..50), raw in proptest::collection::vec(any::<u64>(), 0..50),
        riders in proptest::collection::hash_map(any::<u32>(), any::<u64>().prop_map(Rider::<1>), 0..20),
    ) {
        let value = (text, numbers, PlainVec(raw), riders);
        prop_assert_eq!(there_and_back(&value), value);
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Short {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first: Option<u8>,
    second: u8,
    #[serde(skip)]
    never: u8,
}

#[test]
fn a_field_that_is_left_out_is_refused() {
    let whole = Short { first: Some(1), second: 1, never: 0 };
    assert_eq!(there_and_back(&whole), whole);
    let (mut bytes, mut passengers) = (vec![7], Vec::new());
    let left_out = BTreeMap::from([("key", [Some(Short { first: None, second: 1, never: 0 })])]);
    let error = encode(&left_out, &mut bytes, &mut passengers).expect_err("`second` would be `first`");
    assert!(error.to_string().contains("skip_serializing_if") && bytes == [7], "{error}");
}
