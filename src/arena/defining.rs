//! A macro that defines [`Contained`](super::Contained) types.
//!
//! # Safety
//! It implements the trait for types whose fields it has seen all; the compiler checks that each is `Contained`, and
//! that no field was left out. Three things are not left to names:
//!
//! - **Patterns.** A name alone in a pattern is a constant where one of that name is in scope, and matches some values
//!   only. So fields are bound as `field: ref name`, where a constant is an error, and variants are matched without a
//!   last arm that takes the rest.
//! - **Tuples** are matched as `Variant { 0: ref name }`, which means the variant and nothing else.
//! - **Types.** An attribute macro may have changed them, so each field is asked as what it is, not as what was written.

use super::contained::Contained;

/// Defines types and says that they are [`Contained`](crate::arena::Contained): each of their fields must be.
///
/// Structs and enums of all kinds can be defined so. Generic parameters are types, without conditions but `'static`, and
/// are `Contained` where the type is.
///
/// ```
/// use cowbell::arena::{Arena, Vec};
///
/// cowbell::contained! {
///     /// A graph whose edges are numbers of nodes.
///     #[derive(Debug)]
///     pub struct Graph<W> {
///         /// The nodes by number.
///         pub nodes: Vec<Node<W>>,
///     }
///
///     /// A node.
///     #[derive(Debug)]
///     pub struct Node<W> {
///         kind: Kind<W>,
///         edges: Vec<u32>,
///     }
///
///     #[derive(Debug)]
///     enum Kind<W> {
///         Source,
///         Weighted(W, f64),
///         Named { name: &'static str },
///     }
/// }
///
/// let arena = Arena::builder("graph").build()?;
/// let name = &*arena.alloc_str("sink")?;
/// let mut nodes = Vec::new_in(*arena);
/// for kind in [Kind::Source, Kind::Weighted(7u32, 0.5), Kind::Named { name }, Kind::Named { name: "constant" }] {
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
///
/// A field under `#[cfg]` is not supported: the definition does not compile where the field is left out.
#[macro_export]
macro_rules! contained {
    () => {};
    ($(#[$meta:meta])* $vis:vis struct $name:ident $(< $($param:ident $(: $life:lifetime)?),+ $(,)? >)? {
        $($(#[$field_meta:meta])* $field_vis:vis $field:ident : $type:ty),* $(,)?
    } $($rest:tt)*) => {
        $(#[$meta])* $vis struct $name $(< $($param $(: $life)?),+ >)? {
            $($(#[$field_meta])* $field_vis $field: $type),*
        }
        $crate::__contained! { @type [$name] [$($($param),+)?] [[Self] { $($field)* };] }
        $crate::contained! { $($rest)* }
    };
    ($(#[$meta:meta])* $vis:vis struct $name:ident $(< $($param:ident $(: $life:lifetime)?),+ $(,)? >)? (
        $($(#[$field_meta:meta])* $field_vis:vis $type:ty),* $(,)?
    ); $($rest:tt)*) => {
        $(#[$meta])* $vis struct $name $(< $($param $(: $life)?),+ >)? (
            $($(#[$field_meta])* $field_vis $type),*
        );
        $crate::__contained! { @type [$name] [$($($param),+)?] [[Self] ( $([$type])* );] }
        $crate::contained! { $($rest)* }
    };
    ($(#[$meta:meta])* $vis:vis struct $name:ident; $($rest:tt)*) => {
        $(#[$meta])* $vis struct $name;
        $crate::__contained! { @type [$name] [] [[Self];] }
        $crate::contained! { $($rest)* }
    };
    ($(#[$meta:meta])* $vis:vis enum $name:ident $(< $($param:ident $(: $life:lifetime)?),+ $(,)? >)? { $(
        $(#[$variant_meta:meta])* $variant:ident
        $(( $($(#[$part_meta:meta])* $part:ty),* $(,)? ))?
        $({ $($(#[$field_meta:meta])* $field:ident : $type:ty),* $(,)? })?
        $(= $number:expr)?
    ),* $(,)? } $($rest:tt)*) => {
        $(#[$meta])* $vis enum $name $(< $($param $(: $life)?),+ >)? { $(
            $(#[$variant_meta])* $variant
            $(( $($(#[$part_meta])* $part),* ))?
            $({ $($(#[$field_meta])* $field: $type),* })?
            $(= $number)?
        ),* }
        $crate::__contained! { @type [$name] [$($($param),+)?] [$(
            [Self::$variant] $(( $([$part])* ))? $({ $($field)* })? ;
        )*] }
        $crate::contained! { $($rest)* }
    };
}

/// Part of [`contained!`]: from `[path] (types);`, `[path] { names };` and `[path];` to an implementation.
///
/// Each field gets a name to be bound to that no other code can mean: identifiers of one expansion are not those of
/// another, though they are spelled alike.
#[doc(hidden)]
#[macro_export]
macro_rules! __contained {
    (@type $name:tt $params:tt $variants:tt) => {
        $crate::__contained! { @variants [$name $params] [] $variants }
    };

    // No variant with fields is left.
    (@variants $type:tt [$($done:tt)*] [$([$path:path];)*]) => {
        $crate::__contained! { @implement $type [$($done)* $({ [$path] [] })*] }
    };
    (@variants $type:tt [$($done:tt)*] [[$path:path]; $($rest:tt)*]) => {
        $crate::__contained! { @variants $type [$($done)* { [$path] [] }] [$($rest)*] }
    };
    (@variants $type:tt $done:tt [[$path:path] { $($field:ident)* }; $($rest:tt)*]) => {
        $crate::__contained! { @named $type $done [$path] [] [$($field)*] [$($rest)*] }
    };
    (@variants $type:tt $done:tt [[$path:path] ( $($part:tt)* ); $($rest:tt)*]) => {
        $crate::__contained! { @tuple $type $done [$path] [] [$($part)*]
            [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31] [$($rest)*] }
    };

    (@named $type:tt [$($done:tt)*] $path:tt $bound:tt [] $rest:tt) => {
        $crate::__contained! { @variants $type [$($done)* { $path $bound }] $rest }
    };
    (@named $type:tt $done:tt $path:tt [$($bound:tt)*] [$f0:ident $f1:ident $f2:ident $f3:ident $f4:ident $f5:ident $f6:ident $f7:ident $($more:ident)*] $rest:tt) => {
        $crate::__contained! { @named $type $done $path
            [$($bound)* { $f0 __cowbell_0 } { $f1 __cowbell_1 } { $f2 __cowbell_2 } { $f3 __cowbell_3 } { $f4 __cowbell_4 } { $f5 __cowbell_5 } { $f6 __cowbell_6 } { $f7 __cowbell_7 }]
            [$($more)*] $rest }
    };
    (@named $type:tt $done:tt $path:tt [$($bound:tt)*] [$field:ident $($more:ident)*] $rest:tt) => {
        $crate::__contained! { @named $type $done $path [$($bound)* { $field __cowbell_field }] [$($more)*] $rest }
    };

    (@tuple $type:tt [$($done:tt)*] $path:tt $bound:tt [] $numbers:tt $rest:tt) => {
        $crate::__contained! { @variants $type [$($done)* { $path $bound }] $rest }
    };
    (@tuple $type:tt $done:tt $path:tt [$($bound:tt)*] [$part:tt $($more:tt)*] [$number:tt $($numbers:tt)*] $rest:tt) => {
        $crate::__contained! { @tuple $type $done $path
            [$($bound)* { $number __cowbell_part }] [$($more)*] [$($numbers)*] $rest }
    };
    (@tuple $type:tt $done:tt $path:tt $bound:tt $parts:tt [] $rest:tt) => {
        ::core::compile_error!("contained! takes up to 32 fields without names; give them names");
    };

    (@implement [[$name:ident] [$($param:ident),*]] [$({ [$path:path] [$({ $key:tt $value:ident })*] })*]) => {
        // SAFETY: the match names every variant and every field, which the compiler checks because no pattern takes the
        // rest; each field is asked as the type that it has.
        unsafe impl<$($param: $crate::arena::Contained),*> $crate::arena::Contained for $name<$($param),*> {
            const POINTS: bool = false $($(|| $crate::arena::__points::<Self, _>(|__cowbell_this| match *__cowbell_this {
                $path { $key: ref $value, .. } => $value,
                #[allow(unreachable_patterns, reason = "a struct has the one pattern, an enum has others")]
                _ => ::core::unreachable!(),
            }))*)*;
            fn is_within(&self, __cowbell_arena: &$crate::arena::Extent) -> bool {
                let _ = __cowbell_arena;
                match *self {
                    $($path { $($key: ref $value),* } => {
                        true $(&& $crate::arena::Contained::is_within($value, __cowbell_arena))*
                    })*
                }
            }
        }
    };
}

/// Part of [`contained!`](crate::contained): does the field that a function finds [point](Contained::POINTS)?
#[doc(hidden)]
pub const fn __points<S, T: Contained + ?Sized>(_: fn(&S) -> &T) -> bool {
    T::POINTS
}
