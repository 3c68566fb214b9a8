//! Values that lie whole in their arena, so that another process can use them.
//!
//! # Safety
//! `Contained` is a promise about all values of a type; each implementation below says why it holds. A value is
//! looked at in the process that made it, before it goes anywhere.
#![expect(unsafe_code, reason = "promises that the compiler cannot check")]

use super::builder::Arena;
use super::frozen::{FreezeOptions, Frozen};
use super::handle::Handle;
use super::image::Image;
use super::memory::ArenaRef;
use super::span::Span;
use crate::error::{Error, Result};
use crate::sys::executable;
use crate::sys::map::Range;
use std::any::TypeId;
use std::cell::RefCell;
use std::collections::HashSet as StdHashSet;
use std::marker::PhantomData;
use std::num::NonZero;
use std::sync::atomic;
use std::time::Duration;
use std::vec::Vec as StdVec;

/// Values that mean the same in another process that has only their arena and the program itself.
///
/// Numbers are, and what is made of them; `Vec`, `Box`, `String`, `Arc`, the maps, sets and queues of an arena and `&'static` references
/// are where they lie in the arena itself, which [`Self::is_within`] finds out; references also to constants of the program. `std::string::String`, `std::vec::Vec`, `std::sync::Arc`,
/// `Mutex` and the like are not: their memory or their meaning is one process's own. For your own types use
/// [`contained!`](crate::contained).
///
/// # Safety
/// When `is_within` is true of a value, then everything that is reached from it, other than through a [`Handle`],
/// lies in the extent or is part of the program itself, unchanged since it was started; and all of it is valid in
/// every process that was forked from the same one, if it has the arena at the same addresses. When `POINTS` is
/// false, that is so for every value.
#[diagnostic::on_unimplemented(
    message = "a value of `{Self}` may lead out of an arena",
    label = "not known to be whole in its arena",
    note = "define your own types by `cowbell::contained!`, and use the arena's `Vec`, `Box`, `String`, `HashMap` and `&'static` references in them",
    note = "or freeze it by `freeze_unchecked`: what lies on the heap then is no arena's, and is copied as a plain fork copies it"
)]
pub unsafe trait Contained: 'static {
    /// Can a value hold the place of another at all? False lets a million of them pass at once.
    const POINTS: bool;

    /// Tells whether everything that is reached from here lies within the arena. It looks at every value that [points](Self::POINTS),
    /// and calls itself for those it points to, so a list of a million links needs a large stack.
    fn is_within(&self, arena: &Extent) -> bool;
}

/// An arena's memory, for [`Contained::is_within`].
#[derive(Debug)]
pub struct Extent {
    range: Range,
    number: (u16, u16),
    /// The parts of the program itself that nobody can write.
    constants: StdVec<Range>,
    /// Shared objects that were looked at: a graph may have more paths than objects.
    seen: RefCell<StdHashSet<(usize, usize, TypeId)>>,
}

impl Extent {
    fn new(start: usize, used: usize, number: (u16, u16)) -> Self {
        let range = Range { start, len: used };
        Self { range, number, constants: executable::constants(), seen: RefCell::default() }
    }

    fn of(image: &Image) -> Self {
        Self::new(image.range().start, image.used(), (image.slot(), image.generation()))
    }

    /// Does an object lie in the arena? What has no size lies everywhere.
    pub fn holds<T: ?Sized>(&self, object: &T) -> bool {
        self.holds_bytes(std::ptr::from_ref(object).addr(), size_of_val(object))
    }

    /// Tells whether an object is a constant of the program: a string literal, say, or what a `const` refers to. A constant is the same in every process that
    /// was forked from one, because it lies where nobody can write since the program was loaded. Variables (`static`s with
    /// interior mutability) are none; nor is what a library holds that was loaded at run time.
    pub fn is_constant<T: ?Sized>(&self, object: &T) -> bool {
        let (start, len) = (std::ptr::from_ref(object).addr(), size_of_val(object));
        let within = |range: &Range| range.contains(start) && len <= range.end() - start;
        self.constants.iter().any(within)
    }

    /// Tells whether this is the arena's own allocator.
    pub fn is_of(&self, allocator: &ArenaRef) -> bool {
        allocator.number() == self.number
    }

    pub(super) fn holds_bytes(&self, start: usize, len: usize) -> bool {
        let end = start.checked_sub(self.range.start).and_then(|offset| offset.checked_add(len));
        len == 0 || end.is_some_and(|end| end <= self.range.len)
    }

    pub(super) fn is_first_look<T: ?Sized + 'static>(&self, object: &T) -> bool {
        let place = (std::ptr::from_ref(object).addr(), size_of_val(object), TypeId::of::<T>());
        self.seen.borrow_mut().insert(place)
    }
}

impl<T: Contained> Frozen<T> {
    /// Tells whether everything that is reached from the root lies in this arena. Takes the time to look at every collection and
    /// reference in it once.
    ///
    /// # Errors
    /// Invalid when something lies elsewhere: in another arena, or in this process's own memory.
    pub fn check_contained(&self) -> Result<()> {
        let image = self.image();
        if self.root().is_within(&Extent::of(image)) {
            return Ok(());
        }
        Err(leads_out(image.name()))
    }
}

impl<T: 'static> Frozen<T> {
    /// A handle to an object in this arena that holds also in processes that were forked before and adopted the arena: in a pool's workers after
    /// [`Pool::replace`](crate::pool::Pool::replace). Takes the time to look at everything that is reached from the object, which for
    /// numbers, and what is made of them, is none. Types whose memory is never an arena's are refused by the compiler:
    ///
    /// ```compile_fail,E0277
    /// use cowbell::arena::{Frozen, Handle};
    ///
    /// fn of(text: &Frozen<String>) -> cowbell::Result<Handle<String>> {
    ///     text.handle_contained(text.root())
    /// }
    /// ```
    ///
    /// # Errors
    /// Bad handle when the object lies elsewhere; invalid when something that is reached from it does.
    pub fn handle_contained<U: Contained>(&self, object: &'static U) -> Result<Handle<U>> {
        let image = self.image();
        let handle = Handle::new(image, object, true)?;
        if U::POINTS && !object.is_within(&Extent::of(image)) {
            return Err(leads_out(image.name()));
        }
        Ok(handle)
    }
}

fn leads_out(arena: &str) -> Error {
    Error::invalid(format!("arena `{arena}` holds something that points out of it"))
        .with_hint("allocate all its collections and references from this one arena, or freeze it by freeze_unchecked")
}

impl Arena {
    /// Moves `root` into the arena and freezes it with the default options, once it was found that everything that is reached from the
    /// root lies in this arena.
    ///
    /// ```
    /// use cowbell::arena::{Arena, Vec};
    ///
    /// let arena = Arena::builder("names").capacity(1 << 20).build()?;
    /// let mut names = Vec::new_in(*arena);
    /// names.push("a constant");
    /// names.push(&*arena.alloc_str("in the arena")?);
    /// let names = arena.freeze(names)?;
    /// # Ok::<(), cowbell::Error>(())
    /// ```
    ///
    /// Types whose memory is never an arena's are refused by the compiler. Structs and enums of your own are allowed where
    /// [`contained!`](crate::contained) defines them; for what remains there is [`Self::freeze_unchecked`].
    ///
    /// ```compile_fail,E0277
    /// use cowbell::arena::Arena;
    ///
    /// let arena = Arena::builder("names").capacity(1 << 20).build()?;
    /// arena.freeze(vec![std::sync::Arc::new(String::from("on the heap"))])?;
    /// # Ok::<(), cowbell::Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors are those of [`Self::freeze_with`].
    #[track_caller]
    pub fn freeze<T: Contained>(self, root: T) -> Result<Frozen<T>> {
        self.freeze_with(root, FreezeOptions::new())
    }

    /// [`Self::freeze`] with options.
    ///
    /// Looks at every collection and reference that may point somewhere once; a collection of numbers at once.
    ///
    /// # Errors
    /// Invalid when something lies elsewhere: in another arena, or in this process's own memory. Otherwise as
    /// [`Self::freeze_unchecked_with`].
    #[track_caller]
    pub fn freeze_with<T: Contained>(self, root: T, options: FreezeOptions) -> Result<Frozen<T>> {
        let root: &'static T = self.place_root(root)?;
        if !root.is_within(&Extent::new(self.range_start()?, self.used(), self.number())) {
            return Err(leads_out(self.name()));
        }
        self.freeze_at(root, options)
    }
}

/// Types without places, for which every value is whole.
macro_rules! plain {
    ($($(#[$condition:meta])* $type:ty),* $(,)?) => { $(
        $(#[$condition])*
        // SAFETY: the value is all there is.
        unsafe impl Contained for $type {
            const POINTS: bool = false;
            fn is_within(&self, _: &Extent) -> bool {
                true
            }
        }
    )* };
}

plain![
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
    Duration,
    NonZero<u8>,
    NonZero<u16>,
    NonZero<u32>,
    NonZero<u64>,
    NonZero<u128>,
    NonZero<usize>,
    NonZero<i8>,
    NonZero<i16>,
    NonZero<i32>,
    NonZero<i64>,
    NonZero<i128>,
    NonZero<isize>,
    atomic::AtomicBool,
    #[cfg(target_has_atomic = "8")]
    atomic::AtomicU8,
    #[cfg(target_has_atomic = "8")]
    atomic::AtomicI8,
    #[cfg(target_has_atomic = "16")]
    atomic::AtomicU16,
    #[cfg(target_has_atomic = "16")]
    atomic::AtomicI16,
    #[cfg(target_has_atomic = "32")]
    atomic::AtomicU32,
    #[cfg(target_has_atomic = "32")]
    atomic::AtomicI32,
    #[cfg(target_has_atomic = "64")]
    atomic::AtomicU64,
    #[cfg(target_has_atomic = "64")]
    atomic::AtomicI64,
    atomic::AtomicUsize,
    atomic::AtomicIsize,
    std::cmp::Ordering,
    std::net::IpAddr,
    std::net::Ipv4Addr,
    std::net::Ipv6Addr,
    std::net::SocketAddr,
    std::time::SystemTime,
    // An arena's number, which a process that does not have it tells from its own.
    ArenaRef,
    str,
];

// SAFETY: a number that is looked up where it is used; no two arenas of processes that came from one share it. An object without size lies
// in no arena, and that there is one may be true in one process only: its handle is in none.
unsafe impl<T: 'static> Contained for Handle<T> {
    const POINTS: bool = size_of::<T>() == 0;
    fn is_within(&self, _: &Extent) -> bool {
        size_of::<T>() != 0
    }
}

// SAFETY: two numbers that are checked where they are used.
unsafe impl<T: 'static> Contained for Span<T> {
    const POINTS: bool = false;
    fn is_within(&self, _: &Extent) -> bool {
        true
    }
}

// SAFETY: there is no value.
unsafe impl<T: ?Sized + 'static> Contained for PhantomData<T> {
    const POINTS: bool = false;
    fn is_within(&self, _: &Extent) -> bool {
        true
    }
}

// SAFETY: the value, if there is one, is whole.
unsafe impl<T: Contained> Contained for Option<T> {
    const POINTS: bool = T::POINTS;
    fn is_within(&self, arena: &Extent) -> bool {
        self.as_ref().is_none_or(|value| value.is_within(arena))
    }
}

// SAFETY: whichever value there is, it is whole.
unsafe impl<T: Contained, E: Contained> Contained for std::result::Result<T, E> {
    const POINTS: bool = T::POINTS || E::POINTS;
    fn is_within(&self, arena: &Extent) -> bool {
        match self {
            Ok(value) => value.is_within(arena),
            Err(error) => error.is_within(arena),
        }
    }
}

// SAFETY: each element is whole.
unsafe impl<T: Contained> Contained for [T] {
    const POINTS: bool = T::POINTS;
    fn is_within(&self, arena: &Extent) -> bool {
        !T::POINTS || self.iter().all(|value| value.is_within(arena))
    }
}

// SAFETY: each element is whole.
unsafe impl<T: Contained, const N: usize> Contained for [T; N] {
    const POINTS: bool = T::POINTS;
    fn is_within(&self, arena: &Extent) -> bool {
        self.as_slice().is_within(arena)
    }
}

// SAFETY: what the range is made of is whole.
unsafe impl<T: Contained> Contained for std::ops::Range<T> {
    const POINTS: bool = T::POINTS;
    fn is_within(&self, arena: &Extent) -> bool {
        self.start.is_within(arena) && self.end.is_within(arena)
    }
}

/// Tuples of whole values.
macro_rules! tuples {
    ($first:ident $($rest:ident)*) => {
        // SAFETY: each part is whole.
        unsafe impl<$first: Contained, $($rest: Contained),*> Contained for ($first, $($rest,)*) {
            const POINTS: bool = $first::POINTS $(|| $rest::POINTS)*;
            #[expect(non_snake_case, reason = "values are named as their types")]
            fn is_within(&self, arena: &Extent) -> bool {
                let ($first, $($rest,)*) = self;
                $first.is_within(arena) $(&& $rest.is_within(arena))*
            }
        }
        tuples!($($rest)*);
    };
    () => {};
}

tuples!(A B C D E F G H I J K L);

// SAFETY: the object lies in the arena, or is a constant of the program, and is whole: looked at once, it stays what it
// is, since both are written by nobody.
unsafe impl<T: Contained + ?Sized> Contained for &'static T {
    const POINTS: bool = true;
    fn is_within(&self, arena: &Extent) -> bool {
        (arena.holds::<T>(self) || arena.is_constant::<T>(self))
            && (!T::POINTS || !arena.is_first_look::<T>(self) || (**self).is_within(arena))
    }
}
