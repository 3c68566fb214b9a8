//! Data that is a constant, or lies in an arena and may be changed.

use super::{String, Vec};
use crate::arena::memory::ArenaRef;
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

/// Data of which an arena can own a copy: `str` as a [`String`], slices as a [`Vec`].
pub trait Owned: 'static {
    /// The copy's type.
    type Copy: AsRef<Self>;

    /// A copy in an arena.
    fn copy_to(&self, arena: ArenaRef) -> Self::Copy;
}

impl Owned for str {
    type Copy = String;

    fn copy_to(&self, arena: ArenaRef) -> String {
        String::from_str_in(self, arena)
    }
}

impl<T: Clone + 'static> Owned for [T] {
    type Copy = Vec<T>;

    fn copy_to(&self, arena: ArenaRef) -> Vec<T> {
        let mut copy = Vec::with_capacity_in(self.len(), arena);
        copy.extend_from_slice(self);
        copy
    }
}

/// A `Cow` for arenas: data that is borrowed for good (a constant of the program, or what lies in the arena already), or a copy that the arena owns.
///
/// ```
/// use cowbell::arena::{Arena, Cow};
///
/// let arena = Arena::builder("names").build()?;
/// let mut names = arena.vec();
/// for (n, mut name) in [Cow::Borrowed("a constant"), Cow::Borrowed("another")].into_iter().enumerate() {
///     if n == 1 {
///         name.to_mut_in(*arena).push_str(" one");
///     }
///     names.push(name);
/// }
/// let names = arena.freeze(names)?;
/// assert_eq!(names[1], *"another one");
/// assert!(matches!(names[0], Cow::Borrowed(_)));
/// # Ok::<(), cowbell::Error>(())
/// ```
pub enum Cow<B: Owned + ?Sized> {
    /// Data that lives for good.
    Borrowed(&'static B),
    /// A copy.
    Owned(B::Copy),
}

impl<B: Owned + ?Sized> Cow<B> {
    /// The copy, to change it; it is made where there is none.
    pub fn to_mut_in(&mut self, arena: ArenaRef) -> &mut B::Copy {
        if let Self::Borrowed(data) = self {
            *self = Self::Owned(data.copy_to(arena));
        }
        match self {
            Self::Owned(copy) => copy,
            Self::Borrowed(_) => unreachable!("it was copied just now"),
        }
    }

    /// The copy; it is made where there is none.
    pub fn into_owned_in(self, arena: ArenaRef) -> B::Copy {
        match self {
            Self::Borrowed(data) => data.copy_to(arena),
            Self::Owned(copy) => copy,
        }
    }
}

impl<B: Owned + ?Sized> Deref for Cow<B> {
    type Target = B;

    fn deref(&self) -> &B {
        match self {
            Self::Borrowed(data) => data,
            Self::Owned(copy) => copy.as_ref(),
        }
    }
}

impl<B: Owned + ?Sized> Clone for Cow<B>
where
    B::Copy: Clone,
{
    fn clone(&self) -> Self {
        match self {
            Self::Borrowed(data) => Self::Borrowed(data),
            Self::Owned(copy) => Self::Owned(copy.clone()),
        }
    }
}

impl<B: Owned + ?Sized> From<&'static B> for Cow<B> {
    fn from(data: &'static B) -> Self {
        Self::Borrowed(data)
    }
}

impl<B: Owned + ?Sized> Borrow<B> for Cow<B> {
    fn borrow(&self) -> &B {
        self
    }
}

impl<B: Owned + ?Sized> AsRef<B> for Cow<B> {
    fn as_ref(&self) -> &B {
        self
    }
}

impl<B: Owned + PartialEq + ?Sized> PartialEq for Cow<B> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<B: Owned + PartialEq + ?Sized> PartialEq<B> for Cow<B> {
    fn eq(&self, other: &B) -> bool {
        **self == *other
    }
}

impl<B: Owned + Eq + ?Sized> Eq for Cow<B> {}

impl<B: Owned + PartialOrd + ?Sized> PartialOrd for Cow<B> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (**self).partial_cmp(&**other)
    }
}

impl<B: Owned + Ord + ?Sized> Ord for Cow<B> {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl<B: Owned + Hash + ?Sized> Hash for Cow<B> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl<B: Owned + fmt::Display + ?Sized> fmt::Display for Cow<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, f)
    }
}

impl<B: Owned + fmt::Debug + ?Sized> fmt::Debug for Cow<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
