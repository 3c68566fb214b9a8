//! Deep copies of values of the heap into an arena.

use super::collections::{Arc, Box, String, Vec};
use super::memory::ArenaRef;
use super::refusal::quietly;
use crate::error::{Error, Result};
use std::any::{Any, TypeId};
use std::collections::HashMap as StdHashMap;
use std::rc::Rc;
use std::sync::Arc as StdArc;
use std::sync::atomic::AtomicUsize;

/// The most values that are moved to the arena at a time.
const CHUNK: usize = 64;

/// Values of which an arena can hold a deep copy: the copy is of another type, the *twin*, all of whose memory is the arena's.
///
/// | a value | and its twin in [`crate::arena`] |
/// |---|---|
/// | numbers, `bool`, `char`, `()`, `Duration`, addresses of the network … | the same |
/// | `String`, `str`, `Cow<str>` | [`String`] |
/// | `Vec`, `VecDeque`, `HashMap`, `HashSet`, `BTreeMap`, `BTreeSet`, `Box` | that of its name, of twins |
/// | `Rc`, `Arc` | [`Arc`]: what is shared is copied once and is shared again |
/// | `&T` | `&'static` of the twin; of `&str` and `&[T]` a string and a slice |
/// | `Option`, `Result`, tuples, arrays, ranges | of twins |
///
/// Structs and enums of your own are defined with their twins by [`twin!`](crate::twin).
///
/// ```
/// use cowbell::arena::Arena;
/// use std::collections::HashMap;
///
/// let ages: HashMap<String, Vec<u32>> = [("Ada".to_owned(), vec![36]), ("Alan".to_owned(), vec![41, 42])].into();
/// let arena = Arena::builder("ages").build()?;
/// let ages = arena.copy_in(&ages)?;
/// let ages = arena.freeze(ages)?;
/// assert_eq!(ages["Alan"], [41, 42]);
/// # Ok::<(), cowbell::Error>(())
/// ```
///
/// The compiler refuses types that have no place in an arena:
///
/// ```compile_fail,E0277
/// let arena = cowbell::arena::Arena::builder("locks").build().unwrap();
/// arena.copy_in(&std::sync::Mutex::new(1));
/// ```
#[diagnostic::on_unimplemented(
    message = "an arena cannot hold a copy of `{Self}`",
    label = "has no twin in an arena",
    note = "define your own types and their twins by `cowbell::twin!`"
)]
pub trait CopyIn {
    /// The copy's type.
    type Twin: 'static;

    /// A copy of this in an arena.
    ///
    /// # Errors
    /// Those of [`ArenaRef::copy_in`].
    fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin>;

    /// Copies of values that lie together.
    ///
    /// # Errors
    /// Those of [`Self::copy_in`].
    fn copy_all_in(values: &[Self], to: &mut Copying) -> Result<Vec<Self::Twin>>
    where
        Self: Sized,
    {
        let mut twins = to.vec_for(values.len())?;
        for some in values.chunks(CHUNK) {
            let mut chunk = some.iter().map(|value| value.copy_in(to)).collect::<Result<std::vec::Vec<_>>>()?;
            to.held(size_of_val(&*chunk), || twins.extend(chunk.drain(..)))?;
        }
        Ok(twins)
    }
}

/// A copy that is being made: where it goes, and what of it is shared.
pub struct Copying {
    pub(super) arena: ArenaRef,
    /// The counted values that were copied, by address and type, each with its twin. The values are kept as long, so that no other can have the address.
    shared: StdHashMap<(usize, TypeId), std::boxed::Box<dyn Any>>,
}

impl std::fmt::Debug for Copying {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Copying").field("arena", &self.arena).finish_non_exhaustive()
    }
}

impl ArenaRef {
    /// A deep copy of a value: its twin, all of whose memory is this arena's; see [`CopyIn`]. The value stays, so that for a while there are both.
    ///
    /// # Errors
    /// Out of capacity, out of memory, frozen, or not this process's arena. It may be frozen while this copies, by another thread or by an implementation of [`CopyIn`].
    ///
    /// The part that was copied until then is dropped, and its memory is used again if the arena is not frozen. The twins of `&T`, `&str` and `&[T]` are not, nor what they lead to: somebody may have
    /// kept them, as they are `&'static`.
    ///
    /// No error but a SIGSEGV that names the arena is what comes of your own code that writes to its memory once it is frozen: an implementation that pushes to a [`Vec`] with room there, or a twin
    /// whose destructor writes to the twin.
    #[track_caller]
    pub fn copy_in<T: CopyIn + ?Sized>(&self, value: &T) -> Result<T::Twin> {
        value.copy_in(&mut Copying { arena: self.site::<T>(), shared: StdHashMap::new() })
    }
}

impl Copying {
    /// The arena.
    pub fn arena(&self) -> ArenaRef {
        self.arena
    }

    /// The result of taking memory, with the reason where there is none.
    pub(super) fn taken<R, E>(&self, take: impl FnOnce() -> std::result::Result<R, E>) -> Result<R> {
        quietly(take).map_err(|_| self.why_not())
    }

    /// Why there was no memory just now.
    pub(super) fn why_not(&self) -> Error {
        let why = || self.arena.known().map_or_else(|e| e, |inner| inner.refused(usize::MAX));
        self.arena.take_failure().unwrap_or_else(why)
    }

    /// Calls `write`, which writes to memory of the arena that was taken, and holds a freeze up meanwhile; with a length of 0 it writes nothing. The user's code is not called there: it may freeze
    /// the arena, or drop what counts.
    pub(super) fn held<R>(&self, len: usize, write: impl FnOnce() -> R) -> Result<R> {
        let held = self.arena.writing_to(len)?;
        let written = write();
        drop(held);
        Ok(written)
    }

    fn vec_for<T>(&self, values: usize) -> Result<Vec<T>> {
        let mut list = Vec::new_in(self.arena);
        self.taken(|| list.try_reserve_exact(values))?;
        Ok(list)
    }

    fn boxed<T>(&self, value: T) -> Result<Box<T>> {
        let place = self.taken(|| Box::try_new_uninit_in(self.arena))?;
        self.held(size_of::<T>(), || Box::write(place, value))
    }

    fn text(&self, text: &str) -> Result<String> {
        let mut copy = String::new_in(self.arena);
        self.taken(|| copy.try_reserve_exact(text.len()))?;
        self.held(text.len(), || copy.push_str(text))?;
        Ok(copy)
    }

    /// The twin of what a counted pointer leads to; the same one for all pointers to it.
    fn share<P: Clone + 'static, T: ?Sized + 'static>(
        &mut self,
        pointer: &P,
        address: usize,
        copy: impl FnOnce(&mut Self) -> Result<Box<T>>,
    ) -> Result<Arc<T>> {
        let key = (address, TypeId::of::<P>());
        let known = self.shared.get(&key).and_then(|known| known.downcast_ref::<(P, Arc<T>)>());
        if let Some((_, twin)) = known {
            return Ok(Arc::clone(twin));
        }
        let copy = copy(self)?;
        let twin = Arc::of(copy, self.boxed(AtomicUsize::new(1))?);
        self.shared.insert(key, std::boxed::Box::new((pointer.clone(), Arc::clone(&twin))));
        Ok(twin)
    }
}

/// Types that are their own twins, copied at once where many lie together.
macro_rules! same {
    ($($type:ty),* $(,)?) => { $(
        impl CopyIn for $type {
            type Twin = Self;
            fn copy_in(&self, _: &mut Copying) -> Result<Self> {
                Ok(*self)
            }
            fn copy_all_in(values: &[Self], to: &mut Copying) -> Result<Vec<Self>> {
                let mut twins = to.vec_for(values.len())?;
                to.held(size_of_val(values), || twins.extend_from_slice(values))?;
                Ok(twins)
            }
        }
    )* };
}

same![
    (),
    bool,
    char,
    u8,
    u16,
    u32,
    u64,
    u128,
    usize,
    i8,
    i16,
    i32,
    i64,
    i128,
    isize,
    f32,
    f64,
    std::time::Duration,
    std::time::SystemTime,
    std::num::NonZero<u8>,
    std::num::NonZero<u16>,
    std::num::NonZero<u32>,
    std::num::NonZero<u64>,
    std::num::NonZero<u128>,
    std::num::NonZero<usize>,
    std::num::NonZero<i8>,
    std::num::NonZero<i16>,
    std::num::NonZero<i32>,
    std::num::NonZero<i64>,
    std::num::NonZero<i128>,
    std::num::NonZero<isize>,
    std::cmp::Ordering,
    std::net::IpAddr,
    std::net::Ipv4Addr,
    std::net::Ipv6Addr,
    std::net::SocketAddr,
];

impl<T: 'static> CopyIn for std::marker::PhantomData<T> {
    type Twin = Self;
    fn copy_in(&self, _: &mut Copying) -> Result<Self> {
        Ok(*self)
    }
}

impl CopyIn for str {
    type Twin = String;
    fn copy_in(&self, to: &mut Copying) -> Result<String> {
        to.text(self)
    }
}

impl CopyIn for std::string::String {
    type Twin = String;
    fn copy_in(&self, to: &mut Copying) -> Result<String> {
        to.text(self)
    }
}

impl<B: ToOwned + CopyIn + ?Sized> CopyIn for std::borrow::Cow<'_, B> {
    type Twin = B::Twin;
    fn copy_in(&self, to: &mut Copying) -> Result<B::Twin> {
        (**self).copy_in(to)
    }
}

impl<T: CopyIn> CopyIn for [T] {
    type Twin = Vec<T::Twin>;
    fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
        T::copy_all_in(self, to)
    }
}

impl<T: CopyIn> CopyIn for std::vec::Vec<T> {
    type Twin = Vec<T::Twin>;
    fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
        T::copy_all_in(self, to)
    }
}

impl<T: CopyIn, const N: usize> CopyIn for [T; N] {
    type Twin = [T::Twin; N];
    fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
        let twins = self.iter().map(|value| value.copy_in(to)).collect::<Result<std::vec::Vec<_>>>()?;
        Ok(twins.try_into().unwrap_or_else(|_| unreachable!("there are as many twins as values")))
    }
}

impl<T: CopyIn> CopyIn for &T {
    type Twin = &'static T::Twin;
    fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
        let twin = (**self).copy_in(to)?;
        to.arena.alloc(twin).map(|twin| &*twin)
    }
}

impl CopyIn for &str {
    type Twin = &'static str;
    fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
        to.arena.alloc_str(self).map(|text| &*text)
    }
}

impl<T: CopyIn> CopyIn for &[T] {
    type Twin = &'static [T::Twin];
    fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
        Ok(T::copy_all_in(self, to)?.leak())
    }
}

impl<T: CopyIn> CopyIn for std::boxed::Box<T> {
    type Twin = Box<T::Twin>;
    fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
        let twin = (**self).copy_in(to)?;
        to.boxed(twin)
    }
}

impl CopyIn for std::boxed::Box<str> {
    type Twin = Box<str>;
    fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
        Ok(to.text(self)?.into_boxed_str())
    }
}

impl<T: CopyIn> CopyIn for std::boxed::Box<[T]> {
    type Twin = Box<[T::Twin]>;
    fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
        Ok(T::copy_all_in(self, to)?.into_boxed_slice())
    }
}

/// Counted pointers.
macro_rules! counted {
    ($($pointer:ident in $path:path),*) => { $(
        impl<T: CopyIn + 'static> CopyIn for $path {
            type Twin = Arc<T::Twin>;
            fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
                to.share(self, $pointer::as_ptr(self).addr(), |to| {
                    let twin = (**self).copy_in(to)?;
                    to.boxed(twin)
                })
            }
        }
    )* };
}

counted![Rc in Rc<T>, StdArc in StdArc<T>];

/// Counted pointers to texts and slices.
macro_rules! counted_lists {
    ($($pointer:ident),*) => { $(
        impl CopyIn for $pointer<str> {
            type Twin = Arc<str>;
            fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
                to.share(self, $pointer::as_ptr(self).addr(), |to| Ok(to.text(self)?.into_boxed_str()))
            }
        }

        impl<T: CopyIn + 'static> CopyIn for $pointer<[T]> {
            type Twin = Arc<[T::Twin]>;
            fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
                to.share(self, $pointer::as_ptr(self).addr(), |to| Ok(T::copy_all_in(self, to)?.into_boxed_slice()))
            }
        }
    )* };
}

counted_lists![Rc, StdArc];

impl<T: CopyIn> CopyIn for Option<T> {
    type Twin = Option<T::Twin>;
    fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
        self.as_ref().map(|value| value.copy_in(to)).transpose()
    }
}

impl<T: CopyIn, E: CopyIn> CopyIn for std::result::Result<T, E> {
    type Twin = std::result::Result<T::Twin, E::Twin>;
    fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
        Ok(match self {
            Ok(value) => Ok(value.copy_in(to)?),
            Err(error) => Err(error.copy_in(to)?),
        })
    }
}

impl<T: CopyIn> CopyIn for std::ops::Range<T> {
    type Twin = std::ops::Range<T::Twin>;
    fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
        Ok(self.start.copy_in(to)?..self.end.copy_in(to)?)
    }
}

/// Tuples of values.
macro_rules! tuples {
    ($first:ident $($rest:ident)*) => {
        impl<$first: CopyIn, $($rest: CopyIn),*> CopyIn for ($first, $($rest,)*) {
            type Twin = ($first::Twin, $($rest::Twin,)*);
            #[expect(non_snake_case, reason = "values are named as their types")]
            fn copy_in(&self, to: &mut Copying) -> Result<Self::Twin> {
                let ($first, $($rest,)*) = self;
                Ok(($first.copy_in(to)?, $($rest.copy_in(to)?,)*))
            }
        }
        tuples!($($rest)*);
    };
    () => {};
}

tuples!(A B C D E F G H I J K L);
