//! Types that cannot travel, found before there is a value of them.
//!
//! The encoding tells no names and no kinds, so a type whose `Deserialize` asks what comes next (`serde(untagged)`, `serde(flatten)`,
//! `serde(tag)`, `serde_json::Value`) can be encoded and never decoded. Such a type is found by letting it read made-up values: 0, empty text, lists of one. All
//! variants of enums are tried, in rounds; what is recursive ends where it meets itself.
//!
//! Nothing is found of what stands behind a type that refuses made-up values; then the first value tells.

use serde::Deserializer;
use serde::de::value::{Error, U32Deserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, EnumAccess, Error as _, IntoDeserializer, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};
use std::any::type_name;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The most values that are asked for in all rounds, and nested in each other.
const VALUES_MAX: u32 = 20_000;
const DEPTH_MAX: usize = 100;
const ROUNDS_MAX: u32 = 200;

/// A type within `T` of which a part cannot be decoded, or which cannot itself, if one is found.
pub(crate) fn unreadable<T: DeserializeOwned>() -> Option<String> {
    let mut reading = Reading::default();
    for _ in 0..ROUNDS_MAX {
        reading.within.clear();
        // A type that panics at a made-up value says nothing of others.
        let read = catch_unwind(AssertUnwindSafe(|| T::deserialize(&mut reading).is_ok()));
        if let Some(name) = reading.found {
            return Some(if name.is_empty() { type_name::<T>().to_owned() } else { name.to_owned() });
        }
        if let Err(payload) = read {
            // What a panic leaves behind may panic when it is dropped.
            std::mem::forget(payload);
            break;
        }
        let is_done = |tried: &Variants| tried.next >= tried.count;
        if reading.values >= VALUES_MAX || reading.enums.values().all(is_done) {
            break;
        }
    }
    None
}

/// A type by the addresses of its name and of the names of its fields or variants, which are constants.
type Key = (*const u8, *const &'static str);

/// The variants of an enum.
struct Variants {
    count: u32,
    /// The number of those that were tried, and then of the turns that they had again.
    next: u32,
    /// One that could be read.
    ended: Option<u32>,
}

/// A reading of made-up values.
#[derive(Default)]
struct Reading {
    values: u32,
    /// The types that are being read, the innermost last.
    within: Vec<(Key, &'static str)>,
    enums: HashMap<Key, Variants>,
    /// The innermost type with a name that asked what comes next; empty if there is none.
    found: Option<&'static str>,
}

impl Reading {
    /// Tells whether a type is being read within itself: then lists are empty and options are none.
    fn is_recursive(&self) -> bool {
        let innermost = self.within.last();
        self.within.len() > DEPTH_MAX / 2
            || innermost.is_some_and(|(key, _)| self.within.iter().filter(|(other, _)| other == key).count() > 1)
    }

    /// Reads a value within a type.
    fn inside<R>(
        &mut self,
        name: &'static str,
        parts: &'static [&'static str],
        read: impl FnOnce(&mut Self) -> Result<R, Error>,
    ) -> Result<R, Error> {
        self.within.push(((name.as_ptr(), parts.as_ptr()), name));
        self.values += 1;
        let is_enough = self.within.len() > DEPTH_MAX || self.values > VALUES_MAX;
        let value = if is_enough { Err(Error::custom("enough was read")) } else { read(self) };
        self.within.pop();
        value
    }

    fn asked(&mut self) -> Error {
        self.found = Some(self.within.last().map_or("", |(_, name)| name));
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
        Err(self.asked())
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.is_recursive() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        self.inside(name, &[], |reading| visitor.visit_newtype_struct(reading))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let left = usize::from(!self.is_recursive());
        visitor.visit_seq(Parts { reading: self, left })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Parts { reading: self, left: len })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.inside(name, &[], |reading| visitor.visit_seq(Parts { reading, left: len }))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let left = usize::from(!self.is_recursive());
        visitor.visit_map(Parts { reading: self, left })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.inside(name, fields, |reading| visitor.visit_seq(Parts { reading, left: fields.len() }))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let key = (name.as_ptr(), variants.as_ptr());
        self.inside(name, variants, |reading| {
            let is_recursive = reading.is_recursive();
            let count = variants.len() as u32;
            let tried = reading.enums.entry(key).or_insert(Variants { count, next: 0, ended: None });
            let turn = if is_recursive && tried.next >= count { tried.ended } else { tried.next.checked_rem(count) };
            let variant = turn.ok_or_else(|| Error::custom("no variant ends"))?;
            tried.next = tried.next.saturating_add(1);
            let value = visitor.visit_enum(Variant { reading, number: variant })?;
            reading.enums.entry(key).and_modify(|tried| tried.ended = Some(variant));
            Ok(value)
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
        self.reading.deserialize_tuple(len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        self.reading.deserialize_tuple(fields.len(), visitor)
    }
}
