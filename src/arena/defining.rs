//! A macro that defines [`Contained`](super::Contained) types.
//!
//! # Safety
//! It implements the trait for types whose fields it has seen all; the compiler checks that each is `Contained`, and
//! that no field was left out.

/// Defines types and says that they are [`Contained`](crate::arena::Contained): each of their fields must be.
///
/// Structs, and enums whose variants have named fields, or one without a name, or none, can be defined so, without
/// generic parameters:
///
/// ```
/// use cowbell::arena::{Arena, Vec};
///
/// cowbell::contained! {
///     /// A graph whose edges are numbers of nodes.
///     #[derive(Debug)]
///     pub struct Graph {
///         /// The nodes by number.
///         pub nodes: Vec<Node>,
///     }
///
///     /// A node.
///     #[derive(Debug)]
///     pub struct Node {
///         kind: Kind,
///         edges: Vec<u32>,
///     }
///
///     #[derive(Debug)]
///     enum Kind {
///         Source,
///         Weighted(f64),
///         Named { name: &'static str },
///     }
/// }
///
/// let arena = Arena::builder("graph").build()?;
/// let name = &*arena.alloc_str("sink")?;
/// let mut nodes = Vec::new_in(*arena);
/// for kind in [Kind::Source, Kind::Weighted(0.5), Kind::Named { name }] {
///     nodes.push(Node { kind, edges: Vec::new_in(*arena) });
/// }
/// nodes[0].edges.push(2);
/// let graph = arena.freeze(Graph { nodes })?;
/// graph.check_contained()?;
/// # Ok::<(), cowbell::Error>(())
/// ```
///
/// A field that may point into the process's own memory is refused:
///
/// ```compile_fail,E0277
/// cowbell::contained! {
///     struct Graph { names: std::vec::Vec<String> }
/// }
/// ```
#[macro_export]
macro_rules! contained {
    () => {};
    ($(#[$meta:meta])* $vis:vis struct $name:ident {
        $($(#[$field_meta:meta])* $field_vis:vis $field:ident : $type:ty),* $(,)?
    } $($rest:tt)*) => {
        $(#[$meta])* $vis struct $name { $($(#[$field_meta])* $field_vis $field: $type),* }
        // SAFETY: the pattern names every field, and each is asked.
        unsafe impl $crate::arena::Contained for $name {
            const POINTS: bool = false $(|| <$type as $crate::arena::Contained>::POINTS)*;
            fn is_within(&self, arena: &$crate::arena::Extent) -> bool {
                let Self { $($field),* } = self;
                let _ = arena;
                true $(&& $crate::arena::Contained::is_within($field, arena))*
            }
        }
        $crate::contained! { $($rest)* }
    };
    ($(#[$meta:meta])* $vis:vis struct $name:ident ( $($fields:tt)* ); $($rest:tt)*) => {
        $(#[$meta])* $vis struct $name ( $($fields)* );
        $crate::__contained_tuple! { $name, [], [$($fields)*] }
        $crate::contained! { $($rest)* }
    };
    ($(#[$meta:meta])* $vis:vis struct $name:ident; $($rest:tt)*) => {
        $(#[$meta])* $vis struct $name;
        // SAFETY: the pattern says that there is no field.
        unsafe impl $crate::arena::Contained for $name {
            const POINTS: bool = false;
            fn is_within(&self, _: &$crate::arena::Extent) -> bool {
                let Self {} = self;
                true
            }
        }
        $crate::contained! { $($rest)* }
    };
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $(
        $(#[$variant_meta:meta])* $variant:ident
        $(( $(#[$only_meta:meta])* $only:ty $(,)? ))?
        $({ $($(#[$field_meta:meta])* $field:ident : $type:ty),* $(,)? })?
    ),* $(,)? } $($rest:tt)*) => {
        $(#[$meta])* $vis enum $name { $(
            $(#[$variant_meta])* $variant
            $(( $(#[$only_meta])* $only ))?
            $({ $($(#[$field_meta])* $field: $type),* })?
        ),* }
        // SAFETY: the patterns name every variant and field, and each is asked.
        unsafe impl $crate::arena::Contained for $name {
            const POINTS: bool = false $(
                $(|| <$only as $crate::arena::Contained>::POINTS)?
                $($(|| <$type as $crate::arena::Contained>::POINTS)*)?
            )*;
            fn is_within(&self, arena: &$crate::arena::Extent) -> bool {
                let _ = arena;
                $($crate::__contained_variant! {
                    self, arena, $variant $(( $only ))? $({ $($field),* })?
                })*
                true
            }
        }
        $crate::contained! { $($rest)* }
    };
}

/// Part of [`contained!`]: gives each field of a tuple struct a name of its own (each expansion's `field` is another).
#[doc(hidden)]
#[macro_export]
macro_rules! __contained_tuple {
    ($name:ident, [$($field:ident : $type:ty),*], []) => {
        // SAFETY: the pattern names every field, and each is asked.
        unsafe impl $crate::arena::Contained for $name {
            const POINTS: bool = false $(|| <$type as $crate::arena::Contained>::POINTS)*;
            fn is_within(&self, arena: &$crate::arena::Extent) -> bool {
                let Self($($field),*) = self;
                let _ = arena;
                true $(&& $crate::arena::Contained::is_within($field, arena))*
            }
        }
    };
    ($name:ident, [$($done:ident : $type:ty),*], [$(#[$meta:meta])* $vis:vis $next:ty $(, $($rest:tt)*)?]) => {
        $crate::__contained_tuple! { $name, [$($done: $type,)* field: $next], [$($($rest)*)?] }
    };
}

/// Part of [`contained!`]: asks the fields of one variant.
#[doc(hidden)]
#[macro_export]
macro_rules! __contained_variant {
    ($self:ident, $arena:ident, $variant:ident) => {};
    ($self:ident, $arena:ident, $variant:ident ( $only:ty )) => {
        if let Self::$variant(only) = $self {
            return $crate::arena::Contained::is_within(only, $arena);
        }
    };
    ($self:ident, $arena:ident, $variant:ident { $($field:ident),* }) => {
        if let Self::$variant { $($field),* } = $self {
            return true $(&& $crate::arena::Contained::is_within($field, $arena))*;
        }
    };
}
