//! Handles: a place in a frozen arena as a small value that can be passed to a forked worker.
//!
//! # Safety
//! A handle is made from a `&'static T` and resolved to one again. In between, the arena may only go
//! away by `release`, which is unsafe; every other mistake is caught by the checks. A handle that travelled in
//! a pool's job or result is made again from words that `Serialize` put there, never from the bytes; slot
//! and generation are no other image's in any process of a line of forks (see the registry).
//!
//! A process that inherited an image inherited what its objects led to as well. One that *adopted* it did not, so there only a handle
//! is resolved whose maker found the object contained, or made it of what was reached in a process that had adopted it, too.
#![expect(unsafe_code, reason = "an offset becomes a reference again")]

use super::image::Image;
use super::signal_safe::table;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::map;
use std::any::TypeId;
use std::cmp::Ordering;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::marker::PhantomData;
use std::{fmt, mem};

/// The place of a `T` in a frozen arena: 16 bytes, `Copy`, valid in this process and in every
/// process forked from it. Checked on use: arena, generation, bounds, alignment and type.
pub struct Handle<T: 'static> {
    /// Bytes from the arena's start, and [`CONTAINED`].
    place: u64,
    slot: u16,
    generation: u16,
    /// A digest of the type's id. The compiler checks the type already; this catches handles that
    /// went through memory as mere bytes.
    tag: u32,
    object: PhantomData<&'static T>,
}

const _: () = assert!(size_of::<Handle<u8>>() == 16);

/// In a handle's place: all that is reached from the object lies in its arena, or is the same in every process that has the arena.
const CONTAINED: u64 = 1 << 63;

impl<T: 'static> Handle<T> {
    pub(super) fn new(image: &Image, object: &'static T, contained: bool) -> Result<Self> {
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
        let (slot, generation) = (image.slot(), image.generation());
        // An object that a process reaches which adopted the arena was checked before it came there.
        let contained = contained || table::image_at(slot, generation).is_some_and(|known| known.adopted);
        let place = offset | if contained { CONTAINED } else { 0 };
        Ok(Self { place, slot, generation, tag: tag::<T>(), object: PhantomData })
    }

    fn offset(self) -> usize {
        (self.place & !CONTAINED) as usize
    }

    /// The object.
    ///
    /// # Errors
    /// Bad handle: the arena was released, or the place is out of bounds, misaligned or of another type; or this process adopted the arena, and
    /// the handle was not made by [`Frozen::handle_contained`](super::Frozen::handle_contained).
    pub fn get(self) -> Result<&'static T> {
        let known = table::image_at(self.slot, self.generation);
        let known = known.ok_or_else(|| refuse("its arena was released, or is another process's"))?;
        let range = known.range;
        if known.adopted && self.place & CONTAINED == 0 {
            return Err(refuse(UNCHECKED));
        }
        if self.tag != tag::<T>() {
            return Err(refuse("it was made for another type"));
        }
        let end = self.offset().checked_add(size_of::<T>());
        if end.is_none_or(|end| end > range.len) {
            return Err(refuse("it is out of bounds"));
        }
        let place = map::pointer_at(range.start + self.offset()).ok_or_else(|| refuse("it is null"))?;
        if !place.addr().get().is_multiple_of(mem::align_of::<T>()) {
            return Err(refuse("it is misaligned"));
        }
        // SAFETY: `new` took a `&'static T` at this place of this generation of this arena, and the
        // object is still there: frozen objects are never dropped. What it leads to is here, too: inherited, or contained.
        Ok(unsafe { place.cast::<T>().as_ref() })
    }
}

const UNCHECKED: &str = "what its object leads to may be another process's; make it by handle_contained";

/// A handle travels beside the bytes of a job or result (see [`crate::wire`]) and is a number in them.
#[cfg(feature = "pool")]
mod travel {
    use super::{CONTAINED, Handle, PhantomData, tag};
    use crate::arena::image::Image;
    use crate::arena::inner::Inner;
    use crate::arena::options::OnWrite;
    use crate::arena::signal_safe::table;
    use crate::sys::map::Range;
    use crate::sys::pagemap::Pagemap;
    use crate::sys::{Errno, procfs};
    use crate::wire::{self, Passenger};
    use serde::de::Error as _;
    use serde::ser::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::os::fd::{AsFd, OwnedFd};
    use std::sync::{Mutex, PoisonError};

    /// The presence of such an object may say something that is not so in another process: that a lock is held, or that it is the only one.
    const NOWHERE: &str = "an object without size lies in no arena, so its handle does not travel";

    const ONLY_IN_A_POOL: &str = "a handle travels only in the jobs and results of a pool";

    /// This process's page tables and memory as files; a fork needs its own.
    static OWN: Mutex<Option<(usize, Pagemap, OwnedFd)>> = Mutex::new(None);

    /// Tells whether an object of an image is here what it is in every process, and whether everything that it refers to is, too. A forked child may have
    /// written its copy: what lies there then (a reference that a cell was set to, say) means nothing anywhere else. Equal
    /// bytes say nothing: what was written may be what happened to lie there.
    fn is_found(image: &Image, offset: usize, len: usize) -> Result<Option<bool>, Errno> {
        // A process that was never forked cannot write, and a write of one that was is fatal.
        if table::process_number() == 0 || image.on_write() == OnWrite::Deny {
            return Ok(Some(true));
        }
        let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, pagemap, memory) = match &mut *own {
            Some(open) if open.0 == table::process_number() => open,
            other => {
                other.insert((table::process_number(), Pagemap::open_self()?, procfs::signal_safe::open_memory()?))
            }
        };
        image.is_unwritten(Range { start: image.range().start + offset, len }, pagemap, memory.as_fd())
    }

    /// Only inside of a pool's jobs and results; everywhere else it is an error. So it is in a worker that has written to a page
    /// of the object, whatever it wrote: what it made there is nowhere else. An object that the worker found and did not write to
    /// can be returned, if no other object on its pages was written either. Say otherwise which object it is in another way: an index,
    /// a key. The handle of an object without size never travels.
    impl<T: 'static> Serialize for Handle<T> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let refused = |why| S::Error::custom(wire::refuse(why));
            if size_of::<T>() == 0 {
                return Err(refused(NOWHERE));
            }
            let image = table::find(self.slot, self.generation).and_then(Inner::image);
            let image = image.ok_or_else(|| refused("a handle's arena was released"))?;
            match is_found(image, self.offset(), size_of::<T>()) {
                Ok(Some(true)) => {}
                Ok(Some(false)) => {
                    return Err(refused(
                        "a page of a handle's object was written in this process's own copy of the data; return an index or a key",
                    ));
                }
                Ok(None) => {
                    return Err(refused(
                        "whether a handle's object was written cannot be told: its pages are being moved",
                    ));
                }
                Err(_) => return Err(refused("whether a handle's object was written cannot be told without /proc")),
            }
            let number = u64::from(self.slot) | u64::from(self.generation) << 16;
            let passenger = Passenger { kind: wire::kind_of::<Self>(), words: [self.place, number] };
            let number = wire::embark(passenger).ok_or_else(|| refused(ONLY_IN_A_POOL))?;
            serializer.serialize_u32(number)
        }
    }

    /// The rules of [`Serialize`] hold here, too. In a worker whose data was [replaced](crate::pool::Pool::replace) since its pool was made only handles are read that
    /// [`Frozen::handle_contained`](crate::arena::Frozen::handle_contained) made. Slot and generation are no other image's in any process of a line of forks. Threads that read one handle's
    /// passenger get one object, so it must be `Sync`:
    ///
    /// ```compile_fail,E0277
    /// use cowbell::arena::Handle;
    /// use std::cell::Cell;
    ///
    /// fn read<'de, D: serde::Deserializer<'de>>(from: D) -> Handle<Cell<u32>> {
    ///     serde::Deserialize::deserialize(from).unwrap_or_else(|_| panic!())
    /// }
    /// ```
    impl<'de, T: Sync + 'static> Deserialize<'de> for Handle<T> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let refused = |why| D::Error::custom(wire::refuse(why));
            let number = u32::deserialize(deserializer)?;
            let passenger = wire::disembark(number).ok_or_else(|| refused(ONLY_IN_A_POOL))?;
            if passenger.kind != wire::kind_of::<Self>() {
                return Err(refused("what travelled is not a handle of this type"));
            }
            let [place, number] = passenger.words;
            let (slot, generation) = (number as u16, (number >> 16) as u16);
            let known = table::image_at(slot, generation);
            let known = known.ok_or_else(|| refused("a handle's arena is not in this process"))?;
            if known.adopted && place & CONTAINED == 0 {
                return Err(refused(
                    "a handle's arena came by `replace`, and what its object leads to may be another process's; make it by handle_contained",
                ));
            }
            // This handle is as good as the one that embarked: nobody but `serialize` makes a passenger of this kind.
            Ok(Self { place, slot, generation, tag: tag::<T>(), object: PhantomData })
        }
    }
}

fn refuse(why: &'static str) -> Error {
    Error::new(ErrorKind::Handle(why))
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

impl<T: 'static> Handle<T> {
    /// All that tells a handle from others: arena and place.
    fn words(&self) -> (u16, u16, usize, u32) {
        (self.slot, self.generation, self.offset(), self.tag)
    }
}

impl<T: 'static> PartialEq for Handle<T> {
    fn eq(&self, other: &Self) -> bool {
        self.words() == other.words()
    }
}

impl<T: 'static> Eq for Handle<T> {}

impl<T: 'static> Hash for Handle<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.words().hash(state);
    }
}

impl<T: 'static> PartialOrd for Handle<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Handles of one arena are in order of their objects' places.
impl<T: 'static> Ord for Handle<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.words().cmp(&other.words())
    }
}

impl<T: 'static> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({}.{}+{:#x})", self.slot, self.generation, self.offset())
    }
}

#[cfg(test)]
#[cfg(feature = "pool")]
mod tests {
    use super::Handle;
    use crate::arena::{Arena, Frozen};
    use crate::wire::{decode, encode};
    use serde::{Deserialize, Serialize};
    use std::collections::HashMap;

    fn frozen(name: &str) -> Frozen<[u64; 100]> {
        let arena = Arena::builder(name).capacity(1 << 20).build().expect("an arena");
        arena.freeze(std::array::from_fn(|at| at as u64)).expect("frozen")
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Job {
        source: Handle<u64>,
        maybe: Option<Handle<u64>>,
        by_name: HashMap<String, Handle<u64>>,
    }

    #[test]
    fn handles_travel_beside_the_bytes() {
        let (one, other) = (frozen("one"), frozen("other"));
        let handle = |from: &Frozen<[u64; 100]>, at: usize| from.handle(&from.root()[at]).expect("it lies there");
        let job = Job {
            source: handle(&one, 7),
            maybe: Some(handle(&other, 8)),
            by_name: (0..50).map(|at| (at.to_string(), handle(&one, at))).collect(),
        };
        let (mut bytes, mut passengers) = (Vec::new(), Vec::new());
        encode(&job, &mut bytes, &mut passengers).expect("handles travel");
        let back: Job = decode(&bytes, &passengers).expect("and come back");
        assert_eq!(back, job);
        assert_eq!(back.maybe.map(|handle| *handle.get().expect("it is there")), Some(8));
        assert!(back.by_name.iter().all(|(name, handle)| *name == handle.get().expect("there").to_string()));
    }

    #[test]
    fn the_handle_of_an_object_without_size_stays() {
        let one = frozen("nowhere");
        let nothing = one.handle(&()).expect("no place is any place");
        let (mut bytes, mut passengers) = (Vec::new(), Vec::new());
        let error = encode(&nothing, &mut bytes, &mut passengers).expect_err("it lies nowhere");
        assert!(error.to_string().contains("does not travel") && passengers.is_empty(), "{error}");
    }

    #[test]
    fn a_forged_number_reaches_nothing_else() {
        let one = frozen("forged");
        let (mut bytes, mut passengers) = (Vec::new(), Vec::new());
        let number = one.handle(&one.root()[3]).expect("there");
        let whole = one.handle(one.root()).expect("there");
        encode(&(number, whole), &mut bytes, &mut passengers).expect("handles travel");
        assert_eq!(bytes, [0, 1]);
        let error = decode::<Handle<u64>>(&[1], &passengers).expect_err("it is the array's");
        assert!(error.is_invalid() && error.to_string().contains("not a handle of this type"), "{error}");
        let error = decode::<Handle<u64>>(&[2], &passengers).expect_err("there is none");
        assert!(error.to_string().contains("pool"), "{error}");
        assert_eq!(decode::<(Handle<u64>, Handle<u64>)>(&[0, 0], &passengers).expect("twice the same").1, number);
    }

    #[test]
    fn an_image_that_is_not_here_is_refused() {
        let one = frozen("elsewhere");
        let (mut bytes, mut passengers) = (Vec::new(), Vec::new());
        let handle = one.handle(&one.root()[3]).expect("there");
        encode(&handle, &mut bytes, &mut passengers).expect("handles travel");
        // A worker's own arena, that it froze after the fork into the same slot, would be like this one: of another generation.
        passengers[0].words[1] += 1 << 16;
        let error = decode::<Handle<u64>>(&bytes, &passengers).expect_err("no such image");
        assert!(error.to_string().contains("not in this process"), "{error}");
    }

    #[test]
    fn outside_of_a_pool_a_handle_stays() {
        let one = frozen("stays");
        let handle = one.handle(&one.root()[3]).expect("there");
        postcard::to_allocvec(&handle).expect_err("no table");
        let number = serde::de::value::U32Deserializer::<serde::de::value::Error>::new(0);
        let error = Handle::<u64>::deserialize(number).expect_err("no table");
        assert_eq!(error.to_string(), "a handle travels only in the jobs and results of a pool");
    }
}
