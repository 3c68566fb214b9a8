//! The way of jobs and results from process to process: bytes, and beside them what bytes may not say.
//!
//! Values are encoded by serde as [postcard](https://docs.rs/postcard): a few bytes a value, no names of fields, a
//! format with a specification and a promise of stability, no `unsafe` code for the user to trust. Both ends
//! are forks of one program, so that the types are the same and nothing need be self-describing. It follows that
//! `#[serde(flatten)]`, `#[serde(untagged)]`, tagged enums and `skip_serializing_if` do not travel: `shape` finds types that
//! cannot be decoded before there is a value, and `strict` refuses a named field that is left out. Nothing tells of a field without a name that is
//! left out: those behind it are decoded as others, or not at all.
//!
//! **Passengers.** A value that means a place in memory, as [`crate::arena::Handle`] does, must not be made from bytes:
//! any safe code can write bytes. Such a value puts what it is into a table that travels beside the bytes, and
//! into the bytes only the number of its entry. The entry says of which type it is and is written by this crate alone,
//! so a forged number can reach nothing but another value of the very same type that travelled in the same
//! table. Outside of a pool there is no table, and such values refuse to be serialised.
//!
//! **Plain old data** needs no encoding: [`Plain`] and [`PlainVec`] are copied as they are.

mod flavor;
mod plain;
mod shape;
mod silent_panics;
mod strict;
mod table;

pub use plain::{Plain, PlainVec};
pub(crate) use shape::{Unreadable, unreadable};
pub(crate) use table::{Passenger, disembark, embark, embark_in_result, kind_of, refuse};

use crate::error::{Error, Result};
use flavor::Append;
use serde::Serialize;
use serde::de::DeserializeOwned;
use strict::Strict;
use table::{Refusals, TableUse};

/// Appends `value` to `bytes` and its passengers to `passengers`; nothing if that fails or unwinds. In the bytes a passenger's number is
/// its index in all of `passengers`, so one table may serve several values.
///
/// # Errors
/// Invalid: the value's type says no, or cannot be told without names of fields.
pub(crate) fn encode<T: Serialize + ?Sized>(
    value: &T,
    bytes: &mut Vec<u8>,
    passengers: &mut Vec<Passenger>,
) -> Result<()> {
    encode_as(TableUse::Boarding, value, bytes, passengers)
}

/// [`encode`] for the result of a job, in which more may travel.
///
/// # Errors
/// The errors are those of [`encode`].
pub(crate) fn encode_result<T: Serialize + ?Sized>(
    value: &T,
    bytes: &mut Vec<u8>,
    passengers: &mut Vec<Passenger>,
) -> Result<()> {
    encode_as(TableUse::Returning, value, bytes, passengers)
}

fn encode_as<T: Serialize + ?Sized>(
    way: TableUse,
    value: &T,
    bytes: &mut Vec<u8>,
    passengers: &mut Vec<Passenger>,
) -> Result<()> {
    let (written, refusal) =
        table::boarding(way, passengers, || postcard::serialize_with_flavor(&Strict(value), Append::new(bytes)));
    written.map_err(|e| failed("encoded", &e, refusal))
}

/// The value that [`encode`] made these bytes and passengers of.
///
/// # Errors
/// Invalid: the bytes are no such value, or more than one, or a passenger is not there or of another type.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], passengers: &[Passenger]) -> Result<T> {
    let (read, refusal) = table::leaving(passengers, || postcard::take_from_bytes(bytes));
    match read {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(Error::invalid(format!("cannot be decoded: {} bytes are left over", rest.len()))),
        Err(e) => Err(failed("decoded", &e, refusal)),
    }
}

/// The error of a user's type, with what was lost on its way: postcard drops messages.
fn failed(what: &str, error: &postcard::Error, refusal: Refusals) -> Error {
    use postcard::Error::{SerializeSeqLengthUnknown, WontImplement};
    if let Some(refusal) = refusal {
        return Error::invalid(format!("cannot be {what}: {refusal}"));
    }
    let failed = Error::invalid(format!("cannot be {what}: {error}"));
    match error {
        WontImplement => failed.with_hint(AS_TEXT),
        SerializeSeqLengthUnknown => {
            failed.with_hint("a list or map must know its length before it is written: collect it first")
        }
        _ => failed,
    }
}

/// The way out for a type that cannot be decoded.
pub(crate) const AS_TEXT: &str = "jobs and results go without names of fields: no serde(flatten), serde(untagged), serde(tag) and no serde_json::Value in their types; pass such a value as text, by serde_json::to_string";

#[cfg(test)]
mod tests;
