//! Plain old data, copied as it is.

use bytemuck::Pod;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;

/// A value of plain old data that travels as its bytes are in memory, without encoding: one copy. For arrays of numbers
/// and `#[repr(C)]` records that derive [`bytemuck::Pod`].
///
/// As any serde value it may be a part of another. Its bytes are those of this machine (byte order, sizes), so they are
/// for other processes of this machine and not for files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Plain<T: Pod>(pub T);

/// A vector of plain old data that travels as its bytes are in memory, without encoding: one copy. As [`Plain`].
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlainVec<T: Pod>(pub Vec<T>);

impl<T: Pod> From<T> for Plain<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T: Pod> From<Vec<T>> for PlainVec<T> {
    fn from(values: Vec<T>) -> Self {
        Self(values)
    }
}

impl<T: Pod> Serialize for Plain<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytemuck::bytes_of(&self.0))
    }
}

impl<'de, T: Pod> Deserialize<'de> for Plain<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_bytes(Bytes(|bytes: &[u8]| bytemuck::try_pod_read_unaligned(bytes).ok(), PhantomData))
            .map(Self)
    }
}

impl<T: Pod> Serialize for PlainVec<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const { assert!(size_of::<T>() > 0, "the bytes of zero-sized values do not tell how many there are") };
        serializer.serialize_bytes(bytemuck::cast_slice(&self.0))
    }
}

impl<'de, T: Pod> Deserialize<'de> for PlainVec<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const { assert!(size_of::<T>() > 0, "the bytes of zero-sized values do not tell how many there are") };
        deserializer.deserialize_bytes(Bytes(read_all, PhantomData)).map(Self)
    }
}

fn read_all<T: Pod>(bytes: &[u8]) -> Option<Vec<T>> {
    if let Ok(aligned) = bytemuck::try_cast_slice::<u8, T>(bytes) {
        return Some(aligned.to_vec());
    }
    let values = bytes.chunks_exact(size_of::<T>());
    values.remainder().is_empty().then(|| values.map(bytemuck::pod_read_unaligned).collect())
}

/// Reads a value from bytes; `None` says that they are too few or too many.
struct Bytes<F, R>(F, PhantomData<R>);

impl<'de, R, F: FnOnce(&[u8]) -> Option<R>> Visitor<'de> for Bytes<F, R> {
    type Value = R;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the bytes of a {}", std::any::type_name::<R>())
    }

    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<R, E> {
        let len = bytes.len();
        (self.0)(bytes).ok_or_else(|| {
            super::table::refuse("the length of plain data does not fit its type");
            E::invalid_length(len, &"as many bytes as the type has")
        })
    }

    /// Formats without bytes of their own, as JSON, make a list of them.
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<R, A::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = list.next_element::<u8>()? {
            bytes.push(byte);
        }
        self.visit_bytes(&bytes).map_err(A::Error::custom::<A::Error>)
    }
}
