//! Types that cannot travel, found before there is a value of them.
//!
//! The encoding tells no names and no kinds, so a type whose `Deserialize` asks what comes next (`serde(untagged)`, `serde(flatten)`,
//! `serde(tag)`, `serde_json::Value`) can be encoded and never decoded. Such a type is found by letting it read made-up values: 0, empty text, lists of one.
//!
//! The values are read in rounds. Each round tries variants of enums that were not tried before. If a part asks that a value may do without (a variant beside others, Some of an
//! option, an element of a list or map), the next rounds do without it, and the part is reported. A type whose every value asks is reported as a whole. Within a type that is read within itself lists are empty and options are
//! none, so that reading ends.
//!
//! Nothing is found of what stands behind a type that refuses made-up values, or panics at them; then the first value tells.

use super::silent_panics::silenced;
use serde::Deserializer;
use serde::de::value::{Error, U32Deserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, EnumAccess, Error as _, IntoDeserializer, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};
use std::any::type_name;
use std::collections::{HashMap, HashSet};

/// The most values that are asked for in all rounds. A round that another follows asks for one at least, so this bounds the rounds, too.
const VALUES_MAX: u32 = 20_000;

/// The most values that are nested in each other, and the depth beyond which lists are empty and options none, whatever the types are.
const DEPTH_MAX: usize = 100;
const DEPTH_OF_LISTS_MAX: usize = 50;

/// The parts of a type that cannot be decoded.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Unreadable {
    /// A type of which each value has a part, if that asks what comes next: no value can be decoded.
    pub(crate) always: Option<&'static str>,
    /// The parts that ask and that a value may do without.
    pub(crate) parts: Vec<String>,
}

/// The parts of `T` that cannot be decoded, as far as they are found. None are where a panic cannot be caught.
pub(crate) fn unreadable<T: DeserializeOwned>() -> Unreadable {
    let mut reading = Reading::default();
    while cfg!(panic = "unwind") && reading.values < VALUES_MAX {
        reading.within.clear();
        reading.is_open = false;
        let read = silenced(|| drop(T::deserialize(&mut reading)));
        if reading.always.is_some() || read.is_none() || !reading.is_open {
            break;
        }
    }
    let name = |name: &'static str| if name.is_empty() { type_name::<T>() } else { name };
    Unreadable { always: reading.always.map(name), parts: reading.parts }
}

/// A type: the name of what its visitor makes, which tells instances of one generic type apart; and what it calls itself and its fields or variants.
type Key = (&'static str, &'static str, &'static [&'static str]);

/// A part that is read and that a value may do without.
#[derive(Clone, Copy)]
enum Choice {
    Some,
    Element,
    Variant(usize),
}

/// A value that is being read.
struct Level {
    key: Key,
    /// The type is being read within itself, at this level or above.
    is_recursive: bool,
    choice: Option<Choice>,
}

/// The state of a variant.
#[derive(Clone, Copy, PartialEq)]
enum Tried {
    No,
    /// There is more to be tried within it.
    Open,
    Done,
    /// Each value of it asks what comes next.
    Asks,
}

/// The variants of an enum.
struct Variants {
    tried: Vec<Tried>,
    /// The first that could be read. It holds no value of the same enum, else that would have been the first.
    ended: Option<usize>,
    /// The next one, as long as none could be read.
    next: usize,
}

impl Variants {
    /// The variant that is to be read.
    fn choose(&mut self, is_recursive: bool) -> Option<usize> {
        let new = self.tried.iter().position(|tried| matches!(tried, Tried::No | Tried::Open));
        new.filter(|_| !is_recursive).or(self.ended).or_else(|| self.turn())
    }

    fn turn(&mut self) -> Option<usize> {
        let count = self.tried.len();
        let turn =
            (0..count).map(|past| (self.next + past) % count).find(|&number| self.tried[number] != Tried::Asks)?;
        self.next = turn + 1;
        Some(turn)
    }

    fn all_ask(&self) -> bool {
        !self.tried.is_empty() && self.tried.iter().all(|tried| *tried == Tried::Asks)
    }
}

/// A reading of made-up values.
#[derive(Default)]
struct Reading {
    values: u32,
    /// The values that are being read, the innermost last.
    within: Vec<Level>,
    enums: HashMap<Key, Variants>,
    /// Options that are none from now on, and lists and maps that are empty.
    bare: HashSet<Key>,
    /// Another round would try more, in what has been read of the innermost variant.
    is_open: bool,
    /// The innermost type that asked what comes next in a part that each value has; empty if that is the whole.
    always: Option<&'static str>,
    parts: Vec<String>,
}

impl Reading {
    fn is_recursive(&self) -> bool {
        self.within.len() > DEPTH_OF_LISTS_MAX || self.within.last().is_some_and(|level| level.is_recursive)
    }

    /// Reads a value of which there may be others within.
    fn inside<V, R>(
        &mut self,
        name: &'static str,
        parts: &'static [&'static str],
        read: impl FnOnce(&mut Self, Key) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let key = (type_name::<V>(), name, parts);
        let is_recursive = self.is_recursive() || self.within.iter().any(|level| level.key == key);
        self.within.push(Level { key, is_recursive, choice: None });
        self.values += 1;
        let is_enough = self.within.len() > DEPTH_MAX || self.values > VALUES_MAX;
        let value = if is_enough { Err(Error::custom("enough was read")) } else { read(self, key) };
        self.within.pop();
        value
    }

    fn choose(&mut self, choice: Choice) {
        if let Some(level) = self.within.last_mut() {
            level.choice = Some(choice);
        }
    }

    /// Tells whether the option has a value that is being read, or the list or map an element.
    fn has_part(&mut self, key: Key, choice: Choice) -> bool {
        let has = !self.is_recursive() && !self.bare.contains(&key);
        if has {
            self.choose(choice);
        }
        has
    }

    /// The number of the variant that is to be read.
    fn variant(&mut self, key: Key) -> Result<usize, Error> {
        let is_recursive = self.is_recursive();
        let count = key.2.len();
        let new = || Variants { tried: vec![Tried::No; count], ended: None, next: 0 };
        let variants = self.enums.entry(key).or_insert_with(new);
        if variants.all_ask() {
            return Err(self.asked());
        }
        let number = variants.choose(is_recursive).ok_or_else(|| Error::custom("there is no variant"))?;
        if count > 1 {
            self.choose(Choice::Variant(number));
        }
        Ok(number)
    }

    /// Takes note of a variant that was read.
    fn was_read(&mut self, key: Key, number: usize, is_ok: bool, was_open: bool) {
        let is_recursive = self.is_recursive();
        let Some(variants) = self.enums.get_mut(&key) else { return };
        if is_ok && variants.ended.is_none() {
            variants.ended = Some(number);
        }
        if is_recursive {
            self.is_open |= was_open;
            return;
        }
        let tried = &mut variants.tried[number];
        // A variant that fails the first time has hidden the types behind it, so that those around it are read again.
        let has_hidden = !is_ok && matches!(tried, Tried::No | Tried::Asks);
        if *tried != Tried::Asks {
            *tried = if self.is_open { Tried::Open } else { Tried::Done };
        }
        let is_open = variants.tried.iter().any(|tried| matches!(tried, Tried::No | Tried::Open));
        self.is_open = was_open || has_hidden || is_open;
    }

    fn asked(&mut self) -> Error {
        self.asked_within(self.within.len())
    }

    /// A value at this depth asked what comes next: the innermost part around it that a value may do without is not read again.
    fn asked_within(&mut self, depth: usize) -> Error {
        let around = self.within.iter().take(depth).rev();
        let part = around.filter_map(|level| Some((level.key, level.choice?))).next();
        match part {
            Some((key @ (name, _, variants), Choice::Variant(number))) => {
                if let Some(enumeration) = self.enums.get_mut(&key)
                    && enumeration.tried[number] != Tried::Asks
                {
                    enumeration.tried[number] = Tried::Asks;
                    self.is_open = true;
                    self.parts.push(format!("`{name}::{}`", variants[number]));
                }
            }
            Some((key, choice)) => {
                if self.bare.insert(key) {
                    self.is_open = true;
                    let part = if matches!(choice, Choice::Some) { "Some" } else { "an element" };
                    self.parts.push(format!("{part} of `{}`", key.0));
                }
            }
            None => self.always = Some(self.within.last().map_or("", |level| level.key.0)),
        }
        Error::custom("the kind of what comes next is not told")
    }
}

/// Numbers, each of which is 0.
macro_rules! zeros {
    ($($method:ident => $visit:ident($($value:expr)?);)*) => { $(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.values += 1;
            visitor.$visit($($value)?)
        }
    )* };
}

impl<'de> Deserializer<'de> for &mut Reading {
    type Error = Error;

    zeros! {
        deserialize_bool => visit_bool(false);
        deserialize_i8 => visit_i8(0);
        deserialize_i16 => visit_i16(0);
        deserialize_i32 => visit_i32(0);
        deserialize_i64 => visit_i64(0);
        deserialize_i128 => visit_i128(0);
        deserialize_u8 => visit_u8(0);
        deserialize_u16 => visit_u16(0);
        deserialize_u32 => visit_u32(0);
        deserialize_u64 => visit_u64(0);
        deserialize_u128 => visit_u128(0);
        deserialize_f32 => visit_f32(0.0);
        deserialize_f64 => visit_f64(0.0);
        deserialize_char => visit_char('0');
        deserialize_str => visit_str("");
        deserialize_string => visit_str("");
        deserialize_bytes => visit_bytes(&[]);
        deserialize_byte_buf => visit_bytes(&[]);
        deserialize_unit => visit_unit();
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(self.asked())
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(self.asked())
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        // A map that begins with the name of a field is a struct with `serde(flatten)`, which is never empty.
        let depth = self.within.len();
        let is_key = self.within.last().is_some_and(|level| matches!(level.choice, Some(Choice::Element)));
        Err(self.asked_within(depth - usize::from(is_key)))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.inside::<V::Value, _>("", &[], |reading, key| match reading.has_part(key, Choice::Some) {
            true => visitor.visit_some(reading),
            false => visitor.visit_none(),
        })
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        self.inside::<V::Value, _>(name, &[], |reading, _| visitor.visit_newtype_struct(reading))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.inside::<V::Value, _>("", &[], |reading, key| {
            let left = usize::from(reading.has_part(key, Choice::Element));
            visitor.visit_seq(Parts { reading, left })
        })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        self.inside::<V::Value, _>("", &[], |reading, _| visitor.visit_seq(Parts { reading, left: len }))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.inside::<V::Value, _>(name, &[], |reading, _| visitor.visit_seq(Parts { reading, left: len }))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.inside::<V::Value, _>("", &[], |reading, key| {
            let left = usize::from(reading.has_part(key, Choice::Element));
            visitor.visit_map(Parts { reading, left })
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.inside::<V::Value, _>(name, fields, |reading, _| visitor.visit_seq(Parts { reading, left: fields.len() }))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.inside::<V::Value, _>(name, variants, |reading, key| {
            let number = reading.variant(key)?;
            let was_open = std::mem::take(&mut reading.is_open);
            let value = visitor.visit_enum(Variant { reading: &mut *reading, number: number as u32 });
            reading.was_read(key, number, value.is_ok(), was_open);
            value
        })
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

/// The parts of a list, a map or a struct.
struct Parts<'a> {
    reading: &'a mut Reading,
    left: usize,
}

impl<'de> SeqAccess<'de> for Parts<'_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        seed.deserialize(&mut *self.reading).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

impl<'de> MapAccess<'de> for Parts<'_> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        self.next_element_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        seed.deserialize(&mut *self.reading)
    }
}

/// A variant of an enum, and what it holds.
struct Variant<'a> {
    reading: &'a mut Reading,
    number: u32,
}

impl<'de> EnumAccess<'de> for Variant<'_> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Error> {
        let number: U32Deserializer<Error> = self.number.into_deserializer();
        Ok((seed.deserialize(number)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        seed.deserialize(self.reading)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Parts { reading: self.reading, left: len })
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Parts { reading: self.reading, left: fields.len() })
    }
}

#[cfg(test)]
mod tests;
