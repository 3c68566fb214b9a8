//! Plain arenas: data that is nothing but numbers, with offsets for pointers, and so may live in a file.
//!
//! # Safety
//! A plain arena holds plain old data only: nobody but this file allocates from it. So all its bytes are
//! initialised, none is ever changed through a shared reference, and any of them is a value of any such type: a
//! span is checked for bounds and alignment, and may otherwise be made of anything.
#![expect(unsafe_code, reason = "bytes become values")]

use super::builder::{Arena, ArenaBuilder};
use super::frozen::{FreezeOptions, Frozen};
use crate::error::{Error, ErrorKind, Result};
use bytemuck::{Pod, Zeroable};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;

/// A slice in a plain arena, by its place from the arena's start: plain old data itself, 16 bytes, for the root and
/// for what spans lead to. Checked when it is [resolved](Frozen::slice).
#[repr(C)]
pub struct Span<T: 'static> {
    /// Bytes from the arena's start.
    offset: u64,
    /// Elements.
    len: u64,
    element: PhantomData<fn() -> T>,
}

impl<T: 'static> Span<T> {
    /// The span of nothing.
    pub const EMPTY: Self = Self { offset: 0, len: 0, element: PhantomData };

    /// The number of elements that it claims to have.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Tells whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<T: 'static> Clone for Span<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: 'static> Copy for Span<T> {}

impl<T: 'static> Default for Span<T> {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl<T: 'static> PartialEq for Span<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.offset, self.len) == (other.offset, other.len)
    }
}

impl<T: 'static> Eq for Span<T> {}

impl<T: 'static> Hash for Span<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.offset, self.len).hash(state);
    }
}

impl<T: 'static> fmt::Debug for Span<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Span({:#x}, {} elements)", self.offset, self.len)
    }
}

// SAFETY: two integers, which may be 0, and a marker without size.
unsafe impl<T: 'static> Zeroable for Span<T> {}
// SAFETY: two integers of one size in C's order, so without padding, and a marker without size: any bytes are a value.
unsafe impl<T: 'static> Pod for Span<T> {}

/// A growing arena of plain old data, which can be [saved](Frozen::save) when it is frozen.
///
/// ```
/// use bytemuck::{Pod, Zeroable};
/// use cowbell::arena::{Arena, Frozen, Span};
///
/// #[derive(Clone, Copy, Pod, Zeroable)]
/// #[repr(C)]
/// struct Graph {
///     /// For each node its edges: a span of numbers of nodes.
///     nodes: Span<Span<u32>>,
/// }
///
/// let arena = Arena::builder("graph").capacity(1 << 20).plain()?;
/// let edges = [arena.alloc_span(&[1u32, 2])?, arena.alloc_span(&[2])?, Span::EMPTY];
/// let nodes = arena.alloc_span(&edges)?;
/// let graph = arena.freeze(Graph { nodes })?;
///
/// # let folder = std::env::temp_dir().join(format!("cowbell-doc-{}", std::process::id()));
/// # std::fs::create_dir(&folder).expect("a folder");
/// # let path = folder.join("graph.image");
/// graph.save(&path)?;
/// let graph = Frozen::<Graph>::load(&path)?;
/// let first = graph.slice(graph.nodes)?[0];
/// assert_eq!(graph.slice(first)?, [1, 2]);
/// # std::fs::remove_dir_all(folder).expect("ours");
/// # Ok::<(), cowbell::Error>(())
/// ```
#[derive(Debug)]
pub struct PlainArena {
    arena: Arena,
}

impl ArenaBuilder {
    /// [`Self::build`] for an arena that holds plain old data only.
    ///
    /// # Errors
    /// Those of [`Self::build`].
    pub fn plain(mut self) -> Result<PlainArena> {
        self.plain = true;
        Ok(PlainArena { arena: self.build()? })
    }
}

impl PlainArena {
    /// The arena's name.
    pub fn name(&self) -> &str {
        self.arena.name()
    }

    /// Bytes from the arena's start to the end of the last allocation.
    pub fn used(&self) -> usize {
        self.arena.used()
    }

    /// Copies a slice into the arena.
    ///
    /// # Errors
    /// Out of capacity, out of memory, frozen, or not this process's arena.
    #[track_caller]
    pub fn alloc_span<T: Pod>(&self, values: &[T]) -> Result<Span<T>> {
        let placed: &[T] = self.arena.alloc_slice(values)?;
        self.span_of(placed)
    }

    /// Moves everything an iterator yields into the arena.
    ///
    /// # Errors
    /// Those of [`Self::alloc_span`].
    #[track_caller]
    pub fn alloc_span_iter<T: Pod>(&self, values: impl IntoIterator<Item = T>) -> Result<Span<T>> {
        let placed: &[T] = self.arena.alloc_iter(values)?;
        self.span_of(placed)
    }

    fn span_of<T: Pod>(&self, placed: &[T]) -> Result<Span<T>> {
        let offset = match size_of_val(placed) {
            0 => 0,
            _ => placed.as_ptr().expose_provenance() - self.arena.known()?.range.start,
        };
        Ok(Span { offset: offset as u64, len: placed.len() as u64, element: PhantomData })
    }

    /// Moves `root` into the arena and freezes it with the default options.
    ///
    /// # Errors
    /// The errors are those of [`Arena::freeze_unchecked_with`].
    #[track_caller]
    pub fn freeze<T: Pod>(self, root: T) -> Result<Frozen<T>> {
        self.arena.freeze_unchecked(root)
    }

    /// [`Arena::freeze_unchecked_with`].
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn freeze_with<T: Pod>(self, root: T, options: FreezeOptions) -> Result<Frozen<T>> {
        self.arena.freeze_unchecked_with(root, options)
    }

    pub(super) fn into_arena(self) -> Arena {
        self.arena
    }
}

impl<T: Pod> Frozen<T> {
    /// The slice that a span stands for, in a plain arena: one that was built by [`ArenaBuilder::plain`], loaded or
    /// opened.
    ///
    /// # Errors
    /// Bad handle: the arena is not plain, or the span is out of its bounds or misaligned.
    pub fn slice<U: Pod>(&self, span: Span<U>) -> Result<&'static [U]> {
        let image = self.image();
        if !image.is_plain() {
            return Err(refuse("the arena may hold more than plain data").with_hint("build it with `plain`"));
        }
        let out_of_bounds = || refuse("the span is out of bounds");
        let len = usize::try_from(span.len).map_err(|_| out_of_bounds())?;
        let bytes = len.checked_mul(size_of::<U>()).ok_or_else(out_of_bounds)?;
        let place = if bytes == 0 {
            std::ptr::NonNull::<U>::dangling().as_ptr().cast_const()
        } else {
            let offset = usize::try_from(span.offset).map_err(|_| out_of_bounds())?;
            if offset.checked_add(bytes).is_none_or(|end| end > image.used()) {
                return Err(out_of_bounds());
            }
            std::ptr::with_exposed_provenance::<U>(image.range().start + offset)
        };
        if !place.is_aligned() {
            return Err(refuse("the span is misaligned"));
        }
        // SAFETY: so many bytes lie in the image (or none), aligned; any bytes are values, see the module's contract;
        // the mapping stays until `release`.
        Ok(unsafe { std::slice::from_raw_parts(place, len) })
    }
}

fn refuse(why: &'static str) -> Error {
    Error::new(ErrorKind::Handle(why))
}
