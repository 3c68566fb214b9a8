//! Made-up values: the types that are found, and those that are not.

use super::super::{Plain, PlainVec, decode, encode};
use super::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    _Number(u64),
    _Text(String),
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tagged {
    _One { number: u64 },
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", content = "content")]
enum Beside {
    _One(u64),
    _Two(String),
}

#[derive(Serialize, Deserialize)]
struct Flattened {
    id: u64,
    #[serde(flatten)]
    rest: HashMap<String, u64>,
}

#[derive(Serialize, Deserialize)]
struct Tree<T> {
    left: Option<Box<Self>>,
    children: Vec<Tree<T>>,
    by_name: BTreeMap<String, Tree<T>>,
    value: T,
}

#[derive(Serialize, Deserialize)]
enum Expression<T> {
    Add(Box<Expression<T>>, Box<Expression<T>>),
    Number(i64),
    Call { name: String, arguments: Vec<Expression<T>> },
    Inner(Inner<T>),
}

#[derive(Serialize, Deserialize)]
enum Inner<T> {
    Nothing,
    Some(Option<Vec<(u8, Result<T, String>)>>),
    More(Box<Expression<T>>),
}

/// An endless type: no value of it ends.
#[derive(Serialize, Deserialize)]
struct Endless(Box<Endless>);

/// A type that panics at made-up values.
#[derive(Serialize)]
struct Strict(String);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        assert!(!text.is_empty(), "a text that is not empty");
        Ok(Self(text))
    }
}

/// The type within `T` that keeps each value of it from being decoded.
fn always<T: DeserializeOwned>() -> &'static str {
    unreadable::<T>().always.expect("it asks what comes next")
}

/// The parts that keep some values of `T` from being decoded.
fn parts<T: DeserializeOwned>() -> Vec<String> {
    let found = unreadable::<T>();
    assert_eq!(found.always, None, "{found:?}");
    found.parts
}

fn nothing<T: DeserializeOwned>() {
    assert_eq!(unreadable::<T>(), Unreadable::default());
}

#[test]
fn a_type_that_cannot_be_decoded_is_found_without_a_value() {
    assert_eq!(always::<serde_json::Value>(), "serde_json::value::Value");
    assert!(always::<Untagged>().ends_with("::Untagged"));
    assert!(always::<Tagged>().ends_with("::Tagged"));
    assert!(always::<(u8, Flattened)>().ends_with("::Flattened"));
    assert!(always::<Beside>().ends_with("::Beside"));
    for each in [Beside::_One(1), Beside::_Two("x".into())] {
        let mut bytes = Vec::new();
        encode(&each, &mut bytes, &mut Vec::new()).expect("it can be encoded");
        assert!(decode::<Beside>(&bytes, &[]).is_err());
    }
    assert!(always::<(u8, Tree<serde_json::Value>)>().contains("::Tree<"));
}

#[derive(Serialize, Deserialize)]
struct Optional {
    id: u64,
    extra: Option<Untagged>,
    more: HashMap<u8, Vec<Untagged>>,
    last: Option<Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
enum Command {
    Get(u64),
    Raw(Untagged),
    Named { flattened: Flattened },
    All(AllBad),
}

#[derive(Serialize, Deserialize)]
enum AllBad {
    One(Untagged),
    Two(u8, Flattened),
}

#[derive(Serialize, Deserialize)]
enum Single {
    One(Untagged),
}

#[test]
fn a_part_that_a_value_may_do_without_is_told() {
    let has = |parts: Vec<String>, ends: &[&str]| {
        assert_eq!(parts.len(), ends.len(), "{parts:?}");
        for (part, end) in parts.iter().zip(ends) {
            assert!(part.ends_with(end), "{part} {end}");
        }
    };
    has(parts::<Option<serde_json::Value>>(), &["Some of `core::option::Option<serde_json::value::Value>`"]);
    has(parts::<Optional>(), &["shape::tests::Untagged>`"; 2]);
    assert!(parts::<Optional>()[1].starts_with("an element of `alloc::vec::Vec<"));
    has(
        parts::<Command>(),
        &["::Command::Raw`", "::Command::Named`", "::AllBad::One`", "::AllBad::Two`", "::Command::All`"],
    );
    assert!(always::<AllBad>().ends_with("::AllBad"));
    assert!(always::<(u8, Single)>().ends_with("::Single"));
    assert!(parts::<HashMap<u8, Expression<Untagged>>>()[0].ends_with("Untagged, alloc::string::String>::Ok`"));
}

#[test]
fn instances_of_one_generic_enum_are_told_apart() {
    #[derive(Serialize, Deserialize)]
    struct Two(Result<u8, Untagged>, Result<u8, u8>, Result<u8, String>);
    #[derive(Serialize, Deserialize)]
    struct Reversed(Result<u8, u8>, Result<u8, String>, Result<u8, Untagged>);
    for found in [parts::<Two>(), parts::<Reversed>()] {
        assert!(found.len() == 1 && found[0].ends_with("Untagged>::Err`"), "{found:?}");
    }
}

#[test]
fn a_type_that_can_be_decoded_passes() {
    nothing::<(Tree<u8>, Expression<Tree<String>>, Plain<u32>, PlainVec<u8>)>();
    nothing::<(std::time::SystemTime, std::net::IpAddr, std::num::NonZero<u8>)>();
    nothing::<Endless>();
    // A type that stands behind one that refuses is not seen.
    nothing::<(Strict, serde_json::Value)>();
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Bare<T>(Vec<Bare<T>>, #[serde(skip)] std::marker::PhantomData<T>);

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Trie {
    children: BTreeMap<char, Trie>,
}

#[derive(Serialize, Deserialize)]
struct Words {
    known: Trie,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(from = "(T, Vec<Node<T>>)", into = "(T, Vec<Node<T>>)")]
#[serde(bound(serialize = "T: Serialize + Clone"))]
struct Node<T>(T, Vec<Node<T>>);

impl<T> From<(T, Vec<Node<T>>)> for Node<T> {
    fn from((value, below): (T, Vec<Node<T>>)) -> Self {
        Self(value, below)
    }
}

impl<T> From<Node<T>> for (T, Vec<Node<T>>) {
    fn from(Node(value, below): Node<T>) -> Self {
        (value, below)
    }
}

/// A list of itself, written by hand.
struct ByHand;

impl<'de> Deserialize<'de> for ByHand {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        Vec::<Self>::deserialize(from).map(|_| Self)
    }
}

/// Types that hold themselves through an option, and through a pair of which no value ends.
struct Next;

impl<'de> Deserialize<'de> for Next {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        Option::<Box<Self>>::deserialize(from).map(|_| Self)
    }
}

struct Pairs;

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        <(u8, Box<Self>)>::deserialize(from).map(|_| Self)
    }
}

#[test]
fn types_without_names_that_hold_themselves_end() {
    nothing::<Bare<u8>>();
    nothing::<(Words, Trie)>();
    nothing::<Node<u8>>();
    nothing::<(ByHand, Next)>();
    nothing::<Pairs>();
    assert!(always::<Node<Untagged>>().contains("Node<"));
}

/// Makes a value of its own for each depth, as visitors behind `dyn` may: no type is met twice.
#[test]
fn depth_alone_ends_a_reading() {
    struct Deep<const MORE: usize>;
    macro_rules! deep {
        ($($more:literal),*) => { $(
            impl<'de> Deserialize<'de> for Deep<$more> {
                fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
                    Vec::<(Vec<Deep<{ $more + 1 }>>, Option<[Box<Deep<{ $more + 1 }>>; 1]>)>::deserialize(from).map(|_| Self)
                }
            }
        )* };
    }
    deep!(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19);
    impl<'de> Deserialize<'de> for Deep<20> {
        fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
            // Lists are empty by then, so that nobody asks.
            Untagged::deserialize(from).map(|_| Self)
        }
    }
    nothing::<Deep<0>>();
}

#[test]
fn each_variant_is_tried_before_a_type_passes() {
    #[derive(Serialize, Deserialize)]
    enum Late {
        Again(Box<Late>),
        List(Vec<serde_json::Value>),
        Empty,
    }
    #[derive(Serialize, Deserialize)]
    enum Many<T> {
        A,
        B,
        C,
        D,
        E(T),
    }
    #[derive(Serialize, Deserialize)]
    enum Refusing {
        First(std::num::NonZero<u8>),
        Last(std::num::NonZero<u8>),
    }
    #[derive(Serialize, Deserialize)]
    struct Behind(Many<std::num::NonZero<u8>>, Many<Untagged>);
    assert_eq!(parts::<Late>(), ["an element of `alloc::vec::Vec<serde_json::value::Value>`"]);
    assert_eq!(parts::<Many<Many<Many<Many<Untagged>>>>>().len(), 1);
    assert_eq!(parts::<Many<Behind>>().len(), 1);
    nothing::<Refusing>();
}
