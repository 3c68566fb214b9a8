//! Handles: a place in a frozen arena as a small value that can be passed to a forked worker.
//!
//! # Safety
//! A handle is made from a `&'static T` and resolved to one again. In between, the arena may only go
//! away by `release`, which is unsafe; every other mistake is caught by the checks.
#![expect(unsafe_code, reason = "an offset becomes a reference again")]

use super::{Image, registry};
use crate::error::{Error, Kind, Result};
use crate::sys::map;
use std::any::TypeId;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::marker::PhantomData;
use std::{fmt, mem};

/// The place of a `T` in a frozen arena: 16 bytes, `Copy`, valid in this process and in every
/// process forked from it. Checked on use: arena, generation, bounds, alignment and type.
pub struct Handle<T: 'static> {
    /// Bytes from the arena's start.
    offset: u64,
    slot: u16,
    generation: u16,
    /// A digest of the type's id. The compiler checks the type already; this catches handles that
    /// went through memory as mere bytes.
    tag: u32,
    object: PhantomData<&'static T>,
}

const _: () = assert!(size_of::<Handle<u8>>() == 16);

impl<T: 'static> Handle<T> {
    pub(super) fn new(image: &Image, object: &'static T) -> Result<Self> {
        let address = std::ptr::from_ref(object).expose_provenance();
        let refused = || refuse("the object does not lie in this arena");
        let offset = if size_of::<T>() == 0 {
            // A zero-sized object has no place; any aligned one will do.
            0
        } else {
            let offset = address.checked_sub(image.range().start).ok_or_else(refused)?;
            let end = offset.checked_add(size_of::<T>()).ok_or_else(refused)?;
            if end > image.used() {
                return Err(refused());
            }
            offset as u64
        };
        Ok(Self { offset, slot: image.slot(), generation: image.generation(), tag: tag::<T>(), object: PhantomData })
    }

    /// The object.
    ///
    /// # Errors
    /// Bad handle: the arena was released, or the place is out of bounds, misaligned or of another type.
    pub fn get(self) -> Result<&'static T> {
        let range = registry::image_at(self.slot, self.generation);
        let range = range.ok_or_else(|| refuse("its arena was released, or is another process's"))?;
        if self.tag != tag::<T>() {
            return Err(refuse("it was made for another type"));
        }
        let end = (self.offset as usize).checked_add(size_of::<T>());
        if end.is_none_or(|end| end > range.len) {
            return Err(refuse("it is out of bounds"));
        }
        let place = map::pointer_at(range.start + self.offset as usize).ok_or_else(|| refuse("it is null"))?;
        if !place.addr().get().is_multiple_of(mem::align_of::<T>()) {
            return Err(refuse("it is misaligned"));
        }
        // SAFETY: `new` took a `&'static T` at this place of this generation of this arena, and the
        // object is still there: frozen objects are never dropped.
        Ok(unsafe { place.cast::<T>().as_ref() })
    }
}

fn refuse(why: &'static str) -> Error {
    Error::new(Kind::Handle(why))
}

fn tag<T: 'static>() -> u32 {
    let mut hasher = DefaultHasher::new();
    TypeId::of::<T>().hash(&mut hasher);
    hasher.finish() as u32
}

impl<T: 'static> Clone for Handle<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: 'static> Copy for Handle<T> {}

impl<T: 'static> PartialEq for Handle<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.offset, self.slot, self.generation, self.tag) == (other.offset, other.slot, other.generation, other.tag)
    }
}

impl<T: 'static> Eq for Handle<T> {}

impl<T: 'static> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({}.{}+{:#x})", self.slot, self.generation, self.offset)
    }
}
